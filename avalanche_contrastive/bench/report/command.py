"""The commands that make tables, figures and pages of result files."""

import argparse

from avalanche_contrastive.bench.files import write_text
from avalanche_contrastive.bench.report import formats, pages
from avalanche_contrastive.bench.report.folders import compare_places
from avalanche_contrastive.bench.results import load_all


def table(parsed: argparse.Namespace) -> int:
    """Print or write tables."""
    everything = load_all(parsed.results)
    if parsed.write:
        write_text(parsed.write, pages.results_page(everything))
        print(f"wrote {parsed.write}")
    for page in parsed.into:
        pages.fill_page(page, everything)
        print(f"updated the tables in {page}")
    if not (parsed.write or parsed.into):
        print(formats.FORMATS[parsed.format](everything), end="")
    return 0


def compare(parsed: argparse.Namespace) -> int:
    """Print the rows of one place minus those of another."""
    print(compare_places(parsed.first, parsed.second))
    return 0


def export(parsed: argparse.Namespace) -> int:
    """Print or write every figure of every run as one tidy CSV."""
    text = formats.tidy(load_all(parsed.results))
    if parsed.out is None:
        print(text, end="")
    else:
        write_text(parsed.out, text)
        print(f"wrote {parsed.out}")
    return 0


def plot(parsed: argparse.Namespace) -> int:
    """Draw the figures."""
    from avalanche_contrastive.bench.report.plots import plot_all  # matplotlib takes a second

    nested = not any(parsed.results.glob("*-seed*.json"))
    for suite, grouped in load_all(parsed.results).items():
        folder = parsed.out or parsed.results
        for path in plot_all(grouped, folder / suite if nested else folder):
            print(f"wrote {path}")
    return 0


def report(parsed: argparse.Namespace) -> int:
    """Write the HTML page, and RESULTS.md."""
    from avalanche_contrastive.bench.report.html import write_report  # matplotlib takes a second

    everything = load_all(parsed.results)
    write_report(everything, parsed.out)
    print(f"wrote {parsed.out.resolve()}")
    if parsed.write:
        write_text(parsed.write, pages.results_page(everything))
        print(f"wrote {parsed.write}")
    return 0
