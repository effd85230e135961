"""One writer at a time: a lock on the store itself, which the operating system gives back however the writer ends.

A `.npz` file or a folder is locked by its own inode (flock), so nothing lies about afterwards. Where there is no store yet, and where the
file system knows no such locks, a small file beside it stands in; it names its process, and one of a process that is gone does not count.
Readers never lock and are never locked out.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from vctool.errors import StoreError
from vctool.store.parts import refuse

_TRIES = 100  # the file that is locked may be replaced in the moment between opening and locking it
_UNNAMED_SECONDS = 10.0  # a lock file that names nobody for this long was left by a process that died while making it
_GUARD = threading.Lock()
_HELD: dict[str, _Held] = {}


@dataclass
class _Held:
    """A lock of this process. descriptor: of the locked file or folder; marker: the file that stands in, if one was made."""

    thread: int
    descriptor: int
    marker: Path | None
    count: int = 1


class WriteLock:
    """The right to change the store at `target`, until `release` or the end of the `with` block.

    A thread that has it may take it again. Raises StoreError, one line, if another process or thread has it, OSError if the
    folder cannot be written to.
    """

    def __init__(self, target: Path) -> None:
        self._key = os.path.realpath(target)
        self._mine = False
        with _GUARD:
            held = _HELD.get(self._key)
            if held is None:
                descriptor, marker = _acquire(Path(self._key), target)
                _HELD[self._key] = _Held(threading.get_ident(), descriptor, marker)
            elif held.thread == threading.get_ident():
                held.count += 1
            else:
                raise _busy(target, "another thread of this process")
        self._mine = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None) -> None:
        self.release()

    def release(self) -> None:
        """Give the right back; a second call does nothing."""
        if not self._mine:
            return
        self._mine = False
        with _GUARD:
            held = _HELD[self._key]
            held.count -= 1
            if held.count:
                return
            del _HELD[self._key]
            # The marker goes while it is still locked: whoever opened it before sees that it is no longer there, and tries again.
            if held.marker is not None:
                held.marker.unlink(missing_ok=True)
            os.close(held.descriptor)


@contextlib.contextmanager
def writing(path: Path, folder: bool) -> Iterator[None]:
    """Nobody else changes the store at `path`, which may not be there yet; a folder is made, and taken away again if it stays empty."""
    made = False
    try:
        if folder and not path.exists():
            path.mkdir()
            made = True
        lock = WriteLock(path)
    except OSError as problem:
        refuse(problem, path)
    try:
        with lock:
            yield
    finally:
        if made:
            with contextlib.suppress(OSError):  # it is not empty: the store is in it
                path.rmdir()


def _busy(target: Path, who: str) -> StoreError:
    return StoreError(f"{target}: {who} is writing to it", "wait until it has finished, or write to another place")


def _acquire(target: Path, shown: Path) -> tuple[int, Path | None]:
    marker = target.with_name(f".{target.name}.lock")
    for _ in range(_TRIES):
        if not _has_flock(target.parent):
            return _exclusive(marker, shown), marker
        there = target.exists()
        descriptor = os.open(target, os.O_RDONLY) if there else os.open(marker, os.O_RDWR | os.O_CREAT, 0o666)
        if not _flock(descriptor):
            holder = _holder(descriptor)
            os.close(descriptor)
            raise _busy(shown, holder)
        # Locked, but is this still the file that the name means? And has another writer made the store while there was none?
        if _same(descriptor, target if there else marker) and (there or not target.exists()):
            if there:
                return descriptor, None
            _sign(descriptor)
            return descriptor, marker
        os.close(descriptor)
    raise _busy(shown, "another process")


def _has_flock(folder: Path) -> bool:
    """Whether files in `folder` can be locked (not on Windows, not on some network file systems)."""
    try:
        import fcntl
    except ImportError:
        return False
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        fcntl.flock(descriptor, fcntl.LOCK_UN)
    except BlockingIOError:  # somebody has a lock on the folder: so there are locks
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def _flock(descriptor: int) -> bool:
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _same(descriptor: int, path: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), path.stat())
    return False


def _sign(descriptor: int) -> None:
    os.ftruncate(descriptor, 0)
    os.write(descriptor, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode())


def _holder(descriptor: int) -> str:
    """Who holds a flock, as far as the system tells."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        inode = os.fstat(descriptor).st_ino
        for line in Path("/proc/locks").read_text(encoding="ascii").splitlines():
            fields = line.split()
            if fields[1] == "FLOCK" and int(fields[5].rsplit(":", 1)[1]) == inode and int(fields[4]) > 0:
                return f"another process ({fields[4]})"
    return "another process"


def _exclusive(marker: Path, shown: Path) -> int:
    """A lock by the existence of a file, for systems without flock."""
    for _ in range(_TRIES):
        try:
            descriptor = os.open(marker, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            who = _living(marker)
            if who:
                raise StoreError(f"{shown}: {who} is writing to it", f"wait for it, or remove {marker} if it is gone") from None
            marker.unlink(missing_ok=True)
            continue
        _sign(descriptor)
        return descriptor
    raise _busy(shown, "another process")


def _living(marker: Path) -> str:
    """The process that a lock file names, '' if it is certainly gone."""
    try:
        text, age = marker.read_text(encoding="ascii"), time.time() - marker.stat().st_mtime
        named = json.loads(text) if text else {}
        pid, host = int(named["pid"]), str(named["host"])
    except FileNotFoundError:
        return ""
    except (OSError, ValueError, KeyError, TypeError):
        return "" if age > _UNNAMED_SECONDS else "another process"
    if host == socket.gethostname() and os.name == "posix":
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return ""
        except PermissionError:
            pass
    return f"process {pid} on {host}"
