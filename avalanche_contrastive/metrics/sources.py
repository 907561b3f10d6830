"""Labelled images that a metric fits on or searches in, beside those it evaluates, and their features."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal

import torch
from avalanche.benchmarks.scenarios.generic_scenario import CLStream
from torch import Tensor
from torch.utils.data import Dataset

from avalanche_contrastive._torch import own_random_state
from avalanche_contrastive.features import strategy_features
from avalanche_contrastive.readout import embed_dataset
from avalanche_contrastive.tasks import trained_dataset

__all__ = ["Data", "Source"]

# "seen", an experience, a dataset, a stream or list of these, or a function of the strategy that gives one of them.
Data = Literal["seen"] | Iterable[Any] | Callable[[Any], Any] | Any


class Source:
    """Which images a metric fits on or searches in.

    Args:
        data: "seen", the training data of all experiences that training has started on, the current one included; or an
            experience, a dataset, or a stream or list of these; or a function of the strategy that gives one of these,
            such as ``lambda strategy: strategy.plugins[0].storage_policy.buffer``; or another source.
        name: what the names of values say of it; None: made from the data ("seen", "train_exp0-4", or the function's).

    Raises:
        ValueError: data of another kind or without an image, an empty name or one with a '/', a lambda without a name.
    """

    def __init__(self, data: Data, name: str | None = None) -> None:
        data = data.data if isinstance(data, Source) else data
        self.data: Any = list(data) if isinstance(data, Iterator) else data
        if isinstance(data, str) and data != "seen":
            raise ValueError(f"data must be 'seen', experiences, a dataset or a function, got {data!r}.")
        if not isinstance(data, str) and not callable(data) and next(_datasets(self.data), None) is None:
            raise ValueError("data must hold at least one image, got none.")
        self.name = _name_of(self.data) if name is None else name
        if not isinstance(self.name, str) or not self.name or "/" in self.name or self.name == "<lambda>":
            raise ValueError(f"the data of a metric needs a name without '/' (name='...'), got {self.name!r}.")
        self._seen: list[Any] = []
        self._embedded: dict[str | None, tuple[Tensor, Tensor] | None] = {}

    @classmethod
    def of(cls, data: Any, name: str | None = None) -> "Source":
        """Data of a kind that ``Source`` takes, or a source as it is."""
        return data if isinstance(data, Source) and name is None else cls(data, name)

    def begin(self, strategy: Any) -> None:
        """Before training: a strategy that has trained on nothing has seen nothing."""
        if strategy.clock.train_exp_counter == 0:
            self._seen = []

    def note(self, strategy: Any) -> None:
        """Note the data of the experience that training starts on; once, however many metrics share this source."""
        if isinstance(self.data, str):
            dataset = trained_dataset(strategy)
            if not any(dataset is noted for noted in self._seen):
                self._seen.append(dataset)

    def release(self) -> None:
        """Let go of what was embedded: the next evaluation's model is another."""
        self._embedded = {}

    def shared(self, strategy: Any, layer: str | None = None) -> tuple[Tensor, Tensor] | None:
        """``embed``, once for all metrics that share this source in an evaluation, until one calls ``release``."""
        if layer not in self._embedded:
            self._embedded[layer] = self.embed(strategy, layer)
        return self._embedded[layer]

    def embed(self, strategy: Any, layer: str | None = None) -> tuple[Tensor, Tensor] | None:
        """Features (N, D) and labels (N,) under the evaluation transforms, by the strategy's model as it is.

        None where there is no image. Random states, modes and batch statistics are left as they were.
        """
        if isinstance(self.data, str):
            datasets: Iterable[Any] = self._seen
        else:
            datasets = _datasets(self.data(strategy) if callable(self.data) else self.data)
        # Avalanche's default for evaluation is one image at a time.
        options = {"batch_size": max(strategy.eval_mb_size, strategy.train_mb_size), "device": strategy.device}
        features_of = strategy_features(strategy, strategy.model, layer)
        with own_random_state():
            parts = [
                embed_dataset(strategy.model, dataset, features_of=features_of, **options)
                for dataset in datasets
                if len(dataset) > 0
            ]
        if not parts:
            return None
        return torch.cat([features for features, _ in parts]), torch.cat([y for _, y in parts])


def _datasets(given: Any) -> Iterator[Any]:
    if isinstance(given, (list, tuple, CLStream, Iterator)):
        for part in given:
            yield from _datasets(part)
    elif hasattr(given, "dataset") and not isinstance(given, Dataset):
        yield given.dataset
    elif hasattr(given, "__getitem__") and hasattr(given, "__len__") and not isinstance(given, (str, Tensor, Mapping)):
        if len(given):
            yield given
    else:
        raise ValueError(
            f"data must be an experience, a dataset, or a stream or list of these, got {type(given).__name__}. (Of a "
            "benchmark, give one of its streams; of images and labels make a TensorDataset.)"
        )


def _name_of(data: Any) -> str:
    """ "seen", a function's name, or the stream and its experiences: train_exp0-4."""
    if isinstance(data, str):
        return data
    if callable(data):
        return str(getattr(data, "__name__", type(data).__name__))
    several = isinstance(data, (list, tuple)) or (isinstance(data, CLStream) and hasattr(data, "__len__"))
    experiences = list(data) if several else [data]
    if not experiences or not all(hasattr(e, "origin_stream") for e in experiences):
        return str(getattr(data, "name", "data"))
    streams = "+".join(sorted({e.origin_stream.name for e in experiences}))
    ids = [e.current_experience for e in experiences]
    run = len(ids) > 1 and ids == list(range(ids[0], ids[-1] + 1))
    return f"{streams}_exp{f'{ids[0]}-{ids[-1]}' if run else '+'.join(map(str, ids))}"
