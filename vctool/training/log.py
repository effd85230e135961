"""What a run writes down: `log.jsonl`, and TensorBoard where it is installed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from vctool.errors import VctoolError


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
        line = json.dumps({"event": event, "step": step, **values}, allow_nan=False) + "\n"
        try:
            self._file.write(line)
            self._file.flush()
        except OSError as problem:
            raise VctoolError(f"{self.path} cannot be written: {problem.strerror}", "make room, then go on with --resume") from None
        if self._board is not None and event in ("step", "validation"):
            for name, value in values.items():
                if isinstance(value, (int, float)) and name not in ("epoch", "seconds"):
                    self._board.add_scalar(f"{'train' if event == 'step' else 'validation'}/{name}", value, step)

    def close(self) -> None:
        with suppress(OSError):  # lines that a full disk refused are tried once more
            self._file.close()
        if self._board is not None:
            self._board.close()

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class NoLog(RunLog):
    """Writes nothing: the log of a process that another one leads."""

    def __init__(self) -> None:
        pass

    def write(self, event: str, step: int, values: Mapping[str, Any]) -> None:
        pass

    def close(self) -> None:
        pass


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
    temporary.replace(path)


def _board(folder: Path, after: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=after + 1 if after else None)
