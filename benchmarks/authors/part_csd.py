"""CSD: the authors' plugin under Avalanche of today, their classifier and their ResNet-32."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import avalanche.training.plugins
import torch
from avalanche.training import Naive
from avalanche.training.plugins import SupervisedPlugin
from checkouts import Checkout, no_gpu_needed
from replay import Images, Part, Playback, Recorder, copied, difference, largest, seeded, stream_of, values_of
from torch import Tensor, nn

from avalanche_contrastive import CSDPlugin, ExperienceSchedule
from avalanche_contrastive.bench.methods.heads import GrowingUnitHead
from avalanche_contrastive.bench.methods.networks import Classifier, make_encoder

METHOD = "CSD"
EXPERIENCES, CLASSES_EACH = 3, 2
CLASSES = EXPERIENCES * CLASSES_EACH


def parts(checkout: Checkout) -> Iterator[Part]:
    """Network, schedule and training."""
    stack = ExitStack()
    with stack:
        # What Avalanche has renamed since.
        old_name = mock.patch.object(avalanche.training.plugins, "StrategyPlugin", SupervisedPlugin, create=True)
        stack.enter_context(old_name)
        stubs = ("avalanche.training.strategies",)
        plugins, resnet = stack.enter_context(checkout.modules("trainer.plugins", "resnet", stubs=stubs))
        yield _network(resnet)
        yield _initialisation(resnet)
        yield _schedule(plugins)
        yield _training(plugins, resnet)


def _network(resnet: Any) -> Part:
    """ResNet-32 and head from the same weights: outputs in both modes, gradients, batch statistics."""
    seeded(0)
    theirs, model = _networks(resnet, CLASSES)
    _head_of(model).seen[:] = True
    x = torch.randn(6, 3, 32, 32)
    sides = []
    for forward, network in ((_outputs_of(model), model), (theirs, theirs)):
        logits, features = forward(x)
        (logits.square().sum() + features.sum()).backward()
        gradients = [p.grad for p in network.parameters() if p.grad is not None]
        trained = [logits.detach(), features.detach(), *gradients, *values_of(network)]
        network.eval()
        sides.append([*trained, *(output.detach() for output in forward(x))])
    return Part(
        METHOD,
        "network",
        "resnet.resnet32",
        'network "resnet32_csd" with bench.methods.heads.GrowingUnitHead',
        "logits, features, gradients and batch statistics of 6 images, the same weights",
        *difference(*sides),
    )


def _networks(resnet: Any, classes: int) -> tuple[nn.Module, Classifier]:
    """Theirs, and ours with the same weights."""
    with no_gpu_needed():  # of the warning that PyTorch has renamed a function
        theirs = resnet.resnet32(num_classes=classes)
    model = Classifier(make_encoder("resnet32_csd", (3, 32, 32)), GrowingUnitHead(64, CLASSES))
    *body, head = values_of(theirs)
    copied([model.encoder], body)
    with torch.no_grad():
        _head_of(model).weight[:classes] = head
    return theirs, model


def _head_of(model: Classifier) -> GrowingUnitHead:
    assert isinstance(model.head, GrowingUnitHead)
    return model.head


def _outputs_of(model: Classifier) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    def outputs(x: Tensor) -> tuple[Tensor, Tensor]:
        features = model.encoder(x)
        logits: Tensor = model.head(features)
        return logits, features

    return outputs


def _initialisation(resnet: Any) -> Part:
    """The spread of each convolution's weights, in units of what it should be."""
    seeded(1)
    spreads = []
    for make in (lambda: make_encoder("resnet32_csd", (3, 32, 32)), resnet.resnet32):
        drawn = []
        for _ in range(20):
            with no_gpu_needed():
                layers = [layer for layer in make().modules() if isinstance(layer, nn.Conv2d)]
            drawn.append(torch.stack([x.weight.std() / (2 / (9 * x.out_channels)) ** 0.5 for x in layers]).detach())
        spreads.append(torch.stack(drawn).mean(dim=0))
    return Part(
        METHOD,
        "initialisation of the network",
        "resnet.resnet32",
        'network "resnet32_csd"',
        "the spread of the weights of 31 convolutions, mean of 20 draws",
        *difference(spreads[:1], spreads[1:]),
        note="random: the smallest layer's spread has a standard error of 0.0076 in each",
        bound=0.04,
    )


def _schedule(plugins: Any) -> Part:
    """The learning rate of 800 epochs, of the first and of a later experience."""
    schedule = ExperienceSchedule("steps", epochs=800, milestones=(200, 400, 600), later=0.01, reset_optimizer=True)
    ours, theirs = [], []
    for number in range(2):
        strategy = SimpleNamespace(
            experience=SimpleNamespace(current_experience=number), model=nn.Linear(1, 1), optimizer=None
        )
        plugin = plugins.ILFGIR_plugin("", "", None, None, 1.0, 1.0)
        plugin.before_training_exp(strategy)
        optimizer: Any = strategy.optimizer
        for epoch in range(1, 801):
            theirs.append(optimizer.param_groups[0]["lr"])
            ours.append(schedule.rate(1e-3, number, epoch, 800))
            optimizer.step()
            plugin.after_training_epoch(strategy)
    return Part(
        METHOD,
        "schedule",
        "trainer.plugins.ILFGIR_plugin: Adam and MultiStepLR",
        'ExperienceSchedule("steps", later=0.01)',
        f"{len(ours)} learning rates, of 2 experiences",
        *difference([torch.tensor(ours)], [torch.tensor(theirs)]),
    )


class _Beside(SupervisedPlugin[Any]):
    """Puts their strategy on our batches, and does what their metric does at the end of an experience.

    Args:
        recorder: of our training.
        checkpoint: file of the weights that their plugin goes on with: the last.
    """

    def __init__(self, recorder: Recorder, checkpoint: Path) -> None:
        super().__init__()
        self.recorder, self.checkpoint = recorder, checkpoint
        self.weights: list[list[Tensor]] = []
        self.batches: Any = None

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """The rows of new classes are those of our head."""
        number = strategy.experience.current_experience
        self.batches = iter(Playback(self.recorder.batches[number]).epochs)
        head, ours = strategy.model.inc_classifier.classifier, self.recorder.starts[number][-1]
        new = slice(number * CLASSES_EACH, head.out_features)
        head.weight.data[new] = ours[new]

    def before_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        """Our batches."""
        strategy.dataloader = next(self.batches)

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Save what their plugin will load."""
        self.weights.append(values_of(strategy.model))
        torch.save({"model_state_dict": strategy.model.state_dict()}, self.checkpoint)


def _training(plugins: Any, resnet: Any) -> Part:
    """Cross-entropy with a growing head, triplets, both distillations, Adam: over three experiences."""
    seeded(2)
    theirs, model = _networks(resnet, CLASSES_EACH)
    recorder = Recorder(model)
    stream = stream_of(Images((3, 32, 32), classes=CLASSES, per_class=8, seed=3), EXPERIENCES)
    options: dict[str, Any] = {"train_mb_size": 8, "train_epochs": 3, "evaluator": None}
    schedule = ExperienceSchedule(later=0.01, reset_optimizer=True)
    strategy = Naive(
        model=model,
        optimizer=torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=5e-4),
        plugins=[CSDPlugin(teacher_mode="train"), schedule, recorder],
        **options,
    )
    for experience in stream.train_stream:
        strategy.train(experience)
    return Part(
        METHOD,
        "training",
        "trainer.plugins.ILFGIR_plugin under Avalanche's Naive, losses, resnet",
        'CSDPlugin(teacher_mode="train") under Naive, ExperienceSchedule, "resnet32_csd", GrowingUnitHead',
        f"weights after each of {EXPERIENCES} experiences, {recorder.steps} steps",
        *largest(recorder.weights, _replayed(plugins, resnet, theirs, recorder, stream, options)),
        note="their plugin goes on with the last weights, not with the best on the test images",
    )


def _replayed(
    plugins: Any, resnet: Any, model: nn.Module, recorder: Recorder, stream: Any, options: dict[str, Any]
) -> list[list[Tensor]]:
    """The values of their model after each experience, with our rows of the classes to come."""
    grown = resnet.NewIncrementalClassifier.adaptation

    def adaptation(head: Any, experience: Any) -> None:  # Avalanche gave a data set once
        grown(head, experience.dataset)

    with tempfile.TemporaryDirectory() as folder, no_gpu_needed():
        beside = _Beside(recorder, Path(folder, "best.pth"))
        plugin = plugins.ILFGIR_plugin("", str(beside.checkpoint), None, None, 1.0, 1.0)
        with mock.patch.object(resnet.NewIncrementalClassifier, "adaptation", adaptation):
            strategy = Naive(
                model=model,
                optimizer=torch.optim.Adam(model.parameters()),
                plugins=[beside, plugin],
                **options,
            )
            for experience in stream.train_stream:
                strategy.train(experience)
    return [
        [*body, torch.cat([head, ours[-1][len(head) :]])]
        for (*body, head), ours in zip(beside.weights, recorder.weights, strict=True)
    ]
