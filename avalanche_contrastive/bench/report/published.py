"""Published numbers, and what our results have to put beside them.

The numbers are in published.toml, each with its source; ours are read from results and never written down here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from avalanche_contrastive.bench.config import load_row, nearest, read_toml, row_files, same_config, suites
from avalanche_contrastive.bench.files import Grouped, Result
from avalanche_contrastive.bench.report.figures import PUBLISHED as FIGURES
from avalanche_contrastive.bench.report.figures import known
from avalanche_contrastive.bench.report.stats import mean_std

PUBLISHED = Path(__file__).parent / "published.toml"
WITHIN = 2.0  # published standard deviations
POINTS = 1.0  # where no standard deviation was published
YES, BUT, NO = "yes", "as published, but", "no"  # the same setting?
CHANGED = f"{NO}: run with other values than those of its config file"
REPRODUCED, DEVIATING, NOT_REPRODUCED = "reproduced", "reproduced with deviations", "not reproduced"


@dataclass(frozen=True)
class Ours:
    """A row of ours that may stand beside a published number.

    Args:
        suite: suite of the row.
        row: its name.
        same: "yes", or "as published, but: " or "no: " and what differs; comparisons.SAME_SETTING is the rule.
    """

    suite: str
    row: str
    same: str


@dataclass(frozen=True)
class Number:
    """One published number, in percent.

    Args:
        source: where it is printed.
        data: what it was measured on.
        setting: how.
        figure: key of FIGURES if there is one, else in words.
        method: whose number.
        value: the number.
        std: its standard deviation; None if none was published.
        ours: rows of ours, nearest setting first.
    """

    source: str
    data: str
    setting: str
    figure: str
    method: str
    value: float
    std: float | None
    ours: tuple[Ours, ...]


@dataclass(frozen=True)
class Beside:
    """A published number with a result of ours, or with none.

    Args:
        number: the published one.
        ours: which row of ours; None if none was run.
        mean: of ours, in percent; None if none was run.
        std: over our seeds.
        seeds: how many.
    """

    number: Number
    ours: Ours | None = None
    mean: float | None = None
    std: float = 0.0
    seeds: int = 0

    @property
    def verdict(self) -> str:
        """`REPRODUCED` or `DEVIATING` only for a result of the published setting that is near enough; see `near`."""
        if self.ours is None or self.mean is None or not near(self.number, self.mean):
            return NOT_REPRODUCED
        return {YES: REPRODUCED, BUT: DEVIATING}.get(self.ours.same.partition(": ")[0], NOT_REPRODUCED)


def near(number: Number, mean: float) -> bool:
    """Within two published standard deviations, or one point where none was published."""
    return abs(mean - number.value) <= (POINTS if number.std is None else WITHIN * number.std)


def load_published(path: Path | None = None) -> dict[str, tuple[str, list[Number]]]:
    """By paper: a text about all its numbers, and the numbers, in the order of the file.

    Raises:
        ValueError: the file is not as its first lines say; the message names the entry.
    """
    path = path or PUBLISHED
    raw = read_toml(path)
    check_keys(raw, {"papers", "experiment"}, set(), str(path))
    found: dict[str, tuple[str, list[Number]]] = {paper: (text, []) for paper, text in raw["papers"].items()}
    for index, entry in enumerate(raw["experiment"], 1):
        numbers = _numbers(entry, f"{path}, experiment {index}")
        paper = entry["paper"]
        if paper not in found:
            raise ValueError(f"{path}, experiment {index}: unknown paper {paper!r}{nearest(paper, found)}")
        found[paper][1].extend(numbers)
    return found


def _numbers(entry: Mapping[str, Any], where: str) -> list[Number]:
    texts = ("source", "data", "setting", "figure")
    check_keys(entry, {*texts, "paper", "published"}, {"ours"}, where)
    for method, value in entry["published"].items():
        if not isinstance(value, list) or len(value) not in (1, 2) or not all(type(v) in (int, float) for v in value):
            raise ValueError(f"{where}: {method} must be [value] or [value, std] in percent, got {value!r}")
    ours = [_ours(item, entry, f"{where}, ours") for item in entry.get("ours", [])]
    return [
        Number(
            **{key: str(entry[key]) for key in texts},
            method=method,
            value=float(value[0]),
            std=float(value[1]) if len(value) == 2 else None,
            ours=tuple(Ours(suite, rows[method], same) for suite, rows, same in ours if method in rows),
        )
        for method, value in entry["published"].items()
    ]


def _ours(item: Mapping[str, Any], entry: Mapping[str, Any], where: str) -> tuple[str, Mapping[str, str], str]:
    check_keys(item, {"suite", "same", "rows"}, set(), where)
    if item["same"] != YES and not str(item["same"]).startswith((f"{BUT}: ", f"{NO}: ")):
        raise ValueError(
            f'{where}: same must be "{YES}", or "{BUT}: " or "{NO}: " and what differs, got {item["same"]!r}'
        )
    if entry["figure"] not in FIGURES:
        raise ValueError(f"{where}: no result has a figure {entry['figure']!r}{nearest(entry['figure'], FIGURES)}")
    for method in item["rows"]:
        if method not in entry["published"]:
            raise ValueError(f"{where}: nothing is published of {method!r}{nearest(method, entry['published'])}")
    return item["suite"], item["rows"], item["same"]


def check_keys(found: Mapping[str, Any], needed: set[str], optional: set[str], where: str) -> None:
    """Refuse an entry of a TOML file with a key that is unknown or missing.

    Raises:
        ValueError: naming the key.
    """
    for key in found:
        if key not in needed | optional:
            raise ValueError(f"{where}: unknown key {key!r}{nearest(key, needed | optional)}")
    if missing := needed - found.keys():
        raise ValueError(f"{where}: missing {', '.join(sorted(missing))}")


def beside(numbers: Sequence[Number], everything: Mapping[str, Grouped]) -> list[Beside]:
    """Each number with every row of ours that was run for it, or once with none.

    Validation runs do not count.
    """
    return [pair for number in numbers for pair in _beside(number, everything) or [Beside(number)]]


def _beside(number: Number, everything: Mapping[str, Grouped]) -> list[Beside]:
    found = []
    for ours in number.ours:
        results = everything.get(ours.suite, {}).get(ours.row, [])
        tested = [result for result in results if result["evaluated_on"] == "test"]
        figures = mean_std(known(tested, FIGURES[number.figure]))
        if figures is not None:
            held = ours if _as_filed(ours, tested) else replace(ours, same=CHANGED)
            found.append(Beside(number, held, 100 * figures[0], 100 * figures[1], len(tested)))
    return found


def _as_filed(ours: Ours, results: Sequence[Result]) -> bool:
    """Whether these runs have the values of the row's file; runs with `--set` may have others."""
    if ours.suite not in suites() or ours.row not in row_files(ours.suite):
        return True  # nothing to hold them to
    config = load_row(ours.row, ours.suite).config
    return all(same_config(result["config"], config) for result in results)
