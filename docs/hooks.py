"""Hooks of mkdocs: pages that lie elsewhere in the repository, and a reference page of each module.

The reference is made by walking the rooms, so that it follows whatever moves. Links of pages to files of the
repository lead to the page that shows the file; a link to anything else than a page, a module or a picture is an
error, as is one to a file that is not there.
"""

from __future__ import annotations

import posixpath
import re
import shutil
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
ROOMS = ("recipes", "train", "annotate", "model", "dataset", "kernels")
ELSEWHERE = {
    "README.md": "index.md",
    "dataset/SCHEMA.md": "schema.md",
    "kernels/README.md": "kernels-derived.md",
    "benchmarks/PUBLISHED.md": "published.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
"""File of the repository -> its page. Everything below docs/ is a page under its own name."""
_LINK = re.compile(r"(\]\()([^)\s]+)(\))")


def modules() -> list[Path]:
    """Every module of the rooms, relative to the root, packages before what they hold."""
    found = [p.relative_to(ROOT) for room in ROOMS for p in sorted((ROOT / room).rglob("*.py"))]
    return sorted(found, key=lambda p: (ROOMS.index(p.parts[0]), *((q != "__init__.py", q) for q in p.parts)))


def name_of(module: Path) -> str:
    """`dataset/rows.py` -> `theodolite.dataset.rows`."""
    return ".".join(["theodolite", *module.with_suffix("").parts]).removesuffix(".__init__")


def page_of(module: Path) -> str:
    """Page of a module."""
    plain = module.with_name("index.md") if module.name == "__init__.py" else module.with_suffix(".md")
    return f"reference/{plain.as_posix()}"


@event_priority(100)  # before mkdocstrings reads its settings
def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """The package, without tests, is copied to where it can be read under its name, whatever the checkout's is."""
    package = ROOT / "build" / "docs" / "theodolite"
    shutil.rmtree(package, ignore_errors=True)
    for module in [Path("__init__.py"), *modules()]:
        (package / module).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / module, package / module)
    handlers: Any = config.plugins["mkdocstrings"].config
    python = handlers["handlers"]["python"]
    python["paths"] = [str(package.parent)]
    python["options"]["extensions"] = [str(ROOT / "docs" / "grouped.py")]
    reference = _tree([page_of(module) for module in modules()])
    config.nav = [
        "index.md",
        *(config.nav or []),
        "contributing.md",
        "changelog.md",
        {"Reference": ["schema.md", "kernels-derived.md", *reference]},
    ]
    return config


def _tree(pages: list[str], depth: int = 1) -> list[Any]:
    """Navigation of pages by folder."""
    out: list[Any] = []
    for page in pages:
        folder = page.split("/")[depth : depth + 2]
        if len(folder) == 1:
            out.append(page)
        elif not out or not isinstance(out[-1], dict) or folder[0] not in out[-1]:
            out.append({folder[0]: [page]})
        else:
            out[-1][folder[0]].append(page)
    return [
        {name: _tree(below, depth + 1)} if isinstance(item, dict) else item
        for item in out
        for name, below in (item.items() if isinstance(item, dict) else [("", [])])
    ]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are not files of docs/."""
    for path, page in ELSEWHERE.items():
        text = (ROOT / path).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=text))
    for module in modules():
        text = f"# {name_of(module).removeprefix('theodolite.')}\n\n::: {name_of(module)}\n"
        files.append(File.generated(config, page_of(module), content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links to files of the repository become links to their pages."""
    uri = page.file.src_uri
    if uri.startswith("reference/"):
        return markdown
    source = {v: k for k, v in ELSEWHERE.items()}.get(uri, f"docs/{uri}")

    def rewritten(match: re.Match[str]) -> str:
        target, _, anchor = match[2].partition("#")
        if "://" in target or not target:
            return match[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        if not (ROOT / path).exists():
            raise PluginError(f"{source}: the link to {target} leads nowhere")
        if path in ELSEWHERE:
            there = ELSEWHERE[path]
        elif path.startswith("docs/"):
            there = path.removeprefix("docs/")
        elif Path(path).parts[0] in ROOMS and (ROOT / path / "__init__.py").exists():
            there = page_of(Path(path) / "__init__.py")
        elif Path(path).parts[0] in ROOMS and path.endswith(".py"):
            there = page_of(Path(path))
        else:
            raise PluginError(
                f"{source}: {target} has no page; link a page, a module of the rooms or a picture"
            )
        link = posixpath.relpath(there, posixpath.dirname(uri) or ".")
        return f"{match[1]}{link}{'#' + anchor if anchor else ''}{match[3]}"

    return _LINK.sub(rewritten, markdown)
