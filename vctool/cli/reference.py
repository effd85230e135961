"""The command reference, generated: `python -m vctool.cli.reference` writes `docs/cli.md`, `--check` says whether it is up to date.

What a command says about itself is written once, in its code. The help is rendered at a fixed width, so that neither the terminal
nor its colours show in the file.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from vctool.cli import cli
from vctool.cli.command import Group, exit_code_of
from vctool.cli.options import PATH
from vctool.errors import InputError

WIDTH = 100
REFERENCE = Path("docs") / "cli.md"
WRITE = "python -m vctool.cli.reference"

_HEAD = f"""\
<!-- Written by `{WRITE}`: change the commands, not this file. -->

# Command line

stdout is data; stderr is talk: progress, notes, warnings and errors. With `--json` the data is JSON. The [guide](guide.md) explains
exit codes and environment variables, [formats](format.md#query-result) the JSON of `query`.

"""


def reference() -> str:
    """The whole reference as Markdown: for each command its help at `WIDTH` columns, and the environment variables it reads."""
    pages = list(_pages(_context(cli, "vctool")))
    index = "".join(f"- [`{page.command_path}`](#{page.command_path.replace(' ', '-')}): {_line(page)}\n" for page in pages[1:])
    return _HEAD + index + "".join(_section(page) for page in pages)


def check(path: Path) -> None:
    """Raises InputError, naming the first line that differs, if the file at `path` is not what `reference` gives."""
    wanted = reference().splitlines()
    try:
        found = path.read_text(encoding="utf-8").splitlines()
    except OSError as problem:
        raise InputError(f"{path} cannot be read ({problem.strerror}): write it with {WRITE}") from None
    if found != wanted:
        same = next((i for i, (old, new) in enumerate(zip(found, wanted, strict=False)) if old != new), min(len(found), len(wanted)))
        raise InputError(f"{path} is out of date from line {same + 1} on: write it anew with {WRITE}")


def _context(command: click.Command, name: str, parent: click.Context | None = None) -> click.Context:
    settings: dict[str, Any] = {**command.context_settings, "terminal_width": WIDTH}
    return click.Context(command, info_name=name, parent=parent, **settings)


def _pages(page: click.Context) -> Iterator[click.Context]:
    """The context of a command and of all commands below it, in the order of the help."""
    yield page
    if isinstance(page.command, click.Group):
        for name in page.command.list_commands(page):
            inner = page.command.get_command(page, name)
            if inner is not None and not inner.hidden:
                yield from _pages(_context(inner, name, page))


def _line(page: click.Context) -> str:
    """The line that the help of the group shows for a command."""
    group = page.parent.command if page.parent is not None else None
    if isinstance(group, Group) and page.info_name in group.lazy:
        return group.lazy[page.info_name][2]
    return page.command.get_short_help_str(limit=1000)


def _section(page: click.Context) -> str:
    text = "\n".join(line.rstrip() for line in page.command.get_help(page).splitlines())
    variables = [
        f"`{variable}` for `{option.opts[0]}`"
        for option in page.command.params
        for variable in ([option.envvar] if isinstance(option.envvar, str) else option.envvar or ())
    ]
    environment = f"\nEnvironment: {', '.join(variables)}.\n" if variables else ""
    return f"\n## {page.command_path}\n\n```text\n{text}\n```\n{environment}"


@click.command("reference")
@click.option("--check", "checking", is_flag=True, help="Write nothing; exit with code 1 if the file is out of date.")
@click.argument("path", type=PATH, default=REFERENCE)
def main(checking: bool, path: Path) -> None:
    """Write the command reference to PATH."""
    if checking:
        check(path)
        return
    try:
        path.write_text(reference(), encoding="utf-8")
    except OSError as problem:
        raise InputError(f"{path} cannot be written: {problem.strerror}") from None


if __name__ == "__main__":
    sys.exit(exit_code_of(lambda: main.main(standalone_mode=False)))
