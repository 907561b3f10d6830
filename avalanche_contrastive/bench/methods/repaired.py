"""Strategies of Avalanche 0.6 with the defects taken out that would make a comparison unfair or impossible.

Each class says what it mends. All are subclasses: Avalanche itself is left as it is. The plugins among the repaired are
in avalanche_contrastive.bench.methods.repaired_plugins.
"""

import warnings
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from avalanche.benchmarks.utils.data_loader import SingleDatasetDataLoader
from avalanche.training import LearningWithoutForgetting, VAETraining
from avalanche.training.supervised import (
    ER_AML,
    SCR,
    Cumulative,
    FeatureReplay,
    GDumb,
    ICaRL,
    JointTraining,
    StreamingLDA,
)
from avalanche.training.supervised.lamaml_v2 import LaMAML
from torch import Tensor, nn
from torch.utils.data import DataLoader


def endless(dataset: Any, batch_size: int) -> Iterator[Any]:
    """Batches of a dataset, again and again; smaller ones where the dataset is smaller than a batch."""
    loader = DataLoader(dataset, batch_size=min(batch_size, len(dataset)), shuffle=True, drop_last=True)
    while True:
        yield from loader


class UniformBatches:
    """Mixes tasks in proportion to their images.

    On a stream with task labels Avalanche fills each batch with as many images of every task, drawing those of small
    tasks over and over, and fails without a message where a batch is smaller than the number of tasks.
    """

    adapted_dataset: Any
    train_mb_size: int
    dataloader: Any

    def make_train_dataloader(self, num_workers: int = 0, shuffle: bool = True, **kwargs: Any) -> None:
        """Avalanche's loader for one task, a plain one for several."""
        if len(self.adapted_dataset.targets_task_labels.uniques) == 1:
            super().make_train_dataloader(num_workers=num_workers, shuffle=shuffle, **kwargs)  # type: ignore[misc]
        else:
            self.dataloader = SingleDatasetDataLoader(
                self.adapted_dataset, batch_size=self.train_mb_size, shuffle=shuffle, num_workers=num_workers
            )


class UniformJoint(UniformBatches, JointTraining):
    """Joint training on uniform batches."""


class UniformCumulative(UniformBatches, Cumulative):
    """Cumulative training on uniform batches."""


class UniformGDumb(UniformBatches, GDumb):
    """GDumb on uniform batches."""


class UniformICaRL(UniformBatches, ICaRL):
    """iCaRL on uniform batches; its exemplars have lost their task labels."""


class SingleHeadLwF(LearningWithoutForgetting):
    """Distils all old classes of a single head, whatever their task labels.

    As shipped, a single head is distilled on the classes of task 0 alone.
    """

    def post_adapt(self, agent: Any, exp: Any) -> None:
        """Take note of the classes under the key that a single head is looked up by."""
        super().post_adapt(agent, exp)
        for classes in list(self.prev_classes_by_task.values()):
            self.prev_classes_by_task[0] |= classes


class RepairedSCR(SCR):
    """SCR whose class means are those of the present encoder, whenever it is evaluated.

    As shipped (Avalanche 0.6) the means are averaged half and half with those of the encoder before, and they are
    fitted after the last periodic evaluation. The third repair, a projection of unit length, is in the model. A class
    without an image in a small memory is left out; as shipped it makes another class's mean nan.
    """

    def _before_eval(self, **kwargs: Any) -> None:
        super()._before_eval(**kwargs)
        if self.replay_plugin.storage_policy.buffer_groups:
            self.model.eval()
            self.compute_class_means()

    def compute_class_means(self) -> None:
        """Shipped means, without the shipped memory of older ones."""
        self.model.eval_classifier.class_means_dict = {}
        policy = self.replay_plugin.storage_policy
        groups = policy.buffer_groups
        policy.buffer_groups = {label: group for label, group in groups.items() if len(group.buffer) > 0}
        try:
            with torch.no_grad():
                super().compute_class_means()
        finally:
            policy.buffer_groups = groups


class RepairedERAML(ER_AML):
    """ER-AML with loaders that end, and the contrast normalised over what an anchor is compared with.

    As shipped it loops for ever once a class has fewer stored images than a batch, and its softmax subtracts the
    logarithm of row i's sum from column i.
    """

    def __init__(self, *, temp: float, base_temp: float, same_task_neg: bool, **keywords: Any):
        super().__init__(temp=temp, base_temp=base_temp, same_task_neg=same_task_neg, **keywords)
        self.aml_criterion = self.loss_with_replay
        self.encoder, self.temperature, self.base_temperature = keywords["feature_extractor"], temp, base_temp
        self.same_task_neg = same_task_neg
        self.pos_neg_loaders: list[Iterator[Any]] = []

    def _before_training_exp(self, **kwargs: Any) -> None:
        self.storage_policy.post_adapt(self, self.experience)  # the positives of current classes come from there, too
        if self.clock.train_exp_counter > 0:
            groups = [group.buffer for group in self.storage_policy.buffer_groups.values() if len(group.buffer) > 0]
            self.replay_loader = endless(self.storage_policy.buffer, self.batch_size_mem)
            self.pos_neg_loaders = [endless(group, self.train_mb_size) for group in groups]
        super(ER_AML, self)._before_training_exp(**kwargs)

    def _train_cleanup(self) -> None:
        super()._train_cleanup()
        self.pos_neg_loaders = []

    def loss_with_replay(
        self, x: Tensor, y: Tensor, tasks: Tensor, buffer_logits: Tensor, buffer_y: Tensor, stored: tuple[Tensor, ...]
    ) -> Tensor:
        """Cross-entropy of the replayed rows plus the contrast of the current ones, a scalar.

        Each current image (B, ...) is drawn to a stored one of its class and away from a stored one of another class,
        where possible of the same task, and so for the whole batch: 2 B images to compare with.
        """
        stored_x, stored_y, stored_tasks = stored
        same = y[:, None] == stored_y
        near = ~same & (tasks[:, None] == stored_tasks)
        other = torch.where(near.any(dim=1, keepdim=True), near, ~same) if self.same_task_neg else ~same
        rows = torch.cat([torch.multinomial(mask.float(), 1).squeeze(1) for mask in (same, other)])
        anchors = F.normalize(self.encoder(x), dim=1)
        log_share = F.log_softmax(
            anchors @ F.normalize(self.encoder(stored_x[rows]), dim=1).T / self.temperature, dim=1
        )
        positive = (y[:, None] == stored_y[rows]).float()
        contrast = -((log_share * positive).sum(dim=1) / positive.sum(dim=1)).mean()
        return F.cross_entropy(buffer_logits, buffer_y) + self.temperature / self.base_temperature * contrast


class LinearSLDA(StreamingLDA):
    """Streaming LDA whose solution is written into the model's linear head, so that ``model(x)`` is its scores.

    As shipped the model gives features only, and a class not seen yet scores 0, which may well be the best. It also
    warns of every plugin that has a callback for the backward pass, which every plugin inherits.
    """

    def __init__(self, *, model: Any, **keywords: Any):
        encoder = model.encoder
        super().__init__(slda_model=model, input_size=encoder.features, num_classes=model.head.out_features, **keywords)

    def _check_plugin_compatibility(self) -> None:
        pass

    def forward(self, return_features: bool = False) -> Any:
        """Scores of the batch, (B, K), and if asked for the features, (B, D)."""
        self.model.eval()
        self._write_head()
        if not return_features:
            return self.model(self.mb_x)
        features = self.model.encoder(self.mb_x)
        return self.model.head(features), features

    def _after_training_exp(self, **kwargs: Any) -> None:
        self._write_head()
        super()._after_training_exp(**kwargs)

    @torch.no_grad()
    def _write_head(self) -> None:
        if self.prev_num_updates == self.num_updates:
            return
        super().predict(self.muK)  # brings Lambda up to date
        weight = self.muK @ self.Lambda
        bias = -0.5 * (weight * self.muK).sum(dim=1)
        self.model.head.weight.copy_(weight)
        self.model.head.bias.copy_(torch.where(self.cK > 0, bias, torch.full_like(bias, -1e9)))


class RepairedLaMAML(LaMAML):
    """La-MAML on batches of any size.

    As shipped a batch whose images do not fill all inner updates, as 16 do not fill five, makes the loss nan, and it
    warns of the way in which it calls Avalanche itself.
    """

    def __init__(self, **keywords: Any):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Avalanche is transitioning")
            super().__init__(**keywords)

    def _before_training_exp(self, drop_last: bool = True, **kwargs: Any) -> None:
        super()._before_training_exp(**kwargs)  # which always drops a smaller last batch

    def inner_update_step(self, fast_params: Any, x: Tensor, y: Tensor, t: Tensor) -> Any:
        """One step on a part of the batch, if there is one."""
        return super().inner_update_step(fast_params, x, y, t) if len(x) > 0 else fast_params


class RepairedVAETraining(VAETraining):
    """Training of an autoencoder with batch norm, on any number of images.

    As shipped a last batch of a single image ends the run; it is left out.
    """

    def make_train_dataloader(self, **kwargs: Any) -> None:
        """Without a last batch that batch norm cannot take."""
        if len(self.adapted_dataset) % self.train_mb_size == 1:
            kwargs["drop_last"] = True
        super().make_train_dataloader(**kwargs)


class TaskBlind(nn.Module):
    """A model that may be called with task labels, as La-MAML does, and ignores them."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, task_labels: Tensor | None = None) -> Tensor:
        """What the model gives."""
        output: Tensor = self.model(x)
        return output


class RepairedFeatureReplay(FeatureReplay):
    """Feature replay with a loader that ends, which evaluation leaves alone.

    As shipped it loops for ever where the memory is smaller than a replay batch, and evaluation draws from the loader.
    """

    def _after_training_exp(self, **kwargs: Any) -> None:
        super()._after_training_exp(**kwargs)
        self.replay_loader = endless(self.storage_policy.buffer, self.batch_size_mem)

    def criterion(self, **kwargs: Any) -> Tensor:
        """The method's loss in training, cross-entropy in evaluation."""
        if not self.is_training:
            return F.cross_entropy(self.mb_output, self.mb_y)
        loss: Tensor = super().criterion(**kwargs)
        return loss
