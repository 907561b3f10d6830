"""Image files: what their headers say, and their pixels as one array."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps

Array = np.ndarray[Any, np.dtype[Any]]
Size = tuple[int, int]  # width, height

GREY = ("1", "L", "LA", "La")  # Pillow's modes without colour
DEEP = ("I", "F")  # and those of more than eight bits, as the beginnings of their names
LYING = (5, 6, 7, 8)  # orientations by which a camera says that the image is to be turned by a quarter


@dataclass(frozen=True)
class Header:
    """What an image file says of itself.

    Args:
        size: (width, height) as it is shown, turned as the camera says.
        grey: whether it has no colour.
        transparent: whether it has a channel of transparency.
        moving: whether it has more than one frame.
    """

    size: Size
    grey: bool
    transparent: bool
    moving: bool


def header_of(path: Any) -> Header:
    """Read the header of an image file, or of an image of Pillow's.

    Raises:
        ValueError: a file that is not an image, or one of more than eight bits.
    """
    try:
        with _opened(path) as image:
            mode, (width, height) = image.mode, image.size
            lies = image.getexif().get(ExifTags.Base.Orientation) in LYING
            transparent = mode.endswith(("A", "a")) or "transparency" in image.info
            moving = getattr(image, "n_frames", 1) > 1
    except Exception as error:  # Pillow's readers fail on damage in many ways
        raise ValueError(f"{path}: not a readable image: {error}") from error
    if mode.startswith(DEEP):
        raise ValueError(f"{path}: an image of more than eight bits (mode {mode}); convert it to eight bits first.")
    return Header((height, width) if lies else (width, height), mode in GREY, transparent, moving)


def _opened(source: Any) -> AbstractContextManager[Image.Image]:
    if isinstance(source, Image.Image):
        return nullcontext(source)
    if not Path(source).is_file():  # opening a pipe would wait for ever
        raise OSError("it is not a file, or a link to nothing")
    return Image.open(source)


def decode(paths: Sequence[Any], channels: int, size: Size) -> Array:
    """Decode image files into one array, (N, H, W, C) bytes; transparency and later frames are dropped.

    Args:
        paths: the files, or images of Pillow's.
        channels: 1 for grey, 3 for colour.
        size: width and height; an image of another size is scaled and its middle is cut out.

    Raises:
        ValueError: a file that is not an image, or a broken one.
    """
    width, height = size
    decoded = np.empty((len(paths), height, width, channels), dtype=np.uint8)
    for row, path in zip(decoded, paths, strict=True):
        try:
            with _opened(path) as opened:
                image = ImageOps.exif_transpose(opened).convert("L" if channels == 1 else "RGB")
        except Exception as error:  # Pillow's readers fail on damage in many ways
            raise ValueError(f"{path}: not a readable image: {error}") from error
        row[...] = np.asarray(image if image.size == size else ImageOps.fit(image, size)).reshape(row.shape)
    return decoded
