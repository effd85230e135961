"""Clips and captions in tar files, as the WebDataset library and `vctool` both read them.

A sample is a video `KEY.mp4` (or its own suffix), `KEY.json` with its clips (id, piece, captions, whatever the manifest had) and
`KEY.txt`, the first caption. Beside the shards lies `NAME.jsonl`, a manifest whose paths name members: every command that takes a
manifest takes it, and any clip is read where it lies (`tar_member`).

With `frames` a sample is one clip's chosen pictures, at a side of one's choice, as Motion JPEG in Matroska at their own times: still a
video to every reader, decoded many times quicker, and the longest film costs what a short clip costs.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import IO, Any

import av
import numpy as np
from numpy.typing import NDArray

from vctool.config import PreprocessConfig
from vctool.errors import InputError, VideoError
from vctool.video.clip import VideoInput
from vctool.video.sample import Sampling
from vctool.video.tar_member import member_of
from vctool.video.workers import DecodePool

_JPEG_QUALITY = 2  # FFmpeg's scale: 2 is its best


@dataclass(frozen=True)
class Extraction:
    """Which pictures of a clip are kept, and their side in pixels after resizing as `resize` says."""

    sampling: Sampling
    side: int
    resize: str = "shortest"
    workers: int = 2
    decoder: str = "pyav"


@dataclass
class ShardReport:
    """What was written. failed: clip id to reason."""

    manifest: Path
    shards: list[Path] = field(default_factory=list)
    clips: int = 0
    samples: int = 0
    bytes: int = 0
    failed: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Sample:
    """One video, opened when its turn comes, and the clips that are in it."""

    suffix: str
    open: Callable[[], IO[bytes]]
    clips: list[VideoInput]
    whole: bool


def write_shards(
    clips: Sequence[VideoInput],
    folder: Path,
    name: str,
    *,
    per_shard: int = 1000,
    extraction: Extraction | None = None,
    report: Callable[[int, int], None] | None = None,
) -> ShardReport:
    """Write `clips` into `folder/NAME-000000.tar` and on, and `folder/NAME.jsonl`, which is there when everything is.

    per_shard: samples a file. Clips that cannot be read are left out and reported. The same clips make the same bytes. Raises
    InputError where NAME.jsonl is there already, nothing can be read, or the folder cannot be written.
    """
    done = ShardReport(folder / f"{name}.jsonl")
    if done.manifest.exists():
        raise InputError(f"{done.manifest} is there already", "choose another folder or --name")
    samples = _files(clips, done) if extraction is None else _pictures(clips, extraction, done)
    lines: list[str] = []
    shard: tarfile.TarFile | None = None
    partial = path = folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for sample in samples:
            if shard is None:
                path = folder / f"{name}-{len(done.shards):06d}.tar"
                partial = path.with_name(path.name + ".partial")
                shard = tarfile.open(partial, "w", format=tarfile.PAX_FORMAT)  # noqa: SIM115 (closed when it is full)
            member = f"{done.samples:08d}{sample.suffix}"
            with sample.open() as source:
                _add(shard, member, source)
            rows = [_row(clip, sample.whole) for clip in sample.clips]
            texts = [text for clip in sample.clips for text in clip.captions]
            _add(shard, f"{done.samples:08d}.json", io.BytesIO(json.dumps({"clips": rows}, ensure_ascii=False).encode()))
            _add(shard, f"{done.samples:08d}.txt", io.BytesIO((texts[0] if texts else "").encode()))
            lines += [json.dumps({"path": f"{path.name}/{member}", **row}, ensure_ascii=False) for row in rows]
            done.samples += 1
            done.clips += len(sample.clips)
            if report is not None:
                report(done.clips + len(done.failed), len(clips))
            if done.samples % per_shard == 0:
                _finish(shard, partial, path, done)
                shard = None
        if shard is not None:
            _finish(shard, partial, path, done)
            shard = None
        if not lines:
            first = next(iter(done.failed.items()), ("", "there are none"))
            raise InputError(
                f"no clip could be read; the first: {first[0]}: {first[1]}", "check the paths: they are relative to the manifest"
            )
        done.manifest.write_text("\n".join(lines) + "\n", encoding="utf-8")
    except OSError as problem:
        raise InputError(f"{folder} cannot be written: {problem.strerror or problem}", "make room, or choose another folder") from None
    finally:
        if shard is not None:
            shard.close()
            with suppress(OSError):
                partial.unlink()
    return done


def _files(clips: Sequence[VideoInput], done: ShardReport) -> Iterator[_Sample]:
    """The files as they are, each once, with all the clips that are pieces of it."""
    by_path: dict[Path, list[VideoInput]] = {}
    for clip in clips:
        by_path.setdefault(clip.path, []).append(clip)
    for path, own in by_path.items():
        try:
            source = _opened(path)
        except (OSError, VideoError) as problem:
            reason = problem.reason if isinstance(problem, VideoError) else problem.strerror or "cannot be read"
            done.failed |= {clip.id: reason for clip in own}
            continue
        yield _Sample(path.suffix.lower() or ".mp4", lambda source=source: source, own, False)  # type: ignore[misc]


def _opened(path: Path) -> IO[bytes]:
    member = member_of(path)
    if member is None:
        return path.open("rb")
    with member.tar.open("rb") as file:
        file.seek(member.offset)
        return io.BytesIO(file.read(member.size))


def _pictures(clips: Sequence[VideoInput], extraction: Extraction, done: ShardReport) -> Iterator[_Sample]:
    """Chosen pictures of each clip; a piece becomes a video of its own."""
    how = PreprocessConfig(size=extraction.side, resize=extraction.resize)  # type: ignore[arg-type]
    with DecodePool(extraction.workers, count=extraction.sampling, transform_config=how, decoder=extraction.decoder) as pool:
        for result in pool.run(clips):
            if result.frames_FHWC is None or result.times_F is None:
                done.failed[result.input.id] = result.error or "cannot be read"
                continue
            content = picture_video(result.frames_FHWC, result.times_F)
            yield _Sample(".mkv", lambda content=content: io.BytesIO(content), [result.input], True)  # type: ignore[misc]


def picture_video(frames_FHWC: NDArray[np.uint8], times_F: NDArray[np.float64]) -> bytes:
    """Pictures (uint8 RGB) as a Matroska file of JPEGs, each at its own second."""
    file = io.BytesIO()
    with av.open(file, "w", format="matroska", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("mjpeg", rate=1000)
        stream.height, stream.width = frames_FHWC.shape[1:3]
        stream.pix_fmt = "yuvj444p"
        context = stream.codec_context
        context.time_base, context.thread_count = Fraction(1, 1000), 1
        context.qmin = context.qmax = _JPEG_QUALITY
        for frame_HWC, second in zip(frames_FHWC, times_F, strict=True):
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame_HWC), format="rgb24")
            picture.pts, picture.time_base = round(float(second) * 1000), Fraction(1, 1000)
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return file.getvalue()


def _row(clip: VideoInput, whole: bool) -> dict[str, Any]:
    piece = {} if whole else {key: value for key, value in (("start", clip.start), ("end", clip.end)) if value is not None}
    return {"id": clip.id, **piece, "captions": list(clip.captions), **clip.meta}


def _add(shard: tarfile.TarFile, name: str, source: IO[bytes]) -> None:
    info = tarfile.TarInfo(name)  # no owner, no time: the same clips make the same bytes
    info.size = source.seek(0, io.SEEK_END)
    source.seek(0)
    shard.addfile(info, source)


def _finish(shard: tarfile.TarFile, partial: Path, path: Path, done: ShardReport) -> None:
    shard.close()
    partial.replace(path)
    done.shards.append(path)
    done.bytes += path.stat().st_size
