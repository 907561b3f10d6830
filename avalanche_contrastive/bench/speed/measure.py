"""Two pieces of work that do the same, timed in turn."""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Comparison", "LeftOutError", "Timed", "measure", "seconds_of"]

Timed = Callable[[], float]  # does a piece of work and returns the processor seconds that count (on a GPU all seconds)


class LeftOutError(Exception):
    """What a comparison needs is not there, and why."""


@dataclass(frozen=True)
class Comparison:
    """A piece of work of ours and of somebody else.

    Args:
        work: what is done, in words.
        competitor: who else does it.
        ours: does it, and gives the processor seconds that it took.
        theirs: likewise.
        target: the ratio of our time to theirs that is wanted, at most.
        same: both to the same result? For the tests: two functions whose results must be close; None where the results
            are not numbers that could be.
    """

    work: str
    competitor: str
    ours: Timed
    theirs: Timed
    target: float
    same: tuple[Callable[[], Any], Callable[[], Any]] | None = None


def seconds_of(run: Callable[[], Any], repeats: int = 1) -> Timed:
    """Processor seconds of a function without arguments, called ``repeats`` times."""

    def timed() -> float:
        start = time.process_time()
        for _ in range(repeats):
            run()
        return (time.process_time() - start) / repeats

    return timed


def measure(comparison: Comparison, rounds: int) -> dict[str, Any]:
    """Time both in turn, ``rounds`` times after one that does not count; the first of the two alternates.

    Processor time, and a ratio for each round: other processes then disturb both sides alike.

    Returns:
        "work", "competitor", "target", "ratio" (median, lowest and highest over the rounds) and the medians of
        "seconds" and "seconds_of_competitor".
    """
    pairs = list(_rounds(comparison, rounds + 1))[1:]
    ratios = [ours / theirs for ours, theirs in pairs]
    return {
        "work": comparison.work,
        "competitor": comparison.competitor,
        "target": comparison.target,
        "ratio": {"median": statistics.median(ratios), "lowest": min(ratios), "highest": max(ratios)},
        "seconds": statistics.median(ours for ours, _ in pairs),
        "seconds_of_competitor": statistics.median(theirs for _, theirs in pairs),
        "rounds": rounds,
    }


def _rounds(comparison: Comparison, rounds: int) -> Iterator[Sequence[float]]:
    for number in range(rounds):
        if number % 2:
            yield comparison.ours(), comparison.theirs()
        else:
            theirs = comparison.theirs()
            yield comparison.ours(), theirs
