"""Markdown that is generated: tables, and parts of a text between two comments, each replaced as a whole."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from vmmr.errors import ConfigError

__all__ = ["replace_part", "table", "with_part"]


def table(head: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """A table; cells are shown as they are.

    >>> print(table(["score", "AUROC"], [["knn", 0.9]]))
    | score | AUROC |
    | --- | --- |
    | knn | 0.9 |
    """
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def replace_part(text: str, name: str, part: str) -> str:
    """The text with `part` between its comments of this name. Raises ConfigError where it has no such comments.

    >>> "new" in replace_part("a <!-- table: generated -->old<!-- end of table --> b", "table", "new")
    True
    """
    start, end = f"<!-- {name}: generated -->", f"<!-- end of {name} -->"
    before, found, rest = text.partition(start)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise ConfigError(f"no place for the {name} in this text", do=f"put {start} and {end} where it shall stand")
    return f"{before}{start}\n\n{part.strip()}\n\n{end}{after}"


def with_part(text: str, name: str, part: str) -> str:
    """The text with `part` in the place of an earlier one of this name, or at its end.

    >>> text = with_part("# A card", "numbers", "old")
    >>> with_part(text, "numbers", "new") == text.replace("old", "new")
    True
    """
    if f"<!-- {name}: generated -->" not in text:
        text = f"{text.rstrip()}\n\n<!-- {name}: generated --><!-- end of {name} -->\n"
    return replace_part(text, name, part)
