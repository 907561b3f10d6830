"""Ready strategies: Avalanche's supervised template with the method's plugin in place."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from avalanche.core import BasePlugin
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.plugins.evaluation import default_evaluator
from avalanche.training.templates import SupervisedTemplate
from torch import nn

from avalanche_contrastive.plugins import Co2LPlugin, CSDPlugin, MethodPlugin, SSILPlugin

__all__ = ["CSD", "SSIL", "Co2L"]


class _MethodStrategy(SupervisedTemplate):
    """Avalanche's supervised template and one method's plugin: the same training as the plugin under ``Naive``."""

    plugin_class: ClassVar[type[MethodPlugin]]

    def __init__(
        self,
        *,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        criterion: Any = None,
        train_mb_size: int = 1,
        train_epochs: int = 1,
        eval_mb_size: int | None = 1,
        device: str | torch.device = "cpu",
        plugins: Sequence[BasePlugin[Any]] | None = None,
        evaluator: EvaluationPlugin | Callable[[], EvaluationPlugin] | None = default_evaluator,
        eval_every: int = -1,
        peval_mode: str = "epoch",
        **method_options: Any,
    ) -> None:
        """Wire the strategy up.

        Args:
            model: what to train.
            optimizer: of the model's parameters.
            criterion: the loss in evaluation; None: cross-entropy. Training uses the method's objective.
            train_mb_size: current samples per training step.
            train_epochs: epochs per experience.
            eval_mb_size: samples per evaluation step; None: ``train_mb_size``.
            device: to train on.
            plugins: others beside the method's own; the list is not changed.
            evaluator: metrics and loggers; None for none.
            eval_every: -1 no evaluation while training, 0 after each experience, n every n epochs (iterations).
            peval_mode: "epoch" or "iteration", the unit of ``eval_every``.
            **method_options: options of the method's plugin (see its docstring); an unknown one is a ``TypeError``.
        """
        method = self.plugin_class(**method_options)
        super().__init__(
            model=model,
            optimizer=optimizer,
            criterion=nn.CrossEntropyLoss() if criterion is None else criterion,
            train_mb_size=train_mb_size,
            train_epochs=train_epochs,
            eval_mb_size=eval_mb_size,
            device=device,
            plugins=[method, *(plugins or [])],
            evaluator=evaluator,
            eval_every=eval_every,
            peval_mode=peval_mode,
        )
        self.method = method


class Co2L(_MethodStrategy):
    """Contrastive continual learning (Cha et al., ICCV 2021); options of ``Co2LPlugin``, for a ``ContrastiveModel``."""

    plugin_class = Co2LPlugin


class SSIL(_MethodStrategy):
    """Separated softmax for incremental learning (Ahn et al., ICCV 2021); options of ``SSILPlugin``."""

    plugin_class = SSILPlugin


class CSD(_MethodStrategy):
    """Contrastive supervised distillation (Barletti, Biondi et al., ICIAP 2022); options of ``CSDPlugin``."""

    plugin_class = CSDPlugin
