"""Losses of models with a head for each task."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from avalanche.models import avalanche_forward
from torch import Tensor, nn

from avalanche_contrastive._kernels import float32, full_precision
from avalanche_contrastive._torch import still_statistics
from avalanche_contrastive.losses import taskwise_distillation

__all__ = ["HeadGroups", "PastHeads", "row_softmax"]

IGNORED = -100  # the label that torch's cross-entropy leaves out


class HeadGroups:
    """What the columns of a multi-task model's logits mean in each head, as tensors.

    Args:
        labels: task labels of the heads.
        groups: for each of them the groups (K,) of its columns; -1 takes no part.
    """

    def __init__(self, labels: Sequence[int], groups: Sequence[Tensor]) -> None:
        order = sorted(range(len(labels)), key=lambda i: labels[i])
        self.groups = torch.stack([groups[i] for i in order])
        self.labels = torch.tensor([labels[i] for i in order], device=self.groups.device)

    def of(self, task_labels: Tensor) -> Tensor:
        """The groups of each row's own head, (B, K); of another head for a label that none has."""
        place = torch.searchsorted(self.labels, task_labels.long()).clamp_(max=len(self.labels) - 1)
        return self.groups[place]


def row_softmax(logits: Tensor, y: Tensor, groups: Tensor | None, counted: Tensor | None = None) -> Tensor:
    """Cross-entropy in which each row's softmax runs over the group of its class, in groups of its own.

    ``separated_softmax`` with other groups in each row.

    Args:
        logits: (B, K).
        y: class ids, (B,).
        groups: (B, K) or (1, K) integers; None: all columns are one group.
        counted: which rows count, (B,) bool; None: all.

    Returns:
        Scalar, the mean over the rows that count; zero where none does.
    """
    with full_precision(logits):
        logits = float32(logits)  # a model may compute in half precision
        if groups is not None:
            own = groups.expand_as(logits).gather(1, y[:, None])
            logits = logits.masked_fill(groups != own, torch.finfo(logits.dtype).min)
        if counted is None:
            return F.cross_entropy(logits, y)
        total = F.cross_entropy(logits, torch.where(counted, y, IGNORED), reduction="sum")
        return total / counted.sum(dtype=total.dtype).clamp_(min=1)


class PastHeads:
    """The heads of earlier tasks, and what they say of all rows, whatever the rows' own task.

    A model's own forward pass gives each row the logits of one head only. Here it runs all its heads in one pass, as
    Avalanche's multi-task models do without task labels. Columns that a head has for no class of its own never get in.

    Args:
        classes: task label and class ids of each head that is distilled, one softmax each.
        device: of the batches.
    """

    def __init__(self, classes: Sequence[tuple[int, list[int]]], device: torch.device) -> None:
        self.heads = [(task, torch.tensor(ids, device=device)) for task, ids in classes]
        softmax = [number for number, (_, ids) in enumerate(classes) for _ in ids]
        self.softmax = torch.tensor(softmax, device=device)

    def logits(self, model: nn.Module, x: Any) -> Tensor:
        """Logits of the heads' classes side by side, (B, number of classes).

        Raises:
            ValueError: the model does not give {task label: logits} where the task labels are None.
        """
        outputs = avalanche_forward(model, x, None)
        if not isinstance(outputs, dict):
            raise ValueError(
                f"{type(model).__name__}: a multi-task model must give a dictionary {{task label: logits}} for "
                f"task_labels=None, got {type(outputs).__name__}. Subclass avalanche.models.MultiTaskModule, whose "
                "forward_all_tasks does, or wrap a model in avalanche.models.as_multitask."
            )
        # A model read from a state dict has the heads, but not the set of tasks that Avalanche keeps beside them.
        for task in {task for task, _ in self.heads} - outputs.keys():
            outputs[task] = avalanche_forward(model, x, task)
        return torch.cat([outputs[task].index_select(1, ids) for task, ids in self.heads], dim=1)

    def distillation(self, model: nn.Module, x: Any, kept: Tensor, *, temperature: float) -> Tensor:
        """``taskwise_distillation`` of each head over all rows.

        The student goes through the batch a second time for it, as in Avalanche's LwF. Batch statistics are noted once.

        Args:
            model: the student.
            x: the batch.
            kept: the teacher's `logits`.
            temperature: T.
        """
        with still_statistics(model):
            student = self.logits(model, x)
        return taskwise_distillation(student, kept, self.softmax, temperature=temperature)
