"""A strategy's state as plain nodes: a number, a string, None, or a list that starts with its kind.

Whatever may be shared has a number, is written where it is first met, and is ``["same", number]`` from then on.
"""

from collections import defaultdict, deque
from collections.abc import Iterable, Iterator
from enum import Enum
from typing import Any

import numpy as np
import torch
from avalanche.benchmarks.utils import AvalancheDataset
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import default_collate

from avalanche_contrastive._archive import DTYPES, INTEGER_BITS, CheckpointError
from avalanche_contrastive._datasets import attribute_parts, fingerprint, iterator_parts, located, smallest
from avalanche_contrastive._random import GENERATORS, package_of, state_of_generator
from avalanche_contrastive._torch import unwrapped
from avalanche_contrastive.checkpoint import kinds
from avalanche_contrastive.checkpoint.kinds import Node, name_of, state_of

__all__ = ["Encoder"]

COMPACT = 32  # numbers that a sequence must have to be written as a tensor
RESULTS = ("all_metric_results", "last_metric_results")  # of an evaluator: values, of which a rebuilt one has none


class Encoder:
    """Turns objects into nodes, those of a strategy on that device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.sources: dict[str, int] = {}  # sizes of the data sets that stored samples come from, by fingerprint
        self._numbers: dict[int, int] = {}  # by id
        self._kept: list[Any] = []  # so that no id is used twice
        self._within: set[int] = set()  # containers
        self._orders: dict[int, list[Any]] = {}  # in which sets have been filled, by id
        self._optimizers: list[tuple[Optimizer, str]] = []
        self._fingerprints: dict[int, str] = {}  # by id
        self._layers: set[int] = set()  # ids of the parts of models

    def node(self, value: Any, path: str) -> Node:
        """The node of a value; an error with its path if it cannot be saved so that it is restored exactly."""
        if value is None or type(value) in kinds.SCALARS:
            if type(value) is int and value.bit_length() > INTEGER_BITS:
                raise unsavable(path, value, f"it has more than {INTEGER_BITS} bits")
            return value
        value = unwrapped(value) if isinstance(value, nn.Module) else value
        if id(value) in self._numbers:
            if id(value) in self._within:
                raise unsavable(path, value, "it contains itself")
            return ["same", self._numbers[id(value)]]
        if kinds.is_kept(value, self._layers):
            if name_of(value) not in kinds.FUNCTIONS and any(name in path for name in RESULTS):
                raise unsavable(path, value, "it is no value")
            return ["configuration", name_of(value)]
        encode = next((encode for kind, encode in _KINDS if isinstance(value, kind)), Encoder._object)
        node: Node = encode(self, value, path)
        return node

    def optimizers(self) -> list[Node]:
        """The nodes of the optimisers that were met, once all else has been: their parameters are found by number."""
        return [self._state_of_optimizer(value, path) for value, path in self._optimizers]

    def _number(self, value: Any) -> int:
        self._kept.append(value)
        return self._numbers.setdefault(id(value), len(self._numbers))

    # ---- numbers and containers

    def _tensor(self, value: Tensor, path: str) -> Node:
        if type(value) not in (Tensor, nn.Parameter, nn.Buffer):
            raise unsavable(path, value, "it is a subclass of tensor, which would come back as a plain one")
        if value.layout != torch.strided or value.dtype not in DTYPES or value.is_meta:
            raise unsavable(path, value, f"its numbers are {value.dtype}, {value.layout}, on {value.device}")
        there = value.device.type != "cpu" and value.device.type == self.device.type
        requires_grad = value.requires_grad and value.is_leaf  # a stored result of a pass comes back without its graph
        kind = "parameter" if isinstance(value, nn.Parameter) else "tensor"
        return [kind, self._number(value), value.detach().cpu().clone(), requires_grad, there]

    def _array(self, value: Any, path: str) -> Node:
        if value.dtype.str not in kinds.NUMPY:
            raise unsavable(path, value, f"its values are of type {value.dtype}")
        data = torch.from_numpy(np.ascontiguousarray(value).reshape(-1).view(np.uint8).copy())
        return ["array", self._number(value), data, value.dtype.str, list(value.shape)]

    def _sequence(self, value: Any, path: str) -> Node:
        if type(value) not in kinds.CONTAINERS:
            raise unsavable(path, value, f"it is a subclass of {type(value).__mro__[1].__name__}")
        number = self._number(value)
        self._within.add(id(value))
        items = self._items(self._orders.get(id(value), value), path)
        self._within.discard(id(value))
        return [type(value).__name__, number, items, *([value.maxlen] if isinstance(value, deque) else [])]

    def _items(self, values: Iterable[Any], path: str) -> Any:
        """The nodes of a sequence, or one tensor where all are integers or all are floats."""
        items = list(values)
        types = {type(item) for item in items} if len(items) >= COMPACT else set()
        if types == {float} or (types == {int} and min(items) >= -(2**63) and max(items) < 2**63):
            return torch.tensor(items, dtype=torch.float64 if types == {float} else torch.int64)
        return [self.node(item, f"{path}[{index}]") for index, item in enumerate(items)]

    def _dict(self, value: dict[Any, Any], path: str) -> Node:
        if type(value) not in kinds.DICTS.values():
            raise unsavable(path, value, "it is a subclass of dict")
        number = self._number(value)
        self._within.add(id(value))
        pairs = [[self.node(k, f"{path} (a key)"), self.node(v, f"{path}[{k!r:.40}]")] for k, v in list(value.items())]
        self._within.discard(id(value))
        factory = value.default_factory if isinstance(value, defaultdict) else None
        return ["dict", number, type(value).__name__, pairs, None if factory is None else name_of(factory)]

    def _object(self, value: Any, path: str) -> Node:
        state, name = state_of(value), name_of(type(value))
        if state is None:
            raise unsavable(path, value, "its state cannot be read from Python")
        if name not in kinds.MADE and any(name in path for name in RESULTS):
            raise unsavable(path, value, "it is no value")
        if isinstance(value, nn.Module):
            self._layers |= kinds.layers_of(value)
        # Avalanche's memories deal out their room in the order of a set of their groups. Python's order of a set
        # follows from the order in which it was filled, and that is the order of the groups in the dict beside it.
        orders = [list(item) for item in state.values() if isinstance(item, dict)]
        for item in (item for item in state.values() if type(item) is set):
            self._orders |= {id(item): order for order in orders if len(order) == len(item) and set(order) == item}
        return ["object", self._number(value), name, self._attributes(state, path)]

    def _attributes(self, state: dict[str, Any], path: str) -> dict[str, Node]:
        """Attributes by name: models first, then objects, then containers, for those may hold parts of the others.

        What is shared is written where it is first met, and the rebuilt strategy should have it there.
        """
        ranks = {name: (not isinstance(x, nn.Module), type(x) in kinds.CONTAINERS) for name, x in state.items()}
        names = sorted(state, key=ranks.__getitem__)
        return {name: self.node(state[name], f"{path}.{name}" if path else name) for name in names}

    def _optimizer(self, value: Optimizer, path: str) -> Node:
        self._optimizers.append((value, path))
        return ["optimizer", self._number(value), name_of(type(value))]

    def _state_of_optimizer(self, value: Optimizer, path: str) -> Node:
        """Parameters that nothing else holds any more are dropped: Avalanche leaves them behind when a head grows."""
        held = frozenset(self._numbers)
        for parameter in (parameter for group in value.param_groups for parameter in group["params"]):
            if id(parameter) not in held and parameter.grad is not None:
                raise CheckpointError(
                    f"cannot save strategy.{path}: it trains a parameter of shape {tuple(parameter.shape)} that no "
                    "attribute of the strategy, its model or its plugins holds. Does a plugin keep it in a closure?"
                )
        groups = [{**group, "params": [p for p in group["params"] if id(p) in held]} for group in value.param_groups]
        states = [(parameter, dict(kept)) for parameter, kept in value.state.items() if id(parameter) in held]
        parts = {"defaults": dict(value.defaults), "param_groups": groups, "state": states}
        nodes = [self.node(part, f"{path}.{name}") for name, part in parts.items()]
        return [self._number(value), self._attributes(state_of(value) or {}, path), *nodes]

    def _random(self, value: Any, path: str) -> Node:
        return ["random", self._number(value), package_of(value), self.node(state_of_generator(value), path)]

    # ---- stored samples, and iterators over them

    def _samples(self, data: Any, path: str) -> Node:
        """Samples as indices; attributes (labels, task labels, stored logits) as values, one for each sample."""
        if name_of(type(data)) not in kinds.DATASETS:
            raise unsavable(path, data, "only Avalanche's own classes of data sets can be restored")
        sizes, which, position = located(data, self._fingerprint)
        self.sources |= sizes
        attributes = self.node({name: attribute_parts(x) for name, x in data._data_attributes.items()}, path)
        where = sizes, smallest(which), smallest(position)
        group = data._flat_data._transform_groups.current_group
        own_collate = data.collate_fn is not default_collate
        return ["samples", self._number(data), name_of(type(data)), group, *where, own_collate, attributes]

    def _fingerprint(self, data: Any) -> str:
        if id(data) not in self._fingerprints:
            self._kept.append(data)
            self._fingerprints[id(data)] = fingerprint(data)
        return self._fingerprints[id(data)]

    def _iterator(self, value: Any, path: str) -> Node:
        """One over stored samples that nobody has drawn from yet, as A-GEM and MIR have it between two experiences."""
        parts = iterator_parts(value)
        if parts is None:
            raise unsavable(path, value, "it has been drawn from, or nothing could make another")
        name, datasets, size = parts
        return ["iterator", self._number(value), name, [self.node(data, path) for data in datasets], size]


def unsavable(path: str, value: Any, why: str) -> CheckpointError:
    """The error for a thing that cannot be saved."""
    return CheckpointError(
        f"cannot save strategy.{path}, {'an' if type(value).__name__[0] in 'aeiou' else 'a'} {type(value).__name__}: "
        f"{why}. A checkpoint holds numbers, strings, tensors, containers of these, modules, Avalanche data sets (as "
        "indices) and plain objects made of them."
    )


_KINDS: tuple[tuple[Any, Any], ...] = (
    (Tensor, Encoder._tensor),
    (np.ndarray, Encoder._array),
    (np.generic, lambda encoder, value, path: ["scalar", *encoder._array(np.asarray(value), path)[2:4]]),
    (AvalancheDataset, Encoder._samples),
    ((list, tuple, deque, set, frozenset), Encoder._sequence),
    (dict, Encoder._dict),
    (GENERATORS, Encoder._random),
    (Optimizer, Encoder._optimizer),
    (Iterator, Encoder._iterator),
    (torch.device, lambda encoder, value, path: ["device", value.type != "cpu" and value.type == encoder.device.type]),
    (torch.dtype, lambda encoder, value, path: ["dtype", str(value).removeprefix("torch.")]),
    (Enum, lambda encoder, value, path: ["enum", name_of(type(value)), value.name]),
)
