"""Configs: what a TOML may say, where its values come from, what is refused, and the committed suites."""

import re
import shutil
from dataclasses import replace

import pytest

from benchmarks import configs, tuning
from benchmarks.catalog import METHODS

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
    from benchmarks.runs import check

    for row in configs.load_rows(suite):
        check(row.config)


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
        ("epochs = 3", "got method 'None'"),
        ('base = "co2"', "no row named 'co2' in split_digits; did you mean 'co2l'"),
        ('method = "naive"\nlr = "high"', "lr must be a float, got 'high'"),
        ('method = "naive"\nlr = nan', "lr must not be negative, got nan"),
        ('method = "naive"\nepochs = 2.5', "epochs must be a int, got 2.5"),
        ('method = "naive"\nepochs = true', "epochs must be a int, got True"),
        ('method = "naive"\nepochs = -1', "epochs must not be negative, got -1"),
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
    from benchmarks.runs import check

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
        ("[tune]\ncandidate = 3", "[tune]: unknown key 'candidate'; did you mean 'candidates'"),
        ("[tune]\ncandidates = 0", "expected candidates >= 1 and at least one seed"),
        ("[tune]\nseeds = []", "expected candidates >= 1 and at least one seed"),
    ],
)
def test_a_wrong_plan_is_refused(text, message, own_configs):
    (own_configs / "split_digits" / "_suite.toml").write_text(text)
    with pytest.raises(ValueError, match=re.escape(message)):
        tuning.plan_of("split_digits")
