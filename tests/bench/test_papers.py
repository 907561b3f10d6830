"""The papers' rows: every one builds and trains; class orders, dropped batches, CSD's head and network, evaluations."""

from dataclasses import replace
from importlib.util import find_spec
from inspect import signature

import numpy as np
import pytest
import torch
from avalanche.training.plugins import SupervisedPlugin
from sklearn.utils import shuffle
from torch import nn

from avalanche_contrastive import ContrastiveModel, ExperienceSchedule
from avalanche_contrastive.bench.config import load_row, load_rows, updated
from avalanche_contrastive.bench.data.streams import make_stream, rotation
from avalanche_contrastive.bench.methods import ours
from avalanche_contrastive.bench.methods.heads import GrowingUnitHead
from avalanche_contrastive.bench.methods.networks import make_encoder
from avalanche_contrastive.bench.run.build import build, check, stream_of
from avalanche_contrastive.bench.run.execute import execute
from avalanche_contrastive.data import MemoryImages as Images

# Classes, images of each, side and channels; Tiny-ImageNet is made smaller still, since its network takes any size.
SETS = {
    "mnist": (10, 2, 28, 1),
    "cifar10": (10, 2, 32, 3),
    "cifar100": (100, 2, 32, 3),
    "tiny_imagenet": (200, 1, 16, 3),
}
CPU = torch.device("cpu")

pytestmark = pytest.mark.filterwarnings("ignore:SSILPlugin. this experience has the single class")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Noise in the form of every data set that the papers train on."""
    folder = tmp_path_factory.mktemp("data")
    draws = np.random.default_rng(0)
    for name, (classes, images, side, channels) in SETS.items():
        y = np.arange(images * classes) % classes
        x = draws.integers(0, 256, (len(y), side, side, channels), dtype=np.uint8)
        np.savez(folder / f"{name}.npz", train_images=x, train_labels=y, test_images=x, test_labels=y)
    return folder


def small(config):
    """The config with as few steps as it can have."""
    changes = {"epochs": 2, "batch_size": 25}
    changes |= {"epochs_later": 2} if config.epochs_later else {}
    changes |= {"warmup_epochs": 1, "lr": max(config.lr, 0.1)} if config.warmup_epochs else {}
    changes |= {"milestones": [1]} if config.milestones else {}
    changes |= {"options.readout_epochs": 1} if config.method == "co2l" else {}
    changes |= {"options.batch_size_mem": 4} if config.method == "ssil" else {}
    return updated(config, changes, where="test")


@pytest.mark.parametrize("row", load_rows("paper"), ids=lambda row: row.name)
def test_every_row_of_the_papers_builds_and_trains_two_experiences(row, root):
    there = {
        "normalize": "normalize" in signature(ContrastiveModel).parameters,
        "peak": "warmup_peak" in signature(ExperienceSchedule).parameters,
        "storage": find_spec(ours.EXEMPLARS) is not None,
    }
    wanted = {
        "normalize": row.config.options.get("normalize") is False and row.config.method == "co2l",
        "peak": row.config.warmup_peak != "own",
        "storage": row.config.options.get("storage") in ("first", "random_remainder"),
    }
    if missing := [key for key in wanted if wanted[key] and not there[key]]:
        pytest.skip(f"the package does not have {missing} yet")
    check(row.config)
    config = small(row.config)
    stream = stream_of(config, 0, root=str(root))
    built = build(config, stream, CPU)
    for experience in stream.benchmark.train_stream[:2]:
        built.strategy.train(experience, drop_last=config.drop_last)
    figures = built.strategy.eval(stream.benchmark.test_stream[:1])
    assert any(name.startswith("Top1_Acc_Exp/") for name in figures)
    assert all(parameter.isfinite().all() for parameter in built.strategy.model.parameters())
    assert built.strategy.clock.train_exp_counter == 2


# ---- class orders and batches


@pytest.mark.parametrize(
    ("order", "expected", "words"),
    [
        ("", np.random.default_rng(3).permutation(10).tolist(), "order by seed"),
        ("natural", list(range(10)), "order natural"),
        ([9, 8, 7, 6, 5, 4, 3, 2, 1, 0], [9, 8, 7, 6, 5, 4, 3, 2, 1, 0], "order given"),
    ],
)
def test_classes_come_in_the_order_that_is_asked_for(order, expected, words):
    stream = make_stream("split_digits", 3, class_order=order)
    assert stream.class_order == expected
    assert words in stream.description
    pairs = [sorted(expected[i : i + 2]) for i in range(0, 10, 2)]
    assert stream.experience_classes == pairs
    assert [sorted(set(e.dataset.targets)) for e in stream.benchmark.train_stream] == pairs


def test_the_order_of_ss_ils_rows_is_the_one_of_its_authors():
    new_ids = shuffle(np.arange(100), random_state=0)  # of each class, as their main.py draws them
    for row in ("ssil_cifar100", "ssil_cifar100_base50"):
        order = load_row(row, "paper").config.class_order
        assert [new_ids[c] for c in order] == list(range(100))


@pytest.mark.parametrize(
    ("order", "message"),
    [
        ("natral", "a list of all classes, 0 to 9, got 'natral'"),
        ([0, 1, 2], "a list of all classes, 0 to 9, got"),
        ([0] * 10, "a list of all classes"),
        (list(range(1, 11)), "a list of all classes"),
    ],
)
def test_an_order_that_is_none_is_refused(order, message):
    with pytest.raises(ValueError, match=message):
        make_stream("split_digits", 0, class_order=order)
    with pytest.raises(ValueError, match="class_order means nothing in the domain scenario"):
        make_stream("split_digits", 0, scenario="domain", class_order=order)


def test_the_order_stands_in_the_result_and_in_its_config():
    config = load_row("naive", "split_digits").config
    config = updated(config, {"class_order": [*range(10)][::-1], "epochs": 1, "train_images": 100}, where="test")
    result = execute(config, 0)
    assert result["class_order"] == result["config"]["class_order"] == [*range(10)][::-1]
    with pytest.raises(ValueError, match="class_order must be a list of whole numbers, got"):
        updated(config, {"class_order": [1.5]}, where="test")


class Sizes(SupervisedPlugin):
    """The number of current images in each batch."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def after_training_iteration(self, strategy, **kwargs):
        current = strategy.experience.classes_in_this_experience
        self.seen.append(sum(int(y) in current for y in strategy.mb_y))


@pytest.mark.parametrize("name", ["naive", "replay", "ssil", "csd", "la_maml"])
@pytest.mark.parametrize("drop_last", [False, True])
def test_a_smaller_last_batch_is_dropped_when_asked_for(name, drop_last):
    changes = {"epochs": 1, "batch_size": 32, "train_images": 200, "drop_last": drop_last}
    config = updated(load_row(name, "split_digits").config, changes, where="test")
    watch = Sizes()
    built = execute_with(config, watch)
    assert built is None
    always = drop_last or name == "la_maml"  # which drops it in any case
    assert watch.seen == ([32] if always else [32, 8]) * 5


def execute_with(config, plugin):
    """`execute`, its strategy having one more plugin."""
    from avalanche_contrastive.bench.run import execute as module

    original = module.build

    def with_plugin(*words):
        built = original(*words)
        built.strategy.plugins.append(plugin)
        return built

    module.build = with_plugin
    try:
        module.execute(config, 0)
    finally:
        module.build = original


# ---- CSD's head and network


class ByHand(nn.Module):
    """The authors' head, written down anew: a linear layer that is replaced by a wider one."""

    def __init__(self, rows):
        super().__init__()
        self.rows, self.weight = rows, None

    def grow(self, classes):
        old = [] if self.weight is None else list(self.weight.data)
        self.weight = nn.Parameter(torch.stack([*old, *self.rows[len(old) : classes]]))

    def forward(self, x):
        self.weight.data.div_(self.weight.data.norm(dim=1, keepdim=True))
        return x @ self.weight.T


def test_the_growing_head_trains_as_one_that_is_replaced_by_a_wider_one():
    torch.manual_seed(0)
    head = GrowingUnitHead(5, 6)
    other = ByHand(head.weight.detach().clone())
    for seen in (2, 4, 6):
        experience = type("Experience", (), {"classes_in_this_experience": range(seen - 2, seen)})
        head.train()
        head.adaptation(experience)
        other.rows = head.weight.detach().clone()  # those of new classes are drawn when they come
        other.grow(seen)
        optimizers = [torch.optim.SGD(m.parameters(), lr=0.5, momentum=0.9) for m in (head, other)]
        for _ in range(4):
            x, y = torch.randn(8, 5), torch.randint(seen - 2, seen, (8,))
            losses = [nn.functional.cross_entropy(module(x), y) for module in (head, other)]
            torch.testing.assert_close(losses[0], losses[1])
            for optimizer, loss in zip(optimizers, losses, strict=True):
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            torch.testing.assert_close(head.weight[:seen], other.weight)
    assert (head.weight.norm(dim=1) - 1).abs().max() > 0.01  # moved off the sphere until the next pass
    head.eval()
    assert head(torch.randn(3, 5)).shape == (3, 6)


def test_the_row_of_a_class_is_drawn_when_the_class_comes():
    # Weight decay moves every coordinate by Adam's rate: in the end a row would have few coordinates left, or one.
    torch.manual_seed(0)
    head = GrowingUnitHead(64, 6)
    head.adaptation(type("Experience", (), {"classes_in_this_experience": [0, 1]}))
    optimizer = torch.optim.Adam(head.parameters(), lr=0.01, weight_decay=5e-4)
    for _ in range(100):
        optimizer.zero_grad()
        nn.functional.cross_entropy(head(torch.randn(8, 64)), torch.randint(0, 2, (8,))).backward()
        optimizer.step()
    known = head.weight[:2].detach().clone()
    assert (nn.functional.normalize(head.weight[2:4]).abs() < 0.01).sum() > 64  # of 128
    head.adaptation(type("Experience", (), {"classes_in_this_experience": [2, 3]}))
    assert (nn.functional.normalize(head.weight[2:4]).abs() < 0.01).sum() < 20
    assert head.weight[2:4].abs().max() <= 1 / 8  # as a linear layer's
    assert torch.equal(head.weight[:2], known)


def test_an_evaluation_does_not_make_the_head_grow():
    head = GrowingUnitHead(5, 6)
    head.train()
    head.adaptation(type("Experience", (), {"classes_in_this_experience": [0, 1]}))
    head.eval()
    head.adaptation(type("Experience", (), {"classes_in_this_experience": [4, 5]}))
    logits = head(torch.randn(3, 5))
    assert (logits[:, 2:] == GrowingUnitHead.MASKED).all()
    assert (logits[:, :2].abs() < 100).all()


def test_csd_begins_with_the_classes_of_the_first_experience_only(root):
    """The softmax of the first experience runs over 10 classes, not over 100, so the first loss is smaller."""
    config = replace(small(load_row("csd_cifar100_t10", "paper").config), augment=False, augmentation="", lr=1e-12)
    losses = {}
    for head in ("unit", "cosine"):
        torch.manual_seed(0)
        stream = stream_of(config, 0, root=str(root))
        strategy = build(replace(config, options={**config.options, "head": head}), stream, CPU).strategy
        strategy.train(stream.benchmark.train_stream[0])
        losses[head] = float(strategy.method.terms["cross_entropy"])
    assert losses["cosine"] > losses["unit"] + 1.5  # log(100 / 10) is 2.3


def test_the_network_of_csd_is_initialised_and_padded_as_its_authors_have_it():
    encoder = make_encoder("resnet32_csd", (3, 32, 32))
    for layer in (layer for layer in encoder.modules() if isinstance(layer, nn.Conv2d)):
        fan_out = layer.kernel_size[0] * layer.kernel_size[1] * layer.out_channels
        if layer.weight.numel() > 5000:
            assert float(layer.weight.detach().std()) == pytest.approx(np.sqrt(2 / fan_out), rel=0.05)
    shortcuts = [
        m.shortcut for m in encoder.modules() if hasattr(m, "shortcut") and not isinstance(m.shortcut, nn.Identity)
    ]
    assert len(shortcuts) == 2
    for shortcut, channels in zip(shortcuts, (16, 32), strict=True):
        x = torch.randn(2, channels, 8, 8)
        expected = torch.cat([x[:, :, ::2, ::2], torch.zeros(2, channels, 4, 4)], dim=1)
        assert torch.equal(shortcut(x), expected)
    assert encoder(torch.randn(2, 3, 32, 32)).shape == (2, 64)


# ---- rotated MNIST in two ways


def test_rotated_domains_are_evaluated_in_the_two_ways_that_are_published(root):
    config = replace(
        small(load_row("naive", "rotated_mnist").config), experiences=3, epochs=1, train_images=0, test_images=0
    )
    result = execute(config, 0, root=str(root))
    own, last = result["evaluations"].values()
    assert list(result["evaluations"]) == ["each domain's own rotation", "the last rotation"]
    assert own == result["final_accuracy"]
    # The authors' script, written down: copies of the test images under the last angle.
    with np.load(root / "mnist.npz") as data:
        x = torch.from_numpy(data["test_images"]).permute(0, 3, 1, 2)
        y = torch.from_numpy(data["test_labels"])
    copies = [Images(x, y, pixels=rotation(result["angles"][-1], 28, 28)) for _ in range(3)]
    stream = stream_of(config, 0, root=str(root))
    last_domain = stream.benchmark.test_stream[2].dataset
    assert all(torch.equal(copies[0][i][0], last_domain[i][0]) for i in range(len(y)))
    assert last == result["accuracy_matrix"][-1][-1]
    assert "evaluations" not in execute(replace(small(load_row("naive", "split_digits").config), train_images=100), 0)
