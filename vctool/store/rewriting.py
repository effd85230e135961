"""Stores made of stores: converted, split, merged, compacted, and without some clips.

Tokens are copied bit for bit unless another precision is asked for. What carries checksums is checked before it is
copied: damage must not get a fresh checksum. Every change is one step, see `StoreWriter` and `FolderWriter`.

Shape letters: N clips, T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np

from vctool.errors import StoreError
from vctool.store.folder import SHARD_BYTES, FolderWriter, ShardSize
from vctool.store.format import STORE_DTYPES, AnyArray, StoreDtype
from vctool.store.interface import Store
from vctool.store.lock import writing
from vctool.store.opening import open_store
from vctool.store.output import AnyWriter, Outcome, Output, copied_manifest, copy_clips, runs
from vctool.store.parts import remove_stale
from vctool.store.reader import TokenStore
from vctool.store.token_rows import TokenRows
from vctool.store.tokens import Float32
from vctool.store.writer import StoreWriter

OnDuplicate = Literal["refuse", "first", "last"]
# From the coarsest to the finest: going up the list keeps the loss.
_FINENESS = ("compact", "int4", "int8", "float16", "float32")
_DECODE_CLIPS = 1024  # clips decoded at once
_UNDERFULL = 0.5  # shards below this share of the full size are joined with their neighbours


def convert(source: str | Path, output: Output, *, dtype: StoreDtype | None = None, check: bool = True) -> Outcome:
    """Write `source` anew: in another precision, as one file or as shards, or a foreign file as ours. dtype None keeps the precision.

    Raises StoreError if the source cannot be read or the output not be written, VerificationError if the source is damaged.
    """
    output.check()
    with open_store(source) as store:
        notes = _checked(store, check)
        wanted = dtype or _nearest(store.dtype)
        notes += _loss_note(store.dtype, wanted)
        with output.writer(copied_manifest(store.manifest, store.folder, _home(output)), wanted) as writer:
            for shard in store.shards:
                _transfer(writer, shard, range(len(shard)), wanted)
            writer.commit()
    return Outcome.of(output.path, notes)


def split(source: str | Path, output: Output, *, check: bool = True) -> Outcome:
    """Copy `source` into a folder of shards of `output.shards` size, tokens bit for bit (a float32 file becomes float16)."""
    if output.shards is None:
        raise StoreError(f"{output.path}: a split store is a folder", "give --clips or --bytes")
    return convert(source, output, check=check)


def merge(
    sources: Sequence[str | Path],
    output: Output,
    *,
    dtype: StoreDtype | None = None,
    on_duplicate: OnDuplicate = "refuse",
    check: bool = True,
) -> Outcome:
    """Clips of all sources, in their order, in one store. They must be of one model.

    dtype None: the first source's; others are converted. on_duplicate: an id in two sources is an error, or its `first`, or its `last`
    clip is taken. Raises StoreError, naming the sources and what differs.
    """
    if not sources:
        raise StoreError("nothing to merge", "name at least one store")
    output.check()
    stores = [open_store(source) for source in sources]
    try:
        notes = [note for store in stores for note in _checked(store, check)]
        manifest, differing = _common_manifest(stores, _home(output))
        notes += [f"the stores differ in {name}: left out of the manifest" for name in differing]
        wanted = dtype or _nearest(stores[0].dtype)
        for name in dict.fromkeys(store.dtype for store in stores):
            notes += _loss_note(name, wanted)
        chosen = _chosen(stores, on_duplicate)
        with output.writer(manifest, wanted) as writer:
            for store, positions in zip(stores, chosen, strict=True):
                start = 0
                for shard in store.shards:
                    inside = positions[(positions >= start) & (positions < start + len(shard))] - start
                    _transfer(writer, shard, inside.tolist(), wanted)
                    start += len(shard)
            writer.commit()
        dropped = sum(len(store) for store in stores) - sum(len(positions) for positions in chosen)
        if dropped:
            notes.append(f"{dropped} clips were in more than one store: the {on_duplicate} of each was taken")
    finally:
        for store in stores:
            store.close()
    return Outcome.of(output.path, notes)


def delete_clips(path: str | Path, ids: Collection[str], *, missing_ok: bool = False, check: bool = True) -> Outcome:
    """Take clips out of the store at `path`; the others keep their ids and their order, and no byte of the deleted ones is left.

    Of a folder only the shards that hold one of them are written anew. Raises StoreError that names an id which is not in the
    store (unless `missing_ok`); nothing is changed then.
    """
    path, gone = Path(path), set(ids)
    open_store(path).close()  # says what is not there
    with writing(path, path.is_dir()), open_store(path) as store:
        unknown = [one for one in dict.fromkeys(ids) if one not in store]
        if unknown and not missing_ok:
            more = f" (and {len(unknown) - 1} more)" if len(unknown) > 1 else ""
            raise StoreError(f"{path}: no clip {unknown[0]!r}{more}", "nothing was deleted; `vctool info` shows the first ids")
        if gone.isdisjoint(store.clip_ids):
            return Outcome.of(path, ["nothing to delete"])
        touched = [not gone.isdisjoint(shard.clip_ids) for shard in store.shards]
        notes = [note for shard, hit in zip(store.shards, touched, strict=True) if hit for note in _checked(shard, check)]
        with _rewriter(store) as writer:
            for shard, hit in zip(store.shards, touched, strict=True):
                if not hit and isinstance(writer, FolderWriter):
                    writer.keep(shard)
                else:
                    left = [i for i, clip_id in enumerate(shard.clip_ids) if clip_id not in gone]
                    _transfer(writer, shard, left, writer.dtype)
                    if isinstance(writer, FolderWriter):
                        writer.finish_shard()
            writer.commit()
    return Outcome.of(path, notes)


def compact(path: str | Path, size: ShardSize | None = None, *, check: bool = True) -> Outcome:
    """Join neighbouring shards that are less than half full, and remove what killed writers left; the order of clips stays.

    size: when a shard is full, by default 1 GiB. One file has nothing to be joined: only what lies beside it is removed.
    """
    path = Path(path)
    size = size or ShardSize(bytes=SHARD_BYTES)
    open_store(path).close()  # says what is not there
    with writing(path, path.is_dir()), open_store(path) as store:
        if path.is_dir():
            with _rewriter(store, size) as writer:
                if not isinstance(writer, FolderWriter):
                    raise TypeError("the writer of a folder is a FolderWriter")
                joined, notes = _groups(store.shards, size), list[str]()
                for group in joined:
                    if len(group) == 1 and len(group[0]):
                        writer.keep(group[0])
                        continue
                    for shard in group:
                        notes += _checked(shard, check)
                        _transfer(writer, shard, range(len(shard)), writer.dtype)
                    writer.finish_shard()
                if all(len(group) == 1 and len(group[0]) for group in joined):
                    notes.append("no shards to join: nothing was written")
                else:
                    writer.commit()
        else:
            notes = _checked(store, check)
            notes.append("one file holds no deleted clips: nothing was written")
            remove_stale(path.resolve())
    return Outcome.of(path, notes)


def _groups(shards: Sequence[TokenStore], size: ShardSize) -> list[list[TokenStore]]:
    """Neighbours to be written as one shard; a shard that is full enough is alone."""
    groups: list[list[TokenStore]] = []
    clips = held = 0
    room = False  # whether the last group takes more
    for shard in shards:
        count, weight = len(shard), int(shard.clip_bytes().sum())
        small = not size.full(int(count / _UNDERFULL), int(weight / _UNDERFULL))
        fits = (size.clips is None or clips + count <= size.clips) and (size.bytes is None or held + weight <= size.bytes)
        if room and small and fits:
            groups[-1].append(shard)
            clips, held = clips + count, held + weight
        else:
            groups.append([shard])
            clips, held, room = count, weight, small
    return groups


def _rewriter(store: Store, size: ShardSize | None = None) -> AnyWriter:
    """A writer in the place of an open store."""
    if store.dtype not in STORE_DTYPES:
        raise StoreError(
            f"{store.path}: holds {store.dtype} tokens, which vctool reads and does not write", "`vctool store convert` it first"
        )
    dtype = cast(StoreDtype, store.dtype)
    manifest = copied_manifest(store.manifest, store.folder, store.folder)
    if store.path.is_dir():
        # Shards that are written anew for a few clips keep their boundaries.
        return FolderWriter(store.path, manifest=manifest, dtype=dtype, size=size or ShardSize(bytes=1 << 62))
    return StoreWriter(store.path, manifest=manifest | {"generation": int(store.manifest.get("generation", 0)) + 1}, dtype=dtype)


def _transfer(writer: AnyWriter, shard: TokenStore, indices: Iterable[int], dtype: str) -> None:
    """Append clips of a shard: bit for bit if it has the writer's precision, else decoded and encoded anew."""
    if shard.dtype == dtype:
        copy_clips(writer, shard, indices)
        return
    chosen = list(indices)
    for start in range(0, len(chosen), _DECODE_CLIPS):
        some = chosen[start : start + _DECODE_CLIPS]
        paths = [shard.resolve_path(i) for i in some]
        writer.add_many(
            [shard.clip_id(i) for i in some],
            _decoded(shard, "frame", some),
            _decoded(shard, "video", some),
            paths=[shard.clip_path(i) if path is None else str(path) for i, path in zip(some, paths, strict=True)],
            metas=[shard.clip_meta(i) for i in some],
        )


def _decoded(shard: TokenStore, branch: str, some: Sequence[int]) -> TokenRows:
    parts, times, counts = list[Float32](), list[AnyArray](), list[AnyArray]()
    for start, stop in runs(some):
        rows, lengths = shard.block(start, stop)
        parts.append(shard.decoded(branch, start, stop))
        times.append(rows[f"{branch}_time_T"])
        counts.append(lengths[f"{branch}_offsets"])
    ends = np.concatenate([[0], np.cumsum(np.concatenate(counts))]).astype(np.int64)
    # Rows of a rounded store are no longer of unit length; a foreign float32 file was never checked.
    return TokenRows(np.concatenate(parts), ends, np.concatenate(times), rounded=shard.dtype in STORE_DTYPES)


def _chosen(stores: Sequence[Store], on_duplicate: OnDuplicate) -> list[np.ndarray[tuple[int], np.dtype[np.int64]]]:
    """Positions that each store gives to the merged one."""
    owner: dict[str, int] = {}
    for number, store in enumerate(stores):
        for clip_id in store.clip_ids:
            if clip_id in owner and on_duplicate == "refuse":
                raise StoreError(
                    f"clip {clip_id!r} is in {stores[owner[clip_id]].path} and in {store.path}",
                    "delete one of the two, or choose with --on-duplicate first|last",
                )
            if clip_id not in owner or on_duplicate == "last":
                owner[clip_id] = number
    return [
        np.array([i for i, clip_id in enumerate(store.clip_ids) if owner[clip_id] == number], dtype=np.int64)
        for number, store in enumerate(stores)
    ]


def _common_manifest(stores: Sequence[Store], home: Path) -> tuple[dict[str, Any], list[str]]:
    """The merged manifest, and the names of settings that differ. Raises StoreError if models or widths do."""
    first = next((store for store in stores if len(store)), stores[0])
    merged, differing = copied_manifest(first.manifest, first.folder, home), list[str]()
    for store in stores:
        if not len(store):
            continue
        ours, theirs = _model_name(first), _model_name(store)
        if ours != theirs or store.dim != first.dim:
            raise StoreError(
                f"{first.path} is of model {ours or 'unknown'}, {first.dim} wide; {store.path} of {theirs or 'unknown'}, {store.dim} wide",
                "only stores of one model can be searched together: index with one of them",
            )
        for key in ("frames", "segments", "preprocess_sha256", "tokenizer_sha256"):
            if store.manifest.get(key) != first.manifest.get(key) and key not in differing:
                differing.append(key)
    encoders = list(dict.fromkeys(one for store in stores for one in store.manifest.get("encoders") or []))
    merged |= {"encoders": encoders} if encoders else {}
    return {key: value for key, value in merged.items() if key not in differing}, differing


def _model_name(store: Store) -> str:
    """What tells models apart: the fingerprint, or the name where there is none."""
    model = store.manifest.get("model")
    entry: Mapping[str, Any] = model if isinstance(model, dict) else {}
    sha256 = str(entry.get("sha256") or "")
    return f"'{entry.get('name', 'unknown')}' ({sha256[:16]})" if sha256 else str(entry.get("name") or "")


def _checked(store: Store, check: bool) -> list[str]:
    """Verify what carries checksums; a note for what does not."""
    notes = []
    for shard in store.shards:
        if not isinstance(shard.manifest.get("arrays"), dict):
            notes.append(f"{shard.path} carries no checksums: it was copied unchecked")
        elif check:
            shard.verify()
    return notes


def _nearest(dtype: str) -> StoreDtype:
    return cast(StoreDtype, dtype) if dtype in STORE_DTYPES else "float16"


def _loss_note(source: str, target: str) -> list[str]:
    if source == target or _FINENESS.index(target) < _FINENESS.index(source) or source not in STORE_DTYPES:
        return []
    return [f"{source} to {target}: what {source} rounded away does not come back; the store only gets larger"]


def _home(output: Output) -> Path:
    """The folder that holds the `.npz` files of an output."""
    return output.path if output.shards is not None else output.path.resolve().parent
