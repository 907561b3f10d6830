"""ContrastiveModel, its read-out, the capture of features, frozen copies, random states of one's own."""

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from avalanche.models import (
    FeatureExtractorBackbone,
    IncrementalClassifier,
    MTSimpleMLP,
    NCMClassifier,
    SimpleMLP,
    TrainEvalModel,
)
from avalanche.models.cosine_layer import CosineIncrementalClassifier
from avalanche.models.utils import FeatureExtractorModel
from helpers.streams import make_benchmark, make_encoder
from torch import nn

from avalanche_contrastive import ContrastiveModel
from avalanche_contrastive._torch import own_random_state, unwrapped
from avalanche_contrastive.features import FeatureCapture
from avalanche_contrastive.readout import ReadOut, embed_dataset, fit_linear, fit_nearest_mean
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


# ---- read-out


def test_unfitted_classes_never_win():
    readout = ReadOut(4)
    readout.widen(6)
    readout.fit(torch.tensor([1, 4]), torch.randn(2, 4), torch.tensor([-50.0, -60.0]), unit=False)
    logits = readout(torch.randn(20, 4))
    assert set(logits.argmax(dim=1).tolist()) <= {1, 4}
    assert (logits[:, [0, 2, 3, 5]] == -1000).all()
    readout.fit(torch.tensor([2]), torch.randn(1, 4), torch.zeros(1), unit=False)
    assert readout.fitted.nonzero()[:, 0].tolist() == [2]
    assert (readout.weight[[1, 4]] == 0).all()


def test_the_read_out_widens_to_the_stream_and_keeps_its_values():
    readout = ReadOut(4)
    readout.fit(torch.tensor([0, 1]), torch.randn(2, 4), torch.randn(2), unit=False)
    weight = readout.weight.clone()
    for experience in make_benchmark().test_stream:
        readout.adaptation(experience)
    assert readout.weight.shape == (10, 4)
    assert torch.equal(readout.weight[:2], weight)


def test_the_state_dict_of_a_trained_model_loads_into_a_fresh_one():
    trained, fresh, x = model(), model(), torch.rand(3, 1, 8, 8)
    trained.readout.fit(torch.arange(7), torch.randn(7, 16), torch.randn(7), unit=True)
    fresh.load_state_dict(trained.state_dict())
    assert torch.equal(fresh.eval()(x), trained.eval()(x))


def test_no_optimiser_sees_the_read_out():
    m = model()
    m.readout.widen(5)
    assert not [name for name, _ in m.named_parameters() if name.startswith("readout")]


def test_linear_read_out_separates_what_is_separable_and_balances_classes():
    torch.manual_seed(0)
    centre = torch.tensor([[4.0, 0.0], [-4.0, 0.0], [0.0, 4.0]])
    y = torch.tensor([5] * 300 + [2] * 300 + [9] * 6)
    features = centre[torch.tensor([0] * 300 + [1] * 300 + [2] * 6)] + 0.3 * torch.randn(606, 2)
    classes, weight, bias = fit_linear(features, y, lr=0.3, epochs=20)
    assert classes.tolist() == [2, 5, 9]
    predicted = classes[F.linear(features, weight, bias).argmax(dim=1)]
    assert (predicted == y).all()
    # Two overlapping classes of 20 to 1: without balance, all would go to the large one.
    y = torch.tensor([0] * 400 + [1] * 20)
    features = torch.randn(420, 2) + torch.where(y == 0, 0.5, -0.5)[:, None]
    _, weight, bias = fit_linear(features, y, lr=0.1, epochs=20)
    right = F.linear(features, weight, bias).argmax(dim=1) == y
    assert right[y == 1].float().mean() > 0.6
    assert right[y == 0].float().mean() > 0.6


def test_linear_read_out_is_repeatable_and_of_finite_precision():
    features, y = torch.randn(50, 6, dtype=torch.float64), torch.randint(0, 3, (50,))
    first, second = (fit_linear(features, y, epochs=3) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[1], fit_linear(features, y, epochs=3, seed=1)[1])


def test_nearest_mean_is_the_nearest_mean():
    torch.manual_seed(1)
    features, y = torch.randn(40, 5), torch.randint(0, 4, (40,)) * 2
    classes, weight, bias = fit_nearest_mean(features, y)
    unit = F.normalize(features, dim=1)
    means = torch.stack([F.normalize(unit[y == c].mean(dim=0), dim=0) for c in classes])
    distances = torch.cdist(unit, means) ** 2
    torch.testing.assert_close(F.linear(unit, weight, bias), -distances, atol=1e-5, rtol=1e-5)


def test_embedding_a_dataset_restores_every_mode():
    m = model().train()
    m.encoder[1].eval()
    features, y = embed_dataset(m, make_benchmark().train_stream[0].dataset, batch_size=7, device=torch.device("cpu"))
    assert features.shape == (24, 16)
    assert y.shape == (24,)
    assert m.training
    assert m.encoder[0].training
    assert not m.encoder[1].training
    assert not features.requires_grad


# ---- features of any model


class HeadFirst(nn.Module):
    """Registers its head before its body: only running tells which layer is last."""

    def __init__(self):
        super().__init__()
        self.head, self.body = nn.Linear(6, 3), nn.Linear(4, 6)

    def forward(self, x):
        return self.head(self.body(x).relu())


@pytest.mark.parametrize(
    ("net", "expected"),
    [
        (HeadFirst(), lambda m, x: m.body(x).relu()),
        (nn.Sequential(nn.Linear(4, 6), IncrementalClassifier(6)), lambda m, x: m[0](x)),
        (nn.Linear(4, 3), lambda m, x: x),
    ],
    ids=["head first", "growing head", "linear"],
)
def test_features_are_what_enters_the_last_classifier_layer(net, expected):
    capture, x = FeatureCapture(), torch.randn(5, 4)
    capture.attach(net)
    net(x)
    assert torch.equal(capture.take(None), expected(net, x))
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in net.modules())


def test_features_of_avalanches_models():
    x, capture = torch.rand(4, 1, 28, 28), FeatureCapture()
    mlp = SimpleMLP(num_classes=10).eval()
    with capture.listening(mlp):
        mlp(x)
    assert torch.equal(capture.take(None), mlp.features(x.flatten(1)))
    heads = MTSimpleMLP().eval()
    for experience in make_benchmark("C").train_stream[:1]:
        heads.classifier.train().adaptation(experience)
    with capture.listening(heads):
        heads(x, torch.zeros(4, dtype=torch.long))
    assert capture.take(None).shape == (4, 512)
    ncm = NCMClassifier()
    ncm.update_class_means_dict({0: torch.randn(6)})
    net = nn.Sequential(nn.Linear(4, 6), ncm)
    with capture.listening(net):
        net(torch.randn(3, 4))
    assert capture.take(None).shape == (3, 6)


def test_features_keep_their_gradient():
    net, capture = HeadFirst(), FeatureCapture()
    capture.attach(net)
    net(torch.randn(2, 4))
    capture.take(None).sum().backward()
    assert net.body.weight.grad is not None


def test_hooks_are_gone_after_a_failed_pass():
    net, capture = HeadFirst(), FeatureCapture()
    with pytest.raises(RuntimeError), capture.listening(net):
        net(torch.randn(2, 9))
    assert not any(m._forward_pre_hooks for m in net.modules())


def test_a_layer_that_does_not_run_is_an_error():
    net, capture = nn.Sequential(nn.Identity()), FeatureCapture("unused")
    net.unused = nn.Linear(1, 1)
    net.forward = lambda x: x
    capture.attach(net)
    net(torch.zeros(1))
    with pytest.raises(ValueError, match=r"layer 'unused' must be a tensor, got nothing.*skip"):
        capture.take(None)


def test_a_layer_that_is_not_the_models_last_is_refused():
    net = nn.Sequential(nn.Linear(4, 6), nn.Unflatten(1, (6, 1)), nn.Conv1d(6, 3, 1), nn.Flatten())
    capture = FeatureCapture()
    capture.attach(net)
    logits = net(torch.randn(2, 4))
    with pytest.raises(ValueError, match="gives 6 outputs, but the model gives 3"):
        capture.take(logits)


def test_features_of_avalanches_cosine_head():
    class Cosine(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 6)), CosineIncrementalClassifier(6, 3)

        def forward(self, x):
            return self.head(self.body(x))

    net, x, capture = Cosine(), torch.randn(5, 4), FeatureCapture()
    capture.attach(net)
    logits = net(x)
    assert torch.equal(capture.take(logits), net.body(x))


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
