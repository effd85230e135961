"""Checkpoints to go on from: everything that a run's future depends on, in one file that is replaced whole or not at all.

`torch.save` writes them and `torch.load(weights_only=True)` reads them: a checkpoint cannot run code.
"""

from __future__ import annotations

import io
import os
import random
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import torch
from torch import Tensor

from vctool.errors import InputError, VctoolError

SCHEMA = 1
BEST = "best.pt"


@dataclass
class Progress:
    """Where a run stands. step: optimizer steps done. validation_due: stopped between a step and its validation.

    best: value, step and metrics of the best weights so far. history: one entry for each validation. waited: validations
    since the best. seconds: training time so far, over all sittings. sittings: how often it was started.
    """

    step: int = 0
    validation_due: bool = False
    best: dict[str, Any] | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    waited: int = 0
    seconds: float = 0.0
    sittings: int = 0


def random_state() -> dict[str, Any]:
    """State of torch's generators (all devices); numpy and Python's are seeded per batch and not used."""
    return {"torch": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []}


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Put back what `random_state` gave. A run that moved to other devices keeps their fresh state."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


def seed_everything(seed: int) -> None:
    """Seed torch, and Python's and numpy's global generators for libraries that use them."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


def save_checkpoint(folder: Path, content: Mapping[str, Any], progress: Progress, keep: int) -> Path:
    """Write `step-N.pt` and remove all but the newest `keep`. Raises VctoolError (older ones intact) if it cannot be written."""
    path = folder / f"step-{progress.step:08d}.pt"
    write_tensors(path, {**content, "schema": SCHEMA, "progress": asdict(progress)})
    for old in checkpoints(folder)[:-keep]:
        with suppress(OSError):
            old.unlink()
    return path


def checkpoints(folder: Path) -> list[Path]:
    """All checkpoints to go on from, oldest first."""
    return sorted(folder.glob("step-*.pt"))


def load_checkpoint(folder: Path) -> dict[str, Any]:
    """The newest checkpoint; `progress` in it is a Progress. Raises InputError where there is none or it is damaged."""
    found = checkpoints(folder)
    if not found:
        raise InputError(f"{folder} holds no checkpoint", "the run stopped before its first one: start it again without --resume")
    content = read_tensors(found[-1])
    if content.get("schema") != SCHEMA:
        raise InputError(f"{found[-1]} was written by another version of vctool", "resume it with that version")
    content["progress"] = Progress(**content["progress"])
    return content


def write_tensors(path: Path, content: Mapping[str, Any]) -> None:
    """Write tensors and plain values beside `path`, then move them into place. Raises VctoolError, the old file intact."""
    temporary = path.with_name(path.name + ".partial")
    recorder: _Recorder | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            recorder = _Recorder(file)
            torch.save(dict(content), cast(IO[bytes], recorder))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, RuntimeError) as problem:
        with suppress(OSError):
            temporary.unlink()
        # torch hides a failed write behind a message of its own about zip archives.
        cause = (recorder.problem if recorder is not None else None) or problem
        reason = cause.strerror if isinstance(cause, OSError) and cause.strerror else (str(cause).splitlines() or [type(cause).__name__])[0]
        raise VctoolError(
            f"the checkpoint {path} could not be written: {reason}", "make room; the checkpoint before it is intact"
        ) from None


def read_tensors(path: Path) -> dict[str, Any]:
    """Read what `write_tensors` wrote. Raises InputError for a missing or damaged file."""
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(f"{path} is missing") from None
    except Exception as problem:  # zip, pickle and torch each raise their own
        words = str(problem).splitlines() or [type(problem).__name__]
        raise InputError(f"{path} is not a checkpoint, or damaged: {words[0][:120]}") from None
    return content


def tensors_of(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of a state dict's tensors on the CPU."""
    return {name: value.detach().cpu().clone() for name, value in state.items()}


class _Recorder(io.RawIOBase):
    """A file that remembers why a write failed."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__()
        self.file = file
        self.problem: OSError | None = None

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        try:
            return int(self.file.write(data))
        except OSError as problem:
            self.problem = problem
            raise

    def flush(self) -> None:
        if not self.file.closed:
            self.file.flush()
