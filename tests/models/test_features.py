"""The capture of features from inside any model."""

import copy

import pytest
import torch
import torch.nn.functional as F
from avalanche.models import (
    IncrementalClassifier,
    MTSimpleMLP,
    MultiHeadClassifier,
    MultiTaskModule,
    NCMClassifier,
    SimpleMLP,
)
from avalanche.models.cosine_layer import CosineIncrementalClassifier
from helpers.streams import make_benchmark
from torch import nn

from avalanche_contrastive.features import FeatureCapture


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
    capture, x = FeatureCapture(), torch.randn(64, 4)  # so many that no head ranks all alike by chance
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
    with pytest.raises(ValueError, match=r"ran, '0' \(6 outputs\), has made the 3 outputs of the model:"):
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


# ---- more than one classifier layer


class TwoHeads(nn.Module):
    """A main head, and an auxiliary one of equal width on other features, which runs last."""

    def __init__(self, give=lambda main, aux: main):
        super().__init__()
        self.body, self.other = nn.Linear(4, 6), nn.Linear(4, 5)
        self.head, self.aux = nn.Linear(6, 3), nn.Linear(5, 3)
        self.give = give

    def forward(self, x):
        main = self.head(self.body(x).relu())
        return self.give(main, self.aux(self.other(x).relu()))


RETURNED = {
    "one of two": (lambda main, aux: main, lambda result: result),
    "a view of it": (lambda main, aux: main[:, :2], lambda result: result),
    "changed in place": (lambda main, aux: main.div_(2.0), lambda result: result),
    "a tuple": (lambda main, aux: (main, aux), lambda result: result[0]),
    "a dictionary": (lambda main, aux: {"aux": aux, "logits": main}, lambda result: result["logits"]),
    "scaled": (lambda main, aux: main / 2, lambda result: result),
    "scaled afterwards": (lambda main, aux: (main, aux), lambda result: result[0] / 2),
    "a log-softmax": (lambda main, aux: {"a": aux, "p": main.log_softmax(1)}, lambda result: result["p"]),
    "a softmax that is all or nothing": (lambda main, aux: (1e3 * main).softmax(1), lambda result: result),
    "in another precision": (lambda main, aux: (aux.half(), main.half()), lambda result: result[1]),
    "replaced by a plugin": (lambda main, aux: main, lambda result: torch.randn(5, 3)),
    "inside others": (lambda main, aux: {"heads": [aux, (main,)]}, lambda result: result["heads"][1][0]),
}


@pytest.mark.parametrize("grad", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize(("give", "logits"), RETURNED.values(), ids=RETURNED.keys())
def test_features_are_of_the_layer_that_made_the_logits(give, logits, grad):
    net, x, capture = TwoHeads(give), torch.randn(5, 4), FeatureCapture()
    with torch.set_grad_enabled(grad), capture.listening(net):
        result = net(x)
    assert torch.equal(capture.take(logits(result)), net.body(x).relu())


class EitherWay(nn.Module):
    """Two heads, of which the caller chooses one; with batch statistics before them."""

    def __init__(self):
        super().__init__()
        self.body, self.norm = nn.Linear(4, 6), nn.BatchNorm1d(6, momentum=None)  # counts the batches
        self.one, self.other, self.way = nn.Linear(6, 3), nn.Linear(6, 3), "one"

    def forward(self, x):
        first = self.norm(self.body(x))
        return self.one(first) if self.way == "one" else self.other(first.relu())


def test_the_layer_that_made_the_output_is_the_only_one_listened_to_afterwards():
    net, x, capture, seen = EitherWay(), torch.randn(5, 4), FeatureCapture(), []
    places = capture.places_in(net)

    def call():
        seen.append([name for name, layer in net.named_modules() if layer._forward_hooks])
        return net(x)

    first, second = (capture.of_call(net, places, call) for _ in range(2))
    assert seen == [["", "body", "one", "other"], ["one"]]  # the model itself, too, the first time
    for output, features in (first, second):
        assert torch.equal(features, F.batch_norm(net.body(x), None, None, training=True))
        assert torch.equal(output, net.one(features))
    assert not any(layer._forward_hooks for layer in net.modules())


def test_a_model_that_goes_another_way_is_listened_to_anew():
    net, x, capture = EitherWay(), torch.randn(5, 4), FeatureCapture()
    places = capture.places_in(net)
    for calls, way in enumerate(["one", "other", "other", "one"], start=1):
        net.way = way
        output, features = capture.of_call(net, places, lambda: net(x))
        normalised = F.batch_norm(net.body(x), None, None, training=True)
        assert torch.equal(features, normalised if way == "one" else normalised.relu())
        assert torch.equal(output, getattr(net, way)(features))
        assert net.norm.num_batches_tracked == calls  # once for each batch, however often it went through
    assert not any(layer._forward_hooks for layer in net.modules())


def test_a_head_that_is_asked_twice_is_no_other_way():
    class Pair(EitherWay):
        def forward(self, x):
            output = super().forward(x)
            self.one(self.norm(self.body(-x)))
            return output

    net, x, capture = Pair(), torch.randn(5, 4), FeatureCapture()
    places = capture.places_in(net)
    for calls in (1, 2, 3):
        output, features = capture.of_call(net, places, lambda: net(x))
        assert torch.equal(output, net.one(features))
        assert net.norm.num_batches_tracked == 2 * calls


def test_a_failing_call_leaves_no_hook():
    net, capture = EitherWay(), FeatureCapture()
    places = capture.places_in(net)
    for _ in range(2):
        capture.of_call(net, places, lambda: net(torch.randn(5, 4)))
        with pytest.raises(RuntimeError):
            capture.of_call(net, places, lambda: net(torch.randn(5, 3)))
        assert not any(layer._forward_hooks for layer in net.modules())
        places.maker = None


OPEN = {
    "both, as they are": (lambda main, aux: (main, aux), lambda result: result),
    "both, scaled": (lambda main, aux: (main / 2, aux / 2), lambda result: result),
}


@pytest.mark.parametrize(("give", "logits"), OPEN.values(), ids=OPEN.keys())
def test_an_open_choice_is_refused_with_the_names(give, logits):
    net, capture = TwoHeads(give), FeatureCapture()
    with capture.listening(net):
        result = net(torch.randn(5, 4))
    with pytest.raises(ValueError, match=r"any of the classifier layers \['aux', 'head'\].*Name the layer"):
        capture.take(logits(result))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


class OwnHead(nn.Module):
    """A head of the user's own, and an auxiliary nn.Linear of its width that runs last."""

    def __init__(self):
        super().__init__()
        self.body, self.weight, self.aux = nn.Linear(4, 6), nn.Parameter(torch.randn(3, 6)), nn.Linear(6, 3)

    def forward(self, x):
        features = self.body(x)
        logits = features @ self.weight.T
        self.aux(features[:, :6])
        return logits


MIXED = {
    "a head of the user's own": (OwnHead(), r"'aux' \(3 outputs\), has made the 3 outputs"),
    "a sum of two heads": (
        TwoHeads(lambda main, aux: main + aux),
        r"'head' \(3 outputs\), 'other' \(5 outputs\), 'aux' \(3 outputs\), has made the 3 outputs.*mixes several",
    ),
    "heads side by side": (
        TwoHeads(lambda main, aux: torch.cat([main, aux], 1)),
        r"'aux' \(3 outputs\), has made the 6 outputs",
    ),
}


@pytest.mark.parametrize(("net", "message"), MIXED.values(), ids=MIXED.keys())
def test_logits_that_no_single_layer_made_are_refused(net, message):
    capture, x = FeatureCapture(), torch.randn(64, 4)  # so many that no head ranks all alike by chance
    for grad in (True, False):
        with torch.set_grad_enabled(grad), capture.listening(net):
            logits = net(x)
        with pytest.raises(ValueError, match=message + ".*Name the layer"):
            capture.take(logits)


def test_two_heads_on_one_feature_are_no_choice():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.old, self.new = nn.Linear(4, 6), nn.Linear(6, 3), nn.Linear(6, 3)

        def forward(self, x):
            features = self.body(x)
            return self.old(features), self.new(features)

    net, x, capture = Twice(), torch.randn(5, 4), FeatureCapture()
    with capture.listening(net):
        logits = net(x)
    assert torch.equal(capture.take(logits), net.body(x))


class HeadAndAuxiliary(MultiTaskModule):
    """A head per task and an auxiliary layer, which runs last."""

    def __init__(self):
        super().__init__()
        self.body, self.head, self.aux = nn.Linear(64, 6), MultiHeadClassifier(6, 2), nn.Linear(4, 2)

    def forward_single_task(self, x, task_label):
        features = self.body(x.flatten(1))
        logits = self.head(features, task_label)
        self.aux(features[:, :4])
        return logits


def test_an_auxiliary_layer_in_a_model_with_a_head_per_task():
    net, x, capture = HeadAndAuxiliary(), torch.rand(5, 1, 8, 8), FeatureCapture()
    for experience in make_benchmark("C").train_stream[:1]:
        net.train()
        for module in (net, net.head):
            module.adaptation(experience)
    expected = net.body(x.flatten(1))
    for tasks in (0, torch.zeros(5, dtype=torch.long), None):
        with capture.listening(net):
            output = net(x, tasks)
        torch.testing.assert_close(capture.take(output), expected)


def test_the_pass_that_gave_the_logits_counts():
    net, first, second, capture = TwoHeads(), torch.randn(5, 4), torch.randn(5, 4), FeatureCapture()
    with capture.listening(net):
        logits = net(first)
        net(second)
    assert torch.equal(capture.take(logits), net.body(first).relu())


def test_hidden_layers_of_sequences_are_not_held():
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Flatten(), nn.Linear(12, 3))
    capture = FeatureCapture()
    with capture.listening(net):
        logits = net(torch.randn(5, 2, 4))
    assert [call.layer for call in capture._record.passes[0].calls] == [net[3]]
    assert capture.take(logits).shape == (5, 12)


def test_a_copy_made_while_listening_does_not_note_in_the_original():
    net, x, capture = TwoHeads(), torch.randn(5, 4), FeatureCapture()
    with capture.listening(net):
        copied = copy.deepcopy(net)
        logits = net(x)
        copied(torch.randn(5, 4))
    assert len(capture._record.passes) == 1
    assert torch.equal(capture.take(logits), net.body(x).relu())


@pytest.mark.parametrize("layer", [None, "body"])
def test_features_in_inference_mode(layer):
    net, x, capture = TwoHeads(), torch.randn(5, 4), FeatureCapture(layer)
    with torch.inference_mode(), capture.listening(net):
        logits = net(x)
        features = capture.take(logits)
    assert torch.equal(features, net.body(x) if layer else net.body(x).relu())
    with capture.listening(net):
        logits = net(x)
    capture.take(logits).sum().backward()
    assert net.body.weight.grad is not None
