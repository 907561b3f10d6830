"""Class logits from frozen features: the layers, and the fits of their weights."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from avalanche.models.dynamic_modules import DynamicModule
from torch import Tensor, nn
from torch.utils.data import DataLoader

from avalanche_contrastive._torch import preserved_modes

__all__ = ["UNFITTED_LOGIT", "ReadOut", "TaskReadOuts", "embed_dataset", "fit_linear", "fit_nearest_mean"]

UNFITTED_LOGIT = -1000.0  # what Avalanche's IncrementalClassifier gives a class it has not been trained on


class ReadOut(DynamicModule):
    """Class logits from frozen features: a linear layer, or the negative squared distance to class means.

    Its values are buffers, not parameters: no optimiser moves them, and ``fit`` replaces them. It widens to the
    largest class id of every experience it meets; a class that was never fitted has logit -1000, as in Avalanche's
    ``IncrementalClassifier``.

    Args:
        feature_size: D.
    """

    weight: Tensor
    bias: Tensor
    fitted: Tensor
    unit: Tensor

    def __init__(self, feature_size: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(0, feature_size))
        self.register_buffer("bias", torch.zeros(0))
        self.register_buffer("fitted", torch.zeros(0, dtype=torch.bool))
        self.register_buffer("unit", torch.tensor(False))

    @property
    def width(self) -> int:
        """Classes that it has a column for, fitted or not."""
        return len(self.bias)

    def adaptation(self, experience: Any) -> None:
        """Widen to the largest class id of the experience (Avalanche calls this before train and eval)."""
        classes = getattr(experience, "classes_in_this_experience", None)
        if classes:
            self.widen(max(classes) + 1)

    def widen(self, width: int) -> None:
        """Have at least ``width`` classes; new ones are unfitted."""
        extra = width - len(self.bias)
        if extra > 0:
            self.weight = torch.cat([self.weight, self.weight.new_zeros(extra, self.weight.shape[1])])
            self.bias = torch.cat([self.bias, self.bias.new_zeros(extra)])
            self.fitted = torch.cat([self.fitted, self.fitted.new_zeros(extra)])

    def fit(self, classes: Tensor, weight: Tensor, bias: Tensor, *, unit: bool) -> None:
        """Take new values for ``classes`` (C,), weight (C, D) and bias (C,); every other class becomes unfitted."""
        self.widen(int(classes.max()) + 1)
        self.weight.zero_()[classes] = weight.to(self.weight)
        self.bias.zero_()[classes] = bias.to(self.bias)
        self.fitted.fill_(False)[classes] = True
        self.unit.fill_(unit)

    def forward(self, features: Tensor) -> Tensor:
        """Logits (..., K) of features (..., D)."""
        if len(self.bias) == 0:
            raise RuntimeError(
                "ReadOut: no class is known yet, so there are no logits. Train on an experience first, or evaluate "
                "through a strategy, which tells the model the classes of the stream."
            )
        if self.unit:
            features = F.normalize(features, dim=-1)
        return F.linear(features, self.weight, self.bias).masked_fill(~self.fitted, UNFITTED_LOGIT)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # A fresh model has no classes yet: take the width that was saved.
        for name in ("weight", "bias", "fitted"):
            if prefix + name in state_dict:
                setattr(self, name, getattr(self, name).new_empty(state_dict[prefix + name].shape))
        super()._load_from_state_dict(state_dict, prefix, *args)


def fit_linear(
    features: Tensor | Callable[[int], Tensor],
    y: Tensor,
    *,
    balance: Tensor | None = None,
    lr: float = 1.0,
    epochs: int = 100,
    batch_size: int = 256,
    seed: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Fit a linear classifier to features by class-balanced SGD, as Co2L's linear evaluation does.

    Each epoch draws as many samples as there are, with replacement and weight 1 / class count; momentum 0.9, no
    weight decay, rate x 0.2 after 60, 75 and 90 % of the epochs (Cha et al. 2021, section 5.1 and appendix). Starts
    from zero and draws from a generator of its own, so it neither touches nor depends on the global random state.

    Args:
        features: (N, D), or a function that gives them for each epoch, counted from 0.
        y: class ids, (N,).
        balance: the group of each image, (N,) integers, that the draws are balanced over; None: the class.
        lr: the paper's 1.0 for Seq-CIFAR-10, 0.1 for Seq-Tiny-ImageNet.
        epochs: passes over the data.
        batch_size: features per step.
        seed: of the draws.

    Returns:
        Class ids (C,), weight (C, D), bias (C,).
    """
    every_epoch, features = (features, features(0)) if callable(features) else (None, features)
    features = features.detach().float()
    classes, target = torch.unique(y, return_inverse=True)
    draws = torch.Generator().manual_seed(seed)
    _, group, counts = torch.unique(target if balance is None else balance, return_inverse=True, return_counts=True)
    chances = (1.0 / counts.float())[group].cpu()
    with torch.enable_grad(), torch.autocast(features.device.type, enabled=False):
        weight = features.new_zeros(len(classes), features.shape[1], requires_grad=True)
        bias = features.new_zeros(len(classes), requires_grad=True)
        optimizer = torch.optim.SGD([weight, bias], lr=lr, momentum=0.9)
        milestones = [int(share * epochs) for share in (0.6, 0.75, 0.9)]
        schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, gamma=0.2)
        for epoch in range(epochs):
            if every_epoch is not None and epoch > 0:
                features = every_epoch(epoch).detach().float()
            order = torch.multinomial(chances, len(chances), replacement=True, generator=draws)
            for rows in order.to(features.device).split(batch_size):
                optimizer.zero_grad()
                F.cross_entropy(F.linear(features[rows], weight, bias), target[rows]).backward()
                optimizer.step()
            schedule.step()
    return classes, weight.detach(), bias.detach()


def fit_nearest_mean(features: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Nearest class mean of unit features as a linear layer: -|f - m|^2 = 2 f.m - |m|^2 - 1 for |f| = 1.

    Returns:
        Class ids (C,), weight (C, D), bias (C,), to be applied to unit features.
    """
    classes, target, counts = torch.unique(y, return_inverse=True, return_counts=True)
    features = F.normalize(features.detach().float(), dim=1)
    total = features.new_zeros(len(classes), features.shape[1]).index_add(0, target, features)
    mean = F.normalize(total / counts[:, None], dim=1)
    return classes, 2 * mean, -(mean**2).sum(dim=1) - 1


@torch.no_grad()
def embed_dataset(model: Any, dataset: Any, *, batch_size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Features (N, D) and labels (N,) of an Avalanche dataset under its evaluation transforms.

    The model is put in evaluation mode for it (its batch statistics stay) and back afterwards. No random state is
    drawn from: the loader has a generator of its own.
    """
    features, labels = [], []
    with preserved_modes(model):
        model.eval()
        for x, y, *_ in DataLoader(dataset.eval(), batch_size=batch_size, generator=torch.Generator()):
            embedded = model.embed(x.to(device))
            if embedded.ndim == 3:  # a pipeline whose evaluation transform makes views, too
                y = y.repeat_interleave(embedded.shape[1])
                embedded = embedded.flatten(0, 1)
            features.append(embedded.float())
            labels.append(y.to(device))
    return torch.cat(features), torch.cat(labels)


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
