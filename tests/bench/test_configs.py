"""Configs: what a TOML may say, where its values come from, what is refused, and the committed suites."""

import re
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest

from avalanche_contrastive.bench import config as configs
from avalanche_contrastive.bench import files
from avalanche_contrastive.bench.methods.catalog import METHODS
from avalanche_contrastive.bench.run import pool, tuning

SUITES = configs.suites()
ROWS = [(suite, name) for suite in SUITES for name in configs.row_files(suite)]
METHODS_OF_OURS = ("co2l", "ssil", "csd")


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
def test_every_config_is_written_back_the_same(suite, own_configs):
    for row in configs.load_rows(suite):
        configs.write_row(row, "a comment\nof two lines")
        assert configs.load_row(row.name, suite) == replace(row, base="")


@pytest.mark.parametrize("suite", SUITES)
def test_what_runs_is_possible(suite):
    from avalanche_contrastive.bench.run.execute import check

    for row in configs.load_rows(suite):
        check(replace(row.config, data="photos.npz") if row.config.stream == "own" else row.config)


@pytest.mark.parametrize("suite", [s for s in SUITES if s != "paper"])
def test_the_three_methods_are_in_every_suite(suite):
    assert {row.config.method for row in configs.load_rows(suite) if row.table == "main"} > set(METHODS_OF_OURS)


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
    from avalanche_contrastive.bench.run.execute import check

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
    plan = tuning.plan_of(suite)
    for row in (row for row in configs.load_rows(suite) if row.table == "main" and not row.base):
        found = tuning.candidates(row.method, plan)
        assert len({tuple(candidate.items()) for candidate in found}) == plan.candidates
        assert found == tuning.candidates(row.method, plan)
        for key, values in tuning.grid_of(row.method, plan).items():
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
        tuning.plan_of("split_digits")
    with pytest.raises(ValueError, match=re.escape(message)):
        tuning.plan_of("split_digits")


def test_keys_of_the_plan_are_for_the_methods_whose_grid_has_them(own_configs):
    (own_configs / "split_digits" / "_suite.toml").write_text('[tune.grid]\n"options.weight" = [7]\nepochs = [3, 4]\n')
    plan = tuning.plan_of("split_digits")
    ssil, naive = (tuning.grid_of(METHODS[name], plan) for name in ("ssil", "naive"))
    assert (ssil["options.weight"], ssil["epochs"], naive["epochs"]) == ((7,), (3, 4), (3, 4))
    assert "options.weight" not in naive


@pytest.fixture
def scored(own_configs, tmp_path, monkeypatch):
    """Runs that end at once, with an accuracy by rate; `failing` says what goes wrong, `done` counts."""
    monkeypatch.setattr(tuning, "TUNING", tmp_path / "tuning")
    scored = SimpleNamespace(done=0, failing=lambda job: "")

    def attempt(job):
        scored.done += 1
        figures = {"final_accuracy": job.config.lr, "average_accuracy": 0.5, "forgetting": 0.0, "recall_at_1": [0.5]}
        return scored.failing(job) or {**figures, "seed": job.seed, "seconds_total": 1.0, "versions": {}}

    monkeypatch.setattr(pool, "_attempt", attempt)  # what a run takes minutes for
    return scored


RAISED = "Traceback (most recent call last):\n  somewhere\nValueError: the loss is nan"


def test_a_candidate_that_fails_is_kept_as_failed_and_not_tried_again(scored, tmp_path):
    scored.failing = lambda job: RAISED if (job.config.lr, job.seed) == (0.1, 1001) else ""
    rows = [configs.load_row("naive", "split_digits")]
    assert tuning.tune(rows, 1) == 0
    assert scored.done == 32
    stored = files.read_json(tmp_path / "tuning" / "split_digits" / "naive.json")["candidates"]
    failed = [candidate for candidate in stored if candidate["settings"]["lr"] == 0.1]
    assert all(candidate["score"] is None for candidate in failed)
    assert all(candidate["runs"][1] == {"seed": 1001, "failed": "ValueError: the loss is nan"} for candidate in failed)
    text = (configs.CONFIGS / "split_digits" / "naive.toml").read_text()
    assert f"from 16 candidates ({16 - len(failed)} of them could be scored) on validation images" in text
    assert configs.load_row("naive", "split_digits").config.lr == 0.03
    assert tuning.tune(rows, 1) == 0
    assert scored.done == 32


def test_a_run_whose_process_was_killed_is_tried_again(scored, tmp_path):
    scored.failing = lambda job: "its worker process died" if job.config.lr == 0.1 else ""
    rows = [configs.load_row("naive", "split_digits")]
    assert tuning.tune(rows, 1) == 0
    scored.failing = lambda job: ""
    assert tuning.tune(rows, 1) == 0
    assert scored.done > 32
    assert configs.load_row("naive", "split_digits").config.lr == 0.1
    assert "from 16 candidates on" in (configs.CONFIGS / "split_digits" / "naive.toml").read_text()


def test_where_nothing_could_be_scored_all_is_tried_again(scored, capsys):
    scored.failing = lambda job: RAISED
    before = (configs.CONFIGS / "split_digits" / "naive.toml").read_text()
    rows = [configs.load_row(name, "split_digits") for name in ("naive", "replay")]
    assert tuning.tune(rows, 1) == 2
    assert "naive: no candidate could be scored" in capsys.readouterr().out
    assert (configs.CONFIGS / "split_digits" / "naive.toml").read_text() == before
    scored.failing = lambda job: ""
    assert tuning.tune(rows, 1) == 0
    assert scored.done == 2 * 64


def test_a_row_of_ones_own_is_written_where_it_came_from(scored, tmp_path):
    path = tmp_path / "mine and more.toml"
    path.write_text('method = "naive"\nlabel = "Mine"\nlr = 0.5\n')
    row = configs.find_row(str(path), "split_digits")
    own = replace(row, config=replace(row.config, stream="own", data="/some/images.npz"))
    suite = sorted((configs.CONFIGS / "split_digits").iterdir())
    assert tuning.tune([own], 1, device="cuda") == 0
    chosen = configs.find_row(str(path), "split_digits")
    assert (chosen.label, chosen.config.lr, chosen.config.data) == ("Mine", 0.1, "/some/images.npz")
    assert "All candidates: mine and more.tuning.json, beside this file" in path.read_text()
    stored = files.read_json(tmp_path / "mine and more.tuning.json")
    assert stored["chosen"]["lr"] == 0.1
    assert sorted((configs.CONFIGS / "split_digits").iterdir()) == suite
    assert not (tmp_path / "tuning").exists()


@pytest.mark.parametrize("path", sorted(tuning.TUNING.glob("*/*.json")), ids=lambda path: path.stem)
def test_committed_candidates_can_be_read(path):
    row = configs.load_row(path.stem, path.parent.name)
    search = tuning.Search(row, tuning.plan_of(row.config.suite))
    stored = files.read_json(path)["candidates"]
    assert [search.score(candidate) for candidate in stored] == pytest.approx([entry["score"] for entry in stored])
    assert [entry["settings"] for entry in search.entries] == [candidate["settings"] for candidate in stored]
