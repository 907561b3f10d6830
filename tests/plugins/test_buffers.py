"""Co2L and SS-IL with every storage policy of Avalanche, from no memory to more than all: what each batch holds."""

import inspect
from collections import Counter
from functools import partial

import pytest
import torch
from avalanche.models import FeatureExtractorBackbone
from avalanche.training import Naive, storage_policy
from avalanche.training.plugins import ReplayPlugin, SupervisedPlugin
from avalanche.training.storage_policy import (
    BalancedExemplarsBuffer,
    ClassBalancedBuffer,
    ClosestToCenterSelectionStrategy,
    ExemplarsBuffer,
    ExperienceBalancedBuffer,
    HerdingSelectionStrategy,
    ParametricBuffer,
    RandomExemplarsSelectionStrategy,
    ReservoirSamplingBuffer,
)
from helpers.partners import COLUMNS, make_method, make_model, weights
from helpers.streams import make_benchmark
from torch import nn

from avalanche_contrastive.teacher import frozen_copy

METHODS = ("co2l", "ssil")
BATCH, ROWS = 6, 4  # current and replayed rows of a step of SS-IL
EACH = 12  # images in an experience, six of each of its two classes

SELECTIONS = {
    "random": lambda model, layer: RandomExemplarsSelectionStrategy(),
    "herding": HerdingSelectionStrategy,
    "closest to the centre": ClosestToCenterSelectionStrategy,
}


def parametric(groupby, selection, size, model, layer):
    return ParametricBuffer(size, groupby, SELECTIONS[selection](model, layer))


POLICIES = {
    "ReservoirSamplingBuffer": lambda size, *_: ReservoirSamplingBuffer(size),
    "ExperienceBalancedBuffer": lambda size, *_: ExperienceBalancedBuffer(size),
    "ExperienceBalancedBuffer, fixed": lambda size, *_: ExperienceBalancedBuffer(size, False, 3),
    "ClassBalancedBuffer": lambda size, *_: ClassBalancedBuffer(size),
    "ClassBalancedBuffer, fixed": lambda size, *_: ClassBalancedBuffer(size, False, 10),
    **{
        f"ParametricBuffer by {groupby or 'nothing'}, {selection}": partial(parametric, groupby, selection)
        for groupby in (None, "class", "experience")
        for selection in SELECTIONS
    },
}
SIZES = (0, 1, 3, 20, 1000)  # none, one, fewer than the classes, some, more than all 36 images


def stored(name, size):
    """How many of 36 images of six classes in three experiences a policy keeps."""
    if "fixed" in name:
        groups, each = (3, 12) if name.startswith("Experience") else (6, 6)
        return groups * min(each, size // (3 if name.startswith("Experience") else 10))
    return min(size, 36)


def too_small(name, size):
    """Whether Avalanche's selection by features meets a group without images, and fails."""
    groups = 6 if "by class" in name else 3 if "by experience" in name else 1
    return 0 < size < groups and ("herding" in name or "closest" in name)


class Rows(SupervisedPlugin):
    """First in the list: which images each batch holds, [experience][epoch][step], and what is in the memory.

    Args:
        benchmark: whose training images all differ.
        policy: the storage policy.
    """

    def __init__(self, benchmark, policy):
        super().__init__()
        images = [x for e in benchmark.train_stream for x in contents(e.dataset)]
        self.number = {image: i for i, image in enumerate(images)}
        assert len(self.number) == len(images)
        self.label = [int(y) for e in benchmark.train_stream for y in e.dataset.targets]
        self.policy = policy
        self.batches, self.memories, self.parts, self.modes = [], [], set(), set()

    def before_training_exp(self, strategy, **kwargs):
        self.batches.append([])
        self.memories.append([self.number[x] for x in contents(strategy.plugins[0].policy.buffer)])

    def before_training_epoch(self, strategy, **kwargs):
        self.batches[-1].append([])

    def before_forward(self, strategy, **kwargs):
        assert all(len(part) == len(strategy.mb_y) for part in strategy.mbatch)
        self.batches[-1][-1].append([self.number[x.numpy().tobytes()] for x in strategy.mb_x])
        self.parts.add(len(strategy.mbatch))
        self.modes.add(strategy.model.training)


def contents(dataset):
    """The images of a dataset, as bytes."""
    return [dataset[i][0].numpy().tobytes() for i in range(len(dataset))]


def wired(method, name, size, *, flavour="A", epochs=2, **options):
    """A strategy with a storage policy, the stream and what looks on."""
    benchmark = make_benchmark(flavour, per_class=EACH // 2)
    model = make_model(method)
    policy = POLICIES[name](size, model, "encoder" if method == "co2l" else "body")
    own = {"batch_size_mem": ROWS} if method == "ssil" else {"readout_epochs": 2}
    plugin = make_method(method, mem_size=size, storage_policy=policy, **{**own, **options})
    rows = Rows(benchmark, policy)
    return naive(model, [rows, plugin], epochs), benchmark, rows, plugin


def naive(model, plugins, epochs=1):
    return Naive(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.05),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=BATCH,
        train_epochs=epochs,
        eval_mb_size=50,
        plugins=plugins,
        evaluator=None,
    )


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", POLICIES)
def test_every_batch_holds_the_images_that_it_should(name, method, size, record_property):
    small = any(too_small(name, s) for s in SIZES)
    cell = "yes; a memory smaller than its groups is refused" if small else "yes"
    record_property("matrix", {"table": "buffers", "row": name, "column": COLUMNS[method], "cell": cell})
    strategy, benchmark, rows, plugin = wired(method, name, size)
    if too_small(name, size):
        with pytest.raises(ValueError, match=f"cannot update a group without exemplars: {size} for . groups or more"):
            strategy.train(benchmark.train_stream[:3])
        return
    strategy.train(benchmark.train_stream[:3])
    assert len(plugin.storage_policy.buffer) == stored(name, size)
    assert rows.modes == {True}
    assert weights(strategy.model).isfinite().all()
    for experience, (epochs, memory) in enumerate(zip(rows.batches, rows.memories, strict=True)):
        current = range(EACH * experience, EACH * (experience + 1))
        assert set(memory) <= set(range(EACH * experience))
        assert len(memory) == len(set(memory))
        for batches in epochs:
            HOLDS[method](batches, list(current), memory)


def mixed(batches, current, memory):
    """Co2L: each image and each exemplar once per epoch, in any order."""
    assert sorted(i for batch in batches for i in batch) == sorted(current + memory)
    assert len(batches) == -(-(len(current) + len(memory)) // BATCH)


def replayed(batches, current, memory):
    """SS-IL: each image once per epoch, and in every batch four exemplars, each as often as any other, or once more."""
    assert sorted(i for batch in batches for i in batch[:BATCH]) == current
    drawn = Counter(i for batch in batches for i in batch[BATCH:])
    assert drawn.total() == (ROWS * len(batches) if memory else 0)
    assert set(drawn) <= set(memory)
    times = [drawn[i] for i in memory] or [0]
    assert max(times) - min(times) <= 1


HOLDS = {"co2l": mixed, "ssil": replayed}


def test_no_storage_policy_of_avalanche_is_missing():
    shipped = {
        name
        for name, value in vars(storage_policy).items()
        if inspect.isclass(value) and issubclass(value, ExemplarsBuffer) and not name.startswith("_")
    }
    assert shipped - {"ExemplarsBuffer", "BalancedExemplarsBuffer"} == {
        n.partition(",")[0].split()[0] for n in POLICIES
    }


# ---- Avalanche's traps


GROUPED = [name for name in POLICIES if "Class" in name or "by class" in name]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", GROUPED)
def test_policies_that_add_task_labels_leave_pairs_pairs(name, method):
    """They do so to what they store: on a stream of pairs, Avalanche's replay fails to collate the batch."""
    strategy, benchmark, rows, plugin = wired(method, name, 20, flavour="B", epochs=1)
    strategy.train(benchmark.train_stream[:3])
    assert len(plugin.storage_policy.buffer[0]) == 3
    assert rows.parts == {2}
    assert all(rows.memories[1:])
    for experience, (batches,) in enumerate(rows.batches):
        HOLDS[method](batches, list(range(EACH * experience, EACH * (experience + 1))), rows.memories[experience])


def test_avalanches_own_replay_fails_on_them():
    model = make_model("ssil")
    strategy = naive(model, [ReplayPlugin(20, storage_policy=ClassBalancedBuffer(20))])
    with pytest.raises(RuntimeError, match="equal size"):
        strategy.train(make_benchmark("B", per_class=6).train_stream[:2])


@pytest.mark.parametrize("epochs", [1, 3])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [0, 20])
def test_the_buffer_is_read_once_per_experience(method, epochs, size, monkeypatch):
    reads = []
    shipped = BalancedExemplarsBuffer.buffer_datasets

    def counting(policy):
        reads.append(policy)
        return shipped.fget(policy)

    strategy, benchmark, rows, _ = wired(method, "ClassBalancedBuffer", size, epochs=epochs)
    strategy.plugins.remove(rows)  # reads it, too
    monkeypatch.setattr(BalancedExemplarsBuffer, "buffer_datasets", property(counting))
    for experience in benchmark.train_stream[:3]:
        reads.clear()
        strategy.train(experience)
        assert len(reads) == 1
        strategy.eval(benchmark.test_stream[:3])
        assert len(reads) == 1


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", [name for name in POLICIES if "herding" in name or "closest" in name])
def test_selection_by_features_leaves_nothing_behind(name, method):
    """Avalanche's leaves the model in evaluation mode; its hook is on the model once, and not on our teacher."""
    strategy, benchmark, _, plugin = wired(method, name, 20, epochs=1)
    hooks = len([m for m in strategy.model.modules() if m._forward_hooks])
    modes = []

    class Modes(SupervisedPlugin):
        def after_training_exp(self, strategy, **kwargs):
            modes.append(all(m.training for m in strategy.model.modules()))

    strategy.plugins.append(Modes())
    strategy.train(benchmark.train_stream[:3])
    assert modes == [True] * 3
    assert hooks == 1
    assert len([m for m in strategy.model.modules() if m._forward_hooks or m._forward_pre_hooks]) == 1
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in plugin.teacher.modules())


def test_a_backbone_inside_the_model_listens_to_its_copy_only():
    model = make_model("ssil")
    inside, outside = FeatureExtractorBackbone(model, "body"), FeatureExtractorBackbone(model, "head")
    copied = frozen_copy(inside)
    outside(torch.rand(3, 1, 8, 8))
    assert copied(torch.rand(5, 1, 8, 8)).shape == (5, 8)
    assert inside.output.shape == (3, 8)
    assert outside.output.shape == (3, 10)


def test_selection_by_features_of_views_is_refused():
    """Under a transform that makes views, Avalanche's gets two features of each image and chooses by wrong indices."""
    policy = POLICIES["ParametricBuffer by class, herding"](20, make_model("co2l"), "encoder")
    with pytest.raises(ValueError, match="HerdingSelectionStrategy looks at features under the training transform"):
        make_method("co2l", augmentation=None, storage_policy=policy)
