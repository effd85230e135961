"""Files that are not what they should be: a short reason for each, and whatever can still be seen."""

from __future__ import annotations

import os
import random
import socket
import threading
from pathlib import Path

import av
import numpy as np
import pytest
from makevideo import numbers_in, picture, with_cover, write_sound, write_video

from vctool.errors import MissingExtraError, UsageProblem, VctoolError, VideoError
from vctool.video.decode import decode_frames
from vctool.video.probe import probe
from vctool.video.reader import open_reader

ALL = 10_000


def reason(path: Path, **given: object) -> str:
    """The reason for which a file is refused, the same for probing and decoding."""
    with pytest.raises(VideoError) as decoding:
        decode_frames(path, 12, **given)  # type: ignore[arg-type]
    with pytest.raises(VideoError) as probing:
        probe(path)
    assert decoding.value.reason == probing.value.reason
    assert decoding.value.path == path
    assert "\n" not in str(decoding.value)
    return decoding.value.reason


def test_a_missing_file(tmp_path: Path) -> None:
    """row: zero-byte / random / text / missing file."""
    assert reason(tmp_path / "none.mp4") == "no such file"
    (tmp_path / "file").write_bytes(b"x")
    assert reason(tmp_path / "file" / "below.mp4") == "no such file"


def test_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").touch()
    assert reason(tmp_path / "a.mp4") == "file is empty (0 bytes)"


@pytest.mark.parametrize(
    "content",
    [
        np.random.default_rng(1).bytes(20_000),
        b"A text is not a video.\n" * 50,
        b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nother.ts\n#EXT-X-ENDLIST\n",
        b"\x7fELF" + bytes(5000),
        b"x",
        bytes(100_000),
        b'{"path": "a.mp4"}\n',
    ],
    ids=["random", "text", "playlist", "program", "one byte", "zeros", "json"],
)
def test_a_file_that_is_no_video(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(content)
    assert reason(tmp_path / "a.mp4") == "not a video (no decodable stream)"


def test_a_playlist_fetches_nothing(tmp_path: Path) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        server.settimeout(0.3)
        address = f"http://127.0.0.1:{server.getsockname()[1]}/a.ts"
        for name in ("a.m3u8", "a.mp4"):
            (tmp_path / name).write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{address}\n#EXT-X-ENDLIST\n")
            with pytest.raises(VideoError):
                decode_frames(tmp_path / name, 2)
        with pytest.raises(TimeoutError):
            server.accept()


def test_a_folder(tmp_path: Path) -> None:
    assert reason(tmp_path) == "is a folder"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(sixty: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(sixty.read_bytes())
    path.chmod(0)
    assert reason(path) == "permission denied"


def test_permission_is_told_from_the_system_s_error(sixty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same for root, for whom no file is forbidden."""

    def forbidden(*given: object, **more: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", forbidden)
    assert reason(sixty) == "permission denied"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
def test_a_pipe_is_refused_instead_of_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.mp4")
    assert reason(tmp_path / "a.mp4") == "is not a regular file"


def test_an_impossible_name() -> None:
    assert reason(Path("a\0b.mp4")).startswith("cannot be opened")
    assert reason(Path("x" * 5000 + ".mp4")) == "the file name is too long"


def test_sound_without_picture(tmp_path: Path) -> None:
    """row: audio only / audio + cover art."""
    assert reason(write_sound(tmp_path / "a.m4a")) == "has sound but no picture"
    assert reason(write_sound(tmp_path / "b.m4a", cover=True)) == "has sound but no picture"


def test_cover_art_is_not_the_video(sixty: Path, tmp_path: Path) -> None:
    path = with_cover(sixty, tmp_path / "a.mp4")
    with av.open(str(path)) as container:
        assert len(container.streams.video) == 2
    assert numbers_in(decode_frames(path, ALL).frames) == list(range(60))
    assert probe(path).frame_count == 60


def test_a_recording_cut_before_its_index(tmp_path: Path) -> None:
    """row: mp4 cut before moov."""
    path = tmp_path / "cut.mp4"
    data = write_video(tmp_path / "a.mp4", 60).read_bytes()
    index = data.rfind(b"moov") - 4
    for length in (index, index - 1000):
        path.write_bytes(data[:length])
        assert reason(path) == "cut short: the index (moov) that belongs at its end is missing"
    path.write_bytes(data[:-200])
    assert reason(path) == "cut short: the file ends inside its index (moov)"
    path.write_bytes(data[:index] + bytes(len(data) - index))
    assert reason(path) == "damaged: its index cannot be read"


def test_a_header_without_pictures(sixty: Path, tmp_path: Path) -> None:
    data = sixty.read_bytes()
    (tmp_path / "a.mp4").write_bytes(data[: data.find(b"mdat") + 4])
    assert reason(tmp_path / "a.mp4") == "cut short: it has a header but no pictures"


def test_an_mp4_cut_in_half_gives_its_first_half(sixty: Path, tmp_path: Path) -> None:
    """row: mp4 cut in half (index first)."""
    data = sixty.read_bytes()
    half = tmp_path / "half.mp4"
    half.write_bytes(data[: len(data) // 2])
    decoded = decode_frames(half, 12)
    numbers = numbers_in(decoded.frames)
    assert len(numbers) == 12
    assert numbers == [round(t * 30) for t in decoded.times_F]
    assert sorted(set(numbers)) == numbers
    assert decoded.damaged >= 60 - len(decode_frames(half, ALL).frames) > 20


def test_a_webm_cut_in_half_gives_its_first_half(tmp_path: Path) -> None:
    """row: webm cut in half."""
    data = write_video(tmp_path / "a.webm", 60, codec="libvpx-vp9", options={"deadline": "realtime", "cpu-used": "8"}).read_bytes()
    half = tmp_path / "half.webm"
    half.write_bytes(data[: len(data) // 2])
    decoded = decode_frames(half, ALL)
    numbers = numbers_in(decoded.frames)
    assert len(numbers) > 15
    assert numbers == list(range(len(numbers)))


def test_a_hole_costs_the_frames_around_it(sixty: Path, tmp_path: Path) -> None:
    """row: bit flips / zeroed hole."""
    data = bytearray(sixty.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 600] = bytes(600)
    (tmp_path / "hole.mp4").write_bytes(data)
    decoded = decode_frames(tmp_path / "hole.mp4", ALL)
    assert decoded.damaged > 0
    assert 30 < len(decoded.frames) < 60
    # Of a picture in the hole, or one that refers to it, FFmpeg may make a copy of a neighbour; from the next keyframe on all is right.
    shown = [round(t * 30) for t in decoded.times_F]
    groups = {now // 12 for number, now in zip(numbers_in(decoded.frames), shown, strict=True) if number != now}
    lost = {now // 12 for now in range(60) if now not in shown}
    assert len(groups | lost) <= 2
    assert np.all(np.diff(decoded.times_F) > 0)
    assert len(decode_frames(tmp_path / "hole.mp4", 12).frames) == 12


def test_damage_at_the_head_does_not_move_the_times(sixty: Path, tmp_path: Path) -> None:
    with av.open(str(sixty)) as container:
        places = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    data = bytearray(sixty.read_bytes())
    for at, size in places[:5]:
        data[at + 4 : at + size] = bytes(size - 4)
    (tmp_path / "head.mp4").write_bytes(data)
    decoded = decode_frames(tmp_path / "head.mp4", ALL)
    assert decoded.damaged >= 12
    assert probe(tmp_path / "head.mp4").frame_count == 48
    late = [(n, t) for n, t in zip(numbers_in(decoded.frames), decoded.times_F, strict=True) if n >= 12]
    assert len(late) == 48
    assert all(t == pytest.approx(n / 30) for n, t in late)


def test_a_file_of_which_no_picture_can_be_decoded(sixty: Path, tmp_path: Path) -> None:
    with av.open(str(sixty)) as container:
        places = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    data = bytearray(sixty.read_bytes())
    for at, size in places:
        data[at : at + size] = b"\xff" * size
    (tmp_path / "a.mp4").write_bytes(data)
    assert reason(tmp_path / "a.mp4") == "damaged: none of its 60 pictures can be decoded (h264)"


def test_bit_flips_never_raise_anything_but_a_video_error(sixty: Path, tmp_path: Path) -> None:
    """row: bit flips. The fuzz test goes further."""
    chance = random.Random(3)
    for _ in range(10):
        data = bytearray(sixty.read_bytes())
        for _ in range(30):
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        (tmp_path / "a.mp4").write_bytes(data)
        try:
            decoded = decode_frames(tmp_path / "a.mp4", 12)
        except VideoError:
            continue
        assert 1 <= len(decoded.frames) <= 12
        assert np.all(np.diff(decoded.times_F) > 0)


def test_ffmpeg_does_not_talk(sixty: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data = bytearray(sixty.read_bytes())
    data[len(data) // 2 :: 7] = bytes(len(data[len(data) // 2 :: 7]))
    (tmp_path / "a.mp4").write_bytes(data)
    decode_frames(tmp_path / "a.mp4", ALL)
    with pytest.raises(VideoError):
        decode_frames(write_sound(tmp_path / "b.m4a"), 1)
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""


@pytest.mark.parametrize("name", ["http:a.mp4", "a:b.mp4", "with space and 'quotes'.mp4", "50%d.mp4", "ünïcödé 視頻.mp4", "-a.mp4"])
def test_a_file_of_any_name_is_read(name: str, sixty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / name).write_bytes(sixty.read_bytes())
    monkeypatch.chdir(tmp_path)
    assert len(decode_frames(name, 12).frames) == 12


def test_a_file_name_that_is_not_utf8_is_read(sixty: Path, tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9.mp4")
    try:
        path.write_bytes(sixty.read_bytes())
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    assert len(decode_frames(path, 12).frames) == 12


def test_a_transform_sees_upright_frames_and_its_result_is_kept(tmp_path: Path) -> None:
    seen: list[tuple[int, ...]] = []

    def small(frame: np.ndarray) -> np.ndarray:
        seen.append(frame.shape)
        return frame[::2, ::2]

    decoded = decode_frames(write_video(tmp_path / "a.mp4", 30, clockwise=90), 5, transform=small)
    assert seen == [(64, 96, 3)] * 5
    assert {f.shape for f in decoded.frames} == {(32, 48, 3)}


def test_a_failing_transform_is_not_taken_for_a_damaged_video(sixty: Path) -> None:
    def broken(frame: np.ndarray) -> np.ndarray:
        raise ZeroDivisionError("the transform's own")

    with pytest.raises(ZeroDivisionError, match="the transform's own"):
        decode_frames(sixty, 3, transform=broken)


@pytest.mark.parametrize(
    "given",
    [
        {"count": 0},
        {"count": 3, "start": -1.0},
        {"count": 3, "start": float("nan")},
        {"count": 3, "start": 2.0, "end": 1.0},
        {"count": 3, "end": float("inf")},
    ],
)
def test_an_impossible_request_is_a_usage_problem(given: dict[str, float], sixty: Path) -> None:
    with pytest.raises(UsageProblem):
        decode_frames(sixty, **given)  # type: ignore[arg-type]


def test_an_unknown_decoder_is_a_usage_problem(sixty: Path) -> None:
    with pytest.raises(UsageProblem, match="unknown decoder 'opencv'") as caught:
        decode_frames(sixty, 1, decoder="opencv")
    assert caught.value.hint == "choose one of: pyav, decord"


def test_decord_that_is_not_installed_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch, sixty: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: None)
    with pytest.raises(MissingExtraError, match='pip install "decord'):
        decode_frames(sixty, 1, decoder="decord")


class Exploding:
    """A decoder that raises what fuzzed files make libraries raise."""

    problem: Exception = RuntimeError("x")

    def probe(self, path: Path) -> None:
        raise self.problem

    def decode(self, *given: object) -> None:
        raise self.problem


@pytest.mark.parametrize(
    ("problem", "expected"),
    [
        (
            UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
            "cannot be decoded (UnicodeDecodeError: 'utf-8' codec can't decode byte 0xff in position 0: bad)",
        ),
        (AttributeError("no\nline"), "cannot be decoded (AttributeError: no)"),
        (MemoryError(), "not enough memory to decode it"),
        (ValueError(), "cannot be decoded (ValueError)"),
    ],
)
def test_whatever_a_decoder_raises_becomes_a_video_error(
    problem: Exception, expected: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(Exploding, "problem", problem)
    assert isinstance(open_reader(f"{__name__}:Exploding"), Exploding)
    for call in (
        lambda: decode_frames(tmp_path / "a", 1, decoder=f"{__name__}:Exploding"),
        lambda: probe(tmp_path / "a", f"{__name__}:Exploding"),
    ):
        with pytest.raises(VideoError) as caught:
            call()
        assert caught.value.reason == expected


def test_four_threads_decode_side_by_side(sixty: Path) -> None:
    """row: own reader per thread. (One reader shared by threads crashes FFmpeg; `decode_frames` makes its own.)"""
    found: list[list[int]] = []
    threads = [threading.Thread(target=lambda: found.append(numbers_in(decode_frames(sixty, 12).frames))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [[2, 7, 12, 17, 22, 27, 32, 37, 42, 47, 52, 57]] * 4


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts open files in /proc")
def test_files_are_closed_also_after_errors(sixty: Path, tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(sixty.read_bytes()[:1500])
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(20):
        decode_frames(sixty, 2)
        with pytest.raises(VctoolError):
            decode_frames(tmp_path / "a.mp4", 2)
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 1


def test_a_still_picture_counts_as_one_frame(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.png"), "w", format="image2") as container:
        stream = container.add_stream("png", rate=1)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "rgb24"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(9), format="rgb24")))
        container.mux(stream.encode())
    assert numbers_in(decode_frames(tmp_path / "a.png", 12).frames) == [9]
