"""A notebook beside its script: the notebook that a script says, and in what another one is not that notebook."""

import hashlib
import re
import tempfile
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

import jupytext  # type: ignore[import-untyped, unused-ignore]
import nbformat
from nbformat import NotebookNode

FORMAT = "py:percent"
METADATA = {
    "jupytext": {  # who has jupytext in Jupyter edits both files as one
        "cell_metadata_filter": "alt,-all",
        "formats": "ipynb,py:percent",
        "notebook_metadata_filter": "-all",
    },
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"file_extension": ".py", "mimetype": "text/x-python", "name": "python"},
}
PICTURE = "image/png"
ADDRESS = re.compile(r" at 0x[0-9a-f]{6,}")


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    """The cells that are executed."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def texts(cell: NotebookNode) -> Iterator[tuple[str, str]]:
    """All text that a cell shows: "stdout", "stderr" or a MIME type, and the text."""
    for output in cell.get("outputs", []):
        if output.output_type == "stream":
            yield output.name, output.text
        elif output.output_type != "error":
            yield from ((mime, text) for mime, text in sorted(output.data.items()) if mime.startswith("text/"))


def first_line(cell: NotebookNode) -> str:
    """Of a cell, shortened, to name it by."""
    line = next(iter(cell.source.strip().splitlines()), "empty")
    return line if len(line) <= 60 else f"{line[:57]}..."


def read_script(path: Path) -> NotebookNode:
    """The notebook that a script says, without outputs."""
    notebook: NotebookNode = jupytext.read(path, fmt=FORMAT)
    notebook.metadata = nbformat.from_dict(METADATA)
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    seen: dict[str, int] = {}
    for cell in notebook.cells:
        digest = hashlib.sha256(f"{cell.cell_type}\n{cell.source}".encode()).hexdigest()[:12]
        seen[digest] = seen.get(digest, 0) + 1
        cell.id = digest if seen[digest] == 1 else f"{digest}-{seen[digest]}"
        if alt := cell.metadata.get("alt"):
            cell.metadata["mystnb"] = {"image": {"alt": alt}}  # for the documentation's pages
    return notebook


def unclean(notebook: NotebookNode, folder: Path) -> list[str]:
    """What no reader should meet: warnings, places of this machine, addresses in memory, a picture without words."""
    places = (folder.parent, Path.home(), Path(tempfile.gettempdir()))
    here = re.compile("|".join(rf"{re.escape(str(place))}\b" for place in places if place != place.parent))
    problems = []
    for number, cell in enumerate(notebook.cells, 1):
        for kind, text in texts(cell):
            shown = f"cell {number} ({first_line(cell)})"
            if kind == "stderr":
                problems.append(f"{shown} warns:\n{text.strip()}")
            elif match := here.search(text) or ADDRESS.search(text):
                line = next(line for line in text.splitlines() if match[0] in line)
                problems.append(f"{shown} prints what is true of this machine and run alone: {line.strip()}")
        pictures = sum(PICTURE in output.get("data", {}) for output in cell.get("outputs", []))
        if pictures > bool(cell.metadata.get("alt")):  # one alt describes one picture
            problems.append(f'cell {number} ({first_line(cell)}): a picture needs a header # %% alt="what it shows"')
    return problems


def stale(source: Path, path: Path, fresh: NotebookNode | None = None) -> list[str]:
    """What says that a notebook is not what its script gives.

    Args:
        source: the script.
        path: of the notebook.
        fresh: the script executed just now; None: only what can be seen without executing.

    Returns:
        At most one problem, in words; none if the notebook is up to date.
    """
    again = f"Execute it: python notebooks/build.py {source.stem}"
    if not path.is_file():
        return [f"stale: there is no {path.name}. {again}"]
    try:
        committed = nbformat.read(path, as_version=nbformat.NO_CONVERT)
        nbformat.validate(committed)
    except (ValueError, nbformat.ValidationError) as error:
        return [f"stale: {path.name} is no notebook: {str(error).splitlines()[0]}. {again}"]
    found = _other_source(read_script(source), committed) or _not_executed(committed)
    if not found and fresh is not None:
        found = _other_outputs(fresh, committed)
    return [f"stale: {found}. {again}"] if found else []


def _other_source(script: NotebookNode, committed: NotebookNode) -> str:
    if len(script.cells) != len(committed.cells):
        return f"the script has {len(script.cells)} cells, the notebook {len(committed.cells)}"
    for number, (ours, theirs) in enumerate(zip(script.cells, committed.cells, strict=True), 1):
        if (ours.cell_type, ours.source) != (theirs.cell_type, theirs.source):
            return f"cell {number} ({first_line(ours)}) is not that of the notebook: {_difference(ours, theirs)}"
    if _bare(script) != _bare(committed):
        return "metadata or ids of its cells are not those that build.py writes"
    return ""


def _difference(ours: NotebookNode, theirs: NotebookNode) -> str:
    """The first line that differs."""
    pairs = zip_longest(ours.source.splitlines(), theirs.source.splitlines(), fillvalue="")
    one, other = next(((a, b) for a, b in pairs if a != b), (f"a {ours.cell_type} cell", f"a {theirs.cell_type} cell"))
    return f"{one!r} in the script, {other!r} in the notebook"


def _bare(notebook: NotebookNode) -> dict[str, Any]:
    """All but what an execution adds."""
    cells = [{k: v for k, v in cell.items() if k not in ("outputs", "execution_count")} for cell in notebook.cells]
    return {**notebook, "cells": cells}


def _not_executed(committed: NotebookNode) -> str:
    # An empty cell is not executed; jupytext makes none.
    for place, cell in enumerate((cell for cell in code_cells(committed) if cell.source.strip()), 1):
        if any(output.output_type == "error" for output in cell.outputs):
            return f"the cell {first_line(cell)!r} ends in an error"
        if cell.execution_count != place:
            state = "was not executed" if cell.execution_count is None else f"has number {cell.execution_count}"
            return f"the cell {first_line(cell)!r} {state}; from top to bottom it would have number {place}"
    return ""


def _other_outputs(fresh: NotebookNode, committed: NotebookNode) -> str:
    for number, (ours, theirs) in enumerate(zip(fresh.cells, committed.cells, strict=True), 1):
        if _kinds(ours) != _kinds(theirs):
            gives, has = (", ".join(_kinds(cell)) or "nothing" for cell in (ours, theirs))
            return f"cell {number} ({first_line(ours)}) gives {gives}; the notebook shows {has}"
    return ""


def _kinds(cell: NotebookNode) -> list[str]:
    """The outputs in words: "stdout", "image/png"."""
    return [
        output.name if output.output_type == "stream" else "/".join(sorted(output.get("data", ["error"])))
        for output in cell.get("outputs", [])
    ]


def other_texts(fresh: NotebookNode, path: Path) -> str:
    """Numbers of the cells whose text differs, of a notebook that is not stale."""
    committed = nbformat.read(path, as_version=nbformat.NO_CONVERT)
    pairs = enumerate(zip(fresh.cells, committed.cells, strict=True), 1)
    return ", ".join(str(number) for number, (ours, theirs) in pairs if list(texts(ours)) != list(texts(theirs)))
