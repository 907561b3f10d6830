"""Checks of arguments, and the wording of their errors: what was expected, and what was given."""

from typing import Any

import torch
from torch import Tensor

__all__ = [
    "check_choice",
    "check_classes",
    "check_count",
    "check_embeddings",
    "check_flag",
    "check_labels",
    "check_positive",
    "check_probability",
    "check_shape",
    "check_targets",
    "check_weight",
    "form_of",
]


def form_of(x: object) -> str:
    """What was given, for an error."""
    return f"{x.dtype} of shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__


def check_shape(name: str, argument: str, x: Tensor, ndim: int, shape: str) -> None:
    if not isinstance(x, Tensor) or x.ndim != ndim or not x.is_floating_point() or x.shape[0] == 0:
        raise ValueError(
            f"{name}: {argument} must be a floating-point tensor of shape {shape} with B >= 1, got {form_of(x)}. "
            "Is it the model's output for the batch?"
        )


def check_embeddings(name: str, argument: str, z: Tensor, *, views: int = 1) -> Tensor:
    if not isinstance(z, Tensor) or z.ndim != 3 or z.shape[1] < views or z.shape[0] == 0 or not z.is_floating_point():
        given = f"{tuple(z.shape)} of {z.dtype}" if isinstance(z, Tensor) else type(z).__name__
        raise ValueError(
            f"{name}: {argument} must be floating-point of shape (B, V, D) with B >= 1 and V >= {views}, got "
            f"{given}. Is the training transform wrapped in TwoViews, or an augmentation given "
            "to Co2L?"
        )
    return z


def check_labels(name: str, y: Tensor, b: int) -> Tensor:
    if not isinstance(y, Tensor) or y.shape != (b,) or y.is_floating_point() or y.dtype == torch.bool:
        raise ValueError(
            f"{name}: y must be integer class ids, a tensor of shape ({b},), one per image, got {form_of(y)}. "
            "Were labels one-hot, or given once per view?"
        )
    return y.long()


def check_classes(name: str, argument: str, ids: Tensor, k: int) -> Tensor:
    if not isinstance(ids, Tensor) or ids.shape != (k,) or ids.is_floating_point() or ids.dtype == torch.bool:
        raise ValueError(
            f"{name}: {argument} must be integers of shape ({k},), a tensor, one per class (-1: takes no part), got "
            f"{form_of(ids)}. Has the classifier grown since they were made?"
        )
    return ids.long()


def check_targets(name: str, y: Tensor, groups: Tensor) -> None:
    """Refuse labels (B,) outside [0, K), or of a class without a group; groups (K,). Reads values: not in each step."""
    lowest, highest = int(y.min()), int(y.max())
    if lowest < 0 or highest >= len(groups):
        raise ValueError(
            f"{name}: labels must lie in [0, {len(groups)}), the width of the logits, got {lowest} to {highest}. "
            "Is the model's last layer as wide as the largest class id + 1?"
        )
    group = groups[y]
    if bool((group < 0).any()):
        raise ValueError(
            f"{name}: every label needs a group >= 0, but class {int(y[group < 0][0])} has {int(group.min())}. "
            "Is it in neither the current nor the earlier experiences?"
        )


def check_positive(name: str, **values: float) -> None:
    """Refuse values that are not finite numbers > 0."""
    for argument, value in values.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
            raise ValueError(f"{name}: {argument} must be a finite number > 0, got {value!r}.")


def check_weight(name: str, **values: float) -> None:
    """Refuse values that are not finite numbers >= 0."""
    for argument, value in values.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
            raise ValueError(f"{name}: {argument} must be a finite number >= 0, got {value!r}.")


def check_probability(name: str, **values: float) -> None:
    """Refuse values that are not numbers in [0, 1]."""
    for argument, value in values.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
            raise ValueError(f"{name}: {argument} is a probability in [0, 1], got {value!r}.")


def check_count(name: str, minimum: int, **values: Any) -> None:
    """Refuse values that are not whole numbers >= minimum."""
    for argument, value in values.items():
        if isinstance(value, bool) or not hasattr(value, "__index__") or value < minimum:
            raise ValueError(f"{name}: {argument} must be a whole number >= {minimum}, got {value!r}.")


def check_flag(name: str, **values: bool) -> None:
    """Refuse values that are not True or False."""
    for argument, value in values.items():
        if not isinstance(value, bool):
            raise ValueError(f"{name}: {argument} must be True or False, got {value!r}.")


def check_choice(name: str, argument: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuse a value that is none of the choices."""
    if value not in choices:
        raise ValueError(f"{name}: {argument} must be one of {', '.join(map(repr, choices))}, got {value!r}.")
