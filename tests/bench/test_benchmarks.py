"""The benchmarks through the real command line: runs, tuning, tables and figures, the committed pages."""

import json
import random
import re
import shutil
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.streams import digits

from avalanche_contrastive import registry
from avalanche_contrastive.bench import cli, files, results, selection
from avalanche_contrastive.bench import config as configs
from avalanche_contrastive.bench.methods import baselines
from avalanche_contrastive.bench.options import keys_described, options_described
from avalanche_contrastive.bench.report import folders, pages, plots, stats, tables
from avalanche_contrastive.bench.run import pool
from avalanche_contrastive.bench.run.execute import versions
from avalanche_contrastive.bench.run.plan import plan_of

SUITE = "split_digits"
ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
QUICK = ("--jobs", "1", "--set", "epochs=1", "--set", "batch_size=128")
FIGURES = ("accuracy_curves.png", "recall_curves.png", "accuracy_matrices.png", "cost.png")


@pytest.fixture(scope="module")
def quick_run(tmp_path_factory):
    """Two rows of one epoch through the real command, in a folder that the tests share."""
    out = tmp_path_factory.mktemp("quick")
    assert cli.main(["run", "naive", "joint", "--seeds", "0-1", "--out", str(out), *QUICK]) == 0
    return out


# Statistics, by hand.
R = [[1.0, 0.0, 0.0], [0.5, 0.9, 0.0], [0.6, 0.3, 0.8]]


def test_seen_accuracy_weighs_by_images():
    assert stats.seen_accuracy(R, [10, 30, 60]) == pytest.approx([1.0, (5 + 27) / 40, (6 + 9 + 48) / 100])


def test_joint_training_has_seen_all_in_its_only_step():
    assert stats.seen_accuracy([[1.0, 0.5]], [10, 30]) == pytest.approx([25 / 40])
    assert stats.forgetting([[1.0, 0.5]]) is None


def test_learning_accuracy_is_the_diagonal_after_the_first():
    assert stats.learning_accuracy(R) == pytest.approx((R[1][1] + R[2][2]) / 2)
    assert stats.learning_accuracy([[1.0, 0.5]]) is None


def test_forgetting_is_from_the_best_earlier_accuracy():
    assert stats.forgetting(R) == pytest.approx(((1.0 - 0.6) + (0.9 - 0.3)) / 2)
    later_best = [[0.5, 0.0, 0.0], [0.7, 0.9, 0.0], [0.6, 0.9, 0.8]]
    assert stats.forgetting(later_best) == pytest.approx(0.1 / 2)


def test_mean_and_std():
    assert stats.mean_std([1.0, 2.0, 3.0]) == pytest.approx((2.0, 1.0))
    assert stats.mean_std([4.0]) == (4.0, 0.0)
    assert stats.mean_std([1.0, None]) is None
    assert stats.mean_matrix([[[0.0, 1.0]], [[1.0, 0.0]]]) == [[0.5, 0.5]]


# ---- runs


def test_a_run_writes_all_it_promises(quick_run):
    result = files.read_json(quick_run / "naive-seed1.json")
    assert len(result["accuracy_matrix"]) == len(result["recall_at_1"]) == len(result["seen_accuracy"]) == 5
    assert all(len(row) == 5 for row in result["accuracy_matrix"])
    assert sorted(result["class_order"]) == list(range(10))
    assert result["config"]["epochs"] == 1
    needed = {"python", "torch", "torchvision", "numpy", "scikit-learn", "avalanche-lib", "avalanche-contrastive"}
    assert needed <= set(result["versions"])
    for key in ("row", "seed", "git_commit", "device", "readout", "stream", "seconds_training", "seconds_total"):
        assert result[key]
    for key in ("recall_matrix", "task_accuracy_matrix"):
        assert [len(row) for row in result[key]] == [5] * 5
    assert [len(result["seconds_per_experience"][what]) for what in ("training", "evaluation")] == [5, 5]
    assert len(result["peak_memory_mib"]) == 5
    assert min(result["peak_memory_mib"]) > 50  # Python with torch alone takes more
    assert result["shown"] == {"label": "Naive", "table": "main", "note": "", "base": ""}
    assert result["evaluated_on"] == "test"
    assert {"table.md", *FIGURES} <= {p.name for p in quick_run.iterdir()}
    assert not list(quick_run.glob(".*"))


def test_the_same_command_again_runs_nothing_and_shows_the_same(quick_run, capsys):
    before = {p.name: p.read_bytes() for p in quick_run.glob("*.json")}
    assert cli.main(["run", "naive", "joint", "--seeds", "0-1", "--out", str(quick_run), *QUICK]) == 0
    told = capsys.readouterr()
    assert told.err == f"4 runs of split_digits, 4 in {quick_run} already\n"
    assert "| Naive |" in told.out
    assert str(quick_run) in told.out
    assert before == {p.name: p.read_bytes() for p in quick_run.glob("*.json")}


def test_a_lost_or_broken_result_is_made_again_with_the_same_figures(quick_run, tmp_path):
    shutil.copytree(quick_run, tmp_path / "out")
    path = tmp_path / "out" / "naive-seed0.json"
    whole = files.read_json(path)
    path.write_text(path.read_text()[:100])
    assert cli.main(["run", "naive", "--seeds", "0", "--out", str(tmp_path / "out"), *QUICK]) == 0
    again = files.read_json(path)
    for key in ("accuracy_matrix", "recall_at_1", "class_order", "config"):
        assert again[key] == whole[key]


def test_results_of_another_setting_are_not_written_over(quick_run, tmp_path, capsys):
    shutil.copytree(quick_run, tmp_path / "out")
    before = {p.name: p.read_bytes() for p in (tmp_path / "out").glob("*.json")}
    words = ["run", "naive", "--seeds", "0", "--out", str(tmp_path / "out"), *QUICK, "--set", "lr=0.5"]
    assert cli.main(words) == 2
    assert "naive-seed0.json is there, of another setting: lr 0.01 there, 0.5 here" in capsys.readouterr().err
    assert before == {p.name: p.read_bytes() for p in (tmp_path / "out").glob("*.json")}
    (tmp_path / "out" / "naive-seed1.json").unlink()
    assert cli.main([*words, "--again"]) == 0
    assert files.read_json(tmp_path / "out" / "naive-seed0.json")["config"]["lr"] == 0.5


def test_a_changed_method_or_data_of_ones_own_is_not_the_same_run(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "another_of_mine.py").write_text(MINE)
    (tmp_path / "mine.toml").write_text('method = "another_of_mine:mine"\n')
    row, out = configs.find_row(str(tmp_path / "mine.toml"), SUITE), tmp_path / "out"
    stored = {"config": row.config.as_dict(), "seed": 0, "evaluated_on": "test"}
    files.write_json(files.result_path(out, "mine", 0), {**stored, "fingerprint": results.fingerprint(row.config)})
    assert results.is_done(out, row, 0)
    (tmp_path / "another_of_mine.py").write_text(MINE + "# changed")
    assert not results.is_done(out, row, 0)
    data = replace(row, config=replace(configs.load_row("naive", "own_data").config, data=str(tmp_path / "x.npz")))
    (tmp_path / "x.npz").write_bytes(b"one")
    one = results.fingerprint(data.config)
    (tmp_path / "x.npz").write_bytes(b"two")
    assert results.fingerprint(data.config) != one


def test_a_row_of_ones_own_does_not_take_the_label_of_a_built_in_one(tmp_path, capsys):
    (tmp_path / "co2l.toml").write_text('method = "naive"\nlabel = "My own thing"\n')
    mine = str(tmp_path / "co2l.toml")
    words = ["run", mine, "--seeds", "0", "--out", str(tmp_path / "out"), *QUICK]
    assert cli.main(words) == 0
    told = capsys.readouterr().out
    assert "| My own thing |" in told
    assert "Co2L" not in told
    assert cli.main(["run", mine, "co2l", *words[2:]]) == 2
    assert "two of the rows are called 'co2l'" in capsys.readouterr().err


def test_options_are_set_where_a_row_has_them():
    rows = [configs.load_row(name, SUITE) for name in ("naive", "ssil", "ssil_50")]
    naive, ssil, small = selection.changed(rows, {"options.temperature": 1.0, "epochs": 2}, memory=70)
    assert (ssil.config.options["temperature"], ssil.config.memory, ssil.config.epochs) == (1.0, 70, 2)
    assert (naive.config.memory, naive.config.epochs) == (0, 2)
    assert small.config.memory == 50  # what the row is there to show


def test_a_method_without_an_evaluator_is_refused_at_once(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "a_bare_method.py").write_text(
        "from avalanche.training import Naive\n"
        "def bare(s):\n    m = s.classifier()\n    return Naive(model=m, optimizer=s.optimizer(m.parameters()))\n"
        "def none(s):\n    return None\n"
    )
    for name, message in (("bare", "does not have the benchmark's evaluator"), ("none", "must return an Avalanche")):
        (tmp_path / f"{name}.toml").write_text(f'method = "a_bare_method:{name}"\n')
        assert cli.main(["run", str(tmp_path / f"{name}.toml"), "--out", str(tmp_path / "out")]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda result: result.pop("versions"), "not a whole result of a run, it lacks versions"),
        (lambda result: result.update(config="x"), "expected the result of a run"),
        (lambda result: result["config"].update(newer=1), "its config has newer, unknown here"),
        (lambda result: result.update(seed=7), "holds row 'naive', seed 7. Was the file renamed or copied?"),
    ],
)
def test_a_damaged_result_is_named(quick_run, tmp_path, change, message):
    shutil.copytree(quick_run, tmp_path / "out")
    path = tmp_path / "out" / "naive-seed0.json"
    result = files.read_json(path)
    change(result)
    files.write_json(path, result)
    with pytest.raises(ValueError, match=re.escape(message)):
        results.load_results(tmp_path / "out")


def test_a_failing_run_is_reported_and_stops_no_other(tmp_path, capsys, monkeypatch):
    def broken(setting):
        raise RuntimeError("this builder is broken")

    def breaks_in_training(setting):
        strategy = baselines.joint(setting).strategy
        strategy.train = lambda *words, **named: broken(setting)
        return strategy

    monkeypatch.setattr(baselines, "naive", breaks_in_training)
    assert cli.main(["run", "naive", "joint", "--seeds", "0", "--out", str(tmp_path), *QUICK]) == 1
    told = capsys.readouterr()
    assert "this builder is broken" in told.err
    assert "| Joint" in told.out


@pytest.mark.parametrize("name", [row.name for row in configs.load_rows(SUITE) if row.table != "trial"])
def test_every_row_trains(name):
    from avalanche_contrastive.bench.run.execute import execute

    # Two images to a class and step: what is trained is no matter here, and MER takes a step per image.
    changes = {"epochs": 1, "batch_size": 64, "train_images": 200, "test_images": 200}
    config = configs.updated(configs.load_row(name, SUITE).config, changes, where="test")
    # Streaming LDA takes no steps, so that a learning rate would be set in vain, and Avalanche warns of it.
    config = replace(config, augment=True, lr_later=1.0 if name == "slda" else 0.5)
    result = execute(config, 1000, validation=True)
    assert result["evaluated_on"] == "validation"
    assert 0.05 <= result["final_accuracy"] <= result["final_task_accuracy"] <= 1
    assert 0.2 <= result["recall_at_1"][-1] <= 1


def test_a_schedule_and_epochs_by_experience_reach_the_strategy():
    import torch

    from avalanche_contrastive.bench.run.build import build, check, stream_of

    changes = {"epochs": 2, "epochs_later": 1, "schedule": "steps", "milestones": [1], "lr_by_experience": True}
    row = configs.load_row("naive", SUITE).config
    with pytest.raises(ValueError, match="milestones must lie before the last epoch"):
        check(configs.updated(row, changes, where="test"))
    changes |= {"epochs_later": 2, "optimizer": "adam", "lr": 0.1}
    rates = _rates(replace(configs.updated(row, changes, where="test"), train_images=100))
    assert rates == pytest.approx([0.1, 0.01, 0.05, 0.005, 0.1 / 3, 0.01 / 3])
    adam = build(configs.updated(row, changes, where="test"), stream_of(row, 0), torch.device("cpu")).strategy.optimizer
    assert isinstance(adam, torch.optim.Adam)


def _rates(config):
    """The learning rate of the first step of each epoch of three experiences."""
    import torch
    from avalanche.training.plugins import SupervisedPlugin

    from avalanche_contrastive.bench.run.build import build, stream_of

    rates = []

    class Watch(SupervisedPlugin):
        def before_update(self, strategy, **kwargs):
            if strategy.clock.train_epoch_iterations == 0:
                rates.append(strategy.optimizer.param_groups[0]["lr"])

    stream = stream_of(config, 0)
    strategy = build(config, stream, torch.device("cpu")).strategy
    strategy.plugins.append(Watch())
    for experience in list(stream.benchmark.train_stream)[:3]:
        strategy.train(experience)
    return rates


@pytest.mark.parametrize("name", registry.METHODS)
def test_progress_is_reported_and_changes_nothing(name):
    from avalanche_contrastive.bench.run.execute import execute

    config = replace(configs.load_row(name, SUITE).config, epochs=1, train_images=100, test_images=100)
    told = []
    with_words = execute(config, 0, report=lambda share, words, milestone="": told.append((share, words)))
    assert with_words["accuracy_matrix"] == execute(config, 0)["accuracy_matrix"]
    assert told[-1] == (1.0, "experience 5/5")
    assert [share for share, _ in told] == sorted(share for share, _ in told)


def test_repaired_scr_has_the_means_of_its_present_encoder():
    import torch
    from torch import nn

    from avalanche_contrastive.bench.run.build import build, stream_of

    config = replace(configs.load_row("scr_repaired", SUITE).config, epochs=1, batch_size=128)
    stream = stream_of(config, 0)
    strategy = build(config, stream, torch.device("cpu")).strategy
    for experience in list(stream.benchmark.train_stream)[:2]:
        strategy.train(experience)
    strategy.eval(stream.benchmark.test_stream[:2])
    model = strategy.model.eval()
    for label, group in strategy.replay_plugin.storage_policy.buffer_groups.items():
        x = torch.stack([sample[0] for sample in group.buffer.eval()])
        with torch.no_grad():
            mean = nn.functional.normalize(model.feature_extractor(x), dim=1).mean(0)
        torch.testing.assert_close(model.eval_classifier.class_means_dict[label], mean / mean.norm())


# ---- tables and figures


def test_table_writes_the_page_and_fills_the_markers(quick_run, tmp_path, capsys):
    readme, page = tmp_path / "README.md", tmp_path / "RESULTS.md"
    readme.write_text(
        f"before\n<!-- table:{SUITE} -->\nTHE OLD TABLE\n<!-- /table -->\nbetween\n"
        f"<!-- table:{SUITE} joint naive -->\n<!-- /table -->\nafter\n"
    )
    assert cli.main(["table", "--results", str(quick_run), "--write", str(page), "--into", str(readme)]) == 0
    text = readme.read_text()
    assert text.startswith("before\n")
    assert text.endswith("<!-- /table -->\nafter\n")
    assert "THE OLD TABLE" not in text
    everything = results.load_all(quick_run)
    whole, chosen = text.split("between")
    assert str(tables.main_table(everything[SUITE])).strip() in whole
    lines = [line for line in chosen.splitlines() if line.startswith("| ")]
    assert [line.split()[1] for line in lines[1:]] == ["Joint", "Naive"]
    assert page.read_text() == pages.results_page(everything)
    assert pages.filled(text, everything, where="") == text


@pytest.mark.parametrize(
    ("text", "message"),
    [("no markers", "expected the marker lines"), (f"<!-- table:{SUITE} nobody --><!-- /table -->", "asks for nobody")],
)
def test_a_page_that_cannot_be_filled_is_left_alone(quick_run, tmp_path, capsys, text, message):
    readme = tmp_path / "README.md"
    readme.write_text(text)
    assert cli.main(["table", "--results", str(quick_run), "--into", str(readme)]) == 2
    assert message in capsys.readouterr().err
    assert readme.read_text() == text


def test_figures_are_drawn_from_the_json(quick_run, tmp_path):
    assert cli.main(["plot", "--results", str(quick_run), "--out", str(tmp_path / "figures")]) == 0
    for name in FIGURES:
        assert (tmp_path / "figures" / name).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("table", configs.TABLES)
def test_figures_of_one_table_show_its_rows(table, committed):
    rows = {row.name: row for row in configs.load_rows(SUITE) if row.table == table}
    shown = plots.shown_rows({name: of_row for name, of_row in committed[SUITE].items() if name in rows})
    assert {row.name for row in shown} == set(rows)


def test_a_report_is_written_from_a_folder_of_suites(quick_run, tmp_path, capsys):
    shutil.copytree(quick_run, tmp_path / "all" / SUITE)
    page, markdown = tmp_path / "a folder" / "bericht für alle.html", tmp_path / "RESULTS.md"
    words = ["report", "--results", str(tmp_path / "all"), "--out", str(page), "--write", str(markdown)]
    assert cli.main(words) == 0
    assert str(page) in capsys.readouterr().out
    assert page.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert markdown.read_text(encoding="utf-8") == pages.results_page(results.load_all(tmp_path / "all"))


def test_a_folder_without_results_is_refused(tmp_path, capsys):
    assert cli.main(["table", "--results", str(tmp_path)]) == 2
    assert "found none" in capsys.readouterr().err


def test_seeds_of_one_row_under_two_configs_are_refused(quick_run, tmp_path):
    shutil.copytree(quick_run, tmp_path / "out")
    path = tmp_path / "out" / "naive-seed0.json"
    changed = files.read_json(path)
    changed["config"]["lr"] = 9.0
    files.write_json(path, changed)
    with pytest.raises(ValueError, match="seeds of naive were run with different configs"):
        results.load_results(tmp_path / "out")


@pytest.fixture(scope="module")
def committed():
    """All committed results, by suite."""
    return results.load_all(RESULTS)


def test_committed_figures_follow_from_their_matrices_and_rows(committed):
    from avalanche_contrastive.bench.run.execute import summary

    for suite, grouped in committed.items():
        for result in (result for of_row in grouped.values() for result in of_row):
            where = (suite, result["row"], result["seed"])
            row = configs.load_row(result["row"], suite)
            assert result["evaluated_on"] == ("validation" if row.on_validation else "test"), where
            assert re.fullmatch(r"[0-9a-f]{40}", result["git_commit"]), f"{where} is of code that is not committed"
            assert configs.same_config(result["config"], row.config), f"{where} is stale"
            found = dict(result)
            found["recall_at_1"] = None if "angles" in result else [[value] for value in result["recall_at_1"]]
            for key, value in summary(found, result["test_images"]).items():
                assert result[key] == value, (where, key)


SEEDS = {
    "split_digits": 5,
    "cl2r": 5,
    "cl2r_2": 5,
    "cl2r_10": 5,
    "cl2r_mnist": 5,
    "cl2r_digits": 5,
    "rotated_mnist": 3,
    "rotated_mnist_full": 1,
    "split_cifar10": 3,
    "split_cifar100_frozen": 5,
    "split_cifar100_frozen_20": 5,
    "split_cifar100_frozen_base50": 5,
    "split_cifar100_frozen_natural": 5,
    "split_fmnist": 3,
    "split_mnist": 3,
}


def seeds_of(suite, row):
    """How many seeds the results of a row must have; 0: it has not been run."""
    if row.on_validation:
        return 3
    if suite == "rotated_mnist_full":  # an hour each: those that the paper compares
        return 1 if row.config.method in ("co2l", "replay", "derpp") else 0
    if suite.startswith("split_cifar100_frozen_"):
        return SEEDS[suite] if row.table == "main" else 0
    return SEEDS[suite]


def test_every_row_of_a_committed_suite_has_all_its_seeds(committed):
    assert set(committed) == set(SEEDS)
    for suite, grouped in committed.items():
        wanted = {row.name: list(range(seeds_of(suite, row))) for row in configs.load_rows(suite)}
        found = {name: [result["seed"] for result in of_row] for name, of_row in grouped.items()}
        assert found == {name: seeds for name, seeds in wanted.items() if seeds}, suite


def test_committed_pages_follow_from_the_committed_json(committed):
    assert (ROOT / "benchmarks" / "RESULTS.md").read_text(encoding="utf-8") == pages.results_page(committed)
    filled = [ROOT / "README.md", *sorted((ROOT / "benchmarks" / "methods").glob("*.md"))]
    assert len(filled) == 4
    for page in filled:
        text = page.read_text(encoding="utf-8")
        assert pages.filled(text, committed, where=str(page)) == text


def test_what_the_guide_says_of_bfloat16():
    """docs/guides/speed.md: with five seeds no difference from float32 is shown, for any of the three methods."""
    here = ROOT / "benchmarks"
    table = folders.compare_places(here / "precision" / "split_digits", here / "results" / "split_digits")
    place = {name: index for index, name in enumerate(table.columns)}
    for row, figure in (("co2l", "final accuracy"), ("ssil", "final accuracy"), ("csd", "Recall@1")):
        (line,) = [line for line in table.rows if (line[0], line[1]) == (row, figure)]
        low, high = map(float, line[place["95 % interval"]].strip("[]").split(", "))
        assert low <= 0 <= high
        assert line[place["higher on"]].endswith(" of 5")
    assert table.caption.count("the first was run with precision bf16") == 3


# ---- tuning


def test_tuning_goes_on_where_it_stopped_and_writes_the_winner(tmp_path, monkeypatch):
    shutil.copytree(configs.CONFIGS, tmp_path / "configs")
    monkeypatch.setattr(configs, "CONFIGS", tmp_path / "configs")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs" / SUITE / "_suite.toml").write_text("[tune.settings]\ntrain_images = 300\n")
    plan, done = plan_of(SUITE), []

    def attempt(work, job):
        assert job.validation
        assert job.seed in plan.seeds
        assert job.config.train_images == 300
        assert job.root == "/somewhere"
        done.append(job)
        if len(done) == 5:
            raise KeyboardInterrupt
        score = 0.9 if job.config.lr == 0.1 else 0.1
        figures = {"final_accuracy": score, "average_accuracy": score, "forgetting": 0.0, "recall_at_1": [score]}
        return {**figures, "seed": job.seed, "seconds_total": 1.0, "versions": versions()}

    monkeypatch.setattr(pool, "_attempt", attempt)  # what a run takes minutes for
    command = ["tune", "naive", "--jobs", "1", "--root", "/somewhere"]
    assert cli.main(command) == 130
    assert cli.main(command) == 0
    assert len(done) == 2 * plan.candidates + 1
    folder = tmp_path / "out" / "tuning" / SUITE
    stored = files.read_json(folder / "naive.json")
    assert stored["chosen"]["lr"] == 0.1
    assert [len(candidate["runs"]) for candidate in stored["candidates"]] == [2] * plan.candidates
    chosen = configs.find_row(str(folder / "naive.toml"), SUITE)
    assert chosen.config.lr == 0.1
    assert chosen.config.train_images == 0
    cheapest = min(c["config"]["epochs"] for c in stored["candidates"] if c["config"]["lr"] == 0.1)
    assert chosen.config.epochs == cheapest
    assert cli.main(command) == 0
    assert len(done) == 2 * plan.candidates + 1


# ---- the command line


def test_seeds_are_ranges_or_lists():
    assert cli.parse_seeds("0-2") == [0, 1, 2]
    assert cli.parse_seeds("3, 1,1") == [3, 1]
    for wrong in ("2-0", "a", "", "1-"):
        with pytest.raises(Exception, match="expected seeds"):
            cli.parse_seeds(wrong)


def test_list_names_every_row_suite_and_what_is_left_out(capsys):
    assert cli.main(["list"]) == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert listed == [row.name for row in configs.load_rows(SUITE)]
    assert cli.main(["list", "--suites"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == configs.suites()
    assert cli.main(["list", "--unavailable"]) == 0
    assert "PackNet" in capsys.readouterr().out


MINE = """
from avalanche.training.plugins import EWCPlugin

def mine(s, *, strength=1.0):
    "A method of my own."
    return s.naive(EWCPlugin(ewc_lambda=strength))
"""


def test_a_method_of_ones_own_is_one_toml_and_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "a_method_of_mine.py").write_text(MINE)
    config = tmp_path / "mine.toml"
    config.write_text('method = "a_method_of_mine:mine"\nlabel = "Mine"\n[options]\nstrength = 2.0\n')
    words = ["run", str(config), "naive", "--seeds", "0", "--out", str(tmp_path / "out"), *QUICK]
    assert cli.main(words) == 0
    told = capsys.readouterr().out
    assert "| Mine |" in told
    assert "| Naive |" in told
    result = files.read_json(tmp_path / "out" / "mine-seed0.json")
    assert result["config"]["options"] == {"strength": 2.0}
    config.write_text('method = "a_method_of_mine:mine"\n[options]\nstrengh = 2.0\n')
    assert cli.main(words) == 2
    assert "unknown key 'strengh'; did you mean 'strength'" in capsys.readouterr().err


def test_data_of_ones_own_is_one_path(tmp_path, capsys):
    (train_x, train_y), (test_x, test_y) = digits(20)
    data = tmp_path / "meine Bilder ü.npz"
    images = {"train_images": train_x, "test_images": test_x}
    arrays = {key: (x[:, 0].repeat_interleave(2, 1).repeat_interleave(2, 2) * 255).byte() for key, x in images.items()}
    np.savez(data, train_labels=train_y, test_labels=test_y, **arrays)
    out = tmp_path / "out"
    assert cli.main(["run", "naive", "--data", str(data), "--seeds", "0", "--out", str(out), *QUICK]) == 0
    result = files.read_json(out / "naive-seed0.json")
    assert result["config"]["data"] == str(data)
    assert result["config"]["suite"] == "own_data"
    assert sum(result["test_images"]) == 200
    assert "| Naive |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "replya"], "no row named 'replya' in split_digits; did you mean 'replay'"),
        (["run", "naive", "--set", "epoch=1"], "unknown key 'epoch'; did you mean 'epochs'"),
        (["run", "naive", "--set", "epochs"], "expected KEY=VALUE, got 'epochs'"),
        (["run", "naive", "--suite", "split_mnst"], "no suite named 'split_mnst'; did you mean 'split_mnist'"),
        (["run", "naive", "--data", "/nowhere/x.npz"], "/nowhere/x.npz"),
        (["run", "icarl", "--set", "scenario=domain"], "icarl does not run on domain-incremental streams"),
        (["run", "naive", "--set", "network=vgg"], "unknown network 'vgg'"),
        (["run", "naive", "--set", "experiences=3"], "Possible: 1, 2, 5, 10"),
        (["run", "naive", "--set", "experiences=11"], "11 experiences need at least as many classes; the data have 10"),
        (["run", "naive", "--set", "data=x.npz"], "stream 'own' and `data` go together"),
        (["run", "naive", "--set", "stream=own"], "stream 'own' and `data` go together"),
        (["run", "naive", "--set", "milestones=[3]"], "milestones belong to schedule 'steps'"),
        (
            ["run", "naive", "--set", "augment=false", "--set", "augmentation=simclr"],
            "augmentation 'simclr' needs augment = true",
        ),
        (["run", "naive", "--set", "warmup_epochs=30", "--set", "schedule=cosine"], "warmup_epochs must be fewer"),
        (["run", "co2l", "--set", "options.readout=foo"], "readout must be one of"),
        (["run", "naive", "--set", "options.temperature=1"], "no row here has 'options.temperature'"),
        (["run", "naive", "--set", "network=mnist_cnn"], "takes images of at least 16 x 16 pixels"),
        (["run", "naive", "--seeds", "4294967296"], "must be below 2**32"),
        (["run", "naive", "--partition", "x"], "--partition is for --on slurm"),
        (["run", "tests"], "no row named 'tests'"),
        (["run", "nowhere.toml"], "nowhere.toml: no such config file"),
        (["report", "--results", "/nowhere"], "/nowhere: expected <row>-seed<n>.json files"),
    ],
)
def test_a_wrong_command_says_what_is_wrong(words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(words) == 2
    assert message in capsys.readouterr().err


def test_a_gpu_that_is_not_there_is_said_at_once(monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert cli.main(["run", "naive", "--device", "cuda"]) == 2
    assert "torch finds no GPU here" in capsys.readouterr().err


def test_list_shows_streams_networks_and_a_row_whole(capsys):
    assert cli.main(["list", "--streams"]) == 0
    told = capsys.readouterr().out
    assert "rotated_mnist" in told
    assert "resnet32" in told
    assert cli.main(["list", "co2l_cifar10_200", "--suite", "paper"]) == 0
    whole = tomllib.loads(capsys.readouterr().out)
    assert (whole["epochs"], whole["options"]["temperature"]) == (500, 0.5)


@pytest.mark.parametrize("name", configs.METHODS)
def test_every_option_is_described_and_its_origin_is_known(name):
    method = configs.METHODS[name]
    described = options_described(method)
    assert list(described) == list(method.options)
    for sentence in described.values():
        assert re.fullmatch(r".{3,} \[(paper|code|paper, code|ours|Avalanche)\]", sentence)
    assert not [key for key in configs.KEYS if key not in keys_described()]


def test_descriptions_are_the_first_sentences_of_the_docstrings(tmp_path, monkeypatch, capsys):
    co2l = options_described(configs.METHODS["co2l"])
    assert co2l["temperature"] == "of the contrast (the paper's 0.5; R-MNIST 0.1) [paper]"
    assert co2l["readout_augment"].endswith("anew in each of its epochs, as the authors' code does [code]")
    assert options_described(configs.METHODS["er_ace"])["batch_size_mem"].endswith("[Avalanche]")
    (tmp_path / "mine_told.py").write_text(
        'def build(s, *, depth=2, other=1):\n    """Mine.\n\n    Args:\n        depth: of e.g. a tree. Not of the sea.'
        '\n    """\n'
    )
    (tmp_path / "mine.toml").write_text('method = "mine_told:build"\n')
    monkeypatch.chdir(tmp_path)
    assert cli.main(["list", "mine.toml"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-4:] == ["# of e.g. a tree [yours]", "depth = 2", "# not described", "other = 1"]


@pytest.mark.parametrize("command", ["list", "run", "tune", "table", "plot", "report"])
def test_help(command, capsys):
    with pytest.raises(SystemExit) as left:
        cli.main([command, "--help"])
    assert left.value.code == 0
    assert len(capsys.readouterr().out) > 100


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    files.write_json(path, {"x": [[1, 2], [3, 4]], "n": None, "empty": [], "none": {}})
    before = path.read_bytes()
    assert json.loads(before) == {"x": [[1, 2], [3, 4]], "n": None, "empty": [], "none": {}}

    def full(*words):
        raise OSError("no space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        files.write_json(path, {"x": random.random()})
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
