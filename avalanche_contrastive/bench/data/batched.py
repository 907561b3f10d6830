"""Images in memory, and Avalanche datasets that fetch a whole batch of them by one indexing.

Avalanche 0.6 walks down its tree of subsets and concatenations once for each sample of each batch. PyTorch's loaders
ask a dataset for all samples of a batch at once where it has ``__getitems__``; `install` gives Avalanche's datasets
one. It resolves the tree once for each dataset, then gathers every batch by index. Values, types and order are those of
sample by sample, and whatever it does not know (transforms, other leaves) goes sample by sample as before.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from avalanche.benchmarks.utils import data_loader
from avalanche.benchmarks.utils.classification_dataset import lookup
from avalanche.benchmarks.utils.data import AvalancheDataset, _FlatDataWithTransform
from avalanche.benchmarks.utils.data_attribute import DataAttribute
from avalanche.benchmarks.utils.ffcv_support import has_ffcv_support
from avalanche.benchmarks.utils.flat_data import ConstantSequence, FlatData, LazyIndices, LazyRange
from avalanche.benchmarks.utils.transform_groups import EmptyTransformGroups
from avalanche.benchmarks.utils.transforms import TupleTransform
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset
from torch.utils.data._utils.collate import collate, default_collate_fn_map

Normalise = tuple[Sequence[float], Sequence[float]]  # mean and standard deviation of each channel, of images in [0, 1]
Indices = np.ndarray[Any, np.dtype[np.int64]]


class Images(Dataset[tuple[Tensor, int]]):
    """Images with the integer targets that Avalanche's generators ask for.

    Bytes stay bytes in memory, a quarter of what floats take, and become floats in [0, 1] when they are fetched.

    Args:
        x: (N, C, H, W), bytes or floats in [0, 1].
        y: (N,) classes.
        normalise: mean and standard deviation of each channel, taken from and divided out of the fetched floats.
        pixels: (H * W,), for each pixel of a fetched image the stored one that it shows, -1 for black: a rotation.
    """

    def __init__(self, x: Tensor, y: Tensor, *, normalise: Normalise | None = None, pixels: Tensor | None = None):
        self.x = x
        self.classes: Indices = y.to(torch.int64).numpy()
        self.targets: list[int] = y.tolist()
        self.pixels = None if pixels is None else pixels.clamp(min=0)
        self.outside = None if pixels is None else pixels < 0
        self.normalise = None
        if normalise is not None:
            mean, std = (torch.tensor(values).reshape(1, -1, 1, 1) for values in normalise)
            self.normalise = mean, std

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self._finish(self.x[index : index + 1 or None])[0], self.targets[index]

    def take(self, rows: Indices) -> Tensor:
        """The images of these rows, (B, C, H, W) floats."""
        # On bytes index_select is many times faster than x[rows].
        return self._finish(self.x.index_select(0, torch.from_numpy(rows)))

    def _finish(self, x: Tensor) -> Tensor:
        if self.pixels is not None and self.outside is not None:
            x = x.flatten(2).index_select(2, self.pixels).masked_fill_(self.outside, 0).reshape(x.shape)
        if x.dtype == torch.uint8:
            x = x.to(torch.float32).div_(255)
        if self.normalise is not None:
            mean, std = self.normalise
            x = x.sub(mean).div_(std)
        return x


class _UnknownError(Exception):
    """Something in a dataset that only its own ``__getitem__`` can fetch."""


@dataclass(frozen=True, eq=False)
class _Plan:
    """Where each sample of a dataset lies.

    Args:
        tree: the dataset's tree of subsets; a changed dataset is a copy with another one.
        attributes: of the dataset, those that its samples end in.
        values: for each of them an array of integers, or none: to be asked sample by sample.
        leaves: the images.
        leaf: (N,) which of the leaves.
        row: (N,) which of the leaf's images.
        target: (N,) the class, as the dataset gives it.
        listed: whether a sample is a list; else a tuple.
    """

    tree: Any
    attributes: list[Any]
    values: list[Indices | None]
    leaves: list[Images]
    leaf: Indices
    row: Indices
    target: Indices
    listed: bool

    def fetch(self, at: Indices) -> Sequence[Any]:
        """The samples at these positions."""
        leaf, row = self.leaf[at], self.row[at]
        used = np.unique(leaf)
        if len(used) == 1:
            x = self.leaves[used[0]].take(row)
        else:
            order = np.argsort(leaf, kind="stable")
            parts = [self.leaves[number].take(row[leaf == number]) for number in used]
            x = torch.cat(parts)[torch.from_numpy(np.argsort(order))]
        columns: list[Any] = [self.target[at]]
        for attribute, values in zip(self.attributes, self.values, strict=True):
            columns.append([attribute[i] for i in at.tolist()] if values is None else values[at])
        batch = _Batch(x, columns)
        return batch if self.listed else [tuple(sample) for sample in batch]


class _Sample(list[Any]):
    """One sample of a batch that was fetched at once."""


class _Batch(Sequence[_Sample]):
    """The samples of a batch, made only if someone asks for them; PyTorch's `default_collate` takes the batch whole.

    Args:
        x: (B, C, H, W) images.
        columns: what else the samples have, each an array of B integers or a list of B values.
    """

    def __init__(self, x: Tensor, columns: list[Any]):
        self.x, self.columns = x, columns

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: Any) -> Any:
        values = (c[index].item() if isinstance(c, np.ndarray) else c[index] for c in self.columns)
        return _Sample([self.x[index], *values])

    @classmethod
    def join(cls, batches: Sequence["_Batch"]) -> "_Batch":
        """One batch after the other."""
        if len(batches) == 1:
            return batches[0]
        columns = [
            np.concatenate(c) if all(isinstance(part, np.ndarray) for part in c) else [v for part in c for v in part]
            for c in zip(*(batch.columns for batch in batches), strict=True)
        ]
        return cls(torch.cat([batch.x for batch in batches]), columns)


def _collate(batch: Any, *, collate_fn_map: Any = None) -> Any:
    """`default_collate` for samples of a `_Batch`, apart or together."""
    if not isinstance(batch, _Batch):
        return collate([list(sample) for sample in batch], collate_fn_map=collate_fn_map)
    others = [
        torch.from_numpy(c) if isinstance(c, np.ndarray) else collate(c, collate_fn_map=collate_fn_map)
        for c in batch.columns
    ]
    return [batch.x, *others]


def install() -> None:
    """Let Avalanche's datasets, and its loaders of several datasets, fetch whole batches; may be called again."""
    AvalancheDataset.__getitems__ = _dataset_items
    data_loader.ConcatDataset = _Concatenated
    data_loader.has_ffcv_support = _has_ffcv_support
    default_collate_fn_map[_Sample] = _collate


def _dataset_items(dataset: Any, indices: Sequence[int]) -> Sequence[Any]:
    plan = _plan_of(dataset)
    at = np.asarray(indices, dtype=np.int64)
    if plan is None or not len(at) or at.min() < 0 or at.max() >= len(plan.row):
        return [dataset[i] for i in indices]
    return plan.fetch(at)


class _Concatenated(ConcatDataset[Any]):
    """Batches over several datasets, each asked once."""

    def __getitems__(self, indices: Sequence[int]) -> Sequence[Any]:
        at = np.asarray(indices, dtype=np.int64)
        number, local = _locate(at, self.cumulative_sizes)
        # Avalanche's samplers give one dataset's indices after the other's.
        if not len(at) or at.min() < 0 or at.max() >= len(self) or (np.diff(number) < 0).any():
            return [self[i] for i in indices]
        parts: list[Any] = []
        for which in np.unique(number).tolist():
            dataset: Any = self.datasets[which]
            rows = local[number == which].tolist()
            parts.append(dataset.__getitems__(rows) if hasattr(dataset, "__getitems__") else [dataset[i] for i in rows])
        if all(isinstance(part, _Batch) for part in parts) and len({_form(part) for part in parts}) == 1:
            return _Batch.join(parts)
        return [sample for part in parts for sample in part]


def _has_ffcv_support(datasets: Sequence[Any]) -> bool:
    # Avalanche's own answer, which it asks for at every epoch, takes a walk to the leaves for each sample.
    plans = [_plan_of(dataset) for dataset in datasets if isinstance(dataset, AvalancheDataset)]
    if len(plans) == len(datasets) and all(plan is not None for plan in plans):
        return False
    return bool(has_ffcv_support(datasets))


def _form(batch: _Batch) -> tuple[Any, ...]:
    return batch.x.shape[1:], batch.x.dtype, len(batch.columns)


def _plan_of(dataset: Any) -> _Plan | None:
    """The plan of a dataset, kept on it; none if it must be fetched sample by sample."""
    attributes = [a for a in dataset._data_attributes.values() if a.use_in_getitem]
    known = dataset.__dict__.get("_batched")
    # A copied dataset carries the original's plan, but always has a tree of its own.
    if known is None or known[0] is not dataset._flat_data or not _same(known[1], attributes):
        known = dataset._flat_data, attributes, _make_plan(dataset._flat_data, attributes)
        dataset.__dict__["_batched"] = known
    plan: _Plan | None = known[2]
    return plan


def _same(one: list[Any], other: list[Any]) -> bool:
    return len(one) == len(other) and all(a is b for a, b in zip(one, other, strict=True))


def _make_plan(tree: Any, attributes: list[DataAttribute[Any]]) -> _Plan | None:
    if not isinstance(tree, _FlatDataWithTransform):
        return None
    finder = _Finder(tree._transform_groups.current_group)
    try:
        leaf, row, target = finder.find(tree, np.arange(len(tree), dtype=np.int64), listed=bool(attributes))
    except _UnknownError:
        return None
    kinds = {listed for _, listed in finder.leaves}
    if len(kinds) != 1:
        return None
    values = [_integers(attribute.data) for attribute in attributes]
    leaves = [images for images, _ in finder.leaves]
    return _Plan(tree, attributes, values, leaves, leaf, row, target, listed=kinds.pop())


class _Finder:
    """Goes down a tree of subsets and concatenations with all positions at once.

    Args:
        group: name of the transform group in use.
    """

    def __init__(self, group: str):
        self.group = group
        self.leaves: list[tuple[Images, bool]] = []  # and whether its samples come as lists

    def find(self, node: Any, at: Indices, *, listed: bool) -> tuple[Indices, Indices, Indices]:
        """Leaf number, row in it and class of each position of a node."""
        if type(node) is Images:
            return np.full(len(at), self._number(node, listed), dtype=np.int64), at, node.classes[at]
        mappings: list[Indices] = []
        if type(node) is _FlatDataWithTransform:
            for groups in (node._frozen_transform_groups, node._transform_groups):
                changed, mapping = _class_mapping(groups, self.group)
                listed, mappings = listed or changed, mappings + mapping
        elif type(node) is not FlatData or any(type(child) is not Images for child in node._datasets):
            raise _UnknownError
        which, local = _locate(_subset(node, at), node._cumulative_sizes)
        found = np.empty((3, len(at)), dtype=np.int64)
        for child in np.unique(which).tolist():
            places = np.flatnonzero(which == child)
            found[:, places] = self.find(node._datasets[child], local[places], listed=listed)
        leaf, row, target = found
        for mapped in mappings:
            if len(target) and not 0 <= target.min() <= target.max() < len(mapped):
                raise _UnknownError
            target = mapped[target]
        return leaf, row, target

    def _number(self, images: Images, listed: bool) -> int:
        for number, (leaf, kind) in enumerate(self.leaves):
            if leaf is images and kind == listed:
                return number
        self.leaves.append((images, listed))
        return len(self.leaves) - 1


def _class_mapping(groups: Any, group: str) -> tuple[bool, list[Indices]]:
    """Whether a group of transforms makes a list of a sample, and what it does to the class.

    Nothing, or the one mapping that Avalanche's generators put in.

    Raises:
        _UnknownError: it does something else.
    """
    try:
        transform = groups.transform_groups[group]
    except KeyError:
        raise _UnknownError from None
    if transform is None:
        return not isinstance(groups, EmptyTransformGroups), []
    if type(transform) is not TupleTransform or len(transform.transforms) > 2:
        raise _UnknownError
    image, target = (*transform.transforms, None, None)[:2]
    if image is not None:
        raise _UnknownError
    if target is None:
        return True, []
    if not isinstance(target, partial) or target.func is not lookup or len(target.args) != 1 or target.keywords:
        raise _UnknownError
    mapping = np.asarray(target.args[0])
    if mapping.dtype != np.int64:
        raise _UnknownError
    return True, [mapping]


def _locate(at: Indices, cumulative: Sequence[int]) -> tuple[Indices, Indices]:
    """Which of several concatenated datasets, and where in it."""
    ends = np.asarray(cumulative, dtype=np.int64)
    number = np.searchsorted(ends, at, side="right")
    return number, at - np.concatenate([[0], ends])[number]


def _subset(node: Any, at: Indices) -> Indices:
    """Positions in a node's datasets, of positions in the node."""
    indices = node._indices
    if indices is None:
        return at
    if isinstance(indices, LazyIndices) and not isinstance(indices, LazyRange):
        indices._to_eager()
        indices = indices._eager_list
    if not isinstance(indices, (list, np.ndarray)):
        raise _UnknownError
    chosen: Indices = np.asarray(indices, dtype=np.int64)[at]
    return chosen


def _integers(data: Any) -> Indices | None:
    """The values of an attribute if all are plain integers, as task labels are."""
    try:
        return _attribute_values(data, np.arange(len(data), dtype=np.int64))
    except _UnknownError:
        return None


def _attribute_values(node: Any, at: Indices) -> Indices:
    if isinstance(node, ConstantSequence) and type(node._constant_value) is int:
        return np.full(len(at), node._constant_value, dtype=np.int64)
    if isinstance(node, list) and set(map(type, node)) <= {int}:
        chosen: Indices = np.asarray(node, dtype=np.int64)[at]
        return chosen
    if type(node) is not FlatData:
        raise _UnknownError
    number, local = _locate(_subset(node, at), node._cumulative_sizes)
    values = np.empty(len(at), dtype=np.int64)
    for which in np.unique(number).tolist():
        places = np.flatnonzero(number == which)
        values[places] = _attribute_values(node._datasets[which], local[places])
    return values
