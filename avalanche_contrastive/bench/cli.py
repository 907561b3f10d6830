"""The commands of ``python -m benchmarks``."""

import argparse
import sys
import tomllib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from avalanche_contrastive.bench import results
from avalanche_contrastive.bench.config import (
    DEFAULT_SUITE,
    Row,
    find_row,
    load_row,
    load_rows,
    nearest,
    suites,
    toml,
    updated,
)
from avalanche_contrastive.bench.files import check_writable, write_text
from avalanche_contrastive.bench.methods.catalog import UNAVAILABLE
from avalanche_contrastive.bench.parser import OWN_SUITE, make_parser
from avalanche_contrastive.bench.report import formats, pages, tables
from avalanche_contrastive.bench.report.folders import compare_places
from avalanche_contrastive.bench.run import together as distributed
from avalanche_contrastive.bench.run.pool import Job, Progress, run_jobs


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; 0 when all went well, 1 when something failed, 2 for a wrong command line."""
    parsed = make_parser().parse_args(arguments)
    command = COMMANDS[parsed.command]
    try:
        if distributed.launched() == 1:
            return command(parsed)
        distributed.check(parsed)
        return distributed.run(parsed, run)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; finished runs are kept, the same command goes on from there", file=sys.stderr)
        return 130


def list_rows(parsed: argparse.Namespace) -> int:
    """Print the rows of the suite, one row whole, or what else there is."""
    if parsed.suites:
        for suite in suites():
            rows = load_rows(suite)
            streams = ", ".join(sorted({row.config.stream for row in rows}))
            print(f"{suite:18} {len(rows):3} rows on {streams}")
    elif parsed.streams:
        from avalanche_contrastive.bench.data.streams import STREAMS
        from avalanche_contrastive.bench.methods.networks import NETWORKS  # torch takes seconds

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
    from avalanche_contrastive.bench.run.cluster import SlurmOptions, submit_jobs  # submitit is an extra

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
    from avalanche_contrastive.bench.run.execute import (  # torch takes seconds: those who run wait for it
        build,
        check,
        device_of,
        stream_of,
    )

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
    from avalanche_contrastive.bench.report.plots import (
        plot_all,  # matplotlib takes a second: only those who draw wait for it
    )

    drawn = ", ".join(path.name for path in plot_all(grouped, out))
    print(f"JSON, table.md, {drawn} are in {out.resolve()}")


def tune(parsed: argparse.Namespace) -> int:
    """Search the settings of rows."""
    from avalanche_contrastive.bench.run.tuning import tune as search

    rows = _changed([row for row in _chosen(parsed) if parsed.rows or not row.base], None, _assignments(parsed))
    if parsed.data is not None and not all(row.path for row in rows):
        raise ValueError("tune --data: copy the rows' TOML files to a folder of yours, which the winners can go into")
    _check_rows(rows, [0], parsed.root, parsed.device)
    return 1 if search(rows, parsed.jobs, root=parsed.root, device=parsed.device) else 0


def show_tables(parsed: argparse.Namespace) -> int:
    """Print or write tables from JSON."""
    if parsed.format != "md" and (parsed.write or parsed.into):
        raise ValueError("--format is of what is printed: pages written by --write and --into are Markdown")
    everything = results.load_all(parsed.results)
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
    text = formats.tidy(results.load_all(parsed.results))
    if parsed.out is None:
        print(text, end="")
    else:
        write_text(parsed.out, text)
        print(f"wrote {parsed.out}")
    return 0


def plot(parsed: argparse.Namespace) -> int:
    """Draw the figures from JSON."""
    from avalanche_contrastive.bench.report.plots import plot_all

    everything = results.load_all(parsed.results)
    for suite, grouped in everything.items():
        nested = not any(parsed.results.glob("*-seed*.json"))
        folder = (parsed.out or parsed.results) / suite if nested else parsed.out or parsed.results
        for path in plot_all(grouped, folder):
            print(f"wrote {path}")
    return 0


def report(parsed: argparse.Namespace) -> int:
    """Write the HTML page, and RESULTS.md."""
    from avalanche_contrastive.bench.report.html import write_report

    everything = results.load_all(parsed.results)
    write_report(everything, parsed.out)
    print(f"wrote {parsed.out.resolve()}")
    if parsed.write:
        write_text(parsed.write, pages.results_page(everything))
        print(f"wrote {parsed.write}")
    return 0


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


COMMANDS: Mapping[str, Callable[[argparse.Namespace], int]] = {
    "list": list_rows,
    "run": run,
    "tune": tune,
    "table": show_tables,
    "compare": compare,
    "export": export,
    "plot": plot,
    "report": report,
}
