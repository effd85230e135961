"""Reading a token store: every array mapped from the file, nothing decoded before it is asked for.

Shape letters: N clips, F frames, V video tokens, T tokens of all clips end to end, D width.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import mmap
import os
import zlib
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

import numpy as np
import numpy.typing as npt

from vctool.errors import StoreError, VerificationError
from vctool.precision import MEMBERS, Packing, Precision, packing_of, row_bytes, unrotated
from vctool.store.archive import Member, inflate, read_members, same_container
from vctool.store.format import (
    BRANCHES,
    POOLED_MEMBERS,
    PRECISION_MEMBERS,
    REQUIRED_MEMBERS,
    ROW_GROUPS,
    SCHEMA,
    AnyArray,
    check_member,
    parse_npy_header,
)
from vctool.store.paths import absolute_path
from vctool.store.pooled import Pooled
from vctool.store.tokens import ClipTokens, Float32

Int64 = npt.NDArray[np.int64]

_LINES = 4096  # clips whose metadata are read at once
_BLOCK = 1 << 24  # bytes summed at once
_REBUILD = "the file is damaged: copy it again, or build it again with `vctool index`"


class TokenStore:
    """An open token store. Arrays are read-only and stay valid while the file is replaced by a newer one.

    frame_TD, video_TD: float16, int8 or (foreign files) float32 [T, D], or packed uint8 [T, bytes a token]. frame_offsets,
    video_offsets: int64 [N+1]. frame_time_T, video_time_T: float32 seconds, NaN for none. frame_scale_T, video_scale_T: float32, None
    in float16 stores. frame_packing, video_packing: how to read packed tokens, None in float16 and int8 stores.
    manifest: see docs/format.md. folder: the real folder that the file is in, which paths are relative to.

    Raises StoreError, in one line that says what to do: no such file, not a store, cut short, of a newer version, a
    missing member, a wrong dtype, offsets that run backwards or past the end.
    """

    path: Path
    folder: Path
    frame_TD: AnyArray
    frame_offsets: Int64
    frame_time_T: Float32
    frame_scale_T: Float32 | None
    frame_packing: Packing | None
    video_TD: AnyArray
    video_offsets: Int64
    video_time_T: Float32
    video_scale_T: Float32 | None
    video_packing: Packing | None
    manifest: dict[str, Any]

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.folder = Path(os.path.realpath(self.path)).parent
        where = str(self.path)
        self._data = _map(self.path)
        self._members = _known_members(read_members(self._data, where), where)
        self._copied: set[str] = set()
        self._arrays = {name: self._load(name, member) for name, member in self._members.items()}
        self.manifest = _read_manifest(self._arrays["manifest"], where)
        for branch in BRANCHES:
            setattr(self, f"{branch}_TD", self._arrays[f"{branch}_TD"])
            setattr(self, f"{branch}_offsets", self._arrays[f"{branch}_offsets"])
            setattr(self, f"{branch}_time_T", self._arrays[f"{branch}_time_T"])
            setattr(self, f"{branch}_scale_T", self._arrays.get(f"{branch}_scale_T"))
        self._check()
        for branch in BRANCHES:
            packed = self.dtype in ("int4", "compact")
            packing = packing_of(self._arrays, cast(Precision, self.dtype), self.dim, branch) if packed else None
            setattr(self, f"{branch}_packing", packing)

    @property
    def shards(self) -> tuple[TokenStore]:
        """Itself: one file is one shard."""
        return (self,)

    @cached_property
    def manifest_sha256(self) -> str:
        """SHA-256 of the manifest's text. The manifest holds the sums of all other members, so this one stands for the whole store."""
        return hashlib.sha256(self._arrays["manifest"].tobytes()).hexdigest()

    @property
    def file_bytes(self) -> int:
        """Size of the file that is open, which may have been replaced or removed since."""
        return len(self._data)

    @property
    def dim(self) -> int:
        """Token width D."""
        if self.frame_TD.dtype == np.uint8:
            return int(self.manifest["dim"])
        return int(self.frame_TD.shape[1])

    @property
    def dtype(self) -> str:
        """`float16`, `int8`, `int4`, `compact`, or `float32` in a file of foreign make."""
        return str(self.manifest["dtype"]) if self.frame_TD.dtype == np.uint8 else self.frame_TD.dtype.name

    @property
    def pooled(self) -> Pooled | None:
        """What the first stage of a search reads, mapped; None in a file of foreign make or of an older version."""
        if "pooled_PD" not in self._arrays:
            return None
        vector_PD, scale_P, offsets = (cast(Any, self._arrays[name]) for name in POOLED_MEMBERS)
        return Pooled(vector_PD, scale_P, offsets)

    def __len__(self) -> int:
        return len(self.frame_offsets) - 1

    def __contains__(self, clip_id: object) -> bool:
        return clip_id in self._index

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file. Arrays taken from the store before stay valid; the store itself is empty afterwards."""
        self._arrays.clear()
        for branch in BRANCHES:
            for name in ("TD", "offsets", "time_T", "scale_T", "packing"):
                self.__dict__.pop(f"{branch}_{name}", None)
        self._data = memoryview(b"")

    @cached_property
    def clip_ids(self) -> list[str]:
        """All ids, decoded on first use."""
        return self._texts("clip_ids_bytes", "clip_ids_offsets")

    @cached_property
    def clip_paths(self) -> list[str]:
        """All paths as stored: posix, relative to the store's folder where that was possible, '' for none."""
        return self._texts("clip_paths_bytes", "clip_paths_offsets")

    @cached_property
    def _index(self) -> dict[str, int]:
        return {clip_id: i for i, clip_id in enumerate(self.clip_ids)}

    def index_of(self, clip_id: str) -> int:
        """Position of the clip with this id; raises StoreError if there is none."""
        try:
            return self._index[clip_id]
        except KeyError:
            raise StoreError(f"{self.path}: no clip {clip_id!r}", "`vctool info` shows the first ids") from None

    def clip_id(self, index: int) -> str:
        """Id of one clip, without decoding the others."""
        return self._text("clip_ids_bytes", "clip_ids_offsets", index)

    def clip_path(self, index: int) -> str:
        """Path of one clip as stored."""
        return self._text("clip_paths_bytes", "clip_paths_offsets", index)

    def resolve_path(self, index: int) -> Path | None:
        """Absolute path of one clip's video file; None if it has none or it is an address."""
        return absolute_path(self.clip_path(index), self.folder)

    def clip_meta(self, index: int) -> dict[str, Any]:
        """Metadata of one clip (duration, size, captions, the user's own)."""
        try:
            meta = json.loads(self._text("clip_meta", "clip_meta_offsets", index))
        except (json.JSONDecodeError, RecursionError):
            raise StoreError(f"{self.path}: the metadata of clip {index} are damaged", _REBUILD) from None
        if not isinstance(meta, dict):
            raise StoreError(f"{self.path}: the metadata of clip {index} are not a JSON object", _REBUILD)
        return meta

    def metas(self) -> Iterator[dict[str, Any]]:
        """Metadata of every clip in order, as `clip_meta`, several times as fast."""
        data, edges = self._arrays["clip_meta"], cast(Int64, self._arrays["clip_meta_offsets"])
        for first in range(0, len(self), _LINES):
            start = int(edges[first])
            text = data[start : int(edges[min(first + _LINES, len(self))])].tobytes()
            ends = (edges[first : first + _LINES + 1] - start).tolist()
            for index, (begin, end) in enumerate(itertools.pairwise(ends), start=first):
                try:
                    meta = json.loads(text[begin:end])
                except (ValueError, RecursionError):
                    meta = None
                yield meta if isinstance(meta, dict) else self.clip_meta(index)  # which says what is wrong

    def rows(self, branch: str, index: int) -> tuple[AnyArray, Float32, Float32 | None]:
        """One clip's tokens, times and scales of branch `frame` or `video`, mapped; packed tokens are decoded to float32 without scales."""
        index = self._position(index)
        offsets = self._arrays[f"{branch}_offsets"]
        span = slice(int(cast(Any, offsets[index])), int(cast(Any, offsets[index + 1])))
        scale_T = self._arrays.get(f"{branch}_scale_T")
        time_T = cast(Float32, self._arrays[f"{branch}_time_T"][span])
        if self.frame_packing is not None:
            return self.decoded(branch, index, index + 1), time_T, None
        return self._arrays[f"{branch}_TD"][span], time_T, None if scale_T is None else cast(Float32, scale_T[span])

    def block(self, start: int, stop: int) -> tuple[dict[str, AnyArray], dict[str, Int64]]:
        """Clips `start` to `stop` as stored: each member's rows, mapped, and each clip's number of rows by the name of its offsets."""
        rows: dict[str, AnyArray] = {}
        counts: dict[str, Int64] = {}
        for group in ROW_GROUPS:
            span = slice(start, stop)
            if group.offsets is not None:
                if group.offsets not in self._arrays:
                    continue
                edges = cast(Int64, self._arrays[group.offsets][start : stop + 1])
                counts[group.offsets] = np.diff(edges)
                span = slice(int(edges[0]), int(edges[-1]))
            rows |= {name: self._arrays[name][span] for name in group.members if name in self._arrays}
        return rows, counts

    def clip(self, index: int) -> ClipTokens:
        """One clip as float32, its path absolute: ready for another store's writer."""
        index = self._position(index)
        path = self.resolve_path(index)
        return ClipTokens(
            id=self.clip_id(index),
            path=self.clip_path(index) if path is None else str(path),
            frame_FD=self.decoded("frame", index, index + 1),
            frame_time_F=self.rows("frame", index)[1].copy(),
            video_VD=self.decoded("video", index, index + 1),
            video_time_V=self.rows("video", index)[1].copy(),
            meta=self.clip_meta(index),
        )

    def decoded(self, branch: str, start: int, stop: int) -> Float32:
        """Tokens of clips `start` to `stop` in branch `frame` or `video`, end to end, as float32 [T, D], whatever the store's dtype."""
        edges = cast(Int64, self._arrays[f"{branch}_offsets"])
        first, last = int(edges[start]), int(edges[stop])
        token_TD, scale_T = self._arrays[f"{branch}_TD"], cast(Float32 | None, self._arrays.get(f"{branch}_scale_T"))
        packing = self.frame_packing if branch == "frame" else self.video_packing
        if packing is not None and scale_T is not None:
            return unrotated(packing.values(token_TD, scale_T, edges, first, last))
        plain_TD: Float32 = token_TD[first:last].astype(np.float32)
        return plain_TD if scale_T is None else plain_TD * scale_T[first:last, None]

    def clip_bytes(self) -> Int64:
        """What each clip takes in the file, offsets included: int64 [N]."""
        total = np.zeros(len(self), np.int64)
        for group in ROW_GROUPS:
            there = [self._arrays[name] for name in group.members if name in self._arrays]
            row = sum(a.itemsize * (a.shape[1] if a.ndim == 2 else 1) for a in there)
            if group.offsets is None:
                total += row
            elif group.offsets in self._arrays:
                total += np.diff(cast(Int64, self._arrays[group.offsets])) * row + self._arrays[group.offsets].itemsize
        return total

    def verify(self) -> None:
        """Recompute every checksum, and check every id, path and metadata line.

        Raises VerificationError that names the first member which does not match, or if the file carries no checksums.
        """
        expected = self.manifest.get("arrays")
        if not isinstance(expected, dict):
            raise VerificationError(f"{self.path}: carries no checksums", "rewrite it with `vctool store convert`")
        for name in self._arrays:
            self._verify_member(name, expected.get(name))
        if not self._copied and not same_container(self._data, list(self._members.values())):
            raise VerificationError(f"{self.path}: bytes between the arrays were altered", _REBUILD)
        try:
            if len(set(self.clip_ids)) != len(self):
                raise VerificationError(f"{self.path}: a clip id appears twice", _REBUILD)
            for index in range(len(self)):
                self.clip_path(index)
                self.clip_meta(index)
        except StoreError as problem:
            raise VerificationError(problem.message, problem.hint) from None

    def _verify_member(self, name: str, expected: object) -> None:
        member, array = self._members[name], self._arrays[name]
        if name not in self._copied:
            crc = 0
            for start in range(member.data, member.data + member.size, _BLOCK):
                crc = zlib.crc32(self._data[start : min(start + _BLOCK, member.data + member.size)], crc)
            if crc != member.crc:
                raise VerificationError(f"{self.path}: member '{name}' does not match its checksum", _REBUILD)
        if name == "manifest":
            return
        digest = hashlib.sha256()
        flat = np.ascontiguousarray(array).data.cast("B") if array.size else memoryview(b"")
        for start in range(0, len(flat), _BLOCK):
            digest.update(flat[start : start + _BLOCK])
        found = {"sha256": digest.hexdigest(), "shape": list(array.shape), "dtype": array.dtype.name}
        if found != expected:
            raise VerificationError(f"{self.path}: member '{name}' does not match the manifest", _REBUILD)

    def _load(self, name: str, member: Member) -> AnyArray:
        """One member, mapped where its bytes allow, else copied into memory."""
        where = str(self.path)
        data = inflate(self._data, member, where) if member.compressed else self._data[member.data : member.data + member.size]
        header = parse_npy_header(data, name, where)
        dtype = check_member(name, header, where)
        if header.count * dtype.itemsize != member.size - header.size:
            raise StoreError(f"{where}: member '{name}' has {member.size - header.size} bytes for shape {header.shape}", _REBUILD)
        flat = np.frombuffer(data, dtype=dtype, count=header.count, offset=header.size)
        array = flat.reshape(header.shape, order="F" if header.fortran_order else "C")
        if member.compressed or not dtype.isnative or not flat.flags.aligned or (header.fortran_order and array.ndim > 1):
            self._copied.add(name)
            array = np.ascontiguousarray(array, dtype=dtype.newbyteorder("="))
            array.flags.writeable = False
        return cast(AnyArray, array)

    def _check(self) -> None:
        where = str(self.path)
        clips = len(self._arrays["frame_offsets"]) - 1
        if self.frame_TD.dtype != self.video_TD.dtype or self.frame_TD.shape[1] != self.video_TD.shape[1]:
            raise StoreError(f"{where}: frame and video tokens differ in dtype or width", "save both from the same model, in one dtype")
        if self.frame_TD.dtype == np.uint8:
            self._check_packed()
        wanted = MEMBERS.get(self.dtype, ())
        for name in PRECISION_MEMBERS:
            if (name in self._arrays) != (name in wanted):
                raise StoreError(f"{where}: {self.dtype} tokens {'without' if name in wanted else 'with'} member '{name}'", _REBUILD)
        for branch in BRANCHES:
            tokens = len(self._arrays[f"{branch}_TD"])
            _check_offsets(self._arrays[f"{branch}_offsets"], f"{branch}_offsets", clips, tokens, where)
            for name in (f"{branch}_time_T", f"{branch}_scale_T", f"{branch}_centre_T"):
                if name in self._arrays and len(self._arrays[name]) != tokens:
                    raise StoreError(f"{where}: '{name}' has {len(self._arrays[name])} values for {tokens} tokens", _REBUILD)
        if "centre_CD" in self._arrays:
            self._check_centres(clips)
        self._check_pooled(clips)
        for name in ("clip_ids", "clip_paths", "clip_meta"):
            values = self._arrays[name if name == "clip_meta" else f"{name}_bytes"]
            _check_offsets(self._arrays[f"{name}_offsets"], f"{name}_offsets", clips, len(values), where)
        for key, value in (("clips", clips), ("dim", self.dim), ("dtype", self.dtype)):
            if self.manifest.get(key, value) != value:
                raise StoreError(f"{where}: the manifest says {key} {self.manifest[key]!r}, the arrays {value!r}", _REBUILD)

    def _check_packed(self) -> None:
        where, dtype, dim = str(self.path), self.manifest.get("dtype"), self.manifest.get("dim")
        if dtype not in ("int4", "compact"):
            raise StoreError(f"{where}: uint8 tokens, and its manifest says dtype {dtype!r}", "packed tokens are int4 or compact")
        if not isinstance(dim, int) or isinstance(dim, bool) or dim < 0 or row_bytes(dtype, dim) != self.frame_TD.shape[1]:
            raise StoreError(f"{where}: its manifest says dim {dim!r}, its {dtype} tokens have {self.frame_TD.shape[1]} bytes", _REBUILD)

    def _check_centres(self, clips: int) -> None:
        where, centre_CD = str(self.path), self._arrays["centre_CD"]
        _check_offsets(self._arrays["centre_offsets"], "centre_offsets", clips, len(centre_CD), where)
        if len(self._arrays["centre_scale_C"]) != len(centre_CD) or centre_CD.shape[1] != row_bytes("int4", self.dim):
            raise StoreError(f"{where}: 'centre_CD' has shape {centre_CD.shape}, which fits neither its scales nor the width", _REBUILD)

    def _check_pooled(self, clips: int) -> None:
        where, found = str(self.path), [name for name in POOLED_MEMBERS if name in self._arrays]
        if not found:
            return
        if len(found) < len(POOLED_MEMBERS):
            lost = ", ".join(name for name in POOLED_MEMBERS if name not in found)
            raise StoreError(f"{where}: has pooled vectors without member {lost}", _REBUILD)
        vector_PD, scale_P, offsets = (self._arrays[name] for name in POOLED_MEMBERS)
        if vector_PD.shape[1] != self.dim or len(scale_P) != len(vector_PD):
            raise StoreError(f"{where}: 'pooled_PD' has shape {vector_PD.shape} for {len(scale_P)} scales and width {self.dim}", _REBUILD)
        _check_offsets(offsets, "pooled_offsets", clips, len(vector_PD), where)

    def _position(self, index: int) -> int:
        if not -len(self) <= index < len(self):
            raise IndexError(f"clip {index} of {len(self)}")
        return index % len(self)

    def _text(self, values: str, offsets: str, index: int) -> str:
        index = self._position(index)
        start, end = (int(cast(Any, edge)) for edge in self._arrays[offsets][index : index + 2])
        return self._decode(self._arrays[values][start:end].tobytes(), values)

    def _texts(self, values: str, offsets: str) -> list[str]:
        data, edges = self._arrays[values].tobytes(), cast(list[int], self._arrays[offsets].tolist())
        return [self._decode(data[start:end], values) for start, end in itertools.pairwise(edges)]

    def _decode(self, text: bytes, member: str) -> str:
        try:
            # surrogatepass: a file name that is not UTF-8 reaches Python as lone surrogates, and must come back as it was.
            return text.decode("utf-8", "surrogatepass")
        except UnicodeDecodeError:
            raise StoreError(f"{self.path}: member '{member}' is not UTF-8", _REBUILD) from None


def _map(path: Path) -> memoryview:
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise StoreError(f"{path}: the file is empty", "build the store again with `vctool index`")
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except FileNotFoundError:
        raise StoreError(f"{path}: no such file", "build a store with `vctool index VIDEOS -o clips.npz --model MODEL`") from None
    except IsADirectoryError:
        raise StoreError(f"{path}: is a folder", "give the .npz file that `vctool index -o` wrote") from None
    except (OSError, ValueError) as problem:
        raise StoreError(
            f"{path}: cannot be read: {getattr(problem, 'strerror', None) or problem}", "check the path and its permissions"
        ) from None


def _known_members(members: list[Member], where: str) -> dict[str, Member]:
    found = {m.name.removesuffix(".npy"): m for m in members}
    missing = [name for name in REQUIRED_MEMBERS if name not in found]
    if missing:
        raise StoreError(
            f"{where}: not a token store: missing {', '.join(missing)}", "build one with `vctool index`; docs/format.md lists the members"
        )
    return {name: m for name, m in found.items() if name in (*REQUIRED_MEMBERS, *PRECISION_MEMBERS, *POOLED_MEMBERS)}


def _read_manifest(text: AnyArray, where: str) -> dict[str, Any]:
    manifest: object = None
    with contextlib.suppress(ValueError, RecursionError):  # not UTF-8, not JSON, or nested to exhaust the parser
        manifest = json.loads(text.tobytes())
    if not isinstance(manifest, dict):
        raise StoreError(f"{where}: its manifest is not a JSON object", _REBUILD)
    schema = manifest.get("schema")
    if not isinstance(schema, int) or isinstance(schema, bool) or schema < 1:
        raise StoreError(f"{where}: its manifest names no schema", _REBUILD)
    if schema > SCHEMA:
        raise StoreError(f"{where}: written by a newer version (store schema {schema}, this vctool reads {SCHEMA})", "upgrade vctool")
    return manifest


def _check_offsets(offsets: AnyArray, name: str, clips: int, rows: int, where: str) -> None:
    edges = cast(Int64, offsets)
    if len(edges) != clips + 1 or clips < 0:
        raise StoreError(f"{where}: '{name}' has {len(edges)} values, expected {max(clips, 0) + 1}", _REBUILD)
    if edges[0] != 0 or edges[-1] != rows:
        raise StoreError(f"{where}: '{name}' runs from {edges[0]} to {edges[-1]}, expected 0 to {rows}", _REBUILD)
    if (edges[1:] < edges[:-1]).any():
        raise StoreError(f"{where}: '{name}' runs backwards", _REBUILD)
