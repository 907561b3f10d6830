"""The benchmarks: configs, statistics, runs through the real command line, tables, figures, the committed pages."""

import json
import random
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import baselines, cli, configs, files, pool, results, stats, tables, tuning
from benchmarks.catalog import METHODS

SUITE = "split_digits"
ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / SUITE
QUICK = ("--jobs", "1", "--set", "epochs=1", "--set", "batch_size=128")


@pytest.fixture(scope="module")
def quick_run(tmp_path_factory):
    """Two rows of one epoch through the real command, in a folder that the tests share."""
    out = tmp_path_factory.mktemp("quick")
    assert cli.main(["run", "naive", "joint", "--seeds", "0-1", "--out", str(out), *QUICK]) == 0
    return out


# ---- configs


@pytest.mark.parametrize("name", configs.row_names(SUITE))
def test_every_config_is_read_complete_and_written_back_the_same(name, tmp_path, monkeypatch):
    row = configs.load_row(name, SUITE)
    assert set(row.config.options) == set(row.method.options)
    assert row.label != row.name
    assert (row.config.memory > 0) == row.method.has_memory
    shutil.copytree(configs.CONFIGS, tmp_path / "configs")
    monkeypatch.setattr(configs, "CONFIGS", tmp_path / "configs")
    configs.write_row(row, "a comment\nof two lines")
    assert configs.load_row(name, SUITE) == replace(row, base="")


def test_all_memories_are_equal():
    rows = [configs.load_row(name, SUITE) for name in configs.row_names(SUITE)]
    assert {row.config.memory for row in rows if row.table != "trial"} - {0} == {100}


def test_only_trials_look_at_validation_images():
    rows = [configs.load_row(name, SUITE) for name in configs.row_names(SUITE)]
    assert all(row.on_validation == row.name.startswith("trial_") for row in rows)
    assert any(row.on_validation for row in rows)


def test_an_ablation_differs_from_its_base_in_one_option():
    for row in (configs.load_row(name, SUITE) for name in configs.row_names(SUITE)):
        if row.table == "ablation":
            ours, base = row.config, configs.load_row(row.base, SUITE).config
            assert replace(ours, options=base.options) == base
            assert sum(ours.options[key] != base.options[key] for key in base.options) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('method = "naive"\nepoch = 3', "unknown key 'epoch'; did you mean 'epochs'"),
        ('method = "replay"\n[options]\nbatch_mem = 3', "unknown key 'batch_mem'; did you mean 'batch_size_mem'"),
        ('method = "repla"', "got method 'repla'; did you mean 'replay'"),
        ('base = "co2"', "no row named 'co2' in split_digits; did you mean 'co2l'"),
        ('method = "naive"\nlr = "high"', "lr must be a float, got 'high'"),
        ('method = "naive"\nepochs = 2.5', "epochs must be a int, got 2.5"),
        ('method = "naive"\nepochs = -1', "epochs must not be negative, got -1"),
        ('method = "naive"\nmemory = 100', "unknown key 'memory'"),
        ('method = "scr"\naugment = false', "unknown key 'augment'"),
        ('method = "naive"\ntable = "third"', "table must be one of"),
        ("method = naive", "not valid TOML"),
    ],
)
def test_a_wrong_config_is_refused_by_name(text, message, tmp_path, monkeypatch):
    shutil.copytree(configs.CONFIGS, tmp_path / "configs")
    monkeypatch.setattr(configs, "CONFIGS", tmp_path / "configs")
    (tmp_path / "configs" / SUITE / "mine.toml").write_text(text)
    with pytest.raises(ValueError, match=re.escape(message)):
        configs.load_row("mine", SUITE)


def test_an_unknown_suite_is_refused():
    with pytest.raises(ValueError, match="no suite named 'split_digit'; did you mean 'split_digits'"):
        configs.row_names("split_digit")


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


def test_validation_images_are_training_images():
    from benchmarks.streams import SUITES, make_stream

    suite = SUITES[SUITE]

    def images(stream, part):
        return {x.numpy().tobytes() for e in getattr(stream.benchmark, part) for x, *_ in e.dataset}

    full, held = make_stream(suite, 3), make_stream(suite, 3, validation=True)
    assert images(held, "test_stream") <= images(full, "train_stream")
    assert not images(held, "test_stream") & images(full, "test_stream")
    assert not images(held, "train_stream") & images(full, "test_stream")
    assert sum(full.counts) == 360
    assert full.class_order == held.class_order != make_stream(suite, 4).class_order


# ---- runs


def test_a_run_writes_all_it_promises(quick_run):
    result = files.read_json(quick_run / "naive-seed1.json")
    assert len(result["accuracy_matrix"]) == len(result["recall_at_1"]) == len(result["seen_accuracy"]) == 5
    assert all(len(row) == 5 for row in result["accuracy_matrix"])
    assert sorted(result["class_order"]) == list(range(10))
    assert result["config"]["epochs"] == 1
    assert set(result["versions"]) == {"python", "torch", "avalanche-lib", "avalanche-contrastive"}
    for key in ("row", "seed", "git_commit", "device", "readout", "seconds_training", "seconds_total"):
        assert result[key] is not None
    assert result["evaluated_on"] == "test"
    assert {"table.md", "accuracy_curves.png", "accuracy_matrices.png"} <= {p.name for p in quick_run.iterdir()}
    assert not list(quick_run.glob(".*"))


def test_the_same_command_again_runs_nothing_and_shows_the_same(quick_run, capsys):
    before = {p.name: p.read_bytes() for p in quick_run.glob("*.json")}
    assert cli.main(["run", "naive", "joint", "--seeds", "0-1", "--out", str(quick_run), *QUICK]) == 0
    told = capsys.readouterr()
    assert "4 of 4 runs are in" in told.err
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


def test_a_failing_run_is_reported_and_stops_no_other(tmp_path, capsys, monkeypatch):
    def broken(setting):
        raise RuntimeError("this builder is broken")

    monkeypatch.setattr(baselines, "naive", broken)
    assert cli.main(["run", "naive", "joint", "--seeds", "0", "--out", str(tmp_path), *QUICK]) == 1
    told = capsys.readouterr()
    assert "this builder is broken" in told.err
    assert "| Joint" in told.out


@pytest.mark.parametrize(
    "name", [n for n in configs.row_names(SUITE) if n not in ("naive", "joint") and not n.startswith("trial")]
)
def test_every_row_trains(name):
    from benchmarks.runs import execute

    config = configs.updated(configs.load_row(name, SUITE).config, {"epochs": 1, "batch_size": 128}, where="test")
    config = replace(config, augment=True, lr_later=0.5)
    result = execute(config, 1000, validation=True)
    assert result["evaluated_on"] == "validation"
    assert 0.05 <= result["final_accuracy"] <= 1
    assert 0.2 <= result["recall_at_1"][-1] <= 1


def test_repaired_scr_has_the_means_of_its_present_encoder():
    import torch
    from torch import nn

    from benchmarks.runs import build
    from benchmarks.streams import SUITES, make_stream

    config = replace(configs.load_row("scr_repaired", SUITE).config, epochs=1, batch_size=128)
    strategy = build(config, SUITES[SUITE]).strategy
    stream = make_stream(SUITES[SUITE], 0)
    for experience in list(stream.benchmark.train_stream)[:2]:
        strategy.train(experience)
    strategy.eval(stream.benchmark.test_stream[:2])
    model = strategy.model.eval()
    for label, group in strategy.replay_plugin.storage_policy.buffer_groups.items():
        x = torch.stack([sample[0] for sample in group.buffer.eval()])
        with torch.no_grad():
            mean = nn.functional.normalize(model.feature_extractor(x), dim=1).mean(0)
        torch.testing.assert_close(model.eval_classifier.class_means_dict[label], mean / mean.norm())


def test_the_replay_batches_of_er_ace_and_derpp_are_augmented_too():
    from types import SimpleNamespace

    from benchmarks.plugins import BatchAugment

    strategy = SimpleNamespace(mbatch=[1, "y"], replay_loader=iter([(2, "y", "t")]))
    plugin = BatchAugment(lambda x: x + 10)
    plugin.before_training_exp(strategy)
    plugin.before_forward(strategy)
    assert strategy.mbatch == [11, "y"]
    assert next(strategy.replay_loader) == (12, "y", "t")


# ---- tables and figures


def test_the_table_says_what_the_json_says(quick_run):
    grouped = results.load_results(quick_run)
    text = tables.main_table(grouped)
    final = [100 * result["final_accuracy"] for result in grouped["joint"]]
    mean, std = stats.mean_std(final)
    assert f"| Joint (upper end) | {mean:.1f} ± {std:.1f} | – | – | – |" in text
    assert "over 2 seeds (0, 1)" in text
    assert tables.ablation_table(grouped) == ""
    page = tables.results_page(grouped)
    assert "| `naive` | " in page


def test_table_writes_the_page_and_fills_the_markers(quick_run, tmp_path, capsys):
    readme, page = tmp_path / "README.md", tmp_path / "RESULTS.md"
    readme.write_text(
        f"before\n<!-- table:{SUITE} -->\nold\n<!-- /table -->\nbetween\n"
        f"<!-- table:{SUITE} joint naive -->\n<!-- /table -->\nafter\n"
    )
    assert cli.main(["table", "--results", str(quick_run), "--write", str(page), "--into", str(readme)]) == 0
    text = readme.read_text()
    assert text.startswith("before\n")
    assert text.endswith("<!-- /table -->\nafter\n")
    assert "old" not in text
    grouped = results.load_results(quick_run)
    whole, chosen = text.split("between")
    assert tables.main_table(grouped).strip() in whole
    lines = [line for line in chosen.splitlines() if line.startswith("| ")]
    assert [line.split()[1] for line in lines[1:]] == ["Joint", "Naive"]
    assert page.read_text() == tables.results_page(grouped)
    assert tables.filled(text, grouped, where="") == text


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
    for name in ("accuracy_curves.png", "accuracy_matrices.png"):
        assert (tmp_path / "figures" / name).read_bytes().startswith(b"\x89PNG")


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


def test_committed_pages_follow_from_the_committed_json():
    grouped = results.load_results(RESULTS)
    assert (ROOT / "benchmarks" / "RESULTS.md").read_text(encoding="utf-8") == tables.results_page(grouped)
    pages = [ROOT / "README.md", *sorted((ROOT / "benchmarks" / "methods").glob("*.md"))]
    assert len(pages) == 4
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert tables.filled(text, grouped, where=str(page)) == text


def test_committed_figures_follow_from_their_matrices():
    from benchmarks.runs import summary

    for path in RESULTS.glob("*.json"):
        result = files.read_json(path)
        for key, value in summary(result["accuracy_matrix"], result["test_images"]).items():
            assert result[key] == value or result[key] == pytest.approx(value), (path.name, key)
        row = configs.load_row(result["row"], SUITE)
        assert result["evaluated_on"] == ("validation" if row.on_validation else "test")
        assert result["config"] == row.config.as_dict(), f"{path.name} is stale"


# ---- tuning


def test_every_row_gets_as_many_candidates_that_use_each_value_evenly():
    for name, method in METHODS.items():
        found = tuning.candidates(method)
        assert len({tuple(candidate.items()) for candidate in found}) == tuning.CANDIDATES
        assert found == tuning.candidates(method)
        for key, values in method.grid.items():
            counts = [sum(candidate[key] == value for candidate in found) for value in values]
            assert max(counts) - min(counts) <= 1, (name, key)
            configs.updated(configs.default_config(name), {key: values[0]}, where=name)


def test_tuning_goes_on_where_it_stopped_and_writes_the_winner(tmp_path, monkeypatch):
    shutil.copytree(configs.CONFIGS, tmp_path / "configs")
    monkeypatch.setattr(configs, "CONFIGS", tmp_path / "configs")
    monkeypatch.setattr(tuning, "TUNING", tmp_path / "tuning")
    done = []

    def attempt(job):
        assert job.validation
        assert job.seed in tuning.SEEDS
        done.append(job)
        if len(done) == 5:
            raise KeyboardInterrupt
        score = 0.9 if job.config.lr == 0.1 else 0.1
        figures = {"final_accuracy": score, "average_accuracy": score, "forgetting": 0.0, "recall_at_1": [score]}
        return {**figures, "seed": job.seed, "seconds_total": 1.0, "versions": {}}

    monkeypatch.setattr(pool, "_attempt", attempt)
    assert cli.main(["tune", "naive", "--jobs", "1"]) == 130
    assert cli.main(["tune", "naive", "--jobs", "1"]) == 0
    assert len(done) == 2 * tuning.CANDIDATES + 1
    stored = files.read_json(tmp_path / "tuning" / SUITE / "naive.json")
    assert stored["chosen"]["lr"] == 0.1
    assert [len(candidate["runs"]) for candidate in stored["candidates"]] == [2] * tuning.CANDIDATES
    chosen = configs.load_row("naive", SUITE)
    assert chosen.config.lr == 0.1
    cheapest = min(c["config"]["epochs"] for c in stored["candidates"] if c["config"]["lr"] == 0.1)
    assert chosen.config.epochs == cheapest
    assert cli.main(["tune", "naive", "--jobs", "1"]) == 0
    assert len(done) == 2 * tuning.CANDIDATES + 1


def test_an_ablation_is_not_tuned(capsys):
    assert cli.main(["tune", "co2l_symmetric"]) == 2
    assert "tune co2l" in capsys.readouterr().err


# ---- the command line


def test_seeds_are_ranges_or_lists():
    assert cli.parse_seeds("0-2") == [0, 1, 2]
    assert cli.parse_seeds("3, 1,1") == [3, 1]
    for wrong in ("2-0", "a", "", "1-"):
        with pytest.raises(Exception, match="expected seeds"):
            cli.parse_seeds(wrong)


def test_list_names_every_row(capsys):
    assert cli.main(["list"]) == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert listed == configs.row_names(SUITE)
    assert set(METHODS) <= set(listed)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "replya"], "no row named 'replya' in split_digits; did you mean 'replay'"),
        (["run", "naive", "--set", "epoch=1"], "unknown key 'epoch'; did you mean 'epochs'"),
        (["run", "naive", "--set", "epochs"], "expected KEY=VALUE, got 'epochs'"),
    ],
)
def test_a_wrong_command_says_what_is_wrong(words, message, capsys):
    assert cli.main(words) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("command", ["list", "run", "tune", "table", "plot"])
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
