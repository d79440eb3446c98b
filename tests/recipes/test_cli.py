"""The command line itself: help, examples, completion, speed, exit codes."""

import os
import re
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pytest
import typer
from theodolite.recipes.cli import app
from theodolite.recipes.command import add_command, call, finish
from theodolite.recipes.generate.options import GenerateOptions
from typer.testing import CliRunner

COMMAND = str(Path(sys.executable).parent / "theodolite")
COMMANDS = vars(typer.main.get_command(app))["commands"]
runner = CliRunner()


def test_help_lists_the_commands_and_imports_nothing_heavy():
    code = (
        "import sys; from theodolite.recipes.cli import main; sys.argv = ['theodolite', '--help']\n"
        "try: main()\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'cv2', 'av', 'pyarrow', 'pandas', 'distributed', 'numpy', 'scipy'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert (
        time.perf_counter() - start < 20
    )  # 0.1 s alone; the bound only catches an import of torch under load
    for name in COMMANDS:
        assert name in done.stdout


@pytest.mark.slow
def test_a_recipe_is_read_and_a_worker_starts_without_torch():
    """It costs every command and every worker two seconds: wanted where clips are annotated alone."""
    code = (
        "import sys, theodolite.annotate.run.worker, theodolite.recipes.run\n"
        "from theodolite.annotate.geometry.choose import check_estimators\n"
        "from theodolite.recipes.loader import load_recipe\n"
        "load_recipe('estimate', ['source.root=.'])\n"
        "check_estimators(load_recipe('rgbd', ['source.index=.']).annotate.geometry)\n"
        "sys.exit('imported torch' if 'torch' in sys.modules else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_shows_an_example_that_parses(name):
    shown = runner.invoke(app, [name, "--help"])
    assert shown.exit_code == 0
    text = " ".join(shown.output.split())
    example = re.search(r"Example: theodolite (.*)$", text)
    assert example, f"{name} shows no example"
    arguments = shlex.split(example[1])
    assert arguments[0] == name
    COMMANDS[name].make_context(name, arguments[1:])  # raises on an unknown option or a missing argument


def test_help_of_export_names_every_format():
    from theodolite.dataset.export import FORMATS

    text = runner.invoke(app, ["export", "--help"]).output
    assert set(FORMATS) <= set(re.split(r"[\s,.]+", text.partition("--format")[2].partition("--clip")[0]))


def test_flags_are_long_and_documented():
    for name in COMMANDS:
        for parameter in COMMANDS[name].params:
            if parameter.param_type_name == "option":
                assert all(o.startswith("--") for o in parameter.opts), f"{name}: {parameter.opts}"
            assert getattr(parameter, "help", "set"), f"{name} {parameter.name} has no help"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell):
    done = subprocess.run(
        [COMMAND, "--show-completion", shell],
        capture_output=True,
        text=True,
        timeout=60,
        # Otherwise typer asks which shell is above this process, and there may be none.
        env={**os.environ, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert "_THEODOLITE_COMPLETE" in done.stdout
    marks = {"bash": "complete -o default", "zsh": "#compdef", "fish": "--no-files"}
    assert marks[shell] in done.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["annotate", "rgdb", "--out", "x"], 2, "no such recipe file"),
        (["annotate", "rgbd"], 2, "--out"),
        (["annotate", "rgbd", "--out", "x", "--worker", "2"], 2, "--worker"),
        (["annotate", "rgbd", "--out", "x", "--set", "name"], 2, "key.path=value"),
        (["validate", "nowhere"], 2, "error: nowhere"),
        (["inspect", "nowhere"], 2, "error: nowhere"),
        (["report", "nowhere"], 2, "error: nowhere"),
        (["survey"], 2, "survey"),
    ],
)
def test_wrong_usage_is_one_message_on_stderr(tmp_path, monkeypatch, arguments, code, message):
    monkeypatch.chdir(tmp_path)
    done = runner.invoke(app, arguments)
    assert done.exit_code == code
    assert done.stdout == ""
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_version():
    from theodolite import __version__

    assert runner.invoke(app, ["--version"]).stdout.strip() == __version__


def test_the_package_runs_as_a_module(tmp_path):
    from theodolite import __version__

    done = subprocess.run(
        [sys.executable, "-m", "theodolite", "--version"], cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout.strip()) == (0, __version__), done.stderr


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            ImportError("recordings need rerun-sdk: pip install 'theodolite[viz]'"),
            "error: recordings need rerun-sdk",
        ),
        (
            ModuleNotFoundError("No module named 'pycolmap'", name="pycolmap"),
            "pip install theodolite[colmap]",
        ),
    ],
)
def test_a_missing_extra_is_one_line(capsys, error, line):
    def act():
        raise error

    with pytest.raises(typer.Exit) as caught:
        finish(act)
    assert caught.value.exit_code == 2
    err = capsys.readouterr().err
    assert line in err
    assert err.count("\n") == 1


def test_a_missing_module_of_ours_keeps_its_traceback():
    def act():
        raise ModuleNotFoundError("No module named 'theodolite.nowhere'", name="theodolite.nowhere")

    with pytest.raises(ModuleNotFoundError):
        finish(act)


@dataclass(frozen=True, kw_only=True)
class Speed:
    fast: Annotated[bool, typer.Option("--fast/--slow", help="How.")] = False
    words: Annotated[tuple[str, ...], typer.Option("--word", help="Often.")] = ()
    numbers: Annotated[tuple[float, ...] | None, typer.Option("--numbers", help="With commas.")] = None


def work(
    place: Annotated[Path, typer.Argument(help="Where.")],
    speed: Speed,
    count: Annotated[int, typer.Option("--count", min=1, help="How many.")] = 3,
) -> tuple[str, int]:
    """Works.

    Example: theodolite work here
    """
    return f"{place} {speed.fast} {speed.words} {speed.numbers} {count}", 0


@pytest.fixture(scope="module")
def small_app() -> typer.Typer:
    small = typer.Typer()
    add_command(small, work)
    return small


@pytest.mark.parametrize(
    ("typed", "text"),
    [
        (["here"], "here False () None 3"),
        (["here", "--fast", "--word", "a", "--word", "b", "--count", "1"], "here True ('a', 'b') None 1"),
        (["here", "--numbers", "1, 2.5"], "here False () (1.0, 2.5) 3"),
    ],
)
def test_records_of_options_become_a_command(small_app, typed, text):
    done = runner.invoke(small_app, typed)
    assert (done.stdout.strip(), done.exit_code) == (text, 0), done.stderr


def test_records_say_what_cannot_be_read(small_app):
    done = runner.invoke(small_app, ["here", "--numbers", "1,two"])
    assert (done.exit_code, done.stdout) == (2, "")
    assert "--numbers 1,two: give numbers with commas between" in done.stderr
    assert call(work, place=Path("x"), numbers="4", count=2) == ("x False () (4.0,) 2", 0)
    with pytest.raises(TypeError, match="work has no counts"):
        call(work, place=Path("x"), counts=2)


def test_an_option_is_named_as_it_is_typed_and_checked_by_the_one_list_of_choices():
    with pytest.raises(ValueError, match=r"--max-speed Input should be greater than 0 \(got -1\.0\)"):
        GenerateOptions.checked(max_speed_m_s=-1.0)
    for name in ("mode", "kernels", "attention", "attention_precision"):
        flag = f"--{name.replace('_', '-')}"
        with pytest.raises(ValueError, match=rf"{flag} Input should be '.*' or '.*' \(got 'best'\)"):
            GenerateOptions.checked(**{name: "best"})
    made = GenerateOptions.checked(scopes=("qkv", "ffn"), precision="fp8", attention="flash")
    assert made.scopes == ("qkv", "ffn")


def test_with_tracebacks_asked_for_no_error_becomes_a_message(monkeypatch):
    def act():
        raise ValueError("vector::reserve")

    with pytest.raises(typer.Exit):
        finish(act)
    monkeypatch.setenv("THEODOLITE_TRACEBACK", "1")
    with pytest.raises(ValueError, match="vector::reserve"):
        finish(act)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (PermissionError(13, "Permission denied", "a/report.html"), "a/report.html: Permission denied"),
        (
            PermissionError(13, "Permission denied", "/a/.tmp-export-vm-7-x/clip/1.png"),
            "/a: cannot be written to (Permission denied)",
        ),
        (OSError(13, "the store refuses access", "s3://a/b"), "s3://a/b: the store refuses access"),
        (OSError(28, "No space left on device"), "[Errno 28] No space left on device"),
        (OSError("the link went away"), "the link went away"),
    ],
)
def test_what_the_system_refuses_is_said_in_words(capsys, error, text):
    def act():
        raise error

    with pytest.raises(typer.Exit) as end:
        finish(act)
    assert end.value.exit_code == 1
    assert capsys.readouterr().err == f"error: {text}\n"


@pytest.mark.parametrize("given", [None, "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"])
def test_the_allocator_is_set_up_unless_the_user_did(monkeypatch, given):
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.delenv(name, raising=False)
    # Whatever comes after it, the command has said it before torch can be imported.
    if given is not None:
        monkeypatch.setenv(given, "max_split_size_mb:64")
    done = runner.invoke(app, ["generate", "--manifest", "none.csv", "--image", "x.png", "--out", "videos"])
    assert done.exit_code == 2
    found = {name: os.environ.get(name) for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")}
    if given is None:
        assert found == {
            "PYTORCH_ALLOC_CONF": None,
            "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
        }
    else:
        assert [name for name, value in found.items() if value] == [given]
        assert found[given] == "max_split_size_mb:64"
    monkeypatch.delenv("PYTORCH_CUDA_ALLOC_CONF", raising=False)
