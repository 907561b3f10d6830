"""What the notebooks say in words, and how their numbers show it: ``build.py`` asks after each execution.

The statements stand in the notebooks as they stand here; a test holds that. They were written for the digits.
"""

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

Claims = Mapping[str, Callable[[Any], bool]]  # a statement, and whether a notebook's names show it


def wrong(name: str, names: Mapping[str, Any]) -> list[str]:
    """The statements of a notebook that its numbers do not show.

    Args:
        name: of the notebook.
        names: all that it has defined.
    """
    n = SimpleNamespace(**{key: value for key, value in names.items() if not key.startswith("__")})
    return [claim for claim, holds in CLAIMS.get(name, {}).items() if not holds(n)]


def _at_end(matrix: Any) -> tuple[float, float]:
    """Mean on the classes just learned, experiences 2 to T, and on the older ones at the end; in per cent."""
    return 100 * float(matrix.diagonal()[1:].mean()), 100 * float(matrix[-1, :-1].mean())


def _leans_to_old(n: Any) -> bool:
    newest, oldest = _at_end(n.accuracy["SS-IL"])
    return newest < oldest - 10


QUICK_START: Claims = {
    "Co2L and SS-IL keep the old classes": lambda n: (
        min(n.shown["Co2L"]["final accuracy"], n.shown["SS-IL"]["final accuracy"]) > 75
    ),
    "Fine-tuning knows only the last two": lambda n: _at_end(n.accuracy["Naive"])[1] < 5,
    "SS-IL leans to the old classes": _leans_to_old,
    "Its forgetting is below zero": lambda n: n.shown["SS-IL"]["forgetting of accuracy"] < 0,
    "its accuracy is that of fine-tuning": lambda n: (
        abs(n.shown["CSD"]["final accuracy"] - n.shown["Naive"]["final accuracy"]) < 3
    ),
    "Fine-tuning loses much accuracy and little Recall@1": lambda n: (
        n.shown["Naive"]["forgetting of accuracy"] > n.shown["Naive"]["forgetting of Recall@1"] + 50
    ),
    "Much of what a search needs was there from the start": lambda n: n.recall["Naive"][0].mean() > 0.8,
}


def _within_old(n: Any, term: str) -> float:
    """Change of the cosine within the old classes by one step, mean."""
    return float(n.changes[term].diagonal()[:2].mean())


CO2L: Claims = {
    "Without them accuracy falls": lambda n: n.accuracy["one view twice"] < n.accuracy["Co2L"] - 3,
    "hardly tighten an old class": lambda n: (
        _within_old(n, "asymmetric contrast") < _within_old(n, "symmetric contrast") / 4
    ),
    "Without it asymmetric Co2L loses accuracy": lambda n: n.accuracy["no distillation"] < n.accuracy["Co2L"] - 5,
    "symmetric anchors do not need it": lambda n: (
        n.accuracy["symmetric, no distillation"] > n.accuracy["symmetric anchors"] - 3
    ),
    "Symmetric anchors are the better ones here": lambda n: n.accuracy["symmetric anchors"] > n.accuracy["Co2L"],
    "tighten old classes and drive them apart": lambda n: (
        _within_old(n, "symmetric contrast") > 1
        and n.changes["symmetric contrast"][0, 1] < n.changes["asymmetric contrast"][0, 1]
    ),
}


def _mean(values: Any) -> float:
    return sum(values) / len(values)


def _too_many(n: Any, name: str) -> list[float]:
    """Points by which each seed predicts the newest classes more often than they are."""
    row = n.shown[name]
    return [p - t for p, t in zip(row["predicted newest"], row["truly newest"], strict=True)]


SSIL: Claims = {
    "the many new images push the old logits down": lambda n: n.pushes["plain softmax"]["by new images"][:2].sum() < -1,
    "new images do not touch old logits at all": lambda n: (
        n.pushes["separated softmax"]["by new images"][:2].abs().sum() == 0
    ),
    "Without replay all predictions end on the newest classes": lambda n: (
        min(n.shown["Naive"]["predicted newest"]) > 99
    ),
    "Plain softmax with replay predicts the newest classes too often": lambda n: (
        _mean(_too_many(n, "plain softmax")) > 0
    ),
    "SS-IL predicts the newest classes too rarely": lambda n: max(_too_many(n, "SS-IL")) < 0,
    "at its best it stays below plain softmax": lambda n: (
        _mean([max(c) for c in n.curves["SS-IL"]]) < _mean([max(c) for c in n.curves["plain softmax"]])
    ),
    "On these data plain softmax is the better one": lambda n: (
        _mean(n.shown["plain softmax"]["final accuracy"]) > _mean(n.shown["SS-IL"]["final accuracy"])
    ),
}


def _full(n: Any, name: str, place: int = -1) -> float:
    """Recall@1 with a gallery of a size, mean over the seeds; the last place is the full gallery."""
    return _mean([curve[place] for curve in n.curves[name]])


CSD: Claims = {
    "Features are forgotten less than the classifier": lambda n: all(
        _mean(row["forgetting of Recall@1"]) < _mean(row["forgetting of accuracy"]) for row in n.lost.values()
    ),
    "A search among two classes is easier": lambda n: n.share_right["these two"] > n.share_right["all ten"],
    "With a few images of each class in the gallery, Recall@1 falls": lambda n: all(
        _full(n, name, 1) < _full(n, name) - 3 for name in n.runs
    ),
    "CSD keeps its features better than fine-tuning does, above all with a small gallery": lambda n: all(
        _full(n, "CSD", place) > _full(n, "Naive", place) + 1 for place in range(4)
    ),
    "Replay, which stores 100, keeps them best": lambda n: _full(n, "Replay") > _full(n, "CSD"),
    "Raw pixels are strong on these digits": lambda n: _full(n, "raw pixels") > _full(n, "CSD") - 3,
}

YOUR_OWN: Claims = {
    "The order of the list does not matter": lambda n: n.final["EWC, then SS-IL"] == n.final["SS-IL, then EWC"],
    "helps the features of replay on nearly every seed": lambda n: n.versus["final Recall@1"].wins >= 4,
    "The interval of the final accuracy holds zero": lambda n: n.versus["final accuracy"].interval[0] < 0,
}

GAIN = "gain of embedding the first gallery again"
LAST = "last model in old galleries, against their self-tests"


def _first_tenth(curve: Any) -> float:
    """Share of the gain of a whole re-embedding."""
    return float((curve.score[1] - curve.score[0]) / (curve.score[-1] - curve.score[0]))


COMPATIBLE: Claims = {
    "Fine-tuning breaks the old index": lambda n: n.metrics["Naive"].matrix[-1, 0] < 0.4,
    "in the new index nine of ten searches are right": lambda n: n.metrics["Naive"].matrix[-1, -1] > 0.87,
    "CSD without stored images does not spare the re-embedding": lambda n: n.summary["CSD"][LAST] < -30,
    "replay alone loses some points": lambda n: n.summary["Replay"][LAST] < n.summary["CSD + replay"][LAST] - 3,
    "CSD + replay spares it": lambda n: n.summary["CSD + replay"][LAST] > -3,
    "The simplex does not help here": lambda n: (
        n.summary["CSD + replay, simplex"][LAST] < n.summary["CSD + replay"][LAST]
    ),
    "finds as much in the old index as the first model did": lambda n: (
        n.metrics["CSD + replay"].matrix[-1, 0] > n.metrics["CSD + replay"].matrix[0, 0] - 0.03
    ),
    "A re-embedding would still bring some points more": lambda n: n.summary["CSD + replay"][GAIN] > 3,
    "The first tenth brings most of the gain": lambda n: (
        min(_first_tenth(n.curves[name]) for name in ("Naive", "CSD")) > 0.6
    ),
}

CLAIMS: Mapping[str, Claims] = {
    "01_quick_start": QUICK_START,
    "02_co2l": CO2L,
    "03_ssil": SSIL,
    "04_csd": CSD,
    "05_your_own": YOUR_OWN,
    "06_compatible_features": COMPATIBLE,
}
