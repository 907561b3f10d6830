"""CSD: contrastive supervised distillation of features, for retrieval."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from avalanche.models import avalanche_forward
from torch import Tensor

from avalanche_contrastive._checks import check_choice, check_flag, check_positive, check_weight
from avalanche_contrastive._kernels import finite_gradient, float32, full_precision, unit_rows
from avalanche_contrastive._torch import preserved_modes, unwrapped
from avalanche_contrastive.features import FeatureCapture
from avalanche_contrastive.losses import (
    batch_hard_triplet,
    contrastive_distillation,
    taskwise_distillation,
)
from avalanche_contrastive.plugins.method import MethodPlugin
from avalanche_contrastive.plugins.multihead import PastHeads, row_softmax
from avalanche_contrastive.plugins.views import is_plain
from avalanche_contrastive.tasks import by_head, not_seen, seen_in

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
        weight: of the contrastive distillation (the paper's lambda_CSD).
        form: "authors" (student anchors against students and teachers) or "paper" (Eq. 8).
        normalize: divide features by their length in the contrastive distillation, as the authors do.
        kd_weight: of the distillation of old logits (the paper's lambda_KD). No T^2, as the authors'; multiply by T^2
            to have it.
        kd_temperature: of that distillation (the authors' 2).
        triplet_weight: of the triplet loss (the authors' 1).
        margin: of the triplet loss, in cosine similarity (the authors' 1).
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
        self._heads_share = False

    @property
    def needs_teacher(self) -> bool:
        """Only the distillations ask it."""
        return self.weight > 0 or self.kd_weight > 0

    def forward_pass(self, strategy: Any, forward: Callable[[], Any]) -> Any:
        """Take the features that the model, or the teacher in its place, makes on the way."""
        if self.multi_head and self.teacher is not None and not self._heads_share:
            self._check_heads(strategy)
        output, features = self._heard(strategy.model, forward)
        if strategy.model is self.teacher:
            self.of_batch["teacher's features"] = features
        else:
            self.of_batch["features"], self.of_batch["output"] = features, None
        return output

    def _heard(self, model: torch.nn.Module, call: Callable[[], Any]) -> tuple[Any, Tensor]:
        """What a call of the model gives, and the features that it makes on the way."""
        places = self.table("places", lambda: self.capture.places_in(model), id(model))
        if is_plain(call):
            return self.capture.of_call(model, places, call)
        with self.capture.listening(model, places):
            output = call()
        return output, self.capture.take(output)

    def objective(self, strategy: Any) -> Tensor:
        """Plasticity, plus stability once there is a teacher."""
        features = self._features_of_output(strategy)
        logits = self.check_logits(strategy)
        if len(features) != len(logits):
            raise ValueError(
                f"CSDPlugin: a batch of {len(logits)} needs as many features, got {len(features)}. Does the model "
                "split its batch between heads? Name the layer that gives the features: feature_layer='...'."
            )
        with full_precision(features):
            wide = float32(features)
            unit = unit_rows(wide)  # once for two losses
        parts = {"cross_entropy": (self.ce_weight, self._cross_entropy(strategy, logits))}
        if self.triplet_weight > 0:
            triplet = batch_hard_triplet(unit, self.labels, margin=self.margin, normalize=False)
            parts["triplet"] = self.triplet_weight, triplet
        if self.teacher is not None:
            parts.update(self._stability(strategy, logits, unit if self.normalize else wide))
        self.terms = {name: term.detach() for name, (_, term) in parts.items()}
        loss, *others = [term if weight == 1 else weight * term for weight, term in parts.values()]
        for other in others:
            loss = loss + other
        return finite_gradient(loss, features, wide)

    def _features_of_output(self, strategy: Any) -> Tensor:
        """Those of the last forward pass, unless they were another output's."""
        output = self.of_batch.get("output")
        if "features" not in self.of_batch or (output is not None and output is not strategy.mb_output):
            # The loop, or a plugin, has called the model past strategy.forward(): nobody has seen its features.
            self.asked_again(strategy)
        self.of_batch["output"] = strategy.mb_output
        return self.whole(self.of_batch["features"])

    def _cross_entropy(self, strategy: Any, logits: Tensor) -> Tensor:
        """The rows that count, by ``ce``; in a model with a head per task each over the classes of its own head."""
        counted = None if self.ce == "all" else self.guards.is_current
        if self.multi_head:
            heads = self.table("heads", lambda: self.head_groups(logits, self._columns), logits.shape[1])
            return row_softmax(logits, strategy.mb_y, heads.of(strategy.mb_task_id), counted)
        groups = self.table("groups", lambda: self._groups(logits), logits.shape[1])
        return row_softmax(logits, strategy.mb_y, groups, counted)

    def _groups(self, logits: Tensor) -> Tensor | None:
        """Of a single head's columns, (1, K); None: they are one group."""
        new = self.class_groups(logits, self._columns(None))  # names a head that is too narrow, in any form
        return new[None] if self.ce == "masked" else None

    def _columns(self, task: int | None) -> list[list[int]]:
        """The classes that the softmax of the new ones runs over; of a head, if one is named."""
        new = self.classes_of_head(self._current, task)
        known = [] if self.ce == "masked" else self.classes_of_head(self.seen_classes, task)
        return [[*new, *not_seen(known, [new])]]

    def _stability(self, strategy: Any, logits: Tensor, features: Tensor) -> dict[str, tuple[float, Tensor]]:
        if self.multi_head:  # the teacher's logits are those of all earlier heads
            kept, kept_features = self.teacher_forward(strategy, partial(self._all_heads, strategy))
        else:
            kept = self.teacher_forward(strategy)
            kept_features = self.whole(self.of_batch["teacher's features"])
        parts = {}
        if self.kd_weight > 0:
            if self.multi_head:
                model, heads = unwrapped(strategy.model), self._past_heads(strategy)
                kd = heads.distillation(model, strategy.mb_x, kept, temperature=self.kd_temperature)
            else:
                old = self.table("old", lambda: self.class_groups(kept, [seen_in(self.past)]), kept.shape[1])
                kd = taskwise_distillation(logits, kept, old, temperature=self.kd_temperature)
            parts["distillation"] = self.kd_weight, kd / self.kd_temperature**2
        if self.weight > 0:
            csd = contrastive_distillation(
                features,
                unit_rows(float32(kept_features)) if self.normalize else kept_features,
                self.labels,
                temperature=self.temperature,
                form=self.form,
                normalize=False,
            )
            parts["contrast"] = self.weight, csd
        return parts

    def _all_heads(self, strategy: Any) -> tuple[Tensor, Tensor]:
        """What the teacher, in the model's place, makes of the whole batch in a pass through all its heads."""
        heads, model, x = self._past_heads(strategy), strategy.model, strategy.mb_x
        return self._heard(model, lambda: heads.logits(model, x))

    def _past_heads(self, strategy: Any) -> PastHeads:
        heads: PastHeads = self.table("past heads", lambda: PastHeads(by_head(seen_in(self.past)), strategy.device))
        return heads

    def _check_heads(self, strategy: Any) -> None:
        """Refuse a model with a network per task, whose teacher has no features of a new task's images. Once."""
        with preserved_modes(strategy.model), torch.no_grad(), self.capture.listening(strategy.model):
            outputs = avalanche_forward(strategy.model.eval(), strategy.mb_x, None)
        self.capture.take(outputs)
        self._heads_share = True
