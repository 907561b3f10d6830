"""Which object of the fresh strategy stands for which of the file: its twin, found at the same place."""

from collections import deque
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from avalanche_contrastive._torch import unwrapped
from avalanche_contrastive.checkpoint.kinds import MISSING, SCALARS, name_of, state_of

__all__ = ["Twins"]

Node = Any
NUMBERED = ("object", "list", "deque", "dict", "parameter", "optimizer", "random")


class Twins:
    """Pairs the numbered things of a file with objects of the fresh strategy.

    A thing that is reached in several ways may have a twin at one of them only: a memory's groups share the way of
    choosing exemplars with the memory, but a fresh memory has no groups yet. So all pairs are found before anything is
    read. Each fresh object stands for one thing at most.

    Args:
        nodes: all that is in the file.
        optimizers: classes of the optimisers by number.
    """

    def __init__(self, nodes: Any, optimizers: dict[int, str]) -> None:
        self.definitions: dict[int, Node] = {}
        self.optimizers = optimizers
        self.pairs: dict[int, Any] = {}
        self.taken: dict[int, Any] = {}  # by id; kept, so that no id is used twice
        waiting = [nodes]
        while waiting:
            node = waiting.pop()
            if isinstance(node, tuple) and len(node) > 1 and node[0] in NUMBERED:
                self.definitions[node[1]] = node
            if isinstance(node, dict):
                waiting.extend(node.values())
            elif isinstance(node, (tuple, list)):
                waiting.extend(part for part in node if isinstance(part, (tuple, list, dict)))

    def of(self, number: int) -> Any:
        """The twin of a thing, or MISSING."""
        return self.pairs.get(number, MISSING)

    def match(self, node: Node, twin: Any) -> None:
        """Pair a thing with the fresh object at its place, and so with all that is in it."""
        if twin is MISSING or twin is None or not isinstance(node, tuple):
            return
        if node[0] == "same":
            node = self.definitions.get(node[1])
            if node is None:
                return
        if node[0] in NUMBERED:
            if node[1] in self.pairs or id(twin) in self.taken or not self.is_alike(node, twin):
                return
            self.pairs[node[1]] = self.taken[id(twin)] = twin
        for part, twin_part in _parts(node, twin):
            self.match(part, twin_part)

    def is_alike(self, node: Node, twin: Any) -> bool:
        """Whether an object is of the kind of a thing."""
        kind = node[0]
        if kind == "parameter":
            return isinstance(twin, nn.Parameter)
        if kind == "optimizer":
            return isinstance(twin, Optimizer) and name_of(type(twin)) == self.optimizers.get(node[1])
        if kind in ("object", "random"):
            return bool(name_of(type(twin)) == node[2])
        return bool(type(twin).__name__ == (node[2] if kind == "dict" else kind))


def _parts(node: Node, twin: Any) -> Iterator[tuple[Node, Any]]:
    """What is in a thing, each with what is at the same place of its twin."""
    kind = node[0]
    if kind == "wrapped" and isinstance(twin, nn.Module):
        yield node[1], unwrapped(twin)
    elif kind == "object":
        state = state_of(twin) or {}
        yield from ((part, state.get(name, MISSING)) for name, part in node[3].items())
    elif kind == "dict":
        yield from ((part, twin.get(key, MISSING)) for key, part in node[3] if key is None or type(key) in SCALARS)
    elif kind in ("list", "deque", "tuple", "namedtuple") and isinstance(twin, (list, tuple, deque)):
        content = node[1] if kind == "tuple" else node[2]
        if not isinstance(content, Tensor):
            yield from zip(content, twin, strict=False)
