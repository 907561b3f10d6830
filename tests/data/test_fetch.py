"""Whole batches of images in memory: what Avalanche's datasets and loaders give, sample by sample or at once."""

import copy
import pickle

import pytest
import torch
from avalanche.benchmarks import class_incremental_benchmark, nc_benchmark
from avalanche.benchmarks.utils import as_classification_dataset, make_avalanche_dataset
from avalanche.benchmarks.utils import data_loader as avalanche_loaders
from avalanche.benchmarks.utils.data import AvalancheDataset
from avalanche.benchmarks.utils.data_attribute import DataAttribute
from avalanche.training.storage_policy import ClassBalancedBuffer, ReservoirSamplingBuffer
from torch.utils.data import DataLoader, Subset, default_collate

from avalanche_contrastive.data import MemoryImages, fetch, fetch_whole_batches

TURNED = (
    torch.arange(30).flip(0) - (torch.arange(30) == 7).long() * 100
)  # the stored pixel of each shown one, one black


class Plain(torch.utils.data.TensorDataset):
    """The same images, but none that the batched fetch knows."""

    def __init__(self, images):
        super().__init__(images.x)
        self.images, self.targets = images, images.targets

    def __getitem__(self, index):
        return self.images[index]


def images(count=60, *, colour=False, seed=0, **options):
    draws = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 256, (count, 3 if colour else 1, 6, 5), generator=draws, dtype=torch.uint8)
    return MemoryImages(x, torch.arange(count) % 6, **options)


def flavour(name, train):
    """The training datasets of a stream of three experiences, as the generators of Avalanche make them."""
    if name == "C":
        return nc_benchmark(train, train, 3, task_labels=False, fixed_class_order=[5, 0, 3, 1, 4, 2])
    if name == "tasks":
        return nc_benchmark(train, train, 3, task_labels=True, shuffle=False, class_ids_from_zero_in_each_exp=True)
    data = as_classification_dataset(train) if name == "B" else train
    return class_incremental_benchmark({"train": data, "test": data}, num_experiences=3, class_order=[5, 0, 3, 1, 4, 2])


def assert_same(dataset, indices=None, *, batched=True):
    """The batch is that of sample by sample: values, types, order, and what the collate function makes of it."""
    indices = torch.randperm(len(dataset)).tolist() if indices is None else indices
    batch, expected = dataset.__getitems__(indices), [dataset[i] for i in indices]
    assert isinstance(batch, list) != batched
    assert len(batch) == len(expected)
    for one, other in zip(batch, expected, strict=True):
        assert isinstance(one, type(other))
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert type(a) is type(b)
            assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
    for collate in (default_collate, dataset.collate_fn, lambda samples: default_collate(list(samples))):
        assert_same_batch(collate(batch), default_collate(expected))


def assert_same_batch(one, other):
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


class TestBatchedFetch:
    @pytest.fixture(autouse=True)
    def installed(self):
        fetch_whole_batches()

    @pytest.mark.parametrize("name", ["A", "B", "C", "tasks"])
    @pytest.mark.parametrize("options", [{}, {"normalise": ([0.3], [0.7])}, {"pixels": TURNED}])
    def test_experiences_subsets_and_concatenations(self, name, options):
        one, two, three = (e.dataset for e in flavour(name, images(**options)).train_stream)
        assert_same(one)
        assert_same(two.eval())
        assert_same(one.subset([3, 3, 0, 19]))
        assert_same(one.concat(three).concat(two.subset(range(4))).concat(one))
        assert_same(one.subset([5, 1]).concat(one.subset([2, 2])).train())

    @pytest.mark.parametrize("name", ["A", "C", "tasks"])
    @pytest.mark.parametrize("policy", [ReservoirSamplingBuffer, ClassBalancedBuffer])
    def test_buffers(self, name, policy):
        buffer = policy(13)
        for experience in flavour(name, images()).train_stream:
            buffer.post_adapt(None, experience)
            assert_same(buffer.buffer)
            assert_same(experience.dataset.concat(buffer.buffer).train())

    def test_several_sources_and_sizes_of_attribute(self):
        parts = [make_avalanche_dataset(images(seed=i), data_attributes=[labels(60, i)]) for i in range(3)]
        whole = parts[0].concat(parts[1]).concat(parts[2])
        assert_same(whole)
        assert_same(whole.subset([170, 3, 61, 60, 3]))
        logits = DataAttribute(list(torch.rand(180, 4)), "logits", use_in_getitem=True)
        assert_same(whole.update_data_attribute("logits", logits))
        assert_same(whole.update_data_attribute("targets_task_labels", list(range(180))))

    def test_what_it_does_not_know_goes_sample_by_sample(self):
        plain = flavour("C", Plain(images())).train_stream[0].dataset
        assert_same(plain, batched=False)
        known = flavour("C", images()).train_stream[0].dataset
        assert_same(known.concat(plain), batched=False)
        turned = known.replace_current_transform_group(torch.neg)
        assert_same(turned, batched=False)
        assert_same(known)
        assert torch.equal(turned[0][0], -known[0][0])
        frozen = make_avalanche_dataset(
            images(), transform_groups={"train": (None, lambda y: y + 1), "eval": (None, None)}
        )
        assert_same(frozen, batched=False)
        assert_same(frozen.eval())
        assert_same(known, [-1, 2], batched=False)
        with pytest.raises(IndexError):
            known.__getitems__([20])

    def test_a_dataset_changed_after_a_batch_is_looked_at_again(self):
        dataset = flavour("C", images()).train_stream[0].dataset
        before = dataset.__getitems__([0, 1])
        changed = dataset.update_data_attribute("targets_task_labels", [7] * 20)
        assert [sample[2] for sample in changed.__getitems__([0, 1])] == [7, 7]
        assert [sample[2] for sample in before] == [0, 0]
        for again in (copy.deepcopy(dataset), pickle.loads(pickle.dumps(dataset))):
            assert_same(again)

    @pytest.mark.parametrize("colour", [False, True])
    def test_loaders_give_the_same_batches_as_without_it(self, monkeypatch, colour):
        stream = flavour("tasks", images(colour=colour)).train_stream
        buffer = ClassBalancedBuffer(13)
        for experience in stream:
            buffer.post_adapt(None, experience)
        memory, data = buffer.buffer, stream[2].dataset
        both = memory.concat(data)

        def batches(workers=0):
            options = {"shuffle": True, "num_workers": workers}
            torch.manual_seed(0)
            return [
                *DataLoader(data, batch_size=8, **options),
                *avalanche_loaders.SingleDatasetDataLoader(data, batch_size=8),
                *avalanche_loaders.TaskBalancedDataLoader(both, batch_size=9, **options),
                *avalanche_loaders.ReplayDataLoader(data, memory, batch_size=8, batch_size_mem=5, **options),
            ]

        fast, workers = batches(), batches(2)
        sample_by_sample(monkeypatch)
        for one, two, slow in zip(fast, workers, batches(), strict=True):
            assert_same_batch(one, slow)
            assert_same_batch(two, slow)

    def test_a_loader_over_known_and_unknown_images(self):
        known, plain = (flavour("C", part).train_stream[0].dataset for part in (images(), Plain(images())))
        loader = avalanche_loaders.ReplayDataLoader(known, plain, batch_size=4, batch_size_mem=3)
        x, y, _ = next(iter(loader))
        assert torch.equal(x, torch.stack([known[i][0] for i in (0, 1, 2, 3)] + [plain[i][0] for i in (0, 1, 2)]))
        assert y.tolist() == [0] * 7

    def test_no_image_is_fetched_alone(self, monkeypatch):
        loaders = all_loaders("C")
        monkeypatch.setattr(MemoryImages, "__getitem__", lambda *args: pytest.fail("an image was fetched alone"))
        for loader in loaders:
            assert sum(len(x) for x, *_ in loader) >= 8

    def test_without_the_two_changes_to_avalanche_every_image_is(self, monkeypatch):
        sample_by_sample(monkeypatch)
        fetched, alone = [], MemoryImages.__getitem__
        monkeypatch.setattr(MemoryImages, "__getitem__", lambda *args: fetched.append(1) or alone(*args))
        for loader in all_loaders("C"):
            fetched.clear()
            assert sum(len(x) for x, *_ in loader) == len(fetched)

    def test_an_epoch_begins_without_a_walk_over_all_samples(self, monkeypatch):
        walks = []
        monkeypatch.setattr(avalanche_loaders, "has_ffcv_support", lambda datasets: walks.append(1))
        data = flavour("C", images()).train_stream[0].dataset
        next(iter(avalanche_loaders.TaskBalancedDataLoader(data, batch_size=8)))
        assert walks == []
        plain = flavour("C", Plain(images())).train_stream[0].dataset
        next(iter(avalanche_loaders.TaskBalancedDataLoader(plain, batch_size=8)))
        assert walks == [1], "what is not in memory goes through Avalanche's own loader"

    def test_images_on_a_gpu_are_not_pinned(self):
        x = torch.empty(6, 1, 4, 4, device="meta", dtype=torch.uint8)
        data = flavour("C", MemoryImages(x, torch.arange(6))).train_stream[0].dataset
        loader = avalanche_loaders.TaskBalancedDataLoader(data, batch_size=2, pin_memory=True)
        assert not loader._get_loader().pin_memory
        assert next(iter(loader))[0].device.type == "meta"

    def test_a_torch_loader_of_plain_images_takes_whole_batches(self, monkeypatch):
        leaf = images()
        expected = next(iter(DataLoader(leaf, batch_size=20)))
        monkeypatch.setattr(MemoryImages, "__getitem__", lambda *args: pytest.fail("an image was fetched alone"))
        for data, collate in ((leaf, leaf.collate_fn), (Subset(leaf, list(range(60))), leaf.collate_fn), (leaf, None)):
            assert_same_batch(next(iter(DataLoader(data, batch_size=20, collate_fn=collate))), expected)
        assert_same_batch(default_collate(leaf.__getitems__([-1, 3])), default_collate(leaf.__getitems__([59, 3])))
        with pytest.raises(IndexError):
            leaf.__getitems__([60])


def sample_by_sample(monkeypatch):
    """Avalanche as it is without this package."""
    monkeypatch.setattr(AvalancheDataset, "__getitems__", None)
    monkeypatch.setattr(avalanche_loaders.MultiDatasetDataLoader, "_get_loader", fetch._loader_of_avalanche)


def all_loaders(name):
    """A loader of each kind, over an experience and a memory of others."""
    stream = flavour(name, images()).train_stream
    buffer = ClassBalancedBuffer(20)
    for experience in stream:
        buffer.post_adapt(None, experience)
    data, memory = stream[2].dataset, buffer.buffer
    return [
        DataLoader(data.train(), batch_size=8, shuffle=True, collate_fn=data.collate_fn),
        DataLoader(data.eval(), batch_size=8),
        avalanche_loaders.SingleDatasetDataLoader(data.eval(), batch_size=8),
        avalanche_loaders.TaskBalancedDataLoader(memory.concat(data), batch_size=8),
        avalanche_loaders.ReplayDataLoader(data, memory, batch_size=8, batch_size_mem=4),
    ]


def labels(count, task):
    return DataAttribute([task] * count, "targets_task_labels", use_in_getitem=True)
