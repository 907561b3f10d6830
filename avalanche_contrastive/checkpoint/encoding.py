"""A strategy's state as plain containers and tensors: what ``torch.load(weights_only=True)`` reads.

A value is either a number, a string or None, or a tuple that starts with its kind. Whatever may be shared has a number,
and is written once.
"""

import inspect
import random
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from enum import Enum
from typing import Any

import numpy as np
import torch
from avalanche.benchmarks.utils import AvalancheDataset
from avalanche.training.plugins import EvaluationPlugin
from torch import Tensor, nn
from torch.optim import Optimizer

from avalanche_contrastive._torch import unwrapped
from avalanche_contrastive.checkpoint.fingerprints import fingerprint
from avalanche_contrastive.checkpoint.kinds import (
    FACTORIES,
    SCALARS,
    CheckpointError,
    Classes,
    in_order,
    is_fresh,
    name_of,
    state_of,
)
from avalanche_contrastive.checkpoint.samples import Shelf, encode_samples

__all__ = ["Encoder"]

Node = Any  # a number, a string, None, or a tuple of a kind and its content
COMPACT = 32  # numbers that a sequence must have to be written as a tensor
RESULTS = ("all_metric_results", "last_metric_results")  # of an evaluator: values only, nothing to build again
# Of an optimiser, what is no state: hooks, flags, and methods that learning-rate schedulers wrap.
OPTIMIZER_OWN = frozenset(vars(torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1))) - {"state", "param_groups"}


class Encoder:
    """Turns objects into nodes; one for each checkpoint, so that what is shared stays shared.

    Args:
        strategy: whose state it is.
    """

    def __init__(self, strategy: Any) -> None:
        self.device = torch.device(strategy.device)
        self.classes = Classes(strategy)
        self.numbers: dict[int, int] = {}
        self.kept: list[Any] = []  # so that no id is used twice
        self.optimizers: list[tuple[int, Optimizer, str]] = []
        self.prints: dict[int, str] = {}
        self.samples: list[tuple[str, list[str]]] = []  # paths, and what their samples are of
        self.values_only = False  # within what is never configuration: nothing may be left to the fresh strategy

    def __call__(self, value: Any, path: str) -> Node:
        """The node of a value.

        Args:
            value: anything.
            path: how it is reached from the strategy, for errors.

        Raises:
            CheckpointError: it cannot be saved.
        """
        if value is None or type(value) in SCALARS:
            return value
        if id(value) in self.numbers:
            return ("same", self.numbers[id(value)])
        for kind, encode in _KINDS:
            if isinstance(value, kind):
                return encode(self, value, path)
        if inspect.isgenerator(value):
            return _generator(self, value, path)
        if is_fresh(value):
            return _fresh(self, value, path)
        return _object(self, value, path)

    def number(self, value: Any) -> int:
        """Number a thing that may be met again."""
        self.kept.append(value)
        return self.numbers.setdefault(id(value), len(self.numbers))

    def fingerprint(self, data: Any) -> str:
        """Of a data set, once for all that is stored of it."""
        if id(data) not in self.prints:
            self.kept.append(data)
            self.prints[id(data)] = fingerprint(data)
        return self.prints[id(data)]

    def attributes(self, state: dict[str, Any], path: str) -> dict[str, Node]:
        """The nodes of an object's attributes."""
        return {name: self(value, f"{path}.{name}" if path else name) for name, value in state.items()}

    def optimizer_states(self) -> list[Node]:
        """The optimisers that were met, once everything else is numbered: their parameters are found by number."""
        return [(number, _optimizer(self, value, path)) for number, value, path in self.optimizers]

    def check_samples(self, stream: Iterable[Any]) -> None:
        """Refuse samples that are not of the stream, or of which of its data sets cannot be told."""
        shelf = Shelf(None)
        shelf.look_at([stream])
        for path, atoms in self.samples:
            for atom in atoms:
                if atom not in shelf.atoms:
                    raise CheckpointError(
                        f"cannot save strategy.{path}: its samples are not of the stream given, so no index would "
                        "find them again. Does the method store features, or images that it has made?"
                    )
                shelf.atom(atom)


def unsavable(path: str, value: Any, why: str) -> CheckpointError:
    """The error for a thing that cannot be saved."""
    return CheckpointError(
        f"cannot save strategy.{path}, {'an' if name_of(type(value))[0] in 'aeiou' else 'a'} {type(value).__name__}: "
        f"{why}. A checkpoint holds numbers, strings, tensors, containers of these, modules, Avalanche datasets (as "
        "indices) and plain objects made of them."
    )


# ---- numbers in bulk


def _tensor(encoder: Encoder, value: Tensor, path: str) -> Node:
    if type(value) not in (Tensor, nn.Parameter, nn.Buffer):
        raise unsavable(path, value, "it is a subclass of tensor, which would come back as a plain one")
    there = value.device.type != "cpu" and value.device.type == encoder.device.type
    kind = "parameter" if isinstance(value, nn.Parameter) else "tensor"
    requires_grad = value.requires_grad and value.is_leaf  # a stored result of a pass comes back without its graph
    return (kind, encoder.number(value), value.detach().cpu().clone(), requires_grad, there)


def _array(encoder: Encoder, value: Any, path: str) -> Node:
    if value.dtype.kind not in "biufc":
        raise unsavable(path, value, f"its values are of type {value.dtype}")
    return ("array", encoder.number(value), torch.from_numpy(np.ascontiguousarray(value)).reshape(value.shape).clone())


def _numpy_scalar(encoder: Encoder, value: Any, path: str) -> Node:
    if value.dtype.kind not in "biufc":
        raise unsavable(path, value, f"its type is {value.dtype}")
    return ("scalar", value.dtype.str, value.item())


# ---- containers


def _sequence(encoder: Encoder, value: Sequence[Any], path: str) -> Node:
    if isinstance(value, torch.Size):
        return ("size", tuple(value))
    if type(value) is tuple:
        return ("tuple", _items(encoder, value, path))
    if isinstance(value, tuple):
        if not hasattr(value, "_fields"):
            raise unsavable(path, value, "it is a subclass of tuple")
        return ("namedtuple", name_of(value), _items(encoder, tuple(value), path))
    if type(value) is deque:
        return ("deque", encoder.number(value), _items(encoder, value, path), value.maxlen)
    if type(value) is not list:
        raise unsavable(path, value, "it is a subclass of list")
    return ("list", encoder.number(value), _items(encoder, value, path))


def _items(encoder: Encoder, value: Sequence[Any], path: str) -> Node:
    """The nodes of a sequence, or one tensor where all are integers or all are floats."""
    kinds = {type(item) for item in value} if len(value) >= COMPACT else set()
    if kinds == {float}:
        return torch.tensor(list(value), dtype=torch.float64)
    if kinds == {int} and min(value) >= -(2**63) and max(value) < 2**63:
        return torch.tensor(list(value), dtype=torch.int64)
    return [encoder(item, f"{path}[{index}]") for index, item in enumerate(value)]


def _dict(encoder: Encoder, value: dict[Any, Any], path: str) -> Node:
    if type(value) not in (dict, OrderedDict, defaultdict, Counter):
        raise unsavable(path, value, "it is a subclass of dict")
    number = encoder.number(value)
    factory = _fresh(encoder, value.default_factory, path) if isinstance(value, defaultdict) else None
    pairs = [
        [encoder(key, f"{path} (a key)"), encoder(item, f"{path}[{key!r:.40}]")] for key, item in list(value.items())
    ]
    return ("dict", number, type(value).__name__, pairs, factory)


def _set(encoder: Encoder, value: set[Any] | frozenset[Any], path: str) -> Node:
    if type(value) not in (set, frozenset):
        raise unsavable(path, value, "it is a subclass of set")
    order, copied = in_order(value)
    return (type(value).__name__, encoder.number(value), _items(encoder, order, path), copied)


# ---- random generators, small kinds of Python and torch


def _random(encoder: Encoder, value: Any, path: str) -> Node:
    if isinstance(value, torch.Generator):
        state: Any = value.get_state()
    else:
        state = value.getstate() if isinstance(value, random.Random) else value.bit_generator.state
    return ("random", encoder.number(value), name_of(type(value)), encoder(state, path))


def _device(encoder: Encoder, value: torch.device, path: str) -> Node:
    return ("device", value.type != "cpu" and value.type == encoder.device.type)


def _generator(encoder: Encoder, value: Any, path: str) -> Node:
    """A generator that nobody has drawn from yet is a call of its function."""
    if inspect.getgeneratorstate(value) != inspect.GEN_CREATED or value.gi_code.co_freevars:
        raise unsavable(path, value, "it has been drawn from, and nothing tells how far it is")
    name = f"{value.gi_frame.f_globals['__name__']}:{value.gi_code.co_qualname}"
    if encoder.classes.find_generator(name) is None:
        raise unsavable(path, value, f"its function {name} is not one that a checkpoint may call")
    return ("generator", encoder.number(value), name, encoder.attributes(dict(value.gi_frame.f_locals), f"{path}()"))


def _fresh(encoder: Encoder, value: Any, path: str) -> Node:
    """What the strategy that is built again has itself."""
    if encoder.values_only and name_of(value) not in FACTORIES:
        raise unsavable(path, value, "it is no value")
    return ("fresh", name_of(value))


# ---- objects


def _module(encoder: Encoder, value: nn.Module, path: str) -> Node:
    inner = unwrapped(value)
    if inner is not value:
        return ("wrapped", encoder(inner, path))
    return _object(encoder, value, path)


def _object(encoder: Encoder, value: Any, path: str) -> Node:
    state = state_of(value)
    if state is None:
        raise unsavable(path, value, "its state cannot be read from Python")
    if encoder.values_only and not encoder.classes.may_make(type(value)):
        raise unsavable(path, value, f"{type(value).__module__} is not a package whose objects a checkpoint may make")
    number = encoder.number(value)
    if not isinstance(value, EvaluationPlugin):
        return ("object", number, name_of(type(value)), encoder.attributes(state, path))
    results = {name: state.pop(name) for name in RESULTS}
    nodes = encoder.attributes(state, path)
    encoder.values_only = True
    nodes |= encoder.attributes(results, path)
    encoder.values_only = False
    return ("object", number, name_of(type(value)), nodes)


def _met_optimizer(encoder: Encoder, value: Optimizer, path: str) -> Node:
    number = encoder.number(value)
    encoder.optimizers.append((number, value, path))
    return ("optimizer", number)


def _optimizer(encoder: Encoder, value: Optimizer, path: str) -> Node:
    """Parameters that nothing else holds any more, as Avalanche leaves them behind, are dropped."""
    dead = set()
    for group in value.param_groups:
        for parameter in group["params"]:
            if id(parameter) not in encoder.numbers:
                if parameter.grad is not None:
                    raise CheckpointError(
                        f"cannot save strategy.{path}: it trains a parameter of shape {tuple(parameter.shape)} that no "
                        "attribute of the strategy, its model or its plugins holds, so nothing would find it again. "
                        "Does a plugin keep it in a closure? Keep it in an attribute."
                    )
                dead.add(id(parameter))
    groups = [
        {**group, "params": [parameter for parameter in group["params"] if id(parameter) not in dead]}
        for group in value.param_groups
    ]
    state = {parameter: kept for parameter, kept in value.state.items() if id(parameter) not in dead}
    others = {name: item for name, item in vars(value).items() if name not in {*OPTIMIZER_OWN, "state", "param_groups"}}
    return {
        "class": name_of(type(value)),
        "defaults": encoder(dict(value.defaults), f"{path}.defaults"),
        "groups": encoder(groups, f"{path}.param_groups"),
        "state": encoder(state, f"{path}.state"),
        "others": encoder.attributes(others, path),
    }


_KINDS: tuple[tuple[Any, Callable[[Encoder, Any, str], Node]], ...] = (
    (nn.Module, _module),
    (Tensor, _tensor),
    (np.ndarray, _array),
    (np.generic, _numpy_scalar),
    (AvalancheDataset, encode_samples),
    ((list, tuple, deque), _sequence),
    (dict, _dict),
    ((set, frozenset), _set),
    ((torch.Generator, random.Random, np.random.Generator), _random),
    (Optimizer, _met_optimizer),
    (torch.device, _device),
    ((torch.dtype, complex, bytes), lambda encoder, value, path: ("plain", value)),
    (slice, lambda encoder, value, path: ("slice", value.start, value.stop, value.step)),
    (range, lambda encoder, value, path: ("range", value.start, value.stop, value.step)),
    (Enum, lambda encoder, value, path: ("enum", name_of(type(value)), value.name)),
)
