"""Precision and speed modes: each trains as the papers' methods do, and leaves nothing behind when it is off."""

import gc

import psutil
import pytest
import torch
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.training.determinism.rng_manager import RNGManager
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.plugins.strategy_plugin import SupervisedPlugin
from helpers.streams import make_benchmark
from torch import nn

from avalanche_contrastive import CSD, SSIL, BatchAugmentation, Co2L, ContrastiveModel
from avalanche_contrastive.features import FeatureCapture
from avalanche_contrastive.metrics import (
    class_displacement,
    fit_readout,
    linear_cka,
    map_at_r,
    recall_at_k,
    relation_drift,
    retrieval_metrics,
    score_bias,
)
from avalanche_contrastive.readout import fit_linear, fit_nearest_mean
from avalanche_contrastive.teacher import frozen_copy

METHODS = {"co2l": Co2L, "ssil": SSIL, "csd": CSD}
every_method = pytest.mark.parametrize("method", METHODS)


def encoder():
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
    )


def make(method, change=lambda model: model, *, plugins=(), epochs=4, metrics=(), **options):
    """A strategy whose model went through ``change``, and the model as it was before."""
    plain = ContrastiveModel(encoder(), 64, 16) if method == "co2l" else nn.Sequential(encoder(), nn.Linear(64, 10))
    model = change(plain)
    if method == "co2l":
        options = {"augmentation": BatchAugmentation(flip=0.0, scale=(0.7, 1.0)), "readout_epochs": 30, **options}
    if method != "csd":
        options = {"mem_size": 60, **options}
    strategy = METHODS[method](
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9),
        train_mb_size=16,
        train_epochs=epochs,
        eval_mb_size=32,
        plugins=list(plugins),
        evaluator=EvaluationPlugin(
            accuracy_metrics(stream=True), retrieval_metrics(ks=(1,), experience=False), *metrics, loggers=[]
        ),
        **options,
    )
    return strategy, plain


def run(method, change=lambda model: model, *, train=None, steps=2, evaluate=True, **options):
    """Train on the first experiences: the weights, and the figures on their test images."""
    RNGManager.set_random_seeds(0)
    strategy, plain = make(method, change, **options)
    stream = make_benchmark(per_class=16)
    figures = {}
    for step, experience in enumerate(stream.train_stream[:steps]):
        strategy.train(experience, **(train or {}))
        if evaluate:
            figures = strategy.eval(stream.test_stream[: step + 1])
    found = {key.split("/")[0]: float(value) for key, value in figures.items()}
    return {name: value.clone() for name, value in plain.state_dict().items()}, found, strategy


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def close(one, other, tolerance):
    return all(torch.allclose(value.float(), other[name].float(), atol=tolerance) for name, value in one.items())


# ---- bfloat16


class Autocast(nn.Module):
    """A model that computes in bfloat16 by itself, whoever calls it."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        with torch.autocast(x.device.type, torch.bfloat16):
            return self.model(x)


def sane(weights, figures, strategy):
    """All that is kept is finite and in float32, and more is known than by guessing."""
    assert all(value.isfinite().all() for value in weights.values())
    assert {value.dtype for value in weights.values() if value.is_floating_point()} == {torch.float32}
    assert {p.dtype for p in strategy.method.teacher.parameters()} == {torch.float32}
    assert all(term.isfinite() and term.dtype == torch.float32 for term in strategy.method.terms.values())
    assert figures["Recall@1_Stream"] > 0.8
    if isinstance(strategy, (Co2L, SSIL)):
        assert figures["Top1_Acc_Stream"] > 0.6, "of four classes"


@every_method
def test_bfloat16_around_training_and_evaluation(method):
    with torch.autocast("cpu", torch.bfloat16):
        weights, figures, strategy = run(method, epochs=12)
    sane(weights, figures, strategy)
    plain, plain_figures, _ = run(method, epochs=12)
    assert not same(weights, plain), "bfloat16 was on"
    # Autocast would go on with its rounded copies of the first weights, were they not dropped after every step.
    assert figures["Top1_Acc_Stream"] == pytest.approx(plain_figures["Top1_Acc_Stream"], abs=0.15)


@pytest.mark.parametrize("method", ["ssil", "csd"])
def test_bfloat16_inside_the_model(method):
    weights, figures, strategy = run(method, Autocast, epochs=12)
    sane(weights, figures, strategy)
    assert strategy.model(torch.rand(2, 1, 8, 8)).dtype == torch.bfloat16


def test_bfloat16_inside_the_encoder_of_co2l():
    def change(model):
        model.encoder = Autocast(model.encoder)
        return model

    sane(*run("co2l", change, epochs=12))


@every_method
def test_the_objective_is_computed_in_float32_under_autocast(method):
    terms = {}

    class Watch(SupervisedPlugin):
        def after_training_iteration(self, strategy, **kwargs):
            terms.setdefault("inside", []).append({key: float(value) for key, value in strategy.method.terms.items()})

    run(method, plugins=[Watch()], epochs=1, evaluate=False)
    outside, terms["inside"] = terms["inside"], []
    with torch.autocast("cpu", torch.bfloat16):
        run(method, plugins=[Watch()], epochs=1, evaluate=False)
    first, second = outside[0], terms["inside"][0]
    assert first.keys() == second.keys()
    # The same weights and images: only the forward pass is rounded, to three digits.
    assert all(second[key] == pytest.approx(value, rel=0.03, abs=0.03) for key, value in first.items())


def blobs(n=60, d=12):
    torch.manual_seed(0)
    y = torch.arange(n) % 5
    return torch.randn(5, d)[y] * 0.7 + torch.randn(n, d), y


FIGURES = {
    "recall": lambda f, y: recall_at_k(f, y, 3),
    "recall, euclidean": lambda f, y: recall_at_k(f, y, 3, distance="euclidean"),
    "map": map_at_r,
    "relations": lambda f, y: relation_drift(f, f.roll(1, 1)),
    "cka": lambda f, y: linear_cka(f, f.sin()),
    "displacement": lambda f, y: class_displacement(f, f.roll(1, 1), y),
    "bias": lambda f, y: repr(score_bias(f, y, old=[0, 1, 2], newest=[3, 4])),
    "linear probe": lambda f, y: fit_readout(f, y, kind="linear")(f).tolist(),
    "neighbours": lambda f, y: fit_readout(f, y, kind="knn")(f).tolist(),
    "means": lambda f, y: fit_readout(f, y, kind="nearest_mean")(f).tolist(),
    "linear read-out": lambda f, y: torch.cat([part.flatten() for part in fit_linear(f, y)[1:]]).tolist(),
    "nearest means": lambda f, y: torch.cat([part.flatten() for part in fit_nearest_mean(f, y)[1:]]).tolist(),
}


@pytest.mark.parametrize("figure", FIGURES)
def test_figures_are_the_same_under_autocast(figure):
    features, y = blobs()
    outside = FIGURES[figure](features, y)
    with torch.autocast("cpu", torch.bfloat16):
        assert FIGURES[figure](features, y) == outside


# ---- compiled models


class Counted:
    """A compiler that changes nothing, and counts how often what it has compiled is run."""

    def __init__(self):
        self.runs = 0

    def __call__(self, graph, inputs):
        def run(*arguments):
            self.runs += 1
            return graph.forward(*arguments)

        return run


def wrapped(backend):
    return lambda model: torch.compile(model, backend=backend)


def in_place(backend):
    def change(model):
        model.compile(backend=backend)
        return model

    return change


@pytest.fixture
def fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


HOW = pytest.mark.parametrize("how", [wrapped, in_place], ids=["wrapped", "in-place"])


@pytest.mark.usefixtures("fresh_compiler")
@every_method
@HOW
def test_a_compiled_model_trains_to_the_same_weights(method, how):
    compiler = Counted()
    weights, figures, strategy = run(method, how(compiler), epochs=2)
    plain, plain_figures, _ = run(method, epochs=2)
    assert same(weights, plain)
    assert figures == plain_figures
    assert (compiler.runs > 0) == (method != "csd"), "CSD, like the metric, looks inside the model"
    assert not hasattr(strategy.method.teacher, "_orig_mod")
    runs = compiler.runs
    strategy.model(torch.rand(2, 1, 8, 8))
    assert compiler.runs > runs, "compiled code runs again"


@pytest.mark.usefixtures("fresh_compiler")
@every_method
@HOW
def test_a_model_that_was_compiled_before_has_its_hooks_run_all_the_same(method, how):
    def warm(model):
        # Of exactly the shape and mode that training will have: torch would take this code, which knows of no hook.
        model(torch.rand(16, 1, 8, 8))
        return model

    weights, _, _ = run(method, lambda model: warm(how(Counted())(model)), epochs=2, evaluate=False)
    plain, _, _ = run(method, warm, epochs=2, evaluate=False)
    assert same(weights, plain)


@pytest.mark.usefixtures("fresh_compiler")
@HOW
def test_features_of_compiled_models_are_taken_in_any_order(how):
    compiler, x = Counted(), torch.rand(6, 1, 8, 8)
    plain = nn.Sequential(encoder(), nn.Linear(64, 10)).eval()
    model, capture = how(compiler)(plain), FeatureCapture()
    for _ in range(3):
        before = compiler.runs
        model(x)
        assert compiler.runs == before + 1
        capture.attach(model)
        logits = model(x)
        features = capture.take(logits)
        assert compiler.runs == before + 1
        assert torch.equal(plain[1](features), logits)
    copied = frozen_copy(model)
    assert torch.equal(copied(x), logits)
    assert not any(module._forward_hooks for module in copied.modules())


@pytest.mark.usefixtures("fresh_compiler")
@HOW
def test_a_failing_pass_does_not_leave_the_compiler_off(how):
    compiler = Counted()
    strategy, plain = make("csd", how(compiler), epochs=1)
    stream = make_benchmark(per_class=16).train_stream
    strategy.train(stream[0])
    inner, plain[0][0] = plain[0][0], nn.Conv2d(3, 8, 3)
    with pytest.raises(RuntimeError, match="3 channels"):
        strategy.train(stream[1])
    plain[0][0] = inner
    runs = compiler.runs
    strategy.model(torch.rand(6, 1, 8, 8))
    assert compiler.runs > runs
    strategy.train(stream[1])


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_compiler")
@every_method
@HOW
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_torchs_own_compilers(method, how, backend):
    sane(*run(method, how(backend), epochs=12))


# ---- channels last


class BatchesLast(SupervisedPlugin):
    """Gives the model batches whose channels lie last in memory."""

    def before_forward(self, strategy, **kwargs):
        strategy.mbatch[0] = strategy.mb_x.to(memory_format=torch.channels_last)


@every_method
def test_channels_last_trains_to_the_same_but_for_rounding(method):
    def change(model):
        return model.to(memory_format=torch.channels_last)

    # A few steps: longer training makes anything of a rounding error.
    close_weights, _, _ = run(method, change, plugins=[BatchesLast()], epochs=1, steps=1)
    assert close(close_weights, run(method, epochs=1, steps=1)[0], 1e-4)
    weights, figures, strategy = run(method, change, plugins=[BatchesLast()], epochs=12)
    sane(weights, figures, strategy)
    for model in (strategy.model, strategy.method.teacher):
        convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
        assert convolutions[1].weight.is_contiguous(memory_format=torch.channels_last)


# ---- workers


def workers():
    gc.collect()
    return psutil.Process().children(recursive=True)


@every_method
@pytest.mark.parametrize("persistent", [False, True])
def test_workers_give_the_same_weights_and_end(method, persistent):
    before = len(workers())
    train = {"num_workers": 2, "persistent_workers": persistent}
    options = {"batch_size_mem": 16} if method == "co2l" else {}
    weights, figures, strategy = run(method, train=train, epochs=2, **options)
    assert len(workers()) == before
    # Torch draws the workers' seed once for persistent ones, else in each epoch: other shuffles, but always the same.
    again = run(method, train=train if persistent else None, epochs=2, **options)
    assert same(weights, again[0])
    assert figures == again[1]
    assert strategy.dataloader == []


def test_workers_end_when_training_fails():
    before = len(workers())

    class Fails(SupervisedPlugin):
        def before_backward(self, strategy, **kwargs):
            if strategy.clock.train_exp_counter == 1:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run("ssil", train={"num_workers": 2, "persistent_workers": True}, epochs=1, plugins=[Fails()])
    assert len(workers()) == before


# ---- and off again


@pytest.mark.usefixtures("fresh_compiler")
@every_method
def test_float32_is_the_same_bit_for_bit_after_every_mode(method):
    before, figures, _ = run(method)
    with torch.autocast("cpu", torch.bfloat16):
        run(method, epochs=1)
    run(method, wrapped(Counted()), epochs=1)
    run(method, lambda model: model.to(memory_format=torch.channels_last), epochs=1, plugins=[BatchesLast()])
    run(method, train={"num_workers": 1}, epochs=1, steps=1)
    after, again, _ = run(method)
    assert same(before, after)
    assert figures == again
