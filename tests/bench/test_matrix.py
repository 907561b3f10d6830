"""Before a run: what there is to do and how long it may take; where it trains and in which precision."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from helpers.results import made, saved

from avalanche_contrastive.bench import cli
from avalanche_contrastive.bench.config import METHODS, load_row, load_rows, updated
from avalanche_contrastive.bench.files import read_json
from avalanche_contrastive.bench.run import matrix, measure
from avalanche_contrastive.bench.run.build import build, check, stream_of
from avalanche_contrastive.bench.run.execute import execute

SUITE = "split_digits"
TINY = {"epochs": 1, "batch_size": 64, "train_images": 200, "test_images": 100}


def stored(folder, row, seed, seconds, **config):
    """A result of a row as it stands in the suite, but for what is given."""
    whole = updated(load_row(row, SUITE).config, config, where="test").as_dict()
    result = {**made(row, seed, suite=SUITE), "config": whole, "seconds_total": seconds, "fingerprint": {}}
    saved(folder, result)


def dry(*words):
    return cli.main(["run", "--dry-run", *words])


@pytest.fixture
def out(tmp_path, monkeypatch):
    """A folder with two results of two seconds and one of four, and no committed ones."""
    monkeypatch.setattr(matrix, "COMMITTED", tmp_path / "committed")
    stored(tmp_path, "naive", 0, 2.0)
    stored(tmp_path, "naive", 2, 4.0)
    return tmp_path / SUITE


def test_a_dry_run_shows_what_is_done_what_is_not_and_how_long_it_takes(out, capsys):
    before = sorted(out.parent.rglob("*"))
    assert dry("naive", "joint", "--seeds", "0-4,9", "--out", str(out), "--jobs", "1") == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[1] == ["naive", "0,2", "1,3-4,9", "3", str(out)]
    assert lines[2] == ["joint", "-", "0-4,9", "?"]
    last = " ".join(lines[-1])
    assert f"12 runs of {SUITE}, 2 in {out} already; 10 to do: about 0:12, and 6 runs of which no time is known" in last
    assert sorted(out.parent.rglob("*")) == before


def test_other_epochs_are_estimated_in_proportion_and_another_setting_in_the_way_is_named(out, tmp_path, capsys):
    epochs = load_row("naive", SUITE).config.epochs
    words = ("naive", "--set", f"epochs={2 * epochs}", "--seeds", "0-1")
    assert dry(*words, "--out", str(out)) == 2
    shown = capsys.readouterr()
    assert f"{out}, by epochs" in shown.out
    assert "2 to do in 2 processes: about 0:06" in shown.out
    assert f"naive-seed0.json is there, of another setting: epochs {epochs} there, {2 * epochs} here" in shown.err
    assert dry(*words, "--out", str(out), "--again") == 0


def test_a_run_that_another_call_finishes_meanwhile_is_in_nobodys_way(tmp_path):
    row = load_row("naive", SUITE)
    plan = matrix.Matrix([row], [0], tmp_path / SUITE, at_once=1)
    assert plan.missing == [(row, 0)]
    stored(tmp_path, "naive", 0, 2.0)
    plan.check_replaced()
    stored(tmp_path, "naive", 0, 2.0, epochs=row.config.epochs + 1)
    with pytest.raises(ValueError, match="of another setting: epochs"):
        plan.check_replaced()


EDITED = [
    {"config": {"method": "naive", "epochs": "x"}, "seconds_total": 5.0},
    {"config": {"method": "naive", "epochs": 0}, "seconds_total": 5.0},
    {"config": {"method": "naive", "epochs": [3]}, "seconds_total": 5.0},
    {"config": {"method": "naive"}, "seconds_total": float("inf")},
    {"config": {"method": "naive"}, "seconds_total": -5.0},
    {"config": {"method": "naive"}, "seconds_total": "5"},
    {"config": {"method": "naive"}, "seconds_total": 5.0, "fingerprint": []},
]


@pytest.mark.parametrize("content", EDITED)
def test_a_result_that_was_edited_says_nothing_of_the_time(content, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(matrix, "COMMITTED", tmp_path / "committed")
    (tmp_path / "naive-seed9.json").write_text(json.dumps(content))
    assert dry("naive", "--seeds", "0", "--out", str(tmp_path)) == 0
    assert "1 to do in 2 processes, and nothing was measured" in capsys.readouterr().out


def test_another_network_says_nothing_of_the_time(out, capsys):
    assert dry("naive", "--set", "network=mlp", "--seeds", "1", "--out", str(out)) == 0
    assert "1 to do in 2 processes, and nothing was measured" in capsys.readouterr().out


def test_committed_seconds_are_named_as_such(tmp_path, capsys):
    assert dry("co2l", "--seeds", "0-2", "--out", str(tmp_path)) == 0
    assert f"by the seconds in benchmarks/results/{SUITE} (another machine takes" in capsys.readouterr().out


def test_the_plan_is_said_before_torch_is_imported():
    code = "import sys; from avalanche_contrastive.bench.cli import main; main(['run', '--dry-run'])"
    code += "; print('torch' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.splitlines()[-1] == "False"


def test_a_run_says_the_plan_first_and_then_a_line_per_experience(tmp_path, capsys):
    words = ["--seeds", "0", "--jobs", "1", "--out", str(tmp_path), "--set", "epochs=1", "--set", "batch_size=128"]
    assert cli.main(["run", "naive", *words]) == 0
    lines = capsys.readouterr().err.splitlines()
    result = read_json(tmp_path / "naive-seed0.json")
    assert lines[0].startswith(f"1 run of {SUITE}, 0 in {tmp_path} already; 1 to do: about")
    seen = [f"accuracy {100 * value:.1f} so far" for value in result["seen_accuracy"]]
    expected = [f"naive seed 0 · experience {k}/5 · {seen[k - 1]}" for k in range(1, 5)]
    assert [line.rsplit(" · ", 2)[0] for line in lines[1:5]] == expected
    assert lines[5].startswith("[1/1] naive seed 0 · accuracy")


# ---- where, and in which precision


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cuda", "--device cuda: torch finds no GPU here"),
        ("cuda:1", "--device cuda:1: torch finds no GPU here"),
        ("mps", "--device mps: torch finds no GPU of Apple here"),
    ],
)
def test_a_device_that_is_not_there_is_named(name, message, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert cli.main(["run", "naive", "--device", name, "--out", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err


def test_the_gpu_is_chosen_by_its_number(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [measure.device_of(name) for name in ("cuda", "cuda:1", "auto", "cpu")] == [
        torch.device(name) for name in ("cuda", "cuda:1", "cuda", "cpu")
    ]
    with pytest.raises(ValueError, match="torch finds 2 GPUs here, the first is cuda:0"):
        measure.device_of("cuda:2")


@pytest.mark.parametrize("given", ["gpu", "cuda:", "cuda:x", "cpu:1", ""])
def test_a_device_of_another_form_is_refused(given, capsys):
    with pytest.raises(SystemExit):
        cli.main(["run", "--device", given])
    assert "expected cpu, cuda, cuda:1" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["co2l", "ssil", "csd", "derpp", "slda"])
def test_in_bfloat16_a_run_computes_in_it_and_learns_as_much(name):
    config = updated(load_row(name, SUITE).config, {**TINY, "epochs": 8}, where="test")
    plain, half = (execute(updated(config, {"precision": p}, where="test"), 0) for p in ("fp32", "bf16"))
    assert half["config"]["precision"] == "bf16"
    assert half["accuracy_matrix"] != plain["accuracy_matrix"] or half["recall_matrix"] != plain["recall_matrix"]
    assert half["learning_accuracy"] == pytest.approx(plain["learning_accuracy"], abs=0.15)
    assert not torch.is_autocast_enabled("cpu")


def test_gradients_are_taken_outside_of_the_autocast_and_weights_stay_in_float32(tmp_path, monkeypatch):
    (tmp_path / "mine_seen.py").write_text(
        "import torch\n"
        "from avalanche.training.plugins import SupervisedPlugin\n"
        "seen = []\n"
        "class Look(SupervisedPlugin):\n"
        "    def after_forward(self, strategy, **kwargs):\n"
        "        out, weight = strategy.mb_output, next(strategy.model.parameters())\n"
        "        seen.append((out.dtype, weight.dtype, torch.is_autocast_enabled('cpu')))\n"
        "        out.register_hook(lambda g: seen.append((g.dtype, torch.is_autocast_enabled('cpu'))))\n"
        "def build(s):\n"
        "    return s.naive(Look())\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import mine_seen

    base = updated(load_row("naive", SUITE).config, {**TINY, "precision": "bf16"}, where="test")
    execute(replace(base, method="mine_seen:build"), 0)
    assert set(mine_seen.seen) == {(torch.bfloat16, torch.float32, True), (torch.bfloat16, False)}


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.fp32_only])
def test_a_method_that_cannot_have_it_says_why(name):
    config = updated(load_row(name, SUITE).config, {"precision": "bf16"}, where="test")
    with pytest.raises(ValueError, match=rf"{name} cannot be trained in bf16: Avalanche's code copies"):
        check(config)


def test_a_device_without_bfloat16_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    monkeypatch.setattr(measure, "describe_device", lambda device: "cuda (GTX 1080)")
    with pytest.raises(ValueError, match=r"--precision bf16: cuda \(GTX 1080\) does not compute in bfloat16"):
        measure.autocast("bf16", torch.device("cuda"))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if not method.fp32_only])
def test_every_other_method_trains_in_it(name):
    rows = {row.config.method: row for row in load_rows(SUITE)}
    if name in rows:
        result = execute(updated(rows[name].config, {**TINY, "precision": "bf16"}, where="test"), 0)
        assert 0 <= result["final_accuracy"] <= 1


def test_channels_last_is_the_same_up_to_rounding():
    config = updated(load_row("co2l", SUITE).config, {**TINY, "network": "small_cnn"}, where="test")
    plain, last = (execute(replace(config, channels_last=value), 0) for value in (False, True))
    assert last["config"]["channels_last"] is True
    assert last["accuracy_matrix"][-1] == pytest.approx(plain["accuracy_matrix"][-1], abs=0.05)


def test_channels_last_reaches_every_filter():
    config = updated(load_row("co2l", SUITE).config, {**TINY, "network": "small_cnn"}, where="test")
    stream = stream_of(config, 0)
    strategy = build(replace(config, channels_last=True), stream, torch.device("cpu")).strategy
    strategy.train(stream.benchmark.train_stream[0])
    models = [strategy.model, strategy.plugins[0].teacher]
    filters = [p for model in models for p in model.parameters() if p.dim() == 4 and min(p.shape[1:]) > 1]
    assert filters
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in filters)
