"""The headline table of the README: one line per question, one column per method."""

from collections.abc import Sequence
from dataclasses import dataclass

from avalanche_contrastive.bench.files import Everything, Result
from avalanche_contrastive.bench.report.cells import NONE, Table
from avalanche_contrastive.bench.report.figures import ACCURACY, UPPER, Column, best_of, by_size, compatibility

METHODS = {
    "Co2L": "co2l",
    "SS-IL": "ssil",
    "CSD": "csd",
    "Naive": "naive",
    "Replay": "replay",
    "ER-ACE": "er_ace",
    "DER++": "derpp",
    "Joint": "joint",
}
CAPTION = (
    "Percent, mean ± standard deviation over the seeds. Memory: stored images; CSD and Naive store none. Old gallery: "
    "Recall@1 of the last model's queries in galleries that earlier models embedded, minus what each gallery gave its "
    "own model, on classes that no model has seen. Bold: the best of a line, and means within its 95 % interval; joint "
    "training does not compete."
)


@dataclass(frozen=True)
class Line:
    """A line of the table.

    Args:
        title: the question, in words.
        suite: that answers it.
        memory: stored images of the rows that have a memory.
        column: the figure.
    """

    title: str
    suite: str
    memory: int
    column: Column


LINES = (
    Line("Split-Digits: accuracy", "split_digits", 100, ACCURACY["final accuracy"]),
    Line("CIFAR-100, frozen features: accuracy", "split_cifar100_frozen", 500, ACCURACY["final accuracy"]),
    Line("CIFAR-100, frozen features: accuracy", "split_cifar100_frozen", 2000, ACCURACY["final accuracy"]),
    Line("CIFAR-100, frozen features: Recall@1", "split_cifar100_frozen", 500, ACCURACY["Recall@1"]),
    Line("Rotated MNIST, domains: accuracy", "rotated_mnist", 500, ACCURACY["final accuracy"]),
    Line("Old gallery under a new model: change of Recall@1", "cl2r", 500, compatibility("recall@1")["BC"]),
)


def headline_table(everything: Everything) -> Table:
    """The questions that have results, each with the figure of every method that has answered it."""
    lines: list[tuple[str, ...]] = []
    best: set[tuple[int, int]] = set()
    for line in LINES:
        if line.suite not in everything:
            continue
        found = {name: results for name, row in METHODS.items() if (results := _results(line, row, everything))}
        rivals = {name: results for name, results in found.items() if METHODS[name] not in UPPER}
        best |= {(len(lines), 3 + list(METHODS).index(name)) for name in best_of(rivals, line.column)}
        seeds = {int(result["seed"]) for results in found.values() for result in results}
        cells = (line.column.cell(found[name]) if name in found else NONE for name in METHODS)
        lines.append((line.title, str(line.memory), str(len(seeds)), *cells))
    columns = ("question", "memory", "seeds", *METHODS)
    return Table(columns, tuple(lines), "l" + "r" * (len(columns) - 1), CAPTION, best=frozenset(best))


def _results(line: Line, row: str, everything: Everything) -> Sequence[Result]:
    """Results of the row at the line's size of memory, or without a memory; empty where it was not run."""
    sizes = by_size(row, everything[line.suite])
    return sizes.get(line.memory) or sizes.get(0, ())
