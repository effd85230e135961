"""What an index run has to do: which clips are new, which an earlier run or the store at hand already has.

A clip is known by the piece of the file that it is: path, size, time of last change, start and end. Its tokens are also
known by the settings they were made with: model, preprocessing, frames, decoder, dtype.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from vctool.errors import StoreError, UsageProblem
from vctool.runtime.content import content_sha256
from vctool.runtime.index_segments import replaced, segmenting_entry
from vctool.runtime.model_directory import ModelDirectory
from vctool.runtime.search import require_same_model
from vctool.store import Store, StoreDtype, open_store
from vctool.store.folder import ShardSize, is_free
from vctool.store.shards import is_store_folder
from vctool.video.clip import VideoInput
from vctool.video.sample import Sampling, SamplingKind
from vctool.video.segments import Segmenting

_OTHERWISE = "choose another output, or replace the store with --rebuild"
_FACTS = ("duration", "width", "height", "codec", "size", "mtime_ns", "sha256", "damaged")


@dataclass(frozen=True)
class IndexSettings:
    """What decides a clip's tokens, besides the model. sampling: of each clip's frames. segments: how long files are cut."""

    sampling: Sampling
    decoder: str
    dtype: StoreDtype
    segments: Segmenting | None = None

    @property
    def frames(self) -> int:
        """The most frames a clip can have."""
        return self.sampling.count

    @classmethod
    def of(
        cls,
        model: ModelDirectory,
        frames: int | None,
        decoder: str,
        dtype: StoreDtype,
        sampling: SamplingKind = "uniform",
        fps: float = 1.0,
        segments: Segmenting | None = None,
    ) -> IndexSettings:
        """frames None is the model's own number. Raises UsageProblem if the model cannot read that many."""
        count = model.config.frames if frames is None else frames
        limit = model.config.temporal.max_frames
        if count < 1:
            raise UsageProblem(f"{count} frames a clip: at least one is needed")
        if model.config.temporal.kind == "transformer" and count > limit:
            raise UsageProblem(f"{count} frames a clip, but this model reads at most {limit}", f"use --frames {limit} or fewer")
        return cls(Sampling(count, sampling, fps if sampling == "fps" else 1.0), decoder, dtype, segments)


def store_manifest(model: ModelDirectory, settings: IndexSettings, output: Path) -> dict[str, Any]:
    """What a store's manifest says of how its tokens were made."""
    return {
        "model": model_entry(model, output),
        "tokenizer_sha256": model.tokenizer_sha256,
        "preprocess_sha256": model.preprocess_sha256,
        "dim": model.config.embed_dim,
        "frames": _frames_entry(settings),
        "segments": segmenting_entry(settings.segments),
    }


def model_entry(model: ModelDirectory, output: Path) -> dict[str, Any]:
    """What a store's manifest says of the model that made it; its folder as seen from the one that `output` is in."""
    return {
        "name": model.config.name,
        "sha256": model.fingerprint,
        "path": _relative(model.path, output),
        "absolute_path": str(model.path.resolve()),
        "interaction": model.config.interaction,
        "query_policy": model.config.query.policy,
    }


def _frames_entry(settings: IndexSettings) -> dict[str, Any]:
    entry = {"count": settings.frames, "sampling": settings.sampling.kind, "decoder": settings.decoder}
    return entry | ({"rate": settings.sampling.rate} if settings.sampling.kind == "fps" else {})


@dataclass
class PlannedClip:
    """One input. key: its place in the journal. old: the position in the old store of the same clip, made the same way."""

    clip: VideoInput
    key: str
    stat: dict[str, int]
    old: int | None = None

    @property
    def piece(self) -> tuple[str, float | None, float | None]:
        return os.path.realpath(self.clip.path), self.clip.start, self.clip.end


@dataclass
class IndexPlan:
    """manifest: of the store to be written. old: the store that is built upon. kept: its clips that are not among the inputs;
    dropped: those that go because pruning was asked for; deleted: those that were named. shards: of a folder, None for one file."""

    output: Path
    manifest: dict[str, Any]
    dtype: StoreDtype
    clips: list[PlannedClip]
    old: Store | None
    shards: ShardSize | None = None
    kept: list[int] = field(default_factory=list)
    dropped: int = 0
    deleted: int = 0

    @property
    def same_settings(self) -> bool:
        """Whether the old store's tokens were made as this run would make them."""
        if self.old is None:
            return False
        theirs = (self.old.manifest.get("preprocess_sha256"), self.old.manifest.get("frames"), self.old.dtype)
        return theirs == (self.manifest["preprocess_sha256"], self.manifest["frames"], self.dtype)


def make_plan(
    inputs: list[VideoInput],
    output: Path,
    model: ModelDirectory,
    settings: IndexSettings,
    *,
    rebuild: bool,
    prune: bool,
    delete: Collection[str] = (),
    shards: ShardSize | None = None,
) -> IndexPlan:
    """delete: ids to take out of the old store. shards: the output is a folder of such shards.

    Raises StoreError if the store at `output` cannot be built upon: damaged, of another model, or made otherwise."""
    manifest = store_manifest(model, settings, output if shards is None else output / "shard")
    old = _old_store(output, model, shards is not None, rebuild)
    unknown = [one for one in delete if old is None or one not in old]
    if unknown:
        raise StoreError(f"{output}: no clip {unknown[0]!r}", "nothing was changed; `vctool info` shows the first ids")
    again = next((clip.id for clip in inputs if clip.id in delete), None)
    if again is not None:
        raise UsageProblem(f"clip {again!r} is to be deleted and is among the videos", "leave it out of one of the two")
    made_by = json.dumps([model.fingerprint, model.preprocess_sha256, manifest["frames"], settings.dtype], sort_keys=True)
    made_by = hashlib.sha256(made_by.encode()).hexdigest()[:24]
    plan = IndexPlan(output, manifest, settings.dtype, [_planned(clip, made_by) for clip in inputs], old, shards)
    if old is not None:
        _match(plan, old, prune, set(delete))
    return plan


def with_user_meta(meta: dict[str, Any], clip: VideoInput, stat: Mapping[str, int] = MappingProxyType({})) -> dict[str, Any]:
    """File metadata of `meta` with the user's own values for this clip; where names collide, the file's facts win.

    stat: size and time that the file has now, where its contents are known to be the same.
    """
    facts = {name: meta[name] for name in _FACTS if name in meta} | dict(stat)
    user: dict[str, Any] = {**clip.meta, "captions": list(clip.captions)}
    return user | facts | {"start": clip.start, "end": clip.end}


def _old_store(output: Path, model: ModelDirectory, folder: bool, rebuild: bool) -> Store | None:
    if output.is_dir() and not is_store_folder(output) and not is_free(output):
        raise StoreError(f"{output} is a folder of other things", "give the name of a .npz file, or of a new folder")
    if folder and output.is_file():
        raise StoreError(f"{output} is a file", "give the name of a folder, or make one of it with `vctool store split`")
    if rebuild or not (output.is_file() or is_store_folder(output)):
        return None
    try:
        store = open_store(output)
        require_same_model(store, model)
    except StoreError as problem:
        raise StoreError(problem.message, _OTHERWISE) from None
    return store


def _planned(clip: VideoInput, made_by: str) -> PlannedClip:
    path = os.path.abspath(clip.path)  # noqa: PTH100  (`resolve` would follow links; the name is the user's)
    try:
        status = Path(path).stat()
        stat = {"size": status.st_size, "mtime_ns": status.st_mtime_ns}
    except (OSError, ValueError):
        stat = {}  # the decoder will say what is wrong with it
    key = json.dumps([made_by, path, stat.get("size"), stat.get("mtime_ns"), clip.start, clip.end])
    return PlannedClip(clip, key, stat)


def _match(plan: IndexPlan, old: Store, prune: bool, delete: Collection[str]) -> None:
    by_id = {p.clip.id: p for p in plan.clips}
    by_piece = {p.piece: p for p in plan.clips}
    for index, clip_id in enumerate(old.clip_ids):
        if clip_id in delete:
            plan.deleted += 1
            continue
        meta, stored = old.clip_meta(index), old.resolve_path(index)
        path = "" if stored is None else os.path.realpath(stored)
        piece = (path, meta.get("start"), meta.get("end"))
        # The same piece of the same file is the same clip, also when another common folder gives it another id.
        planned = by_id.get(clip_id)
        if planned is None or planned.piece != piece:
            planned = by_piece.get(piece, planned)
        if planned is None:
            plan.kept.append(index)
        elif planned.piece == piece:
            if plan.same_settings and planned.old is None and _unchanged(planned, meta):
                planned.old = index
        elif planned.piece[0] != path and stored is not None and stored.exists():
            raise StoreError(
                f"{plan.output} already has a clip '{clip_id}', of another file: {stored}",
                "index both folders in one command, give ids in a manifest, or choose another output",
            )
    stale = replaced(old, plan.kept, [p.clip for p in plan.clips])
    plan.kept, plan.dropped = [index for index in plan.kept if index not in stale], len(stale)
    if prune:
        plan.kept, plan.dropped = [], len(plan.kept) + plan.dropped
    if plan.kept and not plan.same_settings:
        raise StoreError(
            f"{plan.output} holds {len(plan.kept)} clips that are not among the inputs and were made otherwise ({_told(old.manifest)})",
            f"this run would use {_told(plan.manifest)}: {_OTHERWISE}",
        )


def _unchanged(planned: PlannedClip, meta: dict[str, Any]) -> bool:
    """By size and time; a file that was only touched or copied, by its contents."""
    if not planned.stat or meta.get("size") != planned.stat["size"]:
        return False
    if meta.get("mtime_ns") == planned.stat["mtime_ns"]:
        return True
    return isinstance(meta.get("sha256"), str) and content_sha256(planned.piece[0], planned.stat) == meta["sha256"]


def _relative(folder: Path, output: Path) -> str:
    """Where the model is, seen from the store's folder, so that both can move together; "" on another Windows drive."""
    try:
        return Path(os.path.relpath(folder.resolve(), output.resolve().parent)).as_posix()
    except ValueError:
        return ""


def _told(manifest: dict[str, Any]) -> str:
    frames = manifest.get("frames")
    known = frames if isinstance(frames, dict) else {}
    preprocess = str(manifest.get("preprocess_sha256", "unknown"))[:8]
    return f"{known.get('count', '?')} frames {known.get('sampling', '')}, decoder {known.get('decoder', '?')}, preprocessing {preprocess}"
