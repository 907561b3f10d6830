"""Heat maps of a suite: accuracy by experience, and compatible representations."""

import textwrap
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np

from avalanche_contrastive.bench.report.drawing import GREY, new_grid, shown_rows, titled, words
from avalanche_contrastive.bench.report.figures import classes
from avalanche_contrastive.bench.report.stats import mean_matrix
from avalanche_contrastive.bench.results import Grouped, Result

NUMBERED = 12  # up to so many experiences a matrix has its numbers written in


def accuracy_matrices(grouped: Grouped) -> Any:
    """A small heat map per row: mean accuracy on experience j after training on experience i."""
    rows = shown_rows(grouped)
    rows = [row for row in rows if len(grouped[row.name][0]["accuracy_matrix"]) > 1] or rows
    figure, grid = new_grid(len(rows), 5, (2.5, 2.65))
    image: Any = None
    for axes, row in zip(grid.flat, rows, strict=False):
        results = grouped[row.name]
        matrix = 100 * np.array(mean_matrix([result["accuracy_matrix"] for result in results]))
        if results[0]["config"]["scenario"] != "domain" and len(matrix) > 1:  # classes not trained yet: nothing to show
            matrix[np.triu_indices(len(matrix), 1, matrix.shape[1])] = np.nan
        names = classes(results[0]) if results[0].get("class_names") else []
        if not names or any(classes(result) != names for result in results):
            names = [str(place + 1) for place in range(matrix.shape[1])]
        image = heat_map(axes, words(titled(row, rows, grouped)), matrix, names)
    if image is not None:
        figure.colorbar(image, ax=grid, label="accuracy (%), mean over seeds", shrink=min(1, 2 / len(grid)), aspect=25)
    figure.supxlabel("evaluated on experience", fontsize="medium")
    figure.supylabel("after training on experience", fontsize="medium")
    return figure


def heat_map(axes: Any, title: str, matrix: Any, names: Sequence[str]) -> Any:
    """Draw a matrix in percent, nan in grey; returns the image."""
    image = axes.imshow(np.ma.masked_invalid(matrix), cmap="cividis", vmin=0, vmax=100, interpolation="none")
    axes.set_facecolor((*matplotlib.colors.to_rgb(GREY), 0.2))
    if matrix.shape[1] <= NUMBERED:
        small = 7 if matrix.shape[1] <= 6 else 5
        for (i, j), value in np.ndenumerate(matrix):
            if np.isfinite(value):
                shade = "black" if value > 50 else "white"
                axes.text(j, i, f"{value:.0f}", ha="center", va="center", fontsize=small, color=shade)
    for axis, count in ((axes.xaxis, matrix.shape[1]), (axes.yaxis, matrix.shape[0])):
        places = [*range(count)] if count <= NUMBERED else [0, *range(4, count, 5)]
        labels = [textwrap.shorten(names[place], 20, placeholder="…") for place in places]
        axis.set_ticks(places, labels, fontsize="small", parse_math=False)  # names of folders, perhaps with dollars
    if max(map(len, names)) > 3:
        axes.tick_params(axis="x", rotation=90)
    axes.set_title(title, fontsize="small")
    axes.spines[:].set_visible(False)
    return image


def compatibility_matrices(grouped: Grouped) -> Any:
    """A small heat map per row: mean C[t, k] by Recall@1, new queries in old galleries."""
    from avalanche_contrastive.plots import plot_compatibility  # torch takes seconds

    of_row = {row.name: row for row in shown_rows(grouped)}
    found = {name: _mean_compatibility(grouped[name]) for name in of_row}
    shown = {name: c for name, c in found.items() if len(c) > 1}  # joint training has one model
    rows = [of_row[name] for name in shown]
    figure, grid = new_grid(len(rows), 5, (2.5, 2.65))
    for axes, row in zip(grid.flat, rows, strict=False):
        plot_compatibility(axes, shown[row.name])
        axes.set_title(words(titled(row, rows, grouped)), fontsize="small")
        axes.set(xlabel="", ylabel="")
    figure.suptitle(
        "Recall@1 (%), mean over seeds; framed: as good as the self-test, which is underlined", fontsize="medium"
    )
    figure.supxlabel("gallery as embedded after experience", fontsize="medium")
    figure.supylabel("queries after experience", fontsize="medium")
    return figure


def _mean_compatibility(results: Sequence[Result]) -> Any:
    """Mean over seeds, (T, T) with nan above the diagonal; empty where it was not measured."""
    found = [(result.get("compatibility") or {}).get("recall@1", {}).get("matrix") for result in results]
    return np.mean(np.array(found, dtype=float), axis=0) if all(found) else np.zeros((0, 0))
