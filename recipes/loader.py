"""Recipes: strict YAML in, one checked model out, and the record of a run beside its output.

Every mistake in a recipe is reported at once, with its full key path and the value found. Relative paths in a recipe
are relative to the recipe; relative paths given with `--set` are relative to the current folder.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib.metadata
import json
import logging
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from .. import __version__
from ..annotate.config import AnnotateConfig
from ..annotate.frames.base import DecodeConfig
from ..annotate.sources.entries import Name, SourceConfig, media_root
from ..dataset.filters import Filters
from ..dataset.inputs import InputError, parse_yaml, read_json, read_yaml
from ..dataset.storage.paths import as_path
from ..dataset.store import write_atomically
from ..dataset.strict import Strict, error_lines
from ..dataset.weights import expected_digest
from ..dataset.words import Mode
from .mistakes import misread_paths, with_hint

log = logging.getLogger(__name__)

Checked = TypeVar("Checked", bound=BaseModel)

PACKAGED = Path(__file__).parent
"""Folder of the recipes that come with the package."""

RECIPE_FOLDERS = (".", "corpus", "benchmarks")
"""Where in it those of `annotate` lie."""

RENAMED_KEYS = {
    "annotate.geometry.anchors": "annotate.geometry.keyframes",
}
"""Keys of earlier versions, and what they are called now."""

_RECORDED_PACKAGES = (
    "torch",
    "numpy",
    "scipy",
    "opencv-python-headless",
    "av",
    "decord",
    "pyarrow",
    "dask",
    "pydantic",
)


class RecipeError(ValueError):
    """A recipe or an option that the user has to correct."""


class OutputConfig(Strict):
    """How rows are written."""

    clips_per_shard: Annotated[int, Field(ge=1, le=10_000)] = 8
    """Clips a part file holds: what a killed run has to do again at most, per worker."""


class HubFiles(Strict):
    """Files of a dataset repository on the Hugging Face hub."""

    hub: Annotated[str, Field(pattern=r"^[\w.-]+/[\w.-]+$")]
    """`owner/name`."""
    files: Annotated[tuple[str, ...], Field(min_length=1)]
    """Globs of the files that are wanted; `*` stays within a folder's name."""
    revision: str = "main"
    """Commit, tag or branch."""
    gated: bool = False
    """The owner has to be asked for access first, and a token is needed."""


class FetchConfig(HubFiles):
    """Where a source's files come from. Changes nothing in the rows, so it is left out of the recipe's hash."""

    also: tuple[HubFiles, ...] = ()
    """Further repositories whose files go into the same tree."""
    listed_urls: bool = False
    """The source's table lists addresses, whose videos are fetched through yt-dlp."""


class CorpusConfig(Strict):
    """What is known of a source before anything of it is here; for `theodolite plan`, and left out of the hash."""

    paper_clips: int | None = None
    """Clips that arXiv 2605.15178 counts in this source."""
    clip_s: Annotated[float, Field(gt=0)]
    """Duration of a clip."""
    hub_gb: Annotated[float, Field(gt=0)] | None = None
    """Size of the wanted files, as their publishers or users state it; null: not known."""


class Recipe(Strict):
    """A complete annotation run."""

    schema_version: Literal[1]
    name: Name
    description: str = ""
    mode: Mode
    """Which geometry the source ships: none, depth, or poses."""
    source: SourceConfig
    annotate: AnnotateConfig = AnnotateConfig()
    output: OutputConfig = OutputConfig()
    filters: Filters | None = None
    """Thresholds for `theodolite filter`; rows do not depend on them."""
    corpus: CorpusConfig | None = None
    fetch: FetchConfig | None = None

    @model_validator(mode="after")
    def _source_has_what_is_asked(self) -> Recipe:
        """Refuse estimators that would fail with every clip of such a source."""
        geometry, kind = self.annotate.geometry, self.source.kind
        for key, value in (("sequence", geometry.sequence), ("anchor", geometry.anchor)):
            if value == "rendered" and kind != "index":
                raise ValueError(
                    f"annotate.geometry.{key}: rendered knows the truth of rendered clips, which an index lists, and"
                    f" source.kind is {kind}"
                )
        if geometry.anchor == "given" and kind == "videos":
            raise ValueError(
                "annotate.geometry.anchor: given is metric depth beside each clip, and a folder of plain videos has"
                " none; moge2 estimates it, or list the clips in an index (anchor_depth_pattern)"
            )
        return self


def _path_keys(annotation: Any, prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Keys of a model that hold paths, those of its sections and of all alternatives included."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        for name, field in annotation.model_fields.items():
            yield from _path_keys(field.annotation, (*prefix, name))
    elif annotation is Path:
        yield prefix
    else:
        for inner in get_args(annotation):
            yield from _path_keys(inner, prefix)


PATH_KEYS = frozenset(_path_keys(Recipe))
"""Every key whose value is a path."""


def find_recipe(name: str | Path) -> Path:
    """A recipe file by path, or by name among those of the package (`rgbd`, `rgbd.yaml`).

    Raises:
        RecipeError: there is none; names those of the package.
    """
    path = as_path(name)
    if path.is_file():
        return path
    if path.parent.as_posix() in RECIPE_FOLDERS:
        packaged = PACKAGED / path.parent / f"{path.stem}.yaml"
        if packaged.is_file():
            return packaged
    known = packaged_recipes()
    close = difflib.get_close_matches(str(name), known, n=1)
    meant = f"; did you mean {close[0]}?" if close else ""
    raise RecipeError(
        f"{name}: no such recipe file{meant}; recipes that come with theodolite: {', '.join(known)}"
    )


def packaged_recipes() -> list[str]:
    """Names of the recipes that come with the package, `corpus/NAME` and `benchmarks/NAME` among them."""
    paths = (path for folder in RECIPE_FOLDERS for path in sorted((PACKAGED / folder).glob("*.yaml")))
    return [path.relative_to(PACKAGED).with_suffix("").as_posix() for path in paths]


def load_recipe(name: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read, override and check a recipe.

    Args:
        name: path of a YAML file, or the name of a packaged recipe.
        overrides: `key.path=value` items, applied in order; values are YAML.
    Raises:
        RecipeError: with every mistake found, each with its key path and value.
    """
    path = find_recipe(name)
    content, errors = read_content(path)
    _resolve_paths(content, path.parent.resolve())
    errors += apply_overrides(content, overrides)
    return checked_recipe(
        Recipe, path, content, errors, line=lambda text: with_hint(text, Recipe, RENAMED_KEYS)
    )


class SourceBeside(BaseModel):
    """What the recipe beside a dataset says of its source, whatever its version calls keys of other sections."""

    source: SourceConfig


class FiltersBeside(SourceBeside):
    """The same, and its thresholds."""

    filters: Filters | None = None


class _Decoding(BaseModel):
    decode: DecodeConfig = DecodeConfig()


class DecodingBeside(SourceBeside):
    """The same, and how its media were decoded."""

    annotate: _Decoding = _Decoding()


def recipe_beside(out: Path, kind: type[Checked], overrides: Sequence[str] = ()) -> Checked | None:
    """The recipe beside a dataset, as far as `kind` asks for it; None: there is none.

    A dataset of an earlier version stays usable when keys of other sections change.

    Args:
        overrides: `key.path=value` items of sections of `kind`.
    Raises:
        RecipeError: with every mistake found in those sections.
    """
    path = out / "recipe.resolved.yaml"
    if not path.is_file():
        return None
    content, errors = read_content(path)
    _resolve_paths(content, path.parent.resolve())
    errors += apply_overrides(content, overrides)
    asked = ", ".join(kind.model_fields)
    errors += [
        f"--set {item}: nothing else than {asked} is asked of this recipe"
        for item in overrides
        if item.partition("=")[0].split(".")[0].strip() not in kind.model_fields
    ]
    return checked_recipe(
        kind, path, content, errors, line=lambda text: with_hint(text, Recipe, RENAMED_KEYS)
    )


def media_root_of_dataset(out: Path) -> Path:
    """Folder that the media of a dataset's rows are relative to, by the recipe beside it; the current one without.

    Raises:
        RecipeError: it does not say its source.
    """
    beside = recipe_beside(out, SourceBeside)
    return Path() if beside is None else media_root(beside.source)


def packaged_names(folder: str) -> list[str]:
    """Names of the recipes of one kind that come with the package."""
    return sorted(path.stem for path in (PACKAGED / folder).glob("*.yaml"))


def packaged_or_own(name: str | Path, folder: str, what: str) -> Path:
    """The file of a recipe that is named by its path, or by the name of a packaged one of its kind.

    Args:
        folder: where packaged ones of the kind lie.
        what: they are, for the message.
    Raises:
        RecipeError: there is none.
    """
    path = Path(name)
    if path.is_file():
        return path
    packaged = PACKAGED / folder / f"{path.stem}.yaml"
    if path.parent in (Path("."), Path(folder), Path("recipes", folder)) and packaged.is_file():
        return packaged
    raise RecipeError(
        f"{name}: no such recipe file; {what} that come with theodolite: {', '.join(packaged_names(folder))}"
    )


def read_content(path: Path) -> tuple[dict[str, Any], list[str]]:
    """What a recipe's file holds, and its mistakes: keys that stand in it twice, paths that YAML misread.

    Raises:
        RecipeError: it cannot be read, or holds something else than keys and values.
    """
    try:
        content, twice = read_yaml(path)
    except InputError as error:
        raise RecipeError(str(error)) from None
    if not isinstance(content, dict):
        raise RecipeError(
            f"{path} is not a valid recipe: it must hold keys and values, found {type(content).__name__}"
        )
    return content, [*twice, *misread_paths(content)]


def checked_recipe(
    kind: type[Checked],
    path: Path,
    content: Mapping[str, Any],
    errors: Sequence[str],
    *,
    line: Callable[[str], str] = str,
) -> Checked:
    """The recipe of a file's content.

    Args:
        errors: mistakes that were found before.
        line: what becomes of a line about a mistake.
    Raises:
        RecipeError: with every mistake found.
    """
    recipe = None
    try:
        recipe = kind.model_validate(content)
    except ValidationError as error:
        errors = [*errors, *(line(text) for text in error_lines(error))]
    if errors or recipe is None:
        raise RecipeError(f"{path} is not a valid recipe:\n  " + "\n  ".join(errors))
    return recipe


def _resolve_paths(content: dict[str, Any], folder: Path) -> None:
    for *sections, key in PATH_KEYS:
        inner: Any = content
        for section in sections:
            inner = inner.get(section) if isinstance(inner, dict) else None
        if isinstance(inner, dict) and isinstance(inner.get(key), str):
            inner[key] = str(folder / Path(inner[key]).expanduser())


def apply_overrides(content: dict[str, Any], overrides: Sequence[str]) -> list[str]:
    """Set `key.path=value` items in a recipe's content, in order; returns mistakes.

    Another kind of source comes first, and without what the recipe says of the one that it replaces: a root above all.
    """
    kinds = [item for item in overrides if item.partition("=")[0].strip() == "source.kind"]
    errors = [line for item in kinds for line in _other_source(content, item)]
    return errors + [line for item in overrides if item not in kinds for line in _override(content, item)]


_OF_ANY_SOURCE = ("kind", "name", "windows", "data_licence", "data_redistributable")


def _other_source(content: dict[str, Any], override: str) -> list[str]:
    source = content.get("source")
    before = source.get("kind") if isinstance(source, dict) else None
    errors = _override(content, override)
    if isinstance(source, dict) and source.get("kind") != before:
        content["source"] = {key: value for key, value in source.items() if key in _OF_ANY_SOURCE}
    return errors


def _override(content: dict[str, Any], override: str) -> list[str]:
    """Set one key; returns mistakes."""
    path, equals, text = override.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        return [f"--set {override}: must be key.path=value"]
    try:
        value, twice = parse_yaml(text, "--set")
    except InputError as error:
        return [f"--set {override}: the value is not YAML ({error})"]
    if mistakes := [*twice, *misread_paths(value, ".".join(keys))]:
        return [f"--set {override}: {line}" for line in mistakes]
    if isinstance(value, str) and tuple(keys) in PATH_KEYS:
        value = str(Path(value).expanduser().resolve())
    elif isinstance(value, dict):
        # A whole section at once holds paths as well.
        for key in (k[len(keys) :] for k in PATH_KEYS if k[: len(keys)] == tuple(keys)):
            inner: Any = value
            for section in key[:-1]:
                inner = inner.get(section) if isinstance(inner, dict) else None
            if isinstance(inner, dict) and isinstance(inner.get(key[-1]), str):
                inner[key[-1]] = str(Path(inner[key[-1]]).expanduser().resolve())
    target = content
    for key in keys[:-1]:
        # A section that the file leaves out, or leaves empty, starts from its defaults.
        inner = target.get(key)
        target[key] = inner = {} if inner is None else inner
        if not isinstance(inner, dict):
            return [f"--set {override}: {key} is not a section"]
        target = inner
    target[keys[-1]] = value
    return []


_Options = TypeVar("_Options", bound=Strict)


def options_from_items(kind: type[_Options], items: Sequence[str]) -> _Options:
    """A record of options from `key=value` items (values are YAML).

    Raises:
        RecipeError: with every mistake found.
    """
    content: dict[str, Any] = {}
    errors = apply_overrides(content, items)
    try:
        options = kind.model_validate(content)
    except ValidationError as error:
        errors += error_lines(error)
        options = None
    if errors or options is None:
        raise RecipeError("--set: " + "; ".join(errors))
    return options


# --- records -----------------------------------------------------------------------------------


def resolved_yaml(recipe: Recipe) -> str:
    """The whole recipe with every default written out; loads back to the same model."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def recipe_hash(recipe: Recipe) -> str:
    """16 hexadecimal digits of SHA-256 over everything in the recipe that can change a row.

    Where things lie and where they run is left out, so that a run goes on after its data have moved or on another
    device: paths of the source, devices, and of weights the path if a digest says what the file is.
    """
    content = recipe.model_dump(mode="json")
    del content["annotate"]["executor"], content["description"]
    del content["filters"], content["corpus"], content["fetch"]
    if content["source"].get("windows") is None:
        content["source"].pop("windows", None)  # as recipes were hashed before there were any
    content["source"].pop("only", None)
    if content["annotate"]["quality"] is None:
        del content["annotate"]["quality"]
    if content["annotate"]["tracks"]["tracker"] == "opencv":
        del content["annotate"]["tracks"]["tracker"]
    geometry, bundle = content["annotate"]["geometry"], content["annotate"]["bundle"]
    del geometry["device"], bundle["device"]
    if bundle["derivatives"] == "float64":
        del bundle["derivatives"]
    for section, key in ((keys[0], keys[1]) for keys in PATH_KEYS if keys[0] == "source"):
        content[section].pop(key, None)
    networks = recipe.annotate.geometry
    for key, choice, name in (
        ("pi3x", networks.pi3x, "pi3x"),
        ("moge2", networks.moge2, f"moge-2-{networks.moge2.variant}"),
    ):
        if expected_digest(name, choice) is not None:
            del geometry[key]["path"]
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def now_iso() -> str:
    """Current time, UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def write_resolved(out: Path, recipe: Recipe) -> None:
    """Write `recipe.resolved.yaml` where it is not there yet, or says something else; all or nothing."""
    path, content = out / "recipe.resolved.yaml", resolved_yaml(recipe).encode()
    if not path.is_file() or path.read_bytes() != content:
        write_atomically(path, content)


def write_run_record(
    out: Path,
    recipe: Recipe,
    *,
    started: str,
    ended: str | None,
    command: Sequence[str],
    result: Mapping[str, Any],
) -> None:
    """Write `recipe.resolved.yaml` and add this run to `run.json`, both all or nothing.

    A record without an end belongs to a run that was killed; a run that is recorded again replaces its first record:
    the last one, if it has the same start and no end (two runs may begin in one second).
    """
    write_resolved(out, recipe)
    path = out / "run.json"
    runs = _recorded_runs(path)
    if runs and runs[-1].get("started") == started and runs[-1].get("ended") is None:
        runs = runs[:-1]
    record = {
        "started": started,
        "ended": ended,
        "recipe": recipe.name,
        "recipe_hash": recipe_hash(recipe),
        "command": list(command),
        **surroundings(_RECORDED_PACKAGES),
        "result": dict(result),
    }
    write_atomically(path, (json.dumps({"runs": [*runs, record]}, indent=2) + "\n").encode())


def surroundings(packages: Sequence[str]) -> dict[str, Any]:
    """What a run ran on: our version and commit, Python, machine, versions of packages (null: not installed)."""
    return {
        "theodolite": __version__,
        **_own_state(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "packages": _package_versions(packages),
    }


def _recorded_runs(path: Path) -> list[dict[str, Any]]:
    """Runs in `run.json`. A file that was cut or changed by hand is kept under another name, and said."""
    if not path.is_file():
        return []
    try:
        content = read_json(path)
        runs = content.get("runs") if isinstance(content, dict) else None
        if isinstance(runs, list) and all(isinstance(run, dict) for run in runs):
            return runs
        problem = f"{path}: holds no list of runs"
    except InputError as error:
        problem = str(error)
    aside = path.with_suffix(".damaged.json")
    path.replace(aside)
    log.warning("%s; it is kept as %s, and the record starts anew", problem, aside.name)
    return []


@cache
def _own_state() -> dict[str, Any]:
    """`git_state` of this package when it was first asked for: what is committed later is not what runs here."""
    return git_state(PACKAGED)


def git_state(folder: Path) -> dict[str, Any]:
    """Commit of the checkout that `folder` lies in and whether tracked files differ from it; nulls outside of one."""

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(folder), *arguments],
                capture_output=True,
                text=True,
                timeout=30,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    top = git("rev-parse", "--show-toplevel")
    # An installed copy may lie in somebody else's repository: that commit would say nothing about our code.
    if top is None or Path(top).resolve() != folder.parent.resolve():
        return {"git_commit": None, "git_dirty": None}
    status = git("status", "--porcelain", "--untracked-files=no")
    return {"git_commit": git("rev-parse", "HEAD"), "git_dirty": None if status is None else bool(status)}


def _package_versions(packages: Sequence[str]) -> dict[str, str | None]:
    versions = {name: _package_version(name) for name in packages}
    if "torch" in sys.modules:
        versions["cuda"] = sys.modules["torch"].version.cuda
    return versions


@cache
def _package_version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
