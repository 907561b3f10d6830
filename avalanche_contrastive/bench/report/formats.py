"""Tables for other programs: LaTeX, CSV, and every figure of every run as one tidy CSV."""

import argparse
import csv
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from avalanche_contrastive.bench.files import Everything, write_text
from avalanche_contrastive.bench.report.cells import SUPERSCRIPTS, Table, parts
from avalanche_contrastive.bench.report.tables import all_tables, figure_tables
from avalanche_contrastive.bench.results import Result, load_all
from avalanche_contrastive.bench.shapes import is_number

TIDY = ("suite", "row", "seed", "experience", "metric", "value")
NO_FIGURES = ("seed", "test_images", "class_order", "experience_classes", "angles", "processes")
MATRICES = {"accuracy_matrix": "accuracy", "task_accuracy_matrix": "task_accuracy", "recall_matrix": "recall_at_1"}
LATEX = str.maketrans(
    {
        **{sign: f"\\{sign}" for sign in "&%$#_{}"},
        **{
            sign: f"\\text{name}{{}}"
            for sign, name in {"\\": "backslash", "~": "asciitilde", "^": "asciicircum"}.items()
        },
        **{chr(raised): f"\\textsuperscript{{{chr(digit)}}}" for digit, raised in SUPERSCRIPTS.items()},
        "[": "{[}",  # at the start of a row it would be an option of the row before
        "<": "\\textless{}",
        ">": "\\textgreater{}",
        "±": "$\\pm$",
        "–": "--",
    }
)


def markdown_tables(everything: Everything) -> str:
    """All tables of figures as Markdown."""
    return "\n".join(all_tables(grouped) for grouped in everything.values())


def latex_tables(everything: Everything) -> str:
    """All tables of figures as LaTeX."""
    found = [
        latex(table, suite, title) for suite, grouped in everything.items() for title, table in figure_tables(grouped)
    ]
    return "\n".join(["% Needs \\usepackage{booktabs}.", *found])


def latex(table: Table, suite: str, title: str) -> str:
    """A table with its caption, bold where a cell is marked, its notes below."""
    lines = [" & ".join(map(_escaped, table.columns)) + " \\\\", "\\midrule"]
    for i, row in enumerate(table.rows):
        cells = (
            f"\\textbf{{{_escaped(text)}}}" if (i, j) in table.best else _escaped(text) for j, text in enumerate(row)
        )
        lines.append(" & ".join(cells) + " \\\\")
    return "\n".join(
        [
            "\\begin{table}",
            "\\centering\\small",
            f"\\caption{{{_escaped(suite)}: {_escaped(title)}. {_prose(table.caption)}}}",
            f"\\begin{{tabular}}{{{table.align}}}",
            "\\toprule",
            *lines,
            "\\bottomrule",
            "\\end{tabular}",
            *(f"\\par\\footnotesize {_prose(note)}" for note in table.notes),
            "\\end{table}",
            "",
        ]
    )


def _escaped(text: str) -> str:
    return " ".join(text.split()).translate(LATEX)


def _prose(text: str) -> str:
    return "".join(f"\\texttt{{{_escaped(part)}}}" if code else part.translate(LATEX) for part, code in parts(text))


def csv_tables(everything: Everything) -> str:
    """All tables of figures as one CSV; a star behind a cell is the mark of the best."""
    lines = []
    for suite, grouped in everything.items():
        for title, table in figure_tables(grouped):
            for i, row in enumerate(table.rows):
                cells = (text + " *" * ((i, j) in table.best) for j, text in enumerate(row))
                lines.append({"suite": suite, "table": title, **dict(zip(table.columns, cells, strict=True))})
    return _csv(lines, [*dict.fromkeys(key for line in lines for key in line)])


def tidy(everything: Everything) -> str:
    """Every figure of every run as CSV: suite, row, seed, experience, metric, value.

    The experience, from 1, is the one after whose training the figure was taken; a figure of a whole run has the last.
    What was measured on one experience has its number behind the metric, as in accuracy_on_2; what was measured on
    validation images says so.
    """
    lines = [
        dict(zip(TIDY, (suite, row, result["seed"], experience, metric, value), strict=True))
        for suite, grouped in everything.items()
        for row, results in grouped.items()
        for result in results
        for experience, metric, value in _figures(result)
    ]
    return _csv(lines, TIDY)


def _figures(result: Result) -> Iterator[tuple[int, str, float]]:
    """Experience, metric and value of every number in a result, and of every list of numbers by step."""
    last = len(result["test_images"])
    of = "" if result["evaluated_on"] == "test" else "_on_validation"
    nested = {f"seconds_per_experience_{k}": v for k, v in (result.get("seconds_per_experience") or {}).items()}
    for score, found in (result.get("compatibility") or {}).items():
        nested |= {f"compatibility_{score}" if k == "matrix" else f"{k}_{score}": v for k, v in found.items()}
    for key, value in {**result, **nested}.items():
        if key in NO_FIGURES:
            continue
        if is_number(value):
            yield last, key + of, value
        elif isinstance(value, list):
            first = last - len(value) + 1  # joint training: its only step is after the last experience
            for experience, item in enumerate(value, first):
                if is_number(item):
                    yield experience, key + of, item
                elif isinstance(item, list):
                    name = MATRICES.get(key, key)
                    values = ((j, x) for j, x in enumerate(item, 1) if is_number(x))
                    yield from ((experience, f"{name}_on_{j}{of}", x) for j, x in values)


def _csv(lines: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    file = io.StringIO()
    writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return file.getvalue()


FORMATS: Mapping[str, Callable[[Everything], str]] = {"md": markdown_tables, "csv": csv_tables, "latex": latex_tables}


def command(parsed: argparse.Namespace) -> int:
    """Print or write every figure of every run as one tidy CSV."""
    text = tidy(load_all(parsed.results))
    if parsed.out is None:
        print(text, end="")
    else:
        write_text(parsed.out, text)
        print(f"wrote {parsed.out}")
    return 0
