"""Recall@K and mAP@R with galleries, distances and ties: by hand, against a slow loop, faiss, and metric learning."""

import itertools
import math
import time
import warnings
from functools import cache

import pytest
import torch
import torch.nn.functional as F

from avalanche_contrastive.metrics import map_at_r, nearest_neighbours, recall_at_k, retrieval_metrics, search


@cache
def load(name):
    """A package of the test extra, or a skip."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own compiled bindings
        return pytest.importorskip(name)


def line(*places):
    return torch.tensor(places, dtype=torch.float64)[:, None]


def cloud(n, d, classes, *, tied=False, seed=0):
    draws = torch.Generator().manual_seed(seed)
    y = torch.randint(classes, (n,), generator=draws)
    if tied:
        return torch.randint(0, 3, (n, d), generator=draws).float(), y
    return torch.randn(classes, d, generator=draws)[y] + torch.randn(n, d, generator=draws), y


def slow(features, y, gallery, gallery_y, distance, ties, ks):
    """Recall by k and mAP@R in plain Python, straight from the definitions."""
    alone = gallery is None
    searched, labels = (features, y) if alone else (gallery, gallery_y)
    if distance == "cosine":
        features, searched = (F.normalize(x, dim=1) for x in (features, searched))
    hits, precisions = {k: [] for k in ks}, []
    for i, (f, c) in enumerate(zip(features, y.tolist(), strict=True)):
        others = [j for j in range(len(searched)) if not (alone and j == i)]
        r = sum(labels[j].item() == c for j in others)
        if r == 0:
            continue
        near = {j: ((f - searched[j]) ** 2).sum().item() if distance == "euclidean" else -(f @ searched[j]).item()
                for j in others}  # fmt: skip
        order = sorted(others, key=lambda j: (near[j], labels[j].item() != c if ties == "positive" else j))
        relevant = [labels[j].item() == c for j in order]
        for k in ks:
            hits[k].append(any(relevant[:k]))
        precisions.append(sum(sum(relevant[: p + 1]) / (p + 1) for p in range(r) if relevant[p]) / r)
    mean = lambda values: sum(values) / len(values) if values else math.nan  # noqa: E731
    return {k: mean(hits[k]) for k in ks}, mean(precisions)


# --- by hand ---


def test_map_at_r_by_hand():
    # Class 0 at 0, 1 and 3; class 1 at 2 and 9. R = 2 for the former, 1 for the latter.
    features, y = line(0, 1, 3, 2, 9), torch.tensor([0, 0, 0, 1, 1])
    # 0: 1 hit, 2 miss: 1/2. 1: 0 hit (tied with the miss at 2): 1/2. 3: 2 miss, 1 hit: 1/2 / 2.
    # 2: 1 or 3, miss: 0. 9: 3, miss: 0.
    assert map_at_r(features, y, distance="euclidean") == pytest.approx((1 / 2 + 1 / 2 + 1 / 4 + 0 + 0) / 5)


def test_recall_of_a_gallery_by_hand():
    gallery, gallery_y = line(0.0, 10.0, 20.0), torch.tensor([0, 1, 0])
    queries, y = line(1.0, 12.0, 19.0, 5.0), torch.tensor([0, 0, 1, 2])
    # The first finds its own at once, the second after one other, the third likewise; class 2 has nothing to find.
    kw = {"gallery": gallery, "gallery_y": gallery_y, "distance": "euclidean"}
    assert recall_at_k(queries, y, (1, 2), **kw) == {1: pytest.approx(1 / 3), 2: 1.0}
    assert map_at_r(queries, y, **kw) == pytest.approx((1 / 2 + (1 / 2) / 2 + 0) / 3)


def test_a_query_may_find_itself_in_a_gallery():
    features, y = cloud(30, 3, 10)
    assert recall_at_k(features, y, gallery=features, gallery_y=y) == 1.0


def test_ties_by_hand():
    # The query at 0 has a negative at -1 with a lower index than the positive at 1.
    gallery, gallery_y = line(-1.0, 1.0, 5.0), torch.tensor([1, 0, 0])
    for ties, recall, precision in (("positive", 1.0, 1 / 2), ("index", 0.0, 1 / 4)):
        kw = {"gallery": gallery, "gallery_y": gallery_y, "distance": "euclidean", "ties": ties}
        assert recall_at_k(line(0.0), torch.tensor([0]), **kw) == recall
        assert map_at_r(line(0.0), torch.tensor([0]), **kw) == precision


def test_cosine_and_euclidean_differ_by_length():
    features, y = torch.tensor([[1.0, 0.0], [9.0, 0.1], [0.9, 0.3], [1.0, 9.0]]), torch.tensor([0, 0, 1, 1])
    assert recall_at_k(features[:2], y[:2], gallery=features[1:], gallery_y=y[1:]) == 1.0
    assert recall_at_k(features[:1], y[:1], gallery=features[1:], gallery_y=y[1:], distance="euclidean") == 0.0


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("size", [800, 803])
def test_a_gallery_that_is_large_beside_its_classes_against_a_slow_loop(size, tied):
    # The largest similarities are looked for in blocks of columns; 803 is no multiple of a block's size.
    gallery, gallery_y = cloud(size, 4, 80, tied=tied)
    queries, y = cloud(25, 4, 80, tied=tied, seed=1)
    most = 2 * search.BLOCK * int(gallery_y.bincount().max())
    assert most <= size - int(gallery_y.bincount().max())
    _, precision = slow(queries, y, gallery, gallery_y, "euclidean", "positive", ())
    found = map_at_r(queries, y, gallery=gallery, gallery_y=gallery_y, distance="euclidean")
    assert found == pytest.approx(precision, abs=1e-12)


def test_several_k_are_those_of_one_each():
    features, y = cloud(80, 4, 12)
    assert recall_at_k(features, y, (5, 1)) == {k: recall_at_k(features, y, k) for k in (5, 1)}


def test_neighbours_by_hand():
    features = line(0, 1, 3, 7)
    assert nearest_neighbours(features, 2, distance="euclidean").tolist() == [[1, 2], [0, 2], [1, 0], [2, 1]]
    found = nearest_neighbours(line(2.9), 3, gallery=features, distance="euclidean")
    assert found.tolist() == [[2, 1, 0]]
    assert nearest_neighbours(features[:0], 1, gallery=features).shape == (0, 1)


def test_neighbours_have_the_recall():
    features, y = cloud(200, 5, 9)
    hits = (y[nearest_neighbours(features, 3)] == y[:, None]).any(dim=1)
    assert recall_at_k(features, y, 3) == pytest.approx(hits.double().mean().item())


# --- against a slow loop ---


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_mean_ties_are_the_average_over_every_order_of_the_images(seed, distance):
    draws = torch.Generator().manual_seed(seed)
    features, y = torch.randint(1, 3, (6, 2), generator=draws).double(), torch.tensor([0, 0, 1, 1, 1, 0])
    orders = [list(order) for order in itertools.permutations(range(6))]
    found = [recall_at_k(features[o], y[o], (1, 2, 3), distance=distance, ties="index") for o in orders]
    average = {k: sum(recall[k] for recall in found) / len(found) for k in (1, 2, 3)}
    assert recall_at_k(features, y, (1, 2, 3), distance=distance, ties="mean") == pytest.approx(average)


def test_collapsed_features_score_like_chance_where_ties_are_averaged():
    y = torch.arange(10).repeat_interleave(20)
    features = torch.zeros(200, 8)
    assert recall_at_k(features, y) == 1.0  # as the CSD authors count
    assert recall_at_k(features, y, ties="mean") == pytest.approx(19 / 199)
    miss = math.comb(180, 5) / math.comb(199, 5)
    assert recall_at_k(features, y, 5, ties="mean") == pytest.approx(1 - miss)
    clear, labels = cloud(300, 16, 7)
    assert recall_at_k(clear, labels, (1, 3), ties="mean") == recall_at_k(clear, labels, (1, 3))


def test_there_are_no_mean_ties_for_map_at_r():
    with pytest.raises(ValueError, match="ties='mean' is a rule for Recall@K only"):
        map_at_r(torch.zeros(4, 2), torch.tensor([0, 0, 1, 1]), ties="mean")
    with pytest.raises(ValueError, match="ties='mean' is a rule for Recall@K only"):
        retrieval_metrics(map_at_r=True, ties="mean")


@pytest.mark.parametrize("ties", ["positive", "index"])
@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
@pytest.mark.parametrize("seed", range(12))
def test_is_that_of_a_slow_loop(seed, distance, ties):
    draws = torch.Generator().manual_seed(seed)
    n, g, d, classes = (int(torch.randint(low, high, (), generator=draws)) for low, high in
                        ((1, 25), (1, 25), (1, 4), (1, 6)))  # fmt: skip
    features, y = cloud(n, d, classes, tied=seed % 2 == 0, seed=seed)
    features = features.double() + (distance == "cosine")  # no image at the origin, whose cosines are undefined
    gallery, gallery_y = cloud(g, d, classes, tied=seed % 2 == 0, seed=100 + seed)
    gallery = gallery.double() + (distance == "cosine")
    for extra in ({}, {"gallery": gallery, "gallery_y": gallery_y}):
        if ties == "index" and distance == "cosine" and seed % 2 == 0:
            continue  # copies up to a factor: whether they tie is a matter of rounding
        recall, precision = slow(features, y, extra.get("gallery"), extra.get("gallery_y"), distance, ties, (1, 2, 4))
        kw = {"distance": distance, "ties": ties, **extra}
        assert recall_at_k(features, y, (1, 2, 4), **kw) == pytest.approx(recall, nan_ok=True)
        assert map_at_r(features, y, **kw) == pytest.approx(precision, nan_ok=True)


@pytest.mark.parametrize("ties", ["positive", "index"])
@pytest.mark.parametrize("working_set", [1, 300, 2_000])
def test_chunks_do_not_matter(monkeypatch, working_set, ties):
    features, y = cloud(151, 4, 9, tied=True)
    calls = [
        lambda: recall_at_k(features, y, (1, 3), distance="euclidean", ties=ties),
        lambda: map_at_r(features, y, distance="euclidean", ties=ties),
        lambda: recall_at_k(features[:31], y[:31], gallery=features[31:], gallery_y=y[31:], ties=ties),
    ]
    expected = [call() for call in calls]
    monkeypatch.setattr(search, "WORKING_SET", working_set)
    assert [call() for call in calls] == expected


def test_copies_tie_wherever_they_lie(monkeypatch):
    # One image of each pair of copies is the query's own class, the other not: with ties for the positive all are hits.
    half = torch.randn(150, 64)
    order = torch.randperm(300)
    features, y = torch.cat([half, half])[order], torch.cat([torch.arange(150), torch.arange(150) + 150])[order]
    for working_set in (1, 299, 300, 601, 10_000_000):
        monkeypatch.setattr(search, "WORKING_SET", working_set)
        for distance in ("cosine", "euclidean"):
            kw = {"gallery": features, "gallery_y": y, "distance": distance}
            assert recall_at_k(half, torch.arange(150), **kw) == 1.0
            assert map_at_r(half, torch.arange(150), **kw) == 1.0


# --- invariances ---


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_rotation_and_order_do_not_matter(distance):
    features, y = cloud(120, 6, 10)
    features = features.double()
    rotation, _ = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64))
    order = torch.randperm(120)
    expected = recall_at_k(features, y, (1, 4), distance=distance), map_at_r(features, y, distance=distance)
    for f, c in ((features @ rotation, y), (features[order], y[order])):
        assert recall_at_k(f, c, (1, 4), distance=distance) == pytest.approx(expected[0])
        assert map_at_r(f, c, distance=distance) == pytest.approx(expected[1])


def test_shift_and_scale_do_not_matter_to_euclidean_distance():
    features, y = cloud(120, 6, 10)
    expected = map_at_r(features.double(), y, distance="euclidean")
    assert map_at_r(64 * features.double() - 5, y, distance="euclidean") == pytest.approx(expected)
    # Far from the origin: float32 would lose all digits in |q|^2 - 2 q.g + |g|^2.
    assert map_at_r(features + 10_000, y, distance="euclidean") == pytest.approx(expected, abs=0.01)


def test_a_gallery_of_the_others_is_leave_one_out():
    features, y = cloud(40, 4, 6)
    hits = []
    for i in range(40):
        others = torch.arange(40) != i
        one = recall_at_k(features[i : i + 1], y[i : i + 1], gallery=features[others], gallery_y=y[others])
        hits.extend([] if math.isnan(one) else [one])
    assert recall_at_k(features, y) == pytest.approx(sum(hits) / len(hits))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_map_of_any_precision(dtype):
    features, y = cloud(80, 4, 6)
    features = features.to(dtype)
    assert map_at_r(features, y) == pytest.approx(map_at_r(features.double(), y))
    assert recall_at_k(features, y, gallery=features.double(), gallery_y=y) == 1.0  # each finds itself


# --- faiss and pytorch-metric-learning ---


def pml(features, y, gallery, gallery_y):
    calculator = load("pytorch_metric_learning.utils.accuracy_calculator").AccuracyCalculator(
        include=("precision_at_1", "mean_average_precision_at_r"), k="max_bin_count", device=torch.device("cpu")
    )
    found = calculator.get_accuracy(features, y, gallery, gallery_y)
    return found["precision_at_1"], found["mean_average_precision_at_r"]


@pytest.mark.parametrize("with_gallery", [False, True])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("seed", range(10))
def test_is_that_of_pytorch_metric_learning(seed, tied, with_gallery):
    load("faiss")
    features, y = cloud(30 + 37 * seed, 3 + seed, 4 + 2 * seed, tied=tied, seed=seed)
    gallery, gallery_y = (
        cloud(200, 3 + seed, 3 + 2 * seed, tied=tied, seed=1000 + seed) if with_gallery else (None,) * 2
    )
    kw = {"gallery": gallery, "gallery_y": gallery_y, "distance": "euclidean"}
    expected = pml(features, y, gallery, gallery_y)
    for ties in ("index",) if tied else ("index", "positive"):
        assert recall_at_k(features, y, ties=ties, **kw) == pytest.approx(expected[0])
        assert map_at_r(features, y, ties=ties, **kw) == pytest.approx(expected[1])
    # The other way to count ties can only find more.
    assert recall_at_k(features, y, **kw) >= expected[0] - 1e-9


def test_single_images_of_a_class_are_left_out_as_in_pytorch_metric_learning():
    load("faiss")
    features, y = cloud(60, 4, 40)
    assert (y.unique(return_counts=True)[1] == 1).any()
    expected = pml(features, y, None, None)
    assert recall_at_k(features, y, distance="euclidean") == pytest.approx(expected[0])
    assert map_at_r(features, y, distance="euclidean") == pytest.approx(expected[1])


def faiss_recall(features, y, ks, index):
    """Leave-one-out recall from a flat index: the k + 1 nearest, without oneself."""
    index.add(features.numpy())
    found = torch.from_numpy(index.search(features.numpy(), max(ks) + 1)[1])
    own = found == torch.arange(len(y))[:, None]
    own[~own.any(dim=1), -1] = True  # oneself may be missing among copies: then the last is one too many
    nearest = found[~own].view(len(y), -1)
    asks = (y[:, None] == y).sum(dim=1) > 1
    hits = (y[nearest] == y[:, None])[asks]
    return {k: pytest.approx(hits[:, :k].any(dim=1).double().mean().item()) for k in ks}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("n", [15, 300, 1_200])
def test_is_that_of_faiss(n, tied):
    faiss = load("faiss")
    features, y = cloud(n, 8, 5 + n // 20, tied=tied)
    expected = faiss_recall(features, y, (1, 2, 10), faiss.IndexFlatL2(8))
    assert recall_at_k(features, y, (1, 2, 10), distance="euclidean", ties="index") == expected
    if not tied:
        assert recall_at_k(features, y, (1, 2, 10), distance="euclidean") == expected
        unit = F.normalize(features, dim=1)
        assert recall_at_k(features, y, (1, 2, 10)) == faiss_recall(unit, y, (1, 2, 10), faiss.IndexFlatIP(8))


def test_ties_count_as_faiss_has_them_where_no_negative_comes_first():
    # Copies within a class only: both ways of counting, and faiss, agree.
    faiss = load("faiss")
    features, y = cloud(100, 6, 30)
    features, y = features.repeat(3, 1), y.repeat(3)
    expected = faiss_recall(features, y, (1, 3), faiss.IndexFlatL2(6))
    for ties in ("positive", "index"):
        assert recall_at_k(features, y, (1, 3), distance="euclidean", ties=ties) == expected


@pytest.mark.slow
@pytest.mark.parametrize("classes", [10, 100, 1_000])
def test_time_is_that_of_faiss(classes):
    """10,000 x 512, one thread each: within 1.3 times the flat index in the same run, in processor time."""
    faiss = load("faiss")
    faiss.omp_set_num_threads(1)
    features, y = cloud(10_000, 512, classes)
    unit = F.normalize(features, dim=1)

    def flat(k):
        index = faiss.IndexFlatIP(512)
        index.add(unit.numpy())
        index.search(unit.numpy(), k)

    def seconds(*calls):
        """The least of some runs, which take turns."""
        best = [math.inf] * len(calls)
        for _ in range(5):
            for i, call in enumerate(calls):
                start = time.process_time()
                call()
                best[i] = min(best[i], time.process_time() - start)
        return best

    r = int(y.bincount().max())
    names = ("recall", "faiss for recall", "mAP@R", "faiss for mAP@R")
    times = seconds(
        lambda: recall_at_k(features, y, (1, 10)), lambda: flat(11), lambda: map_at_r(features, y), lambda: flat(r)
    )
    print({name: round(t, 3) for name, t in zip(names, times, strict=True)})
    assert times[0] <= 1.3 * times[1]
    assert times[2] <= 1.3 * times[3]


# --- bad input ---

F4, Y4 = torch.ones(4, 2), torch.tensor([0, 0, 1, 1])
BAD = {
    "a gallery without labels": (lambda: recall_at_k(F4, Y4, gallery=F4), r"gallery needs both.*gallery_y"),
    "labels without a gallery": (lambda: map_at_r(F4, Y4, gallery_y=Y4), r"gallery needs both"),
    "a gallery of another width": (
        lambda: map_at_r(F4, Y4, gallery=torch.ones(3, 5), gallery_y=Y4[:3]),
        r"one width, got 2 and 5.*same layer",
    ),
    "a short gallery_y": (lambda: recall_at_k(F4, Y4, gallery=F4, gallery_y=Y4[:2]), r"gallery_y must be.*\(4,\)"),
    "a nan in the gallery": (lambda: recall_at_k(F4, Y4, gallery=F4 * math.nan, gallery_y=Y4), r"gallery must be fin"),
    "a distance": (lambda: map_at_r(F4, Y4, distance="l1"), r"map_at_r: distance.*'cosine', 'euclidean', got 'l1'"),
    "ties": (lambda: recall_at_k(F4, Y4, ties="last"), r"ties must be one of 'positive', 'index', 'mean', got 'last'"),
    "no k": (lambda: recall_at_k(F4, Y4, ()), r"k must be a sequence.*got \(\)"),
    "a k of zero among some": (lambda: recall_at_k(F4, Y4, (1, 0)), r"k must be a whole number >= 1, got 0"),
    "more neighbours than there are": (lambda: nearest_neighbours(F4, 4), r"k = 4, but each query has 3"),
    "y of floats": (lambda: map_at_r(F4, Y4.float()), r"map_at_r: y must be integer"),
}


@pytest.mark.parametrize(("call", "message"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_nothing_to_find_is_nan():
    none = torch.zeros(0, 2), torch.zeros(0, dtype=torch.long)
    for features, y, gallery, gallery_y in ((F4, Y4, *none), (*none, F4, Y4), (F4, Y4, F4, Y4 + 2)):
        assert math.isnan(recall_at_k(features, y, gallery=gallery, gallery_y=gallery_y))
        assert math.isnan(map_at_r(features, y, gallery=gallery, gallery_y=gallery_y))
