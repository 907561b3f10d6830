"""What a task is, which classes it has and which of them are old: one meaning for the plugins and the metrics."""

from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from avalanche.benchmarks import OnlineCLExperience
from avalanche.models.utils import is_multi_task_module
from avalanche.training.supervised import JointTraining
from torch import Tensor, nn

__all__ = [
    "PAIR",
    "ClassLedger",
    "by_head",
    "check_stream",
    "classes_of",
    "is_in",
    "is_piece",
    "not_seen",
    "pair_codes",
    "pairs_of",
    "seen_in",
    "starts_task",
    "task_of",
    "trained_classes",
    "trained_dataset",
]

PAIR = 2**32  # task label * PAIR + class id: one integer for each pair, whatever classes a batch holds
LARGEST = 10**6  # class ids are columns of logits: one of 20230115 would take as many columns

C = TypeVar("C")


# ---- experiences


def is_piece(experience: Any) -> bool:
    """Whether an experience is a piece of an online stream."""
    return isinstance(experience, OnlineCLExperience)


def task_of(experience: Any) -> Any:
    """The experience itself, or the one that a piece of an online stream is cut from, where the piece knows it."""
    origin = experience.logging().origin_experience if is_piece(experience) else None
    return experience if origin is None else origin.logging()


def starts_task(experience: Any) -> bool:
    """Whether a task begins with this experience.

    A task ends where the next begins: Avalanche marks no last piece where the pieces divide the task evenly.
    """
    return not is_piece(experience) or bool(experience.is_first_subexp)


def classes_of(experience: Any) -> list[int]:
    """Sorted class ids of an experience's task; empty where the stream does not name them."""
    task = task_of(experience)
    classes = getattr(task, "classes_in_this_experience", None)
    if classes is None and is_piece(experience):  # the timeline may have been added after the split
        classes = task.dataset.targets.uniques
    return sorted(int(c) for c in classes or ())


def pairs_of(experience: Any) -> list[tuple[int, int]]:
    """Sorted pairs (task label, class id) of the samples of an experience's task."""
    data = task_of(experience).dataset
    return sorted({(int(t), int(c)) for t, c in zip(data.targets_task_labels, data.targets, strict=True)})


def by_head(pairs: Sequence[tuple[int, int]]) -> list[tuple[int, list[int]]]:
    """The class ids of each head, (task label, class ids), of pairs (task label, class id); heads in order."""
    return [(task, sorted(c for t, c in pairs if t == task)) for task in sorted({t for t, _ in pairs})]


# ---- rows of a batch


def pair_codes(task_labels: Tensor, y: Tensor) -> Tensor:
    """One integer for each pair of task label and class id, (B,)."""
    return task_labels.long() * PAIR + y


def is_in(labels: Tensor, ids: Tensor) -> Tensor:
    """Which of the labels (B,) are among the ids (n,), which are sorted and not empty; (B,) bool.

    Unlike ``torch.isin`` it never sorts, and so never makes the host wait for the device.
    """
    place = torch.searchsorted(ids, labels).clamp_(max=len(ids) - 1)
    return ids[place] == labels


# ---- what a strategy trains on


def trained_dataset(strategy: Any) -> Any:
    """What training starts on: the experience's data, or everything where a strategy trains on all at once."""
    return strategy.adapted_dataset if isinstance(strategy, JointTraining) else strategy.experience.dataset


def trained_classes(strategy: Any) -> set[int]:
    """Class ids that training starts on; of an online stream's piece, those of the experience that it is cut from."""
    named = [] if isinstance(strategy, JointTraining) else classes_of(strategy.experience)
    return set(named) or {int(c) for c in trained_dataset(strategy).targets.uniques}


# ---- the ledger: classes by the experience that brought them


def seen_in(ledger: Iterable[Sequence[C]]) -> list[C]:
    """All classes of a ledger, in its order."""
    return [c for classes in ledger for c in classes]


def not_seen(classes: Iterable[C], ledger: Iterable[Sequence[C]]) -> list[C]:
    """Those of the classes that no entry of the ledger holds."""
    known = set(seen_in(ledger))
    return [c for c in classes if c not in known]


class ClassLedger:
    """Class ids by the experience that brought them, as a metric sees them go by in training.

    An experience that brings no class of its own has no entry.

    Attributes:
        groups: class ids, first experience first, each sorted.
    """

    def __init__(self) -> None:
        self.groups: list[list[int]] = []

    def begin(self, strategy: Any) -> None:
        """Before training: a strategy that has trained on nothing starts a new ledger."""
        if strategy.clock.train_exp_counter == 0:
            self.groups = []

    def note(self, strategy: Any) -> None:
        """Enter the new classes of the experience that training starts on."""
        if new := not_seen(sorted(trained_classes(strategy)), self.groups):
            self.groups.append(new)

    @property
    def seen(self) -> list[int]:
        """Classes of all experiences that training has started on."""
        return seen_in(self.groups)

    @property
    def newest(self) -> list[int]:
        """Classes of the latest experience that brought any."""
        return self.groups[-1] if self.groups else []

    @property
    def old(self) -> list[int]:
        """Seen, but not newest."""
        return seen_in(self.groups[:-1])


# ---- streams that cannot be trained on


def check_stream(name: str, experience: Any, model: nn.Module) -> None:
    """Refuse a stream that does not say what a method has to know of it.

    Raises:
        ValueError: an online stream without task boundaries; a stream without class ids, or with ids that cannot be
            columns of logits; a model with a head per task on a stream without task labels.
    """
    if is_piece(experience) and not experience.access_task_boundaries:
        raise ValueError(
            f"{name} needs to know where a task ends: its teacher is the model after the previous task, and classes of "
            "the current task and of earlier ones are treated differently. The experiences of this online stream do "
            "not say so (their access_task_boundaries is False). split_online_stream gives it with "
            "access_task_boundaries=True; streams whose tasks blend into each other have no boundaries. There each "
            "piece can be a task of its own: with_classes_timeline(benchmark_from_datasets(train=[piece.dataset for "
            "piece in stream]))."
        )
    named = getattr(task_of(experience), "classes_in_this_experience", None) or ()
    if wrong := [c for c in named if not hasattr(c, "__index__") and not isinstance(c, np.bool_)]:
        raise ValueError(
            f"{name}: class ids must be whole numbers, but this experience has {wrong[0]!r}. Are the `targets` "
            "floats, or names? Give integers, 0, 1, 2, ..., also as the samples' labels."
        )
    classes = classes_of(experience)
    if not classes:
        raise ValueError(
            f"{name} needs the class ids of each experience, but this stream's experiences have "
            "no classes_in_this_experience. Was the benchmark made with benchmark_from_datasets? Wrap it: "
            "avalanche.benchmarks.with_classes_timeline(benchmark)."
        )
    if classes[0] < 0 or classes[-1] >= LARGEST:
        raise ValueError(
            f"{name}: a class id is a column of the logits, 0 <= id < {LARGEST}, but this experience has the id "
            f"{classes[0] if classes[0] < 0 else classes[-1]}. Number the classes 0, 1, 2, ... in the dataset's "
            "`targets` and labels (-1 and +1 as 0 and 1)."
        )
    if is_multi_task_module(model) and not hasattr(experience, "task_labels"):
        raise ValueError(
            f"{name}: a model with a head per task ({type(model).__name__}) needs the task label of each sample, but "
            "this stream's experiences have no task_labels. Make the stream with nc_benchmark(task_labels=True), or "
            "wrap it in avalanche.benchmarks.with_task_labels, after any split_online_stream, which drops them; or "
            "use one head for all classes."
        )
