"""The default decoder: PyAV, with its own FFmpeg inside.

Frames are recognised by the container's timestamps. The file is read once for those, then opened again and decoded in
one forward pass that leaves out groups of pictures from which nothing is wanted. (A seek for each frame costs 1.3 to 5
times the work where keyframes are rare, and some MPEG-TS files give no frames at all after a seek back to their start.)
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vctool.errors import VideoError
from vctool.video.container import PacketSource, check_file, has_format, opened, picture_stream
from vctool.video.reader import DecodedFrames, Picture, Transform, VideoInfo, apply
from vctool.video.sample import Sampling, choose
from vctool.video.shots import shot_starts
from vctool.video.timeline import Timeline, retimed, scan

# In these codecs a packet that is marked as a keyframe is one. In a GIF, for instance, every picture needs those before it.
CODECS_WITH_KEYFRAMES = frozenset({"h264", "hevc", "vp8", "vp9", "av1", "mpeg4", "mpeg2video", "mpeg1video"})
SELECTIVE_CODECS = frozenset({"h264", "hevc"})
INDEXED_FORMATS = ("mp4", "matroska")  # a seek in these lands where it should; checked after each one all the same
MIN_JUMP = 64  # packets: a shorter way is decoded through
MIN_SEEK = 1024  # packets: a shorter way is read through


class PyavReader:
    """Decodes with PyAV. Remembers the timeline of the last file: a file that is cut into many pieces is scanned once."""

    def __init__(self) -> None:
        self._last: tuple[tuple[Path, int, int], Timeline] | None = None
        self._shots: tuple[Timeline, NDArray[np.float64]] | None = None

    def probe(self, path: Path) -> VideoInfo:
        return self._scan(path).info

    def decode(self, path: Path, sampling: Sampling, start: float | None, end: float | None, transform: Transform) -> DecodedFrames:
        timeline = self._scan(path)
        shot_start_S = self.shots(path) if sampling.kind == "scenes" else None
        if timeline.trusted:
            key_F = _keyframes(timeline) if sampling.kind == "keyframes" else None
            chosen = choose(timeline.info, sampling, start, end, shot_start_S, key_F)
            decoding = _Pass(path, timeline, transform)
            decoding.keep_times(timeline.pts_F[chosen])
            if len(decoding.frames) == len(chosen):
                return decoding.result(timeline.info, timeline.pts_F, chosen)
        # Damage, or timestamps that do not name pictures: learn what really comes out, and choose among that.
        rehearsal = _Pass(path, timeline, transform)
        times = retimed(timeline, rehearsal.presented())
        order_F = np.argsort(times, kind="stable")
        order_F = order_F[times[order_F] >= 0]
        if not len(order_F):
            raise VideoError(path, "damaged: none of its pictures can be decoded")
        times_F = times[order_F]
        duration = max(timeline.info.duration if timeline.trusted else 0.0, float(times_F[-1]) + timeline.step)
        info = replace(timeline.info, frame_times_F=times_F, frame_count=len(times_F), duration=duration)
        chosen = choose(info, sampling, start, end, shot_start_S)
        decoding = _Pass(path, timeline, transform)
        decoding.keep_ordinals(np.sort(order_F[chosen]))
        never_came = timeline.info.frame_count - len(times_F) if timeline.trusted and timeline.whole else 0
        return replace(decoding.result(info, order_F, chosen), damaged=max(rehearsal.damaged, never_came))

    def shots(self, path: Path) -> NDArray[np.float64]:
        timeline = self._scan(path)
        if self._shots is None or self._shots[0] is not timeline:
            self._shots = (timeline, shot_starts(path, timeline))
        return self._shots[1]

    def _scan(self, path: Path) -> Timeline:
        status = check_file(path)
        key = (path, status.st_size, status.st_mtime_ns)
        if self._last is None or self._last[0] != key:
            self._last = (key, scan(path))
        return self._last[1]


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
        try:
            self._keep_times(wanted, may_seek=True)
        except _WrongPlaceError:
            self._keep_times(wanted, may_seek=False)

    def _keep_times(self, wanted: NDArray[np.int64], may_seek: bool) -> None:
        entries = _entries(self.timeline, wanted)
        missing = set(entries)
        ahead = wanted.tolist()[::-1]
        for frame in self._frames(lambda: entries[ahead[-1]], may_seek, missing):
            if frame.pts in missing:
                missing.remove(frame.pts)
                self._keep(frame.pts, frame)
            while ahead and frame.pts is not None and frame.pts >= ahead[-1]:
                ahead.pop()  # it came, or it should have come by now
            if not ahead:
                return

    def result(self, info: VideoInfo, key_F: NDArray[np.int64], chosen: NDArray[np.int64]) -> DecodedFrames:
        """What was kept of the chosen frames, where `key_F` names the pictures of `info.frame_times_F` as `frames` does."""
        assert info.frame_times_F is not None
        came = [i for i in chosen.tolist() if int(key_F[i]) in self.frames]
        if not came:
            raise VideoError(self.path, "damaged: none of the chosen pictures can be decoded")
        return DecodedFrames([self.frames[int(key_F[i])] for i in came], info.frame_times_F[came], info, self.damaged)

    def _frames(self, aim: Callable[[], int], may_seek: bool = False, wanted: Container[int] | None = None) -> Iterator[Any]:
        """Decoded pictures from packet `aim()` on; with `wanted` timestamps, of the others only what those need."""
        self.damaged = self.timeline.missing
        self.frames.clear()
        with opened(self.path) as container:
            stream = picture_stream(container, self.path)
            decoder = stream.codec_context
            # Pictures to which no other refers need not be decoded. Only where a packet is a whole picture: else the
            # second field of a wanted one might be taken for another.
            selective = wanted is not None and decoder.codec.name in SELECTIVE_CODECS and self.timeline.whole
            for packet in _road(container, stream, self.timeline, aim, may_seek):
                if selective:
                    decoder.skip_frame = "DEFAULT" if packet is None or packet.pts in wanted else "NONREF"  # type: ignore[operator]
                try:
                    frames = decoder.decode(packet)
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


class _WrongPlaceError(Exception):
    """A seek did not land where the scan says that it should have."""


def _keyframes(timeline: Timeline) -> NDArray[np.bool_] | None:
    """Which presented frames can be decoded by themselves, None where the codec's marks do not say so."""
    if timeline.info.codec not in CODECS_WITH_KEYFRAMES:
        return None
    return np.isin(timeline.pts_F, timeline.packet_pts_P[timeline.packet_key_P])


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
    may_seek = may_seek and has_format(container, INDEXED_FORMATS)
    skipping = sought = False
    place = -1
    for packet in PacketSource(container, stream):
        place = _place(timeline, packet, aim()) if sought else place + 1
        sought = False
        gap = aim() - place
        if place < head or (may_skip and gap >= (1 if skipping else MIN_JUMP)):
            skipping = True
            if may_seek and gap >= MIN_SEEK:
                try:
                    _seek(container, stream, int(timeline.packet_pts_P[aim()]))
                except Exception:
                    raise _WrongPlaceError from None
                sought = True
            continue
        if skipping:
            stream.codec_context.flush_buffers()
            skipping = False
        yield packet
    yield None


def _seek(container: Any, stream: Any, pts: int) -> None:
    container.seek(pts, stream=stream)


def _place(timeline: Timeline, packet: Any, aim: int) -> int:
    places = np.flatnonzero(timeline.packet_pts_P == packet.pts)
    # Too far is wrong, and so is hardly anywhere: a file without an index lands at its start again and again.
    if packet.pts is None or len(places) != 1 or not 0 <= aim - places[0] < MIN_SEEK:
        raise _WrongPlaceError
    return int(places[0])
