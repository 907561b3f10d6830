"""Two folders of results beside each other, or a row of one beside the rows of the other, paired by seed."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from avalanche_contrastive.bench.config import nearest
from avalanche_contrastive.bench.files import Everything
from avalanche_contrastive.bench.report.cells import Table, listed
from avalanche_contrastive.bench.report.figures import ACCURACY, aligned, difference_cells, stream_of
from avalanche_contrastive.bench.report.tables import SAME, changed
from avalanche_contrastive.bench.results import Grouped, Result, load_all

FIGURES = ("final accuracy", "average accuracy", "forgetting", "Recall@1")


def load_place(place: Path) -> Everything:
    """Results by suite: of a folder, of a folder of such folders, or of one row, given as FOLDER/ROW.

    Raises:
        ValueError: no results there.
    """
    if place.is_dir() or not place.parent.is_dir():
        return load_all(place)
    found = load_all(place.parent)
    chosen = {suite: {place.name: rows[place.name]} for suite, rows in found.items() if place.name in rows}
    if not chosen:
        known = [row for rows in found.values() for row in rows]
        raise ValueError(f"{place}: no folder, and {place.parent} has no such row{nearest(place.name, known)}")
    return chosen


def compare_places(first: Path, second: Path) -> Table:
    """First minus second: rows of the same name, or a single row beside every row of the other place.

    Raises:
        ValueError: no results in a place, or none that can be compared.
    """
    one, other = load_place(first), load_place(second)
    lines: list[tuple[str, ...]] = []
    remarks: list[str] = []
    for suite in [suite for suite in one if suite in other]:
        for a, b in _pairs(one[suite], other[suite]):
            label = (f"{suite}: " if len(one) > 1 else "") + (a if a == b else f"{a} - {b}")
            try:
                lines += _compared(label, one[suite][a], other[suite][b], names=(f"{first}: {a}", f"{second}: {b}"))
            except ValueError as problem:
                remarks.append(f"{problem}.")
                continue
            if (difference := changed(one[suite][a][0], other[suite][b][0])) != SAME:
                remarks.append(f"{label}: the first was run with {difference}.")
    if not lines:
        raise ValueError(f"nothing to compare: {' '.join(remarks) or f'{_held(first, one)}; {_held(second, other)}'}")
    caption = (
        "First minus second over the same seeds and streams, in percentage points: mean, 95 % interval of that mean by "
        "Student's t, on how many of the seeds the first is higher, p of the two-sided sign-flip test. Nothing is "
        "corrected for the number of comparisons."
    )
    columns = ("row", "figure", str(first), str(second), "difference", "95 % interval", "higher on", "p")
    return Table(columns, tuple(lines), "llrrrrrr", " ".join([caption, *remarks]))


def _held(place: Path, found: Everything) -> str:
    """The rows of a place in words."""
    return f"{place} has " + "; ".join(f"of {suite}: {listed(rows)}" for suite, rows in found.items())


def _pairs(one: Grouped, other: Grouped) -> Sequence[tuple[str, str]]:
    shared = [(row, row) for row in one if row in other]
    if len(one) > 1 and len(other) > 1:
        return shared
    return shared or [(a, b) for a in one for b in other]


def _compared(
    label: str, first: Sequence[Result], second: Sequence[Result], *, names: tuple[str, str]
) -> list[tuple[str, ...]]:
    """A line for each figure that both rows have."""
    if stream_of(first) != stream_of(second):
        raise ValueError(f"{names[0]} and {names[1]} cannot be paired: other data, experiences or numbers of images")
    lines: list[tuple[str, ...]] = []
    for name in FIGURES:
        column = ACCURACY[name]
        assert column.figure is not None
        if pairs := aligned((first, second), column.figure, names):
            lines.append((label, name, column.cell(first), column.cell(second), *difference_cells(pairs)))
    if not lines:
        raise ValueError(f"{names[0]} and {names[1]} have no seed in common, or no figure")
    return lines


def command(parsed: argparse.Namespace) -> int:
    """Print the rows of one place minus those of another."""
    print(compare_places(parsed.first, parsed.second))
    return 0
