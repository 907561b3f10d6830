"""The commands of ``python -m benchmarks``."""

import argparse
import re
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import results, tables
from benchmarks.catalog import METHODS
from benchmarks.configs import Row, load_row, row_names, updated
from benchmarks.files import write_json, write_text
from benchmarks.pool import Job, Progress, run_jobs

DEFAULT_SUITE = "split_digits"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; 0 when all went well, 1 when something failed, 2 for a wrong command line."""
    parsed = _parser().parse_args(arguments)
    try:
        return int(parsed.command(parsed))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; finished runs are kept, the same command goes on from there", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Compare Co2L, SS-IL and CSD with Avalanche's own strategies, from configs to tables.",
        epilog="A row is one TOML file in benchmarks/configs/<suite>/. `run` without a row runs the main table.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_list(commands)
    _add_run(commands)
    _add_tune(commands)
    _add_table(commands)
    _add_plot(commands)
    return parser


def _add_list(commands: Any) -> None:
    command = commands.add_parser("list", help="the rows, one line each")
    command.add_argument("--suite", default=DEFAULT_SUITE, help="stream (default: %(default)s)")
    command.set_defaults(command=list_rows)


def _add_run(commands: Any) -> None:
    command = commands.add_parser(
        "run",
        help="run rows, then print the table and write it with two figures",
        description="One JSON per row and seed goes into the folder --out as soon as the run ends. A run whose JSON "
        "is there with the same config is skipped: after a kill, give the same command again.",
    )
    command.add_argument(
        "rows", nargs="*", metavar="ROW", help="row names (see `list`); default: all rows of the main table"
    )
    command.add_argument("--suite", default=DEFAULT_SUITE, help="stream (default: %(default)s)")
    command.add_argument("--ablations", action="store_true", help="add the rows of the ablation table")
    command.add_argument(
        "--trials", action="store_true", help="add the trials, which are evaluated on validation images"
    )
    command.add_argument("--seeds", type=parse_seeds, default="0-2", help="such as 0-2 or 0,3,5 (default: %(default)s)")
    command.add_argument("--jobs", type=_positive, default=2, help="processes (default: %(default)s)")
    command.add_argument("--out", type=Path, help="folder of the results (default: out/<suite>)")
    command.add_argument(
        "--memory", type=_positive, help="stored images of each row that has a memory (default: from the config)"
    )
    command.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change a key of every row, such as epochs=1 or options.temperature=0.2 (TOML values; may be repeated)",
    )
    command.set_defaults(command=run)


def _add_tune(commands: Any) -> None:
    command = commands.add_parser(
        "tune",
        help="choose the settings of rows on validation images and write their configs",
        description="Scores the same number of candidates for every row on a fifth of the training images (test "
        "images stay out), with seeds other than those of the results. Candidates go to "
        "benchmarks/tuning/<suite>/<row>.json as they are scored, so a killed search goes on; the winner goes to "
        "benchmarks/configs/<suite>/<row>.toml. Rows are chosen by final accuracy, retrieval methods (CSD) by final "
        "Recall@1.",
    )
    command.add_argument("rows", nargs="*", metavar="ROW", help="row names; default: all rows of the main table")
    command.add_argument("--suite", default=DEFAULT_SUITE, help="stream (default: %(default)s)")
    command.add_argument("--jobs", type=_positive, default=2, help="processes (default: %(default)s)")
    command.set_defaults(command=tune)


def _add_table(commands: Any) -> None:
    command = commands.add_parser("table", help="print the tables of a results folder, or write them into pages")
    command.add_argument("--results", type=Path, required=True, help="folder with the JSON files of `run`")
    command.add_argument("--write", type=Path, metavar="RESULTS.md", help="write the whole page: tables and settings")
    command.add_argument(
        "--into",
        type=Path,
        nargs="+",
        default=[],
        metavar="PAGE",
        help="put tables between the lines <!-- table:SUITE [ROW ...] --> and <!-- /table --> of these pages",
    )
    command.set_defaults(command=table)


def _add_plot(commands: Any) -> None:
    command = commands.add_parser("plot", help="draw accuracy_curves.png and accuracy_matrices.png of a results folder")
    command.add_argument("--results", type=Path, required=True, help="folder with the JSON files of `run`")
    command.add_argument("--out", type=Path, help="folder of the figures (default: the results folder)")
    command.set_defaults(command=plot)


def list_rows(parsed: argparse.Namespace) -> int:
    """Print every row of the suite."""
    for name in row_names(parsed.suite):
        row = load_row(name, parsed.suite)
        about = f"{row.label}: {row.method.about}" if not row.base else f"{row.label} (from {row.base})"
        print(f"{name:22} {row.table:9} {about}")
    return 0


def run(parsed: argparse.Namespace) -> int:
    """Do the runs that are missing, then show what there is."""
    out: Path = parsed.out or Path("out") / parsed.suite
    rows = [_changed(row, parsed.memory, parsed.set) for row in _chosen(parsed)]
    wanted = [(row, seed) for seed in parsed.seeds for row in rows]
    missing = [(row, seed) for row, seed in wanted if not results.is_done(out, row, seed)]
    if len(missing) < len(wanted):
        print(f"{len(wanted) - len(missing)} of {len(wanted)} runs are in {out} already", file=sys.stderr)
    commit = results.git_commit()

    def keep(job: Job, result: Mapping[str, Any]) -> None:
        content = {"row": job.name, **result, "git_commit": commit}
        write_json(results.result_path(out, job.name, job.seed), content)

    jobs = [Job(row.name, row.config, seed, validation=row.on_validation) for row, seed in missing]
    failed = run_jobs(jobs, parsed.jobs, keep, progress=Progress(len(jobs)))
    for job, text in failed:
        print(f"\n{job.name} seed {job.seed} failed:\n{text}", file=sys.stderr)
    if any(results.is_done(out, row, seed) for row, seed in wanted):
        _show(out)
    return 1 if failed else 0


def _show(out: Path) -> None:
    """Print the tables, write them and the figures, and name the folder."""
    grouped = results.load_results(out)
    text = tables.all_tables(grouped)
    print(f"\n{text}")
    write_text(out / "table.md", text)
    from benchmarks.plots import plot_all  # matplotlib takes a second: only those who draw wait for it

    plot_all(grouped, out)
    print(f"JSON, table.md, accuracy_curves.png and accuracy_matrices.png are in {out.resolve()}")


def tune(parsed: argparse.Namespace) -> int:
    """Search the settings of rows."""
    from benchmarks.tuning import tune as search

    rows = [row for row in _chosen(parsed) if parsed.rows or not row.base]
    return 1 if search(rows, parsed.jobs) else 0


def table(parsed: argparse.Namespace) -> int:
    """Print or write tables from JSON."""
    grouped = results.load_results(parsed.results)
    if parsed.write:
        write_text(parsed.write, tables.results_page(grouped))
        print(f"wrote {parsed.write}")
    for page in parsed.into:
        tables.fill_page(page, grouped)
        print(f"updated the tables in {page}")
    if not (parsed.write or parsed.into):
        print(tables.all_tables(grouped))
    return 0


def plot(parsed: argparse.Namespace) -> int:
    """Draw the figures from JSON."""
    from benchmarks.plots import plot_all

    for path in plot_all(results.load_results(parsed.results), parsed.out or parsed.results):
        print(f"wrote {path}")
    return 0


def parse_seeds(text: str) -> list[int]:
    """ "0-2" or "0,3,5" as numbers, without repeats."""
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        if not match or int(match[2] or match[1]) < int(match[1]):
            raise argparse.ArgumentTypeError(f"expected seeds such as 0-2 or 0,3,5, got {text!r}")
        seeds += range(int(match[1]), int(match[2] or match[1]) + 1)
    return list(dict.fromkeys(seeds))


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


def _chosen(parsed: argparse.Namespace) -> list[Row]:
    """The named rows, or the main ones, with the ablations and trials if asked for."""
    every = [load_row(name, parsed.suite) for name in row_names(parsed.suite)]
    named = [load_row(name, parsed.suite) for name in dict.fromkeys(parsed.rows)]
    wanted = [] if named else ["main"]
    wanted += [table for table in ("ablation", "trial") if getattr(parsed, f"{table}s", False)]
    return named + [row for row in every if row.table in wanted and row not in named]


def _changed(row: Row, memory: int | None, assignments: Sequence[str]) -> Row:
    """The row with --memory and --set applied."""
    changes: dict[str, Any] = {"memory": memory} if memory is not None and METHODS[row.config.method].has_memory else {}
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not equals:
            raise ValueError(f"--set: expected KEY=VALUE, got {assignment!r}")
        changes[key.strip()] = _value(value.strip())
    return replace(row, config=updated(row.config, changes, where=f"{row.name} with --set"))


def _value(text: str) -> Any:
    """A TOML value; a bare word is a string."""
    try:
        return tomllib.loads(f"x = {text}")["x"]
    except tomllib.TOMLDecodeError:
        return text
