"""Whether the orderings that the papers claim hold in our results.

The claims are in claims.toml, each with its source; what decides is the 95 % interval of the paired difference.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avalanche_contrastive.bench.config import nearest, read_toml
from avalanche_contrastive.bench.report.cells import NONE, Table
from avalanche_contrastive.bench.report.figures import PUBLISHED, Figure, aligned, by_size, difference_cells, stream_of
from avalanche_contrastive.bench.report.published import check_keys
from avalanche_contrastive.bench.report.stats import compare
from avalanche_contrastive.bench.results import Grouped, Result

CLAIMS = Path(__file__).parent / "claims.toml"
HOLDS, REVERSED, NOT_SHOWN = "holds", "reversed", "not shown"
COLUMNS = ("claim", "verdict", "difference", "95 % interval", "seeds", "suite", "memory", "rows", "source")
CAPTION = (
    "Differences in percentage points over the same seeds and streams, on test images, with their 95 % interval by "
    "Student's t: the claim {holds} where it lies above zero, is {reversed} where it lies below, and else {not_shown}. "
    "Nothing is corrected for the number of comparisons: of {count}, one in twenty would leave out zero if no two rows "
    "differed. {tally}."
)


@dataclass(frozen=True)
class Claim:
    """One ordering; see the head of claims.toml.

    Args:
        method: whose paper claims it.
        claim: in words.
        source: where.
        figure: key of figures.PUBLISHED.
        higher: rows that should be above.
        lower: each of these.
        gain: compare what a larger memory gives.
    """

    method: str
    claim: str
    source: str
    figure: str
    higher: tuple[str, ...]
    lower: tuple[str, ...]
    gain: bool = False


def load_claims(path: Path | None = None) -> tuple[dict[str, str], list[Claim]]:
    """Names of the papers by method, and the claims.

    Raises:
        ValueError: the file is not as its head says; the message names the entry.
    """
    path = path or CLAIMS
    raw = read_toml(path)
    check_keys(raw, {"papers", "claim"}, set(), str(path))
    return raw["papers"], [
        _claim(entry, raw["papers"], f"{path}, claim {number}") for number, entry in enumerate(raw["claim"], 1)
    ]


def _claim(entry: Mapping[str, Any], papers: Mapping[str, str], where: str) -> Claim:
    check_keys(entry, {"method", "claim", "source", "figure", "higher", "lower"}, {"gain"}, where)
    for key, known in (("method", papers), ("figure", PUBLISHED)):
        if entry[key] not in known:
            raise ValueError(f"{where}: unknown {key} {entry[key]!r}{nearest(entry[key], known)}")
    for key in ("higher", "lower"):
        if not all(
            isinstance(name, str) for name in ([entry[key]] if not isinstance(entry[key], list) else entry[key])
        ):
            raise ValueError(f"{where}: {key} must be the name of a row, or several, got {entry[key]!r}")
    if not isinstance(entry.get("gain", False), bool):
        raise ValueError(f"{where}: gain must be true or false, got {entry['gain']!r}")
    sides = {key: (entry[key],) if isinstance(entry[key], str) else tuple(entry[key]) for key in ("higher", "lower")}
    return Claim(**{**entry, **sides})


def claims_table(everything: Mapping[str, Grouped], method: str = "") -> Table:
    """Every claim in every suite that has its rows; of one method, or of all."""
    papers, claims = load_claims()
    lines = [
        line
        for claim in claims
        if method in ("", claim.method)
        for suite, grouped in everything.items()
        for line in _lines(claim, "" if method else f"{papers[claim.method]}: ", suite, grouped)
    ]
    verdicts = [line[1] for line in lines]
    tally = ", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in (HOLDS, REVERSED, NOT_SHOWN))
    caption = CAPTION.format(holds=HOLDS, reversed=REVERSED, not_shown=NOT_SHOWN, count=len(lines), tally=tally)
    return Table(COLUMNS, tuple(lines), "llrrrlrll", caption)


def _lines(claim: Claim, paper: str, suite: str, grouped: Grouped) -> Iterator[tuple[str, ...]]:
    for higher in claim.higher:
        for lower in claim.lower:
            for memory, values in _differences(claim, by_size(higher, grouped), by_size(lower, grouped)):
                yield (paper + claim.claim, *_judged(values), suite, memory, f"{higher} > {lower}", claim.source)


def _differences(
    claim: Claim, higher: Mapping[int, Sequence[Result]], lower: Mapping[int, Sequence[Result]]
) -> Iterator[tuple[str, list[tuple[float, float]]]]:
    """The size of memory in words, and the two values of each seed."""
    figure = PUBLISHED[claim.figure]
    if claim.gain:
        sizes = sorted(higher.keys() & lower.keys())
        if len(sizes) > 1:
            few, many = sizes[0], sizes[-1]
            found = _aligned((higher[many], higher[few], lower[many], lower[few]), figure)
            yield f"{few} to {many}", [(a - b, c - d) for a, b, c, d in found]
        return
    for size in sorted(higher.keys() | lower.keys()):
        first, second = (side.get(size, side.get(0)) for side in (higher, lower))
        if first and second:
            yield str(size or NONE), [(a, b) for a, b in _aligned((first, second), figure)]


def _aligned(rows: Sequence[Sequence[Result]], figure: Figure) -> list[tuple[float, ...]]:
    """The values of several rows, seed by seed; none for rows of different streams."""
    if len({stream_of(results) for results in rows}) > 1:
        return []
    try:
        return aligned(rows, figure, [""] * len(rows))
    except ValueError:
        return []


def _judged(pairs: Sequence[tuple[float, float]]) -> tuple[str, str, str, str]:
    """Verdict, mean difference, interval and seeds."""
    difference, ends, *_ = difference_cells(pairs)
    interval = compare(*zip(*pairs, strict=True)).interval if pairs else None
    low, high = interval or (0.0, 0.0)
    return HOLDS if low > 0 else REVERSED if high < 0 else NOT_SHOWN, difference, ends, str(len(pairs))
