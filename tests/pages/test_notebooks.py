"""The notebooks are what their scripts give: found without executing; tiny ones are executed."""

import asyncio
import re
import shutil
from pathlib import Path

import nbformat
import pytest
from notebook_data import FILES, choose, images, load_benchmark, table
from words import CLAIMS, wrong

from notebooks import build, compare

FOLDER = Path(__file__).parents[2] / "notebooks"
CLEAN = """\
# %% [markdown]
# # Tiny
#
# What is one and one?

# %%
import warnings

from IPython.display import Markdown

two = 1 + 1
print(two)

# %%
warnings.warn("invalid escape", SyntaxWarning)  # as of a library that Python compiles just now

# %%
Markdown(f"**{two}**")
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A folder with a script and its notebook."""
    folder = tmp_path_factory.mktemp("built") / "notebooks"
    folder.mkdir()
    (folder / "01_tiny.py").write_text(CLEAN)
    assert build.main(["--folder", str(folder)]) == 0
    return folder


@pytest.fixture
def folder(built, tmp_path):
    """A copy of it, to be spoilt."""
    return shutil.copytree(built, tmp_path / "notebooks")


def change(path, edit):
    """Edit a notebook on disk."""
    notebook = nbformat.read(path, as_version=4)
    edit(notebook)
    path.write_text(nbformat.writes(notebook))


def problem(folder, fresh=None):
    """What is stale about it, in words."""
    found = compare.stale(folder / "01_tiny.py", folder / "01_tiny.ipynb", fresh)
    assert len(found) <= 1
    return found[0] if found else ""


@pytest.mark.parametrize("source", build.find(FOLDER), ids=lambda path: path.stem)
def test_what_is_committed_is_up_to_date_and_clean(source):
    path = source.with_suffix(".ipynb")
    assert compare.stale(source, path) == []
    assert compare.unclean(nbformat.read(path, as_version=4), FOLDER) == []


def test_every_notebook_has_a_script_and_stands_in_the_readme():
    names = [path.stem for path in build.find(FOLDER)]
    assert names == sorted(path.stem for path in FOLDER.glob("*.ipynb"))
    readme = (FOLDER / "README.md").read_text()
    assert [name for name in names if f"({name}.ipynb)" not in readme] == []


def test_a_built_notebook_holds_outputs_and_nothing_of_its_moment(built):
    notebook = nbformat.read(built / "01_tiny.ipynb", as_version=nbformat.NO_CONVERT)
    nbformat.validate(notebook)
    _, first, warned, shown = notebook.cells
    assert [output.text for output in first.outputs] == ["2\n"]
    assert warned.outputs == []
    assert shown.outputs[0].data["text/markdown"] == "**2**"
    assert notebook.metadata == build.METADATA
    assert {tuple(cell.metadata) for cell in notebook.cells} == {()}
    assert problem(built) == ""


def test_a_second_build_writes_the_same_bytes(folder, built):
    assert build.main(["01_tiny", "--folder", str(folder)]) == 0
    assert (folder / "01_tiny.ipynb").read_bytes() == (built / "01_tiny.ipynb").read_bytes()


def test_ids_follow_from_the_source_so_that_an_added_cell_changes_no_other(folder):
    script = folder / "01_tiny.py"
    before = [cell.id for cell in compare.read_script(script).cells]
    script.write_text(CLEAN + "\n# %%\ntwo\n\n# %%\ntwo\n")
    after = [cell.id for cell in compare.read_script(script).cells]
    assert after[: len(before)] == before
    assert len(set(after)) == len(after) == len(before) + 2


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (
            "1 + 1",
            "2 + 2",
            r"cell 2 \(import warnings\) .* 'two = 2 \+ 2' in the script, 'two = 1 \+ 1' in the notebook",
        ),
        ("one and one", "one or one", r"cell 1 \(# Tiny\) is not that of the notebook: 'What is one or one"),
        ("\n# %%\nMarkdown", "\nMarkdown", "the script has 3 cells, the notebook 4"),
    ],
)
def test_a_changed_script_makes_it_stale(folder, old, new, words):
    assert old in CLEAN
    (folder / "01_tiny.py").write_text(CLEAN.replace(old, new))
    assert re.search(words, problem(folder))


def test_a_notebook_edited_by_hand_is_stale(folder):
    def edit(notebook):
        notebook.cells[1].source = "print(2)"

    change(folder / "01_tiny.ipynb", edit)
    assert "'import warnings' in the script, 'print(2)' in the notebook" in problem(folder)


def test_a_notebook_saved_by_another_program_is_stale(folder):
    def edit(notebook):
        notebook.metadata.language_info.version = "3.11.7"

    change(folder / "01_tiny.ipynb", edit)
    assert "metadata or ids" in problem(folder)


def test_a_notebook_that_was_not_executed_is_stale(folder):
    def edit(notebook):
        notebook.cells[3].outputs, notebook.cells[3].execution_count = [], None

    change(folder / "01_tiny.ipynb", edit)
    assert "was not executed; from top to bottom it would have number 3" in problem(folder)


def test_a_notebook_executed_in_another_order_is_stale(folder):
    def edit(notebook):
        notebook.cells[1].execution_count = 7

    change(folder / "01_tiny.ipynb", edit)
    assert "has number 7" in problem(folder)


def test_a_notebook_that_ends_in_an_error_is_stale(folder):
    def edit(notebook):
        notebook.cells[2].outputs = [nbformat.v4.new_output("error", ename="ValueError", evalue="no", traceback=[])]

    change(folder / "01_tiny.ipynb", edit)
    assert "ends in an error" in problem(folder)


@pytest.mark.parametrize("text", ["", "{}", '{"cells": 3}', "not JSON"])
def test_something_else_in_its_place_is_stale(folder, text):
    (folder / "01_tiny.ipynb").write_text(text)
    assert "01_tiny.ipynb is no notebook" in problem(folder)


def test_a_script_without_a_notebook_is_stale(folder):
    (folder / "01_tiny.ipynb").unlink()
    assert "there is no 01_tiny.ipynb. Execute it: python notebooks/build.py 01_tiny" in problem(folder)


def test_removed_outputs_are_found_by_executing(folder, capsys):
    def edit(notebook):
        notebook.cells[3].outputs = []

    before = (folder / "01_tiny.py").read_bytes()
    change(folder / "01_tiny.ipynb", edit)
    assert problem(folder) == ""
    assert build.main(["--check", "--folder", str(folder)]) == 1
    assert 'cell 4 (Markdown(f"**{two}**")) gives text/markdown' in capsys.readouterr().err.replace("/text/plain", "")
    assert nbformat.read(folder / "01_tiny.ipynb", as_version=4).cells[3].outputs == []
    assert (folder / "01_tiny.py").read_bytes() == before


def test_other_numbers_are_said_and_no_failure(folder, capsys):
    def edit(notebook):
        notebook.cells[1].outputs[0].text = "2.0000001\n"

    change(folder / "01_tiny.ipynb", edit)
    assert build.main(["--check", "--folder", str(folder)]) == 0
    assert "note: 01_tiny: cells 2 print other text" in capsys.readouterr().out


SPOILT = """\
# %%
import sys
import warnings
from pathlib import Path

warnings.warn("we should not have done this")

# %%
print(Path.cwd(), "and", object())

# %%
raise KeyError("no such thing")
"""


def test_what_does_not_run_clean_is_neither_built_nor_passed(tmp_path, capsys):
    (tmp_path / "01_spoilt.py").write_text(SPOILT)
    assert build.main(["--folder", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert "01_spoilt: does not run:" in said
    assert "KeyError: 'no such thing'" in said
    assert "cell 1 (import sys) warns:" in said
    assert "we should not have done this" in said
    assert 'cell 2 (print(Path.cwd(), "and", object())) prints what is true of this machine' in said
    assert "\x1b" not in said
    assert not (tmp_path / "01_spoilt.ipynb").exists()


def test_a_notebook_that_takes_too_long_is_named(tmp_path, capsys):
    (tmp_path / "01_long.py").write_text("# %%\nsum(range(10**7))\n")
    assert build.main(["--limit", "0.05", "--folder", str(tmp_path)]) == 1
    assert "01_long: takes" in capsys.readouterr().err


def test_a_notebook_that_hangs_is_stopped(tmp_path):
    script = tmp_path / "01_hang.py"
    script.write_text("# %%\nimport time\n\ntime.sleep(600)\n")
    outcome = asyncio.run(build.execute(script, stop=4))
    assert outcome.problems == ["hangs: stopped after 4 s"]
    assert outcome.elapsed < 60


WHERE = "# %%\nimport os\n\nprint(repr(os.path.basename(os.environ.get('NOTEBOOK_DATA', ''))))\n"


def test_a_users_variable_stays_out_of_what_is_committed(tmp_path, monkeypatch):
    monkeypatch.setenv("NOTEBOOK_DATA", "/somewhere/mine")
    (tmp_path / "01_where.py").write_text(WHERE)
    assert build.main(["--folder", str(tmp_path)]) == 0
    shown = nbformat.read(tmp_path / "01_where.ipynb", as_version=4).cells[0].outputs
    assert [output.text for output in shown] == ["''\n"]


def test_other_data_go_to_another_folder(tmp_path):
    scripts, out = tmp_path / "scripts", tmp_path / "made" / "out"
    scripts.mkdir()
    (scripts / "01_where.py").write_text(WHERE)
    assert build.main(["--data", str(tmp_path / "images"), "--out", str(out), "--folder", str(scripts)]) == 0
    shown = nbformat.read(out / "01_where.ipynb", as_version=4).cells[0].outputs
    assert [output.text for output in shown] == ["'images'\n"]
    assert list(scripts.glob("*.ipynb")) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--data", "images"], "--data needs --out"),
        (["--data", "images", "--out", "HERE"], "--data needs --out"),
        (["--data", "images", "--out", str(FOLDER)], "--data needs --out"),
        (["--check", "--data", "images", "--out", "out"], "--check takes no --data"),
    ],
)
def test_other_data_in_the_place_of_the_digits_are_refused(built, capsys, monkeypatch, arguments, words):
    monkeypatch.chdir(built)
    before = (built / "01_tiny.ipynb").read_bytes()
    arguments = [str(built) if word == "HERE" else word for word in arguments]
    assert build.main([*arguments, "--folder", str(built)]) == 2
    assert words in capsys.readouterr().err
    assert (built / "01_tiny.ipynb").read_bytes() == before
    assert not (built / "out").exists()


def test_unknown_names_and_empty_folders_are_refused(built, tmp_path, capsys):
    assert build.main(["02_other", "--folder", str(built)]) == 2
    assert build.main(["--folder", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "no notebook 02_other. Known: 01_tiny" in said
    assert "Known: none" in said


def test_without_a_path_the_notebooks_run_on_the_digits():
    assert choose("") == ("split_digits", {})


def test_a_folder_with_mnist_is_taken(tmp_path, monkeypatch):
    raw = tmp_path / "mine" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in FILES:
        (raw / name).touch()
    monkeypatch.chdir(tmp_path)
    suite, sizes = choose("mine")
    assert suite == "split_mnist"
    assert sizes["data"] == str(tmp_path / "mine")
    with pytest.raises(ValueError, match=r"MNIST could not be loaded .* Incomplete: t10k-images-idx3-ubyte"):
        load_benchmark(path="mine")


def test_mnist_as_one_file_is_taken(tmp_path):
    (tmp_path / "mnist.npz").touch()
    assert choose(str(tmp_path))[0] == choose(str(tmp_path / "mnist.npz"))[0] == "split_mnist"


def test_a_path_without_mnist_is_refused_and_nothing_made_or_downloaded(tmp_path):
    (tmp_path / "some" / "MNIST" / "raw").mkdir(parents=True)
    (tmp_path / "some" / "MNIST" / "raw" / FILES[0]).touch()
    with pytest.raises(ValueError, match=rf"no MNIST in .*some: missing in .*raw: {FILES[1]}, .*MNIST\(.*download"):
        choose(str(tmp_path / "some"))
    with pytest.raises(ValueError, match=r"no MNIST in .*nowhere: missing"):
        choose(str(tmp_path / "nowhere"))
    assert not (tmp_path / "nowhere").exists()


def test_the_images_of_some_experiences():
    benchmark = load_benchmark(path="")
    x, y = images(benchmark.test_stream[:2])
    assert x.shape == (len(y), 1, 8, 8)
    assert set(y.tolist()) == {
        c for experience in benchmark.test_stream[:2] for c in experience.classes_in_this_experience
    }


def test_a_table_of_numbers_words_and_values_over_seeds():
    rows = {"ours": {"accuracy": 81.26, "seeds": 3, "gain": [1.0, 2.0, 3.0]}, "other": dict.fromkeys("abc", "–")}
    assert table(rows, "method").data.splitlines() == [
        "| method | accuracy | seeds | gain |",
        "| --- | ---: | ---: | ---: |",
        "| ours | 81.3 | 3 | 2.0 ± 1.0 |",
        "| other | – | – | – |",
    ]


# What a notebook may have, so that it can be read in one go and each cell be copied.
CELLS = range(8, 15)
LINES = 130  # of code in all
LINES_OF_A_CELL = 35


def code_lines(cell):
    return [line for line in cell.source.splitlines() if line.strip()]


@pytest.mark.parametrize("source", build.find(FOLDER), ids=lambda path: path.stem)
def test_a_notebook_is_a_tutorial_of_a_few_short_cells(source):
    cells = nbformat.read(source.with_suffix(".ipynb"), as_version=4).cells
    assert len(cells) in CELLS
    code = [code_lines(cell) for cell in cells if cell.cell_type == "code"]
    assert sum(map(len, code)) <= LINES
    assert max(map(len, code)) <= LINES_OF_A_CELL
    assert [line for lines in code for line in lines if re.search(r"\._[a-z]|import _", line)] == []  # nothing private


@pytest.mark.parametrize("source", build.find(FOLDER), ids=lambda path: path.stem)
def test_every_picture_says_what_it_shows_to_who_does_not_see_it(source):
    pictures = 0
    for cell in nbformat.read(source.with_suffix(".ipynb"), as_version=4).cells:
        drawn = [output for output in cell.get("outputs", []) if "image/png" in output.get("data", {})]
        pictures += len(drawn)
        assert len(drawn) == ("alt" in cell.metadata)
        for output in drawn:
            assert 60 <= len(cell.metadata.alt) <= 400
            assert output.metadata["image/png"] == {"alt": cell.metadata.alt}  # Jupyter, nbconvert, GitHub
            assert cell.metadata.mystnb == {"image": {"alt": cell.metadata.alt}}  # the documentation
    assert pictures >= 1


@pytest.mark.parametrize("name", [path.stem for path in build.find(FOLDER)])
def test_the_words_that_are_checked_stand_in_the_notebook(name):
    cells = compare.read_script(FOLDER / f"{name}.py").cells
    text = " ".join(cell.source for cell in cells if cell.cell_type == "markdown").replace("**", "").replace("*", "")
    text = " ".join(text.split())
    assert CLAIMS[name]
    assert [claim for claim in CLAIMS[name] if claim not in text] == []


def test_what_the_numbers_do_not_show_is_named(monkeypatch):
    claims = {"one is one": lambda n: n.one == 1, "one is two": lambda n: n.one == 2}
    monkeypatch.setitem(CLAIMS, "01_tiny", claims)
    assert wrong("01_tiny", {"one": 1, "__name__": "__main__"}) == ["one is two"]
    assert wrong("02_without_claims", {}) == []


SAYS = "def wrong(name, names):\n    return [f'{name}: two is three'] if names['two'] != 3 else []\n"


def test_words_that_do_not_fit_fail_on_the_digits_and_are_named_on_other_data(folder, tmp_path, capsys):
    (folder / "words.py").write_text(SAYS)
    assert build.main(["--check", "--folder", str(folder)]) == 1
    assert "01_tiny: says what its numbers do not: 01_tiny: two is three" in capsys.readouterr().err
    assert build.main(["--data", "images", "--out", str(tmp_path / "out"), "--folder", str(folder)]) == 0
    assert "not true of these data: 01_tiny: two is three" in capsys.readouterr().out
    written = nbformat.read(tmp_path / "out" / "01_tiny.ipynb", as_version=4)
    assert len(written.cells) == 4  # the check is not published
    (folder / "01_tiny.py").write_text(CLEAN.replace("1 + 1", "1 + 2"))
    assert build.main(["--folder", str(folder)]) == 0


DRAWS = """\
# %%HEADER
import matplotlib.pyplot as plt

plt.plot([1, 2]);
"""


def test_a_picture_gets_its_words_and_is_refused_without(tmp_path, capsys):
    script = tmp_path / "01_draws.py"
    script.write_text(DRAWS.replace("HEADER", ' alt="A line that rises from 1 to 2."'))
    assert build.main(["--folder", str(tmp_path)]) == 0
    (cell,) = nbformat.read(tmp_path / "01_draws.ipynb", as_version=4).cells
    (picture,) = [output for output in cell.outputs if "image/png" in output.data]
    assert picture.metadata["image/png"]["alt"] == cell.metadata.mystnb.image.alt == "A line that rises from 1 to 2."
    script.write_text(DRAWS.replace("HEADER", ""))
    assert build.main(["--folder", str(tmp_path)]) == 1
    assert "cell 1 (import matplotlib.pyplot as plt): a picture needs a header" in capsys.readouterr().err
