"""The command `features`, the streams that read its banks, and suites that share rows."""

import json
import sys

import pytest
import torch

from avalanche_contrastive.bench import cli
from avalanche_contrastive.bench import config as configs
from avalanche_contrastive.bench.data.arrays import Arrays, Part, read_bank
from avalanche_contrastive.bench.data.bank import make_bank
from avalanche_contrastive.bench.data.encoders import make_encoder
from avalanche_contrastive.bench.data.streams import make_stream
from avalanche_contrastive.bench.methods.networks import PlainFeatures

ENCODER = """
from torch import nn
def small():
    return nn.Sequential(nn.Conv2d(3, 12, 3, stride=2), nn.ReLU())
def flat():
    return nn.Flatten(0)
def number():
    return 3
def two_channels():
    return nn.Conv2d(2, 3, 3)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "tiny_encoder.py").write_text(ENCODER)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tiny_encoder", raising=False)
    return tmp_path


def make(out, *words, data="split_digits", encoder="tiny_encoder:small"):
    return cli.main(["features", "--data", data, "--encoder", encoder, "--out", str(out), *words])


def test_a_bank_of_a_stream_is_made_once_and_trained_on(folder, capsys):
    out = folder / "bank.npz"
    assert make(out, "--views", "2") == 0
    arrays, origin = read_bank(out)
    assert arrays.train.x.shape == (1437, 3, 1, 12)
    assert arrays.test.x.shape == (360, 1, 1, 12)
    assert (origin["encoder"], origin["data"], origin["views"]) == ("tiny_encoder:small", "digits", 2)
    written = out.stat().st_mtime_ns
    assert make(out, "--views", "2") == 0
    assert out.stat().st_mtime_ns == written
    capsys.readouterr()
    assert make(out, "--views", "1") == 2
    assert "made otherwise: its augmentation" in capsys.readouterr().err.replace("its views", "its augmentation")

    words = ["--seeds", "0", "--jobs", "1", "--set", "epochs=1", "--out", "runs"]
    assert cli.main(["run", "--data", str(out), "co2l", "ssil", "csd", "derpp", *words]) == 0
    result = json.loads((folder / "runs" / "co2l-seed0.json").read_text())
    assert "features of 12 numbers, plain and of 2 views" in result["stream"]
    assert origin["weights"] in result["stream"]


def test_a_bank_of_a_data_set_of_torchvision(folder):
    data = "torchvision:FakeData?size=30&num_classes=3&image_size=3,12,12"
    assert make(folder / "named.npz", "--views", "1", data=data) == 0
    arrays, origin = read_bank(folder / "named.npz")
    assert arrays.train.x.shape[1:] == (2, 1, 12)  # plain and one view
    assert len(arrays.train.y) + len(arrays.test.y) == 30
    assert origin["data"] == data


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"encoder": "tiny_encoder:number"}, "must give a torch.nn.Module, got int"),
        ({"encoder": "tiny_encoder:flat"}, "must give a vector for each image"),
        ({"encoder": "tiny_encoder:two_channels"}, "cannot take images of shape"),
        ({"encoder": "tiny_encoder:smal"}, "no 'smal'"),
        ({"encoder": "resnet_18"}, "no encoder named"),
        ({"data": "split_digitz"}, "did you mean 'split_digits'"),
        ({"data": "torchvision:Nothing"}, "Nothing"),
        ({"data": "split_cifar100_frozen"}, "make it from split_cifar100"),
    ],
)
def test_what_cannot_be_is_refused_and_leaves_nothing(words, message, folder, capsys):
    assert make(folder / "bank.npz", **words) == 2
    assert message in capsys.readouterr().err
    assert sorted(path.name for path in folder.iterdir() if path.name != "__pycache__") == ["tiny_encoder.py"]


def test_a_bank_is_no_data_for_a_bank_and_a_folder_no_name_for_one(folder, capsys):
    assert make(folder / "bank.npz", "--views", "0") == 0
    assert make(folder / "again.npz", data="bank.npz") == 2
    assert "is a feature bank already" in capsys.readouterr().err
    assert make(folder) == 2
    assert "ends in .npz" in capsys.readouterr().err


def test_weights_of_torchvision_are_read_as_data_only(folder, monkeypatch):
    from torchvision.models import resnet18

    monkeypatch.setenv("TORCH_HOME", str(folder))
    (folder / "hub" / "checkpoints").mkdir(parents=True)
    kept = folder / "hub" / "checkpoints" / "resnet18-f37072fd.pth"  # where torchvision would download to
    network = resnet18(weights=None)
    torch.save(network.state_dict(), kept)
    encoder = make_encoder("resnet18", 32)
    assert torch.equal(encoder.network.conv1.weight, network.conv1.weight)
    assert encoder(torch.rand(2, 1, 8, 8)).shape == (2, 512)
    torch.save(network, kept)  # a pickled object, which could run any code
    with pytest.raises(Exception, match="weights_only"):
        make_encoder("resnet18", 32)


def small_bank(path, classes=100):
    """A bank of random images, eight of each class."""
    y = torch.arange(classes).repeat_interleave(8)
    images = torch.rand(len(y), 3, 4, 4)
    data = Arrays(Part(images, y), Part(images[::4], y[::4]), tuple(f"class {c}" for c in range(classes)))
    encoder = make_encoder("mine", builder=lambda: torch.nn.Conv2d(3, 6, 3))
    noisy = {"augmentation": lambda x: x + torch.randn_like(x), "transform": "noise", "views": 2}
    make_bank(path, data, encoder, name="mine", title="random", **noisy)
    return path


def test_the_frozen_stream_reads_its_bank_from_the_folder(tmp_path):
    with pytest.raises(ValueError, match=r"no such feature bank.*features --data split_cifar100"):
        make_stream("split_cifar100_frozen", 0, data=str(tmp_path))
    small_bank(tmp_path / "cifar100_bank.npz")
    stream = make_stream("split_cifar100_frozen", 0, data=str(tmp_path), experiences=11, base_classes=50)
    assert [len(classes) for classes in stream.experience_classes] == [50] + 10 * [5]
    assert stream.image_shape == (3, 1, 6)
    assert (stream.kind.network, stream.kind.features) == ("adapter", True)
    arrays, _ = read_bank(tmp_path / "cifar100_bank.npz")
    x, y, *_ = stream.benchmark.train_stream[0].dataset[0]
    assert any(torch.equal(x, row) for row in arrays.train.x[arrays.train.y == y])


def test_a_network_gets_the_plain_features_only():
    x = torch.randn(5, 3, 1, 7).half()
    assert torch.equal(PlainFeatures()(x), x[:, :1].float())


FROZEN = [name for name in configs.suites() if name.startswith("split_cifar100_frozen")]


@pytest.mark.parametrize("suite", FROZEN[1:])
def test_suites_share_rows_and_say_what_differs(suite):
    ours, theirs = ({row.name: row for row in configs.load_rows(name)} for name in (suite, FROZEN[0]))
    own = configs.read_toml(configs.CONFIGS / suite / configs.SHARED)
    own.pop("rows_of")
    assert set(ours) == set(theirs)
    for name, row in ours.items():
        assert row.config.as_dict() == {**theirs[name].config.as_dict(), **own, "suite": suite}


def test_every_frozen_row_trains(tmp_path):
    """All rows but the ablations, for a step or two: what cannot train on features shows here, not after an hour."""
    small_bank(tmp_path / "cifar100_bank.npz")
    words = ["--set", "experiences=2", "--set", "epochs=1", "--seeds", "0", "--jobs", "1", "--root", str(tmp_path)]
    assert cli.main(["run", "--suite", FROZEN[0], "--others", *words, "--out", str(tmp_path / "runs")]) == 0
    wanted = [row.name for row in configs.load_rows(FROZEN[0]) if row.table != "ablation"]
    assert sorted(path.name for path in (tmp_path / "runs").glob("*.json")) == sorted(f"{n}-seed0.json" for n in wanted)
