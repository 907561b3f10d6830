"""What hooks note of a forward pass, and which of the layers has made its output."""

import difflib
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from avalanche.models import IncrementalClassifier, MultiHeadClassifier, NCMClassifier
from avalanche.models.cosine_layer import CosineIncrementalClassifier, CosineLinear
from avalanche.models.fecam import FeCAMClassifier
from torch import Tensor, nn

from avalanche_contrastive._torch import tensors_in
from avalanche_contrastive.models import SimplexClassifier
from avalanche_contrastive.readout import ReadOut

__all__ = ["NAME_IT", "Places", "Record", "classifiers_of", "in_order", "layer_of", "maker_of", "makers"]

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
NAME_IT = "Name the layer whose output is the feature (feature_layer= of CSD, layer= of the metrics)."


class Call(NamedTuple):
    """One call of a layer that is listened to."""

    layer: nn.Module
    taken: Any  # the input of a classifier layer, or the output of the layer that the user has named
    output: Any


class Pass(NamedTuple):
    """What is noted of one forward pass of the model."""

    calls: list[Call]
    tasks: Any  # the task labels that a multi-task model was called with
    result: Any


class Record:
    """What the hooks note, pass by pass.

    The hooks are its methods and not closures: a plugin may copy the model while the hooks are on it, and the hooks of
    a deep copy must not write into the record of the original.
    """

    def __init__(self) -> None:
        self.calls: list[Call] = []  # of the pass that runs
        self.tasks: Any = None
        self.passes: list[Pass] = []

    def __deepcopy__(self, memo: dict[int, Any]) -> "Record":
        return Record()

    def begin(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before a multi-task model's pass: note the task labels."""
        self.tasks = args[1] if len(args) > 1 else kwargs.get("task_labels")

    def note_classifier(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Note what entered a classifier layer. Outputs that are not (B, K) are hidden layers, which may be large."""
        if isinstance(layer, _HEADS) or output.ndim == 2:
            self.calls.append(Call(layer, args[0] if args else next(iter(kwargs.values())), output))

    def note_layer(self, layer: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Note what left the named layer."""
        self.calls.append(Call(layer, output, output))

    def end(self, model: nn.Module, args: tuple[Any, ...], result: Any) -> None:
        """After the model's pass."""
        self.passes.append(Pass(self.calls, self.tasks, result))
        self.calls, self.tasks = [], None

    def pass_of(self, output: Any) -> Pass:
        """The pass whose result an output is, or is a part of; the last one if that is none of them."""
        if not self.passes:  # a part of the model has been called, not the whole
            return Pass(self.calls, self.tasks, output)
        if self.passes[-1].result is output:
            return self.passes[-1]
        for noted in self.passes:
            if any(_same_memory(part, output) for part in tensors_in(noted.result)):
                return noted
        return self.passes[-1]


@dataclass
class Places:
    """Where a capture listens in a model.

    Args:
        model: without wrappers.
        names: of the layers.
        multi_task: whether it is one of Avalanche's multi-task models.
        compiled: whether a call of it runs compiled code.
        maker: the one of the layers that has made the output of the model's last call, where that is known.
    """

    model: nn.Module
    names: dict[nn.Module, str]
    multi_task: bool
    compiled: bool
    maker: nn.Module | None = None


def layer_of(model: nn.Module, name: str) -> nn.Module:
    named: dict[str, nn.Module] = dict(model.named_modules())
    if name not in named:
        near = difflib.get_close_matches(name, named, n=1) or list(named)[-3:]
        raise ValueError(
            f"feature layer {name!r} is not in {type(model).__name__}; did you mean {near[0]!r}? "
            "Names are those of model.named_modules()."
        )
    return named[name]


def classifiers_of(model: nn.Module) -> dict[str, nn.Module]:
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


def maker_of(calls: list[Call], output: Any) -> Call | None:
    """The one call whose output is the model's, as it is; None where there is none, or more."""
    made = [call for call in calls if call.output is output]
    return made[0] if len(made) == 1 else None


def makers(noted: Pass, output: Any, places: Places | None) -> list[Call]:
    """The calls of the classifier layer that made the logits, of one or, in a multi-task model, of several heads.

    Args:
        noted: the pass.
        output: the logits, or what they are part of.
        places: of the model; in a multi-task one the logits may be put together from those of several heads.
    """
    calls: list[Call] = []
    multi_task, names = (False, {}) if places is None else (places.multi_task, places.names)
    for result in (output, noted.result):  # the strategy may have taken one tensor out of what the model returns
        parts = tensors_in(result)
        for related in (_same_memory,) if multi_task else (_same_memory, _ranks_alike):
            calls = calls or [c for c in noted.calls if any(related(x, y) for x in tensors_in(c.output) for y in parts)]
    if multi_task:
        return calls or [call for call in noted.calls if isinstance(call.layer, _HEADS)] or noted.calls[-1:]
    if any(call.taken is not calls[0].taken for call in calls) and len({call.layer for call in calls}) > 1:
        able = sorted({names[call.layer] for call in calls})
        raise ValueError(
            f"the logits may be made by any of the classifier layers {able}, so it is not clear whose input is the "
            f"feature. {NAME_IT}"
        )
    if noted.calls and not calls:
        ran = ", ".join(dict.fromkeys(f"{names[c.layer]!r} ({c.output.shape[-1]} outputs)" for c in noted.calls))
        widths = ", ".join(str(part.shape[-1]) for part in tensors_in(noted.result) if part.ndim > 0)
        raise ValueError(
            f"none of the classifier layers that ran, {ran}, has made the {widths} outputs of the model: its own last "
            "layer is neither nn.Linear nor a head of Avalanche's, or it changes what that gives, or mixes several. "
            + NAME_IT
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


def in_order(parts: list[Tensor], tasks: Any) -> Tensor:
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
