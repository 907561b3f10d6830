"""Digests of data sets, by which the images that a stored index belongs to are found again in another process."""

import functools
import hashlib
import sys
import types
from collections.abc import Mapping
from typing import Any

import numpy as np
from avalanche.benchmarks.utils import AvalancheDataset
from avalanche.benchmarks.utils.flat_data import ConstantSequence, FlatData
from torch import Tensor
from torch.utils.data import Dataset

__all__ = ["fingerprint", "indices_of", "is_plain"]

DEPTH = 8
LOOKED_AT = 4096  # elements of a large tensor, and of a long list that holds no numbers
FUNCTIONS = (types.FunctionType, types.BuiltinFunctionType, types.MethodType, type)


def fingerprint(data: Any, *, thorough: bool = False) -> str:
    """What a data set is, not where: its kind, length, labels, transforms and a part of its values.

    Labels and indices count in full, of images some thousand evenly spread values. Paths, private attributes and the
    transform group in use do not count, so the same data set in another folder is the same.

    Args:
        data: a torch data set, or a node of an Avalanche data set.
        thorough: count everything, to tell two data sets apart that look alike; empty if something cannot be looked at.
    """
    digester = _Digester(thorough)
    digester.feed(data, 0)
    return "" if thorough and digester.is_opaque else digester.digest.hexdigest()[:32]


class _Digester:
    def __init__(self, thorough: bool) -> None:
        self.digest = hashlib.sha256()
        self.thorough = thorough
        self.looked_at = sys.maxsize if thorough else LOOKED_AT
        self.is_opaque = False
        self.within: set[int] = set()

    def note(self, *words: Any) -> None:
        self.digest.update(("|".join(map(str, words)) + ";").encode())

    def feed(self, value: Any, depth: int) -> None:
        """Count what tells a value from another."""
        if isinstance(value, (Tensor, np.ndarray)):
            self.array(value.detach().cpu() if isinstance(value, Tensor) else value)
        elif value is None or isinstance(value, (bool, int, float, str, bytes)):
            is_path = isinstance(value, (str, bytes)) and not self.thorough
            self.note(type(value).__name__, "" if is_path else value)
        elif depth > DEPTH or id(value) in self.within:
            self.is_opaque |= depth > DEPTH
            self.note(type(value).__name__)
        else:
            self.within.add(id(value))
            self.compound(value, depth + 1)
            self.within.discard(id(value))

    def compound(self, value: Any, depth: int) -> None:
        """Count things with parts."""
        if isinstance(value, AvalancheDataset):
            self.feed(value._flat_data, depth - 1)
        elif isinstance(value, FlatData):
            self.note("node", len(value), bool(value._can_flatten))
            self.digest.update(b"" if value._indices is None else indices_of(value).tobytes())
            for name in ("_frozen_transform_groups", "_transform_groups"):
                self.feed(_transforms(getattr(value, name, None)), depth)
            for part in value._datasets:
                self.feed(part, depth)
        elif isinstance(value, (list, tuple, range)):
            self.sequence(value, depth)
        elif isinstance(value, Mapping):
            self.note("dict", len(value))
            for key in sorted(value, key=str)[: self.looked_at]:
                self.note(key)
                self.feed(value[key], depth)
        elif isinstance(value, functools.partial):
            self.feed((value.func, value.args, value.keywords), depth)
        elif isinstance(value, FUNCTIONS):
            self.note(getattr(value, "__qualname__", ""))
            bound = [getattr(value, name, None) for name in ("__self__", "__defaults__")]
            bound += [_content(cell) for cell in getattr(value, "__closure__", None) or ()]
            self.feed([part for part in bound if not isinstance(part, types.ModuleType)], depth)
        else:
            self.note(type(value).__qualname__, len(value) if isinstance(value, (Dataset, ConstantSequence)) else "")  # type: ignore[arg-type]
            self.is_opaque |= not hasattr(value, "__dict__")
            for name, attribute in sorted(getattr(value, "__dict__", {}).items()):
                if self.thorough or not name.startswith("_"):
                    self.note(name)
                    self.feed(attribute, depth)

    def array(self, value: Any) -> None:
        """Count shape, type and some evenly spread values."""
        self.note("array", tuple(value.shape), str(value.dtype).removeprefix("torch."))
        rows = value.reshape(-1)[:: max(1, int(np.prod(value.shape)) // self.looked_at)]
        if isinstance(rows, Tensor):
            rows = (rows.float() if rows.dtype.is_floating_point else rows).numpy()
        self.digest.update(np.ascontiguousarray(rows).tobytes() if rows.dtype != object else b"objects")

    def sequence(self, value: Any, depth: int) -> None:
        """Count numbers in full, of other things some."""
        self.note("sequence", len(value))
        if len(value) > 0 and all(isinstance(value[i], (bool, int, float)) for i in (0, -1)):
            numbers = np.asarray(value)
            if numbers.dtype.kind in "biuf":
                self.digest.update(numbers.astype(np.float64).tobytes())
                return
        for index in range(0, len(value), max(1, len(value) // self.looked_at)):
            self.feed(value[index], depth)


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None


def _transforms(groups: Any) -> Any:
    """All groups, not which one is in use; a group for all names is a default, filled in when it is asked for."""
    if groups is None:
        return None
    factory = getattr(groups.transform_groups, "default_factory", None)
    usual = factory() if factory is not None else None
    table = groups.transform_groups.items()
    return usual, {name: transform for name, transform in table if transform is not None and transform is not usual}


def indices_of(node: FlatData[Any]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Positions in the concatenated parts of a node, one for each of its samples."""
    if node._indices is None:
        return np.arange(len(node), dtype=np.int64)
    return np.fromiter((node._indices[i] for i in range(len(node._indices))), np.int64, len(node._indices))


def is_plain(node: Any) -> bool:
    """Whether a node is a concatenation or subset and nothing else, so that its parts say it all."""
    groups = [getattr(node, name, None) for name in ("_transform_groups", "_frozen_transform_groups")]
    found = [_transforms(group) for group in groups if group is not None]
    return isinstance(node, FlatData) and node._can_flatten and all(usual is None and not own for usual, own in found)
