"""Writing a token store: clips stream to temporary files, the finished .npz takes its place in one step.

Shape letters: F frames, V video tokens, T tokens of all clips end to end, D width.
"""

from __future__ import annotations

import hashlib
import json
import os
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

import numpy as np
import numpy.typing as npt

from vctool import __version__
from vctool.errors import StoreError
from vctool.precision import encode
from vctool.store.archive import ArchiveWriter
from vctool.store.format import BRANCHES, GROUP_OF, ROW_GROUPS, SCHEMA, STORE_DTYPES, AnyArray, StoreDtype
from vctool.store.interface import Store
from vctool.store.lock import WriteLock
from vctool.store.parts import ArrayPart, Part, refuse, remove_stale, replacing
from vctool.store.paths import relative_path
from vctool.store.pooled import pool
from vctool.store.reader import TokenStore
from vctool.store.token_rows import TokenRows
from vctool.store.tokens import ClipTokens, Float32, checked_tokens

Int64 = npt.NDArray[np.int64]

_BLOCK_VALUES = 1 << 20  # token values checked and encoded at once: 4 MB of float32
_COPY_CLIPS = 4096  # clips copied at once

# Each member's new rows, and rows of each clip by the name of their offsets.
_Tokens = tuple[dict[str, AnyArray], dict[str, Int64]]


@dataclass(frozen=True, eq=False)
class _Block:
    """Some clips as they go into the file. rows: each member's new rows. counts: rows of each clip, by the name of their offsets."""

    ids: Sequence[str]
    rows: Mapping[str, AnyArray]
    counts: Mapping[str, Int64]


class StoreWriter:
    """Builds the store `path` clip by clip in bounded memory.

    Use as a context manager and call `commit()` at the end: without it, and after any exception, the file that was at
    `path` is untouched and nothing is left beside it.

    manifest: what only the caller knows (`model`, `tokenizer_sha256`, `preprocess_sha256`, `frames`, optionally
    `generation`, `dim`); the writer fills in the rest. dtype: `float16`, `int8`, `int4` or `compact` (docs/format.md).
    taken: ids that the new clips must not have, besides each other's; the writer adds its own. locked: the caller has the
    `WriteLock` that covers `path`; by default the writer takes its own.
    Raises StoreError at once if the folder cannot be written to, `path` is a folder, or another process is writing to `path`.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        manifest: Mapping[str, Any],
        dtype: StoreDtype = "float16",
        taken: set[str] | None = None,
        locked: bool = False,
    ) -> None:
        if dtype not in STORE_DTYPES:
            raise StoreError(f"store dtype {dtype!r} is not known", f"choose {', '.join(STORE_DTYPES)}")
        self.path = Path(path)
        if self.path.is_dir():
            raise StoreError(f"{self.path}: is a folder", "give the name of the .npz file to write")
        self.dtype: StoreDtype = dtype
        self._target = Path(os.path.realpath(self.path))  # a link stays a link; the file it names is replaced
        self._manifest = _plain_manifest(manifest, self.path)
        self._dim: int | None = self._manifest.get("dim") or None  # the manifest of a store without clips says 0
        self._ids: set[str] = set() if taken is None else taken
        self._ends = array("q")  # for each clip, how many rows it ends at by each of _offsets
        self._parts: dict[str, Part] = {}
        self._real: dict[str, str] = {}
        self._dirty = False
        self._open = True
        self._lock: WriteLock | None = None
        try:
            self._lock = None if locked else WriteLock(self._target)
            remove_stale(self._target)
            self._make_parts()
        except OSError as problem:
            self.close()
            refuse(problem, self.path)

    def _make_parts(self) -> None:
        folder = self._target.parent
        # What an encoded token looks like is learned from no tokens at all; where the width is not known yet, any width will do.
        empty_TD, no_T, none_N = np.zeros((0, self._dim or 64), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64)
        for name, values in self._encoded((empty_TD, empty_TD), (no_T, no_T), (none_N, none_N))[0].items():
            width = None if values.ndim == 1 else values.shape[1] if self._dim else 0
            self._parts[name] = Part(folder, values.dtype, width)
        for name in ("clip_ids_bytes", "clip_paths_bytes", "clip_meta"):
            self._parts[name] = Part(folder, np.dtype(np.uint8))
        groups = [group for group in ROW_GROUPS if group.members[0] in self._parts]
        self._offsets = tuple(group.offsets for group in groups if group.offsets is not None)

    def __len__(self) -> int:
        return len(self._ends) // len(self._offsets)

    def __contains__(self, clip_id: object) -> bool:
        return clip_id in self._ids

    @property
    def nbytes(self) -> int:
        """Bytes that the clips so far will take in the finished file."""
        return sum(part.nbytes for part in self._parts.values()) + self._ends.itemsize * len(self._ends)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def add(self, clip: ClipTokens) -> None:
        """Append one clip. A refused clip leaves the writer as it was, ready for the next one.

        Raises StoreError, naming the clip: a token that is NaN, infinite, zero or not of unit length, another width,
        times that do not fit, an id used before, metadata that JSON cannot hold; or the disk is full.
        """
        frame_FD, frame_time_F = checked_tokens(clip.frame_FD, clip.frame_time_F, self._dim, clip.id, "frame")
        dim = self._dim if self._dim is not None else frame_FD.shape[1]
        video_VD, video_time_V = checked_tokens(clip.video_VD, clip.video_time_V, dim, clip.id, "video")
        counts = np.array([len(frame_FD)], np.int64), np.array([len(video_VD)], np.int64)
        tokens = self._encoded((frame_FD, video_VD), (frame_time_F, video_time_V), counts)
        self._append(self._block([clip.id], [clip.path], [clip.meta], tokens), dim)

    def add_many(
        self,
        ids: Sequence[str],
        frame: TokenRows,
        video: TokenRows | None = None,
        *,
        paths: Sequence[str] | None = None,
        metas: Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        """Append many clips from token arrays, checked and encoded a few megabytes at a time.

        frame, video: as many clips as `ids`; video None gives clips without video tokens. Tokens may be float16 or float32, in
        memory or mapped. Raises as `add`, naming the clip; clips before its block of some thousand stay in the writer, which is
        best not committed then.
        """
        video = TokenRows.none(len(ids), frame.tokens.shape[-1]) if video is None else video
        for kind, source in (("frame", frame), ("video", video)):
            if len(source) != len(ids):
                raise StoreError(f"{len(source)} clips of {kind} tokens, but {len(ids)} ids", "give one id for each clip")
        for name, texts in (("paths", paths), ("metadata", metas)):
            if texts is not None and len(texts) != len(ids):
                raise StoreError(f"{len(texts)} {name}, but {len(ids)} ids", "give one for each clip")
        dim = self._dim if self._dim is not None else int(frame.tokens.shape[-1])
        for start, stop in _spans(frame.offsets + video.offsets, dim):
            names = ids[start:stop]
            branches = [source.checked(start, stop, names, kind, dim, self.path) for kind, source in (("frame", frame), ("video", video))]
            counts = branches[0][2], branches[1][2]
            tokens = self._encoded((branches[0][0], branches[1][0]), (branches[0][1], branches[1][1]), counts)
            block = self._block(
                names,
                [""] * len(names) if paths is None else paths[start:stop],
                [{}] * len(names) if metas is None else metas[start:stop],
                tokens,
            )
            self._append(block, dim)

    def add_from(self, store: Store, index: int, *, clip_id: str | None = None, path: str | None = None, meta: Any = None) -> None:
        """Copy clip `index` of an open store, its tokens bit for bit; with another id, path or metadata if they are given.

        Raises StoreError if that store has another dtype, width or model, or as `add` does.
        """
        for shard in store.shards:
            if index < len(shard):
                break
            index -= len(shard)
        self._add_range(shard, index, index + 1, clip_id, path, meta)

    def add_range(self, store: TokenStore, start: int = 0, stop: int | None = None) -> None:
        """Copy clips `start` to `stop` (default: all) of one open file, bit for bit, at the speed of the disk. Raises as `add_from`."""
        end = len(store) if stop is None else stop
        for first in range(start, end, _COPY_CLIPS):
            self._add_range(store, first, min(first + _COPY_CLIPS, end))

    def _add_range(
        self, store: TokenStore, start: int, stop: int, clip_id: str | None = None, path: str | None = None, meta: Any = None
    ) -> None:
        self._require_alike(store, start)
        rows, counts = store.block(start, stop)
        ids = store.clip_ids[start:stop] if stop - start > 1 else [store.clip_id(start)]
        for branch in BRANCHES:
            for name in (f"{branch}_TD", f"{branch}_scale_T"):
                # A checksum says that bytes are what they were, not that they ever were good: files of foreign make come here too.
                if name in rows and rows[name].dtype.kind == "f" and not np.isfinite(rows[name]).all():
                    bad = int(np.flatnonzero(~np.isfinite(rows[name]).reshape(len(rows[name]), -1).all(axis=1))[0])
                    owner = int(np.searchsorted(np.cumsum(counts[f"{branch}_offsets"]), bad, side="right"))
                    raise StoreError(
                        f"clip {ids[owner]!r}: a {branch} token is NaN or infinite", f"index this clip again; it came from {store.path}"
                    )
        changed: list[tuple[str, str, list[bytes]]] = []
        if clip_id is not None:
            ids = [clip_id]
            changed.append(("clip_ids_bytes", "clip_ids_offsets", [_id_bytes(clip_id)]))
        if path is not None or store.folder != self._target.parent:
            paths = [self._absolute(store, i) for i in range(start, stop)] if path is None else [path]
            changed.append(("clip_paths_bytes", "clip_paths_offsets", [self._path_bytes(one) for one in paths]))
        if meta is not None or not _plain_lines(rows["clip_meta"], counts["clip_meta_offsets"]):
            metas = [store.clip_meta(i) for i in range(start, stop)] if meta is None else [meta]
            changed.append(("clip_meta", "clip_meta_offsets", [_meta_line(one, m) for one, m in zip(ids, metas, strict=True)]))
        for member, offsets, texts in changed:
            rows |= {member: _joined(texts)}
            counts |= {offsets: np.array([len(text) for text in texts], np.int64)}
        for one in ids:
            _id_bytes(one)
        if "pooled_offsets" in self._offsets and "pooled_offsets" not in counts:
            branches = [store.decoded(branch, start, stop) for branch in BRANCHES]
            times = (cast(Float32, rows["frame_time_T"]), cast(Float32, rows["video_time_T"]))
            pooled_rows, pooled_counts = _pooled((branches[0], branches[1]), times, [counts[f"{branch}_offsets"] for branch in BRANCHES])
            rows, counts = rows | pooled_rows, counts | pooled_counts
        self._append(_Block(ids, rows, counts), store.dim)

    def _require_alike(self, store: TokenStore, index: int) -> None:
        theirs, ours = _model(store.manifest), _model(self._manifest)
        if store.dtype != self.dtype:
            raise StoreError(f"{store.path} holds {store.dtype} tokens, {self.path} {self.dtype}", "convert one of them first")
        if ours.get("sha256") and theirs.get("sha256") and ours["sha256"] != theirs["sha256"]:
            raise StoreError(
                f"{store.path} was made with model {theirs.get('name')}, {self.path} with {ours.get('name')}", "index with one model only"
            )
        if self._dim is not None and store.dim != self._dim:
            raise StoreError(
                f"clip {store.clip_id(index)!r}: tokens are {store.dim} wide, the store holds {self._dim}", "index with one model only"
            )

    def _absolute(self, store: TokenStore, index: int) -> str:
        path = store.resolve_path(index)
        return store.clip_path(index) if path is None else str(path)

    def commit(self) -> dict[str, Any]:
        """Assemble the store, sync it to disk and move it into place. Returns its manifest.

        Raises StoreError if that fails (the disk is full); the old file is then untouched.
        """
        self._require_open()
        try:
            with replacing(self._target) as file:
                archive = ArchiveWriter(file)
                manifest = self._assemble(archive)
                archive.finish()
        except OSError as problem:
            refuse(problem, self.path)
        finally:
            self.close()
        return manifest

    def close(self) -> None:
        """Throw away what was not committed."""
        self._open = False
        for part in self._parts.values():
            part.close()
        if self._lock is not None:
            self._lock.release()

    def _encoded(self, branches: tuple[Float32, Float32], times: tuple[Float32, Float32], counts: tuple[Int64, Int64]) -> _Tokens:
        frame_offsets, video_offsets = (np.concatenate([[0], np.cumsum(count_N)]).astype(np.int64) for count_N in counts)
        rows = encode(self.dtype, branches[0], frame_offsets, branches[1], video_offsets)
        lengths = {name: np.diff(rows.pop(name)) for name in list(rows) if name.endswith("_offsets")}
        for branch, time_T, count_N in zip(BRANCHES, times, counts, strict=True):
            rows[f"{branch}_time_T"] = time_T
            lengths[f"{branch}_offsets"] = count_N
        if self.dtype == "compact":  # pooled vectors would cost a quarter more, and its centres are nearly the same
            return rows, lengths
        pooled_rows, pooled_counts = _pooled(branches, times, counts)
        return rows | pooled_rows, lengths | pooled_counts

    def _block(
        self,
        ids: Sequence[str],
        paths: Sequence[str],
        metas: Sequence[Mapping[str, Any]],
        tokens: _Tokens,
    ) -> _Block:
        texts = {
            "clip_ids": [_id_bytes(one) for one in ids],
            "clip_paths": [self._path_bytes(one) for one in paths],
            "clip_meta": [_meta_line(one, meta) for one, meta in zip(ids, metas, strict=True)],
        }
        rows = {name if name == "clip_meta" else f"{name}_bytes": _joined(one) for name, one in texts.items()}
        lengths = {f"{name}_offsets": np.array([len(text) for text in one], np.int64) for name, one in texts.items()}
        token_rows, token_counts = tokens
        return _Block(ids, token_rows | rows, token_counts | lengths)

    def _append(self, block: _Block, dim: int) -> None:
        self._require_open()
        if len(set(block.ids)) != len(block.ids) or not self._ids.isdisjoint(block.ids):
            seen = set(self._ids)
            twice = next(one for one in block.ids if one in seen or seen.add(one))  # type: ignore[func-returns-value]
            raise StoreError(f"clip {twice!r} is already in the store", "ids must be unique: rename one of the two")
        try:
            self._settle()
            self._dirty = True
            for name, part in self._parts.items():
                values = block.rows[name]
                if values.ndim == 2 and not part.rows:
                    part.width = values.shape[1]
                part.append(np.ascontiguousarray(values))
        except OSError as problem:
            refuse(problem, self.path)
        last = np.array(self._ends[-len(self._offsets) :] or [0] * len(self._offsets), np.int64)
        end_NX = last + np.cumsum(np.stack([block.counts[name] for name in self._offsets], axis=1), axis=0)
        self._dim = dim
        self._ids.update(block.ids)
        self._ends.frombytes(end_NX.astype(np.int64).tobytes())  # the clips count from this instruction on
        self._dirty = False

    def _settle(self) -> None:
        """Take back the half clip that a full disk or Ctrl-C left behind the last whole one."""
        if not self._dirty:
            return
        rows = dict(zip(self._offsets, self._ends[-len(self._offsets) :] or [0] * len(self._offsets), strict=True))
        for name, part in self._parts.items():
            offsets = GROUP_OF[name].offsets
            part.truncate(len(self) if offsets is None else rows[offsets])
        self._dirty = False

    def _path_bytes(self, path: str) -> bytes:
        return relative_path(path, self._target.parent, self._real).encode("utf-8", "surrogatepass")

    def _require_open(self) -> None:
        if not self._open:
            raise StoreError(f"{self.path}: this writer is closed", "a writer commits once; open another one")

    def _assemble(self, archive: ArchiveWriter) -> dict[str, Any]:
        self._settle()
        end_NX = np.array(self._ends, dtype=np.int64).reshape(-1, len(self._offsets))
        arrays: dict[str, dict[str, Any]] = {}
        left = dict(zip(self._offsets, end_NX.T, strict=True))
        for name, part in self._parts.items():
            arrays[name] = _add_part(archive, name, part)
            offsets = GROUP_OF[name].offsets
            if offsets in left:
                ends = np.concatenate([[0], left.pop(offsets)]).astype(np.int64)
                arrays[offsets] = _add_part(archive, offsets, ArrayPart(ends))
        manifest = self._manifest | {
            "schema": SCHEMA,
            "created_by": f"vctool {__version__}",
            "dim": self._dim or 0,
            "dtype": self.dtype,
            "clips": len(self),
            "frame_tokens": self._parts["frame_time_T"].rows,
            "video_tokens": self._parts["video_time_T"].rows,
            "arrays": arrays,
        }
        manifest.setdefault("generation", 1)
        text = json.dumps(manifest, indent=1, sort_keys=True).encode("ascii") + b"\n"
        _add_part(archive, "manifest", ArrayPart(np.frombuffer(text, dtype=np.uint8)))
        return manifest


def _add_part(archive: ArchiveWriter, name: str, part: Part | ArrayPart) -> dict[str, Any]:
    digest = hashlib.sha256()
    archive.add(f"{name}.npy", len(part.header) + part.nbytes, part.blocks(digest))
    return {"sha256": digest.hexdigest(), "shape": list(part.shape), "dtype": part.dtype.name}


def _model(manifest: Mapping[str, Any]) -> dict[str, Any]:
    model = manifest.get("model")
    return model if isinstance(model, dict) else {}


def _plain_manifest(manifest: Mapping[str, Any], path: Path) -> dict[str, Any]:
    try:
        plain: dict[str, Any] = json.loads(json.dumps(dict(manifest), allow_nan=False))
    except (TypeError, ValueError, RecursionError) as problem:
        raise StoreError(f"{path}: its manifest cannot be written as JSON: {problem}", "use plain values") from None
    return plain


def _id_bytes(clip_id: str) -> bytes:
    if not isinstance(clip_id, str) or not clip_id:
        raise StoreError(f"clip id {clip_id!r} is not a non-empty text", "give every clip a name")
    return clip_id.encode("utf-8", "surrogatepass")


def _meta_line(clip_id: str, meta: Mapping[str, Any]) -> bytes:
    if not meta:
        return b"{}\n"
    try:
        # ASCII: no character of a caption can be taken for the end of a line.
        return json.dumps(dict(meta), allow_nan=False, separators=(",", ":")).encode("ascii") + b"\n"
    except (TypeError, ValueError, RecursionError) as problem:
        raise StoreError(f"clip {clip_id!r}: its metadata cannot be written as JSON: {problem}", "use text, numbers and lists") from None


def _plain_lines(text: AnyArray, counts: Int64) -> bool:
    """Whether metadata are one line of ASCII a clip, as we write them: such lines are copied as they are."""
    data = text.tobytes()
    if not data.isascii() or data.count(b"\n") != len(counts) or not counts.all():
        return False
    return bool((text[np.cumsum(counts) - 1] == ord("\n")).all())


def _pooled(branches: tuple[Float32, Float32], times: tuple[Float32, Float32], counts: Sequence[Int64]) -> _Tokens:
    found = pool(branches[0], times[0], counts[0], branches[1], times[1], counts[1])
    return {"pooled_PD": found.vector_PD, "pooled_scale_P": found.scale_P}, {"pooled_offsets": np.diff(found.offsets)}


def _joined(texts: Sequence[bytes]) -> AnyArray:
    return np.frombuffer(b"".join(texts), dtype=np.uint8)


def _spans(ends: Int64, dim: int) -> Iterator[tuple[int, int]]:
    """Runs of clips of about `_BLOCK_VALUES` token values each, at least one clip. ends: tokens before each clip, int64 [N+1]."""
    start, clips = 0, len(ends) - 1
    while start < clips:
        room = int(ends[start]) + max(_BLOCK_VALUES // max(dim, 1), 1)
        stop = max(int(np.searchsorted(ends, room, side="right")) - 1, start + 1)
        yield start, min(stop, clips)
        start = min(stop, clips)
