"""The tables of one suite, made from result files alone."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

from avalanche_contrastive.bench.config import TABLES, Row
from avalanche_contrastive.bench.report.cells import NONE, SUPERSCRIPTS, Code, Table, listed, worded
from avalanche_contrastive.bench.report.figures import (
    ACCURACY,
    BEST,
    COST,
    Column,
    best_cells,
    by_memory,
    compatibility,
    further,
    is_ours,
    known,
    own_streams,
)
from avalanche_contrastive.bench.report.stats import mean_interval
from avalanche_contrastive.bench.results import Grouped, Result, rows_of

SAME = "the same setting"
ACCURACIES = "Accuracies and Recall@1 in percent, on {images} images."
COSTS = "Each time is that of the fastest seed: runs may have shared a machine, or have been stopped for a while."
UNSEEN = (
    "Scores in percent and their differences in percentage points, on classes that no model was trained on. C[t, k] is "
    "the score of queries of the model after experience t in the gallery that the model after experience k has "
    "embedded; T is the last."
)

FIGURE_TITLES = {
    "accuracy_curves": "Accuracy on all experiences so far, after each experience",
    "recall_curves": "Recall@1 after each experience",
    "accuracy_matrices": "Accuracy on each experience after each experience",
    "compatibility": "Compatible representations: new queries in old galleries",
    "cost": "Seconds of each method",
}


def main_table(grouped: Grouped, *, kind: str = "main", define: bool = True) -> Table:
    """Accuracy and Recall@1 of the rows of one of TABLES; with `define` the caption says what the columns are."""
    rows = rows_of(grouped, kind)  # by method, in which order trials stay: their memory may be what is tried
    return figures_table(rows if kind == "trial" else by_memory(rows, grouped), grouped, ACCURACY, define=define)


def compatibility_tables(grouped: Grouped, *, define: bool = True) -> list[tuple[str, Table]]:
    """Score and table of compatible representations, for each score that the main rows have."""
    rows = by_memory(rows_of(grouped, "main"), grouped)
    scores = dict.fromkeys(s for row in rows for result in grouped[row.name] for s in result.get("compatibility") or {})
    found: list[tuple[str, Table]] = []
    for score in scores:
        table = figures_table(rows, grouped, compatibility(score), define=define and not found, about=UNSEEN)
        found.append((score, replace(table, notes=(_in_words(rows, grouped, score),))))
    return found


def _in_words(rows: Sequence[Row], grouped: Grouped, score: str) -> str:
    """Which rows spare the re-embedding of old galleries, and what it costs to spare it."""
    columns = compatibility(score)
    spared, costs = [], []
    for row in rows:
        changes, gains, tests = (
            known(grouped[row.name], figure) if (figure := columns[name].figure) else []
            for name in ("BC", "update gain", "self-test")
        )
        if changes and gains and tests:
            costs.append((100 * fmean(gains), 100 * fmean(tests), row.label))
            spared += [row.label] if len(changes) > 1 and mean_interval(changes)[1] >= 0 else []
    given_up = "; ".join(f"{label} {gain:.1f} of {test:.1f}" for gain, test, label in sorted(costs))
    return (
        f"No loss in old galleries is shown (the 95 % interval of BC reaches 0) with: {listed(spared) or 'no method'}. "
        f"Points lost where old galleries are not embedded anew, of the score where they are: {given_up}."
    )


def cost_table(grouped: Grouped, *, define: bool = True) -> Table:
    """Time and memory of the main rows."""
    return figures_table(by_memory(rows_of(grouped, "main"), grouped), grouped, COST, define=define, about=COSTS)


def ablation_table(grouped: Grouped, *, define: bool = True) -> Table:
    """Each ablation, below the full method that it is an ablation of."""
    ablations = rows_of(grouped, "ablation")
    rows: list[Row] = []
    for parent in rows_of(grouped, "main"):
        children = [row for row in ablations if row.base == parent.name]
        rows += [parent, *children] if children else []
    rows += [row for row in ablations if row not in rows]
    return figures_table(rows if ablations else [], grouped, ACCURACY, define=define)


def chosen_table(names: Sequence[str], grouped: Grouped, *, define: bool = True) -> Table:
    """The named rows, in this order."""
    rows = {row.name: row for kind in TABLES for row in rows_of(grouped, kind)}
    return figures_table([rows[name] for name in names], grouped, ACCURACY, define=define)


def figure_tables(grouped: Grouped, *, define: bool = False) -> list[tuple[str, Table]]:
    """Title and table of every table of figures that has rows; with `define` the first says what its columns are."""
    main = main_table(grouped, define=define)
    found = [("accuracy", main)]
    found += [(f"compatibility, {score}", table) for score, table in compatibility_tables(grouped, define=define)]
    found.append(("cost", cost_table(grouped, define=define)))
    define = define and not main
    found += [
        ("further strategies", main_table(grouped, kind="other", define=define)),
        ("ablations", ablation_table(grouped, define=define)),
        ("trials", main_table(grouped, kind="trial", define=define)),
    ]
    return [(title, table) for title, table in found if table]


def all_tables(grouped: Grouped) -> str:
    """Every table of figures that has rows, as Markdown."""
    return "\n".join(str(table) for _, table in figure_tables(grouped, define=True))


def figure_titles(grouped: Grouped) -> dict[str, str]:
    """The FIGURE_TITLES of the figures that can be drawn of the results."""
    measured = any(result.get("compatibility") for row in grouped.values() for result in row)
    return {name: title for name, title in FIGURE_TITLES.items() if measured or name != "compatibility"}


def figures_table(
    rows: Sequence[Row], grouped: Grouped, columns: Mapping[str, Column], *, define: bool, about: str = ""
) -> Table:
    """Figures of rows; columns in which no row has anything are left out. `about` says what they are."""
    accuracies = columns is ACCURACY
    columns = {**columns, **further(rows, grouped)} if accuracies else columns
    cells = {name: [column.cell(grouped[row.name]) for row in rows] for name, column in columns.items()}
    cells = {name: column for name, column in cells.items() if name == "memory" or set(column) != {NONE}}
    notes = dict.fromkeys(row.note for row in rows if row.note and accuracies)
    marks = {note: str(number).translate(SUPERSCRIPTS) for number, note in enumerate(notes, 1)}
    labels = [row.label + marks.get(row.note, "") for row in rows]
    best = best_cells(rows, grouped, [columns[name] for name in cells])
    return Table(
        ("method", *cells),
        tuple(zip(labels, *cells.values(), strict=True)),
        "l" + "r" * len(cells),
        caption(rows, grouped, ACCURACIES if accuracies else about) + (f" {BEST}" if best and define else "")
        if rows
        else "",
        tuple(f"{mark} {note}" for note, mark in marks.items()),
        frozenset(index for index, row in enumerate(rows) if is_ours(row) and row.table == "main"),
        frozenset((i, j + 1) for i, j in best),
        definitions({name: columns[name] for name in cells}) if define and rows else (),
    )


def caption(rows: Sequence[Row], grouped: Grouped, about: str) -> str:
    """What the numbers are: spread, seeds, and `about`, in which {images} stands for what they are on."""
    results = [result for row in rows for result in grouped[row.name]]
    seeds = sorted({int(result["seed"]) for result in results})
    orders = own_streams([grouped[row.name] for row in rows])
    images = " and ".join(sorted({result["evaluated_on"] for result in results}))
    number = f"{len(seeds)} seeds" if len(seeds) > 1 else "One seed"
    spread = f"Mean ± standard deviation over {number}" if len(seeds) > 1 and about != COSTS else number
    lines = [f"{spread} ({listed(seeds)}){orders}."]
    lines += [about.format(images=images)] if about else []
    partial = [f"{row.label} ({len(grouped[row.name])})" for row in rows if len(grouped[row.name]) < len(seeds)]
    lines += [f"Fewer seeds: {listed(partial)}."] if partial else []
    return " ".join(lines)


def definitions(columns: Mapping[str, Column] | None = None) -> tuple[tuple[str, str], ...]:
    """What each column means; by default those that every suite has."""
    known = {**ACCURACY, **COST} if columns is None else columns
    return tuple((name, column.meaning) for name, column in known.items())


def settings_tables(grouped: Grouped) -> list[Table]:
    """The setting behind every row as stored with its results: rows of their own, then rows that follow another.

    A field of the config has a column only where rows differ in it; the caption has the others.
    """
    rows = [row for kind in TABLES for row in rows_of(grouped, kind)]
    followers = [row for row in rows if row.base in grouped]
    own = [row for row in rows if row not in followers] or rows  # in files of strangers all may follow
    configs = {row.name: dict(grouped[row.name][0]["config"]) for row in rows}
    fields = [key for key in configs[own[0].name] if key not in ("options", "suite", "method")]
    differing = [key for key in fields if len({str(configs[row.name].get(key)) for row in own}) > 1]
    shared = {key: configs[own[0].name][key] for key in fields if key not in differing}
    lines = [
        (
            Code(row.name),
            *(worded(configs[row.name].get(key) or NONE) for key in differing),
            _assigned(configs[row.name]["options"]) or NONE,
            str(grouped[row.name][0]["readout"]),
        )
        for row in own
    ]
    used = {key: thing for key, thing in shared.items() if thing not in ("", 0, False) and thing != []}
    text = f"In all these rows: {_assigned(used)}. Fields that are not named are off or at the stream's own default."
    first = Table(("row", *differing, "options", "read-out"), tuple(lines), "l" * (len(differing) + 3), text)
    differences = [
        (Code(row.name), Code(row.base), changed(grouped[row.name][0], grouped[row.base][0])) for row in followers
    ]
    return [table for table in (first, Table(("row", "as", "but"), tuple(differences), "lll")) if table]


def changed(result: Result, base: Result) -> str:
    """How a row's config differs from another's, and whether it was evaluated on other images."""
    ours, theirs = result["config"], base["config"]
    fields = {key: thing for key, thing in ours.items() if key != "options" and thing != theirs.get(key)}
    options = {key: thing for key, thing in ours["options"].items() if thing != theirs["options"].get(key)}
    where = result["evaluated_on"]
    changes = [_assigned({**fields, **options})] + [f"on {where} images"] * (where != base["evaluated_on"])
    return listed([*filter(None, changes)]) or SAME


def _assigned(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {worded(thing) or 'none'}" for key, thing in values.items())
