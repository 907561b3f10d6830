"""Co2L, SS-IL and CSD for Avalanche: losses, plugins and strategies."""

from avalanche_contrastive._version import __version__
from avalanche_contrastive.data import BatchAugmentation, TwoViews
from avalanche_contrastive.models import ContrastiveModel
from avalanche_contrastive.plugins import Co2LPlugin, CSDPlugin, SSILPlugin
from avalanche_contrastive.strategies import CSD, SSIL, Co2L

__all__ = [
    "CSD",
    "SSIL",
    "BatchAugmentation",
    "CSDPlugin",
    "Co2L",
    "Co2LPlugin",
    "ContrastiveModel",
    "SSILPlugin",
    "TwoViews",
    "__version__",
]
