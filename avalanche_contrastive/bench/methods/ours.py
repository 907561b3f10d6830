"""The methods of this package, wired to a config: a model, the method's strategy, and its options.

The options of a method are those of its plugin, and the keywords that its builder names here.
"""

from collections.abc import Mapping
from typing import Any

from avalanche.training.storage_policy import ParametricBuffer, ReservoirSamplingBuffer
from torch import nn

from avalanche_contrastive import ContrastiveModel
from avalanche_contrastive.bench.methods.heads import head_of
from avalanche_contrastive.bench.methods.networks import LINEAR, Built, Setting
from avalanche_contrastive.registry import METHODS, load

EXEMPLARS = "avalanche_contrastive.plugins.exemplars"
STORAGES = ("class_balanced", "random_remainder", "first", "reservoir")


def plain(s: Setting, **options: Any) -> Built:
    """A method that trains a classifier and needs nothing that its plugin does not have."""
    return Built(_strategy(s, s.config.method, s.classifier(), options), LINEAR)


def co2l(
    s: Setting,
    *,
    storage: str = "class_balanced",
    projection_size: int = 64,
    hidden_size: int = 0,
    normalize: bool = True,
    **options: Any,
) -> Built:
    """Co2L with the setting's augmentation for all views.

    Args:
        storage: how images are chosen: "class_balanced", "random_remainder" (the authors': what does not divide among
            the classes goes to them by chance), "first" of each class, or "reservoir" (the authors' on R-MNIST).
        projection_size: width of the projection (the paper's 128).
        hidden_size: width of the hidden layer of the projection head; 0: as wide as the encoder's features.
        normalize: divide projections by their length; the authors do not on R-MNIST.
        options: of ``Co2LPlugin``.
    """
    encoder = s.encoder()
    model = ContrastiveModel(
        encoder, encoder.features, projection_size, hidden_size=hidden_size or None, normalize=normalize
    )
    memory = _memory(s, storage)
    strategy = _strategy(s, "co2l", model, options, augmentation=s.augmentation, **memory)
    fitted = {"linear": "linear layer, refitted on", "ncm": "nearest class mean of"}[
        options.get("readout", METHODS["co2l"].options["readout"])
    ]
    return Built(strategy, f"{fitted} the last experience and the memory")


def ssil(s: Setting, *, storage: str = "class_balanced", **options: Any) -> Built:
    """SS-IL.

    Args:
        storage: how images are chosen: "class_balanced", "random_remainder", "first" of each class (the authors'), or
            "reservoir".
        options: of ``SSILPlugin``.
    """
    return Built(_strategy(s, "ssil", s.classifier(), options, **_memory(s, storage)), LINEAR)


def csd(s: Setting, *, head: str = "linear", **options: Any) -> Built:
    """CSD; it stores no image.

    Args:
        head: "linear"; "cosine" for rows of unit length and no bias, the norm being part of the graph; "unit", the
            authors', which grows with the classes and has its rows put to unit length in place; or "simplex", fixed.
        options: of ``CSDPlugin``.
    """
    layer, readout = head_of(head, "csd")
    return Built(_strategy(s, "csd", s.classifier(layer), options), readout)


def _strategy(s: Setting, name: str, model: nn.Module, options: Mapping[str, Any], **others: Any) -> Any:
    method = METHODS[name]
    return s.strategy(load(method.strategy), model=model, **method.keywords(options), **others)


def _memory(s: Setting, storage: str) -> dict[str, Any]:
    """The keywords of a memory; the plugins' own storage is class-balanced."""
    size, policy = s.config.memory, None
    if storage == "reservoir":
        policy = ReservoirSamplingBuffer(size)
    elif storage == "first":
        policy = ParametricBuffer(
            size, groupby="class", selection_strategy=load(f"{EXEMPLARS}:FirstExemplarsSelection")()
        )
    elif storage == "random_remainder":
        policy = load(f"{EXEMPLARS}:RandomRemainderBuffer")(size)
    elif storage != "class_balanced":
        raise ValueError(f"storage must be one of {STORAGES}, got {storage!r}")
    return {"mem_size": size, "storage_policy": policy}
