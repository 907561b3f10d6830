"""The report: one HTML file that needs nothing else, made from result files alone."""

import argparse
import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from avalanche_contrastive.bench.config import TABLES
from avalanche_contrastive.bench.files import Everything, toml, write_text
from avalanche_contrastive.bench.report.cells import Code, Table, count, listed, parts
from avalanche_contrastive.bench.report.figures import classes
from avalanche_contrastive.bench.report.pages import results_page, sections
from avalanche_contrastive.bench.report.plots import COLOURS, FIGURES, drawing
from avalanche_contrastive.bench.report.tables import figure_titles
from avalanche_contrastive.bench.results import Grouped, Result, load_all, rows_of

TEMPLATES = Path(__file__).parent / "templates"


def write_report(everything: Everything, path: Path) -> None:
    """Write the report; the same results give the same bytes.

    Raises:
        OSError: the file cannot be written; an earlier one is as it was.
    """
    write_text(path, report_page(everything))


def report_page(everything: Everything) -> str:
    """The page: all `pages.sections`, and for each suite its figures, streams, configs and runs.

    Labels may come from files of strangers: all is escaped, and no script but our own may run.
    """
    environment = Environment(
        loader=PackageLoader("avalanche_contrastive.bench.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(slug=slug, parts=parts)
    environment.tests["code"] = lambda text: isinstance(text, Code)
    rows = [row for grouped in everything.values() for row in grouped.values()]
    style, script = ((TEMPLATES / name).read_text(encoding="utf-8") for name in ("report.css", "report.js"))
    return environment.get_template("report.html").render(
        suites=[*everything],
        counts=[count(len(everything), "suite"), count(len(rows), "row"), count(sum(map(len, rows)), "run")],
        sections=sections(everything),
        figures=_figures,
        configs=_configs,
        tables={"streams": streams_table, "runs": runs_table},
        style=style,
        script=script,
        digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        colours=[dark for _, dark in COLOURS],
    )


def _figures(grouped: Grouped, start: str) -> dict[str, Markup]:
    """Drawings by title; `start` begins their ids."""
    titles = figure_titles(grouped).items()
    return {title: Markup(drawing(FIGURES[name], grouped, f"{start}-{name}", title)) for name, title in titles}


def _configs(grouped: Grouped) -> tuple[Mapping[str, str], ...]:
    """Every row's config as it stands in its results."""
    rows = [row for kind in TABLES for row in rows_of(grouped, kind)]
    return tuple({"name": row.name, "label": row.label, "text": _config(grouped[row.name])} for row in rows)


def _config(results: Sequence[Result]) -> str:
    config: dict[str, Any] = dict(results[0]["config"])
    options = config.pop("options", {})
    seeds = listed(result["seed"] for result in results)
    lines = [f"# seeds {seeds}; on {results[0]['evaluated_on']} images; read-out: {results[0]['readout']}"]
    lines += [f"{key} = {toml(value)}" for key, value in config.items()]
    lines += ["", "[options]"] if options else []
    lines += [f"{key} = {toml(value)}" for key, value in options.items()]
    return "\n".join(lines)


def streams_table(grouped: Grouped) -> Table:
    """What each experience was, seed by seed: its rotation, or its classes; empty where no result says it."""
    found: dict[int, list[str]] = {}
    for result in (result for results in grouped.values() for result in results):
        angles = [f"{angle:.0f}°" for angle in result.get("angles") or ()]
        if experiences := angles or classes(result):
            found.setdefault(int(result["seed"]), experiences)
    width = max(map(len, found.values()), default=0)
    lines = ((str(seed), *line, *[""] * (width - len(line))) for seed, line in sorted(found.items()))
    return Table(("seed", *(f"experience {n + 1}" for n in range(width))), tuple(lines), "l" * (width + 1))


def runs_table(grouped: Grouped) -> Table:
    """Which commit, versions and device made which runs."""
    runs: dict[tuple[str, str, str], list[str]] = {}
    for name, results in grouped.items():
        for result in results:
            versions = listed(f"{package} {number}" for package, number in result["versions"].items())
            commit = str(result.get("git_commit", "unknown"))
            short = commit[:12] + "+changes" * commit.endswith("+changes")
            runs.setdefault((short, str(result["device"]), versions), []).append(name)
    lines = [
        (Code(commit), device, versions, str(len(names)), listed(sorted({*names})))
        for (commit, device, versions), names in sorted(runs.items())
    ]
    return Table(("git commit", "device", "versions", "runs", "rows"), tuple(lines), "lllrl")


def slug(text: str) -> str:
    """The text as a part of an anchor."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def command(parsed: argparse.Namespace) -> int:
    """Write the HTML page, and RESULTS.md."""
    everything = load_all(parsed.results)
    write_report(everything, parsed.out)
    print(f"wrote {parsed.out.resolve()}")
    if parsed.write:
        write_text(parsed.write, results_page(everything))
        print(f"wrote {parsed.write}")
    return 0
