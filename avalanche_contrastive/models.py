"""The model of Co2L with its read-out, and frozen copies (teachers)."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.nn.functional as F
from avalanche.models import FeatureExtractorBackbone, SCRModel, TrainEvalModel
from avalanche.models.dynamic_modules import DynamicModule
from avalanche.training.determinism.rng_manager import RNGManager
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from avalanche_contrastive.losses import check_count

__all__ = ["ContrastiveModel", "ReadOut", "fit_linear", "fit_nearest_mean", "frozen_copy"]

UNFITTED_LOGIT = -1000.0  # what Avalanche's IncrementalClassifier gives a class it has not been trained on


class ContrastiveModel(nn.Module):
    """An encoder with a projection head for training and a read-out for evaluation.

    In training mode ``model(x)`` is the unit-length projection that contrastive losses compare; in evaluation mode it
    is class logits, so every metric works unchanged. ``project`` and ``embed`` do not depend on the mode.

    A batch may carry a view axis, (B, V, ...): the encoder sees (B * V, ...) and the results are (B, V, ...) again.
    Logits are averaged over views.

    Args:
        encoder: maps a batch to features (B, feature_size).
        feature_size: width of the encoder's output.
        projection_size: width of the projection (the paper's 128).
        hidden_size: width of the projection head's hidden layer; None: feature_size, as the authors'.
        sample_ndim: axes of one input without batch and view axes; None means vectors or images: a batch of 2 or 4
            axes has no views, one of 3 or 5 has. Set it for anything else (2 for sequences (T, F)).
    """

    def __init__(
        self,
        encoder: nn.Module,
        feature_size: int,
        projection_size: int = 128,
        *,
        hidden_size: int | None = None,
        sample_ndim: int | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(encoder, nn.Module):
            raise TypeError(f"ContrastiveModel: encoder must be a torch module, got {type(encoder).__name__}.")
        hidden = feature_size if hidden_size is None else hidden_size
        check_count(
            "ContrastiveModel", 1, feature_size=feature_size, projection_size=projection_size, hidden_size=hidden
        )
        self.encoder = encoder
        self.feature_size = feature_size
        self.sample_ndim = sample_ndim
        self.projector = nn.Sequential(nn.Linear(feature_size, hidden), nn.ReLU(), nn.Linear(hidden, projection_size))
        self.readout = self._new_readout(feature_size)

    def _new_readout(self, feature_size: int) -> Any:
        return ReadOut(feature_size)

    def has_views(self, x: Tensor) -> bool:
        """Whether a batch carries a view axis after its batch axis."""
        if self.sample_ndim is None:
            if not 2 <= x.ndim <= 5:
                raise ValueError(
                    "ContrastiveModel: a batch is (B, F) or (B, C, H, W), or with views (B, V, F) or (B, V, C, H, W); "
                    f"got shape {tuple(x.shape)}. Name the axes of other inputs: sample_ndim=."
                )
            return x.ndim in (3, 5)
        if x.ndim not in (self.sample_ndim + 1, self.sample_ndim + 2):
            raise ValueError(
                f"ContrastiveModel: with sample_ndim={self.sample_ndim} a batch has {self.sample_ndim + 1} axes, or "
                f"one more with views, got shape {tuple(x.shape)}."
            )
        return x.ndim == self.sample_ndim + 2

    def embed(self, x: Tensor) -> Tensor:
        """Features of the encoder, (B, D) or with views (B, V, D); not normalised."""
        views = x.shape[:2] if self.has_views(x) else None
        features: Tensor = self.encoder(x.flatten(0, 1) if views else x)
        rows = views.numel() if views else len(x)
        if features.shape != (rows, self.feature_size):
            raise ValueError(
                f"ContrastiveModel: the encoder must map {rows} inputs to ({rows}, {self.feature_size}), got "
                f"{tuple(features.shape)}. Is feature_size right, and does the encoder end in a flat layer?"
            )
        # An encoder may compute in half precision by itself.
        features = features.to(next(self.projector.parameters()).dtype)
        return features.unflatten(0, views) if views else features

    def project(self, x: Tensor) -> Tensor:
        """Unit-length projections, (B, P) or with views (B, V, P)."""
        return F.normalize(self.projector(self.embed(x)), dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        """Projections in training mode; class logits (B, K) in evaluation mode."""
        if self.training:
            return self.project(x)
        features = self.embed(x)
        logits: Tensor = self.readout(features)
        return logits.mean(dim=1) if features.ndim == 3 else logits


class ReadOut(DynamicModule):
    """Class logits from frozen features: a linear layer, or the negative squared distance to class means.

    Its values are buffers, not parameters: no optimiser moves them, and ``fit`` replaces them. It widens to the
    largest class id of every experience it meets; a class that was never fitted has logit -1000, as in Avalanche's
    ``IncrementalClassifier``.

    Args:
        feature_size: D.
    """

    weight: Tensor
    bias: Tensor
    fitted: Tensor
    unit: Tensor

    def __init__(self, feature_size: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(0, feature_size))
        self.register_buffer("bias", torch.zeros(0))
        self.register_buffer("fitted", torch.zeros(0, dtype=torch.bool))
        self.register_buffer("unit", torch.tensor(False))

    @property
    def width(self) -> int:
        """Classes that it has a column for, fitted or not."""
        return len(self.bias)

    def adaptation(self, experience: Any) -> None:
        """Widen to the largest class id of the experience (Avalanche calls this before train and eval)."""
        classes = getattr(experience, "classes_in_this_experience", None)
        if classes:
            self.widen(max(classes) + 1)

    def widen(self, width: int) -> None:
        """Have at least ``width`` classes; new ones are unfitted."""
        extra = width - len(self.bias)
        if extra > 0:
            self.weight = torch.cat([self.weight, self.weight.new_zeros(extra, self.weight.shape[1])])
            self.bias = torch.cat([self.bias, self.bias.new_zeros(extra)])
            self.fitted = torch.cat([self.fitted, self.fitted.new_zeros(extra)])

    def fit(self, classes: Tensor, weight: Tensor, bias: Tensor, *, unit: bool) -> None:
        """Take new values for ``classes`` (C,), weight (C, D) and bias (C,); every other class becomes unfitted."""
        self.widen(int(classes.max()) + 1)
        self.weight.zero_()[classes] = weight.to(self.weight)
        self.bias.zero_()[classes] = bias.to(self.bias)
        self.fitted.fill_(False)[classes] = True
        self.unit.fill_(unit)

    def forward(self, features: Tensor) -> Tensor:
        """Logits (..., K) of features (..., D)."""
        if len(self.bias) == 0:
            raise RuntimeError(
                "ReadOut: no class is known yet, so there are no logits. Train on an experience first, or evaluate "
                "through a strategy, which tells the model the classes of the stream."
            )
        if self.unit:
            features = F.normalize(features, dim=-1)
        return F.linear(features, self.weight, self.bias).masked_fill(~self.fitted, UNFITTED_LOGIT)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # A fresh model has no classes yet: take the width that was saved.
        for name in ("weight", "bias", "fitted"):
            if prefix + name in state_dict:
                setattr(self, name, getattr(self, name).new_empty(state_dict[prefix + name].shape))
        super()._load_from_state_dict(state_dict, prefix, *args)


def fit_linear(
    features: Tensor, y: Tensor, *, lr: float = 1.0, epochs: int = 100, batch_size: int = 256, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Fit a linear classifier to features by class-balanced SGD, as Co2L's linear evaluation does.

    Each epoch draws as many samples as there are, with replacement and weight 1 / class count; momentum 0.9, no
    weight decay, rate x 0.2 after 60, 75 and 90 % of the epochs (Cha et al. 2021, section 5.1 and appendix). Starts
    from zero and draws from a generator of its own, so it neither touches nor depends on the global random state.

    Args:
        features: (N, D).
        y: class ids, (N,).
        lr: the paper's 1.0 for Seq-CIFAR-10, 0.1 for Seq-Tiny-ImageNet.
        epochs: passes over the data.
        batch_size: features per step.
        seed: of the draws.

    Returns:
        Class ids (C,), weight (C, D), bias (C,).
    """
    features = features.detach().float()
    classes, target, counts = torch.unique(y, return_inverse=True, return_counts=True)
    draws = torch.Generator().manual_seed(seed)
    balance = (1.0 / counts.float())[target].cpu()
    with torch.enable_grad(), torch.autocast(features.device.type, enabled=False):
        weight = features.new_zeros(len(classes), features.shape[1], requires_grad=True)
        bias = features.new_zeros(len(classes), requires_grad=True)
        optimizer = torch.optim.SGD([weight, bias], lr=lr, momentum=0.9)
        milestones = [int(share * epochs) for share in (0.6, 0.75, 0.9)]
        schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, gamma=0.2)
        for _ in range(epochs):
            order = torch.multinomial(balance, len(balance), replacement=True, generator=draws)
            for rows in order.to(features.device).split(batch_size):
                optimizer.zero_grad()
                F.cross_entropy(F.linear(features[rows], weight, bias), target[rows]).backward()
                optimizer.step()
            schedule.step()
    return classes, weight.detach(), bias.detach()


def fit_nearest_mean(features: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Nearest class mean of unit features as a linear layer: -|f - m|^2 = 2 f.m - |m|^2 - 1 for |f| = 1.

    Returns:
        Class ids (C,), weight (C, D), bias (C,), to be applied to unit features.
    """
    classes, target, counts = torch.unique(y, return_inverse=True, return_counts=True)
    features = F.normalize(features.detach().float(), dim=1)
    total = features.new_zeros(len(classes), features.shape[1]).index_add(0, target, features)
    mean = F.normalize(total / counts[:, None], dim=1)
    return classes, 2 * mean, -(mean**2).sum(dim=1) - 1


@torch.no_grad()
def embed_dataset(
    model: ContrastiveModel, dataset: Any, *, batch_size: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Features (N, D) and labels (N,) of an Avalanche dataset under its evaluation transforms.

    The model is put in evaluation mode for it (its batch statistics stay) and back afterwards. No random state is
    drawn from: the loader has a generator of its own.
    """
    features, labels = [], []
    with preserved_modes(model):
        model.eval()
        for x, y, *_ in DataLoader(dataset.eval(), batch_size=batch_size, generator=torch.Generator()):
            embedded = model.embed(x.to(device))
            if embedded.ndim == 3:  # a pipeline whose evaluation transform makes views, too
                y = y.repeat_interleave(embedded.shape[1])
                embedded = embedded.flatten(0, 1)
            features.append(embedded.float())
            labels.append(y.to(device))
    return torch.cat(features), torch.cat(labels)


@contextmanager
def preserved_modes(model: nn.Module) -> Iterator[None]:
    """Leave every module in the training or evaluation mode that it is in."""
    modes = {module: module.training for module in model.modules()}
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def own_random_state(*counters: int) -> Iterator[None]:
    """Run a block on random numbers of its own, and leave torch's, numpy's and Python's states as they were.

    The block's seed follows the user's (``torch.manual_seed``) and the counters, not how much others have drawn since:
    what a plugin draws in it is the same beside any other plugin, in either order.
    """
    state = RNGManager.__getstate__()
    try:
        RNGManager.set_random_seeds(own_seed(*counters))
        yield
    finally:
        RNGManager.__setstate__(state)


def own_seed(*counters: int) -> int:
    """A seed in [0, 2^32) from the user's torch seed and some counters."""
    seed = torch.initial_seed()
    for counter in counters:
        seed = seed * 1_000_003 + counter
    return seed % 2**32


def unwrapped(model: nn.Module) -> nn.Module:
    """The model itself, without the wrappers of data-parallel training or ``torch.compile``."""
    if isinstance(model, (DistributedDataParallel, nn.DataParallel)):
        return unwrapped(model.module)
    inner = getattr(model, "_orig_mod", None)
    return unwrapped(inner) if isinstance(inner, nn.Module) else model


def compiled_in_place(model: nn.Module) -> bool:
    """Whether the module compiles its own call (``model.compile()``), hooks included: one added later may not run."""
    return getattr(model, "_compiled_call_impl", None) is not None


def compiled(model: nn.Module) -> bool:
    """Whether a call of the model runs compiled code, by ``torch.compile(model)`` or ``model.compile()``."""
    return any(hasattr(module, "_orig_mod") or compiled_in_place(module) for module in model.modules())


def frozen_copy(model: nn.Module, *, batchnorm: Literal["eval", "train"] = "eval") -> nn.Module:
    """A teacher: a deep copy in evaluation mode, without gradients.

    Avalanche's models with a classifier for training and another for evaluation keep the one for training: a teacher
    is asked for what the student gives in training.

    Args:
        model: any module.
        batchnorm: "train" lets batch-norm layers normalise by the batch, as the teachers of the official Co2L and
            CSD code do.
    """
    model = unwrapped(model)
    # Tensors inside a graph cannot be copied; some models keep their last features (FeatureExtractorModel).
    kept = [value for module in model.modules() for value in vars(module).values() if isinstance(value, Tensor)]
    memo = {id(value): value.detach() for value in kept if not value.is_leaf}
    teacher = copy.deepcopy(model, memo).requires_grad_(False).eval()
    for parameter in teacher.parameters():
        parameter.grad = None
    _own_hooks(teacher)
    for module in teacher.modules():
        if isinstance(module, (TrainEvalModel, SCRModel)):
            module.training = True  # chooses the classifier; every layer inside stays in evaluation mode
    if batchnorm == "train":
        for module in teacher.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.train()
    return teacher


def _own_hooks(teacher: nn.Module) -> None:
    """Let the backbones in a copied model listen to it, and no others.

    Their hooks are closures, which a deep copy leaves with the original; herding hooks a model from outside.
    """
    for module in teacher.modules():
        for key, hook in list(module._forward_hooks.items()):
            if getattr(hook, "__qualname__", "").startswith("FeatureExtractorBackbone."):
                del module._forward_hooks[key]
    for module in teacher.modules():
        if isinstance(module, FeatureExtractorBackbone):
            module.add_hooks(module.model)
