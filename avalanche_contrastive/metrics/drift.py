"""How far features have moved since the previous experience: relations, linear CKA, class means."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from avalanche.evaluation import PluginMetric
from avalanche.models.utils import avalanche_model_adaptation, is_multi_task_module
from torch import Tensor, nn

from avalanche_contrastive._checks import check_flag, check_positive
from avalanche_contrastive._torch import own_random_state
from avalanche_contrastive.features import FeatureCapture, own_forward
from avalanche_contrastive.metrics.base import FeatureMetric, Level, chosen_levels
from avalanche_contrastive.metrics.search import WORKING_SET, check_features, check_y
from avalanche_contrastive.tasks import task_of
from avalanche_contrastive.teacher import frozen_copy

__all__ = ["DriftMetric", "class_displacement", "drift_metrics", "linear_cka", "relation_drift"]


@torch.no_grad()
def relation_drift(
    features: Tensor, previous: Tensor, *, temperature: float = 0.2, teacher_temperature: float = 0.01
) -> float:
    """Co2L's relation distillation as a measure: cross-entropy of the images' similarities now to those before.

    It is ``losses.relation_distillation`` of unit features with one view per image, all images being one batch, and
    with its default temperatures; memory O(chunk * N). It does not fall to zero where nothing has moved: compare with
    ``relation_drift(previous, previous)``. It grows with the logarithm of N: compare sets of one size.

    Args:
        features: of the model now, (N, D); divided by their length here.
        previous: of the model before, for the same images, (N, D'); D' may differ from D.
        temperature: of the similarities now, > 0.
        teacher_temperature: of those before, > 0.

    Returns:
        In nats, mean over images; 0 for a single one and nan for none.

    Raises:
        ValueError: a wrong shape or type, not the same number of images, values that are not finite, or a temperature
            not > 0.
    """
    _check_pair("relation_drift", features, previous)
    check_positive("relation_drift", temperature=temperature, teacher_temperature=teacher_temperature)
    z, t = (F.normalize(x if x.dtype == torch.float64 else x.float(), dim=1) for x in (features, previous))
    if len(z) < 2:
        return 0.0 if len(z) else float("nan")
    total = torch.zeros((), dtype=torch.float64, device=z.device)
    for rows in torch.arange(len(z), device=z.device).split(max(1, WORKING_SET // len(z))):
        own = (torch.arange(len(rows), device=z.device), rows)
        with torch.autocast(z.device.type, enabled=False):
            target, relation = t[rows] @ t.T / teacher_temperature, z[rows] @ z.T / temperature
        target[own] = relation[own] = -torch.inf
        log_sum = relation.logsumexp(dim=1)
        relation[own] = 0.0  # the target has no weight there, and 0 * infinity is nan
        total += (log_sum - (target.softmax(dim=1) * relation).sum(dim=1)).double().sum()
    return total.item() / len(z)


@torch.no_grad()
def linear_cka(features: Tensor, previous: Tensor) -> float:
    """Linear centred kernel alignment of two representations of the same images (Kornblith et al. 2019).

    arXiv:1905.00414, with X and Y centred per dimension: ``|Y'X|^2 / (|X'X| |Y'Y|)``, Frobenius norms. One for features
    equal up to rotation, one factor and a shift. Over all images at once, not over batches; time O(N D^2), memory
    O(N D + D^2).

    Args:
        features: (N, D).
        previous: (N, D'); D' may differ from D.

    Returns:
        In [0, 1]; nan where one of them does not vary.

    Raises:
        ValueError: a wrong shape or type, not the same number of images, or values that are not finite.
    """
    _check_pair("linear_cka", features, previous)
    # Of unit overall size first: fourth powers of features would overflow soon, also in float64.
    x, y = (_centred(f.double()) for f in (features, previous))
    own = torch.linalg.matrix_norm(x.T @ x) * torch.linalg.matrix_norm(y.T @ y)
    return float((torch.linalg.matrix_norm(y.T @ x).square() / own).clamp(max=1.0))


def _centred(x: Tensor) -> Tensor:
    centred = x - x.mean(dim=0)
    # A representation that does not vary is left with rounding errors, which would align with anything.
    varies = centred.abs().amax() > 1e-12 * x.abs().amax() if len(x) else False
    return centred / torch.linalg.matrix_norm(centred) if varies else torch.full_like(x, torch.nan)


@torch.no_grad()
def class_displacement(features: Tensor, previous: Tensor, y: Tensor, *, normalize: bool = True) -> float:
    """How far the mean feature of a class has moved, mean over the classes: ``|mean_c(f) - mean_c(f_before)|``.

    Args:
        features: of the model now, (N, D).
        previous: of the model before, for the same images, (N, D).
        y: class ids, (N,) integers.
        normalize: divide each feature by its length first, so that networks compare; distances then lie in [0, 2].

    Returns:
        Euclidean distance, >= 0; nan for no image.

    Raises:
        ValueError: a wrong shape or type, features of unequal shapes, or values that are not finite.
    """
    name = "class_displacement"
    _check_pair(name, features, previous)
    y = check_y(name, "y", y, len(features))
    check_flag(name, normalize=normalize)
    if features.shape != previous.shape:
        raise ValueError(
            f"{name}: features must have the same width before and now, got {previous.shape[1]} and "
            f"{features.shape[1]}. Are both from the same layer?"
        )
    _, target, counts = torch.unique(y, return_inverse=True, return_counts=True)
    now, before = features.double(), previous.double()
    if normalize:
        now, before = F.normalize(now, dim=1), F.normalize(before, dim=1)
    moved = now.new_zeros(len(counts), now.shape[1]).index_add(0, target, now - before) / counts[:, None]
    return float(torch.linalg.vector_norm(moved, dim=1).mean())


def _check_pair(name: str, features: Tensor, previous: Tensor) -> None:
    check_features(name, "features", features)
    check_features(name, "previous", previous)
    if len(features) != len(previous):
        raise ValueError(
            f"{name}: features and previous must be of the same images, got {len(features)} and {len(previous)}."
        )


class DriftMetric(FeatureMetric):
    """Drift of the features since the previous experience, on the evaluated images.

    The metric keeps a frozen copy of the model, made when training on an experience starts: the model as the previous
    experience left it, whatever was done to it at its end. Both models see the same evaluated images. There is no
    value before the second experience.

    Attributes:
        previous: the frozen copy, in evaluation mode; None before the second experience.

    Args:
        levels: "experience", "stream" and "old".
        layer, temperature, teacher_temperature: see ``drift_metrics``.
    """

    def __init__(
        self,
        levels: Sequence[Level],
        layer: str | None = None,
        *,
        temperature: float = 0.2,
        teacher_temperature: float = 0.01,
    ) -> None:
        super().__init__("drift_metrics", levels, layer)
        check_positive("drift_metrics", temperature=temperature, teacher_temperature=teacher_temperature)
        self.temperatures = {"temperature": temperature, "teacher_temperature": teacher_temperature}
        self.previous: nn.Module | None = None
        self._experience: int | None = None
        self._previous_capture = FeatureCapture(layer)

    @property
    def ready(self) -> bool:
        """Whether there is a previous model."""
        return self.previous is not None

    def before_training(self, strategy: Any) -> None:
        """Forget what was kept of an earlier strategy, if this one is new."""
        super().before_training(strategy)
        if strategy.clock.train_exp_counter == 0:
            self.previous = self._experience = None

    def before_train_dataset_adaptation(self, strategy: Any) -> None:
        """Keep the model as the previous experience left it; once for all pieces of an online stream's experience."""
        number = task_of(strategy.experience).current_experience
        if self._experience is not None and number != self._experience:
            self.previous = frozen_copy(strategy.model)
        self._experience = number

    def before_eval_exp(self, strategy: Any) -> None:
        """Give the previous model a head for the experience where each task has its own."""
        super().before_eval_exp(strategy)
        if self.previous is not None:
            self.previous.to(strategy.device)
            if is_multi_task_module(self.previous):
                with own_random_state():
                    avalanche_model_adaptation(self.previous, strategy.experience)

    def batch(self, strategy: Any) -> tuple[Tensor, ...]:
        """Labels, features now, and features before."""
        assert self.previous is not None
        y, features = super().batch(strategy)
        with self._previous_capture.listening(self.previous):
            output, _ = own_forward(strategy, self.previous)
        return y, features, self._previous_capture.take(output)

    def measure(self, y: Tensor, *gathered: Tensor) -> dict[str, Any]:
        """The three drifts, and what relation drift is where nothing has moved."""
        features, previous = gathered
        return {
            "RelationDrift": relation_drift(features, previous, **self.temperatures),
            "RelationDrift_Unmoved": relation_drift(previous, previous, **self.temperatures),
            "LinearCKA": linear_cka(features, previous),
            "Displacement": class_displacement(features, previous, y),
        }

    def __str__(self) -> str:
        return "Drift"


def drift_metrics(
    *,
    experience: bool = False,
    stream: bool = False,
    old: bool = True,
    layer: str | None = None,
    temperature: float = 0.2,
    teacher_temperature: float = 0.01,
) -> list[PluginMetric[Any]]:
    """Drift of features since the previous experience as Avalanche plugin metrics, for any strategy and model.

    The evaluated images are embedded by the model as it is and by a frozen copy of it from before the latest
    experience. Values are ``RelationDrift_Old/eval_phase/...``, ``RelationDrift_Unmoved_Old`` (what the former would be
    had nothing moved), ``LinearCKA_Old`` and ``Displacement_Old`` (of class means of unit features), and the same with
    ``_Exp`` and ``_Stream``. There is none before the second experience.

    Args:
        experience: one value per evaluated experience, of whatever classes.
        stream: one value for all evaluated experiences together.
        old: one value for the images, in all evaluated experiences together, of classes trained before the latest
            experience that had new ones.
        layer: name of the layer whose output is the feature; None: see ``FeatureCapture``.
        temperature, teacher_temperature: of ``relation_drift``.

    Raises:
        ValueError: no level, or a temperature not > 0.
    """
    levels = chosen_levels("drift_metrics", experience=experience, stream=stream, old=old)
    return [DriftMetric(levels, layer, temperature=temperature, teacher_temperature=teacher_temperature)]
