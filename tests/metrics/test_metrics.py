"""Recall@K against a slow loop and scikit-learn, its memory, and the metrics inside Avalanche."""

import math
import random

import pytest
import torch
from avalanche.benchmarks import class_incremental_benchmark
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.supervised import Naive
from sklearn.neighbors import NearestNeighbors
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import TensorDataset

from avalanche_contrastive.metrics import (
    RetrievalMetric,
    map_at_r,
    nearest_neighbours,
    recall_at_k,
    retrieval_metrics,
    search,
)

# --- the pure function ---


def slow_recall(features, y, k):
    """Per query: fewer than k negatives strictly nearer than the nearest positive; queries without positive are out."""
    rows = [[p / math.sqrt(sum(q * q for q in row)) for p in row] for row in features.tolist()]
    hits = []
    for i, row in enumerate(rows):
        cosine = {j: sum(p * q for p, q in zip(row, other, strict=True)) for j, other in enumerate(rows) if j != i}
        positives = [cosine[j] for j in cosine if y[j] == y[i]]
        if positives:
            nearer = [j for j in cosine if y[j] != y[i] and cosine[j] > max(positives)]
            hits.append(len(nearer) < k)
    return sum(hits) / len(hits) if hits else math.nan


def cloud(n, d, classes, dtype=torch.float64):
    """Features with some class structure, class ids with gaps."""
    y = 7 * torch.randint(classes, (n,)) + 3
    return (torch.randn(10 * classes, d)[y] + torch.randn(n, d)).to(dtype), y


@pytest.mark.parametrize("seed", range(25))
@pytest.mark.parametrize("k", [1, 2, 5])
def test_recall_is_that_of_a_slow_loop(seed, k):
    torch.manual_seed(seed)
    draw = random.Random(seed)
    features, y = cloud(draw.randint(2, 30), draw.randint(2, 5), draw.randint(1, 8))
    assert recall_at_k(features, y, k) == pytest.approx(slow_recall(features, y.tolist(), k), nan_ok=True)


@pytest.mark.parametrize("k", [1, 3, 10])
def test_recall_is_that_of_scikit_learn(k):
    features, y = cloud(400, 6, 12)
    assert (y.unique(return_counts=True)[1] > 1).all()
    _, nearest = NearestNeighbors(n_neighbors=k + 1, metric="cosine").fit(features.numpy()).kneighbors()[0:2]
    hits = (y[torch.tensor(nearest[:, :k])] == y[:, None]).any(dim=1)
    assert recall_at_k(features, y, k) == pytest.approx(hits.double().mean().item())
    assert 0 < hits.double().mean() < 1


def test_recall_by_hand():
    # At 0, 10 and 25 degrees; class 1 in the middle is nearer to 0 than class 0's other image is.
    angle = torch.tensor([0.0, 10.0, 25.0, 40.0]).deg2rad()
    features, y = torch.stack([angle.cos(), angle.sin()], dim=1), torch.tensor([0, 1, 0, 1])
    # 0: nearest 10 (miss at 1, hit at 2). 10: nearest 0, then 25, then 40 (hit at 3). 25: 10 and 40 tie, then 0: 3.
    # 40: nearest 25, then 10: hit at 2.
    assert [recall_at_k(features, y, k) for k in (1, 2, 3)] == [0.0, 0.5, 1.0]


def test_default_k_is_one():
    features, y = cloud(60, 4, 6)
    assert recall_at_k(features, y) == recall_at_k(features, y, 1)
    assert recall_at_k(features, y) < recall_at_k(features, y, 3)


def test_ties_count_as_hits():
    # Everything on one ray: each negative is as near as the positives.
    features = torch.tensor([[3.0, 4.0]]).expand(6, 2) * torch.tensor([[1.0], [2.0], [0.5], [8.0], [1.0], [4.0]])
    assert recall_at_k(features, torch.tensor([0, 0, 1, 1, 2, 2])) == 1.0


def test_a_nearer_negative_is_a_miss():
    features = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.01], [0.01, 1.0]])
    assert recall_at_k(features, torch.tensor([0, 0, 1, 1])) == 0.0


def test_an_image_does_not_find_itself():
    # Each image's only exact match is itself; the next is of another class.
    features = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [1.0, 0.1], [-1.0, -0.1]])
    y = torch.tensor([0, 0, 1, 1])
    assert recall_at_k(features, y) == 0.0


def test_only_image_of_its_class_asks_nothing_but_is_found():
    features = torch.tensor([[1.0, 0.0], [1.0, 0.1], [1.0, 0.05], [0.0, 1.0]])
    # Class 5 lies between the two of class 0 and comes first for both; class 9 is far. Two queries, no hit at 1.
    y = torch.tensor([0, 0, 5, 9])
    assert recall_at_k(features, y, 1) == 0.0
    assert recall_at_k(features, y, 2) == 1.0


@pytest.mark.parametrize("n", [1, 4])
def test_no_class_with_two_images_is_nan(n):
    assert math.isnan(recall_at_k(torch.randn(n, 3), torch.arange(n)))


def test_k_beyond_the_gallery_finds_everything():
    features, y = cloud(20, 3, 3)
    assert recall_at_k(features, y, 100) == 1.0


def test_one_class_finds_everything():
    assert recall_at_k(torch.randn(5, 3), torch.full((5,), 2)) == 1.0


def test_recall_grows_with_k():
    features, y = cloud(100, 3, 20)
    values = [recall_at_k(features, y, k) for k in range(1, 40)]
    assert values == sorted(values)
    assert values[0] < values[-1]


@pytest.mark.parametrize("working_set", [1, 200, 1_000, 7_777])
@pytest.mark.parametrize("k", [1, 4])
def test_chunks_do_not_matter(monkeypatch, working_set, k):
    features, y = cloud(211, 5, 17)
    expected = recall_at_k(features, y, k)
    assert 0 < expected < 1
    monkeypatch.setattr(search, "WORKING_SET", working_set)
    assert recall_at_k(features, y, k) == expected


def test_chunks_keep_ties(monkeypatch):
    # Exact duplicates (doubled lengths stay exact) in other classes tie with the positive wherever a chunk ends.
    half = torch.randn(60, 8)
    features, y = (
        torch.cat([half, 2 * half, 4 * half]),
        torch.cat([torch.arange(60), torch.arange(60), torch.arange(60) + 60]),
    )
    y = torch.where(y >= 60, 60 + y % 7, y)
    paired = y < 60
    monkeypatch.setattr(search, "WORKING_SET", 1_000)
    chunked = recall_at_k(features, y)
    monkeypatch.setattr(search, "WORKING_SET", 10_000_000)
    assert chunked == recall_at_k(features, y)
    assert chunked >= paired.double().mean().item()


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that any operation gives."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return out


MEASURES = {
    "recall": recall_at_k,
    "several recalls": lambda features, y: recall_at_k(features, y, (1, 5), distance="euclidean"),
    "recall in index order": lambda features, y: recall_at_k(features, y, ties="index"),
    "mAP@R": map_at_r,
    "mAP@R in index order": lambda features, y: map_at_r(features, y, ties="index"),
    "neighbours": lambda features, y: nearest_neighbours(features, 4),
}


@pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES.keys())
def test_memory_is_bounded_by_the_working_set(monkeypatch, measure):
    monkeypatch.setattr(search, "WORKING_SET", 20_000)
    features, y = cloud(1_500, 6, 40)
    with Largest() as largest:
        measure(features, y)
    assert largest.elements <= 20_000
    assert largest.elements > 9_000  # the similarities of a chunk are among what was seen


def test_memory_of_one_row_where_the_working_set_is_smaller(monkeypatch):
    monkeypatch.setattr(search, "WORKING_SET", 1)
    features, y = cloud(300, 4, 10)
    with Largest() as largest:
        recall_at_k(features, y)
    assert largest.elements == 300 * 4


def test_memory_by_default_is_below_n_squared():
    features, y = cloud(5_000, 4, 100, torch.float32)
    with Largest() as largest:
        recall_at_k(features, y)
    assert largest.elements <= 10_000_000 < 5_000**2


def test_length_of_features_does_not_matter():
    features, y = cloud(80, 4, 6)
    assert recall_at_k(features * (0.01 + 100 * torch.rand(80, 1)), y, 2) == recall_at_k(features, y, 2)


def test_order_of_images_does_not_matter():
    features, y = cloud(80, 4, 6)
    order = torch.randperm(80)
    assert recall_at_k(features[order], y[order], 2) == recall_at_k(features, y, 2)


def test_names_of_classes_do_not_matter():
    features, y = cloud(80, 4, 6)
    assert recall_at_k(features, 100 - y) == recall_at_k(features, y)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_features_of_any_precision(dtype):
    features, y = cloud(80, 4, 6, dtype)
    assert recall_at_k(features, y) == recall_at_k(features.double(), y)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_class_ids_of_any_integer_type(dtype):
    features, y = cloud(80, 4, 6)
    assert recall_at_k(features, y.to(dtype)) == recall_at_k(features, y)


def test_inputs_are_left_alone_and_no_graph_is_kept():
    features, y = cloud(20, 4, 3)
    features.requires_grad_()
    before, labels = features.detach().clone(), y.clone()
    assert isinstance(recall_at_k(features, y), float)
    assert torch.equal(features, before)
    assert torch.equal(y, labels)


F4, Y4 = torch.ones(4, 2), torch.tensor([0, 0, 1, 1])
BAD = {
    "flat-features": (lambda: recall_at_k(F4[0], Y4), r"\(N, D\), got torch.float32 of shape \(2,\)"),
    "views": (lambda: recall_at_k(torch.ones(4, 2, 3), Y4), r"\(N, D\), got.*\(4, 2, 3\)"),
    "integer-features": (lambda: recall_at_k(F4.long(), Y4), r"floating-point.*got torch.int64"),
    "y-length": (lambda: recall_at_k(F4, Y4[:3]), r"y must be integer.*\(4,\), got.*\(3,\)"),
    "y-float": (lambda: recall_at_k(F4, Y4.float()), r"y must be integer.*got torch.float32"),
    "y-one-hot": (lambda: recall_at_k(F4, torch.eye(4).long()), r"y must be integer.*got.*\(4, 4\)"),
    "nan": (lambda: recall_at_k(F4 * float("nan"), Y4), r"must be finite, got nan.*diverged"),
    "infinity": (lambda: recall_at_k(F4 * float("inf"), Y4), r"must be finite"),
    "k-zero": (lambda: recall_at_k(F4, Y4, 0), r"recall_at_k: k must be a whole number >= 1, got 0"),
    "k-negative": (lambda: recall_at_k(F4, Y4, -1), r"k must be.*got -1"),
    "k-float": (lambda: recall_at_k(F4, Y4, 1.0), r"k must be.*got 1\.0"),
    "k-bool": (lambda: recall_at_k(F4, Y4, True), r"k must be.*got True"),
    "no-ks": (lambda: retrieval_metrics(ks=()), r"ks must be.*got \(\)"),
    "ks-zero": (lambda: retrieval_metrics(ks=(1, 0)), r"retrieval_metrics: ks must be.*got 0"),
}


@pytest.mark.parametrize(("call", "message"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_no_image_is_nan():
    # "nan if no class has two images" holds for none as well.
    assert math.isnan(recall_at_k(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long)))


def test_ks_of_one_number_is_named():
    with pytest.raises(ValueError, match="ks"):
        retrieval_metrics(ks=1)


def test_unknown_argument_is_refused():
    with pytest.raises(TypeError, match="k"):
        retrieval_metrics(k=1)


def test_metrics_are_keyword_only():
    with pytest.raises(TypeError, match="positional"):
        retrieval_metrics((1,))


# --- inside Avalanche ---

CLASSES, ORDER = 6, [4, 1, 5, 0, 3, 2]


class Points(TensorDataset):
    def __init__(self, x, y):
        super().__init__(x, y)
        self.targets = y.tolist()

    def __getitem__(self, i):
        return self.tensors[0][i], self.targets[i]


def points(seed, per_class=11):
    draws = torch.Generator().manual_seed(seed)
    y = torch.arange(CLASSES).repeat(per_class)
    centres = torch.randn(CLASSES, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    return Points(centres[y] + 1.5 * torch.randn(len(y), 3, 2, 2, generator=draws), y)


@pytest.fixture
def benchmark():
    return class_incremental_benchmark({"train": points(1), "test": points(2)}, num_experiences=3, class_order=ORDER)


def make_model():
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, CLASSES))


def make_strategy(plugin_metrics, model=None, **options):
    model = make_model() if model is None else model
    return Naive(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.05),
        train_mb_size=8,
        eval_mb_size=7,  # no divisor of 22: the last batch of an experience is smaller
        evaluator=EvaluationPlugin(*plugin_metrics, loggers=[]),
        **options,
    )


def features_of(experience, extractor):
    rows = [experience.dataset[i][:2] for i in range(len(experience.dataset))]
    x, y = torch.stack([row[0] for row in rows]), torch.tensor([row[1] for row in rows])
    with torch.no_grad():
        return extractor.eval()(x), y


def by_hand(benchmark, extractor, k):
    """Recall of each test experience, and of all together."""
    parts = [features_of(experience, extractor) for experience in benchmark.test_stream]
    together = recall_at_k(torch.cat([f for f, _ in parts]), torch.cat([y for _, y in parts]), k)
    return [recall_at_k(f, y, k) for f, y in parts], together


def exp_name(k, i):
    return f"Recall@{k}_Exp/eval_phase/test_stream/Exp{i:03d}"


def stream_name(k):
    return f"Recall@{k}_Stream/eval_phase/test_stream"


def assert_by_hand(results, benchmark, extractor, ks):
    for k in ks:
        experiences, together = by_hand(benchmark, extractor, k)
        assert 0 < together < 1
        assert results[stream_name(k)] == pytest.approx(together)
        for i, expected in enumerate(experiences):
            assert results[exp_name(k, i)] == pytest.approx(expected)


def test_values_in_eval_are_those_of_features_by_hand(benchmark):
    strategy = make_strategy(retrieval_metrics())
    for experience in benchmark.train_stream:
        strategy.train(experience)
    results = strategy.eval(benchmark.test_stream)
    assert_by_hand(results, benchmark, strategy.model[:-1], ks=(1,))
    assert sorted(results) == sorted([exp_name(1, 0), exp_name(1, 1), exp_name(1, 2), stream_name(1)])


def test_experience_and_stream_are_different_galleries(benchmark):
    results = make_strategy(retrieval_metrics()).eval(benchmark.test_stream)
    experiences = [results[exp_name(1, i)] for i in range(3)]
    # Queries have 4 more classes to be confused with in the stream.
    assert results[stream_name(1)] < sum(experiences) / 3


def test_two_ks(benchmark):
    strategy = make_strategy(retrieval_metrics(ks=(1, 3)))
    strategy.train(benchmark.train_stream[0])
    results = strategy.eval(benchmark.test_stream)
    assert_by_hand(results, benchmark, strategy.model[:-1], ks=(1, 3))
    assert results[stream_name(1)] < results[stream_name(3)]


@pytest.mark.parametrize("layer", ["0", "1", "2"])
def test_named_layer_gives_its_output(benchmark, layer):
    strategy = make_strategy(retrieval_metrics(layer=layer))
    results = strategy.eval(benchmark.test_stream)
    assert_by_hand(results, benchmark, strategy.model[: int(layer) + 1], ks=(1,))


def test_named_layer_is_flattened(benchmark):
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.Flatten(), nn.Linear(8, CLASSES))
    strategy = make_strategy(retrieval_metrics(layer="0"), model)
    results = strategy.eval(benchmark.test_stream)
    assert_by_hand(results, benchmark, nn.Sequential(model[0], nn.Flatten()), ks=(1,))


def test_model_without_linear_layer_takes_a_named_one(benchmark):
    model = nn.Sequential(nn.Conv2d(3, CLASSES, 2), nn.Flatten())
    strategy = make_strategy(retrieval_metrics(layer="1"), model)
    assert_by_hand(strategy.eval(benchmark.test_stream), benchmark, model, ks=(1,))


def test_model_without_linear_layer_is_named(benchmark):
    strategy = make_strategy(retrieval_metrics(), nn.Sequential(nn.Conv2d(3, CLASSES, 2), nn.Flatten()))
    with pytest.raises(ValueError, match=r"Sequential has no classifier layer.*[Nn]ame the layer"):
        strategy.eval(benchmark.test_stream)


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(12, 5))
        self.classifier = nn.Linear(5, CLASSES)
        self.unused = nn.Linear(2, 2)

    def forward(self, x):
        return self.classifier(self.encoder(x))


def test_unknown_layer_names_a_near_one(benchmark):
    strategy = make_strategy(retrieval_metrics(layer="encodr"), Named())
    with pytest.raises(ValueError, match=r"'encodr' is not in Named; did you mean 'encoder'"):
        strategy.eval(benchmark.test_stream)


def test_layer_that_does_not_run_is_named(benchmark):
    strategy = make_strategy(retrieval_metrics(layer="unused"), Named())
    with pytest.raises(ValueError, match=r"'unused'.*got nothing.*skip"):
        strategy.eval(benchmark.test_stream)


def test_a_linear_layer_that_does_not_run_is_not_the_classifier(benchmark):
    strategy = make_strategy(retrieval_metrics(), Named())
    assert_by_hand(strategy.eval(benchmark.test_stream), benchmark, strategy.model.encoder, ks=(1,))


def test_layer_with_other_rows_than_images_is_named(benchmark):
    class Doubling(nn.Module):
        def __init__(self):
            super().__init__()
            self.classifier = nn.Linear(12, CLASSES)

        def forward(self, x):
            return self.classifier(torch.cat([x, x]).flatten(1))[: len(x)]

    strategy = make_strategy(retrieval_metrics(), Doubling())
    with pytest.raises(ValueError, match=r"14 features for 7 images.*layer"):
        strategy.eval(benchmark.test_stream)


@pytest.mark.parametrize(("experience", "stream"), [(True, False), (False, True)])
def test_levels_can_be_left_out(benchmark, experience, stream):
    results = make_strategy(retrieval_metrics(experience=experience, stream=stream)).eval(benchmark.test_stream)
    assert len(results) == 3 * experience + stream
    assert all(("_Exp/" in name) == experience for name in results)


@pytest.mark.parametrize("eval_every", [-1, 0, 1])
def test_values_under_periodic_evaluation(benchmark, eval_every):
    strategy = make_strategy(retrieval_metrics(), train_epochs=3, eval_every=eval_every)
    strategy.train(benchmark.train_stream[0], eval_streams=[benchmark.test_stream])
    values = strategy.evaluator.get_all_metrics()
    # Before training and after the experience; with 1 after every epoch instead of once at the end.
    assert len(values.get(stream_name(1), ([], []))[1]) == {-1: 0, 0: 2, 1: 4}[eval_every]
    if eval_every >= 0:
        assert_by_hand(strategy.evaluator.get_last_metrics(), benchmark, strategy.model[:-1], ks=(1,))


def test_every_periodic_value_is_of_its_own_moment(benchmark):
    # Two experiences with evaluation after each epoch: nothing of an earlier evaluation stays in a later one.
    strategy = make_strategy(retrieval_metrics(), train_epochs=2, eval_every=1)
    for experience in benchmark.train_stream[:2]:
        strategy.train(experience, eval_streams=[benchmark.test_stream])
        assert_by_hand(strategy.evaluator.get_last_metrics(), benchmark, strategy.model[:-1], ks=(1,))


def test_second_eval_starts_anew(benchmark):
    strategy = make_strategy(retrieval_metrics())
    assert strategy.eval(benchmark.test_stream) == strategy.eval(benchmark.test_stream)
    part = strategy.eval(benchmark.test_stream[:1])
    assert part[stream_name(1)] == part[exp_name(1, 0)]


class Failing(nn.Module):
    """Fails at the n-th batch from now, once."""

    def __init__(self):
        super().__init__()
        self.classifier = nn.Linear(12, CLASSES)
        self.left = 10**6

    def forward(self, x):
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt
        return self.classifier(x.flatten(1))


def test_eval_after_an_interrupted_one_is_right(benchmark):
    strategy = make_strategy(retrieval_metrics(), Failing())
    expected = strategy.eval(benchmark.test_stream)
    strategy.model.left = 6  # in the second experience
    with pytest.raises(KeyboardInterrupt):
        strategy.eval(benchmark.test_stream)
    assert strategy.eval(benchmark.test_stream) == expected


def test_no_feature_is_held_after_eval(benchmark):
    plugin_metrics = retrieval_metrics()
    make_strategy(plugin_metrics).eval(benchmark.test_stream)
    assert [metric.result() for metric in plugin_metrics] == [None, None]


def hooks(model):
    return [h for m in model.modules() for h in (*m._forward_hooks.values(), *m._forward_pre_hooks.values())]


def test_no_hook_stays_on_the_model(benchmark):
    strategy = make_strategy(retrieval_metrics())
    strategy.train(benchmark.train_stream[0])
    strategy.eval(benchmark.test_stream)
    assert hooks(strategy.model) == []


def test_metrics_do_not_change_training(benchmark):
    weights = []
    for plugin_metrics in ([], retrieval_metrics(ks=(1, 2))):
        torch.manual_seed(0)
        strategy = make_strategy(plugin_metrics, eval_every=1)
        strategy.train(benchmark.train_stream[0], eval_streams=[benchmark.test_stream])
        weights.append(torch.cat([p.flatten() for p in strategy.model.parameters()]))
    assert torch.equal(*weights)


def test_result_before_any_sample_is_none():
    assert RetrievalMetric((1,), "stream").result() is None


def test_names_of_the_metrics():
    assert [str(metric) for metric in retrieval_metrics(ks=(4, 1))] == ["Recall@4_Exp", "Recall@4_Stream"]
