"""Read-outs: their layers, the fits of their weights, and the loop that embeds a data set."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from avalanche.benchmarks import split_online_stream
from avalanche.benchmarks.utils import make_avalanche_dataset
from avalanche.models.utils import avalanche_model_adaptation
from avalanche.training.supervised import Naive
from helpers.streams import make_benchmark, make_encoder

from avalanche_contrastive import ContrastiveModel
from avalanche_contrastive.features import strategy_features
from avalanche_contrastive.readout import (
    ReadOut,
    TaskReadOuts,
    embed_dataset,
    fit_linear,
    fit_nearest_mean,
    fit_standardized,
)


def model(width=16, **options):
    return ContrastiveModel(make_encoder(width), width, 8, **options)


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


# ---- the fit


def slow_fit(features, y, *, lr=1.0, epochs=100, batch_size=256, seed=0):
    """The same by autograd, torch's optimiser and torch's schedule."""
    classes, target, counts = torch.unique(y, return_inverse=True, return_counts=True)
    draws, chances = torch.Generator().manual_seed(seed), (1.0 / counts.float())[target]
    layer = torch.nn.Linear(features.shape[1], len(classes)).to(features.dtype)
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    optimizer = torch.optim.SGD(layer.parameters(), lr=lr, momentum=0.9)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [int(s * epochs) for s in (0.6, 0.75, 0.9)], gamma=0.2)
    for _ in range(epochs):
        for rows in torch.multinomial(chances, len(y), replacement=True, generator=draws).split(batch_size):
            optimizer.zero_grad()
            F.cross_entropy(layer(features[rows]), target[rows]).backward()
            optimizer.step()
        schedule.step()
    return classes, layer.weight.detach(), layer.bias.detach()


def cloud(n=310, d=7, classes=4, dtype=torch.float64):
    y = 3 * torch.randint(classes, (n,)) + 2
    return (torch.randn(20, d)[y] + torch.randn(n, d)).to(dtype), y


# With few epochs milestones coincide, also at the very start (one epoch: all three).
@pytest.mark.parametrize("epochs", [1, 2, 3, 4, 5, 7, 10, 100])
@pytest.mark.parametrize("batch_size", [64, 1_000])
def test_the_gradient_by_hand_is_that_of_autograd(epochs, batch_size):
    features, y = cloud()
    options = {"lr": 0.5, "epochs": epochs, "batch_size": batch_size, "seed": 3}
    for found, expected in zip(fit_linear(features, y, **options), slow_fit(features, y, **options), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6 if expected.is_floating_point() else 0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_features_of_other_precisions_are_fitted_in_float32(dtype):
    features, y = cloud(dtype=dtype)
    found, expected = fit_linear(features, y, lr=0.1), slow_fit(features.float(), y, lr=0.1)
    assert found[1].dtype == torch.float32
    torch.testing.assert_close(found[1], expected[1], rtol=0, atol=1e-3)


def test_groups_of_any_labels_are_drawn_equally_often():
    """Two domains, 1 to 19, whose images say opposite things: the balance decides which of them is believed."""
    domain = torch.tensor([0] * 19 + [1]).repeat(20)
    y = torch.tensor([0, 1]).repeat_interleave(200)
    x = torch.where(y == 0, 1.0, -1.0) * torch.where(domain == 0, 1.0, -3.0)
    features = x[:, None].double()

    def weight(balance):
        return fit_linear(features, y, balance=balance, lr=0.01, epochs=20)[1][0, 0].item()

    assert weight(None) > 0
    assert weight(domain) < 0
    assert weight(10 * domain + y) < 0
    assert weight(y) == weight(None)


def test_features_may_be_redrawn_in_each_epoch():
    features, y = cloud()
    asked = []

    def redrawn(epoch):
        asked.append(epoch)
        return features + 0.1 * epoch

    fit_linear(redrawn, y, lr=0.1, epochs=4)
    assert asked == [0, 1, 2, 3]
    still = fit_linear(lambda epoch: features, y, lr=0.1, epochs=4)
    assert torch.equal(still[1], fit_linear(features, y, lr=0.1, epochs=4)[1])
    assert not torch.equal(still[1], fit_linear(redrawn, y, lr=0.1, epochs=4)[1])


@pytest.mark.parametrize(
    "call",
    [
        lambda x, y: fit_linear(x[:9], y),
        lambda x, y: fit_linear(x, y, balance=y[:9]),
        lambda x, y: fit_linear(lambda epoch: x[: 310 - epoch], y),
    ],
)
def test_another_number_of_features_labels_or_groups_is_named(call):
    with pytest.raises(ValueError, match="a label and a group for each feature"):
        call(*cloud())


def test_a_standardised_fit_does_not_depend_on_mean_and_spread():
    features, y = cloud()
    moved = features * torch.logspace(-2, 2, 7).double() + 50
    _, weight, bias, mean = fit_standardized(features, y)
    _, weight_m, bias_m, mean_m = fit_standardized(moved, y)
    torch.testing.assert_close((moved - mean_m) @ weight_m.T + bias_m, (features - mean) @ weight.T + bias)


INTEGERS = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16]


@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize("fit", [fit_linear, fit_nearest_mean])
def test_class_ids_of_any_integer_type(fit, dtype):
    features, y = cloud()
    classes, weight, bias = fit(features, y.to(dtype))
    assert torch.equal(weight, fit(features, y)[1])
    readout = ReadOut(7)
    readout.fit(classes.to(dtype), weight, bias, unit=False)
    assert readout.fitted.nonzero()[:, 0].tolist() == [2, 5, 8, 11]
    torch.testing.assert_close(readout.weight[[2, 5, 8, 11]], weight.float())


# ---- width, type, inference mode


def test_a_given_width_stays():
    readout = ReadOut(4, 12)
    assert (readout(torch.randn(3, 4)) == -1000).all()
    for experience in make_benchmark().test_stream:
        readout.adaptation(experience)
    readout.fit(torch.tensor([1]), torch.randn(1, 4), torch.zeros(1), unit=False)
    assert readout.width == 12
    with pytest.raises(ValueError, match=r"no column for class 12, since num_classes is 12"):
        readout.fit(torch.tensor([12]), torch.randn(1, 4), torch.zeros(1), unit=False)
    with pytest.raises(RuntimeError, match="size mismatch"):
        ReadOut(4, 11).load_state_dict(readout.state_dict())


STREAMS = {
    "class-incremental": lambda: make_benchmark("A").train_stream[0],
    "nc_benchmark": lambda: make_benchmark("C").test_stream[1],
    "a piece of an online stream": lambda: next(iter(split_online_stream(make_benchmark().train_stream, 4))),
    "in training mode": lambda: make_benchmark().train_stream[3].train(),
}


@pytest.mark.parametrize("stream", STREAMS)
def test_the_stream_names_its_classes(stream):
    readout = ReadOut(4)
    readout.adaptation(STREAMS[stream]())
    assert readout.width == 10


MISFITS = {
    "another width": (torch.tensor([0, 1]), torch.ones(2, 5), torch.ones(2)),
    "another number of rows": (torch.tensor([0, 1, 2]), torch.ones(2, 4), torch.ones(3)),
    "another number of biases": (torch.tensor([0, 1]), torch.ones(2, 4), torch.ones(3)),
    "classes that are fractions": (torch.tensor([0.5, 1.0]), torch.ones(2, 4), torch.ones(2)),
}


@pytest.mark.parametrize("kind", MISFITS)
def test_values_that_do_not_fit_change_nothing(kind):
    readout = ReadOut(4)
    readout.fit(torch.tensor([0, 2]), torch.ones(2, 4), torch.ones(2), unit=False)
    before = {name: value.clone() for name, value in readout.state_dict().items()}
    with pytest.raises(ValueError, match=r"classes \(integers\) need a weight of shape \(\d, 4\).*another model"):
        readout.fit(*MISFITS[kind], unit=True)
    assert all(torch.equal(value, before[name]) for name, value in readout.state_dict().items())


@pytest.mark.parametrize("wrong", [-1, 20_230_115])
def test_ids_that_are_no_columns_are_named(wrong):
    readout = ReadOut(4)
    with pytest.raises(ValueError, match=rf"got the id {wrong}.*target_transform"):
        readout.fit(torch.tensor([0, wrong]), torch.zeros(2, 4), torch.zeros(2), unit=False)
    with pytest.raises(ValueError, match=rf"got the id {wrong}"):
        readout.adaptation(SimpleNamespace(classes_in_this_experience=[0, wrong]))
    assert readout.width == 0


def test_what_is_made_in_inference_mode_can_be_changed_afterwards():
    readout, heads = ReadOut(4), TaskReadOuts(4)
    with torch.inference_mode():
        features, y = torch.randn(30, 4), torch.randint(3, (30,))
        for layer in (readout, heads):
            avalanche_model_adaptation(layer, make_benchmark("C").train_stream[0])
        readout.fit(*fit_linear(features, y), unit=False)
        heads.fit(0, *fit_linear(features, y), unit=False)
    assert not any(buffer.is_inference() for layer in (readout, heads) for buffer in layer.buffers())
    readout.fit(*fit_nearest_mean(torch.randn(30, 4), y.clone()), unit=True)
    heads.forget()
    logits = readout(torch.randn(3, 4, requires_grad=True))
    logits[:, :3].sum().backward()


# ---- the loop over a data set


def ragged(batch):
    """Sequences of unequal length, padded with zeros, with their lengths."""
    x, y = zip(*batch, strict=True)
    lengths = torch.tensor([len(one) for one in x])
    padded = torch.nn.utils.rnn.pad_sequence(x, batch_first=True)
    return {"sequence": padded, "length": lengths}, torch.tensor(y, dtype=torch.uint8)


class MeanOfSequence(torch.nn.Module):
    def forward(self, x):
        return x["sequence"].sum(dim=1) / x["length"][:, None]


def test_the_data_sets_own_collate_function_is_used():
    data = [(torch.randn(2 + i % 3, 5), i % 4) for i in range(11)]
    dataset = make_avalanche_dataset(data, collate_fn=ragged)
    m = ContrastiveModel(MeanOfSequence(), 5, 4, sample_ndim=2)
    features, y = embed_dataset(m, dataset, batch_size=4, device=torch.device("cpu"))
    torch.testing.assert_close(features, torch.stack([x.mean(dim=0) for x, _ in data]))
    assert y.tolist() == [c for _, c in data]
    assert y.dtype == torch.int64


def test_views_of_an_evaluation_transform_count_one_by_one():
    data = [(torch.randn(3, 5), i % 2) for i in range(5)]  # three views of vectors
    m = ContrastiveModel(torch.nn.Identity(), 5, 4)
    features, y = embed_dataset(m, make_avalanche_dataset(data), batch_size=2, device=torch.device("cpu"))
    assert torch.equal(features, torch.cat([x for x, _ in data]))
    assert y.tolist() == [0, 0, 0, 1, 1, 1, 0, 0, 0, 1, 1, 1, 0, 0, 0]


class OfDictionaries(Naive):
    """A strategy with samples of its own: unpacking and forward pass as Avalanche allows."""

    def _unpack_minibatch(self):
        x, y, *rest = self.mbatch
        self.mbatch = [{name: part.to(self.device) for name, part in x.items()}, y, *rest]

    def forward(self):
        return self.model(self.mb_x["sequence"].sum(dim=1))["scores"]


class Scores(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = torch.nn.Linear(5, 6), torch.nn.Linear(6, 4)

    def forward(self, x):
        features = self.body(x).relu()
        return {"features": features, "scores": self.head(features)}


def test_features_by_the_strategys_own_forward_pass():
    data = [(torch.randn(2 + i % 3, 5), i % 4) for i in range(11)]
    m = Scores()
    strategy = OfDictionaries(model=m, optimizer=torch.optim.SGD(m.parameters(), lr=0.1))
    dataset = make_avalanche_dataset(data, collate_fn=ragged)
    features, y = embed_dataset(
        m, dataset, batch_size=4, device=torch.device("cpu"), features_of=strategy_features(strategy, m)
    )
    torch.testing.assert_close(features, torch.stack([m.body(x.sum(dim=0)).relu() for x, _ in data]).detach())
    assert y.tolist() == [c for _, c in data]
    assert strategy.mbatch is None
    assert strategy.model is m
