"""Score bias and task confusion: by hand, against scikit-learn, and inside Avalanche."""

import math

import pytest
import torch
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.models import IncrementalClassifier
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.supervised import JointTraining, Naive
from helpers.streams import ORDER, make_benchmark, make_encoder
from sklearn.metrics import confusion_matrix
from torch import nn

from avalanche_contrastive import SSIL
from avalanche_contrastive.metrics import MatrixValue, bias_metrics, score_bias, task_confusion

# --- the pure functions ---

# Classes 3 and 1 are old, 4 and 0 the newest; 2 is not known yet, although its logit is the largest.
LOGITS = torch.tensor(
    [
        [0.0, 2.0, 9.0, 1.0, 1.0],  # predicts 1
        [5.0, 2.0, 9.0, 1.0, 1.0],  # predicts 0
        [0.0, 0.0, 9.0, 1.0, 4.0],  # predicts 4
        [0.0, 0.0, 9.0, 3.0, 2.0],  # predicts 3
        [7.0, 0.0, 9.0, 0.0, 0.0],  # of class 2: left out
    ]
)
Y = torch.tensor([1, 3, 4, 0, 2])


def test_bias_by_hand():
    bias = score_bias(LOGITS, Y, old=[3, 1], newest=[4, 0])
    assert (bias.predicted_share, bias.true_share) == (0.5, 0.5)
    gaps = [(1 + 0) / 2 - (1 + 2) / 2, (1 + 5) / 2 - (1 + 2) / 2, (4 + 0) / 2 - (1 + 0) / 2, (2 + 0) / 2 - (3 + 0) / 2]
    assert bias.logit_gap == pytest.approx(sum(gaps) / 4)
    assert bias.confusion.tolist() == [[1, 1], [1, 1]]
    assert (bias.old_as_new, bias.new_as_old) == (0.5, 0.5)


def test_scores_that_always_say_newest():
    logits = torch.zeros(6, 3)
    logits[:, 2] = 1.5
    bias = score_bias(logits, torch.tensor([0, 0, 1, 1, 2, 2]), old=[0, 1], newest=[2])
    assert (bias.predicted_share, bias.logit_gap, bias.old_as_new, bias.new_as_old) == (1.0, 1.5, 1.0, 0.0)
    assert bias.true_share == pytest.approx(1 / 3)


def test_fair_scores_have_no_gap_on_balanced_images():
    y = torch.arange(10).repeat(4)
    bias = score_bias(torch.nn.functional.one_hot(y).float() * 7, y, old=[0, 1, 2, 3, 4, 5, 6], newest=[7, 8, 9])
    assert bias.logit_gap == pytest.approx(0.0, abs=1e-6)
    assert bias.predicted_share == bias.true_share == pytest.approx(0.3)
    assert bias.confusion.tolist() == [[28, 0], [0, 12]]


def test_shares_of_no_image_are_nan():
    assert math.isnan(score_bias(LOGITS[:1], Y[:1], old=[1], newest=[0]).new_as_old)
    assert math.isnan(score_bias(LOGITS[:1], Y[:1], old=[0], newest=[1]).old_as_new)


def random_case(seed, n=200, k=9):
    draws = torch.Generator().manual_seed(seed)
    return torch.randn(n, k, generator=draws), torch.randint(k, (n,), generator=draws)


@pytest.mark.parametrize("seed", range(5))
def test_confusions_are_those_of_scikit_learn(seed):
    logits, y = random_case(seed)
    predicted = logits.argmax(dim=1)
    groups = torch.tensor([2, 0, 0, 1, 2, 1, 3, 0, 3])
    expected = confusion_matrix(groups[y], groups[predicted], labels=range(4))
    assert task_confusion(predicted, y, groups).tolist() == expected.tolist()
    old, newest = [c for c in range(9) if groups[c] < 3], [6, 8]
    bias = score_bias(logits, y, old=old, newest=newest)
    is_new = groups == 3
    assert bias.confusion.tolist() == confusion_matrix(is_new[y], is_new[predicted]).tolist()
    assert bias.predicted_share == pytest.approx(is_new[predicted].double().mean().item())


@pytest.mark.parametrize("seed", range(3))
def test_bias_is_that_of_a_slow_loop(seed):
    logits, y = random_case(seed, 60, 6)
    old, newest = [5, 0], [2, 1, 3]
    rows = [(row, c) for row, c in zip(logits.tolist(), y.tolist(), strict=True) if c in old + newest]
    said = [max(old + newest, key=lambda c: row[c]) for row, _ in rows]
    gaps = [sum(row[c] for c in newest) / 3 - sum(row[c] for c in old) / 2 for row, _ in rows]
    bias = score_bias(logits, y, old=old, newest=newest)
    assert bias.predicted_share == pytest.approx(sum(c in newest for c in said) / len(rows))
    assert bias.true_share == pytest.approx(sum(c in newest for _, c in rows) / len(rows))
    assert bias.logit_gap == pytest.approx(sum(gaps) / len(gaps), abs=1e-6)


def test_invariances():
    logits, y = random_case(1)
    old, newest = [0, 1, 2, 3], [4, 5]
    bias = score_bias(logits, y, old=old, newest=newest)
    order = torch.randperm(len(y))
    for other in (
        score_bias(logits[order], y[order], old=old[::-1], newest=newest[::-1]),  # order of images and of classes
        score_bias(logits + torch.randn(len(y), 1), y, old=old, newest=newest),  # a shift of an image's logits
        score_bias(logits + 100 * (torch.arange(9) > 5), y, old=old, newest=newest),  # scores of unseen classes
    ):
        assert other.confusion.tolist() == bias.confusion.tolist()
        assert other.logit_gap == pytest.approx(bias.logit_gap, abs=1e-5)
    doubled = score_bias(3 * logits, y, old=old, newest=newest)
    assert doubled.logit_gap == pytest.approx(3 * bias.logit_gap, abs=1e-5)
    # The other way round, everything is mirrored.
    mirrored = score_bias(logits, y, old=newest, newest=old)
    assert mirrored.logit_gap == pytest.approx(-bias.logit_gap)
    assert mirrored.confusion.tolist() == bias.confusion.flip(0, 1).tolist()


def test_task_confusion_leaves_out_classes_without_a_group():
    groups = torch.tensor([1, -1, 0])
    assert task_confusion(torch.tensor([0, 1, 2, 2]), torch.tensor([0, 0, 1, 0]), groups).tolist() == [[0, 0], [1, 1]]
    assert task_confusion(torch.tensor([1]), torch.tensor([1]), groups).sum() == 0
    none = torch.zeros(0, dtype=torch.long)
    assert task_confusion(none, none, groups).tolist() == [[0, 0], [0, 0]]
    assert task_confusion(none, none, none).shape == (0, 0)


L3, Y3 = torch.zeros(2, 3), torch.tensor([0, 2])
BAD = {
    "flat logits": (lambda: score_bias(L3[0], Y3, old=[0], newest=[1]), r"logits must be.*\(N, K\), got.*\(3,\)"),
    "integer logits": (lambda: score_bias(L3.long(), Y3, old=[0], newest=[1]), r"logits must be a floating"),
    "no old class": (lambda: score_bias(L3, Y3, old=[], newest=[1]), r"different classes, one at least each"),
    "no newest class": (lambda: score_bias(L3, Y3, old=[1], newest=[]), r"different classes"),
    "a class in both": (lambda: score_bias(L3, Y3, old=[0, 1], newest=[1]), r"different classes"),
    "a class without a logit": (lambda: score_bias(L3, Y3, old=[0], newest=[5]), r"class 5 has no logit.*gives 3"),
    "labels": (lambda: score_bias(L3, Y3[:1], old=[0], newest=[2]), r"y must be integer.*\(2,\)"),
    "no image of the classes": (lambda: score_bias(L3[:1], Y3[:1], old=[1], newest=[2]), r"no image of the old or"),
    "groups": (lambda: task_confusion(Y3, Y3, torch.zeros(3)), r"groups must be integers \(K,\)"),
    "a class beyond the groups": (
        lambda: task_confusion(Y3, Y3, torch.tensor([0, 1])),
        r"y must lie in \[0, 2\).*0 to 2",
    ),
    "a negative prediction": (lambda: task_confusion(Y3 - 1, Y3, torch.tensor([0, 1, 1])), r"predicted must lie.*-1"),
    "predictions of another length": (lambda: task_confusion(Y3[:1], Y3, Y3), r"predicted must be integer.*\(2,\)"),
    "no level": (lambda: bias_metrics(experience=False, seen=False), "experience and seen are both False"),
}


@pytest.mark.parametrize(("call", "message"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# --- inside Avalanche ---


def make_strategy(metrics, kind=Naive, head=None, **options):
    model = nn.Sequential(make_encoder(), nn.Linear(16, 10) if head is None else head)
    return kind(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        train_mb_size=8,
        train_epochs=3,
        eval_mb_size=50,
        evaluator=EvaluationPlugin(*metrics, loggers=[]),
        **options,
    )


def scores_of(strategy, stream):
    rows = [e.dataset.eval()[i][:2] for e in stream for i in range(len(e.dataset))]
    with torch.no_grad():
        return strategy.model.eval()(torch.stack([row[0] for row in rows])), torch.tensor([row[1] for row in rows])


def name(what, level="Seen", exp=None):
    return f"{what}_{level}/eval_phase/test_stream" + ("" if exp is None else f"/Exp{exp:03d}")


def assert_by_hand(strategy, benchmark, results, trained):
    """All values of an evaluation after some experiences."""
    logits, y = scores_of(strategy, benchmark.test_stream)
    old, newest = ORDER[: 2 * trained - 2], ORDER[2 * trained - 2 : 2 * trained]
    bias = score_bias(logits, y, old=old, newest=newest)
    assert results[name("NewestShare_Predicted")] == pytest.approx(bias.predicted_share)
    assert results[name("NewestShare_True")] == pytest.approx(1 / trained)
    assert results[name("LogitGap")] == pytest.approx(bias.logit_gap, rel=1e-4)
    assert results[name("OldAsNew")] == pytest.approx(bias.old_as_new)
    assert results[name("NewAsOld")] == pytest.approx(bias.new_as_old)
    assert results[name("OldNewConfusion")].matrix.tolist() == bias.confusion.tolist()
    seen = torch.isin(y, torch.tensor(old + newest))
    columns = torch.tensor(old + newest)
    predicted = columns[logits[seen][:, columns].argmax(dim=1)]
    groups = torch.full((10,), -1)
    groups[ORDER[: 2 * trained]] = torch.arange(trained).repeat_interleave(2)
    assert torch.equal(results[name("TaskConfusion")].matrix, task_confusion(predicted, y[seen], groups))


@pytest.mark.parametrize("flavour", ["A", "B", "C"])
@pytest.mark.parametrize("kind", [Naive, SSIL])
def test_values_are_those_of_the_functions_on_the_same_logits(kind, flavour):
    benchmark = make_benchmark(flavour, per_class=12)
    options = {"mem_size": 20} if kind is SSIL else {}
    strategy = make_strategy(bias_metrics(), kind, **options)
    for trained, experience in enumerate(benchmark.train_stream[:3], start=1):
        strategy.train(experience, eval_streams=[])
        strategy.evaluator.reset_last_metrics()
        results = strategy.eval(benchmark.test_stream)
        if trained == 1:
            assert results == {}  # there is nothing to confuse yet
        else:
            assert_by_hand(strategy, benchmark, results, trained)


def test_growing_heads():
    benchmark = make_benchmark("A", per_class=12)
    strategy = make_strategy(bias_metrics(), head=IncrementalClassifier(16, 2))
    for trained, experience in enumerate(benchmark.train_stream[:3], start=1):
        strategy.train(experience, eval_streams=[])
        results = strategy.eval(benchmark.test_stream[:trained])
    logits, y = scores_of(strategy, benchmark.test_stream[:3])
    bias = score_bias(logits, y, old=ORDER[:4], newest=ORDER[4:6])
    assert results[name("OldNewConfusion")].matrix.tolist() == bias.confusion.tolist()


def test_experiences_one_by_one():
    benchmark = make_benchmark("A", per_class=12)
    strategy = make_strategy([*bias_metrics(experience=True, seen=False), *accuracy_metrics(experience=True)])
    for experience in benchmark.train_stream[:2]:
        strategy.train(experience, eval_streams=[])
    results = strategy.eval(benchmark.test_stream)
    assert results[name("NewestShare_True", "Exp", 0)] == 0.0
    assert results[name("NewestShare_Predicted", "Exp", 0)] == results[name("OldAsNew", "Exp", 0)]
    assert results[name("NewestShare_Predicted", "Exp", 1)] == 1 - results[name("NewAsOld", "Exp", 1)]
    # Nothing of experiences to come, no share of no image, and no matrix.
    assert not [key for key in results if "/Exp002" in key and "Acc" not in key]
    assert name("NewAsOld", "Exp", 0) not in results
    assert not [value for value in results.values() if isinstance(value, MatrixValue)]


@pytest.mark.parametrize("eval_every", [-1, 0, 1])
def test_the_newest_classes_are_those_under_training(eval_every):
    benchmark = make_benchmark("A", per_class=12)
    strategy = make_strategy(bias_metrics(), eval_every=eval_every)
    for experience in benchmark.train_stream[:3]:
        strategy.train(experience, eval_streams=[benchmark.test_stream])
    shares = strategy.evaluator.get_all_metrics().get(name("NewestShare_True"), ([], []))[1]
    # Of the second experience: after it, or after each epoch. Before the third two are known, then three.
    assert shares == pytest.approx({-1: [], 0: [1 / 2, 1 / 2, 1 / 3], 1: [1 / 2] * 4 + [1 / 3] * 3}[eval_every])
    assert_by_hand(strategy, benchmark, strategy.eval(benchmark.test_stream), 3)


def test_repeated_and_joint_classes_have_no_old_and_new():
    benchmark = make_benchmark("A", per_class=12)
    strategy = make_strategy(bias_metrics(), JointTraining, criterion=nn.CrossEntropyLoss())
    strategy.train(benchmark.train_stream, eval_streams=[])
    strategy.evaluator.reset_last_metrics()
    assert strategy.eval(benchmark.test_stream) == {}
    again = make_strategy(bias_metrics())
    for i in (0, 1, 0, 0):
        again.train(benchmark.train_stream[i], eval_streams=[])
    # Nothing new came since experience 1: its classes are still the newest.
    assert_by_hand(again, benchmark, again.eval(benchmark.test_stream), 2)


def test_a_model_without_logits_is_named():
    benchmark = make_benchmark("A", per_class=12)
    strategy = make_strategy(bias_metrics(), head=nn.Linear(16, 10))
    for experience in benchmark.train_stream[:2]:
        strategy.train(experience, eval_streams=[])
    strategy.model[1] = nn.Linear(16, 5)
    strategy._criterion = lambda output, y: output.sum()
    with pytest.raises(ValueError, match=r"bias_metrics: class 8 has no logit, the model gives 5"):
        strategy.eval(benchmark.test_stream)


def test_a_matrix_prints_and_has_a_picture():
    value = MatrixValue(torch.tensor([[3, 1], [0, 0]]))
    assert str(value) == "\ntensor([[3, 1],\n        [0, 0]])"
    picture = value.alternatives[0].image
    assert picture.shape == (1, 64, 64)
    assert picture[0, ::32, ::32].tolist() == [[0.75, 0.25], [0.0, 0.0]]
