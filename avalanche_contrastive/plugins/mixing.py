"""The memory inside an experience's dataset: each exemplar once per epoch, mixed uniformly with the current images."""

from collections.abc import Callable
from functools import partial
from typing import Any

from avalanche.benchmarks.utils import AvalancheDataset, make_avalanche_dataset
from avalanche.benchmarks.utils.data_attribute import DataAttribute
from avalanche.benchmarks.utils.data_loader import SingleDatasetDataLoader
from avalanche.training.templates import base_sgd
from torch.utils.data import Dataset, default_collate

from avalanche_contrastive._checks import form_of

__all__ = ["load_uniformly", "mixed"]


def mixed(name: str, current: AvalancheDataset[Any], memory: AvalancheDataset[Any]) -> AvalancheDataset[Any]:
    """The two datasets as one.

    Raises:
        ValueError: their images are not of one size and type, as torch's own collation needs them.
    """
    ours, stored = current[0], memory[0]
    # Another collate_fn than torch's may pad them, for example.
    if current.collate_fn is default_collate and form_of(ours[0]) != form_of(stored[0]):
        raise ValueError(
            f"{name}: images of this experience are {form_of(ours[0])}, those in the memory {form_of(stored[0])}, and "
            "one batch holds both. Give all experiences samples of one size and type, by a transform."
        )
    parts = len(ours)
    if len(stored) > parts:  # class-balanced buffers of Avalanche add task labels to streams that have none
        targets = DataAttribute(list(memory.targets), "targets")
        memory = make_avalanche_dataset(_Trimmed(memory, parts), data_attributes=[targets])
    return current.concat(memory)


class _Trimmed(Dataset[Any]):
    """A dataset's samples cut to their first parts."""

    def __init__(self, dataset: Any, parts: int) -> None:
        self.dataset, self.parts = dataset, parts

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        return self.dataset[index][: self.parts]


def load_uniformly(strategy: Any) -> None:
    """Have the next training loader mix all rows of the adapted dataset, each once per epoch.

    Avalanche's for a stream with task labels draws as many rows of each label, and takes no batch that is smaller than
    their number. It is made right after the datasets are adapted, and cannot be replaced later: by then it has failed.
    """
    labels = getattr(strategy.adapted_dataset, "targets_task_labels", None)
    if labels is not None and len(labels.uniques) > 1:
        strategy.make_train_dataloader = partial(_make_train_dataloader, strategy, strategy.make_train_dataloader)


def _make_train_dataloader(strategy: Any, make: Callable[..., None], *args: Any, **kwargs: Any) -> None:
    """The strategy's own ``make_train_dataloader``, for once with the loader that Avalanche has for a single group.

    A method of the user's may call Avalanche's in the middle, so the loader's name is all that can be exchanged.
    """
    del strategy.make_train_dataloader
    if strategy.make_train_dataloader != make:  # not a method of its class, but put there by the user
        strategy.make_train_dataloader = make
    usual = base_sgd.TaskBalancedDataLoader
    base_sgd.TaskBalancedDataLoader = _of_one_group
    try:
        make(*args, **kwargs)
    finally:
        base_sgd.TaskBalancedDataLoader = usual


def _of_one_group(data: Any, *, oversample_small_groups: bool, **arguments: Any) -> SingleDatasetDataLoader:
    return SingleDatasetDataLoader(data, **arguments)
