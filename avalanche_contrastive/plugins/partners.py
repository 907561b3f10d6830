"""What of Avalanche has no meaning beside a method: refused with the reason, before the first step."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

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

__all__ = ["IGNORING_TEMPLATES", "UNFIT", "UNFIT_FOR_CO2L", "check_order", "check_partners"]

# Some call strategy.criterion() in the first experience only, where nothing is replayed yet.
IGNORING_TEMPLATES = (AETraining, DER, ER_ACE, ER_AML, SCR, StreamingLDA, SupervisedMetaLearningTemplate, VAETraining)

_LOSS = "it is a training loss of its own, which this method's objective would replace"
UNFIT: Mapping[type, str] = {
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
UNFIT_FOR_CO2L: Mapping[type, str] = {
    **UNFIT,
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


def check_partners(name: str, unfit: Mapping[type, str], plugins: Iterable[Any]) -> None:
    """Refuse plugins beside a method.

    Raises:
        ValueError: one of ``plugins`` is of a type in ``unfit``.
    """
    for plugin in plugins:
        for kind, reason in unfit.items():
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
