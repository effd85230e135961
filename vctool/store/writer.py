"""Writing a token store: clips stream to temporary files, the finished .npz takes its place in one step.

Shape letters: F frames, V video tokens, T tokens of all clips end to end, D width.
"""

from __future__ import annotations

import hashlib
import json
import os
from array import array
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from vctool import __version__
from vctool.errors import StoreError
from vctool.store.archive import ArchiveWriter
from vctool.store.format import BRANCHES, SCHEMA, STORE_DTYPES, AnyArray, StoreDtype
from vctool.store.interface import Store
from vctool.store.parts import ArrayPart, Part, refuse, remove_stale, replacing
from vctool.store.paths import relative_path
from vctool.store.tokens import ClipTokens, Float32, checked_tokens, quantise

# What one clip adds to one branch: stored tokens, float32 times, float32 scales (int8 stores only).
_Rows = tuple[AnyArray, Float32, Float32 | None]

_TEXTS = ("clip_ids_bytes", "clip_paths_bytes", "clip_meta")
_COUNTED = ("frame_TD", "video_TD", *_TEXTS)
_OFFSETS = {
    "frame_TD": "frame_offsets",
    "video_TD": "video_offsets",
    "clip_ids_bytes": "clip_ids_offsets",
    "clip_paths_bytes": "clip_paths_offsets",
    "clip_meta": "clip_meta_offsets",
}


class StoreWriter:
    """Builds the store `path` clip by clip in bounded memory.

    Use as a context manager and call `commit()` at the end: without it, and after any exception, the file that was at
    `path` is untouched and nothing is left beside it.

    manifest: what only the caller knows (`model`, `tokenizer_sha256`, `preprocess_sha256`, `frames`, optionally
    `generation`, `dim`); the writer fills in the rest. dtype: `float16`, or `int8` with one float32 scale a token.
    Raises StoreError at once if the folder cannot be written to or `path` is a folder.
    """

    def __init__(self, path: str | Path, *, manifest: Mapping[str, Any], dtype: StoreDtype = "float16") -> None:
        if dtype not in STORE_DTYPES:
            raise StoreError(f"store dtype {dtype!r} is not known", f"choose {' or '.join(STORE_DTYPES)}")
        self.path = Path(path)
        if self.path.is_dir():
            raise StoreError(f"{self.path}: is a folder", "give the name of the .npz file to write")
        self.dtype: StoreDtype = dtype
        self._target = Path(os.path.realpath(self.path))  # a link stays a link; the file it names is replaced
        self._manifest = _plain_manifest(manifest, self.path)
        self._dim: int | None = self._manifest.get("dim") or None  # the manifest of a store without clips says 0
        self._ids: set[str] = set()
        self._ends = array("q")  # for each clip, how many rows each of _COUNTED has after it
        self._parts: dict[str, Part] = {}
        self._dirty = False
        self._open = True
        try:
            remove_stale(self._target)
            self._make_parts()
        except OSError as problem:
            self.close()
            refuse(problem, self.path)

    def _make_parts(self) -> None:
        token, time = np.dtype(self.dtype), np.dtype(np.float32)
        for branch in BRANCHES:
            self._parts[f"{branch}_TD"] = Part(self._target.parent, token, width=self._dim or 0)
            if self.dtype == "int8":
                self._parts[f"{branch}_scale_T"] = Part(self._target.parent, time)
            self._parts[f"{branch}_time_T"] = Part(self._target.parent, time)
        for name in _TEXTS:
            self._parts[name] = Part(self._target.parent, np.dtype(np.uint8))

    def __len__(self) -> int:
        return len(self._ends) // len(_COUNTED)

    def __contains__(self, clip_id: object) -> bool:
        return clip_id in self._ids

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
        self._append(clip.id, clip.path, clip.meta, dim, (self._stored(frame_FD, frame_time_F), self._stored(video_VD, video_time_V)))

    def add_from(self, store: Store, index: int) -> None:
        """Copy clip `index` of an open store, its tokens bit for bit.

        Raises StoreError if that store has another dtype, width or model, or as `add` does.
        """
        clip_id, theirs, ours = store.clip_id(index), _model(store.manifest), _model(self._manifest)
        if store.dtype != self.dtype:
            raise StoreError(f"{store.path} holds {store.dtype} tokens, {self.path} {self.dtype}", "convert one of them first")
        if ours.get("sha256") and theirs.get("sha256") and ours["sha256"] != theirs["sha256"]:
            raise StoreError(
                f"{store.path} was made with model {theirs.get('name')}, {self.path} with {ours.get('name')}", "index with one model only"
            )
        if self._dim is not None and store.dim != self._dim:
            raise StoreError(f"clip {clip_id!r}: tokens are {store.dim} wide, the store holds {self._dim}", "index with one model only")
        rows = (store.rows("frame", index), store.rows("video", index))
        for branch, (token_TD, _, scale_T) in zip(BRANCHES, rows, strict=True):
            # A checksum says that bytes are what they were, not that they ever were good: files of foreign make come here too.
            if not (np.isfinite(token_TD).all() and (scale_T is None or np.isfinite(scale_T).all())):
                raise StoreError(
                    f"clip {clip_id!r}: a {branch} token is NaN or infinite", f"index this clip again; it came from {store.path}"
                )
        path = store.resolve_path(index)
        self._append(clip_id, store.clip_path(index) if path is None else str(path), store.clip_meta(index), store.dim, rows)

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

    def _stored(self, token_TD: Float32, time_T: Float32) -> _Rows:
        if self.dtype == "int8":
            rounded_TD, scale_T = quantise(token_TD)
            return rounded_TD, time_T, scale_T
        return token_TD.astype(np.float16), time_T, None

    def _append(self, clip_id: str, path: str, meta: Mapping[str, Any], dim: int, branches: tuple[_Rows, _Rows]) -> None:
        self._require_open()
        if not isinstance(clip_id, str) or not clip_id:
            raise StoreError(f"clip id {clip_id!r} is not a non-empty text", "give every clip a name")
        if clip_id in self._ids:
            raise StoreError(f"clip {clip_id!r} is already in the store", "ids must be unique: rename one of the two")
        texts = (
            clip_id.encode("utf-8", "surrogatepass"),
            relative_path(path, self._target.parent).encode("utf-8", "surrogatepass"),
            _meta_line(clip_id, meta),
        )
        try:
            self._settle()
            self._dirty = True
            for branch, (token_TD, time_T, scale_T) in zip(BRANCHES, branches, strict=True):
                self._parts[f"{branch}_TD"].width = dim
                self._parts[f"{branch}_TD"].append(token_TD)
                self._parts[f"{branch}_time_T"].append(time_T)
                if scale_T is not None:
                    self._parts[f"{branch}_scale_T"].append(scale_T)
            for name, text in zip(_TEXTS, texts, strict=True):
                self._parts[name].append_bytes(text)
        except OSError as problem:
            refuse(problem, self.path)
        ends = array("q", [self._parts[name].rows for name in _COUNTED])
        self._dim = dim
        self._ids.add(clip_id)
        self._ends.extend(ends)  # the clip counts from this instruction on
        self._dirty = False

    def _settle(self) -> None:
        """Take back the half clip that a full disk or Ctrl-C left behind the last whole one."""
        if not self._dirty:
            return
        rows = dict(zip(_COUNTED, self._ends[-len(_COUNTED) :] or [0] * len(_COUNTED), strict=True))
        for name, part in self._parts.items():
            part.truncate(rows[name if name in rows else f"{name.split('_')[0]}_TD"])
        self._dirty = False

    def _require_open(self) -> None:
        if not self._open:
            raise StoreError(f"{self.path}: this writer is closed", "a writer commits once; open another one")

    def _assemble(self, archive: ArchiveWriter) -> dict[str, Any]:
        self._settle()
        end_NX = np.array(self._ends, dtype=np.int64).reshape(-1, len(_COUNTED))
        arrays: dict[str, dict[str, Any]] = {}
        for name, part in self._parts.items():
            arrays[name] = _add_part(archive, name, part)
            if name in _COUNTED:
                offsets = np.concatenate([[0], end_NX[:, _COUNTED.index(name)]]).astype(np.int64)
                arrays[_OFFSETS[name]] = _add_part(archive, _OFFSETS[name], ArrayPart(offsets))
        manifest = self._manifest | {
            "schema": SCHEMA,
            "created_by": f"vctool {__version__}",
            "dim": self._dim or 0,
            "dtype": self.dtype,
            "clips": len(self),
            "frame_tokens": self._parts["frame_TD"].rows,
            "video_tokens": self._parts["video_TD"].rows,
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


def _meta_line(clip_id: str, meta: Mapping[str, Any]) -> bytes:
    try:
        # ASCII: no character of a caption can be taken for the end of a line.
        return json.dumps(dict(meta), allow_nan=False, separators=(",", ":")).encode("ascii") + b"\n"
    except (TypeError, ValueError, RecursionError) as problem:
        raise StoreError(f"clip {clip_id!r}: its metadata cannot be written as JSON: {problem}", "use text, numbers and lists") from None
