"""Avalanche's strategies as Avalanche ships them, and one repaired."""

from typing import Any

import torch
from avalanche.models import SCRModel
from avalanche.training import ER_ACE
from avalanche.training.plugins import ReplayPlugin
from avalanche.training.supervised import DER, SCR, ICaRL, JointTraining, LwF, Naive
from torch import nn

from benchmarks.models import FEATURES, Built, Setting, projection

LINEAR = "linear head"
NEAREST_MEAN = "nearest class mean of the stored images"


def naive(s: Setting) -> Built:
    """Fine-tuning."""
    model = s.classifier()
    return Built(Naive(model=model, optimizer=s.sgd(model.parameters()), **_with_criterion(s)), LINEAR)


def replay(s: Setting) -> Built:
    """Naive with ReplayPlugin and its default buffer."""
    model = s.classifier()
    plugin = ReplayPlugin(
        s.config.memory, batch_size=s.config.batch_size, batch_size_mem=s.config.options["batch_size_mem"]
    )
    common = _with_criterion(s)
    common["plugins"] = [*common["plugins"], plugin]
    return Built(Naive(model=model, optimizer=s.sgd(model.parameters()), **common), LINEAR)


def lwf(s: Setting) -> Built:
    """Learning without forgetting."""
    model = s.classifier()
    options = {name: s.config.options[name] for name in ("alpha", "temperature")}
    return Built(LwF(model=model, optimizer=s.sgd(model.parameters()), **options, **_with_criterion(s)), LINEAR)


def icarl(s: Setting) -> Built:
    """iCaRL; its loss is its own."""
    encoder, head = s.encoder(), nn.Linear(FEATURES, s.classes)
    strategy = ICaRL(
        feature_extractor=encoder,
        classifier=head,
        optimizer=s.sgd([*encoder.parameters(), *head.parameters()]),
        memory_size=s.config.memory,
        buffer_transform=None,
        fixed_memory=True,
        **s.common,
    )
    return Built(strategy, NEAREST_MEAN)


def scr(s: Setting) -> Built:
    """SCR with the benchmark's augmentation as its second view."""
    return _scr(s, SCR, unit_length=False)


def scr_repaired(s: Setting) -> Built:
    """SCR without the defects that RepairedSCR names."""
    return _scr(s, RepairedSCR, unit_length=True)


def _scr(s: Setting, strategy: Any, *, unit_length: bool) -> Built:
    o = s.config.options
    model = SCRModel(s.encoder(), projection(int(o["projection_size"]), unit_length=unit_length))
    built = strategy(
        model=model,
        optimizer=s.sgd(model.parameters()),
        augmentations=s.augmentation,
        mem_size=s.config.memory,
        temperature=o["temperature"],
        batch_size_mem=o["batch_size_mem"],
        **s.common,
    )
    return Built(built, NEAREST_MEAN)


def er_ace(s: Setting) -> Built:
    """Replay with asymmetric cross-entropy."""
    return Built(_with_buffer(s, ER_ACE, batch_size_mem=s.config.options["batch_size_mem"]), LINEAR)


def derpp(s: Setting) -> Built:
    """DER with beta > 0, which makes it DER++."""
    return Built(_with_buffer(s, DER, **s.config.options), LINEAR)


def joint(s: Setting) -> Built:
    """Everything at once."""
    model = s.classifier()
    return Built(JointTraining(model=model, optimizer=s.sgd(model.parameters()), **_with_criterion(s)), LINEAR)


def _with_buffer(s: Setting, strategy: Any, **options: Any) -> Any:
    model = s.classifier()
    optimizer = s.sgd(model.parameters())
    return strategy(model=model, optimizer=optimizer, mem_size=s.config.memory, **options, **_with_criterion(s))


def _with_criterion(s: Setting) -> dict[str, Any]:
    return {**s.common, "criterion": nn.CrossEntropyLoss()}


class RepairedSCR(SCR):
    """SCR whose class means are those of the present encoder, whenever it is evaluated.

    As shipped (Avalanche 0.6) the means are averaged half and half with those of the encoder before, and they are
    fitted after the last periodic evaluation. The third repair, a projection of unit length, is in the model.
    """

    def _before_eval(self, **kwargs: Any) -> None:
        super()._before_eval(**kwargs)
        if self.replay_plugin.storage_policy.buffer_groups:
            self.model.eval()
            self.compute_class_means()

    def compute_class_means(self) -> None:
        """Shipped means, without the shipped memory of older ones."""
        self.model.eval_classifier.class_means_dict = {}
        with torch.no_grad():
            super().compute_class_means()
