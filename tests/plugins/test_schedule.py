"""ExperienceSchedule: every rate by hand, over whole runs of real strategies."""

import itertools
import math

import pytest
import torch
from avalanche.models import IncrementalClassifier
from avalanche.training import JointTraining, Naive
from avalanche.training.plugins import LRSchedulerPlugin, SupervisedPlugin
from helpers.streams import make_benchmark, make_encoder
from torch import nn

from avalanche_contrastive import (
    BatchAugmentation,
    Co2LPlugin,
    ContrastiveModel,
    CSDPlugin,
    ExperienceSchedule,
    SSILPlugin,
)
from avalanche_contrastive.plugins import refit
from avalanche_contrastive.readout import fit_linear

ROWS = 24  # images in an experience of two digits


class Rates(SupervisedPlugin):
    """The rates of every step, [experience][epoch][iteration] -> tuple over the parameter groups."""

    def __init__(self):
        super().__init__()
        self.rates, self.losses = [], []

    def before_training_exp(self, strategy, **kwargs):
        self.rates.append([])

    def before_training_epoch(self, strategy, **kwargs):
        self.rates[-1].append([])

    def after_update(self, strategy, **kwargs):
        self.rates[-1][-1].append(tuple(group["lr"] for group in strategy.optimizer.param_groups))
        self.losses.append(strategy.loss.item())

    def flat(self, group=0):
        return [[[step[group] for step in epoch] for epoch in experience] for experience in self.rates]


def linear():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


def naive(plugins, lr=0.5, *, model=None, optimizer=None, strategy=Naive, **options):
    model = linear() if model is None else model
    return strategy(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=lr) if optimizer is None else optimizer,
        criterion=nn.CrossEntropyLoss(),
        plugins=plugins,
        **{"train_mb_size": ROWS, "train_epochs": 1, "eval_mb_size": 50, "evaluator": None, **options},
    )


def rates_of(schedule, experiences=2, lr=0.5, **options):
    """The rates of a run with one parameter group, [experience][epoch][iteration]."""
    recorder = Rates()
    strategy = naive([schedule, recorder], lr, **options)
    strategy.train(make_benchmark().train_stream[:experiences])
    return recorder.flat()


def cosine(base, epoch, epochs, floor=1e-3):
    return floor * base + (base - floor * base) * (1 + math.cos(math.pi * epoch / epochs)) / 2


# ---- the papers' schedules


def test_co2l_on_cifar_at_a_tenth_of_its_epochs():
    """50 epochs first and 10 later, warm-up of 2 from 0.01, two iterations per epoch."""
    schedule = ExperienceSchedule("cosine", epochs=(50, 10), warmup_epochs=2)
    runs = rates_of(schedule, 3, train_mb_size=ROWS // 2, train_epochs=7)
    assert [len(epochs) for epochs in runs] == [50, 10, 10]
    for number, epochs in enumerate((50, 10, 10)):
        top = cosine(0.5, 2, epochs)
        rise = [0.01 + (top - 0.01) * step / 4 for step in range(4)]
        assert runs[number][0] + runs[number][1] == pytest.approx(rise, rel=1e-12)
        for epoch in range(3, epochs + 1):
            assert runs[number][epoch - 1] == pytest.approx([cosine(0.5, epoch, epochs)] * 2, rel=1e-12)
        assert runs[number][-1][-1] == pytest.approx(0.0005)
    assert runs[1] == runs[2]
    assert runs[1][4][0] == pytest.approx(0.25025)  # half-way


def test_co2l_ends_its_warm_up_at_the_published_rate_without_a_jump():
    schedule = ExperienceSchedule("cosine", warmup_epochs=10)
    runs = rates_of(schedule, 1, train_mb_size=1, train_epochs=100)[0]
    steps = list(itertools.chain(*runs))
    assert len(runs[0]) == ROWS
    assert runs[0][0] == 0.01
    assert schedule.rate(0.5, 0, 10, 100, share=1.0) == pytest.approx(0.4878, abs=5e-5)
    assert schedule.rate(0.5, 0, 11, 100) == pytest.approx(0.4852, abs=5e-5)
    warm = steps[: 10 * ROWS + 1]
    rises = [b - a for a, b in itertools.pairwise(warm[:-1])]
    assert max(rises) == pytest.approx(min(rises))
    assert warm[-2] == pytest.approx(0.48778 - rises[0], abs=1e-5)
    assert abs(warm[-1] - warm[-2]) < 2 * rises[0]


def test_ssil_divides_by_the_number_of_the_experience_and_steps_at_40_and_80():
    runs = rates_of(ExperienceSchedule("steps", epochs=100, milestones=(40, 80), by_experience=True), 4, lr=0.1)
    for number, epochs in enumerate(runs):
        base = 0.1 / (number + 1)
        expected = [base] * 40 + [base / 10] * 40 + [base / 100] * 20
        assert [rate for epoch in epochs for rate in epoch] == pytest.approx(expected)


def test_csd_steps_at_200_400_600_and_takes_a_hundredth_later():
    schedule = ExperienceSchedule("steps", epochs=800, milestones=(200, 400, 600), later=0.01, reset_optimizer=True)
    for experience, base in enumerate((1e-3, 1e-5, 1e-5)):
        by_hand = {1: base, 200: base, 201: base / 10, 400: base / 10, 401: base / 100, 600: base / 100}
        by_hand |= {601: base / 1000, 800: base / 1000}
        for epoch, expected in by_hand.items():
            assert schedule.rate(1e-3, experience, epoch, 800) == pytest.approx(expected)


def test_csd_with_adam_at_a_hundredth_of_its_epochs():
    model, recorder, states = linear(), Rates(), []

    class States(SupervisedPlugin):
        def before_training_iteration(self, strategy, **kwargs):
            states.append({name: int(s["step"]) for name, s in enumerate(strategy.optimizer.state.values()) if s})

    schedule = ExperienceSchedule("steps", epochs=8, milestones=(2, 4, 6), later=0.01, reset_optimizer=True)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=5e-4)
    strategy = naive([schedule, recorder, States()], model=model, optimizer=optimizer)
    strategy.train(make_benchmark().train_stream[:3])
    for base, run in zip((1e-3, 1e-5, 1e-5), recorder.flat(), strict=True):
        expected = [base, base, base / 10, base / 10, base / 100, base / 100, base / 1000, base / 1000]
        assert [epoch[0] for epoch in run] == pytest.approx(expected)
    # Adam's moments start anew with each experience, as with an optimiser made anew.
    assert states == [{}, *({0: step, 1: step} for step in range(1, 8))] * 3


def test_without_a_reset_the_optimizer_goes_on():
    model, steps = linear(), []

    class Steps(SupervisedPlugin):
        def after_update(self, strategy, **kwargs):
            steps.append(int(next(iter(strategy.optimizer.state.values()))["step"]))

    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    strategy = naive([ExperienceSchedule(epochs=2), Steps()], model=model, optimizer=optimizer)
    strategy.train(make_benchmark().train_stream[:2])
    assert steps == [1, 2, 3, 4]


@pytest.mark.parametrize("floor", [0.0, 1e-3, 0.5])
def test_the_cosine_is_torchs(floor):
    optimizer = torch.optim.SGD(linear().parameters(), lr=0.3)
    annealing = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=20, eta_min=0.3 * floor)
    expected = []
    for _ in range(20):
        optimizer.step()
        annealing.step()
        expected.append(optimizer.param_groups[0]["lr"])
    runs = rates_of(ExperienceSchedule("cosine", epochs=20, floor=floor), 2, lr=0.3)
    for run in runs:
        assert [epoch[0] for epoch in run] == pytest.approx(expected, abs=1e-12)


def test_the_steps_are_torchs():
    optimizer = torch.optim.SGD(linear().parameters(), lr=0.3)
    steps = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 5], gamma=0.2)
    expected = []
    for _ in range(8):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        steps.step()
    runs = rates_of(ExperienceSchedule("steps", epochs=8, milestones=[3, 5], gamma=0.2), 2, lr=0.3)
    assert [epoch[0] for epoch in runs[1]] == pytest.approx(expected)


def test_a_constant_rate_with_a_warm_up_and_a_factor_later():
    runs = rates_of(ExperienceSchedule(epochs=4, warmup_epochs=2, warmup_from=0.1, later=0.5), 2)
    assert [epoch[0] for epoch in runs[0]] == pytest.approx([0.1, 0.3, 0.5, 0.5])
    assert [epoch[0] for epoch in runs[1]] == pytest.approx([0.1, 0.175, 0.25, 0.25])


def test_a_later_rate_below_the_start_of_the_warm_up_is_flat():
    runs = rates_of(ExperienceSchedule(epochs=3, warmup_epochs=2, later=0.01), 2)
    assert [epoch[0] for epoch in runs[1]] == pytest.approx([0.005] * 3)


@pytest.mark.parametrize(
    ("lr", "epochs", "peak", "after"),
    [(0.5, (500, 100), 0.4878, 0.4994), (0.1, (500, 50), 0.0905, 0.0999)],
    ids=["Seq-CIFAR-10", "Seq-Tiny-ImageNet"],
)
def test_the_warm_up_of_co2ls_code_leads_to_the_later_epochs_rate(lr, epochs, peak, after):
    theirs = ExperienceSchedule("cosine", epochs=epochs, warmup_epochs=10, warmup_peak="later")
    ours = ExperienceSchedule("cosine", epochs=epochs, warmup_epochs=10)
    first, later = epochs
    assert theirs.rate(lr, 0, 10, first, share=1.0) == pytest.approx(peak, abs=5e-5)
    assert theirs.rate(lr, 0, 1, first) == 0.01
    assert theirs.rate(lr, 0, 6, first) == pytest.approx((0.01 + theirs.rate(lr, 0, 10, first, share=1.0)) / 2)
    assert theirs.rate(lr, 0, 11, first) == ours.rate(lr, 0, 11, first) == pytest.approx(after, abs=1e-4)
    assert all(theirs.rate(lr, 1, epoch, later) == ours.rate(lr, 1, epoch, later) for epoch in range(1, later + 1))
    assert ours.rate(lr, 0, 10, first, share=1.0) == pytest.approx(cosine(lr, 10, first))


def test_by_default_nothing_changes():
    torch.manual_seed(1)
    plain = Rates()
    naive([plain], train_epochs=3).train(make_benchmark().train_stream[:2])
    torch.manual_seed(1)
    scheduled = Rates()
    naive([ExperienceSchedule(), scheduled], train_epochs=3).train(make_benchmark().train_stream[:2])
    assert plain.rates == scheduled.rates
    assert plain.losses == scheduled.losses


# ---- parameter groups


def test_every_group_follows_its_own_base_rate():
    model, recorder = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10)), Rates()
    groups = [{"params": model[1].parameters(), "lr": 0.4}, {"params": model[3].parameters(), "lr": 0.02}]
    schedule = ExperienceSchedule("cosine", epochs=4, warmup_epochs=1)
    strategy = naive([schedule, recorder], model=model, optimizer=torch.optim.SGD(groups, lr=1.0))
    strategy.train(make_benchmark().train_stream[:2])
    for run in range(2):
        for group, base in enumerate((0.4, 0.02)):
            expected = [0.01] + [cosine(base, epoch, 4) for epoch in (2, 3, 4)]
            assert [epoch[0] for epoch in recorder.flat(group)[run]] == pytest.approx(expected)


@pytest.mark.parametrize("first", [True, False])
def test_a_group_that_another_plugin_adds_later(first):
    class Own(SupervisedPlugin):
        """A plugin with a parameter of its own, from the second experience on."""

        def before_training_exp(self, strategy, **kwargs):
            if strategy.clock.train_exp_counter == 1:
                strategy.optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))], "lr": 0.06})

    recorder, pair = Rates(), [ExperienceSchedule("steps", epochs=2, milestones=(1,)), Own()]
    strategy = naive([*(pair[::-1] if first else pair), recorder])
    strategy.train(make_benchmark().train_stream[:3])
    assert [len(run[0][0]) for run in recorder.rates] == [1, 2, 2]
    for run in recorder.rates[1:]:
        assert [epoch[0][1] for epoch in run] == pytest.approx([0.06, 0.006])
    assert [group["lr"] for group in strategy.optimizer.param_groups] == [0.5, 0.06]


def test_the_new_rows_of_a_growing_head_move_at_the_scheduled_rate():
    model, moves = nn.Sequential(nn.Flatten(), IncrementalClassifier(64)), []

    class Moves(SupervisedPlugin):
        def before_update(self, strategy, **kwargs):
            self.before = model[1].classifier.weight.detach().clone()

        def after_update(self, strategy, **kwargs):
            weight = model[1].classifier.weight
            moves.append((strategy.clock.train_exp_counter, self.before - weight.detach(), weight.grad.clone()))

    schedule = ExperienceSchedule("steps", epochs=2, milestones=(1,), later=0.5)
    strategy = naive([schedule, Moves()], model=model)
    strategy.train(make_benchmark(order=list(range(10))).train_stream[:2])
    assert [len(moved) for _, moved, _ in moves] == [2, 2, 4, 4]
    for rate, (_, moved, grad) in zip((0.5, 0.05, 0.25, 0.025), moves, strict=True):
        torch.testing.assert_close(moved, rate * grad, rtol=1e-4, atol=1e-6)
        assert grad[-2:].abs().sum() > 0


# ---- around it


@pytest.mark.parametrize("eval_every", [-1, 0, 1])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("method", ["co2l", "ssil", "csd"])
def test_beside_our_plugins_in_both_orders(method, flip, eval_every, monkeypatch):
    model = nn.Sequential(make_encoder(), nn.Linear(16, 10))
    plugin = SSILPlugin(mem_size=20, batch_size_mem=8) if method == "ssil" else CSDPlugin()
    if method == "co2l":
        model, augmentation = ContrastiveModel(make_encoder(), 16, 8), BatchAugmentation(flip=0.0)
        plugin = Co2LPlugin(20, augmentation, readout_lr=0.1)
    fits = []
    if method == "co2l":
        monkeypatch.setattr(refit, "fit_linear", lambda *a, **k: fits.append(1) or fit_linear(*a, **k))
    pair, recorder = [ExperienceSchedule("cosine", epochs=(3, 2), warmup_epochs=1), plugin], Rates()
    strategy = naive(
        [*(pair[::-1] if flip else pair), recorder], 0.05, model=model, train_mb_size=12, eval_every=eval_every
    )
    benchmark = make_benchmark()
    for experience in benchmark.train_stream[:3]:
        strategy.train(experience, eval_streams=[benchmark.test_stream[:2]])
    for run, epochs in zip(recorder.flat(), (3, 2, 2), strict=True):
        steps = [len(epoch) for epoch in run]
        assert len(steps) == epochs
        top = cosine(0.05, 1, epochs)
        assert run[0] == pytest.approx([0.01 + (top - 0.01) * i / steps[0] for i in range(steps[0])])
        for epoch in range(2, epochs + 1):
            assert run[epoch - 1] == pytest.approx([cosine(0.05, epoch, epochs)] * steps[epoch - 1])
    assert all(math.isfinite(loss) for loss in recorder.losses)
    if method == "co2l" and eval_every == -1:  # the read-out waits for the last epoch, which is ours to say
        assert len(fits) == 3


@pytest.mark.parametrize("method", ["ssil", "csd"])
def test_either_order_trains_the_same(method):
    finals = []
    for flip in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(make_encoder(), nn.Linear(16, 10))
        plugin = SSILPlugin(mem_size=20, batch_size_mem=8) if method == "ssil" else CSDPlugin()
        pair = [ExperienceSchedule("cosine", epochs=(3, 2), warmup_epochs=1), plugin]
        strategy = naive(pair[::-1] if flip else pair, 0.05, model=model)
        strategy.train(make_benchmark().train_stream[:3])
        finals.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(*finals)


def test_one_call_for_the_stream_and_a_call_for_each_experience():
    def schedule():
        return ExperienceSchedule("cosine", epochs=(4, 3), warmup_epochs=2, later=0.5)

    at_once, recorder = rates_of(schedule(), 3), Rates()
    strategy = naive([schedule(), recorder])
    for experience in make_benchmark().train_stream[:3]:
        strategy.train(experience)
        assert strategy.train_epochs == 1
        assert [set(group) & {"base_lr", "lr"} for group in strategy.optimizer.param_groups] == [{"lr"}]
        assert strategy.optimizer.param_groups[0]["lr"] == 0.5
    assert recorder.flat() == at_once


def test_the_strategys_own_epochs_are_taken_where_none_are_given():
    recorder = Rates()
    strategy = naive([ExperienceSchedule("cosine"), recorder], train_epochs=2)
    stream = make_benchmark().train_stream
    strategy.train(stream[0])
    strategy.train_epochs = 4
    strategy.train(stream[1])
    assert [[epoch[0] for epoch in run] for run in recorder.flat()] == [
        pytest.approx([cosine(0.5, epoch, epochs) for epoch in range(1, epochs + 1)]) for epochs in (2, 4)
    ]
    assert strategy.train_epochs == 4


def test_evaluations_inside_an_epoch_and_an_early_stop():
    class Stop(SupervisedPlugin):
        def after_training_epoch(self, strategy, **kwargs):
            if strategy.clock.train_exp_epochs == 1:
                strategy.stop_training()

    recorder = Rates()
    schedule = ExperienceSchedule(epochs=5, warmup_epochs=2, warmup_from=0.1)
    strategy = naive([schedule, recorder, Stop()], eval_every=1, peval_mode="iteration", train_mb_size=12)
    benchmark = make_benchmark()
    for experience in benchmark.train_stream[:2]:
        strategy.train(experience, eval_streams=[benchmark.test_stream[:1]])
    assert [[epoch for epoch in run if epoch] for run in recorder.flat()] == [
        [pytest.approx([0.1, 0.2]), pytest.approx([0.3, 0.4])] for _ in range(2)
    ]
    assert strategy.optimizer.param_groups[0]["lr"] == 0.5


def test_joint_training_is_one_experience():
    recorder = Rates()
    strategy = naive([ExperienceSchedule("cosine", epochs=(3, 2)), recorder], strategy=JointTraining)
    strategy.train(make_benchmark().train_stream)
    assert [epoch[0] for epoch in recorder.flat()[0]] == pytest.approx([cosine(0.5, epoch, 3) for epoch in (1, 2, 3)])


# ---- errors and interruptions


class Broken(SupervisedPlugin):
    """Fails in one step."""

    def __init__(self, epoch=1, iteration=1):
        super().__init__()
        self.at = (epoch, iteration)

    def before_forward(self, strategy, **kwargs):
        if (strategy.clock.train_exp_epochs, strategy.clock.train_epoch_iterations) == self.at:
            raise RuntimeError("broken on purpose")


@pytest.mark.parametrize("epochs_after", [None, 9])
def test_after_an_error_the_next_call_starts_from_the_users_rate_and_epochs(epochs_after):
    broken, recorder = Broken(), Rates()
    schedule = ExperienceSchedule("cosine", epochs=(4, 3), warmup_epochs=2)
    strategy = naive([schedule, broken, recorder], train_epochs=7, train_mb_size=12)
    stream = make_benchmark().train_stream
    with pytest.raises(RuntimeError, match="on purpose"):
        strategy.train(stream[0])
    assert strategy.train_epochs == 4  # until the next call
    strategy.plugins.remove(broken)
    if epochs_after is not None:
        strategy.train_epochs = epochs_after
    recorder.rates.clear()
    strategy.train(stream[:2])
    assert strategy.train_epochs == (epochs_after or 7)
    assert strategy.optimizer.param_groups[0]["lr"] == 0.5
    undisturbed = rates_of(ExperienceSchedule("cosine", epochs=(4, 3), warmup_epochs=2), 2, train_mb_size=12)
    assert recorder.flat() == undisturbed


@pytest.mark.parametrize("at", [(0, 1), (1, 0), (3, 1)])
def test_state_dicts_and_the_clock_are_enough_to_go_on_inside_an_experience(at):
    def schedule():
        return ExperienceSchedule("cosine", epochs=(3, 5), warmup_epochs=2, later=0.5)

    whole, broken = rates_of(schedule(), 2, train_mb_size=12), Broken(*at)
    strategy = naive([schedule()], train_mb_size=12)
    stream = make_benchmark().train_stream
    strategy.train(stream[0])
    strategy.plugins.insert(1, broken)
    with pytest.raises(RuntimeError, match="on purpose"):
        strategy.train(stream[1])
    saved = strategy.optimizer.state_dict()

    fresh = schedule()
    resumed = naive([fresh], lr=123.0, train_mb_size=12, train_epochs=7)
    resumed.optimizer.load_state_dict(saved)
    resumed.clock.train_exp_counter = 1
    fresh.before_training(resumed)
    fresh.before_train_dataset_adaptation(resumed)
    fresh.before_training_exp(resumed)
    resumed.clock.train_exp_epochs, resumed.clock.train_epoch_iterations = at
    resumed.dataloader = [None, None]
    fresh.before_training_iteration(resumed)
    assert resumed.optimizer.param_groups[0]["lr"] == pytest.approx(whole[1][at[0]][at[1]], rel=1e-12)
    assert resumed.train_epochs == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shape": "cosinus"}, r"shape must be one of 'constant', 'cosine', 'steps', got 'cosinus'"),
        ({"epochs": 0}, r"epochs must be a whole number >= 1, got 0"),
        ({"epochs": (5, 0)}, r"epochs must be a whole number >= 1, got 0"),
        ({"epochs": 2.5}, r"epochs must be a whole number >= 1, got 2.5"),
        ({"epochs": (1, 2, 3)}, r"epochs must be a number or a pair.*got \(1, 2, 3\)"),
        ({"epochs": "10"}, r"epochs must be a whole number"),
        ({"warmup_epochs": -1}, r"warmup_epochs must be a whole number >= 0, got -1"),
        ({"warmup_peak": "first"}, r"warmup_peak must be one of 'own', 'later', got 'first'"),
        ({"warmup_peak": "later", "warmup_epochs": 1}, r"warmup_peak='later' needs warmup_epochs and epochs="),
        ({"warmup_peak": "later", "epochs": (9, 5)}, r"warmup_peak='later' needs warmup_epochs and epochs="),
        ({"warmup_from": -0.1}, r"warmup_from must be a finite number >= 0"),
        ({"floor": 1.5}, r"floor is a share of the base rate in \[0, 1\], got 1.5"),
        ({"floor": float("nan")}, r"floor must be a finite number >= 0"),
        ({"gamma": 0}, r"gamma must be a finite number > 0"),
        ({"later": 0}, r"later must be a finite number > 0"),
        ({"by_experience": 1}, r"by_experience must be True or False, got 1"),
        ({"reset_optimizer": "yes"}, r"reset_optimizer must be True or False"),
        ({"shape": "steps"}, r"milestones are the epochs of shape 'steps'.*got shape 'steps' with milestones \[\]"),
        (
            {"shape": "cosine", "milestones": (3,)},
            r"milestones are.*of no other, got shape 'cosine' with milestones \[3\]",
        ),
        ({"shape": "steps", "milestones": (5, 3)}, r"milestones must ascend, got \[5, 3\]"),
        ({"shape": "steps", "milestones": (3, 3)}, r"milestones must ascend"),
        ({"shape": "steps", "milestones": (0, 3)}, r"milestones must be a whole number >= 1, got 0"),
        ({"shape": "steps", "milestones": 3}, r"milestones must be a list of epochs, got 3"),
        ({"epochs": 10, "warmup_epochs": 10}, r"warmup_epochs must be fewer than.*got 10 of 10"),
        ({"epochs": (50, 5), "warmup_epochs": 10}, r"warmup_epochs must be fewer than.*got 10 of 5"),
        ({"shape": "steps", "epochs": (50, 20), "milestones": (10, 20)}, r"milestones must lie before.*20 with 20"),
    ],
    ids=str,
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=rf"ExperienceSchedule: {message}"):
        ExperienceSchedule(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"warmup_epochs": 3}, r"warmup_epochs must be fewer than the epochs of each experience, got 3 of 3"),
        ({"shape": "steps", "milestones": (2, 7)}, r"milestones must lie before the last epoch.*got 7 with 3 epochs"),
        ({"warmup_epochs": 1, "warmup_from": 0.6}, r"the warm-up would lead down, from warmup_from = 0.6 to 0.5 "),
    ],
    ids=str,
)
def test_what_only_the_strategy_tells_is_refused_at_its_first_experience(arguments, message):
    strategy = naive([ExperienceSchedule(**arguments)], train_epochs=3)
    with pytest.raises(ValueError, match=rf"ExperienceSchedule: {message}"):
        strategy.train(make_benchmark().train_stream[0])


def test_options_are_keywords():
    with pytest.raises(TypeError):
        ExperienceSchedule("cosine", 5)


@pytest.mark.parametrize("other", ["ours", "avalanche"])
def test_a_second_schedule_is_refused(other):
    model = linear()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    second = ExperienceSchedule()
    if other == "avalanche":
        second = LRSchedulerPlugin(torch.optim.lr_scheduler.StepLR(optimizer, 1))
    strategy = naive([second, ExperienceSchedule("cosine")], model=model, optimizer=optimizer)
    with pytest.raises(ValueError, match=r"sets the learning rate of the same optimiser.*Use one of them"):
        strategy.train(make_benchmark().train_stream[0])


def test_a_loader_without_length_has_no_warm_up():
    class Endless(SupervisedPlugin):
        def before_training_epoch(self, strategy, **kwargs):
            strategy.dataloader = iter(strategy.dataloader)  # a generator: no length

    strategy = naive([ExperienceSchedule(epochs=3, warmup_epochs=1), Endless()], strategy=Naive)
    stream = make_benchmark("C").train_stream
    with pytest.raises(ValueError, match=r"warm-up needs the number of iterations.*generator, has no length"):
        strategy.train(stream[0])
