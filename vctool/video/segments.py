"""Long videos cut into segments that become clips of one file, so that a film is searchable to the second.

Shape letters: S shots.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from vctool.errors import UsageProblem
from vctool.video.clip import VideoInput
from vctool.video.workers import DecodePool

SEGMENT_OF = "segment_of"  # in a segment's metadata: the id of the clip that it is cut from
LEAST_SCENE = 2.0  # seconds: shorter shots join the one after them, a frame each would tell little


@dataclass(frozen=True)
class Segmenting:
    """How files are cut. A file not longer than `length` seconds stays one clip.

    overlap: seconds that neighbouring segments share, so that what happens across a border is whole in one of them.
    scenes: cut where shots begin instead (no overlap there); shots longer than `length` are cut as files are.
    Raises UsageProblem for impossible values.
    """

    length: float
    overlap: float = 0.0
    scenes: bool = False

    def __post_init__(self) -> None:
        if not LEAST_SCENE <= self.length < 1e6:
            raise UsageProblem(f"a segment must be at least {LEAST_SCENE:g} seconds long, not {self.length:g}")
        if not 0 <= self.overlap <= self.length / 2:
            raise UsageProblem(
                f"segments of {self.length:g} s cannot overlap by {self.overlap:g} s", f"choose 0 to {self.length / 2:g} s, half a segment"
            )


def segment_spans(start: float, end: float, length: float, overlap: float) -> list[tuple[float, float]]:
    """Pieces of `[start, end)` in seconds that cover it, on a fixed grid: `length` long, each `length - overlap` after the last.

    What would remain at the end as less than half a step joins the last piece, so no piece is longer than 1.5 `length`
    and a file that grows changes its last piece only.
    """
    step = length - overlap
    spans = [(start, end)]
    while spans[-1][1] - spans[-1][0] > length + step / 2:
        first = spans.pop()[0]
        spans += [(first, first + length), (first + step, end)]
    return spans


def scene_spans(start: float, end: float, shot_start_S: NDArray[np.float64], length: float, overlap: float) -> list[tuple[float, float]]:
    """Pieces of `[start, end)` that begin where shots do; shots below LEAST_SCENE join the next, long ones are cut by `segment_spans`."""
    edges = [start]
    for cut in shot_start_S.tolist():
        if cut - edges[-1] >= LEAST_SCENE and end - cut >= LEAST_SCENE:
            edges.append(cut)
    edges.append(end)
    return [span for first, last in pairwise(edges) for span in segment_spans(first, last, length, overlap)]


def segmented(clips: Iterable[VideoInput], how: Segmenting, pool: DecodePool) -> Iterator[VideoInput]:
    """The clips, long ones in pieces named `id#start-end` (seconds). A file that cannot be read stays whole, to be reported when decoded.

    Each file is surveyed in the pool's processes: its length costs one reading, its scenes one decoding.
    """
    for clip, result in pool.survey(clips, shots=how.scenes):
        start = clip.start or 0.0
        if result.info is None:
            yield clip
            continue
        end = min(result.info.duration, result.info.duration if clip.end is None else clip.end)
        if how.scenes and result.shot_start_S is not None:
            spans = scene_spans(start, end, result.shot_start_S, how.length, how.overlap)
        else:
            spans = segment_spans(start, end, how.length, how.overlap)
        if len(spans) <= 1:
            yield clip
        else:
            yield from (piece(clip, *span) for span in spans)


def piece(clip: VideoInput, start: float, end: float) -> VideoInput:
    """Seconds `[start, end)` of a clip's file as a clip that knows what it is cut from."""
    name = clip.id if clip.start is None and clip.end is None else clip.id.rpartition("#")[0] or clip.id
    start, end = round(start, 3), round(end, 3)
    return replace(clip, id=f"{name}#{start:.15g}-{end:.15g}", start=start, end=end, meta=clip.meta | {SEGMENT_OF: clip.id})
