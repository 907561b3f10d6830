"""Queries and a gallery of classes that a run never trains on: what the compatibility of its models is measured on."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from avalanche.benchmarks.utils import _make_taskaware_classification_dataset
from torch import Tensor

from avalanche_contrastive.bench.data.arrays import stratified
from avalanche_contrastive.bench.data.kinds import Stream
from avalanche_contrastive.data import MemoryImages


def numbers_without(unseen: Sequence[int], classes: int) -> Tensor:
    """For each class its number among those that are trained on, -1 for unseen ones: (K,).

    Raises:
        ValueError: no choice of at least two of the classes that leaves two others.
    """
    if len({*unseen}) != len(unseen) or len(unseen) < 2 or max(unseen) >= classes or classes - len(unseen) < 2:
        raise ValueError(
            f"unseen: expected at least two of the classes 0 to {classes - 1}, each once, and two others to train on; "
            f"got {list(unseen)}."
        )
    kept = torch.tensor([c for c in range(classes) if c not in unseen])
    return torch.full((classes,), -1).index_put_((kept,), torch.arange(len(kept)))


def with_unseen(stream: Stream, x: Tensor, y: Tensor, name: str) -> Stream:
    """The stream with these images, half of each class queries and half gallery, the same for every seed.

    Args:
        stream: what is trained on.
        x: images (N, C, H, W), or features (N, 1, 1, D).
        y: their classes.
        name: what they are.

    Raises:
        ValueError: images of another size than the stream's, or too few of a class.
    """
    if x.shape[2:] != stream.image_shape[1:] or not (stream.kind.features or x.shape[1] == stream.image_shape[0]):
        sizes = [" x ".join(map(str, shape)) for shape in (x.shape[1:], stream.image_shape)]
        raise ValueError(f"unseen: images of {name} are {sizes[0]}, those of the stream {sizes[1]}.")
    y = y.unique(return_inverse=True)[1]  # 0 ... K - 1
    halves = stratified(y, 0.5, f"unseen, {name}")
    images = (MemoryImages(x[rows], y[rows], normalise=stream.kind.normalise) for rows in halves)
    query, gallery = (_make_taskaware_classification_dataset(half, task_labels=0) for half in images)
    about = f"unseen: {len(query):,} queries and {len(gallery):,} images in the gallery, of {name}"
    return replace(stream, unseen=(query, gallery), description=f"{stream.description}; {about}")
