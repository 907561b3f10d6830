"""The benchmark's augmentations by name: a draw per image, torch's random numbers only, images in [0, 1] inside."""

import copy
import pickle
import random
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from avalanche_contrastive.bench.data.augment import make_augmentation
from avalanche_contrastive.data import BatchAugmentation, stack_views

CIFAR = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
NAMED = ["simclr", "pad_crop"]


@pytest.fixture
def kornia():
    """Skips where the extra "bench" is not installed."""
    return pytest.importorskip("kornia")


def images(count=64, shape=(3, 16, 16)):
    return torch.rand(count, *shape)


def seeded_call(augmentation, x, seed=0):
    torch.manual_seed(seed)
    return augmentation(x)


# ---- the stream's own


def test_without_a_name_it_is_the_streams_batch_augmentation():
    keywords = {"scale": (0.6, 1.0), "flip": 0.0, "rotation": 10.0}
    augmentation, x = make_augmentation("", (1, 8, 8), keywords), images(shape=(1, 8, 8))
    assert repr(augmentation) == repr(BatchAugmentation(**keywords))
    assert torch.equal(seeded_call(augmentation, x), seeded_call(BatchAugmentation(**keywords), x))


# ---- kornia's


@pytest.mark.parametrize("name", ["", *NAMED])
def test_every_image_has_a_draw_of_its_own(name, kornia):
    x = images(1).expand(64, -1, -1, -1)
    made = make_augmentation(name, (3, 16, 16), {})(x)
    assert made.shape == x.shape
    # 81 places times two sides for the padded crop: some of 64 draws coincide.
    assert len(made.flatten(1).unique(dim=0)) > (40 if name == "pad_crop" else 60)


@pytest.mark.parametrize("name", ["", *NAMED])
def test_two_views_differ(name, kornia):
    views = stack_views(images(), make_augmentation(name, (3, 16, 16), {}))
    same = (views[:, 0] == views[:, 1]).flatten(1).all(dim=1)
    assert same.sum() <= 3


@pytest.mark.parametrize("name", ["", *NAMED])
def test_the_draws_follow_torchs_seed_and_touch_no_other_generator(name, kornia):
    augmentation, x = make_augmentation(name, (3, 16, 16), {}), images()
    before = (random.getstate(), np.random.get_state()[1].tolist())
    first = seeded_call(augmentation, x, 5)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before
    random.seed(99)
    np.random.seed(99)
    assert torch.equal(seeded_call(augmentation, x, 5), first)
    assert torch.equal(seeded_call(make_augmentation(name, (3, 16, 16), {}), x, 5), first)
    assert not torch.equal(seeded_call(augmentation, x, 6), first)


def test_the_padded_crop_is_a_window_of_the_black_framed_image(kornia):
    x = images(200, (2, 6, 6))
    made = make_augmentation("pad_crop", (2, 6, 6), {})(x)
    framed = F.pad(x, (4, 4, 4, 4))
    windows = torch.stack([framed[:, :, i : i + 6, j : j + 6] for i in range(9) for j in range(9)], dim=1)
    windows = torch.cat([windows, windows.flip(-1)], dim=1)
    distance = (windows - made[:, None]).abs().amax(dim=(2, 3, 4))
    assert distance.min(dim=1).values.max() < 1e-4
    chosen = distance.argmin(dim=1)
    assert len(chosen.unique()) > 90  # of 162 equally likely ones, 115 expected
    assert 70 < (chosen >= 81).sum() < 130  # flips


@pytest.mark.parametrize("flip", [0.0, 1.0])
@pytest.mark.parametrize("name", NAMED)
def test_the_flip_is_the_streams(name, flip, kornia):
    x = torch.zeros(100, 3, 8, 8)
    x[..., :4] = 1.0  # bright on the left
    made = make_augmentation(name, (3, 8, 8), {"scale": (0.9, 1.0), "ratio": (1.0, 1.0), "flip": flip})(x)
    left, right = made[..., :4].sum(dim=(1, 2, 3)), made[..., 4:].sum(dim=(1, 2, 3))
    if name == "pad_crop":
        left, right = left[left != right], right[left != right]  # a crop of the bright or the dark half says nothing
        left, right = left.sum(), right.sum()
    assert ((right > left) == bool(flip)).all()


def test_simclr_crops_as_much_as_the_stream_says(kornia):
    ramp = torch.linspace(0, 1, 32).expand(500, 3, 32, 32)
    spans = []
    for scale in ((0.2, 1.0), (0.95, 1.0)):
        made = make_augmentation("simclr", (3, 32, 32), {"scale": scale, "ratio": (1.0, 1.0)}).augment[0](ramp)
        spans.append((made.amax(dim=(1, 2, 3)) - made.amin(dim=(1, 2, 3))).min().item())
    assert spans[0] == pytest.approx(0.2**0.5, abs=0.06)  # the side of the smallest crop
    assert spans[1] == pytest.approx(0.95**0.5, abs=0.06)


def test_simclr_makes_a_fifth_grey_and_jitters_four_fifths(kornia):
    x = torch.tensor([0.8, 0.4, 0.2]).reshape(3, 1, 1).expand(3000, 3, 8, 8)
    made = make_augmentation("simclr", (3, 8, 8), {})(x)
    grey = (made.amax(dim=1) - made.amin(dim=1)).flatten(1).amax(dim=1) < 1e-4
    assert grey.float().mean().item() == pytest.approx(0.2, abs=0.03)
    kept = (made - x).abs().flatten(1).amax(dim=1) < 1e-4
    assert kept.float().mean().item() == pytest.approx(0.2 * 0.8, abs=0.03)
    assert made.min() >= 0
    assert made.max() <= 1


@pytest.mark.parametrize(("side", "kernel"), [(28, None), (32, None), (64, 7), (224, 23)])
def test_simclr_blurs_images_larger_than_32(side, kernel, kornia):
    layers = make_augmentation("simclr", (3, side, side), {}).augment
    blur = [layer for layer in layers if "Blur" in type(layer).__name__]
    assert [layer.flags["kernel_size"] for layer in blur] == ([(kernel, kernel)] if kernel else [])


def test_simclr_takes_grey_images(kornia):
    x = images(50, (1, 28, 28))
    made = make_augmentation("simclr", (1, 28, 28), {})(x)
    assert made.shape == x.shape
    assert made.isfinite().all()


def test_an_oblong_image_keeps_its_shape(kornia):
    x = images(8, (3, 40, 48))
    assert all(make_augmentation(name, (3, 40, 48), {})(x).shape == x.shape for name in NAMED)


# ---- normalised streams


@pytest.mark.parametrize("name", NAMED)
def test_a_normalised_stream_gets_what_a_plain_one_does_normalised(name, kornia):
    mean, std = (torch.tensor(values).reshape(3, 1, 1) for values in CIFAR)
    x = images()
    plain = seeded_call(make_augmentation(name, (3, 16, 16), {}), x)
    normal = seeded_call(make_augmentation(name, (3, 16, 16), {}, normalise=CIFAR), (x - mean) / std)
    torch.testing.assert_close(normal, (plain - mean) / std, atol=1e-4, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", NAMED)
def test_the_batch_keeps_its_precision(name, dtype, kornia):
    with torch.autocast("cpu", torch.bfloat16):
        made = make_augmentation(name, (3, 16, 16), {})(images(4).to(dtype))
    assert made.dtype == dtype
    assert made.isfinite().all()


@pytest.mark.parametrize("name", NAMED)
def test_it_can_be_copied_and_pickled(name, kornia):
    augmentation, x = make_augmentation(name, (3, 16, 16), {}, normalise=CIFAR), torch.zeros(4, 3, 16, 16)
    made = seeded_call(augmentation, x)
    for other in (copy.deepcopy(augmentation), pickle.loads(pickle.dumps(augmentation))):
        assert torch.equal(seeded_call(other, x), made)


# ---- bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("simcrl", (3, 8, 8), {}),
            r"unknown augmentation 'simcrl'; did you mean 'simclr'\? Known: pad_crop, simclr, or",
        ),
        (("", (3, 8, 8), {"scales": 1}), r"keywords must be those of BatchAugmentation, got scales"),
        (("pad_crop", (3, 8), {}), r"image_shape must be \(C, H, W\), each >= 1, got \(3, 8\)"),
        (("simclr", (2, 8, 8), {}), r"images must have 1 or 3 channels, got 2"),
    ],
    ids=str,
)
def test_wrong_arguments_are_refused(arguments, message, kornia):
    with pytest.raises(ValueError, match=message):
        make_augmentation(*arguments)


@pytest.mark.parametrize("normalise", [((0.5,), (0.2,)), ((0.5,) * 3, (0.2, 0.2, 0.0))], ids=str)
def test_a_normalisation_of_other_channels_is_refused(normalise, kornia):
    with pytest.raises(ValueError, match=r"normalise must be \(mean, std\) with 3 numbers each"):
        make_augmentation("simclr", (3, 8, 8), {}, normalise=normalise)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (torch.rand(4, 3, 8, 9), r"must be floating-point of shape \(B, 3, 8, 8\), got torch.float32 of shape"),
        (torch.zeros(4, 3, 8, 8, dtype=torch.uint8), r"must be floating-point.*torch.uint8"),
        (torch.rand(4, 3, 8, 8) * 255, r"images must lie in \[0, 1\] once the normalisation is undone.*hold bytes"),
        (torch.randn(4, 3, 8, 8), r"images must lie in \[0, 1\]"),
    ],
    ids=["size", "bytes", "0 to 255", "normalised"],
)
def test_wrong_batches_are_refused(batch, message, kornia):
    with pytest.raises(ValueError, match=message):
        make_augmentation("simclr", (3, 8, 8), {})(batch)


@pytest.mark.parametrize("name", NAMED)
def test_without_kornia_the_error_says_what_to_install(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "kornia", None)
    monkeypatch.setitem(sys.modules, "kornia.augmentation", None)
    with pytest.raises(ValueError, match=rf"augmentation '{name}' needs kornia.*'avalanche-contrastive\[bench\]'"):
        make_augmentation(name, (3, 8, 8), {})
