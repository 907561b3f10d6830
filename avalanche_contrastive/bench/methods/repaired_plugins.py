"""Plugins of Avalanche 0.6 with their defects taken out, as `repaired` has the strategies."""

import random
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from avalanche.benchmarks.utils.data_loader import ReplayDataLoader
from avalanche.models.base_model import BaseModel
from avalanche.models.bic_model import BiasLayer
from avalanche.training.plugins import (
    AGEMPlugin,
    BiCPlugin,
    CoPEPlugin,
    GEMPlugin,
    GSS_greedyPlugin,
    LFLPlugin,
    MIRPlugin,
    RWalkPlugin,
)
from avalanche.training.storage_policy import ExperienceBalancedBuffer
from torch import Tensor
from torch.utils.data import DataLoader

from avalanche_contrastive.bench.methods.networks import Classifier
from avalanche_contrastive.bench.methods.repaired import endless
from avalanche_contrastive.teacher import frozen_copy


def share_of_memory(memory: int, experiences: int) -> int:
    """Images that each of so many experiences may keep.

    Raises:
        ValueError: not even one.
    """
    if memory < experiences:
        raise ValueError(
            f"a memory of {memory} images cannot keep one of each of the {experiences} experiences so far, which this "
            "method needs: take a larger memory"
        )
    return memory // experiences


class SharedAGEM(AGEMPlugin):
    """A-GEM with one memory for all experiences so far, as all other methods have it.

    As shipped every experience gets a memory of its own, of a size that the number of experiences would have to be
    known for, and fails once there are more experiences than ``sample_size``.
    """

    def __init__(self, mem_size: int, sample_size: int):
        super().__init__(mem_size, sample_size)
        self.mem_size = mem_size
        self.buffers: list[Any] = []
        self.sample_size: int = sample_size

    def update_memory(self, dataset: Any, num_workers: int = 0, **kwargs: Any) -> None:
        """Make room for the experience, then add it."""
        experiences = len(self.buffers) + 1
        share = share_of_memory(self.mem_size, experiences)
        self.buffers = [kept.subset(random.sample(range(len(kept)), min(share, len(kept)))) for kept in self.buffers]
        self.patterns_per_experience = share
        self.sample_size = max(self.sample_size, experiences)
        super().update_memory(dataset, num_workers=num_workers, **kwargs)


class SharedGEM(GEMPlugin):
    """GEM with one memory for all experiences so far, and a solver that Avalanche brings along.

    As shipped it has a memory per experience and needs the package quadprog. The same quadratic programme,
    min v'Pv / 2 + q'v with v >= h, is a non-negative least-squares problem of v - h, which scipy solves.
    """

    def __init__(self, mem_size: int, memory_strength: float):
        super().__init__(mem_size, memory_strength)
        self.mem_size = mem_size

    def update_memory(self, dataset: Any, t: int, batch_size: int) -> None:
        """Make room for the experience, then add it; the images were drawn at random, so the first may stay."""
        share = share_of_memory(self.mem_size, t + 1)
        for stored in (self.memory_x, self.memory_y, self.memory_tid):
            stored |= {key: tensor[:share] for key, tensor in stored.items()}
        self.patterns_per_experience = share
        super().update_memory(dataset, t, batch_size)

    def solve_quadprog(self, g: Tensor) -> Tensor:
        """The gradient (P,) nearest to ``g`` (P,) that makes no past experience worse, as a float tensor."""
        from scipy.linalg import solve_triangular  # type: ignore[import-untyped, unused-ignore]
        from scipy.optimize import nnls  # type: ignore[import-untyped, unused-ignore]

        past, gradient = self.G.detach().double().cpu(), g.detach().double().cpu()
        quadratic = past @ past.T + 1e-3 * torch.eye(len(past), dtype=torch.double)  # Avalanche's and the authors'
        least = torch.full((len(past),), self.memory_strength, dtype=torch.double)
        root = torch.linalg.cholesky(quadratic).numpy()
        constant = solve_triangular(root, (past @ gradient + quadratic @ least).numpy(), lower=True)
        weights = torch.from_numpy(nnls(root.T, -constant)[0]) + least
        nearest: Tensor = weights @ past + gradient
        return nearest.float()


class StoredMIR(MIRPlugin):
    """MIR that replays all that it has stored.

    As shipped, for streams of single batches, it leaves out the classes of the last batch: those of the experience
    just learned are then not replayed in the next. It also needs that batch, which an evaluation has cleared.
    """

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Replay from the memory of the experiences before."""
        memory = self.storage_policy.buffer
        self.replay_loader = endless(memory, self.subsample) if len(memory) > 0 else None

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Store the experience."""
        self.replay_loader = None
        self.storage_policy.post_adapt(strategy, strategy.experience)


class StreamGSS(GSS_greedyPlugin):
    """GSS-greedy that looks at each image once, as in the streams of single batches that it is meant for.

    As shipped it chooses again from every epoch and from replayed images, so the memory fills with the first ones; it
    fails where a batch is larger than the memory; and it leaves the gradient of the last image that it looked at in the
    step. It chooses from ten images at a time, the authors' batch.
    """

    def __init__(self, mem_size: int, mem_strength: int, image_shape: tuple[int, int, int], batch_size_mem: int):
        super().__init__(mem_size, mem_strength, list(image_shape))
        self.batch_size_mem = batch_size_mem
        self.chunk = max(1, min(10, mem_size // 2))
        self._current: tuple[Tensor, Tensor] | None = None

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Leave the loader as it is: the replayed rows are added to the batch."""

    def before_forward(self, strategy: Any, **kwargs: Any) -> None:
        """Keep the loaded batch and add replayed rows."""
        x, y, tasks = strategy.mbatch
        self._current = x, y
        if strategy.clock.train_exp_counter > 0:
            rows = torch.randperm(self.ext_mem_list_current_index, device=x.device)[: self.batch_size_mem]
            stored = self.ext_mem_list_x[rows], self.ext_mem_list_y[rows], tasks.new_zeros(len(rows))
            strategy.mbatch = [torch.cat(pair) for pair in zip((x, y, tasks), stored, strict=True)]

    def after_forward(self, strategy: Any, **kwargs: Any) -> None:
        """Choose from the new images of the first epoch."""
        assert self._current is not None
        if strategy.clock.train_exp_epochs > 0:
            return
        fixed = {"model": strategy.model, "device": strategy.device, "_criterion": strategy._criterion}
        for x, y in zip(*(part.split(self.chunk) for part in self._current), strict=True):
            super().after_forward(SimpleNamespace(**fixed, mb_x=x, mb_y=y))
        strategy.model.zero_grad()


class WholeCoPE(CoPEPlugin):
    """CoPE for experiences of many batches.

    As shipped it trains on a single batch of each experience and moves the prototypes once at its end. Here they move
    with every batch, as in the paper. Scores are similarities to the prototypes instead of a one for the nearest.
    """

    def __init__(self, *, device: torch.device, batch_size_mem: int, **options: Any):
        super().__init__(**options)
        self.batch_size_mem = batch_size_mem
        self._init_new_prototypes(torch.arange(self.n_classes, device=device))
        self.initialized = True  # criterion and normalised output are wired by the builder

    def before_training_exp(self, strategy: Any, num_workers: int = 0, shuffle: bool = True, **kwargs: Any) -> None:
        """Replay a batch of the memory in each step, however small the memory."""
        if len(self.storage_policy.buffer) > 0:
            strategy.dataloader = ReplayDataLoader(
                strategy.adapted_dataset,
                self.storage_policy.buffer,
                oversample_small_tasks=True,
                batch_size=strategy.train_mb_size,
                batch_size_mem=self.batch_size_mem,
                num_workers=num_workers,
                shuffle=shuffle,
            )

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """Move the prototypes."""
        self._update_prototypes()

    def _get_nearest_neigbor_distr(self, x: Tensor) -> Tensor:
        return x @ torch.cat([self.p_mem[c] for c in range(self.n_classes)]).T


class TrainingRWalk(RWalkPlugin):
    """RWalk that trains in training mode, and without nan.

    As shipped the model is put in evaluation mode before every step and left there: batch norm never learns. An
    experience of fewer steps than ``delta_t`` divides zero by zero.
    """

    def before_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """Back to training mode after the plugin's own pass."""
        super().before_training_iteration(strategy, **kwargs)
        strategy.model.train()

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """A parameter without a score has no penalty."""
        super().after_training_exp(strategy, **kwargs)
        for penalty in self.exp_penalties.values():
            penalty.data = penalty.data.nan_to_num(nan=0.0)


class RepairedBiC(BiCPlugin):
    """BiC that runs on today's torch, within its memory, with a softmax over classes.

    As shipped it asks torch for an argument that is gone, writes to the stream's datasets, stores its validation images
    on top of the memory, and takes the teacher's softmax over the batch instead of the classes. The outputs that the
    correction is fitted to are computed once, as the model does not change meanwhile.
    """

    def __init__(
        self, *, mem_size: int, val_percentage: float, temperature: float, stage_2_epochs: int, lamb: float, lr: float
    ):
        super().__init__(
            mem_size=mem_size, val_percentage=val_percentage, stage_2_epochs=stage_2_epochs, lamb=lamb, lr=lr
        )
        self.temperature = temperature
        held = int(val_percentage * mem_size)
        if not 0 < held < mem_size:
            raise ValueError(
                "BiC needs some stored images to validate on and some to replay, but val_percentage = "
                f"{val_percentage} of a memory of {mem_size} is {held}"
            )
        self.storage_policy = ExperienceBalancedBuffer(mem_size - held)
        self._rest: Any = None

    def before_train_dataset_adaptation(self, strategy: Any, **kwargs: Any) -> None:
        """Hold validation images back, without touching the stream."""
        experience = SimpleNamespace(dataset=strategy.experience.dataset)
        super().before_train_dataset_adaptation(SimpleNamespace(experience=experience, clock=strategy.clock), **kwargs)
        self._rest = experience.dataset

    def after_train_dataset_adaptation(self, strategy: Any, **kwargs: Any) -> None:
        """Train on the rest."""
        strategy.adapted_dataset = self._rest.train()

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """The model becomes the teacher, the rest is stored, the bias of the new classes fitted."""
        self.is_first_experience = False
        self.model_old = frozen_copy(strategy.model)
        self.storage_policy.post_adapt(strategy, SimpleNamespace(dataset=self._rest))
        if strategy.clock.train_exp_counter > 0:
            self.bias_correction_step(strategy)

    def cross_entropy(self, new_outputs: Tensor, old_outputs: Tensor) -> Tensor:
        """Distillation at the temperature, over the classes."""
        return F.cross_entropy(new_outputs / self.temperature, F.softmax(old_outputs / self.temperature, dim=1))

    def bias_correction_step(self, strategy: Any, **kwargs: Any) -> None:
        """Fit scale and shift of the new classes' logits to the validation images."""
        logits, y = [], []
        for held in self.val_buffer.values():
            for batch in DataLoader(held.buffer.eval(), batch_size=strategy.eval_mb_size):
                with torch.no_grad():
                    logits.append(self.model_old(batch[0].to(strategy.device)))
                y.append(batch[1].to(strategy.device))
        outputs, targets = torch.cat(logits), torch.cat(y)
        self.bias_layer = BiasLayer(self._classes_groups(strategy)[2]).to(strategy.device)
        optimizer = torch.optim.SGD(self.bias_layer.parameters(), lr=self.lr, momentum=0.9)
        milestones = [round(part * self.stage_2_epochs) for part in (0.25, 0.5, 0.75)]  # 50, 100, 150 of 200
        schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, gamma=0.1)
        for _ in range(self.stage_2_epochs):
            for rows in torch.randperm(len(targets)).to(targets.device).split(strategy.train_mb_size):
                optimizer.zero_grad()
                loss = F.cross_entropy(self.bias_layer(outputs[rows]), targets[rows])
                (loss + 0.05 * self.bias_layer.beta.square().sum()).backward()
                optimizer.step()
            schedule.step()
        self.bias_layer.requires_grad_(False)


class TrainingLFL(LFLPlugin):
    """LFL that trains in training mode.

    As shipped the model is put in evaluation mode at the first penalty and left there: without batch statistics it
    soon diverges.
    """

    def before_backward(self, strategy: Any, **kwargs: Any) -> None:
        """Back to training mode after the penalty."""
        super().before_backward(strategy, **kwargs)
        strategy.model.train()


class FeatureClassifier(Classifier, BaseModel):
    """A classifier that gives features when asked, as Avalanche's LFL does."""

    def get_features(self, x: Tensor) -> Tensor:
        """Features (B, D)."""
        features: Tensor = self.encoder(x)
        return features


class RememberingClassifier(Classifier):
    """A classifier that keeps its last features, where Avalanche's feature distillation looks for them."""

    features: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Class logits."""
        self.features = self.encoder(x)
        logits: Tensor = self.head(self.features)
        return logits
