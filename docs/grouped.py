"""Docstrings as griffe wants them: it reads `height, width: text` as one parameter of that name, and finds no section
that follows a sentence without an empty line between."""

from __future__ import annotations

import re
from typing import Any

import griffe

_GROUP = re.compile(r"( +)(\w+(?:, \w+)+): (.*)")
_SECTION = re.compile(r"(Args|Attributes|Returns|Yields|Raises):|Sources?: .*|Methods?: .*")


def split(text: str) -> str:
    """A docstring with one entry a name, what continues an entry along, and sections apart."""
    lines = text.split("\n")
    out: list[str] = []
    while lines:
        first = lines.pop(0)
        found = _GROUP.fullmatch(first)
        if found is None:
            out += ["", first] if _SECTION.fullmatch(first) else [first]
            continue
        rest: list[str] = []
        while lines and lines[0].startswith(found[1] + " "):
            rest.append(lines.pop(0))
        for name in found[2].split(", "):
            out += [f"{found[1]}{name}: {found[3]}", *rest]
    return "\n".join(out)


class GroupedNames(griffe.Extension):
    """Splits the entries of every docstring before it is parsed."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = split(obj.docstring.value)
