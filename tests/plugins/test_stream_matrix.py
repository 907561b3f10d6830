"""Every method on every kind of stream: the loss of each step is the documented one, by a reading of its own.

``World`` keeps the test's own account of which classes are current and which are past, from the samples that went by;
the losses below are computed from it, from copies of the model, and from nothing that a plugin has noted. Each cell of
the matrix is a test, and what it says is in the documentation's table of streams.
"""

import copy
from dataclasses import dataclass

import pytest
import torch
from avalanche.benchmarks import (
    CLScenario,
    EagerCLStream,
    benchmark_from_datasets,
    nc_benchmark,
    split_online_stream,
    task_incremental_benchmark,
    with_classes_timeline,
    with_task_labels,
)
from avalanche.benchmarks.utils import as_classification_dataset
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.models import IncrementalClassifier, MultiHeadClassifier, MultiTaskModule
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin, SupervisedPlugin
from helpers.streams import ORDER, Images, digits, make_benchmark, make_encoder
from torch import nn

from avalanche_contrastive import Co2LPlugin, ContrastiveModel, CSDPlugin, MTContrastiveModel, SSILPlugin
from avalanche_contrastive.losses import (
    asymmetric_supcon,
    batch_hard_triplet,
    contrastive_distillation,
    relation_distillation,
)

METHODS = {"co2l": "Co2L", "ssil": "SS-IL", "csd": "CSD"}


# ---- streams


@dataclass
class Stream:
    """Experiences in training order, the number of the task that each belongs to, and experiences to evaluate on."""

    experiences: list
    tasks: list
    test: list
    heads: bool = False  # a model with a head per task
    masking: bool = True  # of the classes that a head has not been trained on
    labelled: bool = False  # domains with a task label each


def of_benchmark(benchmark, count=3, **kind):
    return Stream(list(benchmark.train_stream[:count]), list(range(count)), list(benchmark.test_stream), **kind)


def images(per_class=6):
    return tuple(Images(*part) for part in digits(per_class))


def rotated(*, task_labels):
    """All ten digits in every experience, each experience turned by another quarter."""
    train, test = digits(2)
    turned = [[Images(x.rot90(k, (2, 3)), y) for k in range(3)] for x, y in (train, test)]
    options = {"shuffle": False, "class_ids_from_zero_in_each_exp": True, "one_dataset_per_exp": True}
    return of_benchmark(
        nc_benchmark(*turned, n_experiences=3, task_labels=task_labels, **options), labelled=task_labels
    )


def task_incremental(*, heads, ids_from_zero=False):
    benchmark = nc_benchmark(
        *images(),
        n_experiences=5,
        task_labels=True,
        fixed_class_order=ORDER,
        class_ids_from_zero_in_each_exp=ids_from_zero,
    )
    return of_benchmark(benchmark, heads=heads)


def current_generators():
    """The same made with Avalanche's current generators: their class sets are more than a masking head can take."""
    benchmark = task_incremental_benchmark(make_benchmark("A", per_class=6), reset_task_labels=True)
    return of_benchmark(with_classes_timeline(benchmark), heads=True, masking=False)


def online(benchmark, *, boundaries=True, heads=False):
    """Three experiences in pieces of four images, which hold one class or both.

    The pieces divide the experiences evenly: Avalanche marks none of them as the last.
    """
    pieces = list(
        split_online_stream(benchmark.train_stream[:3], 4, access_task_boundaries=boundaries, shuffle=False, seed=0)
    )
    tasks = [number // 3 for number in range(len(pieces))]
    if heads:
        pieces = list(with_task_labels(CLScenario([EagerCLStream("train", pieces)])).train_stream)
    return Stream(pieces, tasks, list(benchmark.test_stream), heads=heads)


def repetition():
    """Digits 3 and 8 are new, 8 comes back beside 1, 3 and 1 come back with nothing new, 8 again beside 6 and 0."""
    contents = [[3, 8], [8, 1], [3, 1], [6, 8, 0]]
    (x, y), test = digits(12)
    datasets = []
    for number, classes in enumerate(contents):
        rows = torch.cat([torch.nonzero(y == c)[3 * number : 3 * number + 3, 0] for c in classes])
        datasets.append(as_classification_dataset(Images(x[rows], y[rows])))
    known = torch.isin(test[1], torch.tensor([0, 1, 3, 6, 8]))
    tests = [as_classification_dataset(Images(test[0][known], test[1][known]))]
    return of_benchmark(with_classes_timeline(benchmark_from_datasets(train=datasets, test=tests)), 4)


def tiny():
    """Four images to an experience, where a batch has ten."""
    return of_benchmark(make_benchmark(per_class=2))


STREAMS = {
    "class-incremental, samples (x, y, t)": lambda: of_benchmark(make_benchmark("A", per_class=6)),
    "class-incremental, samples (x, y)": lambda: of_benchmark(make_benchmark("B", per_class=6)),
    "class-incremental, task label 0 throughout": lambda: of_benchmark(make_benchmark("C", per_class=6)),
    "class-incremental, unequal experiences": lambda: of_benchmark(make_benchmark(sizes=[4, 5, 1], per_class=6)),
    "class-incremental, one class each": lambda: of_benchmark(make_benchmark(experiences=10, per_class=12)),
    "a single experience": lambda: of_benchmark(make_benchmark(experiences=1, per_class=3), 1),
    "an experience smaller than a batch": tiny,
    "domain-incremental": lambda: rotated(task_labels=False),
    "domain-incremental, a task label each": lambda: rotated(task_labels=True),
    "task-incremental, one head": lambda: task_incremental(heads=False),
    "task-incremental, a head per task": lambda: task_incremental(heads=True),
    "task-incremental, a head per task, ids from 0": lambda: task_incremental(heads=True, ids_from_zero=True),
    "task-incremental, a head per task, heads not masked": current_generators,
    "online, task boundaries known": lambda: online(make_benchmark(per_class=6)),
    "online, boundaries known, a head per task": lambda: online(
        nc_benchmark(*images(), n_experiences=5, task_labels=True, fixed_class_order=ORDER), heads=True
    ),
    "online, task boundaries unknown": lambda: online(make_benchmark(per_class=6), boundaries=False),
    "classes that come back": repetition,
}

TRAINS = dict.fromkeys(METHODS, "trains")
UNKNOWN = "refused: has no meaning without task boundaries"
MATRIX = {stream: dict(TRAINS) for stream in STREAMS}
MATRIX["class-incremental, one class each"]["ssil"] = "trains; warns that a softmax over one class teaches nothing"
MATRIX["a single experience"] = dict.fromkeys(METHODS, "trains; nothing to distil")
MATRIX["domain-incremental"] = {
    "co2l": "trains; every image is an anchor",
    "ssil": "trains; no class is old: plain softmax, one distillation over all classes",
    "csd": "trains; every class counts as new and is distilled",
}
MATRIX["domain-incremental, a task label each"] = {
    **MATRIX["domain-incremental"],
    "co2l": "trains; domains=True: only the newest domain gives anchors",
}
for _row in ("", ", ids from 0", ", heads not masked"):
    MATRIX[f"task-incremental, a head per task{_row}"] = {
        "co2l": "trains; contrast by task and class, a read-out per task",
        "ssil": "trains; softmax of each head, old heads distilled",
        "csd": "trains; softmax of each head, old heads distilled",
    }
MATRIX["online, task boundaries known"] = dict.fromkeys(METHODS, "trains; a task is an original experience")
MATRIX["online, boundaries known, a head per task"] = dict(MATRIX["online, task boundaries known"])
MATRIX["online, task boundaries unknown"] = dict.fromkeys(METHODS, UNKNOWN)
MATRIX["classes that come back"] = {
    "co2l": "trains; a class that is back gives anchors",
    "ssil": "trains; a class that is back is new, and distilled in its first task",
    "csd": "trains; a class that is back counts as new and is distilled",
}


# ---- models and plugins


class Classifier(nn.Module):
    def __init__(self, *, growing=False):
        super().__init__()
        self.encoder, self.head = make_encoder(), IncrementalClassifier(16) if growing else nn.Linear(16, 10)

    def forward(self, x):
        return self.head(self.encoder(x))


class Heads(MultiTaskModule):
    def __init__(self, *, masking=True):
        super().__init__()
        self.encoder, self.head = make_encoder(), MultiHeadClassifier(16, 2, masking=masking)

    def forward(self, x, task_labels):
        return self.head(self.encoder(x), task_labels)


class Noise:
    """An augmentation that keeps the views it made."""

    def __init__(self):
        self.made = []

    def __call__(self, x):
        self.made = [*self.made[-1:], x + 0.1 * torch.randn_like(x)]
        return self.made[-1]


def model_for(method, stream, growing):
    if method == "co2l":
        return (MTContrastiveModel if stream.heads else ContrastiveModel)(make_encoder(), 16, 8)
    return Heads(masking=stream.masking) if stream.heads else Classifier(growing=growing)


def plugin_for(method, labelled):
    if method == "co2l":
        return Co2LPlugin(mem_size=12, augmentation=Noise(), domains=labelled, readout_lr=0.1, readout_epochs=20)
    return SSILPlugin(mem_size=12, batch_size_mem=6) if method == "ssil" else CSDPlugin()


def make_strategy(model, plugins):
    return Naive(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.02 if isinstance(model, ContrastiveModel) else 0.2),
        criterion=nn.CrossEntropyLoss(),
        plugins=plugins,
        train_mb_size=10,
        eval_mb_size=50,
        evaluator=None,
    )


# ---- the test's own account


class World:
    """Which classes are current and which are past; pairs with the task label where that tells classes apart."""

    def __init__(self, stream, keyed):
        self.keyed, self.past, self.teacher = keyed, [], None
        self.of_task = {}
        for experience, task in zip(stream.experiences, stream.tasks, strict=True):
            rows = [experience.dataset[i] for i in range(len(experience.dataset))]
            self.of_task.setdefault(task, set()).update(self.key(r[-1] if len(r) > 2 else 0, r[1]) for r in rows)

    def key(self, task_label, y):
        return (int(task_label) if self.keyed else 0, int(y))

    def begin(self, task, model):
        """A task begins: what was current is past, each class in the task that brought it; the model teaches."""
        if task > 0:
            known = set().union(*self.past)
            self.past.append(self.of_task[task - 1] - known)
            self.teacher = copy.deepcopy(model).eval()
        self.current = self.of_task[task]
        self.old = set().union(*self.past) - self.current

    def keys(self, step):
        labels = step["t"] if step["t"] is not None else torch.zeros_like(step["y"])
        return [self.key(t, y) for t, y in zip(labels, step["y"], strict=True)]


class Steps(SupervisedPlugin):
    """What went into the loss of each step, and the loss."""

    def __init__(self):
        super().__init__()
        self.steps = []

    def after_forward(self, strategy, **kwargs):
        labels = strategy.mbatch[2] if len(strategy.mbatch) > 2 else None
        model = copy.deepcopy(strategy.model)
        step = {"x": strategy.mb_x, "y": strategy.mb_y, "t": labels, "model": model}
        augmentation = getattr(strategy.plugins[0], "augmentation", None)
        if augmentation is not None:
            step["views"] = torch.stack(augmentation.made, dim=1)
        self.steps.append({**step, "output": strategy.mb_output.detach()})

    def after_backward(self, strategy, **kwargs):
        self.steps[-1]["loss"] = strategy.loss.item()


def columns(keys, head):
    return sorted(c for t, c in keys if t == head)


def head_of(model, head, features):
    """Logits of one head, without masks."""
    layer = model.head.classifiers[str(head)] if isinstance(model, Heads) else model.head
    return getattr(layer, "classifier", layer)(features)


def distilled(step, world, groups, temperature):
    """The sum over groups of the mean divergence of the student's softmax over the group from the teacher's."""
    student, teacher = step["model"].encoder(step["x"]), world.teacher.encoder(step["x"])
    total = 0.0
    for head, classes in groups:
        p = (head_of(world.teacher, head, teacher)[:, classes] / temperature).softmax(dim=1)
        q = (head_of(step["model"], head, student)[:, classes] / temperature).softmax(dim=1)
        total += (p * (p / q).log()).sum(dim=1).mean().item()
    return total


def ssil_loss(step, world):
    total = 0.0
    keys = world.keys(step)
    for logits, key in zip(step["output"], keys, strict=True):
        own = columns(world.current if key in world.current else world.old, key[0])
        total -= logits[own].log_softmax(dim=0)[own.index(key[1])].item()
    loss = total / len(keys)
    if world.teacher is not None:
        groups = [(head, columns(task, head)) for task in world.past for head in {t for t, _ in task}]
        loss += 4 * distilled(step, world, groups, temperature=2.0)
    return loss


def csd_loss(step, world):
    keys = world.keys(step)
    ids = {key: number for number, key in enumerate(sorted(set(keys)))}
    labels = torch.tensor([ids[key] for key in keys])
    losses = []
    for logits, key in zip(step["output"], keys, strict=True):
        if key in world.current:
            own = columns(world.current | world.old, key[0]) if world.keyed else list(range(len(logits)))
            losses.append(-logits[own].log_softmax(dim=0)[own.index(key[1])].item())
    features = step["model"].encoder(step["x"])
    loss = sum(losses) / max(len(losses), 1) + batch_hard_triplet(features, labels).item()
    if world.teacher is not None:
        past = set().union(*world.past)
        loss += distilled(step, world, [(h, columns(past, h)) for h in {t for t, _ in past}], temperature=2.0)
        loss += contrastive_distillation(features, world.teacher.encoder(step["x"]), labels).item()
    return loss


def co2l_loss(step, world):
    keys = world.keys(step)
    ids = {key: number for number, key in enumerate(sorted(set(keys)))}
    labels = torch.tensor([ids[key] for key in keys])
    anchors = torch.tensor([key in world.current for key in keys])
    loss = asymmetric_supcon(step["output"], labels, anchors, base_temperature=0.07, reduction="all")
    if world.teacher is not None:
        loss = loss + relation_distillation(step["output"], world.teacher.project(step["views"]))
    return loss.item()


LOSS = {"co2l": co2l_loss, "ssil": ssil_loss, "csd": csd_loss}


def run(method, stream, *, growing=False):
    """Train through the stream; compare every loss with the test's own reading. The plugin, the model, the world."""
    plugin, steps = plugin_for(method, stream.labelled), Steps()
    model = model_for(method, stream, growing)
    world = World(stream, stream.heads or (stream.labelled and method == "co2l"))
    strategy = make_strategy(model, [plugin, steps])
    compared, before = 0, None
    for experience, task in zip(stream.experiences, stream.tasks, strict=True):
        if task != before:
            world.begin(task, model)
            before = task
        strategy.train(experience)
        for step in steps.steps:
            with torch.no_grad():
                expected = LOSS[method](step, world)
            assert step["loss"] == pytest.approx(expected, rel=1e-5)
        compared += len(steps.steps)
        steps.steps.clear()
    assert compared >= len(stream.experiences)
    return strategy, plugin, world


# ---- the matrix


@pytest.mark.filterwarnings("ignore:SSILPlugin. this experience has the single class")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("stream", STREAMS)
def test_the_objective_is_the_documented_one(stream, method, record_property):
    cell, made = MATRIX[stream][method], STREAMS[stream]()
    if cell.startswith("refused"):
        with pytest.raises(ValueError, match=r"needs to know where a task ends.*access_task_boundaries=True"):
            run(method, made)
    else:
        strategy, plugin, world = run(method, made)
        assert plugin.past == [] or plugin.teacher is not None
        assert {c for classes in plugin.ledger for c in classes} == {
            key if made.heads else key[1] for keys in world.of_task.values() for key in keys
        }
        strategy.evaluator = EvaluationPlugin(accuracy_metrics(stream=True))
        strategy.plugins.append(strategy.evaluator)
        figures = [v for k, v in strategy.eval(made.test).items() if k.startswith("Top1_Acc_Stream")]
        assert figures
        assert all(0 <= figure <= 1 for figure in figures)
    record_property("matrix", {"table": "streams", "row": stream, "column": METHODS[method], "cell": cell})


@pytest.mark.parametrize("method", ["ssil", "csd"])
@pytest.mark.parametrize(
    "stream",
    ["class-incremental, unequal experiences", "online, task boundaries known", "classes that come back"],
)
def test_the_same_with_a_head_that_grows(stream, method):
    if method == "ssil" and "unequal" in stream:
        with pytest.warns(UserWarning, match="single class"):
            strategy, _, _ = run(method, STREAMS[stream](), growing=True)
    else:
        strategy, _, _ = run(method, STREAMS[stream](), growing=True)
    assert strategy.model.head.classifier.out_features >= 9


def test_returning_classes_are_current_and_keep_their_first_home():
    _, plugin, world = run("ssil", repetition())
    assert plugin.ledger == [[3, 8], [1], [], [0, 6]]
    plugin.guards.begin(nn.Identity(), "cpu", plugin._current, plugin.seen_classes)
    y = torch.tensor([0, 1, 3, 6, 8])
    plugin.guards.labels(type("S", (), {"mbatch": [y.float(), y]}), multi_head=False)
    assert plugin.guards.is_current().tolist() == [True, False, False, True, True]
    assert world.old == {(0, 1), (0, 3)}


def test_classes_of_an_online_task_are_found_where_the_timeline_was_added_to_the_pieces_only():
    whole = [e.dataset for e in make_benchmark(per_class=6).train_stream[:2]]
    pieces = list(
        split_online_stream(benchmark_from_datasets(train=whole).train_stream, 4, access_task_boundaries=True)
    )
    plugin = plugin_for("csd", labelled=False)
    strategy = make_strategy(Classifier(), [plugin])
    for piece in with_classes_timeline(CLScenario([EagerCLStream("train", pieces)])).train_stream:
        strategy.train(piece)
    assert [c for c in plugin.ledger if c] == [sorted(ORDER[:2]), sorted(ORDER[2:4])]


@pytest.mark.filterwarnings("ignore:SSILPlugin. this experience has the single class")
@pytest.mark.parametrize("method", METHODS)
def test_pieces_without_boundaries_as_tasks_of_their_own_as_the_error_advises(method):
    pieces = split_online_stream(make_benchmark(per_class=6).train_stream[:2], 4, shuffle=False)
    advised = with_classes_timeline(benchmark_from_datasets(train=[piece.dataset for piece in pieces]))
    _, plugin, _ = run(method, Stream(list(advised.train_stream), list(range(6)), []))
    assert len(plugin.ledger) == 6
    assert len(plugin.past) == 4
