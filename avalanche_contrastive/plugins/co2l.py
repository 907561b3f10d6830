"""Co2L: asymmetric supervised contrast, relation distillation, and a read-out for class logits."""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from avalanche.evaluation.metric_definitions import GenericPluginMetric, PluginMetric
from avalanche.evaluation.metrics.loss import LossPluginMetric
from avalanche.evaluation.metrics.timing import TimePluginMetric
from avalanche.training.storage_policy import ExemplarsBuffer, FeatureBasedExemplarsSelectionStrategy
from avalanche.training.templates.problem_type.supervised_problem import SupervisedProblem
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from avalanche_contrastive._checks import check_choice, check_count, check_flag, check_positive, check_weight
from avalanche_contrastive._torch import unwrapped
from avalanche_contrastive.losses import asymmetric_supcon, contrast_and_relations
from avalanche_contrastive.models import ContrastiveModel
from avalanche_contrastive.plugins.mixing import load_uniformly, mixed
from avalanche_contrastive.plugins.partners import REFUSED_BY_CO2L, check_order
from avalanche_contrastive.plugins.refit import ReadOutRefit
from avalanche_contrastive.plugins.replay import ReplayMethodPlugin
from avalanche_contrastive.plugins.views import Drawn, run_on, views_of
from avalanche_contrastive.tasks import PAIR, is_in, is_piece, pair_codes, pairs_of, starts_task

__all__ = ["Co2LPlugin"]

LABEL_THEM = (
    "Make it with task_labels=True (nc_benchmark) or return_task_id=True (RotatedMNIST), or wrap it in "
    "with_classes_timeline(task_incremental_benchmark(benchmark))."
)


class Co2LPlugin(ReplayMethodPlugin):
    """Co2L (Cha et al. 2021, arXiv:2106.14413), the whole method, for a ``ContrastiveModel``.

    Two views of every image; the dataset of an experience is its images and the memory, mixed uniformly. Views of
    current classes are the anchors of a supervised contrastive loss; the previous model's encoder and projector keep
    the relations between all views. ``model(x)`` in evaluation is class logits of a read-out, refitted on
    class-balanced features of the experience and the memory whenever evaluation needs it.

    With an ``MTContrastiveModel``, for task-incremental streams, the contrast tells classes of different tasks apart
    even where their ids are the same, and each task has a read-out of its own.

    While training, ``strategy.mb_output`` holds the projections; the metrics get class scores by the nearest other
    image of the batch instead, so training accuracy is that of a nearest-neighbour classifier within the batch.

    Args:
        mem_size: exemplars in all (the paper's 200 or 500).
        augmentation: maps a batch (B, C, H, W) to one of the same shape, with a draw of its own per image; called
            once per view. None where the training transform is wrapped in ``TwoViews``.
        views: of each image, made by the augmentation (the paper's 2).
        temperature: of the contrast (the paper's 0.5; R-MNIST 0.1).
        base_temperature: multiplies the contrast by temperature / base_temperature, as the authors' code does with
            0.07; None is the paper.
        reduction: "all" (the authors'), "anchors" or "sum" (the paper); see ``asymmetric_supcon``.
        asymmetric: False makes every view an anchor (the paper's ablation).
        domains: True for domain-incremental streams with a task label per domain: for the contrast the same class
            under another task label is another class, so that past domains give no anchors (the paper's R-MNIST).
            Read-out, memory and evaluation keep the classes as they are.
        weight: of the relation distillation (the paper's lambda); 0 leaves it out.
        distill_temperature: of the student's relations (the paper's kappa).
        teacher_temperature: of the teacher's relations (the paper's kappa*).
        batch_size_mem: None mixes the memory into the dataset, each exemplar once per epoch (the paper); a number
            replays that many rows in every step instead.
        rehearse: False keeps the memory for the read-out alone, out of the training (the paper's Table 2, no buffer).
        storage_policy: any Avalanche buffer of size ``mem_size``; None: class-balanced, random. (Where the classes
            cannot have equally many, the authors' code draws those with one more: ``plugins.exemplars``.)
        readout: "linear" (the paper) or "ncm", the nearest class mean.
        readout_lr: of the linear read-out (the paper's 1).
        readout_epochs: of the linear read-out (the paper's 100).
        readout_batch_size: of the linear read-out (the paper's 256).
        readout_balance: what the linear read-out's images are drawn evenly by: "class" (the paper's Seq-CIFAR-10 and
            Seq-Tiny-ImageNet), "domain" (the authors' code for R-MNIST), "domain and class". None: "domain" with
            ``domains=True``, otherwise "class".
        readout_augment: fit the linear read-out to augmented images, drawn anew in each of its epochs, as the authors'
            code does. Every epoch then goes through the encoder.
        teacher_mode: "eval", or "train" for batch statistics in the teacher, as in the authors' code.
    """

    refused = REFUSED_BY_CO2L
    gives_logits = False

    def __init__(
        self,
        mem_size: int = 200,
        augmentation: Callable[[Tensor], Tensor] | None = None,
        *,
        views: int = 2,
        temperature: float = 0.5,
        base_temperature: float | None = 0.07,
        reduction: Literal["anchors", "all", "sum"] = "all",
        asymmetric: bool = True,
        domains: bool = False,
        weight: float = 1.0,
        distill_temperature: float = 0.2,
        teacher_temperature: float = 0.01,
        batch_size_mem: int | None = None,
        rehearse: bool = True,
        storage_policy: ExemplarsBuffer | None = None,
        readout: Literal["linear", "ncm"] = "linear",
        readout_lr: float = 1.0,
        readout_epochs: int = 100,
        readout_batch_size: int = 256,
        readout_balance: Literal["class", "domain", "domain and class"] | None = None,
        readout_augment: bool = False,
        teacher_mode: Literal["eval", "train"] = "eval",
    ) -> None:
        super().__init__(
            mem_size=mem_size, batch_size_mem=batch_size_mem, storage_policy=storage_policy, teacher_mode=teacher_mode
        )
        name = "Co2LPlugin"
        if augmentation is not None and (not callable(augmentation) or isinstance(augmentation, type)):
            given = augmentation if isinstance(augmentation, type) else type(augmentation)
            raise TypeError(
                f"{name}: augmentation must map a batch to a batch, a callable, got {given.__name__}"
                f"{' itself: make an instance of it' if isinstance(augmentation, type) else ''}."
            )
        check_count(name, 2, views=views)  # one view has no positive to be drawn to
        check_positive(name, temperature=temperature, readout_lr=readout_lr)
        if base_temperature is not None:
            check_positive(name, base_temperature=base_temperature)
        check_positive(name, distill_temperature=distill_temperature, teacher_temperature=teacher_temperature)
        check_count(name, 1, readout_epochs=readout_epochs, readout_batch_size=readout_batch_size)
        check_flag(name, asymmetric=asymmetric, domains=domains, rehearse=rehearse, readout_augment=readout_augment)
        if batch_size_mem is not None and not rehearse:
            raise ValueError(f"{name}: batch_size_mem is {batch_size_mem}, but rehearse=False replays nothing.")
        by_features = getattr(storage_policy, "selection_strategy", None)
        if augmentation is None and isinstance(by_features, FeatureBasedExemplarsSelectionStrategy):
            raise ValueError(
                f"{name}: {type(by_features).__name__} looks at features under the training transform, which makes "
                "views where the plugin has no augmentation: it would choose by the wrong images. Give the plugin an "
                "augmentation, or take another selection of exemplars."
            )
        check_weight(name, weight=weight)
        check_choice(name, "reduction", reduction, ("anchors", "all", "sum"))
        check_choice(name, "readout", readout, ("linear", "ncm"))
        if readout_balance is not None:
            check_choice(name, "readout_balance", readout_balance, ("class", "domain", "domain and class"))
        self.augmentation, self.views = augmentation, views
        self.temperature, self.base_temperature = temperature, base_temperature
        self.reduction, self.asymmetric, self.domains = reduction, asymmetric, domains
        self.rehearse = rehearse
        self.weight = weight
        self.distill_temperature, self.teacher_temperature = distill_temperature, teacher_temperature
        self.refit = ReadOutRefit(
            kind=readout,
            lr=readout_lr,
            epochs=readout_epochs,
            batch_size=readout_batch_size,
            balance=readout_balance or ("domain" if domains else "class"),
            augment=readout_augment,
        )
        self._labels: list[int] = []  # codes of the pairs of the current experience, where domains count
        self._seen_labels: set[int] = set()
        self._check_readout = False  # before the next batch of an evaluation
        self._scores_are_asked_for = False
        self._views_are_checked = False  # of the experience

    @property
    def needs_teacher(self) -> bool:
        """Only the distillation asks it."""
        return self.weight > 0

    # ---- data: the memory in the dataset, the views in the batch

    def before_training(self, strategy: Any, **kwargs: Any) -> None:
        """Refuse partners without a meaning, one in the wrong place, and a model that is not Co2L's."""
        super().before_training(strategy, **kwargs)
        _contrastive(strategy.model)
        if self.batch_size_mem is None and self.rehearse:
            check_order("Co2LPlugin", self, strategy.plugins)

    def after_train_dataset_adaptation(self, strategy: Any, **kwargs: Any) -> None:
        """Mix the memory into the experience's dataset, uniformly."""
        if self.batch_size_mem is not None:
            return
        if self.rehearse and len(self.memory) > 0:
            strategy.adapted_dataset = mixed("Co2LPlugin", strategy.adapted_dataset, self.memory.train())
        load_uniformly(strategy)

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Check model and stream; keep the experience's data at hand for the read-out."""
        super().before_training_exp(strategy, **kwargs)
        _contrastive(strategy.model)
        if self.domains and not self.multi_head:
            self._note_domains(strategy)
        if self.batch_size_mem is None and strategy.train_mb_size == 1:
            warnings.warn(
                "Co2LPlugin: train_mb_size is 1 (Avalanche's default), and an image alone in its batch has nothing "
                "to be told apart from: the encoder learns nothing. Take batches of dozens of images.",
                stacklevel=2,
            )
        if self.refit.balance != "class" and not hasattr(strategy.experience, "task_labels"):
            raise ValueError(
                f"Co2LPlugin: readout_balance={self.refit.balance!r} needs a stream with task labels, one per domain. "
                + LABEL_THEM
            )
        self.refit.begin(strategy.experience, self.memory)
        self._views_are_checked = False

    def forward_pass(self, strategy: Any, forward: Callable[[], Any]) -> Any:
        """The model gets views in the place of images; the teacher those that the student has got."""
        if not strategy.model.training:
            return forward()
        if not self._views_are_checked:
            _check_views(strategy, self.augmentation is None)
            self._views_are_checked = True
        if self.augmentation is None:
            return forward()
        drawn: Drawn = self.of_batch.setdefault("drawn", [])
        output = run_on(partial(views_of, drawn, self.augmentation, self.views), strategy, forward)
        self.of_batch["views"] = drawn[-1][2]
        return output

    # ---- loss

    def objective(self, strategy: Any) -> Tensor:
        """Asymmetric SupCon, plus the relation distillation once there is a teacher."""
        z = strategy.mb_output
        if self.augmentation is not None and isinstance(z, Tensor) and z.ndim == 2:
            # Of images without views: the loop, or a plugin, has called the model past strategy.forward().
            z = self.asked_again(strategy)
        if not strategy.model.training and isinstance(z, Tensor) and z.ndim == 2:
            raise ValueError(
                "Co2LPlugin: the model is in evaluation mode within a training step, and gives class logits then, not "
                "the projections to train on. Has a plugin or metric called model.eval() and no model.train() after it?"
            )
        if self.domains and not self.multi_head:
            labels = pair_codes(strategy.mb_task_id, strategy.mb_y)
            current = is_in(labels, self.table("domains", lambda: torch.tensor(self._labels, device=labels.device)))
        else:
            labels, current = self.labels, self.guards.is_current
        contrast: dict[str, Any] = {
            "temperature": self.temperature,
            "base_temperature": self.base_temperature,
            "reduction": self.reduction,
        }
        anchors = current if self.asymmetric else None
        if self.teacher is None:
            loss = asymmetric_supcon(z, labels, anchors, **contrast)
            self.terms = {"contrast": loss.detach()}
            return loss
        loss, supcon, distillation = contrast_and_relations(
            z,
            labels,
            anchors,
            self.teacher_forward(strategy),
            **contrast,
            weight=float(self.weight),  # the caller's schedule may change it from step to step
            distill_temperature=self.distill_temperature,
            teacher_temperature=self.teacher_temperature,
        )
        self.terms = {"contrast": supcon, "distillation": distillation}
        return loss

    def _note_domains(self, strategy: Any) -> None:
        """The contrast's labels of the experience, one for each pair of task label and class in it."""
        experience = strategy.experience
        if not hasattr(experience, "task_labels"):
            raise ValueError(
                "Co2LPlugin: domains=True needs a stream with task labels, one per domain, but its experiences have no "
                "task_labels. " + LABEL_THEM
            )
        if starts_task(experience) or not self._labels:
            self._labels = [task * PAIR + c for task, c in pairs_of(experience)]
        codes = self._seen_labels.union(self._labels)
        one_domain = len({code // PAIR for code in codes}) == 1
        if one_domain and codes == self._seen_labels and not is_piece(experience):
            raise ValueError(
                "Co2LPlugin: domains=True tells domains apart by task label, but the classes of this experience have "
                f"come before under the same label, {self._labels[0] // PAIR}, the only one so far. Make the "
                "stream with task_labels=True (nc_benchmark) or return_task_id=True (RotatedMNIST), or leave domains "
                "out."
            )

    def before_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        """Whether a metric will look at the outputs of training."""
        super().before_training_epoch(strategy, **kwargs)
        self._scores_are_asked_for = _asks_for_outputs(strategy.evaluator)

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """Hand the metrics, which come next, class scores of the batch."""
        super().after_training_iteration(strategy, **kwargs)
        z = strategy.mb_output  # None where an evaluation by another plugin has cleared the batch
        if self._scores_are_asked_for and isinstance(z, Tensor) and z.ndim == 3:
            columns = 1 + max(c[1] if isinstance(c, tuple) else c for c in (*self._current, *self.seen_classes))
            width = max(_contrastive(strategy.model).readout.width, columns)
            strategy.mb_output = _neighbour_scores(z.detach(), strategy.mb_y, width, self.labels // PAIR)

    # ---- read-out

    def before_eval(self, strategy: Any, **kwargs: Any) -> None:
        """Refit the read-out if the model has been trained since, within an experience."""
        super().before_eval(strategy, **kwargs)
        self._refit(strategy)

    def before_eval_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Another plugin may yet exchange the weights, as averaging plugins do: look again before the first batch."""
        self._check_readout = True

    def before_eval_forward(self, strategy: Any, **kwargs: Any) -> None:
        """Look again at the first batch of an experience; refuse broken images."""
        super().before_eval_forward(strategy, **kwargs)
        if self._check_readout:
            self._refit(strategy)
            self._check_readout = False

    def after_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        """After the last epoch, refit before any plugin looks at the trained model's logits."""
        super().after_training_epoch(strategy, **kwargs)
        if strategy.clock.train_exp_epochs + 1 == strategy.train_epochs or strategy._stop_training:
            self._refit(strategy)

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Read-out first (the memory still holds earlier experiences only), then teacher, ledger and memory."""
        self._refit(strategy)
        self._seen_labels.update(self._labels)
        super().after_training_exp(strategy, **kwargs)

    def _refit(self, strategy: Any) -> None:
        self.refit(strategy, _contrastive(strategy.model), self.augmentation)


def _contrastive(model: torch.nn.Module) -> ContrastiveModel:
    model = unwrapped(model)
    if isinstance(model, AveragedModel):  # an averaging plugin puts it into the model's place for an evaluation
        model = unwrapped(model.module)
    if not isinstance(model, ContrastiveModel):
        raise TypeError(
            f"Co2L trains a ContrastiveModel, got {type(model).__name__}. Wrap the encoder: "
            "ContrastiveModel(encoder, feature_size)."
        )
    return model


def _check_views(strategy: Any, wanted: bool) -> None:
    """Refuse a batch that has views, or has none, against what is wanted; where it goes into the model as it is."""
    model, x = _contrastive(strategy.model), strategy.mb_x
    if not isinstance(x, Tensor) or type(strategy).forward is not SupervisedProblem.forward:
        return
    if wanted and (not model.has_views(x) or (model.sample_ndim is None and x.ndim != 5)):
        raise ValueError(
            f"Co2LPlugin: a training batch must have shape (B, V, C, H, W) with V >= 2, got {tuple(x.shape)}. "
            "Give the plugin an augmentation, or wrap the stream's training transform in TwoViews. (Views of "
            "other samples than images: ContrastiveModel(..., sample_ndim=).)"
        )
    if not wanted and model.has_views(x):
        raise ValueError(
            f"Co2LPlugin: a training batch must be without views, (B, C, H, W), where the plugin has an "
            f"augmentation to make them, got {tuple(x.shape)}. Leave one out: TwoViews in the stream's "
            "transform, or the augmentation. (Samples of two axes: ContrastiveModel(..., sample_ndim=2).)"
        )


def _asks_for_outputs(evaluator: Any) -> bool:
    """Whether a metric looks at the model's outputs in training: all do but losses and clocks."""
    for metric in evaluator.metrics:
        if isinstance(metric, GenericPluginMetric):
            if metric._mode == "train" and not isinstance(metric, (LossPluginMetric, TimePluginMetric)):
                return True
        elif getattr(type(metric), "after_training_iteration", None) is not PluginMetric.after_training_iteration:
            return True
    return False


def _neighbour_scores(z: Tensor, y: Tensor, width: int, heads: Tensor) -> Tensor:
    """Scores of a 1-NN classifier: for each image the best similarity to an image of each class, (B, width).

    An image's own other view counts only where the batch has no second image of its class. Images of another head
    (B,) do not count.
    """
    z = F.normalize(z.float(), dim=-1)  # the model may leave its projections as long as they are
    with torch.autocast(z.device.type, enabled=False):
        similarity = z[:, 0] @ z[:, 1].T
    own = heads[:, None] == heads
    alone = ((y[:, None] == y) & own).sum(dim=1) == 1
    similarity.diagonal().masked_fill_(~alone, -2.0)  # less than any cosine
    similarity.masked_fill_(~own, -2.0)
    scores = similarity.new_full((len(y), width), -2.0)
    return scores.scatter_reduce(1, y.expand(len(y), -1), similarity, "amax")
