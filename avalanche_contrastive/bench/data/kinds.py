"""The streams by name: their images, experiences, network and augmentation; and what a run gets. No torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from avalanche_contrastive.registry import SCENARIOS

Normalise = tuple[Sequence[float], Sequence[float]]  # mean and standard deviation of each channel, of images in [0, 1]

CIFAR_10: Normalise = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))  # Co2L, main.py
CIFAR_100: Normalise = ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761))  # CSD, main.py
TINY: Normalise = ((0.4802, 0.4480, 0.3975), (0.2770, 0.2691, 0.2821))  # Co2L, main.py


@dataclass(frozen=True)
class StreamKind:
    """A stream and what belongs to its kind of image.

    Args:
        source: what `data.load` takes.
        title: the data in words.
        experiences: how many by default; 0: see `default_sizes`.
        network: key of NETWORKS, by default.
        scenarios: those it has, the default one first.
        augmentation: keywords of BatchAugmentation; digits must not be mirrored.
        normalise: mean and standard deviation of each channel, applied to every fetched image; none: images stay in
            [0, 1].
        rotated: whether each experience is all images under a rotation of its own.
        features: whether its "images" are features with views from a bank, (1 + V, 1, D): networks get the plain ones,
            and to augment is to take one of the V views.
    """

    source: str
    title: str
    experiences: int
    network: str
    scenarios: tuple[str, ...] = SCENARIOS
    augmentation: Mapping[str, Any] = field(default_factory=dict)
    normalise: Normalise | None = None
    rotated: bool = False
    features: bool = False


TORCHVISION, HUGGINGFACE = "torchvision:", "hf:"  # how `data` names a data set of these


def local_path(data: str) -> Path | None:
    """Where a config's `data` are on this machine; None if it names a data set that is downloaded."""
    if data.startswith(TORCHVISION):
        return None
    if not data.startswith(HUGGINGFACE):
        return Path(data).expanduser()
    path = Path(data.removeprefix(HUGGINGFACE).partition("?")[0]).expanduser()
    return path if path.exists() else None


def absolute(data: str) -> str:
    """`data` as a config keeps it, in whatever folder the command was given."""
    path = local_path(data)
    if path is None:
        return data
    if not data.startswith(HUGGINGFACE):
        return str(path.resolve())
    return f"{HUGGINGFACE}{path.resolve()}{''.join(data.partition('?')[1:])}"


def default_sizes(classes: int) -> list[int]:
    """New classes of own data's experiences: five at most, of two classes or more each, the rest in the first."""
    equal = (n for n in (5, 4, 3, 2) if classes % n == 0 and classes >= 2 * n)
    number = next(equal, max(2, min(5, classes // 2)))
    return [classes - classes // number * (number - 1)] + [classes // number] * (number - 1)


def class_sizes(classes: int, experiences: int, base_classes: int = 0) -> list[int]:
    """Number of new classes of each experience.

    Args:
        classes: of the data.
        experiences: the first included; 0: as `default_sizes` has it.
        base_classes: of the first experience; 0: as many as the others.

    Raises:
        ValueError: it cannot be done equally; the message says which numbers would do.
    """
    if experiences > classes:
        raise ValueError(f"{experiences} experiences need at least as many classes; the data have {classes}.")
    if base_classes >= classes:
        raise ValueError(f"base_classes = {base_classes} leaves none of the {classes} classes to later experiences.")
    rest, first = (classes - base_classes, 1) if base_classes else (classes, 0)
    if not experiences:
        return [base_classes] * first + default_sizes(rest)
    equal = experiences - first
    if equal < 1 or rest % equal:
        possible = ", ".join(str(n + first) for n in range(1, rest + 1) if rest % n == 0)
        begins = f", the first of {base_classes} classes," if first else ""
        larger = "" if first else ", or a first experience of another size by base_classes"
        raise ValueError(
            f"{experiences} experiences{begins} cannot share {classes} classes equally. Possible: {possible}{larger}."
        )
    return [base_classes] * first + [rest // equal] * equal


PHOTO = {"scale": (0.2, 1.0), "flip": 0.5}

STREAMS: Mapping[str, StreamKind] = {
    "split_digits": StreamKind(
        "digits",
        "scikit-learn's digits",
        5,
        "small_cnn",
        augmentation={"scale": (0.6, 1.0), "flip": 0.0, "rotation": 10.0},
    ),
    "split_mnist": StreamKind(
        "mnist", "MNIST", 5, "mlp", augmentation={"scale": (0.7, 1.0), "flip": 0.0, "rotation": 10.0}
    ),
    "rotated_mnist": StreamKind(
        "mnist",
        "MNIST",
        20,
        "mnist_cnn",
        scenarios=("domain",),
        augmentation={"scale": (0.7, 1.0), "flip": 0.0},  # Co2L's, without a further rotation
        rotated=True,
    ),
    "split_fmnist": StreamKind("fmnist", "Fashion-MNIST", 5, "mlp", augmentation={"scale": (0.6, 1.0), "flip": 0.5}),
    "split_cifar10": StreamKind("cifar10", "CIFAR-10", 5, "medium_cnn", augmentation=PHOTO, normalise=CIFAR_10),
    "split_cifar100": StreamKind("cifar100", "CIFAR-100", 10, "resnet18", augmentation=PHOTO, normalise=CIFAR_100),
    "split_cifar100_frozen": StreamKind(
        "cifar100_bank", "CIFAR-100 as features of a frozen ImageNet encoder", 10, "adapter", features=True
    ),
    "split_tiny_imagenet": StreamKind(
        "tiny_imagenet",
        "Tiny-ImageNet",
        10,
        "resnet18",
        augmentation={"scale": (0.1, 1.0), "flip": 0.5},
        normalise=TINY,
    ),
    "own": StreamKind("own", "own data", 0, "medium_cnn", augmentation=PHOTO),
}


@dataclass(frozen=True)
class Stream:
    """One run's data.

    Args:
        kind: what belongs to its kind of image.
        benchmark: Avalanche's; its test stream has the evaluated images.
        class_order: all classes in the order of their coming; in the domain scenario simply 0 ... K - 1.
        counts: evaluated images of each experience.
        classes: K.
        image_shape: (C, H, W).
        class_names: K names.
        experience_classes: of each experience, ascending.
        description: all of it in words, for results.
        note: what was done to the images and what was left out, in words; empty if nothing.
        angles: of rotated_mnist, each experience's in degrees, counter-clockwise.
        unseen: queries and gallery of classes that are never trained on, two data sets; None: there are none.
    """

    kind: StreamKind
    benchmark: Any
    class_order: list[int]
    counts: list[int]
    classes: int
    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    experience_classes: list[list[int]]
    description: str
    note: str = ""
    angles: list[float] = field(default_factory=list)
    unseen: tuple[Any, Any] | None = None
