"""Frames by rate and by scenes, shots, and the segments of long videos."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from makevideo import numbers_in, write_video

from vctool.errors import UsageProblem
from vctool.video.clip import VideoInput
from vctool.video.decode import decode_frames
from vctool.video.sample import Sampling, keyframe_times, scene_times, uniform_times
from vctool.video.segments import Segmenting, scene_spans, segment_spans, segmented
from vctool.video.shots import cut_places, find_shots
from vctool.video.workers import DecodePool

RATE = 25


@pytest.fixture(scope="module")
def three_shots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shots of 2, 3 and 5 seconds: noise that drifts over three backgrounds."""
    path = tmp_path_factory.mktemp("shots") / "film.mp4"
    random = np.random.default_rng(1)
    scenes = [random.integers(0, 255, (8, 12, 3)) for _ in range(3)]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"sc_threshold": "0", "g": "250"})
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for second, scene in ((2, scenes[0]), (3, scenes[1]), (5, scenes[2])):
            for number in range(second * RATE):
                big = np.kron(scene, np.ones((8, 8, 1))).astype(np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(np.roll(big, number // 4, axis=1), format="rgb24")))
        container.mux(stream.encode())
    return path


def test_a_rate_takes_one_frame_a_second_from_the_middle_of_each(sixty: Path) -> None:
    decoded = decode_frames(sixty, Sampling(12, "fps", 1.0))  # 60 frames at 30/s: 2 s
    assert numbers_in(decoded.frames) == [15, 45]


def test_a_rate_never_takes_more_than_the_count(sixty: Path) -> None:
    assert numbers_in(decode_frames(sixty, Sampling(3, "fps", 10.0)).frames) == numbers_in(decode_frames(sixty, 3).frames)


def test_a_rate_below_one_frame_for_the_clip_still_takes_one(sixty: Path) -> None:
    assert len(decode_frames(sixty, Sampling(12, "fps", 0.1)).frames) == 1


def test_a_rate_counts_the_seconds_of_the_piece(sixty: Path) -> None:
    assert len(decode_frames(sixty, Sampling(12, "fps", 4.0), start=0.5, end=1.0).frames) == 2


@pytest.mark.parametrize("given", [(0, "uniform", 1.0), (3, "random", 1.0), (3, "fps", 0.0), (3, "fps", float("nan"))])
def test_impossible_sampling_is_refused(given: tuple[int, str, float]) -> None:
    with pytest.raises(UsageProblem):
        Sampling(*given)  # type: ignore[arg-type]


def test_cuts_are_found_and_nothing_else(three_shots: Path) -> None:
    found = find_shots(three_shots)
    assert found == pytest.approx([0.0, 2.0, 5.0], abs=3 / RATE)


def test_a_video_without_cuts_is_one_shot(sixty: Path) -> None:
    assert find_shots(sixty).tolist() == [0.0]


def test_a_flash_and_a_pan_are_no_cuts() -> None:
    assert cut_places(np.array([0, 0.01, 0.01, 0.3, 0.01, 0.01])) == [3]
    assert cut_places(np.full(20, 0.15)) == []  # a fast pan: every picture is far from the one before
    assert cut_places(np.array([0, 0.01, 0.01, 0.3, 0.3, 0.01, 0.01])) == [3]
    assert cut_places(np.array([0, 0.07, 0.0, 0.0])) == []


def test_scenes_share_the_frames(three_shots: Path) -> None:
    times = decode_frames(three_shots, Sampling(4, "scenes")).times_F
    assert [int(np.searchsorted([2.0, 5.0], t + 0.2, side="right")) for t in times] == [0, 1, 2, 2]
    assert decode_frames(three_shots, Sampling(1, "scenes")).times_F[0] == pytest.approx(7.5, abs=0.2)  # the longest


@given(st.integers(1, 60), st.lists(st.floats(0, 10), max_size=8), st.integers(1, 20))
def test_scene_frames_are_different_and_as_many_as_there_can_be(frames: int, cuts: list[float], count: int) -> None:
    chosen = scene_times(np.linspace(0, 10, frames), np.array([0.0, *sorted(cuts)]), count)
    assert len(chosen) == min(frames, count)
    assert (np.diff(chosen) > 0).all()


@given(st.floats(0, 100), st.floats(0.1, 500), st.floats(2, 60), st.floats(0, 0.5))
def test_segments_cover_the_video_and_none_is_much_longer_than_asked(start: float, long: float, length: float, share: float) -> None:
    spans = segment_spans(start, start + long, length, length * share)
    assert spans[0][0] == start
    assert spans[-1][1] == start + long
    for (first, last), (following, _) in pairwise(spans):
        assert last - first == pytest.approx(length)
        assert following == pytest.approx(first + length - length * share)
    assert spans[-1][1] - spans[-1][0] <= length * 1.5 + 1e-6


def test_scenes_are_cut_where_shots_begin_but_not_into_slivers() -> None:
    spans = scene_spans(0.0, 60.0, np.array([0.0, 5.0, 6.0, 20.0, 59.5]), 30.0, 0.0)
    assert spans == [(0.0, 5.0), (5.0, 20.0), (20.0, 60.0)]
    assert scene_spans(0.0, 60.0, np.array([0.0, 4.0]), 20.0, 0.0) == [(0.0, 4.0), (4.0, 24.0), (24.0, 44.0), (44.0, 60.0)]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_long_file_becomes_clips_named_by_their_seconds(three_shots: Path, tmp_path: Path, workers: int) -> None:
    short = write_video(tmp_path / "short.mp4", 10)
    clips = [VideoInput("film.mp4", three_shots), VideoInput("short.mp4", short), VideoInput("gone.mp4", tmp_path / "gone.mp4")]
    with DecodePool(workers, count=2) as pool:
        found = list(segmented(clips, Segmenting(4.0, 1.0), pool))
    assert [(c.id, c.start, c.end) for c in found] == [
        ("film.mp4#0-4", 0.0, 4.0),
        ("film.mp4#3-7", 3.0, 7.0),
        ("film.mp4#6-10", 6.0, 10.0),
        ("short.mp4", None, None),
        ("gone.mp4", None, None),
    ]


def test_a_piece_is_cut_inside_its_own_bounds(three_shots: Path) -> None:
    with DecodePool(0, count=2) as pool:
        found = list(segmented([VideoInput("film#2-10", three_shots, 2.0, 10.0)], Segmenting(4.0), pool))
    assert [c.id for c in found] == ["film#2-6", "film#6-10"]


def test_segments_by_scenes(three_shots: Path) -> None:
    with DecodePool(0, count=2) as pool:
        found = list(segmented([VideoInput("film", three_shots)], Segmenting(60.0, scenes=True), pool))
    assert [(c.start, c.end) for c in found] == [pytest.approx(span, abs=0.13) for span in [(0, 2), (2, 5), (5, 10)]]


@pytest.mark.parametrize("given", [(1.0, 0.0), (10.0, 6.0), (10.0, -1.0), (float("nan"), 0.0)])
def test_impossible_segments_are_refused(given: tuple[float, float]) -> None:
    with pytest.raises(UsageProblem):
        Segmenting(*given)


@given(st.integers(1, 200), st.integers(1, 20), st.lists(st.integers(0, 199)), st.floats(0, 4), st.floats(0.1, 8))
def test_keyframes_stay_in_their_bins_and_are_taken_where_there_are_any(
    frames: int, count: int, keys: list[int], start: float, length: float
) -> None:
    times_F = np.arange(frames) / 25
    key_F = np.isin(np.arange(frames), keys)
    even = uniform_times(times_F, count, start, start + length)
    chosen = keyframe_times(times_F, key_F, count, start, start + length)
    assert len(chosen) == len(even) and (np.diff(chosen) > 0).all()
    shown = uniform_times(times_F, frames, start, start + length)
    for i, (have, centre) in enumerate(zip(chosen.tolist(), even.tolist(), strict=True)):
        if len(shown) <= count:
            assert have == centre
            continue
        inside = [f for k, f in enumerate(shown.tolist()) if i * len(shown) <= (k + 0.5) * count < (i + 1) * len(shown)]
        own = np.array([f for f in inside if key_F[f]])
        assert have in inside and (have == centre if not len(own) else abs(have - centre) == np.abs(own - centre).min() and key_F[have])


def test_sampling_keyframes_gives_keyframes_with_their_own_times(tmp_path: Path) -> None:
    path = write_video(tmp_path / "keys.mp4", 200, rate=RATE, options={"g": "20", "keyint_min": "20", "sc_threshold": "0", "bf": "2"})
    found = decode_frames(path, Sampling(5, "keyframes"))
    assert numbers_in(found.frames) == [20, 60, 100, 140, 180]
    np.testing.assert_allclose(found.times_F, [0.8, 2.4, 4.0, 5.6, 7.2])
    piece = decode_frames(path, Sampling(4, "keyframes"), start=4.0, end=4.6)  # one keyframe in fifteen frames
    assert numbers_in(piece.frames)[0] == 100 and len(piece.frames) == 4


def test_sampling_keyframes_where_every_picture_needs_those_before_is_even(tmp_path: Path) -> None:
    path = tmp_path / "moving.gif"
    write_video(path, 30, codec="gif", rate=10, pix_fmt="rgb8")
    assert decode_frames(path, Sampling(3, "keyframes")).times_F.tolist() == decode_frames(path, 3).times_F.tolist()
