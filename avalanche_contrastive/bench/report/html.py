"""The report: one HTML file that needs nothing else, made from result files alone."""

import argparse
import base64
import html
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from avalanche_contrastive.bench.config import TABLES, Row
from avalanche_contrastive.bench.files import write_text
from avalanche_contrastive.bench.report.cells import ACCURACY, COST, Table, count, listed
from avalanche_contrastive.bench.report.comparisons import Everything, overview_table, published_notes, published_tables
from avalanche_contrastive.bench.report.plots import FIGURES, rendered
from avalanche_contrastive.bench.report.tables import (
    FIGURE_TITLES,
    definitions,
    main_table,
    provenance,
    results_page,
    suite_tables,
)
from avalanche_contrastive.bench.results import Grouped, Result, load_all, rows_of

STYLE = """
:root { --text: #1b1f24; --soft: #59636e; --page: #fff; --line: #d1d9e0; --band: #f6f8fa; --ours: #ddf0ff;
  --link: #0550ae; }
@media screen and (prefers-color-scheme: dark) { :root { --text: #e6edf3; --soft: #9aa5b1; --page: #0d1117;
  --line: #3d444d; --band: #161b22; --ours: #12304d; --link: #79b8ff; } }
* { box-sizing: border-box; }
html { scroll-behavior: smooth; }
body { margin: 0 auto; max-width: 82rem; padding: 1rem; background: var(--page); color: var(--text);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif; }
a { color: var(--link); text-decoration: none; }
a:hover { text-decoration: underline; }
h1 { font-size: 1.8rem; margin: 0.5rem 0; }
h2 { margin: 3rem 0 0.5rem; padding-top: 0.5rem; border-top: 2px solid var(--line); overflow-wrap: anywhere; }
h3 { margin: 2rem 0 0.5rem; overflow-wrap: anywhere; }
p, li { max-width: 60rem; }
.soft, .caption { color: var(--soft); font-size: 0.875rem; }
.scroll { overflow-x: auto; margin: 0.75rem 0; border: 1px solid var(--line); border-radius: 6px; }
table { border-collapse: collapse; font-size: 0.875rem; font-variant-numeric: tabular-nums; min-width: 100%; }
th, td { padding: 0.3rem 0.6rem; border-bottom: 1px solid var(--line); vertical-align: top; background: var(--page); }
tbody tr:last-child > * { border-bottom: 0; }
thead th { background: var(--band); white-space: nowrap; vertical-align: bottom; }
th { text-align: left; font-weight: 600; }
tbody th { font-weight: 400; position: sticky; left: 0; min-width: 8rem; max-width: 24rem; }
.r { text-align: right; }
td { white-space: nowrap; }
.long { min-width: 14rem; white-space: normal; }
tr.ours > * { background: var(--ours); }
tr.ours > th { font-weight: 600; }
tbody th.long { min-width: min(20rem, 45vw); }
tbody th code { white-space: nowrap; }
figure { margin: 1rem 0; overflow-x: auto; background: #fff; border: 1px solid var(--line); border-radius: 6px;
  padding: 0.5rem; }
figure img { display: block; margin: 0 auto; max-width: 100%; min-width: min(44rem, 200vw); height: auto; }
figcaption { color: #59636e; font-size: 0.875rem; text-align: center; position: sticky; left: 0; }
details { border: 1px solid var(--line); border-radius: 6px; margin: 0.25rem 0; padding: 0.25rem 0.75rem; }
summary { cursor: pointer; overflow-wrap: anywhere; }
pre { overflow-x: auto; font-size: 0.8rem; margin: 0.5rem 0; }
code { font-family: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; font-size: 0.9em;
  overflow-wrap: anywhere; }
nav ul { list-style: none; padding: 0; margin: 0; }
nav li { margin: 0.15rem 0; }
nav li li { display: inline-block; margin: 0 0.75rem 0 0; font-size: 0.875rem; }
.configs { columns: 26rem; }
.configs details { break-inside: avoid; margin-top: 0; margin-bottom: 0.4rem; }
@media print {
  body { max-width: none; font-size: 10pt; padding: 0; }
  nav, .screen { display: none; }
  .scroll, figure { overflow: visible; break-inside: avoid; border: 0; padding: 0; }
  table { font-size: 7pt; }
  th, td { padding: 0.1rem 0.25rem; }
  thead th, td { white-space: normal; }
  thead { display: table-header-group; }
  tr { break-inside: avoid; }
  tbody th { position: static; }
  figure img { min-width: 0; max-height: 24cm; }
  h2, h3 { break-after: avoid; }
}
"""


def write_report(everything: Everything, path: Path) -> None:
    """Write the report; the same results give the same bytes.

    Raises:
        OSError: the file cannot be written; an earlier one is as it was.
    """
    write_text(path, report_page(everything))


def report_page(everything: Everything) -> str:
    """The whole page: what it shows is named in `_suite_section`."""
    rows = [row for grouped in everything.values() for row in grouped.values()]
    results = [result for row in rows for result in row]
    published = published_tables(everything)
    sections = [_meaning(results, [len(row) for row in rows])]
    if overview := overview_table(everything):
        sections.insert(0, _section("all-suites", "All suites", [html_table(overview)]))
    sections += [_suite_section(suite, grouped) for suite, grouped in everything.items()]
    if published:
        sections.append(_published_section(published))
    title = f"Benchmarks: {listed([*everything])}"
    about = (
        f"{count(len(everything), 'suite')}, {count(len(rows), 'row')}, {count(len(results), 'run')}. Made by "
        "<code>python -m benchmarks report</code> from the JSON files of the runs alone."
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f'<header>\n<h1>Benchmarks</h1>\n<p class="soft">{about}</p>\n</header>\n'
        f"{_contents(sections)}\n<main>\n" + "\n".join(text for *_, text in sections) + "\n</main>\n</body>\n</html>\n"
    )


Section = tuple[str, str, list[tuple[str, str]], str]  # id, title, ids and titles of its parts, HTML


def _section(name: str, title: str, parts: Sequence[str], inner: Sequence[tuple[str, str]] = ()) -> Section:
    body = "\n".join(parts)
    return name, title, [*inner], f'<section id="{name}">\n<h2>{html.escape(title)}</h2>\n{body}\n</section>'


def _contents(sections: Sequence[Section]) -> str:
    """The table of contents."""

    def link(name: str, title: str) -> str:
        return f'<a href="#{name}">{html.escape(title)}</a>'

    lines = []
    for name, title, inner, _ in sections:
        parts = "".join(f"<li>{link(*part)}</li>" for part in inner)
        lines.append(f"<li>{link(name, title)}{f'<ul>{parts}</ul>' if parts else ''}</li>")
    return '<nav aria-label="Contents">\n<ul>\n' + "\n".join(lines) + "\n</ul>\n</nav>"


def _meaning(results: Sequence[Result], seeds: Sequence[int]) -> Section:
    sentences = definitions({**ACCURACY, **COST}, results, seeds)
    items = "\n".join(f"<li>{inline(sentence)}</li>" for sentence in sentences)
    about = "<p>Rows of Co2L, SS-IL and CSD are shaded. A table on validation images says so; read its columns so.</p>"
    return _section("columns", "What the columns are", [about, f"<ul>\n{items}\n</ul>"])


def _suite_section(suite: str, grouped: Grouped) -> Section:
    """A suite: main table, figures, cost, comparisons, ablations, trials, settings, configs, provenance."""
    start = _slug(suite)
    parts = [f'<p class="soft">{inline(sentence)}</p>' for sentence in provenance(grouped)]
    parts.append(html_table(main_table(grouped, define=False)))
    inner = [(f"{start}-figures", "figures")]
    parts.append(f'<h3 id="{start}-figures">{html.escape(suite)}: figures</h3>')
    parts += [_figure(name, grouped) for name in FIGURES]
    for heading, about, table in suite_tables(grouped):
        name = f"{start}-{_slug(heading)}"
        inner.append((name, heading))
        parts.append(f'<h3 id="{name}">{html.escape(f"{suite}: {heading}")}</h3>')
        parts += [f"<p>{inline(about)}</p>"] if about else []
        parts.append(html_table(table))
    for heading, body, screen in (("configs", _configs(grouped), ' class="screen"'), ("runs", _runs(grouped), "")):
        name = f"{start}-{heading}"
        inner.append((name, heading))
        parts.append(f'<div{screen}>\n<h3 id="{name}">{html.escape(f"{suite}: {heading}")}</h3>\n{body}\n</div>')
    return _section(start, suite, parts, inner)


def _published_section(tables: Mapping[str, Table]) -> Section:
    parts = [f"<p>{inline(published_notes([*tables.values()]))}</p>"]
    inner = []
    for paper, table in tables.items():
        name = f"published-{_slug(paper)}"
        inner.append((name, paper))
        parts += [f'<h3 id="{name}">{html.escape(paper)}</h3>', html_table(table)]
    return _section("published", "Published numbers beside ours", parts, inner)


def _figure(name: str, grouped: Grouped) -> str:
    """A figure inside the page."""
    data = base64.b64encode(rendered(FIGURES[name], grouped)).decode()
    title = html.escape(FIGURE_TITLES[name])
    image = f'<img alt="{title}" src="data:image/png;base64,{data}">'
    return f"<figure>\n{image}\n<figcaption>{title}</figcaption>\n</figure>"


def html_table(table: Table) -> str:
    """A table of Markdown cells as HTML, with its caption and footnotes."""
    sides = [' class="r"' if side == "r" else "" for side in table.align]
    heads = [f'<th scope="col"{side}>{inline(cell)}</th>' for cell, side in zip(table.columns, sides, strict=True)]
    lines = ["<thead><tr>", *heads, "</tr></thead>", "<tbody>"]
    for index, row in enumerate(table.rows):
        cells = [f'<th scope="row"{_long(row[0])}>{inline(row[0])}</th>']
        others = zip(row[1:], sides[1:], strict=True)
        cells += [f"<td{side or _long(cell)}>{inline(cell)}</td>" for cell, side in others]
        start = '<tr class="ours">' if index in table.ours else "<tr>"
        lines.append(f"{start}{''.join(cells)}</tr>")
    notes = [f'<p class="caption">{inline(note)}</p>' for note in (table.caption, *table.notes) if note]
    return "\n".join(['<div class="scroll"><table>', *lines, "</tbody>", "</table></div>", *notes])


def _long(cell: str) -> str:
    return ' class="long"' if len(cell) > 30 else ""


def inline(text: str) -> str:
    """Our Markdown of one line as HTML: emphasis, code, and backslashes before what is meant as it stands."""
    marks = re.compile(r"\\(&lt;|[|\\`*\[])|`([^`]+)`|\*([^*]+)\*")

    def tag(found: re.Match[str]) -> str:
        if found[1]:
            return found[1]
        return f"<code>{found[2]}</code>" if found[2] else f"<em>{found[3]}</em>"

    return marks.sub(tag, html.escape(text))


def _configs(grouped: Grouped) -> str:
    """Every row's config as it stands in its results, to open one by one."""
    rows = [row for kind in TABLES for row in rows_of(grouped, kind)]
    return '<div class="configs">\n' + "\n".join(_config(row, grouped[row.name]) for row in rows) + "\n</div>"


def _config(row: Row, results: Sequence[Result]) -> str:
    config: dict[str, Any] = dict(results[0]["config"])
    options = config.pop("options", {})
    seeds = listed([result["seed"] for result in results])
    lines = [f"# seeds {seeds}; on {results[0]['evaluated_on']} images; read-out: {results[0]['readout']}"]
    lines += [f"{key} = {_toml(value)}" for key, value in config.items()]
    if options:
        lines += ["", "[options]"] + [f"{key} = {_toml(value)}" for key, value in options.items()]
    text = html.escape("\n".join(lines))
    title = f"<code>{html.escape(row.name)}</code> {html.escape(row.label)}"
    return f"<details><summary>{title}</summary><pre>{text}</pre></details>"


def _toml(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _runs(grouped: Grouped) -> str:
    """Which commit, versions and device made which runs."""
    made: dict[tuple[str, str, str], dict[str, list[int]]] = {}
    for name, results in grouped.items():
        for result in results:
            versions = listed([f"{package} {number}" for package, number in result["versions"].items()])
            key = (str(result.get("git_commit", "unknown")), str(result["device"]), versions)
            made.setdefault(key, {}).setdefault(name, []).append(int(result["seed"]))
    lines = [
        (
            f"`{commit[:12]}{'+changes' if commit.endswith('+changes') else ''}`",
            device,
            versions,
            str(sum(map(len, rows.values()))),
            listed([f"`{row}`" for row in sorted(rows)]),
        )
        for (commit, device, versions), rows in sorted(made.items())
    ]
    return html_table(Table(("git commit", "device", "versions", "runs", "rows"), tuple(lines), "lllrl"))


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "suite"


def command(parsed: argparse.Namespace) -> int:
    """The command `report`: write the HTML page, and RESULTS.md."""
    everything = load_all(parsed.results)
    write_report(everything, parsed.out)
    print(f"wrote {parsed.out.resolve()}")
    if parsed.write:
        write_text(parsed.write, results_page(everything))
        print(f"wrote {parsed.write}")
    return 0
