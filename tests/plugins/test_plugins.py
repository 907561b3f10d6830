"""The plugins through Avalanche's public API, on its real streams, buffers and metrics."""

import copy
import pickle
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from avalanche.evaluation.metrics import accuracy_metrics, loss_metrics, timing_metrics
from avalanche.models import IncrementalClassifier
from avalanche.training import ER_ACE, Naive
from avalanche.training.plugins import EvaluationPlugin, EWCPlugin, LwFPlugin, ReplayPlugin, SupervisedPlugin
from avalanche.training.storage_policy import (
    ClassBalancedBuffer,
    ExperienceBalancedBuffer,
    ParametricBuffer,
    ReservoirSamplingBuffer,
)
from helpers.streams import ORDER, make_benchmark, make_encoder
from torch import nn

from avalanche_contrastive import BatchAugmentation, Co2LPlugin, ContrastiveModel, CSDPlugin, SSILPlugin, TwoViews
from avalanche_contrastive.losses import separated_softmax, taskwise_distillation
from avalanche_contrastive.readout import embed_dataset, fit_linear

METHODS = ["co2l", "ssil", "csd"]
AUGMENT = BatchAugmentation(scale=(0.6, 1.0), flip=0.0)


class Classifier(nn.Module):
    """An encoder and a head, fixed or growing."""

    def __init__(self, head="fixed", width=16, classes=10):
        super().__init__()
        self.encoder = make_encoder(width)
        self.head = nn.Linear(width, classes) if head == "fixed" else IncrementalClassifier(width)

    def forward(self, x):
        return self.head(self.encoder(x))


class Recorder(SupervisedPlugin):
    """Notes what other plugins and the metrics get to see."""

    def __init__(self):
        super().__init__()
        self.losses, self.rows, self.labels, self.criteria, self.outputs = [], [], [], [], []

    def before_forward(self, strategy, **kwargs):
        self.rows.append(len(strategy.mb_y))
        self.labels.append(strategy.mb_y.clone())

    def before_training_iteration(self, strategy, **kwargs):
        self.criteria.append(strategy._criterion.label_smoothing)

    def after_backward(self, strategy, **kwargs):
        self.losses.append(strategy.loss.item())

    def after_training_iteration(self, strategy, **kwargs):
        self.outputs.append(strategy.mb_output)


def make_plugin(method, **options):
    if method == "co2l":
        return Co2LPlugin(**{"mem_size": 20, "augmentation": AUGMENT, "readout_lr": 0.1, **options})
    if method == "ssil":
        return SSILPlugin(**{"mem_size": 20, "batch_size_mem": 8, **options})
    return CSDPlugin(**options)


def make_model(method, head="fixed"):
    return ContrastiveModel(make_encoder(), 16, 8) if method == "co2l" else Classifier(head)


def naive(model, plugins, **options):
    defaults = {"train_mb_size": 10, "train_epochs": 1, "eval_mb_size": 50, "evaluator": None}
    return Naive(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9),
        criterion=nn.CrossEntropyLoss(),
        plugins=plugins,
        **{**defaults, **options},
    )


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


# ---- every stream


@pytest.mark.parametrize("head", ["fixed", "growing"])
@pytest.mark.parametrize("eval_every", [-1, 0, 1])
@pytest.mark.parametrize("flavour", ["A", "B", "C"])
@pytest.mark.parametrize("method", METHODS)
def test_unequal_stream_small_memory_and_default_evaluator(method, flavour, eval_every, head, capsys):
    options = {} if method == "csd" else {"mem_size": 6}
    benchmark = make_benchmark(flavour, sizes=[4, 3, 3])
    model = make_model(method, head)
    strategy = Naive(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.05),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=10,
        eval_mb_size=50,
        eval_every=eval_every,
        plugins=[make_plugin(method, **options)],
    )
    for experience in benchmark.train_stream:
        metrics = strategy.train(experience, eval_streams=[benchmark.test_stream] if eval_every >= 0 else None)
    accuracy = [v for k, v in metrics.items() if k.startswith("Top1_Acc_Epoch/train_phase")]
    assert len(accuracy) == 1
    assert 0 < accuracy[0] <= 1
    logits = model.eval()(benchmark.test_stream[0].dataset.eval()[0][0][None])
    assert logits.shape == (1, 10)
    assert logits.isfinite().all()
    strategy.eval(benchmark.test_stream)


@pytest.mark.parametrize("method", METHODS)
def test_each_method_learns_where_fine_tuning_forgets(method, monkeypatch):
    def encoder():
        return nn.Sequential(nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(576, 16))

    monkeypatch.setitem(globals(), "make_encoder", lambda width=16: encoder())
    benchmark = make_benchmark(per_class=60)
    test_x, test_y = _all_of(benchmark.test_stream)

    def final(plugins, model):
        # The authors' scale of the contrast (x 7.1) wants a smaller rate than cross-entropy.
        strategy = naive(model, plugins, train_epochs=15)
        strategy.optimizer.param_groups[0]["lr"] = 0.01 if method == "co2l" else 0.05
        for experience in benchmark.train_stream:
            strategy.train(experience)
        return model.eval()(test_x).argmax(dim=1).eq(test_y).float().mean().item()

    torch.manual_seed(0)
    plain = final([], Classifier())
    options = {} if method == "csd" else {"mem_size": 100}
    torch.manual_seed(0)
    ours = final([make_plugin(method, **options)], make_model(method))
    if method == "csd":  # no memory, judged by retrieval: its classifier must still know the newest classes
        assert ours > 0.05
    else:
        assert ours > plain + 0.2


def _all_of(stream):
    rows = [sample for e in stream for sample in (e.dataset.eval()[i] for i in range(len(e.dataset)))]
    return torch.stack([r[0] for r in rows]), torch.tensor([r[1] for r in rows])


# ---- composition


def assert_either_order_trains_the_same(method, make_partner):
    """Three experiences with the partner behind and before the method: equal losses at each step, equal weights."""
    runs = []
    for flip in (False, True):
        torch.manual_seed(0)
        recorder, model, pair = Recorder(), make_model(method), [make_plugin(method), make_partner()]
        strategy = naive(model, [*(pair[::-1] if flip else pair), recorder])
        for experience in make_benchmark().train_stream[:3]:
            strategy.train(experience)
        runs.append((recorder.losses, weights(model)))
    assert runs[0][0] == runs[1][0]
    assert torch.equal(runs[0][1], runs[1][1])


@pytest.mark.parametrize(
    ("method", "partner"),
    # LwF distils training outputs as logits: beside Co2L, whose outputs are projections, it has no meaning.
    [(m, p) for m in METHODS for p in ("ewc", "lwf", "replay") if (m, p) != ("co2l", "lwf")],
)
def test_either_order_of_the_list_trains_the_same(method, partner):
    make_partner = {
        "ewc": lambda: EWCPlugin(ewc_lambda=10.0),
        "lwf": lambda: LwFPlugin(alpha=1.0, temperature=2.0),
        "replay": lambda: ReplayPlugin(mem_size=20),
    }[partner]
    assert_either_order_trains_the_same(method, make_partner)


@pytest.mark.parametrize("method", METHODS)
def test_either_order_beside_a_plugin_that_edits_the_batch(method):
    class Repeat(SupervisedPlugin):
        def before_forward(self, strategy, **kwargs):
            strategy.mbatch = [torch.cat([part, part[:2]]) for part in strategy.mbatch]

    assert_either_order_trains_the_same(method, Repeat)


@pytest.mark.parametrize("method", METHODS)
def test_either_order_beside_a_plugin_that_moves_batch_norm_at_the_end(method):
    class Shake(SupervisedPlugin):
        def after_training_exp(self, strategy, **kwargs):
            with torch.no_grad():
                for module in strategy.model.modules():
                    if isinstance(module, nn.BatchNorm2d):
                        module.running_mean += 0.1

    assert_either_order_trains_the_same(method, Shake)


@pytest.mark.parametrize("method", METHODS)
def test_an_evaluation_by_another_plugin_after_a_step(method):
    benchmark = make_benchmark()

    class Evaluate(SupervisedPlugin):
        def after_training_iteration(self, strategy, **kwargs):
            strategy.eval(benchmark.test_stream[:1])

    plugin, recorder = make_plugin(method), Recorder()
    strategy = naive(make_model(method), [Evaluate(), plugin, recorder])
    for experience in benchmark.train_stream[:2]:
        strategy.train(experience)
    assert plugin.ledger == [sorted(ORDER[:2]), sorted(ORDER[2:4])]
    assert all(np.isfinite(recorder.losses))


def test_the_read_out_knows_the_classes_of_an_experience_without_a_step():
    model = make_model("co2l")
    strategy = naive(model, [make_plugin("co2l")], train_mb_size=100)
    strategy.train(make_benchmark().train_stream[:2], drop_last=True)
    assert sorted(model.readout.fitted.nonzero()[:, 0].tolist()) == sorted(ORDER[:4])


@pytest.mark.parametrize("method", METHODS)
def test_penalties_of_other_plugins_stay(method):
    class Penalty(SupervisedPlugin):
        def before_backward(self, strategy, **kwargs):
            strategy.loss += 3.0

    losses = []
    for plugins in ([], [Penalty()]):
        torch.manual_seed(0)
        recorder = Recorder()
        naive(make_model(method), [make_plugin(method), *plugins, recorder]).train(make_benchmark().train_stream[0])
        losses.append(recorder.losses[0])
    assert losses[1] == pytest.approx(losses[0] + 3.0)


@pytest.mark.parametrize("method", METHODS)
def test_the_users_criterion_is_back_after_each_step_and_in_evaluation(method):
    criterion = nn.CrossEntropyLoss(label_smoothing=0.5)
    seen = []

    class InEvaluation(SupervisedPlugin):
        def after_eval_iteration(self, strategy, **kwargs):
            seen.append((strategy.loss.item(), F.cross_entropy(strategy.mb_output, strategy.mb_y, label_smoothing=0.5)))

    recorder, given = Recorder(), [make_plugin(method), InEvaluation()]
    plugins = [*given, recorder]
    kept = list(plugins)
    strategy = naive(make_model(method), plugins, eval_every=1)
    strategy._criterion = criterion
    benchmark = make_benchmark()
    strategy.train(benchmark.train_stream[0])
    assert plugins == kept
    assert strategy._criterion is criterion
    assert set(recorder.criteria) == {0.5}
    assert seen
    assert all(loss == pytest.approx(expected.item(), rel=1e-5) for loss, expected in seen)


@pytest.mark.parametrize("method", METHODS)
def test_the_criterion_is_back_after_an_error_in_a_step(method):
    class Broken(SupervisedPlugin):
        def after_forward(self, strategy, **kwargs):
            raise RuntimeError("broken on purpose")

    benchmark = make_benchmark()
    broken = Broken()
    strategy = naive(make_model(method), [make_plugin(method), broken])
    criterion = strategy._criterion
    with pytest.raises(RuntimeError, match="on purpose"):
        strategy.train(benchmark.train_stream[0])
    strategy.plugins.remove(broken)
    strategy.eval(benchmark.test_stream[:1])
    assert strategy._criterion is criterion
    strategy.train(benchmark.train_stream[0])
    assert strategy._criterion is criterion


def test_two_methods_in_one_strategy_are_refused():
    strategy = naive(Classifier(), [SSILPlugin(), CSDPlugin()])
    with pytest.raises(ValueError, match=r"SSILPlugin is a whole method.*CSDPlugin"):
        strategy.train(make_benchmark().train_stream[0])


def test_a_template_that_ignores_the_criterion_is_refused_before_it_trains():
    model = Classifier()
    strategy = ER_ACE(  # it calls the criterion in the first experience, where nothing is replayed yet
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.05),
        mem_size=20,
        batch_size_mem=5,
        train_mb_size=10,
        plugins=[SSILPlugin()],
        evaluator=None,
    )
    with pytest.raises(RuntimeError, match=r"ER_ACE trains without calling strategy\.criterion"):
        strategy.train(make_benchmark().train_stream[0])
    assert strategy.clock.train_iterations == 0


class OwnLoss(Naive):
    def criterion(self):
        return F.cross_entropy(self.mb_output, self.mb_y)


class OwnLoop(Naive):
    def training_epoch(self, **kwargs):
        for batch in self.dataloader:
            self.mbatch = batch
            self._unpack_minibatch()
            self._before_training_iteration(**kwargs)
            F.cross_entropy(self.model(self.mb_x), self.mb_y).backward()
            self.optimizer.step()
            self._after_training_iteration(**kwargs)


class LossForNothing(Naive):
    def training_epoch(self, **kwargs):
        for batch in self.dataloader:
            self.mbatch = batch
            self._unpack_minibatch()
            self._before_training_iteration(**kwargs)
            self._before_forward(**kwargs)
            self.mb_output = self.forward()
            self._after_forward(**kwargs)
            self.criterion()
            self._after_training_iteration(**kwargs)


@pytest.mark.parametrize("template", [OwnLoss, OwnLoop, LossForNothing])
@pytest.mark.parametrize("method", ["ssil", "csd"])
def test_a_users_template_that_ignores_the_criterion_is_refused_at_its_first_step(method, template):
    model = Classifier()
    strategy = template(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.05),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=10,
        plugins=[make_plugin(method)],
        evaluator=None,
    )
    with pytest.raises(RuntimeError, match=rf"{template.__name__} trains without calling strategy\.criterion"):
        strategy.train(make_benchmark().train_stream[0])
    assert strategy.clock.train_iterations == 0


# ---- teacher


@pytest.mark.parametrize("method", METHODS)
def test_the_teacher_is_frozen_in_eval_mode_and_outside_the_model(method):
    plugin, model = make_plugin(method), make_model(method)
    strategy = naive(model, [plugin])
    benchmark = make_benchmark()
    assert plugin.teacher is None
    strategy.train(benchmark.train_stream[0])
    teacher, before = plugin.teacher, copy.deepcopy(plugin.teacher.state_dict())
    assert not any(module.training for module in teacher.modules())
    assert not any(p.requires_grad or p.grad is not None for p in teacher.parameters())
    assert all(torch.equal(a, b) for a, b in zip(teacher.parameters(), model.parameters(), strict=True))
    strategy.train(benchmark.train_stream[1])
    assert all(torch.equal(before[k], v) for k, v in teacher.state_dict().items())
    held = {id(p) for group in strategy.optimizer.param_groups for p in group["params"]}
    assert not held & {id(p) for p in teacher.parameters()}
    assert len(list(model.modules())) == len(list(make_model(method).modules()))
    assert plugin.teacher is not teacher


@pytest.mark.parametrize("method", METHODS)
def test_teacher_mode_train_normalises_by_the_batch(method):
    losses = {}
    for mode in ("eval", "train"):
        torch.manual_seed(0)
        recorder, plugin = Recorder(), make_plugin(method, teacher_mode=mode)
        strategy = naive(make_model(method), [plugin, recorder])
        for experience in make_benchmark().train_stream[:2]:
            strategy.train(experience)
        losses[mode] = recorder.losses
        norms = [m for m in plugin.teacher.modules() if isinstance(m, nn.BatchNorm2d)]
        assert norms
        assert all(m.training == (mode == "train") for m in norms)
    assert losses["eval"][:3] == losses["train"][:3]
    assert losses["eval"][-1] != losses["train"][-1]


def test_capture_on_a_copy_never_writes_into_the_student():
    model, capture = Classifier(), CSDPlugin().capture
    x = torch.rand(4, 1, 8, 8)
    capture.attach(model)
    model(x)
    copied = copy.deepcopy(model)  # while the hooks are on
    copied(torch.rand(7, 1, 8, 8))
    assert len(capture.take(None)) == len(x)
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())


# ---- replay


@pytest.mark.parametrize("memory", [6, 20, 1000])
def test_ssil_replays_the_same_number_of_rows_in_every_step(memory):
    recorder = Recorder()
    plugin = make_plugin("ssil", mem_size=memory, batch_size_mem=7)
    strategy = naive(Classifier(), [plugin, recorder], train_mb_size=8, train_epochs=2)
    stream = make_benchmark().train_stream
    strategy.train(stream[0])
    assert recorder.rows == [8, 8, 8] * 2
    recorder.rows, recorder.labels = [], []
    strategy.train(stream[1])
    assert recorder.rows == [15, 15, 15] * 2
    new = torch.tensor(sorted(stream[1].classes_in_this_experience))
    assert all(int(torch.isin(y, new).sum()) == 8 for y in recorder.labels)
    assert len(plugin.storage_policy.buffer) == min(memory, 48)


@pytest.mark.parametrize(
    "policy",
    [
        lambda model: ReservoirSamplingBuffer(20),
        lambda model: ClassBalancedBuffer(20),
        lambda model: ExperienceBalancedBuffer(20),
        lambda model: ParametricBuffer(20, "class"),
    ],
    ids=["reservoir", "class", "experience", "parametric"],
)
@pytest.mark.parametrize("flavour", ["A", "B", "C"])
@pytest.mark.parametrize("method", ["co2l", "ssil"])
def test_any_storage_policy(method, flavour, policy):
    model = make_model(method)
    buffer = policy(model)
    plugin = make_plugin(method, storage_policy=buffer)
    assert plugin.storage_policy is buffer
    strategy = naive(model, [plugin])
    for experience in make_benchmark(flavour).train_stream[:3]:
        strategy.train(experience)
        assert model.training
    assert len(buffer.buffer) == 20


@pytest.mark.parametrize("method", ["co2l", "ssil"])
def test_no_memory_at_all(method):
    plugin = make_plugin(method, mem_size=0)
    strategy = naive(make_model(method), [plugin])
    for experience in make_benchmark().train_stream[:2]:
        strategy.train(experience)
    assert len(plugin.storage_policy.buffer) == 0


@pytest.mark.parametrize("flavour", ["A", "B", "C"])
def test_co2l_mixes_each_exemplar_once_per_epoch(flavour):
    recorder, plugin = Recorder(), make_plugin("co2l", mem_size=10)
    strategy = naive(make_model("co2l"), [plugin, recorder])
    stream = make_benchmark(flavour).train_stream
    strategy.train(stream[0])
    stored = sorted(int(y) for y in plugin.storage_policy.buffer.targets)
    recorder.rows, recorder.labels = [], []
    strategy.train(stream[1])
    assert sum(recorder.rows) == 24 + 10
    labels = torch.cat(recorder.labels)
    assert sorted(labels[torch.isin(labels, torch.tensor(ORDER[:2]))].tolist()) == stored
    # Mixed, not appended: the memory is not all in the last batches.
    assert any(torch.isin(y, torch.tensor(ORDER[:2])).any() for y in recorder.labels[:2])


def test_co2l_can_replay_rows_per_step_instead():
    recorder, plugin = Recorder(), make_plugin("co2l", batch_size_mem=5)
    strategy = naive(make_model("co2l"), [plugin, recorder], train_mb_size=12)
    stream = make_benchmark().train_stream
    for experience in stream[:2]:
        strategy.train(experience)
    assert recorder.rows == [12, 12, 17, 17]


def test_co2l_may_keep_the_memory_for_the_read_out_alone():
    recorder, plugin = Recorder(), make_plugin("co2l", rehearse=False)
    model = make_model("co2l")
    strategy = naive(model, [plugin, recorder], train_mb_size=12)
    stream = make_benchmark().train_stream
    for experience in stream[:2]:
        strategy.train(experience)
    assert set(torch.cat(recorder.labels[2:]).tolist()) == set(stream[1].classes_in_this_experience)
    old = list(stream[0].classes_in_this_experience)
    assert (model.readout.bias[old] > -1000).all()  # the memory's classes still have logits
    assert "distillation" in plugin.terms


def test_replayed_rows_are_drawn_anew_in_every_epoch_from_one_loader():
    loaders, rows = [], []

    class Watch(SupervisedPlugin):
        def before_training_iteration(self, strategy, **kwargs):
            loaders.append(strategy.dataloader)
            rows.append(strategy.mb_x[24:].numpy().tobytes())

    strategy = naive(Classifier(), [make_plugin("ssil"), Watch()], train_mb_size=100, train_epochs=3)
    for experience in make_benchmark().train_stream[:2]:
        strategy.train(experience)
    assert len(set(map(id, loaders))) == 2
    assert len(set(rows[3:])) == 3


# ---- SS-IL


def test_ssil_objective_by_hand_with_shuffled_classes():
    plugin = make_plugin("ssil", temperature=3.0, weight=0.7)
    model = Classifier()
    strategy = naive(model, [plugin])
    stream = make_benchmark(sizes=[4, 3, 3]).train_stream
    for experience in stream[:2]:
        strategy.train(experience)
    assert plugin.ledger == [sorted(ORDER[:4]), sorted(ORDER[4:7])]

    steps = []

    class Step(SupervisedPlugin):
        def after_forward(self, strategy, **kwargs):
            steps.append((strategy.mb_x.clone(), strategy.mb_y.clone(), strategy.mb_output.detach().clone()))

    recorder = Recorder()
    strategy.plugins[1:1] = [Step(), recorder]
    teacher = plugin.teacher
    strategy.train(stream[2])
    x, y, logits = steps[0]
    groups = torch.full((10,), -1)
    groups[ORDER[:7]] = 0
    groups[ORDER[7:]] = 1
    tasks = torch.full((10,), -1)
    tasks[ORDER[:4]] = 0
    tasks[ORDER[4:7]] = 1
    expected = separated_softmax(logits, y, groups) + 0.7 * taskwise_distillation(
        logits, teacher(x), tasks, temperature=3.0
    )
    assert recorder.losses[0] == pytest.approx(expected.item(), rel=1e-5)
    assert set(plugin.terms) == {"cross_entropy", "distillation"}


@pytest.mark.parametrize("head", ["fixed", "growing"])
def test_ssil_options_change_the_objective(head):
    losses = {}
    for name, options in {
        "whole": {},
        "plain": {"separated": False},
        "global": {"distillation": "global"},
        "none": {"distillation": "none"},
        "zero": {"weight": 0.0},
        "hot": {"temperature": 5.0},
    }.items():
        torch.manual_seed(0)
        recorder = Recorder()
        strategy = naive(Classifier(head), [make_plugin("ssil", **options), recorder])
        for experience in make_benchmark().train_stream[:3]:
            strategy.train(experience)
        losses[name] = recorder.losses[-1]
        assert np.isfinite(losses[name])
    assert losses["none"] == losses["zero"]
    assert len(set(losses.values())) == len(losses) - 1


def test_ssil_warns_of_a_single_class():
    strategy = naive(Classifier(), [make_plugin("ssil")])
    with pytest.warns(UserWarning, match="single class"):
        strategy.train(make_benchmark(experiences=10).train_stream[0])


# ---- CSD


def test_csd_takes_the_input_of_the_last_classifier_layer():
    model = Classifier("growing")
    capture = CSDPlugin().capture
    x = torch.rand(3, 1, 8, 8)
    model.eval()
    with capture.listening(model):
        model(x)
    assert torch.equal(capture.take(None), model.encoder(x))


def test_csd_takes_the_output_of_a_named_layer():
    model = Classifier()
    capture = CSDPlugin(feature_layer="encoder.1").capture
    with capture.listening(model):
        model(torch.rand(3, 1, 8, 8))
    assert capture.take(None).shape == (3, 16 * 64)


def test_csd_every_weight_is_used():
    options = {
        "whole": {},
        "no contrast": {"weight": 0.0},
        "no kd": {"kd_weight": 0.0},
        "no triplet": {"triplet_weight": 0.0},
        "double": {"weight": 2.0},
        "paper": {"form": "paper", "temperature": 1.0},
        "cold": {"temperature": 0.5},
        "not normalised": {"normalize": False},
        "kd temperature": {"kd_temperature": 1.0},
        "margin": {"margin": 0.1},
        "masked": {"ce": "masked"},
        "no cross-entropy": {"ce_weight": 0.0},
    }
    losses = {}
    for name, chosen in options.items():
        torch.manual_seed(0)
        recorder, plugin = Recorder(), CSDPlugin(**chosen)
        strategy = naive(Classifier(), [plugin, recorder])
        for experience in make_benchmark().train_stream[:2]:
            strategy.train(experience)
        losses[name] = recorder.losses[-1]
        assert ("contrast" in plugin.terms) == (name != "no contrast")
        assert ("distillation" in plugin.terms) == (name != "no kd")
        assert ("triplet" in plugin.terms) == (name != "no triplet")
    assert len(set(losses.values())) == len(losses)


def test_csd_leaves_old_samples_out_of_the_cross_entropy_unless_told():
    logits, y = torch.randn(6, 4, requires_grad=True), torch.tensor([0, 1, 2, 3, 0, 2])

    def entropy(ce, labels):
        plugin = CSDPlugin(ce=ce)
        plugin._current, plugin.ledger = [0, 1], [[2, 3]]
        plugin.guards.begin(nn.Identity(), "cpu", [0, 1], [2, 3])
        strategy = type("Strategy", (), {"mbatch": [logits, labels], "mb_y": labels})
        plugin.labels = plugin.guards.labels(strategy, multi_head=False)
        return plugin._cross_entropy(strategy, logits)

    new, some = torch.tensor([0, 1, 4]), y[[0, 1, 4]]
    assert entropy("weighted", y).item() == pytest.approx(F.cross_entropy(logits[new], some).item())
    assert entropy("all", y).item() == pytest.approx(F.cross_entropy(logits, y).item())
    assert entropy("masked", y).item() == pytest.approx(F.cross_entropy(logits[new, :2], some).item())
    none = entropy("weighted", torch.tensor([2, 3, 2, 3, 2, 3]))
    none.backward()
    assert none.item() == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


# ---- Co2L: views and read-out


@pytest.mark.parametrize("flavour", ["A", "B", "C"])
def test_co2l_views_from_the_pipeline(flavour):
    def noisy(image):
        return image + 0.1 * torch.rand_like(image)

    benchmark = make_benchmark(flavour, transform=TwoViews(noisy, views=3))
    shapes = []

    class Shapes(SupervisedPlugin):
        def before_forward(self, strategy, **kwargs):
            shapes.append(tuple(strategy.mb_x.shape))

    model = make_model("co2l")
    strategy = naive(model, [make_plugin("co2l", augmentation=None), Shapes()])
    for experience in benchmark.train_stream[:2]:
        strategy.train(experience)
    assert shapes[0] == (10, 3, 1, 8, 8)
    strategy.eval(benchmark.test_stream)


def test_co2l_gives_the_batch_back_to_the_metrics():
    shapes = []

    class Shapes(SupervisedPlugin):
        def after_training_iteration(self, strategy, **kwargs):
            shapes.append((tuple(strategy.mb_x.shape), tuple(strategy.mb_output.shape), len(strategy.mb_y)))

    asks = EvaluationPlugin(accuracy_metrics(epoch=True))
    asks_not = EvaluationPlugin(accuracy_metrics(stream=True), loss_metrics(epoch=True), timing_metrics(epoch=True))
    for evaluator in (asks, asks_not, None):
        strategy = naive(make_model("co2l"), [make_plugin("co2l"), Shapes()], evaluator=evaluator)
        strategy.train(make_benchmark().train_stream[0])
    assert shapes[0] == ((10, 1, 8, 8), (10, 10), 10)
    assert shapes[3] == shapes[6] == ((10, 1, 8, 8), (10, 2, 8), 10)  # no scores where no metric asks for them


def test_co2l_options_change_the_objective():
    losses = {}
    for name, options in {
        "whole": {},
        "symmetric": {"asymmetric": False},
        "no distillation": {"weight": 0.0},
        "paper scale": {"base_temperature": None},
        "anchors": {"reduction": "anchors"},
        "sum": {"reduction": "sum"},
        "temperature": {"temperature": 0.1},
        "kappa": {"distill_temperature": 0.5},
        "kappa*": {"teacher_temperature": 0.2},
        "three views": {"views": 3},
    }.items():
        torch.manual_seed(0)
        recorder = Recorder()
        strategy = naive(make_model("co2l"), [make_plugin("co2l", **options), recorder])
        for experience in make_benchmark().train_stream[:2]:
            strategy.train(experience)
        losses[name] = recorder.losses[-1]
    assert len(set(losses.values())) == len(losses)


@pytest.mark.parametrize("readout", ["linear", "ncm"])
def test_the_read_out_leaves_no_trace_in_training(readout):
    plugin, model = make_plugin("co2l", readout=readout), make_model("co2l")
    benchmark = make_benchmark()
    marks = []

    class Midway(SupervisedPlugin):
        """Fits the read-out in the middle of an epoch and compares everything around it."""

        def after_update(self, strategy, **kwargs):
            before = (_random_state(), copy.deepcopy(model.state_dict()), _grads(model), model.training)
            plugin.before_eval(strategy)
            after = (_random_state(), copy.deepcopy(model.state_dict()), _grads(model), model.training)
            marks.append((before, after))

    strategy = naive(model, [plugin, Midway()])
    strategy.train(benchmark.train_stream[0])
    assert marks
    for (random_a, state_a, grads_a, mode_a), (random_b, state_b, grads_b, mode_b) in marks:
        assert random_a == random_b
        assert mode_a == mode_b
        assert all(torch.equal(a, b) for a, b in zip(grads_a, grads_b, strict=True))
        assert all(torch.equal(state_a[k], state_b[k]) for k in state_a if not k.startswith("readout"))
    assert model.readout.fitted.any()


def _random_state():
    return (torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate())


def _grads(model):
    return [p.grad.clone() for p in model.parameters()]


@pytest.mark.parametrize("method", METHODS)
def test_an_evaluation_in_between_changes_no_later_weight(method):
    from avalanche.training.determinism.rng_manager import RNGManager

    finals = []
    for evaluate in (False, True):
        RNGManager.set_random_seeds(0)
        benchmark, model = make_benchmark(), make_model(method)
        strategy = naive(model, [make_plugin(method)])
        for experience in benchmark.train_stream[:3]:
            strategy.train(experience)
            if evaluate:  # Avalanche's loaders draw a number each; everything else must be ours to leave alone
                state = RNGManager.__getstate__()
                strategy.eval(benchmark.test_stream)
                RNGManager.__setstate__(state)
        finals.append(weights(model))
    assert torch.equal(*finals)


@pytest.mark.parametrize("eval_every", [0, 1])
def test_the_read_out_is_current_at_every_evaluation(eval_every):
    benchmark, plugin, model = make_benchmark(), make_plugin("co2l"), make_model("co2l")
    current = []

    class AtEvaluation(SupervisedPlugin):
        """Whether the read-out is what fits the features of now."""

        def after_eval_forward(self, strategy, **kwargs):
            parts = plugin.refit.datasets
            if parts:  # none before the first experience
                found = [embed_dataset(model, part, batch_size=50, device=strategy.device) for part in parts]
                features, y = (torch.cat([part[i] for part in found]) for i in (0, 1))
                classes, weight, _ = fit_linear(features, y, lr=0.1)
                current.append(torch.equal(model.readout.weight[classes], weight))

    strategy = naive(model, [plugin, AtEvaluation()], eval_every=eval_every, train_epochs=2)
    for experience in benchmark.train_stream[:2]:
        strategy.train(experience, eval_streams=[benchmark.test_stream[:2]])
    assert current
    assert all(current)
    assert sorted(model.readout.fitted.nonzero()[:, 0].tolist()) == sorted(ORDER[:4])


def test_the_read_out_sees_the_experience_and_the_memory_of_the_earlier_ones(monkeypatch):
    import avalanche_contrastive.plugins.refit as module

    seen = []
    original = module.fit_linear
    monkeypatch.setattr(module, "fit_linear", lambda f, y, **kw: seen.append(y.clone()) or original(f, y, **kw))
    strategy = naive(make_model("co2l"), [make_plugin("co2l", mem_size=6)])
    for experience in make_benchmark().train_stream[:2]:
        strategy.train(experience)
    counts = torch.bincount(seen[1], minlength=10)
    assert counts[ORDER[2:4]].tolist() == [12, 12]
    assert counts[ORDER[:2]].tolist() == [3, 3]
    assert len(seen) == 2


# ---- checkpoints


@pytest.mark.parametrize("method", METHODS)
def test_the_plugin_can_be_pickled_at_any_moment(method):
    sizes = []

    class Pickler(SupervisedPlugin):
        def before_forward(self, strategy, **kwargs):
            sizes.append(len(pickle.dumps(strategy.plugins[0])))

        def after_training_iteration(self, strategy, **kwargs):
            copied = pickle.loads(pickle.dumps(strategy.plugins[0]))
            assert (copied.teacher is None) == (strategy.plugins[0].teacher is None)

        def after_training_epoch(self, strategy, **kwargs):
            sizes.append(len(pickle.dumps(strategy.plugins[0])))

    plugin = make_plugin(method)
    strategy = naive(make_model(method), [plugin, Pickler()], eval_every=1)
    for experience in make_benchmark().train_stream[:2]:
        strategy.train(experience)
    restored = pickle.loads(pickle.dumps(plugin))
    assert restored.ledger == plugin.ledger == [sorted(ORDER[:2]), sorted(ORDER[2:4])]
    assert torch.equal(weights(restored.teacher), weights(plugin.teacher))


def test_evaluation_before_any_training():
    strategy = naive(make_model("co2l"), [make_plugin("co2l")], evaluator=EvaluationPlugin())
    strategy.eval(make_benchmark().test_stream)
    assert not strategy.model.readout.fitted.any()
