"""Your own data: a `.npz` file, or a folder with a folder of images for each class."""

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torchvision.datasets import ImageFolder  # type: ignore[import-untyped, unused-ignore]
from torchvision.datasets.folder import IMG_EXTENSIONS  # type: ignore[import-untyped, unused-ignore]

from avalanche_contrastive._checks import check_count
from avalanche_contrastive.bench.data.arrays import (
    PARTS,
    Array,
    Arrays,
    Part,
    check_classes,
    check_memory,
    images_tensor,
    is_bank,
    load_npz,
    read_bank,
    stratified,
)
from avalanche_contrastive.bench.data.images import Header, Size, decode, header_of

VALIDATION = ("val", "valid", "validation")  # what the folder of validation images may be called
LARGEST = 224  # side of a square that nobody asked for
MANY = 0.1  # share of images that may be enlarged or shrunk a lot without a warning
TEST_SHARE = 0.2  # of a folder that has no test images of its own


def load_own(path: str, image_size: int = 0) -> Arrays:
    """Read a `.npz` file of images, a feature bank, or a folder of images.

    Args:
        path: of it.
        image_size: side that all images of a folder get; 0: see `load_folder`.

    Raises:
        ValueError: there is nothing, or it is not as described in `load_npz` and `load_folder`; a size that is none.
    """
    check_count("the images' data", 0, image_size=image_size)
    if not path:
        raise ValueError("the stream 'own' needs `data`: the path of a .npz file or of a folder of images.")
    found = Path(path).expanduser()
    if found.is_dir():
        return load_folder(found, image_size)
    if not found.exists():
        raise ValueError(f"{found}: no such file or folder.")
    if not found.is_file():
        raise ValueError(f"{found}: expected a .npz file or a folder of images, this is a device or a pipe.")
    if image_size:
        raise ValueError(f"{found}: image_size is for folders of images; the images of a .npz file have one size.")
    return read_bank(found)[0] if is_bank(found) else load_npz(found)


class _Folders(ImageFolder):
    """torchvision's folder of class folders; hidden files and folders are left out: systems and tools make them."""

    def __init__(self, root: Path) -> None:
        def is_image(path: str) -> bool:
            return path.lower().endswith(IMG_EXTENSIONS) and not _is_hidden(Path(path), root)

        super().__init__(str(root), is_valid_file=is_image)

    def find_classes(self, directory: Any) -> tuple[list[str], dict[str, int]]:
        """Names of the class folders, and their numbers."""
        names = _folders(Path(directory))
        return names, {name: number for number, name in enumerate(names)}


def _is_hidden(path: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(root).parts)


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


def load_folder(path: Path, image_size: int = 0) -> Arrays:
    """Read `train/CLASS/IMAGE` and `test/CLASS/IMAGE` (optional `val/...`), or `CLASS/IMAGE`.

    train/ and test/ (in small or capital letters) are parts where both are there, and beside them at most one of val/,
    valid/ and validation/. In any other company, such as car/ and train/ without test/, they are classes like the
    others, and must hold images.

    Without test images of its own a folder is split, a fifth of each class for the test, always the same way. Images
    are grey if all of them are, else all are in colour. If they differ in size, each is scaled and its middle cut out
    to a square; `Arrays.note` says so, and what was left out.

    Args:
        path: the folder.
        image_size: side of the square; 0: the median of the shorter sides, at most LARGEST.

    Raises:
        ValueError: no class folders, an empty one, other classes in test than in train, folders that could be parts or
            classes, an unreadable image, a class with too few images.
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
    files = {part: [name for name, _ in folder.samples] for part, folder in folders.items()}
    y = {part: np.asarray(folder.targets, dtype=np.int64) for part, folder in folders.items()}
    left_out = _left_out(places.values(), files.values())
    names = tuple(name.encode(errors="replace").decode() for name in classes)  # some systems know no UTF-8
    return assembled(str(path), files, y, names, image_size, notes=[left_out])


def assembled(
    where: str,
    images: Mapping[str, Sequence[Any]],
    labels: Mapping[str, Array],
    classes: tuple[str, ...],
    image_size: int,
    *,
    notes: Sequence[str],
) -> Arrays:
    """A data set of images that may differ in size.

    Args:
        where: begins a message.
        images: files, or images of Pillow, of the parts of PARTS; of "all" a fifth of each class is for the test.
        labels: (N,) classes of each part.
        classes: their names.
        image_size: see `load_folder`.
        notes: what else was done to the images, in words.

    Raises:
        ValueError: an unreadable image, a class with too few images, or one that is not in every part.
    """
    headers = [header_of(image) for some in images.values() for image in some]
    size, note = _common_size(headers, image_size)
    channels = 1 if all(header.grey for header in headers) else 3
    check_memory(where, 2 * len(headers) * size[0] * size[1] * channels)
    parts = {
        part: Part(images_tensor(where, decode(some, channels, size)), torch.from_numpy(labels[part]))
        for part, some in images.items()
    }
    if "all" in parts:
        kept, held = stratified(parts["all"].y, TEST_SHARE, where, classes)
        parts = {"train": parts["all"].rows(kept), "test": parts["all"].rows(held)}
    check_classes(where, {name: part.y.numpy() for name, part in parts.items()})
    words = filter(None, [note, _dropped(headers), *notes])
    return Arrays(parts["train"], parts["test"], classes, parts.get("val"), "; ".join(words))


def _common_size(headers: Sequence[Header], image_size: int) -> tuple[Size, str]:
    """The size that all images get, and what that means for them in words."""
    sizes = {header.size for header in headers}
    if len(sizes) == 1 and not image_size:
        return sizes.pop(), ""
    shorter = [min(header.size) for header in headers]
    middle = round(median(shorter))
    side = image_size or min(middle, LARGEST)
    words = f"images of {len(sizes)} sizes, each scaled and cut to {side} x {side}"
    if not image_size:
        words += f"; the median of their shorter sides is {middle}"
    larger, smaller = sum(side > 1.5 * short for short in shorter), sum(3 * side < short for short in shorter)
    if larger + smaller > MANY * len(shorter):
        words += (
            f" (of {len(shorter)} images {larger} are enlarged by more than half and {smaller} shrunk to less than a "
            "third: is that meant? image_size sets another side)"
        )
    return (side, side), words


def _dropped(headers: Sequence[Header]) -> str:
    """What the images lose, in words."""
    words = []
    if count := sum(header.transparent for header in headers):
        words.append(f"the transparency of {count} images is dropped")
    if count := sum(header.moving for header in headers):
        words.append(f"of {count} images with several frames the first is taken")
    return "; ".join(words)


def _left_out(places: Iterable[Path], read: Iterable[Sequence[str]]) -> str:
    """How many files were not read, by their extension."""
    known = {os.fspath(name) for names in read for name in names}
    found = [
        Path(folder, name)
        for place in places
        for folder, _, names in os.walk(place, followlinks=True)
        for name in names
        if name.lower().endswith(IMG_EXTENSIONS) or not _is_hidden(Path(folder, name), place)
    ]
    counts = Counter(path.suffix.lower() or "no extension" for path in found if os.fspath(path) not in known)
    if not counts:
        return ""
    listed = ", ".join(f"{count} {suffix}" for suffix, count in sorted(counts.items()))
    return f"files left out: {listed} (read: {', '.join(IMG_EXTENSIONS)}, in the folder of a class, not hidden)"


def _part_folders(path: Path) -> dict[str, Path]:
    """The folder of each part, of PARTS; or "all", where the folders are classes."""
    names = _folders(path)
    places = {name.lower(): path / name for name in names}
    validation = [name for name in places if name in VALIDATION]
    parts = [name for name in places if name in ("train", "test", *VALIDATION)]
    if {"train", "test"} <= set(parts) and len(parts) == len(names) and len(validation) < 2:
        return dict(zip(PARTS, (places[name] for name in ("train", "test", *validation)), strict=False))
    nested = [place.name for name, place in places.items() if name in parts and _folders(place)]
    if not nested and all(map(_holds_only_folders, places.values())):
        nested = names
    if nested:
        raise ValueError(
            f"{path}: {nested[0]}/ holds folders, as a part of the images would. Parts are train/ and test/, both, and "
            f"beside them at most one of val/, valid/, validation/ and nothing else; there are {', '.join(names)}. If "
            f"these are classes, {nested[0]}/ must hold images."
        )
    return {"all": path}


def _holds_only_folders(path: Path) -> bool:
    return all(entry.is_dir() for entry in path.iterdir() if not entry.name.startswith(".")) and bool(_folders(path))


def _class_folders(path: Path) -> _Folders:
    if not _folders(path):
        raise ValueError(f"{path}: no class folders. Expected CLASS/IMAGE, or train/CLASS/IMAGE and test/CLASS/IMAGE.")
    try:
        return _Folders(path)
    except FileNotFoundError as error:  # a class folder without images
        raise ValueError(f"{path}: {error} Images are {', '.join(IMG_EXTENSIONS)}, and not hidden.") from error
