"""Licences of data and weights, and what they allow for the cameras computed from them.

The table says what the licence text itself states about commercial use; it is no legal advice. A licence that
is not here counts as unknown, and unknown never leaves the house.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from .rows import Row


@dataclass(frozen=True)
class Licence:
    """One licence: does its text allow commercial use, and must derived work carry the same licence."""

    name: str
    commercial: bool
    share_alike: bool = False


_KNOWN = (
    Licence("CC0-1.0", commercial=True),
    Licence("PDDL-1.0", commercial=True),
    Licence("CC-BY-3.0", commercial=True),
    Licence("CC-BY-4.0", commercial=True),
    Licence("CC-BY-SA-4.0", commercial=True, share_alike=True),
    Licence("ODC-By-1.0", commercial=True),
    Licence("MIT", commercial=True),
    Licence("Apache-2.0", commercial=True),
    Licence("BSD-2-Clause", commercial=True),
    Licence("BSD-3-Clause", commercial=True),
    Licence("Gemma-terms", commercial=True),
    # Free of charge only below a yearly revenue, which nothing here knows.
    Licence("LTX-2-community", commercial=False),
    Licence("CC-BY-NC-4.0", commercial=False),
    Licence("CC-BY-NC-ND-4.0", commercial=False),
    Licence("CC-BY-NC-SA-3.0", commercial=False, share_alike=True),
    Licence("CC-BY-NC-SA-4.0", commercial=False, share_alike=True),
    Licence("DL3DV-10K-terms", commercial=False),
    Licence("NVIDIA-noncommercial", commercial=False),
    Licence("fair-noncommercial-research", commercial=False),
    Licence("research-only", commercial=False),
    Licence("proprietary-own", commercial=True),
)
_OLDER = {
    "CC BY-NC 4.0 (non-commercial)": "CC-BY-NC-4.0",
    "MIT (as third parties quote the model card)": "MIT",
}
"""What earlier versions wrote into rows for the weights of their networks."""


def _spelled(name: str) -> str:
    return "-".join(re.split(r"[\s_-]+", name.strip().lower()))


_BY_NAME = {_spelled(licence.name): licence for licence in _KNOWN}
_BY_NAME |= {_spelled(older): _BY_NAME[_spelled(name)] for older, name in _OLDER.items()}


def known_licences() -> tuple[Licence, ...]:
    """All licences in the table."""
    return _KNOWN


def find_licence(name: str) -> Licence | None:
    """Licence of this name, or None if it is unknown; case, and blanks in place of hyphens, do not matter.
    Names that earlier versions wrote are read as what they mean."""
    return _BY_NAME.get(_spelled(name))


def allows_commercial_use(data_licence: str, weight_licences: tuple[str, ...] | list[str]) -> bool:
    """True if the licence of the data and those of all weights are known and allow commercial use."""
    found = [find_licence(name) for name in (data_licence, *weight_licences)]
    return all(licence is not None and licence.commercial for licence in found)


def unknown_licences(row: Row) -> tuple[str, ...]:
    """Names among a row's licences that the table does not have."""
    return tuple(name for name in (row.data_licence, *row.weight_licences) if find_licence(name) is None)
