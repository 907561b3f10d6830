"""Ready strategies: Avalanche's supervised template with the method's plugin in place.

The constructors write every argument out, as Avalanche's do: editors and type checkers see them, and Avalanche refuses
unknown ones. A test holds their options and defaults to the plugins'.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

import torch
from avalanche.core import BasePlugin
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.plugins.evaluation import default_evaluator
from avalanche.training.storage_policy import ExemplarsBuffer
from avalanche.training.templates import SupervisedTemplate
from torch import Tensor, nn

from avalanche_contrastive.plugins import Co2LPlugin, CSDPlugin, MethodPlugin, SSILPlugin
from avalanche_contrastive.plugins.partners import check_strategy

__all__ = ["CSD", "SSIL", "Co2L"]

Evaluator: TypeAlias = EvaluationPlugin | Callable[[], EvaluationPlugin] | None


class _MethodStrategy(SupervisedTemplate):
    """Avalanche's supervised template and one method's plugin: the same training as the plugin under ``Naive``.

    Attributes:
        method: the plugin.
    """

    def __init__(self, *, method: MethodPlugin, criterion: Any, plugins: Sequence[Any] | None, **template: Any) -> None:
        if criterion is None:
            criterion = nn.CrossEntropyLoss()
        check_strategy(type(self).__name__, criterion=criterion, plugins=plugins, **template)
        super().__init__(criterion=criterion, plugins=[method, *(plugins or [])], **template)
        self.method = method


class Co2L(_MethodStrategy):
    """Contrastive continual learning (Cha et al., ICCV 2021, arXiv:2106.14413): ``Co2LPlugin`` wired up."""

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
        evaluator: Evaluator = default_evaluator,
        eval_every: int = -1,
        peval_mode: str = "epoch",
        mem_size: int = 200,
        augmentation: Callable[[Tensor], Tensor] | None = None,
        views: int = 2,
        temperature: float = 0.5,
        base_temperature: float | None = 0.07,
        reduction: Literal["anchors", "all", "sum"] = "all",
        asymmetric: bool = True,
        domains: bool = False,
        weight: float = 1.0,
        distill_temperature: float = 0.2,
        teacher_temperature: float = 0.01,
        batch_size_mem: int | None = None,
        rehearse: bool = True,
        storage_policy: ExemplarsBuffer | None = None,
        readout: Literal["linear", "ncm"] = "linear",
        readout_lr: float = 1.0,
        readout_epochs: int = 100,
        readout_batch_size: int = 256,
        readout_balance: Literal["class", "domain", "domain and class"] | None = None,
        readout_augment: bool = False,
        teacher_mode: Literal["eval", "train"] = "eval",
    ) -> None:
        """Wire the strategy up.

        Args:
            model: a ``ContrastiveModel``, or an ``MTContrastiveModel`` for a read-out per task.
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

        The other arguments are the options of ``Co2LPlugin``, described there.
        """
        method = Co2LPlugin(
            mem_size=mem_size,
            augmentation=augmentation,
            views=views,
            temperature=temperature,
            base_temperature=base_temperature,
            reduction=reduction,
            asymmetric=asymmetric,
            domains=domains,
            weight=weight,
            distill_temperature=distill_temperature,
            teacher_temperature=teacher_temperature,
            batch_size_mem=batch_size_mem,
            rehearse=rehearse,
            storage_policy=storage_policy,
            readout=readout,
            readout_lr=readout_lr,
            readout_epochs=readout_epochs,
            readout_batch_size=readout_batch_size,
            readout_balance=readout_balance,
            readout_augment=readout_augment,
            teacher_mode=teacher_mode,
        )
        super().__init__(
            method=method,
            model=model,
            optimizer=optimizer,
            criterion=criterion,
            train_mb_size=train_mb_size,
            train_epochs=train_epochs,
            eval_mb_size=eval_mb_size,
            device=device,
            plugins=plugins,
            evaluator=evaluator,
            eval_every=eval_every,
            peval_mode=peval_mode,
        )


class SSIL(_MethodStrategy):
    """Separated softmax for incremental learning (Ahn et al., ICCV 2021, arXiv:2003.13947): ``SSILPlugin`` wired up."""

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
        evaluator: Evaluator = default_evaluator,
        eval_every: int = -1,
        peval_mode: str = "epoch",
        mem_size: int = 2000,
        batch_size_mem: int = 32,
        storage_policy: ExemplarsBuffer | None = None,
        separated: bool = True,
        distillation: Literal["task", "global", "none"] = "task",
        temperature: float = 2.0,
        weight: float = 1.0,
        teacher_mode: Literal["eval", "train"] = "eval",
    ) -> None:
        """Wire the strategy up.

        Args:
            model: any classifier.
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

        The other arguments are the options of ``SSILPlugin``, described there.
        """
        method = SSILPlugin(
            mem_size=mem_size,
            batch_size_mem=batch_size_mem,
            storage_policy=storage_policy,
            separated=separated,
            distillation=distillation,
            temperature=temperature,
            weight=weight,
            teacher_mode=teacher_mode,
        )
        super().__init__(
            method=method,
            model=model,
            optimizer=optimizer,
            criterion=criterion,
            train_mb_size=train_mb_size,
            train_epochs=train_epochs,
            eval_mb_size=eval_mb_size,
            device=device,
            plugins=plugins,
            evaluator=evaluator,
            eval_every=eval_every,
            peval_mode=peval_mode,
        )


class CSD(_MethodStrategy):
    """Contrastive supervised distillation (Barletti et al., ICIAP 2021, arXiv:2205.05476): ``CSDPlugin`` wired up."""

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
        evaluator: Evaluator = default_evaluator,
        eval_every: int = -1,
        peval_mode: str = "epoch",
        temperature: float = 0.07,
        weight: float = 1.0,
        form: Literal["authors", "paper"] = "authors",
        normalize: bool = True,
        kd_weight: float = 1.0,
        kd_temperature: float = 2.0,
        triplet_weight: float = 1.0,
        margin: float = 1.0,
        ce: Literal["weighted", "masked", "all"] = "weighted",
        ce_weight: float = 1.0,
        feature_layer: str | None = None,
        teacher_mode: Literal["eval", "train"] = "eval",
    ) -> None:
        """Wire the strategy up.

        Args:
            model: any classifier.
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

        The other arguments are the options of ``CSDPlugin``, described there.
        """
        method = CSDPlugin(
            temperature=temperature,
            weight=weight,
            form=form,
            normalize=normalize,
            kd_weight=kd_weight,
            kd_temperature=kd_temperature,
            triplet_weight=triplet_weight,
            margin=margin,
            ce=ce,
            ce_weight=ce_weight,
            feature_layer=feature_layer,
            teacher_mode=teacher_mode,
        )
        super().__init__(
            method=method,
            model=model,
            optimizer=optimizer,
            criterion=criterion,
            train_mb_size=train_mb_size,
            train_epochs=train_epochs,
            eval_mb_size=eval_mb_size,
            device=device,
            plugins=plugins,
            evaluator=evaluator,
            eval_every=eval_every,
            peval_mode=peval_mode,
        )
