"""Digests of data sets, by which the images that a stored index belongs to are found again in another process."""

import functools
import hashlib
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from avalanche.benchmarks.utils import AvalancheDataset
from avalanche.benchmarks.utils.flat_data import ConstantSequence, FlatData
from torch import Tensor
from torch.utils.data import Dataset

__all__ = ["fingerprint", "indices_of", "is_plain"]

DEPTH = 6
LOOKED_AT = 4096  # elements of a large tensor, and of a long list that holds no numbers


def fingerprint(data: Any, *, thorough: bool = False) -> str:
    """What a data set is, not where: its kind, length, labels, transforms and a part of its values.

    Labels and indices count in full, of images some thousand evenly spread values. Paths, private attributes and the
    transform group in use do not count, so the same data set in another folder is the same.

    Args:
        data: a torch data set, or a node of an Avalanche data set.
        thorough: count everything, to tell two data sets apart that look alike; empty if something cannot be looked at.
    """
    digest = hashlib.sha256()
    digester = _Digester(digest.update, thorough)
    digester.feed(data, 0)
    return "" if thorough and digester.is_opaque else digest.hexdigest()[:32]


class _Digester:
    def __init__(self, write: Callable[[bytes], Any], thorough: bool) -> None:
        self.write, self.thorough = write, thorough
        self.looked_at = sys.maxsize if thorough else LOOKED_AT
        self.is_opaque = False
        self.within: set[int] = set()

    def say(self, *words: Any) -> None:
        self.write(("|".join(map(str, words)) + ";").encode())

    def feed(self, value: Any, depth: int) -> None:
        """Write what tells a value from another."""
        if value is None or isinstance(value, (bool, int, float)):
            self.say(type(value).__name__, value)
        elif isinstance(value, (Tensor, np.ndarray)):
            self.array(value.detach().cpu() if isinstance(value, Tensor) else value)
        elif isinstance(value, (str, bytes)):
            self.say(type(value).__name__, value if self.thorough else "")
        elif depth > DEPTH or id(value) in self.within:
            self.is_opaque |= depth > DEPTH
            self.say(type(value).__name__)
        else:
            self.within.add(id(value))
            self.compound(value, depth)
            self.within.discard(id(value))

    def compound(self, value: Any, depth: int) -> None:
        """Things with parts."""
        if isinstance(value, AvalancheDataset):
            self.feed(value._flat_data, depth)
        elif isinstance(value, FlatData):
            self.node(value, depth)
        elif isinstance(value, (list, tuple, range)):
            self.sequence(value, depth)
        elif isinstance(value, Mapping):
            self.say("dict", len(value))
            for key in sorted(value, key=str)[: self.looked_at]:
                self.say(key)
                self.feed(value[key], depth + 1)
        elif isinstance(value, _FUNCTIONS):
            self.function(value, depth)
        else:
            self.object(value, depth)

    def array(self, value: Any) -> None:
        """Shape, type and some evenly spread values."""
        self.say("array", tuple(value.shape), str(value.dtype).removeprefix("torch."))
        size = int(np.prod(value.shape))
        step = max(1, size // self.looked_at)
        rows = value.reshape(-1)[::step] if size else value.reshape(-1)
        if isinstance(rows, Tensor):
            rows = (rows.float() if rows.dtype.is_floating_point else rows).numpy()
        self.write(np.ascontiguousarray(rows).tobytes() if rows.dtype != object else b"objects")

    def sequence(self, value: Sequence[Any], depth: int) -> None:
        """Numbers in full, other things some of them."""
        self.say("sequence", len(value))
        if len(value) > 0 and all(isinstance(value[i], (bool, int, float)) for i in (0, -1)):
            numbers = np.asarray(value)
            if numbers.dtype.kind in "biuf":
                self.write(numbers.astype(np.float64).tobytes())
                return
        for index in range(0, len(value), max(1, len(value) // self.looked_at)):
            self.feed(value[index], depth + 1)

    def node(self, value: FlatData[Any], depth: int) -> None:
        """A concatenation or subset with transforms."""
        self.say("node", len(value), bool(value._can_flatten))
        if value._indices is not None:
            self.write(indices_of(value).tobytes())
        for name in ("_frozen_transform_groups", "_transform_groups"):
            self.transforms(getattr(value, name, None), depth)
        for part in value._datasets:
            self.feed(part, depth + 1)

    def transforms(self, groups: Any, depth: int) -> None:
        """All groups but which one is in use; a group for all names is a default, filled in when asked for."""
        if groups is None:
            return
        table = groups.transform_groups
        factory = getattr(table, "default_factory", None)
        usual = factory() if factory is not None else None
        self.feed(usual, depth + 1)
        for name in sorted(table):
            if table[name] is not None and table[name] is not usual:
                self.say(name)
                self.feed(table[name], depth + 1)

    def function(self, value: Any, depth: int) -> None:
        """Its name and what it is bound to."""
        if isinstance(value, functools.partial):
            for part in (value.func, value.args, value.keywords):
                self.feed(part, depth + 1)
            return
        self.say(getattr(value, "__qualname__", type(value).__name__))
        for bound in getattr(value, "__closure__", None) or ():
            self.feed(_content(bound), depth + 1)
        for bound in (getattr(value, "__self__", None), getattr(value, "__defaults__", None)):
            if bound is not None and not isinstance(bound, types.ModuleType):
                self.feed(bound, depth + 1)

    def object(self, value: Any, depth: int) -> None:
        """Its class, length and public attributes."""
        self.say(type(value).__qualname__)
        if isinstance(value, (Dataset, ConstantSequence)):
            self.say(len(value))  # type: ignore[arg-type]
        self.is_opaque |= not hasattr(value, "__dict__")
        for name, attribute in sorted(getattr(value, "__dict__", {}).items()):
            if self.thorough or not name.startswith("_"):
                self.say(name)
                self.feed(attribute, depth + 1)


_FUNCTIONS = (types.FunctionType, types.BuiltinFunctionType, types.MethodType, functools.partial, type)


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None


def indices_of(node: FlatData[Any]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Positions in the concatenated parts of a node, one for each of its samples."""
    if node._indices is None:
        return np.arange(len(node), dtype=np.int64)
    return np.fromiter((node._indices[i] for i in range(len(node._indices))), np.int64, len(node._indices))


def is_plain(node: Any) -> bool:
    """Whether a node is a concatenation or subset and nothing else, so that its parts say it all."""
    if not isinstance(node, FlatData) or not node._can_flatten:
        return False
    groups = [getattr(node, name, None) for name in ("_transform_groups", "_frozen_transform_groups")]
    return all(_is_empty(group) for group in groups if group is not None)


def _is_empty(groups: Any) -> bool:
    table = groups.transform_groups
    factory = getattr(table, "default_factory", None)
    return (factory is None or factory() is None) and all(value is None for value in table.values())
