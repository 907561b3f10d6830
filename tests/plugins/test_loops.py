"""The loss wanted more than once per step: in any loop it is the method's, for the output at hand.

Each way of asking ends in gradients, which are held to those of the documented objective, worked out from a copy of the
model, the views that the augmentation has made, and nothing that a plugin has noted.
"""

import copy

import pytest
import torch
import torch.nn.functional as F
from avalanche.models import avalanche_forward
from avalanche.training import Naive
from avalanche.training.plugins import SupervisedPlugin
from helpers.partners import OBJECTIVES, Watch, body_and_head, make_method, make_model
from helpers.streams import ORDER, make_benchmark
from torch import nn
from torch.nn.utils import stateless

METHODS = ("co2l", "ssil", "csd")
every_method = pytest.mark.parametrize("method", METHODS)
RHO = 0.05


class Noise:
    """An augmentation that keeps what it has made."""

    def __init__(self):
        self.made = []

    def __call__(self, x):
        self.made.append(x + 0.1 * torch.randn_like(x))
        return self.made[-1]


def build(method, loop=Naive, plugins=(), **options):
    torch.manual_seed(0)
    model, own = make_model(method), {"augmentation": Noise()} if method == "co2l" else {}
    plugin = make_method(method, **own)
    strategy = loop(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.05),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=12,
        eval_mb_size=50,
        plugins=[plugin, *plugins],
        evaluator=None,
        **options,
    )
    strategy.method = plugin
    return strategy


class Reading:
    """The objective of the second experience by the test's own account."""

    def __init__(self, method, strategy):
        self.method, self.strategy = method, strategy
        self.watch = Watch(method, strategy.method)
        self.watch.seen, self.watch.current = [sorted(ORDER[:2])], sorted(ORDER[2:4])
        self.watch.teacher = copy.deepcopy(strategy.model).eval()

    def gradient(self, model, x, y):
        """Of a copy's parameters, flattened, for a batch whose views have been made."""
        model = copy.deepcopy(model).train()
        model.zero_grad()
        body, head = body_and_head(model)
        if self.method == "co2l":
            views = torch.stack(self.strategy.method.augmentation.made[-2:], dim=1)
            assert views.shape[0] == len(y)
            features = body(views.flatten(0, 1))
            given, output = views, F.normalize(head(features), dim=-1).unflatten(0, views.shape[:2])
        else:
            features = body(x)
            given, output = x, head(features)
        sum(OBJECTIVES[self.method](self.watch, given, features, output, y).values()).backward()
        return gradient_of(model)


def gradient_of(model):
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in model.parameters()])


def moved(model, step):
    """A copy of the model whose weights are moved along a flat direction."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        torch.nn.utils.vector_to_parameters(
            torch.nn.utils.parameters_to_vector(other.parameters()) + step, other.parameters()
        )
    return other


def shift(model, step):
    with torch.no_grad():
        vector = torch.nn.utils.parameters_to_vector(model.parameters()) + step
        torch.nn.utils.vector_to_parameters(vector, model.parameters())


def uphill(gradient):
    return RHO * gradient / gradient.norm()


# ---- ways to want the loss again


def through_the_strategy(strategy):
    strategy.mb_output = strategy.forward()
    return strategy.criterion()


def past_the_strategys_forward(strategy):
    strategy.mb_output = strategy.model(strategy.mb_x)
    return strategy.criterion()


def past_the_strategys_criterion(strategy):
    strategy.mb_output = avalanche_forward(strategy.model, strategy.mb_x, strategy.mb_task_id)
    return strategy._criterion(strategy.mb_output, strategy.mb_y)


def without_a_place_for_the_output(strategy):
    return strategy._criterion(strategy.forward(), strategy.mb_y)


def twice(strategy):
    strategy.mb_output = strategy.forward()
    return (strategy.criterion() + strategy.criterion()) / 2


WAYS = [through_the_strategy, past_the_strategys_forward, past_the_strategys_criterion]
WAYS += [without_a_place_for_the_output, twice]


class Sam(SupervisedPlugin):
    """Sharpness-aware minimisation (Foret et al. 2021): the step is made with the gradient a little way uphill.

    Args:
        way: gives the loss once more.
        hook: in which.
    """

    def __init__(self, way, hook):
        super().__init__()
        self.way, self.steps = way, []
        setattr(self, hook, self.sharpen)

    def before_forward(self, strategy, **kwargs):
        self.before, self.x, self.y = copy.deepcopy(strategy.model), strategy.mb_x.clone(), strategy.mb_y.clone()

    def sharpen(self, strategy, **kwargs):
        first = gradient_of(strategy.model)
        step = uphill(first)
        shift(strategy.model, step)
        strategy.optimizer.zero_grad()
        self.way(strategy).backward()
        shift(strategy.model, -step)
        self.steps.append((self.before, self.x, self.y, first, gradient_of(strategy.model)))


@pytest.mark.parametrize("hook", ["after_backward", "before_update"])
@pytest.mark.parametrize("way", WAYS)
@every_method
def test_sharpness_aware_minimisation(method, way, hook):
    sam = Sam(way, hook)
    strategy = build(method, plugins=[sam])
    stream = make_benchmark().train_stream
    strategy.train(stream[0])
    reading = Reading(method, strategy)
    sam.steps.clear()

    class Check(SupervisedPlugin):
        def after_update(self, strategy, **kwargs):
            model, x, y, first, second = sam.steps[-1]
            assert torch.allclose(first, reading.gradient(model, x, y), atol=1e-5)
            expected = reading.gradient(moved(model, uphill(first)), x, y)
            assert torch.allclose(second, expected, atol=1e-5)
            assert not torch.allclose(second, first, atol=1e-3), "the step uphill makes a difference"

    strategy.plugins.insert(2, Check())
    strategy.train(stream[1])
    assert len(sam.steps) == 2 + 2 * (method == "co2l")  # with the memory in the data set
    assert isinstance(strategy._criterion, nn.CrossEntropyLoss)
    assert "forward" not in vars(strategy)
    if method == "co2l":
        assert len(strategy.method.augmentation.made) == 2 * (2 + len(sam.steps)), "one draw of views for each batch"


def test_the_teacher_is_asked_once_for_a_batch():
    for method in METHODS:
        strategy = build(method, plugins=[Sam(through_the_strategy, "after_backward")])
        stream = make_benchmark().train_stream
        strategy.train(stream[0])
        asked = []

        class Listen(SupervisedPlugin):
            def before_training_epoch(self, strategy, asked=asked, **kwargs):
                strategy.method.teacher.register_forward_hook(lambda *_: asked.append(1))

        strategy.plugins.append(Listen())
        strategy.train(stream[1])
        assert len(asked) == strategy.clock.train_iterations - 2


class Passes(SupervisedPlugin):
    """Notes who is called, the teacher or the student, in each step of an experience."""

    def __init__(self):
        super().__init__()
        self.steps, self.hooks = [], []

    def before_forward(self, strategy, **kwargs):
        self.steps.append([])
        for name, model in (("teacher", strategy.method.teacher), ("student", strategy.model)):
            self.hooks.append(model.register_forward_hook(lambda *_, name=name: self.steps[-1].append(name)))

    def after_update(self, strategy, **kwargs):
        while self.hooks:
            self.hooks.pop().remove()


@every_method
def test_the_teacher_is_asked_before_the_student(method):
    """Behind it, its layers would take memory beside the student's activations."""
    strategy, passes = build(method), Passes()
    stream = make_benchmark().train_stream
    strategy.train(stream[0])
    strategy.plugins.append(passes)
    strategy.train(stream[1])
    assert len(passes.steps) >= 2
    assert all(step == ["teacher", "student"] for step in passes.steps)


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("method", ["ssil", "csd"])
def test_the_teacher_is_asked_again_for_a_batch_that_has_changed_since(method, in_place):
    class Changes(SupervisedPlugin):
        def after_forward(self, strategy, **kwargs):
            _, y, *others = strategy.mbatch
            strategy.mbatch = [strategy.mb_x.mul_(0.5) if in_place else 0.5 * strategy.mb_x, y, *others]
            strategy.mb_output = strategy.forward()

        def before_backward(self, strategy, **kwargs):
            _, _, answer = strategy.method.of_batch["teacher"]
            teacher, x = strategy.method.teacher, strategy.mb_x
            assert torch.allclose(answer, avalanche_forward(teacher, x, strategy.mb_task_id))
            assert not torch.allclose(answer, avalanche_forward(teacher, 2 * x, strategy.mb_task_id))
            checked.append(1)

    strategy, checked = build(method), []
    stream = make_benchmark().train_stream
    strategy.train(stream[0])
    strategy.plugins.append(Changes())
    strategy.train(stream[1])
    assert checked


# ---- loops and optimisers


class Evaluations(torch.optim.SGD):
    """An optimiser that wants the loss several times for one step, at weights of its own (as line searches do)."""

    def __init__(self, model):
        super().__init__(model.parameters(), lr=0.05)
        self.model, self.seen = model, []

    def step(self, closure):
        for scale in (0.0, 0.5, -1.0):
            before = copy.deepcopy(self.model)
            shift(self.model, scale * 0.01)
            with torch.enable_grad():
                loss = closure()
            self.seen.append((moved(before, scale * 0.01), gradient_of(self.model), loss))
            shift(self.model, -scale * 0.01)
        return super().step()


class Closure(Naive):
    """A strategy whose step is a closure, as second-order optimisers want it."""

    def optimizer_step(self):
        def closure():
            self.optimizer.zero_grad()
            self.mb_output = self.forward()
            loss = self.criterion()
            loss.backward()
            return loss

        self.optimizer.step(closure)


class ClosureOnly(Closure):
    """The same in a loop of its own, which computes no loss before."""

    def training_epoch(self, **kwargs):
        for mbatch in self.dataloader:
            self.mbatch = mbatch
            self._unpack_minibatch()
            self._before_training_iteration(**kwargs)
            self._before_update(**kwargs)
            self.optimizer_step()
            self._after_update(**kwargs)
            self._after_training_iteration(**kwargs)


class OwnCalls(Naive):
    """A loop that calls the model and the criterion itself, and the hooks around each pass, twice a batch."""

    def training_epoch(self, **kwargs):
        for mbatch in self.dataloader:
            self.mbatch = mbatch
            self._unpack_minibatch()
            self._before_training_iteration(**kwargs)
            for _ in range(2):
                self.optimizer.zero_grad()
                self._before_forward(**kwargs)
                self.mb_output = self.model(self.mb_x)
                self._after_forward(**kwargs)
                self.loss = self._criterion(self.mb_output, self.mb_y)
                self._before_backward(**kwargs)
                self.loss.backward()
                self._after_backward(**kwargs)
                self.optimizer_step()
                self._after_update(**kwargs)
            self._after_training_iteration(**kwargs)


@pytest.mark.parametrize("loop", [Closure, ClosureOnly])
@every_method
def test_an_optimiser_that_wants_the_loss_several_times(method, loop):
    strategy = build(method, loop)
    strategy.optimizer = Evaluations(strategy.model)
    stream = make_benchmark().train_stream
    strategy.train(stream[0])
    reading, batches = Reading(method, strategy), []
    strategy.optimizer.seen.clear()

    class Check(SupervisedPlugin):
        def after_update(self, strategy, **kwargs):
            for model, gradient, _ in strategy.optimizer.seen:
                assert torch.allclose(gradient, reading.gradient(model, strategy.mb_x, strategy.mb_y), atol=1e-5)
            losses = {loss.item() for _, _, loss in strategy.optimizer.seen}
            assert len(losses) == 3
            strategy.optimizer.seen.clear()
            batches.append(1)

    strategy.plugins.insert(1, Check())
    strategy.train(stream[1])
    assert batches


@every_method
def test_lbfgs(method):
    strategy = build(method, Closure)
    strategy.optimizer = torch.optim.LBFGS(strategy.model.parameters(), lr=0.1, max_iter=4)
    before = torch.nn.utils.parameters_to_vector(strategy.model.parameters()).clone()
    losses = []
    own = strategy.method.objective
    strategy.method.objective = lambda s: losses.append(own(s)) or losses[-1]
    strategy.train(make_benchmark().train_stream[:2])
    after = torch.nn.utils.parameters_to_vector(strategy.model.parameters())
    assert after.isfinite().all()
    assert not torch.equal(before, after)
    assert len(losses) > 3 * strategy.clock.train_iterations


@every_method
def test_a_loop_that_calls_model_and_criterion_itself_twice_a_batch(method):
    strategy = build(method, OwnCalls)
    stream = make_benchmark().train_stream
    strategy.train(stream[0])
    reading, gradients = Reading(method, strategy), []

    class Check(SupervisedPlugin):
        def before_forward(self, strategy, **kwargs):
            self.model = copy.deepcopy(strategy.model)

        def after_backward(self, strategy, **kwargs):
            expected = reading.gradient(self.model, strategy.mb_x, strategy.mb_y)
            assert torch.allclose(gradient_of(strategy.model), expected, atol=1e-5)
            gradients.append(expected)

    strategy.plugins.insert(1, Check())
    strategy.train(stream[1])
    assert len(gradients) == 2 * (strategy.clock.train_iterations - 2)
    assert not torch.allclose(gradients[0], gradients[1], rtol=1e-3, atol=1e-4)


# ---- the user's criterion beside it


@pytest.mark.parametrize("hook", ["after_backward", "after_update", "after_training_iteration"])
@pytest.mark.parametrize("first", [True, False])
@every_method
def test_the_loss_of_the_batch_is_the_objective_until_the_iteration_has_ended(method, hook, first):
    """A plugin before or behind the method asks for it again, of the output that has been trained on."""
    losses = []

    class Ask(SupervisedPlugin):
        def ask(self, strategy, **kwargs):
            losses.append((strategy.criterion().item(), strategy.loss.item()))

        locals()[hook] = ask

    strategy = build(method, plugins=[Ask()])
    if first:
        strategy.plugins.insert(0, strategy.plugins.pop(1))
    strategy.train(make_benchmark().train_stream[:2])
    assert len(losses) == strategy.clock.train_iterations
    for again, trained in losses:
        assert again == pytest.approx(trained, abs=1e-5)
    assert isinstance(strategy._criterion, nn.CrossEntropyLoss)


class Beside(SupervisedPlugin):
    """Wants the user's criterion for outputs and labels of its own, in every hook of an iteration."""

    def __init__(self):
        super().__init__()
        self.checked = 0

    def look(self, strategy, **kwargs):
        logits, y = torch.randn(5, 10, requires_grad=True), torch.arange(5)
        assert torch.equal(strategy._criterion(logits, y), F.cross_entropy(logits, y))
        assert strategy._criterion.reduction == "mean"
        output = strategy.mb_output
        if isinstance(output, torch.Tensor) and output.shape[1:] == (10,) and strategy.is_training:
            mixed = strategy.mb_y.flip(0)
            if not torch.equal(mixed, strategy.mb_y):
                assert torch.equal(strategy._criterion(output, mixed), F.cross_entropy(output, mixed))
        self.checked += 1

    before_training_iteration = before_forward = after_forward = before_backward = after_backward = look
    before_update = after_update = after_training_iteration = before_eval_iteration = after_eval_forward = look


@pytest.mark.parametrize("first", [True, False])
@every_method
def test_plugins_that_want_the_users_criterion(method, first):
    beside = Beside()
    strategy = build(method, plugins=[beside], eval_every=1)
    if first:
        strategy.plugins.insert(0, strategy.plugins.pop(1))
    strategy.train(make_benchmark().train_stream[:2])
    assert beside.checked > 8 * strategy.clock.train_iterations


class EvaluatesAndGoesOn(SupervisedPlugin):
    """Evaluates in the middle of a step and puts the batch back, which Avalanche clears."""

    def __init__(self, hook, stream):
        super().__init__()
        self.stream, self.done = stream, 0
        setattr(self, hook, self.evaluate)

    def evaluate(self, strategy, **kwargs):
        if self.stream is None:
            return
        kept = strategy.mbatch, strategy.mb_output, strategy.loss
        strategy.eval(self.stream)
        strategy.mbatch, strategy.mb_output, strategy.loss = kept
        self.done += 1

    def after_eval_forward(self, strategy, **kwargs):
        assert isinstance(strategy._criterion, nn.CrossEntropyLoss)
        assert vars(strategy).keys().isdisjoint({"forward", "criterion"})


HOOKS = ("before_training_iteration", "before_forward", "after_forward", "before_backward", "after_backward")


@pytest.mark.parametrize("hook", [*HOOKS, "before_update", "after_update"])
@pytest.mark.parametrize("place", [0, 1], ids=["before the method", "after it"])
@every_method
def test_an_evaluation_within_a_step(method, place, hook):
    finals = []
    for evaluates in (False, True):
        benchmark = make_benchmark()
        middle = EvaluatesAndGoesOn(hook, benchmark.test_stream[:1])
        strategy = build(method)
        strategy.plugins.insert(place, middle)
        middle.stream = benchmark.test_stream[:1] if evaluates else None
        if method == "co2l":
            strategy.method.augmentation = lambda x: x * 0.9  # no draws: an evaluation makes some of its own
        strategy.train(benchmark.train_stream[:2], shuffle=False)
        assert middle.done == (strategy.clock.train_iterations if evaluates else 0)
        finals.append(torch.nn.utils.parameters_to_vector(strategy.model.parameters()))
    assert torch.equal(*finals)


class AddsToTheCriterion(Naive):
    """A strategy with a ``criterion()`` of its own that asks for the loss, too."""

    def criterion(self):
        return super().criterion() + 0.5 * sum((p**2).sum() for p in self.model.parameters())


@every_method
def test_a_criterion_of_the_strategys_own_that_asks_for_the_loss(method):
    strategy = build(method, AddsToTheCriterion)
    stream = make_benchmark().train_stream
    strategy.train(stream[0])
    reading, steps = Reading(method, strategy), []

    class Check(SupervisedPlugin):
        def before_forward(self, strategy, **kwargs):
            self.model = copy.deepcopy(strategy.model)

        def after_backward(self, strategy, **kwargs):
            decay = torch.nn.utils.parameters_to_vector(self.model.parameters())
            expected = reading.gradient(self.model, strategy.mb_x, strategy.mb_y) + decay
            assert torch.allclose(gradient_of(strategy.model), expected, atol=1e-4)
            steps.append(1)

    strategy.plugins.insert(1, Check())
    strategy.train(stream[1])
    assert steps
    assert "criterion" not in vars(strategy)


class OwnLoss(Naive):
    def criterion(self):
        return F.cross_entropy(self.mb_output, self.mb_y)


@every_method
def test_a_criterion_that_leaves_the_objective_out_is_refused_before_it_trains(method):
    strategy = build(method, OwnLoss)
    before = {name: value.clone() for name, value in strategy.model.state_dict().items()}
    with pytest.raises(RuntimeError, match=r"OwnLoss trains without .* or with a criterion\(\) of its own"):
        strategy.train(make_benchmark().train_stream[0])
    after = strategy.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before if not name.startswith("readout"))
    assert vars(strategy).keys().isdisjoint({"forward", "criterion"})


@every_method
def test_an_own_forward_of_the_instance_is_put_back(method):
    strategy = build(method)
    calls, own = [], strategy.forward
    strategy.forward = lambda: calls.append(strategy.is_training) or own()
    kept = strategy.forward
    strategy.train(make_benchmark().train_stream[0])
    assert strategy.forward is kept
    assert sum(calls) == strategy.clock.train_iterations  # Co2L's read-out is fitted through it, too


class TrialWeights(SupervisedPlugin):
    """A meta-step: the loss at weights that the model does not hold."""

    def __init__(self, lend):
        super().__init__()
        self.lend, self.steps = lend, []

    def after_backward(self, strategy, **kwargs):
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in strategy.model.parameters()]
        named = zip(strategy.model.named_parameters(), gradients, strict=True)
        fast = {name: (p - 0.1 * g).detach().requires_grad_() for (name, p), g in named}
        model = moved(strategy.model, -0.1 * torch.cat([g.flatten() for g in gradients]))
        if self.lend:
            with stateless._reparametrize_module(strategy.model, fast):
                strategy.mb_output = strategy.forward()
                loss = strategy.criterion()
        else:
            strategy.mb_output = torch.func.functional_call(strategy.model, fast, (strategy.mb_x,))
            loss = strategy.criterion()
        found = torch.autograd.grad(loss, list(fast.values()), allow_unused=True, materialize_grads=True)
        self.steps.append((model, strategy.mb_x, strategy.mb_y, torch.cat([g.flatten() for g in found])))


@pytest.mark.parametrize("lend", [True, False])
@every_method
def test_a_step_at_weights_that_the_model_does_not_hold(method, lend):
    trial = TrialWeights(lend)
    strategy = build(method, plugins=[trial])
    stream = make_benchmark().train_stream
    if not lend and method != "ssil":
        with pytest.raises(ValueError, match=r"this model's parameters have not made.*Call strategy\.forward\(\)"):
            strategy.train(stream[0])
        return
    strategy.train(stream[0])
    reading = Reading(method, strategy)
    trial.steps.clear()

    class Check(SupervisedPlugin):
        def after_update(self, strategy, **kwargs):
            model, x, y, gradient = trial.steps[-1]
            assert torch.allclose(gradient, reading.gradient(model, x, y), atol=1e-5)

    strategy.plugins.insert(2, Check())
    strategy.train(stream[1])
    assert trial.steps


class LeavesEvaluationMode(SupervisedPlugin):
    def before_forward(self, strategy, **kwargs):
        strategy.model.eval()


def test_co2l_names_a_model_that_was_left_in_evaluation_mode():
    strategy = build("co2l", plugins=[LeavesEvaluationMode()])
    with pytest.raises(ValueError, match=r"evaluation mode within a training step.*class logits.*model\.train\(\)"):
        strategy.train(make_benchmark().train_stream[0])
