"""The three strategies of this package, wired to a config.

TOML has no "none": an option whose off is a number says so by 0, one whose off is a name by "".
"""

from avalanche.training.storage_policy import ExemplarsBuffer, ReservoirSamplingBuffer
from torch import nn

from avalanche_contrastive import CSD, SSIL, Co2L, ContrastiveModel
from avalanche_contrastive.bench.methods.networks import Built, CosineHead, Setting

LINEAR = "linear head"


def co2l(
    s: Setting,
    *,
    temperature: float = 0.5,
    distill_temperature: float = 0.2,
    teacher_temperature: float = 0.01,
    weight: float = 1.0,
    base_temperature: float = 0.07,
    reduction: str = "all",
    asymmetric: bool = True,
    domains: bool = False,
    rehearse: bool = True,
    batch_size_mem: int = 0,
    storage: str = "class_balanced",
    views: int = 2,
    readout: str = "linear",
    readout_lr: float = 1.0,
    readout_epochs: int = 100,
    readout_batch_size: int = 256,
    teacher_mode: str = "eval",
    projection_size: int = 64,
    hidden_size: int = 0,
) -> Built:
    """Co2L with the setting's augmentation for all views.

    Args:
        base_temperature: 0: as the paper, without the factor.
        rehearse: False keeps the memory for the read-out only (the paper's Table 2).
        batch_size_mem: 0: the memory is mixed into the experience's images, as the paper has it.
        storage: "class_balanced" or "reservoir" (the authors' buffer on R-MNIST).
        hidden_size: of the projection head; 0: as wide as the encoder's features.

    All others are options of ``Co2LPlugin``.
    """
    encoder = s.encoder()
    model = ContrastiveModel(encoder, encoder.features, projection_size, hidden_size=hidden_size or None)
    strategy = Co2L(
        model=model,
        optimizer=s.optimizer(model.parameters()),
        mem_size=s.config.memory,
        augmentation=s.augmentation,
        views=views,
        temperature=temperature,
        base_temperature=base_temperature or None,
        reduction=reduction,  # type: ignore[arg-type]  # the plugin checks the names
        asymmetric=asymmetric,
        domains=domains,
        rehearse=rehearse,
        weight=weight,
        distill_temperature=distill_temperature,
        teacher_temperature=teacher_temperature,
        batch_size_mem=batch_size_mem or None,
        storage_policy=_storage(storage, s.config.memory),
        readout=readout,  # type: ignore[arg-type]
        readout_lr=readout_lr,
        readout_epochs=readout_epochs,
        readout_batch_size=readout_batch_size,
        teacher_mode=teacher_mode,  # type: ignore[arg-type]
        **s.keywords(),
    )
    fitted = {"linear": "linear layer, refitted on", "ncm": "nearest class mean of"}[readout]
    return Built(strategy, f"{fitted} the last experience and the memory")


def ssil(
    s: Setting,
    *,
    batch_size_mem: int = 32,
    storage: str = "class_balanced",
    separated: bool = True,
    distillation: str = "task",
    temperature: float = 2.0,
    weight: float = 1.0,
    teacher_mode: str = "eval",
) -> Built:
    """SS-IL.

    Args:
        storage: "class_balanced" or "reservoir".

    All others are options of ``SSILPlugin``.
    """
    model = s.classifier()
    strategy = SSIL(
        model=model,
        optimizer=s.optimizer(model.parameters()),
        mem_size=s.config.memory,
        batch_size_mem=batch_size_mem,
        storage_policy=_storage(storage, s.config.memory),
        separated=separated,
        distillation=distillation,  # type: ignore[arg-type]
        temperature=temperature,
        weight=weight,
        teacher_mode=teacher_mode,  # type: ignore[arg-type]
        **s.keywords(),
    )
    return Built(strategy, LINEAR)


HEADS = {"linear": nn.Linear, "cosine": CosineHead}


def csd(
    s: Setting,
    *,
    temperature: float = 0.07,
    weight: float = 1.0,
    form: str = "authors",
    normalize: bool = True,
    kd_weight: float = 1.0,
    kd_temperature: float = 2.0,
    triplet_weight: float = 1.0,
    margin: float = 1.0,
    ce: str = "weighted",
    ce_weight: float = 1.0,
    head: str = "linear",
    feature_layer: str = "",
    teacher_mode: str = "eval",
) -> Built:
    """CSD; it stores no image.

    Args:
        head: "linear", or "cosine" for rows of unit length and no bias, as in the authors' network.
        feature_layer: "": what enters the head.

    All others are options of ``CSDPlugin``.
    """
    if head not in HEADS:
        raise ValueError(f"csd: head must be one of {tuple(HEADS)}, got {head!r}")
    model = s.classifier(HEADS[head])
    strategy = CSD(
        model=model,
        optimizer=s.optimizer(model.parameters()),
        temperature=temperature,
        weight=weight,
        form=form,  # type: ignore[arg-type]
        normalize=normalize,
        kd_weight=kd_weight,
        kd_temperature=kd_temperature,
        triplet_weight=triplet_weight,
        margin=margin,
        ce=ce,  # type: ignore[arg-type]
        ce_weight=ce_weight,
        feature_layer=feature_layer or None,
        teacher_mode=teacher_mode,  # type: ignore[arg-type]
        **s.keywords(),
    )
    return Built(strategy, "linear head" if head == "linear" else "linear head with rows of unit length")


def _storage(name: str, size: int) -> ExemplarsBuffer | None:
    """The storage policy of that name; None for the plugins' own, class-balanced."""
    if name not in ("class_balanced", "reservoir"):
        raise ValueError(f"storage must be 'class_balanced' or 'reservoir', got {name!r}")
    return ReservoirSamplingBuffer(size) if name == "reservoir" else None
