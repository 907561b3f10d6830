"""Class logits from frozen features: the layers, the fits of their weights, and the loop that embeds a data set."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from avalanche.models.dynamic_modules import DynamicModule
from torch import Tensor, nn
from torch.utils.data import DataLoader

from avalanche_contrastive._checks import form_of
from avalanche_contrastive._torch import map_tensors, preserved_modes

__all__ = [
    "UNFITTED_LOGIT",
    "ReadOut",
    "TaskReadOuts",
    "check_rows",
    "embed_dataset",
    "fit_linear",
    "fit_nearest_mean",
    "fit_standardized",
    "full_precision",
]

UNFITTED_LOGIT = -1000.0  # what Avalanche's IncrementalClassifier gives a class it has not been trained on
MOST_CLASSES = 1_000_000  # an id beyond it is a date or a code, not a column of a classifier


class ReadOut(DynamicModule):
    """Class logits from frozen features: a linear layer, or the negative squared distance to class means.

    Its values are buffers, not parameters: no optimiser moves them, and ``fit`` replaces them. A class that was never
    fitted has logit -1000, as in Avalanche's ``IncrementalClassifier``.

    Args:
        feature_size: D.
        num_classes: K, the number of columns. None: as many as the stream needs, which says so when the model is
            adapted to its first experience.
    """

    weight: Tensor
    bias: Tensor
    fitted: Tensor
    unit: Tensor

    def __init__(self, feature_size: int, num_classes: int | None = None) -> None:
        super().__init__()
        self.num_classes = num_classes
        width = num_classes or 0
        self.register_buffer("weight", torch.zeros(width, feature_size))
        self.register_buffer("bias", torch.zeros(width))
        # 0 or 1, and no bool: averages of a model (torch's AveragedModel) are taken of all its tensors.
        self.register_buffer("fitted", torch.zeros(width))
        self.register_buffer("unit", torch.zeros(()))

    @property
    def width(self) -> int:
        """Classes that it has a column for, fitted or not."""
        return len(self.bias)

    def adaptation(self, experience: Any) -> None:
        """Have a column for each class that the experience or its stream names (Avalanche calls this).

        Raises:
            ValueError: a class id below 0, or too large for ``num_classes`` or for any classifier.
        """
        classes = _named_classes(experience)
        if classes:
            self._make_room(min(classes), max(classes))

    def _make_room(self, smallest: int, largest: int) -> None:
        if smallest < 0 or largest >= MOST_CLASSES:
            wrong = smallest if smallest < 0 else largest
            raise ValueError(
                f"ReadOut: class ids number the columns of a classifier, 0, 1, 2 and so on, got the id {wrong}. Give "
                "the classes such ids, for instance by the target_transform of the data set."
            )
        self.widen(largest + 1)

    # Buffers that are made in inference mode could not be changed outside of it: evaluation may run in it.
    @torch.inference_mode(False)
    @torch.no_grad()
    def widen(self, width: int) -> None:
        """Have at least ``width`` columns; the classes of new ones are unfitted.

        Raises:
            ValueError: more than ``num_classes``.
        """
        if self.num_classes is not None and width > self.num_classes:
            raise ValueError(
                f"ReadOut: there is no column for class {width - 1}, since num_classes is {self.num_classes}. Give the "
                "largest class id of all streams + 1."
            )
        extra = width - len(self.bias)
        if extra > 0:
            self.weight = torch.cat([self.weight, self.weight.new_zeros(extra, self.weight.shape[1])])
            self.bias = torch.cat([self.bias, self.bias.new_zeros(extra)])
            self.fitted = torch.cat([self.fitted, self.fitted.new_zeros(extra)])

    @torch.inference_mode(False)
    @torch.no_grad()
    def fit(self, classes: Tensor, weight: Tensor, bias: Tensor, *, unit: bool) -> None:
        """Take new values for ``classes`` (C,), weight (C, D) and bias (C,); every other class becomes unfitted.

        Raises:
            ValueError: as ``adaptation``; other shapes, or classes that are not integers. Nothing is changed then.
        """
        width = self.weight.shape[1]
        if classes.is_floating_point() or weight.shape != (len(classes), width) or bias.shape != classes.shape:
            raise ValueError(
                f"ReadOut: {len(classes)} classes (integers) need a weight of shape {(len(classes), width)} and a bias "
                f"of shape {(len(classes),)}, got {form_of(classes)}, {form_of(weight)} and {form_of(bias)}. Were "
                "they fitted to features of another model?"
            )
        classes = classes.long()  # an index of uint8 would be read as a mask
        self._make_room(int(classes.min()), int(classes.max()))
        self.weight.zero_()[classes] = weight.to(self.weight)
        self.bias.zero_()[classes] = bias.to(self.bias)
        self.fitted.zero_()[classes] = 1
        self.unit.fill_(unit)

    def forward(self, features: Tensor) -> Tensor:
        """Logits (B, K) of features (B, D), or the mean over views of features (B, V, D)."""
        if len(self.bias) == 0:
            raise RuntimeError(
                "ReadOut: no class is known yet, so there are no logits. Train on an experience first, or evaluate "
                "through a strategy, which tells the model the classes of the stream, or give the model num_classes."
            )
        if self.unit:
            features = F.normalize(features, dim=-1)
        logits = F.linear(features, self.weight, self.bias).masked_fill(self.fitted == 0, UNFITTED_LOGIT)
        return logits.mean(dim=1) if logits.ndim == 3 else logits

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        if self.num_classes is None:  # a fresh model has no classes yet: take the width that was saved
            for name in ("weight", "bias", "fitted"):
                if prefix + name in state_dict:
                    setattr(self, name, getattr(self, name).new_empty(state_dict[prefix + name].shape))
        super()._load_from_state_dict(state_dict, prefix, *args)


def _named_classes(experience: Any) -> set[int]:
    """Class ids of an experience, and of those before and after it as far as its stream names them."""
    found: set[int] = set()
    whole = getattr(experience, "origin_experience", None)  # what a piece of an online stream is cut from
    for part in [experience] if whole is None else [experience, whole]:
        view = part.logging() if hasattr(part, "logging") else part  # in which no attribute is hidden
        for name in ("classes_in_this_experience", "classes_seen_so_far", "future_classes"):
            found.update(int(c) for c in getattr(view, name, None) or ())
    return found


class TaskReadOuts(DynamicModule):
    """A ``ReadOut`` for each task label; made when Avalanche adapts the model to an experience with that label.

    Args:
        feature_size: D.
        num_classes: columns of each read-out, see ``ReadOut``.
    """

    _like: Tensor

    def __init__(self, feature_size: int, num_classes: int | None = None) -> None:
        super().__init__()
        self.feature_size, self.num_classes = feature_size, num_classes
        self.heads = nn.ModuleDict()
        self.register_buffer("_like", torch.zeros(0), persistent=False)  # where, and in which type, to make heads

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

    @torch.inference_mode(False)
    def _head(self, task: int) -> ReadOut:
        if str(task) not in self.heads:
            new = ReadOut(self.feature_size, self.num_classes)
            self.heads[str(task)] = new.to(device=self._like.device, dtype=self._like.dtype)
        head = self.heads[str(task)]
        assert isinstance(head, ReadOut)
        return head

    def widen(self, task: int, width: int) -> None:
        """Have a read-out for a task, with at least ``width`` columns; see ``ReadOut.widen``."""
        self._head(task).widen(width)

    def fit(self, task: int, classes: Tensor, weight: Tensor, bias: Tensor, *, unit: bool) -> None:
        """Take new values for a task's classes (C,), weight (C, D) and bias (C,); see ``ReadOut.fit``."""
        self._head(task).fit(classes, weight, bias, unit=unit)

    def forget(self) -> None:
        """Make every class of every task unfitted."""
        for head in self._all():
            head.fitted.zero_()

    def forward(self, features: Tensor, task: int) -> Tensor:
        """Logits (B, K) of features (B, D) or (B, V, D) by one task's read-out."""
        if str(task) not in self.heads:
            raise ValueError(
                f"TaskReadOuts: there is no read-out for task label {task}, only for {self.tasks}. Train on it, or "
                "evaluate through a strategy, which tells the model the task labels of the stream."
            )
        logits: Tensor = self.heads[str(task)](features)
        return logits

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        start = f"{prefix}heads."
        for task in {key[len(start) :].split(".")[0] for key in state_dict if key.startswith(start)}:
            self._head(int(task))  # a fresh model has none yet; torch then goes on with these
        super()._load_from_state_dict(state_dict, prefix, *args)


@torch.no_grad()
def embed_dataset(
    model: Any,
    dataset: Any,
    *,
    batch_size: int,
    device: torch.device,
    features_of: Callable[[Any], tuple[Tensor, Tensor]] | None = None,
) -> tuple[Tensor, Tensor]:
    """Features (N, D) and labels (N,) of a data set under its evaluation transforms.

    The data set's own ``collate_fn`` makes the batches. The model is put in evaluation mode for it (its batch
    statistics stay) and back afterwards. No random state is drawn from: the loader has a generator of its own.

    Args:
        model: what gives the features.
        dataset: Avalanche's or torch's, N >= 1.
        batch_size: images at a time.
        device: where the model is.
        features_of: features (B, D) and labels (B,) of a batch as the loader gives it, such as
            ``features.strategy_features``; None: ``model.embed`` of the batch's first part, and its second part.
            Features (B, V, D) count as V images each: an evaluation transform makes views, too.

    Raises:
        ValueError: another number of features than of labels.
    """

    def embedded(batch: Sequence[Any]) -> tuple[Tensor, Tensor]:
        return model.embed(map_tensors(lambda x: x.to(device), batch[0])), batch[1].to(device)

    dataset = dataset.eval() if hasattr(dataset, "eval") else dataset
    loader = DataLoader(
        dataset, batch_size=batch_size, collate_fn=getattr(dataset, "collate_fn", None), generator=torch.Generator()
    )
    parts = []
    with preserved_modes(model):
        model.eval()
        for batch in loader:
            features, y = (features_of or embedded)(batch)
            if features.ndim == 3:
                features, y = features.flatten(0, 1), y.repeat_interleave(features.shape[1])
            parts.append((check_rows("the data to embed", features, y), y.long()))
    return torch.cat([features for features, _ in parts]), torch.cat([y for _, y in parts])


def full_precision(features: Tensor) -> Tensor:
    """Features without a graph, in float32, or in float64 if they are."""
    features = features.detach()
    return features if features.dtype == torch.float64 else features.float()


def check_rows(name: str, features: Tensor, y: Tensor) -> Tensor:
    """The features, if there is one row for each label."""
    if len(features) != len(y):
        raise ValueError(
            f"{name}: {len(features)} features for {len(y)} images. Does the model split its batch between heads, or "
            "the stream make views in evaluation? Name a layer: layer='...'."
        )
    return features


@torch.no_grad()
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
    """Fit a linear classifier to features by balanced SGD, as Co2L's linear evaluation does: softmax regression.

    Each epoch draws as many images as there are, with replacement and weight 1 / size of the image's group; momentum
    0.9, no weight decay, rate x 0.2 after 60, 75 and 90 % of the epochs (Cha et al. 2021, section 5.1 and appendix).
    Starts from zero and draws from a generator of its own, so it neither touches nor depends on the global random
    state. Computes in float32, or in float64 if the features are.

    Args:
        features: (N, D), or a function of the epoch (0, 1, 2, ...) that gives them, such as the features of the same
            images under new augmentations.
        y: class ids, (N,) integers.
        balance: the group of each image, (N,) integers: each group is drawn equally often. None: the class. The
            authors' R-MNIST code balances domains; ``tasks.pair_codes`` gives pairs of domain and class.
        lr: the paper's 1.0 for Seq-CIFAR-10, 0.1 for Seq-Tiny-ImageNet.
        epochs: passes over the data.
        batch_size: features per step.
        seed: of the draws.

    Returns:
        Class ids (C,), weight (C, D), bias (C,).

    Raises:
        ValueError: another number of labels, groups or features.
    """
    classes, target = torch.unique(y.long(), return_inverse=True)
    _, group, sizes = torch.unique(
        target if balance is None else balance.long(), return_inverse=True, return_counts=True
    )
    chances = (1.0 / sizes.float())[group].cpu()
    draws = torch.Generator().manual_seed(seed)
    x = _with_ones(features(0) if callable(features) else features, len(target), len(chances))
    weight = x.new_zeros(len(classes), x.shape[1])  # the last column is the bias
    velocity = torch.zeros_like(weight)
    batch, minus_one = x.new_empty(batch_size, x.shape[1]), x.new_full((1, batch_size), -1.0)
    milestones = [int(share * epochs) for share in (0.6, 0.75, 0.9)]
    with torch.autocast(x.device.type, enabled=False):
        for epoch in range(epochs):
            if callable(features) and epoch > 0:
                x = _with_ones(features(epoch), len(target), len(chances))
            rate = lr * 0.2 ** sum(milestone <= epoch for milestone in milestones)
            order = torch.multinomial(chances, len(chances), replacement=True, generator=draws)
            for rows in order.to(x.device).split(batch_size):
                b = len(rows)
                drawn = torch.index_select(x, 0, rows, out=batch[:b])  # new memory for each would take as long again
                # The gradient of the cross-entropy is (softmax - one-hot) x / B, classes by images times images.
                residual = (weight @ drawn.T).softmax(dim=0).scatter_add_(0, target[None, rows], minus_one[:, :b])
                velocity.mul_(0.9).addmm_(residual, drawn, alpha=1 / b)
                weight.sub_(velocity, alpha=rate)
    return classes, weight[:, :-1].contiguous(), weight[:, -1].contiguous()


def _with_ones(features: Tensor, labels: int, groups: int) -> Tensor:
    """Features (N, D) with a column of ones, (N, D + 1), whose weight is the bias."""
    features = full_precision(features)
    if not len(features) == labels == groups:
        raise ValueError(
            f"fit_linear: there must be a label and a group for each feature, got {len(features)} features, {labels} "
            f"labels and {groups} groups."
        )
    return torch.cat([features, features.new_ones(len(features), 1)], dim=1)


def fit_standardized(features: Tensor, y: Tensor, **options: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``fit_linear`` on features of zero mean and of unit variance over the width D in every dimension.

    One learning rate then suits any network. Dimensions that do not vary take no part.

    Args:
        features: (N, D).
        y: class ids, (N,).
        options: of ``fit_linear``.

    Returns:
        Class ids (C,), weight (C, D), bias (C,) and the mean (D,): logits are ``weight @ (f - mean) + bias``.
    """
    features = full_precision(features)
    mean, std = features.mean(dim=0), features.std(dim=0, correction=0)
    # A dimension that does not vary has a deviation of rounding errors.
    varies = std > 1e-6 * features.abs().amax(dim=0)
    scale = torch.where(varies, 1 / (std * features.shape[1] ** 0.5), 0.0)
    classes, weight, bias = fit_linear((features - mean) * scale, y, **options)
    return classes, weight * scale, bias, mean


def fit_nearest_mean(features: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Nearest class mean of unit features as a linear layer: ``-|f - m|^2 = 2 f.m - |m|^2 - 1`` for ``|f| = 1``.

    Returns:
        Class ids (C,), weight (C, D), bias (C,), to be applied to unit features.
    """
    classes, target, counts = torch.unique(y.long(), return_inverse=True, return_counts=True)
    features = F.normalize(full_precision(features), dim=1)
    total = features.new_zeros(len(classes), features.shape[1]).index_add(0, target, features)
    mean = F.normalize(total / counts[:, None], dim=1)
    return classes, 2 * mean, -(mean**2).sum(dim=1) - 1
