"""Frozen copies of a model: the teachers of the three methods."""

import copy
from typing import Literal

from avalanche.models import FeatureExtractorBackbone, SCRModel, TrainEvalModel
from torch import nn

from avalanche_contrastive._torch import tensors_in, unwrapped

__all__ = ["frozen_copy"]


def frozen_copy(model: nn.Module, *, batchnorm: Literal["eval", "train"] = "eval") -> nn.Module:
    """A teacher: a deep copy in evaluation mode, without gradients.

    Avalanche's models with a classifier for training and another for evaluation keep the one for training: a teacher
    is asked for what the student gives in training.

    Args:
        model: any module.
        batchnorm: "train" lets batch-norm layers normalise by the batch, as the teachers of the official Co2L and
            CSD code do.
    """
    model = unwrapped(model)
    # Tensors inside a graph cannot be copied; some models keep their last features (FeatureExtractorModel).
    kept = [value for module in model.modules() for value in tensors_in(vars(module))]
    memo = {id(value): value.detach() for value in kept if not value.is_leaf}
    teacher = copy.deepcopy(model, memo).requires_grad_(False).eval()
    for parameter in teacher.parameters():
        parameter.grad = None
    _own_hooks(teacher)
    for module in teacher.modules():
        if isinstance(module, (TrainEvalModel, SCRModel)):
            module.training = True  # chooses the classifier; every layer inside stays in evaluation mode
    if batchnorm == "train":
        for module in teacher.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.train()
                module.track_running_stats = False  # nothing of a teacher moves
    return teacher


def _own_hooks(teacher: nn.Module) -> None:
    """Let the backbones in a copied model listen to it, and no others.

    Their hooks are closures, which a deep copy leaves with the original; herding hooks a model from outside.
    """
    for module in teacher.modules():
        for key, hook in list(module._forward_hooks.items()):
            if getattr(hook, "__qualname__", "").startswith("FeatureExtractorBackbone."):
                del module._forward_hooks[key]
    for module in teacher.modules():
        if isinstance(module, FeatureExtractorBackbone):
            module.add_hooks(module.model)
