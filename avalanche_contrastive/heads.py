"""Models with a head for each task: what the methods compute from Avalanche's, and Co2L's model with read-outs."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from avalanche.models import MultiTaskModule, avalanche_forward
from avalanche.models.dynamic_modules import DynamicModule
from torch import Tensor, nn

from avalanche_contrastive.losses import separated_softmax, taskwise_distillation
from avalanche_contrastive.models import UNFITTED_LOGIT, ContrastiveModel, ReadOut

__all__ = [
    "MTContrastiveModel",
    "TaskReadOuts",
    "by_head",
    "head_logits",
    "headwise_cross_entropy",
    "headwise_distillation",
    "still_statistics",
]


def by_head(pairs: Sequence[tuple[int, int]]) -> list[tuple[int, list[int]]]:
    """The class ids of each head, (task label, class ids), of pairs (task label, class id); heads in order."""
    return [(task, sorted(c for t, c in pairs if t == task)) for task in sorted({t for t, _ in pairs})]


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


@contextmanager
def still_statistics(model: nn.Module) -> Iterator[None]:
    """Batch-norm layers in training normalise by the batch, but do not note it: it has been through once."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    norms = [m for m in norms if m.training]
    try:
        for module in norms:
            module.track_running_stats = False
        yield
    finally:
        for module in norms:
            module.track_running_stats = True


class TaskReadOuts(DynamicModule):
    """A ``ReadOut`` for each task label; made when Avalanche adapts the model to an experience with that label.

    Args:
        feature_size: D.
    """

    def __init__(self, feature_size: int) -> None:
        super().__init__()
        self.feature_size = feature_size
        self.heads = nn.ModuleDict()

    @property
    def width(self) -> int:
        """Columns of the widest read-out."""
        return max((head.width for head in self._all()), default=0)

    @property
    def tasks(self) -> list[int]:
        """Task labels that have a read-out."""
        return [int(task) for task in self.heads]

    def _all(self) -> list[ReadOut]:
        return [head for head in self.heads.values() if isinstance(head, ReadOut)]

    def adaptation(self, experience: Any) -> None:
        """Have a read-out for each task label of the experience; Avalanche then widens each to its classes."""
        for task in set(getattr(experience, "task_labels", ())):
            self._head(int(task))

    def _head(self, task: int) -> ReadOut:
        if str(task) not in self.heads:
            like = next(iter(self.buffers()), torch.zeros(0))
            self.heads[str(task)] = ReadOut(self.feature_size).to(like.device)
        head = self.heads[str(task)]
        assert isinstance(head, ReadOut)
        return head

    def fit(self, task: int, classes: Tensor, weight: Tensor, bias: Tensor, *, unit: bool) -> None:
        """Take new values for a task's classes (C,), weight (C, D) and bias (C,); see ``ReadOut.fit``."""
        self._head(task).fit(classes, weight, bias, unit=unit)

    def forget(self) -> None:
        """Make every class of every task unfitted."""
        for head in self._all():
            head.fitted.fill_(False)

    def forward(self, features: Tensor, task: int) -> Tensor:
        """Logits (..., K) of features (..., D) by one task's read-out."""
        if str(task) not in self.heads:
            raise ValueError(
                f"TaskReadOuts: there is no read-out for task label {task}, only for {self.tasks}. Train on it, or "
                "evaluate through a strategy, which tells the model the task labels of the stream."
            )
        logits: Tensor = self.heads[str(task)](features)
        return logits

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        self.make_saved(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def make_saved(self, state_dict: Mapping[str, Any], prefix: str) -> None:
        """Have the read-outs of a state dict: a fresh model has none yet."""
        start = f"{prefix}heads."
        for key in [key for key in state_dict if key.startswith(start)]:
            self._head(int(key[len(start) :].split(".")[0]))


class MTContrastiveModel(ContrastiveModel, MultiTaskModule):
    """A ``ContrastiveModel`` with a read-out for each task label, for task-incremental streams.

    ``model(x, task_labels)``, as Avalanche's other multi-task models. In training mode the projection, whatever the
    task; in evaluation mode class logits by the read-out of each row's own task, in which no class of another task can
    win. Class ids may be unique over the stream or start at 0 in each task.

    Args:
        encoder: maps a batch to features (B, feature_size).
        feature_size: width of the encoder's output.
        projection_size: width of the projection (the paper's 128).
        hidden_size: width of the projection head's hidden layer; None: feature_size, as the authors'.
        sample_ndim: see ``ContrastiveModel``.
    """

    readout: TaskReadOuts

    def _new_readout(self, feature_size: int) -> TaskReadOuts:
        return TaskReadOuts(feature_size)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # The first read-out that is made does not know where the model is.
        self.readout.make_saved(state_dict, f"{prefix}readout.")
        self.readout.to(next(self.projector.parameters()).device)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(  # type: ignore[override]
        self, x: Tensor, task_labels: Tensor | int | None
    ) -> Tensor | dict[int, Tensor]:
        """Projections in training mode; in evaluation mode logits (B, K), or {task label: logits} without labels.

        K is the width of the widest read-out; a class that a row's own read-out does not have, or that it was never
        fitted on, has logit -1000.
        """
        if self.training:
            return self.project(x)
        features = self.embed(x)
        if task_labels is None:
            return {task: self._logits(features, task) for task in self.readout.tasks}
        if isinstance(task_labels, int):
            return self._logits(features, task_labels)
        logits = features.new_full((len(features), self.readout.width), UNFITTED_LOGIT)
        for task in task_labels.unique().tolist():
            rows = task_labels == task
            own = self._logits(features[rows], task)
            logits[rows, : own.shape[1]] = own.to(logits)
        return logits

    def _logits(self, features: Tensor, task: int) -> Tensor:
        logits: Tensor = self.readout(features, task)
        return logits.mean(dim=1) if features.ndim == 3 else logits
