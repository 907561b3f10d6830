"""Figures of an accuracy matrix R, where R[i][j] is the accuracy on experience j after training on experience i; and
what a few seeds can say about a mean or about two rows.

The interval and the test are SciPy's. Written here are the figures of a matrix: `forgetting` and `backward_transfer`
are also in `avalanche_contrastive.metrics`, but importing torch takes seconds, which tables need not wait for. A test
compares the two."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

import numpy as np
import scipy  # loads scipy.stats when it is first used: half a second that `list` need not wait for

Matrix = Sequence[Sequence[float]]
Drawn = Mapping[str, Sequence[float]]  # what a seed decides of a stream, such as its class orders, by name

CONFIDENCE = 0.95
PATTERNS = 100_000  # of signs: up to 16 differences have no more than these, and the test is exact


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


def average_incremental_accuracy(R: Matrix, counts: Sequence[int]) -> float | None:
    """Mean over the steps of `seen_accuracy` (Rebuffi et al. 2017); None for fewer than two steps."""
    return fmean(seen_accuracy(R, counts)) if len(R) > 1 else None


def forgetting(R: Matrix) -> float | None:
    """Mean over the earlier experiences j of max over i < T of R[i][j], minus R[T][j] (Chaudhry et al. 2018).

    R may be of any figure that is better when higher, such as Recall@1 within each experience. None for fewer than two
    steps: joint training forgets nothing.
    """
    last = len(R) - 1
    if last < 1:
        return None
    return fmean(max(R[i][j] for i in range(last)) - R[last][j] for j in range(last))


def backward_transfer(R: Matrix) -> float | None:
    """Mean over the earlier experiences j < T of R[T][j] - R[j][j] (Lopez-Paz and Ranzato 2017).

    Below zero where learning more cost accuracy on what was learned before. None for fewer than two steps.
    """
    last = len(R) - 1
    if last < 1:
        return None
    return fmean(R[last][j] - R[j][j] for j in range(last))


def learning_accuracy(R: Matrix) -> float | None:
    """Mean over the experiences after the first of R[i][i]: how well the newest classes are recognised.

    None for fewer than two steps.
    """
    return fmean(R[i][i] for i in range(1, len(R))) if len(R) > 1 else None


def mean_std(values: Sequence[float | None]) -> tuple[float, float] | None:
    """Mean and sample standard deviation (n - 1; 0 for a single value); None if a value is missing or not finite."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    if len(known) < len(values) or not known:
        return None
    return fmean(known), stdev(known) if len(known) > 1 else 0.0


def mean_matrix(matrices: Sequence[Matrix]) -> list[list[float]]:
    """Entry by entry mean over seeds."""
    return [[fmean(entries) for entries in zip(*rows, strict=True)] for rows in zip(*matrices, strict=True)]


def is_finite(value: float | None) -> bool:
    """Whether a figure can be ranked."""
    return value is not None and math.isfinite(value)


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the mean by Student's t, which holds for few values too if they are normal.

    Raises:
        ValueError: fewer than two values, which have no spread.
    """
    n = len(values)
    if n < 2:
        raise ValueError(f"an interval needs at least 2 values, got {n}")
    mean, half = fmean(values), stdev(values) / math.sqrt(n) * float(scipy.stats.t.ppf((1 + CONFIDENCE) / 2, n - 1))
    return mean - half, mean + half


@dataclass(frozen=True)
class Comparison:
    """Two rows over the same seeds.

    Args:
        difference: mean of first minus second.
        interval: 95 % interval of that mean; None for a single seed.
        wins: seeds where the first is higher.
        n: seeds.
        p: of the two-sided sign-flip test.
    """

    difference: float
    interval: tuple[float, float] | None
    wins: int
    n: int
    p: float


def compare(first: Sequence[float], second: Sequence[float]) -> Comparison:
    """First minus second, seed by seed; the two must be in the same order of seeds (see `check_pairing`).

    Raises:
        ValueError: different numbers of values, or none.
    """
    if len(first) != len(second):
        raise ValueError(f"a paired comparison needs as many values on both sides, got {len(first)} and {len(second)}")
    differences = [a - b for a, b in zip(first, second, strict=True)]
    interval = mean_interval(differences) if len(differences) > 1 else None
    wins = sum(d > 0 for d in differences)
    return Comparison(fmean(differences), interval, wins, len(differences), sign_flip_p(differences))


def sign_flip_p(differences: Sequence[float]) -> float:
    """Two-sided p of the hypothesis that each difference may as well have the other sign.

    Exact up to 16 differences: the share of all 2^n patterns of signs whose mean is at least as far from zero as the
    one observed. From 17 on it is estimated from 100,000 patterns, always the same.

    Raises:
        ValueError: no difference.
    """
    found = np.asarray(differences, dtype=float)
    if not len(found):
        raise ValueError("the sign-flip test needs at least 1 difference, got 0")
    if len(found) == 1:
        return 1.0  # SciPy takes two and more
    scale = np.abs(found).max() or 1.0
    tested: Any = scipy.stats.permutation_test(
        (np.sort(found) / scale,),  # the order of the seeds must not matter
        _rounded_sum,
        permutation_type="samples",
        vectorized=True,
        n_resamples=PATTERNS,
        rng=np.random.default_rng(0),
    )
    return float(tested.pvalue)


def _rounded_sum(values: Any, axis: int) -> Any:
    """Sums of the same numbers in another order differ in their last bits and must count as equal."""
    return np.round(np.sum(values, axis=axis), 9)


def smallest_p(n: int) -> float:
    """The least two-sided p of a sign-flip test of n differences: all of one sign, two of the 2^n patterns."""
    return float(min(1.0, 2 / min(2**n, PATTERNS + 1)))


def check_pairing(ours: Mapping[int, Drawn], theirs: Mapping[int, Drawn], *, names: tuple[str, str]) -> None:
    """Refuse to pair rows that did not see the same streams.

    Args:
        ours: by seed, what the seed decided of the stream of one row's run.
        theirs: of the other row, for the same seeds.
        names: of the two rows, for the message.

    Raises:
        ValueError: a seed has drawn something else in one row than in the other.
    """
    for seed in sorted(ours):
        for what in dict.fromkeys([*ours[seed], *theirs[seed]]):
            one, other = (list(drawn[seed].get(what, ())) for drawn in (ours, theirs))
            if one != other:
                raise ValueError(
                    f"{names[0]} and {names[1]} cannot be paired: with seed {seed} the {what} are {_listed(one)} and "
                    f"{_listed(other)}; they were run on different streams, or by different versions"
                )


def _listed(numbers: Sequence[float]) -> str:
    return f"[{', '.join(f'{number:g}' for number in numbers)}]"
