"""Arrays that grow in unnamed temporary files, and the atomic move of the finished file into place."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NoReturn

import numpy as np

from vctool.errors import StoreError
from vctool.store.format import AnyArray, npy_header

_BLOCK = 1 << 22  # bytes copied at once
_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EFBIG}


def refuse(problem: OSError, path: Path) -> NoReturn:
    """Turn what the operating system said about `path` into a StoreError that says what to do."""
    if problem.errno in _FULL:
        raise StoreError(f"{path}: the disk is full: nothing was changed", "free some space, or write to another disk") from problem
    if problem.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        raise StoreError(
            f"{path}: the folder {path.parent} cannot be written to", "choose another folder, or change its permissions"
        ) from problem
    if problem.errno in (errno.ENOENT, errno.ENOTDIR):
        raise StoreError(f"{path}: the folder {path.parent} does not exist", "create it first") from problem
    raise StoreError(f"{path}: cannot be written: {problem.strerror or problem}", "nothing was changed") from problem


class Part:
    """One array growing on disk, in a file without a name: it disappears with the process, however that ends."""

    def __init__(self, folder: Path, dtype: np.dtype[np.generic], width: int | None = None) -> None:
        self.dtype, self.width, self.rows = dtype, width, 0
        # Unbuffered: what a full disk refused must not linger in a buffer and fail again when it is taken back.
        self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115  (lives as long as the writer)

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.rows,) if self.width is None else (self.rows, self.width)

    @property
    def header(self) -> bytes:
        return npy_header(self.dtype, self.shape)

    @property
    def nbytes(self) -> int:
        return self.rows * (self.width if self.width is not None else 1) * self.dtype.itemsize

    def append(self, values: AnyArray) -> None:
        """Append rows of this part's dtype and width, C-ordered."""
        if values.size:
            self._write(values.data.cast("B"))
        self.rows += len(values)

    def append_bytes(self, text: bytes) -> None:
        """Append to a part of bytes."""
        self._write(memoryview(text))
        self.rows += len(text)

    def _write(self, data: memoryview) -> None:
        while data:
            data = data[self._file.write(data) :]

    def truncate(self, rows: int) -> None:
        """Forget the rows after the first `rows`: half of a clip that could not be written whole."""
        self.rows = rows
        self._file.seek(self.nbytes)
        self._file.truncate()

    def blocks(self, digest: hashlib._Hash) -> Iterator[bytes]:
        """Header and data in blocks; `digest` sums the data alone."""
        yield self.header
        self._file.seek(0)
        left = self.nbytes
        while left:
            block = self._file.read(min(_BLOCK, left))
            if not block:
                raise StoreError("a temporary file lost its contents", "was the disk unplugged? start again")
            digest.update(block)
            yield block
            left -= len(block)
        self._file.seek(0, os.SEEK_END)

    def close(self) -> None:
        """Give the disk space back."""
        self._file.close()


class ArrayPart:
    """An array in memory that is written like a `Part`."""

    def __init__(self, values: AnyArray) -> None:
        self._values = np.ascontiguousarray(values)
        self.dtype, self.shape, self.nbytes = self._values.dtype, self._values.shape, self._values.nbytes

    @property
    def header(self) -> bytes:
        return npy_header(self.dtype, self.shape)

    def blocks(self, digest: hashlib._Hash) -> Iterator[bytes]:
        """Header and data; `digest` sums the data alone."""
        yield self.header
        data = self._values.tobytes()
        digest.update(data)
        yield data


@contextlib.contextmanager
def replacing(target: Path) -> Iterator[BinaryIO]:
    """A new file beside `target` that takes its place, synced to disk, when the block ends well; else it is removed.

    A reader that has the old file open keeps reading the old file.
    """
    file, temporary = _create_beside(target)
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            if target.exists():
                os.chmod(temporary, target.stat().st_mode & 0o777)  # noqa: PTH101
        _replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(target.parent)


def _create_beside(target: Path) -> tuple[BinaryIO, Path]:
    while True:
        temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
        file = os.fdopen(descriptor, "w+b", buffering=1 << 20)
        # Between the two lines above, another writer's `remove_stale` can have taken the file for a leftover.
        if not _lock(file, wait=True) or temporary.exists():
            return file, temporary
        file.close()


def remove_stale(target: Path) -> None:
    """Remove what a killed writer of `target` left behind; a living writer holds a lock on its file."""
    for leftover in target.parent.glob(f".{_escaped(target.name)}.????????.tmp"):
        with contextlib.suppress(OSError), leftover.open("rb") as file:
            if _lock(file):
                leftover.unlink()


def _escaped(name: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)


def _lock(file: BinaryIO, wait: bool = False) -> bool:
    try:
        import fcntl
    except ImportError:  # Windows: leftovers stay, an open file cannot be removed by accident either
        return False
    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _replace(temporary: Path, target: Path) -> None:
    for wait in (0.1, 0.3, 1.0, None):
        try:
            os.replace(temporary, target)  # noqa: PTH105
            return
        except PermissionError as problem:
            # Windows refuses while another process has the old file open, and virus scanners do so for a moment.
            if os.name != "nt":
                raise
            if wait is None:
                raise StoreError(
                    f"{target}: is open in another program: nothing was changed", "close that program and try again"
                ) from problem
            time.sleep(wait)


def _sync_folder(folder: Path) -> None:
    # The rename itself lives in the folder; where folders cannot be synced (Windows, some networks) it is not needed or not possible.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
