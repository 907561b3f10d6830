"""Heads: what makes class logits of features, beside a linear layer."""

from collections.abc import Callable
from typing import Any

import torch
from avalanche.models import DynamicModule
from torch import Tensor, nn

from avalanche_contrastive.models import SimplexClassifier


class CosineHead(nn.Linear):
    """A linear layer without a bias whose rows are taken at unit length, as CSD's classifier is.

    The norm is part of the forward pass, so any optimiser may move the rows. An ``nn.Linear``, so Recall@1 finds it.
    """

    def __init__(self, in_features: int, out_features: int):
        super().__init__(in_features, out_features, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        """Logits: the length of the feature times its cosine with each row."""
        return nn.functional.linear(input, nn.functional.normalize(self.weight, dim=1))


class GrowingUnitHead(nn.Linear, DynamicModule):
    """CSD's classifier as its authors train it: no bias, rows put to unit length in place, classes as they come.

    The rows are divided by their length outside of the graph, before each forward pass, so the optimiser sees the
    gradient as if they were free. The logit of a class that no training experience has had yet is MASKED: its row has
    no part in any softmax, as if the head had not grown to it. It is drawn when the class comes, as theirs is: an
    optimiser with weight decay has moved it until then. An ``nn.Linear``, so that its input is the feature.
    """

    MASKED = -1000.0
    seen: Tensor

    def __init__(self, in_features: int, out_features: int):
        super().__init__(in_features, out_features, bias=False)
        self.register_buffer("seen", torch.zeros(out_features, dtype=torch.bool))

    def adaptation(self, experience: Any) -> None:
        """Grow to the classes of an experience that is trained on."""
        if self.training:
            new = [c for c in experience.classes_in_this_experience if not self.seen[c]]
            if new and self.seen.any():
                bound = self.in_features**-0.5
                self.weight.data[new] = torch.empty_like(self.weight.data[new]).uniform_(-bound, bound)
            self.seen[new] = True

    def forward(self, input: Tensor) -> Tensor:
        """Logits: the length of the feature times its cosine with each row."""
        self.weight.data = nn.functional.normalize(self.weight.data, dim=1)
        logits: Tensor = super().forward(input)
        return logits.masked_fill(~self.seen, self.MASKED)


class SimplexHead(nn.Sequential):
    """A linear layer to K - 1 features, which are what is stored and searched, and the fixed corners of a simplex.

    There is no temperature: the length of the features is free, and takes its place.
    """

    def __init__(self, in_features: int, out_features: int):
        super().__init__(nn.Linear(in_features, out_features - 1), SimplexClassifier(out_features))


HEADS: dict[str, tuple[Callable[[int, int], nn.Module], str]] = {
    "linear": (nn.Linear, "linear head"),
    "cosine": (CosineHead, "linear head with rows of unit length"),
    "unit": (GrowingUnitHead, "linear head with rows of unit length"),
    "simplex": (SimplexHead, "fixed corners of a simplex"),
}


def head_of(name: str, method: str) -> tuple[Callable[[int, int], nn.Module], str]:
    """The head of that name, and the read-out that it is, in words.

    Raises:
        ValueError: there is no such head.
    """
    if name not in HEADS:
        raise ValueError(f"{method}: head must be one of {tuple(HEADS)}, got {name!r}")
    return HEADS[name]
