"""Views and augmentations of images, and data sets in memory."""

from avalanche_contrastive.data.augment import (
    BatchAugmentation,
    Normalisation,
    PadCropAugmentation,
    SimCLRAugmentation,
)
from avalanche_contrastive.data.views import TwoViews, stack_views

__all__ = [
    "BatchAugmentation",
    "Normalisation",
    "PadCropAugmentation",
    "SimCLRAugmentation",
    "TwoViews",
    "stack_views",
]
