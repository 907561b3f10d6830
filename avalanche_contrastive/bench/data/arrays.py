"""A data set in memory, and the checks that every source of one has to pass."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil  # type: ignore[import-untyped, unused-ignore]  # comes with Avalanche
import torch
from PIL import Image, ImageOps
from torch import Tensor

Array = np.ndarray[Any, np.dtype[Any]]

SPLIT_SEED = 0  # train / test and train / validation are the same for every run; only the class order follows its seed
GREY = ("1", "L", "LA", "La")  # Pillow's modes without colour
DEEP = ("I", "F")  # and those of more than eight bits, as the beginnings of their names
SHOWN = 10  # of a long list in a message


@dataclass(frozen=True)
class Arrays:
    """Decoded images and their labels.

    Args:
        train_x: (N, C, H, W), bytes, or floats in [0, 1].
        train_y: (N,) classes, 0 ... K - 1, each there.
        test_x: likewise.
        test_y: likewise, the same classes.
        class_names: K names.
        val_x: validation images, if the source has some.
        val_y: their classes.
        train_domains: (N,) domains, 0 ... D - 1, if the source says.
        test_domains: likewise, the same domains.
        val_domains: likewise.
        note: what was done to the images, in words; empty if nothing.
    """

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    class_names: tuple[str, ...]
    val_x: Tensor | None = None
    val_y: Tensor | None = None
    train_domains: Tensor | None = None
    test_domains: Tensor | None = None
    val_domains: Tensor | None = None
    note: str = ""


def images_tensor(where: str, images: Array) -> Tensor:
    """(N, H, W) or (N, H, W, C) bytes or floats in [0, 1] as (N, C, H, W).

    Raises:
        ValueError: another shape or type, or floats that are not finite or leave [0, 1].
    """
    check_images(where, images.shape, images.dtype)
    if images.dtype.kind == "f":
        if not np.isfinite(images).all():
            raise ValueError(f"{where}: {int((~np.isfinite(images)).sum()):,} values are not finite (NaN or infinite).")
        low, high = float(images.min()), float(images.max())
        if low < 0 or high > 1:
            raise ValueError(
                f"{where}: floats must lie in [0, 1], came from {low:g} to {high:g}. Divide by the largest possible "
                "value, or store bytes (uint8)."
            )
        images = images.astype(np.float32, copy=False)
    if images.ndim == 3:
        images = images[..., None]
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


def check_images(where: str, shape: Sequence[int], dtype: np.dtype[Any]) -> None:
    """Refuse what is no stack of images.

    Raises:
        ValueError: naming what came.
    """
    if dtype != np.uint8 and dtype.kind != "f":
        raise ValueError(f"{where}: images must be bytes (uint8) or floats in [0, 1], got {dtype}.")
    if len(shape) not in (3, 4):
        raise ValueError(f"{where}: images must be (N, H, W) or (N, H, W, C), got shape {tuple(shape)}.")
    if 0 in shape:
        raise ValueError(f"{where}: no images, shape {tuple(shape)}.")
    if len(shape) == 4 and shape[3] > 4:
        raise ValueError(
            f"{where}: the last axis must be the channels (N, H, W, C) with at most 4, got shape {tuple(shape)}. Are "
            "the channels first, or are these volumes?"
        )


def label_array(where: str, labels: Array, images: int) -> Array:
    """(N,) or (N, 1) labels as (N,) int64.

    Raises:
        ValueError: no integers, not one per image, or negative ones.
    """
    if labels.dtype.kind not in "iu":
        raise ValueError(f"{where}: must be integers from 0, got {labels.dtype}.")
    if labels.ndim != 1 and not (labels.ndim == 2 and labels.shape[1] == 1):
        raise ValueError(
            f"{where}: must be (N,) or (N, 1), one per image, got shape {labels.shape}. One-hot or several labels per "
            "image are not supported."
        )
    if len(labels) != images:
        raise ValueError(f"{where}: {len(labels):,} of them for {images:,} images.")
    if len(labels) and labels.min() < 0:
        raise ValueError(f"{where}: must be integers from 0, the lowest is {labels.min()}.")
    if len(labels) and labels.max() > np.iinfo(np.int64).max:
        raise ValueError(f"{where}: must be integers from 0 to K - 1, the highest is {labels.max()}.")
    flat: Array = labels.reshape(-1).astype(np.int64)
    return flat


def check_classes(where: str, labels: Mapping[str, Array], *, what: str = "label") -> int:
    """The number of classes, 0 ... K - 1, that every part has; the first part is the training part.

    Args:
        where: begins a message.
        labels: of each part by its name.
        what: names a class in a message.

    Raises:
        ValueError: gaps, a single class, or a part that lacks a class or has one more.
    """
    (first, train), *others = labels.items()
    found = np.unique(train)
    if len(found) < 2:
        raise ValueError(f"{where}: {first} have a single {what}, {found.tolist()}; at least two are needed.")
    if found[-1] >= len(found):
        missing = np.setdiff1d(np.arange(min(int(found[-1]), len(found) + SHOWN)), found)
        hint = " They start at 1: subtract 1." if missing.tolist() == [0] else ""
        raise ValueError(
            f"{where}: {first} must be 0 ... K - 1 without gaps; {len(found)} different ones came, up to {found[-1]}, "
            f"and none is {_some(missing)}.{hint}"
        )
    for name, values in others:
        there = np.unique(values)
        unknown, absent = np.setdiff1d(there, found), np.setdiff1d(found, there)
        if len(unknown):
            raise ValueError(f"{where}: {name} have {_some(unknown)}, which {first} do not have.")
        if len(absent):
            raise ValueError(f"{where}: no image of {what} {_some(absent)} in {name}, but some in {first}.")
    return len(found)


def _some(values: Array) -> str:
    shown = ", ".join(map(str, values[:SHOWN].tolist()))
    return shown + (", ..." if len(values) > SHOWN else "")


def check_memory(where: str, needed: int) -> None:
    """Refuse what will not fit.

    Args:
        where: begins the message.
        needed: bytes.

    Raises:
        ValueError: with both sizes.
    """
    free = psutil.virtual_memory().available
    if needed > free:
        raise ValueError(
            f"{where}: decoding the images takes about {needed / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are "
            "free. Use fewer or smaller images."
        )


def stratified(y: Tensor, share: float, where: str) -> tuple[Array, Array]:
    """Indices of what stays and of a stratified share that is held out, always the same.

    Raises:
        ValueError: a class has too few images to be in both.
    """
    from sklearn.model_selection import train_test_split

    counts = torch.bincount(y)
    out = math.ceil(len(y) * share)
    if counts.min() < 2 or min(out, len(y) - out) < len(counts):
        raise ValueError(
            f"{where}: too few images to hold out {share:.0%} of each class; {len(y)} images in {len(counts)} classes, "
            f"class {int(counts.argmin())} has {int(counts.min())}."
        )
    kept, held = train_test_split(np.arange(len(y)), test_size=share, stratify=y.numpy(), random_state=SPLIT_SEED)
    return kept, held


def decode(where: str, paths: Sequence[Any], channels: int, size: tuple[int, int]) -> Array:
    """Decode image files into one array, (N, H, W, C) bytes.

    Args:
        where: begins a message.
        paths: the files.
        channels: 1 for grey, 3 for colour.
        size: width and height; an image of another size is scaled and its middle is cut out.

    Raises:
        ValueError: not enough memory, or a file that is no image or a broken one.
    """
    width, height = size
    check_memory(where, 2 * len(paths) * height * width * channels)  # twice: `images_tensor` copies
    decoded = np.empty((len(paths), height, width, channels), dtype=np.uint8)
    for row, path in zip(decoded, paths, strict=True):
        try:
            with Image.open(path) as opened:
                image = opened.convert("L" if channels == 1 else "RGB")
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise ValueError(f"{path}: not a readable image: {error}") from error
        row[...] = np.asarray(image if image.size == size else ImageOps.fit(image, size)).reshape(row.shape)
    return decoded


def sizes_and_colour(paths: Sequence[Any]) -> tuple[set[tuple[int, int]], bool]:
    """Sizes (width, height) of image files, and whether all of them are grey; reads their headers only.

    Raises:
        ValueError: a file that is no image, or one of more than eight bits.
    """
    sizes: set[tuple[int, int]] = set()
    grey = True
    for path in paths:
        try:
            if not Path(path).is_file():  # opening a pipe would wait for ever
                raise OSError("it is no file, or a link to none")
            with Image.open(path) as image:
                mode, size = image.mode, image.size
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise ValueError(f"{path}: not a readable image: {error}") from error
        if mode.startswith(DEEP):
            raise ValueError(f"{path}: an image of more than eight bits (mode {mode}); convert it to eight bits first.")
        sizes.add(size)
        grey = grey and mode in GREY
    return sizes, grey
