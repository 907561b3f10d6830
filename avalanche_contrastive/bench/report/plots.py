"""The figures, made from result files alone; readable in grey and by the colour-blind.

As PNG they are dark on white. As SVG, for the report, they take the colours of the page around them, light or dark."""

import argparse
import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

from avalanche_contrastive.bench.config import Row
from avalanche_contrastive.bench.files import write_bytes
from avalanche_contrastive.bench.report.drawing import GREY, TEXT, TITLE, new_grid, shown_rows, titled, words
from avalanche_contrastive.bench.report.figures import (
    GROUPS,
    OURS,
    get,
    group_of,
    known,
    memories,
    memory_of,
    peak_memory,
)
from avalanche_contrastive.bench.report.matrices import accuracy_matrices, compatibility_matrices
from avalanche_contrastive.bench.report.tables import figure_titles
from avalanche_contrastive.bench.results import Grouped, load_all, suite_of

# On a light page, and on a dark one. Ours have the first three in every figure, baselines share the others. All stand
# out from the page, and those of a kind from each other for the colour-blind too: tests measure both. In grey, dashes
# and markers say everything a second time.
COLOURS = (
    ("#0a5ca8", "#4a90e8"),
    ("#d75808", "#ff8a3d"),
    ("#009e7f", "#4fe0c0"),
    ("#b93aa8", "#dd5fbd"),
    ("#7a5400", "#ecb134"),
    ("#1f1a70", "#7f72f5"),
    ("#8490a2", "#dfe2e5"),
)
DASHES: tuple[Any, ...] = ("--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)), (0, (3, 1, 1, 1)))
OUR_MARKERS = dict(zip(OURS, "osD", strict=True))
MARKERS = "^vPX*<>hpd8"
PER_PANEL = 6  # baselines that can be told apart in one panel
ACROSS = 3  # panels of curves side by side
DOTS = 140  # per inch
STYLE: dict[Any, Any] = {
    "text.parse_math": False,  # a label may hold a $
    "svg.fonttype": "none",  # words stay words
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same bytes everywhere
    "font.size": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    **{f"{part}.color": TEXT for part in ("text", "xtick", "ytick")},
    **{f"axes.{part}color": TEXT for part in ("edge", "label")},
    "grid.color": GREY,
    "grid.alpha": 0.3,
    "hatch.linewidth": 0.5,
}
SVG = "http://www.w3.org/2000/svg"


@dataclass(frozen=True)
class Look:
    """How a row is drawn, in every figure of its suite."""

    colour: str
    dash: Any
    marker: str
    width: float


@dataclass(frozen=True)
class Panel:
    """Curves that stand together: the rows themselves, and ours to compare them with."""

    title: str
    rows: Sequence[Row]
    beside: Sequence[Row] = ()


def plot_all(grouped: Grouped, folder: Path) -> list[Path]:
    """Write the figures of the main rows as PNG; returns their paths.

    Raises:
        OSError: one cannot be written; what was there before is as it was.
    """
    paths = []
    for name in figure_titles(grouped):
        path = folder / f"{name}.png"
        write_bytes(path, rendered(FIGURES[name], grouped))
        paths.append(path)
    return paths


def rendered(draw: Callable[[Grouped], Any], grouped: Grouped) -> bytes:
    """A figure as PNG, the same bytes for the same results.

    256 colours are all that such a figure needs, at a fraction of the size.
    """
    image = Image.open(_saved(draw, grouped, "png", dpi=DOTS)).convert("RGB")
    file = io.BytesIO()
    image.quantize(256, dither=Image.Dither.NONE).save(file, format="png", optimize=True)
    return file.getvalue()


def drawing(draw: Callable[[Grouped], Any], grouped: Grouped, name: str, title: str) -> str:
    """A figure as an SVG element to stand inside a page, the same for the same results.

    Args:
        draw: one of FIGURES.
        grouped: results of a suite.
        name: starts the ids inside, so that two drawings of a page share none.
        title: for those who do not see it.
    """
    tree = ElementTree.parse(_saved(draw, grouped, "svg", transparent=True, metadata={"Date": None})).getroot()
    for parent in tree.iter():
        for child in [c for c in parent if c.tag in (f"{{{SVG}}}metadata", f"{{{SVG}}}style")]:
            parent.remove(child)
    variables = {light: f"var(--plot-{index},{light})" for index, (light, _) in enumerate(COLOURS)}
    for element in tree.iter():
        for key, value in element.attrib.items():
            if key == "id":
                element.set(key, f"{name}-{value}")
            elif key == "style":
                value = re.sub("|".join(variables), lambda found: variables[found[0]], value)
                element.set(key, value.replace(TEXT, "currentColor"))
            if "#" in value and (key.endswith("href") or "url(#" in value):
                element.set(key, re.sub(r"(^|url\()#", rf"\1#{name}-", element.attrib[key]))
    tree.attrib.update({"role": "img", "aria-label": title})
    ElementTree.register_namespace("", SVG)
    ElementTree.register_namespace("xlink", "http://www.w3.org/1999/xlink")
    return ElementTree.tostring(tree, encoding="unicode")


def _saved(draw: Callable[[Grouped], Any], grouped: Grouped, kind: str, **more: Any) -> io.BytesIO:
    file = io.BytesIO()
    with plt.rc_context({**STYLE, "svg.hashsalt": "the same ids each time"}):
        figure = draw(grouped)
        figure.savefig(file, format=kind, **more)
        plt.close(figure)
    file.seek(0)
    return file


# ---- curves


def looks(rows: Sequence[Row]) -> dict[str, Look]:
    """How each row is drawn, by its label: a method looks the same with every memory."""
    found: dict[str, Look] = {}
    used: list[str] = []  # methods of ours, and groups of the baselines
    light = [pair[0] for pair in COLOURS]
    for row in rows:
        method, group = row.config.method, group_of(row)
        if row.label in found:
            continue
        if group == "ours":  # a second row of a method differs in its dashes
            dash = ("-", *DASHES)[used.count(method) % (len(DASHES) + 1)]
            found[row.label] = Look(light[OURS.index(method)], dash, OUR_MARKERS[method], 2.4)
            used.append(method)
        else:
            place, colours = used.count(group), light[len(OURS) :]
            dash = DASHES[(place + place // len(colours)) % len(DASHES)]
            found[row.label] = Look(colours[place % len(colours)], dash, MARKERS[place % len(MARKERS)], 1.5)
            used.append(group)
    return found


def panels(rows: Sequence[Row], grouped: Grouped) -> list[Panel]:
    """Group by group; ours and replay for each size of memory, and a large group in parts.

    Rows of ours without a memory stand with every size.
    """
    sizes = memories(rows, grouped) or [0]
    found = []
    for group in GROUPS:
        for size in sizes if group in ("ours", "replay") else sizes[:1]:
            fitting = [row for row in rows if memory_of(row, grouped) in (0, size)]
            members = [row for row in fitting if group_of(row) == group]
            beside = [row for row in fitting if group_of(row) == "ours" and group != "ours"]
            which = f", memory {size}" if len(sizes) > 1 and any(memory_of(row, grouped) for row in members) else ""
            count = -(-len(members) // PER_PANEL)
            for part in range(count):
                start, end = (len(members) * edge // count for edge in (part, part + 1))
                of = f" ({part + 1} of {count})" if count > 1 else ""
                found.append(Panel(f"{group}{which}{of}", members[start:end], beside))
    return found


def accuracy_curves(grouped: Grouped) -> Any:
    """Accuracy over the experiences seen so far after each experience."""
    return _curves(grouped, "seen_accuracy", "accuracy on all experiences so far (%)")


def recall_curves(grouped: Grouped) -> Any:
    """Recall@1 after each experience."""
    return _curves(grouped, "recall_at_1", "Recall@1 (%)")


def _curves(grouped: Grouped, key: str, label: str) -> Any:
    rows = [row for row in shown_rows(grouped) if all(result.get(key) for result in grouped[row.name])]
    values = {row.name: 100 * np.array([result[key] for result in grouped[row.name]]) for row in rows}
    look = looks(rows)
    shown = panels(rows, grouped)
    figure, grid = new_grid(len(shown), ACROSS, (4.4, 4.2))
    for axes, panel in zip(grid.flat, shown, strict=False):
        for row in panel.beside:
            curve(axes, "", look[row.label], values[row.name], focal=False)
        for row in panel.rows:
            curve(axes, words(row.label), look[row.label], values[row.name], focal=True)
        lowest = min(values[row.name].mean(axis=0).min() for row in panel.rows)
        axes.set(ylim=(max(0, 10 * ((lowest - 3) // 10)), 101), title=panel.title)
        axes.grid()
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.yaxis.get_major_locator().set_params(steps=(1, 2, 5, 10), nbins=6)
        axes.legend(
            loc="upper center",
            bbox_to_anchor=(0.5, -0.1),
            ncols=2,
            fontsize="small",
            frameon=False,
            handlelength=3,
            columnspacing=1,
        )
    figure.supxlabel("experience trained", fontsize="medium")
    figure.supylabel(label, fontsize="medium")
    seeds = max((len(curves) for curves in values.values()), default=0)
    spread = "mean over seeds, bands ± one standard deviation" if seeds > 1 else "one seed"
    thin = "; thin lines: ours, as in the first panel; ranges differ" if any(panel.beside for panel in shown) else ""
    figure.suptitle(words(f"{suite_of(grouped)}: {spread}{thin}", TITLE), fontsize="medium")
    return figure


def curve(axes: Any, label: str, look: Look, values: Any, *, focal: bool) -> Any:
    """Draw one row; `values` in percent, (seeds, steps). A row of a single step is a horizontal line."""
    mean, std = values.mean(axis=0), values.std(axis=0, ddof=1) if len(values) > 1 else 0 * values[0]
    style = {"color": look.colour, "linestyle": look.dash, "linewidth": look.width if focal else 0.8}
    if len(mean) == 1:  # joint training has no steps
        axes.axhline(mean[0], label=label, **style)
        axes.axhspan(mean[0] - std[0], mean[0] + std[0], color=look.colour, alpha=0.12, linewidth=0)
        return axes
    steps = np.arange(1, len(mean) + 1)
    every = max(1, len(mean) // 10)
    size = 5.5 if focal else 3
    axes.plot(steps, mean, label=label or "_beside", marker=look.marker, markersize=size, markevery=every, **style)
    if focal:
        axes.fill_between(steps, mean - std, mean + std, color=look.colour, alpha=0.12, linewidth=0)
    return axes


# ---- cost


def cost(grouped: Grouped) -> Any:
    """Bars: seconds of training and of the rest, and peak memory where it was measured on a GPU."""
    rows = shown_rows(grouped)
    measured = [max(known(grouped[row.name], peak_memory), default=0.0) for row in rows]
    panels = 2 if any(measured) else 1
    figure, grid = plt.subplots(
        1, panels, figsize=(4.6 * panels + 4, 0.3 * len(rows) + 1.2), sharey=True, squeeze=False, layout="constrained"
    )
    _seconds(grid[0, 0], rows, grouped)
    if any(measured):
        bars(grid[0, 1], rows, measured, "peak memory (MiB)")
    grid[0, 0].set_yticks(range(len(rows)), [words(titled(row, rows, grouped)) for row in rows])
    grid[0, 0].invert_yaxis()
    return figure


def _seconds(axes: Any, rows: Sequence[Row], grouped: Grouped) -> None:
    training, total = (
        [min(known(grouped[row.name], get(key)), default=0.0) for row in rows]
        for key in ("seconds_training", "seconds_total")
    )
    bars(axes, rows, training, "seconds of the fastest seed: training, the rest hatched")
    rest = [max(0.0, whole - part) for whole, part in zip(total, training, strict=True)]
    axes.barh(range(len(rows)), rest, left=training, color="none", edgecolor=GREY, hatch="////", linewidth=0.5)


def bars(axes: Any, rows: Sequence[Row], values: Sequence[float], label: str) -> Any:
    """Horizontal bars, ours in their colours and baselines in grey."""
    ours = {method: light for method, (light, _) in zip(OURS, COLOURS, strict=False)}
    axes.barh(range(len(rows)), values, color=[ours.get(row.config.method, GREY) for row in rows], linewidth=0)
    axes.set_xlabel(label)
    axes.grid(axis="x")
    axes.set_axisbelow(True)
    axes.set_ylim(-0.7, len(rows) - 0.3)
    return axes


FIGURES: Mapping[str, Callable[[Grouped], Any]] = {
    "accuracy_curves": accuracy_curves,
    "recall_curves": recall_curves,
    "accuracy_matrices": accuracy_matrices,
    "compatibility": compatibility_matrices,
    "cost": cost,
}


def command(parsed: argparse.Namespace) -> int:
    """Draw the figures."""
    nested = not any(parsed.results.glob("*-seed*.json"))
    for suite, grouped in load_all(parsed.results).items():
        folder = parsed.out or parsed.results
        for path in plot_all(grouped, folder / suite if nested else folder):
            print(f"wrote {path}")
    return 0
