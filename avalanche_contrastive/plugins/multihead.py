"""Losses of models with a head for each task."""

from collections.abc import Callable, Sequence

import torch
from avalanche.models import avalanche_forward
from torch import Tensor, nn

from avalanche_contrastive._torch import still_statistics
from avalanche_contrastive.losses import separated_softmax, taskwise_distillation

__all__ = ["head_logits", "headwise_cross_entropy", "headwise_distillation"]


def head_logits(model: nn.Module, x: Tensor, groups: Sequence[tuple[int, list[int]]]) -> Tensor:
    """What other heads than their own say of all rows.

    One pass in which the model runs all its heads, as Avalanche's multi-task models do without task labels. Columns
    that a head has for no class of its own never get in.

    Args:
        model: a multi-task model of Avalanche's kind.
        x: the batch, (B, ...).
        groups: task label and class ids; the heads' columns of these classes, side by side.

    Returns:
        Logits, (B, number of classes in all groups).

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
    heads = {t: outputs[t] if t in outputs else avalanche_forward(model, x, t) for t in {t for t, _ in groups}}
    return torch.cat([heads[task][:, classes] for task, classes in groups], dim=1)


def headwise_distillation(
    model: nn.Module,
    teacher: nn.Module,
    x: Tensor,
    groups: Sequence[tuple[int, list[int]]],
    *,
    temperature: float,
) -> Tensor:
    """``taskwise_distillation`` of each group's head over all rows, whatever their own task.

    The student goes through the batch a second time for it, as in Avalanche's LwF: its own forward pass gives each row
    the logits of one head only. Batch statistics are noted once.

    Args:
        model: the student, a multi-task model.
        teacher: the model after the previous task.
        x: the batch, (B, ...).
        groups: task label and class ids, one softmax each.
        temperature: T.
    """
    with still_statistics(model):
        student = head_logits(model, x, groups)
    with torch.no_grad():
        kept = head_logits(teacher, x, groups)
    softmax = [number for number, (_, classes) in enumerate(groups) for _ in classes]
    return taskwise_distillation(student, kept, torch.tensor(softmax, device=x.device), temperature=temperature)


def headwise_cross_entropy(logits: Tensor, y: Tensor, task_labels: Tensor, groups: Callable[[int], Tensor]) -> Tensor:
    """``separated_softmax`` with the groups of each row's own head, mean over all rows.

    Args:
        logits: each row's by its own head, (B, K).
        y: class ids, (B,).
        task_labels: (B,).
        groups: the groups (K,) of a head's classes, by its task label; -1 takes no part.
    """
    total = logits.new_zeros(())
    for task in task_labels.unique().tolist():
        rows = task_labels == task
        total = total + rows.sum() * separated_softmax(logits[rows], y[rows], groups(task))
    return total / len(y)
