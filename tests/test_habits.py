"""Names say what they hold; what is long says why."""

from __future__ import annotations

import ast
import re

import pytest

from .test_house import MOST_LINES, ROOT, is_kernel, lines_of, nodes_of, our_code, sources

VAGUE = {"of", "at", "by", "here"}


def bound_names(tree: list[ast.AST]) -> set[tuple[str, int]]:
    """Variables and parameters with their lines; not fields, which are read behind their record (`figure.of`), and
    none of kernels."""
    apart: set[ast.AST] = set()
    for node in tree:
        if isinstance(node, ast.ClassDef):
            apart |= {field.target for field in node.body if isinstance(field, ast.AnnAssign)}
        elif isinstance(node, ast.FunctionDef) and is_kernel(node):
            apart |= {*ast.walk(node)}
    found = {
        (n.id, n.lineno)
        for n in tree
        if isinstance(n, ast.Name) and type(n.ctx) is ast.Store and n not in apart
    }
    return found | {(n.arg, n.lineno) for n in tree if isinstance(n, ast.arg) and n not in apart}


def test_the_reader_of_names_sees_them():
    code = (
        "class A:\n  of: int\ndef f(at, *, by=0):\n  for here, x in y: pass\n@triton.jit\ndef k(of): pass\n"
    )
    assert {name for name, _ in bound_names(list(ast.walk(ast.parse(code))))} == {"at", "by", "here", "x"}


@pytest.mark.slow
def test_no_variable_is_called_by_a_little_word():
    wrong = [
        f"{path.relative_to(ROOT).as_posix()}:{line}: {name}"
        for path in sources()
        for name, line in bound_names(nodes_of(path))
        if name in VAGUE
    ]
    assert not wrong, f"say what they hold: {wrong}"


@pytest.mark.slow
def test_long_functions_of_tests_and_benchmarks_say_why():
    """Those of the package are never long (tests/test_house.py)."""
    silent = [
        f"{path.relative_to(ROOT).as_posix()}:{node.name}"
        for path in our_code()
        for node in nodes_of(path)
        if isinstance(node, ast.FunctionDef)
        and not is_kernel(node)
        and lines_of(node) > MOST_LINES
        and not re.search(r"\blong\b|in one piece", ast.get_docstring(node) or "", re.IGNORECASE)
    ]
    assert not silent, f"say in the docstring why it is long, or split it: {silent}"
