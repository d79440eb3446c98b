"""The house: imports point down the floors, the core needs core packages only, and every folder is packaged."""

import ast
import itertools
import re
import subprocess
import sys
import tomllib
from functools import cache, lru_cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = {
    "kernels": set(),
    "dataset": set(),
    "model": {"dataset", "kernels"},
    "annotate": {"dataset"},
    "train": {"model", "dataset", "kernels"},
    "recipes": {"annotate", "dataset", "kernels", "model", "train"},
}
"""What each folder may import besides itself."""

ROOMS = (
    "reporting",
    "networks",
    "rendered",
    "sources",
    "fetch",
    "frames",
    "tracks",
    "given",
    "geometry",
    "scale",
    "sfm",
    "checks",
    "verdict",
    "config",
    "place",
    "row",
    "pipeline",
    "run",
    "language",
    "splats",
)
"""Folders and files of annotate/ in the order of a clip's way: each may import from those before it."""

OPTIONAL = (
    "PIL",
    "accelerate",
    "adlfs",
    "cudnn",
    "dask_jobqueue",
    "decord",
    "diffusers",
    "evo",
    "flash_attn",
    "flash_attn_interface",
    "gcsfs",
    "gsplat",
    "lightning",
    "matplotlib",
    "open3d",
    "peft",
    "pycolmap",
    "pytorch_lightning",
    "rerun",
    "s3fs",
    "tokenizers",
    "transformers",
    "torchao",
    "triton",
    "vllm",
    "yt_dlp",
)


UNLIKE_THEIR_NAMES = {
    "dask-jobqueue": "dask_jobqueue",
    "flash-attn-4": "flash_attn",
    "nvidia-cudnn-frontend": "cudnn",
    "open3d-cpu": "open3d",
    "pillow": "PIL",
    "rerun-sdk": "rerun",
    "yt-dlp": "yt_dlp",
}
"""Packages of our extras, and what they are imported by."""


def sources() -> list[Path]:
    return [p for floor in FLOORS for p in sorted((ROOT / floor).rglob("*.py"))]


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def nodes_of(path: Path) -> list[ast.AST]:
    """All of a file's tree, walked once."""
    return list(ast.walk(tree_of(path)))


def imported_floors(path: Path) -> set[tuple[str, str]]:
    """(floor, module path below it) of everything of ours that a file imports, anywhere in it."""
    package = ["theodolite", *path.relative_to(ROOT).parent.parts]
    found = set()
    for node in nodes_of(path):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            names = [".".join([*base, *([node.module] if node.module else [])])]
            if names[0] == "theodolite":  # from .. import model, from theodolite import model
                names = [f"theodolite.{alias.name}" for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "theodolite" and len(parts) > 1 and parts[1] in FLOORS:
                found.add((parts[1], ".".join(parts[2:])))
            assert parts[0] not in FLOORS, f"{path}: imports {name} as a top-level package"
    return found


def imported_files(path: Path, files: dict[str, Path]) -> set[Path]:
    """Files of ours that a file needs when it runs: imports anywhere in it, those for type checkers apart."""
    for_checkers = {
        inner
        for node in nodes_of(path)
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
        for statement in node.body
        for inner in ast.walk(statement)
    }
    package = ["theodolite", *path.relative_to(ROOT).parent.parts]
    named: set[str] = set()
    for node in nodes_of(path):
        if node in for_checkers:
            continue
        if isinstance(node, ast.Import):
            named |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            named |= {
                name if name in files else module
                for name in (f"{module}.{alias.name}" for alias in node.names)
            }
    return {files[name] for name in named & files.keys() if files[name] != path}


@pytest.fixture(scope="module")
def imports() -> dict[Path, set[Path]]:
    files = {
        ".".join(["theodolite", *p.relative_to(ROOT).with_suffix("").parts]).removesuffix(".__init__"): p
        for p in sources()
    }
    return {path: imported_files(path, files) for path in files.values()}


@pytest.mark.slow
def test_rooms_of_annotate_import_what_lies_before_them(imports):
    def room(path: Path) -> str:
        return path.relative_to(ROOT / "annotate").parts[0].removesuffix(".py")

    inside = {
        p: t for p, t in imports.items() if p.is_relative_to(ROOT / "annotate") and room(p) != "__init__"
    }
    assert sum(len(targets) for targets in inside.values()) > 200
    for path, targets in inside.items():
        assert room(path) in ROOMS, f"{path}: put {room(path)!r} into ROOMS, where a clip comes by"
        for target in targets & inside.keys():
            assert ROOMS.index(room(target)) <= ROOMS.index(room(path)), f"{path} may not import {target}"


def circle_in(graph: dict[str, set[str]]) -> dict[str, list[str]]:
    """What of a graph is on a circle or leads to one."""
    left = dict(graph)
    while leaves := [name for name, targets in left.items() if not targets & left.keys()]:
        for name in leaves:
            del left[name]
    return {name: sorted(targets & left.keys()) for name, targets in left.items()}


@pytest.mark.slow
def test_imports_make_no_circle(imports):
    names = {path: path.relative_to(ROOT).as_posix() for path in imports}
    circle = circle_in({names[path]: {names[t] for t in targets} for path, targets in imports.items()})
    assert not circle, circle


@pytest.mark.slow
@pytest.mark.parametrize("floor", FLOORS)
def test_rooms_make_no_circle(imports, floor):
    """Folders and files at the top of a floor: there is an order in which each imports only from those before it."""

    def room(path: Path) -> str:
        parts = path.relative_to(ROOT / floor).parts
        # Its files lie on two levels: places, which all that reads needs, and writers, which go by what is written.
        return "/".join(parts[: 2 if parts[0] == "storage" else 1])

    graph = {room(path): set[str]() for path in imports if path.is_relative_to(ROOT / floor)}
    for path, targets in imports.items():
        if path.is_relative_to(ROOT / floor):
            graph[room(path)] |= {room(t) for t in targets if t.is_relative_to(ROOT / floor)} - {room(path)}
    assert len(graph) > 3
    circle = circle_in(graph)
    assert not circle, circle


@pytest.mark.slow
def test_imports_point_down():
    wrong = []
    for path in sources():
        floor = path.relative_to(ROOT).parts[0]
        for target, module in imported_floors(path):
            if target != floor and target not in FLOORS[floor]:
                wrong.append(f"{path} may not import {target}")
            # Cameras, the record type that every configuration is made of, and where weights lie.
            known = module.split(".")[0] in ("cameras", "strict", "weights")
            if floor == "model" and target == "dataset" and not known:
                wrong.append(f"{path}: the model knows no dataset")
    assert not wrong, "\n".join(wrong)


@lru_cache
def names_of(module: str) -> set[str] | None:
    """What a module of ours defines or imports at its top level, and what lies in its folder; None: no such module."""
    base = ROOT.joinpath(*module.split(".")[1:])
    path = base / "__init__.py" if base.is_dir() else base.with_suffix(".py")
    if not path.is_file():
        return None
    found = {p.stem for p in base.glob("*")} if base.is_dir() else set()
    for node in nodes_of(path):
        if isinstance(node, ast.Import | ast.ImportFrom):
            found |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
    return found


@pytest.mark.slow
def test_what_benchmarks_import_is_there():
    """They take a GPU or minutes, and no test runs them all."""
    wrong = []
    for path in [*sorted((ROOT / "benchmarks").glob("*.py")), ROOT / "docs/demo_figure.py"]:
        for node in nodes_of(path):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "theodolite":
                there = names_of(str(node.module))
                if there is None:
                    wrong.append(f"{path.name}: no module {node.module}")
                elif missing := {alias.name for alias in node.names} - there:
                    wrong.append(f"{path.name}: {node.module} has no {missing}")
    assert not wrong, "\n".join(wrong)


TIME_OF_DAY = {
    "annotate/run/steady_clock.py": "begins with it, and then goes by what has gone by",
    "dataset/media/read.py": "compares it with times of files, for equality but for a while",
    "dataset/storage/listing.py": "compares it with times of files; what is doubtful is waited for, or read again",
    "dataset/storage/log.py": "tells one commit of a part from another, by equality",
    "recipes/loader.py": "says when, in a record",
}
"""Who asks for the time of day, which may be set at any moment, and why that may be. Durations and order go by other
clocks."""


@pytest.mark.slow
def test_nothing_but_records_goes_by_the_time_of_day():
    clocks = {"time", "time_ns", "localtime", "gmtime", "ctime", "now", "utcnow", "today"}
    asked = set()
    for path in sources():
        for node in nodes_of(path):
            if isinstance(node, ast.ImportFrom) and node.module == "time":  # would hide which clock is asked
                assert not {alias.name for alias in node.names} & clocks, path
            if isinstance(node, ast.Import):
                assert not any(a.name in ("time", "datetime") and a.asname for a in node.names), path
            if (
                isinstance(node, ast.Attribute)
                and node.attr in clocks
                and ast.unparse(node.value)
                in ("time", "datetime", "date", "datetime.datetime", "datetime.date")
            ):
                asked.add(path.relative_to(ROOT).as_posix())
    assert asked == set(TIME_OF_DAY)


def test_the_reader_of_imports_sees_them():
    """The tests above would pass on an empty set as well."""
    assert ("dataset", "rows") in imported_floors(ROOT / "annotate" / "pipeline.py")
    assert ("annotate", "config") in imported_floors(ROOT / "recipes" / "loader.py")


def test_all_packages_of_extras_are_optional():
    """The list that the next test goes by is whole."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for extra, wanted in project["optional-dependencies"].items():
        for line in [] if extra in ("dev", "docs") else wanted:
            name = re.split(r"[\[<>=;\s]", line)[0]
            assert UNLIKE_THEIR_NAMES.get(name, name) in OPTIONAL, f"{extra}: {name}"


@pytest.mark.slow
def test_core_imports_without_optional_packages():
    """Every module of ours is imported in a process in which the optional packages cannot be found."""
    modules = [
        ".".join(["theodolite", *p.relative_to(ROOT).with_suffix("").parts]).removesuffix(".__init__")
        for p in sources()
    ]
    assert len(modules) > 20
    # Files that hold Triton kernels or launch them need Triton; nothing on the way to the core may import them.
    kernel_files = {
        m
        for m, p in zip(modules, sources(), strict=True)
        if m.startswith(
            ("theodolite.kernels", "theodolite.annotate.networks", "theodolite.annotate.tracks.batched")
        )
        and re.search(r"^(?:import|from) triton", p.read_text(), re.MULTILINE)
    }
    needs_triton = kernel_files | {
        m
        for m, p in zip(modules, sources(), strict=True)
        if m.startswith("theodolite.kernels")
        and any(
            re.search(rf"^from .*\b{f.rsplit('.', 1)[-1]}\b", p.read_text(), re.MULTILINE)
            for f in kernel_files
        )
    }
    core = [m for m in modules if m not in needs_triton]
    assert "theodolite.kernels" in core
    code = f"""
import importlib, sys
# None in sys.modules is "not installed" for import statements and for find_spec alike.
sys.modules.update(dict.fromkeys({OPTIONAL!r}))
failed = []
for name in {core!r}:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        failed.append(f'{{name}}: {{error}}')
sys.exit('\\n'.join(failed) or 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_every_folder_with_code_is_packaged():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    folders = {
        ".".join(["theodolite", *p.parent.relative_to(ROOT).parts])
        for floor in FLOORS
        for p in (ROOT / floor).rglob("__init__.py")
    }
    assert sorted(settings["packages"]) == sorted(folders | {"theodolite"})
    for floor in FLOORS:
        for path in (ROOT / floor).rglob("*.py"):
            assert (path.parent / "__init__.py").is_file(), f"{path.parent} has no __init__.py"


def test_every_data_file_is_packaged():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    listed = settings["package-data"]
    for floor in FLOORS:
        for path in (ROOT / floor).rglob("*"):
            if path.is_dir() or path.suffix in (".py", ".pyc", ".md"):
                continue
            package = ".".join(["theodolite", *path.parent.relative_to(ROOT).parts])
            assert any(path.match(pattern) for pattern in listed.get(package, [])), (
                f"{path} is not in package-data"
            )


# --- limits ---------------------------------------------------------------------------------------

MOST_LINES, MOST_PARAMETERS, LONGEST_FILE = 60, 8, 600

_OPERATOR = "an operator's tensors and switches, as torch's schema and its callers name them"
_SAMPLER = "a sampler's inputs, each of which somebody sets"
MANY_PARAMETERS: dict[str, str] = {
    **dict.fromkeys(
        (
            "kernels/attention.py:frame_attention",
            "kernels/attention.py:frame_attention_reference",
            "kernels/frame_gdn/op.py:_forward_op",
            "kernels/frame_gdn/op.py:_backward_op",
            "kernels/frame_gdn/op.py:_",
            "kernels/frame_gdn/reference.py:prepare",
        ),
        _OPERATOR,
    ),
    **dict.fromkeys(
        (
            "model/attention.py:_capped_camera",
            "model/network.py:_context",
            "model/refiner.py:__call__",
        ),
        _SAMPLER,
    ),
}
"""Functions that take more parameters, with the reason; none are longer."""


def is_kernel(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Bodies of Triton and Gluon kernels: what they inline cannot be a function of its own for nothing."""
    found = {ast.unparse(d.func if isinstance(d, ast.Call) else d) for d in function.decorator_list}
    return not found.isdisjoint({"triton.jit", "gluon.jit"})


def length(node: ast.stmt) -> int:
    """Lines of a statement."""
    return (node.end_lineno or node.lineno) - node.lineno + 1


def lines_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without its docstring."""
    documented = ast.get_docstring(function, clean=False) is not None
    return length(function) - (length(function.body[0]) if documented else 0)


def parameters_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Parameters of a function without self."""
    a = function.args
    return sum(arg.arg not in ("self", "cls") for arg in (*a.posonlyargs, *a.args, *a.kwonlyargs))


@pytest.mark.slow
def test_functions_are_short_and_take_few_parameters():
    long: list[str] = []
    wide: set[str] = set()
    for path in sources():
        for node in nodes_of(path):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or is_kernel(node):
                continue
            name = f"{path.relative_to(ROOT).as_posix()}:{node.name}"
            if (lines := lines_of(node)) > MOST_LINES:
                long.append(f"{name}: {lines}")
            if parameters_of(node) > MOST_PARAMETERS:
                wide.add(name)
    assert not long, f"longer than {MOST_LINES} lines, split them: {long}"
    assert wide == set(MANY_PARAMETERS), (
        f"more than {MOST_PARAMETERS} parameters: make them records, or say why"
    )
    assert {name.split("/")[0] for name in MANY_PARAMETERS} <= {"kernels", "model"}


def test_files_are_short():
    beyond = {
        path.relative_to(ROOT).as_posix(): lines
        for path in our_code()
        if (lines := path.read_text(encoding="utf-8").count("\n")) >= LONGEST_FILE
    }
    assert not beyond, f"files of {LONGEST_FILE} lines or more: {beyond}"


@cache
def names_defined_in(path: Path) -> frozenset[str]:
    """What a module offers: everything that is bound at its top, in branches too; a package's modules as well."""
    bound: set[str] = set()
    todo: list[ast.AST] = list(tree_of(path).body)
    while todo:
        node = todo.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            bound.add(node.name)
            continue
        if isinstance(node, ast.Import | ast.ImportFrom):
            bound |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            bound.add(node.id)
        todo += ast.iter_child_nodes(node)
    if path.name == "__init__.py":
        bound |= {p.stem for p in path.parent.iterdir() if p.suffix == ".py" or (p / "__init__.py").is_file()}
    return frozenset(bound | {"__name__", "__file__", "__doc__", "__path__", "__dict__"})


@cache
def module_file(parts: tuple[str, ...]) -> Path | None:
    """The file of a module of ours by the parts of its name."""
    place = ROOT.joinpath(*parts[1:])
    for found in (place.with_suffix(".py"), place / "__init__.py"):
        if found.is_file():
            return found
    return None


def taken_names(path: Path) -> list[tuple[int, str, Path]]:
    """(line, name, module's file) of every name that a file takes from modules of ours, by import or by attribute."""
    package = ["theodolite", *path.relative_to(ROOT).parent.parts]
    found: list[tuple[int, str, Path]] = []

    def visit(scope: ast.AST, known: dict[str, Path]) -> None:
        known, nodes, inner = dict(known), [], []
        todo = list(ast.iter_child_nodes(scope))
        while todo:  # what is in this scope; functions in it are scopes of their own
            node = todo.pop()
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                inner.append(node)
            else:
                nodes.append(node)
                todo += ast.iter_child_nodes(node)
        for node in nodes:
            if isinstance(node, ast.ImportFrom) and (
                node.level or (node.module or "").startswith("theodolite")
            ):
                base = package[: len(package) - node.level + 1] if node.level else []
                parts = [*base, *filter(None, (node.module or "").split("."))]
                for alias in node.names:
                    module, source = module_file((*parts, alias.name)), module_file(tuple(parts))
                    if module is not None:
                        known[alias.asname or alias.name] = module
                    elif source is not None:
                        found.append((node.lineno, alias.name, source))
        for node in nodes:
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                known.pop(node.id, None)
        for node in nodes:
            if (
                isinstance(node, ast.Attribute)
                and isinstance(node.value, ast.Name)
                and node.value.id in known
            ):
                found.append((node.lineno, node.attr, known[node.value.id]))
        for function in inner:
            arguments = function.args
            own = {a.arg for a in ast.walk(arguments) if isinstance(a, ast.arg)}
            visit(function, {name: file for name, file in known.items() if name not in own})

    visit(tree_of(path), {})
    return found


@pytest.mark.slow
def test_names_that_are_taken_from_our_modules_are_there():
    """Also where no test comes by: kernels for one kind of GPU, commands that need a network."""
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {file.relative_to(ROOT)} has no {name}"
        for path in (*sources(), *sorted((ROOT / "benchmarks").glob("*.py")))
        for line, name, file in taken_names(path)
        if name != "*" and name not in names_defined_in(file)
    ]
    assert not wrong, "\n".join(wrong)


def our_code() -> list[Path]:
    """All Python files of the repository."""
    return [p for p in ROOT.rglob("*.py") if not {".venv", "build"} & set(p.relative_to(ROOT).parts)]


def test_files_named_in_words_are_there():
    """`checks/depth.py` and the like: docstrings follow the files that they speak of."""
    files = [f"/{path.relative_to(ROOT).as_posix()}" for path in our_code()]
    for path in sources():
        for name in re.findall(r"`([\w/]+\.py)\b[^`]*`", path.read_text(encoding="utf-8")):
            assert any(file.endswith(f"/{name}") for file in files), f"{path}: no file {name}"


def test_no_test_file_imports_a_package_to_see_whether_it_is_there():
    """Every process collects every file, and pays for it: `needs_packages` asks without importing."""
    for path in sorted((ROOT / "tests").rglob("*.py")):
        assert not re.search(r"^\S.*importorskip\(", path.read_text(encoding="utf-8"), re.MULTILINE), path


def test_excuses_from_types_are_few_and_have_their_reasons():
    """Most are a cast, a check or a protocol that nobody has written yet."""
    ignored = 0
    for path in our_code():
        lines = path.read_text(encoding="utf-8").splitlines()
        whole = [line for line in lines if re.match(r"#\s*(?:pyright:\s*(?:basic|off|strict)|mypy:)", line)]
        assert not whole, f"{path}: {whole}"
        for above, line in itertools.pairwise(["", *lines]):
            if re.search(r"#\s*(?:type|pyright):\s*ignore", line):
                ignored += "type:" in line
                assert above.lstrip().startswith("#"), f"{path}: say above why: {line.strip()}"
    assert ignored < 6


def test_media_are_opened_in_one_place():
    """`open_container` judges a file before FFmpeg unfolds it; others only write."""
    for path in sources():
        for line in path.read_text(encoding="utf-8").splitlines():
            if "av.open(" in line and path.name != "container.py":
                assert '"w"' in line, f"{path}: {line.strip()}"
