"""Your own data: a `.npz` in MedMNIST's key layout, or a folder with a folder of images for each class."""

import os
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.datasets import ImageFolder  # type: ignore[import-untyped, unused-ignore]

from avalanche_contrastive.bench.data.arrays import (
    Array,
    Arrays,
    check_classes,
    check_images,
    check_memory,
    decode,
    images_tensor,
    label_array,
    sizes_and_colour,
    stratified,
)

PARTS = ("train", "test", "val")
VALIDATION = ("val", "valid", "validation")  # what the folder of validation images may be called
BROKEN = (OSError, EOFError, RuntimeError, ValueError, KeyError, zipfile.BadZipFile, zlib.error)
TEST_SHARE = 0.2  # of a folder that has no test images of its own


def load_own(path: str) -> Arrays:
    """Read a `.npz` file or a folder of images.

    Raises:
        ValueError: there is nothing, or it is not as described in `load_npz` and `load_folder`.
    """
    if not path:
        raise ValueError("the stream 'own' needs `data`: the path of a .npz file or of a folder of images.")
    found = Path(path).expanduser()
    if found.is_dir():
        return load_folder(found)
    if not found.exists():
        raise ValueError(f"{found}: no such file or folder.")
    if not found.is_file():
        raise ValueError(f"{found}: expected a .npz file or a folder of images, this is a device or a pipe.")
    return load_npz(found)


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

    x, y, domains = {}, {}, {}
    with np.load(path, allow_pickle=False) as archive:
        for part in parts:
            x[part] = images_tensor(f"{path}, {part}_images", _member(path, archive, f"{part}_images"))
            y[part] = label_array(f"{path}, {part}_labels", _member(path, archive, f"{part}_labels"), len(x[part]))
            if "train_domains" in headers:
                key = f"{part}_domains"
                domains[part] = label_array(f"{path}, {key}", _member(path, archive, key), len(x[part]))
    shapes = {part: tuple(images.shape[1:]) for part, images in x.items()}
    if len(set(shapes.values())) > 1 or len({images.dtype for images in x.values()}) > 1:
        raise ValueError(f"{path}: all images must be of one shape and type, got (C, H, W) {shapes}.")
    classes = check_classes(str(path), {f"{part}_labels": labels for part, labels in y.items()})
    if domains:
        check_classes(str(path), {f"{part}_domains": ids for part, ids in domains.items()}, what="domain")
    return _arrays(x, y, tuple(map(str, range(classes))), domains=domains)


def _arrays(
    x: Mapping[str, Tensor],
    y: Mapping[str, Array],
    class_names: tuple[str, ...],
    *,
    domains: Mapping[str, Array],
    note: str = "",
) -> Arrays:
    def tensor(values: Mapping[str, Array], part: str) -> Tensor | None:
        return torch.from_numpy(values[part]) if part in values else None

    return Arrays(
        train_x=x["train"],
        train_y=torch.from_numpy(y["train"]),
        test_x=x["test"],
        test_y=torch.from_numpy(y["test"]),
        val_x=x.get("val"),
        val_y=tensor(y, "val"),
        train_domains=tensor(domains, "train"),
        test_domains=tensor(domains, "test"),
        val_domains=tensor(domains, "val"),
        class_names=class_names,
        note=note,
    )


def _headers(path: Path) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """Shape and type of each array, without reading it.

    Raises:
        ValueError: not a whole `.npz`, or one with pickled objects.
    """
    headers = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                with archive.open(name) as member:
                    version = np.lib.format.read_magic(member)
                    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else _read_header_2
                    shape, _, dtype = read(member)
                headers[name.removesuffix(".npy")] = shape, dtype
    except BROKEN as error:
        raise ValueError(f"{path}: not a readable .npz file: {error}. Is it cut off, or something else?") from error
    pickled = [key for key, (_, dtype) in headers.items() if dtype.hasobject]
    if pickled:
        raise ValueError(
            f"{path}: {', '.join(pickled)} are Python objects (pickled), which are not read: they could run any code. "
            "Store plain arrays of one shape and type."
        )
    return headers


def _read_header_2(member: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    return np.lib.format.read_array_header_2_0(member)


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
    except BROKEN as error:
        raise ValueError(f"{path}: {key} cannot be read: {error}. The file is damaged.") from error
    return array


class _Folders(ImageFolder):
    """torchvision's folder of class folders, hidden ones left out."""

    def find_classes(self, directory: Any) -> tuple[list[str], dict[str, int]]:
        """Names of the class folders, and their numbers."""
        names = _folders(Path(directory))
        return names, {name: number for number, name in enumerate(names)}


def _folders(path: Path) -> list[str]:
    entries = [entry for entry in path.iterdir() if not entry.name.startswith(".")]
    if lost := [entry.name for entry in entries if entry.is_symlink() and not entry.exists()]:
        raise ValueError(f"{path}: {lost[0]} is a link to nothing. Is it a class whose folder was moved?")
    return sorted(entry.name for entry in entries if entry.is_dir())


def _check_links(root: Path) -> None:
    """Refuse links that lead back to a folder around them: images would be found again, under another class.

    Raises:
        ValueError: naming the link.
    """
    for place, names, _ in os.walk(root, followlinks=True):
        inside = os.path.join(os.path.realpath(place), "")
        for link in (os.path.join(place, name) for name in names):
            target = os.path.realpath(link)
            if os.path.islink(link) and inside.startswith(os.path.join(target, "")):
                raise ValueError(f"{link}: a link to {target}, which it is in itself: its images would come again.")


def load_folder(path: Path) -> Arrays:
    """Read `train/CLASS/IMAGE` and `test/CLASS/IMAGE` (optional `val/...`), or `CLASS/IMAGE`.

    train/ and test/ are parts where both are there, and beside them at most one of val/, valid/ and validation/. In any
    other company, such as car/ and train/ without test/, they are classes like the others, and must hold images.

    Without test images of its own a folder is split, a fifth of each class for the test, always the same way. Images
    are grey if all of them are, else all are in colour. If they differ in size, each is scaled and its middle cut out,
    to a square with the smallest side of any of them.

    Raises:
        ValueError: no class folders, an empty one, other classes in test than in train, folders that could be parts or
            classes, an unreadable image.
    """
    _check_links(path)
    places = _part_folders(path)
    folders = {part: _class_folders(place) for part, place in places.items()}
    classes = next(iter(folders.values())).classes
    for part, folder in folders.items():
        if folder.classes != classes:
            lone = ", ".join(sorted(set(folder.classes) ^ set(classes)))
            name = places[part].name
            raise ValueError(f"{path}: train/ and {name}/ must have the same classes; in one of them only: {lone}.")
    sizes, grey = sizes_and_colour([name for folder in folders.values() for name, _ in folder.samples])
    side = min(min(size) for size in sizes)
    size = next(iter(sizes)) if len(sizes) == 1 else (side, side)
    count = sum(len(folder) for folder in folders.values())
    check_memory(str(path), 2 * count * size[0] * size[1] * (1 if grey else 3))
    x, y = {}, {}
    for part, folder in folders.items():
        images = decode(str(path), [name for name, _ in folder.samples], 1 if grey else 3, size)
        x[part], y[part] = images_tensor(str(path), images), np.asarray(folder.targets, dtype=np.int64)
    if "all" in places:
        kept, held = stratified(torch.from_numpy(y["all"]), TEST_SHARE, str(path))
        x, y = {"train": x["all"][kept], "test": x["all"][held]}, {"train": y["all"][kept], "test": y["all"][held]}
    check_classes(str(path), y)
    note = "" if len(sizes) == 1 else f"images of {len(sizes)} sizes, each scaled and cut to {side} x {side}"
    return _arrays(x, y, tuple(classes), domains={}, note=note)


def _part_folders(path: Path) -> dict[str, Path]:
    """The folder of each part, of PARTS; or "all", where the folders are classes."""
    names = _folders(path)
    validation = [name for name in names if name in VALIDATION]
    parts = [name for name in names if name in ("train", "test", *VALIDATION)]
    if {"train", "test"} <= set(names) and parts == names and len(validation) < 2:
        return dict(zip(PARTS, (path / name for name in ("train", "test", *validation)), strict=False))
    nested = [name for name in parts if _folders(path / name)]
    if nested:
        raise ValueError(
            f"{path}: {nested[0]}/ holds folders, as a part of the images would. Parts are train/ and test/, both, and "
            f"beside them at most one of val/, valid/, validation/ and nothing else; there are {', '.join(names)}. If "
            f"these are classes, {nested[0]}/ must hold images."
        )
    return {"all": path}


def _class_folders(path: Path) -> _Folders:
    if not _folders(path):
        raise ValueError(f"{path}: no class folders. Expected CLASS/IMAGE, or train/CLASS/IMAGE and test/CLASS/IMAGE.")
    try:
        return _Folders(str(path))
    except FileNotFoundError as error:  # a class folder without images
        raise ValueError(f"{path}: {error}") from error
