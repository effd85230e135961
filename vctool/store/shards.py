"""A folder of token stores that is read as one: `manifest.json` names the shards, each a complete `.npz` store.

The manifest is the only thing that says which files belong to the store. It is replaced last and in one step, so that
a folder always shows either the old shards or the new ones, whatever happened to the process that wrote them.

Shape letters: N clips.
"""

from __future__ import annotations

import bisect
import contextlib
import itertools
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from vctool import __version__
from vctool.errors import StoreError, VerificationError
from vctool.store.format import SCHEMA, AnyArray
from vctool.store.reader import TokenStore
from vctool.store.tokens import ClipTokens, Float32

MANIFEST = "manifest.json"
KIND = "token store"
# A shard is named by nothing but plain characters: no name in a manifest can lead out of its folder.
_SHARD_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,200}\.npz")
_LONGEST_MANIFEST = 1 << 28  # bytes; a million shards would need less
_TRIES = 5  # a writer may replace the manifest and remove old shards while they are being opened
_REPAIR = "copy the folder again, or build it again with `vctool index`"


@dataclass(frozen=True)
class ShardEntry:
    """One line of a folder's manifest. sha256: of the shard's own manifest, which holds the sums of all its arrays."""

    file: str
    clips: int
    bytes: int
    sha256: str


def is_store_folder(path: str | Path) -> bool:
    """Whether `path` is a folder whose `manifest.json` says that it is a token store (sound or not)."""
    try:
        with (Path(path) / MANIFEST).open("rb") as file:
            return b'"token store"' in file.read(4096)
    except OSError:
        return False


class ShardedStore:
    """An open folder of shards, with the interface of `TokenStore`. Clips are numbered across shards, in the manifest's order.

    Raises StoreError, in one line that says what to do: no manifest, a manifest that is damaged or of a newer version, a
    shard that is missing, damaged, of another model or not the one that the manifest means.
    """

    path: Path
    folder: Path
    manifest: dict[str, Any]
    shards: Sequence[TokenStore]

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.folder = Path(os.path.realpath(self.path))
        for left in reversed(range(_TRIES)):
            text = _manifest_text(self.path)
            try:
                self.manifest, self.entries = parse_manifest(text, self.path)
                self.shards = tuple(_open_shard(self.path, entry, self.manifest) for entry in self.entries)
                break
            except StoreError:
                # Were the shards taken away by a writer that has put a newer manifest in place? Then that one is meant.
                if not left or _manifest_text(self.path) == text:
                    raise
        self._starts = list(itertools.accumulate((len(shard) for shard in self.shards), initial=0))

    @property
    def dim(self) -> int:
        """Token width D; 0 in a store without clips."""
        return self.shards[0].dim if self.shards else int(self.manifest.get("dim") or 0)

    @property
    def dtype(self) -> str:
        """How the tokens of all shards are stored."""
        return self.shards[0].dtype if self.shards else str(self.manifest.get("dtype", "float16"))

    def __len__(self) -> int:
        return self._starts[-1]

    def __contains__(self, clip_id: object) -> bool:
        return clip_id in self._index

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the files, as `TokenStore.close`."""
        for shard in self.shards:
            shard.close()

    @cached_property
    def clip_ids(self) -> list[str]:
        """All ids, decoded on first use."""
        return [clip_id for shard in self.shards for clip_id in shard.clip_ids]

    @cached_property
    def clip_paths(self) -> list[str]:
        """All paths as stored: relative to this folder where that was possible."""
        return [path for shard in self.shards for path in shard.clip_paths]

    @cached_property
    def _index(self) -> dict[str, int]:
        return {clip_id: i for i, clip_id in enumerate(self.clip_ids)}

    def index_of(self, clip_id: str) -> int:
        """Position of the clip with this id; raises StoreError if there is none."""
        try:
            return self._index[clip_id]
        except KeyError:
            raise StoreError(f"{self.path}: no clip {clip_id!r}", "`vctool info` shows the first ids") from None

    def place(self, index: int) -> tuple[TokenStore, int]:
        """The shard that holds clip `index`, and its position there."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"clip {index} of {len(self)}")
        index %= len(self)
        number = bisect.bisect_right(self._starts, index) - 1
        return self.shards[number], index - self._starts[number]

    def clip_id(self, index: int) -> str:
        """Id of one clip, without decoding the others."""
        shard, local = self.place(index)
        return shard.clip_id(local)

    def clip_path(self, index: int) -> str:
        """Path of one clip as stored."""
        shard, local = self.place(index)
        return shard.clip_path(local)

    def resolve_path(self, index: int) -> Path | None:
        """Absolute path of one clip's video file; None if it has none or it is an address."""
        shard, local = self.place(index)
        return shard.resolve_path(local)

    def clip_meta(self, index: int) -> dict[str, Any]:
        """Metadata of one clip."""
        shard, local = self.place(index)
        return shard.clip_meta(local)

    def rows(self, branch: str, index: int) -> tuple[AnyArray, Float32, Float32 | None]:
        """One clip's stored tokens, times and scales, as `TokenStore.rows`."""
        shard, local = self.place(index)
        return shard.rows(branch, local)

    def clip(self, index: int) -> ClipTokens:
        """One clip as float32, its path absolute."""
        shard, local = self.place(index)
        return shard.clip(local)

    def verify(self) -> None:
        """Check every shard as `TokenStore.verify` does, and that no id is in two of them.

        Raises VerificationError that names the shard.
        """
        seen: dict[str, str] = {}
        for entry, shard in zip(self.entries, self.shards, strict=True):
            shard.verify()
            if entry.bytes != shard.file_bytes:
                raise VerificationError(f"{shard.path}: has {shard.file_bytes} bytes, the manifest says {entry.bytes}", _REPAIR)
            for clip_id in shard.clip_ids:
                if clip_id in seen:
                    raise VerificationError(f"{self.path}: clip {clip_id!r} is in {seen[clip_id]} and in {entry.file}", _REPAIR)
                seen[clip_id] = entry.file


def describe_shard(path: Path) -> ShardEntry:
    """The manifest's line for a finished shard file."""
    with TokenStore(path) as shard:
        return ShardEntry(path.name, len(shard), shard.file_bytes, shard.manifest_sha256)


def folder_manifest(common: Mapping[str, Any], entries: Sequence[ShardEntry], generation: int) -> bytes:
    """The text of `manifest.json`. common: what all shards share: model, settings, dim, dtype."""
    manifest = {
        **{key: value for key, value in common.items() if key not in ("arrays", "frame_tokens", "video_tokens")},
        "schema": SCHEMA,
        "kind": KIND,
        "created_by": f"vctool {__version__}",
        "generation": generation,
        "clips": sum(entry.clips for entry in entries),
        "shards": [{"file": e.file, "clips": e.clips, "bytes": e.bytes, "sha256": e.sha256} for e in entries],
    }
    # `kind` and `schema` first: a few bytes tell what the folder is.
    ordered = {key: manifest[key] for key in ("kind", "schema")} | dict(sorted(manifest.items()))
    return json.dumps(ordered, indent=1).encode("ascii") + b"\n"


def parse_manifest(text: bytes, where: Path) -> tuple[dict[str, Any], list[ShardEntry]]:
    """Check everything that is read from a folder's manifest; raises StoreError on anything that does not fit."""
    manifest: object = None
    with contextlib.suppress(ValueError, RecursionError):
        manifest = json.loads(text)
    if not isinstance(manifest, dict) or manifest.get("kind") != KIND:
        raise StoreError(
            f"{where}: its {MANIFEST} is not that of a token store", "give the folder or the .npz file that `vctool index` wrote"
        )
    schema = manifest.get("schema")
    if not isinstance(schema, int) or isinstance(schema, bool) or schema < 1:
        raise StoreError(f"{where}: its {MANIFEST} names no schema", _REPAIR)
    if schema > SCHEMA:
        raise StoreError(f"{where}: written by a newer version (store schema {schema}, this vctool reads {SCHEMA})", "upgrade vctool")
    listed = manifest.get("shards")
    if not isinstance(listed, list):
        raise StoreError(f"{where}: its {MANIFEST} lists no shards", _REPAIR)
    entries = [_entry(item, number, where) for number, item in enumerate(listed)]
    names = [entry.file for entry in entries]
    if len(set(names)) != len(names):
        raise StoreError(f"{where}: its {MANIFEST} lists a shard twice", _REPAIR)
    if manifest.get("clips") != sum(entry.clips for entry in entries):
        raise StoreError(f"{where}: its {MANIFEST} says {manifest.get('clips')!r} clips, its shards have others", _REPAIR)
    for key, kind in (("model", dict), ("dtype", str), ("dim", int), ("generation", int)):
        if key in manifest and not (isinstance(manifest[key], kind) and not isinstance(manifest[key], bool)):
            raise StoreError(f"{where}: the {key} in its {MANIFEST} is {manifest[key]!r}", _REPAIR)
    return manifest, entries


def _entry(item: object, number: int, where: Path) -> ShardEntry:
    if not isinstance(item, dict):
        raise StoreError(f"{where}: shard {number} in its {MANIFEST} is not an object", _REPAIR)
    file, clips, size, sha256 = item.get("file"), item.get("clips"), item.get("bytes"), item.get("sha256")
    if not isinstance(file, str) or not _SHARD_NAME.fullmatch(file):
        raise StoreError(f"{where}: shard {number} in its {MANIFEST} has the name {file!r}", "a shard is a .npz file in the same folder")
    counts = [n for n in (clips, size) if isinstance(n, int) and not isinstance(n, bool) and n >= 0]
    if len(counts) != 2 or not isinstance(sha256, str):
        raise StoreError(f"{where}: shard {file} in its {MANIFEST} lacks clips, bytes or sha256", _REPAIR)
    return ShardEntry(file, counts[0], counts[1], sha256)


def read_manifest(folder: Path) -> tuple[dict[str, Any], list[ShardEntry]]:
    """The manifest of a store folder, without opening a shard. Raises StoreError as `parse_manifest`."""
    return parse_manifest(_manifest_text(folder), folder)


def _manifest_text(folder: Path) -> bytes:
    try:
        with (folder / MANIFEST).open("rb") as file:
            text = file.read(_LONGEST_MANIFEST + 1)
    except FileNotFoundError:
        if not folder.exists():
            raise StoreError(f"{folder}: no such file", "build a store with `vctool index VIDEOS -o clips.npz --model MODEL`") from None
        raise StoreError(
            f"{folder}: is a folder without {MANIFEST}: not a token store", "give the folder or the .npz file that `vctool index -o` wrote"
        ) from None
    except OSError as problem:
        raise StoreError(
            f"{folder}: its {MANIFEST} cannot be read: {problem.strerror or problem}", "check the path and its permissions"
        ) from None
    if len(text) > _LONGEST_MANIFEST:
        raise StoreError(f"{folder}: its {MANIFEST} is too large to be one", _REPAIR)
    return text


def _open_shard(folder: Path, entry: ShardEntry, manifest: Mapping[str, Any]) -> TokenStore:
    shard = TokenStore(folder / entry.file)
    if shard.manifest_sha256 != entry.sha256 or len(shard) != entry.clips:
        raise StoreError(f"{shard.path}: is not the shard that {MANIFEST} means", _REPAIR)
    model, theirs = ((m.get("model") or {}).get("sha256") if isinstance(m.get("model"), dict) else None for m in (manifest, shard.manifest))
    for key, ours, others in (
        ("model", model, theirs),
        ("width", manifest.get("dim"), shard.dim),
        ("dtype", manifest.get("dtype"), shard.manifest.get("dtype", shard.dtype)),
    ):
        if ours is not None and others != ours and len(shard):
            raise StoreError(f"{shard.path}: its {key} is {others!r}, that of the store {ours!r}", _REPAIR)
    return shard
