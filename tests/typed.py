"""What tests say to a type checker: a value that must be there, and one that is of a wrong type on purpose."""

from __future__ import annotations

from typing import Any, TypeVar

T = TypeVar("T")


def known(value: T | None) -> T:
    """A value that may be absent in general, but not here; the test fails if it is."""
    assert value is not None
    return value


def wrong(value: object) -> Any:
    """An argument that its receiver must refuse, or a stand-in for one that does not matter: of any type."""
    return value
