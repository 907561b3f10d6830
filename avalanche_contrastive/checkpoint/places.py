"""Places of a strategy, and what may stand there."""

from collections import Counter
from typing import Any, NamedTuple

import torch
from avalanche.training.templates.base import BaseTemplate
from torch import Tensor, nn

from avalanche_contrastive.checkpoint import kinds
from avalanche_contrastive.checkpoint.kinds import MISSING, MismatchError, Node, family, name_of

__all__ = ["PARTS", "Place", "check_keys", "check_layers", "differs", "is_free", "is_option", "named"]

COLLIDING = 16  # keys of a dict or set that may have the same hash
PARTS: dict[str, type] = {"_parameters": nn.Parameter, "_buffers": Tensor, "_modules": nn.Module}  # of a module


class Place(NamedTuple):
    """A place of the strategy."""

    there: Any  # what stands there, or MISSING
    path: str
    is_made: bool = False  # within a new object, whose options are not the user's
    within: str = ""  # "fixed" within a model; "growing" within a part of it that grows

    def item(self, key: Any, there: Any) -> "Place":
        """The place of an item."""
        return self._replace(there=there, path=f"{self.path}[{key!r:.40}]")

    def attribute(self, name: str, there: Any) -> "Place":
        """The place of an attribute."""
        return self._replace(there=there, path=f"{self.path}.{name:.40}" if self.path else f"{name:.40}")

    def new(self) -> "Place":
        """The same place for something that is the strategy's in no way."""
        return self._replace(there=MISSING)


def differs(path: str, theirs: str, there: Any) -> MismatchError:
    """The error for a thing of another kind than the one that stands there."""
    ours, theirs = (name.rpartition(":")[2] for name in (family(there), theirs))
    return MismatchError(f"strategy.{path} is {theirs} in the file, {ours} here")


def is_nothing(node: Node) -> bool:
    """Whether a node is None, or a list of nothing: of loggers, for example, where the saved strategy had none."""
    return node is None or (type(node) is list and node[0] == "list" and len(node[2]) == 0)


def is_option(value: Any) -> bool:
    """Whether a thing is a number, a string or a tuple of these: options of a constructor that can be compared."""
    plain = family(value) in ("flag", "number", "text")
    return plain or (type(value) is tuple and all(item is None or is_option(item) for item in value))


def is_free(thing: Any, name: str) -> bool:
    """Whether an object may have an attribute that it does not have yet: one that hides nothing but a default.

    Those of the closed list and of this package have theirs from the beginning, but others may note something on
    models, optimisers and strategies.
    """
    cls = type(thing)
    is_closed = name_of(cls) in kinds.MADE or cls.__module__.startswith("avalanche_contrastive.")
    is_closed &= not isinstance(thing, (nn.Module, torch.optim.Optimizer, BaseTemplate))
    if is_closed or name in kinds.left_out(thing) or not name.isidentifier() or name.startswith("__"):
        return name in kinds.slots_of(cls)
    hidden = getattr(cls, name, MISSING)
    is_default = family(hidden) in kinds.FAMILIES and not hasattr(nn.Module, name)
    return hidden is MISSING or name in kinds.slots_of(cls) or is_default


def check_keys(keys: list[Any], path: str) -> None:
    """Refuse keys that are made to collide: a table of them would take for ever to fill."""
    if max(Counter(map(hash, keys)).values(), default=0) > COLLIDING:
        raise MismatchError(f"strategy.{path}: its keys collide, as those of no checkpoint do")


def check_layers(nodes: dict[str, Node], at: Place) -> None:
    """Refuse other layers or shapes; where a model grows, layers may come and the first axis may be longer."""
    for kind in PARTS:
        ours, theirs = getattr(at.there, kind), named(nodes, kind)
        if at.within == "fixed" and ours.keys() != theirs.keys():
            odd = sorted(map(str, ours.keys() ^ theirs.keys()))[0]
            where = "the file" if odd in theirs else "this model"
            raise MismatchError(f"the models differ: strategy.{at.path}.{odd} is only in {where}")
        for name in [name for name in theirs if name in ours] if kind != "_modules" else ():
            node, here = theirs[name], ours[name]
            there = node[2] if node is not None and node[0] in ("tensor", "parameter") else None
            is_same = node is not None and node[0] == "same"
            if not is_same and not _fits(there, here, is_fixed=at.within == "fixed"):
                words = " in the file, ".join(map(_shape, (there, here)))
                raise MismatchError(f"the models differ: strategy.{at.path}.{name} is {words} here")


def named(nodes: dict[str, Node], kind: str) -> dict[Any, Node]:
    """Parameters, buffers or parts of a module in the file, by name."""
    return dict(nodes[kind][3])


def _fits(there: Any, here: Any, *, is_fixed: bool) -> bool:
    if is_fixed:
        return _shape(there) == _shape(here)
    if there is None or here is None:
        return True
    alike = [there.dtype, there.ndim, *there.shape[1:]] == [here.dtype, here.ndim, *here.shape[1:]]
    return alike and there.shape[:1] >= here.shape[:1]


def _shape(tensor: Any) -> str:
    return f"{tuple(tensor.shape)} {tensor.dtype}".replace("torch.", "") if isinstance(tensor, Tensor) else "None"
