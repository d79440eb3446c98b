"""What was probably meant by a key that a recipe does not have."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Any, get_args

from pydantic import BaseModel

from ..annotate.sources.entries import IndexEntry


def with_hint(line: str, recipe: type[BaseModel], renamed: Mapping[str, str]) -> str:
    """A line about a mistake, with what was probably meant where a key is unknown.

    Args:
        line: `key.path: what is wrong`.
        recipe: the model that has the keys.
        renamed: keys of earlier versions, and what they are called now.
    """
    path, _, rest = line.partition(": ")
    if not rest.startswith("unknown key"):
        return line
    if path in renamed:
        return f"{line}; it is called {renamed[path]} now"
    *parents, wrong = path.split(".")
    if wrong in IndexEntry.model_fields:
        return f"{line}; {wrong} is said of each clip in the index, or there under `defaults`"
    whole = [".".join(key) for key in _all_keys(recipe) if key[-len(parents) - 1 :] == (*parents, wrong)]
    close = whole or difflib.get_close_matches(wrong, _keys_below(recipe, parents), n=1)
    return f"{line}; did you mean {' or '.join(dict.fromkeys(close[:3]))}?" if close else line


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
