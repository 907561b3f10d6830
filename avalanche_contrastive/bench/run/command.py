"""The command `run`: check all rows first, do the runs that are missing, then show what there is."""

import argparse
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from avalanche_contrastive._launch import launched
from avalanche_contrastive.bench import results
from avalanche_contrastive.bench.files import check_writable, checkpoint_path, remove_checkpoint, write_text
from avalanche_contrastive.bench.report import tables
from avalanche_contrastive.bench.run import together
from avalanche_contrastive.bench.run.build import check_rows
from avalanche_contrastive.bench.run.execute import run_job
from avalanche_contrastive.bench.run.job import Job
from avalanche_contrastive.bench.run.logs import Logs, check_logs
from avalanche_contrastive.bench.run.matrix import Matrix
from avalanche_contrastive.bench.run.pool import train_along
from avalanche_contrastive.bench.run.where import check_cluster, devices, do_jobs


def run(parsed: argparse.Namespace, matrix: Matrix) -> int:
    """The command, in one process or in all those that torchrun has started; 1 if a run failed."""
    if launched() == 1:
        return _lead(parsed, matrix)
    together.check(parsed)
    return together.run_together(parsed.device, partial(_lead, parsed, matrix), partial(train_along, run_job))


def _lead(parsed: argparse.Namespace, matrix: Matrix) -> int:
    check_cluster(parsed)
    device, checked = devices(parsed)
    check_logs(parsed.log)
    check_rows(matrix.rows, parsed.seeds, parsed.root, checked)
    out = matrix.out
    check_writable(out)
    matrix.check_replaced()
    jobs = [
        Job(
            row.name,
            row.config,
            seed,
            validation=row.on_validation,
            device=device,
            root=parsed.root,
            key=row.shown(),
            checkpoint=checkpoint_path(out.resolve(), row.name, seed),
            logs=Logs(parsed.log, out.resolve() / "logs" / f"{row.name}-seed{seed}") if parsed.log else None,
        )
        for row, seed in matrix.missing
    ]
    if parsed.again:
        for job in jobs:
            remove_checkpoint(job.checkpoint)
    here, there = partial(_save, out, results.git_commit()), partial(_save, out, "")
    failed = do_jobs(parsed, jobs, run_job, matrix.at_once, out, here, there) if jobs else []
    for job, text in failed:
        print(f"\n{job.name} seed {job.seed} failed:\n{text}", file=sys.stderr)
    if any(results.is_done(out, row, seed) for row, seed in matrix.wanted):
        _show(out)
    return 1 if failed else 0


def _save(out: Path, commit: str, job: Job, result: Mapping[str, Any]) -> None:
    """Write a run's JSON; on a cluster the run does so itself, and the commit is what it finds when it ends."""
    result = {**result, "fingerprint": results.fingerprint(job.config)}
    results.save(out, job.name, job.key, commit or results.git_commit(), result)
    remove_checkpoint(job.checkpoint)


def _show(out: Path) -> None:
    """Print the tables, write them and the figures, and name the folder."""
    grouped = results.load_results(out)
    text = tables.all_tables(grouped)
    print(f"\n{text}")
    write_text(out / "table.md", text)
    from avalanche_contrastive.bench.report import plots  # matplotlib takes a while

    drawn = ", ".join(path.name for path in plots.plot_all(grouped, out))
    print(f"JSON, table.md, {drawn} are in {out.resolve()}")
