"""Writing a folder of shards: new shards under new names, then the manifest in one step, then what is no longer listed goes.

A kill at any point leaves the folder as it was or as it is meant to be; what else lies about is removed by the next writer.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from vctool.errors import StoreError
from vctool.store.format import StoreDtype
from vctool.store.interface import Store
from vctool.store.lock import WriteLock
from vctool.store.parts import refuse, remove_stale, replacing
from vctool.store.reader import TokenStore
from vctool.store.shards import MANIFEST, ShardEntry, describe_shard, folder_manifest, read_manifest
from vctool.store.token_rows import TokenRows
from vctool.store.tokens import ClipTokens
from vctool.store.writer import StoreWriter

SHARD_BYTES = 1 << 30
_OUR_SHARD = re.compile(r"shard-([0-9]{6,})\.npz")
_CHECK_CLIPS = 512  # clips added before the size of a shard is looked at again


@dataclass(frozen=True)
class ShardSize:
    """When a shard is full: at this many clips, or at this many bytes, whichever comes first; at least one clip is in it."""

    clips: int | None = None
    bytes: int | None = None

    def __post_init__(self) -> None:
        for value in (self.clips, self.bytes):
            if value is not None and value < 1:
                raise StoreError(f"a shard of {value} clips or bytes holds nothing", "give a size of 1 or more")
        if self.clips is None and self.bytes is None:
            object.__setattr__(self, "bytes", SHARD_BYTES)

    def full(self, clips: int, size: int) -> bool:
        """Whether a shard with this much in it takes no more."""
        return (self.clips is not None and clips >= self.clips) or (self.bytes is not None and size >= self.bytes)


def is_free(folder: Path) -> bool:
    """Whether a folder holds nothing but what a killed writer of a new store left in it."""
    return all(one.name.startswith(".") or _OUR_SHARD.fullmatch(one.name) for one in folder.iterdir())


class FolderWriter:
    """Builds or changes the folder of shards `path`, with the methods of `StoreWriter`, and `keep` for shards that stay.

    What is neither kept nor added is not in the store after `commit`. Without a commit nothing has changed.
    Raises StoreError at once if `path` is a file or a folder of something else, cannot be written to, or is being written to.
    """

    def __init__(self, path: str | Path, *, manifest: Mapping[str, Any], dtype: StoreDtype, size: ShardSize | None = None) -> None:
        self.path = Path(path)
        self.dtype: StoreDtype = dtype
        self._manifest = {key: value for key, value in manifest.items() if key not in ("generation", "clips", "shards", "arrays")}
        self._size = size or ShardSize()
        self._ids: set[str] = set()
        self._entries: list[ShardEntry] = []
        self._writer: StoreWriter | None = None
        self._writing: Path | None = None
        self._lock: WriteLock | None = None
        self._made = False
        self._generation = 0
        self._old: Sequence[ShardEntry] = []
        self._folder = Path(os.path.realpath(self.path))
        try:
            if not self.path.exists():
                self.path.mkdir()
                self._made = True
            elif not self.path.is_dir():
                raise StoreError(f"{self.path}: is a file", "give the name of a folder, or of a .npz file")
            self._lock = WriteLock(self._folder)
            self._old = self._listed()
            self._tidy({entry.file for entry in self._old})
        except OSError as problem:
            self.close()
            refuse(problem, self.path)
        except BaseException:
            self.close()
            raise
        self._next = max((int(m[1]) for entry in self._old if (m := _OUR_SHARD.fullmatch(entry.file))), default=0) + 1

    def _listed(self) -> Sequence[ShardEntry]:
        if (self._folder / MANIFEST).exists():
            manifest, entries = read_manifest(self._folder)
            self._generation = int(manifest.get("generation", 0))
            return entries
        foreign = [one.name for one in self._folder.iterdir() if not one.name.startswith(".") and not _OUR_SHARD.fullmatch(one.name)]
        if foreign:
            raise StoreError(f"{self.path}: is a folder of something else ({sorted(foreign)[0]})", "give a new folder, or a .npz file")
        return []

    def _tidy(self, listed: set[str]) -> None:
        """Remove our own shards that the manifest does not name, and what killed writers left."""
        remove_stale(self._folder / MANIFEST)
        for one in self._folder.iterdir():
            unlisted = _OUR_SHARD.fullmatch(one.name) and one.name not in listed
            if unlisted or (one.name.startswith(".shard-") and one.name.endswith((".tmp", ".lock"))):
                one.unlink(missing_ok=True)

    def __len__(self) -> int:
        return sum(entry.clips for entry in self._entries) + (0 if self._writer is None else len(self._writer))

    def __contains__(self, clip_id: object) -> bool:
        return clip_id in self._ids

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def keep(self, shard: TokenStore) -> None:
        """Shard of this folder stays as it is; it follows what was added or kept before. Raises StoreError if it is not one of them."""
        entry = next((one for one in self._old if one.file == shard.path.name and one.sha256 == shard.manifest_sha256), None)
        if entry is None:
            raise StoreError(f"{shard.path}: is no longer a shard of {self.path}", "open the store again")
        self.finish_shard()
        if not self._ids.isdisjoint(shard.clip_ids):
            twice = next(one for one in shard.clip_ids if one in self._ids)
            raise StoreError(f"clip {twice!r} is already in the store", "ids must be unique: rename one of the two")
        self._ids.update(shard.clip_ids)
        self._entries.append(entry)

    def add(self, clip: ClipTokens) -> None:
        """Append one clip, as `StoreWriter.add`."""
        self._room().add(clip)

    def add_many(
        self,
        ids: Sequence[str],
        frame: TokenRows,
        video: TokenRows | None = None,
        *,
        paths: Sequence[str] | None = None,
        metas: Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        """Append many clips, as `StoreWriter.add_many`. A shard bounded by bytes may exceed them by a few hundred clips."""
        start = 0
        while start < len(ids):
            writer = self._room()
            stop = min(start + self._fits(writer), len(ids))
            writer.add_many(
                ids[start:stop],
                frame.part(start, stop),
                None if video is None else video.part(start, stop),
                paths=None if paths is None else paths[start:stop],
                metas=None if metas is None else metas[start:stop],
            )
            start = stop

    def add_from(self, store: Store, index: int, *, clip_id: str | None = None, path: str | None = None, meta: Any = None) -> None:
        """Copy one clip, as `StoreWriter.add_from`."""
        self._room().add_from(store, index, clip_id=clip_id, path=path, meta=meta)

    def add_range(self, store: TokenStore, start: int = 0, stop: int | None = None) -> None:
        """Copy a range of clips, as `StoreWriter.add_range`. No shard exceeds its size, unless by its only clip."""
        end = len(store) if stop is None else stop
        before = np.concatenate([[0], np.cumsum(store.clip_bytes())])
        while start < end:
            writer = self._room()
            fit = end
            if self._size.bytes is not None:
                room = self._size.bytes - writer.nbytes + int(before[start])
                fit = int(np.searchsorted(before, room, side="right")) - 1
                if fit <= start and len(writer):
                    self.finish_shard()
                    continue
            if self._size.clips is not None:
                fit = min(fit, start + self._size.clips - len(writer))
            fit = min(max(fit, start + 1), end)
            writer.add_range(store, start, fit)
            start = fit

    def commit(self) -> dict[str, Any]:
        """Replace the manifest: from that instant on the folder is the new store. Returns the manifest.

        Raises StoreError if that fails; the old store is then untouched.
        """
        if self._lock is None:
            raise StoreError(f"{self.path}: this writer is closed", "a writer commits once; open another one")
        try:
            self.finish_shard()
            common = self._manifest | {"dtype": self.dtype}
            with replacing(self._folder / MANIFEST) as file:
                file.write(folder_manifest(common, self._entries, self._generation + 1))
            kept = {entry.file for entry in self._entries}
            with contextlib.suppress(OSError):
                for entry in self._old:  # also those of other names than ours, which are not tidied away
                    if entry.file not in kept:
                        (self._folder / entry.file).unlink(missing_ok=True)
            return read_manifest(self._folder)[0]
        except OSError as problem:
            refuse(problem, self.path)
        finally:
            self.close()

    def close(self) -> None:
        """Throw away what was not committed."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        if self._lock is not None:
            # Not what this writer believes, but what the folder says by now decides which files belong to it.
            with contextlib.suppress(OSError, StoreError):
                there = (self._folder / MANIFEST).exists()
                self._tidy({entry.file for entry in read_manifest(self._folder)[1]} if there else set())
            self._lock.release()
            self._lock = None
        if self._made:
            with contextlib.suppress(OSError):  # it is not empty: the store was written
                self._folder.rmdir()
            self._made = False

    def _room(self) -> StoreWriter:
        """The writer of a shard that is not full yet."""
        if self._lock is None:
            raise StoreError(f"{self.path}: this writer is closed", "a writer commits once; open another one")
        if self._writer is not None and self._size.full(len(self._writer), self._writer.nbytes):
            self.finish_shard()
        if self._writer is None:
            self._writing = self._folder / f"shard-{self._next:06d}.npz"
            self._next += 1
            self._writer = StoreWriter(self._writing, manifest=self._manifest, dtype=self.dtype, taken=self._ids, locked=True)
        return self._writer

    def _fits(self, writer: StoreWriter) -> int:
        left = _CHECK_CLIPS if self._size.bytes is not None else 1 << 62
        return left if self._size.clips is None else max(1, min(left, self._size.clips - len(writer)))

    def finish_shard(self) -> None:
        """What is added next goes into another shard."""
        if self._writer is None or self._writing is None:
            return
        writer, self._writer = self._writer, None
        if not len(writer):
            writer.close()
            return
        shard = writer.commit()
        self._manifest = {**self._manifest, "dim": shard["dim"]}
        self._entries.append(describe_shard(self._writing))
