"""Where one shot of a film ends and the next begins: hard cuts, told by how much a small picture changes at once.

A cut is a change that is large by itself and large beside the changes around it, so that neither a still film's noise nor
a fast pan counts. Dissolves and fades spread their change over many pictures and are not told.

Shape letters: P pictures looked at, S shots.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vctool.video.container import PacketSource, opened, picture_stream
from vctool.video.timeline import Timeline, scan

_SIDE = (32, 18)  # pixels of the small picture: enough to tell two places apart, too few to see grain
LEAST_CHANGE = 0.08  # of full scale, mean over the small picture: below it nobody would call it another shot
TIMES_USUAL = 4.0  # as large as the median change of the neighbourhood
_AROUND = 8  # pictures on each side that make up the neighbourhood


def find_shots(path: Path) -> NDArray[np.float64]:
    """`shot_starts` of a file by its name."""
    return shot_starts(path, scan(path))


def shot_starts(path: Path, timeline: Timeline) -> NDArray[np.float64]:
    """When each shot begins: float64 `[S]`, seconds, increasing from 0. The whole file is decoded once.

    Pictures that no other refers to are left out (about half the work), so a cut is named to within two or three pictures.
    A file whose timestamps cannot be trusted is one shot. Raises VideoError if it cannot be opened.
    """
    if not timeline.trusted:
        return np.zeros(1)
    time_P: list[float] = []
    change_P: list[float] = []
    before: NDArray[np.float32] | None = None
    for pts, small in _small_pictures(path):
        if pts is None or pts < timeline.base or (time_P and _seconds(timeline, pts) <= time_P[-1]):
            continue
        change_P.append(0.0 if before is None else float(np.abs(small - before).mean()))
        time_P.append(_seconds(timeline, pts))
        before = small
    cuts = cut_places(np.array(change_P))
    return np.array([0.0, *(time_P[i] for i in cuts)], dtype=np.float64)


def cut_places(change_P: NDArray[np.float64]) -> list[int]:
    """Places of cuts, given how much each picture differs from the one before it (0 to 1, the first is 0)."""
    found: list[int] = []
    for place in np.flatnonzero(change_P >= LEAST_CHANGE).tolist():
        around = np.concatenate([change_P[max(1, place - _AROUND) : place], change_P[place + 1 : place + 1 + _AROUND]])
        usual = float(np.median(around)) if len(around) else 0.0
        if change_P[place] < TIMES_USUAL * usual or place == 0:
            continue
        # A flash is two large changes in a row, away and back: the pictures before and after it are one shot, but telling
        # so needs both of them; taking the first only keeps a flash from making two shots.
        if found and place - found[-1] == 1:
            continue
        found.append(place)
    return found


def _small_pictures(path: Path) -> Iterator[tuple[int | None, NDArray[np.float32]]]:
    with opened(path) as container:
        stream = picture_stream(container, path)
        decoder = stream.codec_context
        decoder.skip_frame = "NONREF"
        for packet in _each(container, stream):
            try:
                frames: list[Any] = decoder.decode(packet)
                for frame in frames:
                    small = frame.reformat(width=_SIDE[0], height=_SIDE[1], format="rgb24", interpolation="AREA").to_ndarray()
                    yield frame.pts, small.astype(np.float32) / 255
            except Exception:  # a damaged stretch: the shots around it are still told
                continue


def _each(container: Any, stream: Any) -> Iterator[Any]:
    yield from PacketSource(container, stream)
    yield None


def _seconds(timeline: Timeline, pts: int) -> float:
    return float((pts - timeline.base) * timeline.time_base)
