"""The commands of ``python -m benchmarks``."""

import argparse
import re
import sys
import tomllib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import distributed, results, tables
from benchmarks.catalog import UNAVAILABLE
from benchmarks.configs import DEFAULT_SUITE, Row, find_row, load_row, load_rows, nearest, suites, toml, updated
from benchmarks.files import check_writable, write_text
from benchmarks.pool import Job, Progress, run_jobs

OWN_SUITE = "own_data"
MOST_SEEDS = 10_000  # of one range: more are a slip of the keyboard
ROWS_HELP = "row names (see `list`) or paths of TOML files; default: all rows of the suite's main table"
LIST_TEXT = """\
A row is one TOML file in benchmarks/configs/SUITE/ that says only what differs from the defaults: the method, and
what was chosen for it. _suite.toml in the same folder says what all rows of the suite have in common."""
RUN_TEXT = """\
Trains every row with every seed and writes one JSON per run into the folder --out as soon as the run ends. A run whose
JSON is there with the same config is skipped: after a kill, give the same command again. A run that was killed half-way
goes on after its last whole experience, to the same figures; meanwhile its state is in .checkpoints in that folder."""
RUN_EXAMPLES = """\
examples:
  python -m benchmarks run                                     the main table of Split-Digits, seeds 0 to 2
  python -m benchmarks run ssil replay --seeds 0-4 --jobs 2    two rows, five seeds, two processes
  python -m benchmarks run --suite split_mnist --root ~/data   MNIST from (or downloaded to) ~/data
  python -m benchmarks run --data photos.npz                   your own images: .npz or a folder per class
  python -m benchmarks run mine.toml naive                     your own method beside a built-in one
  python -m benchmarks run --on slurm --time 120 --cpus 2      the same matrix as a Slurm job array
  torchrun --nproc-per-node 2 -m benchmarks run co2l           every run trained by two processes together"""
TUNE_TEXT = """\
Scores the same number of candidates for every row on validation images (the test images are not even loaded into the
stream), with seeds other than those of the results. Candidates go to benchmarks/tuning/SUITE/ROW.json as they are
scored, so a killed search goes on; the winner goes to benchmarks/configs/SUITE/ROW.toml. Rows are chosen by final
accuracy, retrieval methods (CSD) by final Recall@1. A suite's _suite.toml may narrow the search in its table [tune]."""
REPORT_TEXT = """\
Writes one self-contained HTML page from the JSON files alone: tables, curves with bands, accuracy matrices, paired
comparisons, time and memory, the configs. --write makes RESULTS.md from the same files."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; 0 when all went well, 1 when something failed, 2 for a wrong command line."""
    parsed = _parser().parse_args(arguments)
    try:
        if distributed.launched() == 1:
            return int(parsed.command(parsed))
        distributed.check(parsed, run)
        return distributed.run(parsed, run)
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
        epilog="A row is one TOML file in benchmarks/configs/SUITE/. `run` without a row runs the main table.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_list(commands)
    _add_run(commands)
    _add_tune(commands)
    _add_table(commands)
    _add_plot(commands)
    _add_report(commands)
    return parser


def _add_command(
    commands: Any, name: str, about: str, call: Callable[[argparse.Namespace], int], text: str = "", examples: str = ""
) -> Any:
    command = commands.add_parser(
        name,
        help=about,
        description=text or about[0].upper() + about[1:] + ".",
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(command=call)
    return command


def _add_suite(command: Any) -> None:
    command.add_argument("--suite", help=f"folder of configs (default: {DEFAULT_SUITE}); `list --suites` names them")


def _add_list(commands: Any) -> None:
    command = _add_command(commands, "list", "the rows of a suite, one line each", list_rows, LIST_TEXT)
    _add_suite(command)
    command.add_argument("row", nargs="?", metavar="CONFIG", help="one row: everything that a TOML file may set")
    command.set_defaults(rows=[])
    command.add_argument("--suites", action="store_true", help="the suites instead")
    command.add_argument("--streams", action="store_true", help="the streams and networks instead")
    command.add_argument("--unavailable", action="store_true", help="Avalanche's strategies that are left out, and why")


def _add_run(commands: Any) -> None:
    command = _add_command(
        commands, "run", "run rows, then print the tables and write them with figures", run, RUN_TEXT, RUN_EXAMPLES
    )
    command.add_argument("rows", nargs="*", metavar="CONFIG", help=ROWS_HELP)
    _add_suite(command)
    command.add_argument(
        "--others", action="store_true", help="add Avalanche's further strategies, which are not tuned"
    )
    command.add_argument("--ablations", action="store_true", help="add the rows of the ablation table")
    command.add_argument(
        "--trials", action="store_true", help="add the trials, which are evaluated on validation images"
    )
    command.add_argument("--seeds", type=parse_seeds, default="0-2", help="such as 0-2 or 0,3,5 (default: %(default)s)")
    command.add_argument("--jobs", type=_positive, help="processes, a run in each (default: 2; under torchrun 1)")
    command.add_argument("--out", type=Path, help="folder of the results (default: out/SUITE)")
    _add_data(command)
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
    command.add_argument(
        "--on",
        default="local",
        choices=("local", "slurm"),
        help="this machine, or a Slurm cluster through submitit, one array task per run (default: %(default)s)",
    )
    command.add_argument(
        "--again", action="store_true", help="do runs once more from the start, whatever is there, and replace it"
    )
    _add_cluster(command)


def _add_cluster(command: Any) -> None:
    cluster = command.add_argument_group("on slurm")
    cluster.add_argument("--partition", help="(default: the cluster's)")
    cluster.add_argument("--time", type=_positive, default=60, metavar="MINUTES", help="per run (default: %(default)s)")
    cluster.add_argument("--mem", type=_positive, metavar="GB", help="per run (default: the cluster's)")
    cluster.add_argument("--cpus", type=_positive, default=1, help="per run (default: %(default)s)")
    cluster.add_argument("--gpus", type=_positive, default=0, help="per run; the runs then train on them")
    cluster.add_argument(
        "--sbatch",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="any other option of sbatch, such as qos=long",
    )
    cluster.add_argument(
        "--setup",
        action="append",
        default=[],
        metavar="LINE",
        help="shell line before a run, such as 'module load cuda'",
    )
    cluster.add_argument("--detach", action="store_true", help="do not wait; the same command later shows what is done")


def _add_tune(commands: Any) -> None:
    command = _add_command(
        commands, "tune", "choose the settings of rows on validation images and write their configs", tune, TUNE_TEXT
    )
    command.add_argument("rows", nargs="*", metavar="ROW", help="row names; default: all rows of the main table")
    _add_suite(command)
    command.add_argument("--jobs", type=_positive, default=2, help="processes (default: %(default)s)")
    _add_data(command)
    command.set_defaults(set=[])


def _add_data(command: Any) -> None:
    command.add_argument(
        "--data",
        type=Path,
        metavar="PATH",
        help="your own images: a .npz file (train_images, train_labels, test_images, test_labels) or a folder of "
        f"images per class; takes the suite {OWN_SUITE}",
    )
    command.add_argument(
        "--device", default="cpu", choices=("cpu", "cuda", "auto"), help="where to train (default: %(default)s)"
    )
    command.add_argument(
        "--root",
        default="",
        metavar="FOLDER",
        help="where downloaded data sets are or go to; NAME.npz there (cifar10.npz, ...) is taken instead of a "
        "download (default: Avalanche's folder)",
    )


def _add_table(commands: Any) -> None:
    command = _add_command(
        commands, "table", "print the tables of a results folder, or write them into pages", show_tables
    )
    _add_results(command)
    command.add_argument("--write", type=Path, metavar="RESULTS.md", help="write the whole page: tables and settings")
    command.add_argument(
        "--into",
        type=Path,
        nargs="+",
        default=[],
        metavar="PAGE",
        help="put tables between the lines <!-- table:SUITE [ROW ...] --> (or table:all) and "
        "<!-- /table --> of these pages",
    )


def _add_plot(commands: Any) -> None:
    command = _add_command(commands, "plot", "draw the figures of a results folder", plot)
    _add_results(command)
    command.add_argument("--out", type=Path, help="folder of the figures (default: beside the JSON files)")


def _add_report(commands: Any) -> None:
    command = _add_command(
        commands, "report", "write one self-contained HTML page, and RESULTS.md", report, REPORT_TEXT
    )
    _add_results(command)
    command.add_argument("--out", type=Path, default=Path("report.html"), help="the page (default: %(default)s)")
    command.add_argument("--write", type=Path, metavar="RESULTS.md", help="write this page too")


def _add_results(command: Any) -> None:
    command.add_argument(
        "--results", type=Path, required=True, help="folder with the JSON files of `run`, or with such folders"
    )


def list_rows(parsed: argparse.Namespace) -> int:
    """Print the rows of the suite, one row whole, or what else there is."""
    if parsed.suites:
        for suite in suites():
            rows = load_rows(suite)
            streams = ", ".join(sorted({row.config.stream for row in rows}))
            print(f"{suite:18} {len(rows):3} rows on {streams}")
    elif parsed.streams:
        from benchmarks.models import NETWORKS  # torch takes seconds
        from benchmarks.streams import STREAMS

        for name, kind in STREAMS.items():
            print(f"stream  {name:20} {kind.title}; {', '.join(kind.scenarios)}-incremental; network {kind.network}")
        for name, network in NETWORKS.items():
            print(f"network {name:20} {network.about}")
    elif parsed.unavailable:
        for name, reason in UNAVAILABLE.items():
            print(f"{name:22} {reason}")
    elif parsed.row:
        _print_row(find_row(parsed.row, _suite(parsed)))
    else:
        for row in load_rows(parsed.suite or DEFAULT_SUITE):
            about = f"{row.label}: {row.method.about}" if not row.base else f"{row.label} (from {row.base})"
            print(f"{row.name:28} {row.table:9} {about}")
    return 0


def _print_row(row: Row) -> None:
    """The whole config, as a TOML file could say it."""
    config = row.config.as_dict()
    options = config.pop("options")
    print(f"# {row.label}: {row.method.about}")
    print("\n".join(f"{key} = {toml(value)}" for key, value in config.items()))
    print("\n".join(["", "[options]", *(f"{key} = {toml(value)}" for key, value in options.items())]))


def run(parsed: argparse.Namespace) -> int:
    """Do the runs that are missing, then show what there is."""
    rows = _changed(_chosen(parsed), parsed.memory, _assignments(parsed))
    device = "cuda" if parsed.gpus else parsed.device
    _check_cluster(parsed)
    _check_rows(rows, parsed.seeds, parsed.root, device if parsed.on == "local" else "cpu")
    out: Path = parsed.out or Path("out") / (rows[0].config.suite if parsed.data is None else _stem(parsed.data))
    check_writable(out)
    wanted = [(row, seed) for seed in parsed.seeds for row in rows]
    missing = [(row, seed) for row, seed in wanted if parsed.again or not results.is_done(out, row, seed)]
    _check_replaced(out, missing, parsed.again)
    if len(missing) < len(wanted):
        print(f"{len(wanted) - len(missing)} of {len(wanted)} runs are in {out} already", file=sys.stderr)
    jobs = [
        Job(
            row.name,
            row.config,
            seed,
            validation=row.on_validation,
            device=device,
            root=parsed.root,
            key=row.shown(),
            checkpoint=results.checkpoint_path(out.resolve(), row.name, seed),
        )
        for row, seed in missing
    ]
    if parsed.again:
        for job in jobs:
            results.remove_checkpoint(job.checkpoint)
    failed = _do(parsed, jobs, out) if jobs else []
    for job, text in failed:
        print(f"\n{job.name} seed {job.seed} failed:\n{text}", file=sys.stderr)
    if any(results.is_done(out, row, seed) for row, seed in wanted):
        _show(out)
    return 1 if failed else 0


def _stem(data: Path) -> str:
    return data.expanduser().resolve().stem or OWN_SUITE


def _check_replaced(out: Path, missing: Sequence[tuple[Row, int]], again: bool) -> None:
    """Refuse to write over results of another setting."""
    for row, seed in missing:
        stored = None if again else results.stored_result(out, row, seed)
        if stored is not None:
            raise ValueError(
                f"{results.result_path(out, row.name, seed)} is there, of another setting: "
                f"{results.difference(stored, row, seed)}. Give another --out, or --again to replace it"
            )


def _do(parsed: argparse.Namespace, jobs: Sequence[Job], out: Path) -> list[tuple[Job, str]]:
    """The runs, here or on the cluster; what went wrong."""
    progress = Progress(len(jobs))
    if parsed.on == "local":
        at_once = parsed.jobs or (2 if distributed.launched() == 1 else 1)
        return run_jobs(jobs, at_once, partial(_save, out, results.git_commit()), progress=progress)
    from benchmarks.cluster import SlurmOptions, submit_jobs  # submitit is an extra

    options = SlurmOptions(
        partition=parsed.partition,
        time_min=parsed.time,
        mem_gb=parsed.mem,
        cpus=parsed.cpus,
        gpus=parsed.gpus,
        setup=parsed.setup,
        extra=_pairs(parsed.sbatch, "--sbatch"),
        wait=not parsed.detach,
    )
    return submit_jobs(jobs, out, partial(_save, out, ""), progress=progress, options=options)


def _save(out: Path, commit: str, job: Job, result: Mapping[str, Any]) -> None:
    """Write a run's JSON; on a cluster the run does so itself, and the commit is what it finds when it ends."""
    result = {**result, "fingerprint": results.fingerprint(job.config)}
    results.save(out, job.name, job.key, commit or results.git_commit(), result)
    results.remove_checkpoint(job.checkpoint)


def _check_cluster(parsed: argparse.Namespace) -> None:
    """Refuse what only a cluster understands, without one."""
    given = [key for key in ("partition", "mem", "gpus", "sbatch", "setup", "detach") if getattr(parsed, key)]
    if parsed.on == "local" and given:
        raise ValueError(f"--{given[0]} is for --on slurm" + (": use --device cuda here" if given[0] == "gpus" else ""))


def _check_rows(rows: Sequence[Row], seeds: Sequence[int], root: str, device: str) -> None:
    """Refuse what cannot run before the first run starts; what must be downloaded is, once."""
    found = {row.config.suite for row in rows}
    if len(found) != 1:
        raise ValueError(f"one call runs rows of one suite, got rows of {', '.join(sorted(found)) or 'none'}")
    names = [row.name for row in rows]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"two of the rows are called {twice[0]!r}; their results would be the same files. Rename one")
    if max(seeds) >= 2**32:
        raise ValueError(f"--seeds: must be below 2**32, got {max(seeds)}")
    from benchmarks.runs import build, check, device_of, stream_of  # torch takes seconds: those who run wait for it

    place = device_of(device)
    for row in rows:
        check(row.config)
    streams: dict[Any, Any] = {}
    for row in rows:
        c = row.config
        kind = c.stream, c.data, c.scenario, c.experiences, c.base_classes, c.train_images, c.test_images
        if (kind, row.on_validation) not in streams:
            streams[kind, row.on_validation] = stream_of(c, seeds[0], validation=row.on_validation, root=root)
        build(c, streams[kind, row.on_validation], place)


def _show(out: Path) -> None:
    """Print the tables, write them and the figures, and name the folder."""
    grouped = results.load_results(out)
    text = tables.all_tables(grouped)
    print(f"\n{text}")
    write_text(out / "table.md", text)
    from benchmarks.plots import plot_all  # matplotlib takes a second: only those who draw wait for it

    drawn = ", ".join(path.name for path in plot_all(grouped, out))
    print(f"JSON, table.md, {drawn} are in {out.resolve()}")


def tune(parsed: argparse.Namespace) -> int:
    """Search the settings of rows."""
    from benchmarks.tuning import tune as search

    rows = _changed([row for row in _chosen(parsed) if parsed.rows or not row.base], None, _assignments(parsed))
    if parsed.data is not None and not all(row.path for row in rows):
        raise ValueError("tune --data: copy the rows' TOML files to a folder of yours, which the winners can go into")
    _check_rows(rows, [0], parsed.root, parsed.device)
    return 1 if search(rows, parsed.jobs, root=parsed.root, device=parsed.device) else 0


def show_tables(parsed: argparse.Namespace) -> int:
    """Print or write tables from JSON."""
    everything = results.load_all(parsed.results)
    if parsed.write:
        write_text(parsed.write, tables.results_page(everything))
        print(f"wrote {parsed.write}")
    for page in parsed.into:
        tables.fill_page(page, everything)
        print(f"updated the tables in {page}")
    if not (parsed.write or parsed.into):
        for grouped in everything.values():
            print(tables.all_tables(grouped))
    return 0


def plot(parsed: argparse.Namespace) -> int:
    """Draw the figures from JSON."""
    from benchmarks.plots import plot_all

    everything = results.load_all(parsed.results)
    for suite, grouped in everything.items():
        nested = not any(parsed.results.glob("*-seed*.json"))
        folder = (parsed.out or parsed.results) / suite if nested else parsed.out or parsed.results
        for path in plot_all(grouped, folder):
            print(f"wrote {path}")
    return 0


def report(parsed: argparse.Namespace) -> int:
    """Write the HTML page, and RESULTS.md."""
    from benchmarks.report import write_report

    everything = results.load_all(parsed.results)
    write_report(everything, parsed.out)
    print(f"wrote {parsed.out.resolve()}")
    if parsed.write:
        write_text(parsed.write, tables.results_page(everything))
        print(f"wrote {parsed.write}")
    return 0


def parse_seeds(text: str) -> list[int]:
    """ "0-2" or "0,3,5" as numbers, without repeats."""
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        if not match or int(match[2] or match[1]) < int(match[1]):
            raise argparse.ArgumentTypeError(f"expected seeds such as 0-2 or 0,3,5, got {text!r}")
        if int(match[2] or match[1]) - int(match[1]) >= MOST_SEEDS:
            raise argparse.ArgumentTypeError(f"expected at most {MOST_SEEDS} seeds, got {text!r}")
        seeds += range(int(match[1]), int(match[2] or match[1]) + 1)
    return list(dict.fromkeys(seeds))


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


def _chosen(parsed: argparse.Namespace) -> list[Row]:
    """The named rows, or the main ones, with the ablations and trials if asked for."""
    suite = _suite(parsed)
    named = [find_row(given, suite) for given in dict.fromkeys(parsed.rows)]
    wanted = [] if named else ["main"]
    wanted += [table for table in ("other", "ablation", "trial") if getattr(parsed, f"{table}s", False)]
    if not wanted:
        return named
    return named + [row for row in load_rows(suite) if row.table in wanted and row not in named]


def _suite(parsed: argparse.Namespace) -> str:
    """The suite of the call: named, that of one's own data, or what a given config file says."""
    if parsed.suite:
        return str(parsed.suite)
    default = OWN_SUITE if getattr(parsed, "data", None) is not None else DEFAULT_SUITE
    files = [given for given in parsed.rows if given.endswith(".toml")]
    return find_row(files[0], default).config.suite if files else default


def _assignments(parsed: argparse.Namespace) -> dict[str, Any]:
    """--data and --set as changes of a config."""
    changes: dict[str, Any] = {}
    if parsed.data is not None:
        changes = {"stream": "own", "data": str(parsed.data.expanduser().resolve())}
    return changes | {key: _value(text) for key, text in _pairs(parsed.set, "--set").items()}


def _pairs(assignments: Sequence[str], flag: str) -> dict[str, str]:
    """KEY=VALUE as text."""
    pairs = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise ValueError(f"{flag}: expected KEY=VALUE, got {assignment!r}")
        pairs[key.strip()] = text.strip()
    return pairs


def _changed(rows: Sequence[Row], memory: int | None, changes: Mapping[str, Any]) -> list[Row]:
    """The rows with --memory, --data and --set applied; an option is set where a row's method has it.

    A row that is there to show another size of memory than the row it follows keeps its own.
    """
    for key in changes:
        if key.startswith("options.") and not any(key.removeprefix("options.") in row.method.options for row in rows):
            known = {f"options.{name}" for row in rows for name in row.method.options}
            raise ValueError(f"--set: no row here has {key!r}{nearest(key, known)}")
    changed = []
    for row in rows:
        ours = {k: v for k, v in changes.items() if k.removeprefix("options.") in row.method.options or "." not in k}
        sized = row.base and row.config.memory != load_row(row.base, row.config.suite).config.memory
        if memory is not None and row.method.has_memory and not sized:
            ours = {"memory": memory, **ours}
        changed.append(replace(row, config=updated(row.config, ours, where=f"{row.name} with --set")))
    return changed


def _value(text: str) -> Any:
    """A TOML value, or a number such as .1, which TOML does not have; any other word is a string."""
    for read in (lambda word: tomllib.loads(f"x = {word}")["x"], float):
        with suppress(ValueError):
            return read(text)
    return text
