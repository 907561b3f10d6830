"""Labelled images that a metric fits on or searches in, beside those it evaluates, and their features."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import torch
from avalanche.benchmarks.scenarios.generic_scenario import CLStream
from avalanche.models import avalanche_forward
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from avalanche_contrastive._torch import own_random_state, preserved_modes
from avalanche_contrastive.features import FeatureCapture
from avalanche_contrastive.tasks import trained_dataset

__all__ = ["Data", "Source"]

# "seen", an experience, a dataset, a stream or list of these, or a function of the strategy that gives one of them.
Data = Literal["seen"] | Iterable[Any] | Callable[[Any], Any] | Any


class Source:
    """Which images a metric fits on or searches in.

    Args:
        data: "seen" is the training data of all experiences that training has started on, the current one included.
            Or an experience, a dataset, or a stream or list of these. Or a function of the strategy that gives one of
            these, such as ``lambda strategy: strategy.plugins[0].storage_policy.buffer``.
        name: what the names of values say of it; None: made from the data ("seen", "train_exp0-4", or the function's).

    Raises:
        ValueError: data of none of these kinds, or a name that is no name; a lambda without one.
    """

    def __init__(self, data: Data, name: str | None = None) -> None:
        self.data = list(data) if isinstance(data, Iterator) else data
        if isinstance(data, str) and data != "seen":
            raise ValueError(f"data must be 'seen', experiences, a dataset or a function, got {data!r}.")
        if not isinstance(data, str) and not callable(data):
            for _ in _datasets(self.data):
                break
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
        capture = FeatureCapture(layer)
        parts: list[tuple[Tensor, Tensor]] = []
        with own_random_state(), preserved_modes(strategy.model), torch.no_grad():
            strategy.model.eval()
            for dataset in datasets:
                parts.extend(_batches(strategy, dataset, capture))
        if not parts:
            return None
        return torch.cat([features for features, _ in parts]), torch.cat([y for _, y in parts])


def _batches(strategy: Any, dataset: Any, capture: FeatureCapture) -> Iterator[tuple[Tensor, Tensor]]:
    dataset = dataset.eval() if hasattr(dataset, "eval") else dataset
    loader = DataLoader(
        dataset,
        batch_size=strategy.eval_mb_size,
        collate_fn=getattr(dataset, "collate_fn", None),
        generator=torch.Generator(),  # its own: no draw from the global one
    )
    for x, y, *rest in loader:
        x, y = x.to(strategy.device), y.to(strategy.device)
        tasks = rest[-1].to(strategy.device) if rest else None
        with capture.listening(strategy.model):
            output = avalanche_forward(strategy.model, x, tasks)
        yield check_rows(capture.take(output), y), y


def check_rows(features: Tensor, y: Tensor, name: str = "a metric's data") -> Tensor:
    """The features, if there is one row for each label."""
    if len(features) != len(y):
        raise ValueError(
            f"{name}: {len(features)} features for {len(y)} images. Does the model split its batch between heads, or "
            "the stream make views in evaluation? Name a layer: layer='...'."
        )
    return features


def _datasets(given: Any) -> Iterator[Any]:
    if isinstance(given, (list, tuple, CLStream, Iterator)):
        for part in given:
            yield from _datasets(part)
    elif hasattr(given, "dataset") and not isinstance(given, Dataset):
        yield given.dataset
    elif hasattr(given, "__getitem__") and hasattr(given, "__len__") and not isinstance(given, (str, Tensor)):
        if len(given):
            yield given
    else:
        raise ValueError(
            f"data must be an experience, a dataset, or a stream or list of these, got {type(given).__name__}."
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
