"""docs/cli.md is what the commands say of themselves."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vctool.cli import COMMANDS, reference
from vctool.errors import InputError

ROOT = Path(__file__).parents[2]


def module(*args: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vctool.cli.reference", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT, env=os.environ | environment)


def test_the_file_in_the_repository_is_up_to_date() -> None:
    reference.check(ROOT / reference.REFERENCE)


def test_every_command_has_a_section_and_a_line_in_the_list() -> None:
    text = reference.reference()
    for name, (_, _, line) in COMMANDS.items():
        assert f"\n## vctool {name}\n" in text and f"(#vctool-{name}): {line}\n" in text
    assert "\n## vctool data check\n" in text


def test_options_show_their_environment_variables() -> None:
    section = reference.reference().split("\n## vctool query\n")[1].split("\n## ")[0]
    assert "`VCTOOL_INDEX` for `--index`" in section and "`VCTOOL_MODEL` for `--model`" in section


def test_terminal_and_colours_do_not_show(tmp_path: Path) -> None:
    for number, environment in enumerate(({"COLUMNS": "40"}, {"COLUMNS": "300", "FORCE_COLOR": "1", "TERM": "xterm-256color"})):
        done = module(tmp_path / f"{number}.md", **environment)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    one, other = ((tmp_path / f"{number}.md").read_bytes() for number in range(2))
    assert one == other == reference.reference().encode()
    helps = reference.reference().split("```text\n")[1:]
    assert max(len(line) for help_ in helps for line in help_.split("```")[0].splitlines()) <= 110  # examples never wrap


def test_a_file_that_is_out_of_date_is_one_line_and_exit_code_1(tmp_path: Path) -> None:
    lines = reference.reference().splitlines()
    lines[6] += " once"
    (tmp_path / "cli.md").write_text("\n".join(lines))
    done = module("--check", tmp_path / "cli.md")
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and "out of date from line 7 on" in done.stderr and reference.WRITE in done.stderr


def test_a_file_that_ends_early_and_one_that_is_missing_are_told(tmp_path: Path) -> None:
    lines = reference.reference().splitlines()
    (tmp_path / "cli.md").write_text("\n".join(lines[:50]))
    with pytest.raises(InputError, match="from line 51 on"):
        reference.check(tmp_path / "cli.md")
    with pytest.raises(InputError, match="cannot be read"):
        reference.check(tmp_path / "none.md")
