"""Metrics that are logged during a run: the same figures, and one history however often the run was killed."""

import csv

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from avalanche_contrastive.bench import cli
from avalanche_contrastive.bench.config import load_row, updated
from avalanche_contrastive.bench.run import execute as runs
from avalanche_contrastive.bench.run import logs as logging
from avalanche_contrastive.bench.run.logs import Logs

TINY = {"epochs": 2, "batch_size": 64, "train_images": 200, "test_images": 100}
FINAL = "Top1_Acc_Exp/eval_phase/test_stream/Task000/Exp000"


class StopError(Exception):
    """The process was killed."""


def tiny(name):
    return updated(load_row(name, "split_digits").config, TINY, where="test")


def table(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def scalars(folder, name):
    events = EventAccumulator(str(folder))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


@pytest.fixture
def no_network(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")


@pytest.mark.parametrize("name", ["ssil", "joint"])
def test_what_is_logged_is_what_the_run_returns_and_changes_nothing(name, tmp_path, no_network):
    result = runs.execute(tiny(name), 0, logs=Logs(("csv", "tensorboard"), tmp_path))
    plain = runs.execute(tiny(name), 0)
    assert result["accuracy_matrix"] == plain["accuracy_matrix"]
    assert result["recall_matrix"] == plain["recall_matrix"]
    found = table(tmp_path / "eval_results.csv")
    matrix = result["accuracy_matrix"]
    assert [float(row["eval_accuracy"]) for row in found] == pytest.approx(
        [x for line in matrix for x in line], abs=1e-4
    )
    assert all(float(row["training_loss"]) > 0 for row in table(tmp_path / "training_results.csv"))
    assert [value for _, value in scalars(tmp_path, FINAL)] == pytest.approx([row[0] for row in matrix], abs=1e-6)


def test_a_run_that_goes_on_goes_on_with_its_logs(tmp_path):
    whole = Logs(("csv", "tensorboard"), tmp_path / "whole")
    halves = Logs(("csv", "tensorboard"), tmp_path / "halves")
    halves.folder.mkdir()
    (halves.folder / "of an earlier run").touch()

    def stop(share, words, milestone=""):
        if words == "experience 3/5":
            raise StopError

    runs.execute(tiny("ssil"), 0, logs=whole)
    with pytest.raises(StopError):
        runs.execute(tiny("ssil"), 0, report=stop, checkpoint=tmp_path / "run.pt", logs=halves)
    assert len(table(halves.folder / "training_results.csv")) == 6  # the third experience's two epochs are there
    told = []
    resumed = {"checkpoint": tmp_path / "run.pt", "logs": halves, "report": lambda *words: told.append(words)}
    runs.execute(tiny("ssil"), 0, **resumed)
    assert told[0][1].startswith("experience 3/5")
    for name in ("training_results.csv", "eval_results.csv"):
        assert (halves.folder / name).read_text() == (whole.folder / name).read_text()
    for name in (FINAL, "Top1_Acc_Epoch/train_phase/train_stream/Task000"):
        assert scalars(halves.folder, name) == scalars(whole.folder, name)
    assert not (halves.folder / "of an earlier run").exists()


class Recorded:
    """Stands for a run of W&B, which keeps what it is given in a file of its own form."""

    def __init__(self, **given):
        self.given, self.rows, self.ended = given, [], False

    def define_metric(self, name, step_metric):
        self.axis = (name, step_metric)

    def log(self, row):
        self.rows.append(row)

    def finish(self):
        self.ended = True


def test_weights_and_biases_gets_numbers_at_their_iteration_and_one_run_for_both_halves(tmp_path, monkeypatch):
    import wandb

    opened = []
    monkeypatch.setattr(wandb, "init", lambda **given: opened.append(Recorded(**given)) or opened[-1])
    logs = Logs(("wandb",), tmp_path / "ssil-seed0")

    def stop(share, words, milestone=""):
        if words.startswith("experience 3/"):
            raise StopError

    with pytest.raises(StopError):
        runs.execute(tiny("ssil"), 0, report=stop, checkpoint=tmp_path / "run.pt", logs=logs)
    told = []
    resumed = {"checkpoint": tmp_path / "run.pt", "logs": logs, "report": lambda *words: told.append(words)}
    result = runs.execute(tiny("ssil"), 0, **resumed)
    assert told[0][1].startswith("experience 3/5")
    first, second = opened
    assert first.given["id"] == second.given["id"]
    assert (first.given["name"], first.given["group"], first.given["resume"]) == ("ssil-seed0", "split_digits", "allow")
    assert first.ended
    assert second.ended
    assert first.axis == ("*", "iteration")
    accuracies = [row[FINAL] for run in opened for row in run.rows if FINAL in row]
    assert accuracies == pytest.approx([row[0] for row in result["accuracy_matrix"]])
    iterations = [row["iteration"] for row in second.rows]
    assert iterations == sorted(iterations)
    assert second.given["config"]["epochs"] == 2


def test_the_installed_weights_and_biases_takes_a_run_offline(tmp_path, no_network):
    runs.execute(tiny("naive"), 0, logs=Logs(("wandb",), tmp_path / "naive-seed0"))
    (kept,) = (tmp_path / "naive-seed0" / "wandb").glob("offline-run-*/*.wandb")
    assert FINAL.encode() in kept.read_bytes()


def test_logs_lie_beside_the_results(tmp_path, capsys):
    words = ["--seeds", "0", "--jobs", "1", "--out", str(tmp_path), "--log", "csv"]
    assert cli.main(["run", "naive", *words, *(f"--set={key}={value}" for key, value in TINY.items())]) == 0
    assert len(table(tmp_path / "logs" / "naive-seed0" / "eval_results.csv")) == 25


def test_what_is_not_there_is_named_before_anything_runs(tmp_path, monkeypatch, capsys):
    import wandb

    words = ["run", "naive", "--out", str(tmp_path / "out"), "--log"]
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr(wandb, "login", lambda prompt: False)
    assert cli.main([*words, "csv,wandb"]) == 2
    assert "--log wandb: no API key. Give `wandb login` once, or set WANDB_MODE=offline" in capsys.readouterr().err
    monkeypatch.setattr(logging, "find_spec", lambda name: None)
    assert cli.main([*words, "wandb"]) == 2
    assert "--log wandb: wandb is not installed: pip install wandb" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main([*words, "csv,mlflow"])
    assert "expected one or more of csv, tensorboard, wandb with commas, got 'csv,mlflow'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
