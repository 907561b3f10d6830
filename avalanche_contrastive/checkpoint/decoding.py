"""Nodes into a strategy that was built again.

A node's *counterpart* is the object that the strategy has at its place, or something new: a container, a tensor, an
object of the closed list, or a copy of one of the strategy's own modules, as teachers are. Counterparts are filled in
place, when all has been read and checked; a field that is not what it should be is an error of whatever kind.
"""

from collections import defaultdict, deque
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from avalanche.benchmarks.utils import AvalancheDataset
from torch import Tensor, nn
from torch.utils.data import default_collate

from avalanche_contrastive._datasets import new_attribute, new_dataset, new_iterator
from avalanche_contrastive._random import checked, generator_of, package_of, set_state
from avalanche_contrastive._torch import unwrapped
from avalanche_contrastive.checkpoint import kinds, places
from avalanche_contrastive.checkpoint.kinds import MISSING, MismatchError, Node, family, name_of, state_of
from avalanche_contrastive.checkpoint.places import Place, differs, named
from avalanche_contrastive.checkpoint.samples import GIVE_THE_STREAM, Sources
from avalanche_contrastive.teacher import frozen_copy

__all__ = ["KEPT", "Decoder"]

KEPT: Any = object()  # a place that is left as it is
NUMBERS = {"nothing", "flag", "number", "tensor"}  # may change into each other in training
COUNTED = 3_000_000  # nodes, those of shared containers wherever they are


class Decoder:
    """What a file says of a strategy with that device and model; changes nothing before what is `to_do`."""

    def __init__(self, device: torch.device, model: Any, sources: Sources) -> None:
        self.device, self.model, self.sources = device, model, sources
        self.known: dict[int, Any] = {}  # counterparts by number
        self.values: dict[Any, Tensor] = {}  # of the parameters
        self.optimizers: dict[int, Place] = {}  # those that were met, by number
        self._own: set[int] = set()  # ids of the counterparts that are the strategy's
        self._modules: dict[str, list[nn.Module]] = {}  # of those, by class
        self._layers: set[int] = set()  # ids of the parts of models
        self._buffers: set[int] = set()  # and of their buffers
        self._taken: dict[int, Any] = {}  # all by id: each is of one node at most
        self._within: set[int] = set()  # containers that are being read
        self._sizes: dict[int, int] = {}  # nodes within containers
        self._count = 0
        self._differences: list[str] = []  # of options, in words
        self.to_do: list[Callable[[], Any]] = []  # when nothing can fail any more

    def _note(self, do: Callable[..., Any], *arguments: Any) -> None:
        self.to_do.append(partial(do, *arguments))

    def place(self, node: Node, at: Place) -> Any:
        """What is to stand at a place, KEPT for what stands there; an error if it is of another kind."""
        self._count += 1
        if kinds.is_kept(at.there, self._layers):
            if places.is_nothing(node):
                return KEPT
            if type(node) is not list or node[0] != "configuration":
                raise MismatchError(f"strategy.{at.path}, a {type(at.there).__name__}, is not in the file of a save")
        if node is None or type(node) in kinds.SCALARS:
            new = node
        elif type(node) is not list:
            raise TypeError(f"{type(node)} is no node")
        else:
            there = unwrapped(at.there) if isinstance(at.there, nn.Module) else at.there
            new = _KINDS[node[0]](self, node, at._replace(there=MISSING if there is None else there))
            new = at.there if new is there and new is not MISSING else new
        if new is KEPT or new is at.there or at.there is MISSING or at.there is None:
            return new
        ours, theirs = family(at.there), family(new)
        if at.within == "growing" and ours != theirs and isinstance(new, nn.Module):  # a layer that was replaced
            return new
        may_change = ours == theirs or {ours, theirs} <= NUMBERS or (theirs == "nothing" and ours in kinds.FAMILIES)
        is_object = theirs not in kinds.FAMILIES or any(isinstance(x, nn.Parameter) for x in (new, at.there))
        if not may_change or (is_object and (not at.is_made or id(new) in self._own)):  # the strategy's stays
            raise differs(at.path, theirs, at.there)
        return new

    def item(self, node: Node, at: Place) -> Any:
        """What is to stand in a container, where nothing can be left out."""
        new = self.place(node, at)
        if new is KEPT and at.there is MISSING:
            raise MismatchError(f"strategy.{at.path}: the saved strategy had a function there, or the like")
        return at.there if new is KEPT else new

    def items(self, content: Any, at: Place) -> list[Any]:
        """What is to stand in a sequence."""
        if isinstance(content, Tensor):
            return list(content.tolist())
        if type(content) is not list:
            raise TypeError(f"{type(content)} is no content of a container")
        ours = list(at.there) if isinstance(at.there, (list, tuple, deque)) else []
        ours += [MISSING] * (len(content) - len(ours))
        return [self.item(node, at.item(index, ours[index])) for index, node in enumerate(content)]

    def _counterpart(self, number: int, at: Place, is_alike: bool, make: Callable[[], Any]) -> tuple[Any, Place]:
        """What a node stands for, and the place of its parts."""
        is_own = is_alike and at.there is not MISSING and id(at.there) not in self._taken
        thing = at.there if is_own else make()
        if type(number) is not int or number in self.known:
            raise ValueError(f"{number!r:.40} is no new number")
        self.known[number] = self._taken[id(thing)] = thing
        self._own |= {id(thing)} if is_own else set()
        return thing, at._replace(there=thing, is_made=at.is_made or not is_own)

    # ---- options of the user

    def compare(self, path: str, theirs: Any, ours: Any) -> None:
        """Note an option that the file has otherwise."""
        if (theirs is None) != (ours is None):
            self._differences.append(f"strategy.{path} is {'None' if theirs is None else 'given'} in the file")
        elif places.is_option(ours) and theirs != ours:
            self._differences.append(f"strategy.{path} is {theirs!r:.80} in the file, {ours!r:.80} here")

    def check_options(self) -> None:
        """Refuse other options, if any have been noted."""
        if self._differences:
            raise MismatchError(f"other options: {'; '.join(self._differences[:5])}. Build the same strategy again.")

    # ---- numbers and containers

    def _tensor(self, node: Node, at: Place) -> Any:
        kind, number, value, requires_grad, there = node
        value = (value.to(self.device) if there else value).requires_grad_(requires_grad)
        if kind == "tensor":
            is_buffer = id(at.there) in self._buffers and _layout(at.there) == _layout(value)
            thing, _ = self._counterpart(number, at, is_buffer, lambda: value)
        else:
            new = partial(nn.Parameter, value.detach(), requires_grad)
            is_alike = isinstance(at.there, nn.Parameter) and at.there.dtype == value.dtype
            thing = self._counterpart(number, at, is_alike, new)[0]
            self.values[thing] = value.detach()
        if thing is at.there:
            self._note(_set_tensor, thing, value.detach(), requires_grad)
        return thing

    def _array(self, node: Node, at: Place) -> Any:
        _, number, data, name, shape = node
        values = data.numpy().view(kinds.NUMPY[name]).reshape([abs(length) for length in shape])
        return self._counterpart(number, at, False, lambda: values)[0]

    def _random(self, node: Node, at: Place) -> Any:
        _, number, name, state = node
        state = self.place(state, at.new())
        thing, _ = self._counterpart(number, at, package_of(at.there) == name, partial(generator_of, name, state))
        self._note(set_state, thing, checked(thing, state))
        return thing

    def _same(self, node: Node, at: Place) -> Any:
        _, number = node
        self._count += self._sizes.get(number, 0)
        if number in self._within or self._count > COUNTED:
            raise MismatchError(f"strategy.{at.path} contains itself, or shares parts without end")
        return self.known[number]

    def _frozen(self, node: Node, at: Place) -> Any:
        kind, number, content = node
        items = self.items(content, at)
        places.check_keys(items if kind == "frozenset" else [], at.path)
        new: Any = {"tuple": tuple, "Size": torch.Size, "frozenset": frozenset}[kind]
        return self._counterpart(number, at, False, lambda: new(items))[0]

    def _list(self, node: Node, at: Place) -> Any:
        kind, number, content, *length = node
        new: Any = {"list": list, "set": set, "deque": lambda: deque(maxlen=length[0])}[kind]
        thing, inner = self._counterpart(number, at, family(at.there) == kind, new)
        items = self._read(number, lambda: self.items(content, inner))
        has_objects = any(family(item) not in kinds.FAMILIES for item in thing)
        if has_objects and [*map(id, items)] != [*map(id, thing)]:
            raise MismatchError(f"strategy.{at.path} holds other objects in the file than here")
        places.check_keys(items if kind == "set" else [], at.path)
        self._refill(thing, at, thing.update if kind == "set" else thing.extend, items)
        return thing

    def _dict(self, node: Node, at: Place) -> Any:
        _, number, kind, pairs, factory = node
        thing, inner = self._counterpart(number, at, family(at.there) == "dict", kinds.DICTS[kind])
        keys = [self.item(key, at.new()) for key, _ in pairs]
        places.check_keys(keys, at.path)
        at_keys = [inner.item(key, dict.get(thing, key, MISSING)) for key in keys]
        values = self._read(number, lambda: [self.item(n, p) for (_, n), p in zip(pairs, at_keys, strict=True)])
        content = dict(zip(keys, values, strict=True))
        for key, ours in thing.items():
            if family(ours) not in kinds.FAMILIES and key not in content:
                raise MismatchError(f"strategy.{inner.item(key, ours).path} is not in the file")
        if thing is not at.there and isinstance(thing, defaultdict) and factory is not None:
            thing.default_factory = kinds.FUNCTIONS[factory]
        self._refill(thing, at, thing.update, content)
        return thing

    def _read(self, number: int, read: Callable[[], Any]) -> Any:
        """Read the content of a container."""
        before = self._count
        self._within.add(number)
        content = read()
        self._within.discard(number)
        self._sizes[number] = self._count - before
        return content

    def _refill(self, thing: Any, at: Place, fill: Callable[[Any], Any], content: Any) -> None:
        """Fill a new container now, the strategy's own in the end."""
        if thing is not at.there:
            fill(content)
        else:
            self._note(thing.clear)
            self._note(fill, content)

    # ---- objects

    def _object(self, node: Node, at: Place) -> Any:
        _, number, name, nodes = node
        thing, inner = self._counterpart(number, at, family(at.there) == name, lambda: self._new(name, nodes, at))
        if isinstance(thing, nn.Module):
            self._module(nodes, thing, inner, is_copy=thing is not at.there and name not in kinds.MADE)
        else:
            self._fill(nodes, thing, inner)
        return thing

    def _module(self, nodes: dict[str, Node], thing: nn.Module, at: Place, *, is_copy: bool) -> None:
        """Note what is in a module: the same parts, of the same shapes, where it does not grow."""
        self._layers |= kinds.layers_of(thing)
        self._buffers |= set() if at.is_made else {id(buffer) for buffer in thing._buffers.values()}
        if not at.is_made:
            self._modules.setdefault(name_of(type(thing)), []).append(thing)
        if at.within or thing is self.model or is_copy:
            at = at._replace(within="growing" if at.within == "growing" or kinds.grows(thing) else "fixed")
            is_new = at.is_made and name_of(type(thing)) in kinds.MADE
            if not is_new and not kinds.is_users_callable(thing):
                places.check_layers(nodes, at)
        self._fill(nodes, thing, at)
        for kind, cls in places.PARTS.items():
            for key, part in named(nodes, kind).items():
                own = part and (getattr(thing, kind).get(key) if part[0] == "configuration" else self.known[part[1]])
                if type(key) is not str or not isinstance(own, (cls, type(None))):
                    raise MismatchError(
                        f"strategy.{at.attribute(str(key), None).path} is no {cls.__name__} in the file"
                    )
        parts = [*thing.modules(), *thing.parameters()] if is_copy else []
        if any(id(part) not in self._taken and not kinds.is_kept(part, self._layers) for part in parts):
            raise MismatchError(f"strategy.{at.path}: the file has only a part of the model that stands there")

    def _new(self, name: str, nodes: dict[str, Node], at: Place) -> Any:
        """An object of the closed list, or a copy of one of the strategy's modules."""
        is_other = at.there is not MISSING and family(at.there) != name
        if is_other and (at.within != "growing" or name not in kinds.MADE):
            raise differs(at.path, name, at.there)
        if name in kinds.MADE:
            with torch.random.fork_rng(devices=[]):  # their constructors draw weights
                return kinds.MADE[name]()
        for model in self._modules.get(name, ()):
            if kinds.grows(model) or model._modules.keys() == named(nodes, "_modules").keys():
                return frozen_copy(model)  # its modes and flags are in the file
        raise MismatchError(
            f"strategy.{at.path} is a {name.rpartition(':')[2]} in the file, which this strategy does not have and a "
            "checkpoint does not make. Was it built with the same plugins and arguments? What a plugin makes in "
            f"training, put there before restore: strategy.{at.path} = ..."
        )

    def _fill(self, nodes: dict[str, Node], thing: Any, at: Place) -> None:
        """Note the attributes of an object."""
        state = state_of(thing) or {}
        for name in state.keys() - nodes.keys():
            if isinstance(thing, nn.Module) and state[name] is None:
                self._note(vars(thing).pop, name)  # it has become a layer, which it would hide
            elif not kinds.is_users_callable(thing):
                raise MismatchError(f"strategy.{at.attribute(name, None).path} is not in the file")
        for name, new in self.attributes(nodes, thing, at).items():
            self._note(object.__setattr__, thing, name, new)  # past any of its class

    def attributes(self, nodes: dict[str, Node], thing: Any, at: Place) -> dict[str, Any]:
        """The attributes of an object that change."""
        found, state, options = {}, state_of(thing) or {}, set() if at.is_made else kinds.options_of(thing)
        for name, node in nodes.items():
            place = at.attribute(name, state.get(name, MISSING))
            if place.there is MISSING and not places.is_free(thing, name):
                raise MismatchError(f"strategy.{place.path} is no attribute of {type(thing).__name__} in a checkpoint")
            if name in options and (node is None or place.there is None):
                self.compare(place.path, node, place.there)
            new = self.place(node, place)
            if place.there is MISSING and isinstance(thing, nn.Module) and family(new) not in kinds.FAMILIES:
                raise MismatchError(f"strategy.{place.path} is no data in the file")
            if name in options and new is not KEPT and place.there is not None:
                self.compare(place.path, new, place.there)
            if new is not KEPT and new is not place.there:
                found[name] = new
        return found

    def _optimizer(self, node: Node, at: Place) -> Any:
        _, number, name = node
        make = partial(self._new, name, {}, at)
        thing, self.optimizers[number] = self._counterpart(number, at, family(at.there) == name, make)
        return thing

    def _configured(self, node: Node, at: Place) -> Any:
        """The user's own, if there is any; in a new object one of a few functions."""
        if at.there is not MISSING and not kinds.is_kept(at.there, self._layers):
            raise differs(at.path, node[1], at.there)
        return KEPT if not at.is_made or name_of(at.there) == node[1] else kinds.FUNCTIONS.get(node[1], KEPT)

    def _enum(self, node: Node, at: Place) -> Any:
        if name_of(type(at.there)) != node[1]:
            raise differs(at.path, node[1], at.there)
        return type(at.there)[node[2]]

    # ---- stored samples

    def _samples(self, node: Node, at: Place) -> Any:
        _, number, name, group, sizes, which, position, own_collate, described = node
        if type(group) is not str or not all(type(size) is int and 0 <= size < 2**48 for size in sizes.values()):
            raise ValueError("stored samples of nothing")
        if isinstance(at.there, AvalancheDataset):
            self.sources.add(at.there)  # data that the strategy was built with
        if own_collate and self.sources.collate is None:
            raise MismatchError(f"strategy.{at.path}: batches are made by a function of the stream. {GIVE_THE_STREAM}")
        described = self.place(described, at.new()).items()
        attributes = [new_attribute(attribute, len(which), *parts) for attribute, parts in described]
        collate = self.sources.collate if own_collate else default_collate
        data = [self.sources.get(key, size) for key, size in sizes.items()]
        new = partial(new_dataset, kinds.DATASETS[name], data, which, position, group, attributes, collate)
        return self._counterpart(number, at, False, new)[0]

    def _iterator(self, node: Node, at: Place) -> Any:
        _, number, name, content, size = node
        datasets = self.items(content, at.new())
        return self._counterpart(number, at, False, lambda: new_iterator(name, datasets, size))[0]


def _layout(tensor: Tensor) -> list[Any]:
    """What two tensors must have in common for one to take the other's data."""
    return [tensor.dtype, tensor.device, tensor.layout, tensor.is_leaf, tensor.is_inference()]


def _set_tensor(tensor: Tensor, value: Tensor, requires_grad: bool) -> None:
    """Give a parameter or buffer its numbers: whoever holds it, holds the restored one."""
    tensor.grad, tensor.data = None, value
    tensor.requires_grad_(requires_grad)


_KINDS: dict[str, Callable[[Decoder, Node, Place], Any]] = {
    "same": Decoder._same,
    **dict.fromkeys(("tensor", "parameter"), Decoder._tensor),
    "array": Decoder._array,
    "scalar": lambda decoder, node, at: node[1].numpy().view(kinds.NUMPY[node[2]])[0],
    **dict.fromkeys(("tuple", "Size", "frozenset"), Decoder._frozen),
    **dict.fromkeys(("list", "deque", "set"), Decoder._list),
    "dict": Decoder._dict,
    "random": Decoder._random,
    "dtype": lambda decoder, node, at: kinds.DTYPES[node[1]],
    "device": lambda decoder, node, at: decoder.device if node[1] else torch.device("cpu"),
    "enum": Decoder._enum,
    "configuration": Decoder._configured,
    "object": Decoder._object,
    "optimizer": Decoder._optimizer,
    "samples": Decoder._samples,
    "iterator": Decoder._iterator,
}
