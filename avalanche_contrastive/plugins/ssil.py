"""SS-IL: separated softmax and task-wise distillation over current and replayed samples."""

import warnings
from typing import Any, Literal

from avalanche.training.storage_policy import ExemplarsBuffer
from torch import Tensor

from avalanche_contrastive._checks import check_choice, check_count, check_flag, check_positive, check_weight
from avalanche_contrastive._torch import unwrapped
from avalanche_contrastive.losses import separated_softmax, taskwise_distillation
from avalanche_contrastive.plugins.multihead import PastHeads, row_softmax
from avalanche_contrastive.plugins.replay import ReplayMethodPlugin
from avalanche_contrastive.tasks import by_head, not_seen, seen_in

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
        batch_size_mem: replayed rows in each step, however full the memory (the authors' 32).
        storage_policy: any Avalanche buffer of size ``mem_size``; None: class-balanced, random. (The authors' code
            keeps the first images of each class: ``plugins.exemplars.FirstExemplarsSelection``.)
        separated: False is plain cross-entropy over all classes seen (the paper's ablation).
        distillation: "task" (the paper) for a softmax per past experience, "global" for one over all old classes,
            "none".
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

    @property
    def needs_teacher(self) -> bool:
        """Only the distillation asks it."""
        return self.distillation != "none" and self.weight > 0

    def objective(self, strategy: Any) -> Tensor:
        """Separated softmax, plus the distillation once there is a teacher."""
        logits = self.check_logits(strategy)
        loss = self._cross_entropy(strategy, logits)
        self.terms = {"cross_entropy": loss.detach()}
        if self.teacher is None:
            return loss
        kept = self._distillation(strategy, logits)
        self.terms["distillation"] = kept.detach()
        return loss + self.weight * kept

    def _cross_entropy(self, strategy: Any, logits: Tensor) -> Tensor:
        if self.multi_head:
            heads = self.table("heads", lambda: self.head_groups(logits, self._old_and_new), logits.shape[1])
            return row_softmax(logits, strategy.mb_y, heads.of(strategy.mb_task_id))
        groups = self.table("groups", lambda: self.class_groups(logits, self._old_and_new(None)), logits.shape[1])
        return separated_softmax(logits, strategy.mb_y, groups)

    def _old_and_new(self, task: int | None) -> list[list[int]]:
        """The classes whose softmax a row of an old class, and of a new one, runs over; of a head, if one is named."""
        new = self.classes_of_head(self._current, task)
        old = not_seen(self.classes_of_head(self.seen_classes, task), [new])
        return [old, new] if self.separated else [old + new]

    def _distillation(self, strategy: Any, logits: Tensor) -> Tensor:
        if self.multi_head:
            heads, x = self._past_heads(strategy), strategy.mb_x
            kept = self.teacher_forward(strategy, lambda: heads.logits(strategy.model, x))
            return heads.distillation(unwrapped(strategy.model), x, kept, temperature=self.temperature)
        kept = self.teacher_forward(strategy)
        tasks = self.table("tasks", lambda: self.class_groups(kept, self._softmaxes()), kept.shape[1])
        return taskwise_distillation(logits, kept, tasks, temperature=self.temperature)

    def _softmaxes(self) -> list[list[int]]:
        return self.past if self.distillation == "task" else [seen_in(self.past)]

    def _past_heads(self, strategy: Any) -> PastHeads:
        def make() -> PastHeads:
            return PastHeads([head for classes in self.past for head in by_head(classes)], strategy.device)

        heads: PastHeads = self.table("past heads", make)
        return heads
