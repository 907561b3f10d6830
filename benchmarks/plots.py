"""The two figures, made from result files alone; readable in grey and by the colour-blind."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # files only: no display is needed

import matplotlib.pyplot as plt
import numpy as np

from benchmarks.configs import Row
from benchmarks.results import Result, rows_of, suite_of
from benchmarks.stats import mean_matrix

Grouped = Mapping[str, Sequence[Result]]

# Okabe and Ito's colours; with twelve rows they repeat, so dashes and markers tell the lines apart as well.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
DASHES = ("-", "--", "-.", ":")
MARKERS = "osD^vP*Xp<>h"
OURS = ("co2l", "ssil", "csd")


def plot_all(grouped: Grouped, folder: Path) -> list[Path]:
    """Write both figures of the main rows; returns their paths."""
    rows = rows_of(grouped, "main") or rows_of(grouped, "ablation")
    return [plot_curves(rows, grouped, folder), plot_matrices(rows, grouped, folder)]


def plot_curves(rows: Sequence[Row], grouped: Grouped, folder: Path) -> Path:
    """Accuracy over the classes seen so far after each experience, mean and a band of one standard deviation.

    Left the whole range, right the upper part of it, where the methods with a memory lie close together.
    """
    figure, (whole, upper) = plt.subplots(1, 2, figsize=(12, 5.5), layout="constrained")
    curves = {row.name: 100 * np.array([r["seen_accuracy"] for r in grouped[row.name]]) for row in rows}
    for axes in (whole, upper):
        for index, row in enumerate(rows):
            _curve(axes, index, row, curves[row.name])
        axes.set_xticks(range(1, max(values.shape[1] for values in curves.values()) + 1))
        axes.set_xlabel("experience trained")
        axes.grid(alpha=0.3)
    ends = [values.mean(axis=0)[-1] for values in curves.values()]
    whole.set_ylim(0, 101)
    upper.set_ylim(max(0, min((end for end in ends if end > 50), default=0) - 3), 100.5)
    whole.set_ylabel("accuracy on all classes seen so far (%)")
    upper.set_title("the same, upper part", fontsize="medium")
    whole.set_title(f"{suite_of(grouped)}: mean ± standard deviation over seeds", fontsize="medium")
    figure.legend(*whole.get_legend_handles_labels(), loc="outside right center", fontsize="small", handlelength=4)
    return _save(figure, folder / "accuracy_curves.png")


def _curve(axes: Any, index: int, row: Row, values: Any) -> None:
    colour, dash = COLOURS[index % len(COLOURS)], DASHES[index // 3 % len(DASHES)]
    mean, std = values.mean(axis=0), values.std(axis=0, ddof=1) if len(values) > 1 else 0 * values[0]
    if len(mean) == 1:  # joint training has no steps
        axes.axhline(mean[0], color="0.4", linestyle=(0, (1, 1)), linewidth=1.5, label=row.label)
        axes.axhspan(mean[0] - std[0], mean[0] + std[0], color="0.4", alpha=0.1, linewidth=0)
        return
    steps = np.arange(1, len(mean) + 1)
    width = 2.6 if row.config.method in OURS else 1.3
    style = {"color": colour, "linestyle": dash, "marker": MARKERS[index % len(MARKERS)], "linewidth": width}
    axes.plot(steps, mean, label=row.label, markersize=6, **style)
    axes.fill_between(steps, mean - std, mean + std, color=colour, alpha=0.12, linewidth=0)


def plot_matrices(rows: Sequence[Row], grouped: Grouped, folder: Path) -> Path:
    """A small heat map per row: mean accuracy on experience j after training on experience i, numbers written in."""
    shown = [row for row in rows if len(grouped[row.name][0]["accuracy_matrix"]) > 1] or list(rows)
    columns = min(4, len(shown))
    lines = -(-len(shown) // columns)
    figure, grid = plt.subplots(
        lines, columns, figsize=(2.6 * columns + 0.8, 2.6 * lines + 0.4), squeeze=False, layout="constrained"
    )
    image: Any = None
    for place, axes in enumerate(grid.flat):
        if place >= len(shown):
            axes.axis("off")
            continue
        row = shown[place]
        image = _heat_map(
            axes, row.label, 100 * np.array(mean_matrix([r["accuracy_matrix"] for r in grouped[row.name]]))
        )
    figure.colorbar(image, ax=grid, label="accuracy (%)", shrink=0.6)
    figure.supxlabel("evaluated on experience", fontsize="medium")
    figure.supylabel("after training on experience", fontsize="medium")
    return _save(figure, folder / "accuracy_matrices.png")


def _heat_map(axes: Any, title: str, matrix: Any) -> Any:
    image = axes.imshow(matrix, cmap="cividis", vmin=0, vmax=100)
    for (i, j), value in np.ndenumerate(matrix):
        axes.text(j, i, f"{value:.0f}", ha="center", va="center", fontsize=7, color="black" if value > 50 else "white")
    axes.set_xticks(range(matrix.shape[1]), range(1, matrix.shape[1] + 1), fontsize="small")
    axes.set_yticks(range(matrix.shape[0]), range(1, matrix.shape[0] + 1), fontsize="small")
    axes.set_title(title, fontsize="small")
    return image


def _save(figure: Any, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part.png")
    figure.savefig(part, dpi=150)
    plt.close(figure)
    part.replace(path)
    return path
