"""A strategy that is saved, built again, restored and trained on ends bit for bit where an undisturbed one ends."""

import random
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from avalanche.benchmarks import benchmark_from_datasets, nc_benchmark, split_online_stream
from avalanche.benchmarks.utils import _make_taskaware_classification_dataset as task_aware
from avalanche.evaluation.metrics import (
    accuracy_metrics,
    class_accuracy_metrics,
    confusion_matrix_metrics,
    loss_metrics,
)
from avalanche.models import IncrementalClassifier, MTSimpleMLP, SCRModel
from avalanche.models.cosine_layer import CosineIncrementalClassifier
from avalanche.training import DER, ER_ACE, EWC, Cumulative, GDumb, LwF, Naive, Replay, SynapticIntelligence
from avalanche.training.determinism.rng_manager import RNGManager
from avalanche.training.plugins import (
    EvaluationPlugin,
    EWCPlugin,
    LRSchedulerPlugin,
    LwFPlugin,
    ReplayPlugin,
)
from avalanche.training.storage_policy import (
    ClassBalancedBuffer,
    ExperienceBalancedBuffer,
    HerdingSelectionStrategy,
    ParametricBuffer,
    RandomExemplarsSelectionStrategy,
    ReservoirSamplingBuffer,
)
from avalanche.training.supervised import MIR, SCR
from helpers.resuming import (
    METHODS,
    build,
    classifier,
    common,
    differing,
    ending,
    evaluator,
    go_on,
    interrupt,
    same,
    sgd,
)
from helpers.streams import Images, digits, make_benchmark, make_encoder
from torch import nn

from avalanche_contrastive import Co2LPlugin, ExperienceSchedule, SSILPlugin, checkpoint
from avalanche_contrastive.metrics import drift_metrics, readout_metrics, retrieval_metrics, with_forgetting

ROOT = Path(__file__).parents[2]
OPTIMIZERS = {
    "SGD": sgd,
    "Adam": lambda model: torch.optim.Adam(model.parameters(), lr=0.01),
    "two groups": lambda model: torch.optim.AdamW(
        [{"params": list(model.parameters())[:2], "lr": 0.02}, {"params": list(model.parameters())[2:]}], lr=0.01
    ),
}


def small(flavour="A", **named):
    return lambda: make_benchmark(flavour, **{"per_class": 6, "experiences": 5, **named})


# ---- the three methods


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("optimizer", ["SGD", "Adam"])
def test_the_methods_resume_bit_for_bit(name, optimizer, tmp_path):
    run = lambda: build(name, optimizer=OPTIMIZERS[optimizer])  # noqa: E731
    undisturbed, resumed, strategy = interrupt(run, small(), tmp_path / "a.pt")
    assert differing(undisturbed, resumed) == []
    assert len(undisturbed["optimizer"]) > 0
    assert len(strategy.method.ledger) == 5


@pytest.mark.parametrize("flavour", ["B", "C"])
def test_any_flavour_of_stream(flavour, tmp_path):
    for name in ("Co2L", "SSIL"):
        undisturbed, resumed, _ = interrupt(lambda name=name: build(name), small(flavour), tmp_path / "a.pt", after=4)
        assert differing(undisturbed, resumed) == []


@pytest.mark.parametrize("at", [1, 4])
def test_early_and_late(at, tmp_path):
    undisturbed, resumed, _ = interrupt(lambda: build("SSIL"), small(), tmp_path / "a.pt", at=at)
    assert differing(undisturbed, resumed) == []


@pytest.mark.parametrize("eval_every", [0, 1])
def test_periodic_evaluation_and_a_schedule(eval_every, tmp_path):
    def run():
        schedule = ExperienceSchedule("cosine", epochs=(3, 2), warmup_epochs=1, warmup_from=0.001, by_experience=True)
        return build("SSIL", plugins=[schedule], eval_every=eval_every)

    undisturbed, resumed, strategy = interrupt(run, small(), tmp_path / "a.pt", after=4)
    assert differing(undisturbed, resumed) == []
    assert strategy.train_epochs == 1
    assert strategy.optimizer.param_groups[0]["lr"] == 0.05


def test_two_groups_of_an_optimiser_keep_their_rates(tmp_path):
    run = lambda: build("CSD", model=classifier(nn.Linear(8, 10)), optimizer=OPTIMIZERS["two groups"])  # noqa: E731
    undisturbed, resumed, strategy = interrupt(run, small(), tmp_path / "a.pt", after=3)
    assert differing(undisturbed, resumed) == []
    assert [group["lr"] for group in strategy.optimizer.param_groups] == [0.02, 0.01]
    assert [len(group["params"]) for group in strategy.optimizer.param_groups] == [2, 4]


def test_interrupted_after_every_experience(tmp_path):
    """Each process trains on one experience."""
    path = tmp_path / "a.pt"
    RNGManager.set_random_seeds(3)
    benchmark, strategy = small()(), build("Co2L")
    go_on(strategy, benchmark)
    undisturbed = ending(strategy)
    for number in range(5):
        RNGManager.set_random_seeds(3)
        benchmark, strategy = small()(), build("Co2L")
        assert number == 0 or checkpoint.restore(strategy, path) == number
        go_on(strategy, benchmark, number, number + 1, path)
    assert differing(undisturbed, ending(strategy)) == []


def test_the_plugins_under_naive_beside_others(tmp_path):
    def run():
        model = classifier(nn.Linear(8, 10))
        plugins = [EWCPlugin(0.1), SSILPlugin(mem_size=12, batch_size_mem=4), ReplayPlugin(10)]
        return Naive(model=model, optimizer=sgd(model), plugins=plugins, **common())

    undisturbed, resumed, _ = interrupt(run, small(), tmp_path / "a.pt", after=4)
    assert differing(undisturbed, resumed) == []
    assert len(undisturbed["memory"]) == 2


# ---- memories

POLICIES = {
    "reservoir": lambda model: ReservoirSamplingBuffer(12),
    "class": lambda model: ClassBalancedBuffer(12),
    "class, fewer than classes": lambda model: ClassBalancedBuffer(5),
    "class, fixed": lambda model: ClassBalancedBuffer(20, adaptive_size=False, total_num_classes=10),
    "experience": lambda model: ExperienceBalancedBuffer(12),
    "parametric": lambda model: ParametricBuffer(12, groupby="class", selection_strategy=None),
    "parametric, no groups": lambda model: ParametricBuffer(12, None, RandomExemplarsSelectionStrategy()),
    "herding": lambda model: ParametricBuffer(12, "class", HerdingSelectionStrategy(model, "0.4")),
    "nothing": lambda model: ReservoirSamplingBuffer(0),
    "everything": lambda model: ReservoirSamplingBuffer(1000),
}


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("ours", [True, False], ids=["SSIL", "Replay"])
def test_any_storage_policy(policy, ours, tmp_path):
    if policy == "nothing" and not ours:
        pytest.skip("Avalanche's ReplayPlugin needs a memory")

    def run():
        model = classifier()
        storage = POLICIES[policy](model)
        if ours:
            return build("SSIL", model=model, mem_size=storage.max_size, storage_policy=storage)
        replay = ReplayPlugin(storage.max_size, storage_policy=storage, batch_size=4)
        return Naive(model=model, optimizer=sgd(model), plugins=[replay], **common())

    undisturbed, resumed, _ = interrupt(run, small(experiences=5), tmp_path / "a.pt", after=4)
    assert differing(undisturbed, resumed) == []


def test_the_memory_is_looked_up_when_it_is_needed(tmp_path):
    benchmark, strategy = small()(), build("SSIL")
    go_on(strategy, benchmark, 0, 2, tmp_path / "a.pt")
    stored = [sample[0] for sample in strategy.method.storage_policy.buffer]
    restored = build("SSIL")
    checkpoint.restore(restored, tmp_path / "a.pt")
    with pytest.raises(RuntimeError, match=r"Give the stream at once: restore\(strategy, path, stream="):
        _ = restored.method.storage_policy.buffer[0]
    restored.eval(benchmark.test_stream)  # does not need it
    restored = build("SSIL")
    checkpoint.restore(restored, tmp_path / "a.pt", stream=small()().train_stream)
    assert same(stored, [sample[0] for sample in restored.method.storage_policy.buffer])
    group = next(iter(restored.method.storage_policy.buffer_groups.values()))
    assert type(group.buffer) is type(benchmark.train_stream[0].dataset)


def test_saved_again_it_is_the_same_file(tmp_path):
    """What is restored is all that was saved: saving it once more gives the same content."""
    one, two, three = (tmp_path / f"{i}.pt" for i in range(3))
    for name in METHODS:
        go_on(build(name), small()(), 0, 3, one)
        with_stream, without = build(name), build(name)
        checkpoint.restore(with_stream, one, stream=small()().train_stream)
        checkpoint.save(with_stream, two)
        checkpoint.restore(without, one)
        checkpoint.save(without, three)
        saved = [torch.load(path, weights_only=True) for path in (one, two, three)]
        assert same(saved[0], saved[1])
        assert same(saved[0], saved[2])


def test_images_that_differ_in_their_transform_only(tmp_path):
    """Domains over the same data set: each stored index finds the transform that it was stored with."""

    def stream():
        train, test = (Images(*part) for part in digits(3))
        turned = [task_aware(train, transform=lambda x, k=k: torch.rot90(x, k, (1, 2))) for k in range(4)]
        return benchmark_from_datasets(train=turned, test=[task_aware(test)])

    def run():
        model = classifier(nn.Linear(8, 10))
        return Naive(model=model, optimizer=sgd(model), plugins=[ReplayPlugin(16, batch_size=4)], **common())

    undisturbed, resumed, _ = interrupt(run, stream, tmp_path / "a.pt", after=4)
    assert differing(undisturbed, resumed) == []


def test_a_part_of_the_stream_will_do_to_go_on_with(tmp_path):
    for flavour in "AC":
        benchmark = small(flavour)()
        go_on(build("SSIL"), benchmark, 0, 2, tmp_path / "a.pt")
        restored, benchmark = build("SSIL"), small(flavour)()
        done = checkpoint.restore(restored, tmp_path / "a.pt")
        for experience in benchmark.train_stream[done:]:
            restored.train(experience)
        assert len(restored.method.ledger) == 5


def test_an_online_stream(tmp_path):
    def stream():
        benchmark = make_benchmark("A", per_class=6, experiences=2)
        benchmark.train_stream = split_online_stream(benchmark.train_stream, 10, access_task_boundaries=True, seed=0)
        return benchmark

    def run():
        model = classifier(nn.Linear(8, 10))
        replay = ReplayPlugin(12, storage_policy=ReservoirSamplingBuffer(12), batch_size=4)
        return Naive(model=model, optimizer=sgd(model), plugins=[replay], **common())

    undisturbed, resumed, _ = interrupt(run, stream, tmp_path / "a.pt", at=4)
    assert differing(undisturbed, resumed) == []


# ---- heads, and Avalanche's strategies


@pytest.mark.parametrize("head", [IncrementalClassifier, CosineIncrementalClassifier])
def test_heads_that_grow(head, tmp_path):
    run = lambda: build("CSD", model=classifier(head(8)))  # noqa: E731
    undisturbed, resumed, strategy = interrupt(run, small(order=range(10)), tmp_path / "a.pt")
    assert differing(undisturbed, resumed) == []
    assert strategy.model(torch.zeros(1, 1, 8, 8)).shape == (1, 10)


def test_a_head_per_task(tmp_path):
    def run():
        model = MTSimpleMLP(input_size=64, hidden_size=8)
        return Naive(model=model, optimizer=OPTIMIZERS["Adam"](model), **common())

    def stream():
        train, test = (Images(*part) for part in digits(6))
        return nc_benchmark(
            train, test, n_experiences=5, task_labels=True, class_ids_from_zero_in_each_exp=True, seed=0
        )

    undisturbed, resumed, strategy = interrupt(run, stream, tmp_path / "a.pt")
    assert differing(undisturbed, resumed) == []
    assert set(strategy.model.classifier.classifiers) == {"0", "1", "2", "3", "4"}
    assert strategy.model.classifier.known_train_tasks_labels == {0, 1, 2, 3, 4}


AVALANCHE = {
    "naive": lambda model, words: Naive(model=model, **words),
    "replay": lambda model, words: Replay(model=model, criterion=nn.CrossEntropyLoss(), mem_size=12, **words),
    "lwf": lambda model, words: LwF(model=model, alpha=1.0, temperature=2.0, **words),
    "ewc": lambda model, words: EWC(model=model, ewc_lambda=0.1, mode="online", decay_factor=0.5, **words),
    "si": lambda model, words: SynapticIntelligence(model=model, si_lambda=0.1, **words),
    "cumulative": lambda model, words: Cumulative(model=model, **words),
    "gdumb": lambda model, words: GDumb(model=model, mem_size=12, **words),
    "er_ace": lambda model, words: ER_ACE(model=model, mem_size=12, batch_size_mem=4, **words),
    "der": lambda model, words: DER(model=model, mem_size=12, batch_size_mem=4, **words),
    "mir": lambda model, words: MIR(model=model, mem_size=12, batch_size_mem=2, subsample=6, **words),
    "lr scheduler": lambda model, words: Naive(
        model=model,
        plugins=[LwFPlugin(), LRSchedulerPlugin(torch.optim.lr_scheduler.StepLR(words["optimizer"], 2, 0.5))],
        **words,
    ),
}


@pytest.mark.parametrize("name", AVALANCHE)
def test_avalanches_own_strategies(name, tmp_path):
    def run():
        fixed = name in ("der", "ewc", "lwf", "lr scheduler", "mir", "si")
        model = classifier(nn.Linear(8, 10) if fixed else None)
        words = common(optimizer=sgd(model), train_epochs=2)
        if name not in ("naive", "der", "er_ace", "lr scheduler"):
            words["criterion"] = nn.CrossEntropyLoss()
        if name == "replay":
            del words["criterion"]
        return AVALANCHE[name](model, words)

    undisturbed, resumed, _ = interrupt(run, small(), tmp_path / "a.pt")
    assert differing(undisturbed, resumed) == []


def test_class_means_that_are_no_parameters(tmp_path):
    """SCR's nearest-mean classifier keeps them in a dict and in a buffer that comes when it is first evaluated."""

    def run():
        model = SCRModel(make_encoder(8), nn.Linear(8, 4))
        words = common(evaluator=EvaluationPlugin(accuracy_metrics(stream=True), loggers=[]))
        return SCR(
            model=model, optimizer=sgd(model), augmentations=nn.Identity(), mem_size=20, batch_size_mem=4, **words
        )

    undisturbed, resumed, strategy = interrupt(run, small(), tmp_path / "a.pt")
    assert differing(undisturbed, resumed) == []
    assert set(strategy.model.eval_classifier.class_means_dict) == set(range(10))


def test_the_groups_of_a_memory_are_gone_through_in_the_same_order(tmp_path):
    """A memory deals out its room in the order of a set of classes, which follows from how the set was filled."""
    draw = random.Random(0)
    classes, groups = set(), {}
    for _ in range(12):
        new = [draw.randrange(1000) for _ in range(draw.randint(1, 9))]
        groups |= {c: ReservoirSamplingBuffer(1) for c in new if c not in groups}
        classes = classes.union(new)
    assert list(set(list(classes))) != list(classes)  # noqa: C414  (a hard case: filled otherwise, the order is another)

    def build_with(storage):
        return build("SSIL", storage_policy=storage)

    storage = ClassBalancedBuffer(12)
    strategy = build_with(storage)
    storage.seen_classes, storage.buffer_groups = set(groups), groups
    checkpoint.save(strategy, tmp_path / "a.pt")
    other = ClassBalancedBuffer(12)
    checkpoint.restore(build_with(other), tmp_path / "a.pt")
    assert list(other.seen_classes) == list(storage.seen_classes)
    assert list(other.buffer_groups) == list(storage.buffer_groups)


# ---- metrics


def test_metrics_go_on(tmp_path):
    def run():
        several = (
            retrieval_metrics(ks=(1,)),
            with_forgetting(retrieval_metrics(ks=(1,), stream=False)),
            readout_metrics(epochs=2),
            drift_metrics(),
            loss_metrics(minibatch=True, stream=True),
            class_accuracy_metrics(stream=True),
            confusion_matrix_metrics(num_classes=10, save_image=False, stream=True),
        )
        return build("CSD", evaluator=evaluator(*several), train_epochs=1)

    undisturbed, resumed, _ = interrupt(run, small(), tmp_path / "a.pt", after=4)
    assert differing(undisturbed, resumed) == []
    assert len(undisturbed["metrics"]) > 20


# ---- a new process, and what the file is


def test_a_real_new_process(tmp_path):
    program = f"""
        import sys
        sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
        import torch
        from helpers.streams import make_benchmark
        from helpers.resuming import build, checkpoint, ending, go_on
        torch.set_num_threads(1)
        strategy = build("Co2L")
        done = checkpoint.restore(strategy, {str(tmp_path / "a.pt")!r})
        go_on(strategy, make_benchmark(per_class=6), done)
        end = ending(strategy)
        torch.save({{key: end[key] for key in ("model", "optimizer", "memory", "draws", "clock")}}, sys.argv[1])
    """
    benchmark, strategy = small()(), build("Co2L")
    go_on(strategy, benchmark, 0, 2, tmp_path / "a.pt")
    go_on(strategy, benchmark, 2)
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(program), str(tmp_path / "end.pt")]
    subprocess.run(command, check=True, timeout=120)
    end = torch.load(tmp_path / "end.pt", weights_only=True)
    undisturbed = ending(strategy)
    assert all(same(undisturbed[key], end[key]) for key in end)


def test_a_file_has_no_images_and_no_code(tmp_path):
    """30 MB of images leave a file of the size of two models, and torch reads it as plain data."""
    x, y = torch.rand(1000, 1, 88, 88), torch.arange(10).repeat(100)

    def stream():
        from avalanche.benchmarks import class_incremental_benchmark

        return class_incremental_benchmark({"train": Images(x, y), "test": Images(x[:10], y[:10])}, num_experiences=2)

    strategy = build("SSIL", mem_size=500, train_mb_size=64)
    strategy.train(stream().train_stream[0])
    checkpoint.save(strategy, tmp_path / "a.pt")
    assert x.numel() * 4 > 30e6
    assert (tmp_path / "a.pt").stat().st_size < 80_000
    content = torch.load(tmp_path / "a.pt", weights_only=True)
    assert content["done"] == 1
    sizes = [tensor.numel() for tensor in tensors(content)]
    assert max(sizes) <= 5056  # the state of a random generator


def tensors(value):
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        yield from tensors(list(value.values()))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors(item)


def test_something_of_ones_own_beside_it(tmp_path):
    strategy = build("CSD")
    extra = {"seed": 3, "figures": [0.1, float("inf")], "tensor": torch.arange(3), "names": ("a", None)}
    checkpoint.save(strategy, tmp_path / "new folder" / "a.pt", extra=extra)
    assert same(checkpoint.extra_of(tmp_path / "new folder" / "a.pt"), extra)
    with pytest.raises(checkpoint.CheckpointError, match=r"extra\['model'\] must be made of numbers"):
        checkpoint.save(strategy, tmp_path / "a.pt", extra={"model": strategy.model})


def test_before_the_first_experience(tmp_path):
    undisturbed, resumed, _ = interrupt(lambda: build("SSIL"), small(), tmp_path / "a.pt", at=0, after=2)
    assert differing(undisturbed, resumed) == []


def test_a_view_of_domains_and_labels(tmp_path):
    """Co2L with task labels per domain: the labels of the contrast are of the state."""

    def run():
        return build("Co2L", domains=True, batch_size_mem=4)

    def stream():
        from avalanche.benchmarks import ni_benchmark

        train, test = (Images(*part) for part in digits(6))
        return ni_benchmark(train, test, n_experiences=3, task_labels=True, seed=0)

    undisturbed, resumed, strategy = interrupt(run, stream, tmp_path / "a.pt", at=2)
    assert differing(undisturbed, resumed) == []
    assert len(strategy.method._seen_labels) > 20
    assert isinstance(strategy.method, Co2LPlugin)
