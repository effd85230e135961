"""Where a store is written to: one file, or a folder of shards; and what is known of it when it is there.

Shape letters: N clips.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vctool.errors import StoreError
from vctool.store.folder import FolderWriter, ShardSize, is_free
from vctool.store.format import StoreDtype
from vctool.store.opening import open_store
from vctool.store.reader import TokenStore
from vctool.store.writer import StoreWriter

AnyWriter = StoreWriter | FolderWriter

# What a manifest says of its own file alone; a copy gets its own.
_OF_THE_FILE = ("schema", "kind", "created_by", "generation", "dtype", "clips", "frame_tokens", "video_tokens", "arrays", "shards")


@dataclass(frozen=True)
class Output:
    """A place for a store. shards: the size of shards of a folder, None for one file. replace: whether what is there may be replaced."""

    path: Path
    shards: ShardSize | None = None
    replace: bool = False

    def check(self) -> None:
        """Raises StoreError if something is there that must not be replaced, or that is of the other kind."""
        if not os.path.lexists(self.path):
            return
        if self.path.is_dir() != (self.shards is not None) and self.path.exists():
            kinds = ("a file", "a folder of shards") if self.shards is not None else ("a folder", "one file")
            raise StoreError(f"{self.path}: is {kinds[0]}, {kinds[1]} was to be written", "choose another output")
        if not self.replace and not (self.path.is_dir() and is_free(self.path)):
            raise StoreError(f"{self.path}: is there already", "choose another output, or add --force to replace it")

    def writer(self, manifest: Mapping[str, Any], dtype: StoreDtype) -> AnyWriter:
        """A writer of this place; see `StoreWriter` and `FolderWriter`."""
        self.check()
        if self.shards is not None:
            return FolderWriter(self.path, manifest=manifest, dtype=dtype, size=self.shards)
        return StoreWriter(self.path, manifest=manifest, dtype=dtype)


@dataclass
class Outcome:
    """What a change of a store left behind. shards: None for one file; bytes: on disk. notes: what the user should know."""

    path: Path
    clips: int
    shards: int | None
    bytes: int
    dtype: str
    notes: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, path: Path, notes: Iterable[str] = ()) -> Outcome:
        """Look at the finished store."""
        with open_store(path) as store:
            size = sum(shard.file_bytes for shard in store.shards)
            return cls(path, len(store), len(store.shards) if path.is_dir() else None, size, store.dtype, list(notes))

    def to_json(self) -> dict[str, Any]:
        """Plain values; `schema` 1."""
        found = {"store": str(self.path), "clips": self.clips, "shards": self.shards, "bytes": self.bytes, "dtype": self.dtype}
        return {"schema": 1, **found, "notes": self.notes}


def copied_manifest(manifest: Mapping[str, Any], folder: Path, target: Path) -> dict[str, Any]:
    """What a copy's manifest says of how its tokens were made. folder: that the original's paths start from; target: the copy."""
    kept = {key: value for key, value in manifest.items() if key not in _OF_THE_FILE}
    model = kept.get("model")
    if isinstance(model, dict) and isinstance(model.get("path"), str) and model["path"]:
        home = Path(os.path.realpath(target))
        try:
            path = Path(os.path.relpath(folder / model["path"], home)).as_posix()
        except ValueError:  # another Windows drive
            path = ""
        kept["model"] = model | {"path": path}
    return kept


def runs(indices: Iterable[int]) -> list[tuple[int, int]]:
    """Ascending positions as ranges `[start, stop)`."""
    found: list[tuple[int, int]] = []
    for index in indices:
        if found and found[-1][1] == index:
            found[-1] = (found[-1][0], index + 1)
        else:
            found.append((index, index + 1))
    return found


def copy_clips(writer: AnyWriter, shard: TokenStore, indices: Iterable[int]) -> None:
    """Append clips of one file, in order, bit for bit."""
    for start, stop in runs(indices):
        writer.add_range(shard, start, stop)
