"""SimCLR's augmentation of a batch is torchvision's of single images: operation by operation, and in distribution."""

import copy
import pickle
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.operations import WAITING, Operations
from scipy.stats import ks_2samp
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from avalanche_contrastive import PadCropAugmentation, SimCLRAugmentation
from avalanche_contrastive.data import images, stack_views

SIZES = [(3, 32, 32), (3, 17, 40), (1, 28, 28), (3, 64, 48)]
sizes = pytest.mark.parametrize("shape", SIZES, ids=str)
CIFAR = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))


def batch(shape=(3, 32, 32), count=24):
    """Images with grey pixels, black and white ones and pure colours among them."""
    x = torch.rand(count, *shape)
    x[0], x[1], x[2] = 0.5, 0.0, 1.0
    x[3, 1:] = 0.0
    x[4, :, ::2] = x[4, :1, ::2]
    return x


def each(x, function, *parameters):
    """What torchvision's function makes of each image with a parameter of its own."""
    rows = zip(x, *(p.tolist() for p in parameters), strict=True)
    return torch.stack([function(image, *values) for image, *values in rows])


def assert_same(one, other):
    torch.testing.assert_close(one, other, atol=5e-6, rtol=0)


def chance(x, probability=0.5):
    return torch.rand(len(x)) < probability


def windows(x):
    """Whole pixels, from one to all of an image."""
    height, width = (torch.randint(1, size + 1, (len(x),)) for size in x.shape[2:])
    top, left = ((torch.rand(len(x)) * (s - h + 1)).long() for s, h in zip(x.shape[2:], (height, width), strict=True))
    return top, left, height, width


# ---- operation by operation


@sizes
def test_resized_crop_and_flip(shape):
    x = batch(shape)
    window, flip = windows(x), chance(x)
    found = images.resized_crop(x, *(values.float() for values in window), flip)

    def one(image, top, left, height, width, flip):
        result = tv.resized_crop(image, top, left, height, width, list(image.shape[1:]))
        return result.flip(-1) if flip else result

    torch.testing.assert_close(found, each(x, one, *window, flip), atol=2e-5, rtol=0)


@sizes
def test_crop_of_a_framed_image(shape):
    x = batch(shape)
    top, left = torch.randint(-4, 5, (2, len(x)))
    flip = chance(x)
    found = images.crop(x, top, left, flip)

    def one(image, top, left, flip):
        result = tv.crop(tv.pad(image, [4]), top + 4, left + 4, *image.shape[1:])
        return result.flip(-1) if flip else result

    torch.testing.assert_close(found, each(x, one, top, left, flip), atol=2e-5, rtol=0)


@sizes
@pytest.mark.parametrize("limits", [(0.6, 1.4), (0.0, 3.0)])
def test_brightness_contrast_saturation_and_grey(shape, limits):
    x = batch(shape)
    factor = torch.empty(len(x)).uniform_(*limits)
    none, one = torch.zeros_like(factor), torch.ones_like(factor)
    assert_same(images.recolor(x, factor, none, none), each(x, tv.adjust_brightness, factor))
    assert_same(images.recolor(x, factor, none, 1 - factor), each(x, tv.adjust_contrast, factor))
    assert_same(images.recolor(x, factor, 1 - factor, none), each(x, tv.adjust_saturation, factor))
    grey = each(x, lambda image: tv.rgb_to_grayscale(image, shape[0]))
    assert_same(images.recolor(x, none, one, none), grey)
    assert torch.equal(images.recolor(x, one, none, none), x)


@pytest.mark.parametrize("limit", [0.1, 0.5])
def test_hue(limit):
    x = batch(count=100)
    turn = torch.empty(len(x)).uniform_(-limit, limit)
    turn[5:8] = torch.tensor([-limit, limit, 0.0])
    assert_same(images.hue(x, turn), each(x, tv.adjust_hue, turn))
    assert_same(images.hue(x, torch.zeros(len(x))), x)


@sizes
def test_color_jitter_in_every_order(shape):
    orders = torch.cartesian_prod(*[torch.arange(4)] * 4)
    orders = orders[orders.sort(dim=1).values.eq(torch.arange(4)).all(dim=1)]
    x = batch(shape, len(orders))
    factors, turn = torch.empty(len(x), 3).uniform_(0.4, 1.6), torch.empty(len(x)).uniform_(-0.4, 0.4)

    def one(image, factors, turn, place):
        changes = [tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue]
        for step in range(4):
            change = place.index(step)
            image = changes[change](image, [*factors, turn][change])
        return image

    steps = images.jitter_steps(factors, orders)
    found = images.color_jitter(x.clone(), steps, turn)
    torch.testing.assert_close(found, each(x, one, factors, turn, orders), atol=2e-5, rtol=0)
    only = orders[:, 3] == 3  # those whose hue comes last: fewer steps are needed, and the same happens
    found = images.color_jitter(x[only].clone(), steps[only], turn[only])
    torch.testing.assert_close(found, each(x[only], one, factors[only], turn[only], orders[only]), atol=2e-5, rtol=0)


@pytest.mark.parametrize(("shape", "taps"), [((3, 40, 36), 3), ((3, 64, 64), 7), ((1, 70, 34), 23)])
def test_blur(shape, taps):
    x = batch(shape, 8)
    sigma, on = torch.empty(len(x)).uniform_(0.1, 2.0), torch.tensor([True, False] * 4)
    expected = each(x, lambda image, s: tv.gaussian_blur(image, [taps, taps], [s, s]), sigma)
    found = images.blur(x.clone(), sigma, on, taps)
    assert_same(found[on], expected[on])
    assert torch.equal(found[~on], x[~on])


# ---- what is drawn


@pytest.mark.parametrize(
    ("size", "scale", "ratio"),
    [
        ((32, 32), (0.2, 1.0), (3 / 4, 4 / 3)),
        ((20, 48), (0.2, 1.0), (3 / 4, 4 / 3)),
        ((28, 28), (0.7, 1.0), (3 / 4, 4 / 3)),
        ((48, 20), (0.9, 1.0), (1.0, 4 / 3)),  # hardly any window fits: torchvision takes the middle
        ((16, 16), (0.8, 1.0), (3.0, 4.0)),
    ],
    ids=str,
)
def test_windows_are_drawn_as_torchvision_draws_them(size, scale, ratio):
    transform = v2.RandomResizedCrop(size, scale=scale, ratio=ratio)
    image = torch.zeros(1, *size)
    theirs = [transform.make_params([image]) for _ in range(4000)]
    ours = SimCLRAugmentation(scale=scale, ratio=ratio)._windows(torch.zeros(4000, 1, *size))
    for name, values in zip(("top", "left", "height", "width"), ours, strict=True):
        assert values.equal(values.round())
        assert ks_2samp(values.numpy(), [params[name] for params in theirs]).pvalue > 1e-3, name
    ends = ours[0] + ours[2], ours[1] + ours[3]
    assert min(values.min() for values in ours[:2]) >= 0
    assert ends[0].max() <= size[0]
    assert ends[1].max() <= size[1]


def theirs(shape):
    """torchvision's transform of single images with the same options."""
    layers = [
        v2.RandomResizedCrop(shape[1:], scale=(0.2, 1.0)),
        v2.RandomHorizontalFlip(),
        v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
        v2.RandomGrayscale(0.2),
    ]
    if min(shape[1:]) > 32:
        layers.append(v2.RandomApply([v2.GaussianBlur(min(shape[1:]) // 20 * 2 + 1, (0.1, 2.0))], p=0.5))
    return v2.Compose(layers)


def moments(x):
    """Of each image: mean and spread of each channel, what channels share, slopes, and roughness; (B, M)."""
    flat = x.flatten(2)
    centred = flat - flat.mean(dim=2, keepdim=True)
    return torch.cat(
        [
            flat.mean(dim=2),
            flat.pow(2).mean(dim=2),
            centred.std(dim=2),
            (centred @ centred.mT).flatten(1) / flat.shape[2],
            (x[..., 1:] - x[..., :-1]).mean(dim=(2, 3)),
            (x[..., 1:, :] - x[..., :-1, :]).abs().mean(dim=(2, 3)),
            (x.amax(dim=1) - x.amin(dim=1)).mean(dim=(1, 2))[:, None],
        ],
        dim=1,
    )


@pytest.mark.parametrize("shape", [(3, 12, 12), (1, 12, 12), (3, 36, 36)], ids=str)
def test_the_whole_has_torchvisions_moments(shape):
    rows, columns = torch.meshgrid(*(torch.linspace(0, 1, n) for n in shape[1:]), indexing="ij")
    image = torch.stack([rows, columns**2, 0.5 + 0.4 * torch.sin(5 * rows + columns)][: shape[0]])
    count = 1500
    transform = theirs(shape)
    one = moments(torch.stack([transform(image) for _ in range(count)]))
    other = moments(SimCLRAugmentation()(image.expand(count, *shape)))
    for name, power in (("means", 1), ("second moments", 2)):
        a, b = one**power, other**power
        error = ((a.var(dim=0) + b.var(dim=0)) / count).sqrt()
        assert ((a.mean(dim=0) - b.mean(dim=0)).abs() <= 4.5 * error + 1e-6).all(), name
    # Rounded, since many a grey image's moment is zero up to rounding.
    one, other = (values.round(decimals=4).numpy() for values in (one, other))
    for column in range(one.shape[1]):
        assert ks_2samp(one[:, column], other[:, column]).pvalue > 1e-4


def test_each_part_has_its_probability():
    x = torch.tensor([0.8, 0.4, 0.2]).reshape(3, 1, 1).expand(4000, 3, 8, 8)
    result = SimCLRAugmentation()(x)
    grey = (result.amax(dim=1) - result.amin(dim=1)).flatten(1).amax(dim=1) < 1e-4
    assert grey.float().mean().item() == pytest.approx(0.2, abs=0.03)
    kept = (result - x).abs().flatten(1).amax(dim=1) < 1e-4
    assert kept.float().mean().item() == pytest.approx(0.2 * 0.8, abs=0.03)
    assert result.min() >= 0
    assert result.max() <= 1


def test_nothing_to_draw_is_the_identity():
    still = {"scale": (1.0, 1.0), "ratio": (1.0, 1.0), "flip": 0.0, "jitter": 0.0, "grayscale": 0.0, "blur": 0.0}
    x = torch.rand(20, 3, 40, 40)
    assert_same(SimCLRAugmentation(**still)(x), x)
    assert_same(SimCLRAugmentation(**{**still, "flip": 1.0})(x), x.flip(-1))
    assert_same(PadCropAugmentation(0, flip=1.0)(x), x.flip(-1))


@pytest.mark.parametrize("change", ["brightness", "contrast", "saturation", "hue"])
def test_each_change_of_colour_stands_alone(change):
    still = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0, "jitter": 1.0}
    options = {"scale": (1.0, 1.0), "ratio": (1.0, 1.0), "flip": 0.0, "grayscale": 0.0, "blur": 0.0}
    x = 0.3 + 0.4 * torch.rand(50, 3, 8, 8)
    result = SimCLRAugmentation(**{**options, **still, change: 0.3})(x)
    changed = (result - x).abs().flatten(1).amax(dim=1)
    assert (changed > 1e-4).float().mean() > 0.9
    assert_same(SimCLRAugmentation(**options, **still)(x), x)


# ---- as an augmentation


AUGMENTATIONS = {"simclr": SimCLRAugmentation, "pad_crop": PadCropAugmentation}
augmentations = pytest.mark.parametrize("make", AUGMENTATIONS.values(), ids=AUGMENTATIONS.keys())


def seeded(augmentation, x, seed=0):
    torch.manual_seed(seed)
    return augmentation(x)


@augmentations
def test_views_and_images_have_draws_of_their_own(make):
    views = stack_views(torch.rand(1, 3, 16, 16).expand(64, -1, -1, -1), make())
    # 81 places times two sides for the padded crop: some of 128 draws coincide.
    assert len(views.flatten(2).flatten(0, 1).unique(dim=0)) > (80 if make is PadCropAugmentation else 125)


@augmentations
def test_the_draws_follow_torchs_seed_and_touch_no_other_generator(make):
    x = torch.rand(20, 3, 16, 16)
    before = (random.getstate(), np.random.get_state()[1].tolist())
    first = seeded(make(), x, 5)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before
    assert torch.equal(seeded(make(), x, 5), first)
    assert not torch.equal(seeded(make(), x, 6), first)


@augmentations
@pytest.mark.parametrize("shape", [(3, 16, 16), (3, 40, 36)], ids=str)
def test_a_batch_in_parts_is_the_batch(make, shape, monkeypatch):
    x = torch.rand(50, *shape)
    whole = seeded(make(), x)
    for part in (1, 7):
        monkeypatch.setattr("avalanche_contrastive.data.augment.CACHE", part * x[0].numel())
        torch.testing.assert_close(seeded(make(), x), whole, atol=1e-6, rtol=0)


@augmentations
def test_a_normalised_batch_gets_what_a_plain_one_does_normalised(make):
    mean, std = (torch.tensor(values).reshape(3, 1, 1) for values in CIFAR)
    x = torch.rand(64, 3, 16, 16)
    plain = seeded(make(), x)
    normal = seeded(make(normalise=CIFAR), (x - mean) / std)
    torch.testing.assert_close(normal, (plain - mean) / std, atol=1e-4, rtol=0)


@augmentations
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_batch_keeps_its_precision_and_is_left_alone(make, dtype):
    x = torch.rand(4, 3, 40, 40).to(dtype).requires_grad_()
    before = x.detach().clone()
    with torch.autocast("cpu", torch.bfloat16):
        result = seeded(make(), x)
    assert result.dtype == dtype
    assert torch.equal(x, before)
    torch.testing.assert_close(result.float(), seeded(make(), x.detach().float()), atol=0.01, rtol=0)


@augmentations
def test_any_default_type(make):
    torch.set_default_dtype(torch.float64)
    try:
        x = torch.rand(3, 3, 40, 40, dtype=torch.float32)
        assert make(normalise=CIFAR)(x).dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


@augmentations
def test_an_empty_batch_stays_empty(make):
    assert make()(torch.rand(0, 3, 16, 16)).shape == (0, 3, 16, 16)


@augmentations
def test_it_can_be_copied_and_pickled(make):
    augmentation, x = make(normalise=CIFAR), torch.zeros(4, 3, 16, 16)
    result = seeded(augmentation, x)
    for other in (copy.deepcopy(augmentation), pickle.loads(pickle.dumps(augmentation))):
        assert torch.equal(seeded(other, x), result)
        assert repr(other) == repr(augmentation)
    assert "normalise=((0.4914," in repr(augmentation)


def test_the_padded_crop_is_a_window_of_the_black_framed_image():
    x = torch.rand(200, 2, 6, 6)
    result = PadCropAugmentation()(x)
    framed = F.pad(x, (4, 4, 4, 4))
    cuts = torch.stack([framed[:, :, i : i + 6, j : j + 6] for i in range(9) for j in range(9)], dim=1)
    cuts = torch.cat([cuts, cuts.flip(-1)], dim=1)
    distance = (cuts - result[:, None]).abs().amax(dim=(2, 3, 4))
    assert distance.min(dim=1).values.max() < 1e-4
    chosen = distance.argmin(dim=1)
    assert len(chosen.unique()) > 90  # of 162 equally likely ones, 115 expected
    assert 70 < (chosen >= 81).sum() < 130  # flips


# ---- bad input


BAD_OPTIONS = {
    "scale": ({"scale": (0.0, 1.0)}, r"scale must be a range within \(0, 1\], got \(0.0, 1.0\)"),
    "ratio": ({"ratio": (2.0, 1.0)}, r"ratio must be a range of positive numbers"),
    "flip": ({"flip": 1.5}, r"flip is a probability in \[0, 1\], got 1.5"),
    "jitter": ({"jitter": -0.1}, r"jitter is a probability.*got -0.1"),
    "grayscale": ({"grayscale": True}, r"grayscale is a probability.*got True"),
    "brightness": ({"brightness": -1}, r"brightness must be a finite number >= 0, got -1"),
    "hue": ({"hue": 0.6}, r"hue is a share of the circle, at most 0.5, got 0.6"),
    "sigma": ({"sigma": (0.0, 2.0)}, r"sigma must be a range of positive numbers, got \(0.0, 2.0\)"),
    "normalise": ({"normalise": ((0.5,), (0.2, 0.2))}, r"normalise must be \(mean, std\)"),
    "std": ({"normalise": ((0.5,), (0.0,))}, r"normalise must be.*std > 0"),
}


@pytest.mark.parametrize(("options", "message"), BAD_OPTIONS.values(), ids=BAD_OPTIONS.keys())
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=f"^SimCLRAugmentation: {message}"):
        SimCLRAugmentation(**options)


BAD_BATCHES = {
    "image": (torch.rand(3, 8, 8), r"\(B, C, H, W\), got torch.float32 of shape \(3, 8, 8\)"),
    "views": (torch.rand(2, 2, 3, 8, 8), r"\(B, C, H, W\)"),
    "bytes": (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), r"floating-point.*got torch.uint8"),
    "no-tensor": ([1], r"got list"),
    "0 to 255": (torch.rand(4, 3, 8, 8) * 255, r"must lie in \[0, 1\], got.*bytes"),
    "normalised": (torch.randn(4, 3, 8, 8), r"must lie in \[0, 1\].*normalise="),
    "nan": (torch.full((4, 3, 8, 8), torch.nan), r"must lie in \[0, 1\].*nan"),
}


@pytest.mark.parametrize(("x", "message"), BAD_BATCHES.values(), ids=BAD_BATCHES.keys())
@augmentations
def test_bad_batches_are_named(make, x, message):
    with pytest.raises(ValueError, match=f"^{make.__name__}: .*{message}"):
        make()(x)


def test_channels_are_named():
    with pytest.raises(ValueError, match=r"1 or 3 channels, got 2"):
        SimCLRAugmentation()(torch.rand(2, 2, 8, 8))
    with pytest.raises(ValueError, match=r"normalise has 3 numbers for a batch of 1 channels"):
        SimCLRAugmentation(normalise=CIFAR)(torch.rand(2, 1, 8, 8))


@augmentations
def test_after_the_first_batch_no_value_is_read(make):
    # On a GPU every reading waits for all that was queued before.
    augmentation, x = make(normalise=CIFAR), torch.zeros(4, 3, 40, 40)
    augmentation(x)
    with Operations() as mode:
        augmentation(x)
    assert not WAITING & set(mode.names)
