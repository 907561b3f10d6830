"""Read-outs of frozen features against scikit-learn, and the metric's data, names and manners inside Avalanche."""

import math

import pytest
import torch
import torch.nn.functional as F
from avalanche.benchmarks import split_online_stream
from avalanche.benchmarks.utils import TransformGroups, make_avalanche_dataset
from avalanche.training.plugins import EvaluationPlugin, ReplayPlugin
from avalanche.training.supervised import JointTraining, Naive
from helpers.streams import ORDER, Images, digits, make_benchmark, make_encoder
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import pairwise_distances_argmin
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.utils.data import Subset

from avalanche_contrastive.metrics import Source, fit_readout, readout_metrics, with_forgetting

KINDS = ("linear", "nearest_mean", "knn")

# --- the pure function ---


def blobs(seed=0, n=300, d=6, classes=5, spread=1.0):
    draws = torch.Generator().manual_seed(seed)
    centres = 3 * torch.randn(classes, d, generator=torch.Generator().manual_seed(99))
    y = torch.randint(classes, (n,), generator=draws)
    return centres[y] + spread * torch.randn(n, d, generator=draws), 3 * y + 1


def pixels(per_class=40):
    """Digits as features: (x, y) to fit on and to test on."""
    (x, y), (x_test, y_test) = digits(per_class)
    return x.flatten(1), y, x_test.flatten(1), y_test


@pytest.mark.parametrize("kind", KINDS)
def test_two_far_classes_by_hand(kind):
    features, y = torch.tensor([[5.0, 0.1], [6.0, -0.1], [0.1, 5.0], [-0.1, 6.0]]), torch.tensor([7, 7, 2, 2])
    predict = fit_readout(features, y, kind, k=1)
    assert predict(torch.tensor([[4.0, 1.0], [1.0, 4.0], [9.0, 0.0]])).tolist() == [7, 2, 7]


@pytest.mark.parametrize("k", [1, 4, 7])
@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_neighbours_vote_as_in_scikit_learn(distance, k):
    (features, y), (queries, _) = blobs(spread=3.0), blobs(1, 500, spread=3.0)
    oracle = KNeighborsClassifier(k, metric=distance).fit(features.numpy(), y.numpy())
    found = fit_readout(features, y, "knn", k=k, distance=distance)(queries)
    assert found.tolist() == oracle.predict(queries.numpy()).tolist()


def test_equal_votes_go_to_the_lowest_class():
    features, y = torch.tensor([[1.0, 0.0], [1.0, 0.1], [1.0, 0.2], [1.0, 0.3]]), torch.tensor([8, 8, 3, 3])
    assert fit_readout(features, y, "knn", k=4)(features).tolist() == [3] * 4


def test_all_vote_where_there_are_fewer_than_k():
    features, y = torch.eye(3), torch.tensor([4, 4, 6])
    assert fit_readout(features, y, "knn", k=50)(torch.eye(3)).tolist() == [4, 4, 4]


def test_nearest_mean_is_the_nearest_of_the_class_means():
    # fit_nearest_mean takes means of unit features to unit length, so centroids on the sphere.
    (features, y), (queries, _) = blobs(spread=2.0), blobs(1, 500, spread=2.0)
    unit = F.normalize(features, dim=1)
    means = F.normalize(torch.stack([unit[y == c].mean(dim=0) for c in y.unique()]), dim=1)
    nearest = pairwise_distances_argmin(F.normalize(queries, dim=1).numpy(), means.numpy())
    assert fit_readout(features, y, "nearest_mean")(queries).tolist() == y.unique()[torch.tensor(nearest)].tolist()


def test_linear_probe_is_as_good_as_logistic_regression():
    x, y, x_test, y_test = pixels()
    scaler = StandardScaler().fit(x.numpy())
    oracle = LogisticRegression(C=10.0, max_iter=2_000).fit(scaler.transform(x.numpy()), y.numpy())
    expected = torch.tensor(oracle.predict(scaler.transform(x_test.numpy())))
    found = fit_readout(x, y, "linear")(x_test)
    assert (expected == y_test).double().mean() > 0.8
    assert (found == y_test).double().mean() >= (expected == y_test).double().mean() - 0.02
    assert (found == expected).double().mean() > 0.93


def test_linear_probe_is_balanced_over_classes():
    # 1 to 30: plain regression would give most of the overlap to the large class.
    draws = torch.Generator().manual_seed(0)
    x = torch.randn(620, 2, generator=draws)
    y = (torch.arange(620) < 20).long()
    x[:20, 0] += 2.0
    test = torch.randn(2_000, 2, generator=draws) + torch.tensor([2.0, 0.0])
    assert (fit_readout(x, y, "linear")(test) == 1).double().mean() > 0.7


@pytest.mark.parametrize("kind", KINDS)
def test_scale_does_not_matter(kind):
    x, y, x_test, _ = pixels(12)
    expected = fit_readout(x, y, kind)(x_test)
    for factor in (2.0**-20, 2.0**20):
        assert torch.equal(fit_readout(factor * x, y, kind)(factor * x_test), expected)


def test_linear_probe_takes_features_of_any_mean_and_spread():
    x, y, x_test, y_test = pixels(12)
    spread = torch.logspace(-3, 3, x.shape[1])
    found = fit_readout(x * spread + 100 * spread, y, "linear")(x_test * spread + 100 * spread)
    assert (found == fit_readout(x, y, "linear")(x_test)).double().mean() > 0.98
    # A thousand: no rate would suit these without that.
    assert (fit_readout(1_000 * x, y, "linear")(1_000 * x_test) == y_test).double().mean() > 0.8


@pytest.mark.parametrize("kind", KINDS)
def test_order_and_constant_dimensions_do_not_matter(kind):
    x, y, x_test, y_test = pixels(12)
    accuracy = (fit_readout(x, y, kind)(x_test) == y_test).double().mean().item()
    wide, wide_test = (torch.cat([a, torch.full((len(a), 5), 0.1)], dim=1) for a in (x, x_test))
    found = fit_readout(wide, y, kind)(wide_test)
    assert (found == y_test).double().mean().item() == pytest.approx(accuracy, abs=0.04)
    order = torch.randperm(len(y))
    permuted = (fit_readout(x[order], y[order], kind)(x_test) == y_test).double().mean().item()
    assert permuted == pytest.approx(accuracy, abs=0.0 if kind != "linear" else 0.04)


@pytest.mark.parametrize("kind", KINDS)
def test_no_global_random_number_is_drawn(kind):
    features, y = blobs()
    state = torch.get_rng_state()
    first = fit_readout(features, y, kind)(features)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(5)
    assert torch.equal(fit_readout(features, y, kind)(features), first)


@pytest.mark.parametrize("kind", KINDS)
def test_one_image_and_one_class_will_do(kind):
    assert fit_readout(torch.randn(1, 3), torch.tensor([4]), kind)(torch.randn(5, 3)).tolist() == [4] * 5


F4, Y4 = torch.randn(4, 2), torch.tensor([0, 0, 1, 1])
BAD = {
    "a kind": (lambda: fit_readout(F4, Y4, "svm"), r"fit_readout: kind must be one of 'linear'.*got 'svm'"),
    "no image": (lambda: fit_readout(F4[:0], Y4[:0]), r"no image to fit on"),
    "flat features": (lambda: fit_readout(F4[0], Y4), r"features must be.*\(N, D\)"),
    "nan": (lambda: fit_readout(F4 * math.nan, Y4), r"must be finite"),
    "labels": (lambda: fit_readout(F4, Y4[:3]), r"y must be integer class ids of shape \(4,\)"),
    "k": (lambda: fit_readout(F4, Y4, "knn", k=0), r"k must be a whole number >= 1, got 0"),
    "a distance": (lambda: fit_readout(F4, Y4, "knn", distance="l1"), r"distance must be one of"),
    "epochs": (lambda: readout_metrics(epochs=0), r"readout_metrics: epochs must be"),
    "one kind as a word": (lambda: readout_metrics(kinds="linear"), r"kinds must be a sequence of.*got 'linear'"),
    "no kind": (lambda: readout_metrics(kinds=()), r"kinds must be a sequence"),
    "an unknown kind": (lambda: readout_metrics(kinds=("linear", "mlp")), r"kinds must be one of.*got 'mlp'"),
    "no level": (lambda: readout_metrics(experience=False, stream=False), r"both False, and so is seen"),
    "data of a word": (lambda: readout_metrics("train"), r"data must be 'seen', experiences.*got 'train'"),
    "data of a number": (lambda: readout_metrics(3), r"data must be an experience, a dataset.*got int"),
    "data of nothing": (lambda: readout_metrics([]), r"at least one image, got none"),
    "data of a benchmark": (lambda: readout_metrics(make_benchmark()), r"got CLScenario.*one of its streams"),
    "data of a tensor": (lambda: readout_metrics(torch.ones(3)), r"got Tensor"),
    "a lambda without a name": (lambda: readout_metrics(lambda s: s), r"needs a name.*'<lambda>'"),
    "a name with a slash": (lambda: readout_metrics(name="a/b"), r"needs a name without '/'"),
}


@pytest.mark.parametrize(("call", "message"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_source_may_be_shared_and_renamed():
    source = Source("seen")
    assert readout_metrics(source)[0].source is source
    (renamed,) = readout_metrics(source, name="all of it", kinds=("knn",))
    assert renamed.names == ["5NN_on_all of it_Acc"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("given", [torch.randn(5, 4), torch.randn(5), torch.randn(5, 2, 3)])
def test_features_of_another_width_are_named(kind, given):
    predict = fit_readout(*blobs(d=6), kind)
    with pytest.raises(ValueError, match=r"features must be a.*\(N, D\)|fitted to features of width 6, got 4.*same"):
        predict(given)


# --- inside Avalanche ---


def make_strategy(metrics, kind=Naive, plugins=(), model=None, **options):
    model = nn.Sequential(make_encoder(), nn.Linear(16, 10)) if model is None else model
    return kind(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=8,
        train_epochs=2,
        eval_mb_size=50,
        plugins=list(plugins),
        evaluator=EvaluationPlugin(*metrics, loggers=[]),
        **options,
    )


def embedded(strategy, *experiences):
    """Features and labels of experiences under the evaluation transforms, by hand."""
    rows = [e.dataset.eval()[i][:2] for e in experiences for i in range(len(e.dataset))]
    with torch.no_grad():
        features = strategy.model[0].eval()(torch.stack([row[0] for row in rows]))
    return features, torch.tensor([row[1] for row in rows])


def accuracy_by_hand(strategy, fitted_on, evaluated, kind):
    features, y = embedded(strategy, *evaluated)
    return (fit_readout(*embedded(strategy, *fitted_on), kind)(features) == y).double().mean().item()


NAMES = {"linear": "LinearProbe", "nearest_mean": "NearestMean", "knn": "5NN"}


@pytest.mark.parametrize("flavour", ["A", "B", "C"])
def test_values_are_those_of_the_function_on_the_same_features(flavour):
    benchmark = make_benchmark(flavour, per_class=12)
    strategy = make_strategy(readout_metrics(seen=True))
    for experience in benchmark.train_stream[:2]:
        strategy.train(experience, eval_streams=[])
    results = strategy.eval(benchmark.test_stream)
    for kind, name in NAMES.items():
        by_hand = [accuracy_by_hand(strategy, benchmark.train_stream[:2], [e], kind) for e in benchmark.test_stream]
        start = f"{name}_on_seen_Acc"
        assert [results[f"{start}_Exp/eval_phase/test_stream/Exp{i:03d}"] for i in range(5)] == by_hand
        assert by_hand[2:] == [0.0, 0.0, 0.0]  # classes that were never seen
        assert results[f"{start}_Stream/eval_phase/test_stream"] == pytest.approx(sum(by_hand) / 5)
        assert results[f"{start}_Seen/eval_phase/test_stream"] == pytest.approx(sum(by_hand[:2]) / 2)


def test_over_time_it_is_an_accuracy_matrix():
    benchmark = make_benchmark("A", per_class=12)
    metrics = with_forgetting(readout_metrics(kinds=("nearest_mean",)))
    strategy = make_strategy(metrics)
    rows = []
    for t, experience in enumerate(benchmark.train_stream[:3]):
        strategy.train(experience, eval_streams=[])
        strategy.eval(benchmark.test_stream)
        seen = benchmark.train_stream[: t + 1]
        rows.append([accuracy_by_hand(strategy, seen, [e], "nearest_mean") for e in benchmark.test_stream])
    assert metrics[0].matrix("NearestMean_on_seen_Acc").tolist() == rows


def first_two(strategy):
    return strategy.test_benchmark.train_stream[:2]


@pytest.mark.parametrize(
    ("make", "name", "which"),
    [
        (lambda b: b.train_stream, "train_exp0-4", (0, 1, 2, 3, 4)),
        (lambda b: b.train_stream[1:3], "train_exp1-2", (1, 2)),
        (lambda b: b.train_stream[3], "train_exp3", (3,)),
        (lambda b: [b.train_stream[4], b.train_stream[0]], "train_exp4+0", (4, 0)),
        (lambda b: (e for e in b.train_stream), "train_exp0-4", (0, 1, 2, 3, 4)),
        (lambda b: b.train_stream[2].dataset, "data", (2,)),
        (lambda b: first_two, "first_two", (0, 1)),
    ],
)
def test_data_of_every_kind_and_their_names(make, name, which):
    benchmark = make_benchmark("A", per_class=8)
    strategy = make_strategy(readout_metrics(make(benchmark), kinds=("nearest_mean",), experience=False))
    strategy.test_benchmark = benchmark
    results = strategy.eval(benchmark.test_stream)
    expected = accuracy_by_hand(strategy, [benchmark.train_stream[i] for i in which], benchmark.test_stream,
                                "nearest_mean")  # fmt: skip
    assert results == {f"NearestMean_on_{name}_Acc_Stream/eval_phase/test_stream": pytest.approx(expected)}


def test_a_torch_dataset_and_a_name():
    train, _ = digits(8)
    benchmark = make_benchmark("A", per_class=8)
    results = {}
    for data in (Images(*train), Subset(Images(*train), list(range(80)))):
        strategy = make_strategy(readout_metrics(data, name="digits", kinds=("knn",), experience=False, k=3))
        strategy.model.load_state_dict(results.setdefault("model", strategy.model.state_dict()))
        value = strategy.eval(benchmark.test_stream)["3NN_on_digits_Acc_Stream/eval_phase/test_stream"]
        assert value == results.setdefault("value", value)
    assert value == pytest.approx(
        (fit_readout(*embedded(strategy, *benchmark.train_stream), "knn", k=3)(
            embedded(strategy, *benchmark.test_stream)[0]) == embedded(strategy, *benchmark.test_stream)[1]
        ).double().mean().item()
    )  # fmt: skip


def test_a_memory_as_data():
    benchmark = make_benchmark("A", per_class=12)
    replay = ReplayPlugin(40)
    metrics = readout_metrics(lambda s: replay.storage_policy.buffer, name="memory", kinds=("linear",), seen=True)
    strategy = make_strategy(metrics, plugins=[replay])
    assert strategy.eval(benchmark.test_stream) == {}  # the memory is empty
    for experience in benchmark.train_stream[:2]:
        strategy.train(experience, eval_streams=[])
    features, y = embedded(strategy, *benchmark.test_stream[:2])
    memory = replay.storage_policy.buffer.eval()
    with torch.no_grad():
        stored = strategy.model[0](torch.stack([memory[i][0] for i in range(40)]))
    fitted = fit_readout(stored, torch.tensor([memory[i][1] for i in range(40)]))
    results = strategy.eval(benchmark.test_stream)
    expected = (fitted(features) == y).double().mean().item()
    assert results["LinearProbe_on_memory_Acc_Seen/eval_phase/test_stream"] == pytest.approx(expected)


def test_evaluation_transforms_are_used():
    def never(x):
        raise AssertionError("a training transform was run")

    benchmark = make_benchmark("A", per_class=8)
    group = TransformGroups({"train": (never, None), "eval": (None, None)})
    data = make_avalanche_dataset(benchmark.train_stream[0].dataset, transform_groups=group)
    strategy = make_strategy(readout_metrics(data, name="data", kinds=("knn",)))
    assert strategy.eval(benchmark.test_stream)


def test_data_seen_by_joint_training_and_online_streams():
    benchmark = make_benchmark("A", per_class=8)
    joint = make_strategy(readout_metrics(kinds=("knn",), experience=False), kind=JointTraining)
    joint.train(benchmark.train_stream, eval_streams=[])
    joint.evaluator.reset_last_metrics()
    value = joint.eval(benchmark.test_stream)["5NN_on_seen_Acc_Stream/eval_phase/test_stream"]
    assert value == pytest.approx(accuracy_by_hand(joint, benchmark.train_stream, benchmark.test_stream, "knn"))
    metrics = readout_metrics(kinds=("knn",), experience=False, seen=True)
    online = make_strategy(metrics)
    pieces = list(split_online_stream(benchmark.train_stream, experience_size=4, seed=0))
    for piece in pieces[:8]:  # two experiences of 16 images
        online.train(piece, eval_streams=[])
    value = online.eval(benchmark.test_stream)["5NN_on_seen_Acc_Seen/eval_phase/test_stream"]
    seen = benchmark.train_stream[:2], benchmark.test_stream[:2]
    assert value == pytest.approx(accuracy_by_hand(online, *seen, "knn"), abs=1e-9)
    assert metrics[0].ledger.groups == [sorted(ORDER[:2]), sorted(ORDER[2:4])]


@pytest.mark.parametrize("eval_every", [-1, 0, 1])
def test_training_is_not_touched(eval_every):
    """Weights, batch statistics and draws with the metric are those without it."""
    states = []
    for metrics in ([], readout_metrics()):
        torch.manual_seed(0)
        model = nn.Sequential(make_encoder(), nn.Dropout(0.2), nn.Linear(16, 10))
        benchmark = make_benchmark("A", per_class=8)
        strategy = make_strategy(metrics, model=model, eval_every=eval_every)
        for experience in benchmark.train_stream[:2]:
            strategy.train(experience, eval_streams=[benchmark.test_stream])
        assert model.training
        states.append((model.state_dict(), torch.rand(3)))
    for name, value in states[0][0].items():
        assert torch.equal(states[1][0][name], value), name
    assert torch.equal(states[0][1], states[1][1])


def test_modes_of_single_layers_stay():
    benchmark = make_benchmark("A", per_class=8)
    source = Source(benchmark.train_stream)
    strategy = make_strategy([])
    strategy.train(benchmark.train_stream[0], eval_streams=[])
    strategy.model[0][1].eval()
    modes = [module.training for module in strategy.model.modules()]
    assert any(modes)
    assert not all(modes)
    features, y = source.embed(strategy)
    assert [module.training for module in strategy.model.modules()] == modes
    assert features.shape == (80, 16)
    assert y.tolist() == [c for i in range(5) for e in [benchmark.train_stream[i]] for c in e.dataset.targets]
    assert not [h for m in strategy.model.modules() for h in (*m._forward_hooks, *m._forward_pre_hooks)]


def test_nothing_is_held_after_evaluation():
    benchmark = make_benchmark("A", per_class=8)
    metric = readout_metrics()[0]
    strategy = make_strategy([metric])
    strategy.train(benchmark.train_stream[0], eval_streams=[])
    strategy.eval(benchmark.test_stream)
    assert metric.sourced is None
    assert metric._rows == metric._predict == []
    assert metric.result() is None
    assert str(metric) == "LinearProbe_on_seen_Acc+NearestMean_on_seen_Acc+5NN_on_seen_Acc"


def test_a_new_strategy_has_seen_nothing():
    benchmark = make_benchmark("A", per_class=8)
    metrics = readout_metrics(kinds=("knn",), experience=False)
    first = make_strategy(metrics)
    first.train(benchmark.train_stream[:2], eval_streams=[])
    second = make_strategy(metrics)
    second.train(benchmark.train_stream[2], eval_streams=[])
    value = second.eval(benchmark.test_stream)["5NN_on_seen_Acc_Stream/eval_phase/test_stream"]
    assert value == pytest.approx(
        accuracy_by_hand(second, benchmark.train_stream[2:3], benchmark.test_stream, "knn"), abs=1e-9
    )


def test_a_layer_by_its_name():
    benchmark = make_benchmark("A", per_class=8)
    model = nn.Sequential(make_encoder(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 10))
    data = benchmark.train_stream
    metrics = readout_metrics(data, kinds=("nearest_mean",), experience=False, layer="0")
    strategy = make_strategy(metrics, model=model)
    value = strategy.eval(benchmark.test_stream)["NearestMean_on_train_exp0-4_Acc_Stream/eval_phase/test_stream"]
    assert value == pytest.approx(accuracy_by_hand(strategy, data, benchmark.test_stream, "nearest_mean"))
