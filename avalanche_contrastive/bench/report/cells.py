"""What a table is, and how figures and rows stand in its cells."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from avalanche_contrastive.bench.config import Row
from avalanche_contrastive.bench.files import Grouped, Result
from avalanche_contrastive.bench.report.stats import (
    Matrix,
    backward_transfer,
    bootstrap_interval,
    mean_std,
    seen_accuracy,
)

Figure = Callable[[Result], float | None]
Cell = Callable[[Sequence[Result]], str]

OURS = ("co2l", "ssil", "csd")
NONE = "–"
SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Table:
    """A table in words; false without rows, and as a string its Markdown.

    Args:
        columns: headings.
        rows: cells of Markdown, as many as columns.
        align: "l" or "r" for each column.
        caption: a paragraph of Markdown; may be empty.
        notes: footnotes, each with its mark.
        ours: which rows are of Co2L, SS-IL and CSD.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    align: str
    caption: str = ""
    notes: tuple[str, ...] = ()
    ours: frozenset[int] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.rows)

    def __str__(self) -> str:
        if not self.rows:
            return ""
        rule = "|" + "|".join("---:" if side == "r" else "---" for side in self.align) + "|"
        lines = [_line(self.columns), rule, *map(_line, self.rows)]
        return "\n\n".join(filter(None, ["\n".join(lines), self.caption, *self.notes])) + "\n"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


# ---- figures of a result, None where it has none


def get(key: str) -> Figure:
    """The figure stored under that key."""
    return lambda result: result.get(key)


def recall(result: Result) -> float | None:
    """Recall@1 after the last experience."""
    values = result.get("recall_at_1")
    return values[-1] if values else None


def backward(result: Result) -> float | None:
    """Backward transfer; older results hold only the matrix that it follows from."""
    return backward_transfer(_matrix(result, "accuracy_matrix") or [])


def task_known(result: Result) -> float | None:
    """Final accuracy with the task known."""
    matrix = _matrix(result, "task_accuracy_matrix")
    return seen_accuracy(matrix, result["test_images"])[-1] if matrix else None


def training_per_experience(result: Result) -> float | None:
    """Seconds of training, mean over experiences."""
    seconds = result.get("seconds_per_experience")
    return fmean(seconds["training"]) if seconds else None


def peak_memory(result: Result) -> float | None:
    """MiB, highest of all experiences."""
    peaks = result.get("peak_memory_mib")
    return max(peaks) if peaks else None


def _matrix(result: Result, key: str) -> Matrix | None:
    return result.get(key)


# ---- cells: what several seeds of one row come to


def spread_of(figure: Figure, scale: float = 100.0, digits: int = 1) -> Cell:
    """Mean ± standard deviation."""

    def cell(results: Sequence[Result]) -> str:
        found = mean_std([figure(result) for result in results])
        if found is None:
            return NONE
        mean, std = (f"{scale * value:.{digits}f}" for value in found)
        return f"{mean} ± {std}" if len(results) > 1 else mean

    return cell


def interval_of(figure: Figure) -> Cell:
    """95 % interval of the mean."""

    def cell(results: Sequence[Result]) -> str:
        values = [value for value in map(figure, results) if value is not None]
        return interval(bootstrap_interval(values)) if len(values) == len(results) > 1 else NONE

    return cell


def interval(ends: tuple[float, float], sign: str = "") -> str:
    """An interval in percent."""
    return "[" + ", ".join(f"{100 * end:{sign}.1f}" for end in ends) + "]"


def memory(results: Sequence[Result]) -> str:
    """Stored images."""
    return str(results[0]["config"]["memory"] or NONE)


ACCURACY: dict[str, Cell] = {
    "memory": memory,
    "final accuracy": spread_of(get("final_accuracy")),
    "95 % interval": interval_of(get("final_accuracy")),
    "average accuracy": spread_of(get("average_accuracy")),
    "newest": spread_of(get("learning_accuracy")),
    "forgetting": spread_of(get("forgetting")),
    "backward transfer": spread_of(backward),
    "Recall@1": spread_of(recall),
    "task known": spread_of(task_known),
}
COST: dict[str, Cell] = {
    "memory": memory,
    "seconds": spread_of(get("seconds_total"), 1.0),
    "of it training": spread_of(get("seconds_training"), 1.0),
    "training per experience": spread_of(training_per_experience, 1.0, 2),
    "peak memory": spread_of(peak_memory, 1.0, 0),
}


def further(rows: Sequence[Row], grouped: Grouped) -> dict[str, Cell]:
    """Columns that only some results have: accuracies by the way of evaluation, and metrics of one's own."""
    results = [result for row in rows for result in grouped[row.name]]
    ways = dict.fromkeys(way for result in results for way in result.get("evaluations") or {})
    metrics = dict.fromkeys(name for result in results for name in result.get("metrics") or {})

    def accuracy(way: str) -> Figure:
        return lambda result: (result.get("evaluations") or {}).get(way)

    def last(name: str) -> Figure:
        return lambda result: (result.get("metrics") or {}).get(name, {"all": [None]})["all"][-1]

    columns = {f"final accuracy, {way}": spread_of(accuracy(way)) for way in ways}
    return columns | {name: spread_of(last(name), 1.0, 3) for name in metrics}


# ---- rows


def memory_of(row: Row, grouped: Grouped) -> int:
    """Stored images of a row's runs."""
    return int(grouped[row.name][0]["config"]["memory"])


def memories(rows: Sequence[Row], grouped: Grouped) -> list[int]:
    """The sizes of memory among rows, without 0."""
    return sorted({memory_of(row, grouped) for row in rows} - {0})


def by_memory(rows: Sequence[Row], grouped: Grouped) -> list[Row]:
    """The rows by size of memory where there are several sizes, those without one first; else as they come."""
    return sorted(rows, key=lambda row: memory_of(row, grouped)) if len(memories(rows, grouped)) > 1 else list(rows)


def is_ours(row: Row) -> bool:
    """Whether the row is of one of the three methods."""
    return row.config.method in OURS


def stream_of(row: Row, grouped: Grouped) -> tuple[Any, ...]:
    """What must agree before two rows of a suite can be compared."""
    first = grouped[row.name][0]
    config = first["config"]
    keys = ("stream", "data", "scenario", "experiences", "base_classes", "train_images", "test_images")
    return first["evaluated_on"], *(config.get(key) for key in keys)


def drawn(result: Result) -> dict[str, Sequence[float]]:
    """What the seed decided of a run's stream, by name; the class order of rotated domains says nothing."""
    angles = result.get("angles")
    return {"rotations": angles} if angles else {"class orders": result.get("class_order", [])}


def own_streams(rows: Sequence[Sequence[Result]]) -> str:
    """What the seeds of these rows differ in: ", each with its own class order", or rotations, or nothing."""
    kinds = []
    for results in rows:
        found = [drawn(result) for result in results]
        kinds += [kind for kind in found[0] if any(other.get(kind) != found[0][kind] for other in found)]
    words = [word for kind, word in (("class orders", "class order"), ("rotations", "rotations")) if kind in kinds]
    return f", each with its own {' or '.join(words)}" if words else ""


# ---- words


def plain(text: str) -> str:
    """A label as it may stand in a cell of Markdown."""
    return re.sub(r"([|\\`*<\[])", r"\\\1", " ".join(text.split()))


def worded(thing: object) -> str:
    """A setting's value in words."""
    if isinstance(thing, bool):
        return "yes" if thing else "no"
    if isinstance(thing, (list, tuple)):
        return "/".join(map(worded, thing)) or "none"
    return f"{thing:g}" if isinstance(thing, float) else str(thing)


def listed(things: Sequence[object]) -> str:
    """Commas between."""
    return ", ".join(map(str, things))


def count(number: int, noun: str) -> str:
    """With an s where it needs one."""
    return f"{number} {noun}" + ("" if number == 1 else "s")
