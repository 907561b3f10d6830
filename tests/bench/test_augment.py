"""The benchmark's augmentations by name: the package's, with the stream's options and normalisation."""

import pytest
import torch

from avalanche_contrastive.bench.data.augment import make_augmentation
from avalanche_contrastive.data import BatchAugmentation, PadCropAugmentation, SimCLRAugmentation

CIFAR = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
KEYWORDS = {"scale": (0.6, 1.0), "flip": 0.0, "rotation": 10.0}


@pytest.mark.parametrize(
    ("name", "normalise", "expected"),
    [
        ("", CIFAR, BatchAugmentation(**KEYWORDS)),  # what it does to a pixel is linear: no normalisation is undone
        ("simclr", None, SimCLRAugmentation(scale=(0.6, 1.0), flip=0.0)),
        ("simclr", CIFAR, SimCLRAugmentation(scale=(0.6, 1.0), flip=0.0, normalise=CIFAR)),
        ("pad_crop", CIFAR, PadCropAugmentation(flip=0.0, normalise=CIFAR)),
    ],
)
def test_it_is_the_packages_with_the_streams_options(name, normalise, expected):
    augmentation, x = make_augmentation(name, (3, 8, 8), KEYWORDS, normalise=normalise), torch.full((9, 3, 8, 8), 0.5)
    assert repr(augmentation) == repr(expected)
    torch.manual_seed(0)
    result = augmentation(x)
    torch.manual_seed(0)
    assert torch.equal(result, expected(x))


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 40, 48)], ids=str)
@pytest.mark.parametrize("name", ["", "simclr", "pad_crop"])
def test_an_image_keeps_its_shape(name, shape):
    x = torch.rand(8, *shape)
    result = make_augmentation(name, shape, {})(x)
    assert result.shape == x.shape
    assert result.isfinite().all()


# ---- bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("simcrl", (3, 8, 8), {}),
            r"unknown augmentation 'simcrl'; did you mean 'simclr'\? Known: pad_crop, simclr, or",
        ),
        (("simclr", (2, 8, 8), {}), r"images must have 1 or 3 channels, got 2"),
    ],
    ids=str,
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_augmentation(*arguments)


@pytest.mark.parametrize("normalise", [((0.5,), (0.2,)), ((0.5,) * 3, (0.2, 0.2, 0.0))], ids=str)
def test_a_normalisation_of_other_channels_is_refused(normalise):
    with pytest.raises(ValueError, match=r"normalise must be \(mean, std\)"):
        make_augmentation("simclr", (3, 8, 8), {}, normalise=normalise)
