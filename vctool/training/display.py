"""What a run says while it goes: lines and a bar on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.console import Console

_LINE_SECONDS = 10.0  # between lines of progress where there is no terminal


class Update(Protocol):
    """Tell a bar how many are done; `note` is shown behind it, such as the loss."""

    def __call__(self, now: int, note: str = "") -> None: ...


class Display:
    """Talk on stderr: a bar with rate and time left on a terminal, plain lines elsewhere, nothing when `quiet`."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet
        self.live = not quiet and sys.stderr.isatty()
        self._console: Console | None = None  # of the bar on show: lines go above it

    def say(self, line: str) -> None:
        """One line, above the bar if there is one."""
        if self.quiet:
            return
        if self._console is not None:
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)
        else:
            print(line, file=sys.stderr, flush=True)

    @contextmanager
    def bar(self, what: str, total: int, unit: str, done: int = 0) -> Iterator[Update]:
        """A progress bar for a block; what it yields moves it on from `done`."""
        if not self.live:
            yield self._lines(what, total, unit, done)
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=Console(stderr=True)) as bar:
            self._console = bar.console
            # Invisible until there is something to tell: what is in a cache needs no bar.
            task = bar.add_task(what, total=total, completed=done, rate="", note="", visible=False)
            pace = _Pace(done)

            def update(now: int, note: str = "") -> None:
                bar.update(task, completed=now, rate=f"{pace.rate(now):.1f} {unit}/s", note=note, visible=True)

            try:
                yield update
            finally:
                self._console = None

    def _lines(self, what: str, total: int, unit: str, done: int) -> Update:
        pace, last = _Pace(done), time.monotonic()

        def update(now: int, note: str = "") -> None:
            nonlocal last
            moment, rate = time.monotonic(), pace.rate(now)
            if moment - last < _LINE_SECONDS and now < total:
                return
            last = moment
            left = clock((total - now) / rate) if rate > 0 else "?"
            self.say(f"{what} {now}/{total}, {rate:.1f} {unit}/s, {left} left{', ' + note if note else ''}")

        return update


class _Pace:
    """How many a second since the start; what was done before the first report does not count."""

    def __init__(self, done: int) -> None:
        self._done, self._began, self._first = done, time.monotonic(), True

    def rate(self, now: int) -> float:
        if self._first:
            self._done, self._first = max(self._done, now - 1), False
        return (now - self._done) / max(time.monotonic() - self._began, 1e-9)


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    whole = round(seconds)
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"
