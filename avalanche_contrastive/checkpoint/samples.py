"""Where stored samples come from: the sources of a strategy's memories are looked up in its stream."""

import copy
from collections.abc import Iterable, Iterator
from typing import Any

from avalanche.benchmarks.utils import AvalancheDataset
from avalanche.benchmarks.utils.flat_data import FlatData
from avalanche.training.determinism.rng_manager import RNGManager
from avalanche.training.plugins import SupervisedPlugin
from torch.utils.data import default_collate

from avalanche_contrastive._datasets import StoredSource, fingerprint, is_source
from avalanche_contrastive.checkpoint.kinds import MismatchError, Stateless

__all__ = ["GIVE_THE_STREAM", "LookUp", "Sources"]

GIVE_THE_STREAM = "Give the stream at once: restore(strategy, path, stream=benchmark.train_stream)."


class Sources:
    """Where stored samples come from: data sets by fingerprint."""

    def __init__(self) -> None:
        self.wanted: dict[str, int] = {}  # sizes by fingerprint
        self.collate: Any = None  # the stream's own way of putting samples into batches, if it is known to have one
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
        if id(node) not in self._seen:
            self._seen[id(node)] = node
            if is_source(node) and not isinstance(node, StoredSource):
                self._found.setdefault(fingerprint(node), []).append(node)
            for part in node._datasets if isinstance(node, FlatData) else ():
                self.add(part)

    def look_at(self, streams: Iterable[Iterable[Any]]) -> None:
        """Take in the experiences of streams, up to the stream that has the last one missing, which is looked for."""
        state = RNGManager.__getstate__()  # a stream that is made on the way may draw
        try:
            for stream in streams:
                for experience in stream if isinstance(stream, Iterable) else [stream]:
                    if not hasattr(experience, "dataset"):
                        raise MismatchError(f"stream= is no stream: {type(experience).__name__}. {GIVE_THE_STREAM}")
                    self.add(experience.dataset)
                    is_usual = experience.dataset.collate_fn is default_collate
                    self.collate = self.collate if is_usual else experience.dataset.collate_fn
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
        for key, size in self.wanted.items():
            self.get(key, size)

    def get(self, key: str, size: int) -> Any:
        """The data set of a fingerprint and size, or what stands for it until it is found."""
        self.wanted[key] = size
        if key in self.missing:
            return self._waiting.setdefault(key, StoredSource(key, size))
        found = self._found[key]
        if len(found) > 1:
            thorough = {fingerprint(source, thorough=True) for source in found}
            if len(thorough) > 1 or "" in thorough:
                raise MismatchError(
                    f"the stream has {len(found)} data sets that look alike (the same length, labels and transforms), "
                    "and the stored samples may be of any of them. Give what differs a public attribute."
                )
        return found[0]

    def connect(self) -> None:
        """Let restored data sets have their samples, once all is found."""
        for key, waiting in self._waiting.items():
            waiting.source = self.get(key, len(waiting))
        self._waiting = {}


class LookUp(SupervisedPlugin[Any], Stateless):
    """Looks stored samples up when a strategy trains that was restored without a stream; before the other plugins."""

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
