"""The page of the matrix tests: written from their outcome, and held to it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.compatibility import PAGE, parse, render

CONFTEST = """
from pathlib import Path
from helpers.compatibility import Compatibility

def pytest_addoption(parser):
    parser.addoption("--write-compatibility", action="store_true")

def pytest_configure(config):
    page = Path(__file__).parent / "page.md"
    config.pluginmanager.register(Compatibility(write=config.getoption("--write-compatibility"), page=page))
"""
TESTS = """
import pytest

@pytest.mark.parametrize("column", ["first", "second"])
def test_it(column, record_property):
    record_property("matrix", {"table": "tables", "row": "a|b", "column": column, "cell": "yes: CELL"})
    assert column != "BAD"

@pytest.mark.slow
def test_long():
    pass
"""


@pytest.fixture
def session(tmp_path):
    """Run a small suite with a page of its own: (exit status, output)."""
    (tmp_path / "pytest.ini").write_text("[pytest]\ntestpaths = .\naddopts = -m 'not slow'\nmarkers = slow\n")
    (tmp_path / "conftest.py").write_text(CONFTEST)

    def run(*arguments, bad="none", cell="as ever"):
        (tmp_path / "test_small.py").write_text(TESTS.replace("BAD", bad).replace("CELL", cell))
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "xdist.plugin", *arguments],
            cwd=tmp_path,
            env={
                **os.environ,
                "PYTHONPATH": str(Path(__file__).parents[1]),
                "PYTHONDONTWRITEBYTECODE": "1",
                "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            },
            capture_output=True,
            text=True,
        )
        return done.returncode, done.stdout + done.stderr

    run.page = tmp_path / "page.md"
    return run


def test_the_page_is_written_from_the_tests_and_compared_with_them(session):
    assert "the page says 'nothing'" in session()[1]
    assert session("--write-compatibility")[0] == 0
    assert parse(session.page.read_text()) == {"tables": {("a|b", c): "yes: as ever" for c in ("first", "second")}}
    assert session()[0] == 0
    status, output = session(cell="no longer")
    assert status == 1
    assert "Tables, a|b, second: the page says 'yes: as ever', this test 'yes: no longer'" in output
    assert "make compatibility" in output


def test_a_failing_test_is_a_broken_cell(session):
    assert session("--write-compatibility", bad="second")[0] == 1
    cells = parse(session.page.read_text())["tables"]
    assert cells == {("a|b", "first"): "yes: as ever", ("a|b", "second"): "broken"}
    assert session()[0] == 1  # the test is right again, the page is not


def test_a_cell_without_a_test_fails_a_session_in_which_its_table_ran_whole(session):
    session("--write-compatibility")
    session.page.write_text(
        session.page.read_text() + "| gone | yes | yes |\n## Others\n\n| | x |\n|---|---|\n| y | z |\n"
    )
    status, output = session("-m", "")
    assert status == 1
    assert "cells without a test: Tables, gone, first; Tables, gone, second; Others, y, x" in output
    for part in ([], ["test_small.py"], ["-k", "first"], ["-k", "long", "-m", ""], ["-m", "slow"]):
        assert session(*part)[0] == 0


def test_several_processes_find_the_same(session):
    session("--write-compatibility")
    assert session("-n", "2")[0] == 0
    assert "this test 'yes: no longer'" in session("-n", "2", cell="no longer")[1]
    session.page.write_text(session.page.read_text() + "| gone | yes | yes |\n")
    assert session("-n", "2")[0] == 0  # a slow test was left out
    status, output = session("-n", "2", "-m", "")
    assert status == 1
    assert "cells without a test: Tables, gone, first; Tables, gone, second" in output


def test_a_table_that_did_not_run_is_kept(session):
    session("--write-compatibility")
    session.page.write_text(session.page.read_text() + "\n## Loggers\n\n| | x |\n|---|---|\n| y | z |\n")
    session("--write-compatibility", cell="new")
    tables = parse(session.page.read_text())
    assert tables["loggers"] == {("y", "x"): "z"}
    assert set(tables["tables"].values()) == {"yes: new"}


def test_the_committed_page_is_its_own_rendering():
    tables = parse(PAGE.read_text(encoding="utf-8"))
    assert parse(render(tables)) == tables
    assert "broken" not in {cell for cells in tables.values() for cell in cells.values()}
