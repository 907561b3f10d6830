"""What notebooks 1 to 4 share: the data that they run on, and a check of their words against the numbers."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from avalanche_contrastive.bench.data.kinds import STREAMS
from avalanche_contrastive.bench.data.sources import DOWNLOADS
from avalanche_contrastive.bench.results import Grouped, Result

DIGITS, MNIST = "split_digits", "split_mnist"
FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
# Of MNIST: as many training images as its settings were tuned with, and a notebook takes some minutes.
SIZES = {"train_images": 20_000, "test_images": 2_000}


def choose(path: str) -> tuple[str, dict[str, Any]]:
    """The suite that a notebook takes configs and results from, and what `make_stream` needs besides name and seed.

    Args:
        path: a folder with MNIST as torchvision keeps it, in MNIST/raw; or whatever else `data.load` reads as MNIST,
            which is a file mnist.npz. "": scikit-learn's digits.

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


def paired(results: Grouped, rows: Sequence[str]) -> dict[str, list[Result]]:
    """The results of the seeds of the first row, for each row that has them all: what can be compared seed by seed."""
    seeds = [result["seed"] for result in results[rows[0]]]
    found = {row: {result["seed"]: result for result in results.get(row, ())} for row in rows}
    return {row: [of[seed] for seed in seeds] for row, of in found.items() if of.keys() >= set(seeds)}


def check_words(suite: str, claims: Mapping[str, bool]) -> str:
    """Whether a notebook's words agree with its numbers; they were written for the digits.

    Args:
        suite: that the notebook runs on.
        claims: what the words say, and whether it holds.

    Returns:
        A paragraph to put above the words: on other data than the digits it names what does not hold there; else "".

    Raises:
        ValueError: a claim does not hold on the digits, so the words must be written anew.
    """
    wrong = [claim for claim, holds in claims.items() if not holds]
    if suite == DIGITS:
        if wrong:
            raise ValueError(f"the words below do not fit the numbers any more: {'; '.join(wrong)}")
        return ""
    found = f"these do **not** hold here: {'; '.join(wrong)}" if wrong else "all hold here"
    return (
        f"The words below were written for {STREAMS[DIGITS].title}; the numbers in them are those of this run, on "
        f"{STREAMS[suite].title}. Of the {len(claims)} statements that are checked, {found}.\n\n"
    )
