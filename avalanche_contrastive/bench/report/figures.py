"""The figures of a result, the columns that show them, and which rows belong together."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Any, TypeVar

from avalanche_contrastive.bench.config import Row
from avalanche_contrastive.bench.files import Grouped, Result
from avalanche_contrastive.bench.report.cells import NONE, percent
from avalanche_contrastive.bench.report.stats import (
    Matrix,
    backward_transfer,
    check_pairing,
    compare,
    is_finite,
    mean_interval,
    mean_std,
    seen_accuracy,
)

Figure = Callable[[Result], float | None]
Cell = Callable[[Sequence[Result]], str]
Key = TypeVar("Key")

OURS = ("co2l", "ssil", "csd")
UPPER = ("joint", "cumulative")  # trained on all data at once: they bound the others, and never count as the best
BOUNDS = ("naive", "from_scratch", *UPPER)
GROUPS = ("ours", "replay", "regularisation and others", "bounds")
BEST = (
    "Bold: the best mean of a column among the rows of one memory and those without one, and means within its 95 % "
    "interval; joint and cumulative training do not compete."
)
OF_PROCESS = "resident memory"  # starts `peak_memory_of` on a CPU


@dataclass(frozen=True)
class Column:
    """A column of figures.

    Args:
        cell: what several seeds of one row come to.
        meaning: a sentence without its subject.
        figure: of one result; None where the column has none.
        better: 1 where higher is better, -1 where lower is; 0: no row is the best.
    """

    cell: Cell
    meaning: str
    figure: Figure | None = None
    better: int = 0


# ---- figures of a result, None where it has none


def get(*keys: str) -> Figure:
    """The figure stored under these keys, each inside the one before."""

    def figure(found: Any) -> Any:
        for key in keys:
            found = (found or {}).get(key)
        return found

    return figure


def recall(result: Result) -> float | None:
    """Recall@1 after the last experience."""
    values = result.get("recall_at_1")
    return values[-1] if values else None


def recall_within(result: Result) -> float | None:
    """Recall@1 within each experience's own test images after the last experience, mean over experiences."""
    matrix = _matrix(result, "recall_matrix")
    return fmean(matrix[-1]) if matrix else None


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
    return fmean(seconds["training"]) if seconds and seconds.get("training") else None


def peak_memory(result: Result) -> float | None:
    """MiB on a GPU, highest of all experiences; None on a CPU, where Python and its libraries are most of it."""
    peaks = result.get("peak_memory_mib")
    return max(peaks) if peaks and not str(result.get("peak_memory_of")).startswith(OF_PROCESS) else None


def _matrix(result: Result, key: str) -> Matrix | None:
    return result.get(key)


def known(results: Sequence[Result], figure: Figure) -> list[float]:
    """A figure of each result; empty if one of them has no finite value."""
    found = [value for value in map(figure, results) if value is not None and is_finite(value)]
    return found if len(found) == len(results) else []


# ---- cells and columns


def cell_of(figure: Figure, words: Callable[[list[float]], str]) -> Cell:
    """What is said of a figure's values over the seeds; a dash if one of them has none."""
    return lambda results: words(values) if (values := known(results, figure)) else NONE


def spread_of(figure: Figure, scale: float = 100.0, digits: int = 1) -> Cell:
    """Mean ± standard deviation."""

    def words(values: list[float]) -> str:
        mean, std = (f"{scale * value:.{digits}f}" for value in mean_std(values) or ())
        return f"{mean} ± {std}" if len(values) > 1 else mean

    return cell_of(figure, words)


def extreme_of(pick: Callable[[list[float]], float], figure: Figure, digits: int = 1) -> Cell:
    """The least, or the most."""
    return cell_of(figure, lambda values: f"{pick(values):.{digits}f}")


def interval_of(figure: Figure) -> Cell:
    """95 % interval of a mean that cannot leave [0, 1]."""

    def words(values: list[float]) -> str:
        if len(values) < 2:
            return NONE
        low, high = mean_interval(values)
        return percent((max(low, 0.0), min(high, 1.0)))

    return cell_of(figure, words)


def memory(results: Sequence[Result]) -> str:
    """Stored images."""
    return str(results[0]["config"]["memory"] or NONE)


def _share(figure: Figure, meaning: str, better: int = 1) -> Column:
    return Column(spread_of(figure), meaning, figure, better)


MEMORY = Column(memory, "stored images.")
ACCURACY: Mapping[str, Column] = {
    "memory": MEMORY,
    "final accuracy": _share(get("final_accuracy"), "on all images after the last experience."),
    "95 % interval": Column(
        interval_of(get("final_accuracy")),
        "of the mean final accuracy over seeds, by Student's t, cut at 0 and 100: it takes the seeds for a sample of "
        "normal values, and is wide where they are few.",
    ),
    "average accuracy": _share(
        get("average_accuracy"), "mean over experiences of the accuracy on the images of all experiences so far."
    ),
    "newest": _share(
        get("learning_accuracy"),
        "mean over the experiences after the first of the accuracy on the experience just learned.",
    ),
    "forgetting": _share(
        get("forgetting"),
        "mean over the earlier experiences of the best accuracy before the last experience minus the accuracy after it "
        "(Chaudhry et al. 2018).",
        -1,
    ),
    "backward transfer": _share(
        backward,
        "mean over the earlier experiences of the accuracy after the last experience minus the accuracy when it was "
        "just learned (Lopez-Paz and Ranzato 2017).",
    ),
    "Recall@1": _share(
        recall,
        "of the features, leave one out, on all images after the last experience (domain-incremental: within "
        "each experience's images, mean); ties count as their average: collapsed features score like chance.",
    ),
    "task known": _share(
        task_known, "final accuracy when only the classes of the image's own experience can be answered."
    ),
}
COST: Mapping[str, Column] = {
    "memory": MEMORY,
    "seconds": Column(extreme_of(min, get("seconds_total")), "a whole run, evaluation and read-out included."),
    "of it training": Column(extreme_of(min, get("seconds_training")), "without evaluation."),
    "training per experience": Column(extreme_of(min, training_per_experience, 2), "seconds, mean over experiences."),
    "peak memory": Column(extreme_of(max, peak_memory, 0), "MiB that torch had allocated on the GPU, at most."),
}


def compatibility(score: str) -> Mapping[str, Column]:
    """The columns of compatible representations by one score, see ``metrics.compatibility``.

    C[t, k] is the score of queries of the model after experience t in the gallery stored after experience k.
    """
    of = partial(get, "compatibility", score)
    return {
        "memory": MEMORY,
        "self-test": _share(of("self_test"), "C[T, T], the last model's queries in a gallery that it has embedded."),
        "AC": _share(
            of("average_compatibility"),
            "average compatibility, the share of pairs t > k in which new queries do at least as well in an old "
            "gallery as its own model's, C[t, k] >= C[k, k] (CL2R's rule for ties).",
        ),
        "AC, ties fail": _share(
            of("average_compatibility_ties_incompatible"), "the same with C[t, k] > C[k, k], as in CL2R's successor."
        ),
        "BC": _share(
            of("backward_compatibility"),
            "backward compatibility, mean over the old galleries of C[T, k] - C[k, k]: what the last model's queries "
            "add where nothing is embedded anew.",
        ),
        "FC": _share(
            of("forward_compatibility"),
            "forward compatibility, mean over the models after the first of C[t, t - 1] - C[t, t]: how much worse the "
            "gallery of the model before is than one's own.",
        ),
        "AM": _share(
            of("average_multimodel_accuracy"), "average multi-model accuracy, mean of C on and below the diagonal."
        ),
        "update gain": _share(
            of("update_gain"),
            "mean over the old galleries of C[T, T] - C[T, k]: what embedding them anew would add.",
            0,
        ),
    }


# What a published number or a claim may be about.
PUBLISHED: Mapping[str, Figure] = {
    "final accuracy": get("final_accuracy"),
    "final accuracy, task known": get("final_task_accuracy"),
    "average accuracy": get("average_accuracy"),
    "final accuracy, the last rotation": get("evaluations", "the last rotation"),
    "Recall@1 within experiences": recall_within,
}


# ---- rows


def further(rows: Sequence[Row], grouped: Grouped) -> dict[str, Column]:
    """Columns that only some results have: accuracies by other ways of evaluation, and the user's own metrics."""
    results = [result for row in rows for result in grouped[row.name]]
    ways = dict.fromkeys(way for result in results for way in result.get("evaluations") or {})
    metrics = dict.fromkeys(name for result in results for name in result.get("metrics") or {})

    def last(name: str) -> Figure:
        return lambda result: (result.get("metrics") or {}).get(name, {"all": [None]})["all"][-1]

    found = {f"final accuracy, {way}": _share(get("evaluations", way), "under this way of evaluation.") for way in ways}
    return found | {name: Column(spread_of(last(name), 1.0, 3), "a metric of one's own.") for name in metrics}


def is_ours(row: Row) -> bool:
    """Whether the row is of one of the three methods."""
    return row.config.method in OURS


def group_of(row: Row) -> str:
    """Which of GROUPS the row belongs to."""
    if row.config.method in BOUNDS:
        return "bounds"
    if is_ours(row):
        return "ours"
    return "replay" if row.config.memory else "regularisation and others"


def memory_of(row: Row, grouped: Grouped) -> int:
    """Stored images of a row's runs."""
    return int(grouped[row.name][0]["config"]["memory"])


def memories(rows: Sequence[Row], grouped: Grouped) -> list[int]:
    """The sizes of memory among rows, without 0."""
    return sorted({memory_of(row, grouped) for row in rows} - {0})


def by_memory(rows: Sequence[Row], grouped: Grouped) -> list[Row]:
    """The rows sorted by memory, those without one first; unchanged where all memories have the same size."""
    return sorted(rows, key=lambda row: memory_of(row, grouped)) if len(memories(rows, grouped)) > 1 else list(rows)


def by_size(name: str, grouped: Grouped) -> dict[int, Sequence[Result]]:
    """The results of the row and of its variants NAME_50, NAME_500, by size of memory; validation runs do not count."""
    found = {row: results for row, results in grouped.items() if re.fullmatch(rf"{re.escape(name)}(_\d+)?", row)}
    return {
        int(results[0]["config"]["memory"]): results
        for _, results in sorted(found.items(), reverse=True)  # the row itself last: it stands for its size
        if results[0]["evaluated_on"] == "test"
    }


def stream_of(results: Sequence[Result]) -> tuple[str, ...]:
    """What must agree before two rows can be compared."""
    first = results[0]
    keys = ("stream", "data", "scenario", "experiences", "base_classes", "unseen", "train_images", "test_images")
    return first["evaluated_on"], *(str(first["config"].get(key)) for key in keys)  # some are lists


def drawn(result: Result) -> dict[str, Sequence[float]]:
    """What the seed decided of a run's stream, by name: the rotations of rotated domains, else the class order."""
    angles = result.get("angles")
    return {"rotations": angles} if angles else {"class orders": result.get("class_order", [])}


def classes(result: Result) -> list[str]:
    """The classes of each experience, by name if the result has names; empty if it does not list them."""
    names = dict(enumerate(result.get("class_names") or ()))
    return [
        ", ".join(str(names.get(n, n)) for n in experience) for experience in result.get("experience_classes") or ()
    ]


def own_streams(rows: Sequence[Sequence[Result]]) -> str:
    """What the seeds of these rows differ in: ", each with its own class order", or rotations, or nothing."""
    kinds = []
    for results in rows:
        found = [drawn(result) for result in results]
        kinds += [kind for kind in found[0] if any(other.get(kind) != found[0][kind] for other in found)]
    words = [word for kind, word in (("class orders", "class order"), ("rotations", "rotations")) if kind in kinds]
    return f", each with its own {' or '.join(words)}" if words else ""


def aligned(rows: Sequence[Sequence[Result]], figure: Figure, names: Sequence[str]) -> list[tuple[float, ...]]:
    """A figure of several rows, for each seed that all rows have; empty if a value is missing.

    Args:
        rows: results of each row.
        figure: what to take.
        names: of the rows, for errors.

    Raises:
        ValueError: a seed gave two rows different streams.
    """
    by_seed = [{int(result["seed"]): result for result in results} for results in rows]
    shared = sorted(set.intersection(*(set(found) for found in by_seed)))
    streams = [{seed: drawn(found[seed]) for seed in shared} for found in by_seed]
    for name, other in zip(names[1:], streams[1:], strict=True):
        check_pairing(streams[0], other, names=(names[0], name))
    values = [known([found[seed] for found in by_seed], figure) for seed in shared]
    return [tuple(of_seed) for of_seed in values] if all(values) else []


# ---- the best of a column


def best_cells(rows: Sequence[Row], grouped: Grouped, columns: Sequence[Column]) -> frozenset[tuple[int, int]]:
    """(row, column) of the best mean of each column, and of those within its 95 % interval.

    A row competes with rows of the same stream and memory and with those without a memory.
    """
    of_stream: dict[tuple[str, ...], list[int]] = {}
    for index, row in enumerate(rows):
        if row.config.method not in UPPER:
            of_stream.setdefault(stream_of(grouped[row.name]), []).append(index)
    found: set[tuple[int, int]] = set()
    for rivals in of_stream.values():
        for size in memories([rows[i] for i in rivals], grouped) or [0]:
            among = {i: grouped[rows[i].name] for i in rivals if memory_of(rows[i], grouped) in (0, size)}
            for j, column in enumerate(columns):
                found |= {(i, j) for i in best_of(among, column)}
    return frozenset(found)


def best_of(among: Mapping[Key, Sequence[Result]], column: Column) -> list[Key]:
    """Which of several rows have the best mean or one within its 95 % interval; none where fewer than two compete."""
    figure = column.figure
    if figure is None or column.better == 0:
        return []
    values = {key: known(results, figure) for key, results in among.items()}
    means = {key: column.better * fmean(of_row) for key, of_row in values.items() if of_row}
    if len(means) < 2:
        return []
    top = max(means, key=lambda key: means[key])
    ends = [column.better * end for end in mean_interval(values[top])] if len(values[top]) > 1 else [means[top]]
    return [key for key, mean in means.items() if mean >= min(ends) - 1e-12]


def difference_cells(pairs: Sequence[Sequence[float]]) -> tuple[str, str, str, str]:
    """Mean difference in percentage points, its interval, on how many seeds the first is higher, and p."""
    if not pairs:
        return NONE, NONE, NONE, NONE
    found = compare(*zip(*pairs, strict=True))
    ends = percent(found.interval, "+") if found.interval else NONE
    return f"{100 * found.difference:+.1f}", ends, f"{found.wins} of {found.n}", f"{found.p:.3g}"
