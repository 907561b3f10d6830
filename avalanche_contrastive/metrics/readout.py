"""What can be read out of frozen features: linear probe, nearest class mean and k nearest neighbours."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from avalanche.evaluation import PluginMetric
from torch import Tensor

from avalanche_contrastive._checks import check_choice, check_count
from avalanche_contrastive.metrics.base import FeatureMetric, Level, chosen_levels
from avalanche_contrastive.metrics.retrieval import nearest_neighbours
from avalanche_contrastive.metrics.search import Distance, check_features, check_y
from avalanche_contrastive.metrics.sources import Data, Source
from avalanche_contrastive.readout import fit_nearest_mean, fit_standardized, full_precision

__all__ = ["ReadOutMetric", "fit_readout", "readout_metrics"]

Kind = Literal["linear", "nearest_mean", "knn"]
_KINDS: tuple[Kind, ...] = ("linear", "nearest_mean", "knn")


@torch.no_grad()
def fit_readout(
    features: Tensor,
    y: Tensor,
    kind: Kind = "linear",
    *,
    k: int = 5,
    distance: Distance = "cosine",
    epochs: int = 100,
    seed: int = 0,
) -> Callable[[Tensor], Tensor]:
    """Fit a classifier to frozen features.

    "linear" is ``readout.fit_standardized``, softmax regression by class-balanced SGD on standardised features.
    "nearest_mean" is ``readout.fit_nearest_mean``: the class whose mean of unit features is nearest in angle. "knn"
    takes the vote of the k nearest; of classes with equal votes the lowest id wins, as in scikit-learn.

    No random number is drawn from the global state.

    Args:
        features: (N, D), N >= 1.
        y: class ids, (N,) integers.
        kind: "linear", "nearest_mean" or "knn".
        k: neighbours that vote (all, where there are fewer).
        distance: of the neighbours, "cosine" or "euclidean".
        epochs: of the linear classifier.
        seed: of the linear classifier's draws.

    Returns:
        A function from features (M, D) to class ids (M,).

    Raises:
        ValueError: a wrong shape, type or option, no image, or features that are not finite.
    """
    name = "fit_readout"
    check_choice(name, "kind", kind, _KINDS)
    check_choice(name, "distance", distance, ("cosine", "euclidean"))
    check_count(name, 1, k=k, epochs=epochs)
    check_features(name, "features", features)
    y = check_y(name, "y", y, len(features))
    if len(features) == 0:
        raise ValueError(f"{name}: there is no image to fit on.")
    features = full_precision(features)
    if kind == "knn":
        return _Voters(features, y, min(k, len(y)), distance)
    if kind == "nearest_mean":
        return _Linear(*fit_nearest_mean(features, y), unit=True)
    return _Linear(*fit_standardized(features, y, epochs=epochs, seed=seed))


@dataclass(frozen=True)
class _Linear:
    classes: Tensor
    weight: Tensor
    bias: Tensor
    origin: Tensor | None = None
    unit: bool = False

    @torch.no_grad()
    def __call__(self, features: Tensor) -> Tensor:
        features = _checked(features, self.weight.shape[1])
        if self.origin is not None:
            features = features - self.origin
        if self.unit:
            features = F.normalize(features, dim=1)
        with torch.autocast(features.device.type, enabled=False):
            return self.classes[F.linear(features.to(self.weight), self.weight, self.bias).argmax(dim=1)]


@dataclass(frozen=True)
class _Voters:
    features: Tensor
    y: Tensor
    k: int
    distance: Distance

    @torch.no_grad()
    def __call__(self, features: Tensor) -> Tensor:
        features = _checked(features, self.features.shape[1])
        classes, target = torch.unique(self.y, return_inverse=True)
        voters = target[nearest_neighbours(features, self.k, gallery=self.features, distance=self.distance)]
        votes = torch.zeros(len(features), len(classes), device=self.y.device)
        votes.scatter_add_(1, voters, torch.ones_like(voters, dtype=votes.dtype))
        winners: Tensor = classes[votes.argmax(dim=1)]
        return winners


def _checked(features: Tensor, width: int) -> Tensor:
    check_features("a fitted read-out", "features", features)
    if features.shape[1] != width:
        raise ValueError(
            f"a fitted read-out: it was fitted to features of width {width}, got {features.shape[1]}. Are both from "
            "the same layer of the same model?"
        )
    return full_precision(features)


class ReadOutMetric(FeatureMetric):
    """Accuracy of classifiers that are fitted to features of given data at every evaluation.

    Args:
        levels: "experience", "stream" and "seen".
        kinds, data, layer, k, distance, epochs: see ``readout_metrics``.
    """

    def __init__(
        self,
        kinds: Sequence[Kind],
        levels: Sequence[Level],
        data: Source,
        layer: str | None = None,
        *,
        k: int = 5,
        distance: Distance = "cosine",
        epochs: int = 100,
    ) -> None:
        super().__init__("readout_metrics", levels, layer, data)
        if isinstance(kinds, str) or not kinds:
            raise ValueError(f"readout_metrics: kinds must be a sequence of {', '.join(_KINDS)}, got {kinds!r}.")
        for kind in kinds:
            check_choice("readout_metrics", "kinds", kind, _KINDS)
        check_choice("readout_metrics", "distance", distance, ("cosine", "euclidean"))
        check_count("readout_metrics", 1, k=k, epochs=epochs)
        self.kinds, self.k, self.distance, self.epochs = tuple(kinds), k, distance, epochs
        self._predict: list[Callable[[Tensor], Tensor]] = []

    @property
    def names(self) -> list[str]:
        """What the values are called, by kind: "LinearProbe_on_seen_Acc"."""
        called = {"linear": "LinearProbe", "nearest_mean": "NearestMean", "knn": f"{self.k}NN"}
        assert self.source is not None
        return [f"{called[kind]}_on_{self.source.name}_Acc" for kind in self.kinds]

    def prepare(self, strategy: Any) -> None:
        """Embed the data and fit."""
        super().prepare(strategy)
        if self.sourced is not None:
            options: dict[str, Any] = {"k": self.k, "distance": self.distance, "epochs": self.epochs}
            self._predict = [fit_readout(*self.sourced, kind, **options) for kind in self.kinds]

    def reset(self) -> None:
        """Forget what was gathered, embedded and fitted."""
        super().reset()
        self._predict = []

    def batch(self, strategy: Any) -> tuple[Tensor, ...]:
        """Labels, and whether each classifier is right, (B, kinds)."""
        y, features = super().batch(strategy)
        return y, torch.stack([predict(features) == y for predict in self._predict], dim=1)

    def measure(self, y: Tensor, *gathered: Tensor) -> dict[str, Any]:
        """Accuracy of each classifier."""
        return dict(zip(self.names, gathered[0].double().mean(dim=0).tolist(), strict=True))

    def __str__(self) -> str:
        return "+".join(self.names)


def readout_metrics(
    data: Data = "seen",
    *,
    kinds: Sequence[Kind] = _KINDS,
    experience: bool = True,
    stream: bool = True,
    seen: bool = False,
    name: str | None = None,
    layer: str | None = None,
    k: int = 5,
    distance: Distance = "cosine",
    epochs: int = 100,
) -> list[PluginMetric[Any]]:
    """Read-out accuracy of frozen features as Avalanche plugin metrics, for any strategy and model.

    At each evaluation the data are embedded by the model as it is, the classifiers are fitted to that, and the
    evaluated images are classified. Values are named by classifier and data: ``LinearProbe_on_seen_Acc_Exp/...``,
    ``NearestMean_on_seen_Acc_Exp/...``, ``5NN_on_seen_Acc_Exp/...``, and ``_Stream``, ``_Seen``. Per experience over
    time that is an accuracy matrix; ``with_forgetting`` keeps it. Neither training nor the model is touched: random
    states, batch statistics and modes stay.

    With the default data the classifiers see all training images of the classes trained so far: an upper end that no
    continual learner with a bounded memory has. There is no value before the first training.

    Args:
        data: what to fit on: "seen" (the training data of all experiences that training has started on), experiences,
            a dataset, or a function of the strategy; see ``Source``.
        kinds: of "linear", "nearest_mean", "knn".
        experience: accuracy on each evaluated experience.
        stream: on all evaluated experiences together.
        seen: on the images, in all evaluated experiences together, of classes trained so far.
        name: what the values' names say of the data; None: made from them.
        layer: name of the layer whose output is the feature; None: see ``FeatureCapture``.
        k, distance, epochs: see ``fit_readout``.

    Raises:
        ValueError: data or an option of another kind, no level, or data without a name.
    """
    levels = chosen_levels("readout_metrics", experience=experience, stream=stream, seen=seen)
    source = Source.of(data, name)
    return [ReadOutMetric(kinds, levels, source, layer, k=k, distance=distance, epochs=epochs)]
