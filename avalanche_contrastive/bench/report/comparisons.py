"""Tables that set one row beside another: pairs over the same seeds, suites side by side, published numbers."""

from collections.abc import Mapping, Sequence

from avalanche_contrastive.bench.config import Row
from avalanche_contrastive.bench.report.cells import (
    NONE,
    Table,
    by_memory,
    count,
    drawn,
    get,
    interval,
    is_ours,
    memories,
    memory,
    memory_of,
    plain,
    recall,
    spread_of,
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
from avalanche_contrastive.bench.report.stats import MOST_SIGNS, check_pairing, compare, smallest_p
from avalanche_contrastive.bench.results import Grouped, rows_of

Everything = Mapping[str, Grouped]  # by suite

SAME_SETTING = (
    f"*Same setting*: *yes* where nothing is known to differ from the paper and its authors' code; *{BUT}* where the "
    "data, network, losses, memory, schedule and measure are those of the paper's text, and the differences from it or "
    "from the authors' code that are left are named; *no* where any of these is another, or the published number may "
    f"have been measured otherwise. A mean within {WITHIN:g} published standard deviations of the published number "
    f"({POINTS:g} point where none was published) is *{REPRODUCED}* in the first case and *{DEVIATING}* in the second. "
    "All else is *not reproduced*, whether it was run in another setting or not at all."
)


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
        and stream_of(first, grouped) == stream_of(second, grouped)
    ]
    found = [_compared(first, second, grouped) for first, second in pairs]
    sizes = sorted({n for _, n, _ in found} - {0})
    least = "; ".join(f"{smallest_p(n):.4g} with {count(n, 'seed')}" for n in sizes if n <= MOST_SIGNS)
    many = f" With more than {MOST_SIGNS} seeds it has too many patterns to count and is left out."
    kinds = sorted({kind for pair in pairs for row in pair for result in grouped[row.name] for kind in drawn(result)})
    refused = list(dict.fromkeys(problem for *_, problem in found if problem))
    caption = (
        f"Ours minus the other over the same seeds and {' or '.join(kinds)}, in percentage points: mean, 95 % "
        "bootstrap interval of that mean, on how many of the seeds ours is higher. CSD is compared on Recall@1, the "
        "others on final accuracy. *p*: exact two-sided sign-flip test; the smallest that there can be is "
        f"{least or NONE}.{many if any(n > MOST_SIGNS for n in sizes) else ''} Nothing is corrected for the number of "
        f"comparisons ({len(pairs)} here)."
    )
    columns = ("method", "memory", "against", "on", "difference", "95 % interval", "higher on", "p")
    return Table(columns, tuple(line for line, *_ in found), "lrllrrrr", " ".join([caption, *refused]))


def _compared(first: Row, second: Row, grouped: Grouped) -> tuple[tuple[str, ...], int, str]:
    """A line of the comparison table, how many seeds it rests on, and why there is no comparison if there is none."""
    name, figure = ("Recall@1", recall) if first.config.method == "csd" else ("final accuracy", get("final_accuracy"))
    one, other = ({int(r["seed"]): r for r in grouped[row.name]} for row in (first, second))
    shared = sorted(one.keys() & other.keys())  # while runs are still missing, those that there are
    start = (plain(first.label), memory(grouped[first.name]), plain(second.label), name)
    values = [(figure(one[seed]), figure(other[seed])) for seed in shared]
    known = [(a, b) for a, b in values if a is not None and b is not None]
    if not known or len(known) < len(values):
        return (*start, *[NONE] * 4), 0, ""
    ours, theirs = ({seed: drawn(side[seed]) for seed in shared} for side in (one, other))
    try:
        check_pairing(ours, theirs, names=(first.name, second.name))
    except ValueError as problem:
        return (*start, *[NONE] * 4), 0, f"{str(problem)[0].upper()}{str(problem)[1:]}"
    pair = compare([a for a, _ in known], [b for _, b in known])
    ends = interval(pair.interval, "+") if pair.interval else NONE
    p = NONE if pair.p is None else f"{pair.p:.3g}"
    return (*start, f"{100 * pair.difference:+.1f}", ends, f"{pair.wins} of {pair.n}", p), pair.n, ""


def overview_table(everything: Everything) -> Table:
    """Final accuracy of every method in every suite, a column for each size of memory; empty for a single column."""
    columns: dict[str, dict[str, str]] = {}
    ours: set[str] = set()
    for suite, grouped in everything.items():
        rows = rows_of(grouped, "main")
        if len({stream_of(row, grouped) for row in rows}) > 1:
            continue  # a folder of single settings, not one comparison
        for size in memories(rows, grouped) or [0]:
            used = [row for row in rows if memory_of(row, grouped) in (0, size)]
            cell = spread_of(get("final_accuracy"))
            columns[f"{suite}, {size}" if size else suite] = {row.label: cell(grouped[row.name]) for row in used}
        ours |= {row.label for row in rows if is_ours(row)}
    labels = [*dict.fromkeys(label for column in columns.values() for label in column)]
    labels.sort(key=lambda label: label not in ours)
    lines = tuple((plain(label), *(column.get(label, NONE) for column in columns.values())) for label in labels)
    caption = (
        "Final accuracy in percent, mean ± standard deviation over seeds; behind the suite the stored images. Rows "
        "without a memory stand in every column of their suite. CSD's own measure is Recall@1: see the suites' tables."
    )
    marked = frozenset(index for index, label in enumerate(labels) if label in ours)
    return Table(
        ("method", *columns), lines if len(columns) > 1 else (), "l" + "r" * len(columns), caption, ours=marked
    )


def published_tables(everything: Everything) -> dict[str, Table]:
    """By paper: the published numbers with what we have to put beside them.

    Empty if no suite is there that published.toml knows: a page of somebody's own stream needs none of them.
    """
    found: dict[str, Table] = {}
    published = load_published()
    wanted = {ours.suite for _, numbers in published.values() for number in numbers for ours in number.ours}
    for paper, (text, numbers) in published.items() if wanted & everything.keys() else ():
        pairs = beside(numbers, everything)
        lines = [_published_line(pair, before) for pair, before in zip(pairs, [None, *pairs], strict=False)]
        columns = ("data and setting", "method", "published", "ours", "same setting?", "verdict")
        ours = frozenset(index for index, pair in enumerate(pairs) if pair.ours)
        found[paper] = Table(columns, tuple(lines), "llrlll", text, ours=ours)
    return found


def _published_line(pair: Beside, before: Beside | None) -> tuple[str, ...]:
    number, ours = pair.number, pair.ours
    about = f"{number.data}: {number.setting}; {number.figure} ({number.source})"
    last = before and f"{before.number.data}: {before.number.setting}; {before.number.figure} ({before.number.source})"
    digits = 1 if number.std is None and round(number.value, 1) == number.value else 2
    printed = f"{number.value:.{digits}f}" + (f" ± {number.std:.2f}" if number.std is not None else "")
    start = ("" if about == last else about, number.method, printed)
    if ours is None or pair.mean is None:
        return (*start, "not run", NONE, pair.verdict)
    mean = f"{pair.mean:.2f}" + (f" ± {pair.std:.2f}" if pair.seeds > 1 else "")
    return (*start, f"{mean} ({count(pair.seeds, 'seed')}, `{ours.suite}/{ours.row}`)", ours.same, pair.verdict)


def published_notes(tables: Sequence[Table]) -> str:
    """The rule behind the verdicts, and how often each of the good ones is given."""
    verdicts = [row[-1] for table in tables for row in table.rows]
    return (
        f"{SAME_SETTING} Of {len(verdicts)}: {verdicts.count(REPRODUCED)} {REPRODUCED}, {verdicts.count(DEVIATING)} "
        f"{DEVIATING}."
    )
