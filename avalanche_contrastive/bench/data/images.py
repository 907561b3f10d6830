"""Image files: what their headers say, and their pixels as one array."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

Array = np.ndarray[Any, np.dtype[Any]]

GREY = ("1", "L", "LA", "La")  # Pillow's modes without colour
DEEP = ("I", "F")  # and those of more than eight bits, as the beginnings of their names


def decode(paths: Sequence[Any], channels: int, size: tuple[int, int]) -> Array:
    """Decode image files into one array, (N, H, W, C) bytes.

    Args:
        paths: the files.
        channels: 1 for grey, 3 for colour.
        size: width and height; an image of another size is scaled and its middle is cut out.

    Raises:
        ValueError: a file that is not an image, or a broken one.
    """
    width, height = size
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
        ValueError: a file that is not an image, or one of more than eight bits.
    """
    sizes: set[tuple[int, int]] = set()
    grey = True
    for path in paths:
        try:
            if not Path(path).is_file():  # opening a pipe would wait for ever
                raise OSError("it is not a file, or a link to nothing")
            with Image.open(path) as image:
                mode, size = image.mode, image.size
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise ValueError(f"{path}: not a readable image: {error}") from error
        if mode.startswith(DEEP):
            raise ValueError(f"{path}: an image of more than eight bits (mode {mode}); convert it to eight bits first.")
        sizes.add(size)
        grey = grey and mode in GREY
    return sizes, grey
