"""A data set in memory, the checks that every source of one has to pass, and its form in a `.npz` file."""

import json
import math
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil  # type: ignore[import-untyped, unused-ignore]  # comes with Avalanche
import torch
from torch import Tensor

Array = np.ndarray[Any, np.dtype[Any]]

SPLIT_SEED = 0  # train / test and train / validation are the same for every run; only the class order follows its seed
PARTS = ("train", "test", "val")
BANK = ("train_features", "train_labels", "test_features", "test_labels", "class_names", "origin")
ORIGIN = ("encoder", "weights", "data_digest", "augmentation")  # what a result says of a bank's origin
NOTE = "features of the frozen encoder {encoder} (weights {weights}, data {data_digest}); views: {augmentation}"
SHOWN = 10  # of a long list in a message


@dataclass(frozen=True)
class Part:
    """The images of one part of a data set, and what is known of each.

    Args:
        x: (N, C, H, W), bytes, or floats in [0, 1].
        y: (N,) classes, 0 ... K - 1.
        domains: (N,) domains, 0 ... D - 1, if the source says.
        name: what the images are called in words, "test".
    """

    x: Tensor
    y: Tensor
    domains: Tensor | None = None
    name: str = ""

    def rows(self, rows: Array, name: str = "") -> "Part":
        """Some of the images."""
        domains = None if self.domains is None else self.domains[rows]
        return Part(self.x[rows], self.y[rows], domains, name or self.name)


@dataclass(frozen=True)
class Arrays:
    """A data set: decoded images and their labels.

    Args:
        train: training images; each class is there.
        test: test images, of the same classes and domains.
        class_names: K names.
        val: validation images, if the source has some; likewise.
        note: what was done to the images, in words; empty if nothing.
        features: whether these are no images but features from a bank, (N, 1 + V, 1, D), see ``read_bank``.
    """

    train: Part
    test: Part
    class_names: tuple[str, ...]
    val: Part | None = None
    note: str = ""
    features: bool = False


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
                f"{where}: floats must lie in [0, 1], got {low:g} to {high:g}. Divide by the largest possible "
                "value, or store bytes (uint8)."
            )
        images = images.astype(np.float32, copy=False)
    if images.ndim == 3:
        images = images[..., None]
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


def check_images(where: str, shape: Sequence[int], dtype: np.dtype[Any]) -> None:
    """Refuse anything but a stack of images.

    Raises:
        ValueError: naming what was given.
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
        raise ValueError(f"{where}: a single {what} in {first}, {found.tolist()}; at least two are needed.")
    if found[-1] >= len(found):
        missing = np.setdiff1d(np.arange(min(int(found[-1]), len(found) + SHOWN)), found)
        hint = " They start at 1: subtract 1." if missing.tolist() == [0] else ""
        raise ValueError(
            f"{where}: {first} must be 0 ... K - 1 without gaps; there are {len(found)} different ones, "
            f"up to {found[-1]}, and none is {_some(missing)}.{hint}"
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
    """Refuse what needs more bytes than are free; `where` begins the message.

    Raises:
        ValueError: with both sizes.
    """
    free = psutil.virtual_memory().available
    if needed > free:
        raise ValueError(
            f"{where}: decoding the images takes about {needed / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are "
            "free. Use fewer or smaller images."
        )


def stratified(y: Tensor, share: float, where: str, names: Sequence[str] = ()) -> tuple[Array, Array]:
    """Indices of what stays and of a stratified share that is held out, always the same.

    Args:
        y: (N,) classes.
        share: of each class, in (0, 1).
        where: begins a message.
        names: of the classes.

    Raises:
        ValueError: a class has too few images to be in both; the message names it.
    """
    from sklearn.model_selection import train_test_split

    counts = torch.bincount(y)
    out = math.ceil(len(y) * share)
    few = [c for c in range(len(counts)) if counts[c] < 2]
    if not few and min(out, len(y) - out) >= len(counts):
        kept, held = train_test_split(np.arange(len(y)), test_size=share, stratify=y.numpy(), random_state=SPLIT_SEED)
        few = np.setdiff1d(np.arange(len(counts)), y[held].numpy()).tolist()
        if not few:
            return kept, held
    few = few or [int(counts.argmin())]
    listed = ", ".join(f"{names[c] if names else f'class {c}'} has {int(counts[c])}" for c in few[:SHOWN])
    raise ValueError(
        f"{where}: too few images to hold out {share:.0%} of each class: {len(y)} images in {len(counts)} classes, "
        f"{listed}. At least {math.ceil(1 / share)} of each class are enough; or give test images of your own"
    )


# ---- a file of arrays, in the keys of MedMNIST


def load_npz(path: Path) -> Arrays:
    """Read `train_images, train_labels, test_images, test_labels`, optional `val_images, val_labels`.

    Images are (N, H, W) or (N, H, W, C), bytes or floats in [0, 1]; labels (N,) or (N, 1) integers 0 ... K - 1. The
    keys `train_domains, test_domains` (and `val_domains`, if there are validation images), integers of the same form,
    give the experiences of a domain-incremental stream.

    Raises:
        ValueError: a broken file, pickled objects, missing keys, or arrays of another form, or too large ones.
    """
    headers = _headers(path)
    parts = _parts(path, headers)
    loaded = final = 0
    for part in parts:
        shape, dtype = headers[f"{part}_images"]
        check_images(f"{path}, {part}_images", shape, dtype)
        values = int(np.prod(shape, dtype=object))
        loaded = max(loaded, values * dtype.itemsize)
        final += values * (1 if dtype == np.uint8 else 4)
    check_memory(str(path), loaded + final)

    found = {}
    with np.load(path, allow_pickle=False) as archive:
        for part in parts:
            x = images_tensor(f"{path}, {part}_images", _member(path, archive, f"{part}_images"))
            y = _label_tensor(path, archive, f"{part}_labels", len(x))
            has_domains = "train_domains" in headers
            found[part] = Part(x, y, _label_tensor(path, archive, f"{part}_domains", len(x)) if has_domains else None)
    shapes = {part: tuple(images.x.shape[1:]) for part, images in found.items()}
    if len(set(shapes.values())) > 1 or len({images.x.dtype for images in found.values()}) > 1:
        raise ValueError(f"{path}: all images must be of one shape and type, got (C, H, W) {shapes}.")
    classes = check_classes(str(path), {f"{part}_labels": images.y.numpy() for part, images in found.items()})
    domains = {f"{part}_domains": p.domains.numpy() for part, p in found.items() if p.domains is not None}
    if domains:
        check_classes(str(path), domains, what="domain")
    return Arrays(found["train"], found["test"], tuple(map(str, range(classes))), found.get("val"))


def _label_tensor(path: Path, archive: Any, key: str, images: int) -> Tensor:
    return torch.from_numpy(label_array(f"{path}, {key}", _member(path, archive, key), images))


def _headers(path: Path) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """Shape and type of each array, without reading it.

    Raises:
        ValueError: not a whole `.npz`, or one with pickled objects.
    """
    headers = {}
    form: Any = np.lib.format
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                with archive.open(name) as member:
                    version = form.read_magic(member)
                    read = form.read_array_header_1_0 if version == (1, 0) else form.read_array_header_2_0
                    shape, _, dtype = read(member)
                if any(type(length) is not int or length < 0 for length in shape):  # True is an int to numpy
                    raise ValueError(f"{name} says that its shape is {shape}")
                headers[name.removesuffix(".npy")] = shape, dtype
    except Exception as error:  # numpy, zip and zlib fail on damage in many ways
        raise ValueError(f"{path}: not a readable .npz file: {error}. Is it cut off, or something else?") from error
    pickled = [key for key, (_, dtype) in headers.items() if dtype.hasobject]
    if pickled:
        raise ValueError(
            f"{path}: {', '.join(pickled)} are Python objects (pickled), which are not read: they could run any code. "
            "Store plain arrays of one shape and type."
        )
    return headers


def _parts(path: Path, headers: Mapping[str, Any]) -> list[str]:
    """Which of train, test and val are there, whole.

    Raises:
        ValueError: naming the missing keys and those that are there.
    """
    parts = [part for part in PARTS if part != "val" or f"{part}_images" in headers or f"{part}_labels" in headers]
    wanted = [f"{part}_{kind}" for part in parts for kind in ("images", "labels")]
    if any(f"{part}_domains" in headers for part in PARTS):
        wanted += [f"{part}_domains" for part in parts]
    missing = [key for key in wanted if key not in headers]
    if missing:
        there = ", ".join(headers) or "none"
        raise ValueError(f"{path}: missing {', '.join(missing)}; keys there: {there}. MedMNIST's keys are expected.")
    return parts


def _member(path: Path, archive: Any, key: str) -> Array:
    try:
        array: Array = archive[key]
    except Exception as error:
        raise ValueError(f"{path}: {key} cannot be read: {error}. The file is damaged.") from error
    return array


# ---- a feature bank, made by the command `features`


def read_bank(path: Path) -> tuple[Arrays, dict[str, Any]]:
    """The features as a data set, (N, 1 + V, 1, D) in the place of images, and the bank's ``origin``.

    The test features, which have no views, are (M, 1, 1, D).

    Raises:
        ValueError: no bank, or a damaged one.
    """
    origin = read_origin(path)
    found = _bank_members(path, BANK[:-1])
    train, test = (torch.from_numpy(found[f"{part}_features"]) for part in ("train", "test"))
    y, test_y = (torch.from_numpy(found[f"{part}_labels"]).long() for part in ("train", "test"))
    counts = (len(train), len(test)) != (len(y), len(test_y))
    if train.ndim != 3 or test.ndim != 3 or train.shape[2] != test.shape[2] or counts:
        raise ValueError(
            f"{path}: a bank needs train_features (N, 1 + V, D), test_features (M, 1, D) and a label for each, got "
            f"{tuple(train.shape)}, {tuple(test.shape)}, {tuple(y.shape)} and {tuple(test_y.shape)}"
        )
    check_classes(str(path), {"train_labels": y.numpy(), "test_labels": test_y.numpy()})
    arrays = Arrays(
        Part(train[:, :, None], y),
        Part(test[:, :, None], test_y),
        tuple(map(str, found["class_names"])),
        note=NOTE.format_map(origin),
        features=True,
    )
    return arrays, origin


def is_bank(path: Path) -> bool:
    """Whether a file has the keys of a bank."""
    try:
        with zipfile.ZipFile(path) as archive:
            return "train_features.npy" in archive.namelist()
    except (OSError, zipfile.BadZipFile):
        return False


def read_origin(path: Path) -> dict[str, Any]:
    """What a bank was made of.

    Raises:
        ValueError: no bank, or a damaged one.
    """
    origin = json.loads(str(_bank_members(path, ("origin",))["origin"]))
    if not isinstance(origin, dict) or not set(ORIGIN) <= set(origin):
        raise ValueError(f"{path}: not a feature bank: its origin must be a table with {', '.join(ORIGIN)}")
    return origin


def _bank_members(path: Path, keys: Sequence[str]) -> dict[str, Array]:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            found = {key: archive[key] for key in keys}
        if "origin" in found:
            json.loads(str(found["origin"]))
    except Exception as error:
        raise ValueError(f"{path}: not a feature bank, or a damaged one ({error})") from error
    return found
