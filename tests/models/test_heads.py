"""Models with a head per task, and online streams: what the matrix of streams does not look at."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from avalanche.benchmarks import CLScenario, EagerCLStream, split_online_stream, with_task_labels
from avalanche.models import MTSimpleMLP, MultiHeadClassifier, MultiTaskModule, SimpleMLP, as_multitask
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin, ReplayPlugin, SupervisedPlugin
from avalanche.training.storage_policy import ExperienceBalancedBuffer, ParametricBuffer, ReservoirSamplingBuffer
from helpers.streams import ORDER, head_benchmark, make_benchmark, make_encoder, noise
from torch import nn

from avalanche_contrastive import (
    Co2LPlugin,
    ContrastiveModel,
    CSDPlugin,
    MTContrastiveModel,
    SSILPlugin,
)
from avalanche_contrastive._torch import still_statistics
from avalanche_contrastive.features import FeatureCapture
from avalanche_contrastive.metrics import retrieval_metrics
from avalanche_contrastive.plugins.multihead import PastHeads
from avalanche_contrastive.tasks import by_head


def split_model():
    """Avalanche's way of giving any model heads: it runs the rows of each task in turn."""
    return as_multitask(SimpleMLP(input_size=64, hidden_size=8, drop_rate=0.0), "classifier")


def make_strategy(model, plugins, **options):
    return Naive(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9),
        criterion=nn.CrossEntropyLoss(),
        plugins=plugins,
        **{"train_mb_size": 10, "train_epochs": 1, "eval_mb_size": 50, "evaluator": None, **options},
    )


def trained(model, plugins, count=3, **options):
    strategy = make_strategy(model, plugins, **options)
    for experience in head_benchmark(ids_from_zero=True).train_stream[:count]:
        strategy.train(experience)
    return strategy


# ---- what the heads are made of


def test_pairs_by_head():
    assert by_head([(1, 4), (0, 2), (1, 0)]) == [(0, [2]), (1, [0, 4])]
    assert by_head([]) == []


def head_logits(model, x, heads):
    return PastHeads(heads, x.device).logits(model, x)


@pytest.mark.parametrize("make", [lambda: MTSimpleMLP(input_size=64, hidden_size=8), split_model])
def test_head_logits_are_those_of_the_named_heads_for_all_rows(make):
    model = trained(make(), []).model.eval()
    x = torch.rand(5, 1, 8, 8)
    expected = torch.cat([model(x, 2)[:, [1]], model(x, 0)[:, [0, 1]]], dim=1)
    assert torch.equal(head_logits(model, x, [(2, [1]), (0, [0, 1])]), expected)


def test_heads_that_a_state_dict_brought_are_used():
    """Avalanche keeps the set of known tasks beside the weights, where no state dict finds it."""
    model = trained(MTSimpleMLP(input_size=64, hidden_size=8), []).model.eval()
    x = torch.rand(5, 1, 8, 8)
    wanted = head_logits(model, x, [(1, [0, 1])])
    model.classifier.known_train_tasks_labels = set()
    assert torch.equal(head_logits(model, x, [(1, [0, 1])]), wanted)


def test_a_model_that_cannot_run_all_heads_is_refused():
    class OneByOne(MTSimpleMLP):
        def forward(self, x, task_labels):
            return super().forward(x, torch.zeros(len(x), dtype=torch.long) if task_labels is None else task_labels)

    with pytest.raises(ValueError, match=r"\{task label: logits\} for task_labels=None, got Tensor.*as_multitask"):
        trained(OneByOne(input_size=64, hidden_size=8), [SSILPlugin(mem_size=10)])


def test_the_second_pass_leaves_batch_statistics_alone_and_normalises_by_the_batch():
    norm, x = nn.BatchNorm1d(3), torch.rand(6, 3)
    wanted, state = norm(x), copy.deepcopy(norm.state_dict())
    with still_statistics(norm):
        assert torch.equal(norm(x), wanted)
    assert all(torch.equal(state[key], value) for key, value in norm.state_dict().items())
    norm(x)
    assert norm.num_batches_tracked == 2


# ---- SS-IL and CSD


def test_global_distillation_over_heads_is_refused():
    with pytest.raises(ValueError, match=r"one softmax over all old classes.*head per task \(MTSimpleMLP\).*'task'"):
        trained(MTSimpleMLP(input_size=64), [SSILPlugin(mem_size=10, distillation="global")])


@pytest.mark.parametrize("separated", [True, False])
def test_a_task_that_comes_back_with_new_classes_in_its_head(separated):
    """In one head, old and new classes are separated as in class-incremental learning; other heads stay apart."""
    plugin = SSILPlugin(mem_size=10, separated=separated, distillation="none")
    plugin.multi_head, plugin.ledger, plugin._current = True, [[(0, 0), (0, 1)], [(1, 0)]], [(0, 2), (0, 3)]
    logits, y = torch.randn(4, 5), torch.tensor([2, 1, 0, 3])
    strategy = type("S", (), {"mb_y": y, "mb_task_id": torch.tensor([0, 0, 1, 0])})
    own = [[2, 3], [0, 1], [0], [2, 3]] if separated else [[0, 1, 2, 3], [0, 1, 2, 3], [0], [0, 1, 2, 3]]
    expected = [-logits[i, c].log_softmax(0)[c.index(int(y[i]))] for i, c in enumerate(own)]
    loss = plugin._cross_entropy(strategy, logits)
    assert loss.item() == pytest.approx(torch.stack(expected).mean().item(), rel=1e-5)


@pytest.mark.parametrize("ce", ["weighted", "masked", "all"])
def test_csd_counts_the_rows_of_its_form_over_their_own_heads(ce):
    plugin = CSDPlugin(ce=ce)
    plugin.multi_head, plugin.ledger, plugin._current = True, [[(0, 0), (0, 1)], [(1, 0)]], [(1, 2), (1, 3)]
    logits, y, tasks = torch.randn(4, 5), torch.tensor([2, 1, 0, 3]), torch.tensor([1, 0, 1, 1])
    strategy = type("S", (), {"mb_y": y, "mb_task_id": tasks, "mbatch": [logits, y, tasks]})
    plugin.guards.begin(nn.Identity(), "cpu", plugin._current, plugin.seen_classes)
    plugin.labels = plugin.guards.labels(strategy, multi_head=True)
    assert plugin.guards.is_current().tolist() == [True, False, False, True]
    own = {"weighted": {0: [0, 2, 3], 3: [0, 2, 3]}, "masked": {0: [2, 3], 3: [2, 3]}}
    own["all"] = {0: [0, 2, 3], 1: [0, 1], 2: [0, 2, 3], 3: [0, 2, 3]}
    expected = [-logits[i, c].log_softmax(0)[c.index(int(y[i]))] for i, c in own[ce].items()]
    loss = plugin._cross_entropy(strategy, logits)
    assert loss.item() == pytest.approx(torch.stack(expected).mean().item(), rel=1e-5)


def test_csd_without_the_distillation_of_logits():
    plugin = CSDPlugin(kd_weight=0.0)
    trained(MTSimpleMLP(input_size=64, hidden_size=8), [plugin])
    assert set(plugin.terms) == {"cross_entropy", "triplet", "contrast"}


# ---- features of a batch that is split between heads


def test_features_of_a_split_batch_are_in_the_batchs_order():
    model = trained(split_model(), []).model.eval()
    capture, x, tasks = FeatureCapture(), torch.rand(7, 1, 8, 8), torch.tensor([2, 0, 1, 0, 2, 2, 1])
    with capture.listening(model):
        logits = model(x, tasks)
    features = capture.take(logits)
    assert torch.allclose(features, model.model.features(x.flatten(1)), atol=1e-6)
    named = FeatureCapture("model.features")
    with named.listening(model):
        logits = model(x, tasks)
    assert torch.equal(named.take(logits), features)
    with capture.listening(model):
        outputs = model(x, None)
    assert torch.allclose(capture.take(outputs), features, atol=1e-6)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_csd_beside_replay_on_a_model_that_splits_its_batch():
    """The contrast compares each row's own features, although the model ran them task by task."""
    seen = []

    class Look(SupervisedPlugin):
        def after_forward(self, strategy, **kwargs):
            seen.append(
                (strategy.plugins[0].of_batch["features"], strategy.model.model.features(strategy.mb_x.flatten(1)))
            )

    strategy = trained(split_model(), [CSDPlugin(), ReplayPlugin(mem_size=12), Look()])
    assert strategy.clock.train_exp_counter == 3
    assert all(torch.allclose(kept, own) for kept, own in seen)
    assert max(len(kept) for kept, _ in seen) > 10


def test_retrieval_on_a_model_that_splits_its_batch():
    evaluator = EvaluationPlugin(retrieval_metrics(ks=(1,)), loggers=[])
    strategy = trained(split_model(), [CSDPlugin()], evaluator=evaluator)
    figures = strategy.eval(head_benchmark(ids_from_zero=True).test_stream[:3])
    assert 0 < figures["Recall@1_Stream/eval_phase/test_stream"] <= 1


class Columns(MultiTaskModule):
    """A network for each task."""

    def __init__(self):
        super().__init__()
        self.encoders = nn.ModuleDict({str(task): make_encoder() for task in range(5)})
        self.head = MultiHeadClassifier(16, 2)

    def forward_single_task(self, x, task_label):
        return self.head(self.encoders[str(task_label)](x), task_label)


def test_a_model_with_features_for_each_task_is_refused_by_csd():
    with pytest.raises(ValueError, match=r"differ from head to head.*shares its features"):
        trained(Columns(), [CSDPlugin()], count=2)


def test_ssil_distils_each_head_behind_its_own_network():
    plugin, losses = SSILPlugin(mem_size=10, batch_size_mem=5), []

    class Look(SupervisedPlugin):
        def after_backward(self, strategy, **kwargs):
            losses.append((strategy.mb_x, plugin.terms["distillation"].item(), copy.deepcopy(strategy.model)))

    strategy = trained(Columns(), [plugin], count=2)
    teacher = plugin.teacher
    strategy.plugins.append(Look())
    strategy.train(head_benchmark(ids_from_zero=True).train_stream[2])
    for x, loss, model in losses:
        expected = 0.0
        for task in range(2):
            p = (teacher(x, task) / 2).softmax(dim=1)
            q = (model(x, task) / 2).softmax(dim=1)
            expected += 4 * (p * (p / q).log()).sum(dim=1).mean().item()
        assert loss == pytest.approx(expected, rel=1e-3, abs=1e-6)
    assert losses[-1][1] > 0


# ---- Co2L with a read-out per task


def test_each_task_is_read_out_over_its_own_classes():
    plugin = Co2LPlugin(mem_size=12, augmentation=noise, readout_lr=0.1)
    model = MTContrastiveModel(make_encoder(), 16, 8)
    strategy = make_strategy(model, [plugin])
    benchmark = head_benchmark()
    for experience in benchmark.train_stream[:2]:
        strategy.train(experience)
    strategy.eval(benchmark.test_stream)
    x = torch.rand(40, 1, 8, 8)
    model.eval()
    for task in range(2):
        logits = model(x, torch.full((40,), task))
        assert logits.shape == (40, 10)
        assert set(logits.argmax(dim=1).tolist()) <= set(ORDER[2 * task : 2 * task + 2])
        assert torch.equal(logits[:, :10], model(x, None)[task])
    mixed = torch.tensor([1, 0] * 20)
    both = torch.where(mixed[:, None] == 1, model(x, 1), model(x, 0))
    assert torch.equal(model(x, mixed), both)
    assert (model(x, 4) == -1000).all()  # evaluated, but never trained
    capture = FeatureCapture()
    with capture.listening(model):
        model(x, mixed)
    assert torch.allclose(capture.take(None), model.embed(x), atol=1e-6)
    with pytest.raises(ValueError, match=r"no read-out for task label 7, only for \[0, 1, 2, 3, 4\]"):
        model(x, 7)


def test_read_outs_of_tasks_without_an_image_left_are_unfitted():
    plugin = Co2LPlugin(mem_size=0, augmentation=noise, readout_lr=0.1)
    model = MTContrastiveModel(make_encoder(), 16, 8)
    trained(model, [plugin], count=2)
    assert not model.readout.heads["0"].fitted.any()
    assert model.readout.heads["1"].fitted.all()


@pytest.mark.parametrize("readout", ["linear", "ncm"])
def test_the_state_dict_of_a_multi_task_model_loads_into_a_fresh_one(readout):
    plugin = Co2LPlugin(mem_size=12, augmentation=noise, readout=readout, readout_lr=0.1)
    model = trained(MTContrastiveModel(make_encoder(), 16, 8), [plugin]).model.eval()
    fresh = MTContrastiveModel(make_encoder(), 16, 8).eval()
    fresh.load_state_dict(model.state_dict())
    x, tasks = torch.rand(6, 1, 8, 8), torch.tensor([0, 1, 2, 2, 1, 0])
    assert torch.equal(fresh(x, tasks), model(x, tasks))
    assert model(x[:, None].expand(-1, 2, -1, -1, -1), tasks).shape == (6, 2)


def test_training_scores_are_of_the_same_head():
    """Equal class ids of two tasks: the neighbour of another task does not count."""
    from avalanche_contrastive.plugins.co2l import _neighbour_scores

    z = F.normalize(torch.tensor([[1.0, 0.0], [0.99, 0.1], [0.0, 1.0], [0.6, 0.8]]), dim=1)
    views, y = torch.stack([z, z], dim=1), torch.tensor([0, 1, 0, 1])
    one = _neighbour_scores(views, y, 2, torch.zeros(4))
    longer = views * torch.tensor([0.1, 5.0, 20.0, 300.0])[:, None, None]  # as a model without normalize leaves them
    assert torch.allclose(_neighbour_scores(longer, y, 2, torch.zeros(4)), one)
    two = _neighbour_scores(views, y, 2, torch.tensor([0, 1, 1, 0]))
    assert one[0].tolist() == pytest.approx([0.0, 0.99494], abs=1e-3)
    assert two[0].tolist() == pytest.approx([1.0, 0.6])


# ---- online streams


def pieces_of(benchmark, size=4, count=3):
    return list(split_online_stream(benchmark.train_stream[:count], size, access_task_boundaries=True, seed=0))


@pytest.mark.parametrize("method", [Co2LPlugin, SSILPlugin, CSDPlugin])
def test_the_teacher_is_taken_where_a_task_begins_and_nowhere_else(method):
    co2l = method is Co2LPlugin
    plugin = method(mem_size=12, augmentation=noise, readout_epochs=5) if co2l else method()
    model = ContrastiveModel(make_encoder(), 16, 8) if co2l else nn.Sequential(make_encoder(), nn.Linear(16, 10))
    strategy, teachers, states = make_strategy(model, [plugin]), [], []
    for piece in pieces_of(make_benchmark(per_class=6)):
        strategy.train(piece)
        teachers.append(plugin.teacher)
        states.append(copy.deepcopy(model.state_dict()))
    assert teachers[:3] == [None] * 3
    assert teachers[3] is teachers[4] is teachers[5] is not teachers[6]
    for key, value in teachers[3].state_dict().items():
        assert torch.equal(value, states[2][key])
    assert plugin.ledger == [sorted(ORDER[:2]), [], [], sorted(ORDER[2:4]), [], [], sorted(ORDER[4:6]), [], []]
    assert plugin.past == [sorted(ORDER[:2]), sorted(ORDER[2:4])]
    assert pickle.loads(pickle.dumps(plugin)).past == plugin.past


def test_replayed_rows_differ_from_piece_to_piece_and_come_from_all_of_them():
    rows, plugin = [], SSILPlugin(mem_size=30, batch_size_mem=5)

    class Look(SupervisedPlugin):
        def before_forward(self, strategy, **kwargs):
            rows.append([image.numpy().tobytes() for image in strategy.mb_x])

    strategy = make_strategy(nn.Sequential(make_encoder(), nn.Linear(16, 10)), [plugin, Look()])
    pieces = pieces_of(make_benchmark(per_class=6))
    for piece in pieces:
        strategy.train(piece)
    assert [len(batch) for batch in rows] == [4] + [9] * 8
    assert len({tuple(batch[4:]) for batch in rows[1:]}) == 8
    assert set(rows[2][4:]) <= {image for batch in rows[:2] for image in batch[:4]}
    assert len(plugin.storage_policy.buffer) == 30


@pytest.mark.parametrize("policy", [ExperienceBalancedBuffer, lambda size: ParametricBuffer(size, "experience")])
def test_a_buffer_with_a_slot_per_piece_is_refused_when_it_would_starve(policy):
    plugin = SSILPlugin(mem_size=4, batch_size_mem=2, storage_policy=policy(4))
    strategy = make_strategy(nn.Sequential(make_encoder(), nn.Linear(16, 10)), [plugin])
    pieces = pieces_of(make_benchmark(per_class=6))
    for piece in pieces[:4]:
        strategy.train(piece)
    with pytest.raises(ValueError, match=r"shares its 4 slots.*piece 5 and all after it.*ReservoirSamplingBuffer"):
        strategy.train(pieces[4])


def test_a_reservoir_keeps_all_tasks_of_an_online_stream():
    plugin = SSILPlugin(mem_size=12, batch_size_mem=2, storage_policy=ReservoirSamplingBuffer(12))
    strategy = make_strategy(nn.Sequential(make_encoder(), nn.Linear(16, 10)), [plugin])
    for piece in pieces_of(make_benchmark(per_class=6), count=5):
        strategy.train(piece)
    assert len({int(y) for y in plugin.storage_policy.buffer.targets}) >= 5


def test_online_pieces_need_their_task_labels_back_for_heads():
    strategy = make_strategy(MTSimpleMLP(input_size=64), [SSILPlugin(mem_size=5)])
    pieces = pieces_of(head_benchmark())
    with pytest.raises(ValueError, match=r"have no task_labels.*after any split_online_stream"):
        strategy.train(pieces[0])
    pieces = list(with_task_labels(CLScenario([EagerCLStream("train", pieces)])).train_stream)
    for piece in pieces:
        strategy.train(piece)
    assert [len(entry) for entry in strategy.plugins[0].ledger] == [2, 0, 0] * 3


def test_read_outs_of_a_state_dict_are_made_where_the_model_is():
    saved = MTContrastiveModel(make_encoder(8), 8, 8)
    saved.readout.fit(3, torch.arange(2), torch.ones(2, 8), torch.zeros(2), unit=False)
    model = MTContrastiveModel(make_encoder(8), 8, 8).to("meta")
    with pytest.warns(UserWarning, match="no-op"):  # nothing can be copied to this device
        model.load_state_dict(saved.state_dict())
    assert model.readout.tasks == [3]
    assert {buffer.device.type for buffer in model.buffers()} == {"meta"}
