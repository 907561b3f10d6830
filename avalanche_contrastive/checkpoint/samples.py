"""Avalanche data sets as indices: which sample of which data set of the stream; never images.

A stored data set is a tree of concatenations and subsets. Its *sources* are the data sets at the leaves of the tree
that the stream holds as well, with their transforms; they are known by their fingerprints.
"""

import copy
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from avalanche.benchmarks.utils import AvalancheDataset
from avalanche.benchmarks.utils.data import _FlatDataWithTransform
from avalanche.benchmarks.utils.data_attribute import DataAttribute
from avalanche.benchmarks.utils.flat_data import FlatData
from avalanche.training.determinism.rng_manager import RNGManager
from avalanche.training.plugins import SupervisedPlugin
from torch import Tensor
from torch.utils.data import default_collate

from avalanche_contrastive.checkpoint.fingerprints import fingerprint, indices_of, is_plain
from avalanche_contrastive.checkpoint.kinds import MismatchError, Stateless

__all__ = ["GIVE_THE_STREAM", "LookUp", "Sources", "located", "made_attribute", "made_dataset", "smallest"]

Array = np.ndarray[Any, np.dtype[np.int64]]
GIVE_THE_STREAM = "Give restore the stream: restore(strategy, path, stream=benchmark.train_stream)."


# ---- writing


def located(data: Any, fingerprint_of: Any) -> tuple[dict[str, int], Array, Array]:
    """Where the samples of a data set are.

    Returns:
        Sizes of the sources by fingerprint; for each sample the number of its source, and its position there.
    """
    sizes: dict[str, int] = {}

    def find(node: Any, positions: Array) -> tuple[Array, Array]:
        if not is_plain(node):
            key = node.key if isinstance(node, StoredSource) else fingerprint_of(node)
            sizes.setdefault(key, len(node))
            return np.full(len(positions), list(sizes).index(key), dtype=np.int64), positions
        flat = indices_of(node)[positions]
        ends = np.cumsum([len(part) for part in node._datasets], dtype=np.int64)
        parts = np.searchsorted(ends, flat, side="right")
        which, position = np.zeros_like(flat), np.zeros_like(flat)
        for number, part in enumerate(node._datasets):
            rows = np.nonzero(parts == number)[0]
            if len(rows):
                which[rows], position[rows] = find(part, flat[rows] - (ends[number] - len(part)))
        return which, position

    which, position = find(data._flat_data, np.arange(len(data), dtype=np.int64))
    return sizes, which, position


def smallest(numbers: Any) -> Tensor:
    """Integers (N,) in the smallest type that holds them."""
    numbers = np.asarray(numbers, dtype=np.int64)
    low, high = (int(numbers.min()), int(numbers.max())) if len(numbers) else (0, 0)
    kinds = (torch.uint8, torch.int16, torch.int32, torch.int64)
    kind = next(kind for kind in kinds if torch.iinfo(kind).min <= low and high <= torch.iinfo(kind).max)
    return torch.from_numpy(numbers).to(kind)


# ---- reading


class StoredSource(_FlatDataWithTransform[Any]):
    """A source in a restored data set before the stream is known: from then on it gives the samples of the real one.

    Args:
        key: its fingerprint.
        size: samples in it.
    """

    def __init__(self, key: str, size: int) -> None:
        super().__init__([])
        self.key = key
        self.real: Any = None
        self._can_flatten = False
        self._cumulative_sizes = [size]

    def _getitem_recursive_call(self, idx: int, group_name: str) -> Any:
        real = self._real()
        if isinstance(real, _FlatDataWithTransform):
            return real._getitem_recursive_call(idx, group_name)
        return real[idx]

    def __getitem__(self, idx: Any) -> Any:
        return self._real()[idx]

    def _shallow_clone_dataset(self) -> Any:
        return self._real()._shallow_clone_dataset()

    def _real(self) -> Any:
        if self.real is None:
            raise RuntimeError(
                "the stored samples of a restored strategy are looked up in the stream when it trains again, but they "
                f"are asked for before. {GIVE_THE_STREAM}"
            )
        return self.real


class Sources:
    """Where stored samples come from: data sets by fingerprint.

    Args:
        wanted: their sizes by fingerprint.
    """

    def __init__(self, wanted: dict[str, int]) -> None:
        self.wanted = wanted
        self.collate: Any = None  # the stream's own way of putting samples into batches
        self._found: dict[str, list[Any]] = {}
        self._waiting: dict[str, StoredSource] = {}
        self._seen: dict[int, Any] = {}

    @property
    def missing(self) -> list[str]:
        """Fingerprints of what has not been found yet."""
        return [key for key, size in self.wanted.items() if key not in self._found or len(self._found[key][0]) != size]

    def add(self, data: Any) -> None:
        """Take in a data set and all that it is made of."""
        node = data._flat_data if isinstance(data, AvalancheDataset) else data
        if id(node) in self._seen:
            return
        self._seen[id(node)] = node
        if not is_plain(node) and not isinstance(node, StoredSource):
            self._found.setdefault(fingerprint(node), []).append(node)
        for part in node._datasets if isinstance(node, FlatData) else ():
            self.add(part)

    def look_at(self, streams: Iterable[Iterable[Any]]) -> None:
        """Take in the experiences of streams, up to the stream that has the last one missing.

        Raises:
            MismatchError: something is in none of them, or in several places that cannot be told apart.
        """
        state = RNGManager.__getstate__()  # a stream that is made on the way may draw
        try:
            for stream in streams:
                for experience in stream:
                    self.add(experience.dataset)
                    if experience.dataset.collate_fn is not default_collate:
                        self.collate = experience.dataset.collate_fn
                if not self.missing:
                    break
        finally:
            RNGManager.__setstate__(state)
        if self.missing:
            raise MismatchError(
                "the stored samples are not of this stream: a data set with the same length, labels, images and "
                "transforms is not in it. Is it the same benchmark, with the same seed and transforms? Does a method "
                "store features, or images that it has made? If the loop runs over a part of the stream, give the "
                f"whole. {GIVE_THE_STREAM}"
            )
        for key in self.wanted:
            self._only(key)

    def get(self, key: str) -> Any:
        """The data set of a fingerprint, or what stands for it until it is found."""
        if key not in self.missing:
            return self._only(key)
        return self._waiting.setdefault(key, StoredSource(key, self.wanted[key]))

    def _only(self, key: str) -> Any:
        first, *others = self._found[key]
        if others:
            thorough = {fingerprint(source, thorough=True) for source in (first, *others)}
            if len(thorough) > 1 or "" in thorough:
                raise MismatchError(
                    f"the stream has {len(others) + 1} data sets that look alike (the same length, labels and "
                    "transforms), and the stored samples may be of any of them. Give what differs a public attribute."
                )
        return first

    def connect(self) -> None:
        """Let restored data sets have their samples, once all is found."""
        for key, source in self._waiting.items():
            source.real = self._only(key)
        self._waiting = {}


def made_dataset(
    cls: Any, sources: list[Any], which: Tensor, position: Tensor, group: str, attributes: list[Any], collate: Any
) -> Any:
    """A data set of samples of sources.

    Args:
        cls: its class.
        sources: data sets.
        which: for each sample the number of its source, (N,).
        position: and its place there, (N,).
        group: the transform group in use.
        attributes: Avalanche's data attributes, each of N values.
        collate: how samples are put into batches.
    """
    sizes, positions = np.array([len(source) for source in sources], dtype=np.int64), position.long().numpy()
    rows, starts = which.long().numpy(), np.cumsum([0, *sizes])
    if len(rows) != len(positions) or (rows < 0).any() or ((positions < 0) | (positions >= sizes[rows])).any():
        raise MismatchError("the file has stored samples that are in no data set")
    with warnings.catch_warnings():  # of parts that are in other transform groups: the group is set here
        warnings.simplefilter("ignore")
        flat = _FlatDataWithTransform(sources, indices=(positions + starts[rows]).tolist() if sources else None)
    data = cls([flat.with_transforms(group)], data_attributes=attributes)
    data.collate_fn = collate
    return data


def made_attribute(name: str, values: Any, *, in_sample: bool, discards: bool) -> Any:
    """A data attribute with these values, one for each sample."""
    if isinstance(values, list):  # with a second part: Avalanche cannot join a constant to values of a single list
        order = list(range(len(values)))
        values = FlatData([values, values[:1]], indices=order, discard_elements_not_in_indices=discards)
    return DataAttribute(values, name, use_in_getitem=in_sample)


class LookUp(SupervisedPlugin[Any], Stateless):
    """Looks stored samples up in the stream when a strategy trains that was restored without one.

    Avalanche tells the stream to plugins only. This one stands first in the list, for others look at their memories at
    the same moment. It stays there and has nothing more to do.

    Args:
        sources: of the restored strategy.
    """

    supports_distributed = True

    def __init__(self, sources: Sources) -> None:
        super().__init__()
        self.sources = sources

    def before_train_dataset_adaptation(self, strategy: Any, **kwargs: Any) -> None:
        """Find what is still missing."""
        if self.sources.missing:
            self.sources.look_at(_streams_of(strategy.experience))
            self.sources.connect()


def _streams_of(experience: Any) -> Iterator[Iterable[Any]]:
    """Where the samples of earlier experiences may be: the stream, and what it was cut from."""
    experience = experience.logging()
    origin = getattr(experience, "origin_experience", None)
    if origin is not None:
        yield from _streams_of(origin)
    yield [experience]
    stream = getattr(experience, "_origin_stream", None)
    if stream is not None:
        if getattr(stream, "slice_ids", None) is not None:
            stream = copy.copy(stream)
            stream.slice_ids = None
        yield stream
