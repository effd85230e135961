"""The interval of a clip that answers a query."""

from __future__ import annotations

import numpy as np

from vctool.runtime.moments import Moment, best_moment, together

TIMES = np.array([1.0, 3.0, 5.0, 7.0, 9.0])


def moment(*relevance: float, start: float = 0.0, end: float | None = 10.0) -> Moment | None:
    return best_moment(TIMES[: len(relevance)], np.array(relevance), start, end)


def test_a_peak_reaches_halfway_to_its_neighbours() -> None:
    assert moment(0.1, 0.1, 0.9, 0.1, 0.1) == Moment(4.0, 6.0)


def test_frames_above_half_the_height_belong_to_it() -> None:
    assert moment(0.1, 0.6, 0.9, 0.1, 0.1) == Moment(2.0, 6.0)
    assert moment(0.1, 0.4, 0.9, 0.1, 0.1) == Moment(4.0, 6.0)


def test_a_second_peak_elsewhere_does_not() -> None:
    assert moment(0.8, 0.1, 0.1, 0.9, 0.1) == Moment(6.0, 8.0)


def test_at_an_end_it_reaches_the_end_of_the_clip() -> None:
    assert moment(0.1, 0.1, 0.1, 0.1, 0.9) == Moment(8.0, 10.0)
    assert moment(0.9, 0.1, 0.1, 0.1, 0.1) == Moment(0.0, 2.0)


def test_a_clip_whose_frames_are_alike_is_one_moment() -> None:
    assert moment(0.5, 0.5, 0.5, 0.5, 0.5) == Moment(0.0, 10.0)
    assert moment(0.5) == Moment(0.0, 10.0)


def test_without_frames_or_a_known_end() -> None:
    assert best_moment(np.zeros(0), np.zeros(0), 0.0, 1.0) is None
    assert moment(0.1, 0.1, 0.9, end=None) == Moment(4.0, 5.0)


def test_moments_that_share_time_are_one() -> None:
    assert together(Moment(4.0, 6.0), Moment(5.5, 9.0)) == Moment(4.0, 9.0)
    assert together(Moment(4.0, 6.0), Moment(6.0, 9.0)) is None
