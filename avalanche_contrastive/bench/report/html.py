"""The report: one HTML file that needs nothing else, made from result files alone."""

import argparse
import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from avalanche_contrastive.bench.config import TABLES
from avalanche_contrastive.bench.files import write_text
from avalanche_contrastive.bench.report.cells import Code, Table, count, listed, parts
from avalanche_contrastive.bench.report.comparisons import Everything, overview_table, published_notes, published_tables
from avalanche_contrastive.bench.report.plots import COLOURS, FIGURES, drawing
from avalanche_contrastive.bench.report.tables import (
    BEST,
    FIGURE_TITLES,
    definitions,
    main_table,
    provenance,
    results_page,
    suite_tables,
)
from avalanche_contrastive.bench.results import Grouped, Result, load_all, rows_of

FOLDED = ("settings", "settings that follow another row")
OURS_SHADED = "Rows of Co2L, SS-IL and CSD are shaded. A table on validation images says so."


@dataclass(frozen=True)
class Part:
    """What stands under one heading of a section; `folded` parts are opened by the reader.

    Args:
        id: anchor.
        heading: empty for the first part of a section.
        about: a paragraph before the rest.
        table: a table.
        figures: each a title and a picture.
        configs: each a row's name, label and text.
        folded: whether the reader opens it.
    """

    id: str
    heading: str = ""
    about: str = ""
    table: Table | None = None
    figures: tuple[tuple[str, Markup], ...] = ()
    configs: tuple[Mapping[str, str], ...] = ()
    folded: bool = False


@dataclass(frozen=True)
class Section:
    """A section of the page.

    Args:
        id: anchor.
        title: heading.
        about: paragraphs.
        parts: what follows.
        definitions: each a name and its meaning.
    """

    id: str
    title: str
    about: Sequence[str] = ()
    parts: Sequence[Part] = ()
    definitions: Sequence[tuple[str, str]] = ()


def write_report(everything: Everything, path: Path) -> None:
    """Write the report; the same results give the same bytes.

    Raises:
        OSError: the file cannot be written; an earlier one is as it was.
    """
    write_text(path, report_page(everything))


def report_page(everything: Everything) -> str:
    """The whole page: all suites in one table, each suite, published numbers."""
    rows = [row for grouped in everything.values() for row in grouped.values()]
    sections = [Section("columns", "What the columns are", (OURS_SHADED, BEST), (), definitions())]
    if overview := overview_table(everything):
        sections.insert(0, Section("all-suites", "All suites", (), (Part("overview", table=overview),)))
    sections += [
        _suite_section(number, suite, grouped) for number, (suite, grouped) in enumerate(everything.items(), 1)
    ]
    if published := published_tables(everything):
        sections.append(_published_section(published))
    about = (
        f"{count(len(everything), 'suite')}, {count(len(rows), 'row')}, {count(sum(map(len, rows)), 'run')}. Made by "
        "`python -m benchmarks report` from the JSON files of the runs alone."
    )
    return _rendered(title=f"Benchmarks: {listed(everything)}", about=about, sections=sections)


def _rendered(**content: Any) -> str:
    """Fill the template. Labels may come from files of strangers: all is escaped, and no script but ours may run."""
    environment = Environment(
        loader=PackageLoader("avalanche_contrastive.bench.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    style, script = (_file(name) for name in ("report.css", "report.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template("report.html").render(
        **content,
        style=style,
        script=script,
        digest=f"sha256-{digest}",
        colours=[dark for _, dark in COLOURS],
        parts=parts,
        is_code=lambda text: isinstance(text, Code),
    )


def _file(name: str) -> str:
    return (Path(__file__).parent / "templates" / name).read_text(encoding="utf-8")


def _suite_section(number: int, suite: str, grouped: Grouped) -> Section:
    """A suite: main table, figures, and all its other tables, the configs and where the runs were made."""
    start = f"suite-{number}-{slug(suite)}"  # the number keeps apart what only signs keep apart in the names
    found = [Part(f"{start}-main", table=main_table(grouped, define=False)), _figures(start, grouped)]
    for heading, about, table in suite_tables(grouped):
        found.append(Part(f"{start}-{slug(heading)}", heading, about, table, folded=heading in FOLDED))
    found.append(Part(f"{start}-configs", "configs", configs=_configs(grouped), folded=True))
    found.append(Part(f"{start}-runs", "runs", table=_runs(grouped), folded=True))
    return Section(start, suite, provenance(grouped), found)


def _figures(start: str, grouped: Grouped) -> Part:
    pictures = tuple(
        (FIGURE_TITLES[name], Markup(drawing(draw, grouped, f"{start}-{name}", FIGURE_TITLES[name])))
        for name, draw in FIGURES.items()
    )
    return Part(f"{start}-figures", "figures", figures=pictures)


def _published_section(tables: Mapping[str, Table]) -> Section:
    found = [Part(f"published-{slug(paper)}", paper, table=table) for paper, table in tables.items()]
    return Section("published", "Published numbers beside ours", [published_notes([*tables.values()])], found)


def _configs(grouped: Grouped) -> tuple[Mapping[str, str], ...]:
    """Every row's config as it stands in its results."""
    rows = [row for kind in TABLES for row in rows_of(grouped, kind)]
    return tuple({"name": row.name, "label": row.label, "text": _config(grouped[row.name])} for row in rows)


def _config(results: Sequence[Result]) -> str:
    config: dict[str, Any] = dict(results[0]["config"])
    options = config.pop("options", {})
    seeds = listed(result["seed"] for result in results)
    lines = [f"# seeds {seeds}; on {results[0]['evaluated_on']} images; read-out: {results[0]['readout']}"]
    lines += [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in config.items()]
    lines += ["", "[options]"] if options else []
    lines += [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in options.items()]
    return "\n".join(lines)


def _runs(grouped: Grouped) -> Table:
    """Which commit, versions and device made which runs."""
    made: dict[tuple[str, str, str], list[str]] = {}
    for name, results in grouped.items():
        for result in results:
            versions = listed(f"{package} {number}" for package, number in result["versions"].items())
            commit = str(result.get("git_commit", "unknown"))
            short = commit[:12] + "+changes" * commit.endswith("+changes")
            made.setdefault((short, str(result["device"]), versions), []).append(name)
    lines = [
        (Code(commit), device, versions, str(len(names)), listed(sorted({*names})))
        for (commit, device, versions), names in sorted(made.items())
    ]
    return Table(("git commit", "device", "versions", "runs", "rows"), tuple(lines), "lllrl")


def slug(text: str) -> str:
    """As a part of an anchor."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def command(parsed: argparse.Namespace) -> int:
    """The command `report`: write the HTML page, and RESULTS.md."""
    everything = load_all(parsed.results)
    write_report(everything, parsed.out)
    print(f"wrote {parsed.out.resolve()}")
    if parsed.write:
        write_text(parsed.write, results_page(everything))
        print(f"wrote {parsed.write}")
    return 0
