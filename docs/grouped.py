"""griffe reads `height, width: text` as one parameter of that name; here it is two with the same text."""

from __future__ import annotations

import re
from typing import Any

import griffe

_GROUP = re.compile(r"( +)(\w+(?:, \w+)+): (.*)")


def split(text: str) -> str:
    """A docstring with one entry a name; what continues an entry goes along."""
    lines = text.split("\n")
    out: list[str] = []
    while lines:
        found = _GROUP.fullmatch(lines[0])
        first = lines.pop(0)
        if found is None:
            out.append(first)
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
