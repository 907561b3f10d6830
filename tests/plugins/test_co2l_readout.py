"""What Co2L's read-out is fitted to: draws balanced over classes or domains, and augmented images."""

import pytest
import torch
from avalanche.training.plugins import SupervisedPlugin
from helpers.streams import make_benchmark, make_encoder
from test_co2l_domains import co2l, naive, rotated_digits
from torch import nn

from avalanche_contrastive import Co2LPlugin, ContrastiveModel, MTContrastiveModel, TwoViews
from avalanche_contrastive.plugins import refit
from avalanche_contrastive.readout import embed_dataset, fit_linear


def fits(monkeypatch):
    """What fit_linear is asked for: (features of each epoch, labels, balance)."""
    seen = []

    def fit(features, y, *, balance=None, **options):
        epochs = [features(e) if callable(features) else features for e in range(options["epochs"])]
        seen.append((epochs, y.clone(), None if balance is None else balance.clone()))
        return fit_linear(lambda e: epochs[e], y, balance=balance, **options)

    monkeypatch.setattr(refit, "fit_linear", fit)
    return seen


BALANCES = {
    "domains, by default": ({"domains": True}, lambda y, t: t),
    "domains by name": ({"domains": True, "readout_balance": "domain"}, lambda y, t: t),
    "domains, of classes": ({"domains": True, "readout_balance": "class"}, lambda y, t: None),
    "domains, of both": ({"domains": True, "readout_balance": "domain and class"}, lambda y, t: 10 * t + y),
    "classes, by default": ({}, lambda y, t: None),
    "classes, of domains": ({"readout_balance": "domain"}, lambda y, t: t),
}


@pytest.mark.parametrize("kind", BALANCES)
def test_draws_are_balanced_over(kind, monkeypatch):
    options, groups = BALANCES[kind]
    seen, plugin = fits(monkeypatch), co2l(readout_epochs=2, **options)
    strategy = naive([plugin])
    for number, experience in enumerate(rotated_digits().train_stream):
        memory = plugin.memory if number else []
        tasks = [number] * 40 + [int(t) for t in getattr(memory, "targets_task_labels", [])]
        y = [int(c) for c in experience.dataset.targets] + [int(c) for c in getattr(memory, "targets", [])]
        strategy.train(experience)
        (_, labels, balance) = seen[-1]
        assert labels.tolist() == y
        expected = groups(torch.tensor(y), torch.tensor(tasks))
        if expected is None:
            assert balance is None
        else:  # the same partition of the images
            pairs = set(zip(balance.tolist(), expected.tolist(), strict=True))
            assert len(pairs) == len(balance.unique()) == len(expected.unique())
    assert len(seen) == 3


def test_drawn_evenly_by_domain_the_memory_counts_as_much_as_its_domains():
    """Of 360 draws, a third falls on each of three domains, whose images are 100, 10 and 10."""
    torch.manual_seed(0)
    task = torch.tensor([2] * 100 + [0] * 10 + [1] * 10)
    features, y = nn.functional.one_hot(task, 3).float() * 2 + torch.randn(120, 3) * 0.1, task % 2
    steps = 3 * 40
    _, by_class, _ = fit_linear(features, y, lr=0.01, epochs=1, batch_size=steps)
    _, by_domain, _ = fit_linear(features, y, balance=task, lr=0.01, epochs=1, batch_size=steps)
    share = [(w[0] / w[0].abs().sum()).abs() for w in (by_class, by_domain)]  # of the first step's pull
    assert share[1][0] > 3 * share[0][0]
    assert share[1][0].item() == pytest.approx(share[1][2].item(), rel=0.5)


@pytest.mark.parametrize("pipeline", [False, True], ids=["the plugin's augmentation", "views of the pipeline"])
def test_augmented_images_are_drawn_anew_in_each_epoch(pipeline, monkeypatch):
    seen, calls = fits(monkeypatch), []

    def noisy(x):
        calls.append(len(x))
        return x + 0.1 * torch.randn_like(x)

    benchmark = make_benchmark(transform=TwoViews(noisy) if pipeline else None)
    plugin = Co2LPlugin(20, None if pipeline else noisy, readout_epochs=3, readout_augment=True)
    strategy = naive([plugin])
    ends = []

    class Ends(SupervisedPlugin):
        def after_training_iteration(self, strategy, **kwargs):
            ends.append(len(calls))

    strategy.plugins.append(Ends())
    strategy.train(benchmark.train_stream[0])
    ((first, second, third), y, balance), plain = seen[-1], strategy.model
    views = 2 if pipeline else 1
    assert first.shape == second.shape == (24 * views, 16)
    assert len(y) == 24 * views
    assert balance is None
    assert not torch.equal(first, second)
    assert not torch.equal(second, third)
    assert len(calls) > ends[-1]
    clean, _ = embed_dataset(plain, make_benchmark().train_stream[0].dataset, batch_size=24, device="cpu")
    assert 0 < (first - clean.repeat_interleave(views, 0)).abs().mean() < 0.2


def test_augmented_images_leave_no_trace_in_training():
    finals = []
    for augment in (False, True):
        torch.manual_seed(0)
        model = ContrastiveModel(make_encoder(), 16, 8)
        strategy = naive([co2l(readout_epochs=2, readout_augment=augment)])
        strategy.model.load_state_dict(model.state_dict())
        strategy.train(make_benchmark().train_stream[:2])
        finals.append(torch.nn.utils.parameters_to_vector(strategy.model.parameters()))
    assert torch.equal(*finals)


def test_domains_need_task_labels():
    with pytest.raises(ValueError, match=r"readout_balance='domain' needs a stream with task labels"):
        naive([co2l(readout_balance="domain")]).train(make_benchmark().train_stream[0])
    with pytest.raises(
        ValueError, match="readout_balance must be one of 'class', 'domain', 'domain and class', got 'b"
    ):
        co2l(readout_balance="both")
    with pytest.raises(ValueError, match="readout_augment must be True or False, got 1"):
        co2l(readout_augment=1)


def test_a_read_out_per_task_is_balanced_over_its_classes(monkeypatch):
    seen, model = fits(monkeypatch), MTContrastiveModel(make_encoder(), 16, 8)
    strategy = naive([co2l(readout_balance="domain", readout_epochs=2)])
    strategy.model = model
    strategy.optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    strategy.train(rotated_digits(2).train_stream[0])
    assert all(balance is None for _, _, balance in seen)
