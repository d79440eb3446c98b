"""What is told of mistakes in recipes: what was probably meant."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Iterator, Mapping
from typing import Any, get_args

from pydantic import BaseModel

from ..annotate.sources.entries import IndexEntry
from ..dataset.strict import WHOLE


def with_hint(line: str, recipe: type[BaseModel], renamed: Mapping[str, str]) -> str:
    """A line about a mistake, with what was probably meant where a key is unknown.

    Args:
        line: `key.path: what is wrong`.
        recipe: the model that has the keys.
        renamed: keys of earlier versions, and what they are called now.
    """
    line = (
        line.removeprefix(WHOLE) if line.startswith(f"{WHOLE}annotate.") else line
    )  # it names its key itself
    path, _, rest = line.partition(": ")
    if not rest.startswith("unknown key"):
        return line
    if path in renamed:
        return f"{line}; it is called {renamed[path]} now"
    *parents, wrong = path.split(".")
    if wrong in IndexEntry.model_fields:
        return f"{line}; {wrong} is said of each clip in the index, or there under `defaults`"
    if parents == ["source"] and (kinds := _kinds_with(recipe, wrong)):
        return f"{line}; it goes with source.kind={' or '.join(kinds)}"
    whole = [".".join(key) for key in _all_keys(recipe) if key[-len(parents) - 1 :] == (*parents, wrong)]
    close = whole or difflib.get_close_matches(wrong, _keys_below(recipe, parents), n=1)
    return f"{line}; did you mean {' or '.join(dict.fromkeys(close[:3]))}?" if close else line


def _kinds_with(recipe: type[BaseModel], key: str) -> list[str]:
    """Kinds of sources that have a key."""
    kinds = []
    for model in models_of(recipe.model_fields["source"].annotation):
        if key in model.model_fields:
            kinds += get_args(model.model_fields["kind"].annotation)
    return kinds


def models_of(annotation: Any) -> Iterator[type[BaseModel]]:
    """The model that a field holds, or those of its alternatives."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from models_of(inner)


def _all_keys(annotation: Any, prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every key of a model, from the first level on; those of all alternatives."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        for name, field in annotation.model_fields.items():
            yield (*prefix, name)
            yield from _all_keys(field.annotation, (*prefix, name))
    else:
        for inner in get_args(annotation):
            yield from _all_keys(inner, prefix)


def _keys_below(recipe: type[BaseModel], parents: list[str]) -> list[str]:
    """Keys of a section."""
    model: Any = recipe
    for key in parents:
        field = (
            model.model_fields.get(key) if isinstance(model, type) and issubclass(model, BaseModel) else None
        )
        model = None if field is None else field.annotation
    if isinstance(model, type) and issubclass(model, BaseModel):
        return list(model.model_fields)
    return []


def misread_paths(content: Any, prefix: str = "") -> list[str]:
    """Strings in which YAML made control characters of a path's backslashes: "C:\\runs" begins a new line."""
    if isinstance(content, Mapping):
        return [
            line
            for key, value in content.items()
            for line in misread_paths(value, f"{prefix}.{key}".lstrip("."))
        ]
    if isinstance(content, list):
        return [line for value in content for line in misread_paths(value, prefix)]
    if not isinstance(content, str):
        return []
    # "C:\new" is the beginning of a path, "Q: why?" of a text that may have lines.
    usual = "" if re.match(r"[A-Za-z]:[^ ]", content) else "\n\t"
    if not any(unicodedata.category(c) == "Cc" and c not in usual for c in content):
        return []
    return [
        f"{prefix}: {content!r} holds control characters: in double quotes YAML takes \\r, \\b, \\t and others for "
        "one; write a path in single quotes, without quotes, or with /"
    ]
