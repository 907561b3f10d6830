"""Code of one's own in every place that takes it: network, stream, augmentation, metrics, from a TOML file anywhere."""

import re
import sys
import textwrap

import pytest
import torch
from torch import nn

from avalanche_contrastive import _outside as outside
from avalanche_contrastive.bench import cli, files, results
from avalanche_contrastive.bench import config as configs
from avalanche_contrastive.bench.methods.networks import make_encoder
from avalanche_contrastive.bench.run.build import build, stream_of
from avalanche_contrastive.bench.run.execute import execute

CODE = """
import torch
from avalanche.benchmarks import nc_benchmark
from helpers.streams import Images, digits
from torch import nn

def network(image_shape):
    channels, height, width = image_shape
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * height * width, 24), nn.ReLU())

def fixed():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 12))

def maps_to_images(image_shape):
    return nn.Conv2d(image_shape[0], 4, 3)

class TwoFaced(nn.Flatten):
    def forward(self, x):
        return (super().forward(x),) if self.training else super().forward(x)

def two_faced():
    return TwoFaced()

def no_module(image_shape):
    return 3

def stream(seed, *, validation=False, experiences=0):
    train, test = (Images(*part) for part in digits(12))
    return nc_benchmark(train, train if validation else test, experiences or 5, task_labels=False, seed=seed)

def plain_stream():
    return stream(0)

def no_stream():
    return [1, 2]

def of_bytes(seed):
    part = Images(torch.zeros(20, 1, 8, 8, dtype=torch.uint8), torch.arange(20) % 10)
    return nc_benchmark(part, part, 5, task_labels=False, seed=seed)

calls = []

def dark(image_shape):
    def augment(x):
        calls.append(x)
        assert x.min() >= 0 and x.max() <= 1
        return x * 0.5
    return augment

def smaller(image_shape):
    return lambda x: x[:, :, 1:]

def confidence(logits, y):
    return logits.softmax(dim=1).max(dim=1).values.mean()

def share_right(logits, y):
    return (logits.argmax(dim=1) == y).float().mean()

def in_words(logits, y):
    return "many"
"""
QUICK = ["--jobs", "1", "--seeds", "0", "--set", "epochs=1"]


@pytest.fixture
def row(tmp_path, monkeypatch):
    """Writes the code and a row that names it, in a folder that Python does not know."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(outside, "_own_folders", [])
    (tmp_path / "rows").mkdir()
    module = f"own_{abs(hash(tmp_path))}"
    (tmp_path / "rows" / f"{module}.py").write_text(textwrap.dedent(CODE))

    def write(text):
        path = tmp_path / "rows" / "mine.toml"
        path.write_text(f'method = "naive"\nlabel = "Mine"\nepochs = 1\n{text}\n'.replace("OWN:", f"{module}:"))
        return path

    write.module = module
    return write


def run(path, tmp_path, *words):
    assert cli.main(["run", str(path), "--out", str(tmp_path / "out"), *QUICK, *words]) == 0
    return files.read_json(tmp_path / "out" / "mine-seed0.json")


# ---- networks


@pytest.mark.parametrize(("function", "width"), [("network", 24), ("fixed", 12)])
def test_a_network_of_ones_own(row, function, width):
    config = configs.find_row(str(row(f'network = "OWN:{function}"')), "split_digits").config
    strategy = build(config, stream_of(config, 0), torch.device("cpu")).strategy
    assert strategy.model.head.in_features == width
    assert strategy.model.training


@pytest.mark.parametrize("method", ["co2l", "ssil", "csd", "icarl", "scr_repaired", "lwf"])
def test_any_method_trains_a_network_of_ones_own(row, method):
    config = configs.find_row(str(row('network = "OWN:network"')), "split_digits").config
    base = configs.default_config(method, "split_digits")
    changes = {"network": config.network, "epochs": 1, "train_images": 100, "test_images": 100}
    result = execute(configs.updated(base, changes, where="test"), 0)
    assert 0 <= result["final_accuracy"] <= 1


@pytest.mark.parametrize(
    ("name", "shape", "width"),
    [
        ("torchvision:resnet18", (3, 32, 32), 512),
        ("torchvision:resnet18", (1, 32, 32), 512),
        ("torchvision:mobilenet_v3_small", (3, 32, 32), 1024),
        ("torchvision:googlenet", (3, 64, 64), 1024),
    ],
)
def test_a_network_of_torchvision_without_its_classifier(name, shape, width):
    encoder = make_encoder(name, shape)
    assert encoder.features == width
    assert encoder(torch.zeros(2, *shape)).shape == (2, width)
    assert encoder.training


@pytest.mark.parametrize("method", ["co2l", "ssil", "csd"])
def test_the_three_methods_train_a_network_of_torchvision(method):
    base = configs.default_config(method, "split_digits")
    changes = {"network": "torchvision:resnet18", "epochs": 1, "train_images": 100, "test_images": 100}
    config = configs.updated(base, changes, where="test")
    model = build(config, stream_of(config, 0), torch.device("cpu")).strategy.model
    logits = model.eval()(torch.zeros(2, 1, 8, 8))
    assert logits.shape == (2, 10)
    assert 0 <= execute(config, 0)["final_accuracy"] <= 1


def test_a_network_that_gives_something_else_in_training_is_named(row):
    path = row('network = "OWN:two_faced"')
    with pytest.raises(ValueError, match=r"must map images \(B, C, H, W\) to vectors \(B, D\), got tuple for B = 2"):
        make_encoder(configs.find_row(str(path), "split_digits").config.network, (1, 8, 8))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("torchvision:resnet19", "torchvision has no network 'resnet19'; did you mean 'resnet18'"),
        ("torchvision:squeezenet1_0", "has no linear classifier to take away; name a module:function"),
        ("torchvision:vit_b_16", r"'torchvision:vit_b_16' cannot take images of 1 x 8 x 8"),
        ("OWN:maps_to_images", r"must map images \(B, C, H, W\) to vectors \(B, D\), got \(2, 4, 6, 6\) for B = 2"),
        ("OWN:no_module", "must be a torch module, got int"),
        ("OWN:nothing", "has no 'nothing'. Its functions: network, fixed"),
    ],
)
def test_a_network_that_does_not_fit_is_named(row, name, message):
    path = row(f'network = "{name}"')
    with pytest.raises(ValueError, match=message):
        make_encoder(configs.find_row(str(path), "split_digits").config.network, (1, 8, 8))


@pytest.mark.skipif("timm" in sys.modules, reason="timm is installed")
def test_timm_is_asked_for_where_it_is_missing():
    with pytest.raises(ValueError, match=r"needs timm, which is not installed|cannot take images"):
        make_encoder("timm:resnet10t", (3, 1, 1))


# ---- streams


def test_a_stream_of_ones_own_runs_and_is_tuned(row, tmp_path):
    path = row('stream = "OWN:stream"\nexperiences = 2')
    result = run(path, tmp_path)
    assert result["stream"].startswith(f"{row.module}:stream: 2 experiences, 10 classes; 120 training and ")
    assert [len(line) for line in result["accuracy_matrix"]] == [2, 2]
    assert sorted(c for group in result["experience_classes"] for c in group) == list(range(10))
    assert set(result["fingerprint"]) == {"stream"}
    config = configs.find_row(str(path), "split_digits").config
    assert "120 validation images" in stream_of(config, 0, validation=True).description


@pytest.mark.parametrize(
    ("text", "validation", "message"),
    [
        ('stream = "OWN:no_stream"', False, "must return an Avalanche benchmark, got list"),
        ('stream = "OWN:plain_stream"', True, "has no parameter `validation`"),
        (
            'stream = "OWN:plain_stream"\nexperiences = 2',
            False,
            "no parameter 'experiences', which the config sets",
        ),
        ('stream = "OWN:of_bytes"', False, r"a sample must be a float tensor \(C, H, W\), got torch.uint8 of shape"),
    ],
)
def test_a_stream_that_cannot_be_trained_on_is_named(row, text, validation, message):
    config = configs.find_row(str(row(text)), "split_digits").config
    with pytest.raises(ValueError, match=message):
        stream_of(config, 0, validation=validation)


# ---- augmentations


def test_an_augmentation_of_ones_own_gets_plain_images_and_reaches_the_model(row):
    config = configs.find_row(str(row('augment = true\naugmentation = "OWN:dark"')), "split_digits").config
    stream = stream_of(configs.updated(config, {"train_images": 100}, where="test"), 0)
    strategy = build(config, stream, torch.device("cpu")).strategy
    seen = []
    strategy.model.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    strategy.train(stream.benchmark.train_stream[0])
    assert max(float(x.max()) for x in seen) <= 0.5
    assert sys.modules[row.module].calls


def test_an_augmentation_that_changes_the_shape_is_named(row, tmp_path, capsys):
    path = row('augment = true\naugmentation = "OWN:smaller"')
    assert cli.main(["run", str(path), "--out", str(tmp_path / "out"), *QUICK]) == 1
    assert re.search(
        r":smaller' must keep the shape \(32, 1, 8, 8\) of a batch, got \(32, 1, 7, 8\)", capsys.readouterr().err
    )


# ---- metrics


def test_metrics_of_ones_own_are_columns_of_the_table(row, tmp_path, capsys):
    result = run(row('metrics = ["OWN:confidence", "OWN:share_right"]'), tmp_path)
    assert set(result["metrics"]) == {"confidence", "share_right"}
    right = result["metrics"]["share_right"]
    for own, accuracy in zip(right["matrix"], result["accuracy_matrix"], strict=True):
        assert own == pytest.approx(accuracy)
    assert len(right["all"]) == 5
    assert right["all"][-1] == pytest.approx(result["final_accuracy"])
    head = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("| method"))
    assert "confidence | share_right" in head
    assert results.load_results(tmp_path / "out")["mine"][0]["config"]["metrics"] == result["config"]["metrics"]


def test_a_metric_that_is_no_number_is_named(row, tmp_path, capsys):
    path = row('metrics = ["OWN:in_words"]')
    assert cli.main(["run", str(path), "--out", str(tmp_path / "out"), *QUICK]) == 1
    assert "in_words must return a number, got str" in capsys.readouterr().err
    with pytest.raises(ValueError, match="metrics must be a list of strings, got"):
        configs.find_row(str(row("metrics = [3]")), "split_digits")


def test_a_change_of_ones_own_code_is_another_run(row, tmp_path):
    path = row('network = "OWN:network"\nmetrics = ["OWN:confidence"]')
    run(path, tmp_path)
    found = configs.find_row(str(path), "split_digits")
    assert results.is_done(
        tmp_path / "out", configs.Row("mine", configs.updated(found.config, {}, where=""), "Mine"), 0
    )
    source = tmp_path / "rows" / f"{row.module}.py"
    source.write_text(source.read_text() + "\n# changed\n")
    assert set(results.fingerprint(found.config)) == {"network", "metric " + found.config.metrics[0]}
    assert not results.is_done(tmp_path / "out", found, 0)


def test_an_encoder_knows_its_width_without_a_draw(row):
    row("")
    outside.importable(row("").parent)
    torch.manual_seed(3)
    direct = nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.ReLU())
    after = torch.rand(1)
    torch.manual_seed(3)
    made = make_encoder(f"{row.module}:network", (1, 8, 8))
    assert torch.equal(torch.rand(1), after)
    assert torch.equal(made[0][1].weight, direct[1].weight)
