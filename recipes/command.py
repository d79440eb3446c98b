"""From a function with records of options to a command of the terminal, and from what it raises to an exit code."""

from __future__ import annotations

import inspect
import logging
import os
import re
import sys
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NoReturn, Union, cast, get_args, get_origin, get_type_hints

import typer
from pydantic import BaseModel
from typer.models import OptionInfo, ParameterInfo

from ..dataset.escape import for_terminal
from ..dataset.storage.paths import StorePath

Outcome = tuple[str, int]
"""Text for stdout, and the exit code."""
Work = Callable[..., Outcome]
Say = Callable[[str], None]
"""Tells the user what is going on; not the outcome."""


def add_command(app: typer.Typer, work: Work, *, name: str | None = None, epilog: str = "") -> None:
    """Make a function a command.

    Its parameters are the command's: each is `Annotated` for typer, or a record (dataclass or pydantic model) whose
    fields are. The first paragraph of its docstring is the help, the others stand below the options.

    Args:
        name: of the command; default the function's.
        epilog: further paragraphs, before those of the docstring.
    """
    about, _, below = inspect.cleandoc(work.__doc__ or "").partition("\n\n")
    app.command(
        name=name or work.__name__, help=about, epilog="\n\n".join(part for part in (epilog, below) if part)
    )(as_typed(work))


def as_typed(work: Work) -> Callable[..., NoReturn]:
    """The function as typer reads it: one parameter for every option, records taken apart."""

    def typed(**given: Any) -> NoReturn:
        finish(lambda: call(work, **given))

    shown: list[inspect.Parameter] = []
    for name, kind in _parameters(work).items():
        if _is_record(kind):
            shown += [field.parameter() for field in _fields(kind)]
        else:
            plain = inspect.signature(work).parameters[name]
            shown.append(plain.replace(annotation=kind, kind=inspect.Parameter.KEYWORD_ONLY))
    cast(Any, typed).__signature__ = inspect.Signature(shown)
    typed.__annotations__ = {parameter.name: parameter.annotation for parameter in shown}
    return typed


def call(work: Work, **given: Any) -> Outcome:
    """Do a command's work with options as they are typed, each under its own name; those left out are their defaults.

    Raises:
        ValueError, ImportError, OSError, RuntimeError: what `finish` turns into messages.
    """
    _refuse_addresses(given)
    arguments: dict[str, Any] = {}
    for name, kind in _parameters(work).items():
        if _is_record(kind):
            typed = {f.name: f.read(given.pop(f.name)) for f in _fields(kind) if f.name in given}
            # A model that has one is made by its `checked`, which words its errors.
            arguments[name] = getattr(kind, "checked", kind)(**typed)
        elif name in given:
            arguments[name] = given.pop(name)
    if given:
        raise TypeError(f"{work.__name__} has no {', '.join(given)}")
    return work(**arguments)


_WRITTEN = ("out", "html", "staging", "plot", "plots", "recovered")
"""Options that name what a command writes."""


def _refuse_addresses(given: dict[str, Any]) -> None:
    """Refuse to write to an address with a command that writes files: a folder `s3:` would be made here.

    Raises:
        ValueError: naming the option.
    """
    for name in _WRITTEN:
        path = given.get(name)
        if not isinstance(path, Path) or isinstance(path, StorePath):
            continue
        if found := re.match(r"([A-Za-z][A-Za-z0-9+.-]+):/", str(path)):
            raise ValueError(
                f"--{name} {found[1]}://{str(path)[found.end() :]}: this command writes to a folder or file here; copy"
                " it to the store afterwards (annotate, compact, caption and score write to object stores)"
            )


def _parameters(work: Work) -> dict[str, Any]:
    """The annotation of every parameter."""
    hints = get_type_hints(work, include_extras=True)
    return {name: hints[name] for name in inspect.signature(work).parameters}


def _is_record(kind: Any) -> bool:
    return isinstance(kind, type) and (is_dataclass(kind) or issubclass(kind, BaseModel))


@dataclass(frozen=True)
class _Field:
    """One option of a record."""

    name: str
    kind: Any
    option: ParameterInfo
    default: Any

    def parameter(self) -> inspect.Parameter:
        """As typer reads it: choices and lists with commas are words, whose record says what they may be."""
        return inspect.Parameter(
            self.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=self._typed_default(),
            annotation=Annotated[self._typed_kind(), self.option],
        )

    def read(self, value: Any) -> Any:
        """The record's value of a typed one.

        Raises:
            ValueError: a list with commas of something else than its numbers.
        """
        if self._repeated():
            return tuple(value or ())
        if value is None or self._tuple() is None:
            return value
        number = next((kind for kind in (int, float) if kind in get_args(self._tuple())), str)
        try:
            return tuple(number(part.strip()) for part in value.split(","))
        except ValueError:
            flag = option_name(self.option, self.name)
            raise ValueError(f"{flag} {value}: give numbers with commas between") from None

    def _typed_kind(self) -> Any:
        if self._repeated():
            return list[str] | None
        plain = _without_none(self.kind)
        if self._tuple() is not None or get_origin(plain) is Literal or plain is Any:
            plain = str
        return plain | None if _takes_none(self.kind) else plain

    def _typed_default(self) -> Any:
        if self.default is MISSING:
            return inspect.Parameter.empty
        return None if self._repeated() else self.default  # an empty list is shown as no default

    def _tuple(self) -> Any:
        plain = _without_none(self.kind)
        return plain if get_origin(plain) is tuple else None

    def _repeated(self) -> bool:
        """Whether the option may be given often, which an empty tuple as default says."""
        return self._tuple() is not None and self.default == ()


def _fields(record: Any) -> list[_Field]:
    if is_dataclass(record):
        hints = get_type_hints(record, include_extras=True)
        found = []
        for field in fields(record):
            kind, *metadata = get_args(hints[field.name])
            found.append(_Field(field.name, kind, _option(metadata), field.default))
        return found
    return [
        _Field(
            name,
            field.annotation,
            _option(field.metadata),
            MISSING if field.is_required() else field.default,
        )
        for name, field in record.model_fields.items()
    ]


def _option(metadata: Sequence[Any]) -> ParameterInfo:
    """The option of an annotation; closed bounds that the annotation states are shown, and checked as one types."""
    option = copy(next(m for m in metadata if isinstance(m, ParameterInfo)))
    for bound in metadata:
        option.min = getattr(bound, "ge", option.min)
        option.max = getattr(bound, "le", option.max)
    return option


def option_name(option: ParameterInfo, name: str) -> str:
    """`--name` of an option, of its field where it has none of its own."""
    own = option.default if isinstance(option, OptionInfo) else None  # where `Annotated` keeps the first name
    return own.split("/")[0] if isinstance(own, str) else f"--{name.replace('_', '-')}"


def _takes_none(kind: Any) -> bool:
    return get_origin(kind) in (Union, UnionType) and NoneType in get_args(kind)


def _without_none(kind: Any) -> Any:
    """The plain type of a field: without `None` and what annotations add."""
    if get_origin(kind) is Annotated:
        return _without_none(get_args(kind)[0])
    if _takes_none(kind):
        (only,) = (part for part in get_args(kind) if part is not NoneType)
        return _without_none(only)
    return kind


# --- what comes of it -----------------------------------------------------------------------------------

_EXTRAS = {
    "datasets": "pip install datasets",
    "decord": "pip install theodolite[decord]",
    "diffusers": "pip install theodolite[generate]",
    "lightning": "pip install theodolite[train]",
    "lpips": "pip install lpips",
    "matplotlib": "pip install matplotlib",
    "open3d": "pip install theodolite[rivals]",
    "peft": "pip install theodolite[generate]",
    "pycolmap": "pip install theodolite[colmap]",
    "rerun": "pip install theodolite[viz]",
    "transformers": "pip install theodolite[generate]",
    "triton": "pip install theodolite[kernels]",
    "yt_dlp": "pip install theodolite[fetch]",
}
"""What brings each package that only some commands need."""


_TRACEBACK = "THEODOLITE_TRACEBACK"
"""Environment variable: set, errors end in their traceback, also those that are taken for the user's."""


class _Plain(logging.Formatter):
    """Names of files and clips come with data: nothing in them may act upon the terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return for_terminal(super().format(record))


def finish(act: Callable[[], Outcome]) -> NoReturn:
    """Run a command's work; its text goes to stdout, what a user can correct becomes one message and exit code 2."""
    # Our own warnings only: distributed logs every connection.
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Plain("%(levelname)s: %(message)s"))
    ours = logging.getLogger("theodolite")
    ours.addHandler(handler)
    try:
        text, code = act()
    except KeyboardInterrupt:
        say("interrupted; finished parts are kept, the same command continues")
        raise typer.Exit(130) from None
    except Exception as error:
        if os.environ.get(_TRACEBACK):
            raise
        _end_with(error)
    finally:
        ours.removeHandler(handler)
    if text:
        typer.echo(for_terminal(text))
    raise typer.Exit(code)


def _end_with(error: Exception) -> NoReturn:
    """One message and an exit code where a user can correct it; otherwise the error itself, for its traceback."""
    code = 2
    if isinstance(error, ImportError):
        extra = _EXTRAS.get((error.name or "").split(".")[0])
        if "pip install" in str(error):  # what needs it says so itself
            text = str(error)
        elif extra is not None:
            text = f"this needs the package {error.name}, which is not installed: {extra}"
        else:
            raise error
    elif isinstance(error, ValueError):
        text = str(error)
    else:
        from ..annotate.run.cluster import RunAborted

        if not isinstance(error, RunAborted | OSError):
            raise error  # a mistake of ours: the traceback is what helps
        text, code = in_words(error) if isinstance(error, OSError) else str(error), 1
    say(f"error: {text}")
    raise typer.Exit(code) from None


def in_words(error: OSError) -> str:
    """The file, and what the system says of it, without its number; of a temporary file, whose name nobody typed, the
    folder that it is in."""
    if error.filename is None or not error.strerror:
        return str(error)
    if "://" in str(error.filename):  # of an object store: no path of a file system, which would lose a slash
        return f"{error.filename}: {error.strerror}"
    from ..dataset.store import TEMPORARY

    path = Path(str(error.filename))
    names = [name for name in path.parts if name.startswith(TEMPORARY)]
    if names:
        path = Path(*path.parts[: path.parts.index(names[0])])
        return f"{path}: cannot be written to ({error.strerror})"
    return f"{path}: {error.strerror}"


def say(text: str) -> None:
    """One line to stderr."""
    typer.echo(for_terminal(text), err=True)
