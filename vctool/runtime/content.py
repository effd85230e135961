"""What is in a file, whatever its name and date say."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

_BLOCK = 1 << 22


def content_sha256(path: str, stat: dict[str, int]) -> str | None:
    """SHA-256 of the file at `path` in hex, None if it cannot be read. stat: its size and time, which tell whether it was read before."""
    return _read(path, stat.get("size"), stat.get("mtime_ns"))


@lru_cache(maxsize=256)  # several pieces of one video come one after another
def _read(path: str, size: int | None, mtime_ns: int | None) -> str | None:
    del size, mtime_ns
    digest = hashlib.sha256()
    try:
        if not Path(path).is_file():  # to open a pipe would wait for its other end
            return None
        with Path(path).open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
    except OSError:
        return None
    return digest.hexdigest()
