"""Pictures of what the metrics measure: each function draws on a matplotlib ``Axes`` that it is given, and returns it.

No figure is made, saved or shown here, and no global state of matplotlib is touched. Colours are Okabe and Ito's,
which the colour-blind can tell apart; whatever a colour says is said a second time, by a marker, a dash, a hatch or a
sign, so that the pictures can be read in grey.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

__all__ = [
    "plot_bias",
    "plot_curves",
    "plot_embedding",
    "plot_matrix",
    "plot_retrieval",
    "plot_task_confusion",
    "project",
]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = "osD^vP*X<>ph"
DASHES = ("-", "--", "-.", ":")
HATCHES = ("", "//", "..", "xx", "\\\\", "oo", "++")
RIGHT, WRONG = "#009E73", "#D55E00"

Array = NDArray[Any]
Numbers = ArrayLike | Tensor


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
    r = _matrix("plot_matrix", "matrix", matrix)
    _cells(axes, r, [["–" if np.isnan(x) else f"{100 * x:.0f}" for x in row] for row in r])
    _ticks("plot_matrix", axes, rows, columns, r.shape)
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
    c = _matrix("plot_task_confusion", "counts", counts)
    if c.shape[0] != c.shape[1] or not (c >= 0).all():
        raise ValueError(f"plot_task_confusion: counts must be a square matrix of numbers >= 0, got shape {c.shape}.")
    total = c.sum(axis=1, keepdims=True)
    shares = np.divide(c, total, out=np.full_like(c, np.nan), where=total > 0)
    _cells(axes, shares, [["–" if np.isnan(x) else f"{100 * x:.0f}" for x in row] for row in shares])
    _ticks("plot_task_confusion", axes, names, names, c.shape)
    axes.set(
        xlabel="experience of the predicted class", ylabel="experience of the true class", title="images (% of row)"
    )
    return axes


def plot_curves(
    axes: Axes,
    curves: Mapping[str, Numbers],
    *,
    x: Sequence[float] | None = None,
    band: Literal["std", "range"] = "std",
    xlabel: str = "experience trained",
    ylabel: str = "",
) -> Axes:
    """Lines over the experiences, of the mean over runs, each with a band.

    Args:
        axes: to draw on.
        curves: values by name, (T,), or (S, T) for S runs, which a band needs; nan leaves a gap.
        x: places of the T values; None: 1 to T.
        band: one standard deviation (S - 1) on either side, or the range of the runs.
        xlabel: below.
        ylabel: left.

    Raises:
        ValueError: no curve, one that is neither (T,) nor (S, T), x of another length, or an unknown band.
    """
    if not curves or band not in ("std", "range"):
        raise ValueError(
            f"plot_curves: give one curve at least, and band 'std' or 'range'; got {len(curves)}, {band!r}."
        )
    ticks: set[float] = set()
    for index, (name, given) in enumerate(curves.items()):
        values = np.atleast_2d(_array(given))
        places = np.arange(1, values.shape[-1] + 1) if x is None else np.asarray(x, dtype=float)
        if values.ndim != 2 or values.size == 0 or places.shape != values.shape[1:]:
            raise ValueError(
                f"plot_curves: {name!r} must be (T,) or (S, T) with T places on x, got shape {_array(given).shape} for "
                f"{places.shape[0]} places."
            )
        mean = values.mean(axis=0)
        colour = COLOURS[index % len(COLOURS)]
        marker, dash = MARKERS[index % len(MARKERS)], DASHES[index % len(DASHES)]
        axes.plot(places, mean, color=colour, marker=marker, linestyle=dash, label=name, markersize=6, linewidth=1.8)
        if len(values) > 1:
            spread = values.std(axis=0, ddof=1)
            low, high = (mean - spread, mean + spread) if band == "std" else (values.min(axis=0), values.max(axis=0))
            axes.fill_between(places, low, high, color=colour, alpha=0.15, linewidth=0)
        ticks |= set(places.tolist())
    if len(ticks) <= 12:
        axes.set_xticks(sorted(ticks))
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", handlelength=3.5)
    return axes


def plot_bias(
    axes: Axes,
    predicted: Mapping[str, Numbers],
    true: float,
    *,
    xlabel: str = "predictions that fall on the newest classes (%)",
) -> Axes:
    """Bars of the share of predictions on the newest classes, against a line at the share that should be.

    Args:
        axes: to draw on.
        predicted: shares in [0, 1] by method, one or those of several runs, which are drawn as dots on the bar.
        true: the true share.
        xlabel: below.

    Raises:
        ValueError: no bar, or a share outside [0, 1].
    """
    runs = {name: np.atleast_1d(_array(values)) for name, values in predicted.items()}
    shares = [true, *(share for values in runs.values() for share in values.ravel())]
    if not runs or not all(values.ndim == 1 and len(values) for values in runs.values()):
        raise ValueError("plot_bias: predicted must give each method one share or a list of some, and one at least.")
    if not all(0 <= share <= 1 for share in shares):
        raise ValueError(f"plot_bias: shares must lie in [0, 1], got {min(shares)} to {max(shares)}.")
    for place, (name, values) in enumerate(runs.items()):
        mean = 100 * values.mean()
        axes.barh(
            place,
            mean,
            height=0.6,
            color=COLOURS[place % len(COLOURS)],
            hatch=HATCHES[place % len(HATCHES)],
            edgecolor="white",
            label=name,
        )
        if len(values) > 1:
            offsets = np.linspace(-0.15, 0.15, len(values))
            axes.scatter(100 * values, place + offsets, s=16, color="white", edgecolor="black", linewidth=0.8, zorder=3)
        outline = [patheffects.withStroke(linewidth=3, foreground="white")]
        end = 100 * values.max()
        axes.annotate(
            f"{mean:.0f}", (end, place), xytext=(6, 0), textcoords="offset points", va="center", path_effects=outline
        )
    axes.axvline(100 * true, color="black", linestyle="--", linewidth=1.5, zorder=2)
    axes.annotate(
        f"true share {100 * true:.0f}",
        (100 * true, 1.0),
        xycoords=("data", "axes fraction"),
        xytext=(0, 3),
        textcoords="offset points",
        ha="center",
        fontsize="small",
    )
    axes.set_yticks(range(len(runs)), list(runs))
    axes.invert_yaxis()
    axes.set_xlim(0, max(100 * max(shares) * 1.15, 5))
    axes.set_xlabel(xlabel)
    return axes


def project(features: Numbers, method: Literal["pca", "tsne"] = "pca", *, seed: int = 0) -> Array:
    """Features in two dimensions.

    Args:
        features: (N, D), N >= 2; with D <= 2 they stay as they are (a missing dimension is zero).
        method: "pca" (principal components; the sign of each is such that its largest weight is positive), or "tsne"
            (scikit-learn's, started from the principal components).
        seed: of t-SNE.

    Returns:
        (N, 2).

    Raises:
        ValueError: not (N, D) with N >= 2, values that are not finite, or an unknown method.
    """
    x = _matrix("project", "features", features)
    if len(x) < 2 or not np.isfinite(x).all():
        raise ValueError(f"project: features must be two images at least, and finite, got shape {x.shape}.")
    if method not in ("pca", "tsne"):
        raise ValueError(f"project: method must be 'pca' or 'tsne', got {method!r}.")
    if x.shape[1] <= 2:
        return np.pad(x, ((0, 0), (0, 2 - x.shape[1])))
    if method == "tsne":
        from sklearn.manifold import TSNE

        perplexity = min(30.0, (len(x) - 1) / 3)
        points: Array = TSNE(init="pca", perplexity=perplexity, random_state=seed).fit_transform(x)
        return points
    centred = x - x.mean(axis=0)
    _, _, directions = np.linalg.svd(centred, full_matrices=False)
    first = np.pad(directions[:2], ((0, max(0, 2 - len(directions))), (0, 0)))
    signs = np.sign(first[range(2), np.abs(first).argmax(axis=1)])
    points = centred @ (first * np.where(signs == 0, 1, signs)[:, None]).T
    return points


def plot_embedding(
    axes: Axes,
    features: Numbers,
    ids: Numbers,
    *,
    by: str = "class",
    names: Mapping[int, str] | None = None,
    method: Literal["pca", "tsne"] = "pca",
    seed: int = 0,
) -> Axes:
    """A scatter of features in two dimensions; colour, marker and a label where it is densest say class or experience.

    Args:
        axes: to draw on.
        features: (N, D); with D = 2 they are drawn as they are (from ``project``, for several pictures in one frame).
        ids: what an image is coloured by, its class or experience, (N,) integers.
        by: what the ids are, for the legend.
        names: by id; None: the ids.
        method: "pca" or "tsne", see ``project``.
        seed: of t-SNE.

    Raises:
        ValueError: as ``project``, or ids of another length.
    """
    points, labels = project(features, method, seed=seed), _array(ids)
    if labels.shape != points.shape[:1]:
        raise ValueError(f"plot_embedding: ids must be one for each of {len(points)} images, got {labels.shape}.")
    for index, one in enumerate(np.unique(labels)):
        chosen = points[labels == one]
        name = str(int(one)) if names is None else names[int(one)]
        axes.scatter(
            chosen[:, 0],
            chosen[:, 1],
            s=22,
            color=COLOURS[index % len(COLOURS)],
            marker=MARKERS[index % len(MARKERS)],
            alpha=0.8,
            linewidth=0,
            label=name,
        )
        outline = [patheffects.withStroke(linewidth=3.5, foreground="white")]
        x, y = _densest(chosen)
        axes.text(x, y, name, ha="center", va="center", weight="bold", path_effects=outline, zorder=4)
    axes.set(xticks=[], yticks=[])
    if np.asarray(_array(features)).shape[1] > 2:
        kind = {"pca": "principal component", "tsne": "t-SNE axis"}[method]
        axes.set(xlabel=f"{kind} 1", ylabel=f"{kind} 2")
    axes.legend(title=by, fontsize="small", ncols=2 if len(np.unique(labels)) > 6 else 1, borderpad=0.4)
    return axes


def _densest(points: Array, neighbours: int = 10) -> Array:
    """The point (2,) among (N, 2) whose nearest others are nearest: inside a cluster, also where there are several."""
    some = points[:: -(-len(points) // 500)]
    distances = np.sort(np.linalg.norm(some[:, None] - some, axis=2), axis=1)
    densest: Array = some[distances[:, : neighbours + 1].mean(axis=1).argmin()]
    return densest


def plot_retrieval(
    axes: Axes,
    queries: Numbers,
    neighbours: Numbers,
    correct: Numbers,
    *,
    labels: Sequence[str] | None = None,
) -> Axes:
    """A strip for each query: the query and its nearest images, those of its class and those of others marked.

    Right ones have a solid green frame and a tick, wrong ones a dashed orange frame and a cross. Grey values run from
    the darkest to the brightest of all images shown; colours are taken to lie in [0, 1].

    Args:
        axes: to draw on.
        queries: (Q, C, H, W), C = 1 or 3.
        neighbours: the nearest images of each query, nearest first, (Q, K, C, H, W).
        correct: whether each is of the query's class, (Q, K) bool.
        labels: of the queries, written at the left; None: nothing.

    Raises:
        ValueError: shapes that do not fit together, or labels of another number.
    """
    q, n, right = _array(queries), _array(neighbours), _array(correct)
    if q.ndim != 4 or q.shape[1] not in (1, 3) or n.shape[:1] + n.shape[2:] != q.shape or right.shape != n.shape[:2]:
        raise ValueError(
            "plot_retrieval: queries must be (Q, C, H, W) with C = 1 or 3, neighbours (Q, K, C, H, W) and correct "
            f"(Q, K); got {q.shape}, {n.shape} and {right.shape}."
        )
    if labels is not None and len(labels) != len(q):
        raise ValueError(f"plot_retrieval: labels must be one for each of {len(q)} queries, got {len(labels)}.")
    low, high = min(q.min(), n.min()), max(q.max(), n.max())
    for row in range(len(q)):
        _image(axes, q[row], 0.0, row, low, high)
        _frame(axes, 0.0, row, "black", "-")
        for place in range(n.shape[1]):
            left = 1.3 + 1.1 * place  # a gap between the query and what it found
            _image(axes, n[row, place], left, row, low, high)
            _mark(axes, left, row, bool(right[row, place]))
    axes.set_xlim(-0.1, 1.3 + 1.1 * n.shape[1])
    axes.set_ylim(1.15 * len(q), -0.1)
    axes.set_aspect("equal")
    axes.set_xticks([0.5, *(1.8 + 1.1 * np.arange(n.shape[1]))], ["query", *map(str, range(1, n.shape[1] + 1))])
    axes.set_yticks(0.5 + 1.15 * np.arange(len(q)), [""] * len(q) if labels is None else list(labels))
    axes.tick_params(length=0, top=False, labeltop=True, labelbottom=False)
    axes.spines[:].set_visible(False)
    return axes


def _image(axes: Axes, image: Array, left: float, row: int, low: float, high: float) -> None:
    top = 1.15 * row
    extent = (left, left + 1, top + 1, top)
    if len(image) == 1:
        axes.imshow(image[0], cmap="gray", vmin=low, vmax=high, extent=extent, interpolation="nearest")
    else:
        axes.imshow(image.transpose(1, 2, 0).clip(0, 1), extent=extent, interpolation="nearest")


def _frame(axes: Axes, left: float, row: int, colour: str, dash: Any) -> None:
    axes.add_patch(
        Rectangle((left, 1.15 * row), 1, 1, fill=False, edgecolor=colour, linewidth=3, linestyle=dash, clip_on=False)
    )


def _mark(axes: Axes, left: float, row: int, right: bool) -> None:
    """A frame, and a tick or a cross in the upper right corner. Drawn, so that no font need have them."""
    colour = RIGHT if right else WRONG
    _frame(axes, left, row, colour, "-" if right else (0, (2, 1)))
    x, y = left + 0.8, 1.15 * row + 0.2
    if right:
        strokes = [([x - 0.08, x - 0.02, x + 0.09], [y + 0.01, y + 0.08, y - 0.08])]
    else:
        strokes = [([x - 0.07, x + 0.07], [y - 0.07, y + 0.07]), ([x - 0.07, x + 0.07], [y + 0.07, y - 0.07])]
    axes.add_patch(Rectangle((x - 0.15, y - 0.15), 0.3, 0.3, facecolor="white", edgecolor="none", zorder=3))
    for xs, ys in strokes:
        axes.plot(xs, ys, color=colour, linewidth=2.5, solid_capstyle="round", zorder=4)


def _cells(axes: Axes, shares: Array, texts: Sequence[Sequence[str]]) -> None:
    """Shares in [0, 1] as shades, with texts on them that can be read."""
    axes.set_facecolor("0.9")  # of cells without a number
    axes.imshow(np.ma.masked_invalid(shares), cmap="cividis", vmin=0, vmax=1)
    size = 11 if max(shares.shape) <= 6 else 8 if max(shares.shape) <= 12 else 5
    for (i, j), share in np.ndenumerate(shares):
        colour = "white" if share <= 0.5 else "black"
        axes.text(j, i, texts[i][j], ha="center", va="center", fontsize=size, color=colour)


def _ticks(
    name: str, axes: Axes, rows: Sequence[str] | None, columns: Sequence[str] | None, shape: tuple[int, ...]
) -> None:
    for names, count, setter in ((columns, shape[1], axes.set_xticks), (rows, shape[0], axes.set_yticks)):
        if names is not None and len(names) != count:
            raise ValueError(f"{name}: there must be {count} names, got {len(names)}.")
        setter(range(count), [str(i + 1) for i in range(count)] if names is None else list(names))
    axes.tick_params(length=0)


def _array(x: Numbers) -> Array:
    return x.detach().cpu().numpy() if isinstance(x, Tensor) else np.asarray(x)


def _matrix(name: str, argument: str, x: Numbers) -> Array:
    matrix = _array(x)
    if matrix.ndim != 2 or matrix.size == 0:
        raise ValueError(f"{name}: {argument} must be a matrix, got shape {matrix.shape}.")
    return matrix.astype(float)
