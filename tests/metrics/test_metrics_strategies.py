"""All metrics together: beside strategies of Avalanche's and ours, with its loggers, and in its life cycle."""

import io
import math
import os
import types

import dill
import pytest
import torch
from avalanche.benchmarks import class_incremental_benchmark
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.logging import CSVLogger, InteractiveLogger, TensorboardLogger, TextLogger
from avalanche.models import NCMClassifier, SCRModel, TrainEvalModel
from avalanche.training.losses import SCRLoss
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.supervised import SCR, Cumulative, ICaRL, LwF, Naive, Replay
from helpers.streams import ORDER, Images, digits, make_benchmark, make_encoder
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from avalanche_contrastive import CSD, SSIL, BatchAugmentation, Co2L, ContrastiveModel
from avalanche_contrastive.metrics import (
    BiasMetric,
    DriftMetric,
    MatrixValue,
    ReadOutMetric,
    RetrievalMetric,
    bias_metrics,
    compatibility_metrics,
    drift_metrics,
    fit_readout,
    map_at_r,
    readout_metrics,
    recall_at_k,
    retrieval_forgetting_metrics,
    retrieval_metrics,
)


def all_metrics(**options):
    return [
        *retrieval_metrics(ks=(1, 3), map_at_r=True, seen=True, **options),
        *retrieval_forgetting_metrics(**options),
        *readout_metrics(seen=True, **options),
        *bias_metrics(),
        *drift_metrics(experience=True, **options),
    ]


def classifier():
    return nn.Sequential(make_encoder(), nn.Linear(16, 10))


def make_icarl(**common):
    model = TrainEvalModel(make_encoder(), nn.Linear(16, 10), NCMClassifier(normalize=True))
    options = {"feature_extractor": model.feature_extractor, "classifier": model.train_classifier, "memory_size": 40,
               "buffer_transform": None, "fixed_memory": True}  # fmt: skip
    strategy = ICaRL(optimizer=torch.optim.SGD(model.parameters(), lr=0.05), **options, **common)
    return strategy, strategy.model.feature_extractor


def make_scr(**common):
    encoder = make_encoder()
    projection = nn.Sequential(nn.Linear(16, 8))
    model = SCRModel(feature_extractor=encoder, projection=projection)
    strategy = SCR(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.05),
        augmentations=BatchAugmentation(flip=0.0),
        mem_size=40,
        batch_size_mem=16,
        criterion=SCRLoss(),
        **common,
    )
    return strategy, encoder


def make_plain(kind, **options):
    def make(**common):
        model = classifier()
        strategy = kind(
            model=model,
            optimizer=torch.optim.SGD(model.parameters(), lr=0.05),
            criterion=nn.CrossEntropyLoss(),
            **options,
            **common,
        )
        return strategy, model[0]

    return make


def make_co2l(**common):
    model = ContrastiveModel(make_encoder(), 16, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    strategy = Co2L(model=model, optimizer=optimizer, mem_size=40, augmentation=BatchAugmentation(flip=0.0), **common)
    return strategy, model.encoder


STRATEGIES = {
    "Naive": make_plain(Naive),
    "Replay": make_plain(Replay, mem_size=40),
    "Cumulative": make_plain(Cumulative),
    "LwF": make_plain(LwF, alpha=1.0, temperature=2.0),
    "ICaRL": make_icarl,
    "SCR": make_scr,
    "SSIL": make_plain(SSIL, mem_size=40),
    "CSD": make_plain(CSD),
    "Co2L": make_co2l,
}


def make(name, metrics, loggers=(), **options):
    evaluator = EvaluationPlugin(*metrics, loggers=list(loggers))
    return STRATEGIES[name](train_mb_size=16, train_epochs=1, eval_mb_size=32, evaluator=evaluator, **options)


def features_of(encoder, stream):
    rows = [e.dataset.eval()[i][:2] for e in stream for i in range(len(e.dataset))]
    with torch.no_grad():
        return encoder.eval()(torch.stack([row[0] for row in rows])), torch.tensor([row[1] for row in rows])


@pytest.mark.parametrize("name", STRATEGIES)
def test_any_strategy(name):
    """Features are the encoder's, so that every number is that of the pure function on them."""
    benchmark = make_benchmark("C", per_class=8)
    layer = "feature_extractor" if name == "SCR" else None  # its classifier is given unit features
    strategy, encoder = make(name, all_metrics(layer=layer))
    for experience in benchmark.train_stream[:2]:
        strategy.train(experience, eval_streams=[])
    results = strategy.eval(benchmark.test_stream)
    features, y = features_of(encoder, benchmark.test_stream)
    assert results["Recall@3_Stream/eval_phase/test_stream"] == pytest.approx(recall_at_k(features, y, 3))
    seen = torch.isin(y, torch.tensor(ORDER[:4]))
    assert results["Recall@1_Seen/eval_phase/test_stream"] == pytest.approx(recall_at_k(features[seen], y[seen]))
    assert results["MAP@R_Seen/eval_phase/test_stream"] == pytest.approx(map_at_r(features[seen], y[seen]))
    first = features_of(encoder, benchmark.test_stream[:1])
    assert results["MAP@R_Exp/eval_phase/test_stream/Exp000"] == pytest.approx(map_at_r(*first))
    fitted = fit_readout(*features_of(encoder, benchmark.train_stream[:2]), "knn")
    expected = (fitted(features[seen]) == y[seen]).double().mean().item()
    assert results["5NN_on_seen_Acc_Seen/eval_phase/test_stream"] == pytest.approx(expected)
    assert 0 <= results["LinearCKA_Old/eval_phase/test_stream"] <= 1
    assert results["TaskConfusion_Seen/eval_phase/test_stream"].matrix.sum() == seen.sum()


class OfPackages(Naive):
    """Samples and outputs of its own, handled as Avalanche allows."""

    def _unpack_minibatch(self):
        x, y, *rest = self.mbatch
        self.mbatch = [{name: part.to(self.device) for name, part in x.items()}, y.to(self.device), *rest]

    def forward(self):
        return self.model(self.mb_x)[self.wanted]


class Packaged(nn.Module):
    """Gives the logits of a main head and, last, those of an auxiliary one."""

    def __init__(self, pack):
        super().__init__()
        self.encoder, self.head, self.aux, self.pack = make_encoder(), nn.Linear(16, 10), nn.Linear(8, 10), pack

    def forward(self, x):
        features = self.encoder(x["image"] * x["scale"].view(-1, 1, 1, 1))
        return self.pack(self.head(features), self.aux(features[:, :8]))


PACKS = {
    "dictionary": (lambda main, aux: {"aux": aux, "logits": main}, "logits"),
    "tuple": (lambda main, aux: (main, aux), 0),
    "list": (lambda main, aux: [aux, main], 1),
}


def packaged(x):
    return {"image": x, "scale": torch.tensor(1.5)}


@pytest.mark.parametrize(("pack", "wanted"), PACKS.values(), ids=PACKS.keys())
def test_samples_and_outputs_of_several_parts(pack, wanted):
    data = {name: Images(*part, packaged) for name, part in zip(("train", "test"), digits(8), strict=True)}
    benchmark = class_incremental_benchmark(data, num_experiences=5, class_order=ORDER)
    model = Packaged(pack)
    strategy = OfPackages(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.05),
        train_mb_size=16,
        eval_mb_size=32,
        evaluator=EvaluationPlugin(*all_metrics(), *compatibility_metrics(query=benchmark.test_stream), loggers=[]),
    )
    strategy.wanted = wanted
    for experience in benchmark.train_stream[:2]:
        strategy.train(experience, eval_streams=[])
    results = strategy.eval(benchmark.test_stream)

    def features_of(stream):
        rows = [e.dataset.eval()[i][:2] for e in stream for i in range(len(e.dataset))]
        with torch.no_grad():
            x = torch.stack([row[0]["image"] for row in rows])
            return model.encoder.eval()(1.5 * x), torch.tensor([row[1] for row in rows])

    features, y = features_of(benchmark.test_stream)
    assert results["Recall@3_Stream/eval_phase/test_stream"] == pytest.approx(recall_at_k(features, y, 3))
    found = (fit_readout(*features_of(benchmark.train_stream[:2]), "knn")(features) == y).double().mean().item()
    assert results["5NN_on_seen_Acc_Stream/eval_phase/test_stream"] == pytest.approx(found)
    assert results["SelfTest_recall@1_in_test_exp0-4/train_phase/train_stream"] == recall_at_k(features, y)
    assert "LinearCKA_Old/eval_phase/test_stream" in results
    assert "LogitGap_Seen/eval_phase/test_stream" in results


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_labels_of_any_integer_type(dtype):
    """Small data sets come with labels of a byte (MedMNIST)."""

    class Narrow(OfPackages):
        def _unpack_minibatch(self):
            super()._unpack_minibatch()
            self.mbatch[1] = self.mbatch[1].to(dtype)

        def criterion(self):
            return self._criterion(self.mb_output, self.mb_y.long())

    values = []
    for kind in (OfPackages, Narrow):
        torch.manual_seed(0)
        data = {name: Images(*part, packaged) for name, part in zip(("train", "test"), digits(8), strict=True)}
        benchmark, model = (
            class_incremental_benchmark(data, num_experiences=5, class_order=ORDER),
            Packaged(PACKS["tuple"][0]),
        )
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        strategy = kind(model=model, optimizer=optimizer, train_mb_size=16, eval_mb_size=32,
                        evaluator=EvaluationPlugin(*all_metrics(), loggers=[]))  # fmt: skip
        strategy.wanted = 0
        for experience in benchmark.train_stream[:2]:
            strategy.train(experience, eval_streams=[])
        values.append(strategy.eval(benchmark.test_stream))
    for name, value in values[0].items():
        if isinstance(value, MatrixValue):
            assert torch.equal(value.matrix, values[1][name].matrix)
        else:
            assert values[1][name] == pytest.approx(value, nan_ok=True), name


@pytest.mark.parametrize("eval_every", [-1, 0, 1])
@pytest.mark.parametrize("name", ["Replay", "Co2L"])
def test_periodic_evaluation(name, eval_every):
    benchmark = make_benchmark("A", per_class=8)
    strategy, encoder = make(name, all_metrics(), eval_every=eval_every)
    for experience in benchmark.train_stream[:2]:
        strategy.train(experience, eval_streams=[benchmark.test_stream])
    values = strategy.evaluator.get_all_metrics()
    if eval_every == -1:
        assert not values
        return
    features, y = features_of(encoder, benchmark.test_stream)
    last = strategy.evaluator.get_last_metrics()
    assert last["Recall@1_Stream/eval_phase/test_stream"] == pytest.approx(recall_at_k(features, y))
    # Before and after each of two experiences; what needs trained classes, from the first training on.
    assert len(values["Recall@1_Stream/eval_phase/test_stream"][1]) == 4
    assert len(values["Recall@1_Seen/eval_phase/test_stream"][1]) == 3
    assert len(values["5NN_on_seen_Acc_Stream/eval_phase/test_stream"][1]) == 3
    assert len(values["LinearCKA_Old/eval_phase/test_stream"][1]) == 1


def test_seen_classes_grow():
    benchmark = make_benchmark("A", per_class=8)
    strategy, encoder = make("Naive", retrieval_metrics(experience=False, stream=False, seen=True))
    assert strategy.eval(benchmark.test_stream) == {}
    for t, experience in enumerate(benchmark.train_stream, start=1):
        strategy.train(experience, eval_streams=[])
        features, y = features_of(encoder, benchmark.test_stream[:t])
        assert strategy.eval(benchmark.test_stream) == {
            "Recall@1_Seen/eval_phase/test_stream": pytest.approx(recall_at_k(features, y))
        }


def test_a_gallery_of_training_images():
    benchmark = make_benchmark("A", per_class=8)
    metrics = [*retrieval_metrics(), *retrieval_metrics(map_at_r=True, distance="euclidean", gallery="seen")]
    strategy, encoder = make("Replay", metrics)
    for experience in benchmark.train_stream[:2]:
        strategy.train(experience, eval_streams=[])
    results = strategy.eval(benchmark.test_stream[:3])
    gallery, gallery_y = features_of(encoder, benchmark.train_stream[:2])
    kw = {"gallery": gallery, "gallery_y": gallery_y, "distance": "euclidean"}
    for i in (0, 1):
        features, y = features_of(encoder, benchmark.test_stream[i : i + 1])
        place = f"/eval_phase/test_stream/Exp{i:03d}"
        assert results["Recall@1_in_seen_Exp" + place] == pytest.approx(recall_at_k(features, y, **kw))
        assert results["MAP@R_in_seen_Exp" + place] == pytest.approx(map_at_r(features, y, **kw))
        assert results["Recall@1_Exp" + place] == pytest.approx(recall_at_k(features, y))
    # The third's classes are not in the gallery: there is nothing to find.
    assert math.isnan(results["Recall@1_in_seen_Exp/eval_phase/test_stream/Exp002"])
    assert metrics[2].source is metrics[3].source  # which is embedded once, and let go
    assert metrics[2].source._embedded == {}
    assert str(retrieval_metrics(gallery="seen")[0]) == "Recall@1_in_seen_Exp"


# --- loggers ---


def train_and_evaluate(loggers, experiences=3):
    benchmark = make_benchmark("A", per_class=8)
    metrics = [*all_metrics(), *accuracy_metrics(epoch=True, experience=True, stream=True)]
    strategy, _ = make("Replay", metrics, loggers, eval_every=0)
    for experience in benchmark.train_stream[:experiences]:
        strategy.train(experience, eval_streams=[benchmark.test_stream])
    return strategy.eval(benchmark.test_stream)


def test_text_loggers(capsys):
    file = io.StringIO()
    results = train_and_evaluate([TextLogger(file), InteractiveLogger()])
    for text in (file.getvalue(), capsys.readouterr().out):
        for key, value in results.items():
            if isinstance(value, MatrixValue):
                assert f"{key} = \n{value.matrix}" in text
            elif "eval_phase" in key:
                assert f"{key} = {value:.4f}" in text
        assert "object at" not in text


def test_csv_logger_keeps_its_columns(tmp_path):
    logger = CSVLogger(str(tmp_path))
    results = train_and_evaluate([logger])
    logger.close()
    rows = [line.split(",") for line in (tmp_path / "eval_results.csv").read_text().splitlines()]
    assert rows[0] == ["eval_exp", "training_exp", "eval_accuracy", "eval_loss", "forgetting"]
    for i, row in enumerate(rows[-5:]):
        accuracy = results[f"Top1_Acc_Exp/eval_phase/test_stream/Exp{i:03d}"]
        # No forgetting and no accuracy of ours in the columns of Avalanche's own.
        assert row == [str(i), "2", f"{accuracy:.4f}", "0", "0"]


def test_tensorboard(tmp_path):
    logger = TensorboardLogger(tmp_path)
    results = train_and_evaluate([logger])
    logger.writer.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    tags = events.Tags()
    assert set(tags["images"]) == {key for key, value in results.items() if isinstance(value, MatrixValue)}
    for key, value in results.items():
        if not isinstance(value, MatrixValue):
            last = events.Scalars(key)[-1].value
            assert last == pytest.approx(value, rel=1e-5, nan_ok=True)


@pytest.mark.slow
def test_weights_and_biases_offline(tmp_path, monkeypatch):
    """Avalanche 0.6 calls two names that wandb has dropped; with these given back its logger takes all our values."""
    wandb = pytest.importorskip("wandb")
    from avalanche.logging import WandBLogger
    from wandb.plot import CustomChart

    monkeypatch.setitem(os.environ, "WANDB_MODE", "offline")
    monkeypatch.setitem(os.environ, "WANDB_SILENT", "true")
    monkeypatch.setattr(wandb.util, "generate_id", lambda: "metrics", raising=False)
    monkeypatch.setattr(wandb, "viz", types.SimpleNamespace(CustomChart=CustomChart), raising=False)
    results = train_and_evaluate([WandBLogger(project_name="metrics", run_name="test", dir=str(tmp_path))])
    try:
        wandb.log({"end": 1}, step=10**6)  # a later step commits the last one
        summary = dict(wandb.run.summary)
        for key, value in results.items():
            if isinstance(value, MatrixValue):
                assert summary[key]["_type"] == "image-file"
            elif value == value:
                assert summary[key] == pytest.approx(value)
    finally:
        wandb.finish()


# --- life cycle ---


def test_metrics_do_not_change_training():
    weights = []
    for metrics in ([], all_metrics()):
        torch.manual_seed(0)
        benchmark = make_benchmark("A", per_class=8)
        strategy, _ = make("Replay", metrics, eval_every=1)
        for experience in benchmark.train_stream[:3]:
            strategy.train(experience, eval_streams=[benchmark.test_stream])
        weights.append([*strategy.model.state_dict().values(), torch.rand(4)])
    for plain, measured in zip(*weights, strict=True):
        assert torch.equal(plain, measured)


@pytest.mark.parametrize("kind", [RetrievalMetric, ReadOutMetric, BiasMetric, DriftMetric])
def test_nothing_but_classes_is_held_after_evaluation(kind):
    benchmark = make_benchmark("A", per_class=8)
    metrics = all_metrics()
    strategy, _ = make("Naive", metrics)
    for experience in benchmark.train_stream[:2]:
        strategy.train(experience, eval_streams=[])
    strategy.eval(benchmark.test_stream)
    chosen = [metric for metric in metrics if isinstance(metric, kind)]
    assert chosen
    for metric in chosen:
        held = [value for value in vars(metric).values() if isinstance(value, torch.Tensor) or value == []]
        assert not [value for value in held if isinstance(value, torch.Tensor)]
        assert metric._rows == []
        assert metric.ledger.groups == [sorted(ORDER[:2]), sorted(ORDER[2:4])]


class Failing(nn.Module):
    """Fails at the n-th batch from now, once."""

    def __init__(self):
        super().__init__()
        self.encoder, self.head, self.left = make_encoder(), nn.Linear(16, 10), 10**6

    def forward(self, x):
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt
        return self.head(self.encoder(x))


@pytest.mark.parametrize("batch", [1, 3, 4, 5])
def test_an_interrupted_evaluation_leaves_nothing_behind(batch):
    benchmark = make_benchmark("A", per_class=8)
    model = Failing()
    strategy = Naive(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.05),
        train_mb_size=16,
        eval_mb_size=32,
        evaluator=EvaluationPlugin(*all_metrics(), loggers=[]),
    )
    for experience in benchmark.train_stream[:2]:
        strategy.train(experience, eval_streams=[])
    expected = strategy.eval(benchmark.test_stream)
    model.left = batch
    with pytest.raises(KeyboardInterrupt):
        strategy.eval(benchmark.test_stream)
    results = strategy.eval(benchmark.test_stream)
    for key, value in expected.items():
        same = results[key].matrix.equal(value.matrix) if isinstance(value, MatrixValue) else results[key] == value
        assert same, key
    assert not [h for m in model.modules() for h in (*m._forward_hooks, *m._forward_pre_hooks)]


def test_metrics_survive_being_saved():
    benchmark = make_benchmark("A", per_class=8)
    strategy, _ = make("Naive", all_metrics())
    for experience in benchmark.train_stream[:2]:
        strategy.train(experience, eval_streams=[])
        strategy.eval(benchmark.test_stream)
    strategy.evaluator.metrics = dill.loads(dill.dumps(strategy.evaluator.metrics))
    before = strategy.evaluator.get_last_metrics()
    after = strategy.eval(benchmark.test_stream)
    for key, value in before.items():
        same = after[key].matrix.equal(value.matrix) if isinstance(value, MatrixValue) else after[key] == value
        assert same, key


def test_domains_have_no_newest_classes():
    """The same classes in every experience: retrieval and read-out go on, score bias and old classes do not exist."""
    benchmark = make_benchmark("A", per_class=8)
    strategy, _ = make("Naive", all_metrics())
    experience = benchmark.train_stream[0]
    for _ in range(2):
        strategy.train(experience, eval_streams=[])
    results = strategy.eval(benchmark.test_stream[:1])
    names = {key.split("/")[0] for key in results}
    assert "Recall@1_Seen" in names
    assert "LinearProbe_on_seen_Acc_Exp" in names
    assert not [name for name in names if "Newest" in name or name.endswith("_Old")]
