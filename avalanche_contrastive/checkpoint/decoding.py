"""A saved state back into a strategy that was built again: its own objects are filled, in place.

Nothing is changed while the state is read: what is to be done is noted, and done at the end, so that a file that does
not fit leaves the strategy as it was. Where the fresh strategy has an object at the same place (its *twin*), that is
filled; where it has none, as for teachers and heads that have grown, one is made. No code from the file runs.
"""

import random
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np
import torch
from avalanche.benchmarks.utils import AvalancheDataset
from torch import Tensor, nn
from torch.optim import Optimizer

from avalanche_contrastive._torch import unwrapped
from avalanche_contrastive.checkpoint.comparing import check_layer, differing, differing_options
from avalanche_contrastive.checkpoint.kinds import (
    FACTORIES,
    MISSING,
    SCALARS,
    Classes,
    MismatchError,
    filled,
    grows,
    is_fresh,
    made,
    modules_within,
    name_of,
    set_state,
    short,
    state_of,
)
from avalanche_contrastive.checkpoint.samples import Shelf, attribute_of
from avalanche_contrastive.checkpoint.twins import Twins
from avalanche_contrastive.teacher import frozen_copy

__all__ = ["Decoder"]

Node = Any
DICTS: dict[str, type] = {"dict": dict, "OrderedDict": OrderedDict, "defaultdict": defaultdict, "Counter": Counter}
RANDOM: dict[str, Callable[[], Any]] = {
    name_of(torch.Generator): torch.Generator,
    name_of(random.Random): random.Random,
    name_of(np.random.Generator): np.random.default_rng,
}
LISTED = 5  # differences that an error names


class Decoder:
    """Turns nodes into objects, those of the fresh strategy where it has them.

    Args:
        strategy: to be filled.
        twins: the fresh strategy's objects by number.
        optimizers: the nodes of the optimisers by their numbers.
    """

    def __init__(self, strategy: Any, twins: Twins, optimizers: Iterable[tuple[int, dict[str, Any]]] = ()) -> None:
        self.device = torch.device(strategy.device)
        self.model = unwrapped(strategy.model)
        self.classes = Classes(strategy)
        self.models: dict[str, nn.Module] = {}  # by class: what a teacher may be a copy of
        for module in (self.model, *modules_within(strategy)):
            self.models.setdefault(name_of(type(module)), module)
        self.shelf = Shelf(strategy)
        self.known: dict[int, Any] = {}  # by number
        self.twins = twins
        self.to_do: list[Callable[[], Any]] = []
        self.differences: list[str] = []
        self.optimizers = dict(optimizers)
        self.fixed = False  # within a part of the model that does not grow
        self.growing = False  # within one that does, whose layers may be replaced

    def __call__(self, node: Node, twin: Any, path: str) -> Any:
        """The object of a node.

        Args:
            node: from the file.
            twin: what the fresh strategy has there, or MISSING.
            path: how it is reached, for errors.

        Raises:
            MismatchError: it does not fit the strategy.
        """
        if node is None or type(node) in SCALARS:
            return node
        if not isinstance(node, tuple) or not node or node[0] not in _KINDS:
            raise MismatchError(f"strategy.{path}: the file holds something that no checkpoint holds")
        return _KINDS[node[0]](self, node, twin, path)

    def keep(self, number: int, thing: Any) -> Any:
        """Note the object of a number, before its parts are read."""
        self.known[number] = thing
        return thing

    def items(self, content: Any, twin: Any, path: str) -> list[Any]:
        """The objects of a sequence."""
        if isinstance(content, Tensor):
            return list(content.tolist())
        twins = list(twin) if isinstance(twin, (list, tuple, deque)) else []
        return [
            self(node, twins[index] if index < len(twins) else MISSING, f"{path}[{index}]")
            for index, node in enumerate(content)
        ]

    def attributes(self, nodes: dict[str, Node], twins: dict[str, Any], path: str) -> dict[str, Any]:
        """The attributes of an object."""
        return {
            name: self(node, twins.get(name, MISSING), f"{path}.{name}" if path else name)
            for name, node in nodes.items()
        }

    def finish(self) -> None:
        """Do what was noted, once all is read.

        Raises:
            MismatchError: options differ; nothing has been done then.
        """
        if self.differences:
            some = "; ".join(self.differences[:LISTED])
            more = f"; and {len(self.differences) - LISTED} more" if len(self.differences) > LISTED else ""
            raise MismatchError(
                f"it was saved by a strategy with other options: {some}{more}. Build the same strategy again"
            )
        for do in self.to_do:
            do()


# ---- values


def _same(decoder: Decoder, node: Node, twin: Any, path: str) -> Any:
    return decoder.known[node[1]]


def _tensor(decoder: Decoder, node: Node, twin: Any, path: str) -> Any:
    kind, number, value, requires_grad, there = node
    value = value.to(decoder.device) if there else value
    if kind == "tensor":
        return decoder.keep(number, value.requires_grad_(requires_grad))
    twin = decoder.twins.of(number)
    if twin is MISSING:
        return decoder.keep(number, nn.Parameter(value, requires_grad=requires_grad))

    def fill() -> None:  # the same object: whoever holds it, holds the restored one
        twin.grad = None
        twin.data = value
        twin.requires_grad_(requires_grad)

    decoder.to_do.append(fill)
    return decoder.keep(number, twin)


def _array(decoder: Decoder, node: Node, twin: Any, path: str) -> Any:
    return decoder.keep(node[1], node[2].numpy())


def _numpy_scalar(decoder: Decoder, node: Node, twin: Any, path: str) -> Any:
    return np.dtype(node[1]).type(node[2])


def _device(decoder: Decoder, node: Node, twin: Any, path: str) -> Any:
    return decoder.device if node[1] else torch.device("cpu")


def _enum(decoder: Decoder, node: Node, twin: Any, path: str) -> Any:
    if name_of(type(twin)) != node[1]:
        raise _no_twin(node[1], twin, path)
    return type(twin)[node[2]]


# ---- containers


def _list(decoder: Decoder, node: Node, twin: Any, path: str) -> Any:
    kind, number, content, *length = node
    there = decoder.twins.of(number)
    items_of = there
    if there is MISSING:
        there = [] if kind == "list" else deque(maxlen=length[0])
    decoder.keep(number, there)
    items = decoder.items(content, items_of, path)

    def fill() -> None:
        there.clear()
        there.extend(items)

    decoder.to_do.append(fill)
    return there


def _tuple(decoder: Decoder, node: Node, twin: Any, path: str) -> Any:
    return tuple(decoder.items(node[1], twin, path))


def _namedtuple(decoder: Decoder, node: Node, twin: Any, path: str) -> Any:
    cls = type(twin) if name_of(type(twin)) == node[1] else decoder.classes.find(node[1])
    if cls is None or not issubclass(cls, tuple):
        raise _no_twin(node[1], twin, path)
    return tuple.__new__(cls, decoder.items(node[2], twin, path))


def _dict(decoder: Decoder, node: Node, twin: Any, path: str) -> Any:
    _, number, kind, pairs, factory = node
    twin = decoder.twins.of(number)
    there: Any = DICTS[kind]() if twin is MISSING else twin
    decoder.keep(number, there)
    if isinstance(there, defaultdict):
        there_factory = _fresh(decoder, factory, getattr(twin, "default_factory", MISSING), path) if factory else None
    twins = twin if isinstance(twin, dict) else {}
    found = []
    for key, item in pairs:
        name = decoder(key, MISSING, f"{path} (a key)")
        found.append((name, decoder(item, dict.get(twins, name, MISSING), f"{path}[{name!r:.40}]")))

    def fill() -> None:
        there.clear()
        if isinstance(there, defaultdict):
            there.default_factory = there_factory
        for name, item in found:
            there[name] = item

    decoder.to_do.append(fill)
    return there


def _set(decoder: Decoder, node: Node, twin: Any, path: str) -> Any:
    kind, number, content, copied = node
    found = filled(decoder.items(content, MISSING, path), copied)
    return decoder.keep(number, frozenset(found) if kind == "frozenset" else found)


# ---- random generators, functions, data


def _random(decoder: Decoder, node: Node, twin: Any, path: str) -> Any:
    _, number, name, content = node
    state = decoder(content, MISSING, path)
    there = decoder.twins.of(number)
    there = _new_random(name, path) if there is MISSING else there

    def fill() -> None:
        if isinstance(there, torch.Generator):
            there.set_state(state)
        elif isinstance(there, random.Random):
            there.setstate(state)
        else:
            there.bit_generator.state = state

    decoder.to_do.append(fill)
    return decoder.keep(number, there)


def _new_random(name: str, path: str) -> Any:
    if name not in RANDOM:
        raise MismatchError(f"strategy.{path}: unknown random generator {name}")
    return RANDOM[name]()


def _generator(decoder: Decoder, node: Node, twin: Any, path: str) -> Any:
    _, number, name, nodes = node
    function = decoder.classes.find_generator(name)
    if function is None:
        raise _no_twin(name, twin, path)
    return decoder.keep(number, function(**decoder.attributes(nodes, {}, f"{path}()")))  # runs when drawn from


def _fresh(decoder: Decoder, node: Node, twin: Any, path: str) -> Any:
    if twin is not MISSING and twin is not None and is_fresh(twin):
        return twin
    found = FACTORIES.get(node[1]) or decoder.classes.find(node[1])
    if found is None:
        raise _no_twin(node[1], twin, path)
    return found


def _samples(decoder: Decoder, node: Node, twin: Any, path: str) -> Any:
    _, number, spec = node
    cls = decoder.classes.find(spec["class"])
    if cls is None or not issubclass(cls, AvalancheDataset):
        raise _no_twin(spec["class"], twin, path)
    if isinstance(twin, AvalancheDataset):
        decoder.shelf.add(twin)  # data that the strategy was built with
    values = {}
    for name, item in spec["attributes"].items():
        others = decoder(item["values"][1], MISSING, path) if item["values"][0] == "others" else []
        values[name] = attribute_of(name, item, others)
    return decoder.keep(number, decoder.shelf.put(cls, spec, values))


# ---- objects


def _object(decoder: Decoder, node: Node, twin: Any, path: str) -> Any:
    _, number, _, nodes = node
    own = decoder.twins.of(number)
    there = _stand_in(decoder, node, twin, path) if own is MISSING else own
    decoder.keep(number, there)
    if there is own:
        decoder.differences += differing_options(there, nodes, path)
    before = decoder.fixed, decoder.growing
    if isinstance(there, nn.Module):
        decoder.growing |= grows(there)
        decoder.fixed = there is own and (there is decoder.model or decoder.fixed) and not decoder.growing
        if decoder.fixed:
            check_layer(there, nodes, path)
    attributes = decoder.attributes(nodes, state_of(there) or {}, path)
    decoder.fixed, decoder.growing = before
    decoder.to_do.append(lambda: set_state(there, attributes))
    return there


def _stand_in(decoder: Decoder, node: Node, twin: Any, path: str) -> Any:
    """What to fill where the fresh strategy has no such object: a copy of its model (for a teacher), or a new one."""
    name = node[2]
    if twin is not None and twin is not MISSING and not (decoder.growing or is_fresh(twin)):
        here = name_of(type(twin))
        if here != name:
            raise MismatchError(f"strategy.{path} is {short(name)} in the file, {short(here)} here")
    cls = decoder.classes.find(name)
    if name in decoder.models:
        there = frozen_copy(decoder.models[name])  # its modes and flags are in the file
        decoder.twins.match(node, there)
    elif cls is not None:
        there = made(cls)
    else:
        raise _no_twin(name, twin, path)
    return there


def _wrapped(decoder: Decoder, node: Node, twin: Any, path: str) -> Any:
    inner = unwrapped(twin) if isinstance(twin, nn.Module) else MISSING
    found = decoder(node[1], inner, path)
    return twin if found is inner else found


def _no_twin(name: str, twin: Any, path: str) -> MismatchError:
    here = "nothing there" if twin is MISSING else f"{short(name_of(type(twin)))} there"
    return MismatchError(
        f"strategy.{path}: the file says that {short(name)} stands there, which a checkpoint does not hold and this "
        f"strategy does not bring along ({here}). Was it built with the same plugins and arguments?"
    )


# ---- optimisers


def _met_optimizer(decoder: Decoder, node: Node, twin: Any, path: str) -> Any:
    number = node[1]
    name = decoder.optimizers[number]["class"]
    own = decoder.twins.of(number)
    if own is not MISSING:
        return decoder.keep(number, own)
    cls = decoder.classes.find(name)
    if twin not in (None, MISSING) or cls is None or not issubclass(cls, Optimizer):
        here = "nothing" if twin in (None, MISSING) else short(name_of(type(twin)))
        raise MismatchError(f"strategy.{path} is {short(name)} in the file, {here} here")
    return decoder.keep(number, object.__new__(cls))  # one that a method makes while it trains


def fill_optimizers(decoder: Decoder) -> None:
    """Read what is in the optimisers, once all parameters are known."""
    for number, content in decoder.optimizers.items():
        there = decoder.known[number]
        defaults = decoder(content["defaults"], MISSING, "optimizer.defaults")
        groups = decoder(content["groups"], MISSING, "optimizer.param_groups")
        state = decoder(content["state"], MISSING, "optimizer.state")
        others = decoder.attributes(content["others"], vars(there), "optimizer")
        decoder.to_do.append(partial(_fill_optimizer, there, defaults, groups, state, others))
        for name, node in content["defaults"][3] if hasattr(there, "defaults") else ():
            decoder.differences += differing(f"optimizer.{name}", node, there.defaults.get(name, MISSING))


def _fill_optimizer(
    there: Optimizer,
    defaults: dict[str, Any],
    groups: list[dict[str, Any]],
    state: dict[Any, Any],
    others: dict[str, Any],
) -> None:
    if not hasattr(there, "defaults"):
        Optimizer.__init__(there, groups, defaults)
    there.param_groups[:] = groups
    there.state.clear()
    there.state.update(state)
    set_state(there, others)


def _plain(decoder: Decoder, node: Node, twin: Any, path: str) -> Any:
    return node[1]


_KINDS: dict[str, Callable[[Decoder, Node, Any, str], Any]] = {
    "same": _same,
    "tensor": _tensor,
    "parameter": _tensor,
    "array": _array,
    "scalar": _numpy_scalar,
    "samples": _samples,
    "list": _list,
    "deque": _list,
    "tuple": _tuple,
    "namedtuple": _namedtuple,
    "dict": _dict,
    "set": _set,
    "frozenset": _set,
    "random": _random,
    "generator": _generator,
    "fresh": _fresh,
    "device": _device,
    "plain": _plain,
    "size": lambda decoder, node, twin, path: torch.Size(node[1]),
    "slice": lambda decoder, node, twin, path: slice(*node[1:]),
    "range": lambda decoder, node, twin, path: range(*node[1:]),
    "enum": _enum,
    "object": _object,
    "wrapped": _wrapped,
    "optimizer": _met_optimizer,
}
