"""Which frames stand for a clip: the centres of equal bins over the frames that are really shown."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vctool.errors import VideoError
from vctool.video.reader import VideoInfo

# Times are products of integers and a time base: a piece that starts exactly on a frame must not lose it to one rounding.
SLACK = 1e-6  # seconds


def uniform_times(frame_times: NDArray[np.float64], count: int, start: float | None = None, end: float | None = None) -> NDArray[np.int64]:
    """Indices of at most `count` frames of `[start, end)`, spread evenly, strictly increasing.

    frame_times: float64 `[F]`, seconds, non-decreasing. The n frames shown from `start` on and before `end` are cut into
    `count` equal bins and the frame at each bin's centre is taken: local index `floor((2 i + 1) n / (2 count))`. With
    fewer frames than `count` each frame is taken once: a frame is never repeated. Where no frame begins inside
    `[start, end)` the frame that is on the screen at `start` is taken (a slide that stays for a minute has one frame).
    The result is empty only where there are no frames, or `end` is not after the first one. Raises ValueError when
    `count` is less than 1.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, not {count}")
    first = 0 if start is None else int(np.searchsorted(frame_times, start - SLACK, side="left"))
    last = len(frame_times) if end is None else int(np.searchsorted(frame_times, end - SLACK, side="left"))
    if first >= last:
        if start is None or first == 0 or (end is not None and end <= start):
            return np.zeros(0, dtype=np.int64)
        first, last = first - 1, first
    shown = last - first
    if shown <= count:
        return np.arange(first, last, dtype=np.int64)
    bins = np.arange(count, dtype=np.int64)
    return first + (2 * bins + 1) * shown // (2 * count)


def choose(info: VideoInfo, count: int, start: float | None, end: float | None) -> NDArray[np.int64]:
    """`uniform_times` over the frames of a video. Raises VideoError for a piece that lies outside it."""
    assert info.frame_times_F is not None
    chosen = uniform_times(info.frame_times_F, count, start, end)
    if not len(chosen) or (start is not None and start > 0 and start >= info.duration):
        piece = f"{start or 0:g}-{'' if end is None else format(end, 'g')} s"
        raise VideoError(info.path, f"the piece {piece} is outside the video ({info.duration:.3g} s long)")
    return chosen
