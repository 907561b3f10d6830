"""Data sets by name, decoded once per process: scikit-learn's digits and Avalanche's downloads."""

import math
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout, suppress
from dataclasses import dataclass
from functools import lru_cache
from os import W_OK, access
from pathlib import Path
from typing import Any

import numpy as np
import torch
from avalanche.benchmarks.classic import SplitCIFAR10, SplitCIFAR100, SplitFMNIST, SplitMNIST, SplitTinyImageNet
from avalanche.benchmarks.datasets import default_dataset_location
from filelock import FileLock

from avalanche_contrastive.bench.data.arrays import (
    Array,
    Arrays,
    Part,
    check_classes,
    check_memory,
    images_tensor,
    label_array,
    load_npz,
    read_bank,
    read_origin,
    stratified,
)
from avalanche_contrastive.bench.data.images import decode
from avalanche_contrastive.bench.data.kinds import StreamKind


@dataclass(frozen=True)
class Download:
    """A data set that Avalanche downloads.

    Args:
        title: its name in words.
        classes: their number.
        benchmark: Avalanche's benchmark of it.
        place: name of Avalanche's default folder for it.
        content: what it consists of inside its folder.
        archive: the downloaded file, where it stays beside the content.
        sizes: images for training and testing, where nothing else shows that some are missing.
    """

    title: str
    classes: int
    benchmark: Callable[..., Any]
    place: str
    content: str
    archive: str = ""
    sizes: tuple[int, int] | None = None


DOWNLOADS = {
    "mnist": Download("MNIST", 10, SplitMNIST, "mnist", "MNIST/raw"),
    "fmnist": Download("Fashion-MNIST", 10, SplitFMNIST, "fashionmnist", "FashionMNIST/raw"),
    "cifar10": Download("CIFAR-10", 10, SplitCIFAR10, "cifar10", "cifar-10-batches-py", "cifar-10-python.tar.gz"),
    "cifar100": Download("CIFAR-100", 100, SplitCIFAR100, "cifar100", "cifar-100-python", "cifar-100-python.tar.gz"),
    "tiny_imagenet": Download(
        "Tiny-ImageNet",
        200,
        SplitTinyImageNet,
        "tinyimagenet",
        "tiny-imagenet-200",
        "tiny-imagenet-200.zip",
        sizes=(100_000, 10_000),
    ),
}


# The stream that the bank has the images of.
BANKS = {"cifar100_bank": "split_cifar100", "cifar10_bank": "split_cifar10"}
SAME_ENCODER = ("weights", "image_size")  # of two banks, if their features are of one space


@lru_cache(maxsize=2)
def load(source: str, root: str = "") -> Arrays:
    """Decode a data set, once per process.

    Args:
        source: "digits", a key of DOWNLOADS, or of BANKS: the file SOURCE.npz of the command `features`.
        root: folder of the downloads, "" for Avalanche's default. What is not there is downloaded, unless there is a
            file SOURCE.npz as described in `arrays.load_npz`; root may be such a file as well.

    Raises:
        ValueError: the data set cannot be downloaded or read; the message says from where and what to do.
    """
    if source == "digits":
        return _digits()
    if source in BANKS:
        return read_bank(bank_file(source, root))[0]
    kind = DOWNLOADS[source]
    folder = Path(root).expanduser() if root else Path(default_dataset_location(kind.place))
    file = folder if folder.is_file() else folder / f"{source}.npz"
    arrays = load_npz(file) if file.is_file() and not (folder / kind.content).exists() else _download(kind, folder)
    if len(arrays.class_names) != kind.classes:
        raise ValueError(f"{folder}: {len(arrays.class_names)} classes; {kind.title} has {kind.classes}.")
    return arrays


def bank_file(source: str, root: str) -> Path:
    """Where a bank is, a key of BANKS.

    Raises:
        ValueError: it is not there; the message says how to make it.
    """
    path = Path(root).expanduser() if root else Path(default_dataset_location("feature_banks"))
    file = path if path.is_file() else path / f"{source}.npz"
    if not file.is_file():
        raise ValueError(
            f"{file}: no such feature bank. Make it once: avalanche-contrastive features --data {BANKS[source]} "
            f"--encoder efficientnet_lite0 --out {file}; or name another folder (--root)."
        )
    return file


def other_data(name: str, kind: StreamKind, root: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The test images of another data set, (N, C, H, W), and their classes.

    Args:
        name: key of DOWNLOADS or BANKS.
        kind: of the stream that is trained on.
        root: where its data are; the others are looked for there, too.

    Raises:
        ValueError: no such data, or they do not fit the stream, such as a bank of another encoder.
    """
    fitting = [other for other in (BANKS if kind.features else DOWNLOADS) if other != kind.source]
    if name not in fitting or kind.source == "own":
        others = "" if kind.source == "own" else f", or one of {', '.join(fitting)}"
        raise ValueError(f"unseen: beside {kind.title} expected a list of classes{others}; got {name!r}.")
    folder = str(Path(root).expanduser().parent) if root and Path(root).expanduser().is_file() else root
    if name in BANKS:
        files = bank_file(kind.source, root), bank_file(name, folder)
        ours, theirs = map(read_origin, files)
        for key in SAME_ENCODER:
            if ours.get(key) != theirs.get(key):
                raise ValueError(
                    f"{files[1]} was made by another encoder than {files[0]}: {key} {theirs.get(key)!r}, not "
                    f"{ours.get(key)!r}. Delete it, and make it anew with the same --encoder and --image-size."
                )
    arrays = load(name, folder)
    return arrays.test.x, arrays.test.y


def _digits() -> Arrays:
    from sklearn.datasets import load_digits

    images, targets = load_digits(return_X_y=True)
    x = torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16  # 16 is the darkest grey in these scans
    y = torch.tensor(targets, dtype=torch.long)
    kept, held = stratified(y, 0.2, "digits")
    return Arrays(Part(x[kept], y[kept]), Part(x[held], y[held]), tuple(map(str, range(10))))


def _download(kind: Download, folder: Path) -> Arrays:
    content = folder / kind.content
    try:
        with _alone(folder, [content, *([folder / kind.archive] if kind.archive else [])]):
            train, test = _leaves(kind, folder)
    except Exception as error:  # whatever goes wrong in downloading, unpacking and reading
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise ValueError(_what_to_do(kind, folder, reason)) from error
    return _decoded(kind, folder, train, test)


def _leaves(kind: Download, folder: Path) -> list[Any]:
    """The torchvision data sets for training and testing under Avalanche's benchmark."""
    # Unshuffled, or the class order would be drawn from the global random state.
    with redirect_stdout(sys.stderr):  # Tiny-ImageNet's class talks
        benchmark = kind.benchmark(1, shuffle=False, dataset_root=folder, train_transform=None, eval_transform=None)
    leaves = []
    for stream in (benchmark.train_stream, benchmark.test_stream):
        node = stream[0].dataset._flat_data
        while hasattr(node, "_datasets"):
            node = node._datasets[0]
        leaves.append(node)
    return leaves


def _decoded(kind: Download, folder: Path, train: Any, test: Any) -> Arrays:
    where = f"{kind.title} in {folder}"
    labels, images = [], []
    for leaf in (train, test):
        labels.append(label_array(f"{where}, labels", np.asarray(leaf.targets), len(leaf.data)))
    if kind.sizes is not None and kind.sizes != (len(train.data), len(test.data)):
        found = f"{len(train.data):,} and {len(test.data):,} images instead of {kind.sizes[0]:,} and {kind.sizes[1]:,}"
        raise ValueError(_what_to_do(kind, folder, found))
    check_classes(where, {"train labels": labels[0], "test labels": labels[1]})
    for leaf in (train, test):
        try:
            # A list of files has one decode for each image; the other sets are one array already.
            files = isinstance(leaf.data, list)
            if files:
                check_memory(where, 2 * len(leaf.data) * 64 * 64 * 3)  # twice: `images_tensor` copies
            raw: Array = decode(leaf.data, 3, (64, 64)) if files else np.asarray(leaf.data)
        except ValueError as error:
            raise ValueError(_what_to_do(kind, folder, str(error))) from error
        images.append(images_tensor(where, raw))
    train_part, test_part = (Part(x, torch.from_numpy(y)) for x, y in zip(images, labels, strict=True))
    names = train.classes if hasattr(train, "classes") else [train.id2label[i] for i in sorted(train.id2label)]
    return Arrays(train_part, test_part, tuple(names))


@contextmanager
def _alone(folder: Path, wanted: Sequence[Path]) -> Iterator[None]:
    """Keep several processes from downloading the same thing at once; after a failure nothing new is left.

    Args:
        folder: of the download.
        wanted: what it consists of, the content first; what is there of it before stays in any case.
    """
    lock, content = folder / ".download.lock", wanted[0]
    created = [path for path in content.parents if not path.exists()]  # the innermost first
    locked_before = lock.exists()
    folder.mkdir(parents=True, exist_ok=True)
    # Where the data are and nobody has ever downloaded, or nothing can be written, there is nothing to wait for.
    needed = access(folder, W_OK) and (lock.exists() or not content.exists())
    try:
        with FileLock(lock) if needed else nullcontext():
            new = [path for path in wanted if not path.exists()]
            try:
                yield
            except BaseException:
                for path in new:
                    if path.is_dir():
                        shutil.rmtree(path)
                    else:
                        path.unlink(missing_ok=True)
                if not locked_before:  # as long as it is ours: another process may wait for it, and makes its own
                    lock.unlink(missing_ok=True)
                raise
    except BaseException:
        with suppress(OSError):  # one that is not empty stays, and all around it
            for path in created:
                path.rmdir()
        raise


def _what_to_do(kind: Download, folder: Path, reason: str) -> str:
    content = folder / kind.content
    cut = [path.name for path in sorted(content.glob("*-ubyte")) if _is_cut_off(path)]
    found = f" Incomplete: {', '.join(cut)}." if cut else ""
    remedy = f"Delete {content} and run again to download it anew" if content.exists() else "Run again with a network"
    return (
        f"{kind.title} could not be loaded from {folder}: {reason[:400].rstrip('.')}.{found} {remedy}, or put its "
        f"files into {content} yourself, or name another folder (--root)."
    )


def _is_cut_off(path: Path) -> bool:
    """Whether an idx file is shorter than its header says."""
    with path.open("rb") as file:
        head = file.read(4)  # two zeros, the type, the number of axes; then the length of each axis in four bytes
        shape = file.read(4 * head[3]) if len(head) == 4 else b""
    if len(head) < 4 or len(shape) < 4 * head[3]:
        return True
    values: int = math.prod(np.frombuffer(shape, dtype=">u4").tolist())
    return path.stat().st_size < len(head) + len(shape) + values
