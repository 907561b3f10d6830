"""Avalanche's data sets, taken apart and put together: which sample of which source each of their samples is.

A data set is a tree of concatenations and subsets; its *sources* are the leaves, with their transforms. They are known
by fingerprints, by which another process finds them again.
"""

import functools
import hashlib
import inspect
import sys
import types
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from avalanche.benchmarks.utils import AvalancheDataset
from avalanche.benchmarks.utils.data import _FlatDataWithTransform
from avalanche.benchmarks.utils.data_attribute import DataAttribute
from avalanche.benchmarks.utils.data_loader import GroupBalancedInfiniteDataLoader
from avalanche.benchmarks.utils.flat_data import ConstantSequence, FlatData
from avalanche.training.plugins import mir
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler

__all__ = [
    *("StoredSource", "attribute_parts", "fingerprint", "indices_of", "is_source", "iterator_parts", "located"),
    *("new_attribute", "new_dataset", "new_iterator", "part_of", "places_of", "smallest"),
]

Array = np.ndarray[Any, np.dtype[np.int64]]

DEPTH = 8
LOOKED_AT = 4096  # elements of a large tensor, and of a long list that holds no numbers


def fingerprint(data: Any, *, thorough: bool = False) -> str:
    """What a data set is, not where: its kind, length, labels, transforms and a part of its values.

    Labels and indices count in full, of images some thousand evenly spread values. Paths, private attributes and the
    transform group in use do not count, so the same data set in another folder is the same.

    Args:
        data: a torch data set, or a node of an Avalanche data set.
        thorough: count everything, to tell two data sets apart that look alike; empty if something cannot be looked at.
    """
    digest = _Digest(thorough)
    digest.add(data, 0)
    return "" if thorough and digest.is_opaque else digest.sha.hexdigest()[:32]


class _Digest:
    def __init__(self, thorough: bool) -> None:
        self.sha = hashlib.sha256()
        self.thorough, self.looked_at = thorough, sys.maxsize if thorough else LOOKED_AT
        self.is_opaque = False
        self.within: set[int] = set()

    def add(self, value: Any, depth: int) -> None:
        """Count what tells a value from another."""
        if isinstance(value, (Tensor, np.ndarray)):
            self._add_array(value)
        elif value is None or isinstance(value, (bool, int, float, str, bytes)):
            is_path = isinstance(value, (str, bytes)) and not self.thorough
            self._note(type(value).__name__, "" if is_path else value)
        elif depth > DEPTH or id(value) in self.within:
            self.is_opaque |= depth > DEPTH
            self._note(type(value).__name__)
        else:
            self.within.add(id(value))
            for part in self._parts(value):
                self.add(part, depth + 1)
            self.within.discard(id(value))

    def _note(self, *words: Any) -> None:
        self.sha.update(("|".join(map(str, words)) + ";").encode())

    def _add_array(self, value: Any) -> None:
        """Shape, type and some evenly spread values."""
        self._note("array", tuple(value.shape), str(value.dtype).removeprefix("torch."))
        rows = value.reshape(-1)[:: max(1, int(np.prod(value.shape)) // self.looked_at)]
        if isinstance(rows, Tensor):
            rows = (rows.detach().float() if rows.dtype.is_floating_point else rows).cpu().numpy()
        self.sha.update(np.ascontiguousarray(rows).tobytes() if rows.dtype != object else b"objects")

    def _parts(self, value: Any) -> Iterable[Any]:
        """What something is made of, when its kind is noted."""
        if isinstance(value, AvalancheDataset):
            return [value._flat_data]
        if isinstance(value, FlatData):
            self._note("node", len(value), bool(value._can_flatten))
            self.sha.update(b"" if value._indices is None else indices_of(value).tobytes())
            groups = (getattr(value, name, None) for name in ("_frozen_transform_groups", "_transform_groups"))
            return [*map(_transforms, groups), *value._datasets]
        if isinstance(value, (list, tuple, range)):
            self._note("sequence", len(value))
            if len(value) > 0 and all(isinstance(value[i], (bool, int, float)) for i in (0, -1)):
                numbers = np.asarray(value)
                if numbers.dtype.kind in "biuf":
                    self.sha.update(numbers.astype(np.float64).tobytes())
                    return []
            return [value[i] for i in range(0, len(value), max(1, len(value) // self.looked_at))]
        if isinstance(value, Mapping):
            keys = sorted(value, key=str)[: self.looked_at]
            self._note("dict", len(value), *keys)
            return [value[key] for key in keys]
        if isinstance(value, functools.partial):
            return [value.func, value.args, value.keywords]
        if isinstance(value, (types.FunctionType, types.BuiltinFunctionType, types.MethodType, type)):
            self._note(getattr(value, "__qualname__", ""))
            bound = [getattr(value, name, None) for name in ("__self__", "__defaults__")]
            bound += [_content(cell) for cell in getattr(value, "__closure__", None) or ()]
            return [part for part in bound if not isinstance(part, types.ModuleType)]
        size = len(value) if isinstance(value, (Dataset, ConstantSequence)) else ""  # type: ignore[arg-type]
        self.is_opaque |= not hasattr(value, "__dict__")
        names = sorted(name for name in getattr(value, "__dict__", {}) if self.thorough or not name.startswith("_"))
        self._note(type(value).__qualname__, size, *names)
        return [vars(value)[name] for name in names]


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None


def _transforms(groups: Any) -> Any:
    """All groups, not which one is in use; a group for all names is a default, filled in when it is asked for."""
    factory = getattr(getattr(groups, "transform_groups", None), "default_factory", None)
    usual = factory() if factory is not None else None
    table = groups.transform_groups.items() if groups is not None else ()
    return usual, {name: transform for name, transform in table if transform is not None and transform is not usual}


def indices_of(node: FlatData[Any]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Positions in the concatenated parts of a node, one for each of its samples."""
    if node._indices is None:
        return np.arange(len(node), dtype=np.int64)
    return np.fromiter(node._indices, np.int64, len(node._indices))


def part_of(at: Array, ends: Sequence[int]) -> tuple[Array, Array]:
    """Which of several parts, one after the other, holds each position, and where in it; (N,) each."""
    edges = np.array([0, *ends], dtype=np.int64)
    number = np.searchsorted(edges[1:], at, side="right")
    return number, at - edges[number]


def places_of(which: Array) -> Iterator[tuple[int, Array]]:
    """Each number in (N,), and where it stands; all of them in one sort."""
    order = np.argsort(which, kind="stable")
    numbers, starts = np.unique(which[order], return_index=True)
    return zip(numbers.tolist(), np.split(order, starts[1:]), strict=False)  # of nothing, a split is one part


def is_source(node: Any) -> bool:
    """Whether a node is more than a concatenation or subset of others, whose parts say it all."""
    groups = (getattr(node, name, None) for name in ("_transform_groups", "_frozen_transform_groups"))
    has_transforms = any(usual is not None or own for usual, own in map(_transforms, groups))
    return has_transforms or not isinstance(node, FlatData) or not node._can_flatten


def located(data: Any, fingerprint_of: Callable[[Any], str]) -> tuple[dict[str, int], Array, Array]:
    """Sizes of a data set's sources by fingerprint; for each sample the number of its source and its place there."""
    sizes: dict[str, int] = {}

    def find(node: Any, positions: Array) -> tuple[Array, Array]:
        if is_source(node):
            key = node.key if isinstance(node, StoredSource) else fingerprint_of(node)
            sizes.setdefault(key, len(node))
            return np.full(len(positions), list(sizes).index(key), dtype=np.int64), positions
        parts, inside = part_of(indices_of(node)[positions], node._cumulative_sizes)
        which, position = np.zeros_like(inside), np.zeros_like(inside)
        for number, rows in places_of(parts):
            which[rows], position[rows] = find(node._datasets[number], inside[rows])
        return which, position

    which, position = find(data._flat_data, np.arange(len(data), dtype=np.int64))
    return sizes, which, position


def smallest(numbers: Array) -> Tensor:
    """Integers (N,) in the smallest type that holds them."""
    low, high = (int(numbers.min()), int(numbers.max())) if len(numbers) else (0, 0)
    kinds = (torch.uint8, torch.int16, torch.int32, torch.int64)
    kind = next(kind for kind in kinds if torch.iinfo(kind).min <= low and high <= torch.iinfo(kind).max)
    return torch.from_numpy(numbers).to(kind)


class StoredSource(_FlatDataWithTransform[Any]):
    """Stands for a source until the stream is known; from then on it gives the samples of the real one.

    Args:
        key: its fingerprint.
        size: samples in it.
    """

    def __init__(self, key: str, size: int) -> None:
        super().__init__([])
        self.key = key
        self.source: Any = None
        self._can_flatten = False
        self._cumulative_sizes = [size]

    def _real(self) -> Any:
        if self.source is None:
            raise RuntimeError(
                "the stored samples of a restored strategy are looked up in the stream when it trains again, but they "
                "are asked for before. Give the stream at once: restore(strategy, path, stream=benchmark.train_stream)."
            )
        return self.source

    def _getitem_recursive_call(self, idx: int, group_name: str) -> Any:
        has_groups = isinstance(self._real(), _FlatDataWithTransform)
        return self.source._getitem_recursive_call(idx, group_name) if has_groups else self.source[idx]

    def _shallow_clone_dataset(self) -> Any:
        return self._real()._shallow_clone_dataset()


def new_dataset(
    cls: Any, sources: list[Any], which: Tensor, position: Tensor, group: str, attributes: list[Any], collate: Any
) -> Any:
    """A data set of the samples at positions (N,) of those sources whose numbers are in ``which`` (N,)."""
    sizes, positions = np.array([len(source) for source in sources], dtype=np.int64), position.long().numpy()
    rows, starts = which.long().numpy(), np.cumsum([0, *sizes])
    if (
        rows.ndim != 1
        or rows.shape != positions.shape
        or (rows < 0).any()
        or ((positions < 0) | (positions >= sizes[rows])).any()
    ):
        raise ValueError("there are samples at positions that no source has")
    with warnings.catch_warnings():  # of parts that are in other transform groups: the group is set here
        warnings.simplefilter("ignore")
        flat = _FlatDataWithTransform(sources, indices=(positions + starts[rows]).tolist() if sources else None)
    data = cls([flat.with_transforms(group)], data_attributes=attributes)
    data.collate_fn = collate
    return data


def attribute_parts(attribute: Any) -> tuple[Any, bool, bool]:
    """What a data attribute is made of.

    Returns:
        Its values: a list, a tensor with a row for each, or a tuple with one for all; whether it is in the samples; and
        whether it drops the values of other samples.
    """
    data = attribute._data
    values: Any = [attribute[i] for i in range(len(attribute))]
    if isinstance(data, ConstantSequence):
        values = (data._constant_value,)
    elif len({(v.shape, v.dtype, v.device) if type(v) is Tensor else None for v in values} | {None}) == 2:
        values = torch.stack(values)
    return values, bool(attribute.use_in_getitem), bool(getattr(data, "_discard_elements_not_in_indices", False))


def new_attribute(name: str, length: int, values: Any, in_sample: bool, discards: bool) -> Any:
    """A data attribute of so many samples, of what `attribute_parts` gives."""
    if isinstance(values, tuple):
        return DataAttribute(ConstantSequence(*values, length), name, use_in_getitem=in_sample)
    values = [row.clone() for row in values] if isinstance(values, Tensor) else values
    if len(values) != length:
        raise ValueError(f"there are {len(values)} values of {name:.40} for {length} samples")
    # With a second part: Avalanche cannot join a constant to values of a single list.
    parts = [values, values[:1]] if values else [values]
    data = FlatData(parts, indices=list(range(length)), discard_elements_not_in_indices=discards)
    return DataAttribute(data, name, use_in_getitem=in_sample)


def new_iterator(name: str, datasets: list[Any], size: int) -> Any:
    """An iterator over data sets with batches of a size, as MIR ("cycle") and A-GEM ("balanced") have it."""
    if type(size) is not int or not all(isinstance(data, AvalancheDataset) for data in datasets):
        raise ValueError("an iterator over something that is no data set")
    if name == "cycle":
        (data,) = datasets
        return mir.cycle(DataLoader(data, batch_size=size, shuffle=True))
    return iter({"balanced": GroupBalancedInfiniteDataLoader}[name](datasets, size, num_workers=0))


def iterator_parts(iterator: Any) -> tuple[str, list[Any], int] | None:
    """What `new_iterator` takes to make another; None if it cannot, or if this one has been drawn from."""
    if not inspect.isgenerator(iterator) or inspect.getgeneratorstate(iterator) != inspect.GEN_CREATED:
        return None
    loader: Any = next(iter(inspect.getgeneratorlocals(iterator).values()), None)
    if type(loader) is GroupBalancedInfiniteDataLoader:
        return "balanced", list(loader.datasets), loader.batch_sizes[0]
    is_usual = type(loader) is DataLoader and type(loader.sampler) is RandomSampler and not loader.drop_last
    if iterator.gi_code is mir.cycle.__code__ and is_usual and isinstance(loader.dataset, AvalancheDataset):
        return "cycle", [loader.dataset], loader.batch_size
    return None
