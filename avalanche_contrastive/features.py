"""The capture of features from any model, through hooks that live for one forward pass."""

import difflib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from avalanche.models import IncrementalClassifier, MultiHeadClassifier, NCMClassifier
from avalanche.models.cosine_layer import CosineIncrementalClassifier, CosineLinear
from avalanche.models.fecam import FeCAMClassifier
from avalanche.models.utils import is_multi_task_module
from torch import Tensor, nn

from avalanche_contrastive._torch import compiled, unwrapped
from avalanche_contrastive.readout import ReadOut

__all__ = ["FeatureCapture"]

_CLASSIFIERS = (
    nn.Linear,
    IncrementalClassifier,
    MultiHeadClassifier,
    NCMClassifier,
    FeCAMClassifier,
    CosineIncrementalClassifier,
    CosineLinear,
    ReadOut,
)


@dataclass
class _Pass:
    """What is noted of one forward pass."""

    value: Any = None
    output: Any = None
    tasks: Any = None  # the task labels that a multi-task model was called with
    parts: list[Any] = field(default_factory=list)  # what a multi-task model's heads, or its named layer, got in turn


class _Tap:
    """A forward hook with a memory. An object, not a closure: a deep copy of a hooked model gets a tap of its own."""

    def __init__(self, *, multi_task: bool = False) -> None:
        self.multi_task = multi_task
        self.now = _Pass()
        self.passes: list[tuple[Any, _Pass]] = []  # what the model gave, in each pass that has ended

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Tap":
        return _Tap()

    def read_tasks(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.now.tasks = args[1] if len(args) > 1 else kwargs.get("task_labels")

    def read_input(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.now.value = args[0] if args else next(iter(kwargs.values()))
        if self.multi_task and not isinstance(module, nn.Linear):  # a head: no other layer's input is held
            self.now.parts.append(self.now.value)

    def read_output(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self.now.value = output
        if self.multi_task:
            self.now.parts.append(output)

    def read_head(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self.now.output = output

    def end_pass(self, module: nn.Module, args: tuple[Any, ...], result: Any) -> None:
        self.passes.append((result, self.now))
        self.now = _Pass()

    def of(self, result: Any) -> _Pass:
        """The pass that gave a result; the last one if none is known to have."""
        last = self.passes[-1][1] if self.passes else self.now
        return next((noted for given, noted in self.passes if given is result), last)


class _AsWritten:
    """A forward hook that has compiled models run as they were written until the pass ends, well or badly.

    Compiled code has the hooks of the call that it was compiled for; torch does not look whether others came since.
    """

    def __init__(self) -> None:
        self._stance: Any = torch.compiler.set_stance("force_eager")

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self.end()

    def end(self) -> None:
        """Let compiled code run again, as far as it did before."""
        if self._stance is not None:
            self._stance.__exit__(None, None, None)
        self._stance = None


class FeatureCapture:
    """Features of any model: what enters the last classifier layer to run, or what leaves a layer named by the user.

    Classifier layers are ``nn.Linear`` and Avalanche's heads. The hooks live from ``attach`` to ``take``, around one
    forward pass: a copy of the model made at any other time carries none. That pass of a compiled model is not
    compiled.

    Args:
        layer: name of a layer as in ``model.named_modules()``, whose *output* is taken; None: the *input* of the last
            classifier layer.
    """

    def __init__(self, layer: str | None = None) -> None:
        if layer is not None and not isinstance(layer, str):
            raise TypeError(f"a feature layer is given by its name (a string), got {type(layer).__name__}.")
        self.layer = layer
        self._tap = _Tap()
        self._handles: list[Any] = []
        self._as_written: _AsWritten | None = None

    def attach(self, model: nn.Module) -> None:
        """Listen to the next forward pass of the model."""
        self.detach()
        plain = unwrapped(model)
        self._tap = _Tap(multi_task=is_multi_task_module(plain))
        if self._tap.multi_task:
            self._handles.append(plain.register_forward_pre_hook(self._tap.read_tasks, with_kwargs=True))
        self._listen(plain)
        if compiled(model):
            self._as_written = _AsWritten()
            self._handles.append(model.register_forward_hook(self._as_written, always_call=True))

    def _listen(self, model: nn.Module) -> None:
        if self.layer is not None:
            named = dict(model.named_modules())
            if self.layer not in named:
                near = difflib.get_close_matches(self.layer, named, n=1) or list(named)[-3:]
                raise ValueError(
                    f"feature layer {self.layer!r} is not in {type(model).__name__}; did you mean {near[0]!r}? "
                    "Names are those of model.named_modules()."
                )
            self._handles.append(named[self.layer].register_forward_hook(self._tap.read_output))
        else:
            classifiers = list(_classifiers(model))
            for module in classifiers:
                self._handles.append(module.register_forward_pre_hook(self._tap.read_input, with_kwargs=True))
                self._handles.append(module.register_forward_hook(self._tap.read_head))
        if self.layer is None and not classifiers:
            self.detach()
            raise ValueError(
                f"{type(model).__name__} has no classifier layer (nn.Linear or one of Avalanche's heads) to take "
                "features from. Name the layer that gives the features instead."
            )
        self._handles.append(model.register_forward_hook(self._tap.end_pass))

    def take(self, logits: Any) -> Tensor:
        """The features of the pass since ``attach``, (B, D); the hooks are gone afterwards.

        Args:
            logits: what the model gave, (B, K): of several passes since then, that one counts. A classifier layer of
                another width was not its last.
        """
        multi_task, noted = self._tap.multi_task, self._tap.of(logits)
        self.detach()
        value, head = noted.value, noted.output
        if len(noted.parts) > 1 and value is noted.parts[-1] and isinstance(value, Tensor):
            value = _in_order(noted.parts, noted.tasks)
        # A multi-task model's output is as wide as its widest head.
        tensors = isinstance(head, Tensor) and isinstance(logits, Tensor) and not multi_task
        if self.layer is None and tensors and head.shape[-1] != logits.shape[-1]:
            raise ValueError(
                f"the last classifier layer that ran gives {head.shape[-1]} outputs, but the model gives "
                f"{logits.shape[-1]}: what the model ends in is no nn.Linear nor a head of Avalanche's. Name the "
                "layer whose output is the feature (feature_layer= of CSD, layer= of retrieval_metrics)."
            )
        if not isinstance(value, Tensor):
            where = "the last classifier layer" if self.layer is None else f"layer {self.layer!r}"
            came = "nothing" if value is None else type(value).__name__
            raise ValueError(
                f"features of {where} must be a tensor, got {came}. Did the model's forward pass skip that layer?"
            )
        return value.flatten(1)

    def detach(self) -> None:
        """Remove the hooks; harmless when there are none."""
        if self._as_written is not None:
            self._as_written.end()
        for handle in self._handles:
            handle.remove()
        self._handles, self._as_written = [], None
        self._tap = _Tap()

    @contextmanager
    def listening(self, model: nn.Module) -> Iterator[None]:
        """Attach for one forward pass and be gone if it fails; ``take`` afterwards."""
        self.attach(model)
        try:
            yield
        except BaseException:
            self.detach()
            raise


def _in_order(parts: list[Tensor], tasks: Any) -> Tensor:
    """The features of a batch that a multi-task model has split between its heads, in the batch's order.

    Args:
        parts: the heads' inputs, call by call.
        tasks: task labels (B,) that the model was called with: it ran the rows of each label in turn, smallest first.
            None or a number: it ran every head on all rows.
    """
    if not isinstance(tasks, Tensor):
        if any(part.shape != parts[0].shape or not torch.allclose(part, parts[0], rtol=1e-3) for part in parts):
            raise ValueError(
                "the features that enter the model's heads differ from head to head, so an image has no features of "
                "its own. Does the model have a network for each task? Use one that shares its features."
            )
        return parts[0]
    labels, counts = tasks.unique(return_counts=True)
    if [len(part) for part in parts] != counts.tolist():
        return parts[-1]
    features = parts[0].new_empty((len(tasks), *parts[0].shape[1:]))
    for label, part in zip(labels, parts, strict=True):
        features[tasks == label] = part
    return features


def _classifiers(module: nn.Module) -> Iterator[nn.Module]:
    """Classifier layers from the outside in: the layers inside a head are not layers of their own."""
    if isinstance(module, _CLASSIFIERS):
        yield module
    else:
        for child in module.children():
            yield from _classifiers(child)
