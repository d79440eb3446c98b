"""The command line itself: help, examples, completion, speed, exit codes."""

import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer
from theodolite.recipes import cli
from theodolite.recipes.cli import app
from typer.testing import CliRunner

COMMAND = str(Path(sys.executable).parent / "theodolite")
COMMANDS = sorted(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
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


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_shows_an_example_that_parses(name):
    shown = runner.invoke(app, [name, "--help"])
    assert shown.exit_code == 0
    text = " ".join(shown.output.split())
    example = re.search(r"Example: theodolite (.*)$", text)
    assert example, f"{name} shows no example"
    arguments = shlex.split(example[1])
    assert arguments[0] == name
    command = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
    command.make_context(name, arguments[1:])  # raises on an unknown option or a missing argument


def test_flags_are_long_and_documented():
    for name in COMMANDS:
        for parameter in typer.main.get_command(app).commands[name].params:  # type: ignore[attr-defined]
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
        env=dict(os.environ),
    )
    assert done.returncode == 0, done.stderr
    assert "_THEODOLITE_COMPLETE" in done.stdout


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
        cli._finish(act)
    assert caught.value.exit_code == 2
    err = capsys.readouterr().err
    assert line in err
    assert err.count("\n") == 1


def test_a_missing_module_of_ours_keeps_its_traceback():
    def act():
        raise ModuleNotFoundError("No module named 'theodolite.nowhere'", name="theodolite.nowhere")

    with pytest.raises(ModuleNotFoundError):
        cli._finish(act)
