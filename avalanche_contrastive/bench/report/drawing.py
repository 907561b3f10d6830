"""What the figures of a suite share: which rows they show, how these are called, and where they are drawn."""

import textwrap
from collections.abc import Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")  # files only: no display is needed

import matplotlib.pyplot as plt

from avalanche_contrastive.bench.config import TABLES, Row
from avalanche_contrastive.bench.report.figures import by_memory, memories, memory_of
from avalanche_contrastive.bench.results import Grouped, rows_of

TEXT, GREY = "#1b1f24", "#808080"  # on the page's own; between both pages
LETTERS, TITLE = 26, 160  # in a line of a legend or above a matrix; in a line of a figure's title


def words(label: str, letters: int = LETTERS) -> str:
    """A label in lines of so many letters at most; signs that no font has are replaced."""
    return textwrap.fill("".join(sign if sign.isprintable() else "\ufffd" for sign in " ".join(label.split())), letters)


def shown_rows(grouped: Grouped) -> list[Row]:
    """The rows of the figures: the main ones, or where there are none, those of another table."""
    return by_memory(next(filter(None, (rows_of(grouped, table) for table in TABLES)), []), grouped)


def titled(row: Row, rows: Sequence[Row], grouped: Grouped) -> str:
    """The label; with the memory where the rows differ in it."""
    size = memory_of(row, grouped)
    return f"{row.label}, memory {size}" if size and len(memories(rows, grouped)) > 1 else row.label


def new_grid(panels: int, across: int, size: tuple[float, float]) -> tuple[Any, Any]:
    """A figure and its grid of axes, one at least; axes beyond the panels are blank."""
    columns = min(across, max(1, panels))
    lines = -(-max(1, panels) // columns)
    figure, grid = plt.subplots(
        lines, columns, figsize=(size[0] * columns, size[1] * lines + 0.5), squeeze=False, layout="constrained"
    )
    for axes in grid.flat[panels:]:
        axes.axis("off")
    return figure, grid
