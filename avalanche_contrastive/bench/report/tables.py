"""Tables and the page RESULTS.md, made from result files alone."""

import argparse
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from avalanche_contrastive.bench.config import TABLES, Row, nearest
from avalanche_contrastive.bench.files import write_text
from avalanche_contrastive.bench.report.cells import (
    ACCURACY,
    COST,
    NONE,
    SUPERSCRIPTS,
    Cell,
    Table,
    by_memory,
    further,
    is_ours,
    listed,
    own_streams,
    plain,
    worded,
)
from avalanche_contrastive.bench.report.comparisons import (
    Everything,
    comparison_table,
    overview_table,
    published_notes,
    published_tables,
)
from avalanche_contrastive.bench.report.stats import COVERAGE
from avalanche_contrastive.bench.results import Grouped, Result, load_all, rows_of, suite_of

DEFINITIONS = {
    "memory": "stored images.",
    "final accuracy": "on all {images} images after the last experience.",
    "95 % interval": "of the mean final accuracy, percentile bootstrap over seeds.{worth}",
    "average accuracy": "mean over experiences of the accuracy on the {images} images of all experiences so far.",
    "newest": "mean over the experiences after the first of the accuracy on the experience just learned.",
    "forgetting": "mean over the earlier experiences of the best accuracy before the last experience minus the "
    "accuracy after it (Chaudhry et al. 2018).",
    "backward transfer": "mean over the earlier experiences of the accuracy after the last experience minus the "
    "accuracy when it was just learned (Lopez-Paz and Ranzato 2017).",
    "Recall@1": "of the features, leave one out, on all {images} images after the last experience (domain-incremental: "
    "within each experience's images, mean); ties count as their average: collapsed features score like chance.",
    "task known": "final accuracy when only the classes of the image's own experience can be answered.",
    "seconds": "a whole run, evaluation and read-out included; runs may have shared a machine.",
    "of it training": "without evaluation.",
    "training per experience": "seconds, mean over experiences.",
    "peak memory": "MiB, highest of all experiences{peak}.",
}
SETTINGS_NOTE = (
    "Where a row has been tuned (`python -m benchmarks tune`, on validation images), all its candidates and their "
    "scores are in `benchmarks/tuning/{suite}/`; of a config file elsewhere, in the `.tuning.json` beside it."
)


OTHERS_NOTE = "At default settings, tuned on nothing: that they run, and where they end up; no comparison of methods."
TRIALS_NOTE = (
    "The data's own validation images, or where there are none a fifth of the training images, as in `tune`; the test "
    "images took no part."
)
FIGURE_TITLES = {
    "accuracy_curves": "Accuracy on all experiences so far, after each experience",
    "recall_curves": "Recall@1 after each experience",
    "accuracy_matrices": "Accuracy on each experience after each experience",
    "cost": "Seconds and peak memory of each method",
}


def main_table(grouped: Grouped, *, define: bool = True) -> Table:
    """Accuracy and Recall@1 of the main rows; with `define` the caption says what the columns are."""
    return figures_table(by_memory(rows_of(grouped, "main"), grouped), grouped, ACCURACY, define=define)


def cost_table(grouped: Grouped, *, define: bool = True) -> Table:
    """Time and memory of the main rows."""
    table = figures_table(by_memory(rows_of(grouped, "main"), grouped), grouped, COST, define=define)
    return replace(table, notes=())  # the main table has them


def other_table(grouped: Grouped, *, define: bool = True) -> Table:
    """Avalanche's further strategies, which are not tuned."""
    return figures_table(by_memory(rows_of(grouped, "other"), grouped), grouped, ACCURACY, define=define)


def ablation_table(grouped: Grouped, *, define: bool = True) -> Table:
    """Each ablation under the full method that it takes something from."""
    ablations = rows_of(grouped, "ablation")
    rows: list[Row] = []
    for parent in rows_of(grouped, "main"):
        children = [row for row in ablations if row.base == parent.name]
        rows += [parent, *children] if children else []
    rows += [row for row in ablations if row not in rows]
    return figures_table(rows if ablations else [], grouped, ACCURACY, define=define)


def trial_table(grouped: Grouped, *, define: bool = True) -> Table:
    """What was looked into on validation images."""
    return figures_table(rows_of(grouped, "trial"), grouped, ACCURACY, define=define)


def all_tables(grouped: Grouped) -> str:
    """Every table of figures that has rows, as Markdown."""
    main = main_table(grouped)
    others = [cost_table(grouped)]
    others += [table(grouped, define=not main) for table in (other_table, ablation_table, trial_table)]
    return "\n".join(str(table) for table in (main, *others) if table)


def figures_table(rows: Sequence[Row], grouped: Grouped, columns: Mapping[str, Cell], *, define: bool) -> Table:
    """Figures of rows; columns in which no row has anything are left out."""
    more = further(rows, grouped) if columns is ACCURACY else {}
    cells = {name: [cell(grouped[row.name]) for row in rows] for name, cell in {**columns, **more}.items()}
    cells = {name: column for name, column in cells.items() if name == "memory" or set(column) != {NONE}}
    marks = _marks(rows)
    labels = [plain(row.label) + (marks.get(row.note, "") if columns is ACCURACY else "") for row in rows]
    return Table(
        ("method", *cells),
        tuple(zip(labels, *cells.values(), strict=True)),
        "l" + "r" * len(cells),
        caption(rows, grouped, cells, define=define) if rows else "",
        tuple(f"{mark} {note}" for note, mark in marks.items()),
        frozenset(index for index, row in enumerate(rows) if is_ours(row) and row.table == "main"),
    )


def _marks(rows: Sequence[Row]) -> dict[str, str]:
    """Footnote mark of each note, in order of appearance."""
    notes = dict.fromkeys(row.note for row in rows if row.note)
    return {note: str(number).translate(SUPERSCRIPTS) for number, note in enumerate(notes, 1)}


def caption(rows: Sequence[Row], grouped: Grouped, columns: Collection[str], *, define: bool) -> str:
    """What the numbers are: spread, seeds, images, and with `define` the meaning of the columns."""
    results = [result for row in rows for result in grouped[row.name]]
    seeds = sorted({int(result["seed"]) for result in results})
    orders = own_streams([grouped[row.name] for row in rows])
    images = " and ".join(sorted({result["evaluated_on"] for result in results}))
    spread = f"Mean ± standard deviation over {len(seeds)} seeds" if len(seeds) > 1 else "One seed"
    lines = [f"{spread} ({listed(seeds)}){orders}."]
    lines += [f"Accuracies and Recall@1 in percent, on {images} images."] if "final accuracy" in columns else []
    partial = [f"{plain(row.label)} ({len(grouped[row.name])})" for row in rows if len(grouped[row.name]) < len(seeds)]
    lines += [f"Fewer seeds: {listed(partial)}."] if partial else []
    if define:
        lines += definitions(columns, results, {len(grouped[row.name]) for row in rows}, images)
    return " ".join(lines)


def definitions(
    columns: Iterable[str], results: Sequence[Result], seeds: Iterable[int], images: str = "test"
) -> list[str]:
    """A sentence for each column that needs one; `seeds` are the numbers of them that the rows have."""
    kinds = sorted({result["peak_memory_of"] for result in results if "peak_memory_of" in result})
    peak = f" ({'; or '.join(kinds)})" if kinds else ""
    known = {"images": images, "worth": worth(seeds), "peak": peak}
    named = [name for name in columns if name in DEFINITIONS]
    return [f"*{name[0].upper()}{name[1:]}*: {DEFINITIONS[name].format(**known)}" for name in named]


def worth(seeds: Iterable[int]) -> str:
    """What bootstrap intervals over so few seeds are worth; starts with a space, empty if there is none."""
    few = sorted({max(n for n in COVERAGE if n <= number) for number in seeds if number > 1})
    if not few:
        return ""
    shares = " and ".join(f"{100 * COVERAGE[n]:.0f} % with {n} seeds" for n in few)
    return f" Few seeds make it too narrow: of normal values it holds the mean not in 95 % of cases but in {shares}."


def settings_tables(grouped: Grouped) -> list[Table]:
    """The setting behind every row as stored with its results: rows of their own, then rows that follow another.

    A field of the config has a column only where rows differ in it; the caption has the others.
    """
    rows = [row for kind in TABLES for row in rows_of(grouped, kind)]
    followers = [row for row in rows if row.base in grouped]
    own = [row for row in rows if row not in followers]
    configs = {row.name: dict(grouped[row.name][0]["config"]) for row in rows}
    fields = [key for key in configs[own[0].name] if key not in ("options", "suite", "method")]
    differing = [key for key in fields if len({str(configs[row.name].get(key)) for row in own}) > 1]
    shared = {key: configs[own[0].name][key] for key in fields if key not in differing}
    lines = [
        (
            f"`{row.name}`",
            *(worded(configs[row.name].get(key) or NONE) for key in differing),
            _assigned(configs[row.name]["options"]) or NONE,
            str(grouped[row.name][0]["readout"]),
        )
        for row in own
    ]
    used = {key: thing for key, thing in shared.items() if thing not in ("", 0, False) and thing != []}
    text = f"In all these rows: {_assigned(used)}. Fields that are not named are off or at the stream's own default."
    first = Table(("row", *differing, "options", "read-out"), tuple(lines), "l" * (len(differing) + 3), text)
    changed = [
        (f"`{row.name}`", f"`{row.base}`", _changed(grouped[row.name][0], grouped[row.base][0])) for row in followers
    ]
    return [table for table in (first, Table(("row", "as", "but"), tuple(changed), "lll")) if table]


def _changed(result: Result, base: Result) -> str:
    """What a row's config says otherwise than another's, and whether it was evaluated elsewhere."""
    ours, theirs = result["config"], base["config"]
    fields = {key: thing for key, thing in ours.items() if key != "options" and thing != theirs.get(key)}
    options = {key: thing for key, thing in ours["options"].items() if thing != theirs["options"].get(key)}
    where = result["evaluated_on"]
    changes = [_assigned({**fields, **options})] + [f"on {where} images"] * (where != base["evaluated_on"])
    return listed([*filter(None, changes)]) or "the same setting"


def _assigned(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {worded(thing) or 'none'}" for key, thing in values.items())


# ---- pages


def results_page(everything: Everything, figures: str = "results") -> str:
    """RESULTS.md.

    Args:
        everything: results by suite.
        figures: folder of the suites' folders with their figures, seen from the page.
    """
    rows = [row for grouped in everything.values() for row in grouped.values()]
    results = [result for row in rows for result in row]
    meaning = definitions({**ACCURACY, **COST}, results, map(len, rows))
    published = published_tables(everything)
    parts = [
        "# Results",
        "Generated by `python -m benchmarks report` from the JSON files of the runs alone; do not edit.",
        f"Suites: {listed([f'[{suite}](#{suite})' for suite in everything])}."
        + (" At the end: [published numbers beside ours](#published-numbers-beside-ours)." if published else ""),
        "## What the columns are",
        "\n".join(f"- {sentence}" for sentence in meaning),
    ]
    if overview := overview_table(everything):
        parts += ["## All suites", str(overview)]
    for suite, grouped in everything.items():
        parts += _suite_parts(suite, grouped, f"{figures}/{suite}")
    if published:
        parts += ["## Published numbers beside ours", published_notes([*published.values()])]
    for paper, table in published.items():
        parts += [f"### {paper}", str(table)]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def _suite_parts(suite: str, grouped: Grouped, figures: str) -> list[str]:
    parts = [f"## {suite}", *provenance(grouped), str(main_table(grouped, define=False))]
    parts += [f"![{about}]({figures}/{name}.png)" for name, about in FIGURE_TITLES.items()]
    for heading, about, table in suite_tables(grouped):
        parts += [f"### {suite}: {heading}", about, str(table)]
    return parts


def suite_tables(grouped: Grouped) -> list[tuple[str, str, Table]]:
    """Heading, a sentence or none, and table of everything but the main table that a suite has."""
    note = SETTINGS_NOTE.format(suite=suite_of(grouped))
    settings = settings_tables(grouped)
    tables = [
        ("cost", "", cost_table(grouped, define=False)),
        ("paired comparisons", "", comparison_table(grouped)),
        ("further strategies of Avalanche", OTHERS_NOTE, other_table(grouped, define=False)),
        ("ablations", "The setting of the full method, changed as named.", ablation_table(grouped, define=False)),
        ("looked into, on validation images", TRIALS_NOTE, trial_table(grouped, define=False)),
        ("settings", note, settings[0]),
        *(("settings that follow another row", "", table) for table in settings[1:]),
    ]
    return [(heading, about, table) for heading, about, table in tables if table]


def provenance(grouped: Grouped) -> list[str]:
    """What the runs trained on, with what and where: a sentence each."""
    results = [result for row in grouped.values() for result in row]
    streams = dict.fromkeys(str(result["stream"]) for result in results if result.get("stream"))
    made = dict.fromkeys(listed([f"{name} {number}" for name, number in r["versions"].items()]) for r in results)
    devices = dict.fromkeys(str(result["device"]) for result in results)
    sentences = [f"{'; '.join(streams)}."] if streams else []
    return [*sentences, f"Made with {'; or '.join(made)}; on {'; or '.join(devices)}."]


def fill_page(path: Path, everything: Everything) -> None:
    """Put tables between the markers of a page.

    A marker is `<!-- table:SUITE -->` for the main table, `<!-- table:SUITE ROW ROW ... -->` for those rows, or
    `<!-- table:all -->` for the final accuracy in every suite; the table ends at `<!-- /table -->`. The first table of
    a page says what the columns are.

    Raises:
        ValueError: the page has no marker, or one names a suite or a row without results.
    """
    write_text(path, filled(path.read_text(encoding="utf-8"), everything, where=str(path)))


def filled(text: str, everything: Everything, *, where: str) -> str:
    """The page's text with its tables up to date."""
    marker = re.compile(r"(<!-- table:(\S+)((?: \w+)*) -->).*?(<!-- /table -->)", re.DOTALL)
    parts, end = [], 0
    for block in marker.finditer(text):
        table = _table_for(block[2], block[3].split(), everything, where, define=end == 0)
        parts += [text[end : block.start()], f"{block[1]}\n{str(table).strip()}\n{block[4]}"]
        end = block.end()
    if not parts:
        raise ValueError(f"{where}: expected the marker lines <!-- table:SUITE --> and <!-- /table -->, found none")
    return "".join([*parts, text[end:]])


def _table_for(suite: str, names: Sequence[str], everything: Everything, where: str, *, define: bool) -> Table:
    if suite == "all" and not names:
        return overview_table(everything)
    if suite not in everything:
        raise ValueError(f"{where}: a table asks for suite {suite!r}, which has no results{nearest(suite, everything)}")
    grouped = everything[suite]
    unknown = [name for name in names if name not in grouped]
    if unknown:
        raise ValueError(f"{where}: a table asks for {listed(unknown)}, but the results hold {listed([*grouped])}")
    if not names:
        return main_table(grouped, define=define)
    rows = {row.name: row for kind in TABLES for row in rows_of(grouped, kind)}
    return figures_table([rows[name] for name in names], grouped, ACCURACY, define=define)


def command(parsed: argparse.Namespace) -> int:
    """The command `table`: print or write tables from JSON."""
    everything = load_all(parsed.results)
    if parsed.write:
        write_text(parsed.write, results_page(everything))
        print(f"wrote {parsed.write}")
    for page in parsed.into:
        fill_page(page, everything)
        print(f"updated the tables in {page}")
    if not (parsed.write or parsed.into):
        for grouped in everything.values():
            print(all_tables(grouped))
    return 0
