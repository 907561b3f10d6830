"""Co2L on streams with several task labels: domains as classes of their own, and a union that is mixed uniformly."""

import pickle
from collections import Counter

import pytest
import torch
from avalanche.benchmarks import (
    CLScenario,
    EagerCLStream,
    benchmark_from_datasets,
    nc_benchmark,
    split_online_stream,
    with_classes_timeline,
    with_task_labels,
)
from avalanche.benchmarks.utils import _make_taskaware_classification_dataset
from avalanche.benchmarks.utils.data_loader import ReplayDataLoader, SingleDatasetDataLoader, TaskBalancedDataLoader
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin, ReplayPlugin, SupervisedPlugin
from avalanche.training.storage_policy import ClassBalancedBuffer, ReservoirSamplingBuffer
from helpers.streams import Images, digits, make_benchmark, make_encoder
from torch import nn
from torch.utils.data import DataLoader

from avalanche_contrastive import BatchAugmentation, Co2L, Co2LPlugin, ContrastiveModel
from avalanche_contrastive.losses import asymmetric_supcon

AUGMENT = BatchAugmentation(scale=(0.6, 1.0), flip=0.0)
MEMORY = 20


def rotated_digits(domains=3, *, task_labels=True, per_class=4):
    """All ten digits in every experience, each experience turned by another quarter: RotatedMNIST in small."""
    train, test = digits(per_class)
    turned = [[Images(x.rot90(k, (2, 3)), y) for k in range(domains)] for x, y in (train, test)]
    return nc_benchmark(
        *turned,
        n_experiences=domains,
        task_labels=task_labels,
        shuffle=False,
        class_ids_from_zero_in_each_exp=True,
        one_dataset_per_exp=True,
    )


def co2l(**options):
    return Co2LPlugin(**{"mem_size": MEMORY, "augmentation": AUGMENT, "readout_lr": 0.1, **options})


def naive(plugins, loop=Naive, **options):
    model = ContrastiveModel(make_encoder(), 16, 8)
    return loop(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9),
        plugins=plugins,
        **{"train_mb_size": 16, "train_epochs": 1, "eval_mb_size": 50, "evaluator": None, **options},
    )


class Rows(SupervisedPlugin):
    """The images of every batch, as bytes that tell them apart, by epoch; the loader's type."""

    def __init__(self):
        super().__init__()
        self.epochs, self.tasks, self.losses, self.loaders = [], [], [], []

    def before_training_epoch(self, strategy, **kwargs):
        self.epochs.append([])
        self.tasks.append([])
        self.loaders.append(type(strategy.dataloader))

    def before_forward(self, strategy, **kwargs):
        self.epochs[-1].append([image.numpy().tobytes() for image in strategy.mb_x])
        self.tasks[-1].append(strategy.mb_task_id.clone())

    def after_backward(self, strategy, **kwargs):
        self.losses.append(strategy.loss.item())


class Steps(SupervisedPlugin):
    """What entered the loss and what came out, step by step."""

    def __init__(self):
        super().__init__()
        self.steps = []

    def after_forward(self, strategy, **kwargs):
        self.steps.append([strategy.mb_output.detach().clone(), strategy.mb_y.clone(), strategy.mb_task_id.clone()])

    def after_backward(self, strategy, **kwargs):
        self.steps[-1].append(strategy.loss.item())


def images_of(dataset):
    return [dataset[i][0].numpy().tobytes() for i in range(len(dataset))]


# ---- the contrast


@pytest.mark.parametrize("batch_size_mem", [None, 6])
@pytest.mark.parametrize(
    "options", [{}, {"asymmetric": False}, {"reduction": "sum", "base_temperature": None}], ids=str
)
def test_the_contrast_is_the_pure_function_of_digit_plus_ten_times_domain(options, batch_size_mem):
    steps = Steps()
    strategy = naive([co2l(domains=True, weight=0.0, batch_size_mem=batch_size_mem, **options), steps])
    for domain, experience in enumerate(rotated_digits().train_stream):
        strategy.train(experience)
        for z, y, task, loss in steps.steps:
            anchors = task == domain if options.get("asymmetric", True) else None
            rest = {"base_temperature": 0.07, "reduction": "all", **options}
            rest.pop("asymmetric", None)
            expected = asymmetric_supcon(z, y + 10 * task, anchors, temperature=0.5, **rest)
            assert loss == pytest.approx(expected.item(), rel=1e-5)
        assert any((task < domain).any() for _, _, task, _ in steps.steps) == (domain > 0)
        steps.steps.clear()


def test_without_the_option_the_same_digit_is_the_same_class_and_every_row_an_anchor():
    steps = Steps()
    strategy = naive([co2l(weight=0.0), steps])
    for experience in rotated_digits().train_stream:
        strategy.train(experience)
    for z, y, _, loss in steps.steps:
        expected = asymmetric_supcon(z, y, None, temperature=0.5, base_temperature=0.07, reduction="all")
        assert loss == pytest.approx(expected.item(), rel=1e-5)


def two_domains_in_one_experience():
    """Digits 0 to 4 under task label 0, digits 5 to 9 under task label 1."""
    x, y = digits(4)[0]
    labelled = _make_taskaware_classification_dataset(Images(x, y), task_labels=(y > 4).long().tolist())
    return with_classes_timeline(with_task_labels(benchmark_from_datasets(train=[labelled]))).train_stream[0]


def test_anchors_are_the_pairs_of_the_experience_not_all_pairings_of_its_labels():
    steps = Steps()
    strategy = naive([co2l(domains=True, weight=0.0, storage_policy=ReservoirSamplingBuffer(MEMORY)), steps])
    x, y = digits(4)[0]
    first = _make_taskaware_classification_dataset(Images(x, y), task_labels=[1] * len(y))
    strategy.train(with_classes_timeline(with_task_labels(benchmark_from_datasets(train=[first]))).train_stream[0])
    steps.steps.clear()
    strategy.train(two_domains_in_one_experience())  # half of the digits under the label that they had before
    for z, y, task, loss in steps.steps:
        current = (task == 0) & (y < 5) | (task == 1) & (y > 4)
        expected = asymmetric_supcon(z, y + 10 * task, current, base_temperature=0.07, reduction="all")
        assert loss == pytest.approx(expected.item(), rel=1e-5)
    assert any(((task == 1) & (y < 5)).any() for _, y, task, _ in steps.steps)


@pytest.mark.parametrize("policy", [ClassBalancedBuffer, ReservoirSamplingBuffer])
def test_read_out_memory_and_evaluation_keep_the_classes(policy):
    benchmark, plugin = rotated_digits(), co2l(domains=True, storage_policy=policy(MEMORY))
    evaluator = EvaluationPlugin(accuracy_metrics(experience=True, stream=True), loggers=[])
    strategy = naive([plugin], train_epochs=4, evaluator=evaluator)
    for experience in benchmark.train_stream:
        strategy.train(experience)
    assert set(plugin.storage_policy.buffer.targets) <= set(range(10))
    assert len(set(plugin.storage_policy.buffer.targets_task_labels)) > 1
    assert strategy.model.readout.fitted.tolist() == [True] * 10
    figures = strategy.eval(benchmark.test_stream)
    assert strategy.model.eval()(torch.rand(2, 1, 8, 8)).shape == (2, 10)
    assert figures["Top1_Acc_Stream/eval_phase/test_stream/Task002"] > 0.1
    assert plugin.ledger == [list(range(10)), [], []]


def test_the_strategy_has_the_option_and_learns_every_domain():
    benchmark = rotated_digits(2, per_class=30)
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU())
    model = ContrastiveModel(encoder, 64, 32)
    strategy = Co2L(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9),
        train_mb_size=64,
        train_epochs=10,
        eval_mb_size=100,
        evaluator=EvaluationPlugin(accuracy_metrics(experience=True), loggers=[]),
        mem_size=100,
        augmentation=AUGMENT,
        domains=True,
    )
    for experience in benchmark.train_stream:
        strategy.train(experience)
    figures = strategy.eval(benchmark.test_stream)
    accuracy = [value for name, value in figures.items() if name.startswith("Top1_Acc_Exp")]
    assert len(accuracy) == 2
    assert min(accuracy) > 0.5


def test_the_plugin_can_be_pickled_between_domains():
    plugin, stream = co2l(domains=True), rotated_digits().train_stream
    strategy = naive([plugin])
    strategy.train(stream[0])
    copied = pickle.loads(pickle.dumps(plugin))
    assert copied._seen_labels == plugin._seen_labels
    assert len(copied._seen_labels) == 10


# ---- the union


@pytest.mark.parametrize("policy", [ClassBalancedBuffer, ReservoirSamplingBuffer])
def test_every_row_of_the_union_once_per_epoch_in_mixed_batches_of_the_full_size(policy):
    rows, plugin = Rows(), co2l(storage_policy=policy(MEMORY))
    strategy = naive([plugin, rows], train_epochs=8)
    for domain, experience in enumerate(rotated_digits().train_stream):
        stored = images_of(plugin.storage_policy.buffer)
        assert len(stored) == (MEMORY if domain else 0)
        strategy.train(experience)
        wanted = Counter(images_of(experience.dataset) + stored)
        assert max(wanted.values()) == 1
        for batches in rows.epochs:
            assert Counter(image for batch in batches for image in batch) == wanted
            sizes = [len(batch) for batch in batches]
            assert set(sizes[:-1]) == {16}
            assert sizes[-1] == sum(wanted.values()) % 16 or 16
        assert len({tuple(batch) for epoch in rows.epochs for batch in epoch}) == sum(map(len, rows.epochs))
        if domain:
            first = torch.tensor([(batches[0] < domain).sum().item() for batches in rows.tasks])
            # Hypergeometric, 16 of 60 with 20 stored: 5.3 +- 1.6 a batch, against 8 (10.7) in a balanced one.
            assert 3.5 < first.double().mean() < 7
            assert len(first.unique()) > 1
        rows.epochs.clear()
        rows.tasks.clear()


def test_several_labels_in_one_experience_are_mixed_too():
    rows, experience = Rows(), two_domains_in_one_experience()
    naive([co2l(), rows]).train(experience)
    assert [len(batch) for batch in rows.epochs[0]] == [16, 16, 8]
    assert Counter(i for batch in rows.epochs[0] for i in batch) == Counter(images_of(experience.dataset))


@pytest.mark.parametrize(
    ("keywords", "sizes"),
    [
        ({"drop_last": True}, [16, 16, 16]),
        ({"num_workers": 1}, [16, 16, 16, 12]),
        ({"num_workers": 1, "persistent_workers": True, "pin_memory": False}, [16, 16, 16, 12]),
    ],
    ids=str,
)
def test_the_keywords_of_train_reach_the_loader(keywords, sizes):
    rows, stream = Rows(), rotated_digits().train_stream
    strategy = naive([co2l(), rows])
    strategy.train(stream[0])
    strategy.train(stream[1], **keywords)
    assert [len(batch) for batch in rows.epochs[1]] == sizes


def test_unshuffled_it_is_the_union_in_order():
    rows, plugin, stream = Rows(), co2l(), rotated_digits().train_stream
    strategy = naive([plugin, rows])
    strategy.train(stream[0])
    stored = images_of(plugin.storage_policy.buffer)
    strategy.train(stream[1], shuffle=False)
    assert [i for batch in rows.epochs[1] for i in batch] == images_of(stream[1].dataset) + stored


def test_either_order_beside_a_plugin_that_brings_its_own_loader():
    runs = []
    for flip in (False, True):
        torch.manual_seed(0)
        rows, pair = Rows(), [co2l(domains=True), ReplayPlugin(mem_size=12, batch_size_mem=4)]
        strategy = naive([*(pair[::-1] if flip else pair), rows])
        for experience in rotated_digits().train_stream:
            strategy.train(experience)
        runs.append(rows)
    assert runs[0].losses == runs[1].losses
    assert runs[0].loaders[1:] == runs[1].loaders[1:] == [ReplayDataLoader] * 2


@pytest.mark.parametrize("flavour", ["A", "B", "C"])
def test_a_stream_with_one_label_keeps_avalanches_loader(flavour):
    kinds = []

    class Kinds(SupervisedPlugin):
        def before_training_epoch(self, strategy, **kwargs):
            kinds.append(type(strategy.dataloader))

    strategy = naive([co2l(), Kinds()])
    for experience in make_benchmark(flavour).train_stream[:2]:
        strategy.train(experience)
    expected = DataLoader if flavour in "AB" else TaskBalancedDataLoader
    assert kinds == [expected] * 2


def test_rows_per_step_leave_the_loader_alone():
    rows = Rows()
    strategy = naive([co2l(domains=True, batch_size_mem=5), rows])
    for experience in rotated_digits().train_stream[:2]:
        strategy.train(experience)
    assert [len(batch) for batch in rows.epochs[1]] == [21, 21, 13]
    assert [(task == 0).sum().item() for task in rows.tasks[1]] == [5, 5, 5]


# ---- bad input


def test_a_stream_without_task_labels_is_refused():
    with pytest.raises(ValueError, match=r"domains=True needs a stream with task labels.*return_task_id=True"):
        naive([co2l(domains=True)]).train(make_benchmark("A").train_stream[0])


def test_one_label_for_all_domains_is_refused():
    stream = rotated_digits(task_labels=False).train_stream
    strategy = naive([co2l(domains=True)])
    strategy.train(stream[0])
    with pytest.raises(ValueError, match=r"come before under the same label, 0.*return_task_id=True"):
        strategy.train(stream[1])


def test_a_domain_that_comes_back_is_current_again():
    stream, steps = rotated_digits().train_stream, Steps()
    strategy = naive([co2l(domains=True, weight=0.0), steps])
    for number in (0, 1, 0):
        steps.steps.clear()
        strategy.train(stream[number])
    assert strategy.plugins[0].ledger == [list(range(10)), [], []]
    for z, y, task, loss in steps.steps:
        expected = asymmetric_supcon(z, y + 10 * task, task == 0, base_temperature=0.07, reduction="all")
        assert loss == pytest.approx(expected.item(), rel=1e-5)


def test_the_parts_of_an_online_domain_are_no_repetition():
    parts = split_online_stream(rotated_digits().train_stream[:1], experience_size=20, access_task_boundaries=True)
    online = with_task_labels(with_classes_timeline(CLScenario([EagerCLStream("train", list(parts))])))
    strategy = naive([co2l(domains=True)])
    for experience in online.train_stream:
        strategy.train(experience)
    assert len(strategy.plugins[0].ledger) == 2


class OwnLoader(Naive):
    """Changes an argument of the loader, as Avalanche's documentation has it."""

    def make_train_dataloader(self, **kwargs):
        super().make_train_dataloader(**{**kwargs, "drop_last": True})


def test_a_loader_that_the_user_has_put_on_the_object_is_used_in_every_experience():
    strategy, made = naive([co2l()], train_mb_size=2), []

    def make_train_dataloader(**kwargs):
        Naive.make_train_dataloader(strategy, **kwargs)
        made.append(type(strategy.dataloader))

    strategy.make_train_dataloader = make_train_dataloader
    for experience in rotated_digits(4).train_stream:
        strategy.train(experience)
    assert made == [TaskBalancedDataLoader, *[SingleDatasetDataLoader] * 3]
    assert strategy.make_train_dataloader is make_train_dataloader


@pytest.mark.parametrize("loop", [Naive, OwnLoader])
@pytest.mark.parametrize("domains", [False, True])
def test_batches_may_be_smaller_than_the_number_of_domains(domains, loop):
    """Avalanche's loader for a stream with task labels takes none that are; ours mixes the union as ever."""
    rows, stream = Rows(), rotated_digits(4).train_stream
    strategy = naive([co2l(domains=domains), rows], loop, train_mb_size=2)
    for number, experience in enumerate(stream):
        rows.epochs.clear()
        strategy.train(experience)
        (batches,) = rows.epochs
        assert {len(batch) for batch in batches} == {2}
        assert len({image for batch in batches for image in batch}) == 40 + (MEMORY if number else 0)


@pytest.mark.parametrize("value", [1, "yes", None])
def test_the_option_is_a_flag(value):
    with pytest.raises(ValueError, match="domains must be True or False"):
        co2l(domains=value)
