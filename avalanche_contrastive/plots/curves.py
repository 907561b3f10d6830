"""Lines over the experiences, and bars of shares."""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes

from avalanche_contrastive.plots.drawing import COLOURS, DASHES, HATCHES, MARKERS, Numbers, check_named, numbers

__all__ = ["plot_bias", "plot_curves"]


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
    check_named("plot_curves", "curves", curves)
    if not curves or band not in ("std", "range"):
        raise ValueError(
            f"plot_curves: give one curve at least, and band 'std' or 'range'; got {len(curves)}, {band!r}."
        )
    ticks: set[float] = set()
    for index, (name, given) in enumerate(curves.items()):
        curve = numbers("plot_curves", repr(name), given)
        values = np.atleast_2d(curve)
        places = np.arange(1, values.shape[-1] + 1) if x is None else numbers("plot_curves", "x", x)
        if values.ndim != 2 or values.size == 0 or places.shape != values.shape[1:]:
            raise ValueError(
                f"plot_curves: {name!r} must be (T,) or (S, T) with T >= 1 places on x, got shape {curve.shape} for x "
                f"of shape {places.shape}. Are all curves of the same experiences?"
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
    check_named("plot_bias", "predicted", predicted)
    runs = {name: np.atleast_1d(numbers("plot_bias", repr(name), values)) for name, values in predicted.items()}
    line = numbers("plot_bias", "true", true)
    if not runs or line.ndim or not all(values.ndim == 1 and len(values) for values in runs.values()):
        raise ValueError(
            "plot_bias: predicted must give each method one share or a list of some, and one at least; true is one "
            "share."
        )
    true = float(line)
    shares = [true, *(share for values in runs.values() for share in values)]
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
