"""What a method cannot train with: plugins, templates, models and optimisers that are refused before the first step."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from avalanche.models.dynamic_modules import DynamicModule
from avalanche.models.packnet import PackNetPlugin
from avalanche.training.losses import ICaRLLossPlugin
from avalanche.training.plugins import (
    AGEMPlugin,
    BiCPlugin,
    CoPEPlugin,
    CurrentDataFeCAMUpdate,
    CurrentDataNCMUpdate,
    CWRStarPlugin,
    FeatureDistillationPlugin,
    FeCAMOracle,
    GDumbPlugin,
    GEMPlugin,
    GSS_greedyPlugin,
    LFLPlugin,
    LwFPlugin,
    MASPlugin,
    MemoryFeCAMUpdate,
    MemoryNCMUpdate,
    MIRPlugin,
    NCMOracle,
    RARPlugin,
    RWalkPlugin,
)
from avalanche.training.supervised import DER, ER_ACE, ER_AML, SCR, AETraining, StreamingLDA, VAETraining
from avalanche.training.templates import SupervisedMetaLearningTemplate
from torch import nn

from avalanche_contrastive._checks import check_count
from avalanche_contrastive.teacher import frozen_copy

__all__ = [
    "OWN_LOSS_TEMPLATES",
    "REFUSED",
    "REFUSED_BY_CO2L",
    "check_copy",
    "check_optimizer",
    "check_order",
    "check_partners",
    "check_strategy",
]

# Some call strategy.criterion() in the first experience only, where nothing is replayed yet.
OWN_LOSS_TEMPLATES = (AETraining, DER, ER_ACE, ER_AML, SCR, StreamingLDA, SupervisedMetaLearningTemplate, VAETraining)

_LOSS = "it is a training loss of its own, which this method's objective would replace"
REFUSED: Mapping[type, str] = {
    CoPEPlugin: _LOSS,
    ICaRLLossPlugin: _LOSS,
    PackNetPlugin: "its model runs the weights of one task at a time, so that a teacher cannot say what all earlier "
    "tasks make of a batch",
}

# In training a ContrastiveModel gives projections; in evaluation the logits of a read-out, which knows the classes of
# the current experience only once that has ended.
_OUTPUTS = "it takes training outputs for class logits, but they are projections"
_READOUT = "it needs the loss of class logits within an experience, when the read-out does not know the new classes yet"
_MEANS = "it sets the class means of model.eval_classifier, but a ContrastiveModel has a read-out of its own"
REFUSED_BY_CO2L: Mapping[type, str] = {
    **REFUSED,
    LwFPlugin: _OUTPUTS,
    BiCPlugin: _OUTPUTS,
    AGEMPlugin: _OUTPUTS,
    GEMPlugin: _OUTPUTS,
    MIRPlugin: _OUTPUTS,
    RARPlugin: _OUTPUTS,
    GSS_greedyPlugin: _READOUT,
    RWalkPlugin: _READOUT,
    MASPlugin: "it weighs parameters by the length of training outputs, which is 1 for projections: all weights are 0",
    LFLPlugin: "it trains with the model in evaluation mode, in which a ContrastiveModel gives no projections",
    CWRStarPlugin: "it treats rows of the last linear layer as classes, but that layer is the projector's",
    FeatureDistillationPlugin: "it reads model.features, which a ContrastiveModel does not have",
    **dict.fromkeys((CurrentDataNCMUpdate, MemoryNCMUpdate, NCMOracle), f"{_MEANS} (readout='ncm')"),
    **dict.fromkeys((CurrentDataFeCAMUpdate, MemoryFeCAMUpdate, FeCAMOracle), _MEANS),
}


def check_partners(name: str, refused: Mapping[type, str], plugins: Iterable[Any]) -> None:
    """Refuse plugins beside a method.

    Raises:
        ValueError: one of ``plugins`` is of a type in ``refused``.
    """
    for plugin in plugins:
        for kind, reason in refused.items():
            if isinstance(plugin, kind):
                raise ValueError(f"{name}: {type(plugin).__name__} has no meaning beside this method: {reason}.")


def check_order(name: str, plugin: Any, plugins: Sequence[Any]) -> None:
    """Refuse a plugin that throws away the memory which ``plugin``, before it in the list, has mixed into the dataset.

    Raises:
        ValueError: GDumb stands behind.
    """
    behind = plugins[plugins.index(plugin) + 1 :]
    for other in behind:
        if isinstance(other, GDumbPlugin):
            raise ValueError(
                f"{name}: {type(other).__name__} puts its memory in the place of the dataset, into which this method "
                f"has mixed its own by then. Put it before {name} in the list of plugins (of Naive; the strategy GDumb "
                "puts its plugin last), or give batch_size_mem= to replay rows in each step instead."
            )


def check_optimizer(name: str, strategy: Any) -> None:
    """Refuse an optimiser with which this model cannot learn, or not what was meant.

    Raises:
        ValueError: it holds no parameter of the model, or has a learning rate that is not a finite number; or no
            parameter wants a gradient.
    """
    groups, model = strategy.optimizer.param_groups, strategy.model
    if wrong := [group["lr"] for group in groups if not 0 <= float(group["lr"]) < math.inf]:
        raise ValueError(f"{name}: the optimiser's learning rate must be a finite number >= 0, got {float(wrong[0])}.")
    parameters = list(model.parameters())
    if parameters and not any(parameter.requires_grad for parameter in parameters):
        raise ValueError(
            f"{name}: none of the {len(parameters)} parameters of {type(model).__name__} wants a gradient, so nothing "
            "would be learned. Is it frozen (requires_grad_(False)), or a teacher?"
        )
    # Avalanche would add the model's to a foreign optimiser without a word. Heads that grow may have new ones by now.
    held = {id(parameter) for group in groups for parameter in group["params"]}
    growing = {id(p) for m in model.modules() if isinstance(m, DynamicModule) for p in m.parameters()}
    fixed = [parameter for parameter in parameters if id(parameter) not in growing]
    if fixed and not any(id(parameter) in held for parameter in fixed):
        raise ValueError(
            f"{name}: the optimiser holds none of the {len(fixed)} parameters of this {type(model).__name__}. Was it "
            "made for another model, or for a copy? Make it of model.parameters()."
        )


def check_strategy(
    name: str,
    *,
    model: Any,
    optimizer: Any,
    train_mb_size: int,
    train_epochs: int,
    eval_mb_size: int | None,
    criterion: Any,
    plugins: Any,
    **others: Any,
) -> None:
    """Refuse what Avalanche takes, and only fails at later or trains nothing with.

    Raises:
        TypeError: no model, optimiser, criterion or list of plugins.
        ValueError: no samples per step, or no epochs.
    """
    if not isinstance(model, nn.Module):
        given = getattr(model, "__name__", type(model).__name__)
        raise TypeError(f"{name}: model must be a torch module, got {given}.")
    if not isinstance(optimizer, torch.optim.Optimizer):
        given = getattr(optimizer, "__name__", type(optimizer).__name__)
        raise TypeError(f"{name}: optimizer must be a torch optimiser of the model's parameters, got {given}.")
    check_count(name, 1, train_mb_size=train_mb_size, train_epochs=train_epochs)
    if eval_mb_size is not None:
        check_count(name, 1, eval_mb_size=eval_mb_size)
    if not callable(criterion):
        raise TypeError(f"{name}: criterion must be callable, got {type(criterion).__name__}.")
    if plugins is not None:
        _check_plugins(name, plugins)


def _check_plugins(name: str, plugins: Any) -> None:
    if not isinstance(plugins, Sequence):
        raise TypeError(f"{name}: plugins must be a list of plugins, got {type(plugins).__name__}.")
    for number, plugin in enumerate(plugins):
        if plugin is None or isinstance(plugin, type):
            given = "None" if plugin is None else f"the class {plugin.__name__} itself: make one of it"
            raise TypeError(f"{name}: plugins[{number}] must be a plugin, got {given}.")


def check_copy(name: str, model: nn.Module) -> None:
    """Refuse a model that cannot be copied, before an experience is trained on and then lost.

    Raises:
        ValueError: the copy fails.
    """
    try:
        frozen_copy(model)
    except Exception as error:
        raise ValueError(
            f"{name} keeps a copy of the model after each experience, its teacher, but this {type(model).__name__} "
            f"cannot be copied ({type(error).__name__}: {error}). Does it hold a writer, a lock or an open file? Keep "
            "that outside the model."
        ) from error
