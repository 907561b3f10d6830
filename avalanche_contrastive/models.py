"""The models of Co2L (encoder, projector and read-out), and a classifier with fixed weights."""

from typing import Any

import torch
import torch.nn.functional as F
from avalanche.models import MultiTaskModule
from torch import Tensor, nn

from avalanche_contrastive._checks import check_count, check_flag
from avalanche_contrastive._torch import map_tensors, tensors_in
from avalanche_contrastive.readout import UNFITTED_LOGIT, ReadOut, TaskReadOuts

__all__ = ["ContrastiveModel", "MTContrastiveModel", "SimplexClassifier"]


class ContrastiveModel(nn.Module):
    """An encoder with a projection head for training and a read-out for evaluation.

    In training mode ``model(x)`` is the projection that contrastive losses compare; in evaluation mode it is class
    logits, so every metric works unchanged. ``project`` and ``embed`` do not depend on the mode.

    A batch may carry a view axis, (B, V, ...): the encoder sees (B * V, ...) and the results are (B, V, ...) again.
    Logits are averaged over views. A batch may also be a dictionary, list or tuple of tensors, which the encoder is
    given as it is: its first tensor then says whether there are views, and all others have them too.

    Args:
        encoder: maps a batch to features (B, feature_size).
        feature_size: width of the encoder's output.
        projection_size: width of the projection (the paper's 128).
        hidden_size: width of the projection head's hidden layer; None: feature_size, as the authors'.
        num_classes: width K of the logits, the largest class id of all streams + 1. None: it is read from the stream
            when training or evaluation begins. What is made before that needs the number: averaged copies of the
            model, for example.
        normalize: divide projections by their length, as in the paper; the authors' code for R-MNIST does not.
        sample_ndim: axes of one input without batch and view axes; None means vectors or images: a batch of 2 or 4
            axes has no views, one of 3 or 5 has. Set it for anything else (2 for sequences (T, F)).
    """

    def __init__(
        self,
        encoder: nn.Module,
        feature_size: int,
        projection_size: int = 128,
        *,
        hidden_size: int | None = None,
        num_classes: int | None = None,
        normalize: bool = True,
        sample_ndim: int | None = None,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        if not isinstance(encoder, nn.Module):
            raise TypeError(f"{name}: encoder must be a torch module, got {type(encoder).__name__}.")
        hidden = feature_size if hidden_size is None else hidden_size
        check_count(name, 1, feature_size=feature_size, projection_size=projection_size, hidden_size=hidden)
        if num_classes is not None:
            check_count(name, 1, num_classes=num_classes)
        if sample_ndim is not None:
            check_count(name, 1, sample_ndim=sample_ndim)
        check_flag(name, normalize=normalize)
        self.encoder = encoder
        self.feature_size, self.normalize, self.sample_ndim = feature_size, normalize, sample_ndim
        self.projector = nn.Sequential(nn.Linear(feature_size, hidden), nn.ReLU(), nn.Linear(hidden, projection_size))
        self.readout = self._new_readout(feature_size, num_classes)

    def _new_readout(self, feature_size: int, num_classes: int | None) -> Any:
        return ReadOut(feature_size, num_classes)

    def has_views(self, x: Any) -> bool:
        """Whether a batch carries a view axis after its batch axis."""
        if not isinstance(x, Tensor):
            x = _first(x)
        if self.sample_ndim is None:
            if not 2 <= x.ndim <= 5:
                raise ValueError(
                    "ContrastiveModel: a batch is (B, F) or (B, C, H, W), or with views (B, V, F) or (B, V, C, H, W); "
                    f"got shape {tuple(x.shape)}. Name the axes of other inputs: sample_ndim=."
                )
            return x.ndim in (3, 5)
        if x.ndim not in (self.sample_ndim + 1, self.sample_ndim + 2):
            raise ValueError(
                f"ContrastiveModel: with sample_ndim={self.sample_ndim} a batch has {self.sample_ndim + 1} axes, or "
                f"one more with views, got shape {tuple(x.shape)}."
            )
        return bool(x.ndim == self.sample_ndim + 2)

    def embed(self, x: Any) -> Tensor:
        """Features of the encoder, (B, D) or with views (B, V, D); not normalised.

        Raises:
            ValueError: a batch of another number of axes, or an encoder that gives something else.
        """
        features, views = self._features(x)
        return features.view(*views, -1) if views else features

    def _features(self, x: Any) -> tuple[Tensor, torch.Size | None]:
        """Features (B, D), or (B * V, D) and then (B, V)."""
        first = x if isinstance(x, Tensor) else _first(x)
        shape = first.shape
        views = shape[:2] if self.has_views(first) else None
        rows = views.numel() if views else shape[0]
        if views:
            x = x.flatten(0, 1) if isinstance(x, Tensor) else map_tensors(lambda part: part.flatten(0, 1), x)
        features = self.encoder(x)
        if not isinstance(features, Tensor) or features.shape != (rows, self.feature_size):
            given = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
            hint = "" if isinstance(x, Tensor) else " (Each tensor of a list, tuple or dictionary must be (B, ...).)"
            raise ValueError(
                f"ContrastiveModel: the encoder must map {rows} inputs to ({rows}, {self.feature_size}), got {given}. "
                f"Is feature_size right, does the encoder end in a flat layer, and give the features alone?{hint}"
            )
        # An encoder may compute in half precision by itself. (Asked for the type that it has, `to` costs microseconds.)
        first_layer: Any = next(iter(self.projector))
        dtype = first_layer.weight.dtype
        return features if features.dtype == dtype else features.to(dtype), views

    def project(self, x: Any) -> Tensor:
        """Projections, (B, P) or with views (B, V, P); of unit length unless ``normalize=False``."""
        features, views = self._features(x)
        projections: Tensor = self.projector(features)
        if self.normalize:
            projections = F.normalize(projections, dim=-1)
        return projections.view(*views, -1) if views else projections

    def forward(self, x: Any) -> Tensor:
        """Projections in training mode; class logits (B, K) in evaluation mode."""
        if self.training:
            return self.project(x)
        logits: Tensor = self.readout(self.embed(x))
        return logits


def _first(x: Any) -> Tensor:
    """The first tensor of a dictionary, list or tuple."""
    tensors = tensors_in(x)
    if not tensors:
        raise ValueError(
            f"ContrastiveModel: a batch must be a tensor, or a dictionary, list or tuple of tensors, got "
            f"{type(x).__name__} without any."
        )
    return tensors[0]


class MTContrastiveModel(ContrastiveModel, MultiTaskModule):
    """A ``ContrastiveModel`` with a read-out for each task label, for task-incremental streams.

    ``model(x, task_labels)``, as Avalanche's other multi-task models. In training mode the projection, whatever the
    task; in evaluation mode class logits by the read-out of each row's own task, in which no class of another task can
    win. Class ids may be unique over the stream or start at 0 in each task.

    Args:
        encoder: maps a batch to features (B, feature_size).
        feature_size: width of the encoder's output.
        projection_size: width of the projection (the paper's 128).
        hidden_size, num_classes, normalize, sample_ndim: see ``ContrastiveModel``.
    """

    readout: TaskReadOuts

    def _new_readout(self, feature_size: int, num_classes: int | None) -> TaskReadOuts:
        return TaskReadOuts(feature_size, num_classes)

    def forward(  # type: ignore[override]
        self, x: Any, task_labels: Tensor | int | None
    ) -> Tensor | dict[int, Tensor]:
        """Projections in training mode; in evaluation mode logits (B, K), or {task label: logits} without labels.

        K is the width of the widest read-out; a class that a row's own read-out does not have, or that it was never
        fitted on, has logit -1000.
        """
        if self.training:
            return self.project(x)
        features = self.embed(x)
        if task_labels is None:
            return {task: self.readout(features, task) for task in self.readout.tasks}
        if isinstance(task_labels, int):
            one: Tensor = self.readout(features, task_labels)
            return one
        logits = features.new_full((len(features), self.readout.width), UNFITTED_LOGIT)
        for task in task_labels.unique().tolist():
            rows = task_labels == task
            own = self.readout(features[rows], task)
            logits[rows, : own.shape[1]] = own.to(logits)
        return logits


class SimplexClassifier(nn.Module):
    """A classifier with fixed weights: the corners of a regular simplex, which are as far apart as possible.

    Each class has its direction from the start, also a class that is learned later, so that the features of old and
    new models stay comparable (Pernici, Bruni, Baecchi and Del Bimbo 2021, arXiv:2103.04741; stationary
    representations, CVPR 2024). It can be used in any model, such as
    ``nn.Sequential(encoder, nn.Linear(D, K - 1), SimplexClassifier(K))``.

    Each of the K corners has unit length, and any two of them have the inner product -1 / (K - 1).

    Attributes:
        weight: (K, K - 1), a buffer: no optimiser moves it.
        feature_size: K - 1, the width of the features that it takes.

    Args:
        num_classes: K >= 2, including the classes that are learned later.
    """

    weight: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        check_count("SimplexClassifier", 2, num_classes=num_classes)
        self.num_classes, self.feature_size = num_classes, num_classes - 1
        self.register_buffer("weight", simplex(num_classes).to(torch.get_default_dtype()))

    def forward(self, features: Tensor) -> Tensor:
        """Logits (..., K), inner products with the corners, of features (..., K - 1)."""
        if features.shape[-1:] != (self.feature_size,):
            raise ValueError(
                f"SimplexClassifier: features must be {self.feature_size} wide, one less than the {self.num_classes} "
                f"classes, got shape {tuple(features.shape)}. Put nn.Linear(D, {self.feature_size}) before it."
            )
        return F.linear(features, self.weight)


def simplex(corners: int) -> Tensor:
    """The corners of a regular simplex, centred and of unit length, (K, K - 1) float64.

    The n = K - 1 unit vectors and the vector a (1, ..., 1), a = (1 - sqrt(1 + n)) / n, are all at the same distance.
    """
    n = corners - 1
    last = torch.full((1, n), (1 - (1 + n) ** 0.5) / n, dtype=torch.float64)
    points = torch.cat([torch.eye(n, dtype=torch.float64), last])
    return F.normalize(points - points.mean(dim=0), dim=1)
