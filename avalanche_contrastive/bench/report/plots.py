"""The figures, made from result files alone; readable in grey and by the colour-blind."""

import argparse
import io
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # files only: no display is needed

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

from avalanche_contrastive.bench.config import TABLES, Row
from avalanche_contrastive.bench.files import write_bytes
from avalanche_contrastive.bench.report.cells import OURS, by_memory, get, is_ours, memories, memory_of, peak_memory
from avalanche_contrastive.bench.report.stats import mean_matrix, mean_std
from avalanche_contrastive.bench.results import Grouped, load_all, rows_of, suite_of

# Okabe and Ito's colours. The three methods have one each for themselves; the baselines share the others, so dashes and
# markers tell those apart.
OUR_COLOURS = dict(zip(OURS, ("#0072B2", "#D55E00", "#009E73"), strict=True))
COLOURS = ("#CC79A7", "#E69F00", "#56B4E9", "#666666")
DASHES: tuple[Any, ...] = ("--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
OUR_MARKERS = dict(zip(OURS, "osD", strict=True))
MARKERS = "^vPX*<>hpd8"
BANDED = 12  # up to so many baselines have a band; more would hide each other
DOTS = 140  # per inch
TITLE = 32  # letters in a line above a matrix
NUMBERED = 12  # up to so many experiences a matrix has its numbers written in
STYLE: dict[Any, Any] = {
    "text.parse_math": False,  # a label may hold a $
    "font.size": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


@dataclass(frozen=True)
class Look:
    """How a row is drawn, in every figure of its suite."""

    colour: str
    dash: Any
    marker: str
    width: float
    band: float


def plot_all(grouped: Grouped, folder: Path) -> list[Path]:
    """Write the figures of the main rows as PNG; returns their paths.

    Raises:
        OSError: one cannot be written; what was there before is as it was.
    """
    paths = []
    for name, draw in FIGURES.items():
        path = folder / f"{name}.png"
        write_bytes(path, rendered(draw, grouped))
        paths.append(path)
    return paths


def rendered(draw: Callable[[Grouped], Any], grouped: Grouped) -> bytes:
    """A figure as PNG, the same bytes for the same results.

    128 colours are all that such a figure needs, at a fifth of the size.
    """
    with plt.rc_context(STYLE):
        figure = draw(grouped)
        drawn, file = io.BytesIO(), io.BytesIO()
        figure.savefig(drawn, format="png", dpi=DOTS)
        plt.close(figure)
    image = Image.open(drawn).convert("RGB").quantize(128, dither=Image.Dither.NONE)
    image.save(file, format="png", optimize=True)
    return file.getvalue()


def shown_rows(grouped: Grouped) -> list[Row]:
    """The rows of the figures: the main ones, or where there are none, those of another table."""
    return by_memory(next(filter(None, (rows_of(grouped, table) for table in TABLES)), []), grouped)


def looks(rows: Sequence[Row]) -> dict[str, Look]:
    """By label, so that a method looks the same with every memory; ours first."""
    found: dict[str, Look] = {}
    methods: list[str] = []
    for row in sorted(filter(is_ours, rows), key=lambda row: OURS.index(row.config.method)):
        if row.label not in found:  # a second row of a method differs in its dashes
            method = row.config.method
            dash = ("-", *DASHES)[methods.count(method) % (len(DASHES) + 1)]
            found[row.label] = Look(OUR_COLOURS[method], dash, OUR_MARKERS[method], 2.8, 0.18)
            methods.append(method)
    others = [label for label in dict.fromkeys(row.label for row in rows) if label not in found]
    for index, label in enumerate(others):
        colour, dash = COLOURS[index % len(COLOURS)], DASHES[index // len(COLOURS) % len(DASHES)]
        band = 0.08 if len(others) <= BANDED else 0.0
        found[label] = Look(colour, dash, MARKERS[index % len(MARKERS)], 1.2, band)
    return found


# ---- curves


def accuracy_curves(grouped: Grouped) -> Any:
    """Accuracy over the experiences seen so far after each experience."""
    return _curves(grouped, "seen_accuracy", "accuracy on all experiences so far (%)")


def recall_curves(grouped: Grouped) -> Any:
    """Recall@1 after each experience."""
    return _curves(grouped, "recall_at_1", "Recall@1 (%)")


def _curves(grouped: Grouped, key: str, label: str) -> Any:
    """For each size of memory two panels, the whole range and the upper part; rows without a memory are in all."""
    rows = [row for row in shown_rows(grouped) if all(result.get(key) for result in grouped[row.name])]
    values = {row.name: 100 * np.array([result[key] for result in grouped[row.name]]) for row in rows}
    look = looks(rows)
    sizes = memories(rows, grouped) or [0]
    across = (1, 2) if len(sizes) == 1 else (2, len(sizes))  # the two panels side by side, or one above the other
    columns = 1 if len(look) <= 22 else 2
    size = (5 * across[1] + 2.2 * columns, 4.9 if across[0] == 1 else 7.6)
    figure, grid = plt.subplots(*across, figsize=size, layout="constrained", squeeze=False)
    pairs = [grid[0]] if len(sizes) == 1 else [*grid.T]
    for memory, (whole, upper) in zip(sizes, pairs, strict=True):
        shown = [row for row in rows if memory_of(row, grouped) in (0, memory)]
        for axes in (whole, upper):
            for row in shown:
                curve(axes, row.label, look[row.label], values[row.name])
            axes.grid(alpha=0.25)
            axes.xaxis.get_major_locator().set_params(integer=True)
        means = [values[row.name].mean(axis=0) for row in shown]
        low = min((mean.min() for mean in means if mean[-1] > 50), default=0)
        which = f"memory {memory}, " if len(sizes) > 1 else ""
        whole.set(ylim=(0, 101), title=f"{which}whole range")
        upper.set(ylim=(max(0, low - 2), 100.5), title=f"{which}upper part")
    figure.supxlabel("experience trained", fontsize="medium")
    figure.supylabel(label, fontsize="medium")
    bands = "bands" if all(look[row.label].band for row in rows) else "bands for ours"
    seeds = max((len(curves) for curves in values.values()), default=0)
    spread = f"mean over seeds, {bands} ± one standard deviation" if seeds > 1 else "one seed"
    figure.suptitle(f"{suite_of(grouped)}: {spread}", fontsize="large")
    lines = {name: line for axes in grid.flat for line, name in zip(*axes.get_legend_handles_labels(), strict=True)}
    named = [name for name in look if name in lines]
    figure.legend(
        [lines[name] for name in named],
        named,
        loc="outside right center",
        ncols=columns,
        handlelength=3.5,
        fontsize="small",
        frameon=False,
    )
    return figure


def curve(axes: Any, label: str, look: Look, values: Any) -> Any:
    """Draw one row: `values` in percent, seeds by steps; a row of a single step is a level line."""
    mean, std = values.mean(axis=0), values.std(axis=0, ddof=1) if len(values) > 1 else 0 * values[0]
    if len(mean) == 1:  # joint training has no steps
        axes.axhline(mean[0], color="0.35", linestyle=(0, (1, 1)), linewidth=1.5, label=label)
        axes.axhspan(mean[0] - std[0], mean[0] + std[0], color="0.4", alpha=0.1, linewidth=0)
        return axes
    steps = np.arange(1, len(mean) + 1)
    style = {"color": look.colour, "linestyle": look.dash, "marker": look.marker, "linewidth": look.width}
    front = 3 if look.width > 2 else 2
    every = max(1, len(mean) // 10)
    axes.plot(steps, mean, label=label, markersize=5, markevery=every, zorder=front, **style)
    if look.band:
        axes.fill_between(steps, mean - std, mean + std, color=look.colour, alpha=look.band, linewidth=0)
    return axes


# ---- matrices


def accuracy_matrices(grouped: Grouped) -> Any:
    """A small heat map per row: mean accuracy on experience j after training on experience i."""
    rows = shown_rows(grouped)
    rows = [row for row in rows if len(grouped[row.name][0]["accuracy_matrix"]) > 1] or rows
    several = len(memories(rows, grouped)) > 1
    columns = min(5, len(rows))
    lines = -(-len(rows) // columns)
    size = (2.3 * columns + 1, 2.45 * lines + 0.5)
    figure, grid = plt.subplots(lines, columns, figsize=size, squeeze=False, layout="constrained")
    image: Any = None
    for place, axes in enumerate(grid.flat):
        if place >= len(rows):
            axes.axis("off")
            continue
        row = rows[place]
        size_of = memory_of(row, grouped)
        label = textwrap.fill(row.label, TITLE)
        title = f"{label}\nmemory {size_of}" if several and size_of else label
        image = heat_map(axes, title, 100 * np.array(mean_matrix([r["accuracy_matrix"] for r in grouped[row.name]])))
    figure.colorbar(image, ax=grid, label="accuracy (%), mean over seeds", shrink=min(1, 1.6 / lines), aspect=25)
    figure.supxlabel("evaluated on experience", fontsize="medium")
    figure.supylabel("after training on experience", fontsize="medium")
    return figure


def heat_map(axes: Any, title: str, matrix: Any) -> Any:
    """Draw a matrix in percent; returns the image."""
    image = axes.imshow(matrix, cmap="cividis", vmin=0, vmax=100)
    if matrix.shape[1] <= NUMBERED:
        small = 7 if matrix.shape[1] <= 6 else 5
        for (i, j), value in np.ndenumerate(matrix):
            shade = "black" if value > 50 else "white"
            axes.text(j, i, f"{value:.0f}", ha="center", va="center", fontsize=small, color=shade)
    for axis, count in ((axes.xaxis, matrix.shape[1]), (axes.yaxis, matrix.shape[0])):
        places = [*range(count)] if count <= NUMBERED else [0, *range(4, count, 5)]
        axis.set_ticks(places, [str(place + 1) for place in places], fontsize="small")
    axes.set_title(title, fontsize="small")
    axes.spines[:].set_visible(False)
    return image


# ---- cost


def cost(grouped: Grouped) -> Any:
    """Bars: seconds of training and of the rest, and peak memory where it was measured."""
    rows = shown_rows(grouped)
    several = len(memories(rows, grouped)) > 1
    labels = [
        f"{row.label}, {memory_of(row, grouped)}" if several and memory_of(row, grouped) else row.label for row in rows
    ]
    measured = [mean_std([peak_memory(result) for result in grouped[row.name]]) for row in rows]
    panels = 2 if any(measured) else 1
    figure, grid = plt.subplots(
        1, panels, figsize=(4.6 * panels + 2, 0.27 * len(rows) + 1.2), sharey=True, squeeze=False, layout="constrained"
    )
    _seconds(grid[0, 0], rows, grouped)
    if any(measured):
        bars(grid[0, 1], rows, [found[0] if found else 0.0 for found in measured], "peak memory (MiB)")
    grid[0, 0].set_yticks(range(len(rows)), labels)
    grid[0, 0].invert_yaxis()
    return figure


def _seconds(axes: Any, rows: Sequence[Row], grouped: Grouped) -> None:
    means = [
        [mean_std([get(key)(result) for result in grouped[row.name]]) for row in rows]
        for key in ("seconds_training", "seconds_total")
    ]
    training, total = ([found[0] if found else 0.0 for found in column] for column in means)
    spread = [found[1] if found else 0.0 for found in means[1]]
    bars(axes, rows, training, "seconds per run: training, the rest hatched")
    rest = [max(0.0, whole - part) for whole, part in zip(total, training, strict=True)]
    axes.barh(range(len(rows)), rest, left=training, color="white", edgecolor="0.4", hatch="////", linewidth=0.5)
    axes.errorbar(total, range(len(rows)), xerr=spread, fmt="none", ecolor="black", elinewidth=0.8, capsize=2)


def bars(axes: Any, rows: Sequence[Row], values: Sequence[float], label: str) -> Any:
    """Level bars, ours in their colours and baselines in grey."""
    colours = [OUR_COLOURS.get(row.config.method, "#BBBBBB") for row in rows]
    axes.barh(range(len(rows)), values, color=colours, edgecolor="0.4", linewidth=0.5)
    axes.set_xlabel(label)
    axes.grid(axis="x", alpha=0.25)
    axes.set_axisbelow(True)
    axes.set_ylim(-0.7, len(rows) - 0.3)
    return axes


FIGURES: Mapping[str, Callable[[Grouped], Any]] = {
    "accuracy_curves": accuracy_curves,
    "recall_curves": recall_curves,
    "accuracy_matrices": accuracy_matrices,
    "cost": cost,
}


def command(parsed: argparse.Namespace) -> int:
    """The command `plot`: draw the figures from JSON."""
    nested = not any(parsed.results.glob("*-seed*.json"))
    for suite, grouped in load_all(parsed.results).items():
        folder = parsed.out or parsed.results
        for path in plot_all(grouped, folder / suite if nested else folder):
            print(f"wrote {path}")
    return 0
