"""The read-out of Co2L's model, kept to the encoder that it reads."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from avalanche_contrastive._torch import digest, own_random_state
from avalanche_contrastive.features import strategy_features
from avalanche_contrastive.models import ContrastiveModel
from avalanche_contrastive.readout import TaskReadOuts, embed_dataset, fit_linear, fit_nearest_mean
from avalanche_contrastive.tasks import pair_codes

__all__ = ["ReadOutRefit"]

PLAIN = (bool, int, float, str)  # values that layers keep outside of tensors


class ReadOutRefit:
    """Fits the read-out to the experience's images and the memory, whenever it is asked and the model is another one.

    Attributes:
        datasets: that it is fitted to: of the latest experience, until the next one.

    Args:
        kind: "linear" or "ncm".
        lr: of the linear read-out.
        epochs: of the linear read-out.
        batch_size: of the linear read-out.
        balance: "class", "domain" or "domain and class": what its images are drawn evenly by.
        augment: fit it to augmented images, drawn anew in each epoch.
    """

    def __init__(self, *, kind: str, lr: float, epochs: int, batch_size: int, balance: str, augment: bool) -> None:
        self.kind, self.lr, self.epochs, self.batch_size = kind, lr, epochs, batch_size
        self.balance, self.augment = balance, augment
        self.datasets: list[Any] = []
        self._experience: Any = None  # the latest
        self._fitted_for: tuple[int, str, str] | None = None  # the model, and all its values

    def __getstate__(self) -> dict[str, Any]:
        """Without the images: a saved read-out is that of the saved model."""
        return {**vars(self), "datasets": [], "_experience": None, "_fitted_for": None}

    def begin(self, experience: Any, memory: Any) -> None:
        """The images of an experience, and those of earlier ones in the memory: the read-out does not know them yet."""
        self.datasets = [data for data in (experience.dataset, memory) if len(data) > 0]
        self._experience, self._fitted_for = experience, None

    def __call__(self, strategy: Any, model: ContrastiveModel, augmentation: Callable[[Any], Any] | None) -> None:
        """Fit, unless not a bit of the model has changed since.

        By value: weights may be written past every counter (``.data``, as averaging plugins do).

        Args:
            strategy: whose forward pass, device and batch sizes are used.
            model: whose read-out is fitted.
            augmentation: of batches; None: the images' training transform is one.
        """
        if not self.datasets or self._fitted_for == _state_of(model):
            return
        readout = model.readout
        with torch.inference_mode(False), own_random_state(), _in_experience(strategy, self._experience):
            if isinstance(readout, TaskReadOuts):
                readout.forget()
                for task in sorted({int(t) for data in self.datasets for t in data.targets_task_labels.uniques}):
                    own = [_of_task(data, task) for data in self.datasets]
                    readout.widen(task, 1)  # a model without any class gives no output
                    readout.fit(task, *self._fitted(strategy, model, own, augmentation), unit=self.kind == "ncm")
            else:
                readout.widen(1)
                readout.fit(*self._fitted(strategy, model, self.datasets, augmentation), unit=self.kind == "ncm")
        self._fitted_for = _state_of(model)

    def _fitted(
        self, strategy: Any, model: ContrastiveModel, datasets: list[Any], augmentation: Callable[[Any], Any] | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Class ids (C,), weight (C, D) and bias (C,) of a read-out of some datasets together."""
        images = [data for data in datasets if len(data) > 0]
        if self.kind == "ncm" or not self.augment:
            features, y = _embedded(strategy, model, images)
            if self.kind == "ncm":
                return fit_nearest_mean(features, y)
            each_epoch: Tensor | Callable[[int], Tensor] = features
        else:
            images = images if augmentation is not None else [_UnderTrainingTransform(data) for data in images]
            first, y = _embedded(strategy, model, images, augmentation)

            def each_epoch(epoch: int) -> Tensor:
                return first if epoch == 0 else _embedded(strategy, model, images, augmentation)[0]

        balance = None if isinstance(model.readout, TaskReadOuts) else self._groups(datasets, y)
        return fit_linear(each_epoch, y, balance=balance, lr=self.lr, epochs=self.epochs, batch_size=self.batch_size)

    def _groups(self, datasets: list[Any], y: Tensor) -> Tensor | None:
        """What each image counts as in the draws, (N,); None: its class."""
        if self.balance == "class":
            return None
        domains = torch.tensor([int(t) for data in datasets for t in data.targets_task_labels], device=y.device)
        domains = domains.repeat_interleave(len(y) // len(domains))  # a transform may make views of each image
        return domains if self.balance == "domain" else pair_codes(domains, y)


@contextmanager
def _in_experience(strategy: Any, experience: Any) -> Iterator[None]:
    """Evaluation begins outside of any experience, and a forward pass may look at its task labels."""
    kept, strategy.experience = strategy.experience, experience
    try:
        yield
    finally:
        strategy.experience = kept


class _UnderTrainingTransform(Dataset[Any]):
    """A dataset that stays as it is in training, however it is asked to be."""

    def __init__(self, data: Any) -> None:
        self.data = data.train()
        self.collate_fn = self.data.collate_fn

    def eval(self) -> "_UnderTrainingTransform":
        return self

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Any:
        return self.data[index]


def _embedded(
    strategy: Any, model: ContrastiveModel, datasets: list[Any], augmentation: Callable[[Any], Any] | None = None
) -> tuple[Tensor, Tensor]:
    """Features (N, D) and class ids (N,) of some datasets together, by the strategy's own forward pass."""

    def augment(model: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return args if augmentation is None else (augmentation(args[0]), *args[1:])

    batch_size = max(strategy.eval_mb_size, strategy.train_mb_size)  # Avalanche's default for evaluation is 1
    features_of = strategy_features(strategy, model, flat=False)
    with model.register_forward_pre_hook(augment):
        parts = [
            embed_dataset(model, data, batch_size=batch_size, device=strategy.device, features_of=features_of)
            for data in datasets
        ]
    features, y = torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts]).long()
    _check_features(features)
    return features, y


def _state_of(model: ContrastiveModel) -> tuple[int, str, str]:
    """What the read-out depends on: all values of the model but those of the read-out's unfitted columns."""
    modules = [module for name, module in model.named_modules() if not name.startswith("readout")]
    tensors = [x for module in modules for x in (*module.parameters(False), *module.buffers(False))]
    plain = [(k, v) for module in modules for k, v in vars(module).items() if isinstance(v, PLAIN) and k != "training"]
    heads: list[Any] = (
        list(model.readout.heads.values()) if isinstance(model.readout, TaskReadOuts) else [model.readout]
    )
    fitted = [part[head.fitted > 0] for head in heads for part in (head.weight, head.bias)]
    return id(model), digest([*tensors, *fitted]), repr(plain)


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
