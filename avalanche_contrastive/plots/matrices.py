"""Heat maps of matrices over the experiences."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from avalanche_contrastive.plots.drawing import Numbers, as_matrix, draw_cells, name_ticks

__all__ = ["plot_compatibility", "plot_matrix", "plot_task_confusion"]


def plot_matrix(
    axes: Axes,
    matrix: Numbers,
    *,
    value: str = "accuracy",
    rows: Sequence[str] | None = None,
    columns: Sequence[str] | None = None,
) -> Axes:
    """A heat map of R[i][j], a figure on experience j after training on experience i, with its numbers in per cent.

    A step marks where experiences start to be trained ones: left of it and below is what can be forgotten.

    Args:
        axes: to draw on.
        matrix: (T, J), shares in [0, 1]; nan is left without a number.
        value: what the numbers are, for the title.
        rows: names of the rows; None: 1 to T.
        columns: names of the columns; None: 1 to J.

    Raises:
        ValueError: no matrix, or names of another number.
    """
    r = as_matrix("plot_matrix", "matrix", matrix)
    draw_cells(axes, r)
    name_ticks("plot_matrix", axes, rows, columns, r.shape)
    edge = np.repeat(np.arange(min(r.shape) + 1), 2) - 0.5
    axes.plot(edge[1:], edge[:-1], color="white", linewidth=2.5, solid_joinstyle="miter")
    axes.plot(edge[1:], edge[:-1], color="black", linewidth=1.2, linestyle="--", dash_joinstyle="miter")
    axes.set(xlim=(-0.5, r.shape[1] - 0.5), ylim=(r.shape[0] - 0.5, -0.5))
    axes.set(xlabel="evaluated on experience", ylabel="after training on experience", title=f"{value} (%)")
    return axes


def plot_task_confusion(axes: Axes, counts: Numbers, *, names: Sequence[str] | None = None) -> Axes:
    """A heat map of a task confusion matrix: shares of each row in per cent.

    Args:
        axes: to draw on.
        counts: images by (experience of the true class, experience of the predicted class), (T, T), >= 0.
        names: of the experiences; None: 1 to T.

    Raises:
        ValueError: no square matrix, a count below zero, or names of another number.
    """
    c = as_matrix("plot_task_confusion", "counts", counts)
    if c.shape[0] != c.shape[1] or not (c >= 0).all():
        raise ValueError(f"plot_task_confusion: counts must be a square matrix of numbers >= 0, got shape {c.shape}.")
    total = c.sum(axis=1, keepdims=True)
    shares = np.divide(c, total, out=np.full_like(c, np.nan), where=total > 0)
    draw_cells(axes, shares)
    name_ticks("plot_task_confusion", axes, names, names, c.shape)
    axes.set(
        xlabel="experience of the predicted class", ylabel="experience of the true class", title="images (% of row)"
    )
    return axes


def plot_compatibility(
    axes: Axes,
    matrix: Numbers,
    *,
    value: str = "Recall@1",
    ties: Literal["compatible", "incompatible"] = "compatible",
    names: Sequence[str] | None = None,
) -> Axes:
    """A heat map of C[t, k], queries of model t in the gallery of model k, with its numbers in per cent.

    Compatible cells, where C[t, k] is as good as the self-test C[k, k] at the top of the column, have a frame and a
    bold number; the diagonal, the self-tests, is underlined.

    Args:
        axes: to draw on.
        matrix: C, (T, T), shares in [0, 1]; what is above the diagonal is not drawn, nan is left without a number.
        value: what the numbers are, for the title.
        ties: whether C[t, k] = C[k, k] is compatible, as in ``metrics.average_compatibility``.
        names: of the models; None: 1 to T.

    Raises:
        ValueError: no square matrix, another option, or names of another number.
    """
    name = "plot_compatibility"
    c = as_matrix(name, "matrix", matrix)
    if c.shape[0] != c.shape[1] or ties not in ("compatible", "incompatible"):
        raise ValueError(
            f"{name}: matrix must be square and ties 'compatible' or 'incompatible', got shape {c.shape} and {ties!r}."
        )
    c = np.where(np.tri(len(c), dtype=bool), c, np.nan)
    cells = draw_cells(axes, c)
    for t, k in np.argwhere(~np.tri(len(c), dtype=bool)):
        cells[t][k].set_text("")
    name_ticks(name, axes, names, names, c.shape)
    self_test = np.broadcast_to(np.diag(c), c.shape)
    compatible = (c >= self_test if ties == "compatible" else c > self_test) & np.tri(len(c), k=-1, dtype=bool)
    halo = [patheffects.withStroke(linewidth=4.5, foreground="white")]
    for t, k in np.argwhere(compatible):
        axes.add_patch(
            Rectangle((k - 0.42, t - 0.42), 0.84, 0.84, fill=False, edgecolor="black", linewidth=2, path_effects=halo)
        )
        cells[t][k].set_weight("bold")
    for k in range(len(c)):
        axes.plot([k - 0.2, k + 0.2], [k + 0.3, k + 0.3], color=cells[k][k].get_color(), linewidth=1.5)
    axes.set(xlim=(-0.5, len(c) - 0.5), ylim=(len(c) - 0.5, -0.5))
    axes.set(xlabel="gallery stored after experience", ylabel="queries by the model after experience")
    axes.set_title(f"{value} (%); framed: as good as the self-test")
    return axes
