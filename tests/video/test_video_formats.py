"""PyAV: every frame of every format is the right one. Rows of the decoder table in the design notes are marked `row:`."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from makevideo import BITS, number_in, numbers_in, picture, write_video

from vctool.video.decode import decode_frames
from vctool.video.probe import probe

ALL = 10_000  # more frames than any video here has: each is taken once

QUIET_X265 = {"x265-params": "log-level=none"}
REALTIME = {"deadline": "realtime", "cpu-used": "8"}

FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    "h264 mp4": ("a.mp4", {}),
    "h264 mp4 with sound": ("a.mp4", {"sound": True}),
    "h264 fragmented mp4": ("a.mp4", {"container_options": {"movflags": "frag_keyframe+empty_moov"}, "options": {"g": "10"}}),
    "h264 interlaced mp4": ("a.mp4", {"options": {"x264-params": "interlaced=1:tff=1"}, "size": (96, 96)}),
    "h264 mkv": ("a.mkv", {}),
    "h264 mov": ("a.mov", {}),
    "h264 flv": ("a.flv", {}),
    "h264 avi, which has no presentation times": ("a.avi", {}),
    "h264 4:4:4": ("a.mp4", {"pix_fmt": "yuv444p"}),
    "hevc mp4": ("a.mp4", {"codec": "libx265", "options": QUIET_X265}),
    "vp9 webm": ("a.webm", {"codec": "libvpx-vp9", "options": REALTIME}),
    "vp8 webm": ("a.webm", {"codec": "libvpx", "options": {**REALTIME, "b": "500k"}}),
    "mpeg-4 mp4": ("a.mp4", {"codec": "mpeg4", "options": {"bf": "2", "q:v": "3"}}),
    "mpeg-4 avi": ("a.avi", {"codec": "mpeg4", "options": {"bf": "2"}}),
    "10 bit h264": ("a.mp4", {"pix_fmt": "yuv420p10le"}),
    "10 bit hevc": ("a.mp4", {"codec": "libx265", "pix_fmt": "yuv420p10le", "options": QUIET_X265}),
    "odd size": ("a.mp4", {"size": (97, 65), "pix_fmt": "yuv444p"}),
    "odd size vp9": ("a.webm", {"size": (97, 65), "codec": "libvpx-vp9", "options": REALTIME}),
    "av1 mp4": ("a.mp4", {"codec": "libsvtav1", "options": {"preset": "6", "crf": "10"}}),
    "gif": ("a.gif", {"codec": "gif", "pix_fmt": "rgb8"}),
    "small mpeg-ts": ("a.ts", {}),
    "mpeg-2 program stream": ("a.mpg", {"codec": "mpeg2video", "options": {"bf": "2"}}),
    "asf": ("a.asf", {"codec": "msmpeg4"}),
    "webm without a duration": ("a.webm", {"codec": "libvpx-vp9", "options": REALTIME, "container_options": {"live": "1"}}),
    "one frame mp4": ("a.mp4", {"count": 1}),
    "one frame webm": ("a.webm", {"count": 1, "codec": "libvpx-vp9", "options": REALTIME}),
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_frame_is_right_and_has_its_time(name: str, tmp_path: Path) -> None:
    """row: H.264, HEVC, VP9, MPEG-4, 10-bit, odd sizes, AV1, GIF, small MPEG-TS; and more containers."""
    file, given = FORMATS[name]
    given = {"count": 30, **given}
    path = write_video(tmp_path / file, **given)
    decoded = decode_frames(path, ALL)
    count = given["count"]
    assert numbers_in(decoded.frames) == list(range(count))
    assert decoded.times_F == pytest.approx(np.arange(count) / 30, abs=0.006)  # GIF counts in hundredths of a second
    assert decoded.times_F.dtype == np.float64
    assert decoded.times_F[0] == 0.0
    assert decoded.damaged == 0
    width, height = given.get("size", (96, 64))
    assert {f.shape for f in decoded.frames} == {(height, width, 3)}
    assert {f.dtype for f in decoded.frames} == {np.dtype(np.uint8)}
    assert (decoded.info.width, decoded.info.height, decoded.info.frame_count) == (width, height, count)
    assert decoded.info.duration == pytest.approx(count / 30, abs=0.04)


@pytest.mark.parametrize("name", FORMATS)
def test_a_probe_tells_the_times_that_decoding_gives(name: str, tmp_path: Path) -> None:
    file, given = FORMATS[name]
    path = write_video(tmp_path / file, **{"count": 30, **given})
    info = probe(path)
    assert info.frame_times_F is not None
    assert info.frame_times_F == pytest.approx(decode_frames(path, ALL).times_F)


@pytest.mark.parametrize("name", FORMATS)
def test_twelve_frames_are_the_centres_of_twelve_bins(name: str, tmp_path: Path) -> None:
    file, given = FORMATS[name]
    given = {**given, "count": 54}
    decoded = decode_frames(write_video(tmp_path / file, **given), 12)
    assert numbers_in(decoded.frames) == [(2 * i + 1) * 54 // 24 for i in range(12)]


@pytest.mark.parametrize(
    ("codec", "file", "pix_fmt"), [("png", "a.mov", "rgb24"), ("libvpx-vp9", "a.webm", "yuv420p"), ("gif", "a.gif", "rgb8")]
)
def test_a_picture_of_one_pixel_is_a_picture(codec: str, file: str, pix_fmt: str, tmp_path: Path) -> None:
    decoded = decode_frames(write_video(tmp_path / file, 3, codec=codec, size=(1, 1), pix_fmt=pix_fmt), 12)
    assert [f.shape for f in decoded.frames] == [(1, 1, 3)] * 3


def test_ntsc_times_do_not_drift(tmp_path: Path) -> None:
    """row: NTSC 29.97."""
    decoded = decode_frames(write_video(tmp_path / "a.mp4", 300, rate=Fraction(30000, 1001), options={"preset": "ultrafast"}), ALL)
    assert decoded.times_F == pytest.approx(np.arange(300) * 1001 / 30000, abs=1e-9)
    assert numbers_in(decoded.frames) == list(range(300))


def test_variable_frame_rate_keeps_each_frames_own_time(tmp_path: Path) -> None:
    """row: VFR."""
    shown_at = [0, 1, 2, 10, 11, 12, 40, 80, 81, 82, 200]
    for file in ("a.mp4", "a.mkv"):
        decoded = decode_frames(write_video(tmp_path / file, len(shown_at), pts=shown_at), ALL)
        assert numbers_in(decoded.frames) == list(range(len(shown_at)))
        assert decoded.times_F == pytest.approx(np.array(shown_at) / 30, abs=0.001)


def test_a_start_time_of_five_seconds_is_taken_off(tmp_path: Path) -> None:
    """row: start time 5 s (mkv)."""
    path = write_video(tmp_path / "a.mkv", 30, pts=[150 + i for i in range(30)])
    decoded = decode_frames(path, ALL)
    assert numbers_in(decoded.frames) == list(range(30))
    assert decoded.times_F == pytest.approx(np.arange(30) / 30, abs=0.001)
    assert numbers_in(decode_frames(path, ALL, start=0.5).frames) == list(range(15, 30))


def test_a_packet_whose_picture_is_not_shown_is_no_frame(tmp_path: Path) -> None:
    """VP8 stores reference pictures that are never shown as packets with times of their own."""
    shown = write_video(tmp_path / "shown.webm", 30, codec="libvpx", options={**REALTIME, "b": "500k"})
    hidden = {7, 8, 20}
    path = tmp_path / "hidden.webm"
    with av.open(str(shown)) as given, av.open(str(path), "w") as made:
        stream = given.streams.video[0]
        copy = made.add_stream_from_template(stream)
        for number, packet in enumerate(p for p in given.demux(stream) if p.size):
            data = bytearray(bytes(packet))
            data[0] &= 0xEF if number in hidden else 0xFF  # the bit "show this frame"
            changed = av.Packet(bytes(data))
            changed.pts, changed.dts, changed.time_base, changed.stream = packet.pts, packet.dts, packet.time_base, copy
            changed.is_keyframe = packet.is_keyframe
            made.mux(changed)
    info = probe(path)
    assert info.frame_count == 27
    decoded = decode_frames(path, ALL)
    assert numbers_in(decoded.frames) == [i for i in range(30) if i not in hidden]
    assert info.frame_times_F == pytest.approx(decoded.times_F)


@pytest.mark.parametrize("clockwise", [90, 180, 270])
def test_rotation_metadata_is_applied(clockwise: int, tmp_path: Path) -> None:
    """row: rotation metadata."""
    decoded = decode_frames(write_video(tmp_path / "a.mp4", 10, clockwise=clockwise), ALL)
    assert numbers_in(decoded.frames) == list(range(10))
    assert decoded.frames[0].shape == (64, 96, 3)
    assert decoded.frames[0].flags.c_contiguous
    assert (decoded.info.width, decoded.info.height, decoded.info.rotation) == (96, 64, clockwise)


def test_colours_survive_in_their_order(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mov", 1, codec="png", pix_fmt="rgb24")
    assert np.array_equal(decode_frames(path, 1).frames[0], picture(0))


def test_the_strip_tells_every_number_from_every_other() -> None:
    """The oracle itself: what is drawn can be read back, at other sizes and through noise."""
    noise = np.random.default_rng(0).integers(-60, 60, (64, 96, 3))
    for number in [0, 1, 2, 3, 1365, 2730, 2**BITS - 1]:
        assert number_in(picture(number)) == number
        assert number_in(picture(number, (97, 65))) == number
        assert number_in(np.clip(picture(number) + noise, 0, 255).astype(np.uint8)) == number
