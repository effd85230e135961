"""Arrays of one shape, computed once and kept under a key in a folder that may be deleted at any time.

A folder holds `settings.json` (for people), `part-N.npy` (rows in the order they were made) and `index.jsonl` (a line for
each finished row). A row is listed only after its bytes are written, so work that was cut off goes on where it stopped.
Rows go through `write`, not through a mapping: a full disk is then an error and not a signal that kills the process.
"""

from __future__ import annotations

import copy
import errno
import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from vctool.errors import InputError, VctoolError

_INDEX = "index.jsonl"


def settings_key(settings: Mapping[str, Any]) -> str:
    """Sixteen hex digits of the sha256 of plain settings."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


class RowCache:
    """Rows of `shape` and `dtype` in `root/<kind>-<sha256 of settings>`; made with other settings, they lie elsewhere."""

    def __init__(self, root: Path, kind: str, settings: Mapping[str, Any], shape: Sequence[int], dtype: DTypeLike) -> None:
        self.shape, self.dtype = tuple(int(n) for n in shape), np.dtype(dtype)
        full = {**settings, "shape": list(self.shape), "dtype": self.dtype.str}
        self.folder = root / f"{kind}-{settings_key(full)}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / "settings.json").write_text(json.dumps(full, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        except OSError as problem:
            raise InputError(
                f"the cache folder {self.folder} cannot be written: {problem.strerror}", "set data.cache to another folder"
            ) from None
        self._index = self._read_index()

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def __contains__(self, key: str) -> bool:
        return key in self._index

    def missing(self, keys: Sequence[str]) -> list[int]:
        """Positions of the keys without a row, each key once."""
        first = {key: i for i, key in reversed(list(enumerate(keys))) if key not in self._index}
        return sorted(first.values())

    @contextmanager
    def adding(self, expected: int) -> Iterator[RowWriter]:
        """A writer for new rows; what it finished stays, also when the block ends by an exception.

        Raises VctoolError before anything is written where `expected` rows would not fit on the disk.
        """
        needed, free = expected * self.row_bytes, shutil.disk_usage(self.folder).free
        if needed > free:
            raise VctoolError(
                f"the cache in {self.folder} needs {needed / 1e9:.1f} GB, the disk has {free / 1e9:.1f} GB free",
                "set data.cache to a larger disk",
            )
        number = 0
        while True:
            try:
                # Unbuffered: what a full disk refused must not be waiting to be written again.
                part = (self.folder / f"part-{number:05d}.npy").open("xb", buffering=0)
                break
            except FileExistsError:
                number += 1
        with part, (self.folder / _INDEX).open("a", encoding="utf-8") as index:
            writer = RowWriter(part, Path(part.name).name, index, self.shape, self.dtype, self._index)
            try:
                yield writer
            except OSError as problem:
                if problem.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                    raise
                raise VctoolError(
                    f"the disk is full: {self.folder} holds {writer.rows} new rows",
                    "make room or set data.cache to another disk, then run it again",
                ) from None
            finally:
                writer.finish()
        if not writer.rows:
            Path(part.name).unlink()

    def rows(self, keys: Sequence[str]) -> CachedRows:
        """The rows of these keys, mapped. Raises KeyError for a key without a row."""
        return CachedRows([self._index[k] for k in keys], self.folder, self.shape, self.dtype)

    def _read_index(self) -> dict[str, tuple[str, int, int]]:
        path = self.folder / _INDEX
        found: dict[str, tuple[str, int, int]] = {}
        if not path.exists():
            return found
        held: dict[str, int] = {}
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                key, part, row, count = json.loads(line)
            except (ValueError, TypeError):
                continue  # the last line of a process that was killed
            if part not in held:
                held[part] = _rows_held(self.folder / part, self.row_bytes)
            if row < held[part]:
                found[key] = (part, row, count)
        return found


class RowWriter:
    """Appends rows to one part file of a RowCache."""

    def __init__(
        self,
        part: IO[bytes],
        name: str,
        index: IO[str],
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        known: dict[str, tuple[str, int, int]],
    ) -> None:
        self.rows = 0
        self._part, self._name, self._index, self._shape, self._dtype, self._known = part, name, index, shape, dtype, known
        self._header()

    def add(self, key: str, row: NDArray[Any], count: int) -> None:
        """Write one row; `count` is a number kept beside it (how many of its frames are real)."""
        assert row.shape == self._shape and row.dtype == self._dtype, "a cache holds rows of one shape"
        left = memoryview(np.ascontiguousarray(row).tobytes())
        while left:
            left = left[self._part.write(left) :]
        self._index.write(json.dumps([key, self._name, self.rows, count]) + "\n")
        self._index.flush()
        self._known[key] = (self._name, self.rows, count)
        self.rows += 1

    def finish(self) -> None:
        """Put the true number of rows into the header, so that `np.load` opens the part."""
        end = self._part.tell()
        self._part.seek(0)
        self._header()
        self._part.seek(end)

    def _header(self) -> None:
        # numpy pads the header for a growing first axis: its length does not depend on the number of rows.
        np.lib.format.write_array_header_1_0(
            self._part, {"descr": np.lib.format.dtype_to_descr(self._dtype), "fortran_order": False, "shape": (self.rows, *self._shape)}
        )


class CachedRows:
    """N rows in a chosen order. counts_N: int64, the number kept beside each."""

    def __init__(self, places: Sequence[tuple[str, int, int]], folder: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.shape, self.dtype = shape, dtype
        names = sorted({part for part, _, _ in places})
        self._parts = [_mapped(folder / name, shape, dtype) for name in names]
        number = {name: i for i, name in enumerate(names)}
        self._part_N = np.array([number[part] for part, _, _ in places], dtype=np.int64)
        self._row_N = np.array([row for _, row, _ in places], dtype=np.int64)
        self.counts_N = np.array([count for _, _, count in places], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._row_N)

    def only(self, wanted_M: NDArray[np.int64]) -> CachedRows:
        """These rows alone, in this order, over the same mapped files."""
        chosen = copy.copy(self)
        chosen._part_N, chosen._row_N, chosen.counts_N = self._part_N[wanted_M], self._row_N[wanted_M], self.counts_N[wanted_M]
        return chosen

    def take(self, wanted_B: NDArray[np.int64]) -> NDArray[Any]:
        """A copy of rows `wanted_B`: [B, *shape]."""
        out = np.empty((len(wanted_B), *self.shape), dtype=self.dtype)
        part_B, row_B = self._part_N[wanted_B], self._row_N[wanted_B]
        for part in np.unique(part_B):
            here = np.flatnonzero(part_B == part)
            out[here] = self._parts[part][row_B[here]]
        return out


def _data_start(file: IO[bytes]) -> int:
    np.lib.format.read_magic(file)
    np.lib.format.read_array_header_1_0(file)
    return file.tell()


def _rows_held(path: Path, row_bytes: int) -> int:
    try:
        with path.open("rb") as file:
            return (os.fstat(file.fileno()).st_size - _data_start(file)) // row_bytes
    except (OSError, ValueError):
        return 0


def _mapped(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    with path.open("rb") as file:
        start = _data_start(file)
    held = _rows_held(path, math.prod(shape) * dtype.itemsize)
    # The shape is not taken from the header: a process that was killed leaves it at zero rows.
    return np.memmap(path, dtype=dtype, mode="r", offset=start, shape=(held, *shape))
