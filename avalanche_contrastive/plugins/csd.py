"""CSD: contrastive supervised distillation of features, for retrieval."""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from avalanche.models import avalanche_forward
from torch import Tensor

from avalanche_contrastive._checks import check_choice, check_flag, check_positive, check_weight
from avalanche_contrastive._rows import rows_of
from avalanche_contrastive._torch import preserved_modes, unwrapped
from avalanche_contrastive.features import FeatureCapture
from avalanche_contrastive.losses import (
    batch_hard_triplet,
    contrastive_distillation,
    separated_softmax,
    taskwise_distillation,
)
from avalanche_contrastive.plugins.method import MethodPlugin
from avalanche_contrastive.plugins.multihead import headwise_cross_entropy, headwise_distillation
from avalanche_contrastive.tasks import by_head

__all__ = ["CSDPlugin"]


class CSDPlugin(MethodPlugin):
    """CSD (Barletti, Biondi et al. 2022, arXiv:2205.05476), the whole method, for any classifier.

    Cross-entropy on the new classes and a batch-hard triplet loss learn; distillation of the old logits and of the
    teacher's features, contrasted by class, remember. There is no memory. Judge it by retrieval
    (``avalanche_contrastive.metrics.retrieval_metrics``), as the paper does.

    In a model with a head per task the cross-entropy runs over classes of a row's own head, each old head is distilled
    by itself over all rows, and features are compared by class and task.

    Args:
        temperature: of the contrastive distillation (the authors' 0.07; the paper writes none, i.e. 1).
        weight: of the contrastive distillation (lambda_CSD).
        form: "authors" (student anchors against students and teachers) or "paper" (Eq. 8).
        normalize: divide features by their length in the contrastive distillation.
        kd_weight: of the distillation of old logits (lambda_KD). No T^2, as the authors'; multiply by T^2 to have it.
        kd_temperature: of that distillation (the authors' 2).
        triplet_weight: of the triplet loss.
        margin: of the triplet loss, in cosine similarity.
        ce: "weighted" is the authors' (the softmax runs over all classes, samples of old classes do not count),
            "masked" lets it run over the new classes only, "all" counts every sample (for replay beside CSD).
        ce_weight: of the cross-entropy; without it the classifier learns nothing of new classes, the features may.
        feature_layer: name of the layer whose output is the feature; None: the input of the last classifier layer.
        teacher_mode: "eval", or "train" for batch statistics in the teacher, as in the authors' code.
    """

    def __init__(
        self,
        *,
        temperature: float = 0.07,
        weight: float = 1.0,
        form: Literal["authors", "paper"] = "authors",
        normalize: bool = True,
        kd_weight: float = 1.0,
        kd_temperature: float = 2.0,
        triplet_weight: float = 1.0,
        margin: float = 1.0,
        ce: Literal["weighted", "masked", "all"] = "weighted",
        ce_weight: float = 1.0,
        feature_layer: str | None = None,
        teacher_mode: Literal["eval", "train"] = "eval",
    ) -> None:
        super().__init__(teacher_mode=teacher_mode)
        check_positive("CSDPlugin", temperature=temperature, kd_temperature=kd_temperature)
        check_weight("CSDPlugin", weight=weight, kd_weight=kd_weight, triplet_weight=triplet_weight, margin=margin)
        check_weight("CSDPlugin", ce_weight=ce_weight)
        if ce_weight == triplet_weight == 0:
            raise ValueError("CSDPlugin: ce_weight and triplet_weight are both 0, so nothing would ever be learned.")
        check_flag("CSDPlugin", normalize=normalize)
        check_choice("CSDPlugin", "form", form, ("authors", "paper"))
        check_choice("CSDPlugin", "ce", ce, ("weighted", "masked", "all"))
        self.temperature, self.weight, self.form, self.normalize = temperature, weight, form, normalize
        self.kd_weight, self.kd_temperature = kd_weight, kd_temperature
        self.triplet_weight, self.margin = triplet_weight, margin
        self.ce, self.ce_weight = ce, ce_weight
        self.capture = FeatureCapture(feature_layer)
        self._features: Tensor | None = None
        self._heads_share = False

    def before_forward(self, strategy: Any, **kwargs: Any) -> None:
        """Listen for the features of this step."""
        super().before_forward(strategy, **kwargs)
        if self.multi_head and self.teacher is not None and not self._heads_share:
            self._check_heads(strategy)
        self.capture.attach(strategy.model)

    def after_forward(self, strategy: Any, **kwargs: Any) -> None:
        """Take the features; put the objective in the criterion's place."""
        self._features = rows_of(strategy).whole(self.capture.take(strategy.mb_output))
        super().after_forward(strategy, **kwargs)

    def before_eval(self, strategy: Any, **kwargs: Any) -> None:
        """Listen no longer, if a training step has failed."""
        super().before_eval(strategy, **kwargs)
        self.capture.detach()

    def objective(self, strategy: Any) -> Tensor:
        """Plasticity, plus stability once there is a teacher."""
        logits, y = self.check_logits(strategy), strategy.mb_y
        features, self._features = self._features, None
        if features is None or len(features) != len(logits):
            came = "none" if features is None else f"{len(features)}"
            raise ValueError(
                f"CSDPlugin: a batch of {len(logits)} needs as many features, got {came}. Does the model split its "
                "batch between heads? Name the layer that gives the features: feature_layer='...'."
            )
        labels = self.row_labels(strategy)
        entropy = self._headwise(strategy, logits, labels) if self.multi_head else self._cross_entropy(logits, y)
        parts = [("cross_entropy", self.ce_weight, entropy)]
        if self.triplet_weight > 0:
            parts.append(("triplet", self.triplet_weight, batch_hard_triplet(features, labels, margin=self.margin)))
        if self.teacher is not None:
            parts.extend(self._stability(strategy, logits, features, labels))
        self.terms = {name: term.detach() for name, _, term in parts}
        return torch.stack([weight * term for _, weight, term in parts]).sum()

    def _cross_entropy(self, logits: Tensor, y: Tensor) -> Tensor:
        logits = logits if logits.dtype == torch.float64 else logits.float()  # a model may compute in half precision
        groups = self.class_groups(logits, [self._current])  # names a head too narrow for the classes, in any form
        if self.ce == "all":
            return F.cross_entropy(logits, y)
        new = self.is_current(y)
        if not new.any():
            return logits.sum() * 0.0
        if self.ce == "weighted":
            return F.cross_entropy(logits[new], y[new])
        return separated_softmax(logits[new], y[new], groups)

    def _headwise(self, strategy: Any, logits: Tensor, labels: Tensor) -> Tensor:
        """The cross-entropy where each row's softmax runs over classes of its own head."""
        taught = self._current if self.ce == "masked" else {*self.seen_classes, *self._current}
        heads = dict(by_head(list(taught)))
        counted = torch.ones_like(labels, dtype=torch.bool) if self.ce == "all" else self.is_current(labels)
        if not counted.any():
            return logits.sum() * 0.0
        return headwise_cross_entropy(
            logits[counted],
            strategy.mb_y[counted],
            strategy.mb_task_id[counted],
            lambda task: self.class_groups(logits, [heads.get(task, [])]),
        )

    def _check_heads(self, strategy: Any) -> None:
        """Refuse a model with a network per task, whose teacher has no features of a new task's images. Once."""
        with preserved_modes(strategy.model), torch.no_grad(), self.capture.listening(strategy.model):
            outputs = avalanche_forward(strategy.model.eval(), strategy.mb_x, None)
        self.capture.take(outputs)
        self._heads_share = True

    def _stability(
        self, strategy: Any, logits: Tensor, features: Tensor, labels: Tensor
    ) -> list[tuple[str, float, Tensor]]:
        assert self.teacher is not None
        parts = []
        past, teacher_logits = [c for classes in self.past for c in classes], None
        with self.capture.listening(self.teacher):
            if not self.multi_head:
                teacher_logits = self.teacher_forward(strategy)
            elif self.kd_weight > 0:
                model, temperature = unwrapped(strategy.model), self.kd_temperature
                kd = headwise_distillation(model, self.teacher, strategy.mb_x, by_head(past), temperature=temperature)
            else:
                with torch.no_grad():
                    avalanche_forward(self.teacher, strategy.mb_x, None)
        teacher_features = self.capture.take(teacher_logits)
        if not self.multi_head:  # a pass through all heads has seen the whole batch
            teacher_features = rows_of(strategy).whole(teacher_features)
        if self.kd_weight > 0:
            if teacher_logits is not None:
                old = self.class_groups(teacher_logits, [past])
                kd = taskwise_distillation(logits, teacher_logits, old, temperature=self.kd_temperature)
            parts.append(("distillation", self.kd_weight, kd / self.kd_temperature**2))
        if self.weight > 0:
            csd = contrastive_distillation(
                features,
                teacher_features,
                labels,
                temperature=self.temperature,
                form=self.form,
                normalize=self.normalize,
            )
            parts.append(("contrast", self.weight, csd))
        return parts
