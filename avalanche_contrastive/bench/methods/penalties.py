"""More of what `baselines` has: the strategies that hold weights, features, logits or gradients to the past."""

from typing import Any

from avalanche.training.plugins import (
    EWCPlugin,
    FeatureDistillationPlugin,
    LwFPlugin,
    MASPlugin,
    SynapticIntelligencePlugin,
)
from avalanche.training.supervised import Naive

from avalanche_contrastive.bench.methods.networks import LINEAR, Built, Classifier, Setting
from avalanche_contrastive.bench.methods.repaired import SingleHeadLwF
from avalanche_contrastive.bench.methods.repaired_plugins import (
    FeatureClassifier,
    RememberingClassifier,
    SharedAGEM,
    SharedGEM,
    TrainingLFL,
    TrainingRWalk,
)


def lwf(s: Setting, *, alpha: float = 1.0, temperature: float = 2.0) -> Built:
    """Learning without forgetting: distillation of the old logits, without a memory."""
    plugin = LwFPlugin(alpha, temperature)
    plugin.lwf = SingleHeadLwF(alpha, temperature)
    return Built(s.naive(plugin), LINEAR)


def feature_distillation(s: Setting, *, alpha: float = 1.0) -> Built:
    """The features keep their direction (FeatureDistillationPlugin)."""
    return Built(_with_features(s, RememberingClassifier, FeatureDistillationPlugin(alpha, mode="cosine")), LINEAR)


def lfl(s: Setting, *, lambda_e: float = 1.0) -> Built:
    """Less-forgetful learning: the features keep their place; repaired: trains in training mode."""
    return Built(_with_features(s, FeatureClassifier, TrainingLFL(lambda_e)), "linear head of the first experience")


def ewc(s: Setting, *, ewc_lambda: float = 100.0, mode: str = "separate", decay_factor: float = 0.0) -> Built:
    """Elastic weight consolidation.

    Args:
        ewc_lambda: weight of the penalty.
        mode: "separate" keeps a penalty per experience, "online" one that decays.
        decay_factor: of "online"; 0 with "separate".
    """
    if mode not in ("separate", "online") or (mode == "online") != (decay_factor > 0):
        raise ValueError(
            f"ewc: mode must be 'separate', or 'online' with a decay_factor above 0, got {mode!r} with {decay_factor}"
        )
    return Built(s.naive(EWCPlugin(ewc_lambda, mode, decay_factor or None)), LINEAR)


def si(s: Setting, *, si_lambda: float = 1.0, eps: float = 1e-7) -> Built:
    """Synaptic intelligence."""
    return Built(s.naive(SynapticIntelligencePlugin(si_lambda, eps=eps)), LINEAR)


def mas(s: Setting, *, lambda_reg: float = 1.0, alpha: float = 0.5) -> Built:
    """Memory-aware synapses."""
    return Built(s.naive(MASPlugin(lambda_reg, alpha)), LINEAR)


def rwalk(s: Setting, *, ewc_lambda: float = 0.1, ewc_alpha: float = 0.9, delta_t: int = 10) -> Built:
    """Riemannian walk without replay (RWalkPlugin); repaired: trains in training mode."""
    return Built(s.naive(TrainingRWalk(ewc_lambda, ewc_alpha, delta_t)), LINEAR)


def agem(s: Setting, *, sample_size: int = 64) -> Built:
    """A-GEM: the gradient does not oppose that of stored images; repaired: one memory for all experiences."""
    return Built(s.naive(SharedAGEM(s.config.memory, sample_size)), LINEAR)


def gem(s: Setting, *, memory_strength: float = 0.5) -> Built:
    """GEM, as A-GEM for each past experience; repaired: needs no solver of its own, one memory for all experiences."""
    return Built(s.naive(SharedGEM(s.config.memory, memory_strength)), LINEAR)


def _with_features(s: Setting, kind: type[Classifier], plugin: Any) -> Any:
    plain = s.classifier()
    return s.strategy(Naive, plugin, model=kind(plain.encoder, plain.head))
