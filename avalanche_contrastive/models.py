"""The models of Co2L: encoder, projector and read-out, for one head or a head for each task."""

from typing import Any

import torch.nn.functional as F
from avalanche.models import MultiTaskModule
from torch import Tensor, nn

from avalanche_contrastive._checks import check_count
from avalanche_contrastive.readout import UNFITTED_LOGIT, ReadOut, TaskReadOuts

__all__ = ["ContrastiveModel", "MTContrastiveModel"]


class ContrastiveModel(nn.Module):
    """An encoder with a projection head for training and a read-out for evaluation.

    In training mode ``model(x)`` is the unit-length projection that contrastive losses compare; in evaluation mode it
    is class logits, so every metric works unchanged. ``project`` and ``embed`` do not depend on the mode.

    A batch may carry a view axis, (B, V, ...): the encoder sees (B * V, ...) and the results are (B, V, ...) again.
    Logits are averaged over views.

    Args:
        encoder: maps a batch to features (B, feature_size).
        feature_size: width of the encoder's output.
        projection_size: width of the projection (the paper's 128).
        hidden_size: width of the projection head's hidden layer; None: feature_size, as the authors'.
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
        sample_ndim: int | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(encoder, nn.Module):
            raise TypeError(f"ContrastiveModel: encoder must be a torch module, got {type(encoder).__name__}.")
        hidden = feature_size if hidden_size is None else hidden_size
        check_count(
            "ContrastiveModel", 1, feature_size=feature_size, projection_size=projection_size, hidden_size=hidden
        )
        self.encoder = encoder
        self.feature_size = feature_size
        self.sample_ndim = sample_ndim
        self.projector = nn.Sequential(nn.Linear(feature_size, hidden), nn.ReLU(), nn.Linear(hidden, projection_size))
        self.readout = self._new_readout(feature_size)

    def _new_readout(self, feature_size: int) -> Any:
        return ReadOut(feature_size)

    def has_views(self, x: Tensor) -> bool:
        """Whether a batch carries a view axis after its batch axis."""
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
        return x.ndim == self.sample_ndim + 2

    def embed(self, x: Tensor) -> Tensor:
        """Features of the encoder, (B, D) or with views (B, V, D); not normalised."""
        views = x.shape[:2] if self.has_views(x) else None
        features: Tensor = self.encoder(x.flatten(0, 1) if views else x)
        rows = views.numel() if views else len(x)
        if features.shape != (rows, self.feature_size):
            raise ValueError(
                f"ContrastiveModel: the encoder must map {rows} inputs to ({rows}, {self.feature_size}), got "
                f"{tuple(features.shape)}. Is feature_size right, and does the encoder end in a flat layer?"
            )
        # An encoder may compute in half precision by itself.
        features = features.to(next(self.projector.parameters()).dtype)
        return features.unflatten(0, views) if views else features

    def project(self, x: Tensor) -> Tensor:
        """Unit-length projections, (B, P) or with views (B, V, P)."""
        return F.normalize(self.projector(self.embed(x)), dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        """Projections in training mode; class logits (B, K) in evaluation mode."""
        if self.training:
            return self.project(x)
        features = self.embed(x)
        logits: Tensor = self.readout(features)
        return logits.mean(dim=1) if features.ndim == 3 else logits


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
