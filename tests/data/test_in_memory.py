"""A data set or a benchmark in memory behaves as the original, is left alone, and refuses what it cannot hold."""

import copy

import pytest
import torch
from avalanche.benchmarks import (
    benchmark_from_datasets,
    class_incremental_benchmark,
    nc_benchmark,
    ni_benchmark,
    task_incremental_benchmark,
    with_classes_timeline,
)
from avalanche.benchmarks.scenarios.online import split_online_stream
from avalanche.benchmarks.utils import _make_taskaware_classification_dataset, make_avalanche_dataset
from avalanche.benchmarks.utils.data_attribute import DataAttribute
from avalanche.benchmarks.utils.data_loader import SingleDatasetDataLoader
from avalanche.models import SimpleMLP
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.storage_policy import ClassBalancedBuffer
from avalanche.training.supervised import Naive, Replay
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from avalanche_contrastive import SSIL
from avalanche_contrastive.data import MemoryImages, in_memory

NORMAL = ((0.3,), (0.7,))


class Pictures(Dataset):
    """Pictures as torchvision's data sets have them: PIL images, a transform, and targets."""

    def __init__(self, count=60, transform=None, seed=0, sizes=((6, 5),), classes=6):
        draws = torch.Generator().manual_seed(seed)
        self.images = [
            Image.fromarray(
                torch.randint(0, 256, sizes[i % len(sizes)][::-1], generator=draws, dtype=torch.uint8).numpy()
            )
            for i in range(count)
        ]
        self.targets, self.transform = [i % classes for i in range(count)], transform

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        image = self.images[index]
        return self.transform(image) if self.transform else image, self.targets[index]


TENSOR = transforms.ToTensor()
NORMALISED = transforms.Compose([TENSOR, transforms.Normalize(*NORMAL)])
DRAWING = transforms.Compose([transforms.RandomCrop(5, padding=2), TENSOR])


def benchmark(kind, train=TENSOR, test=TENSOR):
    one, other = Pictures(60), Pictures(30, seed=1)
    if kind in ("nc", "nc-tasks"):
        return nc_benchmark(
            one, other, 3, task_labels=kind == "nc-tasks", seed=1, train_transform=train, eval_transform=test
        )
    if kind == "ni":
        return ni_benchmark(one, other, 3, seed=1, train_transform=train, eval_transform=test)
    loaded = [
        _make_taskaware_classification_dataset(
            data, task_labels=0, transform_groups={"train": (train, None), "eval": (test, None)}
        )
        for data in (one, other)
    ]
    streams = dict(zip(("train", "test"), loaded, strict=True))
    if kind == "class":
        return class_incremental_benchmark(streams, num_experiences=3, seed=1)
    if kind == "tasks":
        classes = class_incremental_benchmark(streams, num_experiences=3, seed=1)
        return task_incremental_benchmark(classes, reset_task_labels=True)
    halves = {name: [data.subset(range(0, 30, 2)), data.subset(range(1, 30, 2))] for name, data in streams.items()}
    return with_classes_timeline(benchmark_from_datasets(**halves))


KINDS = ["nc", "nc-tasks", "ni", "class", "tasks", "datasets"]


def assert_same_samples(one, other):
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert type(a) is type(b)
        assert torch.equal(a[0], b[0])
        assert a[1:] == b[1:]


def assert_same_experience(one, other):
    assert type(one) is type(other)
    assert type(one.dataset) is type(other.dataset)
    for mode in ("train", "eval"):
        assert_same_samples(getattr(one.dataset, mode)(), getattr(other.dataset, mode)())
    assert list(one.dataset.targets) == list(other.dataset.targets)
    assert one.current_experience == other.current_experience
    for name in ("classes_in_this_experience", "previous_classes", "classes_seen_so_far", "task_labels"):
        assert getattr(one, name, None) == getattr(other, name, None), name
    assert one.origin_stream.name == other.origin_stream.name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("transform", [TENSOR, NORMALISED], ids=["bytes", "floats"])
def test_a_benchmark_in_memory_is_the_benchmark(kind, transform):
    original = benchmark(kind, transform, transform)
    loaded = in_memory(original)
    assert type(loaded) is type(original)
    assert set(loaded.streams) == set(original.streams)
    for name, stream in original.streams.items():
        assert len(loaded.streams[name]) == len(stream)
        assert getattr(loaded, f"{name}_stream") is loaded.streams[name]
        for one, other in zip(loaded.streams[name], stream, strict=True):
            assert_same_experience(one, other)
            assert one.origin_stream is loaded.streams[name]
        assert [e.current_experience for e in loaded.streams[name][1:]] == [e.current_experience for e in stream[1:]]
    assert getattr(loaded, "n_classes", None) == getattr(original, "n_classes", None)


@pytest.mark.parametrize("kind", KINDS)
def test_the_original_is_left_alone(kind):
    original = benchmark(kind)
    before = [(e.dataset, e.origin_stream) for stream in original.streams.values() for e in stream]
    in_memory(original)
    after = [(e.dataset, e.origin_stream) for stream in original.streams.values() for e in stream]
    assert all(a[0] is b[0] and a[1] is b[1] for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize(("kind", "transform"), [("nc", TENSOR), ("class", NORMALISED)])
def test_no_image_is_fetched_alone(kind, transform, monkeypatch):
    loaded = in_memory(benchmark(kind, transform, transform))
    monkeypatch.setattr(MemoryImages, "__getitem__", lambda *args: pytest.fail("an image was fetched alone"))
    model = SimpleMLP(num_classes=6, input_size=30)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    strategy = SSIL(
        model=model,
        optimizer=optimizer,
        mem_size=12,
        batch_size_mem=4,
        train_mb_size=8,
        eval_mb_size=8,
        evaluator=EvaluationPlugin(),
    )
    for experience in loaded.train_stream:
        strategy.train(experience)
    strategy.eval(loaded.test_stream)


@pytest.mark.parametrize("kind", ["nc", "nc-tasks", "class"])
@pytest.mark.parametrize("template", [Naive, Replay])
def test_training_is_bit_for_bit_that_on_the_original(kind, template):
    weights = []
    for loaded in (benchmark(kind), in_memory(benchmark(kind))):
        torch.manual_seed(0)
        model = SimpleMLP(num_classes=6, input_size=30)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        strategy = template(
            model=model,
            optimizer=optimizer,
            criterion=nn.CrossEntropyLoss(),
            train_mb_size=8,
            evaluator=EvaluationPlugin(),
        )
        for experience in loaded.train_stream:
            strategy.train(experience)
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(*weights)


def test_images_after_totensor_are_bytes():
    loaded = in_memory(Pictures(transform=TENSOR))
    assert isinstance(loaded, MemoryImages)
    assert loaded.x.dtype == torch.uint8
    assert loaded.x.shape == (60, 1, 5, 6)
    assert loaded.targets == Pictures().targets
    assert_same_samples(loaded, Pictures(transform=TENSOR))


@pytest.mark.parametrize("images", ["auto", "floats"])
def test_other_images_stay_floats(images):
    transform = NORMALISED if images == "auto" else TENSOR
    loaded = in_memory(Pictures(transform=transform), images=images)
    assert loaded.x.dtype == torch.float32
    assert_same_samples(loaded, Pictures(transform=transform))


def test_one_image_that_is_no_byte_makes_all_floats():
    class Odd(Pictures):
        def __getitem__(self, index):
            x, y = super().__getitem__(index)
            return (x * 0.3 if index == 290 else x), y

    loaded = in_memory(Odd(300, TENSOR))
    assert loaded.x.dtype == torch.float32
    assert_same_samples(loaded, Odd(300, TENSOR))
    with pytest.raises(ValueError, match='images="bytes" needs images whose values are multiples of 1/255'):
        in_memory(Odd(300, TENSOR), images="bytes")


def test_bytes_are_normalised_by_the_batch():
    loaded = in_memory(benchmark("nc"), normalise=NORMAL)
    expected = benchmark("nc", NORMALISED, NORMALISED)
    for one, other in zip(loaded.train_stream, expected.train_stream, strict=True):
        for a, b in zip(one.dataset, other.dataset, strict=True):
            torch.testing.assert_close(a[0], b[0])


def test_a_dataset_keeps_class_attributes_and_group():
    attribute = DataAttribute(list(range(60)), "number", use_in_getitem=True)
    data = make_avalanche_dataset(Pictures(transform=TENSOR), data_attributes=[attribute])
    loaded = in_memory(data.eval())
    assert type(loaded) is type(data)
    assert_same_samples(loaded, data)
    assert_same_samples(loaded.subset([5, 3]).concat(loaded.subset([3])), data.subset([5, 3]).concat(data.subset([3])))
    assert loaded._flat_data._transform_groups.current_group == "eval"
    assert_same_samples(copy.deepcopy(loaded), data)


def summed(samples):
    return torch.stack([x.sum() for x, *_ in samples]), [y for _, y, *_ in samples]


def test_a_collate_function_of_the_users_stays():
    data = make_avalanche_dataset(Pictures(transform=TENSOR), collate_fn=summed)
    loaded = in_memory(data)
    assert loaded.collate_fn is summed
    for one, other in zip(*(SingleDatasetDataLoader(d, batch_size=7) for d in (loaded, data)), strict=True):
        assert torch.equal(one[0], other[0])
        assert one[1] == other[1]


def test_a_buffer_of_images_in_memory():
    original = benchmark("nc")
    buffers = []
    for loaded in (original, in_memory(original)):
        torch.manual_seed(0)
        buffer = ClassBalancedBuffer(13)
        for experience in loaded.train_stream:
            buffer.post_adapt(None, experience)
        buffers.append(buffer.buffer)
    assert_same_samples(*buffers)


def test_the_images_of_the_evaluation_may_be_trained_on():
    loaded = in_memory(benchmark("nc", DRAWING, TENSOR), transforms="eval")
    expected = benchmark("nc").train_stream[1].dataset
    assert_same_samples(loaded.train_stream[1].dataset.train(), expected)


def test_loading_by_several_processes():
    assert_same_samples(in_memory(Pictures(300, TENSOR), num_workers=2), Pictures(300, TENSOR))


def test_an_empty_experience_stays():
    data = _make_taskaware_classification_dataset(Pictures(transform=TENSOR), task_labels=0)
    loaded = in_memory(benchmark_from_datasets(train=[data, data.subset([])], test=[data.subset([])]))
    assert [len(e.dataset) for e in loaded.train_stream] == [60, 0]
    assert [len(e.dataset) for e in loaded.test_stream] == [0]


class Samples(Dataset):
    targets = (0, 1)

    def __init__(self, *samples):
        self.samples = samples

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        return self.samples[index]


IMAGE = torch.rand(1, 4, 4)
BAD = {
    "list": (lambda: in_memory(iter([1])), TypeError, r"a benchmark or a data set with a length, got list_iterator"),
    "pil": (lambda: in_memory(Pictures()), TypeError, r"an image must be a tensor.*got Image.*ToTensor"),
    "vector": (lambda: in_memory(Samples((torch.rand(3), 0))), TypeError, r"tensor \(C, H, W\), got.*\(3,\)"),
    "integers": (lambda: in_memory(Samples((IMAGE.long(), 0))), TypeError, r"tensor \(C, H, W\), got torch.int64"),
    "label": (lambda: in_memory(Samples((IMAGE, 0.5))), TypeError, r"a label must be an integer, got float"),
    "triple": (lambda: in_memory(Samples((IMAGE, 0, 1))), TypeError, r"must be \(image, label\), got 3 parts"),
    "dict": (lambda: in_memory(Samples({"x": IMAGE})), TypeError, r"must be \(image, label\), got dict"),
    "empty": (lambda: in_memory(Samples()), ValueError, r"no sample to load"),
    "sizes": (
        lambda: in_memory(Pictures(60, TENSOR, sizes=((6, 5), (5, 6)))),
        ValueError,
        r"one size, got \(1, 5, 6\), \(1, 6, 5\)",
    ),
    "later-size": (
        lambda: in_memory(Samples(*[(IMAGE, 0)] * 256, *[(IMAGE[..., :2], 0)] * 3)),
        ValueError,
        r"from sample 256 on is torch.float32 of \(1, 4, 2\)",
    ),
    "draws": (lambda: in_memory(Pictures(60, DRAWING)), ValueError, r"transform draws.*SimCLRAugmentation"),
    "training-draws": (lambda: in_memory(benchmark("nc", DRAWING)), ValueError, r'draws.*transforms="eval"'),
    "unequal": (lambda: in_memory(benchmark("nc", NORMALISED)), ValueError, r"training and evaluation see other"),
    "images": (lambda: in_memory(Pictures(60, TENSOR), images="uint8"), ValueError, r"images must be one of 'auto'"),
    "workers": (lambda: in_memory(Pictures(60, TENSOR), num_workers=-1), ValueError, r"num_workers must be.*>= 0"),
    "bytes": (lambda: in_memory(Pictures(60, NORMALISED), images="bytes"), ValueError, r"multiples of 1/255"),
}


@pytest.mark.parametrize(("call", "error", "message"), BAD.values(), ids=BAD.keys())
def test_what_cannot_be_held_is_named(call, error, message):
    with pytest.raises(error, match=f"^in_memory: .*{message}"):
        call()


def test_a_stream_that_is_generated_is_refused():
    original = benchmark("class")
    original._streams["online"] = split_online_stream(original.train_stream, experience_size=5)
    with pytest.raises(TypeError, match=r'the stream "train_online" is generated as it goes'):
        in_memory(original)


def test_too_little_memory_is_said_before_it_is_used(monkeypatch):
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("Memory", (), {"available": 1000}))
    with pytest.raises(ValueError, match=r"the images take .* GB, and 0.0 GB are free"):
        in_memory(Pictures(60, TENSOR))


def test_one_loss_of_a_contrastive_method_on_bytes():
    # The whole way of a user: bytes in memory, whole batches, an augmentation of batches in the plugin.
    loaded = in_memory(benchmark("nc"))
    x, y, *_ = next(iter(DataLoader(loaded.train_stream[0].dataset, batch_size=8, collate_fn=MemoryImages.collate_fn)))
    assert (x.shape, x.dtype, y.dtype) == ((8, 1, 5, 6), torch.float32, torch.int64)
    assert nn.Flatten()(x).max() <= 1
