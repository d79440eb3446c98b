"""Text that came with data, made harmless for where it goes: a terminal, or Markdown that a website renders."""

from __future__ import annotations

import re
import unicodedata

_KEPT = frozenset("\n\t")
_MARKDOWN = re.compile(r"([\\`*\[\]|!#~])")


def for_terminal(text: str) -> str:
    """The text with everything that a terminal would act upon (escape sequences, carriage returns, marks that turn the
    direction of writing) spelled out; lines and tabs stay."""
    return "".join(c if c in _KEPT or not _acts(c) else _spelled(c) for c in text)


def for_line(text: str) -> str:
    """As `for_terminal`, on one line: line ends are spelled out as well."""
    return "".join(_spelled(c) if _acts(c) or c in "\u2028\u2029" else c for c in text)


def for_markdown(text: str) -> str:
    """The text as Markdown shows it literally, on one line: no HTML, no link, no picture, no cell of a table."""
    plain = for_line(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _MARKDOWN.sub(r"\\\1", plain).replace("://", ":&#47;&#47;").replace("@", "&#64;")


def _acts(character: str) -> bool:
    # Control characters, those that format (bidirectional marks, zero widths), halves of surrogate pairs.
    return unicodedata.category(character) in ("Cc", "Cf", "Cs")


def _spelled(character: str) -> str:
    code = ord(character)
    return {"\n": "\\n", "\t": "\\t", "\r": "\\r"}.get(
        character, f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 65536 else f"\\U{code:08x}"
    )
