"""Taking features from inside any model, through hooks that live for one forward pass."""

import difflib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from avalanche.models import IncrementalClassifier, MultiHeadClassifier, NCMClassifier, avalanche_forward
from avalanche.models.cosine_layer import CosineIncrementalClassifier, CosineLinear
from avalanche.models.fecam import FeCAMClassifier
from avalanche.models.utils import is_multi_task_module
from torch import Tensor, nn

from avalanche_contrastive._torch import compiled, tensors_in, unwrapped
from avalanche_contrastive.models import SimplexClassifier
from avalanche_contrastive.readout import ReadOut

__all__ = ["FeatureCapture", "own_forward", "strategy_features"]

_HEADS = (
    IncrementalClassifier,
    MultiHeadClassifier,
    NCMClassifier,
    FeCAMClassifier,
    CosineIncrementalClassifier,
    CosineLinear,
    ReadOut,
    SimplexClassifier,
)
_NAME_IT = "Name the layer whose output is the feature (feature_layer= of CSD, layer= of the metrics)."


@dataclass
class _Call:
    """One call of a layer that is listened to."""

    layer: str
    is_head: bool
    taken: Any  # the input of a classifier layer, or the output of the layer that the user has named
    output: Any


@dataclass
class _Pass:
    """What is noted of one forward pass of the model."""

    calls: list[_Call] = field(default_factory=list)
    tasks: Any = None  # the task labels that a multi-task model was called with
    result: Any = None


@dataclass(eq=False)
class _Record:
    """What the hooks note, pass by pass.

    The hooks are its methods and not closures: a plugin may copy the model while the hooks are on it, and the hooks of
    a deep copy must not write into the record of the original.
    """

    names: dict[nn.Module, str]
    now: _Pass = field(default_factory=_Pass)
    passes: list[_Pass] = field(default_factory=list)

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Record":
        return _Record({})

    def begin(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before a multi-task model's pass: note the task labels."""
        self.now.tasks = args[1] if len(args) > 1 else kwargs.get("task_labels")

    def note_classifier(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Note what entered a classifier layer. Outputs that are not (B, K) are hidden layers, which may be large."""
        is_head = isinstance(layer, _HEADS)
        if is_head or output.ndim == 2:
            given = args[0] if args else next(iter(kwargs.values()))
            self.now.calls.append(_Call(self.names.get(layer, ""), is_head, given, output))

    def note_layer(self, layer: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Note what left the named layer."""
        self.now.calls.append(_Call(self.names.get(layer, ""), False, output, output))

    def end(self, model: nn.Module, args: tuple[Any, ...], result: Any) -> None:
        """After the model's pass."""
        self.now.result = result
        self.passes.append(self.now)
        self.now = _Pass()

    def pass_of(self, output: Any) -> _Pass:
        """The pass whose result an output is, or is a part of; the last one if that is none of them."""
        if not self.passes:  # there was one, and nobody has noted its end
            self.now.result = output
            return self.now
        if self.passes[-1].result is output:
            return self.passes[-1]
        for noted in self.passes:
            if any(_same_memory(part, output) for part in tensors_in(noted.result)):
                return noted
        return self.passes[-1]


class Places(NamedTuple):
    """Where a capture listens in a model.

    Args:
        model: without wrappers.
        names: of the layers.
        multi_task: whether it is one of Avalanche's multi-task models.
        compiled: whether a call of it runs compiled code.
    """

    model: nn.Module
    names: dict[nn.Module, str]
    multi_task: bool
    compiled: bool


class FeatureCapture:
    """Features of any model: what enters the classifier layer that makes its logits, or what leaves a named layer.

    Classifier layers are ``nn.Linear`` and heads: Avalanche's, and ``SimplexClassifier``. The one whose output is
    returned is taken, whichever runs last; where none is, the one whose output ranks the classes of each image in the
    same way (the model may scale it, or take its softmax). The hooks live from ``attach`` to ``take``, around one
    forward pass: a copy of the model made at any other time carries none. In that pass no compiled code is run.

    Args:
        layer: name of a layer as in ``model.named_modules()``, whose *output* is taken; None: the *input* of the
            classifier layer.
    """

    def __init__(self, layer: str | None = None) -> None:
        if layer is not None and not isinstance(layer, str):
            raise TypeError(f"a feature layer is given by its name (a string), got {type(layer).__name__}.")
        self.layer = layer
        self._record: _Record | None = None
        self._multi_task = False
        self._hooks: list[Any] = []
        self._eager: ExitStack | None = None

    def places_in(self, model: nn.Module) -> Places:
        """Where to listen in a model: a walk through all its layers, which a loop need not make at each step.

        Raises:
            ValueError: no layer of that name, or no classifier layer.
        """
        plain = unwrapped(model)
        layers = _classifiers(plain) if self.layer is None else {self.layer: _layer(plain, self.layer)}
        names = {layer: name for name, layer in layers.items()}
        return Places(plain, names, is_multi_task_module(plain), compiled(model))

    def attach(self, model: nn.Module, places: Places | None = None, *, called_once: bool = False) -> None:
        """Listen to the next forward pass of the model.

        Args:
            model: any.
            places: ``places_in(model)``, where that is known; None: it is asked.
            called_once: whether the model will be called once, and ``take`` be given what it returns.

        Raises:
            ValueError: as ``places_in``.
        """
        if self._hooks:
            self.detach()
        plain, names, self._multi_task, is_compiled = places or self.places_in(model)
        self._record = record = _Record(names)
        for layer in names:
            if self.layer is None:
                self._hooks.append(layer.register_forward_hook(record.note_classifier, with_kwargs=True))
            else:
                self._hooks.append(layer.register_forward_hook(record.note_layer))
        if self._multi_task:
            self._hooks.append(plain.register_forward_pre_hook(record.begin, with_kwargs=True))
        if not called_once:
            self._hooks.append(plain.register_forward_hook(record.end))
        if is_compiled:
            # Compiled code runs the hooks that were there when it was compiled, and torch does not look for new ones.
            # So the model runs uncompiled until this pass ends or fails.
            self._eager = eager = ExitStack()
            eager.enter_context(torch.compiler.set_stance("force_eager"))
            self._hooks.append(model.register_forward_hook(lambda *_: eager.close(), always_call=True))

    def take(self, output: Any, *, flat: bool = True) -> Tensor:
        """The features of the pass since ``attach``, (B, D); the hooks are gone afterwards.

        Args:
            output: what the model gave, or the logits (B, K) out of it: of several passes since then, that one counts.
            flat: with False the features keep their shape (B, ...), such as an axis of views.

        Raises:
            ValueError: no layer, or more than one, can be what has made the logits; or the named layer did not run.
        """
        record, self._record = self._record or _Record({}), None
        self.detach()
        noted = record.pass_of(output)
        calls = noted.calls
        if self.layer is None:
            direct = [call for call in calls if call.output is output]
            calls = direct if len(direct) == 1 else _makers(noted, output, self._multi_task)
        value = calls[-1].taken if calls else None
        if self._multi_task and len(calls) > 1:
            value = _in_order([call.taken for call in calls], noted.tasks)
        if not isinstance(value, Tensor):
            where = "the last classifier layer" if self.layer is None else f"layer {self.layer!r}"
            given = "nothing" if value is None else type(value).__name__
            raise ValueError(
                f"features of {where} must be a tensor, got {given}. Did the model's forward pass skip that layer? "
                + _NAME_IT
            )
        return value.flatten(1) if flat else value

    def detach(self) -> None:
        """Remove the hooks; harmless when there are none."""
        if self._eager is not None:
            self._eager.close()
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._record, self._eager = [], None, None

    @contextmanager
    def listening(self, model: nn.Module) -> Iterator[None]:
        """Attach for one forward pass and be gone if it fails; ``take`` afterwards."""
        self.attach(model)
        try:
            yield
        except BaseException:
            self.detach()
            raise


def own_forward(strategy: Any, model: nn.Module, batch: Any = None) -> tuple[Any, Tensor]:
    """What a model gives in the strategy's own forward pass of evaluation, and the labels (B,) of the batch.

    The strategy's ``_unpack_minibatch`` and ``forward`` are called, which users override for inputs and outputs of
    their own. For that time it has this model and batch; its own are put back.

    Args:
        strategy: any of Avalanche's templates.
        model: the strategy's, or another to be asked in the same way.
        batch: as a loader gives it; None: the strategy's current one.
    """
    kept = strategy.model, strategy.mbatch, strategy.is_training
    strategy.model, strategy.is_training = model, False
    try:
        if batch is not None:
            strategy.mbatch = batch
            strategy._unpack_minibatch()
        has_tasks, wants_tasks = len(strategy.mbatch) > 2, hasattr(strategy.experience, "task_labels")
        if is_multi_task_module(model) and not (has_tasks and wants_tasks):
            # Avalanche's forward pass would not know the heads: without task labels all of them are asked.
            output = avalanche_forward(model, strategy.mb_x, strategy.mb_task_id if has_tasks else None)
        else:
            if wants_tasks and not has_tasks:  # of a data set beside the stream; a single head takes any label
                strategy.mbatch = [*strategy.mbatch, torch.zeros_like(strategy.mb_y)]
            output = strategy.forward()
        return output, strategy.mb_y
    finally:
        strategy.model, strategy.mbatch, strategy.is_training = kept


def strategy_features(
    strategy: Any, model: nn.Module, layer: str | None = None, *, flat: bool = True
) -> Callable[[Any], tuple[Tensor, Tensor]]:
    """For ``embed_dataset``: features and labels of a batch, from the strategy's own forward pass of a model.

    Args:
        strategy: any of Avalanche's templates.
        model: the strategy's, or another.
        layer: see ``FeatureCapture``.
        flat: see ``FeatureCapture.take``.
    """
    capture = FeatureCapture(layer)

    def features_of(batch: Any) -> tuple[Tensor, Tensor]:
        with capture.listening(model):
            output, y = own_forward(strategy, model, batch)
        return capture.take(output, flat=flat), y

    return features_of


def _layer(model: nn.Module, name: str) -> nn.Module:
    named: dict[str, nn.Module] = dict(model.named_modules())
    if name not in named:
        near = difflib.get_close_matches(name, named, n=1) or list(named)[-3:]
        raise ValueError(
            f"feature layer {name!r} is not in {type(model).__name__}; did you mean {near[0]!r}? "
            "Names are those of model.named_modules()."
        )
    return named[name]


def _classifiers(model: nn.Module) -> dict[str, nn.Module]:
    """Classifier layers by name, from the outside in: the layers inside a head are not layers of their own."""
    found: dict[str, nn.Module] = {}

    def search(name: str, module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, *_HEADS)):
            found[name] = module
        else:
            for child_name, child in module.named_children():
                search(f"{name}.{child_name}" if name else child_name, child)

    search("", model)
    if not found:
        raise ValueError(
            f"{type(model).__name__} has no classifier layer (nn.Linear or one of Avalanche's heads) to take "
            "features from. Name the layer that gives the features instead."
        )
    return found


def _makers(noted: _Pass, output: Any, multi_task: bool) -> list[_Call]:
    """The calls of the classifier layer that made the logits, of one or, in a multi-task model, of several heads.

    Args:
        noted: the pass.
        output: the logits, or what they are part of.
        multi_task: whether the logits may be put together from those of several heads.
    """
    calls: list[_Call] = []
    for result in (output, noted.result):  # the strategy may have taken one tensor out of what the model returns
        parts = tensors_in(result)
        for related in (_same_memory,) if multi_task else (_same_memory, _ranks_alike):
            calls = calls or [c for c in noted.calls if any(related(x, y) for x in tensors_in(c.output) for y in parts)]
    if multi_task:
        return calls or [call for call in noted.calls if call.is_head] or noted.calls[-1:]
    if any(call.taken is not calls[0].taken for call in calls) and len({call.layer for call in calls}) > 1:
        names = sorted({call.layer for call in calls})
        raise ValueError(
            f"the logits may be made by any of the classifier layers {names}, so it is not clear whose input is the "
            f"feature. {_NAME_IT}"
        )
    if noted.calls and not calls:
        ran = ", ".join(dict.fromkeys(f"{call.layer!r} ({call.output.shape[-1]} outputs)" for call in noted.calls))
        widths = ", ".join(str(part.shape[-1]) for part in tensors_in(noted.result) if part.ndim > 0)
        raise ValueError(
            f"none of the classifier layers that ran, {ran}, has made the {widths} outputs of the model: its own last "
            "layer is neither nn.Linear nor a head of Avalanche's, or it changes what that gives, or mixes several. "
            + _NAME_IT
        )
    return calls


def _same_memory(a: Any, b: Any) -> bool:
    """Whether two are one tensor, or views of one."""
    if not isinstance(a, Tensor) or not isinstance(b, Tensor) or a.numel() == 0:
        return a is b
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()


@torch.no_grad()
def _ranks_alike(a: Tensor, logits: Tensor) -> bool:
    """Whether logits (B, K) rank the classes of each image as ``a`` does: so does a scaled copy, or a softmax of it."""
    if a.shape != logits.shape or a.ndim != 2:
        return False
    ranked = logits.gather(1, a.argsort(dim=1))
    slack = 1e-3 * (ranked.amax(dim=1) - ranked.amin(dim=1))
    return not bool((ranked.diff(dim=1) < -slack[:, None]).any())  # nan is the guards' to name


def _in_order(parts: list[Tensor], tasks: Any) -> Tensor:
    """The features of a batch that a multi-task model has split between its heads, in the batch's order.

    Args:
        parts: what the heads were given, call by call.
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
