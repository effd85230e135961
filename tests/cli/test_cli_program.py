"""The program as a whole: help, exit codes, errors in one line, nothing heavy imported before it is needed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from commandline import Vctool

from vctool.cli import COMMANDS, cli
from vctool.cli.command import Group, exit_code_of
from vctool.errors import InputError, Interrupted, ModelError, SkippedInputsError, UsageProblem, VerificationError

MINE = ("index", "query", "info", "doctor", "completion")


def test_help_shows_two_examples_before_anything_else(vctool: Vctool) -> None:
    for args in [(), *((name,) for name in MINE)]:
        done = vctool(*args, "--help")
        assert done.code == 0
        lines = done.out.splitlines()
        assert lines[0].startswith("Usage: ") and lines[2] == "Examples:"
        assert all("vctool" in line for line in lines[3:5]), args


def test_every_command_of_the_table_is_listed_with_its_line(vctool: Vctool) -> None:
    out = vctool("--help").out
    for name, (_, _, line) in COMMANDS.items():
        assert name in out and " ".join(line.split()[:3]) in " ".join(out.split())


def test_no_help_imports_anything_but_click() -> None:
    heavy = ["numpy", "rich", "onnxruntime", "av", "PIL", "tokenizers", "torch", "onnx", "vctool_export"]
    heavy += [
        f"vctool.{floor}" for floor in ("runtime", "store", "video", "scoring", "data", "metrics", "models", "training", "evaluation")
    ]
    code = (
        "import sys\nfrom vctool.cli import COMMANDS, cli\n"
        "for args in (['--help'], ['--version'], *([name, '--help'] for name in COMMANDS)):\n"
        "    try: cli.main(args)\n    except SystemExit as leaving: assert leaving.code == 0\n"
        f"    imported = [name for name in {heavy} if name in sys.modules]\n"
        "    assert not imported, (args, imported)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("how", [["-m", "vctool"], ["-c", "from vctool.cli import main; main()"]])
def test_both_ways_to_start_it_are_one_program(how: list[str]) -> None:
    done = subprocess.run([sys.executable, *how, "--version"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout.startswith("vctool 0.")


def test_a_misspelt_command_names_the_nearest(vctool: Vctool) -> None:
    done = vctool("qury", "red")
    assert done.code == 2 and "Did you mean 'query'?" in done.err and done.out == ""


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script_for_each_shell(vctool: Vctool, shell: str) -> None:
    done = vctool("completion", shell)
    assert done.code == 0 and "_VCTOOL_COMPLETE" in done.out and shell in done.err


def test_completion_completes_commands() -> None:
    import os

    environment = {**os.environ, "_VCTOOL_COMPLETE": "bash_complete", "COMP_WORDS": "vctool qu", "COMP_CWORD": "1"}
    code = "from vctool.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=60)
    assert "query" in done.stdout and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("problem", "code"),
    [
        (InputError("x", "do y"), 1),
        (ModelError("x", "do y"), 1),
        (UsageProblem("x", "do y"), 2),
        (VerificationError("x", "do y"), 3),
        (SkippedInputsError("x", "do y"), 4),
        (Interrupted("x", "do y"), 130),
    ],
)
def test_each_failure_has_its_code_its_line_and_its_hint(problem: Exception, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise problem

    assert exit_code_of(fail) == code
    captured = capsys.readouterr()
    assert captured.err == "error: x\nhint: do y\n" and captured.out == ""


def test_an_unforeseen_failure_is_one_line_and_debug_shows_where(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise ZeroDivisionError("a\nb\x1b[31m")

    assert exit_code_of(fail) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and err.startswith("internal error: ZeroDivisionError: a b\\x1b[31m (run again with --debug")
    assert exit_code_of(fail, debug=True) == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("problem", [KeyboardInterrupt, click.Abort])
def test_ctrl_c_is_130(problem: type[BaseException], capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise problem

    assert exit_code_of(fail) == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize("place", ["before", "after"])
def test_debug_is_taken_before_and_after_the_command(place: str, tmp_path: Path) -> None:
    args = ["info", str(tmp_path / "nothing")]
    args = ["--debug", *args] if place == "before" else [*args, "--debug"]
    done = subprocess.run([sys.executable, "-m", "vctool", *args], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "Traceback" in done.stderr and "error: " in done.stderr


def test_a_reader_that_leaves_early_ends_it_quietly(tiny_index: Path) -> None:
    query = f"{sys.executable} -m vctool query --queries - --index {tiny_index} --json"
    many = f"{sys.executable} -c \"print('red\\n' * 3000)\""
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {many} | {query} | head -1"], capture_output=True, text=True, timeout=60)
    assert (
        done.stdout.count("\n") == 1
        and "vctool" not in done.stderr
        and "BrokenPipe" not in done.stderr.replace("BrokenPipeError: [Errno 32]", "")
    )


def test_colour_is_only_where_it_is_wanted(vctool: Vctool, tiny_index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    query = ("query", "red", "--index", str(tiny_index))
    assert "\x1b[" not in vctool(*query).out
    assert "\x1b[" in vctool("--color", "always", *query).out
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b[" in vctool(*query).out
    assert "\x1b[" not in vctool("--color", "never", *query).out
    monkeypatch.setenv("NO_COLOR", "1")
    plain = vctool(*query).out
    assert not any(f"\x1b[{code}" in plain for code in range(30, 38))


def test_a_lazy_group_may_hold_plain_commands_too(capsys: pytest.CaptureFixture[str]) -> None:
    @click.group(cls=Group, lazy={"info": COMMANDS["info"]}, examples=("a", "b"))
    def small() -> None:
        """Small."""

    @small.command("other")
    def other() -> Any:
        """Other one."""
        return 3

    assert small.list_commands(click.Context(small)) == ["info", "other"]
    with pytest.raises(SystemExit) as left:
        small.main(["other"])
    assert left.value.code == 3
    with pytest.raises(SystemExit):
        small.main(["--help"])
    assert "Other one." in capsys.readouterr().out


def test_names_that_are_not_text_do_not_end_a_listing(tiny_videos: Path, tiny_model: Path, tmp_path: Path) -> None:
    import os
    import shutil

    if sys.platform == "darwin" or os.name == "nt":
        pytest.skip("file names are text on this system")
    shutil.copy(tiny_videos / "red.mp4", os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.mp4"))
    run = [sys.executable, "-m", "vctool"]
    done = subprocess.run([*run, "index", tmp_path, "-o", tmp_path / "c.npz", "--model", tiny_model], capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    for extra in ([], ["--json"]):
        done = subprocess.run([*run, "query", "red", "--index", tmp_path / "c.npz", *extra], capture_output=True, timeout=60)
        assert done.returncode == 0 and b"caf" in done.stdout and done.stderr == b""


def test_the_group_is_a_click_group() -> None:
    assert isinstance(cli, click.Group)
