"""Changing a model directory whole or not at all: one writer at a time, everything made aside, moved when it is proved."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from vctool.errors import ModelError

LOCK_FILE = ".export.lock"
_PREFIX = ".export-"


@contextlib.contextmanager
def staged(model_dir: Path) -> Iterator[Path]:
    """A scratch folder inside `model_dir`, on its file system, for one export at a time. It is gone afterwards, whatever happened.

    Raises ModelError if another export of this directory is running or nothing can be written here; an OSError inside the block
    (a full disk) becomes one too.
    """
    with _locked(model_dir):
        for leftover in model_dir.glob(f"{_PREFIX}*"):  # of a process that was killed: we hold the lock, so nobody uses it
            shutil.rmtree(leftover, ignore_errors=True)
        try:
            scratch = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=model_dir))
        except OSError as problem:
            raise _unwritable(model_dir, problem) from None
        try:
            yield scratch
        except OSError as problem:
            raise _unwritable(model_dir, problem) from None
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def exchange(new: Path, model_dir: Path, aside: Path, *, remove: Iterable[str] = ()) -> Exchange:
    """Move every file below `new` to its place in `model_dir`, and the files `remove` (relative) out of the way.

    What was there goes to `aside`. If anything fails, Ctrl-C included, all of it is put back before the exception goes on.
    """
    moved = Exchange()
    try:
        for name in remove:
            moved.move(model_dir / name, aside / name)
        for path in sorted(p for p in new.rglob("*") if p.is_file()):
            name = path.relative_to(new).as_posix()
            if (model_dir / name).exists():
                moved.move(model_dir / name, aside / name)
            moved.move(path, model_dir / name)
    except BaseException:
        moved.undo()
        raise
    return moved


class Exchange:
    """Files that were moved, so that they can be moved back."""

    def __init__(self) -> None:
        self._moves: list[tuple[Path, Path]] = []
        self._made: list[Path] = []

    def move(self, source: Path, target: Path) -> None:
        """Move one file; its folder is made."""
        for folder in [*reversed(target.parents), target.parent]:
            if not folder.exists():
                folder.mkdir()
                self._made.append(folder)
        self._moves.append((source, target))
        try:
            source.rename(target)
        except BaseException:
            if source.exists():
                self._moves.pop()
            raise

    def undo(self) -> None:
        """Everything back to where it was."""
        while self._moves:
            source, target = self._moves.pop()
            if target.exists():
                target.rename(source)
        for folder in reversed(self._made):
            with contextlib.suppress(OSError):
                folder.rmdir()


@contextlib.contextmanager
def _locked(model_dir: Path) -> Iterator[None]:
    path = model_dir / LOCK_FILE
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as problem:
        raise _unwritable(model_dir, problem) from None
    try:
        if not _lock(descriptor) or not _is(descriptor, path):
            raise ModelError(f"another export of {model_dir} is running", "wait until it is done")
        try:
            yield
        finally:
            path.unlink(missing_ok=True)  # while it is still ours
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> bool:
    try:
        import fcntl
    except ImportError:  # Windows: two exports at once are not noticed; the moves at the end still are whole files
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True


def _is(descriptor: int, path: Path) -> bool:
    """Whether the file that is locked is still the one at `path`: its last owner removes it."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _unwritable(model_dir: Path, problem: OSError) -> ModelError:
    return ModelError(
        f"the graphs cannot be written into {model_dir}: {problem.strerror or problem}",
        "make room there and export again: nothing was changed",
    )
