"""Running the command line in the test's own process."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from vctool.cli import cli


@dataclass(frozen=True)
class Done:
    """What a command left behind."""

    code: int
    out: str
    err: str


Vctool = Callable[..., Done]


def run(*args: str | Path, input: str | bytes | None = None) -> Done:
    """Run one command; a traceback, or an exception that is not an exit code, fails the test."""
    result = CliRunner().invoke(cli, [str(a) for a in args], input=input)
    assert "Traceback" not in result.output
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return Done(result.exit_code, result.stdout, result.stderr)


def expect_line(done: Done, code: int, *said: str) -> None:
    """One clear line, perhaps a hint, the right exit code, and no data."""
    assert done.code == code, done.err
    first = done.err.splitlines()[0]
    assert first.startswith("error: ") and all(s in first for s in said), done.err
    assert len(done.err.splitlines()) <= 2 and done.out == ""


def on_a_terminal(*args: str | Path, rows: int = 24, columns: int = 100) -> Any:
    """`vctool` in a process of its own that believes it sits at a terminal; the result takes `expect` and `sendline`.

    Not `pexpect.spawn`, which forks: in a process that holds the threads of some inference library the child may crash before
    it becomes vctool.
    """
    fdpexpect = pytest.importorskip("pexpect.fdpexpect", reason="pexpect is not installed")
    import os
    import pty
    import termios

    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (rows, columns))
    command = [sys.executable, "-m", "vctool", *map(str, args)]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
    os.close(theirs)
    child = fdpexpect.fdspawn(ours, encoding="utf-8", timeout=30)
    child.process = process
    return child
