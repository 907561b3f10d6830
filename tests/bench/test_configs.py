"""Configs: what a TOML may say, where its values come from, what is refused, and the committed suites."""

import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.streams import digits

from avalanche_contrastive import registry
from avalanche_contrastive.bench import cli, files
from avalanche_contrastive.bench import config as configs
from avalanche_contrastive.bench.config import METHODS
from avalanche_contrastive.bench.run import plan as plans
from avalanche_contrastive.bench.run import pool, tuning

SUITES = configs.suites()
ROWS = [(suite, name) for suite in SUITES for name in configs.row_files(suite)]


@pytest.fixture
def own_configs(tmp_path, monkeypatch):
    """A copy of the committed configs that a test may write into."""
    shutil.copytree(configs.CONFIGS, tmp_path / "configs")
    monkeypatch.setattr(configs, "CONFIGS", tmp_path / "configs")
    return tmp_path / "configs"


@pytest.mark.parametrize(("suite", "name"), ROWS)
def test_every_config_is_read_complete(suite, name):
    row = configs.load_row(name, suite)
    assert set(row.config.options) == set(row.method.options)
    assert row.label != row.name
    assert row.config.suite == suite
    assert (row.config.memory > 0) == row.method.has_memory
    assert row.on_validation == row.name.startswith("trial_")


@pytest.mark.parametrize("suite", SUITES)
def test_every_config_is_written_back_the_same(suite, own_configs, tmp_path):
    for row in configs.load_rows(suite):
        path = own_configs / suite / f"{row.name}.toml"
        tuning.write_row(row, "a comment\nof two lines", path)
        assert configs.load_row(row.name, suite) == replace(row, base="")
        tuning.write_row(row, "outside of the suites", tmp_path / path.name)
        outside = configs.find_row(str(tmp_path / path.name), "split_digits")
        assert replace(outside, path="", modules="") == replace(row, base="")


@pytest.mark.parametrize("suite", SUITES)
def test_what_runs_is_possible(suite):
    from avalanche_contrastive.bench.run.build import check

    for row in configs.load_rows(suite):
        check(replace(row.config, data="photos.npz") if row.config.stream == "own" else row.config)


@pytest.mark.parametrize("suite", [s for s in SUITES if s != "paper"])
def test_the_three_methods_are_in_every_suite(suite):
    assert {row.config.method for row in configs.load_rows(suite) if row.table == "main"} > set(registry.METHODS)


def test_split_digits_has_every_method_at_the_same_memory():
    rows = [row for row in configs.load_rows("split_digits") if row.table in ("main", "other")]
    assert {row.config.method for row in rows} == {name for name in METHODS if "class" in METHODS[name].scenarios}
    assert {row.config.memory for row in rows} == {0, 100}


def test_an_ablation_differs_from_its_base_in_what_its_label_says_only():
    for suite in SUITES:
        for row in (row for row in configs.load_rows(suite) if row.table == "ablation"):
            ours, base = row.config, configs.load_row(row.base, suite).config
            assert replace(ours, options=base.options, memory=base.memory) == base, row.name
            changed = sum(ours.options[key] != base.options[key] for key in base.options)
            assert 1 <= changed + (ours.memory != base.memory) <= 2, row.name


def test_published_values_are_those_of_the_papers():
    row = configs.load_row("co2l_cifar10_500", "paper").config
    assert (row.memory, row.epochs, row.epochs_later, row.batch_size, row.lr) == (500, 500, 100, 512, 0.5)
    assert (row.schedule, row.warmup_epochs, row.weight_decay, row.network) == ("cosine", 10, 1e-4, "resnet18")
    assert (row.options["temperature"], row.options["weight"], row.options["base_temperature"]) == (0.5, 1.0, 0.07)
    tiny = configs.load_row("co2l_tiny_imagenet_200", "paper").config
    assert (tiny.epochs_later, tiny.options["distill_temperature"], tiny.options["readout_lr"]) == (50, 0.1, 0.1)
    ssil = configs.load_row("ssil_cifar100", "paper").config
    assert (ssil.lr, ssil.lr_by_experience, ssil.milestones, ssil.options["temperature"]) == (
        0.1,
        True,
        (80, 120, 160),
        2.0,
    )
    csd = configs.load_row("csd_cifar100_t10", "paper").config
    assert (csd.experiences, csd.epochs, csd.optimizer, csd.lr, csd.lr_later) == (10, 800, "adam", 1e-3, 0.01)
    assert (csd.milestones, csd.reset_optimizer, csd.options["margin"]) == ((200, 400, 600), True, 1.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('method = "naive"\nepoch = 3', "unknown key 'epoch'; did you mean 'epochs'"),
        ('method = "replay"\n[options]\nbatch_mem = 3', "unknown key 'batch_mem'; did you mean 'batch_size_mem'"),
        ('method = "repla"', "got method 'repla'; did you mean 'replay'"),
        ("method = 3", "got method '3'"),
        ("epochs = 3", "needs a `method` (see `list`), or the `base` row"),
        ('base = "naive"\nmethod = "ewc"', "has both `base` and `method`"),
        ('method = "naive"\nlr = inf', "lr must be finite and not negative, got inf"),
        ('base = "co2"', "no row named 'co2' in split_digits; did you mean 'co2l'"),
        ('method = "naive"\nlr = "high"', "lr must be a float, got 'high'"),
        ('method = "naive"\nlr = nan', "lr must be finite and not negative, got nan"),
        ('method = "naive"\nepochs = 2.5', "epochs must be a int, got 2.5"),
        ('method = "naive"\nepochs = true', "epochs must be a int, got True"),
        ('method = "naive"\nepochs = -1', "epochs must be finite and not negative, got -1"),
        ('method = "naive"\nmilestones = [1.5]', "milestones must be a list of whole numbers, got [1.5]"),
        ('method = "naive"\nmilestones = 3', "milestones must be a list of whole numbers, got 3"),
        ('method = "naive"\nmemory = 100', "unknown key 'memory'"),
        ('method = "scr"\naugment = false', "unknown key 'augment'"),
        ('method = "naive"\ntable = "third"', "table must be one of"),
        ('method = "naive"\nlabel = 3', "label must be a str, got 3"),
        ('method = "naive"\noptions = 3', "options must be a table"),
        (
            'method = "naive"\nschedule = "cosin"',
            "schedule must be one of ('constant', 'cosine', 'steps'), got 'cosin'",
        ),
        ('method = "naive"\nscenario = "online"', "scenario must be one of"),
        ("method = naive", "not valid TOML"),
    ],
)
def test_a_wrong_config_is_refused_by_name(text, message, own_configs):
    (own_configs / "split_digits" / "mine.toml").write_text(text)
    with pytest.raises(ValueError, match=re.escape(message)):
        configs.load_row("mine", "split_digits")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stream": "split_mnst"}, "unknown stream 'split_mnst'; did you mean 'split_mnist'"),
        ({"network": "resnet19"}, "unknown network 'resnet19'; did you mean 'resnet18'"),
        ({"epochs": 0}, "naive: epochs must be at least 1, got 0"),
        ({"batch_size": 0}, "naive: batch_size must be at least 1, got 0"),
    ],
)
def test_what_cannot_run_is_refused_before_it_starts(changes, message):
    from avalanche_contrastive.bench.run.build import check

    config = configs.updated(configs.load_row("naive", "split_digits").config, changes, where="test")
    with pytest.raises(ValueError, match=re.escape(message)):
        check(config)


def test_an_unknown_suite_is_refused():
    with pytest.raises(ValueError, match="no suite named 'split_digit'; did you mean 'split_digits'"):
        configs.load_rows("split_digit")


def test_a_suite_says_what_its_rows_have_in_common(own_configs):
    (own_configs / "mine").mkdir()
    (own_configs / "mine" / "_suite.toml").write_text('stream = "split_mnist"\nmemory = 7\nepochs = 3\n')
    (own_configs / "mine" / "naive.toml").write_text('method = "naive"\nepochs = 4\n')
    (own_configs / "mine" / "replay.toml").write_text('method = "replay"\n')
    naive, replay = (configs.load_row(name, "mine").config for name in ("naive", "replay"))
    assert (naive.stream, naive.memory, naive.epochs) == ("split_mnist", 0, 4)
    assert (replay.stream, replay.memory, replay.epochs) == ("split_mnist", 7, 3)
    assert [row.name for row in configs.load_rows("mine")] == ["naive", "replay"]


def test_a_row_may_be_a_file_anywhere(tmp_path):
    path = tmp_path / "Ünïcode and spaces.toml"
    path.write_text('method = "naive"\nsuite = "split_mnist"\nlabel = "Mine"\n')
    row = configs.find_row(str(path), "split_digits")
    assert (row.name, row.label, row.config.suite, row.config.stream) == (
        path.stem,
        "Mine",
        "split_mnist",
        "split_mnist",
    )
    path.write_text('base = "ssil"\nmemory = 20\n')
    assert configs.find_row(str(path), "split_digits").config.memory == 20
    with pytest.raises(ValueError, match=r"nowhere\.toml: no such config file"):
        configs.find_row(str(tmp_path / "nowhere.toml"), "split_digits")


def test_a_stored_config_of_an_earlier_version_is_still_this_one():
    config = configs.load_row("naive", "split_digits").config
    stored = {key: value for key, value in config.as_dict().items() if key not in ("schedule", "test_images")}
    assert configs.same_config(stored, config)
    assert not configs.same_config({**stored, "lr": 9.0}, config)
    assert not configs.same_config({**stored, "no_longer": 1}, config)
    assert not configs.same_config(None, config)


# ---- the plan by which `tune` searches


@pytest.mark.parametrize("suite", [s for s in SUITES if s not in ("paper", "own_data")])
def test_every_row_gets_as_many_candidates_that_use_each_value_evenly(suite):
    plan = plans.plan_of(suite)
    for row in (row for row in configs.load_rows(suite) if row.table == "main" and not row.base):
        grid, found = plans.candidates(row, plan)
        assert len({tuple(candidate.items()) for candidate in found}) == plan.candidates
        assert (grid, found) == plans.candidates(row, plan)
        for key, values in grid.items():
            counts = [sum(candidate[key] == value for candidate in found) for value in values]
            assert max(counts) - min(counts) <= 1, (row.name, key)
            configs.updated(row.config, {key: values[0]}, where=row.name)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tune = 3", "[tune] must be a table, got 3"),
        ("[tune]\ncandidate = 3", "[tune]: unknown key 'candidate'; did you mean 'candidates'"),
        ("[tune]\ncandidates = 0", "[tune]: candidates must be a whole number of at least 1, got 0"),
        ("[tune]\ncandidates = true", "candidates must be a whole number of at least 1, got True"),
        ("[tune]\nseeds = []", "[tune]: seeds must be a list of at least one whole number, got []"),
        ("[tune]\nseeds = 1000", "seeds must be a list of at least one whole number, got 1000"),
        ('[tune]\nseeds = ["a"]', "seeds must be a list of at least one whole number, got ['a']"),
        ("[tune]\nseeds = [1000, 1000]", "seeds must differ, got [1000, 1000]"),
        ("[tune]\nseeds = [1000, 4]", "seeds must be 1000 or more, got 4: lower ones are for results"),
        ("[tune]\ngrid = 3", "[tune.grid] must be a table, got 3"),
        ("[tune.grid]\nepoch = [1, 2]", "[tune.grid]: no method's grid has a key 'epoch'; did you mean 'epochs'"),
        ('[tune.grid]\nepochs = "abc"', "[tune.grid]: epochs must be a list of at least one value, got 'abc'"),
        ("[tune.grid]\nepochs = 2", "epochs must be a list of at least one value, got 2"),
        ("[tune.grid]\nepochs = []", "epochs must be a list of at least one value, got []"),
        ('[tune.grid]\nepochs = [1, "b"]', "[tune.grid]: epochs must be a int, got 'b'"),
        ('[tune.grid]\n"options.temperature" = ["b"]', "temperature must be a float, got 'b'"),
        ("[tune]\nsettings = 3", "[tune.settings] must be a table, got 3"),
    ],
)
def test_a_wrong_plan_is_refused(text, message, own_configs):
    (own_configs / "split_digits" / "_suite.toml").write_text(text)
    with pytest.raises(ValueError, match=re.escape(f"split_digits/_suite.toml, {'' if message[0] == '[' else '['}")):
        plans.plan_of("split_digits")
    with pytest.raises(ValueError, match=re.escape(message)):
        plans.plan_of("split_digits")


def test_keys_of_the_plan_are_for_the_methods_whose_grid_has_them(own_configs):
    (own_configs / "split_digits" / "_suite.toml").write_text('[tune.grid]\n"options.weight" = [7]\nepochs = [3, 4]\n')
    plan = plans.plan_of("split_digits")
    ssil, naive = (plans.grid_of(configs.load_row(name, "split_digits"), plan) for name in ("ssil", "naive"))
    assert (ssil["options.weight"], ssil["epochs"], naive["epochs"]) == ((7,), (3, 4), (3, 4))
    assert "options.weight" not in naive


OWN_METHOD = """
from avalanche.training.plugins import EWCPlugin

def mine(s, *, strength=1.0, other=2):
    return s.naive(EWCPlugin(ewc_lambda=strength))
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A method of one's own in a folder that is not the present one, and the text of its row without a grid."""
    monkeypatch.setattr("sys.path", [*sys.path])
    monkeypatch.setattr("avalanche_contrastive._outside._own_folders", [])
    (tmp_path / "code").mkdir()
    name = f"mine_{tmp_path.name}"
    (tmp_path / "code" / f"{name}.py").write_text(OWN_METHOD)
    path = tmp_path / "code" / "mine.toml"
    path.write_text(f'method = "{name}:mine"\nlabel = "Mine"\n')
    return path


def test_a_method_of_ones_own_is_tuned_by_the_grid_in_its_own_file(mine):
    plan = plans.Plan()
    with pytest.raises(ValueError, match=r"mine: its options \(strength, other\) have no grid.*\n\[tune.grid\]\n.opti"):
        plans.candidates(configs.find_row(str(mine), "split_digits"), plan)
    for grid in (
        "[tune.grid]\nlr = [0.5]\n'options.strength' = [1, 2.5]",
        "[tune.grid.options]\nstrength = [1.0, 2.5]",
    ):
        mine.write_text(mine.read_text().partition("[tune")[0] + grid)
        row = configs.find_row(str(mine), "split_digits")
        found = plans.grid_of(row, plan)
        assert found["options.strength"] == (1.0, 2.5)
        assert found["lr"] == ((0.5,) if "lr" in grid else (0.01, 0.03, 0.1))
        assert found["epochs"] == (10, 20, 30)
        assert "epochs" not in plans.grid_of(row, plan, fixed=["epochs"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[tune]\ncandidates = 3", "[tune]: a row may have the table [tune.grid] only"),
        ("[tune.grid]\nepoch = [3]", "[tune.grid]: unknown key 'epoch'; did you mean 'epochs'"),
        ("[tune.grid]\n'options.power' = [3]", "[tune.grid], options of naive: unknown key 'power'"),
        ("[tune.grid]\nepochs = 3", "[tune.grid]: epochs must be a list of at least one value, got 3"),
        ("[tune.grid]\noptions = 3", "[tune.grid] must be a table"),
    ],
)
def test_a_wrong_grid_of_a_row_is_refused(text, message, tmp_path):
    (tmp_path / "mine.toml").write_text(f'method = "naive"\n{text}\n')
    row = configs.find_row(str(tmp_path / "mine.toml"), "split_digits")
    with pytest.raises(ValueError, match=re.escape(message)):
        plans.grid_of(row, plans.Plan())


@pytest.fixture
def scored(own_configs, tmp_path, monkeypatch):
    """Runs that end at once, with an accuracy by rate; `failing` says what goes wrong, `done` counts."""
    monkeypatch.chdir(tmp_path)
    scored = SimpleNamespace(done=0, failing=lambda job: "", torch=torch.__version__)

    def attempt(work, job):
        scored.done += 1
        figures = {"final_accuracy": job.config.lr, "average_accuracy": 0.5, "forgetting": 0.0, "recall_at_1": [0.5]}
        made = {"seed": job.seed, "seconds_total": 1.0, "versions": {"torch": scored.torch}}
        return scored.failing(job) or {**figures, **made}

    monkeypatch.setattr(pool, "_attempt", attempt)  # what a run takes minutes for
    return scored


def tune(*words):
    return cli.main(["tune", *words, "--jobs", "1"])


RAISED = "Traceback (most recent call last):\n  somewhere\nValueError: the loss is nan"
OUT = Path("out") / "tuning" / "split_digits"


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_candidates_and_winner_go_to_the_working_folder_and_the_winner_runs_as_it_is(scored, capsys):
    before = contents(configs.CONFIGS)
    assert tune("naive", "--candidates", "4", "--seeds", "1000,1005,1007") == 0
    assert scored.done == 12
    assert f"wrote {OUT / 'naive.toml'}" in capsys.readouterr().out
    assert contents(configs.CONFIGS) == before
    stored = files.read_json(OUT / "naive.json")
    assert len(stored["candidates"]) == 4
    assert [run["seed"] for run in stored["candidates"][0]["runs"]] == [1000, 1005, 1007]
    row = configs.find_row(str(OUT / "naive.toml"), "split_mnist")
    assert (row.config.suite, row.config.lr, row.label) == ("split_digits", 0.1, "Naive")
    assert tune("naive", "--candidates", "4", "--seeds", "1000,1005,1007", "--out", "elsewhere") == 0
    assert {path.name for path in Path("elsewhere").iterdir()} == {"naive.json", "naive.toml"}


def test_what_the_command_line_sets_is_not_searched(scored):
    assert tune("naive", "--candidates", "3", "--set", "epochs=7", "--set", "augment=true") == 0
    stored = files.read_json(OUT / "naive.json")
    assert set(stored["grid"]) == {"lr", "lr_later"}
    assert {candidate["config"]["epochs"] for candidate in stored["candidates"]} == {7}
    assert configs.find_row(str(OUT / "naive.toml"), "split_digits").config.augment


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["naive", "--candidates", "99"], "its grid has 36 points, but 99 candidates are wanted"),
        (["naive", "--seeds", "0-2"], "--seeds: seeds must be 1000 or more, got 0"),
        (["naive", "--set", "epoch=1"], "unknown key 'epoch'"),
        (["naive", "--set", "lr=0.1", "--write-reference"], "naive is not a row of a suite as it stands"),
        (["co2l_symmetric"], "co2l_symmetric inherits the setting of co2l; tune co2l"),
    ],
)
def test_a_search_that_makes_no_sense_is_refused_before_anything_runs(words, message, scored, capsys):
    assert tune(*words) == 2
    assert message in capsys.readouterr().err
    assert scored.done == 0
    assert not OUT.exists()


def test_references_are_written_only_when_asked_for_and_in_a_checkout(scored, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tuning, "TUNING", tmp_path / "tuning")
    assert tune("naive", "--write-reference") == 2
    assert "the reference configs are in a checkout" in capsys.readouterr().err
    (tmp_path / "tuning").mkdir()
    assert tune("naive", "--write-reference") == 0
    text = (configs.CONFIGS / "split_digits" / "naive.toml").read_text()
    assert "from 16 candidates on validation images" in text
    assert "All candidates: benchmarks/tuning/split_digits/naive.json" in text
    assert files.read_json(tmp_path / "tuning" / "split_digits" / "naive.json")["chosen"]["lr"] == 0.1
    assert not OUT.exists()


def test_scores_of_another_torch_are_named_and_made_again(scored, capsys):
    scored.torch = "1.0.0"
    assert tune("naive", "--candidates", "2") == 0
    scored.torch = torch.__version__
    assert tune("naive", "--candidates", "2", "--reuse") == 0
    assert scored.done == 4
    capsys.readouterr()
    assert tune("naive", "--candidates", "2") == 0
    assert "naive: stored scores of torch 1.0.0 are not used, as this is torch" in capsys.readouterr().out
    assert scored.done == 8


def test_a_candidate_that_fails_is_kept_as_failed_and_not_tried_again(scored):
    scored.failing = lambda job: RAISED if (job.config.lr, job.seed) == (0.1, 1001) else ""
    assert tune("naive") == 0
    assert scored.done == 32
    stored = files.read_json(OUT / "naive.json")["candidates"]
    failed = [candidate for candidate in stored if candidate["settings"]["lr"] == 0.1]
    assert all(candidate["score"] is None for candidate in failed)
    for candidate in failed:
        assert candidate["runs"][1]["failed"] == "ValueError: the loss is nan"
    text = (OUT / "naive.toml").read_text()
    assert f"from 16 candidates ({16 - len(failed)} of them could be scored) on validation images" in text
    assert configs.find_row(str(OUT / "naive.toml"), "split_digits").config.lr == 0.03
    assert tune("naive") == 0
    assert scored.done == 32


def test_a_run_whose_process_was_killed_is_tried_again(scored):
    scored.failing = lambda job: "its worker process died" if job.config.lr == 0.1 else ""
    assert tune("naive") == 0
    scored.failing = lambda job: ""
    assert tune("naive") == 0
    assert scored.done > 32
    assert configs.find_row(str(OUT / "naive.toml"), "split_digits").config.lr == 0.1
    assert "from 16 candidates on" in (OUT / "naive.toml").read_text()


def test_where_nothing_could_be_scored_all_is_tried_again(scored, capsys):
    scored.failing = lambda job: RAISED
    assert tune("naive", "replay") == 1
    assert "naive: no candidate could be scored" in capsys.readouterr().out
    assert not (OUT / "naive.toml").exists()
    scored.failing = lambda job: ""
    assert tune("naive", "replay") == 0
    assert scored.done == 2 * 64


def test_the_winner_of_a_row_of_ones_own_finds_its_method_and_data(scored, mine, tmp_path):
    (train_x, train_y), (test_x, test_y) = digits(20)
    images = {"train_images": train_x[:, 0].numpy(), "test_images": test_x[:, 0].numpy()}
    np.savez(tmp_path / "mine.npz", train_labels=train_y, test_labels=test_y, **images)
    mine.write_text(mine.read_text() + "[tune.grid.options]\nstrength = [1.0, 2.5]\n")
    text = mine.read_text()
    assert tune(str(mine), "--data", "mine.npz", "--candidates", "4") == 0
    assert mine.read_text() == text
    winner = Path("out") / "tuning" / "own_data" / "mine.toml"
    row = configs.find_row(str(winner), "split_digits")
    assert (row.label, row.config.lr, row.config.data) == ("Mine", 0.1, str(tmp_path / "mine.npz"))
    assert row.modules == str(mine.parent)


@pytest.mark.parametrize("path", sorted(tuning.TUNING.glob("*/*.json")), ids=lambda path: path.stem)
def test_committed_candidates_can_be_read(path):
    row = configs.load_row(path.stem, path.parent.name)
    search = tuning.Search(row, plans.plan_of(row.config.suite), path.parent)
    stored = files.read_json(path)["candidates"]
    assert [search.score(candidate) for candidate in stored] == pytest.approx([entry["score"] for entry in stored])
    assert [entry["settings"] for entry in search.entries] == [candidate["settings"] for candidate in stored]
