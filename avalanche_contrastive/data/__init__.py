"""Views and augmentations of images, and data sets in memory."""

from avalanche_contrastive.data.augment import BatchAugmentation, Normalisation, PadCropAugmentation, SimCLRAugmentation
from avalanche_contrastive.data.fetch import fetch_whole_batches
from avalanche_contrastive.data.load import in_memory
from avalanche_contrastive.data.memory import MemoryImages
from avalanche_contrastive.data.views import TwoViews, stack_views

__all__ = [
    "BatchAugmentation",
    "MemoryImages",
    "Normalisation",
    "PadCropAugmentation",
    "SimCLRAugmentation",
    "TwoViews",
    "fetch_whole_batches",
    "in_memory",
    "stack_views",
]
