"""The three strategies of this package, wired to a config."""

from typing import Any

from torch import nn

from avalanche_contrastive import CSD, SSIL, Co2L, ContrastiveModel
from benchmarks.models import FEATURES, Built, Setting


def co2l(s: Setting) -> Built:
    """Co2L with the benchmark's augmentation for both views."""
    options: dict[str, Any] = dict(s.config.options)
    model = ContrastiveModel(s.encoder(), FEATURES, projection_size=options.pop("projection_size"))
    optimizer = s.sgd(model.parameters())
    strategy = Co2L(
        model=model,
        optimizer=optimizer,
        mem_size=s.config.memory,
        augmentation=s.augmentation,
        **options,
        **s.common,
    )
    readout = "linear layer, refitted on the last experience and the memory"
    if options["readout"] == "ncm":
        readout = "nearest class mean of the last experience and the memory"
    return Built(strategy, readout)


def ssil(s: Setting) -> Built:
    """SS-IL."""
    model = s.classifier()
    optimizer = s.sgd(model.parameters())
    options: dict[str, Any] = dict(s.config.options)
    common = {**s.common, "criterion": nn.CrossEntropyLoss()}
    return Built(SSIL(model=model, optimizer=optimizer, mem_size=s.config.memory, **options, **common), "linear head")


def csd(s: Setting) -> Built:
    """CSD; it stores no image."""
    model = s.classifier()
    optimizer = s.sgd(model.parameters())
    options: dict[str, Any] = dict(s.config.options)
    common = {**s.common, "criterion": nn.CrossEntropyLoss()}
    return Built(CSD(model=model, optimizer=optimizer, **options, **common), "linear head")
