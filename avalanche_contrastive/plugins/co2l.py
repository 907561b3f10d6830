"""Co2L: asymmetric supervised contrast, relation distillation, and a read-out for class logits."""

import warnings
from collections.abc import Callable
from typing import Any, Literal

import torch
from avalanche.benchmarks.utils import AvalancheDataset, make_avalanche_dataset
from avalanche.benchmarks.utils.data_attribute import DataAttribute
from avalanche.benchmarks.utils.data_loader import SingleDatasetDataLoader, TaskBalancedDataLoader
from avalanche.training.storage_policy import ExemplarsBuffer, FeatureBasedExemplarsSelectionStrategy
from torch import Tensor
from torch.utils.data import Dataset

from avalanche_contrastive._checks import came, check_choice, check_count, check_flag, check_positive, check_weight
from avalanche_contrastive._rows import rows_of
from avalanche_contrastive._torch import compiled_in_place, own_random_state, unwrapped
from avalanche_contrastive.losses import asymmetric_supcon, relation_distillation
from avalanche_contrastive.models import ContrastiveModel
from avalanche_contrastive.plugins.partners import UNFIT_FOR_CO2L, check_order
from avalanche_contrastive.plugins.replay import ReplayMethodPlugin
from avalanche_contrastive.plugins.views import ViewMaker
from avalanche_contrastive.readout import TaskReadOuts, embed_dataset, fit_linear, fit_nearest_mean
from avalanche_contrastive.tasks import PAIR, is_piece, pair_codes, pairs_of, starts_task

__all__ = ["Co2LPlugin"]


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
        views: of each image, made by the augmentation.
        temperature: of the contrast (the paper's 0.5; R-MNIST 0.1).
        base_temperature: multiplies the contrast by temperature / base_temperature, as the authors' code does with
            0.07; None is the paper.
        reduction: "all" (the authors'), "anchors" or "sum" (the paper); see ``asymmetric_supcon``.
        asymmetric: False makes every view an anchor (the paper's ablation).
        domains: True for domain-incremental streams with a task label per domain: for the contrast the same class
            under another task label is another class, so that past domains give no anchors (the paper's R-MNIST).
            Read-out, memory and evaluation keep the classes as they are.
        weight: of the relation distillation (lambda); 0 leaves it out.
        distill_temperature: of the student's relations (kappa).
        teacher_temperature: of the teacher's relations (kappa*).
        batch_size_mem: None mixes the memory into the dataset, each exemplar once per epoch (the paper); a number
            replays that many rows in every step instead.
        rehearse: False keeps the memory for the read-out alone, out of the training (the paper's Table 2, no buffer).
        storage_policy: any Avalanche buffer of size ``mem_size``; None: class-balanced, random.
        readout: "linear" (the paper) or "ncm", the nearest class mean.
        readout_lr: of the linear read-out.
        readout_epochs: of the linear read-out.
        readout_batch_size: of the linear read-out.
        teacher_mode: "eval", or "train" for batch statistics in the teacher, as in the authors' code.
    """

    unfit = UNFIT_FOR_CO2L

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
        teacher_mode: Literal["eval", "train"] = "eval",
    ) -> None:
        super().__init__(
            mem_size=mem_size, batch_size_mem=batch_size_mem, storage_policy=storage_policy, teacher_mode=teacher_mode
        )
        name = "Co2LPlugin"
        if augmentation is not None and (not callable(augmentation) or isinstance(augmentation, type)):
            came = augmentation if isinstance(augmentation, type) else type(augmentation)
            raise TypeError(
                f"{name}: augmentation must map a batch to a batch, a callable, got {came.__name__}"
                f"{' itself: make one of it' if isinstance(augmentation, type) else ''}."
            )
        check_count(name, 2, views=views)  # one view has no positive to be drawn to
        check_positive(name, temperature=temperature, readout_lr=readout_lr)
        if base_temperature is not None:
            check_positive(name, base_temperature=base_temperature)
        check_positive(name, distill_temperature=distill_temperature, teacher_temperature=teacher_temperature)
        check_count(name, 1, readout_epochs=readout_epochs, readout_batch_size=readout_batch_size)
        check_flag(name, asymmetric=asymmetric, domains=domains, rehearse=rehearse)
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
        self.augmentation, self.views = augmentation, views
        self.temperature, self.base_temperature = temperature, base_temperature
        self.reduction, self.asymmetric, self.domains = reduction, asymmetric, domains
        self.rehearse = rehearse
        self.weight = weight
        self.distill_temperature, self.teacher_temperature = distill_temperature, teacher_temperature
        self.readout, self.readout_lr = readout, readout_lr
        self.readout_epochs, self.readout_batch_size = readout_epochs, readout_batch_size
        self._maker: ViewMaker | None = None
        self._hooks: list[Any] = []
        self._views: Tensor | None = None
        self._plain: Tensor | None = None  # the batch without views, while the views are in its place
        self._dataset: Any = None
        self._readout_is_stale = False
        self._fitted_for: tuple[int, ...] = ()  # the state of the model that the read-out was fitted for
        self._labels: list[int] = []  # of the contrast, of the current experience
        self._seen_labels: set[int] = set()

    # ---- data: the memory in the dataset, the views in the batch

    def before_training(self, strategy: Any, **kwargs: Any) -> None:
        """Refuse partners without a meaning, and one in the wrong place."""
        super().before_training(strategy, **kwargs)
        if self.batch_size_mem is None and self.rehearse:
            check_order("Co2LPlugin", self, strategy.plugins)

    def after_train_dataset_adaptation(self, strategy: Any, **kwargs: Any) -> None:
        """Mix the memory into the experience's dataset."""
        if self.batch_size_mem is not None or not self.rehearse:
            return
        if len(self.memory) > 0:
            strategy.adapted_dataset = _union(strategy.adapted_dataset, self.memory.train())
        if hasattr(strategy.experience, "task_labels"):
            _check_batch_size(strategy)

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Check model and stream; mix uniformly; keep the experience's data at hand for the read-out."""
        super().before_training_exp(strategy, **kwargs)
        _contrastive(strategy.model)
        if self.domains and not self.multi_head:
            self._note_domains(strategy)
        if self.batch_size_mem is None:
            _mix_uniformly(strategy)
            if strategy.train_mb_size == 1:
                warnings.warn(
                    "Co2LPlugin: train_mb_size is 1 (Avalanche's default), and an image alone in its batch has nothing "
                    "to be told apart from: the encoder learns nothing. Take batches of dozens of images.",
                    stacklevel=2,
                )
        self._dataset = strategy.experience.dataset
        self._readout_is_stale = True

    def before_forward(self, strategy: Any, **kwargs: Any) -> None:
        """Have the views made when the model is called: whatever other plugins make of the batch until then is in."""
        self._unhook()
        super().before_forward(strategy, **kwargs)
        model, x = _contrastive(strategy.model), strategy.mb_x
        if self.augmentation is not None:
            if model.has_views(x):
                raise ValueError(
                    f"Co2LPlugin: a training batch must be without views, (B, C, H, W), where the plugin has an "
                    f"augmentation to make them, got {tuple(x.shape)}. Leave one out: TwoViews in the stream's "
                    "transform, or the augmentation. (Samples of two axes: ContrastiveModel(..., sample_ndim=2).)"
                )
            self._maker = ViewMaker(self.augmentation, self.views, self._where, strategy.mb_y)
            if compiled_in_place(strategy.model):  # such a model may not run hooks
                self._plain = x
                (strategy.mbatch[0],) = self._maker(strategy.model, (x,))
            else:
                self._hooks = [
                    strategy.model.register_forward_pre_hook(self._maker),
                    strategy.model.register_forward_hook(self._maker.keep),
                ]
        elif not model.has_views(x) or (model.sample_ndim is None and x.ndim != 5):
            raise ValueError(
                f"Co2LPlugin: a training batch must have shape (B, V, C, H, W) with V >= 2, got {tuple(x.shape)}. "
                "Give the plugin an augmentation, or wrap the stream's training transform in TwoViews. (Views of "
                "other samples than images: ContrastiveModel(..., sample_ndim=).)"
            )

    def after_forward(self, strategy: Any, **kwargs: Any) -> None:
        """Keep the views for the teacher; put the objective in the criterion's place."""
        self._views = None if self._maker is None else self._maker.views_of(strategy.mb_output)
        if self._plain is not None:
            (strategy.mbatch[0],) = rows_of(strategy).whole_batch([self._plain])
            self._plain = None
        self._unhook()
        super().after_forward(strategy, **kwargs)

    def _unhook(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._maker, self._plain = [], None, None

    # ---- loss

    def objective(self, strategy: Any) -> Tensor:
        """Asymmetric SupCon, plus the relation distillation once there is a teacher."""
        z = strategy.mb_output
        y, is_current = self._contrast_labels(strategy)
        loss = asymmetric_supcon(
            z,
            y,
            is_current if self.asymmetric else None,
            temperature=self.temperature,
            base_temperature=self.base_temperature,
            reduction=self.reduction,
        )
        self.terms = {"contrast": loss.detach()}
        if self.teacher is None or self.weight == 0:
            return loss
        rows = rows_of(strategy)
        with torch.no_grad(), rows.shared_statistics(self.teacher):
            views = rows.own(strategy.mb_x) if self._views is None else self._views
            z_teacher = rows.whole(_contrastive(self.teacher).project(views))
        kept = relation_distillation(
            z, z_teacher, temperature=self.distill_temperature, teacher_temperature=self.teacher_temperature
        )
        self.terms["distillation"] = kept.detach()
        return loss + self.weight * kept

    def _contrast_labels(self, strategy: Any) -> tuple[Tensor, Tensor]:
        """What the contrast tells images apart by, (B,), and which of the batch is of the current experience."""
        if self.multi_head or not self.domains:
            y = self.row_labels(strategy)
            return y, self.is_current(y)
        y = pair_codes(strategy.mb_task_id, strategy.mb_y)
        return y, torch.isin(y, torch.tensor(self._labels, device=y.device))

    def _note_domains(self, strategy: Any) -> None:
        """The contrast's labels of the experience, one for each pair of task label and class in it."""
        experience = strategy.experience
        if not hasattr(experience, "task_labels"):
            raise ValueError(
                "Co2LPlugin: domains=True needs a stream with task labels, one per domain, but its experiences have no "
                "task_labels. Make it with task_labels=True (nc_benchmark) or return_task_id=True (RotatedMNIST), or "
                "wrap it in with_task_labels."
            )
        if starts_task(experience) or not self._labels:
            self._labels = [task * PAIR + c for task, c in pairs_of(experience)]
        labels = self._seen_labels.union(self._labels)
        one_domain = len({label // PAIR for label in labels}) == 1
        if one_domain and labels == self._seen_labels and not is_piece(experience):
            raise ValueError(
                "Co2LPlugin: domains=True tells domains apart by task label, but the classes of this experience have "
                f"come before under the same label, {self._labels[0] // PAIR}, the only one so far. Make the stream "
                "with task_labels=True (nc_benchmark) or return_task_id=True (RotatedMNIST), or leave domains out."
            )

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """Hand the metrics, which come next, class scores of the batch."""
        super().after_training_iteration(strategy, **kwargs)
        self._readout_is_stale = True
        self._views = None
        if strategy.mb_output is None or strategy.mb_output.ndim != 3:
            return  # an evaluation by another plugin has cleared the batch
        width = _contrastive(strategy.model).readout.width
        labels = self.row_labels(strategy)
        strategy.mb_output = _neighbour_scores(strategy.mb_output.detach(), strategy.mb_y, width, labels // PAIR)

    # ---- read-out

    def before_eval(self, strategy: Any, **kwargs: Any) -> None:
        """Refit the read-out if the model has been trained since, within an experience."""
        super().before_eval(strategy, **kwargs)
        self._unhook()
        self._refit(strategy)

    def after_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        """After the last epoch, refit before any plugin looks at the trained model's logits."""
        super().after_training_epoch(strategy, **kwargs)
        if strategy.clock.train_exp_epochs + 1 == strategy.train_epochs or strategy._stop_training:
            self._refit(strategy)

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Read-out first (the memory still holds earlier experiences only), then teacher, ledger and memory."""
        self._refit(strategy)
        self._dataset = None
        self._seen_labels.update(self._labels)
        super().after_training_exp(strategy, **kwargs)

    def _refit(self, strategy: Any) -> None:
        if self._dataset is None:
            return
        model = _contrastive(strategy.model)
        if not self._readout_is_stale and self._fitted_for == _state_of(model):
            return
        readout = model.readout
        parts = [data for data in (self._dataset, self.memory) if len(data) > 0]
        with own_random_state():
            if isinstance(readout, TaskReadOuts):
                readout.forget()
                for task in sorted({int(t) for data in parts for t in data.targets_task_labels.uniques}):
                    own = [_of_task(data, task) for data in parts]
                    readout.fit(task, *self._fitted(strategy, own), unit=self.readout == "ncm")
            else:
                readout.fit(*self._fitted(strategy, parts), unit=self.readout == "ncm")
        self._readout_is_stale, self._fitted_for = False, _state_of(model)

    def _fitted(self, strategy: Any, parts: list[Any]) -> tuple[Tensor, Tensor, Tensor]:
        """Class ids (C,), weight (C, D) and bias (C,) of a read-out of some datasets together."""
        model = _contrastive(strategy.model)
        batch_size = max(strategy.eval_mb_size, strategy.train_mb_size)  # Avalanche's default for evaluation is 1
        embedded = [
            embed_dataset(model, data, batch_size=batch_size, device=strategy.device) for data in parts if len(data) > 0
        ]
        features, y = torch.cat([part[0] for part in embedded]), torch.cat([part[1] for part in embedded])
        _check_features(features)
        if self.readout == "ncm":
            return fit_nearest_mean(features, y)
        return fit_linear(
            features, y, lr=self.readout_lr, epochs=self.readout_epochs, batch_size=self.readout_batch_size
        )


def _check_features(features: Tensor) -> None:
    if not bool(features.isfinite().all()):
        broken = int((~features.isfinite().all(dim=1)).sum())
        raise ValueError(
            f"Co2LPlugin: {broken} of the {len(features)} features to fit the read-out to are not finite. Do the "
            "evaluation transforms give NaN where the training ones do not, or has the encoder diverged?"
        )


def _contrastive(model: torch.nn.Module) -> ContrastiveModel:
    model = unwrapped(model)
    if not isinstance(model, ContrastiveModel):
        raise TypeError(
            f"Co2L trains a ContrastiveModel, got {type(model).__name__}. Wrap the encoder: "
            "ContrastiveModel(encoder, feature_size)."
        )
    return model


def _of_task(data: Any, task: int) -> Any:
    """The samples of a dataset with one task label."""
    return data.subset(data.targets_task_labels.val_to_idx.get(task, []))


def _state_of(model: ContrastiveModel) -> tuple[int, ...]:
    """Changes whenever the encoder does, by a step or by a plugin that loads other weights (early stopping)."""
    tensors = [*model.encoder.parameters(), *model.encoder.buffers()]
    return (id(model), *(tensor._version for tensor in tensors))


def _neighbour_scores(z: Tensor, y: Tensor, width: int, heads: Tensor) -> Tensor:
    """Scores of a 1-NN classifier: for each image the best similarity to an image of each class, (B, width).

    An image's own other view counts only where the batch has no second image of its class. Images of another head
    (B,) do not count.
    """
    z = z.float()
    with torch.autocast(z.device.type, enabled=False):
        similarity = z[:, 0] @ z[:, 1].T
    own = heads[:, None] == heads
    alone = ((y[:, None] == y) & own).sum(dim=1) == 1
    similarity.diagonal().masked_fill_(~alone, -2.0)  # cosines lie in [-1, 1]
    similarity.masked_fill_(~own, -2.0)
    scores = similarity.new_full((len(y), max(width, int(y.max()) + 1)), -2.0)
    return scores.scatter_reduce(1, y.expand(len(y), -1), similarity, "amax")


def _check_batch_size(strategy: Any) -> None:
    labels = len(strategy.adapted_dataset.targets_task_labels.uniques)
    if strategy.train_mb_size < labels:
        raise ValueError(
            f"Co2LPlugin: train_mb_size is {strategy.train_mb_size}, but experience and memory have {labels} task "
            "labels, and the loader that Avalanche makes for a stream with task labels takes no batch smaller than "
            "that. Take larger batches, or a stream without task labels."
        )


def _mix_uniformly(strategy: Any) -> None:
    """Mix all rows, each once per epoch, where Avalanche's loader would draw as many of each task label."""
    loader = strategy.dataloader
    # Exactly that one: a loader that another plugin has put there is that plugin's business, in either order.
    if type(loader) is TaskBalancedDataLoader and len(loader.datasets) > 1:
        strategy.dataloader = SingleDatasetDataLoader(
            strategy.adapted_dataset,
            batch_size=strategy.train_mb_size,
            ffcv_args=loader.ffcv_args,
            **loader.loader_kwargs,
        )


def _union(current: AvalancheDataset[Any], memory: AvalancheDataset[Any]) -> AvalancheDataset[Any]:
    ours, stored = current[0], memory[0]
    if came(ours[0]) != came(stored[0]):
        raise ValueError(
            f"Co2LPlugin: images of this experience are {came(ours[0])}, those in the memory {came(stored[0])}, and "
            "one batch holds both. Give all experiences samples of one size and type, by a transform."
        )
    parts = len(ours)
    if len(stored) > parts:  # class-balanced buffers of Avalanche add task labels to streams that have none
        targets = DataAttribute(list(memory.targets), "targets")
        memory = make_avalanche_dataset(_Trimmed(memory, parts), data_attributes=[targets])
    return current.concat(memory)


class _Trimmed(Dataset[Any]):
    """A dataset's samples cut to their first parts."""

    def __init__(self, dataset: Any, parts: int) -> None:
        self.dataset, self.parts = dataset, parts

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        return self.dataset[index][: self.parts]
