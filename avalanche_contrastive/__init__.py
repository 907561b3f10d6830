"""Co2L, SS-IL and CSD for Avalanche: losses, plugins and strategies.

The names, and the modules below, are loaded when first used, so that ``avalanche_contrastive.losses`` costs no import
of Avalanche.
"""

import importlib
from typing import TYPE_CHECKING, Any

from avalanche_contrastive._version import __version__

if TYPE_CHECKING:
    from avalanche_contrastive.data import BatchAugmentation, PadCropAugmentation, SimCLRAugmentation, TwoViews
    from avalanche_contrastive.models import ContrastiveModel, MTContrastiveModel, SimplexClassifier
    from avalanche_contrastive.plugins import Co2LPlugin, CSDPlugin, ExperienceSchedule, SSILPlugin
    from avalanche_contrastive.strategies import CSD, SSIL, Co2L

__all__ = [
    "CSD",
    "SSIL",
    "BatchAugmentation",
    "CSDPlugin",
    "Co2L",
    "Co2LPlugin",
    "ContrastiveModel",
    "ExperienceSchedule",
    "MTContrastiveModel",
    "PadCropAugmentation",
    "SSILPlugin",
    "SimCLRAugmentation",
    "SimplexClassifier",
    "TwoViews",
    "__version__",
]

_MODULES = frozenset({"bench", "checkpoint", "data", "features", "losses", "metrics", "models", "parallel", "plots",
                      "plugins", "readout", "strategies", "tasks", "teacher"})  # fmt: skip
_HOMES = {
    "data": ("BatchAugmentation", "PadCropAugmentation", "SimCLRAugmentation", "TwoViews"),
    "models": ("ContrastiveModel", "MTContrastiveModel", "SimplexClassifier"),
    "plugins": ("CSDPlugin", "Co2LPlugin", "ExperienceSchedule", "SSILPlugin"),
    "strategies": ("CSD", "Co2L", "SSIL"),
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    for module, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})
