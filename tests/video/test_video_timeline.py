"""Edit lists, joined recordings, pieces of long files: the times are those a player would show."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from makevideo import cut_copy, numbers_in, write_video

from vctool.video import pyav_reader
from vctool.video.container import PacketSource
from vctool.video.decode import decode_frames, read_frames
from vctool.video.probe import probe
from vctool.video.pyav_reader import PyavReader

ALL = 10_000


@pytest.mark.parametrize("start", [1, 37, 88])
def test_a_stream_copied_cut_begins_at_the_cut(start: int, one_group: Path, tmp_path: Path) -> None:
    """row: stream-copied cut (edit list). The packets before the cut are needed for decoding and are not shown."""
    cut = cut_copy(one_group, tmp_path / "cut.mp4", start)
    decoded = decode_frames(cut, ALL)
    assert numbers_in(decoded.frames) == list(range(start, 90))
    assert decoded.times_F == pytest.approx(np.arange(90 - start) / 30, abs=1e-6)
    assert numbers_in(decode_frames(cut, 1, start=0, end=0.01).frames) == [start]


def test_a_cut_without_care_would_repeat_frames(one_group: Path, tmp_path: Path) -> None:
    """The trap itself: as many packets as before the cut, of which only `is_discard` says that they are not shown."""
    cut = cut_copy(one_group, tmp_path / "cut.mp4", 37)
    with av.open(str(cut)) as container:
        packets = [p for p in container.demux(video=0) if p.size]
    assert len(packets) == 90
    assert sum(not p.is_discard for p in packets) == 53
    assert probe(cut).frame_count == 53


@pytest.mark.parametrize("first_clock", [0, 300])
@pytest.mark.parametrize("second_size", [(96, 64), (144, 96)])
def test_two_joined_transport_streams_go_on_where_the_first_ends(second_size: tuple[int, int], first_clock: int, tmp_path: Path) -> None:
    """row: two .ts files concatenated (size changes, clock restarts: at the same times again, or 10 s before)."""
    first = write_video(tmp_path / "1.ts", 60, pts=[first_clock + i for i in range(60)])
    second = write_video(tmp_path / "2.ts", 60, first=100, size=second_size)
    joined = tmp_path / "joined.ts"
    joined.write_bytes(first.read_bytes() + second.read_bytes())
    decoded = decode_frames(joined, ALL)
    assert numbers_in(decoded.frames) == [*range(60), *range(100, 160)]
    assert decoded.times_F == pytest.approx(np.arange(120) / 30, abs=1e-6)
    assert [f.shape[1::-1] for f in decoded.frames] == [(96, 64)] * 60 + [second_size] * 60
    assert decoded.info.duration == pytest.approx(4.0)
    assert numbers_in(decode_frames(joined, 12).frames) == [5, 15, 25, 35, 45, 55, 105, 115, 125, 135, 145, 155]
    assert numbers_in(decode_frames(joined, 2, start=2.0, end=3.0).frames) == [107, 122]
    assert probe(joined).frame_times_F == pytest.approx(decoded.times_F)


def test_a_transport_stream_that_starts_inside_a_group_of_pictures_starts_at_its_first_keyframe(tmp_path: Path) -> None:
    whole = write_video(tmp_path / "whole.ts", 90, options={"g": "30", "sc_threshold": "0", "x264-params": "open-gop=0"}).read_bytes()
    with av.open(str(tmp_path / "whole.ts")) as container:
        keys = [p.pos for p in container.demux(video=0) if p.size and p.is_keyframe]
    inside = keys[0] + 188 * 30
    late = tmp_path / "late.ts"
    late.write_bytes(whole[: 188 * 3] + whole[inside - inside % 188 :])  # keeps the tables at the head
    decoded = decode_frames(late, ALL)
    assert numbers_in(decoded.frames) == list(range(30, 90))
    assert decoded.times_F == pytest.approx(np.arange(60) / 30, abs=1e-6)
    assert decoded.damaged == 0
    assert probe(late).frame_times_F == pytest.approx(decoded.times_F)


def test_a_raw_stream_without_any_timestamp_runs_at_its_rate(tmp_path: Path) -> None:
    decoded = decode_frames(write_video(tmp_path / "a.h264", 30, format="h264", rate=25), ALL)
    assert numbers_in(decoded.frames) == list(range(30))
    assert np.all(np.diff(decoded.times_F) == pytest.approx(decoded.times_F[1]))


def test_a_piece_holds_exactly_its_frames(sixty: Path) -> None:
    decoded = decode_frames(sixty, ALL, start=0.5, end=1.0)
    assert numbers_in(decoded.frames) == list(range(15, 30))
    assert decoded.times_F[0] == pytest.approx(0.5)  # of the whole video, not of the piece


@pytest.mark.parametrize(("start", "end"), [(None, None), (0.0, 1.0), (30.0, 31.0), (79.0, None), (11.0, 70.0)])
def test_a_long_video_gives_the_same_pictures_with_and_without_leaving_things_out(
    start: float | None, end: float | None, long_video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = decode_frames(long_video, 7, start=start, end=end)
    monkeypatch.setattr(pyav_reader, "CODECS_WITH_KEYFRAMES", frozenset())
    monkeypatch.setattr(pyav_reader, "SELECTIVE_CODECS", frozenset())
    plain = decode_frames(long_video, 7, start=start, end=end)
    assert all(np.array_equal(q, p) for q, p in zip(quick.frames, plain.frames, strict=True))
    assert numbers_in(quick.frames) == [round(t * 30) for t in quick.times_F]
    assert np.array_equal(quick.times_F, plain.times_F)


def _watch(monkeypatch: pytest.MonkeyPatch) -> tuple[list[Any], list[Any]]:
    """Packets that passed and packets that were decoded, from now on."""
    passed: list[Any] = []
    decoded: list[Any] = []
    road = pyav_reader._road

    def watched(*given: Any) -> Iterator[Any]:
        for packet in road(*given):
            decoded.append(packet)
            yield packet

    class Source(PacketSource):
        def __iter__(self) -> Iterator[Any]:
            for packet in super().__iter__():
                passed.append(packet)
                yield packet

    monkeypatch.setattr(pyav_reader, "_road", watched)
    monkeypatch.setattr(pyav_reader, "PacketSource", Source)
    return passed, decoded


@pytest.mark.parametrize("codec", ["libx264", "libx265"])
def test_a_picture_shown_before_a_keyframe_but_stored_after_it_is_decoded_from_the_one_before(
    codec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Open groups of pictures: what leads a keyframe leans on the group before."""
    options = {
        "libx264": {"x264-params": "open-gop=1:keyint=100:min-keyint=100:bframes=3:scenecut=0:b-adapt=0"},
        "libx265": {"x265-params": "open-gop=1:keyint=100:min-keyint=100:bframes=3:scenecut=0:b-adapt=0:log-level=none"},
    }[codec]
    path = write_video(tmp_path / "a.mp4", 320, codec=codec, options={"preset": "ultrafast", **options})
    timeline = pyav_reader.scan(path)
    keys = timeline.packet_pts_P[timeline.packet_key_P]
    leading = [p for i, p in enumerate(timeline.packet_pts_P) if np.any(timeline.packet_key_P[:i] & (timeline.packet_pts_P[:i] > p))]
    assert len(keys) > 2
    assert leading  # the encoder did as it was told
    monkeypatch.delattr(pyav_reader, "retimed")  # the first pass must find them
    for number in range(195, 206):
        assert numbers_in(decode_frames(path, 1, start=number / 30, end=(number + 1) / 30).frames) == [number]


def test_what_is_far_from_any_wanted_frame_is_not_decoded(long_video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    passed, decoded = _watch(monkeypatch)
    frames = decode_frames(long_video, 2).frames
    assert numbers_in(frames) == [600, 1800]
    assert len(passed) > 500
    assert len(decoded) < 200


def test_a_piece_deep_in_a_long_file_is_sought_not_read_through(long_video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    passed, _ = _watch(monkeypatch)
    assert numbers_in(decode_frames(long_video, 3, start=70.0, end=71.0).frames) == [2105, 2115, 2125]
    assert len(passed) < 200


@pytest.mark.parametrize("lands_at", [0, 10**9])
def test_a_seek_that_lands_in_the_wrong_place_is_noticed(lands_at: int, long_video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pyav_reader, "_seek", lambda container, stream, pts: container.seek(lands_at, stream=stream))
    assert numbers_in(decode_frames(long_video, 3, start=60.0, end=61.0).frames) == [1805, 1815, 1825]


def test_a_seek_that_fails_is_done_without(long_video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*given: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(pyav_reader, "_seek", broken)
    assert numbers_in(decode_frames(long_video, 3, start=60.0, end=61.0).frames) == [1805, 1815, 1825]


def test_pieces_of_one_file_share_one_reading_of_its_timeline(long_video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scans: list[Path] = []
    scan = pyav_reader.scan
    monkeypatch.setattr(pyav_reader, "scan", lambda path: scans.append(path) or scan(path))
    reader = PyavReader()
    for second in range(0, 80, 20):
        read_frames(reader, long_video, 2, start=second, end=second + 1)
    assert scans == [long_video]


def test_a_file_that_was_replaced_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    reader = PyavReader()
    for count in (10, 20):
        write_video(path, count)
        assert len(read_frames(reader, path, ALL).frames) == count
