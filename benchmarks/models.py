"""The one network of all rows, and what a builder gets and gives."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.optim import SGD

from benchmarks.configs import Config

FEATURES = 64


@dataclass(frozen=True)
class Setting:
    """What a builder needs.

    Args:
        config: the row's config, options complete.
        channels: of an image.
        classes: of the stream.
        augmentation: maps an image batch to one of the same shape, a draw per image.
        common: keywords that every Avalanche strategy takes: epochs, batch sizes, device, plugins, evaluator.
    """

    config: Config
    channels: int
    classes: int
    augmentation: Any
    common: Mapping[str, Any]

    def encoder(self) -> nn.Sequential:
        """A fresh encoder."""
        return small_cnn(self.channels)

    def classifier(self) -> "Classifier":
        """A fresh encoder with a fixed linear head."""
        return Classifier(self.encoder(), nn.Linear(FEATURES, self.classes))

    def sgd(self, parameters: Iterable[nn.Parameter]) -> SGD:
        """The optimiser of every row."""
        c = self.config
        return SGD(parameters, lr=c.lr, momentum=c.momentum, weight_decay=c.weight_decay)


@dataclass(frozen=True)
class Built:
    """A strategy, and in words how it turns features into classes."""

    strategy: Any
    readout: str


def small_cnn(channels: int) -> nn.Sequential:
    """Three convolutions with batch norm, for images of 8 x 8 and a little more: (B, C, H, W) to (B, FEATURES)."""
    return nn.Sequential(
        *_block(channels, 16),
        nn.MaxPool2d(2),
        *_block(16, 32),
        *_block(32, FEATURES),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


def _block(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()


class Classifier(nn.Module):
    """Encoder and linear head; the head is the last classifier layer that Recall@1 looks for."""

    def __init__(self, encoder: nn.Module, head: nn.Linear):
        super().__init__()
        self.encoder = encoder
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        """Class logits."""
        logits: Tensor = self.head(self.encoder(x))
        return logits


class UnitLength(nn.Module):
    """L2 normalisation as a layer."""

    def forward(self, x: Tensor) -> Tensor:
        """Rows of length one."""
        return nn.functional.normalize(x, dim=1)


def projection(size: int, *, unit_length: bool) -> nn.Sequential:
    """Two-layer projection head, as the contrastive papers have it."""
    layers: list[nn.Module] = [nn.Linear(FEATURES, FEATURES), nn.ReLU(), nn.Linear(FEATURES, size)]
    return nn.Sequential(*layers, *([UnitLength()] if unit_length else []))
