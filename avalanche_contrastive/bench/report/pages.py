"""Pages made from result files alone: what RESULTS.md and the report show, and tables inside other pages."""

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from avalanche_contrastive.bench.config import nearest
from avalanche_contrastive.bench.files import Everything, write_text
from avalanche_contrastive.bench.report import formats
from avalanche_contrastive.bench.report.cells import Table, defined, listed, markdown
from avalanche_contrastive.bench.report.claims import claims_table, load_claims
from avalanche_contrastive.bench.report.comparisons import (
    comparison_table,
    overview_table,
    published_notes,
    published_tables,
)
from avalanche_contrastive.bench.report.figures import BEST
from avalanche_contrastive.bench.report.headline import headline_table
from avalanche_contrastive.bench.report.tables import (
    ablation_table,
    chosen_table,
    compatibility_tables,
    cost_table,
    definitions,
    figure_titles,
    main_table,
    settings_tables,
)
from avalanche_contrastive.bench.results import Grouped, load_all, suite_of

OTHERS_NOTE = "At default settings, tuned on nothing: that they run, and where they end up; no comparison of methods."
ABLATIONS_NOTE = "The setting of the full method, changed as named."
TRIALS_NOTE = (
    "The data's own validation images, or where there are none a fifth of the training images, as in `tune`; the test "
    "images took no part."
)
SETTINGS_NOTE = (
    "Where a row has been tuned (`python -m benchmarks tune`, on validation images), all its candidates and their "
    "scores are in `benchmarks/tuning/{suite}/`; of a config file elsewhere, in the `.tuning.json` beside it."
)


@dataclass(frozen=True)
class Part:
    """What stands under one heading of a section: a paragraph and a table, or the figures of its suite.

    Args:
        heading: empty for the first part of a section.
        table: a table; None for the figures.
        about: a paragraph before it.
        folded: whether a reader of the report opens it.
    """

    heading: str
    table: Table | None
    about: str = ""
    folded: bool = False


@dataclass(frozen=True)
class Section:
    """A section of a page.

    Args:
        title: heading.
        parts: what follows the paragraphs.
        about: paragraphs.
        terms: each a name and its meaning.
        grouped: results of the suite that the section is about.
    """

    title: str
    parts: Sequence[Part] = ()
    about: Sequence[str] = ()
    terms: Sequence[tuple[str, str]] = ()
    grouped: Grouped | None = None


def sections(everything: Everything) -> list[Section]:
    """All that there is to show: the suites side by side, the papers' claims, each suite, published numbers."""
    found = [
        Section("All suites", [Part("", overview_table(everything))]),
        Section("Do the papers' orderings hold?", [Part("", claims_table(everything))]),
        Section("What the columns are", about=[BEST], terms=definitions()),
        *(
            Section(suite, _parts(grouped), provenance(grouped), grouped=grouped)
            for suite, grouped in everything.items()
        ),
    ]
    published = published_tables(everything)
    numbers = [Part(paper, table) for paper, table in published.items()]
    found.append(
        Section("Published numbers beside ours", numbers, [published_notes([*published.values()])] if numbers else [])
    )
    return [section for section in found if section.terms or any(part.table for part in section.parts)]


def _parts(grouped: Grouped) -> list[Part]:
    own, *following = settings_tables(grouped)
    found = [
        Part("", main_table(grouped, define=False)),
        Part("figures", None),
        *(Part(f"compatible representations, {score}", table) for score, table in compatibility_tables(grouped)),
        Part("cost", cost_table(grouped, define=False)),
        Part("paired comparisons", comparison_table(grouped)),
        Part("further strategies of Avalanche", main_table(grouped, kind="other", define=False), OTHERS_NOTE),
        Part("ablations", ablation_table(grouped, define=False), ABLATIONS_NOTE),
        Part("looked into, on validation images", main_table(grouped, kind="trial", define=False), TRIALS_NOTE),
        Part("settings", own, SETTINGS_NOTE.format(suite=suite_of(grouped)), folded=True),
        *(Part("settings that follow another row", table, folded=True) for table in following),
    ]
    return [part for part in found if part.table is None or part.table]


def provenance(grouped: Grouped) -> list[str]:
    """The streams of the runs, and the versions and devices that made them, in sentences."""
    results = [result for row in grouped.values() for result in row]
    streams = dict.fromkeys(str(result["stream"]) for result in results if result.get("stream"))
    versions = dict.fromkeys(listed(f"{name} {number}" for name, number in r["versions"].items()) for r in results)
    devices = dict.fromkeys(str(result["device"]) for result in results)
    sentences = [f"{'; '.join(streams)}."] if streams else []
    return [*sentences, f"Made with {'; or '.join(versions)}; on {'; or '.join(devices)}."]


# ---- Markdown


def results_page(everything: Everything, figures: str = "results") -> str:
    """RESULTS.md.

    Args:
        everything: results by suite.
        figures: folder of the suites' folders with their figures, seen from the page.
    """
    found = sections(everything)
    blocks = [
        "# Results",
        "Generated by `python -m benchmarks report` from the JSON files of the runs alone; do not edit.",
        "\n".join(f"- [{markdown(section.title)}](#{_anchor(section.title)})" for section in found),
    ]
    for section in found:
        blocks += [f"## {markdown(section.title)}", *map(markdown, section.about)]
        blocks.append("\n".join(f"- {defined(term)}" for term in section.terms))
        for part in section.parts:
            if part.table is None:
                titles = figure_titles(section.grouped or {}).items()
                blocks += [f"![{title}]({figures}/{section.title}/{name}.png)" for name, title in titles]
            else:
                heading = f"### {markdown(f'{section.title}: {part.heading}')}" if part.heading else ""
                blocks += [heading, markdown(part.about), str(part.table).strip()]
    return "\n\n".join(filter(None, blocks)) + "\n"


def _anchor(title: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")


def fill_page(path: Path, everything: Everything) -> None:
    """Put tables between the markers of a page.

    A marker is `<!-- table:SUITE -->` for the main table, `<!-- table:SUITE ROW ROW ... -->` for those rows,
    `<!-- table:compatibility SUITE -->` for its compatible representations by the first score,
    `<!-- table:all -->` for the final accuracy in every suite, `<!-- table:headline -->` for one line per question, or
    `<!-- table:claims METHOD -->` for what the method's paper claims; the table ends at `<!-- /table -->`.
    The first table of a page says what the columns are.

    Raises:
        ValueError: the page has no marker, or one names a suite, a row or a method without results.
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
    if suite == "headline":
        return headline_table(everything)
    if suite == "claims":
        papers, _ = load_claims()
        if unknown := [name for name in names if name not in papers]:
            raise ValueError(f"{where}: a table asks for the claims of {unknown[0]!r}, known are {listed(papers)}")
        return claims_table(everything, *names[:1])
    compatible = suite == "compatibility" and len(names) == 1
    suite, names = (names[0], ()) if compatible else (suite, names)
    if suite not in everything:
        raise ValueError(f"{where}: a table asks for suite {suite!r}, which has no results{nearest(suite, everything)}")
    grouped = everything[suite]
    if compatible:
        found = compatibility_tables(grouped, define=define)
        if not found:
            raise ValueError(f"{where}: a table asks for the compatibility of {suite!r}, whose results have none")
        return found[0][1]
    if unknown := [name for name in names if name not in grouped]:
        raise ValueError(f"{where}: a table asks for {listed(unknown)}, but the results hold {listed(grouped)}")
    return chosen_table(names, grouped, define=define) if names else main_table(grouped, define=define)


def command(parsed: argparse.Namespace) -> int:
    """Print or write tables."""
    if parsed.format != "md" and (parsed.write or parsed.into):
        raise ValueError("--format is of what is printed: pages written by --write and --into are Markdown")
    everything = load_all(parsed.results)
    if parsed.write:
        write_text(parsed.write, results_page(everything))
        print(f"wrote {parsed.write}")
    for page in parsed.into:
        fill_page(page, everything)
        print(f"updated the tables in {page}")
    if not (parsed.write or parsed.into):
        print(formats.FORMATS[parsed.format](everything), end="")
    return 0
