"""Evaluation beside a method: the read-out is the model's of that moment, and a head has its own classes only."""

import copy

import pytest
import torch
from avalanche.benchmarks import split_online_stream
from avalanche.benchmarks.scenarios.online import split_continuous_linear_decay_stream
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.models import MTSimpleMLP
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin, SupervisedPlugin
from helpers.streams import head_benchmark, make_benchmark, make_encoder
from torch import nn
from torch.optim.swa_utils import AveragedModel

from avalanche_contrastive import BatchAugmentation, Co2LPlugin, ContrastiveModel, CSDPlugin, SSILPlugin
from avalanche_contrastive.plugins import refit
from avalanche_contrastive.readout import embed_dataset, fit_linear

METHODS = ("co2l", "ssil", "csd")
every_method = pytest.mark.parametrize("method", METHODS)


def build(method, plugins=(), model=None, *, first=False, **options):
    if method == "co2l":
        own = Co2LPlugin(mem_size=20, augmentation=BatchAugmentation(flip=0.0), readout_epochs=5)
        model = model or ContrastiveModel(make_encoder(), 16, 8)
    else:
        own = SSILPlugin(mem_size=20, batch_size_mem=8) if method == "ssil" else CSDPlugin()
        model = model or nn.Sequential(make_encoder(), nn.Linear(16, 10))
    return Naive(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9),
        criterion=nn.CrossEntropyLoss(),
        plugins=[*plugins, own] if first else [own, *plugins],
        **{"train_mb_size": 12, "eval_mb_size": 50, "train_epochs": 2, "evaluator": None, **options},
    )


def flat(model):
    return torch.nn.utils.parameters_to_vector(model.parameters()).clone()


# ---- the read-out of a model whose weights are written past every counter


class Averages(SupervisedPlugin):
    """Keeps a running mean of the weights, and lends it to the model for an evaluation.

    Args:
        hooks: where it puts the mean into the model, and where it takes it out again.
    """

    def __init__(self, hooks):
        super().__init__()
        self.mean, self.kept = None, None
        setattr(self, hooks[0], self.lend)
        if len(hooks) > 1:
            setattr(self, hooks[1], self.take_back)

    def after_update(self, strategy, **kwargs):
        now = [p.detach().clone() for p in strategy.model.parameters()]
        self.mean = now if self.mean is None else [0.7 * a + 0.3 * b for a, b in zip(self.mean, now, strict=True)]

    def lend(self, strategy, **kwargs):
        if self.mean is not None:
            self.kept = [p.detach().clone() for p in strategy.model.parameters()]
            self.put(strategy, self.mean)

    def take_back(self, strategy, **kwargs):
        if self.kept is not None:
            self.put(strategy, self.kept)

    @staticmethod
    def put(strategy, values):
        for parameter, value in zip(strategy.model.parameters(), values, strict=True):
            parameter.data.copy_(value)


class ReadOut(SupervisedPlugin):
    """In evaluation: whether the read-out is the one that is fitted to the features of this moment."""

    def __init__(self):
        super().__init__()
        self.right = []

    def after_eval_forward(self, strategy, **kwargs):
        plugin = next(p for p in strategy.plugins if isinstance(p, Co2LPlugin))
        if not plugin.refit.datasets:
            return  # before the first training
        parts = [embed_dataset(strategy.model, d, batch_size=50, device="cpu") for d in plugin.refit.datasets]
        features, y = (torch.cat([part[i] for part in parts]) for i in (0, 1))
        classes, weight, bias = fit_linear(features, y, epochs=5)
        readout = strategy.model.readout
        self.right.append(torch.equal(readout.weight[classes], weight) and torch.equal(readout.bias[classes], bias))


LENDING = [("before_eval", "after_eval"), ("before_eval_exp", "after_eval_exp")]
LENDING += [("after_training_exp",), ("after_training",)]


@pytest.mark.parametrize("eval_every", [-1, 1])
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("hooks", LENDING, ids=" ".join)
def test_averaged_weights_have_a_read_out_of_their_own(hooks, first, eval_every):
    look, benchmark = ReadOut(), make_benchmark()
    strategy = build("co2l", [Averages(hooks)], first=first, eval_every=eval_every)
    strategy.plugins.append(look)
    for experience in benchmark.train_stream[:2]:
        strategy.train(experience, eval_streams=[benchmark.test_stream[:2]])
        strategy.eval(benchmark.test_stream[:2])
    assert len(look.right) >= 4
    assert all(look.right)


def test_weights_that_another_call_has_written_have_a_read_out_of_their_own():
    look, benchmark = ReadOut(), make_benchmark()
    strategy = build("co2l", [look])
    strategy.train(benchmark.train_stream[0])
    for parameter in strategy.model.encoder.parameters():
        parameter.data = parameter.data * 0.5
    strategy.eval(benchmark.test_stream[:1])
    next(strategy.model.encoder.parameters()).data[0] += 1e-3
    strategy.eval(benchmark.test_stream[:1])
    strategy.model.load_state_dict(ContrastiveModel(make_encoder(), 16, 8).state_dict(), strict=False)
    strategy.model.readout.fitted.fill_(False)  # as the state of an untrained model does
    strategy.eval(benchmark.test_stream[:1])
    assert look.right == [True] * 3


class Lends(SupervisedPlugin):
    """Puts torch's averaged model into the model's place for an evaluation."""

    def __init__(self, averaged):
        super().__init__()
        self.averaged = averaged

    def after_update(self, strategy, **kwargs):
        self.averaged.update_parameters(strategy.model)

    def before_eval(self, strategy, **kwargs):
        self.own, strategy.model = strategy.model, self.averaged.eval()

    def after_eval(self, strategy, **kwargs):
        strategy.model = self.own


@pytest.mark.parametrize("first", [True, False])
def test_torchs_averaged_model_may_stand_in_the_models_place(first):
    benchmark = make_benchmark()
    model = ContrastiveModel(make_encoder(), 16, 8, num_classes=10)
    lends = Lends(AveragedModel(model, use_buffers=True))
    strategy = build("co2l", [lends], first=first)
    strategy.model, strategy.optimizer = model, torch.optim.SGD(model.parameters(), lr=0.01)
    for experience in benchmark.train_stream[:2]:
        strategy.train(experience)
        strategy.eval(benchmark.test_stream[:2])
    assert strategy.model is model
    averaged, plugin = lends.averaged.module, next(p for p in strategy.plugins if isinstance(p, Co2LPlugin))
    parts = [embed_dataset(averaged, d, batch_size=50, device="cpu") for d in plugin.refit.datasets]
    features, y = (torch.cat([part[i] for part in parts]) for i in (0, 1))
    classes, weight, _ = fit_linear(features, y, epochs=5)
    assert torch.equal(averaged.readout.weight[classes], weight)
    assert not torch.equal(averaged.readout.weight, model.readout.weight)


class Shifted(nn.Module):
    """An encoder with a value that no state dict holds as a tensor: a number, or a buffer that is not saved."""

    def __init__(self, kind):
        super().__init__()
        self.inner = make_encoder()
        if kind == "buffer":
            self.register_buffer("shift", torch.zeros(1), persistent=False)
        else:
            self.shift = 0.0

    def get_extra_state(self):
        return {"kind": "anything"}

    def set_extra_state(self, state):
        pass

    def forward(self, x):
        return self.inner(x + self.shift)


@pytest.mark.parametrize("kind", ["number", "buffer"])
def test_values_outside_of_the_state_dict_count_too(kind):
    look, benchmark = ReadOut(), make_benchmark()
    strategy = build("co2l", [look])
    strategy.model.encoder = encoder = Shifted(kind)
    strategy.optimizer.param_groups[0]["params"] = list(strategy.model.parameters())
    strategy.train(benchmark.train_stream[0])
    for _ in range(2):
        encoder.shift += 0.5
        strategy.eval(benchmark.test_stream[:1])
    assert look.right == [True] * 2


def test_a_model_that_stands_still_is_fitted_once(monkeypatch):
    fits, benchmark = [], make_benchmark()
    monkeypatch.setattr(refit, "fit_linear", lambda *a, **k: fits.append(1) or fit_linear(*a, **k))
    strategy = build("co2l")
    for number, experience in enumerate(benchmark.train_stream[:3]):
        strategy.train(experience)
        strategy.eval(benchmark.test_stream[: number + 1])
        strategy.eval(benchmark.test_stream)
        assert len(fits) == number + 1


# ---- inference mode


@every_method
def test_evaluation_in_inference_mode_changes_nothing_and_training_goes_on(method):
    finals, benchmark = [], make_benchmark()
    for inference in (False, True):
        torch.manual_seed(0)
        strategy = build(method, evaluator=EvaluationPlugin(accuracy_metrics(stream=True), loggers=[]))
        figures = []
        for number, experience in enumerate(benchmark.train_stream[:3]):
            strategy.train(experience)
            if method == "co2l":  # so that the read-out has to be fitted within the mode
                strategy.model.encoder[0].weight.data.mul_(1.01)
            with torch.inference_mode(inference):
                figures.append(strategy.eval(benchmark.test_stream[: number + 1]))
        finals.append((flat(strategy.model), [list(f.values())[-1] for f in figures]))
        assert not any(value.is_inference() for value in strategy.model.state_dict().values())
    assert torch.equal(finals[0][0], finals[1][0])
    assert finals[0][1] == finals[1][1]


# ---- a head per task


@pytest.mark.parametrize("method", ["ssil", "csd"])
def test_padding_of_avalanches_heads_never_wins(method):
    """Its narrow heads are padded with zeros, and a softmax over a head's own classes pushes no logit above 0."""
    benchmark, outputs = head_benchmark(per_class=12), []

    class Outputs(SupervisedPlugin):
        def after_eval_iteration(self, strategy, **kwargs):
            plain = strategy.model(strategy.mb_x, strategy.mb_task_id)
            outputs.append((strategy.mb_output, strategy.mb_task_id, plain))

        def after_training_iteration(self, strategy, **kwargs):
            new = torch.tensor(sorted(strategy.experience.classes_in_this_experience))
            assert torch.isin(strategy.mb_output.argmax(1), new)[: strategy.train_mb_size].all()

    model = MTSimpleMLP(input_size=64, hidden_size=32)
    evaluator = EvaluationPlugin(accuracy_metrics(experience=True), loggers=[])
    strategy = build(method, [Outputs()], model, evaluator=evaluator)
    for experience in benchmark.train_stream[:3]:
        strategy.train(experience)
    outputs.clear()
    figures = strategy.eval(benchmark.test_stream[:4])
    won_by_padding = 0
    for (given, task, plain), experience in zip(outputs, benchmark.test_stream, strict=False):
        number = int(task[0])
        if number == 3:  # never trained: as it is
            assert torch.equal(given, plain)
            continue
        own = sorted(experience.classes_in_this_experience)
        others = [c for c in range(given.shape[1]) if c not in own]
        assert torch.equal(given[:, own], plain[:, own])
        assert (given[:, others] == -1000).all()
        won_by_padding += int((plain[:, others].amax(1) > plain[:, own].amax(1)).sum())
        y = torch.tensor([experience.dataset[i][1] for i in range(len(experience.dataset))])
        right = (torch.tensor(own)[plain[:, own].argmax(1)] == y).float().mean().item()
        assert figures[f"Top1_Acc_Exp/eval_phase/test_stream/Task{number:03d}/Exp{number:03d}"] == pytest.approx(right)
    assert won_by_padding > 0 or method == "csd"


@pytest.mark.parametrize("method", ["ssil", "csd"])
def test_padding_never_wins_in_an_evaluation_within_the_first_experience(method):
    """When other heads have made the outputs wider already."""
    benchmark, ends, outputs = head_benchmark(per_class=12), [], []

    class Outputs(SupervisedPlugin):
        def after_training_epoch(self, strategy, **kwargs):
            ends.append(1)

        def after_eval_iteration(self, strategy, **kwargs):
            if ends and int(strategy.mb_task_id[0]) == 0:
                outputs.append(strategy.mb_output)

    strategy = build(method, [Outputs()], MTSimpleMLP(input_size=64, hidden_size=32), eval_every=1)
    strategy.train(benchmark.train_stream[0], eval_streams=[benchmark.test_stream])
    own = sorted(benchmark.train_stream[0].classes_in_this_experience)
    assert len(outputs) >= 2
    assert all(torch.isin(output.argmax(1), torch.tensor(own)).all() for output in outputs)
    assert all((output[:, 9] == -1000).all() for output in outputs)


# ---- one rule for plugins and strategies; streams that say nothing of their tasks


@every_method
def test_no_epochs_are_refused_in_the_plugin_as_in_the_strategy(method):
    with pytest.raises(ValueError, match="train_epochs must be a whole number >= 1, got 0"):
        build(method, train_epochs=0).train(make_benchmark().train_stream[0])


STREAMS = {
    "pieces": lambda stream: list(split_online_stream(stream, 10)),
    "a decay": lambda stream: list(split_continuous_linear_decay_stream(stream, 10, 4, 0.5, shuffle=True)),
}


@pytest.mark.parametrize("splitter", STREAMS)
@every_method
def test_streams_without_boundaries_are_refused_in_words_that_fit(method, splitter):
    pieces = STREAMS[splitter](make_benchmark(per_class=6).train_stream[:2])
    with pytest.raises(ValueError, match=r"access_task_boundaries is False.*blend into each other have no boundaries"):
        build(method).train(pieces[0])


@every_method
def test_the_teacher_is_nobodys_to_train(method):
    strategy = build(method)
    strategy.train(make_benchmark().train_stream[:2])
    teacher = strategy.plugins[0].teacher
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    before = copy.deepcopy(teacher.state_dict())
    strategy.train(make_benchmark().train_stream[2])
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
