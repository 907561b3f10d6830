"""What the pictures share: colours, numbers from tensors and lists, matrices of cells."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.text import Text
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from avalanche_contrastive._checks import form_of

__all__ = [
    "COLOURS",
    "DASHES",
    "HATCHES",
    "MARKERS",
    "RIGHT",
    "WRONG",
    "Array",
    "Numbers",
    "as_matrix",
    "check_named",
    "draw_cells",
    "name_ticks",
    "numbers",
]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = "osD^vP*X<>ph"
DASHES = ("-", "--", "-.", ":")
HATCHES = ("", "//", "..", "xx", "\\\\", "oo", "++")
RIGHT, WRONG = "#009E73", "#D55E00"

Array = NDArray[Any]
Numbers = ArrayLike | Tensor


def numbers(name: str, argument: str, x: Numbers) -> Array:
    """Numbers as numpy has them, from tensors of any type and device, and from lists of these.

    Raises:
        ValueError: something else, or rows of unequal length.
    """
    if isinstance(x, Tensor) and not x.is_meta and not x.is_quantized:
        x = x.detach().to_dense().cpu()
        x = (x.float() if x.is_floating_point() and x.element_size() < 4 else x).numpy()
    if isinstance(x, (list, tuple)) and any(isinstance(row, (list, tuple, Tensor, np.ndarray)) for row in x):
        parts = [numbers(name, argument, part) for part in x]
        if len({part.shape for part in parts}) > 1:
            lengths = ", ".join(str(len(part)) if part.ndim else "1" for part in parts)
            raise ValueError(
                f"{name}: {argument} must have rows of one length, got {lengths}. Are some of the runs shorter? Leave "
                "them out, or fill them up with nan."
            )
        return np.asarray(parts)
    found = np.empty(0, dtype=object) if isinstance(x, Tensor) else np.asarray(x)
    if found.dtype.kind not in "biuf":
        given = form_of(x) if isinstance(x, Tensor) else repr(x)
        raise ValueError(
            f"{name}: {argument} must be numbers, got {given:.80}. Is something missing? nan stands for what was not "
            "measured."
        )
    return found


def check_named(name: str, argument: str, x: object) -> None:
    """Refuse what is no dict of values by name."""
    if not isinstance(x, Mapping):
        raise ValueError(f"{name}: {argument} must be a dict of values by name, got {type(x).__name__}.")


def as_matrix(name: str, argument: str, x: Numbers) -> Array:
    """Numbers (T, J) as floats, or an error."""
    matrix = numbers(name, argument, x)
    if matrix.ndim != 2 or matrix.size == 0:
        raise ValueError(f"{name}: {argument} must be a matrix, got shape {matrix.shape}.")
    return matrix.astype(float)


def draw_cells(axes: Axes, shares: Array) -> list[list[Text]]:
    """Shares in [0, 1] as shades, with their numbers in per cent on them, which are given back row by row."""
    axes.set_facecolor("0.9")  # of cells without a number
    axes.imshow(np.ma.masked_invalid(shares), cmap="cividis", vmin=0, vmax=1)
    size = 11 if max(shares.shape) <= 6 else 8 if max(shares.shape) <= 12 else 5

    def number(i: int, j: int, share: float) -> Text:
        words = "–" if np.isnan(share) else f"{100 * share:.0f}"
        colour = "white" if share <= 0.5 else "black"
        return axes.text(j, i, words, ha="center", va="center", fontsize=size, color=colour)

    return [[number(i, j, share) for j, share in enumerate(row)] for i, row in enumerate(shares)]


def name_ticks(
    name: str, axes: Axes, rows: Sequence[str] | None, columns: Sequence[str] | None, shape: tuple[int, ...]
) -> None:
    """Write the names of a matrix's rows and columns, or their numbers from 1."""
    for names, count, setter in ((columns, shape[1], axes.set_xticks), (rows, shape[0], axes.set_yticks)):
        if names is not None and len(names) != count:
            raise ValueError(f"{name}: there must be {count} names, got {len(names)}.")
        setter(range(count), [str(i + 1) for i in range(count)] if names is None else list(names))
    axes.tick_params(length=0)
