"""What a table is, and its Markdown. Cells and captions are plain words: each format escapes them for itself."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

NONE = "–"
SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


class Code(str):
    """A cell in the typeface of code, such as the name of a row."""

    __slots__ = ()


@dataclass(frozen=True)
class Table:
    """A table of words. It is false without rows; as a string it is Markdown.

    Args:
        columns: headings.
        rows: cells, as many as columns.
        align: "l" or "r" for each column.
        caption: a paragraph, in which words between backticks are code; may be empty.
        notes: footnotes of the same kind, each with its mark.
        ours: which rows are of Co2L, SS-IL and CSD.
        best: (row, column) of each cell to be marked.
        definitions: what columns mean, each a name and a sentence.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    align: str
    caption: str = ""
    notes: tuple[str, ...] = ()
    ours: frozenset[int] = frozenset()
    best: frozenset[tuple[int, int]] = frozenset()
    definitions: tuple[tuple[str, str], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.rows)

    def __str__(self) -> str:
        if not self.rows:
            return ""
        rule = "|" + "|".join("---:" if side == "r" else "---" for side in self.align) + "|"
        lines = [_line(map(_escaped, self.columns)), rule]
        for i, row in enumerate(self.rows):
            lines.append(_line(_cell(text, best=(i, j) in self.best) for j, text in enumerate(row)))
        about = " ".join(filter(None, [markdown(self.caption), *map(defined, self.definitions)]))
        return "\n\n".join(filter(None, ["\n".join(lines), about, *map(markdown, self.notes)])) + "\n"


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.strip() for cell in cells) + " |"


def _cell(text: str, *, best: bool) -> str:
    words = f"`{text}`" if isinstance(text, Code) and not set(text) & set("`|\n") else _escaped(text)
    return f"**{words}**" if best else words


def _escaped(text: str) -> str:
    """Words with Markdown's signs escaped, for paragraphs and for cells of tables."""
    return re.sub(r"([|\\`*<]|\](?=\())", r"\\\1", re.sub(r"\s+", " ", text))


def markdown(prose: str) -> str:
    """A paragraph as Markdown."""
    return "".join(f"`{part}`" if code else _escaped(part) for part, code in parts(prose))


def defined(definition: tuple[str, str]) -> str:
    """A column's name and what it means, as Markdown."""
    name, meaning = definition
    return f"*{capital(name)}*: {markdown(meaning)}"


def parts(prose: str) -> list[tuple[str, bool]]:
    """The pieces of a paragraph, and which of them are code; a backtick without a second one is an ordinary sign."""
    pieces = prose.split("`")
    if len(pieces) % 2 == 0:
        pieces[-2:] = ["`".join(pieces[-2:])]
    return [(piece, index % 2 == 1) for index, piece in enumerate(pieces) if piece]


# ---- words


def capital(text: str) -> str:
    """The text with a capital first letter."""
    return text[:1].upper() + text[1:]


def worded(thing: object) -> str:
    """A setting's value in words."""
    if isinstance(thing, bool):
        return "yes" if thing else "no"
    if isinstance(thing, (list, tuple)):
        return "/".join(map(worded, thing)) or "none"
    return f"{thing:g}" if isinstance(thing, float) else str(thing)


def listed(things: Iterable[object]) -> str:
    """The things, with commas between them."""
    return ", ".join(map(str, things))


def count(number: int, noun: str) -> str:
    """A number with its noun, in the plural unless it is 1."""
    return f"{number} {noun}" + ("" if number == 1 else "s")


def percent(ends: Sequence[float], sign: str = "") -> str:
    """An interval of shares, in percent."""
    return "[" + ", ".join(f"{100 * end:{sign}.1f}" for end in ends) + "]"
