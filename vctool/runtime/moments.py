"""The moment of a clip that answers a query: an interval, told from how relevant its frames are.

Shape letters: F frames that have a time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class Moment:
    """`[start, end)` in seconds of the file."""

    start: float
    end: float


def best_moment(time_F: Float64, relevance_F: Float64, start: float, end: float | None) -> Moment | None:
    """The frames around the most relevant one that are more than half as far above the clip's usual relevance as it is.

    time_F: float64 `[F]` seconds, increasing. relevance_F: float64 `[F]`. start, end: the piece of its file that the clip is.
    Usual is the median. Each frame stands for the time up to halfway to its neighbours, the outer ones to the ends of the
    clip. A clip whose frames are all alike is one moment. None without frames.
    """
    if not len(time_F):
        return None
    end = float(time_F[-1]) if end is None else end
    half_F = (time_F[1:] + time_F[:-1]) / 2
    edge = np.concatenate([[min(start, time_F[0])], half_F, [max(end, time_F[-1])]])
    peak = int(relevance_F.argmax())
    # Not np.median, which loads numpy.ma: 25 ms of a query's start.
    ordered_F = np.sort(relevance_F)
    usual = float(ordered_F[(len(ordered_F) - 1) // 2] + ordered_F[len(ordered_F) // 2]) / 2
    level = (usual + float(relevance_F[peak])) / 2
    inside_F = relevance_F >= level
    outside = np.flatnonzero(~inside_F)
    first = int(outside[outside < peak].max(initial=-1)) + 1
    last = int(outside[outside > peak].min(initial=len(time_F)))
    return Moment(round(float(edge[first]), 3), round(float(edge[last]), 3))


def together(one: Moment, other: Moment) -> Moment | None:
    """The two as one if they share time, else None."""
    if one.start < other.end and other.start < one.end:
        return Moment(min(one.start, other.start), max(one.end, other.end))
    return None


def clip_span(meta: dict[str, Any]) -> tuple[float, float | None]:
    """The piece of its file that a clip is, in seconds: `start` and `end` of its metadata, else the whole duration."""
    end = _time(meta.get("end"))
    return _time(meta.get("start")) or 0.0, _time(meta.get("duration")) if end is None else end


def _time(value: Any) -> float | None:
    # Stores may come from other hands: what is not a time is no time.
    is_time = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if is_time else None
