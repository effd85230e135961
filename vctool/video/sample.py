"""Which frames stand for a clip: the centres of equal bins over the frames that are really shown.

Shape letters: F frames, S shots.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from vctool.errors import UsageProblem, VideoError

if TYPE_CHECKING:
    from vctool.video.reader import VideoInfo

SamplingKind = Literal["uniform", "fps", "scenes", "keyframes"]
SAMPLINGS: tuple[str, ...] = get_args(SamplingKind)

# Times are products of integers and a time base: a piece that starts exactly on a frame must not lose it to one rounding.
SLACK = 1e-6  # seconds


@dataclass(frozen=True)
class Sampling:
    """How the frames of a clip are chosen; never more than `count`.

    kind: `uniform` spreads `count` frames evenly. `fps` takes `rate` frames a second, and spreads `count` evenly where that
    would be more. `keyframes` is `uniform`, but where a bin holds keyframes the one nearest its centre is taken: those can be decoded
    without what is between them. `scenes` shares `count` frames among the shots of the clip, at least one each while they last, the
    longest shots first; inside a shot they are spread evenly. Raises UsageProblem for an impossible value.
    """

    count: int
    kind: SamplingKind = "uniform"
    rate: float = 1.0

    def __post_init__(self) -> None:
        if self.count < 1:
            raise UsageProblem(f"the number of frames must be at least 1, not {self.count}")
        if self.kind not in SAMPLINGS:
            raise UsageProblem(f"sampling {self.kind!r} is not known", f"choose {', '.join(SAMPLINGS)}")
        if not 0 < self.rate < 1e6:
            raise UsageProblem(f"the sampling rate must be more than 0 frames a second, not {self.rate:g}")


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


def keyframe_times(
    frame_times: NDArray[np.float64], key_F: NDArray[np.bool_], count: int, start: float | None = None, end: float | None = None
) -> NDArray[np.int64]:
    """As `uniform_times`, but of each bin the keyframe nearest its centre (the earlier of two), where it holds one.

    key_F: bool `[F]`, which frames are keyframes.
    """
    chosen = uniform_times(frame_times, count, start, end)
    whole = uniform_times(frame_times, len(frame_times) or 1, start, end)
    if len(chosen) == len(whole):
        return chosen
    # A frame belongs to the bin that its middle lies in: place k where k + 1/2 >= i n / count.
    edges = -((count - 2 * np.arange(count + 1) * len(whole)) // (2 * count))
    for place, (first, last) in enumerate(pairwise(edges.tolist())):
        keys = whole[first:last][key_F[whole[first:last]]]
        if len(keys):
            chosen[place] = keys[np.abs(keys - chosen[place]).argmin()]
    return chosen


def scene_times(
    frame_times: NDArray[np.float64], shot_start_S: NDArray[np.float64], count: int, start: float | None = None, end: float | None = None
) -> NDArray[np.int64]:
    """Indices of at most `count` frames of `[start, end)` that are shared among its shots, strictly increasing.

    frame_times: as in `uniform_times`. shot_start_S: float64 `[S]`, seconds, increasing, the first picture of each shot. Each
    shot gets a frame at its centre, the longest shots first if there are more shots than frames; what is left goes one by
    one to the shot whose frames stand for the longest time each.
    """
    whole = uniform_times(frame_times, len(frame_times) or 1, start, end)
    if len(whole) <= count:
        return whole
    edges = np.searchsorted(frame_times[whole], shot_start_S - SLACK)
    edges = np.unique(np.concatenate([[0], edges[(edges > 0) & (edges < len(whole))], [len(whole)]]))
    shown_S = np.diff(edges)
    given_S = np.zeros(len(shown_S), np.int64)
    given_S[np.argsort(-shown_S, kind="stable")[:count]] = 1
    for _ in range(count - int(given_S.sum())):
        given_S[np.where(given_S < shown_S, shown_S / given_S, 0).argmax()] += 1
    parts = [
        first + (2 * np.arange(given) + 1) * shown // (2 * given)
        for first, shown, given in zip(edges[:-1], shown_S, given_S, strict=True)
        if given
    ]
    chosen: NDArray[np.int64] = whole[np.concatenate(parts)]
    return chosen


def choose(
    info: VideoInfo,
    sampling: Sampling,
    start: float | None,
    end: float | None,
    shot_start_S: NDArray[np.float64] | None = None,
    key_F: NDArray[np.bool_] | None = None,
) -> NDArray[np.int64]:
    """The frames of a video that `sampling` takes. Raises VideoError for a piece that lies outside it.

    shot_start_S, key_F: needed by `scenes` and by `keyframes` alone; without them (no shots, no keyframes could be told) frames
    are spread evenly.
    """
    assert info.frame_times_F is not None
    count = sampling.count
    if sampling.kind == "fps":
        length = min(info.duration, info.duration if end is None else end) - (start or 0.0)
        count = min(count, max(1, round(length * sampling.rate)))
    if sampling.kind == "scenes" and shot_start_S is not None:
        chosen = scene_times(info.frame_times_F, shot_start_S, count, start, end)
    elif sampling.kind == "keyframes" and key_F is not None:
        chosen = keyframe_times(info.frame_times_F, key_F, count, start, end)
    else:
        chosen = uniform_times(info.frame_times_F, count, start, end)
    if not len(chosen) or (start is not None and start > 0 and start >= info.duration):
        piece = f"{start or 0:g}-{'' if end is None else format(end, 'g')} s"
        raise VideoError(info.path, f"the piece {piece} is outside the video ({info.duration:.3g} s long)")
    return chosen
