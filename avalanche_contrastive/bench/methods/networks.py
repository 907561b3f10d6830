"""The networks by name, and what a builder gets and gives."""

import math
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
import torchvision.models  # type: ignore[import-untyped, unused-ignore]
from avalanche.models import make_icarl_net
from avalanche.training import Naive
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer
from torchvision.models import get_model, list_models, resnet18  # type: ignore[import-untyped, unused-ignore]

from avalanche_contrastive._outside import find
from avalanche_contrastive.bench.config import Config, nearest

AUXILIARY = ("googlenet", "inception_v3")  # of torchvision, whose auxiliary classifiers have outputs of their own
LINEAR = "linear head"  # what most methods classify by

ImageShape = tuple[int, int, int]  # (C, H, W)


class Encoder(nn.Sequential):
    """Layers that map images (B, C, H, W) to vectors (B, features).

    Attributes:
        features: width of the output.
    """

    def __init__(self, features: int, *layers: nn.Module):
        super().__init__(*layers)
        self.features = features


@dataclass(frozen=True)
class Network:
    """An encoder by name.

    Args:
        build: gives a fresh encoder for images of a shape (C, H, W).
        about: one line for `list`.
        smallest: height and width that an image must have at least.
    """

    build: Callable[[ImageShape], Encoder]
    about: str
    smallest: int = 1


def mlp(image_shape: ImageShape) -> Encoder:
    """Two hidden layers of 100 units."""
    channels, height, width = image_shape
    return Encoder(
        100, nn.Flatten(), nn.Linear(channels * height * width, 100), nn.ReLU(), nn.Linear(100, 100), nn.ReLU()
    )


def small_cnn(image_shape: ImageShape) -> Encoder:
    """Three convolutions of 16, 32 and 64 filters with batch norm, halved once."""
    return Encoder(
        64,
        *_block(image_shape[0], 16),
        nn.MaxPool2d(2),
        *_block(16, 32),
        *_block(32, 64),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


def medium_cnn(image_shape: ImageShape) -> Encoder:
    """Four convolutions of 16 to 128 filters with batch norm, halved three times.

    Halved before the batch norm, which is then a quarter of the work: on a CPU it costs as much as the convolution.
    """
    return Encoder(
        128,
        *_block(image_shape[0], 16, pool=True),
        *_block(16, 32, pool=True),
        *_block(32, 64, pool=True),
        *_block(64, 128),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


def adapter(image_shape: ImageShape) -> Encoder:
    """What is trained on the features of a frozen encoder: a layer of 256 units and one of 128."""
    width = math.prod(image_shape)
    layers = nn.Flatten(), nn.LayerNorm(width, elementwise_affine=False)
    return Encoder(128, *layers, nn.Linear(width, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU())


def identity(image_shape: ImageShape) -> Encoder:
    """The images, or the features of a bank, as they are: nothing to train before the classifier."""
    return Encoder(math.prod(image_shape), nn.Flatten())


class PlainFeatures(nn.Module):
    """What lies at position 0 of a batch from a feature bank: the plain image, or the view that was drawn."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1 + V, 1, D), or (B, 1, 1, D) without views, to (B, 1, 1, D) in the type of the weights."""
        return x[:, :1].to(torch.get_default_dtype())


def _block(inputs: int, outputs: int, *, pool: bool = False) -> tuple[nn.Module, ...]:
    convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    return convolution, *((nn.MaxPool2d(2),) if pool else ()), nn.BatchNorm2d(outputs), nn.ReLU()


def mnist_cnn(image_shape: ImageShape) -> Encoder:
    """Co2L's network for R-MNIST: two 5 x 5 convolutions of 20 and 50 filters, each halved, and 500 units."""
    channels, height, width = image_shape
    rows, columns = (((side - 4) // 2 - 4) // 2 for side in (height, width))
    return Encoder(
        500,
        nn.Conv2d(channels, 20, 5),
        nn.MaxPool2d(2),  # before the rectifier: the same numbers, and a quarter of its work
        nn.ReLU(),
        nn.Conv2d(20, 50, 5),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(50 * rows * columns, 500),
        nn.ReLU(),
    )


def resnet_18(image_shape: ImageShape) -> Encoder:
    """ResNet-18 for small images: torchvision's with a 3 x 3 stem of stride 1 and without the first pooling."""
    body = resnet18(weights=None)
    body.conv1 = nn.Conv2d(image_shape[0], 64, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(body.conv1.weight, mode="fan_out", nonlinearity="relu")  # as torchvision's others
    body.maxpool = nn.Identity()
    body.fc = nn.Identity()
    return Encoder(512, body)


def resnet_32(image_shape: ImageShape) -> Encoder:
    """The CIFAR ResNet of 32 layers, 64 features: Avalanche's, of iCaRL, with the last rectifier put back."""
    body = make_icarl_net(num_classes=1, n=5, c=image_shape[0]).feature_extractor
    body[3][-1].last = False  # iCaRL leaves it out; CSD's network and the original have it
    return Encoder(64, body)


def resnet_32_csd(image_shape: ImageShape) -> Encoder:
    """The same as CSD's authors have it: initialised by fan out, shortcuts padded after the last channel."""
    encoder = resnet_32(image_shape)
    for layer in encoder.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight, std=math.sqrt(2 / (layer.kernel_size[0] ** 2 * layer.out_channels)))
        elif isinstance(layer, nn.ConstantPad3d):
            layer.padding = (0, 0, 0, 0, 0, sum(layer.padding))
    return encoder


NETWORKS: Mapping[str, Network] = {
    "mlp": Network(mlp, "two hidden layers of 100 units"),
    "adapter": Network(adapter, "two layers of 256 and 128 units, for the features of a bank"),
    "identity": Network(identity, "none: the features of a bank go to the classifier as they are"),
    "small_cnn": Network(small_cnn, "3 convolutions, 64 features, for images of 8 x 8 and a little more", smallest=2),
    "medium_cnn": Network(medium_cnn, "4 convolutions, 128 features, for images of 32 x 32 on a CPU", smallest=8),
    "mnist_cnn": Network(mnist_cnn, "2 convolutions and a layer, 500 features, Co2L's for R-MNIST", smallest=16),
    "resnet18": Network(resnet_18, "ResNet-18 with a 3 x 3 stem and no first pooling, 512 features", smallest=8),
    "resnet32": Network(resnet_32, "the CIFAR ResNet of 32 layers, 64 features", smallest=4),
    "resnet32_csd": Network(resnet_32_csd, "the same, initialised and padded as CSD's authors have it", smallest=4),
}


def make_encoder(name: str, image_shape: ImageShape) -> Encoder:
    """A fresh encoder of that name for images of that shape.

    Args:
        name: key of NETWORKS; "torchvision:NAME" or "timm:NAME", without weights and without the classifier; or
            "module:function", which is called with the image shape if it takes an argument, and returns a module.
        image_shape: (C, H, W).

    Raises:
        ValueError: the images are too small for it, or the module does not map images to vectors.
    """
    if ":" in name:
        return _checked(name, _outside(name, image_shape), image_shape)
    network = NETWORKS[name]
    channels, height, width = image_shape
    if min(height, width) < network.smallest:
        fitting = ", ".join(key for key, other in NETWORKS.items() if min(height, width) >= other.smallest)
        raise ValueError(
            f"network {name!r} takes images of at least {network.smallest} x {network.smallest} pixels, but the "
            f"stream's are {height} x {width} ({channels} channels). Networks for them: {fitting}"
        )
    return network.build(image_shape)


def _outside(name: str, image_shape: ImageShape) -> nn.Module:
    """A module from another library, or from code of your own."""
    library, _, model = name.partition(":")
    channels = image_shape[0]
    if library == "timm":
        try:
            import timm  # type: ignore[import-not-found, unused-ignore]
        except ImportError as error:
            raise ValueError(f"network {name!r} needs timm, which is not installed: pip install timm") from error
        encoder: nn.Module = timm.create_model(model, pretrained=False, num_classes=0, in_chans=channels)
        return encoder
    if library == "torchvision":
        if model not in list_models(module=torchvision.models):
            raise ValueError(f"torchvision has no network {model!r}{nearest(model, list_models(torchvision.models))}")
        without = {"aux_logits": False, "init_weights": True} if model in AUXILIARY else {}
        body = get_model(model, weights=None, **without)
        last = [key for key, layer in body.named_modules() if isinstance(layer, nn.Linear)][-1:]
        if not last:
            raise ValueError(f"network {name!r}: it has no linear classifier to take away; name a module:function")
        for key in last:  # the classifier: what enters it are the features
            body.set_submodule(key, nn.Identity())
        return body if channels == 3 else nn.Sequential(Coloured(), body)
    function = find(name)
    takes = [p for p in signature(function).parameters.values() if p.kind <= p.POSITIONAL_OR_KEYWORD]
    own: nn.Module = function(image_shape) if takes else function()
    return own


def _checked(name: str, module: nn.Module, image_shape: ImageShape) -> Encoder:
    """The module with the width of its output, found by asking it."""
    if not isinstance(module, nn.Module):
        raise ValueError(f"network {name!r} must be a torch module, got {type(module).__name__}")
    copy = deepcopy(module)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            output, trained = (copy.train(mode)(torch.zeros(2, *image_shape)) for mode in (False, True))
    except Exception as error:  # networks fail in many ways on images of another size
        raise ValueError(
            f"network {name!r} cannot take images of {' x '.join(map(str, image_shape))}: {error}"
        ) from error
    if isinstance(output, Tensor) and getattr(trained, "shape", None) != output.shape:
        output = trained
    if not isinstance(output, Tensor) or output.ndim != 2 or len(output) != 2:
        form = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(f"network {name!r} must map images (B, C, H, W) to vectors (B, D), got {form} for B = 2")
    return Encoder(output.shape[1], module.train())


class Coloured(nn.Module):
    """Grey images as images of three equal channels; others must have three."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1, H, W) or (B, 3, H, W) to (B, 3, H, W)."""
        return x.expand(-1, 3, -1, -1)


class Classifier(nn.Module):
    """Encoder and linear head; the head is the last classifier layer that Recall@1 looks for."""

    def __init__(self, encoder: nn.Module, head: nn.Module):
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


def projection(features: int, size: int, *, unit_length: bool) -> nn.Sequential:
    """Two-layer projection head, as the contrastive papers have it."""
    layers = nn.Linear(features, features), nn.ReLU(), nn.Linear(features, size)
    return nn.Sequential(*layers, *([UnitLength()] if unit_length else []))


@dataclass(frozen=True)
class Setting:
    """What a builder gets.

    Args:
        config: the row's config.
        image_shape: (C, H, W).
        classes: of the stream.
        network: as `make_encoder` takes it.
        augmentation: maps an image batch to one of the same shape, a draw per image.
        common: keywords that every Avalanche strategy takes: train_mb_size, train_epochs, eval_mb_size, device,
            plugins, evaluator, eval_every.
        features: whether the images are features from a bank, of which a network gets one view, as (1, 1, D).
    """

    config: Config
    image_shape: ImageShape
    classes: int
    network: str
    augmentation: Any
    common: Mapping[str, Any]
    features: bool = False

    @property
    def device(self) -> torch.device:
        """Where the run takes place."""
        return torch.device(self.common["device"])

    def encoder(self) -> Encoder:
        """A fresh encoder; its attribute ``features`` is the width of what it gives.

        Raises:
            ValueError: the network does not take images of this size.
        """
        if not self.features:
            return make_encoder(self.network, self.image_shape)
        encoder = make_encoder(self.network, (1, *self.image_shape[1:]))
        return Encoder(encoder.features, PlainFeatures(), encoder)

    def classifier(self, head: Callable[[int, int], nn.Module] = nn.Linear) -> Classifier:
        """A fresh encoder with a fixed head for all classes."""
        encoder = self.encoder()
        return Classifier(encoder, head(encoder.features, self.classes))

    def optimizer(self, parameters: Iterable[nn.Parameter]) -> Optimizer:
        """The config's optimiser."""
        c = self.config
        if c.optimizer == "adam":
            return Adam(parameters, lr=c.lr, weight_decay=c.weight_decay)
        return SGD(parameters, lr=c.lr, momentum=c.momentum, weight_decay=c.weight_decay)

    def keywords(self, **others: Any) -> dict[str, Any]:
        """``common``, a cross-entropy criterion, and others; the list of plugins is a copy, as strategies add to it."""
        copied = {**self.common, "plugins": list(self.common["plugins"])}
        return {**copied, "criterion": nn.CrossEntropyLoss(), **others}

    def strategy(self, kind: Callable[..., Any], *plugins: Any, model: nn.Module | None = None, **options: Any) -> Any:
        """A strategy of Avalanche's kind with these plugins and options, of a model or of a fresh classifier."""
        model = self.classifier() if model is None else model
        keywords = self.keywords(**options)
        keywords["plugins"] += plugins
        return kind(model=model, optimizer=self.optimizer(model.parameters()), **keywords)

    def naive(self, *plugins: Any, head: Callable[[int, int], nn.Module] = nn.Linear) -> Any:
        """Fine-tuning of a fresh classifier with these plugins: a whole method is one line.

        Example:
            ``def my_ewc(s, *, strength=1.0): return s.naive(EWCPlugin(ewc_lambda=strength))``
        """
        return self.strategy(Naive, *plugins, model=self.classifier(head))


@dataclass(frozen=True)
class Built:
    """What a builder gives: a strategy, and in words how it turns features into classes."""

    strategy: Any
    readout: str
