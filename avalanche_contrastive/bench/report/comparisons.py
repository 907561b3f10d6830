"""Tables that set one row beside another: pairs over the same seeds, suites side by side, published numbers."""

from collections.abc import Sequence

from avalanche_contrastive.bench.config import Row
from avalanche_contrastive.bench.files import Everything, Grouped, Result
from avalanche_contrastive.bench.report.cells import NONE, Table, count
from avalanche_contrastive.bench.report.figures import (
    ACCURACY,
    BEST,
    UPPER,
    aligned,
    best_of,
    by_memory,
    difference_cells,
    drawn,
    get,
    is_ours,
    memories,
    memory,
    memory_of,
    recall,
    stream_of,
)
from avalanche_contrastive.bench.report.published import (
    BUT,
    DEVIATING,
    POINTS,
    REPRODUCED,
    WITHIN,
    Beside,
    beside,
    load_published,
)
from avalanche_contrastive.bench.report.stats import smallest_p
from avalanche_contrastive.bench.results import rows_of

SAME_SETTING = f"""\
"Same setting" is "yes" where nothing is known to differ from the paper and its authors' code; "{BUT}" where the
data, network, losses, memory, schedule and measure are those of the paper's text, and what differs from the rest of it
or from the authors' code is named; "no" where any of these is another, or the published number may have been measured
otherwise. A mean within {WITHIN:g} published standard deviations of the published number (within {POINTS:g} point where
none was published) is "{REPRODUCED}" in the first case and "{DEVIATING}" in the second. All else is "not reproduced",
whether it was run in another setting or not at all."""


def comparison_table(grouped: Grouped) -> Table:
    """Each of the three methods against every other main row of the same memory or of none, seed by seed."""
    rows = by_memory(rows_of(grouped, "main"), grouped)
    pairs = [
        (first, second)
        for first in rows
        for second in rows
        if is_ours(first)
        and not is_ours(second)
        and memory_of(second, grouped) in (0, memory_of(first, grouped))
        and stream_of(grouped[first.name]) == stream_of(grouped[second.name])
    ]
    found = [_compared(first, second, grouped) for first, second in pairs]
    least = "; ".join(f"{smallest_p(n):.4g} with {count(n, 'seed')}" for n in sorted({n for _, n, _ in found} - {0}))
    kinds = sorted({kind for pair in pairs for row in pair for result in grouped[row.name] for kind in drawn(result)})
    caption = (
        f"Ours minus the other over the same seeds and {' or '.join(kinds)}, in percentage points: mean, 95 % interval "
        "of that mean by Student's t, on how many of the seeds ours is higher. CSD is compared on Recall@1, the others "
        "on final accuracy. p: two-sided sign-flip test, exact for up to 16 seeds; the smallest that there can be is "
        f"{least or NONE}. Nothing is corrected for the number of comparisons ({len(pairs)} here)."
    )
    columns = ("method", "memory", "against", "on", "difference", "95 % interval", "higher on", "p")
    refused = dict.fromkeys(problem for *_, problem in found if problem)
    return Table(columns, tuple(line for line, *_ in found), "lrllrrrr", " ".join([caption, *refused]))


def _compared(first: Row, second: Row, grouped: Grouped) -> tuple[tuple[str, ...], int, str]:
    """A line of the comparison table, the number of its seeds, and the reason if there is no comparison."""
    name, figure = ("Recall@1", recall) if first.config.method == "csd" else ("final accuracy", get("final_accuracy"))
    start = (first.label, memory(grouped[first.name]), second.label, name)
    try:
        pairs = aligned((grouped[first.name], grouped[second.name]), figure, (first.name, second.name))
    except ValueError as problem:
        return (*start, *[NONE] * 4), 0, f"{problem}."
    return (*start, *difference_cells(pairs)), len(pairs), ""


def overview_table(everything: Everything) -> Table:
    """Final accuracy of every method in every suite, a column for each size of memory; empty for a single column."""
    columns: dict[str, dict[str, Sequence[Result]]] = {}
    ours: dict[str, bool] = {}
    for suite, grouped in everything.items():
        rows = rows_of(grouped, "main")
        if len({stream_of(grouped[row.name]) for row in rows}) > 1:
            continue  # a folder of single settings, not one comparison
        ours |= {row.label: is_ours(row) for row in rows}
        for size in memories(rows, grouped) or [0]:
            used = [row for row in rows if memory_of(row, grouped) in (0, size)]
            columns[f"{suite}, {size}" if size else suite] = {row.label: grouped[row.name] for row in used}
    labels = sorted(ours, key=lambda label: not ours[label])
    final = ACCURACY["final accuracy"]
    best = set()
    for j, column in enumerate(columns.values(), 1):
        rivals = {label: results for label, results in column.items() if results[0]["config"]["method"] not in UPPER}
        best |= {(labels.index(label), j) for label in best_of(rivals, final)}
    lines = tuple(
        (label, *(final.cell(column[label]) if label in column else NONE for column in columns.values()))
        for label in labels
    )
    caption = (
        "Final accuracy in percent, mean ± standard deviation over seeds; behind the suite the stored images. Rows "
        "without a memory stand in every column of their suite. CSD's own measure is Recall@1: see the suites' tables. "
        f"{BEST}"
    )
    return Table(
        ("method", *columns),
        lines if len(columns) > 1 else (),
        "l" + "r" * len(columns),
        caption,
        ours=frozenset(index for index, label in enumerate(labels) if ours[label]),
        best=frozenset(best),
    )


def published_tables(everything: Everything) -> dict[str, Table]:
    """By paper: the published numbers beside our results.

    Empty if no suite is there that published.toml knows: a page of somebody's own stream needs none of them.
    """
    found: dict[str, Table] = {}
    published = load_published()
    wanted = {ours.suite for _, numbers in published.values() for number in numbers for ours in number.ours}
    for paper, (text, numbers) in published.items() if wanted & everything.keys() else ():
        pairs = beside(numbers, everything)
        columns = ("data and setting", "method", "published", "ours", "same setting?", "verdict")
        ours = frozenset(index for index, pair in enumerate(pairs) if pair.ours)
        found[paper] = Table(columns, tuple(map(_published_line, pairs)), "llrlll", text, ours=ours)
    return found


def _published_line(pair: Beside) -> tuple[str, ...]:
    number, ours = pair.number, pair.ours
    digits = 1 if number.std is None and round(number.value, 1) == number.value else 2
    start = (
        f"{number.data}: {number.setting}; {number.figure} ({number.source})",
        number.method,
        f"{number.value:.{digits}f}" + (f" ± {number.std:.2f}" if number.std is not None else ""),
    )
    if ours is None or pair.mean is None:
        return (*start, "not run", NONE, pair.verdict)
    mean = f"{pair.mean:.2f}" + (f" ± {pair.std:.2f}" if pair.seeds > 1 else "")
    return (*start, f"{mean} ({count(pair.seeds, 'seed')}, {ours.suite}/{ours.row})", ours.same, pair.verdict)


def published_notes(tables: Sequence[Table]) -> str:
    """The rule for the verdicts, and how often each of the two good ones is given."""
    verdicts = [row[-1] for table in tables for row in table.rows]
    return (
        f"{SAME_SETTING} Of {len(verdicts)}: {verdicts.count(REPRODUCED)} {REPRODUCED}, {verdicts.count(DEVIATING)} "
        f"{DEVIATING}."
    )
