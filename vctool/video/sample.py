"""Which frames stand for a clip: the centres of equal bins over the frames that are really shown."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

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
