"""Feature banks: what is in the file, killed calls, broken files, and the draw of views."""

import numpy as np
import pytest
import torch
from helpers.streams import digits
from torch import nn

from avalanche_contrastive import BatchAugmentation
from avalanche_contrastive.bench.data.arrays import Arrays, Part, read_bank
from avalanche_contrastive.bench.data.bank import DrawView, make_bank
from avalanche_contrastive.bench.data.encoders import Encoder, make_encoder


def data():
    (x, y), (test_x, test_y) = digits(20)
    as_bytes = [(images * 255).round().to(torch.uint8) for images in (x, test_x)]
    return Arrays(Part(as_bytes[0], y), Part(as_bytes[1], test_y), tuple("abcdefghij"))


def encoder(seed=0):
    torch.manual_seed(seed)
    return make_encoder("mine:net", builder=lambda: nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU()))


def bank(path, **options):
    kept = {
        "name": "mine:net",
        "title": "digits",
        "views": 2,
        "augmentation": BatchAugmentation(flip=0.0),
        "transform": "crop",
    }
    return make_bank(path, data(), encoder(), **{**kept, "half": False, **options})


def killed(path, after):
    """A call that ends after so many batches."""

    def report(done, total):
        if done == after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bank(path, report=report)


def test_the_plain_features_are_what_the_encoder_gives(tmp_path):
    origin = bank(tmp_path / "bank.npz")
    read, same = read_bank(tmp_path / "bank.npz")
    assert same == origin
    assert read.train.x.shape == (200, 3, 1, 5)
    assert read.test.x.shape == (200, 1, 1, 5)
    expected = encoder()(data().train.x.float() / 255).half()
    assert torch.equal(read.train.x[:, 0, 0], expected)
    assert torch.equal(read.train.y, data().train.y)
    assert not torch.equal(read.train.x[:, 1], read.train.x[:, 2])
    assert read.class_names == tuple("abcdefghij")


def test_a_killed_call_goes_on_to_the_same_bank(tmp_path):
    bank(tmp_path / "whole.npz")

    killed(tmp_path / "killed.npz", 4)
    assert not (tmp_path / "killed.npz").exists()
    first = min((tmp_path / ".killed.npz.parts").glob("train-0-*.npy"))
    written = first.stat().st_mtime_ns
    torch.rand(3)  # the state of the generator does not matter
    seen = []
    bank(tmp_path / "killed.npz", report=lambda done, total: seen.append(first.stat().st_mtime_ns))
    assert set(seen) == {written}, "parts that are there are not computed again"
    one, other = (read_bank(tmp_path / name)[0] for name in ("whole.npz", "killed.npz"))
    assert torch.equal(one.train.x, other.train.x)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["killed.npz", "whole.npz"]


@pytest.mark.parametrize("left", [0, 5, -7])
def test_a_damaged_part_is_computed_again(left, tmp_path):
    bank(tmp_path / "whole.npz")

    killed(tmp_path / "bank.npz", 4)
    first = min((tmp_path / ".bank.npz.parts").glob("train-0-*.npy"))
    first.write_bytes(first.read_bytes()[:left])
    with pytest.raises(ValueError, match=rf"{first.name} was damaged .* Give the command again"):
        bank(tmp_path / "bank.npz")
    bank(tmp_path / "bank.npz")
    assert (tmp_path / "bank.npz").read_bytes() == (tmp_path / "whole.npz").read_bytes()


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"augmentation": BatchAugmentation(flip=1.0), "transform": "crop, flip"}, {"views": 1}]
)
def test_parts_of_another_setting_are_not_used(change, tmp_path):
    killed(tmp_path / "bank.npz", 1)
    bank(tmp_path / "bank.npz", **change)
    bank(tmp_path / "fresh.npz", **change)
    one, other = (read_bank(tmp_path / name)[0] for name in ("bank.npz", "fresh.npz"))
    assert torch.equal(one.train.x, other.train.x)


def test_the_origin_tells_weights_and_data_apart(tmp_path):
    assert encoder(0).digest() != encoder(1).digest()
    assert encoder(0).digest() == encoder(0).digest()
    network = nn.Conv2d(3, 5, 3)
    assert Encoder(network, 8).digest() != Encoder(network, 16).digest()


def test_half_precision_is_near(tmp_path):
    bank(tmp_path / "half.npz", half=True)
    bank(tmp_path / "float.npz")
    one, other = (read_bank(tmp_path / name)[0].train.x.float() for name in ("half.npz", "float.npz"))
    assert (one - other).abs().max() < 0.02 * other.abs().max()


@pytest.mark.parametrize("broken", ["cut", "empty", "images", "pickle"])
def test_a_file_that_is_no_bank_is_named(broken, tmp_path):
    path = tmp_path / "bank.npz"
    bank(path)
    if broken == "cut":
        path.write_bytes(path.read_bytes()[:2000])
    elif broken == "empty":
        path.write_bytes(b"")
    elif broken == "images":
        np.savez(path, train_images=np.zeros((3, 8, 8), np.uint8))
    else:
        np.savez(path, **{key: np.array([{}], dtype=object) for key in ("train_features", "origin")})
    with pytest.raises(ValueError, match=r"bank\.npz: not a feature bank"):
        read_bank(path)


def test_views_are_drawn_without_repeats_and_the_plain_features_never():
    x = torch.arange(5.0).expand(64, 5)[..., None].repeat(1, 1, 2)  # view v holds the number v
    draw, seen = DrawView(), []
    for _ in range(4):
        drawn = draw(x)
        assert drawn.shape == x.shape
        assert torch.equal(drawn[:, 1:], x[:, 1:])
        seen.append(drawn[:, 0, 0])
    assert all(sorted(row) == [1, 2, 3, 4] for row in torch.stack(seen, dim=1).tolist())
    assert not torch.equal(DrawView()(x), DrawView()(x))
    with pytest.raises(ValueError, match=r"\(B, 1 \+ V, \.\.\., D\)"):
        draw(x[:, :1])


def test_an_unknown_encoder_is_named():
    with pytest.raises(ValueError, match=r"no encoder named 'resnet_18'.*efficientnet_lite0"):
        make_encoder("resnet_18")
    with pytest.raises(ValueError, match=r"must give a torch\.nn\.Module, got int"):
        make_encoder("mine:net", builder=lambda: 3)
