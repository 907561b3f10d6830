"""A table of records into a strategy that was built again.

Each record has a *counterpart*: the object that the strategy has at the place where the record is first met, or a new
one: a container, a tensor, an object of the closed list, or a copy of one of the strategy's own modules, as teachers
are. Counterparts are filled in place. All is read and checked first, and a field that is not what it should be is an
error of whatever kind; what is to be done is noted, and done when nothing can fail.
"""

from collections import Counter, defaultdict, deque
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from avalanche.benchmarks.utils import AvalancheDataset
from avalanche.benchmarks.utils.flat_data import ConstantSequence
from avalanche.training.templates.base import BaseTemplate
from torch import Tensor, nn
from torch.utils.data import default_collate

from avalanche_contrastive._torch import unwrapped
from avalanche_contrastive.checkpoint import kinds
from avalanche_contrastive.checkpoint.kinds import MISSING, MismatchError, family, name_of, short, state_of
from avalanche_contrastive.checkpoint.samples import GIVE_THE_STREAM, Sources, made_attribute, made_dataset
from avalanche_contrastive.checkpoint.table import Record, Step, Table, Value, number_of, parts_of, path_of
from avalanche_contrastive.teacher import frozen_copy

__all__ = ["Decoder"]

KEPT: Any = object()  # a place that is left as it is
LISTED = 5  # differences that an error names
COLLIDING = 16  # keys of a dict or set that may have the same hash
_PARTS: dict[str, type] = {"_parameters": nn.Parameter, "_buffers": Tensor, "_modules": nn.Module}
NUMBERS = {"nothing", "flag", "number", "tensor"}  # may change into each other in training


class Place(NamedTuple):
    """Where a record is first met.

    Args:
        there: what the strategy has there, or MISSING.
        path: in words.
        is_made: whether that is within a new object, whose options are not the user's.
        is_fixed: whether that is within a model, and not within a part of it that grows.
    """

    there: Any
    path: str
    is_made: bool = False
    is_fixed: bool = False


class Decoder:
    """What a table says of a strategy; changes nothing before `apply`.

    Attributes:
        places: of the records by number; ``there`` is the counterpart.
        optimizers: numbers of their records.
        sources: of the stored samples.
        differences: options that the file has otherwise, in words.

    Args:
        table: checked.
        root: the strategy to be filled; MISSING for a table of data.
        device: of the strategy.
        stream: where stored samples are looked up; None: in the one that the strategy trains on next.

    Raises:
        MismatchError: the table is of another strategy.
    """

    def __init__(self, table: Table, root: Any, device: torch.device, stream: Any = None) -> None:
        self.table, self.device = table, device
        self.places = {0: Place(root, "")}
        self.things: dict[int, Any] = {}  # counterparts of what can be filled or shared
        self.optimizers: list[int] = []
        self.differences: list[str] = []
        self.sources = Sources({k: n for r in table if r[0] == "samples" for k, n in zip(r[3], r[4], strict=True)})
        self._model = unwrapped(root.model) if isinstance(root, BaseTemplate) else MISSING
        self._taken: dict[int, Any] = {}  # by id: each object is the counterpart of one record at most
        self._modules: dict[str, list[nn.Module]] = {}  # the strategy's, by class
        self._copies: list[tuple[nn.Module, str]] = []
        self._to_do: list[Callable[[], Any]] = []
        self._find_counterparts()
        if stream is not None:
            self.sources.look_at([stream])
        for number, thing in list(self.things.items()):
            self._fill(table[number], thing, self.places[number])
        for module, path in self._copies:
            parts = [part for part in module.modules() if not kinds.is_users_callable(part)]
            if any(id(part) not in self._taken for part in (*parts, *module.parameters())):
                raise MismatchError(f"strategy.{path}: the file has only a part of the model that stands there")

    def apply(self) -> None:
        """Do what was noted."""
        for do in self._to_do:
            do()

    def check_options(self) -> None:
        """Refuse other options.

        Raises:
            MismatchError: with some of them.
        """
        if self.differences:
            more = len(self.differences) - LISTED
            raise MismatchError(
                f"it was saved by a strategy with other options: {'; '.join(self.differences[:LISTED])}"
                f"{f'; and {more} more' * (more > 0)}. Build the same strategy again."
            )

    # ---- counterparts

    def _find_counterparts(self) -> None:
        """Level by level; models first, for others may hold parts of them, and optimisers last."""
        models, others, optimizers = deque[int](), deque([0]), deque[int]()
        while queue := models or others or optimizers:
            number = queue.popleft()
            record, place = self.table[number], self.places[number]
            place = self.places[number] = self._settle(number, record, place) if record[0] in _NEW else place
            if record[0] == "object" and not place.is_made:
                self._compare_options(record[2], place)
            if isinstance(place.there, AvalancheDataset):
                self.sources.add(place.there)  # data that the strategy was built with
            for step, part in parts_of(record):
                target = number_of(part)
                if target is not None and target not in self.places:
                    there = _part(record, place.there, step)
                    self.places[target] = place._replace(there=there, path=path_of(place.path, step))
                    is_model = queue is models or isinstance(there, nn.Module)
                    is_optimizer = self.table[target][0] == "optimizer"
                    (optimizers if is_optimizer else models if is_model else others).append(target)
            self.optimizers += [number] if record[0] == "optimizer" else []
        self.check_options()

    def _compare_options(self, attributes: dict[str, Value], place: Place) -> None:
        """Note which arguments of an object's constructor the file has otherwise."""
        state = state_of(place.there) or {}
        for name in sorted(kinds.options_of(place.there) & attributes.keys()):
            value, ours = attributes[name], state[name]
            if _is_option(ours) or ours is None or value is None:
                is_plain = number_of(value) is None or self.table[value[0]][0] == "tuple"
                self.compare(
                    path_of(place.path or "strategy", ("attribute", name)), self.data(value) if is_plain else KEPT, ours
                )

    def compare(self, path: str, theirs: Any, ours: Any) -> None:
        """Note an option that the file has otherwise; KEPT is one that cannot be compared."""
        if (theirs is None) != (ours is None):
            self.differences.append(f"{path} is {'None' if theirs is None else 'given'} in the file")
        elif theirs is not KEPT and theirs != ours:
            self.differences.append(f"{path} is {theirs!r:.80} in the file, {ours!r:.80} here")

    def _settle(self, number: int, record: Record, place: Place) -> Place:
        """Find or make the counterpart of a record; the place is from then on that of its parts."""
        is_own = place.there is not MISSING and id(place.there) not in self._taken and _is_alike(record, place.there)
        thing = place.there if is_own else _NEW[record[0]](self, record, place)
        self.things[number] = self._taken[id(thing)] = thing
        is_fixed = place.is_fixed
        if isinstance(thing, nn.Module):
            if is_own and not place.is_made:
                self._modules.setdefault(record[1], []).append(thing)
            is_copy = not is_own and record[1] not in kinds.MADE
            is_fixed = (is_fixed or thing is self._model or is_copy) and not kinds.grows(thing)
            if is_fixed and not kinds.is_users_callable(thing):
                self._check_layers(record, place._replace(there=thing))
        return Place(thing, place.path, place.is_made or not is_own, is_fixed)

    def new_object(self, record: Record, place: Place) -> Any:
        """An object of the closed list, or a copy of one of the strategy's modules."""
        name = record[1]
        self.check_options()  # if they differ, they are the reason
        if place.there is not MISSING and family(place.there) != name:
            raise differs(place.path, name, place.there)
        if name in kinds.MADE:
            with torch.random.fork_rng(devices=[]):
                return kinds.MADE[name]()
        models = self._modules.get(name, []) if record[0] == "object" else []
        parts = self._named(record, "_modules").keys() if models else ()
        model = next((model for model in models if kinds.grows(model) or model._modules.keys() == parts), None)
        if model is None:
            raise MismatchError(
                f"strategy.{place.path}: the file says that a {short(name)} stands there, which this strategy does not "
                "have and a checkpoint does not make. Was it built with the same plugins and arguments?"
            )
        self._copies.append((frozen_copy(model), place.path))  # its modes and flags are in the file
        return self._copies[-1][0]

    def new_tensor(self, record: Record, place: Place) -> Tensor:
        """A tensor, or a parameter."""
        kind, value, requires_grad, there = record
        value = value.to(self.device) if there else value
        return nn.Parameter(value, requires_grad) if kind == "parameter" else value.requires_grad_(requires_grad)

    def _named(self, record: Record, kind: str) -> dict[Any, Value]:
        """Parameters, buffers or parts of a module in the file, by name."""
        content = self.table[record[2][kind][0]]
        return {name: value for (step, name), value in parts_of(content) if step == "item"}

    # ---- what stands at a place

    def place(self, value: Value, there: Any, path: str, *, is_made: bool = False) -> Any:
        """What is to stand at a place, KEPT for what stands there.

        Args:
            value: of the table.
            there: what stands there, or MISSING.
            path: in words.
            is_made: whether the place is in a new object.

        Raises:
            MismatchError: it is of another kind than what stands there.
        """
        number = number_of(value)
        new = value if number is None else self.things.get(number, MISSING)
        if number is not None and new is MISSING:
            record = self.table[number]
            new = _VALUES[record[0]](self, record, Place(there, path, is_made))
            is_plain = record[0] == "tuple" and all(number_of(part) is None for _, part in parts_of(record))
            is_shared = is_plain or record[0] in ("samples", "iterator")
            self.things |= {number: new} if is_shared else {}
        if new is KEPT or (new is None and kinds.is_configuration(there)):
            return KEPT
        if isinstance(there, nn.Module) and unwrapped(there) is new:
            return there
        ours, theirs = family(there), family(new)
        may_be = ours == theirs or {ours, theirs} <= NUMBERS or (theirs == "nothing" and ours in kinds.FAMILIES)
        if there is MISSING or there is None or may_be:
            return new
        raise differs(path, theirs, there)

    def items(self, content: Any, place: Place) -> list[Any]:
        """What is to stand in a sequence."""
        if isinstance(content, Tensor):
            return list(content.tolist())
        ours = list(place.there) if isinstance(place.there, (list, tuple, deque)) else []
        ours += [MISSING] * (len(content) - len(ours))
        return [self._item(v, ours[i], f"{place.path}[{i}]", place.is_made) for i, v in enumerate(content)]

    def _item(self, value: Value, there: Any, path: str, is_made: bool = False) -> Any:
        """What is to stand in a container, where nothing can be left out."""
        new = self.place(value, there, path, is_made=is_made)
        if new is KEPT and there is MISSING:
            raise MismatchError(
                f"strategy.{path}: the saved strategy had a function or the like there, which no file has"
            )
        return there if new is KEPT else new

    # ---- filling counterparts

    def _fill(self, record: Record, thing: Any, place: Place) -> None:
        """Note what a counterpart is to be filled with."""
        if record[0] in ("list", "deque", "set"):
            items = self.items(record[1], place)
            has_objects = any(family(item) not in kinds.FAMILIES for item in thing)
            if has_objects and [*map(id, items)] != [*map(id, thing)]:
                raise MismatchError(f"strategy.{place.path} holds other objects in the file than here")
            _check_keys(items if isinstance(thing, set) else [], place.path)
            self._note(_refill, thing, thing.update if isinstance(thing, set) else thing.extend, items)
        elif record[0] == "dict":
            self._fill_dict(record, thing, place)
        elif record[0] == "object":
            self._fill_object(record, thing, place)
        elif record[0] == "parameter":
            value = record[1].to(self.device) if record[3] else record[1]
            self._note(_set_parameter, thing, value, bool(record[2]))
        elif record[0] == "random":
            another, _, set_state = kinds.GENERATORS[record[1]]
            state = self._item(record[2], MISSING, place.path)
            set_state(another(thing), state)  # fails here, if at all
            self._note(set_state, thing, state)

    def _note(self, do: Callable[..., Any], *arguments: Any) -> None:
        self._to_do.append(partial(do, *arguments))

    def _fill_dict(self, record: Record, thing: Any, place: Place) -> None:
        content: dict[Any, Any] = {}
        keys = [self._item(key, MISSING, f"{place.path} (a key)") for key in record[1][::2]]
        _check_keys(keys, place.path)
        for key, value in zip(keys, record[1][1::2], strict=True):
            content[key] = self._item(value, dict.get(thing, key, MISSING), f"{place.path}[{key!r:.40}]", place.is_made)
        for key, ours in thing.items():
            if family(ours) not in kinds.FAMILIES and key not in content:
                raise MismatchError(f"strategy.{place.path}[{key!r:.40}], {short(family(ours))}, is not in the file")
        self._note(_refill, thing, thing.update, content)
        if isinstance(thing, defaultdict) and thing.default_factory is None and record[3] is not None:
            self._note(setattr, thing, "default_factory", kinds.FUNCTIONS[record[3]])

    def _fill_object(self, record: Record, thing: Any, place: Place) -> None:
        attributes, state = record[2], state_of(thing) or {}
        is_lenient = kinds.is_users_callable(thing)
        for kind, cls in _PARTS.items() if isinstance(thing, nn.Module) else ():
            for name, value in self._named(record, kind).items():
                if type(name) is not str or not (value is None or isinstance(self.things.get(value[0]), cls)):
                    raise MismatchError(f"strategy.{place.path}.{name!s:.80} is no {cls.__name__} in the file")
        for name in state.keys() - attributes.keys():
            if isinstance(thing, nn.Module) and state[name] is None:
                self._note(vars(thing).pop, name)  # it has become a layer, which it would hide
            elif not is_lenient:
                raise MismatchError(f"strategy.{path_of(place.path, ('attribute', name))} is not in the file")
        for name, value in attributes.items():
            path, ours = path_of(place.path, ("attribute", name)), state.get(name, MISSING)
            if ours is MISSING and not _is_free(type(thing), name):
                raise MismatchError(
                    f"strategy.{path} is in the file, but something else of {type(thing).__name__} here"
                )
            try:
                new = self.place(value, ours, path, is_made=place.is_made)
            except MismatchError:
                if is_lenient:
                    continue
                raise
            if new is not KEPT and new is not ours:
                self._note(kinds.set_attribute, thing, name, new)

    def _check_layers(self, record: Record, place: Place) -> None:
        """A part of a model that does not grow has the same layers and shapes."""
        for kind in ("_parameters", "_buffers", "_modules"):
            ours, theirs = getattr(place.there, kind), self._named(record, kind)
            if ours.keys() != theirs.keys():
                odd = sorted(map(str, ours.keys() ^ theirs.keys()))[0]
                where = "the file" if odd in theirs else "this model"
                raise MismatchError(f"the models differ: strategy.{place.path}.{odd} is only in {where}")
            for name, value in theirs.items() if kind != "_modules" else ():
                words = [_words(x) for x in (None if value is None else self.table[value[0]][1], ours[name])]
                if words[0] != words[1]:
                    path = f"strategy.{place.path}.{name}"
                    raise MismatchError(f"the models differ: {path} is {words[0]} in the file, {words[1]} here")

    # ---- values that are built where they stand

    def configured(self, record: Record, place: Place) -> Any:
        """The user's own, if there is any; in a new object one of a few functions."""
        is_other = place.there is MISSING or (place.is_made and name_of(place.there) != record[1])
        return kinds.FUNCTIONS.get(record[1], KEPT) if is_other else KEPT

    def enumerated(self, record: Record, place: Place) -> Any:
        """A member of the enumeration whose member stands there."""
        if name_of(type(place.there)) != record[1]:
            raise differs(place.path, record[1], place.there)
        return type(place.there)[record[2]]

    def samples(self, record: Record, place: Place) -> Any:
        """A data set of stored samples."""
        _, name, group, keys, _, which, position, own_collate, described = record
        if own_collate and self.sources.collate is None:
            raise MismatchError(
                f"strategy.{place.path}: batches are made by a function of the stream. {GIVE_THE_STREAM}"
            )
        attributes = []
        for attribute, (values, in_sample, discards) in self.data(described).items():
            values = [row.clone() for row in values] if isinstance(values, Tensor) else values
            values = ConstantSequence(*values, len(which)) if isinstance(values, tuple) else values
            if len(values) != len(which):
                raise MismatchError(f"strategy.{place.path}: {len(values)} {attribute:.40} for {len(which)} samples")
            attributes.append(made_attribute(attribute, values, in_sample=in_sample, discards=discards))
        collate = self.sources.collate if own_collate else default_collate
        sources = [self.sources.get(key) for key in keys]
        return made_dataset(kinds.DATASETS[name], sources, which, position, group, attributes, collate)

    def data(self, value: Value) -> Any:
        """A value of numbers, strings, tensors and containers of these, at once.

        Raises:
            KeyError: it is of something else.
        """
        number = number_of(value)
        if number is None:
            return value
        kind, content, *_ = self.table[number]
        if kind in ("tensor", "parameter", "array"):
            return self.things[number]
        if kind == "dict":
            keys = [self.data(key) for key in content[::2]]
            _check_keys(keys, self.places[number].path)
            return dict(zip(keys, map(self.data, content[1::2]), strict=True))
        items = content.tolist() if isinstance(content, Tensor) else [self.data(item) for item in content]
        return {"list": list, "tuple": tuple}[kind](items)


def differs(path: str, theirs: str, there: Any) -> MismatchError:
    """The error for a thing of another kind than the one that stands there."""
    return MismatchError(f"strategy.{path} is {short(theirs)} in the file, {short(family(there))} here")


def _is_option(value: Any) -> bool:
    plain = family(value) in ("nothing", "flag", "number", "text")
    return plain or (type(value) is tuple and all(map(_is_option, value)))


def _is_alike(record: Record, there: Any) -> bool:
    if record[0] in ("object", "optimizer", "random"):
        return bool(name_of(type(there)) == record[1])
    if record[0] == "parameter":
        return isinstance(there, nn.Parameter)
    return record[0] != "tensor" and bool(type(there).__name__ == (record[2] if record[0] == "dict" else record[0]))


def _part(record: Record, there: Any, step: Step) -> Any:
    """What a counterpart has at the place of a part."""
    how, key = step
    part: Any = MISSING
    if how == "attribute" and record[0] in ("object", "optimizer"):
        part = (state_of(there) or {}).get(key, MISSING)
    elif isinstance(there, dict) and how == "item":
        part = dict.get(there, key, MISSING)
    elif isinstance(there, (list, tuple, deque)) and how == "item" and key < len(there):
        part = there[key]
    return MISSING if part is None else unwrapped(part) if isinstance(part, nn.Module) else part


def _check_keys(keys: list[Any], path: str) -> None:
    """Refuse keys that are made to collide: a table of them would take for ever to fill."""
    if max(Counter(map(hash, keys)).values(), default=0) > COLLIDING:
        raise MismatchError(f"strategy.{path}: its keys collide, as those of no checkpoint do")


def _is_free(cls: type, name: str) -> bool:
    """Whether an attribute hides nothing of its class but a default that is data."""
    hidden = getattr(cls, name, MISSING)
    is_default = family(hidden) in kinds.FAMILIES and not hasattr(nn.Module, name)
    return name.isidentifier() and (hidden is MISSING or name in kinds.slots_of(cls) or is_default)


def _words(tensor: Any) -> str:
    """Shape and type."""
    return f"{tuple(tensor.shape)} {tensor.dtype}".replace("torch.", "") if isinstance(tensor, Tensor) else "None"


def _refill(thing: Any, fill: Callable[[Any], Any], content: Any) -> None:
    thing.clear()
    fill(content)


def _set_parameter(parameter: nn.Parameter, value: Tensor, requires_grad: bool) -> None:
    parameter.grad, parameter.data = None, value  # the same object: whoever holds it, holds the restored one
    parameter.requires_grad_(requires_grad)


_NEW: dict[str, Callable[[Decoder, Record, Place], Any]] = {
    **dict.fromkeys(("tensor", "parameter"), Decoder.new_tensor),
    "array": lambda decoder, record, place: record[1].numpy().view(kinds.NUMPY[record[2]]).reshape(record[3]),
    "list": lambda decoder, record, place: [],
    "deque": lambda decoder, record, place: deque(maxlen=record[2]),
    "dict": lambda decoder, record, place: kinds.DICTS[record[2]](),
    "set": lambda decoder, record, place: set(),
    "random": lambda decoder, record, place: kinds.GENERATORS[record[1]][0](None),
    **dict.fromkeys(("object", "optimizer"), Decoder.new_object),
}
_VALUES: dict[str, Callable[[Decoder, Record, Place], Any]] = {
    "configuration": Decoder.configured,
    "tuple": lambda decoder, record, place: (torch.Size if isinstance(place.there, torch.Size) else tuple)(
        decoder.items(record[1], place)
    ),
    "frozenset": lambda decoder, record, place: frozenset(decoder.items(record[1], place)),
    "scalar": lambda decoder, record, place: record[1].numpy().view(kinds.NUMPY[record[2]])[0],
    "dtype": lambda decoder, record, place: kinds.DTYPES[record[1]],
    "device": lambda decoder, record, place: decoder.device if record[1] else torch.device("cpu"),
    "enum": Decoder.enumerated,
    "samples": Decoder.samples,
    "iterator": lambda decoder, record, place: kinds.ITERATORS[record[1]](
        decoder.items(record[2], place._replace(there=MISSING)), record[3]
    ),
}
