"""Runs on a cluster: the book-keeping with jobs of this machine, and the real thing on a Slurm of one node."""

import contextlib
import io
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from avalanche_contrastive import _outside as outside
from avalanche_contrastive.bench import cli
from avalanche_contrastive.bench.config import load_row, updated
from avalanche_contrastive.bench.files import read_json, write_json
from avalanche_contrastive.bench.run import cluster
from avalanche_contrastive.bench.run.cluster import Scheduler, SlurmOptions, submit_jobs
from avalanche_contrastive.bench.run.execute import run_job
from avalanche_contrastive.bench.run.job import Job
from avalanche_contrastive.bench.run.progress import Progress

ROOT = Path(__file__).parents[2]
START, STOP = ROOT / "tests" / "bench" / "slurm" / "start.sh", ROOT / "tests" / "bench" / "slurm" / "stop.sh"
COSTS = {"seconds_per_experience", "seconds_training", "seconds_total", "peak_memory_mib", "git_commit"}


def job(seed, name="naive", **changes):
    config = updated(
        load_row("naive", "split_digits").config, {"epochs": 1, "batch_size": 128, **changes}, where="test"
    )
    return Job(name, config, seed)


def local_states():
    """What squeue would say of the processes of this machine, which is submitit's local cluster."""
    return {str(p.pid): "RUNNING" for p in psutil.process_iter(["status"]) if p.info["status"] != psutil.STATUS_ZOMBIE}


LOCAL = Scheduler("local", local_states)


def submit(jobs, out, *, told=None, **options):
    def write(job, result):
        write_json(out / f"{job.name}-seed{job.seed}.json", result)

    progress = Progress(len(jobs), told or io.StringIO())
    return submit_jobs(jobs, out, run_job, write, progress=progress, options=SlurmOptions(**options), scheduler=LOCAL)


def wait_for(condition, seconds=120.0):
    until = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < until, "this took too long"
        time.sleep(0.1)
    return found


# submitit drops its handle of a process that still runs, which Python remarks on.
left_alone = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

# ---- book-keeping


def test_what_slurm_still_has_is_not_submitted_again():
    jobs = [job(seed) for seed in range(4)]
    ids = ["7_0", "7_1", "7_2", "7_3"]
    submitted = [cluster._entry(j, id) for j, id in zip(jobs, ids, strict=True)]
    states = {"7_0": "PENDING", "7_1": "RUNNING", "7_2": "CANCELLED", "8_0": "RUNNING"}  # 7_3: forgotten by Slurm
    there = [run for run in submitted if states.get(run["id"]) in ("PENDING", "RUNNING")]
    assert cluster._known(jobs, there) == {jobs[0].id: "7_0", jobs[1].id: "7_1"}


@pytest.mark.parametrize(
    ("state", "there"),
    [("PENDING", True), ("RUNNING", True), ("SUSPENDED", True), ("REQUEUED", True), ("CONFIGURING", True)]
    + [(state, False) for state in ("COMPLETED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "COMPLETING", None)],
)
def test_what_counts_as_still_there(tmp_path, state, there):
    write_json(tmp_path / "submitted.json", {"runs": [cluster._entry(job(0), "7")]})
    states = {} if state is None else {"7": state}
    assert bool(cluster._still_there(tmp_path, states)) == there
    assert cluster._still_there(tmp_path / "empty", states) == []


def test_a_run_in_the_queue_for_another_config_is_a_conflict():
    there = [cluster._entry(job(0), "7_0")]
    with pytest.raises(ValueError, match=r"naive seed 0: Slurm still has job 7_0.*scancel 7_0"):
        cluster._known([job(0, epochs=2)], there)
    assert cluster._known([job(1, epochs=2)], there) == {}


@pytest.mark.parametrize("change", [{"root": "elsewhere"}, {"device": "cuda"}])
def test_a_run_in_the_queue_with_another_data_folder_or_device_is_one_too(change):
    there = [cluster._entry(replace(job(0), root="data"), "7_0")]
    with pytest.raises(ValueError, match=r"with another config, --root or device.*scancel 7_0"):
        cluster._known([replace(job(0), **{"root": "data", **change})], there)
    assert cluster._known([replace(job(0), root=os.path.abspath("data"))], there) == {job(0).id: "7_0"}


@pytest.mark.parametrize("content", ["{}", "[]", '{"runs": [{"name": "naive", "seed": 0}]}', "{"])
def test_a_list_of_submitted_runs_that_was_edited_is_named(content, tmp_path):
    path = tmp_path / ".slurm" / "submitted.json"
    path.parent.mkdir()
    path.write_text(content)
    with pytest.raises(ValueError, match=r"submitted\.json: (not as|expected JSON as)"):
        submit([job(0)], tmp_path)
    assert path.read_text() == content


def test_without_slurm_or_submitit_the_error_says_what_is_missing(tmp_path, monkeypatch):
    wanted = {"progress": Progress(1, io.StringIO()), "options": SlurmOptions()}
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match="no sbatch and srun in PATH" if _has_submitit() else "submitit"):
        submit_jobs([job(0)], tmp_path, run_job, print, **wanted)
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(ValueError, match=r"pip install 'avalanche-contrastive\[slurm\]'"):
        submit_jobs([job(0)], tmp_path, run_job, print, **wanted)
    assert list(tmp_path.iterdir()) == []


def _has_submitit():
    with contextlib.suppress(ImportError):
        import submitit  # noqa: F401

        return True
    return False


@left_alone
def test_a_run_submitted_and_left_alone_writes_its_result_and_is_taken_up_again(tmp_path):
    """With submitit's own local cluster: a process that imports, runs and writes like a job on a node."""
    pytest.importorskip("submitit")
    told = io.StringIO()
    assert submit([job(0)], tmp_path, wait=False) == []
    (run,) = read_json(tmp_path / ".slurm" / "submitted.json")["runs"]
    with pytest.raises(ValueError, match=f"Slurm still has job {run['id']}"):
        submit([job(0, epochs=2)], tmp_path, wait=False)
    assert submit([job(0)], tmp_path, told=told) == []
    assert "Slurm has 1 run already" in told.getvalue()
    assert "[1/1] naive seed 0 · accuracy" in told.getvalue()
    assert read_json(tmp_path / "naive-seed0.json")["seed"] == 0
    assert len(list((tmp_path / ".slurm").glob("*_submitted.pkl"))) == 1


@left_alone
def test_candidates_are_scored_on_the_cluster_and_gathered_also_by_a_later_command(tmp_path, monkeypatch, capsys):
    pytest.importorskip("submitit")
    monkeypatch.setattr(cluster, "Scheduler", lambda: LOCAL)
    words = ["tune", "naive", "--on", "slurm", "--candidates", "2", "--seeds", "1000", "--out", str(tmp_path)]
    words += ["--set=epochs=1", "--set=batch_size=128", "--set=train_images=200"]
    assert cli.main([*words, "--detach"]) == 0
    wait_for(lambda: len(list((tmp_path / ".scores").glob("*.json"))) == 2)
    assert not (tmp_path / "naive.toml").exists()
    assert cli.main(words) == 0
    assert f"wrote {tmp_path / 'naive.toml'}" in capsys.readouterr().out
    found = read_json(tmp_path / "naive.json")["candidates"]
    assert [[run["seed"] for run in candidate["runs"]] for candidate in found] == [[1000], [1000]]
    assert all(0 < candidate["score"] <= 1 for candidate in found)
    assert not list((tmp_path / ".scores").iterdir())
    assert len(list((tmp_path / ".slurm").glob("*_submitted.pkl"))) == 2  # none was submitted twice


def test_what_is_for_a_cluster_is_refused_without_one(tmp_path, capsys):
    assert cli.main(["tune", "naive", "--out", str(tmp_path), "--detach"]) == 2
    assert "--detach is for --on slurm" in capsys.readouterr().err


@left_alone
def test_a_module_beside_its_toml_is_found_by_the_run_and_what_is_written_is_known_when_it_ends(tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(outside, "_own_folders", [])
    (tmp_path / "mine_queued.py").write_text("def build(s):\n    return s.naive()\n")
    outside.find("mine_queued:build", tmp_path)
    mine = replace(job(0), config=replace(job(0).config, method="mine_queued:build"))
    asked = tmp_path / "later.txt"
    asked.write_text("at submission")

    def write(job, result):
        write_json(tmp_path / f"{job.name}-seed{job.seed}.json", {**result, "git_commit": asked.read_text()})

    def submitted(**more):
        progress = Progress(1, io.StringIO())
        return submit_jobs(
            [mine], tmp_path, run_job, write, progress=progress, options=SlurmOptions(**more), scheduler=LOCAL
        )

    assert submitted(wait=False) == []
    asked.write_text("at the end")
    assert submitted() == []
    result = read_json(tmp_path / "naive-seed0.json")
    assert (result["config"]["method"], result["git_commit"]) == ("mine_queued:build", "at the end")


@left_alone
@pytest.mark.slow
def test_a_job_that_is_killed_or_fails_is_reported_and_submitted_again(tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    (tmp_path / "mine_failing.py").write_text("def build(setting):\n    raise RuntimeError('not today')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    failing = job(0, name="failing")
    failing = replace(failing, config=replace(failing.config, method="mine_failing:build"))
    long = job(1, epochs=1000)
    submit([long], tmp_path, wait=False)
    (run,) = read_json(tmp_path / ".slurm" / "submitted.json")["runs"]
    wait_for(lambda: (tmp_path / ".slurm" / "naive-seed1.progress").exists())
    for process in [*(parent := psutil.Process(int(run["id"]))).children(recursive=True), parent]:
        process.kill()
    with pytest.MonkeyPatch.context() as patch:  # to a process that waits for it, it is gone without a result
        patch.setattr(cluster, "GRACE_SECONDS", 1.0)
        failed = cluster._wait({run["id"]: long}, tmp_path / ".slurm", Progress(1, io.StringIO()), LOCAL)
    assert [j for j, _ in failed] == [long]
    assert f"job {run['id']} ended without a result: GONE (Slurm knows it no more)" in failed[0][1]
    told = io.StringIO()
    failed = {j.label: text for j, text in submit([failing, job(1)], tmp_path, told=told)}
    assert list(failed) == ["failing seed 0"]
    assert failed["failing seed 0"].startswith("Traceback")
    assert failed["failing seed 0"].strip().endswith("RuntimeError: not today")
    assert "FAILED: RuntimeError: not today" in told.getvalue()
    assert read_json(tmp_path / "naive-seed1.json")["config"]["epochs"] == 1


# ---- a real Slurm


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """The environment of a Slurm of one node on this machine, which ends with the tests."""
    pytest.importorskip("submitit")
    folder = tmp_path_factory.mktemp("slurm")
    started = subprocess.run([START, folder], capture_output=True, text=True, check=False)
    if started.returncode == 77:
        pytest.skip(f"no Slurm on this machine: {started.stderr.strip().splitlines()[-1]}")
    assert started.returncode == 0, started.stderr
    environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf"), "OMP_NUM_THREADS": "1"}
    daemons = [int((folder / f"{name}.pid").read_text()) for name in ("slurmctld", "slurmd", "munge/munged")]
    yield environment
    subprocess.run([STOP, folder], check=True)
    assert [pid for pid in daemons if psutil.pid_exists(pid)] == []


def benchmarks(slurm, *words):
    """The real command, under way."""
    command = [sys.executable, "-m", "benchmarks", "run", *map(str, words)]
    return subprocess.Popen(command, cwd=ROOT, env=slurm, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def done(process):
    """Its exit status and what it said."""
    told = process.communicate(timeout=300)[1]
    return process.returncode, told


def squeue(slurm, *words):
    command = ["squeue", "--noheader", "--array", "--format=%i %T", *words]
    return dict(
        line.split() for line in subprocess.run(command, env=slurm, capture_output=True, text=True).stdout.splitlines()
    )


def figures(folder):
    return {
        path.name: {key: value for key, value in json.loads(path.read_text()).items() if key not in COSTS}
        for path in folder.glob("*-seed*.json")
    }


ON_SLURM = ("--on", "slurm", "--time", "10", "--partition", "main", "--cpus", "1")


@pytest.mark.slow
def test_on_slurm_the_figures_are_those_of_a_local_run_bit_for_bit(slurm, tmp_path):
    matrix = ("naive", "ssil", "--seeds", "0-1", "--set", "epochs=1", "--set", "batch_size=128")
    code, told = done(benchmarks(slurm, *matrix, "--out", tmp_path / "local"))
    assert code == 0, told
    code, told = done(benchmarks(slurm, *matrix, "--out", tmp_path / "slurm", *ON_SLURM))
    assert code == 0, told
    assert "submitted 4 runs as job" in told
    assert "[4/4]" in told
    assert figures(tmp_path / "slurm") == figures(tmp_path / "local")
    assert len(figures(tmp_path / "slurm")) == 4
    code, told = done(benchmarks(slurm, *matrix, "--out", tmp_path / "slurm", *ON_SLURM))
    assert (code, f"4 in {tmp_path / 'slurm'} already" in told, "submitted" in told) == (0, True, False)


@pytest.mark.slow
def test_a_job_ended_by_scancel_is_reported_and_made_again_by_the_same_command(slurm, tmp_path):
    matrix = ("naive", "--seeds", "0-1", "--set", "epochs=8")
    code, told = done(benchmarks(slurm, *matrix, "--out", tmp_path / "local"))
    assert code == 0, told
    out = tmp_path / "slurm"
    process = benchmarks(slurm, *matrix, "--out", out, *ON_SLURM)
    wait_for(lambda: (out / ".slurm" / "naive-seed0.progress").exists() or process.poll() is not None)
    (victim,) = (run["id"] for run in read_json(out / ".slurm" / "submitted.json")["runs"] if run["seed"] == 0)
    assert squeue(slurm)[victim] == "RUNNING"
    subprocess.run(["scancel", victim], env=slurm, check=True)
    code, told = done(process)
    assert code == 1
    assert "naive seed 0 · FAILED" in told
    assert f"Slurm job {victim} ended without a result: CANCELLED" in told
    assert set(figures(out)) == {"naive-seed1.json"}
    code, told = done(benchmarks(slurm, *matrix, "--out", out, *ON_SLURM))
    assert code == 0, told
    assert "submitted 1 run as job" in told
    assert figures(out) == figures(tmp_path / "local")


@pytest.mark.slow
def test_results_appear_though_the_command_was_killed_and_nothing_is_submitted_twice(slurm, tmp_path):
    matrix = ("naive", "--seeds", "0-2", "--set", "epochs=60", "--out", tmp_path, *ON_SLURM)
    process = benchmarks(slurm, *matrix)
    state = tmp_path / ".slurm" / "submitted.json"
    wait_for(lambda: state.exists() or process.poll() is not None)
    process.kill()
    process.communicate()
    before = set(squeue(slurm))
    assert len(before) == 3
    code, told = done(benchmarks(slurm, *matrix, "--detach"))
    assert code == 0, told
    assert "Slurm has 3 runs already" in told
    assert set(squeue(slurm)) <= before
    wait_for(lambda: len(list(tmp_path.glob("naive-seed?.json"))) == 3)
    assert set(squeue(slurm, "--states=all")) >= before
    code, told = done(benchmarks(slurm, *matrix))
    assert (code, f"3 in {tmp_path} already" in told) == (0, True)


@pytest.mark.slow
def test_a_job_that_slurm_refuses_is_a_clear_error(slurm, tmp_path):
    code, told = done(benchmarks(slurm, "naive", "--out", tmp_path, "--on", "slurm", "--partition", "nowhere"))
    assert code == 2
    assert "error: Slurm refused the jobs" in told
    assert "invalid partition" in told.lower()
    assert not (tmp_path / ".slurm" / "submitted.json").exists()
