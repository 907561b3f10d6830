"""Broken files, names and words for the benchmarks, one row a kind: named, nothing of them run or written over."""

import json
import os
import pickle
import re
import signal
import struct
import subprocess
import sys
import textwrap
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from helpers.results import Reader, made
from PIL import Image

from avalanche_contrastive.bench import cli, results
from avalanche_contrastive.bench import config as configs
from avalanche_contrastive.bench.data.own import load_own
from avalanche_contrastive.bench.report import html as report
from avalanche_contrastive.bench.report import plots

ROOT = Path(__file__).parents[2]
SIGNS = '<script>alert("x")</script><img src=x onerror=alert(1)>\'--`*|[a](javascript:x)\n\r\x00\x1b[31m&lt;\u202e'


@pytest.fixture(autouse=True)
def no_waiting():
    """What would wait for ever (a pipe, a device, a loop of links) fails instead."""

    def waited(*ignored):
        raise TimeoutError("this would wait for ever")

    before = signal.signal(signal.SIGALRM, waited)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


# ---- .npz files


class Payload:
    """Unpickling it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (Path(self.path),)


def arrays(**changes):
    whole = {
        "train_images": np.zeros((40, 6, 5), np.uint8),
        "train_labels": np.arange(40) % 4,
        "test_images": np.zeros((12, 6, 5), np.uint8),
        "test_labels": np.arange(12) % 4,
    }
    return {key: value for key, value in {**whole, **changes}.items() if value is not None}


def npz(path, **changes):
    np.savez(path, **arrays(**changes))


def a_pickle_among_arrays(path):
    npz(path, train_images=None)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("train_images.npy", pickle.dumps(Payload(path.parent / "ran")))


def objects(path, key):
    npz(path, **{key: np.array([Payload(path.parent / "ran")] * 40, dtype=object)})


def a_member_that_is_no_array(path):
    npz(path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("readme.txt", "hello")


def a_shape(path, shape):
    """An array whose header says a shape of another kind; numpy takes True for 1."""
    npz(path, test_images=None)
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}}}".ljust(117) + "\n"
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("test_images.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode())


NPZ = {
    "a bool in a shape": (
        lambda p: a_shape(p, "(True, 6, 5)"),
        r"not a readable .*: .* shape is \(True, 6, 5\)",
    ),
    "a negative shape": (lambda p: a_shape(p, "(-1, 6, 5)"), "not a readable .npz file: .* shape is .-1, 6, 5."),
    "a fraction in a shape": (lambda p: a_shape(p, "(1.5, 6, 5)"), "not a readable .npz file"),
    "a shape that does not end": (lambda p: a_shape(p, "(" * 50), "not a readable .npz file"),
    "labels that are objects": (lambda p: objects(p, "train_labels"), "train_labels are Python objects .pickled."),
    "images that are objects": (lambda p: objects(p, "train_images"), "train_images are Python objects .pickled."),
    "objects under a key of no use": (lambda p: objects(p, "more"), "more are Python objects .pickled."),
    "a pickle in place of an array": (a_pickle_among_arrays, "not a readable .npz file"),
    "a pickle in place of the file": (
        lambda p: p.write_bytes(pickle.dumps(Payload(p.parent / "ran"))),
        "not a readable .npz file",
    ),
    "text in the archive": (a_member_that_is_no_array, "not a readable .npz file"),
    "complex images": (lambda p: npz(p, train_images=np.zeros((40, 6, 5), complex)), "got complex128"),
    "black or white images": (lambda p: npz(p, train_images=np.zeros((40, 6, 5), bool)), "got bool"),
    "records for images": (lambda p: npz(p, train_images=np.zeros((40, 6, 5), [("r", "u1")])), "images must be bytes"),
    "a number for images": (lambda p: npz(p, train_images=np.float32(3)), r"\(N, H, W\).*got shape \(\)"),
    "infinite images": (lambda p: npz(p, train_images=np.full((40, 6, 5), np.inf)), "1,200 values are not finite"),
    "labels in words": (lambda p: npz(p, train_labels=np.array(["cat"] * 40)), "integers from 0, got <U3"),
    "labels yes or no": (lambda p: npz(p, train_labels=np.arange(40) % 2 == 0), "integers from 0, got bool"),
    "labels that are dates": (lambda p: npz(p, train_labels=np.zeros(40, "datetime64[D]")), "got datetime64"),
    "labels past 64 bits": (
        lambda p: npz(p, train_labels=np.array([0, 2**63 + 5] * 20, dtype=np.uint64)),
        "the highest is 9223372036854775813",
    ),
    "one label for all": (lambda p: npz(p, train_labels=np.int64(3)), r"\(N,\) or \(N, 1\).*got shape \(\)"),
    "a pipe": (lambda p: os.mkfifo(p), "expected a .npz file or a folder of images, this is a device or a pipe"),
    "a link to itself": (lambda p: p.symlink_to(p), "no such file or folder"),
    "a link to nothing": (lambda p: p.symlink_to(p.parent / "nothing"), "no such file or folder"),
    "an endless device": (lambda p: p.symlink_to("/dev/zero"), "this is a device or a pipe"),
}


@pytest.mark.parametrize("kind", NPZ)
def test_a_broken_npz_is_named_and_nothing_in_it_is_run(kind, tmp_path):
    make, message = NPZ[kind]
    path = tmp_path / "ein Ordner mit ü" / "Bilder.npz"
    path.parent.mkdir()
    make(path)
    with pytest.raises(ValueError, match=f"(?s){message}") as caught:
        load_own(str(path))
    assert str(path) in str(caught.value)
    assert not (path.parent / "ran").exists()


def test_the_payload_of_these_tests_would_run(tmp_path):
    pickle.loads(pickle.dumps(Payload(tmp_path / "ran")))
    assert (tmp_path / "ran").exists()


# ---- folders of images


def images(root, classes=("a", "b"), count=5):
    for name in classes:
        (root / name).mkdir(parents=True)
        for i in range(count):
            Image.new("L", (8, 8), 10 * i).save(root / name / f"{i}.png")


def bomb(path):
    """A file of a few bytes that says it is an image of 60,000 x 60,000."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(100))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b""))


FOLDERS = {
    "an empty image": (lambda r: (r / "a" / "x.png").write_bytes(b""), "x.png: not a readable image"),
    "text called an image": (lambda r: (r / "a" / "x.png").write_text("hi"), "x.png: not a readable image"),
    "an image larger than it may be": (lambda r: bomb(r / "a" / "x.png"), "x.png: not a readable image.*exceeds limit"),
    "a pipe called an image": (lambda r: os.mkfifo(r / "a" / "x.png"), "x.png: not a readable image: it is not a file"),
    "an image that links to itself": (
        lambda r: (r / "a" / "x.png").symlink_to(r / "a" / "x.png"),
        "x.png: not a readable image: it is not a file, or a link to nothing",
    ),
    "an image that links to nothing": (lambda r: (r / "a" / "x.png").symlink_to("/nowhere"), "a link to nothing"),
    "a class that links to nothing": (lambda r: (r / "c").symlink_to("/nowhere"), "c is a link to nothing"),
    "a class that links to all classes": (lambda r: (r / "c").symlink_to(r), "c: a link to .*, which it is in itself"),
    "a loop of links within a class": (
        lambda r: (r / "a" / "again").symlink_to(r / "a"),
        "again: a link to .*images would come again",
    ),
    "a link to the root of all": (lambda r: (r / "a" / "root").symlink_to("/"), "root: a link to /, which it is in"),
    "a class without images": (lambda r: (r / "c").mkdir(), "no valid file for the classes c"),
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_a_broken_folder_of_images_is_named(kind, tmp_path):
    spoil, message = FOLDERS[kind]
    images(tmp_path / "Bilder")
    spoil(tmp_path / "Bilder")
    with pytest.raises(ValueError, match=message) as caught:
        load_own(str(tmp_path / "Bilder"))
    assert str(tmp_path) in str(caught.value)


def test_names_that_are_no_text_and_names_like_markup_are_only_names(tmp_path):
    images(tmp_path, ("<script>alert(1)</script>".replace("/", "∕"), "b c", "ünï"))
    os.rename(tmp_path / "b c" / "0.png", os.fsencode(tmp_path / "b c") + b"/\xff\xfe.png")
    assert load_own(str(tmp_path)).class_names == ("<script>alert(1)<∕script>", "b c", "ünï")


# ---- TOML files

TOML = {
    "a key twice": (b'method = "naive"\nlr = 1\nlr = 2', "mine.toml: not valid TOML"),
    "a date for a rate": (b'method = "naive"\nlr = 2020-01-01', "mine.toml: lr must be a float, got datetime.date"),
    "a table for a rate": (b'method = "naive"\n[lr]\na = 1', "lr must be a float, got {'a': 1}"),
    "a list for an option": (b'method = "replay"\n[options]\nbatch_size_mem = [1]', "batch_size_mem must be a int"),
    "a rate past all floats": (b'method = "naive"\nlr = 1' + b"0" * 400, "lr must be finite"),
    "nested without end": (b'method = "naive"\nlr = ' + b"[" * 5000, "mine.toml: not valid TOML"),
    "another encoding": ('method = "naive"'.encode("utf-16"), "mine.toml: not valid TOML"),
    "a zero byte": (b'method = "na\0ive"', "mine.toml: not valid TOML"),
    "nothing in it": (b"", "mine.toml: needs a `method`"),
    "tables for a method": (b"[[method]]\na = 1", "needs `base`, or a `method` that is known"),
    "a base that is a path": (b'base = "../split_digits/naive"', "no row named"),
    "a method that is a path": (b'method = "../x:y"', "cannot be imported"),
    "a method without a function": (b'method = "os:"', "is named module:function, got .os:"),
}


@pytest.mark.parametrize("kind", TOML)
def test_a_broken_toml_is_named(kind, tmp_path):
    content, message = TOML[kind]
    path = tmp_path / "ein Ordner mit ü" / "mine.toml"
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"(?s){message}"):
        configs.find_row(str(path), "split_digits")


def test_a_mark_of_byte_order_is_no_error(tmp_path):
    (tmp_path / "mine.toml").write_bytes(b'\xef\xbb\xbfmethod = "naive"')
    assert configs.find_row(str(tmp_path / "mine.toml"), "split_digits").config.method == "naive"


# ---- commands

COMMANDS = {
    "seeds in words": (["run", "naive", "--seeds", "a"], "expected seeds such as 0-2"),
    "seeds below zero": (["run", "naive", "--seeds=-1"], "expected seeds such as 0-2"),
    "half a seed": (["run", "naive", "--seeds", "1.5"], "expected seeds such as 0-2"),
    "seeds without end": (["run", "naive", "--seeds", "0-99999999999"], "expected at most 10000 seeds"),
    "seeds that break off": (["run", "naive", "--seeds", "0-2,"], "expected seeds such as 0-2"),
    "no processes": (["run", "naive", "--jobs", "0"], "whole number of at least 1, got '0'"),
    "a memory below zero": (["run", "naive", "--memory", "-3"], "at least 1, got '-3'"),
    "a rate that is no number": (["run", "naive", "--set", "lr=nan"], "lr must be finite and not negative, got nan"),
    "an infinite rate": (["run", "naive", "--set", "lr=inf"], "lr must be finite and not negative, got inf"),
    "a list for a rate": (["run", "naive", "--set", "lr=[1]"], "lr must be a float, got [1]"),
    "epochs as a float": (["run", "naive", "--set", "epochs=1e3"], "epochs must be a int, got 1000.0"),
    "a value without a key": (["run", "naive", "--set", "=3"], "unknown key ''"),
    "batches below zero": (["run", "naive", "--set", "batch_size=-1"], "batch_size must be finite and not negative"),
    "no temperature": (["run", "co2l", "--set", "options.temperature=0"], "temperature must be a finite number > 0"),
    "no rows of replay": (
        ["run", "ssil", "--set", "options.batch_size_mem=0"],
        "batch_size_mem must be a whole number",
    ),
    "one view": (["run", "co2l", "--set", "options.views=1"], "views must be a whole number >= 2"),
    "fewer images than classes": (["run", "naive", "--set", "train_images=5"], "5 images are too few"),
    "a suite that is a path": (["run", "naive", "--suite", "../.."], "no suite named '../..'"),
    "a suite that is a root": (["run", "naive", "--suite", "/etc"], "no suite named '/etc'"),
    "a suite that is a dot": (["run", "naive", "--suite", "."], "no suite named '.'"),
    "a row that is a path": (["run", "../split_digits/naive"], "no row named '../split_digits/naive'"),
    "results where processes live": (["run", "naive", "--out", "/proc/nowhere/x"], "cannot write results there"),
    "results in a device": (["run", "naive", "--out", "/dev/null"], "expected a folder for the results"),
    "results in a name too long": (["run", "naive", "--out", "x" * 300], "File name too long"),
    "results in a name with a zero": (["run", "naive", "--out", "a\0b"], "null"),
    "data that are a device": (["run", "naive", "--data", "/dev/null"], "this is a device or a pipe"),
    "downloads into a device": (
        ["run", "naive", "--suite", "split_mnist", "--root", "/dev/null"],
        "MNIST could not be loaded from /dev/null",
    ),
    "results from a device": (["table", "--results", "/dev/full"], "expected <row>-seed<n>.json files"),
    "an unknown command": (["frobnicate"], "invalid choice: 'frobnicate'"),
    "no command": ([], "the following arguments are required: COMMAND"),
}


@pytest.mark.parametrize("kind", COMMANDS)
def test_a_hostile_command_is_refused_before_anything_is_written(kind, tmp_path, monkeypatch, capsys):
    words, message = COMMANDS[kind]
    monkeypatch.chdir(tmp_path)
    try:
        code = cli.main(words)
    except SystemExit as left:  # argparse's own
        code = left.code
    assert code == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


# ---- results


def put(folder, content):
    """A result where `run` writes it."""
    folder.mkdir(parents=True, exist_ok=True)
    raw = content if isinstance(content, bytes) else json.dumps(content).encode()
    (folder / "naive-seed0.json").write_bytes(raw)
    return folder


def changed(*path_and_value):
    *path, value = path_and_value
    result = made("naive", 0, method="naive")
    part = result
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    return result


MATRIX = [[0.5] * 3] * 3
RESULTS = {
    "an empty file": (b"", "could not read it"),
    "half a file": (b'{"row": "naive", ', "could not read it"),
    "zeros, as after a crash": (bytes(100), "could not read it"),
    "no text": (b"\xff\xfe\x00", "could not read it"),
    "nested without end": (b"[" * 100_000, "could not read it"),
    "a list": (b"[]", "a JSON object with a config"),
    "nothing but a config": (b'{"config": {}}', "it lacks row, seed"),
    "another schema": (b'{"config": {"model": "x"}, "score": 3}', "it lacks row, seed"),
    "a seed in words": (changed("seed", "0"), "seed must be a whole number, got '0'"),
    "evaluated on something": (changed("evaluated_on", "train"), "evaluated_on must be 'test' or 'validation'"),
    "no accuracies": (changed("accuracy_matrix", None), "accuracy_matrix must be .* got None"),
    "an empty matrix": (changed("accuracy_matrix", []), "accuracy_matrix must be"),
    "a ragged matrix": (changed("accuracy_matrix", [[0.5, 0.5], [0.5]]), "all of one length"),
    "a matrix of words": (changed("accuracy_matrix", [["a"] * 3] * 3), "accuracy_matrix must be"),
    "a matrix that is no number": (changed("accuracy_matrix", [[float("nan")] * 3] * 3), r"in \[0, 1\]"),
    "accuracies above one": (changed("accuracy_matrix", [[93.0] * 3] * 3), r"accuracies in \[0, 1\]"),
    "accuracies below zero": (changed("accuracy_matrix", [[-0.1] * 3] * 3), r"accuracies in \[0, 1\]"),
    "a matrix of other width": (changed("accuracy_matrix", [[0.5] * 2] * 2), "rows of 2, but test_images names 3"),
    "a recall of other width": (changed("recall_matrix", [[0.5] * 4] * 3), "recall_matrix has rows of 4"),
    "no test images": (changed("test_images", []), "test_images must be a list of whole numbers above 0"),
    "a figure in words": (changed("final_accuracy", "high"), "final_accuracy must be a number, got 'high'"),
    "times in words": (changed("seconds_per_experience", "long"), "seconds_per_experience must be a table"),
    "versions in a list": (changed("versions", ["torch"]), "versions must be a table of strings"),
    "a label that is a number": (changed("shown", "label", 3), "shown must be a table of strings"),
    "a table that there is not": (changed("shown", "table", "best"), "its table one of"),
    "a config with a rate in words": (changed("config", "lr", "high"), "config: lr must be a float, got 'high'"),
    "a config with a list of options": (changed("config", "options", [1]), "config: options must be a dict"),
    "a config with nested options": (changed("config", "options", {"a": [1]}), "config: options must be bools"),
    "a config with milestones in words": (changed("config", "milestones", ["x"]), "milestones must be whole numbers"),
    "a suite that is a path": (changed("config", "suite", "../../elsewhere"), "suite must be a name, no path"),
    "a suite that is a number": (changed("config", "suite", 3), "config: suite must be a str"),
}


@pytest.mark.parametrize("kind", RESULTS)
def test_a_broken_result_is_named_and_left_alone(kind, tmp_path):
    content, message = RESULTS[kind]
    folder = put(tmp_path / "out", content)
    before = (folder / "naive-seed0.json").read_bytes()
    with pytest.raises(ValueError, match=message) as caught:
        results.load_all(folder)
    assert str(folder / "naive-seed0.json") in str(caught.value)
    assert (folder / "naive-seed0.json").read_bytes() == before
    assert [path.name for path in folder.iterdir()] == ["naive-seed0.json"]


def test_a_whole_result_and_the_committed_ones_pass(tmp_path):
    assert results.load_all(put(tmp_path, made("naive", 0, method="naive")))
    assert results.load_all(ROOT / "benchmarks" / "results")


NAMES = [
    *[(key,) for key in ("stream", "readout", "device", "git_commit", "peak_memory_of")],
    *[("shown", key) for key in ("label", "note", "base", "chosen_by")],
    *[("config", key) for key in ("method", "network", "data")],
    ("config", "suite"),
    ("versions",),
    ("config", "options"),
]


@pytest.mark.filterwarnings("ignore:Glyph")  # no font has a picture of a carriage return
def test_no_name_breaks_the_report(tmp_path):
    result = made("naive", 0, method="naive")
    for *outer, key in NAMES:
        part = result[outer[0]] if outer else result
        part[key] = {SIGNS: SIGNS} if key in ("versions", "options") else SIGNS
    result["config"]["method"] = f"mine:{SIGNS}"
    result["config"]["suite"] = SIGNS.replace("/", "∕").replace("\x00", "")  # what a folder may be called
    everything = results.load_all(put(tmp_path / "out", result))
    page = Reader(report.report_page(everything))
    assert not page.problems
    assert not page.open
    assert not {"iframe", "object"} & {tag for tag, _ in page.seen}
    assert sum(tag == "script" for tag, _ in page.seen) == 1, "ours"
    assert not [key for _, attributes in page.seen for key in attributes if key.startswith("on")]
    assert all(attributes.get("href", "#").startswith("#") for _, attributes in page.seen)
    assert "".join(page.words).count("alert(") > len(NAMES) / 2, "the names are shown, as words"
    for grouped in everything.values():
        plots.plot_all(grouped, tmp_path / "figures")
    assert {path.suffix for path in (tmp_path / "figures").iterdir()} == {".png"}


def test_results_of_strangers_write_in_their_own_folder_only(tmp_path):
    put(tmp_path / "in" / "out", changed("config", "suite", "../../elsewhere"))
    before = sorted(tmp_path.rglob("*"))
    assert cli.main(["plot", "--results", str(tmp_path / "in")]) == 2
    assert sorted(tmp_path.rglob("*")) == before


# ---- places that cannot be written


def written(tmp_path, *words):
    put(tmp_path / "out", made("naive", 0, method="naive"))
    return cli.main([*words, "--results", str(tmp_path / "out")])


PLACES = {
    "a page in a folder's place": (["report", "--out", "{here}/taken"], "Is a directory|Directory not empty|cannot"),
    "a page under a file": (["report", "--out", "{here}/file/report.html"], "Not a directory|File exists"),
    "a page where processes live": (["report", "--out", "/proc/nowhere/report.html"], "No such file|not permitted"),
    "a table in a folder's place": (["table", "--write", "{here}/taken"], "Is a directory|Directory not empty|cannot"),
    "a page that is not there": (["table", "--into", "{here}/nothing.md"], "nothing.md"),
    "a page that is no text": (["table", "--into", "{here}/picture.md"], "utf-8|UTF-8"),
    "figures under a file": (["plot", "--out", "{here}/file/figures"], "Not a directory|File exists"),
}


@pytest.mark.parametrize("kind", PLACES)
def test_what_cannot_be_written_is_said_and_what_is_there_stays(kind, tmp_path, capsys):
    words, message = PLACES[kind]
    here = tmp_path / "ein Ordner mit ü"
    (here / "taken" / "full").mkdir(parents=True)
    (here / "file").write_text("precious")
    (here / "picture.md").write_bytes(b"\x89PNG\xff")
    assert written(tmp_path, *(word.format(here=here) for word in words)) == 2
    assert re.search(message, capsys.readouterr().err)
    assert (here / "file").read_text() == "precious"
    assert (here / "picture.md").read_bytes() == b"\x89PNG\xff"
    assert sorted(path.name for path in here.iterdir()) == ["file", "picture.md", "taken"]


@pytest.mark.parametrize("words", [["report", "--out"], ["table", "--write"]], ids=["report", "table"])
def test_a_page_that_does_not_fit_on_the_disk_leaves_the_old_one(words, tmp_path):
    """By a limit on the size of files, which needs no rights: the same error path as a full disk."""
    put(tmp_path / "out", made("naive", 0, method="naive"))
    page = tmp_path / "page"
    page.write_text("the old one")
    program = f"""
        import resource, sys
        from avalanche_contrastive.bench import cli
        resource.setrlimit(resource.RLIMIT_FSIZE, (512, 512))
        sys.exit(cli.main({[*words, str(page), "--results", str(tmp_path / "out")]!r}))
    """
    told = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert told.returncode == 2
    assert f"could not write {page}: File too large" in told.stderr
    assert page.read_text() == "the old one"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "page"]


def test_the_tables_of_kinds_are_long_enough():
    mine = [NPZ, FOLDERS, TOML, COMMANDS, RESULTS, PLACES, NAMES]
    assert sum(map(len, mine)) >= 100


# ---- what the runner keeps for itself, edited or damaged

RUN = {"seed": 1000, "final_accuracy": 0.5, "final_recall_at_1": 0.5}
EDITED = {
    "nothing": {},
    "a list": [],
    "candidates that are numbers": {"candidates": [3]},
    "a candidate without runs": {"candidates": [{"config": {}}]},
    "a config of a list": {"candidates": [{"config": {"method": ["naive"]}, "runs": []}]},
    "a run without figures": {"candidates": [{"config": {}, "runs": [{"seed": 1000}]}]},
    "a figure in words": {"candidates": [{"config": {}, "runs": [RUN | {"final_accuracy": "high"}]}]},
    "a seed in words": {"candidates": [{"config": {}, "runs": [RUN | {"seed": "first"}]}]},
    "versions of a list": {"candidates": [{"config": {}, "runs": [RUN | {"versions": []}]}]},
}


@pytest.mark.parametrize("kind", EDITED)
def test_candidates_that_were_edited_are_named(kind, tmp_path, capsys):
    path = tmp_path / "naive.json"
    path.write_text(json.dumps(EDITED[kind]))
    assert cli.main(["tune", "naive", "--candidates", "1", "--seeds", "1000", "--out", str(tmp_path)]) == 2
    assert f"{path}: not as `tune` writes it. Was it edited?" in capsys.readouterr().err
    assert json.loads(path.read_text()) == EDITED[kind]


@pytest.mark.parametrize("content", [{}, [], {"device": "cpu", "versions": {}, "rows": [{"work": "a step"}]}, "{"])
def test_speeds_that_were_edited_are_named(content, tmp_path, capsys):
    path, page = tmp_path / "speed.json", tmp_path / "page.md"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    page.write_text("<!-- speed -->\n<!-- /speed -->\n")
    assert cli.main(["speed", "--out", str(path), "--page", str(page)]) == 2
    assert str(path) in capsys.readouterr().err
    assert page.read_text() == "<!-- speed -->\n<!-- /speed -->\n"
