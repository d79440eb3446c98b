"""Conditions on columns as text: `verdict = 'accepted' and reprojection_rms_px < 1`.

SQL's and Python's spelling alike: `=` or `==`, `!=` or `<>`, `<`, `<=`, `>`, `>=`, `in (a, b)`, `is null`, `is not
null`, `and`, `or`, `not` and parentheses; texts in single or double quotes; numbers; `true` and `false`.
"""

from __future__ import annotations

import difflib
import operator
import re
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

_TOKEN = re.compile(
    r"\s*(?:(?P<number>[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)|(?P<name>[A-Za-z_]\w*)"
    r"|'(?P<single>(?:[^']|'')*)'|\"(?P<double>[^\"]*)\"|(?P<sign>==|=|!=|<>|<=|>=|<|>|\(|\)|,))"
)
_COMPARE: dict[str, Callable[[Any, Any], pc.Expression]] = {
    "=": operator.eq,
    "==": operator.eq,
    "!=": operator.ne,
    "<>": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_WORDS = ("and", "or", "not", "in", "is", "null", "none", "true", "false")


def parse_where(text: str, schema: pa.Schema) -> pc.Expression:
    """Condition of a text on the columns of a schema.

    Raises:
        ValueError: not such a text, an unknown column, or a comparison of a column with a value of another kind.
    """
    parser = _Parser(text, schema)
    condition = parser.any_of()
    if parser.at < len(parser.tokens):
        raise parser.error("`and`, `or` or the end")
    try:
        schema.empty_table().filter(condition)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
        raise ValueError(f"condition {text!r}: {str(error).splitlines()[0]}") from None
    return condition


class _Parser:
    """Recursive descent: `any_of` is made of `all_of`, that of `term`."""

    def __init__(self, text: str, schema: pa.Schema) -> None:
        self.text, self.schema, self.at = text, schema, 0
        self.tokens: list[tuple[str, str]] = []
        end = 0
        while text[end:].strip():
            match = _TOKEN.match(text, end)
            if match is None:
                raise ValueError(f"condition {text!r}: cannot read {text[end:].strip()[:20]!r}")
            kind = match.lastgroup or ""
            value = match[kind]
            if kind == "name" and value.lower() in _WORDS:
                kind, value = "word", value.lower()
            if kind == "single":
                value = value.replace("''", "'")
            self.tokens.append(("text" if kind in ("single", "double") else kind, value))
            end = match.end()

    def error(self, expected: str) -> ValueError:
        found = repr(self.tokens[self.at][1]) if self.at < len(self.tokens) else "its end"
        return ValueError(f"condition {self.text!r}: expected {expected}, found {found}")

    def take(self, kind: str, *values: str) -> str | None:
        """The next token if it is of a kind, and one of the values if there are any."""
        if self.at < len(self.tokens):
            found, value = self.tokens[self.at]
            if found == kind and (not values or value in values):
                self.at += 1
                return value
        return None

    def any_of(self) -> pc.Expression:
        condition = self.all_of()
        while self.take("word", "or"):
            condition = condition | self.all_of()
        return condition

    def all_of(self) -> pc.Expression:
        condition = self.term()
        while self.take("word", "and"):
            condition = condition & self.term()
        return condition

    def term(self) -> pc.Expression:
        if self.take("word", "not"):
            return ~self.term()
        if self.take("sign", "("):
            condition = self.any_of()
            if not self.take("sign", ")"):
                raise self.error("`)`")
            return condition
        name = self.take("name")
        if name is None:
            raise self.error("a column")
        if name not in self.schema.names:
            close = difflib.get_close_matches(name, self.schema.names, n=1)
            meant = f"; did you mean {close[0]}?" if close else ""
            raise ValueError(
                f"condition {self.text!r}: no column {name}{meant}; there are: {', '.join(self.schema.names)}"
            )
        column, kind = pc.field(name), self.schema.field(name).type
        if self.take("word", "is"):
            negated = self.take("word", "not")
            if not self.take("word", "null", "none"):
                raise self.error("`null`")
            return column.is_valid() if negated else column.is_null()
        if pa.types.is_nested(kind):
            raise ValueError(
                f"condition {self.text!r}: {name} holds a list for each clip, and conditions compare single values "
                "(`is null` apart): read the table with pandas, polars or DuckDB, and open the copy that they write"
            )
        negated = self.take("word", "not")
        if self.take("word", "in"):
            inside = column.isin(pa.array(self.values(), kind))
            return ~inside if negated else inside
        sign = None if negated else self.take("sign", *_COMPARE)
        if sign is None:
            if pa.types.is_boolean(kind) and not negated:
                return column == pc.scalar(True)
            raise self.error("a comparison, `in` or `is`")
        return _COMPARE[sign](column, pc.scalar(self.value()))

    def values(self) -> list[Any]:
        if not self.take("sign", "("):
            raise self.error("`(`")
        values = [self.value()]
        while self.take("sign", ","):
            values.append(self.value())
        if not self.take("sign", ")"):
            raise self.error("`)`")
        return values

    def value(self) -> Any:
        if (text := self.take("text")) is not None:
            return text
        if (number := self.take("number")) is not None:
            return float(number) if re.search(r"[.eE]", number) else int(number)
        if word := self.take("word", "true", "false"):
            return word == "true"
        raise self.error("a number, a 'text', true or false")
