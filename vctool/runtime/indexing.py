"""Indexing: videos to a token store, resumable at any moment, with nothing encoded twice.

A run plans (see `index_plan`), encodes the new clips into a journal, writes the store, and removes the journal. A kill at
any point leaves the old store and a journal that the next run goes on from. On the CPU each clip is encoded by itself, so
its tokens do not depend on what was encoded beside it, and the same input gives the same bytes however often the run was
interrupted.

Shape letters: N frames of a batch, F frames of a clip, S side of the input picture, D width.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vctool.errors import InputError, Interrupted, SkippedInputsError, StoreError, UsageProblem
from vctool.precision import PRECISIONS
from vctool.runtime.encoder import VideoEncoder
from vctool.runtime.index_plan import IndexPlan, IndexSettings, PlannedClip, make_plan, with_user_meta
from vctool.runtime.index_segments import cut_inputs, earlier_segmenting
from vctool.runtime.journal import FinishedClip, Journal
from vctool.runtime.machine import available_cores
from vctool.runtime.model import Model, load_model
from vctool.runtime.model_directory import ModelDirectory
from vctool.runtime.pipeline import Job, encode_clips
from vctool.runtime.sessions import Device, Provider
from vctool.store import ClipTokens, Store, StoreDtype, StoreWriter, open_store
from vctool.store.folder import FolderWriter, ShardSize
from vctool.store.lock import writing
from vctool.store.output import runs
from vctool.video.clip import VideoInput
from vctool.video.files import find_videos
from vctool.video.sample import SamplingKind
from vctool.video.segments import Segmenting
from vctool.video.workers import DecodePool, DecodeResult

_SPARSE = 60.0  # seconds between sampled frames from which on a user should know that most was not seen
_MARGIN = 1 << 20  # bytes of free space beyond the estimate


@dataclass(frozen=True)
class FailedClip:
    """A clip that could not be indexed, and why (a short phrase). kept: its tokens of an earlier run stay in the store."""

    id: str
    path: str
    reason: str
    kept: bool = False


@dataclass(frozen=True)
class IndexProgress:
    """Where a run stands. done: new clips finished or failed, of total; reused: clips that needed no work."""

    done: int
    total: int
    failed: int
    reused: int
    seconds: float
    clip: str


@dataclass
class IndexReport:
    """What a run did. clips: in the store now; indexed: encoded in this run; resumed: taken from an interrupted run's journal;
    reused: unchanged since the store was written; kept: in the store but not among the inputs; dropped: pruned; deleted: by name;
    written: false if the store was up to date already. damaged: ids of clips encoded in this run that could be decoded only in part.
    device: what encoded; encoder: the same in detail, see `Placement`, empty if nothing was encoded. notes: what the user should know."""

    store: Path
    model: ModelDirectory
    clips: int = 0
    indexed: int = 0
    resumed: int = 0
    reused: int = 0
    kept: int = 0
    dropped: int = 0
    deleted: int = 0
    written: bool = True
    failed: list[FailedClip] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    seconds: float = 0.0
    device: str = ""
    encoder: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def index_videos(
    inputs: Sequence[str | Path],
    output: str | Path,
    model: Model | ModelDirectory | str | Path,
    *,
    frames: int | None = None,
    sampling: SamplingKind = "uniform",
    fps: float = 1.0,
    segment: float | None = None,
    overlap: float | None = None,
    at_scenes: bool = False,
    decoder: str = "pyav",
    workers: int | None = None,
    batch_size: int | None = None,
    timeout: float = 60.0,
    dtype: StoreDtype | None = None,
    strict: bool = False,
    rebuild: bool = False,
    prune: bool = False,
    delete: Sequence[str] = (),
    shard_clips: int | None = None,
    device: Device = "auto",
    provider: Provider = "auto",
    threads: int | None = None,
    progress: Callable[[IndexProgress], None] | None = None,
) -> IndexReport:
    """Build or update the store `output` from `inputs` (files, folders, globs, JSONL manifests).

    frames: sampled a clip, by default the model's own number, and at most that with a `sampling` by `fps`. segment: files longer
    than this many seconds become clips of that length, which share `overlap` seconds (by default a fifth), or with `at_scenes`
    begin where shots do; by default as the store was made before. workers: decode processes, by default one a core. batch_size:
    clips encoded at once, by default 1 on a CPU. timeout: seconds to decode one clip. rebuild: take nothing from a store
    that is at `output`. dtype: how tokens are stored, by default as the store has them, and int8 in a new one. prune: drop its
    clips that are not among the inputs. delete: ids of clips to take out of it. shard_clips: clips a shard of a folder; a folder
    is also written where `output` is one or ends in `/`. device, provider, threads: see `sessions.Graph`.

    Clips that cannot be read are listed in `IndexReport.failed`, the rest is indexed; with `strict` SkippedInputsError is
    raised after the store is written. Raises InputError if not one clip is left, StoreError if the output cannot be written
    or belongs to another model, ModelError for a damaged model directory, Interrupted on Ctrl-C (finished clips are kept;
    the same call goes on from there).
    """
    began = time.monotonic()
    loaded = model if isinstance(model, Model) else load_model(model, device=device, provider=provider, threads=threads)
    path = Path(output)
    workers = available_cores() if workers is None else workers
    folder = shard_clips is not None or path.is_dir() or os.fspath(output).endswith(("/", os.sep))
    with writing(path, folder):
        segments = _segmenting(segment, overlap, at_scenes, path, rebuild)
        dtype = dtype or _dtype_of(path)
        settings = IndexSettings.of(loaded.directory, frames, decoder, dtype, sampling, fps, segments)
        clips = find_videos(list(inputs))
        shape = loaded.directory.preprocess
        # One pool looks at the files and decodes them: its processes remember what they have read of the last one.
        with DecodePool(workers, count=settings.sampling, transform_config=shape, decoder=decoder, timeout_s=timeout) as pool:
            if segments is not None:
                try:
                    clips = cut_inputs(clips, segments, path, pool, rebuild=rebuild)
                except KeyboardInterrupt:
                    raise Interrupted("stopped before the first clip: nothing was changed") from None
            shards = ShardSize(shard_clips) if folder else None
            plan = make_plan(clips, path, loaded.directory, settings, rebuild=rebuild, prune=prune, delete=delete, shards=shards)
            run = _Run(plan, loaded, settings, Journal(path, half=dtype == "float16"), progress, began)
            _go(run, pool, batch_size)
    run.report.seconds = time.monotonic() - began
    if strict and run.report.failed:
        raise SkippedInputsError(f"{len(run.report.failed)} of {len(plan.clips)} clips were skipped: {_reasons(run.report.failed)}")
    return run.report


def _go(run: _Run, pool: DecodePool, batch_size: int | None) -> None:
    journal = run.journal
    try:
        run.check_space()
        run.encode(pool, batch_size)
        run.write()
        journal.discard()
    except KeyboardInterrupt:
        kept = f"{len(journal)} finished clips are kept" if len(journal) else "no clip was finished yet"
        raise Interrupted(f"stopped: {kept}", "run the same command again to go on from there") from None
    finally:
        journal.close()


def _segmenting(length: float | None, overlap: float | None, scenes: bool, output: Path, rebuild: bool) -> Segmenting | None:
    if length is None:
        if overlap is not None or scenes:
            raise UsageProblem("segments need a length", "say how many seconds with --segment")
        return None if rebuild else earlier_segmenting(output)
    return Segmenting(length, (0.0 if scenes else length / 5) if overlap is None else overlap, scenes)


class _Run:
    def __init__(
        self,
        plan: IndexPlan,
        model: Model,
        settings: IndexSettings,
        journal: Journal,
        progress: Callable[[IndexProgress], None] | None,
        began: float,
    ) -> None:
        self.plan, self.model, self.settings, self.journal = plan, model, settings, journal
        self.progress, self.began = progress, began
        self.errors: dict[str, str] = {}  # by key: one file may be listed under several ids
        self.encoder = ""
        self.sparse: list[tuple[str, float, int]] = []  # clips of which most was never seen: id, seconds, frames
        fresh = [p for p in plan.clips if p.old is None]
        self.todo = list({p.key: p for p in fresh if p.key not in journal}.values())
        self.report = IndexReport(plan.output, model.directory, dropped=plan.dropped, deleted=plan.deleted)
        self.report.reused = len(plan.clips) - len(fresh)
        self.report.resumed = sum(p.key in journal for p in fresh)

    def check_space(self) -> None:
        """Refuse before the first frame is decoded if the finished store clearly will not fit."""
        config = self.model.directory.config
        frames, total = self.settings.frames, len(self.plan.clips) + len(self.plan.kept)
        video = {"transformer": frames + config.temporal.expansion_tokens, "none": frames, "mean": 1}[config.temporal.kind]
        clip = (frames + video) * (config.embed_dim * 2 + 4)
        # The journal, the writer's temporary files and the finished store exist at the same time for a moment.
        needed = len(self.todo) * clip * (1 if self.settings.dtype == "float16" else 2) + 2 * total * clip + _MARGIN
        free = shutil.disk_usage(self.plan.output.resolve().parent).free
        if needed > free:
            raise StoreError(
                f"{self.plan.output}: the disk is full: {total} clips need about {needed / 1e6:,.0f} MB while they are written, "
                f"{free / 1e6:,.0f} MB are free",
                "free some space, or choose another output",
            )

    def encode(self, pool: DecodePool, batch_size: int | None) -> None:
        """Decode and encode what is new, clip by clip into the journal."""
        jobs = [Job(p.clip, p.piece[0], p.stat) for p in self.todo]
        with contextlib.closing(encode_clips(jobs, self.model, pool, batch_size)) as encoded:
            for one in encoded:
                planned = self.todo[one.number]
                if one.number == 0:
                    self._name_encoder(self.model.video)
                if one.tokens is None:
                    self.errors[planned.key] = one.error or "cannot be encoded"
                else:
                    finished = FinishedClip(*one.tokens, _facts(planned, one.result, one.sha256))
                    self.journal.append(planned.key, finished, encoder=self.encoder)
                    self.report.indexed += 1
                    if one.result.damaged:
                        self.report.damaged.append(planned.clip.id)
                    self._note_gap(planned.clip, one.result)
                if one.batch_ends:
                    self._tell(one.number + 1, planned.clip)

    def _note_gap(self, clip: VideoInput, result: DecodeResult) -> None:
        if result.info is None or result.times_F is None:
            return
        seconds = min(result.info.duration, clip.end or math.inf) - (clip.start or 0.0)
        if seconds / len(result.times_F) >= _SPARSE:
            self.sparse.append((clip.id, seconds, len(result.times_F)))

    def _name_encoder(self, encoder: VideoEncoder) -> None:
        self.encoder = str(encoder.frame_graph.placement)
        self.report.device = encoder.device
        self.report.encoder = encoder.frame_graph.placement.to_json()
        self.report.notes += [g.note for g in (encoder.frame_graph, encoder.temporal_graph) if g is not None and g.note]

    def _tell(self, done: int, clip: VideoInput) -> None:
        if self.progress is not None:
            reused = self.report.reused + self.report.resumed
            self.progress(IndexProgress(done, len(self.todo), len(self.errors), reused, time.monotonic() - self.began, clip.id))

    def write(self) -> None:
        """Write the store and fill in the report."""
        if self.sparse:
            name, seconds, frames = max(self.sparse, key=lambda one: one[1] / one[2])
            more = f" ({len(self.sparse) - 1} more clips like it)" if len(self.sparse) > 1 else ""
            self.report.notes.append(
                f"of the {hours(seconds)} of {name} only {frames} pictures were looked at{more}: "
                "--segment 30 makes long films searchable to the second"
            )
        plan, report = self.plan, self.report
        present = [p for p in plan.clips if p.old is not None or p.key in self.journal]
        kept = self._settle_failures()
        report.kept, report.clips = len(plan.kept), len(kept) + len(present)
        if not report.clips:
            raise InputError(f"not one of {len(plan.clips)} clips could be indexed: {_reasons(report.failed)}", "no store was written")
        # Clips that are not among the inputs keep their places, so that the order depends on what was added, not on when.
        order: list[int | PlannedClip] = list(present)
        if (kept or plan.shards is not None) and plan.old is not None:
            places: dict[int, int | PlannedClip] = {index: index for index in kept}
            places |= {p.old: p for p in present if p.old is not None}
            moved = [p for p in present if p.old is None or places[p.old] is not p]
            order = [*(places[index] for index in sorted(places)), *moved]
        if plan.old is not None and self._up_to_date(order, plan.old):
            report.written = False
            return
        generation = 1 if plan.old is None else int(plan.old.manifest.get("generation", 0)) + 1
        fresh = {p.key for p in present if p.old is None}
        earlier = [] if plan.old is None or len(fresh) == len(order) else list(plan.old.manifest.get("encoders", []))
        encoders = list(dict.fromkeys([*earlier, *self.journal.encoders(fresh)]))
        manifest = plan.manifest | {"generation": generation, "encoders": encoders}
        if plan.shards is not None:
            with FolderWriter(plan.output, manifest=manifest, dtype=self.settings.dtype, size=plan.shards) as folder:
                self._add_to_folder(folder, order)
                folder.commit()
            return
        with StoreWriter(plan.output, manifest=manifest, dtype=self.settings.dtype) as writer:
            self._add_all(writer, order)
            writer.commit()

    def _add_to_folder(self, writer: FolderWriter, order: list[int | PlannedClip]) -> None:
        """Shards of which every clip stays as it is are kept; others are written anew, new clips go into new ones."""
        old = self.plan.old
        places = {position: entry for entry in order if (position := _position(entry)) is not None}
        start = 0
        for shard in () if old is None else old.shards:
            inside = [places[i] for i in range(start, start + len(shard)) if i in places]
            start += len(shard)
            if inside and len(inside) == len(shard) and all(self._as_is(entry) for entry in inside):
                writer.keep(shard)
            else:
                self._add_all(writer, inside)
                writer.finish_shard()
        self._add_all(writer, [entry for entry in order if _position(entry) is None])

    def _add_all(self, writer: StoreWriter | FolderWriter, entries: Sequence[int | PlannedClip]) -> None:
        """Runs of clips that stay as they are are copied in one go."""
        run: list[int] = []
        for entry in entries:
            position = _position(entry)
            if position is not None and self._as_is(entry):
                run.append(position)
                continue
            self._copy(writer, run)
            run = []
            self._add(writer, entry)
        self._copy(writer, run)

    def _copy(self, writer: StoreWriter | FolderWriter, positions: list[int]) -> None:
        if self.plan.old is None:
            return
        for start, stop in runs(positions):
            first = 0
            for shard in self.plan.old.shards:
                inside = range(max(start - first, 0), min(stop - first, len(shard)))
                if inside:
                    writer.add_range(shard, inside.start, inside.stop)
                first += len(shard)

    def _as_is(self, entry: int | PlannedClip) -> bool:
        return isinstance(entry, int) or (self.plan.old is not None and _same_words(entry, self.plan.old))

    def _settle_failures(self) -> list[int]:
        """Fill in `report.failed`; returns the old clips that stay: those not among the inputs, and those that cannot be read now."""
        old, kept = self.plan.old, list(self.plan.kept)
        for p in self.plan.clips:
            if p.key not in self.errors:
                continue
            index = None
            if old is not None and self.plan.same_settings and p.clip.id in old.clip_ids:
                index = old.index_of(p.clip.id)
                kept.append(index)
            self.report.failed.append(FailedClip(p.clip.id, str(p.clip.path), self.errors[p.key], kept=index is not None))
        return sorted(kept)

    def _up_to_date(self, order: list[int | PlannedClip], old: Store) -> bool:
        indices = [entry if isinstance(entry, int) else entry.old for entry in order]
        same_place = indices == list(range(len(old)))
        same_form = old.path.is_dir() == (self.plan.shards is not None)
        same_manifest = same_form and all(old.manifest.get(name) == value for name, value in self.plan.manifest.items())
        return same_place and same_manifest and all(isinstance(e, int) or _same_words(e, old) for e in order)

    def _add(self, writer: StoreWriter | FolderWriter, entry: int | PlannedClip) -> None:
        old = self.plan.old
        if isinstance(entry, int) or old is None or entry.old is None:
            if isinstance(entry, PlannedClip):
                writer.add(_tokens(entry, self.journal.read(entry.key)))
            return
        meta = with_user_meta(old.clip_meta(entry.old), entry.clip, entry.stat)
        writer.add_from(old, entry.old, clip_id=entry.clip.id, path=str(entry.clip.path), meta=meta)


def hours(seconds: float) -> str:
    """A duration for a reader: `45 s`, `12 min`, `1 h 05 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def _position(entry: int | PlannedClip) -> int | None:
    """Where a clip is in the old store; None for a new one."""
    return entry if isinstance(entry, int) else entry.old


def _dtype_of(path: Path) -> StoreDtype:
    """How the store at `path` keeps its tokens; int8 where there is none, or one that cannot be read (planning says so) or written."""
    with contextlib.suppress(StoreError), open_store(path) as store:
        return next((dtype for dtype in PRECISIONS if dtype == store.dtype), "int8")
    return "int8"


def _facts(planned: PlannedClip, result: DecodeResult, content: str | None) -> dict[str, Any]:
    """What is known of the file, without what the user says about the clip (that may change between runs)."""
    info = result.info
    facts: dict[str, Any] = dict(planned.stat)
    if content is not None:
        facts["sha256"] = content
    if info is not None:
        facts |= {"duration": round(info.duration, 6), "width": info.width, "height": info.height, "codec": info.codec}
    if result.damaged:
        facts["damaged"] = result.damaged
    return facts


def _tokens(planned: PlannedClip, finished: FinishedClip) -> ClipTokens:
    return ClipTokens(
        id=planned.clip.id,
        path=str(planned.clip.path),
        frame_FD=finished.frame_FD,
        frame_time_F=finished.frame_time_F,
        video_VD=finished.video_VD,
        video_time_V=finished.video_time_V,
        meta=with_user_meta(finished.meta, planned.clip),
    )


def _same_words(planned: PlannedClip, old: Store) -> bool:
    """Whether id and metadata of a reused clip are what they were."""
    if planned.old is None or old.clip_id(planned.old) != planned.clip.id:
        return False
    meta = old.clip_meta(planned.old)
    return with_user_meta(meta, planned.clip, planned.stat) == meta


def _reasons(failed: Sequence[FailedClip]) -> str:
    shown = "; ".join(f"{f.path}: {f.reason}" for f in failed[:2])
    return f"{shown}; …" if len(failed) > 2 else shown
