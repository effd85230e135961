"""Running the command line in the test's own process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

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
