"""Intervals and paired tests: against binomial theory, exact enumeration and scipy-free closed forms."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from vctool.errors import InputError, UsageProblem
from vctool.metrics import QueryScores, bootstrap_intervals, compare_paired, evaluate_ranking
from vctool.metrics.intervals import INTERVAL_METRICS


def with_ranks(ranks: list[int] | np.ndarray, clips: int = 60) -> tuple[np.ndarray, np.ndarray]:
    return np.tile(-np.arange(clips, dtype=np.float32), (len(ranks), 1)), np.asarray(ranks) - 1


def scored(ranks: list[int] | np.ndarray) -> QueryScores:
    return evaluate_ranking(*with_ranks(ranks)).per_query


def test_a_thousand_queries_at_half_have_an_interval_of_three_points_each_way() -> None:
    metrics = evaluate_ranking(*with_ranks([1, 2] * 500))
    low, high = bootstrap_intervals(metrics, resamples=1500)["R@1"]
    assert 50 - low == pytest.approx(3.1, abs=0.35)
    assert high - 50 == pytest.approx(3.1, abs=0.35)


def test_every_metric_has_an_interval_around_its_value() -> None:
    metrics = evaluate_ranking(*with_ranks(np.random.default_rng(0).integers(1, 40, 200)))
    intervals = bootstrap_intervals(metrics, resamples=300)
    assert set(intervals) == set(INTERVAL_METRICS)
    for name, (low, high) in intervals.items():
        assert low <= metrics.values()[name] <= high


def test_intervals_repeat_for_a_seed_and_move_with_another() -> None:
    metrics = evaluate_ranking(*with_ranks([1, 2, 3, 9, 30] * 20))
    assert bootstrap_intervals(metrics, resamples=200, seed=1) == bootstrap_intervals(metrics, resamples=200, seed=1)
    assert bootstrap_intervals(metrics, resamples=200, seed=1) != bootstrap_intervals(metrics, resamples=200, seed=2)


def test_resampling_clips_widens_the_interval_when_captions_of_a_clip_agree() -> None:
    metrics = evaluate_ranking(*with_ranks(np.repeat([1, 2] * 20, 10)))
    narrow = bootstrap_intervals(metrics, resamples=500)["R@1"]
    wide = bootstrap_intervals(metrics, resamples=500, groups=np.repeat(np.arange(40), 10))["R@1"]
    assert wide[1] - wide[0] > 2 * (narrow[1] - narrow[0])


@pytest.mark.parametrize("bad", [{"resamples": 0}, {"level": 1.0}, {"level": 0.0}])
def test_impossible_bootstrap_settings_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(UsageProblem):
        bootstrap_intervals(evaluate_ranking(np.eye(3), np.arange(3)), **bad)  # type: ignore[arg-type]


def test_the_p_value_is_that_of_all_sign_flips() -> None:
    rank_a, rank_b = np.array([3, 1, 8, 4, 2, 7, 9, 5]), np.array([1, 2, 3, 1, 1, 6, 4, 5])
    difference = 1 / rank_b - 1 / rank_a
    flips = np.array([abs(np.dot(signs, difference)) for signs in itertools.product([1, -1], repeat=len(difference))])
    exact = np.mean(flips >= abs(difference.sum()) - 1e-12)
    result = compare_paired(scored(rank_a), scored(rank_b), permutations=20_000, resamples=50)
    mrr = next(d for d in result.differences if d.metric == "MRR")
    assert mrr.p_value == pytest.approx(exact, abs=0.012)


def test_equal_results_have_p_one_and_nothing_won_or_lost() -> None:
    same = scored([1, 5, 2, 30])
    result = compare_paired(same, same, permutations=200, resamples=50)
    assert all(d.difference == d.low == d.high == 0 for d in result.differences)
    assert all(d.p_value in (None, 1.0) for d in result.differences)
    assert len(result.won) == len(result.lost) == 0
    assert result.equal == 4


def test_a_clear_improvement_is_significant_with_an_interval_above_zero() -> None:
    result = compare_paired(scored([4] * 50 + [1] * 50), scored([1] * 30 + [4] * 20 + [1] * 50), permutations=2000, resamples=300)
    r1 = next(d for d in result.differences if d.metric == "R@1")
    assert r1.difference == pytest.approx(30.0)
    assert r1.low > 0
    assert r1.p_value is not None and r1.p_value < 0.01


def test_p_values_are_calibrated_when_nothing_differs() -> None:
    rng = np.random.default_rng(0)
    p = []
    for _ in range(200):
        pair = rng.integers(1, 30, (2, 40))
        result = compare_paired(scored(pair[0]), scored(pair[1]), permutations=200, resamples=2)
        p.append(next(d.p_value for d in result.differences if d.metric == "MRR"))
    assert 0.01 <= np.mean(np.array(p) <= 0.05) <= 0.1
    assert np.mean(p) == pytest.approx(0.5, abs=0.08)


def test_won_and_lost_queries_come_with_the_widest_change_first() -> None:
    result = compare_paired(scored([1, 5, 10, 2, 7]), scored([4, 1, 9, 2, 50]), permutations=50, resamples=10)
    assert result.won.tolist() == [1, 2]
    assert result.lost.tolist() == [0, 4]
    assert result.equal == 1


def test_grouped_queries_are_swapped_together() -> None:
    a, b = scored(np.repeat([3, 3, 3], 20)), scored(np.repeat([1, 1, 1], 20))
    groups = np.repeat(np.arange(3), 20)
    alone = next(d for d in compare_paired(a, b, permutations=4000, resamples=10).differences if d.metric == "MRR")
    together = compare_paired(a, b, permutations=4000, resamples=10, groups=groups)
    grouped = next(d for d in together.differences if d.metric == "MRR")
    assert alone.p_value is not None and alone.p_value < 0.001
    assert grouped.p_value == pytest.approx(2 / 2**3, abs=0.03)


def test_results_on_different_numbers_of_queries_cannot_be_compared() -> None:
    with pytest.raises(InputError, match="3 and 2 queries"):
        compare_paired(scored([1, 2, 3]), scored([1, 2]))
