"""Base of every configuration model: frozen, no unknown keys. Lives on the lowest floor so that all may use it."""

from __future__ import annotations

import re

from pydantic import BaseModel, ConfigDict, ValidationError


class Strict(BaseModel):
    """Configuration that rejects unknown keys and cannot change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Finite(Strict):
    """The same, of numbers that are neither infinite nor NaN, but where a field says otherwise."""

    model_config = ConfigDict(allow_inf_nan=False)


WHOLE = "(the file): "
"""Begins the line of a mistake that is of no single key."""


def error_lines(error: ValidationError) -> list[str]:
    """One line a mistake: full key path, what is wrong, the value found."""
    lines = []
    for item in error.errors():
        # The tag of a discriminated union is no key of the file.
        loc = [str(p) for p in item["loc"]]
        if len(loc) > 1 and loc[0] == "source" and loc[1] in ("videos", "index", "release"):
            del loc[1]
        path = ".".join(loc) or WHOLE.removesuffix(": ")
        if item["type"] == "extra_forbidden":
            lines.append(f"{path}: unknown key (got {_shown(item['input'])})")
        elif item["type"] == "missing":
            lines.append(f"{path}: is required")
        else:
            message = re.sub(r"^(Input|Value error,|String|Assertion failed,) ?", "", item["msg"])
            # Of keys that contradict each other not the whole is shown.
            found = f" (got {_shown(item['input'])})" if loc else ""
            lines.append(f"{path}: {message}{found}")
    return lines


def _shown(value: object) -> str:
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= 80 else text[:77] + "..."
