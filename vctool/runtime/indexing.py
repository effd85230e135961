"""Indexing: videos to a token store, resumable at any moment, with nothing encoded twice.

A run plans (see `index_plan`), encodes the new clips into a journal, writes the store, and removes the journal. A kill at
any point leaves the old store and a journal that the next run goes on from. On the CPU each clip is encoded by itself, so
its tokens do not depend on what was encoded beside it, and the same input gives the same bytes however often the run was
interrupted.

Shape letters: N frames of a batch, F frames of a clip, S side of the input picture, D width.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from vctool.errors import InputError, Interrupted, ModelError, SkippedInputsError, StoreError, UsageProblem
from vctool.runtime.index_plan import IndexPlan, IndexSettings, PlannedClip, make_plan, with_user_meta
from vctool.runtime.index_segments import cut_inputs, earlier_segmenting
from vctool.runtime.journal import FinishedClip, Journal
from vctool.runtime.machine import available_cores
from vctool.runtime.model import Model, load_model
from vctool.runtime.model_directory import ModelDirectory
from vctool.runtime.sessions import Device, Provider
from vctool.store import ClipTokens, Store, StoreDtype, StoreWriter
from vctool.video.clip import VideoInput
from vctool.video.files import find_videos
from vctool.video.sample import SamplingKind
from vctool.video.segments import Segmenting
from vctool.video.workers import DecodePool, DecodeResult

_CUDA_CLIPS = 8  # clips encoded at once on a GPU; on the CPU one clip's frames fill the cores
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
    reused: unchanged since the store was written; kept: in the store but not among the inputs; dropped: pruned; written: false
    if the store was up to date already. damaged: ids of clips encoded in this run that could be decoded only in part. device: what
    encoded; encoder: the same in detail, see `Placement`, empty if nothing was encoded. notes: what the user should know."""

    store: Path
    model: ModelDirectory
    clips: int = 0
    indexed: int = 0
    resumed: int = 0
    reused: int = 0
    kept: int = 0
    dropped: int = 0
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
    dtype: StoreDtype = "float16",
    strict: bool = False,
    rebuild: bool = False,
    prune: bool = False,
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
    that is at `output`. prune: drop its clips that are not among the inputs. device, provider, threads: see
    `sessions.Graph`.

    Clips that cannot be read are listed in `IndexReport.failed`, the rest is indexed; with `strict` SkippedInputsError is
    raised after the store is written. Raises InputError if not one clip is left, StoreError if the output cannot be written
    or belongs to another model, ModelError for a damaged model directory, Interrupted on Ctrl-C (finished clips are kept;
    the same call goes on from there).
    """
    began = time.monotonic()
    loaded = model if isinstance(model, Model) else load_model(model, device=device, provider=provider, threads=threads)
    path = Path(output)
    segments = _segmenting(segment, overlap, at_scenes, path, rebuild)
    settings = IndexSettings.of(loaded.directory, frames, decoder, dtype, sampling, fps, segments)
    workers = available_cores() if workers is None else workers
    clips = find_videos(list(inputs))
    if segments is not None:
        try:
            with DecodePool(min(workers, len(clips)), count=settings.sampling, decoder=decoder, timeout_s=timeout) as pool:
                clips = cut_inputs(clips, segments, path, pool, rebuild=rebuild)
        except KeyboardInterrupt:
            raise Interrupted("stopped before the first clip: nothing was changed") from None
    plan = make_plan(clips, path, loaded.directory, settings, rebuild=rebuild, prune=prune)
    journal = Journal(path, half=dtype == "float16")
    run = _Run(plan, loaded, settings, journal, progress, began)
    try:
        run.check_space()
        run.encode(workers, batch_size, timeout)
        run.write()
        journal.discard()
    except KeyboardInterrupt:
        kept = f"{len(journal)} finished clips are kept" if len(journal) else "no clip was finished yet"
        raise Interrupted(f"stopped: {kept}", "run the same command again to go on from there") from None
    finally:
        journal.close()
    run.report.seconds = time.monotonic() - began
    if strict and run.report.failed:
        raise SkippedInputsError(f"{len(run.report.failed)} of {len(plan.clips)} clips were skipped: {_reasons(run.report.failed)}")
    return run.report


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
        fresh = [p for p in plan.clips if p.old is None]
        self.todo = list({p.key: p for p in fresh if p.key not in journal}.values())
        self.report = IndexReport(plan.output, model.directory, dropped=plan.dropped)
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

    def encode(self, workers: int, batch_size: int | None, timeout: float) -> None:
        """Decode and encode what is new, clip by clip into the journal."""
        if not self.todo:
            return
        encoder = self.model.video
        self.report.device = encoder.device
        self.report.encoder = encoder.frame_graph.placement.to_json()
        self.report.notes += [g.note for g in (encoder.frame_graph, encoder.temporal_graph) if g is not None and g.note]
        with DecodePool(
            min(workers, len(self.todo)),
            count=self.settings.sampling,
            transform_config=self.model.directory.preprocess,
            decoder=self.settings.decoder,
            timeout_s=timeout,
        ) as pool:
            results = zip(self.todo, pool.run([p.clip for p in self.todo]), strict=True)
            done = 0
            for batch in _batches(results, batch_size or (_CUDA_CLIPS if encoder.device == "cuda" else 1)):
                self._encode_batch(batch)
                done += len(batch)
                self._tell(done, batch[-1][0].clip)

    def _encode_batch(self, batch: list[tuple[PlannedClip, DecodeResult]]) -> None:
        self.errors |= {p.key: r.error for p, r in batch if r.error is not None}
        decoded = [(p, r, r.frames_FHWC) for p, r in batch if r.frames_FHWC is not None]
        if not decoded:
            return
        features_ND = self.model.video.frame_features(np.concatenate([frames for _, _, frames in decoded]))
        start = 0
        for planned, result, frames in decoded:
            features_FD = features_ND[start : start + len(frames)]
            start += len(frames)
            times_F = result.times_F if result.times_F is not None else np.full(len(frames), np.nan)
            try:
                frame_FD, frame_time_F, video_VD, video_time_V = self.model.video.clip_tokens(features_FD, times_F)
            except ModelError as problem:
                self.errors[planned.key] = problem.message
                continue
            finished = FinishedClip(frame_FD, frame_time_F, video_VD, video_time_V, _facts(planned, result))
            self.journal.append(planned.key, finished, encoder=str(self.model.video.frame_graph.placement))
            self.report.indexed += 1
            if result.damaged:
                self.report.damaged.append(planned.clip.id)

    def _tell(self, done: int, clip: VideoInput) -> None:
        if self.progress is not None:
            reused = self.report.reused + self.report.resumed
            self.progress(IndexProgress(done, len(self.todo), len(self.errors), reused, time.monotonic() - self.began, clip.id))

    def write(self) -> None:
        """Write the store and fill in the report."""
        plan, report = self.plan, self.report
        present = [p for p in plan.clips if p.old is not None or p.key in self.journal]
        kept = self._settle_failures()
        report.kept, report.clips = len(plan.kept), len(kept) + len(present)
        if not report.clips:
            raise InputError(f"not one of {len(plan.clips)} clips could be indexed: {_reasons(report.failed)}", "no store was written")
        # Clips that are not among the inputs keep their places, so that the order depends on what was added, not on when.
        order: list[int | PlannedClip] = list(present)
        if kept and plan.old is not None:
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
        with StoreWriter(plan.output, manifest=manifest, dtype=self.settings.dtype) as writer:
            for entry in order:
                self._add(writer, entry)
            writer.commit()

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
        same_manifest = all(old.manifest.get(name) == value for name, value in self.plan.manifest.items())
        return same_place and same_manifest and all(isinstance(e, int) or _same_words(e, old) for e in order)

    def _add(self, writer: StoreWriter, entry: int | PlannedClip) -> None:
        old = self.plan.old
        if isinstance(entry, PlannedClip) and entry.old is None:
            writer.add(_tokens(entry, self.journal.read(entry.key)))
        elif old is not None and isinstance(entry, int):
            writer.add_from(old, entry)
        elif old is not None and isinstance(entry, PlannedClip) and entry.old is not None:
            if _same_words(entry, old):
                writer.add_from(old, entry.old)
            else:  # float16 to float32 and back gives the same bits
                clip = old.clip(entry.old)
                writer.add(replace(clip, id=entry.clip.id, path=str(entry.clip.path), meta=with_user_meta(clip.meta, entry.clip)))


def _batches(items: Iterable[tuple[PlannedClip, DecodeResult]], size: int) -> Iterator[list[tuple[PlannedClip, DecodeResult]]]:
    batch = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _facts(planned: PlannedClip, result: DecodeResult) -> dict[str, Any]:
    """What is known of the file, without what the user says about the clip (that may change between runs)."""
    info = result.info
    facts: dict[str, Any] = dict(planned.stat)
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
    return with_user_meta(meta, planned.clip) == meta


def _reasons(failed: Sequence[FailedClip]) -> str:
    shown = "; ".join(f"{f.path}: {f.reason}" for f in failed[:2])
    return f"{shown}; …" if len(failed) > 2 else shown
