"""Avalanche's datasets and loaders, fetching a whole batch of images in memory at once.

Avalanche 0.6 walks down its tree of subsets and concatenations once for each sample of each batch, and once more for
each sample at the beginning of an epoch, to see whether the samples are FFCV's. `fetch_whole_batches` resolves the tree
once for each dataset and takes every batch by index. Values, types and order are those of sample by sample, and
whatever is not known here (transforms, other leaves) goes sample by sample as before.

It adds a method to Avalanche's ``AvalancheDataset`` and replaces one of its ``MultiDatasetDataLoader``. Subclasses are
not enough: Avalanche makes its own classes anew wherever a dataset is split by class or task, buffers among them, and
its strategies make its loaders by name. Torch asks a dataset for a batch by ``__getitems__``, which Avalanche's lack.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from avalanche.benchmarks.utils.classification_dataset import lookup
from avalanche.benchmarks.utils.data import AvalancheDataset, _FlatDataWithTransform
from avalanche.benchmarks.utils.data_attribute import DataAttribute
from avalanche.benchmarks.utils.data_loader import MultiDatasetDataLoader, MultiDatasetSampler
from avalanche.benchmarks.utils.flat_data import ConstantSequence, FlatData, LazyIndices, LazyRange
from avalanche.benchmarks.utils.transform_groups import EmptyTransformGroups
from avalanche.benchmarks.utils.transforms import TupleTransform
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader

from avalanche_contrastive._datasets import part_of, places_of
from avalanche_contrastive.data.memory import Batch, Indices, MemoryImages

__all__ = ["Plan", "fetch_whole_batches", "joint_plan", "plan_of"]


_loader_of_avalanche = MultiDatasetDataLoader._get_loader


def fetch_whole_batches() -> None:
    """Let Avalanche's datasets and loaders fetch whole batches of images in memory; may be called again."""
    AvalancheDataset.__getitems__ = _dataset_items
    MultiDatasetDataLoader._get_loader = _get_loader


def _dataset_items(dataset: Any, indices: Sequence[int]) -> Sequence[Any]:
    plan = plan_of(dataset)
    batch = None if plan is None else plan.fetch(indices)
    return [dataset[i] for i in indices] if batch is None else batch


def _get_loader(loader: Any) -> Any:
    known = [plan for plan in map(plan_of, loader.datasets) if plan is not None]
    if not known:
        return _loader_of_avalanche(loader)
    arguments = {
        name: value
        for name, value in loader.loader_kwargs.items()
        if name not in ("batch_size", "shuffle", "sampler", "drop_last", "ffcv_args")  # the sampler's, as in Avalanche
    }
    if any(images.x.device.type != "cpu" for plan in known for images in plan.leaves):
        arguments["pin_memory"] = False
    samplers = loader._create_samplers(
        loader.datasets, loader.batch_sizes, loader.distributed_sampling, loader.loader_kwargs
    )
    sampler = MultiDatasetSampler(
        loader.datasets,
        samplers,
        termination_dataset_idx=loader.termination_dataset,
        oversample_small_datasets=loader.oversample_small_datasets,
        never_ending=loader.never_ending,
    )
    return DataLoader(_Concatenated(loader.datasets), batch_sampler=sampler, **arguments)


class _Concatenated(ConcatDataset[Any]):
    """Batches over several datasets: at once where one plan serves for all, otherwise each is asked once."""

    def __init__(self, datasets: Sequence[Any]) -> None:
        super().__init__(datasets)
        self.plan = joint_plan([plan_of(data) for data in datasets])

    def __getitems__(self, indices: Sequence[int]) -> Sequence[Any]:
        batch = None if self.plan is None else self.plan.fetch(indices)
        if batch is not None:
            return batch
        at = np.asarray(indices, dtype=np.int64)
        number, local = part_of(at, self.cumulative_sizes)
        # Avalanche's samplers give one dataset's indices after the other's.
        if not len(at) or at.min() < 0 or at.max() >= len(self) or (np.diff(number) < 0).any():
            return [self[i] for i in indices]
        parts: list[Any] = []
        for which, places in places_of(number):
            dataset: Any = self.datasets[which]
            rows = local[places].tolist()
            parts.append(dataset.__getitems__(rows) if hasattr(dataset, "__getitems__") else [dataset[i] for i in rows])
        return [sample for part in parts for sample in part]


class _UnknownError(Exception):
    """Something in a dataset that only its own ``__getitem__`` can fetch."""


@dataclass(frozen=True, eq=False)
class Plan:
    """Where each sample of a dataset lies.

    Args:
        attributes: of the dataset, those that its samples end in.
        values: for each of them an array of integers, or none: to be asked sample by sample.
        leaves: the images.
        leaf: (N,) which of the leaves.
        row: (N,) which of the leaf's images.
        target: (N,) the class, as the dataset gives it.
        listed: whether a sample is a list; else a tuple.
    """

    attributes: list[Any]
    values: list[Indices | None]
    leaves: list[MemoryImages]
    leaf: Indices
    row: Indices
    target: Indices
    listed: bool

    def fetch(self, indices: Sequence[int]) -> Batch | None:
        """The samples at these positions; none where there is no such position."""
        at = np.asarray(indices, dtype=np.int64)
        if not len(at) or at.view(np.uint64).max() >= len(self.row):  # one below zero is a huge one there
            return None
        row = self.row.take(at)
        x = self.leaves[0].take(row) if len(self.leaves) == 1 else self._taken(self.leaf.take(at), row)
        columns: list[Any] = [self.target.take(at)]
        for attribute, values in zip(self.attributes, self.values, strict=True):
            columns.append([attribute[i] for i in at.tolist()] if values is None else values.take(at))
        return Batch(x, columns, listed=self.listed)

    def cut_to(self, other: "Plan") -> "Plan":
        """With no more columns than another plan, and its kind of samples."""
        count = len(other.values)
        return replace(self, attributes=self.attributes[:count], values=self.values[:count], listed=other.listed)

    def _taken(self, leaf: Indices, row: Indices) -> Tensor:
        groups = list(places_of(leaf))
        x = torch.cat([self.leaves[number].take(row[places]) for number, places in groups])
        if len(groups) == 1:
            return x
        order = np.argsort(np.concatenate([places for _, places in groups]))
        return x.index_select(0, torch.from_numpy(order).to(x.device))


def plan_of(dataset: Any) -> Plan | None:
    """The plan of a dataset, kept on it; none if it must be fetched sample by sample."""
    if isinstance(dataset, _Concatenated):
        return dataset.plan
    if not isinstance(dataset, AvalancheDataset) or not hasattr(dataset, "__getitems__"):
        return None
    attributes = [a for a in dataset._data_attributes.values() if a.use_in_getitem]
    known = dataset.__dict__.get("_batched")
    # A copied dataset carries the original's plan, but always has a tree of its own.
    if known is None or known[0] is not dataset._flat_data or [*map(id, known[1])] != [*map(id, attributes)]:
        known = dataset._flat_data, attributes, _make_plan(dataset._flat_data, attributes)
        dataset.__dict__["_batched"] = known
    plan: Plan | None = known[2]
    return plan


def joint_plan(plans: Sequence[Plan | None]) -> Plan | None:
    """The plan of several datasets, one behind the other; none where their samples are not all of one form."""
    if len(plans) == 1:
        return plans[0]
    known = [plan for plan in plans if plan is not None]
    leaves = list(dict.fromkeys(images for plan in known for images in plan.leaves))
    forms = {images.form for images in leaves}
    kinds = {(len(plan.values), plan.listed) for plan in known}
    joined = [[part for part in parts if part is not None] for parts in zip(*(p.values for p in known), strict=False)]
    if len(known) < len(plans) or len(forms) > 1 or len(kinds) > 1 or any(len(parts) < len(known) for parts in joined):
        return None
    numbers = [np.asarray([leaves.index(images) for images in plan.leaves], dtype=np.int64) for plan in known]
    return Plan(
        known[0].attributes,
        [np.concatenate(parts) for parts in joined],
        leaves,
        np.concatenate([number[plan.leaf] for number, plan in zip(numbers, known, strict=True)]),
        np.concatenate([plan.row for plan in known]),
        np.concatenate([plan.target for plan in known]),
        listed=known[0].listed,
    )


def _make_plan(tree: Any, attributes: list[DataAttribute[Any]]) -> Plan | None:
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
    return Plan(attributes, values, leaves, np.broadcast_to(leaf, len(row)), row, target, listed=kinds.pop())


class _Finder:
    """Goes down a tree of subsets and concatenations with all positions at once.

    Args:
        group: name of the transform group in use.
    """

    def __init__(self, group: str):
        self.group = group
        # Numbers of the images that were found; and whether their samples come as lists.
        self.leaves: dict[tuple[MemoryImages, bool], int] = {}

    def find(self, node: Any, at: Indices, *, listed: bool) -> tuple[Indices | int, Indices, Indices]:
        """Leaf number (or the one of all), row in it and class of each position of a node."""
        mappings: list[Indices] = []  # the innermost first
        while type(node) is not MemoryImages:
            if type(node) is _FlatDataWithTransform:
                for groups in (node._transform_groups, node._frozen_transform_groups):
                    changed, mapping = _class_mapping(groups, self.group)
                    listed, mappings = listed or changed, mapping + mappings
            elif type(node) is not FlatData or any(type(child) is not MemoryImages for child in node._datasets):
                raise _UnknownError
            at = _subset(node, at)
            if len(node._datasets) != 1:
                break
            node = node._datasets[0]
        leaf, row, target = self._found(node, at, listed)
        try:
            for mapped in mappings:
                target = mapped[target]  # one below zero counts from the end, as in Avalanche's own lookup
        except IndexError:
            raise _UnknownError from None
        return leaf, row, target

    def _found(self, node: Any, at: Indices, listed: bool) -> tuple[Indices | int, Indices, Indices]:
        """The same of a leaf, or of the parts that a node is put together from."""
        if type(node) is MemoryImages:
            return self.leaves.setdefault((node, listed), len(self.leaves)), at, node.classes[at]
        which, local = part_of(at, node._cumulative_sizes)
        leaf, row, target = np.empty((3, len(at)), dtype=np.int64)
        for child, places in places_of(which):
            leaf[places], row[places], target[places] = self.find(node._datasets[child], local[places], listed=listed)
        return leaf, row, target


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
    if isinstance(indices, list) and 4 * len(at) < len(indices):  # a few of many, without a copy of all
        return np.asarray([indices[i] for i in at.tolist()], dtype=np.int64)
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
    if isinstance(node, list):
        chosen = [node[i] for i in at.tolist()]
        if set(map(type, chosen)) <= {int}:
            return np.asarray(chosen, dtype=np.int64)
    if type(node) is not FlatData:
        raise _UnknownError
    number, local = part_of(_subset(node, at), node._cumulative_sizes)
    values = np.empty(len(at), dtype=np.int64)
    for which, places in places_of(number):
        values[places] = _attribute_values(node._datasets[which], local[places])
    return values
