"""Messages name keys that work: every key of a recipe that a text mentions exists, under its whole path."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel
from theodolite.annotate.config import AnnotateConfig
from theodolite.recipes.loader import Recipe

ROOT = Path(__file__).parents[2]


def models_of(annotation: Any) -> Iterator[type[BaseModel]]:
    """The model that a field holds, or those of its alternatives."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from models_of(inner)


def is_key(path: str) -> bool:
    models = [Recipe]
    for name in path.split("."):
        fields = [m.model_fields[name].annotation for m in models if name in m.model_fields]
        if not fields:
            return False
        models = [inner for field in fields for inner in models_of(field)]
    return True


SECTION = "|".join(AnnotateConfig.model_fields)
WHOLE = re.compile(r"\b(annotate|source|output)((?:\.[a-z]\w*)+)")
SHORT = re.compile(rf"(?<![\w./])(?:{SECTION}|given)\.[a-z]\w*")


@cache
def texts(path: Path) -> list[tuple[int, str]]:
    """Strings of a file that may be shown, with their lines: all but docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    docs = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    return [
        (node.lineno, node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs
    ]


FILES = [p for folder in ("annotate", "dataset", "recipes") for p in sorted((ROOT / folder).rglob("*.py"))]


@pytest.mark.slow
def test_keys_in_messages_exist():
    wrong = []
    for path in FILES:
        for line, text in texts(path):
            if " " not in text:
                continue
            where = f"{path.relative_to(ROOT)}:{line}"
            for match in WHOLE.finditer(text):
                if not re.search(r"\.(py|ya?ml)$", match[0]) and not is_key(match[0]):
                    wrong.append(f"{where}: {match[0]} is no key of a recipe")
            for match in SHORT.finditer(text):
                if not re.search(r"\.(py|ya?ml)$", match[0]):
                    wrong.append(f"{where}: {match[0]} is no whole key: annotate.{match[0]}?")
    assert not wrong, "\n".join(wrong)


def test_the_reader_of_keys_sees_them():
    assert is_key("annotate.decode.fps")
    assert is_key("source.root")
    assert not is_key("annotate.decode.fsp")
    assert not is_key("annotate.fps")
    assert SHORT.findall("keep them (decode.fps: native)") == ["decode.fps"]
    assert not SHORT.findall("annotate.decode.fps=native, dataset/bundle.py")


OPTION = re.compile(r"(?<![\w-])--[a-z][\w-]*")
OF_OTHERS = {
    "vLLM": {"--limit-mm-per-prompt"},
    "git": {"--show-toplevel", "--porcelain", "--untracked-files"},
    "evo": {"--align", "--correct_scale"},
    "hf": {"--repo-type", "--local-dir"},
}
STYLES = ("plots.py", "page.py", "svg.py")
"""Files whose texts are styles of pages, with variables that look like options."""


def options_of_the_command() -> set[str]:
    import typer
    from theodolite.recipes.cli import app

    def walk(command: Any) -> Iterator[str]:
        for parameter in command.params:
            yield from (o for o in [*parameter.opts, *parameter.secondary_opts] if o.startswith("--"))
        for inner in getattr(command, "commands", {}).values():
            yield from walk(inner)

    return {*walk(typer.main.get_command(app)), "--help"}


@pytest.mark.slow
def test_options_in_messages_exist():
    known = options_of_the_command() | set().union(*OF_OTHERS.values())
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {option}"
        for path in FILES
        if path.name not in STYLES
        for line, text in texts(path)
        for option in OPTION.findall(text)
        if option not in known
    ]
    assert not wrong, "\n".join(wrong)
