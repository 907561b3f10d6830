"""The torch loader behind any of Avalanche's loaders, and others that differ from it in what they load."""

from typing import Any

from avalanche.benchmarks.utils.data_loader import (
    GroupBalancedDataLoader,
    MultiDatasetDataLoader,
    SingleDatasetDataLoader,
)
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset

__all__ = ["arguments_of", "torch_loader", "unsharded"]


def torch_loader(loader: Any) -> DataLoader[Any] | None:
    """The torch loader behind a loader, if its samples can be asked for by index."""
    unsharded(loader)
    if isinstance(loader, MultiDatasetDataLoader):
        keeps = loader.loader_kwargs.get("persistent_workers") and loader.loader_kwargs.get("num_workers", 0) > 0
        if keeps and loader._persistent_loader is None:
            loader._persistent_loader = loader._get_loader()
        loader = loader._persistent_loader if keeps else loader._get_loader()
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return None
    return None if loader.batch_sampler is None else loader


def arguments_of(loader: DataLoader[Any]) -> dict[str, Any]:
    """How a loader loads: its arguments but for the dataset, the samplers, the collation and the generator."""
    names = ("num_workers", "pin_memory", "timeout", "worker_init_fn", "multiprocessing_context", "prefetch_factor")
    return {name: getattr(loader, name) for name in (*names, "persistent_workers")}


def unsharded(loader: Any) -> Any:
    """Have one of Avalanche's loaders give whole batches, where it would give parts once processes are joined.

    Raises:
        ValueError: a loader with a ``DistributedSampler`` of the user's.
    """
    if isinstance(loader, MultiDatasetDataLoader) and loader.distributed_sampling:
        loader.distributed_sampling = False
        lengths = [
            len(sampler)
            for sampler in loader._create_samplers(loader.datasets, loader.batch_sizes, False, loader.loader_kwargs)
        ]
        if not loader.never_ending:
            if isinstance(loader, (GroupBalancedDataLoader, SingleDatasetDataLoader)):  # the longest ends the epoch
                loader.termination_dataset = lengths.index(max(lengths))
            loader.n_iterations = lengths[loader.termination_dataset]
    samplers = [getattr(loader, "sampler", None), getattr(getattr(loader, "batch_sampler", None), "sampler", None)]
    if isinstance(loader, DataLoader) and any(isinstance(sampler, DistributedSampler) for sampler in samplers):
        raise ValueError(
            "DataParallel: the training loader has a DistributedSampler, but the plugin gives each process its rows. "
            "Leave the sampler out."
        )
    return loader
