"""The choice of frames: midpoints of equal bins over what is shown."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vctool.errors import VideoError
from vctool.video.sample import uniform_times


def test_each_bin_gives_the_frame_at_its_centre() -> None:
    assert uniform_times(np.arange(120) / 30.0, 12).tolist() == [5, 15, 25, 35, 45, 55, 65, 75, 85, 95, 105, 115]


def test_one_frame_is_the_middle_one() -> None:
    assert uniform_times(np.arange(9) / 30.0, 1).tolist() == [4]


def test_fewer_frames_than_asked_are_taken_once_each() -> None:
    assert uniform_times(np.arange(5) / 30.0, 12).tolist() == [0, 1, 2, 3, 4]


def test_a_piece_is_closed_at_its_start_and_open_at_its_end() -> None:
    assert uniform_times(np.arange(100) / 10.0, 50, start=2.0, end=3.0).tolist() == list(range(20, 30))


def test_a_piece_that_starts_on_a_frame_does_not_lose_it_to_rounding() -> None:
    times_F = np.arange(300) * 1001 / 30000
    for i in range(300):
        assert uniform_times(times_F, 1000, start=i * (1001 / 30000))[0] == i


def test_a_piece_in_which_no_frame_begins_shows_the_frame_that_is_on_the_screen() -> None:
    assert uniform_times(np.array([0.0, 60.0, 61.0]), 12, start=20.0, end=30.0).tolist() == [0]


def test_a_piece_before_the_first_frame_is_empty() -> None:
    assert uniform_times(np.array([1.0, 2.0]), 12, end=0.5).tolist() == []
    assert uniform_times(np.zeros(0), 12).tolist() == []


def test_a_count_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        uniform_times(np.arange(5.0), 0)


@given(shown=st.integers(1, 2000), count=st.integers(1, 200))
def test_the_choice_never_repeats_and_stays_within_half_a_bin_of_even(shown: int, count: int) -> None:
    chosen = uniform_times(np.arange(shown, dtype=np.float64), count)
    assert len(chosen) == min(shown, count)
    assert np.all(np.diff(chosen) > 0)
    if shown > count:
        exact = (np.arange(count) + 0.5) * shown / count
        assert np.all((chosen <= exact) & (exact - chosen < 1))


def test_a_piece_behind_the_end_is_an_error_that_says_how_long_the_video_is(sixty: object) -> None:
    from vctool.video.decode import decode_frames

    with pytest.raises(VideoError) as caught:
        decode_frames(str(sixty), 12, start=90, end=100)
    assert caught.value.reason == "the piece 90-100 s is outside the video (2 s long)"
