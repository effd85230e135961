"""The optional decoder: decord, for those who compare with work that used it.

It carries FFmpeg 4.1.6 of July 2020, which gets no security fixes: do not give it files that you do not trust. It cannot
open AV1, GIF, small MPEG-TS files or files without a duration, and on a stream-copied cut (an edit list) it gives wrong
frames without an error. `tests/video/test_video_decord.py` shows each of these. PyAV reads all of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vctool.errors import MissingExtraError, VideoError
from vctool.video.container import opened, picture_stream
from vctool.video.reader import DecodedFrames, Picture, Transform, VideoInfo, apply
from vctool.video.sample import Sampling, choose
from vctool.video.shots import find_shots


class DecordReader:
    """Decodes with decord. Raises MissingExtraError where it is not installed."""

    def __init__(self) -> None:
        try:
            import decord
        except ImportError:
            raise MissingExtraError("decord", "decord") from None
        decord.logging.set_level(decord.logging.QUIET)
        self._decord = decord

    def probe(self, path: Path) -> VideoInfo:
        return self._open(path)[1]

    def decode(self, path: Path, sampling: Sampling, start: float | None, end: float | None, transform: Transform) -> DecodedFrames:
        video, info = self._open(path)
        assert info.frame_times_F is not None
        shot_start_S = self.shots(path) if sampling.kind == "scenes" else None
        key_F = None
        if sampling.kind == "keyframes":
            key_F = np.zeros(len(info.frame_times_F), dtype=np.bool_)
            key_F[video.get_key_indices()] = True
        chosen = choose(info, sampling, start, end, shot_start_S, key_F)
        # One at a time: `get_batch` would hold all of them at source size.
        frames = [apply(transform, _picture(video, int(i), path)) for i in chosen]
        return DecodedFrames(frames, info.frame_times_F[chosen], info)

    def shots(self, path: Path) -> NDArray[np.float64]:
        return find_shots(path)  # PyAV's: decord keeps every picture at source size

    def _open(self, path: Path) -> tuple[Any, VideoInfo]:
        # PyAV reads the header first: decord says "Error reading" for a missing file, a folder and a text alike.
        with opened(path) as container:
            codec = picture_stream(container, path).codec_context.codec.canonical_name
        try:
            video = self._decord.VideoReader(str(path), ctx=self._decord.cpu(0), num_threads=1)
            shown_F2 = np.asarray(video.get_frame_timestamp(range(len(video))), dtype=np.float64)
            height, width, _ = video[0].shape
        except Exception as problem:
            if "cannot find video stream" in str(problem):
                raise VideoError(path, f"codec {codec} is not supported by this decoder; try --decoder pyav") from None
            raise VideoError(path, f"decord cannot read this file ({codec}); try --decoder pyav") from None
        times_F = shown_F2[:, 0] - shown_F2[0, 0]
        if not np.all(np.isfinite(times_F)) or np.any(np.diff(times_F) < 0) or (len(times_F) > 1 and times_F[-1] <= 0):
            raise VideoError(path, "decord gives impossible timestamps for this file; try --decoder pyav")
        duration = float(max(shown_F2[-1, 1] - shown_F2[0, 0], times_F[-1]))
        # decord turns pictures by itself and does not say that it did.
        return video, VideoInfo(path, width, height, duration, times_F, codec, 0, len(times_F))


def _picture(video: Any, number: int, path: Path) -> Picture:
    try:
        picture: Picture = video[number].asnumpy()
    except Exception:  # its own words are places in its source
        raise VideoError(path, "damaged: decord stops at a picture that it cannot decode; try --decoder pyav") from None
    return picture
