"""README and the pages of docs/: every command is one that exists and takes these options, every name that a page
imports or links is there. tests/test_pages_run.py runs them."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import re
import shlex
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from theodolite.recipes.cli import app
from theodolite.recipes.loader import Recipe, load_recipe
from theodolite.recipes.training import load_train_recipe
from theodolite.train.recipe import TrainRecipe

from .test_house import ROOT, names_of

PAGES = [
    path
    for pattern in ("*.md", "benchmarks/*.md", "docs/*.md", "dataset/*.md", "kernels/*.md")
    for path in sorted(ROOT.glob(pattern))
]
HAND_WRITTEN = [path for path in PAGES if path.name != "SCHEMA.md"]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`([^`]+)`")
PROGRAM = typer.main.get_command(app)
TAKES_RECIPES = ("annotate", "plan", "fetch", "unpack")


def blocks(path: Path, language: str) -> list[str]:
    return [body for kind, body in FENCE.findall(path.read_text(encoding="utf-8")) if kind == language]


def commands(path: Path) -> list[list[str]]:
    """Lines of a page's shell blocks, taken apart."""
    lines = (line for body in blocks(path, "sh") for line in body.replace("\\\n", " ").splitlines())
    return [words for words in (shlex.split(line, comments=True) for line in lines) if words]


def inline(path: Path) -> list[str]:
    """Code within the text, on one line each."""
    text = FENCE.sub("", path.read_text(encoding="utf-8"))
    return [" ".join(code.split()) for code in INLINE.findall(text)]


def ids(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def leaves(command: Any, name: str = "") -> dict[str, Any]:
    """Every command by its words."""
    below = getattr(command, "commands", None)
    if below is None:
        return {name: command}
    return {k: v for word, c in below.items() for k, v in leaves(c, f"{name} {word}".strip()).items()}


LEAVES = leaves(PROGRAM)


def parsed(words: list[str], monkeypatch: pytest.MonkeyPatch) -> tuple[str, dict[str, Any]]:
    """Which command it is and what the command line makes of its options; it is not run."""
    found: list[tuple[str, dict[str, Any]]] = []
    for name, command in LEAVES.items():
        monkeypatch.setattr(command, "callback", lambda name=name, **given: found.append((name, given)))
    with pytest.raises(SystemExit) as ended:
        PROGRAM.main(list(words), prog_name="theodolite")
    assert ended.value.code == 0, " ".join(words)
    return found[0]


def check_theodolite(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    name, given = parsed(words, monkeypatch)
    if name == "train":
        load_train_recipe(given["recipe"], list(given.get("overrides") or ()))
    if name in TAKES_RECIPES:
        for recipe in given.get("recipes") or [given["recipe"]]:
            load_recipe(recipe, list(given.get("overrides") or ()))


def check_program(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A command of any kind: it exists, and has the options that it is given."""
    while re.fullmatch(r"[A-Z_]+=\S+", words[0]):  # settings of the environment
        words = words[1:]
    program, arguments = words[0], words[1:]
    if program == "theodolite":
        check_theodolite(arguments, monkeypatch)
    elif program == "make":
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        assert re.search(rf"^{re.escape(arguments[0])}:", makefile, re.MULTILINE), f"no target {arguments[0]}"
    elif program == ".":
        assert arguments == [".venv/bin/activate"], arguments
    elif program == "dask":
        module = importlib.import_module(f"distributed.cli.dask_{arguments[0]}")
        given = {word for word in arguments if word.startswith("--")}
        assert given <= options_of(module.main), (
            f"dask {arguments[0]} has no {given - options_of(module.main)}"
        )
    elif program == "export":
        assert all(re.fullmatch(r"[A-Z_]+=\S+", word) for word in arguments), arguments
    elif program == "pip":
        check_extras(" ".join(arguments))
    elif program == "sbatch":
        check_program(shlex.split(arguments[arguments.index("--wrap") + 1]), monkeypatch)
    elif program in ("torchrun", "srun") and "theodolite" in arguments:
        check_theodolite(arguments[arguments.index("theodolite") + 1 :], monkeypatch)
    elif program in ("python", "torchrun"):
        check_script(arguments)
    else:
        assert program in ("git", "pytest"), f"{program}: teach this test what it is"


def check_extras(text: str) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for names in re.findall(r"theodolite\[([\w,]+)\]", text):
        missing = set(names.split(",")) - set(extras["optional-dependencies"])
        assert not missing, f"no extra {missing}"


def check_script(arguments: list[str]) -> None:
    """A script of this repository has the options that it is given; a module of it exists."""
    if arguments[0] == "-m":
        assert arguments[1].split(".")[0] != "theodolite" or names_of(arguments[1]) is not None, arguments
        return
    (script,) = [word for word in arguments if word.endswith(".py")]
    assert (ROOT / script).is_file(), f"no {script}"
    code = (ROOT / script).read_text(encoding="utf-8")
    for word in arguments[arguments.index(script) + 1 :]:
        if word.startswith("--"):
            assert f'"{word.partition("=")[0]}"' in code, f"{script} has no {word}"


@pytest.mark.parametrize("path", HAND_WRITTEN, ids=ids)
def test_commands_are_right(path, monkeypatch, capsys):
    for words in commands(path):
        try:
            check_program(words, monkeypatch)
        except (AssertionError, ValueError) as error:
            pytest.fail(f"{' '.join(words)}: {error}\n{capsys.readouterr().err}")


def options_of(command: Any) -> set[str]:
    return {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}


@pytest.mark.parametrize("path", HAND_WRITTEN, ids=ids)
def test_commands_within_the_text_are_right(path, monkeypatch):
    """They leave out what does not matter there, so their names and options are looked at."""
    scripts = " ".join(p.read_text(encoding="utf-8") for p in (ROOT / "benchmarks").glob("*.py"))
    for code in inline(path):
        check_extras(code)
        words = code.split()
        if words[0] in ("python", "torchrun", "make") and len(words) > 1:
            check_program(words, monkeypatch)
        elif words[0] == "theodolite" and len(words) > 1:
            name = next((n for n in LEAVES if words[1 : 1 + len(n.split())] == n.split()), None)
            assert name is not None, f"no command {code}"
            for option in re.findall(r"(?<!\S)--[\w-]+", code):
                assert option in options_of(LEAVES[name]), f"{code}: no option {option}"
        elif words[0].startswith("--"):
            option = words[0].partition("=")[0]
            taken = any(option in options_of(command) for command in LEAVES.values())
            assert taken or f'"{option}"' in scripts, f"nothing takes {option}"


def has_key(schema: dict[str, Any], node: dict[str, Any], keys: list[str]) -> bool:
    """Whether a configuration can hold a key, by its JSON schema."""
    if "$ref" in node:
        return has_key(schema, schema["$defs"][node["$ref"].rpartition("/")[2]], keys)
    if not keys:
        return True
    if any(has_key(schema, one, keys) for one in (*node.get("anyOf", ()), *node.get("oneOf", ()))):
        return True
    return keys[0] in node.get("properties", {}) and has_key(schema, node["properties"][keys[0]], keys[1:])


def test_recipe_keys_within_the_text_exist():
    """`annotate.gates.fov_min_deg` and the like, with a value or without."""
    schemas = [Recipe.model_json_schema(), TrainRecipe.model_json_schema()]
    seen = 0
    for path in PAGES:
        for code in inline(path):
            found = re.fullmatch(
                r"(?:--set )?((?:annotate|source|filters|output|parallel|log|start)(?:\.\w+)+)(?:=.*)?", code
            )
            if found is not None:
                seen += 1
                keys = found[1].split(".")
                assert any(has_key(s, s, keys) for s in schemas), f"{ids(path)}: no key {found[1]}"
    assert seen > 5


def is_there(dotted: str) -> bool:
    """Whether `theodolite.dataset.index.refresh_index` and the like exist: a module, or a name in one."""
    module, _, name = dotted.rpartition(".")
    return names_of(dotted) is not None or name in (names_of(module) or ())


@pytest.mark.parametrize("path", [p for p in HAND_WRITTEN if p.name != "CHANGELOG.md"], ids=ids)
def test_files_and_modules_within_the_text_exist(path):
    for code in inline(path):
        if re.fullmatch(
            r"(?:annotate|dataset|docs|kernels|model|recipes|tests|train|benchmarks)/[\w./-]*", code
        ):
            assert (ROOT / code).exists(), f"{ids(path)}: no {code}"
        found = re.match(r"(?:theodolite\.)?((?:dataset|kernels|model|recipes|train)(?:\.\w+)+)", code)
        if found is not None and not code.endswith((".json", ".yaml")):
            assert is_there(f"theodolite.{found[1]}"), f"{ids(path)}: no {found[1]}"


def anchors(path: Path) -> set[str]:
    """What the headings of a page are called in links."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", path.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", PAGES, ids=ids)
def test_links_lead_somewhere(path):
    """To a heading of the page as well; a link whose text is a name of code leads to the file that defines it."""
    text = FENCE.sub("", path.read_text(encoding="utf-8"))
    for shown, link in re.findall(r"\[([^]]*)\]\(([^)\s]+)[^)]*\)", text):
        if "://" in link:
            continue
        target, _, heading = link.partition("#")
        there = (path.parent / target).resolve() if target else path
        assert there.exists(), f"{ids(path)}: {target} is not there"
        assert not heading or heading in anchors(there), f"{ids(path)}: {link}: no such heading"
        name = re.fullmatch(r"`(\w+)`", shown)
        if name is not None and there.suffix == ".py":
            module = ".".join(["theodolite", *there.relative_to(ROOT).with_suffix("").parts])
            assert name[1] in (names_of(module) or ()), f"{ids(path)}: {target} has no {name[1]}"


@pytest.mark.slow
@pytest.mark.parametrize("path", HAND_WRITTEN, ids=ids)
def test_python_on_pages_takes_what_is_there(path):
    """Names are imported, modules too, and called with arguments that they have."""
    for body in blocks(path, "python"):
        names: dict[str, Callable[..., object]] = {}
        found = [node for node in ast.walk(ast.parse(body)) if isinstance(node, ast.Name)]
        imported = {
            alias.asname or alias.name.partition(".")[0]
            for node in ast.walk(ast.parse(body))
            if isinstance(node, ast.Import | ast.ImportFrom)
            for alias in node.names
        }
        stored = {node.id for node in found if isinstance(node.ctx, ast.Store)}
        for name in {node.id for node in found} - imported - stored:
            ours = (ROOT / name).is_dir()  # a room, no package of that name
            assert ours or importlib.util.find_spec(name) is None, f"{name} is not imported"
        for node in ast.walk(ast.parse(body)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("theodolite"):
                module = importlib.import_module(str(node.module))
                names |= {alias.asname or alias.name: getattr(module, alias.name) for alias in node.names}
        for node in ast.walk(ast.parse(body)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names:
                signature = inspect.signature(names[node.func.id])
                signature.bind_partial(*node.args, **{str(k.arg): k.value for k in node.keywords})
