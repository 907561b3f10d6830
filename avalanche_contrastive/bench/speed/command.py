"""The command `speed`: times our work beside that of others, prints the table and writes it as JSON."""

import argparse
import json
import re
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from avalanche_contrastive.bench.files import read_checked, write_text
from avalanche_contrastive.bench.report.cells import Table
from avalanche_contrastive.bench.run.execute import versions
from avalanche_contrastive.bench.run.measure import describe_device
from avalanche_contrastive.bench.shapes import is_number, is_text, list_of, record_of, table_of
from avalanche_contrastive.bench.speed import images, losses, search, steps
from avalanche_contrastive.bench.speed.measure import Comparison, LeftOutError, measure

__all__ = ["GROUPS", "command", "page_with", "speed_table"]

GROUPS: Mapping[str, tuple[Callable[[], list[Comparison]], int]] = {  # with the rounds of each
    "losses": (losses.comparisons, 21),
    "steps": (steps.tiny_steps, 61),
    "resnet": (steps.wide_steps, 11),
    "gpu": (steps.on_gpu, 11),
    "growth": (steps.growth, 9),
    "long-growth": (partial(steps.growth, 300), 5),
    "large-growth": (partial(steps.growth, 40, 12, classes=1000, new=100, images=2000, memory=20_000), 3),
    "readout": (search.fits, 7),
    "fetch": (images.fetching, 5),
    "augmentation": (images.augmentations, 9),
    "faiss": (search.by_faiss, 5),
    "metric-learning": (search.by_metric_learning, 5),
    "torchmetrics": (search.by_torchmetrics, 3),
}
RATIO = record_of(median=is_number, lowest=is_number, highest=is_number)
ROW = record_of(group=is_text, work=is_text, competitor=is_text, target=is_number, seconds=is_number, ratio=RATIO)
IS_FOUND = record_of(device=is_text, versions=table_of(is_text), rows=list_of(ROW))


def command(parsed: argparse.Namespace) -> int:
    """Time the groups that are asked for, one after another, and say what was found."""
    if unknown := set(parsed.groups) - set(GROUPS):
        raise ValueError(f"no group {', '.join(sorted(unknown))}. Groups: {', '.join(GROUPS)}")
    if parsed.page and not parsed.groups and parsed.out.exists():
        found = read_checked(parsed.out, IS_FOUND, "speed")
    else:
        found = _found(parsed.groups or list(GROUPS), parsed.rounds)
        if parsed.groups and parsed.out.exists():
            found["rows"] = _with_kept(parsed.out, found)
        write_text(parsed.out, json.dumps(found, indent=1) + "\n")
        print(f"wrote {parsed.out}", file=sys.stderr)
    if parsed.page:
        write_text(parsed.page, page_with(parsed.page.read_text(encoding="utf-8"), found))
        print(f"updated the table in {parsed.page}", file=sys.stderr)
    else:
        print(speed_table(found))
    return 0


def _with_kept(path: Path, found: Mapping[str, Any]) -> list[Any]:
    """The rows, with those of other groups in the file if they are of this machine and these versions."""
    there, measured = read_checked(path, IS_FOUND, "speed"), {row["group"] for row in found["rows"]}
    same = (there["device"], there["versions"]) == (found["device"], found["versions"])
    rows = [row for row in there["rows"] if same and row["group"] not in measured] + found["rows"]
    return [row for name in GROUPS for row in rows if row["group"] == name]


def _found(groups: Sequence[str], rounds: int | None) -> dict[str, Any]:
    threads, rows, missing = torch.get_num_threads(), [], []
    torch.set_num_threads(1)  # processor time of one thread is its work
    try:
        for name in groups:
            make, usual = GROUPS[name]
            try:
                comparisons = make()
            except (ImportError, LeftOutError) as error:
                print(f"{name}: left out, {error}", file=sys.stderr)
                missing.append(name)
                continue
            for comparison in comparisons:
                with warnings.catch_warnings(record=True):  # of what Avalanche deprecates, at each call
                    row = measure(comparison, rounds or usual)
                rows.append({"group": name, **row})
                print(f"{row['work']} / {row['competitor']}: {_ratio(row)}", file=sys.stderr)
        device = describe_device()
    finally:
        torch.set_num_threads(threads)
    return {"device": device, "versions": versions(), "left_out": missing, "rows": rows}


def speed_table(found: Mapping[str, Any]) -> Table:
    """The table of a file that the command wrote."""
    libraries = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    return Table(
        ("Work", "Beside", "Our time / theirs", "Wanted", "Ours, ms"),
        tuple(
            (row["work"], row["competitor"], _ratio(row), f"{row['target']:g}", f"{1000 * row['seconds']:.3g}")
            for row in found["rows"]
        ),
        "llrrr",
        caption="Processor time of one thread, all time where a GPU works; median of the ratios of all rounds, lowest "
        f"and highest in brackets. Measured on {found['device']}, with {libraries}.",
    )


def page_with(page: str, found: Mapping[str, Any]) -> str:
    """A page with the table between its lines ``<!-- speed -->`` and ``<!-- /speed -->``.

    Raises:
        ValueError: it has no such lines.
    """
    filled, times = re.subn(
        r"(<!-- speed -->\n).*?(<!-- /speed -->)", lambda m: f"{m[1]}{speed_table(found)}{m[2]}", page, flags=re.DOTALL
    )
    if times != 1:
        raise ValueError(f"expected the lines <!-- speed --> and <!-- /speed --> once in the page, found {times}")
    return filled


def _ratio(row: Mapping[str, Any]) -> str:
    ratio = row["ratio"]
    return f"{ratio['median']:.2f} ({ratio['lowest']:.2f}–{ratio['highest']:.2f})"
