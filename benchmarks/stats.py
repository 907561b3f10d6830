"""Figures of an accuracy matrix R, where R[i][j] is the accuracy on experience j after training on experience i."""

import math
from collections.abc import Sequence
from statistics import fmean, stdev

Matrix = Sequence[Sequence[float]]


def seen_accuracy(R: Matrix, counts: Sequence[int]) -> list[float]:
    """Accuracy on the test data of all classes seen so far, after each experience.

    Args:
        R: accuracy matrix, one row per training step; one row only if everything was trained at once.
        counts: test images of each experience, so that the mean is over images and not over experiences.
    """
    first = len(counts) - len(R) + 1  # joint training: its only row has seen all
    return [_weighted(row[: first + i], counts) for i, row in enumerate(R)]


def _weighted(accuracies: Sequence[float], counts: Sequence[int]) -> float:
    used = counts[: len(accuracies)]
    return sum(a * n for a, n in zip(accuracies, used, strict=True)) / sum(used)


def forgetting(R: Matrix) -> float | None:
    """Mean over the earlier experiences j of max over i < T of R[i][j], minus R[T][j] (Chaudhry et al. 2018).

    None for fewer than two steps: joint training forgets nothing.
    """
    last = len(R) - 1
    if last < 1:
        return None
    return fmean(max(R[i][j] for i in range(last)) - R[last][j] for j in range(last))


def learning_accuracy(R: Matrix) -> float | None:
    """Mean over the experiences after the first of R[i][i]: how well the newest classes are told from all others.

    None for fewer than two steps.
    """
    return fmean(R[i][i] for i in range(1, len(R))) if len(R) > 1 else None


def mean_std(values: Sequence[float | None]) -> tuple[float, float] | None:
    """Mean and sample standard deviation (n - 1; 0 for a single value); None if a value is missing."""
    known = [value for value in values if value is not None]
    if len(known) < len(values) or not known:
        return None
    return fmean(known), stdev(known) if len(known) > 1 else 0.0


def mean_matrix(matrices: Sequence[Matrix]) -> list[list[float]]:
    """Entry by entry mean over seeds."""
    return [[fmean(entries) for entries in zip(*rows, strict=True)] for rows in zip(*matrices, strict=True)]


def is_finite(value: float | None) -> bool:
    """Whether a figure can be ranked."""
    return value is not None and math.isfinite(value)
