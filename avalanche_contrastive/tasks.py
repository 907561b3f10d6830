"""What the methods need to know of a stream: which task an experience belongs to, and the classes of that task."""

from collections.abc import Sequence
from typing import Any

from avalanche.benchmarks import OnlineCLExperience
from avalanche.models.utils import is_multi_task_module
from torch import Tensor, nn

__all__ = [
    "PAIR",
    "by_head",
    "check_stream",
    "classes_of",
    "is_piece",
    "pair_codes",
    "pairs_of",
    "starts_task",
    "task_of",
]

PAIR = 2**32  # task label * PAIR + class id: one integer for each pair, whatever classes a batch holds


def is_piece(experience: Any) -> bool:
    """Whether an experience is a piece of an online stream."""
    return isinstance(experience, OnlineCLExperience)


def task_of(experience: Any) -> Any:
    """The experience itself, or the one that a piece of an online stream is cut from."""
    return experience.origin_experience if is_piece(experience) else experience


def starts_task(experience: Any) -> bool:
    """Whether a task begins with this experience. Its end is the next one's beginning: Avalanche marks no last piece
    where the size of the pieces divides the task evenly."""
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


def pair_codes(task_labels: Tensor, y: Tensor) -> Tensor:
    """One integer for each pair of task label and class id, (B,)."""
    return task_labels.long() * PAIR + y


def check_stream(name: str, experience: Any, model: nn.Module) -> None:
    """Refuse a stream that does not say what a method has to know of it.

    Raises:
        ValueError: an online stream without task boundaries; a stream without class ids; a model with a head per task
            on a stream without task labels.
    """
    if is_piece(experience) and not experience.access_task_boundaries:
        raise ValueError(
            f"{name} needs to know where a task ends: its teacher is the model after the previous task, and classes of "
            "the current task and of earlier ones are treated differently. This online stream does not tell "
            "(access_task_boundaries=False). Make it with split_online_stream(..., access_task_boundaries=True); or, "
            "if each piece is to count as a task of its own, make plain experiences of them: with_classes_timeline("
            "benchmark_from_datasets(train=[piece.dataset for piece in stream]))."
        )
    if not classes_of(experience):
        raise ValueError(
            f"{name} needs the class ids of each experience, but this stream's experiences have "
            "no classes_in_this_experience. Was the benchmark made with benchmark_from_datasets? Wrap it: "
            "avalanche.benchmarks.with_classes_timeline(benchmark)."
        )
    if is_multi_task_module(model) and not hasattr(experience, "task_labels"):
        raise ValueError(
            f"{name}: a model with a head per task ({type(model).__name__}) needs the task label of each sample, but "
            "this stream's experiences have no task_labels. Make the stream with nc_benchmark(task_labels=True), or "
            "wrap it in avalanche.benchmarks.with_task_labels, after any split_online_stream, which drops them; or "
            "use one head for all classes."
        )


def by_head(pairs: Sequence[tuple[int, int]]) -> list[tuple[int, list[int]]]:
    """The class ids of each head, (task label, class ids), of pairs (task label, class id); heads in order."""
    return [(task, sorted(c for t, c in pairs if t == task)) for task in sorted({t for t, _ in pairs})]
