"""The read-out of Co2L's model, kept to the encoder that it reads."""

from typing import Any

import torch
from torch import Tensor

from avalanche_contrastive._torch import digest, own_random_state
from avalanche_contrastive.models import ContrastiveModel
from avalanche_contrastive.readout import TaskReadOuts, embed_dataset, fit_linear, fit_nearest_mean

__all__ = ["ReadOutRefit"]


class ReadOutRefit:
    """Fits the read-out to the experience's images and the memory, whenever it is asked and the model is another one.

    Attributes:
        datasets: that it is fitted to: of the latest experience, until the next one.

    Args:
        kind: "linear" or "ncm".
        lr: of the linear read-out.
        epochs: of the linear read-out.
        batch_size: of the linear read-out.
    """

    def __init__(self, *, kind: str, lr: float, epochs: int, batch_size: int) -> None:
        self.kind, self.lr, self.epochs, self.batch_size = kind, lr, epochs, batch_size
        self.datasets: list[Any] = []
        self._fitted_for: tuple[int, str] | None = None  # the model, and all its values

    def __getstate__(self) -> dict[str, Any]:
        """Without the images: a saved read-out is that of the saved model."""
        return {**vars(self), "datasets": [], "_fitted_for": None}

    def begin(self, *datasets: Any) -> None:
        """The images of an experience, and those of earlier ones in the memory: the read-out does not know them yet."""
        self.datasets = [data for data in datasets if len(data) > 0]
        self._fitted_for = None

    def __call__(self, strategy: Any, model: ContrastiveModel) -> None:
        """Fit, unless not a bit of the model has changed since.

        By value: weights may be written past every counter (``.data``, as averaging plugins do).
        """
        if not self.datasets or self._fitted_for == _state_of(model):
            return
        readout = model.readout
        with torch.inference_mode(False), own_random_state():
            if isinstance(readout, TaskReadOuts):
                readout.forget()
                for task in sorted({int(t) for data in self.datasets for t in data.targets_task_labels.uniques}):
                    own = [_of_task(data, task) for data in self.datasets]
                    readout.fit(task, *self._fitted(strategy, model, own), unit=self.kind == "ncm")
            else:
                readout.fit(*self._fitted(strategy, model, self.datasets), unit=self.kind == "ncm")
        self._fitted_for = _state_of(model)

    def _fitted(self, strategy: Any, model: ContrastiveModel, parts: list[Any]) -> tuple[Tensor, Tensor, Tensor]:
        """Class ids (C,), weight (C, D) and bias (C,) of a read-out of some datasets together."""
        batch_size = max(strategy.eval_mb_size, strategy.train_mb_size)  # Avalanche's default for evaluation is 1
        embedded = [
            embed_dataset(model, data, batch_size=batch_size, device=strategy.device) for data in parts if len(data) > 0
        ]
        features, y = torch.cat([part[0] for part in embedded]), torch.cat([part[1] for part in embedded]).long()
        _check_features(features)
        if self.kind == "ncm":
            return fit_nearest_mean(features, y)
        return fit_linear(features, y, lr=self.lr, epochs=self.epochs, batch_size=self.batch_size)


def _state_of(model: ContrastiveModel) -> tuple[int, str]:
    """What the read-out depends on: all values of the model but those of the read-out's unfitted columns."""
    tensors = [value for name, value in model.state_dict().items() if not name.startswith("readout.")]
    heads: list[Any] = (
        list(model.readout.heads.values()) if isinstance(model.readout, TaskReadOuts) else [model.readout]
    )
    fitted = [part[head.fitted > 0] for head in heads for part in (head.weight, head.bias)]
    return id(model), digest([*tensors, *fitted])


def _of_task(data: Any, task: int) -> Any:
    """The samples of a dataset with one task label."""
    return data.subset(data.targets_task_labels.val_to_idx.get(task, []))


def _check_features(features: Tensor) -> None:
    if not bool(features.isfinite().all()):
        broken = int((~features.isfinite().all(dim=1)).sum())
        raise ValueError(
            f"Co2LPlugin: {broken} of the {len(features)} features to fit the read-out to are not finite. Do the "
            "evaluation transforms give NaN where the training ones do not, or has the encoder diverged?"
        )
