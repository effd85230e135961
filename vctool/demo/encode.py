"""Clips of the demo world as real video files, with a manifest."""

from __future__ import annotations

import json
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from vctool.demo.clip import CLIP_FPS, CLIP_SIZE, ClipSpec, describe, frames, twin
from vctool.errors import InputError

#: Rate factor of libx264: the pictures stay clean, and a clip of 128 pixels stays under ten kilobytes.
CRF = 23


def write_video(path: str | Path, frames_FHWC: NDArray[np.uint8], *, fps: int = CLIP_FPS, crf: int = CRF) -> None:
    """Write RGB frames, uint8 [F, H, W, 3] with even H and W, as H.264 (yuv420p) in an MP4.

    One thread and no time stamp of the day: the same frames make the same bytes with the same libx264.
    Raises InputError where the file cannot be written or the size is odd.
    """
    count, height, width, _ = frames_FHWC.shape
    if height % 2 or width % 2:
        raise InputError(f"{path}: H.264 wants an even width and height, not {width}x{height}")
    params = "threads=1:lookahead-threads=1"
    if -(-width // 16) % 8:  # its macroblock tree reads memory nobody wrote, unless a row of macroblocks is a multiple of eight
        params += ":mbtree=0"
    options = {"crf": str(crf), "preset": "veryslow", "threads": "1", "x264-params": params, "tune": "animation"}
    try:
        with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart", "fflags": "+bitexact"}) as container:
            stream = container.add_stream("libx264", rate=fps, options=options)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            stream.codec_context.time_base = Fraction(1, fps)
            stream.codec_context.thread_count = 1
            for index in range(count):
                picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frames_FHWC[index]), format="rgb24")
                picture.pts, picture.time_base = index, Fraction(1, fps)
                container.mux(stream.encode(picture))
            container.mux(stream.encode(None))
    except (OSError, av.FFmpegError) as problem:
        raise InputError(f"{path}: cannot be written as a video: {problem}") from problem


def manifest_row(spec: ClipSpec, path: str, twin_id: str | None) -> dict[str, object]:
    """One line of the manifest: the file, its captions, and what the world knows about the clip."""
    return {
        "path": path,
        "id": spec.id,
        "captions": list(spec.captions),
        # What is true of the clip played backwards: training turns it round in time and has its hardest negative for free.
        "reversed_captions": [] if (turned := twin(spec)) is None or twin_id is not None else list(turned.captions),
        "split": spec.split,
        "kind": spec.kind,
        "event": spec.event,
        "objects": list(spec.objects),
        "background": spec.background,
        "group": spec.group,
        "twin": twin_id,
        "description": describe(spec),
    }


def write_world(
    folder: str | Path, specs: Sequence[ClipSpec], size: int = CLIP_SIZE, *, crf: int = CRF, manifest_name: str = "manifest.jsonl"
) -> Path:
    """Write clips as `<id>.mp4` into a folder with a JSONL manifest beside them; returns the manifest's path.

    `twin` in a row is the id of the clip's twin where that clip is among those written. Raises InputError where two
    clips have one id or the folder cannot be written.
    """
    folder = Path(folder)
    present = {spec.id for spec in specs}
    if len(present) != len(specs):
        raise InputError(f"{folder}: two of the {len(specs)} clips have the same id")
    lines = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for spec in specs:
            write_video(folder / f"{spec.id}.mp4", frames(spec, size=size), crf=crf)
            row = manifest_row(spec, f"{spec.id}.mp4", spec.twin_id if spec.twin_id in present else None)
            lines.append(json.dumps(row))
        manifest = folder / manifest_name
        manifest.write_text("\n".join(lines) + "\n", encoding="utf-8")
    except OSError as problem:
        raise InputError(f"{folder}: cannot be written: {problem}") from problem
    return manifest
