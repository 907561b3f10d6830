"""What a checkpoint holds: data, objects by their attributes, and a closed list of classes that reading may make.

What the user configures (functions, transforms, loggers, data sets, connections to the outside) is never in a file: the
strategy that is built again has it.
"""

import functools
import inspect
import io
import logging
import threading
import types
import weakref
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Collection, Iterator
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import torch
from avalanche.benchmarks.scenarios.generic_scenario import CLExperience, CLScenario, CLStream
from avalanche.benchmarks.utils import AvalancheDataset, classification_dataset, data_loader, detection_dataset
from avalanche.evaluation.metric_results import TensorImage
from avalanche.evaluation.metrics import Accuracy, Mean, Sum
from avalanche.logging import BaseLogger
from avalanche.models import IncrementalClassifier, bic_model, cosine_layer, dynamic_modules
from avalanche.training import storage_policy
from avalanche.training.plugins import evaluation
from avalanche.training.templates.base import BaseTemplate
from avalanche.training.utils import ParamData
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torch.utils.hooks import RemovableHandle

from avalanche_contrastive._archive import CheckpointError
from avalanche_contrastive._rows import SharesBatches
from avalanche_contrastive.metrics.base import MatrixValue
from avalanche_contrastive.readout import ReadOut

__all__ = ["CheckpointError", "MismatchError"]

MISSING: Any = object()  # the rebuilt strategy has nothing at this place
Node = Any  # None, a number, a string, or a list that starts with its kind
SCALARS = (bool, int, float, str)
OURS = {"avalanche", "avalanche_contrastive"}


class MismatchError(CheckpointError):
    """The file is of another strategy than the one that it shall be restored into."""


def name_of(thing: Any) -> str:
    """``module:qualified.name`` of a class or function, that of the class for anything else."""
    named: Any = thing if hasattr(thing, "__qualname__") else type(thing)
    plain = getattr(named, "__name__", "")
    if getattr(torch, plain, None) is named:
        return f"torch:{plain}"  # torch's functions say that they are methods of a hidden class
    return f"{getattr(named, '__module__', None) or 'builtins'}:{named.__qualname__}"


# ---- the closed list: what may come into being when a file is read, beside tensors and builtin containers


def _by_name(*things: Any) -> dict[str, Any]:
    return {name_of(thing): thing for thing in things}


def _parametric_buffer() -> Any:
    buffer = storage_policy._ParametricSingleBuffer(0)
    buffer.selection_strategy = None  # that of the policy which it is a group of
    return buffer


# Each starts as its own constructor makes it, and is then filled as the objects of the strategy are: attributes that it
# does not have, or has of another kind, are refused.
MADE: dict[str, Callable[[], Any]] = {
    **_by_name(Accuracy, Mean, Sum),
    name_of(storage_policy.ReservoirSamplingBuffer): lambda: storage_policy.ReservoirSamplingBuffer(0),
    name_of(storage_policy._ParametricSingleBuffer): _parametric_buffer,
    name_of(MatrixValue): lambda: MatrixValue(torch.zeros(1, 1)),
    name_of(TensorImage): lambda: TensorImage(torch.zeros(1)),
    name_of(ParamData): lambda: ParamData("", (0,)),
    name_of(bic_model.BiasLayer): lambda: bic_model.BiasLayer([0]),
    name_of(nn.Linear): lambda: nn.Linear(1, 1),
    name_of(IncrementalClassifier): lambda: IncrementalClassifier(1),
    name_of(cosine_layer.CosineLinear): lambda: cosine_layer.CosineLinear(1, 1),
    name_of(cosine_layer.SplitCosineLinear): lambda: cosine_layer.SplitCosineLinear(1, 1, 1),
    name_of(ReadOut): lambda: ReadOut(1),
    name_of(torch.optim.SGD): lambda: torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0),
}
DATASETS: dict[str, Any] = {
    name_of(kind): kind
    for kind in (*vars(classification_dataset).values(), *vars(detection_dataset).values())
    if isinstance(kind, type) and issubclass(kind, AvalancheDataset)
}
NUMPY = {np.dtype(kind).str: np.dtype(kind) for kind in "?bBhHiIlLefdFD"}
DTYPES = {str(kind).removeprefix("torch."): kind for kind in vars(torch).values() if isinstance(kind, torch.dtype)}
DICTS: dict[str, Any] = {kind.__name__: kind for kind in (dict, OrderedDict, defaultdict, Counter)}
FUNCTIONS = _by_name(  # that a new object, or a new dict with a default, may hold
    *(list, dict, set, tuple, int, float, str, bool, Mean, Sum, Accuracy, evaluation._init_metrics_list_lambda),
    *(torch.zeros, torch.ones, torch.empty, torch.rand, torch.randn),
)

# ---- what the user configures

CONFIGURATION = (
    *(types.FunctionType, types.BuiltinFunctionType, types.MethodType, types.MethodWrapperType, types.ModuleType),
    *(functools.partial, type, Path, Dataset, DataLoader, data_loader.MultiDatasetDataLoader, RemovableHandle),
    *(CLExperience, CLScenario, CLStream, BaseLogger, io.IOBase, logging.Logger, weakref.ReferenceType),
    *(threading.Thread, threading.Event, type(threading.Lock()), type(threading.RLock())),
)
CONFIGURED_PACKAGES = ("psutil.", "tqdm.", "wandb.", "tensorboard.", "torch.utils.tensorboard.")


def is_configuration(value: Any) -> bool:
    """Whether a thing is taken from the rebuilt strategy; so is a container that holds such things only."""
    if type(value) in (list, tuple, dict):
        items = list(value.values()) if isinstance(value, dict) else value
        return len(items) > 0 and all(isinstance(item, CONFIGURATION) for item in items)
    is_one = isinstance(value, CONFIGURATION) or f"{type(value).__module__}.".startswith(CONFIGURED_PACKAGES)
    return is_one and not isinstance(value, AvalancheDataset)


def is_kept(value: Any, layers: set[int]) -> bool:
    """Whether a thing is the user's own and in no file, where `layers` are the ids of the parts of models."""
    return is_configuration(value) or (is_users_callable(value) and id(value) not in layers)


def layers_of(module: nn.Module) -> set[int]:
    """Ids of the parts of a model: of a module that has parameters."""
    return {id(part) for part in module.modules()} if next(module.parameters(), None) is not None else set()


def is_users_callable(value: Any) -> bool:
    """Whether a thing is an augmentation, a layer without parameters or the like, of a class of the user's."""
    homes = {cls.__module__.split(".")[0] for cls in type(value).__mro__}
    if not callable(value) or homes & OURS or type(value).__module__.split(".")[0] == "torch":
        return False
    return not isinstance(value, nn.Module) or next(value.parameters(), None) is None


# ---- attributes

# Of a strategy: what belongs to one experience or batch, and is empty between two experiences; its plugins come apart.
PASSING = {
    *("experience", "is_training", "current_eval_stream", "_eval_streams", "adapted_dataset", "dataloader", "mbatch"),
    *("mb_output", "mb_it", "loss", "plugins", "_distributed_check", "_stop_training"),
}
MODULE_STATE = frozenset({"training", "_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"})
HOOKS = frozenset(vars(nn.Module())) - MODULE_STATE  # of a module: functions
# Of an optimiser, what is no state: hooks, flags, and methods that learning-rate schedulers wrap.
OPTIMIZER_OWN = frozenset(vars(torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)))


def state_of(thing: Any) -> dict[str, Any] | None:
    """The attributes of an object that are in a file; None if it keeps its state elsewhere, in C or as a container."""
    if isinstance(thing, (list, dict, set, frozenset, tuple, str, bytes, int, float, deque)):
        return None
    state = {name: getattr(thing, name) for name in slots_of(type(thing)) if hasattr(thing, name)}
    if not state and not hasattr(thing, "__dict__"):
        return None
    getstate: Any = type(thing).__getstate__  # of ours: without what belongs to one experience
    is_ours = str(getattr(getstate, "__module__", "")).startswith("avalanche_contrastive.")
    state |= getstate(thing) if is_ours else getattr(thing, "__dict__", {})
    if isinstance(thing, BaseTemplate):  # its plugins one by one: they must be the same
        plugins = {f"plugins[{index}]": plugin for index, plugin in enumerate(plugins_of(thing))}
        state = {"model": state.pop("model"), **plugins, **state}
    if is_users_callable(thing):  # a layer: others keep whatever they like between two calls
        return {name: value for name, value in state.items() if type(value) in SCALARS or name in MODULE_STATE}
    out = left_out(thing)
    return {name: value for name, value in state.items() if name not in out}


def left_out(thing: Any) -> Collection[str]:
    """Names of attributes of an object that are in no file."""
    kinds = ((BaseTemplate, PASSING), (nn.Module, HOOKS), (torch.optim.Optimizer, OPTIMIZER_OWN))
    return next((names for kind, names in kinds if isinstance(thing, kind)), ())


def slots_of(cls: type) -> set[str]:
    """Names of the attributes that objects of a class have in slots."""
    slots = (vars(each).get("__slots__", ()) for each in cls.__mro__)
    return {n for each in slots for n in ([each] if isinstance(each, str) else each)} - {"__dict__", "__weakref__"}


class Stateless:
    """Marks plugins of which a checkpoint takes no notice."""


def plugins_of(strategy: Any) -> list[Any]:
    """A strategy's plugins, without those for several processes."""
    return [plugin for plugin in strategy.plugins if not isinstance(plugin, (SharesBatches, Stateless))]


def grows(module: nn.Module) -> bool:
    """Whether a module may have changed its shape in training: a head that adapts itself to new classes."""
    own = getattr(type(module), "adaptation", None)
    return own not in (None, dynamic_modules.DynamicModule.adaptation, dynamic_modules.MultiTaskModule.adaptation)


def options_of(thing: Any) -> set[str]:
    """Names of attributes that are arguments of the constructor and must be the same in a file.

    Of classes that are neither Avalanche's nor ours only strings: numbers may be counters, but a string may name a file
    or a command. Modules have none: they are compared by their shapes.
    """
    state = {} if isinstance(thing, nn.Module) else state_of(thing) or {}
    makers = [vars(cls)["__init__"] for cls in type(thing).__mro__ if "__init__" in vars(cls) and cls is not object]
    arguments = {name for make in makers if inspect.isfunction(make) for name in inspect.signature(make).parameters}
    is_ours = type(thing).__module__.split(".")[0] in OURS
    found = {name for name in arguments & state.keys() if is_ours or isinstance(state[name], str)}
    # Some are changed between experiences, by the user or by the methods themselves.
    return found - {"train_epochs", "untrained_solver", "weight_replay_loss", "name_ext_layer"}


CONTAINERS: dict[type, str] = {
    **{list: "list", deque: "deque", tuple: "tuple", torch.Size: "tuple", set: "set", frozenset: "frozenset"},
    **dict.fromkeys(DICTS.values(), "dict"),
}
KINDS: dict[str, Any] = {
    **{"nothing": type(None), "flag": bool, "number": (int, float, np.generic), "text": str},
    **{"tensor": (Tensor, np.ndarray), "samples": AvalancheDataset, "iterator": Iterator},
    **{"choice": (Enum, torch.dtype, torch.device)},
}
FAMILIES = {*CONTAINERS.values(), *KINDS}  # of data


def family(value: Any) -> str:
    """The kind of a thing: what a file has for a place of the strategy must be of the same."""
    found = CONTAINERS.get(type(value)) or next((name for name, kind in KINDS.items() if isinstance(value, kind)), None)
    return found or ("configuration" if is_configuration(value) else name_of(type(value)))
