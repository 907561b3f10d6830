"""What a checkpoint says of an object, and which objects it may bring into being: plain names, no pickled code."""

import functools
import inspect
import io
import logging
import sys
import threading
import types
import weakref
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from avalanche.benchmarks.scenarios.generic_scenario import CLExperience, CLScenario, CLStream
from avalanche.benchmarks.utils import AvalancheDataset
from avalanche.evaluation.metrics import mean
from avalanche.logging import BaseLogger
from avalanche.models.dynamic_modules import DynamicModule, MultiTaskModule
from avalanche.training.plugins import evaluation
from torch import Tensor, nn
from torch.utils.data import Dataset, default_collate
from torch.utils.hooks import RemovableHandle

__all__ = ["CheckpointError", "MismatchError"]

MISSING: Any = object()  # no object of the fresh strategy stands here
SCALARS = (bool, int, float, str)

# Configuration and connections to the outside: never saved, taken from the strategy that was built again.
FRESH = (
    types.FunctionType,
    types.BuiltinFunctionType,
    types.MethodType,
    types.MethodWrapperType,
    types.ModuleType,
    functools.partial,
    type,
    Path,
    Dataset,
    BaseLogger,
    CLExperience,
    CLScenario,
    CLStream,
    RemovableHandle,
    io.IOBase,
    logging.Logger,
    threading.Thread,
    threading.Event,
    type(threading.Lock()),
    type(threading.RLock()),
    weakref.ReferenceType,
)
FRESH_PACKAGES = ("psutil", "tqdm", "wandb", "tensorboard")

# Functions and classes that an object made while training may hold, by name. Nothing else is ever looked up.
FACTORIES: dict[str, Any] = {
    **{f"builtins:{kind.__name__}": kind for kind in (list, dict, set, tuple, int, float, str, bool)},
    **{f"torch:{make.__name__}": make for make in (torch.zeros, torch.ones, torch.empty, torch.rand, torch.randn)},
    "avalanche.training.plugins.evaluation:_init_metrics_list_lambda": evaluation._init_metrics_list_lambda,
    "avalanche.evaluation.metrics.mean:Mean": mean.Mean,
    "avalanche.evaluation.metrics.mean:Sum": mean.Sum,
    "torch.utils.data._utils.collate:default_collate": default_collate,
}
# Packages whose classes the restored state may have more objects of than the fresh strategy.
PACKAGES = ("avalanche", "avalanche_contrastive", "torch.nn", "torch.optim", "torch.utils.data")

# Arguments of constructors that are changed between experiences, by the user or by the methods themselves.
CHANGING = frozenset({"train_epochs", "untrained_solver", "weight_replay_loss", "name_ext_layer"})

_PLAIN_MODULE = vars(nn.Module())
_MODULE_STATE = ("training", "_parameters", "_buffers", "_modules", "_non_persistent_buffers_set")
HOOKS = frozenset(_PLAIN_MODULE) - frozenset(_MODULE_STATE)  # of a module: functions, and so not its state


class CheckpointError(ValueError):
    """A strategy that cannot be saved, or a file that cannot be restored into it: the message has the reason."""


class MismatchError(CheckpointError):
    """The file is of another strategy than the one it shall be restored into."""


def name_of(thing: Any) -> str:
    """``module:qualified.name`` of a class or function, that of the class for anything else."""
    named = thing if hasattr(thing, "__qualname__") else type(thing)
    of_torch = f"torch:{named.__name__}"  # torch's functions are methods of a hidden class
    if FACTORIES.get(of_torch) is named:
        return of_torch
    return f"{getattr(named, '__module__', None) or 'builtins'}:{named.__qualname__}"


def short(name: str) -> str:
    """A name without its module."""
    return name.partition(":")[2] or name


def is_fresh(value: Any) -> bool:
    """Whether a thing is configuration, to be taken from the strategy that is built again."""
    if isinstance(value, AvalancheDataset):
        return False
    return isinstance(value, FRESH) or type(value).__module__.split(".")[0] in FRESH_PACKAGES


def state_of(thing: Any) -> dict[str, Any] | None:
    """The attributes of a plain object; None if it keeps its state elsewhere (in C, or as a container)."""
    if isinstance(thing, (list, dict, set, frozenset, tuple, str, bytes, int, float)):
        return None
    slots = {
        name: getattr(thing, name)
        for cls in type(thing).__mro__
        for name in _names(vars(cls).get("__slots__", ()))
        if name not in ("__dict__", "__weakref__") and hasattr(thing, name)
    }
    if not slots and not hasattr(thing, "__dict__"):
        return None
    state = {**vars(thing), **slots} if hasattr(thing, "__dict__") else slots
    if isinstance(thing, nn.Module):
        return {name: value for name, value in state.items() if name not in HOOKS}
    return state


def _names(slots: Any) -> Iterable[str]:
    return (slots,) if isinstance(slots, str) else slots


def set_state(thing: Any, state: dict[str, Any]) -> None:
    """Give an object its attributes, past any ``__setattr__`` of its class; a module has no others afterwards."""
    if isinstance(thing, nn.Module):  # an attribute that has become a layer would hide it
        for name in vars(thing).keys() - state.keys() - HOOKS:
            del vars(thing)[name]
    if hasattr(thing, "__dict__"):
        slots = {name for cls in type(thing).__mro__ for name in _names(vars(cls).get("__slots__", ()))}
        vars(thing).update({name: value for name, value in state.items() if name not in slots})
        state = {name: value for name, value in state.items() if name in slots}
    for name, value in state.items():
        object.__setattr__(thing, name, value)


def parts_of(strategy: Any) -> Iterator[Any]:
    """The strategy and what its user has given it: plugins, metrics, the modules of the model."""
    yield strategy
    yield from strategy.plugins
    yield from metrics_of(strategy)
    yield from strategy.model.modules()


def metrics_of(strategy: Any) -> list[Any]:
    """The metrics of the strategy's evaluator."""
    return list(getattr(getattr(strategy, "evaluator", None), "metrics", ()))


def modules_within(thing: Any, depth: int = 6) -> Iterator[nn.Module]:
    """The models that an object and its attributes hold, those nearest first."""
    level, seen = [thing], {id(thing)}
    for _ in range(depth):
        found = [part for whole in level for part in _held(whole) if id(part) not in seen]
        seen.update(map(id, found))
        yield from (part for part in found if isinstance(part, nn.Module))
        level = found


def _held(thing: Any) -> Iterable[Any]:
    if isinstance(thing, (list, tuple)):
        return thing
    if isinstance(thing, dict):
        return thing.values()
    return () if isinstance(thing, (Tensor, AvalancheDataset)) or is_fresh(thing) else (state_of(thing) or {}).values()


class Classes:
    """The classes that a restored object may have: of known packages, and of the modules of the user's own parts."""

    def __init__(self, strategy: Any) -> None:
        classes = {cls for part in parts_of(strategy) for cls in type(part).__mro__}
        self.modules = {cls.__module__ for cls in classes} - {"builtins", "abc", "typing"}

    def may_make(self, cls: type) -> bool:
        """Whether objects of a class may be made for attributes from a file."""
        packages = tuple(f"{package}." for package in PACKAGES)
        return cls.__module__ in self.modules or f"{cls.__module__}.".startswith(packages)

    def find(self, name: str) -> type | None:
        """The class of that name, if it is loaded and may be made."""
        module, _, qualified = name.partition(":")
        found: Any = sys.modules.get(module)
        for part in qualified.split("."):
            found = getattr(found, part, None)
        return found if isinstance(found, type) and name_of(found) == name and self.may_make(found) else None

    def find_generator(self, name: str) -> Callable[..., Iterator[Any]] | None:
        """The generator function of that name, of a module whose classes may be made; a call of it runs nothing yet."""
        module, _, qualified = name.partition(":")
        if module not in self.modules and module.split(".")[0] not in ("avalanche", "avalanche_contrastive"):
            return None
        found: Any = sys.modules.get(module)
        for part in qualified.split("."):
            found = getattr(found, part, None)
        return found if inspect.isgeneratorfunction(found) else None


def made(cls: type) -> Any:
    """An empty object of a class; none of its own code runs."""
    thing: Any = object.__new__(cls)
    if isinstance(thing, nn.Module):
        nn.Module.__init__(thing)
    return thing


def grows(module: nn.Module) -> bool:
    """Whether a module may have changed its shape in training: a head that adapts itself to new classes."""
    own = getattr(type(module), "adaptation", None)
    return own not in (None, DynamicModule.adaptation, MultiTaskModule.adaptation)


def options_of(thing: Any) -> set[str]:
    """Names of attributes that are arguments of the constructor, of classes that do not change them in training."""
    home = type(thing).__module__.split(".")[0]
    if home not in ("avalanche", "avalanche_contrastive") or isinstance(thing, nn.Module):
        return set()
    arguments: set[str] = set()
    for cls in type(thing).__mro__:
        if "__init__" in vars(cls):
            arguments.update(inspect.signature(vars(cls)["__init__"]).parameters)
    return arguments - CHANGING


def in_order(value: set[Any] | frozenset[Any]) -> tuple[list[Any], int]:
    """How ``filled`` makes a set that is gone through in the order of this one.

    Sums follow the order of a set of classes, and that follows from the size of its table and from what collided in
    it. Nearly always the elements in their present order will do, copied after some of them (a copy has a smaller
    table). Where they do not, the set itself is filled anew, as it will be when it is restored. Sets of strings have
    another order in every process anyway.
    """
    order = list(value)
    if len(order) < 2 or any(type(item) is not int for item in order):
        return order, 0
    for copied in range(len(order) + 1):
        if list(filled(order, copied)) == order:
            return order, copied
    if isinstance(value, set):
        value.clear()
        value.update(order)
    return order, 0


def filled(order: list[Any], copied: int) -> set[Any]:
    """A set of these elements that was copied once, after so many of them."""
    found = set(order[:copied]).copy() if copied else set()
    found.update(order[copied:])
    return found
