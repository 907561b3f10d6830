"""Kills, full disks and folders that cannot be written: the same figures in the end, and nothing half-written."""

import contextlib
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest
from helpers.hostile import differing, snapshot
from helpers.resuming import build, go_on
from helpers.streams import make_benchmark

from avalanche_contrastive import checkpoint
from avalanche_contrastive.bench import cli, files
from avalanche_contrastive.bench.config import METHODS, find_row, updated
from avalanche_contrastive.bench.run import execute as runs
from avalanche_contrastive.bench.run.resume import COSTS as KEPT
from avalanche_contrastive.bench.run.resume import Keeper

ROOT = Path(__file__).parents[2]
ROWS = ("run", "naive", "joint", "--set", "epochs=1", "--set", "batch_size=128")
# What may differ between two runs of the same seed.
COSTS = {"seconds_per_experience", "seconds_training", "seconds_total", "peak_memory_mib", "git_commit"}


def figures(folder):
    """What a folder's results say, costs aside."""
    return {
        path.name: {key: value for key, value in json.loads(path.read_text()).items() if key not in COSTS}
        for path in folder.glob("*-seed*.json")
    }


def start(*words, **named):
    """The real command in a process group of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "benchmarks", *map(str, words)]
    return subprocess.Popen(
        command, env=environment, start_new_session=True, stderr=subprocess.PIPE, text=True, **named
    )


def wait_for(condition, seconds=180.0):
    until = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < until, "this took too long"
        time.sleep(0.01)
    return found


def kill(process):
    """SIGKILL the command alone, as the system would when memory is short; its workers must end by themselves."""
    workers = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.communicate()
    _, alive = psutil.wait_procs(workers, timeout=10)
    for worker in alive:
        worker.kill()
    assert not alive, f"survived the command that started them: {alive}"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The figures of runs that nobody killed."""
    out = tmp_path_factory.mktemp("undisturbed")
    assert cli.main([*ROWS, "--seeds", "0-2", "--jobs", "1", "--out", str(out)]) == 0
    found = figures(out)
    assert len(found) == 6
    return found


# ---- kills


def test_killed_and_run_again_gives_the_figures_of_an_undisturbed_run(undisturbed, tmp_path):
    process = start(*ROWS, "--seeds", "0-2", "--jobs", "2", "--out", tmp_path)
    wait_for(lambda: figures(tmp_path) or process.poll() is not None)
    time.sleep(random.Random(0).uniform(0, 0.3))
    assert process.poll() is None
    kill(process)
    left = {path.name: path.read_bytes() for path in tmp_path.glob("*.json")}
    assert 1 <= len(left) < 6
    assert figures(tmp_path).items() <= undisturbed.items()
    assert cli.main([*ROWS, "--seeds", "0-2", "--jobs", "1", "--out", str(tmp_path)]) == 0
    assert figures(tmp_path) == undisturbed
    assert {name: (tmp_path / name).read_bytes() for name in left} == left, "what was done is not done again"


@pytest.mark.slow
def test_killed_again_and_again_at_random_moments(undisturbed, tmp_path):
    draw = random.Random(1)
    for _ in range(8):
        process = start(*ROWS, "--seeds", "0-2", "--jobs", "2", "--out", tmp_path)
        try:
            process.communicate(timeout=draw.uniform(0.1, 14))
        except subprocess.TimeoutExpired:
            kill(process)
        assert figures(tmp_path).items() <= undisturbed.items()
    process = start(*ROWS, "--seeds", "0-2", "--jobs", "2", "--out", tmp_path)
    told = process.communicate()[1]
    assert process.returncode == 0, told
    assert figures(tmp_path) == undisturbed


# ---- half-way through a run

HALF = ("run", "co2l", "--seeds", "0", "--jobs", "1", "--set", "epochs=12", "--set", "options.readout_epochs=10")


@pytest.fixture(scope="module")
def half_way(tmp_path_factory):
    """The folder of a command that was killed when its only run had done an experience or more, and what was kept."""
    out = tmp_path_factory.mktemp("half way")
    path = files.checkpoint_path(out, "co2l", 0)
    process = start(*HALF, "--out", out)
    wait_for(lambda: path.exists() or process.poll() is not None)
    kill(process)
    assert figures(out) == {}
    return out, checkpoint.extra_of(path)


def test_a_run_that_is_killed_half_way_goes_on_from_there(half_way, tmp_path):
    out, kept = half_way
    assert 1 <= len(kept["figures"]) <= 4
    shutil.copytree(out, tmp_path / "again")
    assert cli.main([*HALF, "--out", str(tmp_path / "again")]) == 0
    assert cli.main([*HALF, "--out", str(tmp_path / "undisturbed")]) == 0
    assert figures(tmp_path / "again") == figures(tmp_path / "undisturbed")
    result = files.read_json(tmp_path / "again" / "co2l-seed0.json")
    done = len(kept["figures"])
    assert result["seconds_per_experience"]["training"][:done] == kept["cost"]["training"]
    assert len(result["seconds_per_experience"]["training"]) == 5
    assert result["seconds_total"] > kept["seconds"]
    assert not (tmp_path / "again" / files.CHECKPOINTS).exists()


@pytest.mark.parametrize("why", ["another config", "--again", "damaged"])
def test_what_is_not_of_this_run_is_not_gone_on_with(half_way, tmp_path, why):
    out, kept = half_way
    path = files.checkpoint_path(tmp_path, "co2l", 0)
    shutil.copytree(out, tmp_path, dirs_exist_ok=True)
    command = [*HALF[:4], "--jobs", "1", "--set", "options.readout_epochs=10", "--set"]
    command += ["epochs=1"] if why == "another config" else ["epochs=12"]
    if why == "damaged":
        path.write_bytes(path.read_bytes()[:5000])
    assert cli.main([*command, "--out", str(tmp_path), *([why] if why == "--again" else [])]) == 0
    result = files.read_json(tmp_path / "co2l-seed0.json")
    assert result["seconds_per_experience"]["training"][:1] != kept["cost"]["training"][:1]
    assert result["config"]["epochs"] == (1 if why == "another config" else 12)
    assert not path.parent.exists()


class StopError(Exception):
    pass


def in_two_parts(name, path, **changes):
    """A run that stops in its third experience and is done again; both results, and what the user was told."""
    row = find_row(name, "split_digits")
    config = updated(row.config, {"epochs": 2, "train_images": 200, "test_images": 100, **changes}, where=name)
    told = []

    def stop(share, words, milestone=""):
        told.append(words)
        if words.startswith("experience 3/"):
            raise StopError

    undisturbed = runs.execute(config, 0, report=lambda *words: None)
    with pytest.raises(StopError):
        runs.execute(config, 0, report=stop, checkpoint=path)
    saved = path.exists()
    resumed = runs.execute(config, 0, report=lambda share, words, milestone="": told.append(words), checkpoint=path)
    drop = COSTS | {"peak_memory_of"}
    one, other = ({key: value for key, value in r.items() if key not in drop} for r in (undisturbed, resumed))
    return one, other, told, saved


# Their state cannot be saved: an iterator that has been drawn from, features in place of images.
WITHOUT = ("rar", "feature_replay")


@pytest.mark.parametrize(
    "name",
    ["derpp", "feature_replay", *(pytest.param(name, marks=pytest.mark.slow) for name in sorted(METHODS))],
)
def test_every_method_goes_on_to_the_same_figures_or_says_that_it_cannot(name, tmp_path):
    if name == "joint" or "class" not in METHODS.get(name, METHODS["derpp"]).scenarios:
        pytest.skip("trains in one go, or not on this stream")
    changes = {"options.memory_epochs": 2} if name == "gdumb" else {}
    undisturbed, resumed, told, saved = in_two_parts(name, tmp_path / "a.pt", **changes)
    assert undisturbed == resumed
    assert saved == (name not in WITHOUT)
    assert any(words.startswith("goes on without checkpoints: cannot save") for words in told) == (name in WITHOUT)


@pytest.mark.slow
def test_ctrl_c_ends_the_workers_at_once_and_keeps_what_is_done(undisturbed, tmp_path):
    process = start(*ROWS, "--seeds", "0-2", "--jobs", "2", "--out", tmp_path)
    wait_for(lambda: figures(tmp_path))
    workers = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGINT)
    told = process.communicate(timeout=30)[1]  # on a busy machine, too
    assert process.returncode == 130
    assert "the same command goes on from there" in told
    assert "Traceback" not in told
    assert psutil.wait_procs(workers, timeout=5)[1] == []
    assert figures(tmp_path).items() <= undisturbed.items()


def test_a_kill_in_the_midst_of_writing_leaves_the_old_file_or_the_new_one(tmp_path):
    path = tmp_path / "naive-seed0.json"
    program = f"""
        from pathlib import Path
        from avalanche_contrastive.bench.files import write_json
        count = 0
        while True:
            write_json(Path({str(path)!r}), {{"count": count, "matrix": [[count] * 50] * 200}})
            count += 1
    """
    draw, parts, kills = random.Random(2), 0, 0
    while kills < 20 or not parts:  # a file is being written for a part of the time only
        assert kills < 100, "no kill came in the midst of writing"
        kills += 1
        before = path.stat().st_mtime_ns if path.exists() else 0
        process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], cwd=ROOT)
        wait_for(lambda before=before: path.exists() and path.stat().st_mtime_ns > before)
        time.sleep(draw.uniform(0, 0.02))
        process.kill()
        process.wait()
        content = json.loads(path.read_text())
        assert content["matrix"] == [[content["count"]] * 50] * 200
        assert [p.name for p in tmp_path.iterdir() if not p.name.startswith(".")] == [path.name]
        parts = len(list(tmp_path.glob(".*.part")))


def test_what_killed_processes_left_is_removed_later_and_what_is_being_written_is_not(tmp_path):
    old, young, other = (tmp_path / name for name in (".a.json.x.part", ".b.json.y.part", "c.part"))
    for path in (old, young, other):
        path.write_text("{")
    os.utime(old, (time.time() - 2 * files.LEFT_OVER_SECONDS,) * 2)
    os.utime(other, (time.time() - 2 * files.LEFT_OVER_SECONDS,) * 2)
    files.check_writable(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([young, other])


# ---- full disks


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if os.getuid() != 0 or shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("cannot mount a small file system here (needs root)")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("jobs", ["1", pytest.param("2", marks=pytest.mark.slow)])
def test_a_full_disk_is_a_clear_error_and_loses_nothing(undisturbed, small_disk, capsys, jobs):
    out = small_disk / "out"
    out.mkdir()
    filler = small_disk / "filler"
    filler.write_bytes(bytes(48 * 1024))  # room for the probe and for two or three results, not for six
    command = [*ROWS, "--seeds", "0-2", "--jobs", jobs, "--out", str(out)]
    assert cli.main(command) == 2
    told = capsys.readouterr().err
    assert re.search(r"error: .*could not write .*-seed\d\.json: No space left on device \(\d+ KiB free", told)
    assert "give the same command again" in told
    assert multiprocessing.active_children() == []
    assert 0 < len(figures(out)) < 6
    assert figures(out).items() <= undisturbed.items()
    assert not list(out.glob(".*"))
    before = {path: path.read_bytes() for path in out.glob("*.json")}
    assert cli.main(command) == 2, "still full"
    assert before.items() <= {path: path.read_bytes() for path in out.glob("*.json")}.items()
    subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)
    assert cli.main(command) == 0
    assert figures(out) == undisturbed
    assert {path: path.read_bytes() for path in before} == before


def test_a_disk_that_is_full_before_the_first_run_is_said_before_it(small_disk, capsys):
    with contextlib.suppress(OSError), (small_disk / "filler").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    assert cli.main([*ROWS, "--out", str(small_disk / "out")]) == 2
    assert "cannot write results there: No space left on device" in capsys.readouterr().err


def test_a_limit_on_file_sizes_is_a_clear_error_too(tmp_path):
    """The same path through `write_text` where no file system can be mounted."""
    path = tmp_path / "a.json"
    path.write_text("[1]")
    program = f"""
        import resource
        from pathlib import Path
        from avalanche_contrastive.bench.files import write_json
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        try:
            write_json(Path({str(path)!r}), list(range(10_000)))
        except OSError as error:
            print(error)
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert f"could not write {path}: File too large" in told
    assert "What was there before is as it was" in told
    assert path.read_text() == "[1]"
    assert list(tmp_path.iterdir()) == [path]


# ---- folders that cannot be written


@pytest.mark.parametrize("below", ["", "out/split_digits"])
def test_a_file_in_place_of_the_folder_is_refused(tmp_path, capsys, below):
    there = tmp_path / "out"
    there.write_text("precious")
    assert cli.main([*ROWS, "--out", str(tmp_path / (below or "out"))]) == 2
    assert f"expected a folder for the results, but {there} is a file" in capsys.readouterr().err
    assert there.read_text() == "precious"


def test_a_folder_without_write_permission_is_refused_before_the_first_run(small_disk, capsys):
    out = small_disk / "out"
    out.mkdir()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)  # root may write whatever the mode says
    assert cli.main([*ROWS, "--out", str(out)]) == 2
    assert f"{out}: cannot write results there: Read-only file system" in capsys.readouterr().err


def test_a_new_folder_is_made_and_left_empty(tmp_path):
    files.check_writable(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []


FORGED = {
    "nothing": lambda extra: None,
    "no figures": lambda extra: extra | {"figures": None},
    "figures that are none": lambda extra: extra | {"figures": [{"Top1_Acc": "high"}]},
    "figures in a list": lambda extra: extra | {"figures": [[0.5]]},
    "a cost that is a text": lambda extra: extra | {"cost": extra["cost"] | {"training": "long"}},
    "a cost that there is not": lambda extra: extra | {"cost": extra["cost"] | {"fuel": [1.0]}},
    "costs of more experiences": lambda extra: extra | {"cost": {name: [1.0, 1.0] for name in KEPT}},
    "seconds that are a text": lambda extra: extra | {"seconds": "1"},
    "a run that is a number": lambda extra: extra | {"run": 5},
    "no seconds": lambda extra: {name: value for name, value in extra.items() if name != "seconds"},
}


@pytest.mark.parametrize("what", FORGED)
def test_what_a_checkpoint_has_beside_the_state_is_checked_before_anything_is_restored(what, tmp_path):
    told, path, stream = [], tmp_path / "a.pt", make_benchmark(per_class=6)
    keeper = Keeper(path, {"seed": 0}, lambda done, *words: told.extend(words), began=time.perf_counter())
    strategy = build("CSD")
    go_on(strategy, stream, 0, 1)
    keeper.save(strategy, stream.train_stream, [{"Top1_Acc": 0.5}], {name: [1.0] for name in KEPT})
    assert keeper.resume(build("CSD"), stream.train_stream) == ([{"Top1_Acc": 0.5}], {name: [1.0] for name in KEPT})
    checkpoint.save(strategy, path, extra=FORGED[what](checkpoint.extra_of(path)))
    fresh = build("CSD")
    before = snapshot(fresh)
    assert keeper.resume(fresh, stream.train_stream) == ([], {})
    assert differing(before, snapshot(fresh)) == []
    assert all("starts anew" in words for words in told)
