"""Data sets and benchmarks, loaded into memory once."""

import dataclasses
from collections.abc import Iterable, Sequence
from copy import copy
from itertools import accumulate
from typing import Any, Literal

import psutil  # type: ignore[import-untyped, unused-ignore]  # comes with Avalanche
import torch
from avalanche.benchmarks.scenarios import CLScenario, EagerCLStream
from avalanche.benchmarks.scenarios.deprecated.dataset_scenario import DatasetScenario
from avalanche.benchmarks.scenarios.deprecated.lazy_dataset_sequence import LazyDatasetSequence
from avalanche.benchmarks.scenarios.generic_scenario import ExperienceAttribute
from avalanche.benchmarks.utils.data import AvalancheDataset, _FlatDataWithTransform
from torch import Tensor
from torch.utils.data import DataLoader, default_collate

from avalanche_contrastive._checks import check_choice, check_count, form_of
from avalanche_contrastive.data.augment import Normalisation
from avalanche_contrastive.data.fetch import fetch_whole_batches
from avalanche_contrastive.data.memory import MemoryImages, collate

__all__ = ["in_memory"]

PROBED = 32  # samples that are loaded twice, to see whether a transform draws


def in_memory(
    data: Any,
    *,
    images: Literal["auto", "bytes", "floats"] = "auto",
    transforms: Literal["same", "eval"] = "same",
    normalise: Normalisation | None = None,
    device: torch.device | str = "cpu",
    num_workers: int = 0,
) -> Any:
    """Load a data set, or all data sets of a benchmark, into memory, from where whole batches are taken at once.

    Avalanche fetches sample by sample, through its tree of data sets and the transforms; on small images this takes
    longer than the training. What this gives back behaves as the original: the same samples in the same order, the same
    attributes, subsets, buffers and loaders. Transforms are applied once, now, and must not draw: give augmentations a
    batch (``SimCLRAugmentation``, ``BatchAugmentation``), by the plugin's ``augmentation=``.

    From the first call on Avalanche's loaders fetch whole batches wherever all of a data set is in memory.

    Args:
        data: a benchmark, one of Avalanche's data sets, or any data set of (image, label) that ends in tensors
            (C, H, W) of one size. It is left as it is.
        images: how they are kept. "auto": as bytes where all values are multiples of 1/255, which is exact and takes a
            quarter of the memory (images after ``ToTensor``), else as they are. "bytes" demands that; "floats" does
            without.
        transforms: "same" demands that training and evaluation see the same images; "eval" trains on those that
            evaluation sees, whatever the training transform is.
        normalise: (mean, std) of each channel, taken from and divided out of each batch: instead of ``Normalize`` in
            the transforms, after which images are no bytes.
        device: where the images lie. On a GPU batches are taken there, and nothing is copied in training; load with
            ``num_workers=0``.
        num_workers: of the loading.

    Returns:
        The same kind of object; a ``MemoryImages`` for a plain data set.

    Raises:
        TypeError: no data set or benchmark, a benchmark of streams that are generated as they go, or samples that are
            not an image tensor and an integer label.
        ValueError: a transform that draws, unequal transforms, images of several sizes, or too little memory.
    """
    check_choice("in_memory", "images", images, ("auto", "bytes", "floats"))
    check_choice("in_memory", "transforms", transforms, ("same", "eval"))
    check_count("in_memory", 0, num_workers=num_workers)
    fetch_whole_batches()

    def loaded(datasets: Sequence[Any]) -> MemoryImages:
        x, y = _load(datasets, images, transforms, num_workers)
        return MemoryImages(x.to(device), y, normalise=normalise)

    if isinstance(data, CLScenario):
        return _with_datasets(
            data, {name: _loaded_datasets(_datasets_of(stream), loaded) for name, stream in data.streams.items()}
        )
    if isinstance(data, AvalancheDataset):
        return _loaded_datasets([data], loaded)[0]
    if not (hasattr(data, "__getitem__") and hasattr(data, "__len__")):
        raise TypeError(f"in_memory: data must be a benchmark or a data set with a length, got {type(data).__name__}.")
    return loaded([data])


# ---- samples


def _load(datasets: Sequence[Any], images: str, transforms: str, num_workers: int) -> tuple[Tensor, Tensor]:
    """The images and labels of all samples of some data sets."""
    filled = [data for data in datasets if len(data) > 0]
    if not filled:
        raise ValueError("in_memory: there is no sample to load.")
    seen = [data.eval() if isinstance(data, AvalancheDataset) else data for data in filled]
    for data in seen:
        _refuse_draws(data)
    x, y = _all_samples(seen, images, num_workers)
    if transforms == "same":
        for begin, data in zip(accumulate(map(len, filled), initial=0), filled, strict=False):
            if isinstance(data, AvalancheDataset):
                _refuse_draws(data.train())
                _refuse_other_images(data.train(), x, begin, num_workers)
    return x, y


def _all_samples(datasets: Sequence[Any], images: str, num_workers: int) -> tuple[Tensor, Tensor]:
    first = _sample(datasets[0], datasets[0][0])[0]
    count = sum(len(data) for data in datasets)
    as_bytes = images != "floats" and (first.dtype == torch.uint8 or _bytes_of(first) is not None)
    _check_memory(count * first.numel() * (1 if as_bytes else first.element_size()))
    x = torch.empty(count, *first.shape, dtype=torch.uint8 if as_bytes else first.dtype)
    y = torch.empty(count, dtype=torch.int64)
    at = 0
    for data in datasets:
        for batch, labels in _batches(data, num_workers):
            if batch.shape[1:] != first.shape or batch.dtype != first.dtype:
                raise ValueError(
                    f"in_memory: images must have one size and type; the first is {first.dtype} of {tuple(first.shape)}"
                    f", one of the {len(batch)} from sample {at} on is {batch.dtype} of {tuple(batch.shape[1:])}. "
                    "Resize them by a transform."
                )
            stored = _bytes_of(batch) if as_bytes and batch.is_floating_point() else batch
            if stored is None:  # what was read before were bytes, this is not
                as_bytes, stored, x = False, batch, x.to(first.dtype).div_(255)
            x[at : at + len(batch)], y[at : at + len(batch)] = stored, labels
            at += len(batch)
    if images == "bytes" and x.dtype != torch.uint8:
        raise ValueError(
            'in_memory: images="bytes" needs images whose values are multiples of 1/255, as ToTensor gives them. Is '
            "there a Normalize among the transforms? Leave it out and pass normalise=(mean, std)."
        )
    return x, y


def _bytes_of(x: Tensor) -> Tensor | None:
    """The bytes of which ``ToTensor`` gives these floats, if there are such."""
    if x.dtype != torch.float32 or not ((x >= 0) & (x <= 1)).all():
        return None
    stored = x.mul(255).round_().to(torch.uint8)
    return stored if torch.equal(stored.to(torch.float32).div_(255), x) else None


def _batches(data: Any, num_workers: int) -> Iterable[tuple[Tensor, Tensor]]:
    for samples in DataLoader(data, batch_size=256, num_workers=num_workers, collate_fn=list):
        pairs = [_sample(data, sample) for sample in samples]
        sizes = {image.shape for image, _ in pairs}
        if len(sizes) > 1:
            raise ValueError(
                f"in_memory: images must have one size, got {', '.join(str(tuple(size)) for size in sorted(sizes))}. "
                "Resize them by a transform."
            )
        yield torch.stack([image for image, _ in pairs]), torch.tensor([label for _, label in pairs])


def _sample(data: Any, sample: Any) -> tuple[Tensor, int]:
    """Image and label of a sample, without the attributes that Avalanche adds."""
    added = 0
    if isinstance(data, AvalancheDataset):
        added = sum(attribute.use_in_getitem for attribute in data._data_attributes.values())
    if not isinstance(sample, (tuple, list)) or len(sample) != 2 + added:
        parts = f"{len(sample)} parts" if isinstance(sample, (tuple, list)) else type(sample).__name__
        raise TypeError(f"in_memory: a sample must be (image, label), got {parts}.")
    image, label = sample[:2]
    is_image = isinstance(image, Tensor) and (image.is_floating_point() or image.dtype == torch.uint8)
    if not is_image or image.ndim != 3:
        raise TypeError(f"in_memory: an image must be a tensor (C, H, W), got {form_of(image)}. Is a ToTensor missing?")
    if isinstance(label, bool) or not hasattr(label, "__index__"):
        raise TypeError(f"in_memory: a label must be an integer, got {type(label).__name__}.")
    return image, int(label)


def _refuse_draws(data: Any) -> None:
    """Refuse a transform that gives another image each time it is asked."""
    for index in range(min(PROBED, len(data))):
        one, other = (_sample(data, data[index])[0] for _ in range(2))
        if one.shape != other.shape or not torch.equal(one, other):
            raise ValueError(
                f"in_memory: sample {index} is another image each time: its transform draws, and one draw would stay "
                "for good. Leave the augmentation out of the transforms and give it batches: SimCLRAugmentation or "
                'BatchAugmentation by the plugin\'s augmentation=. (Or transforms="eval", to train on the images that '
                "evaluation sees.)"
            )


def _refuse_other_images(data: Any, x: Tensor, begin: int, num_workers: int) -> None:
    for batch, _ in _batches(data, num_workers):
        kept = x[begin : begin + len(batch)]
        kept = kept.to(torch.float32).div_(255) if kept.dtype == torch.uint8 and batch.is_floating_point() else kept
        if batch.shape != kept.shape or not torch.equal(batch, kept):
            raise ValueError(
                f"in_memory: training and evaluation see other images (from sample {begin} on), as their transforms "
                'differ. Make them equal, or pass transforms="eval" to train on those that evaluation sees.'
            )
        begin += len(batch)


def _check_memory(needed: int) -> None:
    free = psutil.virtual_memory().available
    if needed > free:
        raise ValueError(
            f"in_memory: the images take {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free. Use fewer or smaller "
            "images, or leave the data set where it is."
        )


# ---- Avalanche's data sets and benchmarks


def _loaded_datasets(datasets: Sequence[Any], loaded: Any) -> list[Any]:
    """The data sets with one set of images in memory for all of them; empty ones stay."""
    if not any(len(data) for data in datasets):
        return list(datasets)
    leaf = loaded(datasets)
    result = []
    for begin, data in zip(accumulate(map(len, datasets), initial=0), datasets, strict=False):
        rows = _FlatDataWithTransform([leaf], indices=list(range(begin, begin + len(data))))
        rows = rows.with_transforms(data._flat_data._transform_groups.current_group)
        attributes = list(data._data_attributes.values())
        own = data.collate_fn not in (None, default_collate)  # the user's sees samples, as ever
        result.append(type(data)([rows], data_attributes=attributes, collate_fn=data.collate_fn if own else collate))
    return result


def _datasets_of(stream: Any) -> list[Any]:
    if not hasattr(stream, "__len__"):
        raise TypeError(
            f'in_memory: the stream "{stream.name}" is generated as it goes. Load its benchmark before it is split '
            "into an online stream."
        )
    datasets = [getattr(experience, "dataset", None) for experience in stream]
    if any(not isinstance(data, AvalancheDataset) for data in datasets):
        raise TypeError(f'in_memory: an experience of the stream "{stream.name}" has no data set.')
    return datasets


def _with_datasets(benchmark: Any, datasets: dict[str, list[Any]]) -> Any:
    """A copy of a benchmark with other data sets."""
    result = copy(benchmark)
    result._streams = {}
    if isinstance(benchmark, DatasetScenario):  # its experiences come from its definitions, anew each time
        result.stream_definitions = {
            name: dataclasses.replace(definition, exps_data=_sequence(datasets[name]), is_lazy=False)
            for name, definition in benchmark.stream_definitions.items()
        }
    for name, stream in benchmark.streams.items():
        copied = copy(stream)
        copied.benchmark = result if stream.benchmark is not None else None
        copied.exps_iter = copied
        if isinstance(copied, EagerCLStream):
            copied._exps = [
                _with_dataset(experience, data, copied)
                for experience, data in zip(stream._exps, datasets[name], strict=True)
            ]
        result._streams[name] = result.__dict__[f"{name}_stream"] = copied
    return result


def _sequence(datasets: list[Any]) -> LazyDatasetSequence[Any]:
    sequence = LazyDatasetSequence(datasets, len(datasets))
    sequence.load_all_experiences()
    return sequence


def _with_dataset(experience: Any, data: Any, stream: Any) -> Any:
    result = copy(experience)
    # Attributes with a visibility are objects of their own, which a copied experience would share.
    result.__dict__ = {
        name: copy(value) if isinstance(value, ExperienceAttribute) else value for name, value in vars(result).items()
    }
    result._dataset = data
    result.origin_stream = stream
    return result
