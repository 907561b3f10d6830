"""Two hundred experiences: with buffer and head of one size nothing grows, no file stays open, no step gets slower."""

import gc
import statistics
import time
from collections import Counter

import psutil
import pytest
import torch
from avalanche.benchmarks import benchmark_from_datasets, with_classes_timeline
from avalanche.benchmarks.utils import as_classification_dataset
from avalanche.training.storage_policy import ExperienceBalancedBuffer, ReservoirSamplingBuffer
from helpers.streams import ORDER, Images, digits, make_encoder
from torch import nn
from torch.utils.data import DataLoader

from avalanche_contrastive import CSD, SSIL, BatchAugmentation, Co2L, ContrastiveModel, ExperienceSchedule

METHODS = {"co2l": Co2L, "ssil": SSIL, "csd": CSD}
every_method = pytest.mark.parametrize("method", METHODS)
ROUND = 5  # experiences until the classes come back


def stream(length, per_class=8):
    """Experiences of two digits each; after five of them the same classes come back, again and again."""
    (x, y), _ = digits(per_class)
    parts = [torch.isin(y, torch.tensor(ORDER[2 * i : 2 * i + 2])) for i in range(ROUND)]
    data = [as_classification_dataset(Images(x[rows], y[rows])) for rows in parts]
    train = [data[i % ROUND] for i in range(length)]
    return with_classes_timeline(benchmark_from_datasets(train=train, test=data))


def make(method, **options):
    """A strategy with a head for all classes and a memory that is full after the second experience."""
    model = (
        ContrastiveModel(make_encoder(), 16, 8)
        if method == "co2l"
        else nn.Sequential(make_encoder(), nn.Linear(16, 10))
    )
    if method == "co2l":
        options = {"augmentation": BatchAugmentation(flip=0.0), "readout_epochs": 3, **options}
    if method != "csd":
        options = {"mem_size": 20, **options}
    return METHODS[method](
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9),
        train_mb_size=8,
        eval_mb_size=64,
        evaluator=None,
        plugins=[ExperienceSchedule(later=0.5)],
        **options,
    )


def alive():
    """How many objects there are of what could pile up."""
    gc.collect()
    found = Counter()
    for thing in gc.get_objects():
        kind = type(thing)
        if issubclass(kind, nn.Module):
            found["modules"] += 1
            found["hooks"] += sum(map(len, hooks_of(thing)))
        elif issubclass(kind, torch.Tensor):
            found["tensors"] += 1
            found["numbers"] += thing.numel()
        elif issubclass(kind, DataLoader):
            found["loaders"] += 1
    return found


def hooks_of(module):
    return module._forward_hooks, module._forward_pre_hooks, module._backward_hooks


def parts_of(strategy):
    """Sizes of what a strategy carries along."""
    return {
        "plugins": len(strategy.plugins),
        "groups": [len(group["params"]) for group in strategy.optimizer.param_groups],
        "keys": [sorted(group) for group in strategy.optimizer.param_groups],
        "state": len(strategy.optimizer.state),
        "attributes": sorted(vars(strategy)),
        "method": sorted(vars(strategy.method)),
        "stored": len(strategy.method.storage_policy.buffer) if hasattr(strategy.method, "storage_policy") else 0,
    }


def depth(dataset):
    """Of the tree of subsets and unions under a dataset: as many layers each image is fetched through."""
    node = getattr(dataset, "_flat_data", dataset)
    below = getattr(node, "_datasets", [])
    return 1 + max(map(depth, below), default=0)


@every_method
def test_nothing_grows_in_forty_experiences(method):
    strategy, benchmark = make(method), stream(40)
    files = psutil.Process().num_fds()
    for number, experience in enumerate(benchmark.train_stream):
        strategy.train(experience)
        strategy.eval(benchmark.test_stream[:1])
        if number == 3 * ROUND - 1:
            counts, sizes = alive(), parts_of(strategy)
    assert parts_of(strategy) == sizes
    later = alive()
    assert sum(len(hooks) for module in strategy.model.modules() for hooks in hooks_of(module)) == 0
    for kind, count in later.items():
        assert count <= counts[kind], kind  # fewer where another test's objects have gone
    assert psutil.Process().num_fds() == files
    assert depth(strategy.method.storage_policy.buffer if method != "csd" else None) <= 4
    assert len(strategy.method.ledger) == 40
    assert sum(map(len, strategy.method.ledger)) == 10


@pytest.mark.parametrize("policy", [ReservoirSamplingBuffer, ExperienceBalancedBuffer])
def test_other_buffers_of_one_size_do_not_grow_either(policy):
    strategy, benchmark = make("ssil", storage_policy=policy(20)), stream(30)
    for number, experience in enumerate(benchmark.train_stream):
        strategy.train(experience)
        if number == 2 * ROUND - 1:
            sizes, loaders = parts_of(strategy), alive()["loaders"]
    assert parts_of(strategy) == sizes
    assert alive()["loaders"] <= loaders
    assert depth(strategy.method.storage_policy.buffer) <= 4


@every_method
def test_workers_leave_no_file_open(method):
    strategy, benchmark = make(method), stream(4)
    strategy.train(benchmark.train_stream[0], num_workers=1)
    gc.collect()
    files = psutil.Process().num_fds()
    for experience in benchmark.train_stream[1:]:
        strategy.train(experience, num_workers=1)
    gc.collect()
    assert psutil.Process().num_fds() == files
    assert not [child for child in psutil.Process().children() if "pt_data" in child.name()]


@pytest.mark.slow
@every_method
def test_two_hundred_experiences_in_constant_memory_and_time(method):
    strategy, benchmark = make(method), stream(200)
    process, seconds = psutil.Process(), []
    for number, experience in enumerate(benchmark.train_stream):
        start = time.process_time()  # of this process: others may keep the cores busy
        strategy.train(experience)
        seconds.append(time.process_time() - start)
        if number % 20 == 19:
            strategy.eval(benchmark.test_stream)
        if number == 19:
            gc.collect()
            resident, files = process.memory_info().rss, process.num_fds()
    gc.collect()
    assert process.memory_info().rss < 1.1 * resident
    assert process.num_fds() == files
    assert statistics.median(seconds[180:]) < 1.3 * statistics.median(seconds[20:40])
