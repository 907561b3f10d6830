"""Two views: on the pipeline, on the batch, and the batch augmentation itself."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from avalanche_contrastive import TwoViews as ExportedTwoViews
from avalanche_contrastive.data import BatchAugmentation, TwoViews, stack_views


def ramp(b=5, c=2, h=8, w=8):
    """Images that differ everywhere and from each other."""
    return torch.rand(b, c, h, w)


def identity(**options):
    return BatchAugmentation(**{"scale": (1, 1), "ratio": (1, 1), "flip": 0, "rotation": 0, **options})


# --- TwoViews ---


def test_two_views_is_exported():
    assert ExportedTwoViews is TwoViews


@pytest.mark.parametrize("views", [2, 3, 4])
def test_two_views_stacks_in_front(views):
    calls = iter(range(10))
    out = TwoViews(lambda image: image + next(calls), views=views)(torch.zeros(3, 4, 5))
    assert out.shape == (views, 3, 4, 5)
    assert [view.unique().item() for view in out] == list(range(views))


def test_two_views_are_two_by_default():
    assert TwoViews(lambda image: image)(torch.zeros(1, 4, 4)).shape == (2, 1, 4, 4)


def test_two_views_draws_anew_for_each_view():
    first, second = TwoViews(lambda image: image + torch.rand(()))(torch.zeros(1, 4, 4))
    assert not torch.equal(first, second)


def test_two_views_leaves_the_image_alone():
    image = torch.zeros(1, 4, 4)
    TwoViews(lambda x: x + 1)(image)
    assert torch.equal(image, torch.zeros(1, 4, 4))


class Pictures(Dataset):
    def __init__(self, transform):
        self.transform = transform

    def __len__(self):
        return 6

    def __getitem__(self, i):
        return self.transform(torch.full((1, 4, 4), float(i))), i


def test_two_views_batch_has_a_view_axis():
    x, y = next(iter(DataLoader(Pictures(TwoViews(lambda image: image)), batch_size=6)))
    assert x.shape == (6, 2, 1, 4, 4)
    assert torch.equal(x[:, 0], x[:, 1])
    assert torch.equal(x[:, 0, 0, 0, 0], y.float())


@pytest.mark.parametrize("views", [1, 0, -2])
def test_two_views_needs_two(views):
    with pytest.raises(ValueError, match=rf"views must be >= 2, got {views}.*positive"):
        TwoViews(lambda image: image, views=views)


def test_two_views_needs_a_callable():
    with pytest.raises(TypeError, match="transform must be callable, got int"):
        TwoViews(3)


def test_two_views_needs_tensors():
    with pytest.raises(TypeError, match=r"must return tensors.*got list.*ToTensor"):
        TwoViews(lambda image: [image])(torch.zeros(1, 4, 4))


def test_two_views_refuses_unknown_arguments():
    with pytest.raises(TypeError, match="count"):
        TwoViews(lambda image: image, count=2)


def test_two_views_shows_its_transform():
    assert repr(TwoViews(nn.Identity(), views=3)) == "TwoViews(Identity(), views=3)"


# --- stack_views ---


@pytest.mark.parametrize("views", [2, 3, 4])
def test_stack_views_puts_views_after_the_batch(views):
    x, calls = ramp(), iter(range(10))
    out = stack_views(x, lambda batch: batch + 10 * next(calls), views=views)
    assert out.shape == (5, views, 2, 8, 8)
    for view in range(views):
        assert torch.equal(out[:, view], x + 10 * view)


def test_stack_views_makes_two_by_default():
    assert stack_views(ramp(), lambda batch: batch).shape == (5, 2, 2, 8, 8)


def test_stack_views_takes_vectors():
    assert stack_views(torch.rand(3, 7), torch.neg).shape == (3, 2, 7)


def test_stack_views_leaves_the_batch_alone():
    x = ramp()
    before = x.clone()
    stack_views(x, BatchAugmentation())
    assert torch.equal(x, before)


def test_stack_views_of_the_batch_augmentation_differ():
    out = stack_views(ramp(), BatchAugmentation())
    assert (out[:, 0] != out[:, 1]).flatten(1).any(dim=1).all()


BAD_AUGMENTATIONS = {
    "single-image": (lambda x: x[0], r"shape \(5, 2, 8, 8\).*got \(2, 8, 8\).*single image"),
    "own-views": (lambda x: torch.stack([x, x], dim=1), r"got \(5, 2, 2, 8, 8\).*views itself"),
    "resizes": (lambda x: x[..., :4], r"got \(5, 2, 8, 4\)"),
    "list": (lambda x: [x, x], r"same shape, got list"),
    "nothing": (lambda x: None, r"same shape, got NoneType"),
}


@pytest.mark.parametrize(("augmentation", "message"), BAD_AUGMENTATIONS.values(), ids=BAD_AUGMENTATIONS.keys())
def test_stack_views_refuses_another_shape(augmentation, message):
    with pytest.raises(ValueError, match=message):
        stack_views(ramp(), augmentation)


@pytest.mark.parametrize("views", [0, 1])
def test_stack_views_needs_two(views):
    with pytest.raises(ValueError, match=f"views must be >= 2, got {views}"):
        stack_views(ramp(), torch.neg, views=views)


# --- BatchAugmentation ---


@pytest.mark.parametrize("shape", [(5, 1, 8, 8), (3, 3, 32, 32), (2, 4, 6, 10), (1, 1, 2, 2)])
@pytest.mark.parametrize("options", [{}, {"rotation": 30.0}, {"scale": (0.01, 0.02), "ratio": (0.1, 10.0)}])
def test_augmentation_keeps_the_shape(shape, options):
    out = BatchAugmentation(**options)(torch.rand(shape))
    assert out.shape == shape
    assert out.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_augmentation_keeps_the_dtype(dtype):
    assert BatchAugmentation(rotation=20)(ramp().to(dtype)).dtype == dtype


def test_augmentation_stays_within_the_values_of_the_image():
    # Interpolation with reflection at the border: a mean of pixels, never black corners.
    x = torch.rand(50, 1, 8, 8) + 1
    out = BatchAugmentation(rotation=180)(x)
    assert (out.amin(dim=(1, 2, 3)) >= x.amin(dim=(1, 2, 3)) - 1e-5).all()
    assert (out.amax(dim=(1, 2, 3)) <= x.amax(dim=(1, 2, 3)) + 1e-5).all()


SINGLY = {
    "scale": {"scale": (0.2, 0.9)},
    "ratio": {"scale": (0.5, 0.5), "ratio": (0.5, 2.0)},
    "position": {"scale": (0.25, 0.25)},
    "rotation": {"rotation": 40},
}


@pytest.mark.parametrize("options", SINGLY.values(), ids=SINGLY.keys())
def test_augmentation_draws_for_each_image(options):
    same = torch.rand(1, 1, 8, 8).expand(6, 1, 8, 8)
    out = identity(**options)(same)
    assert len(out.flatten(1).unique(dim=0)) == 6


def test_flip_is_drawn_for_each_image():
    x = torch.rand(1, 1, 8, 8).expand(400, 1, 8, 8)
    out = identity(flip=0.25)(x)
    flipped = (out - x.flip(3)).abs().amax(dim=(1, 2, 3)) < 1e-5
    kept = (out - x).abs().amax(dim=(1, 2, 3)) < 1e-5
    assert (flipped ^ kept).all()
    assert 60 < flipped.sum() < 140  # 100 expected, standard deviation 8.7


def test_two_calls_differ():
    x, augmentation = ramp(), BatchAugmentation()
    first, second = augmentation(x), augmentation(x)
    assert (first != second).flatten(1).any(dim=1).all()


def test_same_seed_same_images():
    x, augmentation = ramp(), BatchAugmentation(rotation=30)
    torch.manual_seed(3)
    first = augmentation(x)
    torch.manual_seed(3)
    assert torch.equal(first, augmentation(x))
    torch.manual_seed(4)
    assert not torch.equal(first, augmentation(x))


@pytest.mark.parametrize("size", [(7, 7), (8, 8), (5, 12)])
def test_nothing_to_draw_is_the_identity(size):
    x = torch.rand(4, 2, *size)
    torch.testing.assert_close(identity()(x), x, atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [(7, 7), (8, 8), (5, 12)])
def test_flip_one_mirrors_left_and_right(size):
    x = torch.rand(4, 2, *size)
    torch.testing.assert_close(identity(flip=1)(x), x.flip(3), atol=1e-5, rtol=0)


def test_rotation_turns_about_the_centre():
    # One bright pixel at distance 2 from the centre of 9 x 9 stays there up to interpolation; no corner reflects it.
    x = torch.zeros(200, 1, 9, 9)
    x[:, 0, 4, 6] = 1
    mass = identity(rotation=180)(x)[:, 0]
    rows, columns = torch.meshgrid(torch.arange(9.0) - 4, torch.arange(9.0) - 4, indexing="ij")
    total = mass.sum(dim=(1, 2))
    y, x = (mass * rows).sum(dim=(1, 2)) / total, (mass * columns).sum(dim=(1, 2)) / total
    assert ((x**2 + y**2).sqrt() - 2).abs().max() < 0.2
    angle = torch.atan2(y, x)
    assert angle.min() < -2
    assert angle.max() > 2


def test_rotation_stays_within_its_limit():
    x = torch.zeros(300, 1, 9, 9)
    x[:, 0, 4, 8] = 1
    mass = identity(rotation=20)(x)[:, 0]
    row = (mass * (torch.arange(9.0) - 4)[:, None]).sum(dim=(1, 2)) / mass.sum(dim=(1, 2))
    limit = 4 * torch.tensor(20.0).deg2rad().sin().item()  # 1.37 rows
    assert row.abs().max() < limit + 0.4
    assert row.abs().max() > limit - 0.6


def test_crop_covers_the_drawn_share_of_the_image():
    # On a ramp from 0 to 1 a crop of a quarter of the area spans half the width.
    x = torch.linspace(0, 1, 64).expand(100, 1, 64, 64)
    out = identity(scale=(0.25, 0.25))(x)
    span = out[:, 0, 0, -1] - out[:, 0, 0, 0]
    torch.testing.assert_close(span, torch.full((100,), 0.5), atol=0.01, rtol=0)
    start = out[:, 0, 0, 0]
    assert start.min() < 0.06
    assert start.max() > 0.44


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_images_move_as_float32_ones(dtype):
    x, augmentation = torch.rand(2, 1, 224, 224).to(dtype), BatchAugmentation()
    torch.manual_seed(1)
    expected = augmentation(x.float())
    torch.manual_seed(1)
    torch.testing.assert_close(augmentation(x).float(), expected, atol=0.01, rtol=0)


def test_autocast_does_not_move_pixels():
    x, augmentation = torch.rand(2, 1, 28, 28), BatchAugmentation()
    torch.manual_seed(1)
    expected = augmentation(x)
    torch.manual_seed(1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = augmentation(x)
    torch.testing.assert_close(out, expected, atol=1e-4, rtol=0)


def test_gradient_reaches_the_image():
    x = ramp().requires_grad_()
    BatchAugmentation()(x).sum().backward()
    assert x.grad.isfinite().all()
    assert (x.grad != 0).any()


BAD_OPTIONS = {
    "scale-zero": ({"scale": (0.0, 1.0)}, r"scale must be a range within \(0, 1\], got \(0.0, 1.0\)"),
    "scale-above-one": ({"scale": (0.5, 1.5)}, r"scale must be.*got \(0.5, 1.5\)"),
    "scale-backwards": ({"scale": (0.9, 0.1)}, r"scale must be.*got \(0.9, 0.1\)"),
    "scale-nan": ({"scale": (float("nan"), 1.0)}, r"scale must be.*got \(nan, 1.0\)"),
    "ratio-zero": ({"ratio": (0.0, 1.0)}, r"ratio must be a range of positive numbers, got \(0.0, 1.0\)"),
    "ratio-backwards": ({"ratio": (2.0, 1.0)}, r"ratio must be.*got \(2.0, 1.0\)"),
    "flip-negative": ({"flip": -0.1}, r"flip is a probability.*got -0.1"),
    "flip-above-one": ({"flip": 2}, r"flip is a probability.*got 2"),
    "rotation-negative": ({"rotation": -5}, r"rotation must lie in \[0, 180\].*got -5"),
    "rotation-above-180": ({"rotation": 200}, r"rotation must lie in \[0, 180\].*got 200"),
}


@pytest.mark.parametrize(("options", "message"), BAD_OPTIONS.values(), ids=BAD_OPTIONS.keys())
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        BatchAugmentation(**options)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.rand(2, 8, 8), r"\(B, C, H, W\), got torch.float32 of shape \(2, 8, 8\)"),
        (torch.rand(2, 2, 1, 8, 8), r"\(B, C, H, W\).*got.*\(2, 2, 1, 8, 8\)"),
        (torch.zeros(2, 1, 8, 8, dtype=torch.uint8), r"floating-point.*got torch.uint8"),
    ],
    ids=["single-image", "views", "bytes"],
)
def test_bad_batches_are_named(x, message):
    with pytest.raises(ValueError, match=message):
        BatchAugmentation()(x)


def test_augmentation_refuses_unknown_arguments():
    with pytest.raises(TypeError, match="degrees"):
        BatchAugmentation(degrees=10)


def test_augmentation_shows_its_options():
    shown = repr(BatchAugmentation(flip=0.1, rotation=5))
    assert shown == "BatchAugmentation(scale=(0.2, 1.0), ratio=(0.75, 1.3333333333333333), flip=0.1, rotation=5)"


def test_augmentation_does_not_mind_the_default_type():
    torch.set_default_dtype(torch.float64)
    try:
        x = torch.rand(2, 1, 8, 8)
        assert BatchAugmentation(flip=0.5, rotation=5)(x).dtype == torch.float64
        assert BatchAugmentation()(x.float()).dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)
