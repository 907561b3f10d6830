"""A strategy's state as a table of plain records. Whatever may be shared has a record of its own, written once."""

import inspect
import random
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator
from enum import Enum
from typing import Any

import numpy as np
import torch
from avalanche.benchmarks.utils import AvalancheDataset
from avalanche.benchmarks.utils.flat_data import ConstantSequence
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import default_collate

from avalanche_contrastive._archive import DTYPES, INTEGER_BITS
from avalanche_contrastive._torch import unwrapped
from avalanche_contrastive.checkpoint import kinds
from avalanche_contrastive.checkpoint.fingerprints import fingerprint
from avalanche_contrastive.checkpoint.kinds import CheckpointError, name_of, state_of
from avalanche_contrastive.checkpoint.samples import located, smallest
from avalanche_contrastive.checkpoint.table import Record, Table, Value, check_table

__all__ = ["Encoder"]

COMPACT = 32  # numbers that a sequence must have to be written as a tensor
RESULTS = ("all_metric_results", "last_metric_results")  # of an evaluator: values, of which a rebuilt one has none


class Encoder:
    """Writes an object and all that it refers to as records, level by level.

    Args:
        device: of the strategy.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.sources: dict[str, int] = {}  # sizes of the data sets that stored samples come from, by fingerprint
        self.paths: dict[str, str] = {}  # and what stores them
        self._table: Table = []
        self._numbers: dict[int, int] = {}  # by id
        self._kept: list[Any] = []  # so that no id is used twice
        self._waiting: deque[tuple[int, Any, str]] = deque()
        self._optimizers: deque[tuple[int, Any, str]] = deque()  # last: their parameters are found by number
        self._orders: dict[int, list[Any]] = {}  # in which sets have been filled, by id
        self._fingerprints: dict[int, str] = {}

    def encode(self, root: Any, *, plain: bool = False) -> Table:
        """The table of an object.

        Args:
            root: the object.
            plain: see `check_table`.

        Raises:
            CheckpointError: something cannot be saved so that it can be restored exactly: its path is in the message.
        """
        self.value(root, "")
        while self._waiting or self._optimizers:
            number, value, path = (self._waiting or self._optimizers).popleft()
            self._table[number] += self._record(value, path)
        check_table(self._table, plain=plain)
        return self._table

    def value(self, value: Any, path: str) -> Value:
        """A value itself, or a reference to its record."""
        if value is None or type(value) in kinds.SCALARS:
            if type(value) is int and value.bit_length() > INTEGER_BITS:
                raise unsavable(path, value, f"it has more than {INTEGER_BITS} bits")
            return value
        value = unwrapped(value) if isinstance(value, nn.Module) else value
        if id(value) not in self._numbers:
            self._kept.append(value)
            self._numbers[id(value)] = len(self._table)
            waiting = self._optimizers if isinstance(value, Optimizer) else self._waiting
            waiting.append((len(self._table), value, path))
            self._table.append([])
        return (self._numbers[id(value)],)

    def _record(self, value: Any, path: str) -> Record:
        if kinds.is_configuration(value):
            if name_of(value) not in kinds.FUNCTIONS and any(name in path for name in RESULTS):
                raise unsavable(path, value, "it is no value")
            return ["configuration", name_of(value)]
        for kind, encode in _KINDS:
            if isinstance(value, kind):
                record: Record = encode(self, value, path)
                return record
        return self._object(value, path)

    # ---- numbers and containers

    def _tensor(self, value: Tensor, path: str) -> Record:
        if type(value) not in (Tensor, nn.Parameter, nn.Buffer):
            raise unsavable(path, value, "it is a subclass of tensor, which would come back as a plain one")
        if value.layout != torch.strided or value.dtype not in DTYPES or value.is_meta:
            raise unsavable(path, value, f"its numbers are {value.dtype}, {value.layout}, on {value.device}")
        there = value.device.type != "cpu" and value.device.type == self.device.type
        requires_grad = value.requires_grad and value.is_leaf  # a stored result of a pass comes back without its graph
        kind = "parameter" if isinstance(value, nn.Parameter) else "tensor"
        return [kind, value.detach().cpu().clone(), requires_grad, there]

    def _array(self, value: Any, path: str) -> Record:
        if value.dtype.str not in kinds.NUMPY:
            raise unsavable(path, value, f"its values are of type {value.dtype}")
        data = np.ascontiguousarray(value).reshape(-1).view(np.uint8).copy()
        return ["array", torch.from_numpy(data), value.dtype.str, list(value.shape)]

    def _sequence(self, value: Any, path: str) -> Record:
        value = tuple(value) if isinstance(value, torch.Size) else value
        if type(value) not in (list, tuple, deque, set, frozenset):
            raise unsavable(path, value, f"it is a subclass of {type(value).__mro__[1].__name__}")
        items = self._items(self._orders.get(id(value), value), path)
        return [type(value).__name__, items, *([value.maxlen] if isinstance(value, deque) else [])]

    def _items(self, values: Iterable[Any], path: str) -> Any:
        """The values of a sequence, or one tensor where all are integers or all are floats."""
        items = list(values)
        types = {type(item) for item in items} if len(items) >= COMPACT else set()
        if types == {float} or (types == {int} and min(items) >= -(2**63) and max(items) < 2**63):
            return torch.tensor(items, dtype=torch.float64 if types == {float} else torch.int64)
        return [self.value(item, f"{path}[{index}]") for index, item in enumerate(items)]

    def _dict(self, value: dict[Any, Any], path: str) -> Record:
        if type(value) not in kinds.DICTS.values():
            raise unsavable(path, value, "it is a subclass of dict")
        pairs = []
        for key, item in list(value.items()):
            pairs += [self.value(key, f"{path} (a key)"), self.value(item, f"{path}[{key!r:.40}]")]
        factory = value.default_factory if isinstance(value, defaultdict) else None
        return ["dict", pairs, type(value).__name__, None if factory is None else name_of(factory)]

    # ---- objects

    def _object(self, value: Any, path: str) -> Record:
        state, name = state_of(value), name_of(type(value))
        if state is None:
            raise unsavable(path, value, "its state cannot be read from Python")
        if name not in kinds.MADE and any(name in path for name in RESULTS):
            raise unsavable(path, value, "it is no value")
        # Avalanche's memories deal out their room in the order of a set of their groups. Python's order of a set
        # follows from the order in which it was filled, and that is the order of the groups in the dict beside it.
        orders = [list(item) for item in state.values() if isinstance(item, dict)]
        for item in (item for item in state.values() if type(item) is set):
            self._orders |= {id(item): order for order in orders if len(order) == len(item) and set(order) == item}
        return ["object", name, self._attributes(state, path)]

    def _attributes(self, state: dict[str, Any], path: str) -> dict[str, Value]:
        return {name: self.value(value, f"{path}.{name}" if path else name) for name, value in state.items()}

    def _optimizer(self, value: Optimizer, path: str) -> Record:
        """Drop parameters that nothing else holds any more, as Avalanche leaves them behind when a head grows."""
        held = self._numbers.keys()
        for parameter in (parameter for group in value.param_groups for parameter in group["params"]):
            if id(parameter) not in held and parameter.grad is not None:
                raise CheckpointError(
                    f"cannot save strategy.{path}: it trains a parameter of shape {tuple(parameter.shape)} that no "
                    "attribute of the strategy, its model or its plugins holds, so nothing would find it again. Does a "
                    "plugin keep it in a closure? Keep it in an attribute."
                )
        groups = [{**group, "params": [p for p in group["params"] if id(p) in held]} for group in value.param_groups]
        states = [[parameter, dict(kept)] for parameter, kept in value.state.items() if id(parameter) in held]
        parts = {"defaults": dict(value.defaults), "param_groups": groups, "state": states}
        others = self._attributes(state_of(value) or {}, path)
        return ["optimizer", name_of(type(value)), others, *self._attributes(parts, path).values()]

    def _random(self, value: Any, path: str) -> Record:
        return ["random", name_of(type(value)), self.value(kinds.GENERATORS[name_of(type(value))][1](value), path)]

    # ---- stored samples, and iterators over them

    def _samples(self, data: Any, path: str) -> Record:
        """Samples as indices; attributes (labels, task labels, stored logits) as values, one for each sample."""
        if name_of(type(data)) not in kinds.DATASETS:
            raise unsavable(path, data, "only Avalanche's own classes of data sets can be restored")
        sizes, which, position = located(data, self._fingerprint)
        self.sources |= sizes
        self.paths |= dict.fromkeys(sizes, path)
        attributes = self.value({name: _values(attribute) for name, attribute in data._data_attributes.items()}, path)
        where = list(sizes), list(sizes.values()), smallest(which), smallest(position)
        group = data._flat_data._transform_groups.current_group
        return ["samples", name_of(type(data)), group, *where, data.collate_fn is not default_collate, attributes]

    def _fingerprint(self, data: Any) -> str:
        """Of a data set, once for all that is stored of it."""
        if id(data) not in self._fingerprints:
            self._kept.append(data)
            self._fingerprints[id(data)] = fingerprint(data)
        return self._fingerprints[id(data)]

    def _iterator(self, value: Any, path: str) -> Record:
        """One over stored samples that nobody has drawn from yet, as A-GEM and MIR have it between two experiences."""
        if type(value).__name__ == "list_iterator" and value.__length_hint__() == 0:
            return ["configuration", "builtins:list_iterator"]
        if inspect.isgenerator(value) and inspect.getgeneratorstate(value) == inspect.GEN_CREATED:
            loader: Any = next(iter(inspect.getgeneratorlocals(value).values()), None)
            datasets = getattr(loader, "datasets", [getattr(loader, "dataset", None)])
            if all(isinstance(data, AvalancheDataset) for data in datasets):
                size = getattr(loader, "batch_size", None) or loader.batch_sizes[0]
                for name, make in kinds.ITERATORS.items():
                    if _options(make(datasets, size)) == _options(value):
                        return ["iterator", name, [self.value(data, path) for data in datasets], size]
        drawn = "it has been drawn from, and nothing tells how far it is, or nothing could make another"
        raise unsavable(path, value, drawn if inspect.isgenerator(value) else "its state cannot be read from Python")


def unsavable(path: str, value: Any, why: str) -> CheckpointError:
    """The error for a thing that cannot be saved."""
    return CheckpointError(
        f"cannot save strategy.{path}, {'an' if type(value).__name__[0] in 'aeiou' else 'a'} {type(value).__name__}: "
        f"{why}. A checkpoint holds numbers, strings, tensors, containers of these, modules, Avalanche data sets (as "
        "indices) and plain objects made of them."
    )


def _values(attribute: Any) -> tuple[Any, bool, bool]:
    """The values of a data attribute (a tuple: one for all); whether it is in the samples, and drops unused ones."""
    data = attribute._data
    values: Any = [attribute[i] for i in range(len(attribute))]
    if isinstance(data, ConstantSequence):
        values = (data._constant_value,)
    elif len({(v.shape, v.dtype, v.device) if type(v) is Tensor else None for v in values} | {None}) == 2:
        values = torch.stack(values)
    return values, bool(attribute.use_in_getitem), bool(getattr(data, "_discard_elements_not_in_indices", False))


def _options(iterator: Any) -> list[Any]:
    """The code of a generator, and the numbers and flags of the loader that it is over."""
    (loader,) = iterator.gi_frame.f_locals.values()
    options = {**vars(loader), **getattr(loader, "loader_kwargs", {})}
    plain = {name: value for name, value in options.items() if isinstance(value, int) or name == "batch_sizes"}
    plain = {name: value for name, value in plain.items() if value}
    return [iterator.gi_code, plain, type(getattr(loader, "sampler", None))]


_KINDS: tuple[tuple[Any, Any], ...] = (
    (Tensor, Encoder._tensor),
    (np.ndarray, Encoder._array),
    (np.generic, lambda encoder, value, path: ["scalar", *encoder._array(np.asarray(value), path)[1:3]]),
    (AvalancheDataset, Encoder._samples),
    ((list, tuple, deque, set, frozenset), Encoder._sequence),
    (dict, Encoder._dict),
    ((torch.Generator, random.Random, np.random.Generator), Encoder._random),
    (Optimizer, Encoder._optimizer),
    (Iterator, Encoder._iterator),
    (torch.device, lambda encoder, value, path: ["device", value.type != "cpu" and value.type == encoder.device.type]),
    (torch.dtype, lambda encoder, value, path: ["dtype", str(value).removeprefix("torch.")]),
    (Enum, lambda encoder, value, path: ["enum", name_of(type(value)), value.name]),
)
