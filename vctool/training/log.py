"""What a run writes down: `log.jsonl`, TensorBoard where it is installed, and lines or a bar for whoever watches."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

Say = Callable[[str], None]


class RunLog:
    """Appends JSON lines to `log.jsonl`; numbers of `step` and `validation` lines also go to TensorBoard.

    after: when resuming, the step reached; lines beyond it (of a sitting that ended without saving) are dropped.
    """

    def __init__(self, folder: Path, *, tensorboard: bool, after: int) -> None:
        self.path = folder / "log.jsonl"
        _cut(self.path, after)
        self._file = self.path.open("a", encoding="utf-8")
        self._board = _board(folder / "tensorboard", after) if tensorboard else None

    def write(self, event: str, step: int, values: Mapping[str, Any]) -> None:
        """One line; `event` is `start`, `step`, `validation`, `stall`, `resumed` or `end`."""
        self._file.write(json.dumps({"event": event, "step": step, **values}, allow_nan=False, default=str) + "\n")
        self._file.flush()
        if self._board is not None and event in ("step", "validation"):
            for name, value in values.items():
                if isinstance(value, (int, float)) and name not in ("epoch", "seconds"):
                    self._board.add_scalar(f"{'train' if event == 'step' else 'validation'}/{name}", value, step)

    def close(self) -> None:
        self._file.close()
        if self._board is not None:
            self._board.close()

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def finite(values: Mapping[str, float]) -> dict[str, float | None]:
    """Numbers for JSON, which knows no NaN and no infinity: those become null."""
    return {k: v if v == v and abs(v) != float("inf") else None for k, v in values.items()}


def _cut(path: Path, after: int) -> None:
    """Keep the whole lines of steps up to `after`."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= after:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            continue
    temporary = path.with_suffix(".partial")
    temporary.write_text("".join(kept), encoding="utf-8")
    os.replace(temporary, path)


def _board(folder: Path, after: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=after + 1 if after else None)  # type: ignore[no-untyped-call]


class Display:
    """Talk on stderr: a bar with rate and time left on a terminal, plain lines elsewhere, nothing when `quiet`."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet
        self.live = not quiet and sys.stderr.isatty()

    def say(self, line: str) -> None:
        """One line, above the bar if there is one."""
        if self.quiet:
            return
        if self.live:
            from rich.console import Console

            Console(stderr=True, highlight=False).print(line, markup=False) if self._bar is None else self._bar.console.print(
                line, markup=False
            )
        else:
            print(line, file=sys.stderr, flush=True)

    _bar: Any = None

    @contextmanager
    def bar(self, what: str, total: int, unit: str, done: int = 0) -> Iterator[Callable[[int, str], None]]:
        """A progress bar; call what it yields with how many are done, and a note such as the loss."""
        if not self.live:
            yield self._lines(what, total, unit, done)
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(), TextColumn("{task.fields[note]}"),
        )  # fmt: skip
        with Progress(*columns, console=Console(stderr=True)) as bar:
            self._bar = bar
            task = bar.add_task(what, total=total, completed=done, rate="", note="")
            began = time.monotonic()

            def update(now: int, note: str = "") -> None:
                rate = (now - done) / max(time.monotonic() - began, 1e-9)
                bar.update(task, completed=now, rate=f"{rate:.1f} {unit}/s", note=note)

            try:
                yield update
            finally:
                self._bar = None

    def _lines(self, what: str, total: int, unit: str, done: int) -> Callable[[int, str], None]:
        began = last = time.monotonic()

        def update(now: int, note: str = "") -> None:
            nonlocal last
            moment = time.monotonic()
            if moment - last < 10 and now < total:
                return
            last = moment
            rate = (now - done) / max(moment - began, 1e-9)
            left = (total - now) / rate if rate > 0 else 0.0
            self.say(f"{what} {now}/{total}, {rate:.1f} {unit}/s, {clock(left)} left{', ' + note if note else ''}")

        return update


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    whole = round(seconds)
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"


Bar = AbstractContextManager[Callable[[int, str], None]]
