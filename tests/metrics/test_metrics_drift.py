"""Relation drift, linear CKA and class displacement: by hand, against slow readings, and inside Avalanche."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from avalanche.benchmarks import nc_benchmark, split_online_stream
from avalanche.models import IncrementalClassifier, MultiHeadClassifier, MultiTaskModule
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.supervised import Naive
from helpers.streams import ORDER, Images, digits, make_benchmark, make_encoder
from torch import nn

from avalanche_contrastive import BatchAugmentation, Co2L, ContrastiveModel
from avalanche_contrastive.losses import relation_distillation
from avalanche_contrastive.metrics import class_displacement, drift, drift_metrics, linear_cka, relation_drift


def pair(n=40, d=6, width=None, seed=0):
    draws = torch.Generator().manual_seed(seed)
    before = torch.randn(n, d, generator=draws, dtype=torch.float64)
    return before @ torch.randn(d, width or d, generator=draws, dtype=torch.float64), before


def rotation(d):
    return torch.linalg.qr(torch.randn(d, d, dtype=torch.float64))[0]


# --- relation drift ---


def test_relation_drift_by_hand():
    # Three images on the circle; before at 0, 90 and 180 degrees, now at 0, 90 and 0.
    before = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    now = torch.tensor([[2.0, 0.0], [0.0, 3.0], [1.0, 0.0]])
    e = math.exp

    def cross_entropy(target, relation):
        p, q = [x / sum(map(e, target)) for x in map(e, target)], [x / sum(map(e, relation)) for x in map(e, relation)]
        return -sum(a * math.log(b) for a, b in zip(p, q, strict=True))

    expected = cross_entropy([0, -1], [0, 1]) + cross_entropy([0, 0], [0, 0]) + cross_entropy([-1, 0], [1, 0])
    assert relation_drift(now, before, temperature=1.0, teacher_temperature=1.0) == pytest.approx(expected / 3)


@pytest.mark.parametrize("working_set", [1, 90, 10_000])
@pytest.mark.parametrize("temperatures", [{}, {"temperature": 0.5, "teacher_temperature": 0.1}])
def test_relation_drift_is_the_distillation_loss_of_unit_features(monkeypatch, temperatures, working_set):
    monkeypatch.setattr(drift, "WORKING_SET", working_set)
    now, before = pair(width=9)
    expected = relation_distillation(F.normalize(now, dim=1)[:, None], F.normalize(before, dim=1)[:, None],
                                     **temperatures)  # fmt: skip
    assert relation_drift(now, before, **temperatures) == pytest.approx(expected.item())


def test_relation_drift_of_what_has_not_moved_is_the_least_at_one_temperature():
    now, before = pair()
    unmoved = relation_drift(before, before, temperature=0.1, teacher_temperature=0.1)
    assert relation_drift(before @ rotation(6), before, temperature=0.1, teacher_temperature=0.1) == pytest.approx(
        unmoved
    )
    assert relation_drift(now, before, temperature=0.1, teacher_temperature=0.1) > unmoved


def test_relation_drift_of_few_images():
    assert math.isnan(relation_drift(torch.zeros(0, 3), torch.zeros(0, 3)))
    assert relation_drift(torch.ones(1, 3), torch.ones(1, 3)) == 0.0
    assert relation_drift(torch.randn(2, 3), torch.randn(2, 3)) == pytest.approx(0.0, abs=1e-6)


# --- linear CKA ---


def slow_cka(x, y):
    """The definition with Gram matrices (Kornblith et al. 2019, eq. 1 and 3)."""
    n = len(x)
    h = torch.eye(n, dtype=x.dtype) - torch.ones(n, n, dtype=x.dtype) / n
    k, m = h @ (x @ x.T) @ h, h @ (y @ y.T) @ h
    return ((k * m).sum() / ((k * k).sum() * (m * m).sum()).sqrt()).item()


def test_cka_by_hand():
    x = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 0.0]])
    y = torch.tensor([[0.0], [2.0], [1.0]])
    assert linear_cka(x, y) == pytest.approx(1.0)
    # X'X = diag(2, 2), Y'Y = 2, Y'X = (2, 0): 4 / (sqrt(8) * 2).
    x, y = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]), torch.tensor([[1.0], [-1.0], [0.0], [0.0]])
    assert linear_cka(x, y) == pytest.approx(1 / math.sqrt(2))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("n", [3, 8, 60])
def test_cka_is_that_of_gram_matrices(seed, n):
    now, before = pair(n, 6, 9, seed)
    now = now + torch.randn(n, 9) * 2
    assert linear_cka(now, before) == pytest.approx(slow_cka(now, before))
    assert linear_cka(before, now) == pytest.approx(linear_cka(now, before))


def test_cka_invariances():
    now, before = pair()
    now = now + torch.randn(40, 6)
    expected = linear_cka(now, before)
    assert 0 < expected < 1
    order = torch.randperm(40)
    for other in (now @ rotation(6), now + 100, now * 1e-30, now * 1e30):
        assert linear_cka(other, before) == pytest.approx(expected)
    assert linear_cka(now[order], before[order]) == pytest.approx(expected)
    assert linear_cka(before @ rotation(6) * 3 - 2, before) == pytest.approx(1.0)
    assert linear_cka((now @ torch.diag(torch.logspace(-2, 2, 6).double())), before) != pytest.approx(expected)


def test_cka_of_what_does_not_vary_is_nan():
    x = torch.randn(10, 3)
    for constant in (torch.zeros(10, 2), torch.full((10, 2), 0.1), torch.full((10, 2), 1e20)):
        assert math.isnan(linear_cka(x, constant))
        assert math.isnan(linear_cka(constant, x))
    assert math.isnan(linear_cka(x[:1], x[:1]))
    assert math.isnan(linear_cka(x[:0], x[:0]))


def test_cka_of_independent_features_is_small():
    assert linear_cka(torch.randn(5_000, 4), torch.randn(5_000, 4)) < 0.01


# --- displacement ---


def test_displacement_by_hand():
    before = torch.tensor([[0.0, 0.0], [2.0, 0.0], [5.0, 5.0]])
    now = torch.tensor([[3.0, 4.0], [5.0, 4.0], [5.0, 6.0]])
    y = torch.tensor([4, 4, 9])
    assert class_displacement(now, before, y, normalize=False) == pytest.approx((5 + 1) / 2)
    # Normalised: from (1, 0) to (0, 1) and from (1, 1) / sqrt 2 to (0, 1).
    before, now = torch.tensor([[3.0, 0.0], [1.0, 1.0]]), torch.tensor([[0.0, 9.0], [0.0, 1.0]])
    expected = (math.sqrt(2) + math.hypot(1 / math.sqrt(2), 1 - 1 / math.sqrt(2))) / 2
    assert class_displacement(now, before, torch.tensor([0, 1])) == pytest.approx(expected)


def test_displacement_of_means_not_of_images():
    before = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert class_displacement(-before, before, torch.tensor([0, 0]), normalize=False) == 0.0


@pytest.mark.parametrize("normalize", [True, False])
def test_displacement_is_that_of_a_slow_loop_and_invariant(normalize):
    now, before = pair()
    y = torch.randint(5, (40,)) * 7
    f, g = (F.normalize(x, dim=1) if normalize else x for x in (now, before))
    moved = [(f[y == c].mean(dim=0) - g[y == c].mean(dim=0)).norm().item() for c in y.unique()]
    expected = class_displacement(now, before, y, normalize=normalize)
    assert expected == pytest.approx(sum(moved) / len(moved))
    turn, order = rotation(6), torch.randperm(40)
    for x, p, c in ((now @ turn, before @ turn, y), (now[order], before[order], y[order]), (before, now, 100 - y)):
        assert class_displacement(x, p, c, normalize=normalize) == pytest.approx(expected)
    scaled = class_displacement(9 * now, 9 * before, y, normalize=normalize)
    assert scaled == pytest.approx(expected * (1 if normalize else 9))
    assert class_displacement(now, now, y, normalize=normalize) == 0.0


def test_displacement_of_no_image_is_nan():
    assert math.isnan(class_displacement(torch.zeros(0, 2), torch.zeros(0, 2), torch.zeros(0, dtype=torch.long)))


F4, Y4 = torch.randn(4, 2), torch.tensor([0, 0, 1, 1])
BAD = {
    "other images": (lambda: linear_cka(F4, F4[:3]), r"linear_cka: .*same images, got 4 and 3"),
    "flat features": (lambda: relation_drift(F4[0], F4), r"relation_drift: features must be.*\(N, D\)"),
    "nan before": (lambda: linear_cka(F4, F4 * math.nan), r"previous must be finite"),
    "a temperature": (lambda: relation_drift(F4, F4, temperature=0), r"temperature must be a finite number > 0"),
    "another width": (lambda: class_displacement(F4, torch.randn(4, 3), Y4), r"same width before and now, got 3 and 2"),
    "labels": (lambda: class_displacement(F4, F4, Y4[:2]), r"y must be integer"),
    "a flag": (lambda: class_displacement(F4, F4, Y4, normalize="l2"), r"normalize must be True or False, got 'l2'"),
    "no level": (lambda: drift_metrics(old=False), r"experience and stream are both False, and so is old"),
    "a metric's temperature": (lambda: drift_metrics(temperature=-1), r"drift_metrics: temperature"),
}


@pytest.mark.parametrize(("call", "message"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# --- inside Avalanche ---


def make_strategy(metrics, model=None, kind=Naive, **options):
    model = nn.Sequential(make_encoder(), nn.Linear(16, 10)) if model is None else model
    return kind(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        train_mb_size=8,
        train_epochs=2,
        eval_mb_size=50,
        evaluator=EvaluationPlugin(*metrics, loggers=[]),
        **options,
    )


def images_of(stream):
    rows = [e.dataset.eval()[i][:2] for e in stream for i in range(len(e.dataset))]
    return torch.stack([row[0] for row in rows]), torch.tensor([row[1] for row in rows])


def by_hand(now, before, x, y):
    with torch.no_grad():
        f, g = now.eval()(x), before.eval()(x)
    return {
        "RelationDrift": relation_drift(f, g),
        "RelationDrift_Unmoved": relation_drift(g, g),
        "LinearCKA": linear_cka(f, g),
        "Displacement": class_displacement(f, g, y),
    }


def assert_by_hand(results, benchmark, now, before, trained):
    """All values after an evaluation of the test stream, with the encoders as they are and as they were."""
    x, y = images_of(benchmark.test_stream)
    old = torch.isin(y, torch.tensor(ORDER[: 2 * trained - 2]))
    for level, rows in (("Old", old), ("Stream", torch.ones_like(old))):
        for what, value in by_hand(now, before, x[rows], y[rows]).items():
            assert results[f"{what}_{level}/eval_phase/test_stream"] == pytest.approx(value, rel=1e-4), what
    for i, experience in enumerate(benchmark.test_stream):
        for what, value in by_hand(now, before, *images_of([experience])).items():
            given = results[f"{what}_Exp/eval_phase/test_stream/Exp{i:03d}"]
            assert given == pytest.approx(value, rel=1e-4, abs=1e-6), what


ALL = {"experience": True, "stream": True, "old": True}


@pytest.mark.parametrize("flavour", ["A", "B", "C"])
@pytest.mark.parametrize("growing", [False, True])
def test_values_are_those_of_the_functions_on_the_same_features(growing, flavour):
    benchmark = make_benchmark(flavour, per_class=12)
    head = IncrementalClassifier(16, 2) if growing else nn.Linear(16, 10)
    strategy = make_strategy(drift_metrics(**ALL), nn.Sequential(make_encoder(), head))
    for trained, experience in enumerate(benchmark.train_stream[:3], start=1):
        before = copy.deepcopy(strategy.model[0])
        strategy.train(experience, eval_streams=[])
        strategy.evaluator.reset_last_metrics()
        results = strategy.eval(benchmark.test_stream)
        if trained == 1:
            assert results == {}  # there is no previous experience
        else:
            assert_by_hand(results, benchmark, strategy.model[0], before, trained)


def test_features_of_co2l_are_those_of_the_encoder():
    benchmark = make_benchmark("A", per_class=12)
    model = ContrastiveModel(make_encoder(), 16, 8)
    strategy = make_strategy(drift_metrics(**ALL), model, Co2L, mem_size=20, augmentation=BatchAugmentation(flip=0.0))
    for experience in benchmark.train_stream[:2]:
        before = copy.deepcopy(model.encoder)
        strategy.train(experience, eval_streams=[])
    assert_by_hand(strategy.eval(benchmark.test_stream), benchmark, model.encoder, before, 2)


@pytest.mark.parametrize("eval_every", [0, 1])
def test_periodic_evaluation_compares_with_the_start_of_the_experience(eval_every):
    benchmark = make_benchmark("A", per_class=12)
    strategy = make_strategy(drift_metrics(**ALL), eval_every=eval_every)
    for trained, experience in enumerate(benchmark.train_stream[:3], start=1):
        before = copy.deepcopy(strategy.model[0])
        strategy.train(experience, eval_streams=[benchmark.test_stream])
        if trained > 1:
            assert_by_hand(strategy.evaluator.get_last_metrics(), benchmark, strategy.model[0], before, trained)
    count = len(strategy.evaluator.get_all_metrics()["LinearCKA_Old/eval_phase/test_stream"][1])
    assert count >= 2 if eval_every == 0 else count >= 5


def test_what_is_done_between_experiences_counts_as_before():
    benchmark = make_benchmark("A", per_class=12)
    strategy = make_strategy(drift_metrics(**ALL))
    strategy.train(benchmark.train_stream[0], eval_streams=[])
    for parameter in strategy.model.parameters():
        parameter.data.mul_(1.5)
    before = copy.deepcopy(strategy.model[0])
    strategy.train(benchmark.train_stream[1], eval_streams=[])
    assert_by_hand(strategy.eval(benchmark.test_stream), benchmark, strategy.model[0], before, 2)


def test_a_model_that_does_not_move_has_not_drifted():
    benchmark = make_benchmark("A", per_class=12)
    strategy = make_strategy(drift_metrics(**ALL))
    strategy.train(benchmark.train_stream[0], eval_streams=[])
    for group in strategy.optimizer.param_groups:
        group["lr"] = 0.0
    for module in strategy.model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.0
    strategy.train(benchmark.train_stream[1], eval_streams=[])
    results = strategy.eval(benchmark.test_stream)
    assert results["Displacement_Stream/eval_phase/test_stream"] == pytest.approx(0.0, abs=1e-6)
    assert results["LinearCKA_Stream/eval_phase/test_stream"] == pytest.approx(1.0)
    assert results["RelationDrift_Stream/eval_phase/test_stream"] == pytest.approx(
        results["RelationDrift_Unmoved_Stream/eval_phase/test_stream"]
    )


def test_pieces_of_an_online_experience_have_one_previous_model():
    benchmark = make_benchmark("A", per_class=8)
    metric = drift_metrics()[0]
    strategy = make_strategy([metric])
    pieces = list(split_online_stream(benchmark.train_stream, experience_size=4, seed=0))
    kept = []
    for i, piece in enumerate(pieces[:8]):
        if i == 4:
            before = copy.deepcopy(strategy.model[0])
        strategy.train(piece, eval_streams=[])
        kept.append(metric.previous)
    assert kept[:4] == [None] * 4
    assert kept[4] is kept[7]
    for a, b in zip(before.state_dict().values(), kept[7][0].state_dict().values(), strict=True):
        assert torch.equal(a, b)


class Heads(MultiTaskModule):
    def __init__(self):
        super().__init__()
        self.encoder = make_encoder()
        self.head = MultiHeadClassifier(16, 2)

    def forward(self, x, task_labels):
        return self.head(self.encoder(x), task_labels)


def test_a_head_per_task():
    """The previous model has no head for a new task; features are those of the encoder all the same."""
    train, test = (Images(*part) for part in digits(8))
    benchmark = nc_benchmark(
        train, test, 5, task_labels=True, fixed_class_order=ORDER, class_ids_from_zero_in_each_exp=True
    )
    strategy = make_strategy(drift_metrics(experience=True, old=False, layer="encoder"), Heads())
    for experience in benchmark.train_stream[:2]:
        before = copy.deepcopy(strategy.model.encoder)
        strategy.train(experience, eval_streams=[])
    results = strategy.eval(benchmark.test_stream)
    for i, experience in enumerate(benchmark.test_stream):
        for what, value in by_hand(strategy.model.encoder, before, *images_of([experience])).items():
            assert results[f"{what}_Exp/eval_phase/test_stream/Exp{i:03d}"] == pytest.approx(value, rel=1e-4)


@pytest.mark.parametrize("eval_every", [-1, 0, 1])
def test_training_is_not_touched(eval_every):
    states = []
    for metrics in ([], drift_metrics(**ALL)):
        torch.manual_seed(0)
        model = nn.Sequential(make_encoder(), nn.Dropout(0.2), IncrementalClassifier(16, 2))
        benchmark = make_benchmark("A", per_class=8)
        strategy = make_strategy(metrics, model, eval_every=eval_every)
        for experience in benchmark.train_stream[:3]:
            strategy.train(experience, eval_streams=[benchmark.test_stream])
        states.append((model.state_dict(), torch.rand(3)))
    for key, value in states[0][0].items():
        assert torch.equal(states[1][0][key], value), key
    assert torch.equal(states[0][1], states[1][1])


def test_the_copy_is_frozen_and_features_are_freed():
    benchmark = make_benchmark("A", per_class=8)
    metric = drift_metrics(**ALL)[0]
    strategy = make_strategy([metric])
    strategy.train(benchmark.train_stream[:2], eval_streams=[])
    state = copy.deepcopy(metric.previous.state_dict())
    strategy.eval(benchmark.test_stream)
    assert metric._rows == []
    assert metric._features is None
    assert metric.result() is None
    assert not any(module.training for module in metric.previous.modules())
    assert not any(parameter.requires_grad for parameter in metric.previous.parameters())
    for key, value in metric.previous.state_dict().items():
        assert torch.equal(state[key], value)
    hooks = [h for m in metric.previous.modules() for h in (*m._forward_hooks, *m._forward_pre_hooks)]
    assert hooks == []


def test_a_new_strategy_starts_anew():
    benchmark = make_benchmark("A", per_class=8)
    metric = drift_metrics()[0]
    make_strategy([metric]).train(benchmark.train_stream[:2], eval_streams=[])
    assert metric.previous is not None
    strategy = make_strategy([metric])
    strategy.train(benchmark.train_stream[3], eval_streams=[])
    assert metric.previous is None
    assert metric.ledger.groups == [sorted(ORDER[6:8])]
