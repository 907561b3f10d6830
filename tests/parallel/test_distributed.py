"""Two processes train as one does: weights, batches, random numbers, what is refused, the benchmarks' `run`.

The processes are real, started by torchrun once for most of the tests (distributed_worker.py): importing Avalanche
takes longer than all that they do.
"""

import functools
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from helpers.distributed_worker import COMPARED

from avalanche_contrastive.bench import cli, files
from avalanche_contrastive.bench import config as configs
from avalanche_contrastive.bench.run import build as runs
from avalanche_contrastive.parallel import joining
from avalanche_contrastive.parallel.collectives import Rows
from avalanche_contrastive.parallel.joining import is_main_process, local_device
from avalanche_contrastive.parallel.plugin import DataParallel, _of_own_gpu

ROOT = Path(__file__).parents[2]
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-9}
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
    "PYTHONWARNINGS": "ignore",
}
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def torchrun(*words, **named):
    """The finished call, with what it said."""
    command = [*TORCHRUN, *map(str, words)]
    named = {"cwd": ROOT, "timeout": 240, **named}
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False, **named)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What each of two processes found, by rank."""
    folder = tmp_path_factory.mktemp("processes")
    ended = torchrun(ROOT / "tests" / "helpers" / "distributed_worker.py", folder, timeout=480)
    assert ended.returncode == 0, ended.stderr[-4000:]
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


# ---- the same as in one process


@functools.cache
def in_one_process(name):
    return COMPARED[name](parallel=False)


@pytest.mark.parametrize("name", COMPARED)
def test_two_processes_train_as_one(found, name):
    alone, (zero, one) = in_one_process(name), (ranks[name] for ranks in found)
    assert alone["weights"].keys() == zero["weights"].keys()
    for key, expected in alone["weights"].items():
        torch.testing.assert_close(zero["weights"][key], expected, atol=TOLERANCE[expected.dtype], rtol=0)
        assert torch.equal(zero["weights"][key], one["weights"][key])
    encoder = [key for key in alone["first"] if "head" not in key and "readout" not in key]  # a head may have grown
    moved = max(float((alone["weights"][key] - alone["first"][key]).abs().max()) for key in encoder)
    assert moved > 20 * TOLERANCE[torch.float32]


@pytest.mark.parametrize("name", COMPARED)
def test_statistics_metrics_and_random_numbers_are_those_of_one_process(found, name):
    alone, (zero, one) = in_one_process(name), (ranks[name] for ranks in found)
    for key, expected in alone["buffers"].items():
        torch.testing.assert_close(zero["buffers"][key], expected, atol=1e-4, rtol=1e-4)
        assert torch.equal(zero["buffers"][key], one["buffers"][key])
    assert zero["metrics"] == one["metrics"]
    assert zero["metrics"] == pytest.approx(alone["metrics"], rel=1e-4)
    assert zero["random"] == one["random"] == alone["random"]


@pytest.mark.parametrize("name", [name for name in COMPARED if "compiled" in name])
def test_plugins_beside_a_compiled_model_see_the_whole_batch(found, name):
    batches = in_one_process(name)["batches"]
    assert [len(batch) for batch in batches[0]] == [8]
    assert all(ranks[name]["batches"] == batches for ranks in found)


def test_metrics_are_there_to_be_compared(found):
    for name in ("csd-metrics", "co2l-metrics"):
        metrics = found[0][name]["metrics"]
        assert {key.split("/")[0] for key in metrics} >= {
            "Top1_Acc_MB",
            "Top1_Acc_Epoch",
            "Loss_Epoch",
            "Top1_Acc_Stream",
        }


def test_processes_that_start_differently_take_the_first_ones_start(found):
    alone = in_one_process("ssil-float32")
    for ranks in found:
        for key, expected in alone["weights"].items():
            torch.testing.assert_close(ranks["unseeded"]["weights"][key], expected, atol=1e-5, rtol=0)
    assert not torch.equal(*(ranks["unseeded"]["first"]["encoder.1.0.weight"] for ranks in found))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_gradient_of_gathered_rows_is_that_of_the_whole_batch(found, dtype):
    for ranks in found:
        for sizes, (used, alone, mine, alone_mine, unused, difference) in ranks[f"gathered {dtype}"].items():
            tolerance = TOLERANCE[used.dtype]
            torch.testing.assert_close(used, alone, atol=tolerance, rtol=0)
            assert alone.abs().max() > 0.1
            assert unused is None
            assert torch.equal(difference, torch.zeros_like(difference))
            if sizes[0]:
                torch.testing.assert_close(mine, alone_mine, atol=tolerance, rtol=0)


def test_rows_are_split_as_evenly_as_can_be(found):
    assert found[0]["split"] == [(3, 2), (1, 0), (2, 2, 2), (1, 1, 0, 0)]


# ---- batches and random numbers


@pytest.mark.parametrize("name", ["shuffles", "shuffles of replay", "shuffles of ssil"])
def test_epochs_are_sharded_and_reshuffled(found, name):
    zero, one = (ranks[name] for ranks in found)
    assert zero["epochs"] == one["epochs"]  # the whole batches, on both
    assert len(zero["epochs"]) == 6
    first = [[row for batch in epoch for row in batch[:7]] for epoch in zero["epochs"][:3]]
    assert all(sorted(epoch) == sorted(first[0]) for epoch in first)
    assert len({*map(tuple, first)}) == 3
    assert len(set(first[0])) == 8
    rows = sum(len(batch) for epoch in zero["epochs"] for batch in epoch)
    loaded = len(zero["draws"]), len(one["draws"])
    shown = 6  # a process that has no row of the last batch of an epoch loads one for show
    assert rows <= sum(loaded) <= rows + 2 * shown + 2 * 8 + 2 * 10  # the read-out and the buffer load some, too
    if name == "shuffles":
        assert sum(loaded) == rows + shown
        assert abs(loaded[0] - loaded[1]) <= shown
        assert not set(zero["draws"]) & set(one["draws"])  # of the training transform


def test_every_replayed_batch_has_its_rows(found):
    later = found[0]["shuffles of ssil"]["epochs"][3:]
    assert [[len(batch) for batch in epoch] for epoch in later] == [[7 + 3, 1 + 3]] * 3


def test_augmentations_differ_by_process_and_come_again_with_the_seed(found):
    (zero, zero_again), (one, one_again) = (ranks["augmentations"] for ranks in found)
    assert zero == zero_again
    assert one == one_again
    assert len(zero) == 8
    assert not set(zero) & set(one)
    assert len(set(zero)) == 8


def test_a_run_that_is_resumed_ends_as_one_that_was_not(found):
    for ranks in found:
        undisturbed, again = ranks["resumed"]["endings"]
        assert undisturbed == again
        assert ranks["resumed"]["orders"][0] == ranks["resumed"]["orders"][1]
    assert found[0]["resumed"]["endings"] == found[1]["resumed"]["endings"]


def test_a_checkpoint_that_cannot_be_written_is_an_error_in_every_process(found):
    zero, one = (ranks["resumed"]["unwritable"] for ranks in found)
    assert "Error" in zero
    assert "failed in another process: [Errno" in one


def test_a_process_draws_on_its_gpu_what_the_first_draws_on_its_own():
    zero, one, ours = (torch.tensor([number]) for number in range(3))
    states = {"torch": {"current_state": ours}, "torch.cuda": {"current_state": [zero, one]}}
    taken = _of_own_gpu(states, 0, 1)
    assert [int(state) for state in taken["torch.cuda"]["current_state"]] == [0, 0]
    assert taken["torch"]["current_state"] is ours
    assert states["torch.cuda"]["current_state"][1] is one
    on_cpus = _of_own_gpu(states, None, None)
    assert [int(state) for state in on_cpus["torch.cuda"]["current_state"]] == [0, 1]


@pytest.fixture
def two_of_torchrun(monkeypatch):
    """As if torchrun had started this process as the second of two on this machine."""
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)


def test_each_process_has_a_gpu_of_its_own(monkeypatch, two_of_torchrun):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert local_device() == torch.device("cuda", 1)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    with pytest.raises(ValueError, match="LOCAL_RANK 1, but torch finds 1 GPU here"):
        local_device()


@pytest.mark.parametrize(("others", "shared"), [(("here", "0", 0), False), (("here", "1", 0), True)])
def test_two_processes_may_each_see_one_gpu_only(monkeypatch, two_of_torchrun, others, shared):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    monkeypatch.setattr("socket.gethostname", lambda: "here")
    monkeypatch.setattr("torch.cuda.set_device", lambda device: None)
    monkeypatch.setattr("torch.distributed.init_process_group", lambda *words, **named: None)
    monkeypatch.setattr(joining, "of_all_processes", lambda mine: [others, mine])
    if not shared:
        return joining.join_processes("cuda:0")
    with pytest.raises(ValueError, match="several processes share a GPU"):
        joining.join_processes("cuda:0")
    return None


def test_a_batch_of_one_row_is_put_together_whatever_its_size():
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        for rows in (1, 2):
            batch = [torch.arange(rows), torch.rand(rows, 1, 5, 5), torch.full((rows,), 7), torch.rand(rows) > 0.5]
            for ours, whole in zip(batch, Rows((rows,), 0).whole_batch(batch), strict=True):
                assert torch.equal(ours, whole)
    finally:
        torch.distributed.destroy_process_group()


# ---- what is refused, what is found out

SAID = {
    "other data": "train differently: training data",
    "other settings": "train differently: train_mb_size",
    "a draw": "come apart: random state",
    "other batches": "at different batches",
    "other exemplars": "come apart: stored exemplars",
    "other weights": "come apart: weights",
    "own loop": "ER_ACE has a training loop of its own",
    "own gradients": "takes gradients of the loss itself",
    "more rows": "4 rows, but the batch has 5",
    "no plugin": "no DataParallel plugin",
    "own sampler": "DistributedSampler",
    "parts": "run its batch in parts",
    "wrapped": "plain model",
}


@pytest.mark.parametrize("case", SAID)
def test_what_cannot_be_right_is_an_error_in_every_process(found, case):
    zero, one = (ranks["errors"][case] for ranks in found)
    assert re.sub(r"\d", "", zero) == re.sub(r"\d", "", one)
    assert SAID[case] in zero


def test_every_case_of_errors_is_reported(found):
    assert found[0]["errors"].keys() == SAID.keys()


def test_the_script_in_the_readme_runs_and_only_the_first_process_logs(found):
    zero, one = (ranks["readme"] for ranks in found)
    assert (zero["main"], one["main"]) == (True, False)
    assert zero["processes"] == 2
    assert zero["weights"] == one["weights"]
    assert zero["printed"].count("Start of training phase") == 5
    assert one["printed"] == ""


@pytest.mark.parametrize("kind", ["co2l", "ssil", "csd"])
def test_without_torchrun_the_plugin_does_nothing(kind):
    plugin = DataParallel()
    here = COMPARED[f"{kind}-float32"](parallel=False, plugins=[plugin])
    for key, expected in in_one_process(f"{kind}-float32")["weights"].items():
        assert torch.equal(here["weights"][key], expected)
    assert plugin.rows is None
    assert is_main_process()


@pytest.mark.parametrize("wrong", [0, -1.0, float("nan"), "10", True])
def test_a_timeout_must_be_a_number(wrong):
    with pytest.raises(ValueError, match="timeout"):
        DataParallel(timeout=wrong)


# ---- the benchmarks

SMALL = ("--set", "epochs=1", "--set", "train_images=100")


def test_run_under_torchrun_writes_one_json_per_run(tmp_path):
    ended = torchrun("-m", "benchmarks", "run", "csd", "--seeds", "0", "--out", tmp_path, *SMALL)
    assert ended.returncode == 0, ended.stderr[-4000:]
    assert [path.name for path in tmp_path.glob("*.json")] == ["csd-seed0.json"]
    result = files.read_json(tmp_path / "csd-seed0.json")
    assert (result["processes"], result["backend"]) == (2, "gloo")
    assert ended.stderr.count("csd seed 0 · accuracy") == 1
    assert ended.stdout.count("| CSD (ours)") == 2  # its row in the two tables


def test_an_error_in_one_process_ends_all(tmp_path):
    (tmp_path / "mine.py").write_text(
        textwrap.dedent(
            """
            from avalanche.training.plugins import SupervisedPlugin
            from avalanche_contrastive.parallel.collectives import rank

            class Fails(SupervisedPlugin):
                def after_training_epoch(self, strategy, **kwargs):
                    if rank() == 1:
                        raise ZeroDivisionError("only here")

            def fails(s):
                return s.naive(Fails())
            """
        )
    )
    (tmp_path / "mine.toml").write_text('method = "mine:fails"\nlabel = "Fails"')
    ended = torchrun("-m", "benchmarks", "run", "mine.toml", "--seeds", "0", *SMALL, cwd=tmp_path, timeout=90)
    assert ended.returncode != 0
    assert "mine seed 0 failed in process 1" in ended.stderr
    assert "ZeroDivisionError: only here" in ended.stderr
    assert not list(tmp_path.rglob("*.json"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "csd", "--jobs", "2"], "--jobs 2 under torchrun"),
        (["run", "csd", "--on", "slurm"], "--on slurm submits one process per run"),
        (["list"], "only `run` uses them"),
        (["tune", "csd"], "only `run` uses them"),
    ],
)
def test_what_several_processes_cannot_do_is_refused(monkeypatch, capsys, words, message):
    for name in ("RANK", "LOCAL_RANK", "MASTER_PORT"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    # Its forks would keep this environment, whoever asks for them later.
    monkeypatch.setattr("multiprocessing.forkserver.ensure_running", lambda: pytest.fail("worker processes"))
    assert cli.main(words) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("method", ["er_ace", "scr", "bic", "mir", "gss"])
def test_methods_that_cannot_are_refused_with_the_reason(monkeypatch, method):
    config = configs.load_row(method, "split_digits").config
    runs.check(config)
    monkeypatch.setattr(runs, "launched", lambda: 2)
    with pytest.raises(ValueError, match=f"{method} cannot be trained by several processes together: .{{20}}"):
        runs.check(config)


@pytest.mark.slow
@pytest.mark.parametrize(("which", "least"), [("short", 45), ("whole", 3)])
def test_runs_of_the_benchmark_end_in_two_processes_as_in_one(tmp_path, which, least):
    """In float64; in float32 the rounding grows: SS-IL ends at 84 to 89 % by a factor of 1 + 1e-7 on all weights."""
    ended = torchrun(ROOT / "tests" / "helpers" / "distributed_methods.py", tmp_path, which, timeout=1800)
    assert ended.returncode == 0, ended.stderr[-4000:]
    zero, one = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert len(zero) >= least
    for run, (alone, together) in zero.items():
        for key, expected in alone.items():
            assert expected.dtype == torch.float64
            found = float((together[key] - expected).abs().max())
            assert found < 1e-9, f"{run}: {key} differs by {found}"
            assert torch.equal(together[key], one[run][1][key]), f"{run}: {key} differs between the processes"
