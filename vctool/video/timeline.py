"""When each picture of a file is shown, read from its packets without decoding more than the first picture.

Shape letters: F presented frames, P packets in file order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vctool.errors import VideoError
from vctool.video.container import PacketSource, has_format, opened, picture_stream
from vctool.video.reader import VideoInfo

# Containers that keep no presentation times: FFmpeg fills in decoding order, so with B-frames its labels are on the wrong pictures.
UNTIMED_FORMATS = frozenset({"avi", "h264", "hevc", "m4v", "mpegvideo", "obu", "ivf"})
# Containers that keep one picture a packet. In MPEG-TS the two fields of a picture may come as two packets with two times.
WHOLE_PICTURE_FORMATS = ("mp4", "matroska", "flv")
DEFAULT_RATE = Fraction(25)
SAME = 1e-9  # seconds: float rounding, not a clock that went back
EXACT = 2**53  # units of pts: more would not fit into a float64


@dataclass(frozen=True)
class Timeline:
    """The presented frames of one stream.

    info: with `frame_times_F`. pts_F: the container's own timestamp of each of those frames, int64, increasing.
    trusted: whether a decoded picture can be recognised by its timestamp. It cannot where timestamps are missing, occur
    twice, start again (two recordings joined) or are only guessed: then frames are told apart by their order (`retimed`).
    time_base: seconds per unit of pts. base: the pts that is time 0. step: usual seconds from frame to frame.
    untimed: whether the container has no presentation times. whole: whether a packet is one whole picture.
    packet_pts_P, packet_key_P: every packet in file order, shown or not, for choosing where decoding may start.
    missing: pieces of the stream that the file promises but does not have, and reading errors.
    """

    info: VideoInfo
    pts_F: NDArray[np.int64]
    trusted: bool
    time_base: Fraction
    base: int
    step: float
    untimed: bool
    whole: bool
    packet_pts_P: NDArray[np.int64]
    packet_key_P: NDArray[np.bool_]
    missing: int


@dataclass
class _Packets:
    """What the packets of a stream say, in file order."""

    pts: list[int | None]
    dts: list[int | None]
    key: list[bool]
    shown: list[bool]
    duration: list[int]
    first: Any = None  # the first decoded picture


def scan(path: Path) -> Timeline:
    """Read the timeline of a file. Raises VideoError where it has no picture that can be shown."""
    with opened(path) as container:
        stream = picture_stream(container, path)
        source = PacketSource(container, stream)
        packets = _read_packets(source, stream)
        missing = source.errors + _promised(container, stream, len(packets.pts))
        if not packets.pts:
            raise VideoError(path, "cut short: it has a header but no pictures")
        if packets.first is None:
            raise VideoError(
                path, f"damaged: none of its {len(packets.pts)} pictures can be decoded ({stream.codec_context.codec.canonical_name})"
            )
        return _timeline(path, container, stream, packets, missing)


def retimed(timeline: Timeline, decoded_pts_F: list[int | None]) -> NDArray[np.float64]:
    """Times (seconds) of decoded pictures, given their timestamps in the order in which the decoder gave them out.

    For sound timestamps this is `(pts - base) * time_base`. Where they start again, as in two recordings joined end to
    end, the later part goes on one frame after the end of the part before it. Where the container has none, pictures
    follow each other at its frame rate.
    """
    known = [p for p in decoded_pts_F if p is not None]
    complete = len(known) == len(decoded_pts_F)
    if timeline.trusted and complete:
        return _seconds(np.array(known, dtype=np.int64) - timeline.base, timeline.time_base)
    if timeline.untimed:
        decoded_pts_F = [*sorted(known)] if complete else [None] * len(decoded_pts_F)
    return _unwrapped(decoded_pts_F, timeline.time_base, timeline.step)


def _read_packets(source: PacketSource, stream: Any) -> _Packets:
    found = _Packets([], [], [], [], [])
    decoder = stream.codec_context
    codec = decoder.codec.name
    seen_key = False
    for packet in source:
        # Equal numbers are kept as one object: ten hours have a million packets, and each process that decodes reads them.
        pts, dts, duration = packet.pts, packet.dts, packet.duration or 0
        found.pts.append(pts)
        found.dts.append(pts if dts == pts else dts)
        found.key.append(packet.is_keyframe)
        found.duration.append(found.duration[-1] if found.duration and found.duration[-1] == duration else duration)
        found.shown.append(not packet.is_discard and not _hidden(codec, packet))
        # A recording that starts in the middle of a group of pictures: nothing before its first keyframe can be shown.
        seen_key = seen_key or packet.is_keyframe
        if seen_key and found.first is None:
            found.first = _first_picture(decoder, packet)
    if found.first is None:
        found.first = _first_picture(decoder, None)
    return found


def _first_picture(decoder: Any, packet: Any) -> Any:
    try:
        return next(iter(decoder.decode(packet)), None)
    except Exception:
        return None


def _hidden(codec: str, packet: Any) -> bool:
    """Whether a packet only feeds later pictures. VP8 and VP9 reference pictures may have packets, with times, of their own."""
    if codec not in ("vp8", "vp9"):
        return False
    data = memoryview(packet)
    if codec == "vp8":
        return not data[0] & 0x10
    if data[-1] & 0xE0 == 0xC0:  # a superframe: several pictures, of which the last is shown
        return False
    bits = data[0] << 8 | (data[1] if len(data) > 1 else 0)
    after_profile = 4 + (1 if data[0] & 0x30 == 0x30 else 0)
    shows_existing = bits >> (15 - after_profile) & 1
    shown = bits >> (13 - after_profile) & 1
    return not shows_existing and not shown


def _promised(container: Any, stream: Any, packets: int) -> int:
    """Pictures that the index of an mp4 or mov names beyond the last one that the file holds."""
    if not has_format(container, ("mp4",)):
        return 0
    return max(0, len(getattr(stream, "index_entries", ())) - packets)  # PyAV before 17 does not show the index


def _timeline(path: Path, container: Any, stream: Any, packets: _Packets, missing: int) -> Timeline:
    time_base = Fraction(stream.time_base)
    rate = stream.average_rate or stream.guessed_rate or DEFAULT_RATE
    step = float(1 / Fraction(rate))
    untimed = container.format.name in UNTIMED_FORMATS and (stream.codec_context.has_b_frames or None in packets.pts)
    whole = has_format(container, WHOLE_PICTURE_FORMATS)
    start = next((i for i, key in enumerate(packets.key) if key), 0)
    every = range(start, len(packets.pts))
    shown: Sequence[int] = every if all(packets.shown[start:]) else [i for i in every if packets.shown[i]]
    if not shown:
        raise VideoError(path, "has no pictures")
    pts = [packets.pts[i] for i in shown]
    known = np.array(sorted(p for p in pts if p is not None), dtype=np.int64)
    first = packets.first.pts
    trusted = (
        not untimed
        and first is not None
        and len(known) == len(pts)
        and bool(np.all(np.diff(known) > 0))
        and int(known[-1]) - int(known[0]) < EXACT
        and _never_back([packets.dts[i] for i in shown])
    )
    pts_F = known
    base = 0
    if trusted:
        base = _zero(packets, start, whole)
        pts_F = known[known >= base]
        times_F = _seconds(pts_F - base, time_base)
    else:
        times_F = _unwrapped(_in_order(pts, [packets.dts[i] for i in shown], untimed), time_base, step)
    last = next((packets.duration[i] for i in reversed(shown) if packets.pts[i] == pts_F[-1]), 0) if len(pts_F) else 0
    duration = float(times_F[-1]) + (float(last * time_base) if last else _usual_step(times_F, 0.0 if len(times_F) == 1 else step))
    rotation = _clockwise(packets.first.rotation)
    width, height = packets.first.width, packets.first.height
    if rotation in (90, 270):
        width, height = height, width
    info = VideoInfo(path, width, height, duration, times_F, stream.codec_context.codec.canonical_name, rotation, len(times_F))
    return Timeline(
        info=info,
        pts_F=pts_F,
        trusted=trusted,
        time_base=time_base,
        base=base,
        step=step,
        untimed=untimed,
        whole=whole,
        packet_pts_P=np.array([p if p is not None else np.iinfo(np.int64).min for p in packets.pts], dtype=np.int64),
        packet_key_P=np.array(packets.key, dtype=bool),
        missing=missing + (sum(packets.shown[:start]) if whole else 0),
    )


def _zero(packets: _Packets, start: int, whole: bool) -> int:
    """The pts that is time 0: that of the first picture that comes out, unless damage has taken pictures before it."""
    first = int(packets.first.pts)
    if not whole:
        return first
    # An mp4 or mkv starts with a keyframe. Where what it starts with does not come out, or is none, it is damaged.
    head = [p for p, shown in zip(packets.pts[: start + 1], packets.shown, strict=False) if shown and p is not None]
    return min([first, *head])


def _clockwise(counter_clockwise: float) -> int:
    """FFmpeg tells how far a picture is turned counter-clockwise; players show right angles only."""
    return round(-counter_clockwise / 90) % 4 * 90


def _never_back(dts: list[int | None]) -> bool:
    known = np.array([d for d in dts if d is not None], dtype=np.int64)
    return bool(np.all(np.diff(known) >= 0))


def _in_order(pts: list[int | None], dts: list[int | None], untimed: bool) -> list[int | None]:
    """Packet times in the order of presentation, part by part where decoding times start again."""
    if None in pts:
        return [None] * len(pts)
    ordered: list[int | None] = []
    part: list[int] = []
    latest: int | None = None
    for p, d in zip(pts, dts, strict=True):
        if not untimed and d is not None and latest is not None and d < latest:
            ordered += sorted(part)
            part = []
        latest = d if d is not None else latest
        part.append(p if p is not None else 0)
    return ordered + sorted(part)


def _unwrapped(pts_F: list[int | None], time_base: Fraction, step: float) -> NDArray[np.float64]:
    """Times from 0, non-decreasing: a clock that goes back goes on one step after the latest picture instead."""
    times: list[float] = []
    offset: float | None = None
    for p in pts_F:
        after = times[-1] + step if times else 0.0
        if p is None:
            times.append(after)
            continue
        own = p * float(time_base)
        if offset is None or own + offset < times[-1] - SAME:
            offset = after - own
        times.append(max(own + offset, times[-1] if times else 0.0))
    return np.array(times, dtype=np.float64)


def _seconds(pts: NDArray[np.int64], time_base: Fraction) -> NDArray[np.float64]:
    return pts * np.float64(time_base.numerator) / np.float64(time_base.denominator)


def _usual_step(times_F: NDArray[np.float64], otherwise: float) -> float:
    return float(np.median(np.diff(times_F))) if len(times_F) > 1 else otherwise
