"""The comparison with the authors' code: what is committed, what the pages say of it, and what the command refuses."""

import importlib
import json
import math
import re
import sys

import pytest
import torch
from avalanche.training import Naive
from helpers.pages import ROOT
from torch import nn

from avalanche_contrastive import SSILPlugin

ROOM = ROOT / "benchmarks" / "authors"
RECORD = json.loads((ROOM / "comparison.json").read_text())
PARTS = RECORD["parts"]
PAGES = {
    "Co2L": ROOT / "benchmarks/methods/co2l.md",
    "SS-IL": ROOT / "benchmarks/methods/ssil.md",
    "CSD": ROOT / "benchmarks/methods/csd.md",
}


@pytest.fixture
def room(monkeypatch):
    """Imports a module of the folder, as the command does."""
    monkeypatch.syspath_prepend(ROOM)
    before = set(sys.modules)
    yield importlib.import_module
    for name in {path.stem for path in ROOM.glob("*.py")} - before:
        sys.modules.pop(name, None)


def rounded_up(value):
    """To one digit, as the pages have it."""
    exponent = math.floor(math.log10(value))
    return f"{math.ceil(value / 10**exponent - 1e-9)}e{exponent:03d}"


def largest(method, name="training"):
    return max(p["absolute"] for p in PARTS if p["method"] == method and p["name"].startswith(name))


# ---- what is committed


@pytest.mark.parametrize("part", PARTS, ids=lambda part: f"{part['method']}-{part['name']}")
def test_nothing_differs_by_more_than_rounding_or_chance(part):
    assert part["absolute"] <= part["bound"]
    rounding = 1e-12 if part["method"] == "compatibility" else 1e-10
    assert part["bound"] <= rounding or re.search("float32|by chance|random|unstable sort", part["note"])


def test_each_method_is_compared_in_training_rates_and_what_surrounds_them():
    compared = {(part["method"], part["name"].split(",")[0]) for part in PARTS}
    for method in PAGES:
        assert {(method, "training"), (method, "schedule")} <= compared
    assert {("Co2L", "memory"), ("Co2L", "read-out"), ("SS-IL", "exemplars"), ("CSD", "triplets")} <= compared
    names = [(part["method"], part["name"]) for part in PARTS]
    assert len(names) == len(set(names))


def test_the_record_names_what_was_compared(room):
    sources = room("checkouts").CHECKOUTS
    assert set(RECORD["authors"]) == set(sources)
    for option, authors in RECORD["authors"].items():
        assert authors["repository"].endswith(sources[option].repository)
        assert authors["commit"] == sources[option].commit
        assert set(authors["files"]) == set(sources[option].files)
    assert re.fullmatch("[0-9a-f]{40}", RECORD["package"]["commit"])
    assert {"torch", "avalanche-lib"} <= set(RECORD["libraries"])


def test_the_readme_of_the_folder_says_the_figures():
    text = " ".join((ROOM / "README.md").read_text().split())
    for kind in ("class-incremental", "domain-incremental"):
        figure = rounded_up(largest("Co2L", f"training, {kind}"))
        assert re.search(rf"{kind}, `main\w*\.main\(\)`: {figure}\b", text, flags=re.IGNORECASE), figure
    assert f"`trainer.ssil.Trainer`: {rounded_up(largest('SS-IL'))}." in text
    assert f"growing head: {rounded_up(largest('CSD'))}." in text
    for source in RECORD["authors"].values():
        assert source["repository"].removeprefix("https://github.com/") in text


@pytest.mark.parametrize("method", PAGES)
def test_a_card_says_the_figure(method):
    """A card's sentence is: "... the weights of the authors' code: the largest difference is 2e-13 ..."."""
    text = " ".join(PAGES[method].read_text().split())
    assert re.findall(r"authors' code: the largest difference is (\S+?)[,.;)]? ", text) == [rounded_up(largest(method))]


def test_the_readme_claims_no_more():
    (figure,) = re.findall(r"same weights to (\S+) ", " ".join((ROOT / "README.md").read_text().split()))
    assert max(map(largest, PAGES)) <= float(figure)


# ---- the command


@pytest.mark.parametrize("lacking", ["co2l", "ssil", "csd", "cl2r", "iamcl2r", "cores"])
def test_a_folder_without_the_authors_files_is_refused(room, lacking, tmp_path, capsys):
    compare, sources = room("compare"), room("checkouts").CHECKOUTS
    words = []
    for option, source in sources.items():
        for name in source.files:
            path = tmp_path / option / source.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        words += [f"--{option}", str(tmp_path / option)]
    missing = sources[lacking].files[-1]
    (tmp_path / lacking / sources[lacking].root / missing).unlink()
    out = tmp_path / "comparison.json"
    out.write_text("kept")
    with pytest.raises(SystemExit) as refusal:
        compare.main([*words, "--out", str(out)])
    assert refusal.value.code == 2
    error = capsys.readouterr().err
    for said in (f"--{lacking}", missing, sources[lacking].repository, "git clone", sources[lacking].commit):
        assert said in error
    assert out.read_text() == "kept"
    assert torch.get_default_dtype() == torch.float32


def test_a_folder_that_is_not_there_is_refused(room, tmp_path, capsys):
    words = [word for option in ("co2l", "ssil", "csd") for word in (f"--{option}", str(tmp_path / "nowhere"))]
    with pytest.raises(SystemExit):
        room("compare").main([*words, "--out", str(tmp_path / "out.json")])
    assert "--co2l" in capsys.readouterr().err
    assert not (tmp_path / "out.json").exists()


def test_modules_of_a_checkout_are_forgotten_and_others_of_their_names_come_back(room, tmp_path, monkeypatch):
    checkouts = room("checkouts")
    for name in checkouts.CHECKOUTS["cores"].files:
        path = tmp_path / "src" / name
        path.parent.mkdir(parents=True)
        path.write_text("import elsewhere\nfrom cores import shown\nvalue = shown.value + 1\n")
    (tmp_path / "src/cores/__init__.py").write_text("raise RuntimeError('not to be run')")
    (tmp_path / "src/cores/shown.py").write_text("value = 1")
    installed = type(sys)("cores")
    monkeypatch.setitem(sys.modules, "cores", installed)
    checkout, path = checkouts.Checkout("cores", tmp_path), list(sys.path)
    with checkout.modules("cores.metrics", stubs=["elsewhere"]) as metrics:
        assert metrics.value == 2
    assert sys.modules["cores"] is installed
    assert not {"cores.metrics", "cores.shown", "elsewhere"} & set(sys.modules)
    assert sys.path == path


# ---- its instruments


def test_a_difference_is_found_wherever_it_is(room):
    difference, one = room("replay").difference, torch.ones(3)
    assert difference([one, 4 * one], [one, 4 * one]) == (0.0, 0.0)
    assert difference([one, 4 * one], [one, torch.tensor([4.0, 5.0, 4.0])]) == (1.0, 0.2)
    with pytest.raises(ValueError, match="shapes"):
        difference([torch.ones(1)], [one])
    with pytest.raises(ValueError, match="finite"):
        difference([one], [one * torch.nan])
    with pytest.raises(ValueError, match="argument"):
        difference([one], [one, one])


def test_a_recorded_training_can_be_played_again(room):
    replay = room("replay")
    images = replay.Images((4,), classes=4, per_class=6, seed=0)
    model = nn.Linear(4, 4)
    again = nn.Linear(4, 4)
    replay.copied([again], replay.values_of(model))
    recorder = replay.Recorder(model)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    plugins = [SSILPlugin(mem_size=4, batch_size_mem=2, distillation="none", separated=False), recorder]
    strategy = Naive(model=model, optimizer=sgd, plugins=plugins, train_mb_size=5, train_epochs=2, evaluator=None)
    for experience in replay.stream_of(images, 2).train_stream:
        strategy.train(experience)
    assert recorder.steps == len(recorder.rates) == 12
    sgd = torch.optim.SGD(again.parameters(), lr=0.1)
    for experience, weights in zip(recorder.batches, recorder.weights, strict=True):
        loader = replay.Playback(experience)
        for _ in experience:
            assert len(loader) == 3
            for x, y, _ in loader:
                sgd.zero_grad()
                known = again(x)[:, : 2 if experience is recorder.batches[0] else 4]
                nn.functional.cross_entropy(known, y).backward()
                sgd.step()
        assert replay.difference(replay.values_of(again), weights)[0] < 1e-6
