"""The journal of a running index: finished clips in one append-only file beside the output, safe under kill -9.

Each record carries its length and a checksum; whatever follows the last whole record was being written when the process
died, and is cut off when the journal is opened again. Records name the settings they were made with, so a run with other
settings ignores them.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import struct
import time
import zlib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from vctool.errors import StoreError

_RECORD = struct.Struct("<4sIQI")  # magic, header bytes, payload bytes, CRC-32 of both
_MAGIC = b"VCJ1"
_SYNC_CLIPS, _SYNC_SECONDS = 16, 5.0
_LONGEST_HEADER = 1 << 26


@dataclass(frozen=True, eq=False)
class FinishedClip:
    """A clip's tokens and metadata as encoded: float32 arrays as in `store.ClipTokens`."""

    frame_FD: NDArray[np.float32]
    frame_time_F: NDArray[np.float32]
    video_VD: NDArray[np.float32]
    video_time_V: NDArray[np.float32]
    meta: dict[str, Any]


class Journal:
    """The journal of the store `output`, in the folder `<output>.partial`. One process at a time.

    half: keep tokens as float16, enough for a float16 store (rounding once is exact, rounding again changes nothing).
    Raises StoreError if the folder cannot be made or written, or if another process is indexing to the same output.
    """

    def __init__(self, output: Path, *, half: bool) -> None:
        self.folder = output.with_name(f"{output.name}.partial")
        self._dtype = np.dtype(np.float16 if half else np.float32)
        self._places: dict[str, int] = {}
        self._encoders: dict[str, str] = {}
        self._end = 0
        self._unsynced, self._synced_at = 0, time.monotonic()
        try:
            self.folder.mkdir(exist_ok=True)
            # Unbuffered: what a full disk refused must not stay behind in a buffer.
            self._file = (self.folder / "clips.journal").open("a+b", buffering=0)
        except OSError as problem:
            _refuse(problem, output)
        if not _lock(self._file.fileno()):
            self._file.close()
            raise StoreError(f"{output}: another `vctool index` is writing to it", "wait for it, or choose another output")
        self._scan()

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, key: object) -> bool:
        return key in self._places

    def encoders(self, keys: Collection[str]) -> list[str]:
        """What encoded the clips of these keys, each once, in the order of encoding."""
        return list(dict.fromkeys(name for key, name in self._encoders.items() if name and key in keys))

    def append(self, key: str, clip: FinishedClip, encoder: str = "") -> None:
        """Add one finished clip. encoder: what encoded it, in words. Raises StoreError if the disk is full; the clips before it stay."""
        arrays = [clip.frame_FD.astype(self._dtype), clip.frame_time_F, clip.video_VD.astype(self._dtype), clip.video_time_V]
        described = [[a.dtype.str, list(a.shape)] for a in arrays]
        header = json.dumps({"key": key, "meta": clip.meta, "arrays": described, "encoder": encoder}).encode("ascii")
        payload = b"".join(a.tobytes() for a in arrays)
        crc = zlib.crc32(payload, zlib.crc32(header))
        try:
            self._write(_RECORD.pack(_MAGIC, len(header), len(payload), crc) + header + payload)
            place, self._end = self._end, self._file.tell()
            self._places[key], self._encoders[key] = place, encoder
            self._unsynced += 1
            if self._unsynced >= _SYNC_CLIPS or time.monotonic() - self._synced_at > _SYNC_SECONDS:
                self.sync()
        except OSError as problem:
            with contextlib.suppress(OSError):
                self._file.truncate(self._end)
            _refuse(problem, self.folder, len(self))

    def read(self, key: str) -> FinishedClip:
        """The clip kept under `key`; raises KeyError if there is none."""
        self._file.seek(self._places[key])
        record = self._read_record()
        if record is None:
            raise StoreError(f"{self.folder}: was changed by another program", "remove that folder and index again")
        header, payload = record
        arrays, position = [], 0
        for dtype, shape in header["arrays"]:
            count = int(np.prod(shape))
            arrays.append(np.frombuffer(payload, dtype, count, position).reshape(shape).astype(np.float32))
            position += count * np.dtype(dtype).itemsize
        frame_FD, frame_time_F, video_VD, video_time_V = arrays
        return FinishedClip(frame_FD, frame_time_F, video_VD, video_time_V, header["meta"])

    def sync(self) -> None:
        """Wait until everything appended is on the disk."""
        os.fsync(self._file.fileno())
        self._unsynced, self._synced_at = 0, time.monotonic()

    def close(self) -> None:
        """Keep the finished clips for the next run; a journal without any is removed."""
        if self._file.closed:
            return
        with contextlib.suppress(OSError):
            self._file.truncate(self._end)
            self.sync()
        self._file.close()
        if not self._places:
            self.discard()

    def discard(self) -> None:
        """Remove the journal: its clips are in the store now."""
        self._file.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _write(self, data: bytes) -> None:
        self._file.seek(0, os.SEEK_END)
        view = memoryview(data)
        while view:
            view = view[self._file.write(view) :]

    def _scan(self) -> None:
        self._file.seek(0)
        while True:
            place = self._file.tell()
            record = self._read_record()
            if record is None:
                break
            key = str(record[0]["key"])
            self._places[key], self._encoders[key] = place, str(record[0].get("encoder", ""))
        self._end = place
        self._file.truncate(place)

    def _read_record(self) -> tuple[dict[str, Any], bytes] | None:
        head = self._read(_RECORD.size)
        if len(head) < _RECORD.size:
            return None
        magic, header_size, payload_size, crc = _RECORD.unpack(head)
        left = os.fstat(self._file.fileno()).st_size - self._file.tell()
        if magic != _MAGIC or header_size > _LONGEST_HEADER or header_size + payload_size > left:
            return None
        header, payload = self._read(header_size), self._read(payload_size)
        if len(header) + len(payload) != header_size + payload_size or zlib.crc32(payload, zlib.crc32(header)) != crc:
            return None
        return json.loads(header), payload

    def _read(self, size: int) -> bytes:
        parts = []
        while size:
            block = self._file.read(size)
            if not block:
                break
            parts.append(block)
            size -= len(block)
        return b"".join(parts)


def _refuse(problem: OSError, path: Path, kept: int | None = None) -> NoReturn:
    if problem.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
        again = "free some space and run the same command again"
        raise StoreError(f"{path}: the disk is full", again if kept is None else f"{again}: {kept} finished clips are kept") from None
    if problem.errno in (errno.ENOENT, errno.ENOTDIR):
        raise StoreError(f"{path}: the folder {path.parent} does not exist", "create it first") from None
    if problem.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        raise StoreError(f"{path}: the folder {path.parent} cannot be written to", "choose another output") from None
    raise StoreError(f"{path}: cannot be written: {problem.strerror or problem}", "choose another output") from None


def _lock(descriptor: int) -> bool:
    try:
        import fcntl
    except ImportError:  # Windows: an open file is protected by its own sharing rules
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True
