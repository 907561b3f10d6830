"""ContrastiveModel, frozen copies, random states of one's own."""

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from avalanche.benchmarks import nc_benchmark
from avalanche.evaluation.metrics import loss_metrics, topk_acc_metrics
from avalanche.models import (
    FeatureExtractorBackbone,
    NCMClassifier,
    TrainEvalModel,
)
from avalanche.models.utils import FeatureExtractorModel, avalanche_model_adaptation
from avalanche.training.plugins import EvaluationPlugin
from helpers.streams import ORDER, Images, digits, make_benchmark, make_encoder
from torch import nn
from torch.optim.swa_utils import AveragedModel

from avalanche_contrastive import BatchAugmentation, Co2L, ContrastiveModel, MTContrastiveModel
from avalanche_contrastive._torch import own_random_state, unwrapped
from avalanche_contrastive.metrics import drift_metrics, readout_metrics
from avalanche_contrastive.teacher import frozen_copy


def model(width=16, **options):
    return ContrastiveModel(make_encoder(width), width, 8, **options)


# ---- ContrastiveModel


def test_projections_in_training_and_logits_in_evaluation():
    m, x = model(), torch.rand(5, 1, 8, 8)
    z = m.train()(x)
    assert z.shape == (5, 8)
    torch.testing.assert_close(z.norm(dim=1), torch.ones(5))
    m.readout.widen(4)
    assert m.eval()(x).shape == (5, 4)


@pytest.mark.parametrize("mode", [True, False])
def test_views_are_folded_and_unfolded_in_order(mode):
    m, x = model().train(mode), torch.rand(4, 3, 1, 8, 8)
    if mode:
        z = m(x)
        assert z.shape == (4, 3, 8)
        return
    torch.testing.assert_close(m.project(x)[2, 1], m.project(x[2, 1][None])[0])
    torch.testing.assert_close(m.embed(x)[3, 0], m.encoder(x[3, 0][None])[0])
    m.readout.fit(torch.arange(3), torch.randn(3, 16), torch.randn(3), unit=False)
    torch.testing.assert_close(m(x), torch.stack([m(x[:, v]) for v in range(3)]).mean(dim=0))


def test_project_and_embed_do_not_depend_on_the_mode_but_for_batch_norm():
    m = ContrastiveModel(nn.Sequential(nn.Flatten(), nn.Linear(64, 16)), 16, 8)
    x = torch.rand(5, 1, 8, 8)
    assert torch.equal(m.train().project(x), m.eval().project(x))
    assert torch.equal(m.train().embed(x), m.eval().embed(x))


@pytest.mark.parametrize(
    ("shape", "views"), [((4, 9), False), ((4, 2, 9), True), ((4, 1, 8, 8), False), ((4, 2, 1, 8, 8), True)]
)
def test_views_are_read_off_the_batch(shape, views):
    assert model().has_views(torch.zeros(shape)) is views


def test_sequences_need_the_rank_of_a_sample():
    m = model(sample_ndim=2)
    assert not m.has_views(torch.zeros(4, 7, 9))
    assert m.has_views(torch.zeros(4, 2, 7, 9))


# ---- width of the logits, types, inputs of several tensors


def co2l(m, metrics=(), **options):
    return Co2L(
        model=m,
        optimizer=torch.optim.SGD(m.parameters(), lr=0.05),
        mem_size=20,
        augmentation=BatchAugmentation(flip=0.0),
        readout_epochs=5,
        train_mb_size=12,
        eval_mb_size=30,
        evaluator=EvaluationPlugin(*metrics, loggers=[]),
        **options,
    )


CRITERIA = {
    "class weights": nn.CrossEntropyLoss(weight=torch.arange(1.0, 11.0)),
    "one-hot": lambda logits, y: F.binary_cross_entropy_with_logits(logits, F.one_hot(y, 10).float()),
    "an average per class": lambda logits, y: F.nll_loss(logits.log_softmax(1), y, weight=torch.ones(10)),
}


@pytest.mark.parametrize("num_classes", [None, 10])
@pytest.mark.parametrize("criterion", CRITERIA)
def test_logits_are_as_wide_as_a_classifiers(criterion, num_classes):
    """With num_classes, or as the stream names its classes: from the first evaluation on, before any training."""
    m = model(num_classes=num_classes)
    metrics = [*topk_acc_metrics(top_k=3, experience=True, stream=True), *loss_metrics(experience=True)]
    strategy, benchmark = co2l(m, metrics, criterion=CRITERIA[criterion]), make_benchmark("C")
    strategy.eval(benchmark.test_stream)
    strategy.train(benchmark.train_stream[0])
    strategy.evaluator.reset_last_metrics()
    values = {name.split("/")[0]: value for name, value in strategy.eval(benchmark.test_stream[:1]).items()}
    assert m.eval()(torch.rand(2, 1, 8, 8)).shape == (2, 10)
    x, y = images_of(benchmark.test_stream[0])
    scores = m(x)
    expected = (scores.topk(3, dim=1).indices == y[:, None]).any(dim=1).float().mean().item()
    assert values["Topk_3_Acc_Exp"] == pytest.approx(expected)
    assert values["Loss_Exp"] == pytest.approx(CRITERIA[criterion](scores, y).item(), rel=1e-4)


def images_of(experience):
    rows = [experience.dataset.eval()[i][:2] for i in range(len(experience.dataset))]
    return torch.stack([row[0] for row in rows]), torch.tensor([row[1] for row in rows])


@pytest.mark.parametrize("use_buffers", [True, False])
def test_an_averaged_copy_of_the_model_is_as_wide(use_buffers):
    m = model(num_classes=10)
    averaged, benchmark = AveragedModel(m, use_buffers=use_buffers), make_benchmark()
    strategy = co2l(m)
    for experience in benchmark.train_stream[:2]:
        strategy.train(experience)
        averaged.update_parameters(m)
    assert averaged.eval()(torch.rand(3, 1, 8, 8)).shape == (3, 10)
    assert torch.equal(averaged.module.readout.fitted > 0, m.readout.fitted > 0)


@pytest.mark.parametrize("num_classes", [None, 10])
def test_logits_of_a_head_per_task_are_as_wide(num_classes):
    m = MTContrastiveModel(make_encoder(), 16, 8, num_classes=num_classes)
    benchmark = make_benchmark("C")
    avalanche_model_adaptation(m, benchmark.train_stream[0])
    assert m.eval()(torch.rand(4, 1, 8, 8), torch.zeros(4, dtype=torch.long)).shape == (4, 10)


def test_projections_keep_their_length_on_demand():
    m = model(normalize=False)
    x = torch.rand(5, 2, 1, 8, 8)
    assert torch.equal(m(x), m.projector(m.embed(x)))
    assert not torch.allclose(m(x).norm(dim=2), torch.ones(5, 2))
    other = MTContrastiveModel(make_encoder(), 16, 8, normalize=False)
    assert torch.equal(other(x, None), other.projector(other.embed(x)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("when", ["before any head", "after the first head"])
def test_heads_follow_the_models_type_also_those_made_later(dtype, when):
    m, stream = MTContrastiveModel(nn.Sequential(nn.Flatten(), nn.Linear(64, 16)), 16, 8), task_benchmark().train_stream
    if when == "after the first head":
        avalanche_model_adaptation(m, stream[0])
    m.to(dtype)
    for experience in stream[:3]:
        avalanche_model_adaptation(m, experience)
    assert {head.weight.dtype for head in m.readout.heads.values()} == {dtype}
    assert m.eval()(torch.rand(4, 1, 8, 8, dtype=dtype), torch.tensor([0, 1, 2, 2])).dtype == dtype
    meta = MTContrastiveModel(nn.Linear(8, 16), 16, 8).to("meta")
    avalanche_model_adaptation(meta, stream[0])
    assert meta.readout.heads["0"].weight.device.type == "meta"


def task_benchmark():
    train, test = (Images(*part) for part in digits(8))
    return nc_benchmark(train, test, 5, task_labels=True, fixed_class_order=ORDER)


def test_a_double_model_of_a_head_per_task_trains():
    train, test = (Images(x.double(), y) for x, y in digits(8))
    benchmark = nc_benchmark(train, test, 5, task_labels=True, fixed_class_order=ORDER)
    m = MTContrastiveModel(make_encoder(), 16, 8).double()
    strategy = co2l(m)
    for experience in benchmark.train_stream[:2]:
        strategy.train(experience)
    strategy.eval(benchmark.test_stream)
    assert {b.dtype for b in m.readout.buffers() if b.is_floating_point()} == {torch.float64}


@pytest.mark.parametrize("make", [model, lambda: MTContrastiveModel(make_encoder(), 16, 8)], ids=["one", "per task"])
@pytest.mark.parametrize("eval_every", [-1, 1])
def test_evaluation_in_inference_mode_does_not_break_training(make, eval_every):
    m, benchmark = make(), task_benchmark()
    strategy = co2l(m, readout_metrics(kinds=("linear",)) + drift_metrics(), eval_every=eval_every)
    with torch.inference_mode():
        strategy.eval(benchmark.test_stream[:2])
    for experience in benchmark.train_stream[:3]:
        strategy.train(experience)
        with torch.inference_mode():
            strategy.eval(benchmark.test_stream)
    assert strategy.eval(benchmark.test_stream)
    assert not any(tensor.is_inference() for tensor in m.state_dict().values())


class TwoInputs(nn.Module):
    """An image and a vector that goes with it."""

    def __init__(self, take):
        super().__init__()
        self.image, self.vector, self.take = make_encoder(12), nn.Linear(3, 4), take

    def forward(self, x):
        image, vector = self.take(x)
        return torch.cat([self.image(image), self.vector(vector)], dim=1)


INPUTS = {
    "dictionary": (lambda i, v: {"image": i, "vector": v}, lambda x: (x["image"], x["vector"])),
    "tuple": (lambda i, v: (i, v), lambda x: x),
    "list in a dictionary": (lambda i, v: {"both": [i, v]}, lambda x: x["both"]),
}


@pytest.mark.parametrize(("pack", "take"), INPUTS.values(), ids=INPUTS.keys())
def test_batches_of_several_tensors(pack, take):
    m = ContrastiveModel(TwoInputs(take), 16, 8, num_classes=4).eval()
    image, vector = torch.rand(5, 2, 1, 8, 8), torch.rand(5, 2, 3)
    assert m.has_views(pack(image, vector))
    assert not m.has_views(pack(image[:, 0], vector[:, 0]))
    both, one = m.embed(pack(image, vector)), m.embed(pack(image[:, 1], vector[:, 1]))
    assert both.shape == (5, 2, 16)
    torch.testing.assert_close(both[:, 1], one)
    assert m.project(pack(image, vector)).shape == (5, 2, 8)
    assert m(pack(image, vector)).shape == m(pack(image[:, 0], vector[:, 0])).shape == (5, 4)


BAD = {
    "no tensor": (lambda: model().embed({"name": ["a", "b"]}), r"must be a tensor, or a dictionary.*got dict without"),
    "an encoder of dictionaries": (
        lambda: ContrastiveModel(Packed(), 16, 8).embed(torch.rand(2, 16)),
        r"must map 2 inputs to \(2, 16\), got dict",
    ),
    "no class": (lambda: model(num_classes=0), r"ContrastiveModel: num_classes must be a whole number >= 1, got 0"),
    "a flag": (lambda: model(normalize="l2"), r"normalize must be True or False, got 'l2'"),
    "axes": (lambda: model(sample_ndim=0.5), r"sample_ndim must be a whole number >= 1"),
}


class Packed(nn.Module):
    def forward(self, x):
        return {"features": x}


@pytest.mark.parametrize(("call", "message"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_class_beyond_num_classes_is_named():
    with pytest.raises(ValueError, match=r"no column for class 9, since num_classes is 4"):
        co2l(model(num_classes=4)).train(make_benchmark().train_stream[0])


# ---- frozen copies and random states


def test_a_copied_feature_extractor_listens_to_itself():
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 16))
    backbone = FeatureExtractorBackbone(net, "1")
    student = ContrastiveModel(backbone, 16, 8)
    first, second = torch.rand(3, 1, 8, 8), torch.rand(3, 1, 8, 8)
    student.project(first)
    before = backbone.output
    teacher = frozen_copy(student)
    torch.testing.assert_close(teacher.project(second), student.project(second))
    student.project(first)
    assert not torch.equal(teacher.project(second), teacher.project(first))
    assert torch.equal(backbone.output, before)


@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel])
def test_wrapped_models_are_unwrapped(wrap):
    m = model()
    assert unwrapped(wrap(m)) is m


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_state_dict_takes_the_models_precision(dtype):
    trained, other = model(), model().to(dtype)
    trained.readout.fit(torch.arange(3), torch.randn(3, 16), torch.randn(3), unit=False)
    other.load_state_dict(trained.state_dict())
    assert other.eval()(torch.rand(2, 1, 8, 8, dtype=dtype)).dtype == dtype


def test_a_frozen_copy_shares_nothing():
    m = model()
    m.train()(torch.rand(4, 1, 8, 8)).sum().backward()
    teacher = frozen_copy(m)
    assert not teacher.training
    assert all(not p.requires_grad and p.grad is None for p in teacher.parameters())
    assert not {p.data_ptr() for p in m.parameters()} & {p.data_ptr() for p in teacher.parameters()}
    assert m.training
    assert all(p.requires_grad for p in m.parameters())


def test_a_random_state_of_ones_own():
    def draws():
        return torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()

    torch.manual_seed(7)
    before = (torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist())
    with own_random_state(1):
        first = draws()
    assert before == (torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist())
    draws()  # whatever others draw in between
    with own_random_state(1):
        assert draws() == first
    with own_random_state(2):
        assert draws() != first
    torch.manual_seed(8)
    with own_random_state(1):
        assert draws() != first


def test_a_teacher_gives_what_the_student_gives_in_training_where_a_model_has_two_classifiers():
    m = TrainEvalModel(make_encoder(), nn.Linear(16, 10), NCMClassifier())
    teacher, x = frozen_copy(m), torch.rand(4, 1, 8, 8)
    features = m.eval().feature_extractor(x)  # batch statistics stay
    assert torch.equal(teacher(x), m.train_classifier(features))
    assert not any(module.training for name, module in teacher.named_modules() if name)


def test_a_model_that_keeps_its_last_features_can_be_a_teacher():
    m = FeatureExtractorModel(make_encoder(), nn.Linear(16, 10))
    m(torch.rand(4, 1, 8, 8))
    teacher = frozen_copy(m)
    assert m.features.requires_grad
    assert not teacher.features.requires_grad
    assert all(torch.equal(a, b) for a, b in zip(teacher.parameters(), m.parameters(), strict=True))
