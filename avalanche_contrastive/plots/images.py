"""Images: where their features lie, and what they find."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from avalanche_contrastive.plots.drawing import COLOURS, MARKERS, RIGHT, WRONG, Array, Numbers, as_matrix, numbers

__all__ = ["plot_embedding", "plot_retrieval", "project"]


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
    x = as_matrix("project", "features", features)
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
        names: by id; an id without a name is its own.
        method: "pca" or "tsne", see ``project``.
        seed: of t-SNE.

    Raises:
        ValueError: as ``project``, or ids of another length.
    """
    x, labels = as_matrix("plot_embedding", "features", features), numbers("plot_embedding", "ids", ids)
    points = project(x, method, seed=seed)
    if labels.shape != points.shape[:1]:
        raise ValueError(f"plot_embedding: ids must be one for each of {len(points)} images, got {labels.shape}.")
    for index, one in enumerate(np.unique(labels)):
        chosen = points[labels == one]
        name = (names or {}).get(int(one), str(int(one)))
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
        place = _densest(chosen)
        axes.text(place[0], place[1], name, ha="center", va="center", weight="bold", path_effects=outline, zorder=4)
    axes.set(xticks=[], yticks=[])
    if x.shape[1] > 2:
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
    axes: Axes, queries: Numbers, neighbours: Numbers, correct: Numbers, *, labels: Sequence[str] | None = None
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
    named = {"queries": queries, "neighbours": neighbours, "correct": correct}
    q, n, right = (numbers("plot_retrieval", argument, x) for argument, x in named.items())
    is_images = q.ndim == 4 and q.size > 0 and q.shape[1] in (1, 3) and n.size > 0
    if not is_images or n.shape[:1] + n.shape[2:] != q.shape or right.shape != n.shape[:2]:
        raise ValueError(
            "plot_retrieval: queries must be (Q, C, H, W) with Q >= 1 and C = 1 or 3, neighbours (Q, K, C, H, W) with "
            f"K >= 1 and correct (Q, K); got {q.shape}, {n.shape} and {right.shape}."
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
