"""Opening a store, whichever of its two forms it has."""

from __future__ import annotations

from pathlib import Path

from vctool.store.reader import TokenStore
from vctool.store.shards import ShardedStore


def open_store(path: str | Path) -> TokenStore | ShardedStore:
    """Open the token store at `path`, a `.npz` file or a folder of shards, mapped: milliseconds whatever its size.

    Raises StoreError, in one line that says what to do: no such file, not a store, cut short, of a newer version, a
    missing member or shard, a wrong dtype, offsets that run backwards or past the end.
    """
    return ShardedStore(path) if Path(path).is_dir() else TokenStore(path)
