"""The default decoder: PyAV, with its own FFmpeg inside.

Frames are recognised by the container's timestamps. The file is read once for those, then opened again and decoded in
one forward pass that leaves out groups of pictures from which nothing is wanted. (A seek for each frame costs 1.3 to 5
times the work where keyframes are rare, and some MPEG-TS files give no frames at all after a seek back to their start.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vctool.errors import VideoError
from vctool.video.container import PacketSource, check_file, opened, picture_stream
from vctool.video.reader import DecodedFrames, Picture, Transform, VideoInfo, apply
from vctool.video.sample import uniform_times
from vctool.video.timeline import Timeline, retimed, scan

# In these codecs a packet that is marked as a keyframe is one. In a GIF, for instance, every picture needs those before it.
CODECS_WITH_KEYFRAMES = frozenset({"h264", "hevc", "vp8", "vp9", "av1", "mpeg4", "mpeg2video", "mpeg1video"})
INDEXED_FORMATS = ("mp4", "matroska")  # a seek in these lands where it should; checked after each one all the same
MIN_JUMP = 64  # packets: a shorter way is decoded through
MIN_SEEK = 1024  # packets: a shorter way is read through


class PyavReader:
    """Decodes with PyAV. Remembers the timeline of the last file: a file that is cut into many pieces is scanned once."""

    def __init__(self) -> None:
        self._last: tuple[tuple[Path, int, int], Timeline] | None = None

    def probe(self, path: Path) -> VideoInfo:
        return self._scan(path).info

    def decode(self, path: Path, count: int, start: float | None, end: float | None, transform: Transform) -> DecodedFrames:
        timeline = self._scan(path)
        if timeline.trusted:
            chosen = choose(timeline.info, count, start, end)
            decoding = _Pass(path, timeline, transform)
            decoding.keep_times(timeline.pts_F[chosen])
            if len(decoding.frames) == len(chosen):
                return decoding.result(timeline.info, timeline.pts_F)
        # Damage, or timestamps that do not name pictures: learn what really comes out, and choose among that.
        rehearsal = _Pass(path, timeline, transform)
        times_F = retimed(timeline, rehearsal.presented())
        if not len(times_F):
            raise VideoError(path, "damaged: none of its pictures can be decoded")
        duration = max(timeline.info.duration if timeline.trusted else 0.0, float(times_F[-1]) + timeline.step)
        info = replace(timeline.info, frame_times_F=times_F, frame_count=len(times_F), duration=duration)
        decoding = _Pass(path, timeline, transform)
        decoding.keep_ordinals(choose(info, count, start, end))
        return replace(decoding.result(info, np.arange(len(times_F))), damaged=rehearsal.damaged)

    def _scan(self, path: Path) -> Timeline:
        status = check_file(path)
        key = (path, status.st_size, status.st_mtime_ns)
        if self._last is None or self._last[0] != key:
            self._last = (key, scan(path))
        return self._last[1]


def choose(info: VideoInfo, count: int, start: float | None, end: float | None) -> NDArray[np.int64]:
    """`uniform_times` over the frames of a video. Raises VideoError for a piece that lies outside it."""
    assert info.frame_times_F is not None
    chosen = uniform_times(info.frame_times_F, count, start, end)
    if not len(chosen) or (start is not None and start > 0 and start >= info.duration):
        piece = f"{start or 0:g}-{'' if end is None else format(end, 'g')} s"
        raise VideoError(info.path, f"the piece {piece} is outside the video ({info.duration:.3g} s long)")
    return chosen


def upright(picture: Picture, clockwise: int) -> Picture:
    """The picture turned clockwise by 0, 90, 180 or 270 degrees, contiguous in memory."""
    return picture if clockwise == 0 else np.ascontiguousarray(np.rot90(picture, -(clockwise // 90)))


@dataclass
class _Pass:
    """One forward decode of a file that is opened for it.

    frames: kept pictures by timestamp or by ordinal. damaged: how often reading or decoding failed on the way.
    """

    path: Path
    timeline: Timeline
    transform: Transform
    frames: dict[int, Picture] = field(default_factory=dict)
    damaged: int = 0

    def presented(self) -> list[int | None]:
        """Timestamps of all pictures, in the order in which the decoder gives them out."""
        return [frame.pts for frame in self._frames(lambda: 0)]

    def keep_ordinals(self, wanted: NDArray[np.int64]) -> None:
        """Keep the pictures with these places (increasing) in the order of `presented`."""
        left = wanted.tolist()[::-1]
        for ordinal, frame in enumerate(self._frames(lambda: 0)):
            if ordinal == left[-1]:
                self._keep(left.pop(), frame)
            if not left:
                return

    def keep_times(self, wanted: NDArray[np.int64]) -> None:
        """Keep the pictures with these timestamps (increasing), passing over groups of pictures that hold none of them."""
        entries = _entries(self.timeline, wanted)
        for may_seek in (True, False):
            left = wanted.tolist()[::-1]
            self.frames.clear()
            try:
                for frame in self._frames(lambda left=left: entries[left[-1]], may_seek):  # type: ignore[misc]
                    while left and frame.pts is not None and frame.pts > left[-1]:
                        left.pop()  # it should have come by now: lost
                    if left and frame.pts == left[-1]:
                        self._keep(left.pop(), frame)
                    if not left:
                        return
            except _WrongPlace:
                continue
            return

    def result(self, info: VideoInfo, keys_F: NDArray[np.int64]) -> DecodedFrames:
        """The kept frames in order, where `keys_F` names the pictures of `info.frame_times_F`."""
        if not self.frames:
            raise VideoError(self.path, "damaged: none of the chosen pictures can be decoded")
        assert info.frame_times_F is not None
        keys = sorted(self.frames)
        return DecodedFrames([self.frames[k] for k in keys], info.frame_times_F[np.searchsorted(keys_F, keys)], info, self.damaged)

    def _frames(self, aim: Callable[[], int], may_seek: bool = False) -> Iterator[Any]:
        self.damaged = self.timeline.missing
        with opened(self.path) as container:
            stream = picture_stream(container, self.path)
            for packet in _road(container, stream, self.timeline, aim, may_seek):
                try:
                    frames = stream.codec_context.decode(packet)
                except Exception:
                    self.damaged += 1
                    continue
                yield from frames

    def _keep(self, key: int, frame: Any) -> None:
        try:
            picture: Picture = frame.to_ndarray(format="rgb24")
        except Exception:
            self.damaged += 1
            return
        self.frames[key] = apply(self.transform, upright(picture, self.timeline.info.rotation))


class _WrongPlace(Exception):
    """A seek did not land where the scan says that it should have."""


def _entries(timeline: Timeline, wanted: NDArray[np.int64]) -> dict[int, int]:
    """For each wanted timestamp the number of the packet, a keyframe, from which that picture can be decoded."""
    keys = np.flatnonzero(timeline.packet_key_P)
    entries = {}
    for pts in wanted.tolist():
        packet = int(np.flatnonzero(timeline.packet_pts_P == pts)[-1])
        # A picture that is shown before a keyframe but stored after it needs the group of pictures before.
        before = keys[(keys <= packet) & (timeline.packet_pts_P[keys] <= pts)]
        entries[pts] = int(before[-1]) if len(before) else 0
    return entries


def _road(container: Any, stream: Any, timeline: Timeline, aim: Callable[[], int], may_seek: bool) -> Iterator[Any]:
    """Packets to decode in file order, then None, which empties the decoder.

    `aim` says from which packet on decoding is needed next; where that saves enough, what lies before it is left out.
    """
    keys = np.flatnonzero(timeline.packet_key_P)
    head = int(keys[0]) if len(keys) else 0
    may_skip = stream.codec_context.codec.canonical_name in CODECS_WITH_KEYFRAMES
    may_seek = may_seek and any(name in container.format.name for name in INDEXED_FORMATS)
    skipping = sought = False
    place = -1
    for packet in PacketSource(container, stream):
        place = _place(timeline, packet, aim()) if sought else place + 1
        sought = False
        gap = aim() - place
        if place < head or (may_skip and gap >= (1 if skipping else MIN_JUMP)):
            skipping = True
            if may_seek and gap >= MIN_SEEK:
                container.seek(int(timeline.packet_pts_P[aim()]), stream=stream)
                sought = True
            continue
        if skipping:
            stream.codec_context.flush_buffers()
            skipping = False
        yield packet
    yield None


def _place(timeline: Timeline, packet: Any, aim: int) -> int:
    places = np.flatnonzero(timeline.packet_pts_P == packet.pts)
    if packet.pts is None or len(places) != 1 or places[0] > aim:
        raise _WrongPlace
    return int(places[0])
