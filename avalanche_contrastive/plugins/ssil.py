"""SS-IL: separated softmax and task-wise distillation over current and replayed samples."""

import warnings
from typing import Any, Literal

from avalanche.training.storage_policy import ExemplarsBuffer
from torch import Tensor

from avalanche_contrastive._checks import check_choice, check_count, check_flag, check_positive, check_weight
from avalanche_contrastive._torch import unwrapped
from avalanche_contrastive.losses import separated_softmax, taskwise_distillation
from avalanche_contrastive.plugins.multihead import headwise_cross_entropy, headwise_distillation
from avalanche_contrastive.plugins.replay import ReplayMethodPlugin
from avalanche_contrastive.tasks import by_head

__all__ = ["SSILPlugin"]


class SSILPlugin(ReplayMethodPlugin):
    """SS-IL (Ahn et al. 2021, arXiv:2003.13947), the whole method, for any classifier.

    Each step sees the current batch and ``batch_size_mem`` replayed rows. The cross-entropy of a current sample runs
    over the current classes, that of a replayed one over the old classes, told apart by label; every past
    experience's classes are distilled under a softmax of their own, over the whole batch. Fixed and growing heads,
    class ids in any order. The authors use 128 current and 32 replayed rows.

    In a model with a head per task each softmax runs over classes of one head, and every past task's classes are
    distilled by its own head.

    Args:
        mem_size: exemplars in all.
        batch_size_mem: replayed rows in each step, however full the memory.
        storage_policy: any Avalanche buffer of size ``mem_size``; None: class-balanced, random (the authors' code
            keeps the first images of each class).
        separated: False is plain cross-entropy over all classes seen (the paper's ablation).
        distillation: "task" for a softmax per past experience, "global" for one over all old classes, "none".
        temperature: of the distillation (the authors' 2).
        weight: of the distillation; its T^2 is included, so 1 / T^2 takes the paper's formula without it.
        teacher_mode: "eval" as the authors', or "train" for batch statistics in the teacher.
    """

    def __init__(
        self,
        mem_size: int = 2000,
        *,
        batch_size_mem: int = 32,
        storage_policy: ExemplarsBuffer | None = None,
        separated: bool = True,
        distillation: Literal["task", "global", "none"] = "task",
        temperature: float = 2.0,
        weight: float = 1.0,
        teacher_mode: Literal["eval", "train"] = "eval",
    ) -> None:
        super().__init__(
            mem_size=mem_size, batch_size_mem=batch_size_mem, storage_policy=storage_policy, teacher_mode=teacher_mode
        )
        check_choice("SSILPlugin", "distillation", distillation, ("task", "global", "none"))
        check_count("SSILPlugin", 1, batch_size_mem=batch_size_mem)
        check_flag("SSILPlugin", separated=separated)
        check_positive("SSILPlugin", temperature=temperature)
        check_weight("SSILPlugin", weight=weight)
        self.separated = separated
        self.distillation = distillation
        self.temperature = temperature
        self.weight = weight

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Warn of an experience whose separated softmax has nothing to tell apart."""
        super().before_training_exp(strategy, **kwargs)
        if self.multi_head and self.distillation == "global":
            raise ValueError(
                "SSILPlugin: distillation='global' is one softmax over all old classes, but this model has a head per "
                f"task ({type(strategy.model).__name__}), and logits of different heads are not on one scale. Use "
                "distillation='task' or 'none'."
            )
        if self.separated and len(self._current) == 1:
            warnings.warn(
                f"SSILPlugin: this experience has the single class {self._current[0]}; a softmax over one class has no "
                "gradient, so the cross-entropy teaches nothing about it. Use separated=False, or larger experiences.",
                stacklevel=2,
            )

    def objective(self, strategy: Any) -> Tensor:
        """Separated softmax, plus the distillation once there is a teacher."""
        logits = self.check_logits(strategy)
        loss = self._cross_entropy(strategy, logits)
        self.terms = {"cross_entropy": loss.detach()}
        if self.teacher is None or self.distillation == "none" or self.weight == 0:
            return loss
        kept = self._distillation(strategy, logits)
        self.terms["distillation"] = kept.detach()
        return loss + self.weight * kept

    def _cross_entropy(self, strategy: Any, logits: Tensor) -> Tensor:
        old = [c for c in self.seen_classes if c not in set(self._current)]
        if not self.multi_head:
            return separated_softmax(logits, strategy.mb_y, self._groups(logits, old, self._current))
        old_by_head, current = dict(by_head(old)), dict(by_head(self._current))
        return headwise_cross_entropy(
            logits,
            strategy.mb_y,
            strategy.mb_task_id,
            lambda task: self._groups(logits, old_by_head.get(task, []), current.get(task, [])),
        )

    def _groups(self, logits: Tensor, old: list[int], current: list[int]) -> Tensor:
        return self.class_groups(logits, [old, current] if self.separated else [old + current])

    def _distillation(self, strategy: Any, logits: Tensor) -> Tensor:
        assert self.teacher is not None
        if self.multi_head:
            heads = [head for classes in self.past for head in by_head(classes)]
            return headwise_distillation(
                unwrapped(strategy.model), self.teacher, strategy.mb_x, heads, temperature=self.temperature
            )
        teacher_logits = self.teacher_forward(strategy)
        tasks = self.past if self.distillation == "task" else [[c for classes in self.past for c in classes]]
        return taskwise_distillation(
            logits, teacher_logits, self.class_groups(teacher_logits, tasks), temperature=self.temperature
        )
