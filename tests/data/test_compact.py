"""Compacted datasets: the same samples, attributes and transforms, and no dataset that holds none of them."""

import pytest
import torch
from avalanche.benchmarks import nc_benchmark
from avalanche.benchmarks.utils import AvalancheDataset, concat_datasets
from avalanche.training.storage_policy import ClassBalancedBuffer, ParametricBuffer, ReservoirSamplingBuffer
from helpers.streams import make_benchmark
from torch import nn

from avalanche_contrastive import SSIL
from avalanche_contrastive.data import MemoryImages, fetch_whole_batches
from avalanche_contrastive.data.compact import compacted
from avalanche_contrastive.data.memory import Batch


def parts(flavour="A"):
    """Subsets in some disorder of three experiences, one of them drawn from twice."""
    stream = make_benchmark(flavour).train_stream
    datasets = [experience.dataset for experience in stream[:3]]
    mixed = datasets[0].concat(datasets[1]).concat(datasets[2])
    return [mixed.subset([30, 3, 29]), datasets[1].subset([5, 5]), mixed.subset([]), mixed.subset([2, 0])]


@pytest.mark.parametrize("flavour", ["A", "C"])
@pytest.mark.parametrize("group", ["train", "eval"])
def test_equals_avalanches_concatenation(flavour, group):
    found, expected = compacted(parts(flavour)), concat_datasets(parts(flavour))
    assert type(found) is type(expected)
    assert len(found) == len(expected) == 7
    assert list(found.targets) == list(expected.targets)
    assert list(found.targets_task_labels) == list(expected.targets_task_labels)
    assert found.targets.val_to_idx == expected.targets.val_to_idx
    found, expected = getattr(found, group)(), getattr(expected, group)()
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one[0], other[0])
        assert one[1:] == other[1:]
    x, *rest = found.collate_fn([found[i] for i in range(3)])
    assert len(x) == 3
    assert len(rest) == len(expected[0]) - 1


def image_sets(count, **keywords):
    """Avalanche datasets of 8 images, each of its own."""
    sets = [MemoryImages(torch.rand(8, 1, 2, 2), torch.arange(8) % 2) for _ in range(count)]
    return [nc_benchmark(s, s, 1, task_labels=False, shuffle=False, **keywords).train_stream[0].dataset for s in sets]


def test_holds_only_what_is_in_use():
    first, second, third = image_sets(3)
    whole = first.concat(second).concat(third)
    chosen = whole.subset([17, 3, 16])
    assert len(whole._datasets) == len(chosen._datasets) == 3
    found = compacted([chosen])
    assert len(found._datasets) == 2
    for kept, number in zip(found, (17, 3, 16), strict=True):
        assert torch.equal(kept[0], whole[number][0])
        assert kept[1:] == whole[number][1:]
    again = compacted([found, found])
    assert len(again._datasets) == 2
    assert list(again.targets) == 2 * list(found.targets)


def test_of_nothing_and_of_empty_sets():
    assert len(compacted([])) == 0
    assert len(compacted([parts()[2], parts()[2]])) == 0


def test_transforms_are_kept():
    (data,) = image_sets(1, train_transform=lambda x: x + 1)
    found = compacted([data.subset([1, 2]), data.subset([0])])
    plain = torch.stack([data.eval()[i][0] for i in (1, 2, 0)])
    assert torch.equal(torch.stack([sample[0] for sample in found.eval()]), plain)
    assert torch.equal(torch.stack([sample[0] for sample in found.train()]), plain + 1)


POLICIES = {
    "by class": lambda: ClassBalancedBuffer(8, adaptive_size=True),
    "reservoir": lambda: ReservoirSamplingBuffer(8),
    "by experience": lambda: ParametricBuffer(8, groupby="experience"),
    "by class, parametric": lambda: ParametricBuffer(8, groupby="class"),
}


@pytest.mark.parametrize("kind", POLICIES)
def test_a_memory_does_not_grow_with_the_experiences(kind):
    """Twelve experiences, each a data set of its own, of four classes that come back."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 4))
    policy = POLICIES[kind]()
    strategy = SSIL(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.01),
        mem_size=8,
        batch_size_mem=4,
        storage_policy=policy,
        train_mb_size=8,
        evaluator=None,
    )
    for number in range(12):
        data = MemoryImages(torch.full((8, 1, 2, 2), number / 12), (torch.arange(8) % 2 + 2 * number) % 4)
        strategy.train(nc_benchmark(data, data, 1, task_labels=False, shuffle=False).train_stream[0])
        groups = getattr(policy, "buffer_groups", {}).values() or [policy]
        for group in groups:
            assert len(group.buffer._datasets) <= max(1, len(group.buffer))
        stored = policy.buffer
        assert isinstance(stored, AvalancheDataset)
        assert len(stored) <= 8
        for x, y, *_ in stored:  # an image still has the class it came with
            assert int(y) // 2 == round(float(x.mean()) * 12) % 2


def test_replayed_rows_of_images_in_memory_are_fetched_as_one_batch(monkeypatch):
    def refuse(batch, index):
        raise AssertionError("a sample was put together")

    x, y = torch.rand(40, 1, 2, 2), torch.arange(40) % 4
    images = MemoryImages(x, y)
    benchmark = nc_benchmark(images, images, 2, task_labels=False, shuffle=False)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    fetch_whole_batches()
    strategy = SSIL(model=model, optimizer=optimizer, mem_size=8, batch_size_mem=4, train_mb_size=8, evaluator=None)
    strategy.train(benchmark.train_stream[0])
    monkeypatch.setattr(Batch, "__getitem__", refuse)
    strategy.train(benchmark.train_stream[1])
