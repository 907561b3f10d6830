"""A fourth method, as small as can be: cross-entropy, and the old model's logits are kept."""

from typing import Any

import torch
import torch.nn.functional as F
from avalanche.training.plugins.evaluation import default_evaluator

from avalanche_contrastive.plugins import MethodPlugin
from avalanche_contrastive.strategies import _MethodStrategy


class SteadyPlugin(MethodPlugin):
    """Cross-entropy, and mean squared error to the teacher's logits.

    Args:
        weight: of the error.
        smoothing: of the labels; None for none.
    """

    def __init__(self, *, weight: float = 1.0, smoothing: float | None = None) -> None:
        super().__init__()
        self.weight, self.smoothing = weight, smoothing

    def objective(self, strategy):
        logits = self.check_logits(strategy)
        loss = F.cross_entropy(logits, strategy.mb_y, label_smoothing=self.smoothing or 0.0)
        if self.teacher is not None:
            loss = loss + self.weight * F.mse_loss(logits, self.teacher_forward(strategy))
        return loss


class Steady(_MethodStrategy):
    """``SteadyPlugin`` wired up."""

    def __init__(
        self,
        *,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        criterion: Any = None,
        train_mb_size: int = 1,
        train_epochs: int = 1,
        eval_mb_size: int | None = 1,
        device: str = "cpu",
        plugins: Any = None,
        evaluator: Any = default_evaluator,
        eval_every: int = -1,
        peval_mode: str = "epoch",
        weight: float = 1.0,
        smoothing: float | None = None,
    ) -> None:
        super().__init__(
            method=SteadyPlugin(weight=weight, smoothing=smoothing),
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
