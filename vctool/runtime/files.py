"""Locks and atomic writes for files that several processes may touch."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from vctool.errors import VctoolError


@contextlib.contextmanager
def exclusive(lock: Path, busy: str | None = None) -> Iterator[None]:
    """Hold the lock file at `lock`. busy: the message of the VctoolError if another process holds it; None: wait for it.

    The file stays behind, empty: removing it would let two processes lock two files of the same name.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a+b") as file:
        try:
            import fcntl
        except ImportError:  # Windows: no lock of this kind; renames still keep files whole
            yield
            return
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if busy is None else fcntl.LOCK_NB))
        except BlockingIOError:
            raise VctoolError(busy or "busy", "wait until it is done") from None
        except OSError:  # a file system without locks
            pass
        yield


def write_atomic(path: Path, content: bytes | memoryview) -> None:
    """Write beside `path`, sync, and move into place: readers see the old file or the new one, whole. OSError leaves the old one."""
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with open(descriptor, "wb") as file:  # noqa: PTH123 - a descriptor
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(name).unlink()
        raise


def update_locked(path: Path, merge: Callable[[bytes], bytes]) -> None:
    """Replace a file by `merge(what it holds)`, `b""` if there is none, while no other process does the same."""
    with exclusive(path.with_name(f".{path.name}.lock")):
        write_atomic(path, merge(path.read_bytes() if path.exists() else b""))
