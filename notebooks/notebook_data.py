"""What the notebooks share and a reader need not copy: the images, a small network, tables and two kinds of bars."""

import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from avalanche.training.determinism.rng_manager import RNGManager
from IPython.display import Markdown
from matplotlib.axes import Axes
from torch import Tensor

from avalanche_contrastive.bench.data.kinds import STREAMS
from avalanche_contrastive.bench.data.sources import DOWNLOADS
from avalanche_contrastive.bench.data.streams import make_stream
from avalanche_contrastive.bench.methods.networks import Encoder, make_encoder
from avalanche_contrastive.plots.drawing import COLOURS, HATCHES

DIGITS, MNIST = "split_digits", "split_mnist"
FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
SIZES = {"train_images": 3_000, "test_images": 1_000}  # of MNIST: a notebook then takes some minutes


def load_benchmark(seed: int = 0, *, path: str | None = None, **split: int) -> Any:
    """Avalanche's benchmark of five experiences with two new classes each, of the digits, or of MNIST.

    Args:
        seed: decides the order of the classes.
        path: see ``choose``; None: the variable NOTEBOOK_DATA.
        split: another number of ``experiences``, or of ``base_classes`` in the first one.

    Raises:
        ValueError: there is no MNIST.
    """
    suite, options = choose(os.environ.get("NOTEBOOK_DATA", "") if path is None else path)
    return make_stream(suite, seed, **options, **split).benchmark


def choose(path: str) -> tuple[str, dict[str, Any]]:
    """The name of the stream, and what ``make_stream`` needs besides name and seed.

    Args:
        path: a folder with MNIST as torchvision keeps it, in MNIST/raw; or a file mnist.npz. "": scikit-learn's digits.

    Raises:
        ValueError: no MNIST there. A mistyped path is not made, and nothing is downloaded to it.
    """
    if not path:
        return DIGITS, {}
    folder = Path(path).expanduser().resolve()
    raw = folder / DOWNLOADS["mnist"].content
    missing = [name for name in FILES if not (raw / name).is_file()]
    alone = not raw.exists() and (folder.is_file() or (folder / "mnist.npz").is_file())
    if missing and not alone:
        raise ValueError(
            f"no MNIST in {folder}: missing in {raw}: {', '.join(missing)}. Name the folder that has MNIST/raw in it, "
            f'or download it: python -c "from torchvision.datasets import MNIST; MNIST({str(folder)!r}, '
            "download=True)\". With an empty path the notebooks run on scikit-learn's digits."
        )
    return MNIST, {"data": str(folder), **SIZES}


def small_encoder(seed: int = 0) -> Encoder:
    """A small network from images to vectors (B, features), with the same weights for the same seed.

    It seeds all random numbers, so that what follows is the same at each call, too.
    """
    suite, _ = choose(os.environ.get("NOTEBOOK_DATA", ""))
    RNGManager.set_random_seeds(seed)
    return make_encoder(STREAMS[suite].network, (1, 8, 8) if suite == DIGITS else (1, 28, 28))


def classes_of(experience: Any) -> list[int]:
    """The classes of an experience."""
    return sorted(int(c) for c in experience.classes_in_this_experience)


def images(experiences: Any) -> tuple[Tensor, Tensor]:
    """Images (N, C, H, W) and labels (N,) of some experiences."""
    pairs = [(x, int(y)) for experience in experiences for x, y, *_ in experience.dataset]
    return torch.stack([x for x, _ in pairs]), torch.tensor([y for _, y in pairs])


def table(rows: Mapping[str, Mapping[str, Any]], first: str = "") -> Markdown:
    """Rows by name as a table; numbers with one digit, lists of numbers as mean and standard deviation."""
    lines = [[first, *next(iter(rows.values()))]]
    lines += [["---", *["---:"] * (len(lines[0]) - 1)]]
    lines += [[name, *map(_cell, row.values())] for name, row in rows.items()]
    return Markdown("\n".join(f"| {' | '.join(line)} |" for line in lines))


def _cell(value: Any) -> str:
    if isinstance(value, str | int):
        return str(value)
    values = torch.as_tensor(value, dtype=torch.float64)
    return f"{values.mean():.1f}" + (f" ± {values.std():.1f}" if values.ndim and len(values) > 1 else "")


def bars(axes: Axes, values: Mapping[str, Sequence[float]], names: Sequence[str], xlabel: str) -> None:
    """Horizontal bars of some values for each name, in groups."""
    height = 0.8 / len(values)
    for place, (label, row) in enumerate(values.items()):
        at = torch.arange(len(names)) + height * (place - (len(values) - 1) / 2)
        look = {"color": COLOURS[place], "hatch": HATCHES[place], "edgecolor": "white"}
        axes.barh(at.tolist(), torch.as_tensor(row).tolist(), height, label=label, **look)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel(xlabel)
    if not axes.yaxis_inverted():
        axes.invert_yaxis()


def blocks(axes: Axes, matrix: Tensor, names: Sequence[str], title: str) -> None:
    """A small matrix with its numbers and their signs: plus is dark orange with white digits, minus is violet."""
    limit = float(matrix.abs().max())
    axes.imshow(matrix, cmap="PuOr_r", vmin=-limit, vmax=limit)
    for (i, j), value in zip(torch.cartesian_prod(*map(torch.arange, matrix.shape)), matrix.flatten(), strict=True):
        colour = "white" if abs(value) > 0.6 * limit else "black"
        axes.text(int(j), int(i), f"{value:+.1f}", ha="center", va="center", color=colour)
    axes.set_xticks(range(len(names)), names, fontsize=9)
    axes.set_yticks(range(len(names)), names, fontsize=9)
    axes.set_title(title, fontsize=11)


def terminal(command: str, folder: str | Path) -> str:
    """What ``avalanche-contrastive ...``, typed in that folder, prints: its result, or its complaint if it has one."""
    words = [sys.executable, "-m", "avalanche_contrastive.bench", *shlex.split(command)[1:]]
    paths = [str(Path(__file__).resolve().parent.parent), os.environ.get("PYTHONPATH", "")]
    settings = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, cwd=folder, env=settings, capture_output=True, text=True)
    return (done.stderr if done.returncode else done.stdout).strip()
