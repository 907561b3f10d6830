"""Compatible representations: by hand, against slow readings of CL2R, invariances, and inside Avalanche."""

import itertools
import math
import time

import pytest
import torch
import torch.nn.functional as F
from avalanche.benchmarks import split_online_stream
from avalanche.models import IncrementalClassifier
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.supervised import Naive
from helpers.streams import digits, make_benchmark, make_encoder
from torch import nn
from torch.utils.data import TensorDataset

from avalanche_contrastive import CSD, SimplexClassifier
from avalanche_contrastive.checkpoint import restore, save
from avalanche_contrastive.metrics import (
    MatrixValue,
    average_compatibility,
    average_multimodel_accuracy,
    backfill_curve,
    backward_compatibility,
    compatibility_matrix,
    compatibility_metrics,
    forward_compatibility,
    map_at_r,
    recall_at_k,
    update_gain,
    verification_accuracy,
    verification_pairs,
)

NAN = math.nan
SCORES = ("recall@1", "recall@5", "map@r", "identification", "verification")

# ---- what a matrix says


def summary(c):
    return (
        average_compatibility(c),
        backward_compatibility(c),
        forward_compatibility(c),
        average_multimodel_accuracy(c),
        update_gain(c).tolist(),
    )


BY_HAND = {
    "one model": ([[0.5]], (NAN, NAN, NAN, 0.5, [0.0])),
    "two": ([[0.5, NAN], [0.75, 1.0]], (1.0, 0.25, -0.25, 0.75, [0.25, 0.0])),
    "three": (
        [[0.5, NAN, NAN], [0.25, 1.0, NAN], [0.75, 0.5, 0.25]],
        # pairs: 0.25 < 0.5, 0.75 > 0.5, 0.5 < 1; BC (0.25 - 0.5) / 2; FC ((0.25 - 1) + (0.5 - 0.25)) / 2
        (1 / 3, -0.125, -0.25, 3.25 / 6, [-0.5, -0.25, 0.0]),
    ),
    "a tie": ([[0.5, NAN], [0.5, 1.0]], (1.0, 0.0, -0.5, 2 / 3, [0.5, 0.0])),
    "all zeros": ([[0.0] * 3] * 3, (1.0, 0.0, 0.0, 0.0, [0.0] * 3)),
    "perfect": ([[1.0] * 3] * 3, (1.0, 0.0, 0.0, 1.0, [0.0] * 3)),
    "above the diagonal": ([[0.5, 9.0], [0.75, 1.0]], (1.0, 0.25, -0.25, 0.75, [0.25, 0.0])),
    "some not measured": ([[NAN, NAN], [0.75, 1.0]], (NAN, NAN, -0.25, 0.875, [0.25, 0.0])),
}


@pytest.mark.parametrize(("matrix", "expected"), BY_HAND.values(), ids=BY_HAND.keys())
def test_summaries_by_hand(matrix, expected):
    *numbers, gain = summary(torch.tensor(matrix))
    assert numbers == pytest.approx(list(expected[:-1]), nan_ok=True)
    assert gain == pytest.approx(expected[-1])
    assert summary(matrix)[:4] == pytest.approx(expected[:4], nan_ok=True)


def test_ties_count_as_the_option_says():
    tie = [[0.5, NAN, NAN], [0.5, 1.0, NAN], [0.75, 0.5, 0.25]]
    assert average_compatibility(tie) == average_compatibility(tie, ties="compatible") == pytest.approx(2 / 3)
    assert average_compatibility(tie, ties="incompatible") == pytest.approx(1 / 3)
    assert average_compatibility([[0.0] * 3] * 3, ties="incompatible") == 0.0


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_summaries_are_the_definitions_of_cl2r(size):
    """Loops over the paper's sums, with the rule for ties of its code and of its successor's."""
    c = torch.rand(size, size, dtype=torch.float64).mul(4).round().div(4)  # with ties
    below = [(t, k) for t in range(size) for k in range(t)]
    if below:
        ac = sum(c[t, k].item() >= c[k, k].item() for t, k in below) / len(below)
        later = sum(c[t, k].item() > c[k, k].item() for t, k in below) / len(below)
        assert average_compatibility(c) == pytest.approx(ac, abs=1e-12)
        assert average_compatibility(c, ties="incompatible") == pytest.approx(later, abs=1e-12)
        bc = sum((c[-1, i] - c[i, i]).item() for i in range(size - 1)) / (size - 1)
        fc = sum((c[i, i - 1] - c[i, i]).item() for i in range(1, size)) / (size - 1)
        assert backward_compatibility(c) == pytest.approx(bc, abs=1e-12)
        assert forward_compatibility(c) == pytest.approx(fc, abs=1e-12)
    am = sum(c[t, k].item() for t in range(size) for k in range(t + 1)) * 2 / (size * (size + 1))
    assert average_multimodel_accuracy(c) == pytest.approx(am, abs=1e-12)
    assert update_gain(c).tolist() == pytest.approx([(c[-1, -1] - c[-1, k]).item() for k in range(size)], abs=1e-12)


# ---- the matrix


def models(count=3, n=60, g=80, d=6, classes=5, dtype=torch.float64, noise=1.0):
    """Features of queries and gallery by models that drift, and the labels."""
    y = torch.arange(n) % classes
    y_gallery = torch.where(torch.arange(g) > g - 6, 50, torch.arange(g) % classes)  # with a class nobody asks for
    centre = torch.randn(100, d, dtype=dtype)
    x, z = centre[y] + noise * torch.randn(n, d), centre[y_gallery] + noise * torch.randn(g, d)
    turns = [torch.eye(d, dtype=dtype) + 0.4 * i * torch.randn(d, d, dtype=dtype) for i in range(count)]
    return [x @ turn for turn in turns], [z @ turn for turn in turns], y, y_gallery


def slow_recall(query, gallery, y, y_gallery, k):
    hits = []
    for f, c in zip(query, y, strict=True):
        if c in y_gallery:
            near = sorted(range(len(gallery)), key=lambda j: -F.cosine_similarity(f, gallery[j], dim=0).item())
            hits.append(any(y_gallery[j] == c for j in near[:k]))
    return sum(hits) / len(hits)


def slow_map(query, gallery, y, y_gallery):
    precisions = []
    for f, c in zip(query, y, strict=True):
        r = int((y_gallery == c).sum())
        near = sorted(range(len(gallery)), key=lambda j: -F.cosine_similarity(f, gallery[j], dim=0).item())
        right = [bool(y_gallery[j] == c) for j in near[:r]]
        precisions.append(sum(sum(right[: p + 1]) / (p + 1) for p in range(r) if right[p]) / r)
    return sum(precisions) / len(precisions)


def slow_identification(query, gallery, y, y_gallery):
    classes = sorted(set(y_gallery.tolist()))
    templates = [gallery[y_gallery == c].mean(dim=0) for c in classes]
    templates = [template / template.norm() for template in templates]
    said = [max(range(len(classes)), key=lambda i, f=f: (f @ templates[i]).item()) for f in query]
    return sum(classes[i] == c for i, c in zip(said, y.tolist(), strict=True)) / len(y)


def slow_verification(query, gallery, y, y_gallery):
    rows, columns, same = verification_pairs(y, y_gallery, 100)
    distance = [
        ((query[i] / query[i].norm() - gallery[j] / gallery[j].norm()) ** 2).sum().item()
        for i, j in zip(rows, columns, strict=True)
    ]
    right = [[(d < step / 1000) == s.item() for d, s in zip(distance, same, strict=True)] for step in range(4000)]
    shares = []
    for fold in range(10):
        inside = range(10 * fold, 10 * fold + 10)
        elsewhere = [sum(row) - sum(row[i] for i in inside) for row in right]
        best = right[elsewhere.index(max(elsewhere))]
        shares.append(sum(best[i] for i in inside) / 10)
    return sum(shares) / 10


SLOW = {
    "recall@1": lambda *x: slow_recall(*x, 1),
    "recall@5": lambda *x: slow_recall(*x, 5),
    "map@r": slow_map,
    "identification": slow_identification,
    "verification": slow_verification,
}


@pytest.mark.parametrize("score", SCORES)
def test_the_matrix_is_that_of_a_slow_reading(score):
    queries, galleries, y, y_gallery = models()
    c = compatibility_matrix(queries, galleries, y, y_gallery, score=score, pairs=100)
    assert c.dtype == torch.float64
    for t, k in itertools.product(range(3), repeat=2):
        if k > t:
            assert c[t, k].isnan()
        else:
            expected = SLOW[score](queries[t], galleries[k], y, y_gallery)
            assert c[t, k].item() == pytest.approx(expected, abs=1e-12)
    assert len(set(c[c == c].tolist())) > 3


def test_recall_by_hand():
    # The second model has exchanged the axes: each query is where the other class was.
    old = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    new, y = old.flip(1), torch.tensor([3, 8])
    assert compatibility_matrix([old, new], [old, new], y, y)[1].tolist() == [0.0, 1.0]
    for score in ("map@r", "identification"):
        assert compatibility_matrix([old, new], [old, new], y, y, score=score)[1].tolist() == [0.0, 1.0]


@pytest.mark.parametrize("score", SCORES)
def test_turning_all_models_alike_changes_nothing_and_turning_one_breaks_it(score):
    queries, galleries, y, y_gallery = models(d=16, noise=0.5)
    # Models that hardly differ, so that old galleries are worth something.
    queries, galleries = ([x[0], x[0] + 0.01 * torch.randn_like(x[0])] for x in (queries, galleries))
    turn = torch.linalg.qr(torch.randn(16, 16, dtype=torch.float64))[0]
    c = compatibility_matrix(queries, galleries, y, y_gallery, score=score)
    alike = compatibility_matrix([x @ turn for x in queries], [x @ turn for x in galleries], y, y_gallery, score=score)
    torch.testing.assert_close(alike, c, equal_nan=True, atol=1e-9, rtol=0)
    first = [queries[0], queries[1] @ turn], [galleries[0], galleries[1] @ turn]
    one = compatibility_matrix(*first, y, y_gallery, score=score)
    assert torch.equal(one.diagonal().isnan(), torch.tensor([False, False]))
    torch.testing.assert_close(one.diagonal(), c.diagonal(), atol=1e-9, rtol=0)
    assert one[1, 0] < c[1, 0] - 0.1


@pytest.mark.parametrize("score", SCORES[:3])
def test_the_same_images_do_not_find_themselves(score):
    queries, _, y, _ = models(n=40)
    c = compatibility_matrix(queries, queries, y, y, score=score, same_images=True)
    for t in range(3):
        alone = map_at_r(queries[t], y) if score == "map@r" else recall_at_k(queries[t], y, int(score[-1]))
        assert c[t, t].item() == pytest.approx(alone, abs=1e-12)
    hits = [
        max((j for j in range(40) if j != i), key=lambda j: F.cosine_similarity(queries[2][i], queries[0][j], dim=0))
        for i in range(40)
    ]
    if score == "recall@1":
        assert c[2, 0].item() == pytest.approx((y[hits] == y).double().mean().item())


def test_galleries_of_different_images():
    queries, galleries, y, y_gallery = models()
    parts = [galleries[0][:30], galleries[1][:50], galleries[2]]
    c = compatibility_matrix(queries, parts, y, [y_gallery[:30], y_gallery[:50], y_gallery])
    assert c[2, 1].item() == recall_at_k(queries[2], y, gallery=parts[1], gallery_y=y_gallery[:50])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("score", SCORES)
def test_galleries_of_any_precision(score, dtype):
    queries, galleries, y, y_gallery = models(dtype=torch.float32)
    halves = [x.to(dtype) for x in galleries]
    c = compatibility_matrix(queries, halves, y.to(torch.uint8), y_gallery.int(), score=score)
    expected = compatibility_matrix(queries, [x.float() for x in halves], y, y_gallery, score=score)
    torch.testing.assert_close(c, expected, equal_nan=True)


def test_a_gallery_with_nothing_to_find_is_nan():
    x = torch.randn(12, 3)
    for score in SCORES:
        c = compatibility_matrix([x], [x], torch.zeros(12).long(), torch.ones(12).long(), score=score)
        assert c.isnan().all()


def test_queries_of_classes_that_the_gallery_lacks_do_not_count():
    queries, galleries, y, y_gallery = models()
    unknown = torch.where(torch.arange(60) < 20, 77, y)
    for score in SCORES[:4]:
        c = compatibility_matrix(queries, galleries, unknown, y_gallery, score=score)
        known = compatibility_matrix([x[20:] for x in queries], galleries, y[20:], y_gallery, score=score)
        torch.testing.assert_close(c, known, equal_nan=True, atol=1e-12, rtol=0)


def test_a_mapping_makes_widths_equal():
    queries, galleries, y, y_gallery = models(2)
    grown = [galleries[0][:, :4], galleries[1]]
    with pytest.raises(ValueError, match=r"queries are 6 wide and the gallery is 4.*mapping="):
        compatibility_matrix([queries[0][:, :4], queries[1]], grown, y, y_gallery)
    cut = compatibility_matrix(
        [queries[0][:, :4], queries[1]], grown, y, y_gallery, mapping=lambda x, width: x[:, :width]
    )
    assert cut[1, 0].item() == recall_at_k(queries[1][:, :4], y, gallery=grown[0], gallery_y=y_gallery)
    assert cut[1, 1] == compatibility_matrix(queries, galleries, y, y_gallery)[1, 1]


# ---- verification


def test_pairs_are_what_they_say_and_repeatable():
    y, others = torch.tensor([4, 4, 7, 9, 1]), torch.tensor([7, 4, 7, 1, 4, 4])
    rows, columns, same = verification_pairs(y, others, 1_001, seed=5)
    assert torch.equal(y[rows] == others[columns], same)
    assert same.tolist() == [i % 2 == 0 for i in range(1_001)]
    assert set(rows[same].tolist()) == {0, 1, 2, 4}  # class 9 has no partner of its own
    assert set(rows[~same].tolist()) == {0, 1, 2, 3, 4}
    pairs = set(zip(rows.tolist(), columns.tolist(), strict=True))
    assert pairs == set(itertools.product(range(5), range(6)))  # every pair there is
    assert torch.equal(verification_pairs(y, others, 1_001, seed=5)[1], columns)
    assert not torch.equal(verification_pairs(y, others, 1_001, seed=6)[1], columns)
    state = torch.get_rng_state()
    verification_pairs(y, others)
    assert torch.equal(torch.get_rng_state(), state)


def test_no_image_is_paired_with_itself():
    y = torch.tensor([4, 4, 7, 9, 9, 9])
    rows, columns, same = verification_pairs(y, y, 1_000, same_images=True)
    assert (rows != columns).all()
    assert torch.equal(y[rows] == y[columns], same)
    assert set(zip(rows[same].tolist(), columns[same].tolist(), strict=True)) == {
        (i, j) for i in range(6) for j in range(6) if i != j and y[i] == y[j]
    }


def test_verification_by_hand():
    # Pairs of one class at squared distance 0, of different ones at 2: any threshold in (0, 2] is right.
    a, b = torch.tensor([[1.0, 0.0]] * 20), torch.tensor([[5.0, 0.0], [0.0, 0.1]] * 10)
    same = torch.tensor([True, False] * 10)
    assert verification_accuracy(a, b, same) == 1.0
    assert verification_accuracy(a, b, ~same) == 0.5  # below 0 is nothing, below 3.9 is everything: one half each
    assert verification_accuracy(a, a, same) == 0.5


# ---- partial re-embedding


def gallery_with_drift(n=200):
    y, d = torch.arange(n) % 4, 8
    centre = torch.randn(4, d)
    new = centre[y] + 0.3 * torch.randn(n, d)
    moved = torch.rand(n)
    return new, new + 4 * moved[:, None] * torch.randn(n, d), moved, y


def test_the_curve_runs_from_the_stored_to_the_renewed_gallery():
    new, stored, moved, y = gallery_with_drift()
    queries, y_query = new[::5] + 0.01, y[::5]
    start = recall_at_k(queries, y_query, gallery=stored, gallery_y=y)
    end = recall_at_k(queries, y_query, gallery=new, gallery_y=y)
    assert start < end
    for order, options in (("random", {}), ("oldest", {"age": torch.arange(200)}), ("drift", {"drift": moved})):
        curve = backfill_curve(queries, stored, new, y_query, y, order=order, steps=4, **options)
        assert curve.share.tolist() == [0, 0.25, 0.5, 0.75, 1]
        assert (curve.score[0].item(), curve.score[-1].item()) == (start, end)
        inner = curve.score[1:-1].sum().item()
        assert curve.area == pytest.approx((inner + (start + end) / 2) / 4)
        first = {"random": None, "oldest": torch.arange(100), "drift": moved.argsort(descending=True)[:100]}[order]
        if first is not None:
            half = stored.clone()
            half[first] = new[first]
            assert curve.score[2].item() == recall_at_k(queries, y_query, gallery=half, gallery_y=y)


def test_what_has_moved_most_first_pays_most():
    new, stored, _, y = gallery_with_drift(600)
    areas = {order: backfill_curve(new[::5], stored, new, y[::5], y, order=order, score="map@r").area
             for order in ("random", "drift")}  # fmt: skip
    assert areas["drift"] > areas["random"]
    same = backfill_curve(new[::5], new, new, y[::5], y)
    assert same.score.unique().numel() == 1


def test_images_of_one_age_come_in_random_order():
    new, stored, _, y = gallery_with_drift()
    options = {"order": "oldest", "age": torch.zeros(200), "score": "map@r"}
    a, b = (backfill_curve(new, stored, new, y, y, seed=seed, **options).score for seed in (0, 1))
    assert not torch.equal(a, b)
    assert torch.equal(a, backfill_curve(new, stored, new, y, y, score="map@r").score)


# ---- bad input

Q, Y = torch.randn(4, 2), torch.tensor([0, 0, 1, 1])
Q2 = make_benchmark(per_class=1).test_stream
BAD = {
    "a score": (
        lambda: compatibility_matrix([Q], [Q], Y, Y, score="top1"),
        r"score must be 'recall@K'.*'top1'",
    ),
    "recall at 0": (lambda: compatibility_matrix([Q], [Q], Y, Y, score="recall@0"), r"'recall@K' \(K = 1"),
    "no model": (lambda: compatibility_matrix([], [], Y, Y), r"T >= 1 models each, got 0 and 0"),
    "fewer galleries": (lambda: compatibility_matrix([Q, Q], [Q], Y, Y), r"got 2 and 1"),
    "labels": (lambda: compatibility_matrix([Q], [Q], Y[:3], Y), r"y_query must be integer.*\(4,\)"),
    "labels of a gallery": (lambda: compatibility_matrix([Q], [Q], Y, [Y, Y]), r"labels of 2 galleries"),
    "nan": (lambda: compatibility_matrix([Q], [Q * NAN], Y, Y), r"gallery must be finite"),
    "another mapping": (
        lambda: compatibility_matrix([Q], [Q[:, :1]], Y, Y, mapping=lambda x, width: x),
        r"queries are 2 wide and the gallery is 1",
    ),
    "other images": (
        lambda: compatibility_matrix([Q], [Q[:2]], Y, Y[:2], same_images=True),
        r"as many queries as.*4 and 2",
    ),
    "pairs": (lambda: compatibility_matrix([Q], [Q], Y, Y, pairs=0), r"pairs must be a whole number >= 1"),
    "few pairs": (lambda: compatibility_matrix([Q], [Q], Y, Y, score="verification", pairs=4), r"P >= 10 pairs"),
    "no pairs": (lambda: verification_pairs(Y, Y, 0), r"verification_pairs: pairs must be a whole number >= 1, got 0"),
    "a seed in words": (lambda: verification_pairs(Y, Y, seed="a"), r"seed must be a whole number >= 0, got 'a'"),
    "labels of pairs": (lambda: verification_pairs(Y.float(), Y), r"y_query must be integer class ids.*float32"),
    "other images of pairs": (lambda: verification_pairs(Y[:2], Y, same_images=True), r"y_query.*\(4,\).*\(2,\)"),
    "an oblong": (lambda: average_compatibility(torch.rand(2, 3)), r"\(T, T\) with T >= 1, got shape \(2, 3\)"),
    "nothing": (lambda: backward_compatibility(torch.zeros(0, 0)), r"backward_compatibility: matrix"),
    "ragged": (lambda: forward_compatibility([[1.0], [1.0, 2.0]]), r"T rows of T numbers"),
    "ties": (lambda: average_compatibility([[1.0]], ties="yes"), r"ties must be one of 'compatible'"),
    "no age": (lambda: backfill_curve(Q, Q, Q, Y, Y, order="oldest"), r"age must be a number for each.*got none"),
    "an order": (lambda: backfill_curve(Q, Q, Q, Y, Y, order="newest"), r"order must be one of"),
    "another gallery": (lambda: backfill_curve(Q, Q, Q[:3], Y, Y), r"same images and of one width.*\(3, 2\)"),
    "a seed of the order": (lambda: backfill_curve(Q, Q, Q, Y, Y, seed="a"), r"backfill_curve: seed must be a whole"),
    "data": (lambda: compatibility_metrics(query="train"), r"data must be 'seen'"),
    "a metric's score": (lambda: compatibility_metrics(query=Q2, score=1), r"compatibility_metrics: score must"),
    "queries that change": (lambda: compatibility_metrics(query="seen"), r"the same images after each.*or a gallery"),
    "half": (lambda: compatibility_metrics(query=Q2, half=16), r"half must be True or False"),
}


@pytest.mark.parametrize(("call", "message"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# ---- inside Avalanche


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


def embedded(strategy, stream):
    rows = [e.dataset.eval()[i][:2] for e in stream for i in range(len(e.dataset))]
    with torch.no_grad():
        features = strategy.model[0].eval()(torch.stack([row[0] for row in rows]))
    return features, torch.tensor([row[1] for row in rows])


@pytest.mark.parametrize("flavour", ["A", "B", "C"])
@pytest.mark.parametrize("kind", [Naive, CSD])
def test_a_data_set_of_images_and_labels_is_as_good_as_a_stream(kind, flavour):
    """It has no task labels, which the strategy's forward pass asks for on a stream that has some."""
    matrices, (_, test) = [], digits(10)
    for plain in (False, True):
        torch.manual_seed(0)
        benchmark = make_benchmark(flavour, per_class=10)
        metrics = compatibility_metrics(query=TensorDataset(*test) if plain else benchmark.test_stream)
        strategy = make_strategy(metrics, kind=kind)
        for experience in benchmark.train_stream[:3]:
            strategy.train(experience, eval_streams=[])
        matrices.append(metrics[0].matrix)
    torch.testing.assert_close(*matrices, equal_nan=True)


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("kind", [Naive, CSD])
def test_values_are_those_of_the_functions_on_the_same_features(kind, score):
    benchmark = make_benchmark("A", per_class=10)
    metrics = compatibility_metrics(query=benchmark.test_stream, gallery=benchmark.train_stream, score=score)
    strategy = make_strategy(metrics, kind=kind)
    queries, galleries = [], []
    for experience in benchmark.train_stream[:3]:
        strategy.train(experience, eval_streams=[])
        (q, y), (g, y_gallery) = embedded(strategy, benchmark.test_stream), embedded(strategy, benchmark.train_stream)
        queries.append(q)
        galleries.append(g)
    c = compatibility_matrix(queries, galleries, y, y_gallery, score=score)
    torch.testing.assert_close(metrics[0].matrix, c, equal_nan=True)
    values = {name.split("/")[0]: value for name, value in strategy.evaluator.get_last_metrics().items()}
    where = f"{score}_of_test_exp0-4_in_train_exp0-4"
    expected = dict(zip(("AverageCompatibility", "BackwardCompatibility", "ForwardCompatibility",
                         "AverageMultimodelAccuracy"), summary(c), strict=False))  # fmt: skip
    for name, value in expected.items():
        assert values[f"{name}_{where}"] == pytest.approx(value)
    assert values[f"SelfTest_{where}"] == pytest.approx(c[2, 2].item())
    assert values[f"UpdateGain_{where}"] == pytest.approx(update_gain(c)[:2].mean().item())
    assert isinstance(values[f"Compatibility_{where}"], MatrixValue)
    assert str(metrics[0]) == f"Compatibility_{where}"


def test_queries_alone_leave_themselves_out():
    benchmark = make_benchmark("A", per_class=10)
    metrics = compatibility_metrics(query=benchmark.test_stream)
    strategy = make_strategy(metrics)
    strategy.train(benchmark.train_stream[0], eval_streams=[])
    assert metrics[0].matrix.tolist() == [[pytest.approx(recall_at_k(*embedded(strategy, benchmark.test_stream)))]]
    assert set(strategy.evaluator.get_last_metrics()) == {
        f"{name}_recall@1_in_test_exp0-4/train_phase/train_stream"
        for name in ("Compatibility", "SelfTest", "AverageMultimodelAccuracy")
    }


def test_a_gallery_that_grows_and_a_model_that_grows():
    class Growing(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder, self.head, self.width = make_encoder(), IncrementalClassifier(16, 10), 8

        def forward(self, x):
            features = self.encoder(x)
            kept = torch.cat([features[:, : self.width], features.new_zeros(len(x), 16 - self.width)], dim=1)
            self.used = kept[:, : self.width]
            return self.head(kept)

    class Used(nn.Module):  # a layer whose output is as wide as the model has grown
        def forward(self, x):
            return x

    benchmark, model = make_benchmark("A", per_class=10), Growing()
    model.tap = Used()
    plain = model.forward
    model.forward = lambda x: (plain(x), model.tap(model.used))[0]
    options = {"query": benchmark.test_stream, "gallery": "seen", "layer": "tap", "half": True}
    metrics = compatibility_metrics(**options, mapping=lambda x, width: x[:, :width])
    strategy = make_strategy(metrics, model)
    for experience in benchmark.train_stream[:3]:
        strategy.train(experience, eval_streams=[])
        model.width += 4
    assert [x.shape for x in metrics[0].galleries] == [(20, 8), (40, 12), (60, 16)]
    assert {x.dtype for x in metrics[0].galleries} == {torch.float16}
    assert metrics[0].matrix.tril().isfinite().all()
    model.width = 8
    strategy = make_strategy(compatibility_metrics(**options), model)
    strategy.train(benchmark.train_stream[0], eval_streams=[])
    model.width = 12
    with pytest.raises(ValueError, match=r"queries are 12 wide and the gallery is 8.*mapping"):
        strategy.train(benchmark.train_stream[1], eval_streams=[])


@pytest.mark.parametrize("size", [4, 7])
@pytest.mark.parametrize("at_once", [True, False])
def test_pieces_of_an_online_experience_have_one_gallery(size, at_once):
    """Also where the pieces' size divides the experience, whose last piece Avalanche does not mark."""
    benchmark = make_benchmark("A", per_class=8)
    metrics = compatibility_metrics(query=benchmark.test_stream)
    strategy = make_strategy(metrics)
    stream = split_online_stream(benchmark.train_stream[:3], experience_size=size, seed=0)
    for part in [stream] if at_once else stream:
        strategy.train(part, eval_streams=[])
    assert len(metrics[0].galleries) == len(metrics[0].rows) == 3
    last = embedded(strategy, benchmark.test_stream)[0]
    torch.testing.assert_close(metrics[0].galleries[2], last)
    assert not torch.equal(metrics[0].galleries[1], last)


def test_a_new_strategy_starts_anew():
    benchmark = make_benchmark("A", per_class=8)
    metrics = compatibility_metrics(query=benchmark.test_stream, gallery="seen")
    make_strategy(metrics).train(benchmark.train_stream[:2], eval_streams=[])
    assert len(metrics[0].rows) == 2
    make_strategy(metrics).train(benchmark.train_stream[2], eval_streams=[])
    assert len(metrics[0].rows) == 1
    assert metrics[0].labels[0].tolist() == list(benchmark.train_stream[2].dataset.targets)


def test_only_features_and_numbers_are_held():
    benchmark = make_benchmark("A", per_class=8)
    (metric,) = compatibility_metrics(query=benchmark.test_stream, gallery=benchmark.train_stream)
    make_strategy([metric]).train(benchmark.train_stream[:2], eval_streams=[])
    held = [value for name, value in vars(metric).items() if name not in ("query", "gallery", "scored")]
    flat = [x for value in held for x in (value if isinstance(value, list) else [value])]
    flat = [y for x in flat for y in (x if isinstance(x, list) else [x])]
    assert all(isinstance(x, torch.Tensor | float | int | str | None) for x in flat)
    assert metric.query._embedded == metric.gallery._embedded == {}
    assert metric.result()
    metric.reset()
    assert metric.result() == {}


def test_training_is_not_touched():
    states = []
    for with_metric in (False, True):
        torch.manual_seed(0)
        benchmark = make_benchmark("A", per_class=8)
        metrics = compatibility_metrics(query=benchmark.test_stream, score="verification") if with_metric else []
        strategy = make_strategy(metrics, nn.Sequential(make_encoder(), nn.Dropout(0.2), nn.Linear(16, 10)))
        strategy.train(benchmark.train_stream[:3], eval_streams=[])
        assert strategy.model.training
        states.append([*strategy.model.state_dict().values(), torch.rand(3)])
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))


@pytest.mark.parametrize("score", ["recall@1", "verification"])
def test_a_resumed_run_has_the_same_matrix(tmp_path, score):
    def build():
        torch.manual_seed(0)
        benchmark = make_benchmark("A", per_class=8)
        options = {"query": benchmark.test_stream, "gallery": benchmark.train_stream, "score": score, "half": True}
        metrics = compatibility_metrics(**options)
        return make_strategy(metrics), metrics[0], benchmark.train_stream

    strategy, undisturbed, stream = build()
    for experience in stream[:3]:
        strategy.train(experience, eval_streams=[])
        if experience.current_experience == 1:
            save(strategy, tmp_path / "run.pt")
    resumed, metric, stream = build()
    done = restore(resumed, tmp_path / "run.pt")
    assert len(metric.galleries) == done == 2
    resumed.train(stream[2], eval_streams=[])
    assert torch.equal(metric.matrix.nan_to_num(-1), undisturbed.matrix.nan_to_num(-1))
    assert all(torch.equal(a, b) for a, b in zip(metric.galleries, undisturbed.galleries, strict=True))


def test_features_that_half_precision_cannot_hold_are_named():
    benchmark = make_benchmark("A", per_class=8)
    model = nn.Sequential(make_encoder(), nn.Linear(16, 10))
    model[0][0].weight.data.mul_(1e6)
    model[0][1].eval()
    metrics = compatibility_metrics(query=benchmark.test_stream, layer="0.0", half=True)
    with pytest.raises(ValueError, match=r"too large for half precision \(65504\)"):
        make_strategy(metrics, model).train(benchmark.train_stream[0], eval_streams=[])
    assert metrics[0].rows == metrics[0].galleries == []


@pytest.mark.slow
def test_the_searches_take_as_long_as_those_of_faiss():
    """Two experiences of 10,000 queries and images of 512 features: at most 1.2 times as long."""
    faiss = pytest.importorskip("faiss")
    n, y, y_gallery = 10_000, torch.randint(100, (10_000,)), torch.randint(100, (10_000,))
    centre = torch.randn(100, 512)
    queries, galleries = ([centre[c] + 2 * torch.randn(n, 512) for _ in range(2)] for c in (y, y_gallery))
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)

    def by_faiss():
        c = torch.full((2, 2), math.nan)
        for t, k in ((0, 0), (1, 0), (1, 1)):
            index = faiss.IndexFlatIP(512)
            index.add(F.normalize(galleries[k], dim=1).numpy())
            _, found = index.search(F.normalize(queries[t], dim=1).numpy(), 1)
            c[t, k] = (y_gallery[torch.from_numpy(found[:, 0])] == y).double().mean()
        return c

    ratios = []
    for _ in range(3):
        start = time.process_time()
        ours = compatibility_matrix(queries, galleries, y, y_gallery)
        middle = time.process_time()
        theirs = by_faiss()
        ratios.append((middle - start) / (time.process_time() - middle))
    faiss.omp_set_num_threads(threads)
    torch.testing.assert_close(ours.float(), theirs, equal_nan=True)
    assert sorted(ratios)[1] <= 1.2


# ---- a head that stands still


@pytest.mark.parametrize("classes", [2, 3, 10, 257])
def test_the_corners_of_a_simplex(classes):
    weight = SimplexClassifier(classes).double().weight
    cosines = SimplexClassifier(classes).weight.double()
    gram = cosines @ cosines.T
    expected = torch.full((classes, classes), -1 / (classes - 1), dtype=torch.float64).fill_diagonal_(1.0)
    torch.testing.assert_close(gram, expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(weight.sum(dim=0), torch.zeros(classes - 1).double(), atol=1e-5, rtol=0)


def test_the_simplex_of_three_by_hand():
    # e_1, e_2 and a (1, 1) with a = (1 - sqrt 3) / 2, centred and scaled.
    a = (1 - math.sqrt(3)) / 2
    points = torch.tensor([[1.0, 0.0], [0.0, 1.0], [a, a]], dtype=torch.float64)
    expected = F.normalize(points - points.mean(dim=0), dim=1)
    torch.testing.assert_close(SimplexClassifier(3).weight, expected.float())
    x = torch.randn(5, 2)
    torch.testing.assert_close(SimplexClassifier(3)(x), x @ expected.float().T)


def test_a_simplex_in_a_model_that_csd_trains():
    benchmark = make_benchmark("A", per_class=8)
    model = nn.Sequential(make_encoder(), nn.Linear(16, 9), SimplexClassifier(10))
    before = model[2].weight.clone()
    metrics = compatibility_metrics(query=benchmark.test_stream)
    strategy = make_strategy(metrics, model, CSD)
    strategy.train(benchmark.train_stream[:2], eval_streams=[])
    assert torch.equal(model[2].weight, before)
    assert not list(model[2].parameters())
    assert [x.shape[1] for x in metrics[0].galleries] == [9, 9]  # the classifier's input is the feature
    with pytest.raises(ValueError, match=r"features must be 9 wide.*nn.Linear\(D, 9\)"):
        model[2](torch.randn(3, 16))
    with pytest.raises(ValueError, match="num_classes must be a whole number >= 2, got 1"):
        SimplexClassifier(1)
