"""Where output goes: data to stdout, talk to stderr, colour only where it is wanted."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def stdout() -> Console:
    """For data that people read."""
    return _console(sys.stdout)


def stderr() -> Console:
    """For progress, tables of failures, and talk."""
    return _console(sys.stderr)


def _console(stream: Any) -> Console:
    from rich.console import Console

    context = click.get_current_context(silent=True)
    color = context.find_root().params.get("color", "auto") if context is not None else "auto"
    if color == "always":
        return Console(file=stream, force_terminal=True, no_color=False, highlight=False)
    if color == "never":
        return Console(file=stream, color_system=None, highlight=False)
    return Console(file=stream, highlight=False)


def say(text: str) -> None:
    """One line of talk on stderr, as it is."""
    click.echo(text, err=True)


def print_json(value: Any) -> None:
    """One JSON object on one line of stdout, passed on at once."""
    click.echo(json.dumps(value, ensure_ascii=False, allow_nan=False))
    sys.stdout.flush()


def plain_table(*headers: str) -> Table:
    """A table without frame; no cell is ever cut, long ones fold."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_header=bool(headers), pad_edge=False, show_edge=False, header_style="bold")
    for header in headers:
        table.add_column(header, overflow="fold")
    return table


def facts_table(facts: list[tuple[str, str]]) -> Table:
    """Names on the left, values on the right."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts:
        table.add_row(name, Text(value))
    return table


def clock(seconds: float | None) -> str:
    """mm:ss.s, or hh:mm:ss.s from an hour on; "-" for none."""
    if seconds is None:
        return "-"
    tenths = round(seconds * 10)
    minutes, rest = divmod(tenths, 600)
    hours, minutes = divmod(minutes, 60)
    return (f"{hours}:" if hours else "") + f"{minutes:02d}:{rest // 10:02d}.{rest % 10}"


def amount(size: int) -> str:
    """Bytes for a person: 1,234 bytes, 56.7 MB."""
    return f"{size:,} bytes" if size < 10_000 else f"{size / 1e3:,.1f} kB" if size < 1e6 else f"{size / 1e6:,.1f} MB"
