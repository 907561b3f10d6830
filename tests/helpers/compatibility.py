"""docs/compatibility.md, written from the outcome of the matrix tests and held to it.

A matrix test says with ``record_property("matrix", {"table": ..., "row": ..., "column": ..., "cell": ...})``, before it
checks anything, what the page has to say. A test fails if the committed page says otherwise; with
``--write-compatibility`` the page is written from the tests that ran instead: their tables anew, all others kept.
"""

import re
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "compatibility.md"
COMMAND = "make compatibility"
BROKEN = "broken"
HEADINGS = {
    "streams": "Streams",
    "partners": "Plugins of Avalanche beside a method",
    "templates": "Strategies of Avalanche that carry a method",
    "loggers": "Loggers",
    "buffers": "Storage policies",
}

Cells = dict[tuple[str, str], str]  # (row, column) -> cell, in the order of the page
Tables = dict[str, Cells]


def heading(table: str) -> str:
    return HEADINGS.get(table, table.capitalize())


def render(tables: Tables) -> str:
    """The page. Columns and rows come in the order in which they were recorded; the known tables come first."""
    names = [*(t for t in HEADINGS if t in tables), *sorted(tables.keys() - HEADINGS.keys())]
    parts = [
        "# Compatibility\n",
        "What Co2L, SS-IL and CSD train on, stand beside and store with: each cell is the outcome of a test.\n"
        f"Written by `{COMMAND}` (avalanche-lib {version('avalanche-lib')}, torch {version('torch')}); `make test` "
        "holds it to the tests.\n",
        "*yes*: trains, the loss is the method's documented objective plus the partner's own terms, and the partner "
        "does its work; in either order of the list, with equal weights at the end, where nothing else is said. "
        "*refused*: by an error of this package, before the first step. *fails* or *void by itself*: also "
        "without this package.\n",
    ]
    return "\n".join(parts) + "".join(f"\n## {heading(name)}\n\n{_render(tables[name])}" for name in names)


def _render(cells: Cells) -> str:
    rows, columns = (list(dict.fromkeys(key[axis] for key in cells)) for axis in (0, 1))
    lines = [["case", *columns], ["---"] * (len(columns) + 1)]
    lines += [[row, *(cells.get((row, column), "–") for column in columns)] for row in rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def parse(text: str) -> Tables:
    """The tables of a page, as ``render`` takes them."""
    keys = {heading(name): name for name in HEADINGS}
    tables: Tables = {}
    for section in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        title, _, body = section.partition("\n")
        lines = [_split(line) for line in body.splitlines() if line.startswith("|")]
        table = tables.setdefault(keys.get(title, title.lower()), {})
        for row, *cells in lines[2:]:
            table.update({(row, column): cell for column, cell in zip(lines[0][1:], cells, strict=True) if cell != "–"})
    return tables


def _split(line: str) -> list[str]:
    return [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


class Compatibility:
    """The pytest plugin: collects the cells of the tests that ran, and compares or writes the page."""

    def __init__(self, *, write: bool, page: Path = PAGE) -> None:
        self.write, self.page = write, page
        self.committed = parse(page.read_text(encoding="utf-8")) if page.exists() else {}
        self.found: Tables = {}
        self.modules: dict[str, set[str]] = {}  # by table, those with tests that ran
        self.left_out: set[str] = set()  # modules with tests that did not run
        self.stale: list[str] = []

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item):
        outcome = yield
        for cell in recorded(item.user_properties):
            self.check(**cell)
        return outcome

    def check(self, *, table: str, row: str, column: str, cell: str) -> None:
        """Hold a cell to the committed page."""
        says = self.committed.get(table, {}).get((row, column), "nothing")
        if not self.write and says != cell:
            pytest.fail(
                f"{self.page.name}, {heading(table)}, {row}, {column}: the page says {says!r}, this test {cell!r}. "
                f"If the test is right, write the page anew: {COMMAND}",
                pytrace=False,
            )

    def pytest_deselected(self, items: Iterable[pytest.Item]) -> None:
        self.left_out.update(item.nodeid.partition("::")[0] for item in items)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        module = report.nodeid.partition("::")[0]
        if report.skipped:
            self.left_out.add(module)
        if report.when != "call" or report.skipped:
            return
        for cell in recorded(report.user_properties):
            self.modules.setdefault(cell["table"], set()).add(module)
            self.add(**cell, passed=report.passed)

    def add(self, *, table: str, row: str, column: str, cell: str, passed: bool) -> None:
        """Note a cell; several tests of one cell must all pass and agree."""
        cells = self.found.setdefault(table, {})
        agreed = cells.get((row, column), cell) == cell
        cells[row, column] = cell if passed and agreed else BROKEN

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if hasattr(session.config, "workerinput"):  # a process of pytest-xdist: the first one collects all outcomes
            session.config.workeroutput["left_out"] = sorted(self.left_out)
        elif self.write:
            self.page.parent.mkdir(exist_ok=True)
            self.page.write_text(render({**self.committed, **self.found}), encoding="utf-8")
        elif session.config.args_source is pytest.Config.ArgsSource.TESTPATHS and session.exitstatus == 0:
            self.stale = self.unfounded()
            if self.stale:
                session.exitstatus = pytest.ExitCode.TESTS_FAILED

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node, error) -> None:
        """A process of pytest-xdist has ended; which tests were left out only those know."""
        self.left_out.update(getattr(node, "workeroutput", {}).get("left_out", ()))

    def unfounded(self) -> list[str]:
        """Cells of the page that no test has recorded, where all tests of their table ran (or just all tests)."""
        return [
            f"{heading(table)}, {row}, {column}"
            for table, cells in self.committed.items()
            if not (self.modules.get(table) or self.left_out) & self.left_out
            for row, column in cells
            if (row, column) not in self.found.get(table, {})
        ]

    def pytest_terminal_summary(self, terminalreporter) -> None:
        if self.write:
            terminalreporter.write_line(f"wrote {self.page}")
        if self.stale:
            terminalreporter.write_line(
                f"{self.page.name} has cells without a test: {'; '.join(self.stale)}. Write it anew: {COMMAND}",
                red=True,
            )


def recorded(properties: Iterable[tuple[str, object]]) -> list[dict[str, str]]:
    return [value for name, value in properties if name == "matrix"]
