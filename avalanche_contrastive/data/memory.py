"""Images in memory, of which a whole batch is taken by one indexing."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from avalanche_contrastive.data.augment import Normalisation

__all__ = ["Batch", "Indices", "MemoryImages", "collate"]

Indices = np.ndarray[Any, np.dtype[np.int64]]


class Batch(Sequence[Any]):
    """The samples of a batch that was taken at once: each is put together only if someone asks for it.

    Args:
        x: (B, C, H, W) images.
        columns: what else the samples have, each an array of B integers or a list of B values.
        listed: whether a sample is a list; else a tuple.
    """

    def __init__(self, x: Tensor, columns: list[Any], *, listed: bool) -> None:
        self.x, self.columns, self.listed = x, columns, listed

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: Any) -> Any:
        values = (c[index].item() if isinstance(c, np.ndarray) else c[index] for c in self.columns)
        sample = (self.x[index], *values)
        return list(sample) if self.listed else sample

    def collated(self) -> list[Any]:
        """What ``default_collate`` makes of the samples."""
        columns = [torch.from_numpy(c) if isinstance(c, np.ndarray) else default_collate(c) for c in self.columns]
        return [self.x, *columns]


def collate(samples: Any) -> Any:
    """``default_collate``, for which a `Batch` is one already."""
    return samples.collated() if isinstance(samples, Batch) else default_collate(samples)


class MemoryImages(Dataset[tuple[Tensor, int]]):
    """Images in memory with the integer targets that Avalanche's generators ask for.

    Bytes stay bytes in memory, a quarter of what floats take, and become floats in [0, 1] when they are taken. On a GPU
    they are taken there, and nothing is copied; a loader of them must not pin memory or have workers.

    Args:
        x: (N, C, H, W), bytes, or floats in [0, 1].
        y: (N,) classes, integers.
        normalise: mean and standard deviation of each channel, taken from and divided out of the floats.
        pixels: (H * W,), for each pixel of a taken image the stored one that it shows, -1 for black: a rotation.
    """

    collate_fn = staticmethod(collate)  # Avalanche's datasets and loaders take it over

    def __init__(
        self, x: Tensor, y: Tensor, *, normalise: Normalisation | None = None, pixels: Tensor | None = None
    ) -> None:
        if len(x) != len(y):
            raise ValueError(f"MemoryImages: x and y must have one entry for each image, got {len(x)} and {len(y)}.")
        self.x = x
        self.classes: Indices = y.to("cpu", torch.int64).numpy()
        self.targets: list[int] = y.tolist()
        self.pixels = None if pixels is None else pixels.clamp(min=0).to(x.device)
        self.outside = None if pixels is None else (pixels < 0).to(x.device)
        self.normalise = None
        if normalise is not None:
            mean, std = (torch.tensor(values, device=x.device).reshape(1, -1, 1, 1) for values in normalise)
            self.normalise = mean, std
        none = self._finish(x[:0])
        self.form = none.shape[1:], none.dtype, none.device  # of an image that is taken

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self._finish(self.x[index : index + 1 or None])[0], self.targets[index]

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """The samples at these positions, for torch's loaders."""
        at = np.asarray(indices, dtype=np.int64)
        at = np.where(at < 0, at + len(self), at)
        return Batch(self.take(at), [self.classes[at]], listed=False)

    def take(self, rows: Indices) -> Tensor:
        """The images of these rows, (B, C, H, W) floats."""
        # On bytes index_select is many times faster than x[rows].
        return self._finish(self.x.index_select(0, torch.from_numpy(rows).to(self.x.device)))

    def _finish(self, x: Tensor) -> Tensor:
        if self.pixels is not None and self.outside is not None:
            x = x.flatten(2).index_select(2, self.pixels).masked_fill_(self.outside, 0).reshape(x.shape)
        if x.dtype == torch.uint8:
            x = x.to(torch.float32).div_(255)
        if self.normalise is not None:
            mean, std = self.normalise
            x = x.sub(mean).div_(std)
        return x
