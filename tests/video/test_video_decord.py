"""decord behind the same interface: where it is right, and where it is not (so that the warning in the docs is proved)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from makevideo import cut_copy, number_in, numbers_in, write_sound, write_video

from vctool.errors import VideoError
from vctool.video.clip import VideoInput
from vctool.video.decode import decode_frames
from vctool.video.probe import probe
from vctool.video.workers import DecodePool

pytest.importorskip("decord", reason='decord is not installed: pip install "vctool[decord]"')

ALL = 10_000
QUIET_X265 = {"x265-params": "log-level=none"}
REALTIME = {"deadline": "realtime", "cpu-used": "8"}


def refusal(path: Path) -> str:
    with pytest.raises(VideoError) as caught:
        decode_frames(path, 12, decoder="decord")
    return caught.value.reason


@pytest.mark.parametrize(
    ("file", "given"),
    [
        ("a.mp4", {}),
        ("a.mkv", {}),
        ("a.mp4", {"codec": "libx265", "options": QUIET_X265}),
        ("a.webm", {"codec": "libvpx-vp9", "options": REALTIME}),
        ("a.mp4", {"codec": "mpeg4"}),
        ("a.mp4", {"pix_fmt": "yuv420p10le"}),
        ("a.mp4", {"size": (97, 65), "pix_fmt": "yuv444p"}),
    ],
    ids=["h264 mp4", "h264 mkv", "hevc", "vp9", "mpeg-4", "10 bit", "odd size"],
)
def test_right_on_common_files(file: str, given: dict[str, object], tmp_path: Path) -> None:
    path = write_video(tmp_path / file, 30, **given)  # type: ignore[arg-type]
    decoded = decode_frames(path, ALL, decoder="decord")
    assert numbers_in(decoded.frames) == list(range(30))
    assert decoded.times_F == pytest.approx(np.arange(30) / 30, abs=0.002)
    assert probe(path, "decord").frame_count == 30
    assert probe(path, "decord").duration == pytest.approx(1.0, abs=0.01)


def test_right_on_variable_frame_rate(tmp_path: Path) -> None:
    shown_at = [0, 1, 2, 10, 11, 12, 40, 80, 81, 82]
    decoded = decode_frames(write_video(tmp_path / "a.mp4", 10, pts=shown_at), ALL, decoder="decord")
    assert numbers_in(decoded.frames) == list(range(10))
    assert decoded.times_F == pytest.approx(np.array(shown_at) / 30, abs=1e-5)


def test_right_on_a_start_time_of_five_seconds(tmp_path: Path) -> None:
    decoded = decode_frames(write_video(tmp_path / "a.mkv", 30, pts=[150 + i for i in range(30)]), ALL, decoder="decord")
    assert numbers_in(decoded.frames) == list(range(30))
    assert decoded.times_F == pytest.approx(np.arange(30) / 30, abs=0.001)


@pytest.mark.parametrize("clockwise", [90, 180, 270])
def test_right_on_rotation(clockwise: int, tmp_path: Path) -> None:
    decoded = decode_frames(write_video(tmp_path / "a.mp4", 10, clockwise=clockwise), ALL, decoder="decord")
    assert numbers_in(decoded.frames) == list(range(10))


def test_wrong_on_a_stream_copied_cut_without_an_error(one_group: Path, tmp_path: Path) -> None:
    """It counts the packets before the cut as frames: 90 instead of 53, with pictures from other times."""
    cut = cut_copy(one_group, tmp_path / "cut.mp4", 37)
    wrong = decode_frames(cut, 12, decoder="decord")
    right = decode_frames(cut, 12)
    assert wrong.info.frame_count == 90
    assert right.info.frame_count == 53
    assert numbers_in(right.frames) == [37 + round(t * 30) for t in right.times_F]
    assert numbers_in(wrong.frames) != [37 + round(t * 30) for t in wrong.times_F]


def test_cannot_open_av1(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", 10, codec="libsvtav1", options={"preset": "8", "crf": "10"})
    assert refusal(path) == "codec av1 is not supported by this decoder; try --decoder pyav"


def test_cannot_read_a_gif(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.gif", 10, codec="gif", pix_fmt="rgb8")
    assert refusal(path) == "decord cannot read this file (gif); try --decoder pyav"


def test_cannot_read_a_small_transport_stream(tmp_path: Path) -> None:
    assert refusal(write_video(tmp_path / "a.ts", 60)) == "decord cannot read this file (h264); try --decoder pyav"


def test_cannot_read_a_file_without_a_duration(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.webm", 30, codec="libvpx-vp9", options=REALTIME, container_options={"live": "1"})
    assert refusal(path) == "decord cannot read this file (vp9); try --decoder pyav"


def test_cannot_read_an_mp4_that_is_cut_in_half(sixty: Path, tmp_path: Path) -> None:
    (tmp_path / "half.mp4").write_bytes(sixty.read_bytes()[: sixty.stat().st_size // 2])
    try:
        decoded = decode_frames(tmp_path / "half.mp4", 12, decoder="decord")
    except VideoError as problem:
        assert problem.reason == "decord cannot read this file (h264); try --decoder pyav"
    else:  # or it shows the last frame again in place of those that are lost
        assert len(set(numbers_in(decoded.frames))) < 12


def test_two_joined_transport_streams_are_not_read_right(tmp_path: Path) -> None:
    parts = [write_video(tmp_path / "1.ts", 60), write_video(tmp_path / "2.ts", 60, first=100, size=(144, 96))]
    joined = tmp_path / "joined.ts"
    joined.write_bytes(b"".join(p.read_bytes() for p in parts))
    try:
        decoded = decode_frames(joined, 12, decoder="decord")
    except VideoError as problem:
        assert "try --decoder pyav" in problem.reason
    else:
        assert numbers_in(decoded.frames) != [5, 15, 25, 35, 45, 55, 105, 115, 125, 135, 145, 155]


def test_files_that_are_no_videos_have_the_same_reasons_as_with_pyav(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("hello")
    assert refusal(tmp_path / "none.mp4") == "no such file"
    assert refusal(tmp_path) == "is a folder"
    assert refusal(tmp_path / "empty.mp4") == "file is empty (0 bytes)"
    assert refusal(tmp_path / "text.mp4") == "not a video (no decodable stream)"
    assert refusal(write_sound(tmp_path / "a.m4a")) == "has sound but no picture"
    assert refusal(write_sound(tmp_path / "b.m4a", cover=True)) == "has sound but no picture"
    data = write_video(tmp_path / "c.mp4", 10).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[: data.rfind(b"moov") - 4])
    assert refusal(tmp_path / "cut.mp4") == "cut short: the index (moov) that belongs at its end is missing"


def test_works_in_the_pool_and_with_a_transform(sixty: Path) -> None:
    with DecodePool(1, count=12, decoder="decord") as pool:
        (result,) = pool.run([VideoInput("a", sixty)])
    assert result.frames_FHWC is not None
    assert [number_in(f) for f in result.frames_FHWC] == [2, 7, 12, 17, 22, 27, 32, 37, 42, 47, 52, 57]
    small = decode_frames(sixty, 3, decoder="decord", transform=lambda frame: frame[:8, :8], start=0.5, end=1.0)
    assert {f.shape for f in small.frames} == {(8, 8, 3)}
    assert small.times_F == pytest.approx(np.array([17, 22, 27]) / 30, abs=1e-5)
