"""Compatible representations from the runner: the suites cl2r*, what their JSON holds, and how tables show it."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from avalanche.training.determinism.rng_manager import RNGManager
from helpers.results import made, saved

from avalanche_contrastive.bench import cli, results
from avalanche_contrastive.bench import config as configs
from avalanche_contrastive.bench.data.arrays import Arrays, Part
from avalanche_contrastive.bench.data.bank import make_bank
from avalanche_contrastive.bench.data.encoders import make_encoder
from avalanche_contrastive.bench.data.streams import make_stream
from avalanche_contrastive.bench.report import figures, formats, pages, tables
from avalanche_contrastive.bench.run.build import build, stream_of
from avalanche_contrastive.bench.run.compatible import SCORES
from avalanche_contrastive.bench.run.execute import execute
from avalanche_contrastive.metrics.compatibility import (
    average_compatibility,
    average_multimodel_accuracy,
    backward_compatibility,
    compatibility_matrix,
    forward_compatibility,
    update_gain,
)

DIGITS = "cl2r_digits"
ROWS = ("naive", "csd_simplex", "replay_simplex", "joint")


# ---- the runs


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("digits")
    words = ["--suite", DIGITS, "--set", "epochs=2", "--seeds", "0", "--jobs", "1", "--out", str(out)]
    assert cli.main(["run", *ROWS, *words]) == 0
    return out


def stored(folder, row):
    return json.loads((folder / f"{row}-seed0.json").read_text())


def embedded(model, dataset):
    """What enters the last layer, in one batch and without any capture: (N, D) features and (N,) labels."""
    x = torch.stack([sample[0] for sample in dataset])
    model.eval()
    with torch.no_grad():
        features = model.encoder(x)
        features = model.head[0](features) if isinstance(model.head, torch.nn.Sequential) else features
    return features, torch.tensor(list(dataset.targets))


@pytest.mark.parametrize("row", ["naive", "replay_simplex"])
def test_the_matrices_are_those_of_features_taken_by_hand(row, folder):
    config = configs.updated(configs.load_row(row, DIGITS).config, {"epochs": 2}, where="test")
    RNGManager.set_random_seeds(0)
    stream = stream_of(config, 0)
    strategy = build(replace(config), stream, torch.device("cpu")).strategy
    taken = []
    for experience in stream.benchmark.train_stream:
        strategy.train(experience)
        strategy.eval(stream.benchmark.test_stream)
        taken.append([embedded(strategy.model, data) for data in stream.unseen])
    queries, galleries = ([features[side][0] for features in taken] for side in (0, 1))
    found = stored(folder, row)["compatibility"]
    assert list(found) == list(SCORES)
    for score, values in found.items():
        c = compatibility_matrix(queries, galleries, taken[0][0][1], taken[0][1][1], score=score)
        np.testing.assert_allclose(np.array(values["matrix"], dtype=float), c.numpy(), atol=0.006)  # a tie by rounding
        assert np.isnan(np.array(values["matrix"], dtype=float)[np.triu_indices(3, 1)]).all()
        own = torch.tensor(np.array(values["matrix"], dtype=float))
        assert values["self_test"] == own[2, 2]
        assert values["average_compatibility"] == average_compatibility(own)
        assert values["average_compatibility_ties_incompatible"] == average_compatibility(own, ties="incompatible")
        assert values["backward_compatibility"] == backward_compatibility(own)
        assert values["forward_compatibility"] == forward_compatibility(own)
        assert values["average_multimodel_accuracy"] == average_multimodel_accuracy(own)
        assert values["update_gain"] == update_gain(own)[:-1].mean()
    assert queries[0].shape[1] == (64 if row == "naive" else 5)


def test_joint_training_has_its_self_test_and_nothing_that_needs_two_models(folder):
    for values in stored(folder, "joint")["compatibility"].values():
        assert np.shape(values["matrix"]) == (1, 1)
        assert values["self_test"] == values["average_multimodel_accuracy"] == values["matrix"][0][0] > 0.5
        assert {key for key, value in values.items() if value is None} == {
            "average_compatibility",
            "average_compatibility_ties_incompatible",
            "backward_compatibility",
            "forward_compatibility",
            "update_gain",
        }


def test_the_json_is_json_for_everyone(folder):
    def refuse(word):
        raise AssertionError(word)  # NaN is no JSON

    for path in folder.glob("*.json"):
        json.loads(path.read_text(), parse_constant=refuse)


def test_the_run_shows_a_table_of_each_score(folder):
    text = (folder / "table.md").read_text()
    assert text.count("| self-test | AC | AC, ties fail | BC | FC | AM | update gain |") == len(SCORES)
    assert "classes that no model was trained on" in text
    joint = [line for line in text.splitlines() if line.startswith("| Joint")][1]
    assert [cell.strip() for cell in joint.split("|")][4:8] == ["–"] * 4


def test_a_run_that_goes_on_after_its_first_experience_ends_with_the_same_matrices(folder, tmp_path):
    config = configs.updated(configs.load_row("naive", DIGITS).config, {"epochs": 2}, where="test")

    def stop(share, *words):
        if share > 0.5:
            raise KeyboardInterrupt

    kept = tmp_path / "run.pt"
    with pytest.raises(KeyboardInterrupt):
        execute(config, 0, checkpoint=kept, report=stop)
    assert kept.is_file()
    told = []
    found = execute(config, 0, checkpoint=kept, report=lambda share, *words: told.extend(words))
    assert not any("experience 1/3" in words or "anew" in words for words in told)
    assert found["compatibility"] == stored(folder, "naive")["compatibility"]


# ---- the data


def images_of(dataset):
    return {tuple(sample[0].flatten().tolist()) for sample in dataset}


@pytest.mark.parametrize("seed", [0, 1])
def test_unseen_classes_are_not_trained_on(seed):
    whole = make_stream("split_digits", seed, class_order="natural", experiences=10)
    stream = make_stream("split_digits", seed, experiences=3, unseen=[1, 2, 5, 9])
    assert (stream.classes, stream.class_names) == (6, ("0", "3", "4", "6", "7", "8"))
    assert sorted(stream.class_order) == list(range(6))
    names = [[int(stream.class_names[c]) for c in classes] for classes in stream.experience_classes]
    for part in ("train_stream", "test_stream"):
        by_class = [images_of(experience.dataset) for experience in getattr(whole.benchmark, part)]
        for experience, classes in zip(getattr(stream.benchmark, part), names, strict=True):
            assert images_of(experience.dataset) == set().union(*(by_class[c] for c in classes))
    query, gallery = stream.unseen
    of_unseen = [
        images_of(getattr(whole.benchmark, part)[c].dataset)
        for part in ("train_stream", "test_stream")
        for c in (1, 2, 5, 9)
    ]
    assert images_of(query) | images_of(gallery) == set().union(*of_unseen)
    assert not images_of(query) & images_of(gallery)
    assert set(query.targets) == set(gallery.targets) == {0, 1, 2, 3}
    assert abs(len(query) - len(gallery)) <= 1
    again = make_stream("split_digits", 7, experiences=3, unseen=[1, 2, 5, 9]).unseen[0]
    assert images_of(again) == images_of(query)  # whatever the seed


def test_validation_has_no_unseen_images():
    stream = make_stream("split_digits", 0, experiences=3, unseen=[6, 7, 8, 9], validation=True)
    assert stream.unseen is None
    assert stream.classes == 6


def grey(path, classes=10, side=8):
    y = np.arange(4 * classes) % classes
    images = np.random.default_rng(0).integers(0, 255, (len(y), side, side), dtype=np.uint8)
    np.savez(path, train_images=images, train_labels=y, test_images=images[:20], test_labels=y[:20])


def test_other_data_of_the_same_form_is_what_is_tested(tmp_path):
    grey(tmp_path / "mnist.npz")
    grey(tmp_path / "fmnist.npz", side=8)
    stream = make_stream("split_mnist", 0, data=str(tmp_path), unseen="fmnist")
    assert [len(half) for half in stream.unseen] == [10, 10]
    assert stream.classes == 10
    grey(tmp_path / "fmnist.npz", side=6)
    from avalanche_contrastive.bench.data.sources import load

    load.cache_clear()
    with pytest.raises(ValueError, match="images of fmnist are 1 x 6 x 6, those of the stream 1 x 8 x 8"):
        make_stream("split_mnist", 0, data=str(tmp_path), unseen="fmnist")


@pytest.mark.parametrize(
    ("stream", "unseen", "message"),
    [
        ("split_digits", [6], r"at least two of the classes 0 to 9.*got \[6\]"),
        ("split_digits", [6, 6], "each once"),
        ("split_digits", [6, 10], "classes 0 to 9"),
        ("split_digits", list(range(1, 10)), "two others to train on"),
        ("split_digits", "cifar10_bank", "expected a list of classes, or one of mnist, fmnist"),
        ("split_digits", "cifar", "got 'cifar'"),
    ],
)
def test_what_cannot_be_unseen_is_refused(stream, unseen, message):
    with pytest.raises(ValueError, match=message):
        make_stream(stream, 0, unseen=unseen)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("unseen = [1.5, 2]", "unseen must be a list of whole numbers"),
        ("unseen = 3", "unseen must be a str, got 3"),
        ("unseen = [-1, 2]", "unseen must be finite and not negative"),
    ],
)
def test_a_config_with_another_kind_of_value_is_refused(text, message, tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(f'method = "naive"\n{text}\n')
    with pytest.raises(ValueError, match=message):
        configs.find_row(str(path), DIGITS)


def test_a_head_that_is_not_known_is_refused():
    config = configs.updated(configs.load_row("replay", DIGITS).config, {"options.head": "simple"}, where="test")
    with pytest.raises(ValueError, match=r"replay: head must be one of .*got 'simple'"):
        build(config, stream_of(config, 0), torch.device("cpu"))


# ---- banks


def bank(path, classes, encoder, seed=0):
    """A bank of random images, eight of each class, and two views; the encoder's weights are by the seed."""
    y = torch.arange(classes).repeat_interleave(8)
    images = torch.rand(len(y), 3, 4, 4)
    data = Arrays(Part(images, y), Part(images[::4], y[::4]), tuple(f"class {c}" for c in range(classes)))
    torch.manual_seed(seed)
    found = make_encoder("mine", builder=encoder)
    view = {"augmentation": lambda x: (x + torch.rand_like(x)) / 2, "transform": "noise"}
    make_bank(path, data, found, name="mine", title="t", views=2, half=False, **view)


def encoder():
    return torch.nn.Conv2d(3, 6, 3)


def test_the_unseen_bank_must_be_there_and_of_the_same_encoder(tmp_path, capsys):
    bank(tmp_path / "cifar100_bank.npz", 100, encoder)
    words = ["--suite", "cl2r", "--seeds", "0", "--jobs", "1", "--root", str(tmp_path), "--set", "epochs=1"]
    run = ["run", "naive", "csd_simplex", *words, "--out", str(tmp_path / "runs")]
    assert cli.main(run) == 2
    said = capsys.readouterr().err
    assert f"{tmp_path}/cifar10_bank.npz: no such feature bank" in said
    assert "features --data split_cifar10 --encoder" in said

    bank(tmp_path / "cifar10_bank.npz", 10, encoder, seed=1)
    assert cli.main(run) == 2
    said = capsys.readouterr().err
    assert "was made by another encoder" in said
    assert "weights" in said

    (tmp_path / "cifar10_bank.npz").unlink()
    bank(tmp_path / "cifar10_bank.npz", 10, encoder)
    assert cli.main(run) == 0
    found = stored(tmp_path / "runs", "csd_simplex")
    assert np.shape(found["compatibility"]["verification"]["matrix"]) == (5, 5)
    assert "10 queries and 10 images in the gallery, of cifar10_bank" in found["stream"]


def test_the_bank_beside_a_bank_that_is_named_as_a_file_is_found(tmp_path):
    bank(tmp_path / "cifar100_bank.npz", 100, encoder)
    bank(tmp_path / "cifar10_bank.npz", 10, encoder)
    stream = make_stream(
        "split_cifar100_frozen", 0, data=str(tmp_path / "cifar100_bank.npz"), experiences=2, unseen="cifar10_bank"
    )
    assert len(stream.unseen[0]) == 10


def test_the_suites_differ_in_their_experiences_only():
    five = {row.name: row for row in configs.load_rows("cl2r")}
    wanted = {"naive", "lwf", "replay", "replay_simplex", "co2l", "ssil", "csd", "csd_simplex", "joint"}
    assert set(five) == wanted
    for suite, experiences in (("cl2r_2", 2), ("cl2r_10", 10)):
        for row in configs.load_rows(suite):
            assert replace(row.config, suite="cl2r", experiences=5) == five[row.name].config
            assert row.config.experiences == experiences
        assert len(configs.load_rows(suite)) == len(five)
    tuned = configs.load_row("csd", "split_cifar100_frozen").config
    assert replace(five["csd"].config, suite=tuned.suite, experiences=0, unseen="") == tuned


def test_the_suite_on_mnist_has_the_settings_of_split_mnist():
    tuned = {row.name: row for row in configs.load_rows("split_mnist")}
    rows = {row.name: row for row in configs.load_rows("cl2r_mnist")}
    assert set(rows) == {row.name for row in configs.load_rows("cl2r")}
    for name, row in rows.items():
        base = tuned[name.removesuffix("_simplex")].config
        assert replace(row.config, suite=base.suite, unseen="", options=base.options) == base
        assert row.config.unseen == "fmnist"


# ---- tables


def with_scores(matrix):
    c = torch.tensor(matrix, dtype=torch.float64)
    return {
        "recall@1": {
            "matrix": [[None if math.isnan(x) else x for x in row] for row in matrix],
            "self_test": matrix[-1][-1],
            "average_compatibility": average_compatibility(c),
            "average_compatibility_ties_incompatible": average_compatibility(c, ties="incompatible"),
            "backward_compatibility": backward_compatibility(c),
            "forward_compatibility": forward_compatibility(c),
            "average_multimodel_accuracy": average_multimodel_accuracy(c),
            "update_gain": update_gain(c)[:-1].mean().item(),
        }
    }


NAN = math.nan
BY_HAND = [[0.5, NAN, NAN], [0.5, 0.7, NAN], [0.6, 0.6, 0.9]]  # one tie, one better, one worse


@pytest.fixture
def grouped(tmp_path):
    saved(
        tmp_path,
        made("naive", 0, method="naive", compatibility=with_scores(BY_HAND)),
        made("csd", 0, method="csd", compatibility=with_scores([[0.5, NAN, NAN], [0.6, 0.7, NAN], [0.7, 0.8, 0.9]])),
        made("plain", 0),
    )
    return results.load_all(tmp_path)["mine"]


def test_the_columns_by_hand(grouped):
    (score, table), *others = tables.compatibility_tables(grouped)
    assert (score, others) == ("recall@1", [])
    lines = {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}
    assert {key: value for key, value in lines["Naive"].items() if key not in ("method", "memory")} == {
        "self-test": "90.0",
        "AC": "66.7",
        "AC, ties fail": "33.3",
        "BC": "0.0",  # (0.6 - 0.5 + 0.6 - 0.7) / 2
        "FC": "-25.0",  # (0.5 - 0.7 + 0.6 - 0.9) / 2
        "AM": "63.3",  # 3.8 / 6
        "update gain": "30.0",
    }
    assert {lines["Csd"]["AC"], lines["Csd"]["BC"], lines["Plain"]["AC"]} == {"100.0", "15.0", "–"}
    assert [name for name, _ in table.definitions] == [*table.columns[1:]]
    best = {(table.rows[i][0], table.columns[j]) for i, j in table.best}
    assert ("Csd", "BC") in best
    assert not any(column == "update gain" for _, column in best)


def test_pages_and_files_have_the_tables_of_suites_that_measure_it_only(grouped):
    page = pages.results_page({"mine": grouped})
    assert "### mine: compatible representations, recall@1" in page
    assert "CL2R's rule for ties" in page
    filled = pages.filled("<!-- table:compatibility mine -->\n<!-- /table -->", {"mine": grouped}, where="x")
    assert "| AC | AC, ties fail |" in filled
    without = {"mine": {"plain": grouped["plain"]}}
    assert "compatible representations" not in pages.results_page(without)
    with pytest.raises(ValueError, match="compatibility of 'mine', whose results have none"):
        pages.filled("<!-- table:compatibility mine -->\n<!-- /table -->", without, where="x")
    with pytest.raises(ValueError, match="no results; did you mean 'mine'"):
        pages.filled("<!-- table:compatibility mind -->\n<!-- /table -->", {"mine": grouped}, where="x")
    lines = formats.tidy({"mine": grouped}).splitlines()
    assert "mine,naive,0,2,compatibility_recall@1_on_1,0.5" in lines
    assert "mine,naive,0,3,average_compatibility_recall@1,0.6666666666666666" in lines
    assert not any(line.endswith(",") or "None" in line for line in lines)
    assert "compatibility, recall@1" in formats.latex_tables({"mine": grouped})


def test_rows_on_other_unseen_classes_cannot_be_paired(tmp_path):
    first, second = (made(name, 0, config={"unseen": unseen}) for name, unseen in (("a", ""), ("b", (1, 2))))
    assert figures.stream_of([first]) != figures.stream_of([second])


@pytest.mark.parametrize(
    "wrong",
    [
        3,
        {"recall@1": 0.5},
        {"recall@1": {"matrix": [[0.5, None]]}},
        {"recall@1": {"matrix": [["0.5"]]}},
        {"recall@1": {"matrix": [[0.5]], "self_test": "high"}},
    ],
)
def test_a_damaged_result_is_refused_by_name(wrong, tmp_path):
    saved(tmp_path, made("naive", 0, method="naive", compatibility=wrong))
    with pytest.raises(ValueError, match=r"naive-seed0.json: compatibility must be a table of scores"):
        results.load_all(tmp_path)


def test_what_sparing_the_re_embedding_costs_is_said_in_words(tmp_path):
    worse = [[[0.5, NAN], [0.4 - shift, 0.8]] for shift in (0.0, 0.002)]
    level = [[[0.5, NAN], [0.5 + shift, 0.6]] for shift in (0.01, -0.02)]
    for seed in range(2):
        saved(
            tmp_path,
            made("naive", seed, method="naive", compatibility=with_scores(worse[seed])),
            made("csd", seed, method="csd", compatibility=with_scores(level[seed])),
            made("plain", seed),
        )
    ((_, table),) = tables.compatibility_tables(results.load_all(tmp_path)["mine"])
    assert table.notes == (
        "No loss in old galleries is shown (the 95 % interval of BC reaches 0) with: Csd. Points lost where old "
        "galleries are not embedded anew, of the score where they are: Csd 10.5 of 60.0; Naive 40.1 of 80.0.",
    )


def test_one_seed_cannot_show_that_nothing_is_lost(grouped):
    ((_, table),) = tables.compatibility_tables(grouped)
    assert "reaches 0) with: no method." in table.notes[0]
