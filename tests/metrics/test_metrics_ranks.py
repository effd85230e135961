"""Ranks and metrics: golden values, a brute-force oracle under ties, properties, and bad input."""

from __future__ import annotations

import itertools
import json
import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vctool.errors import InputError
from vctool.metrics import METRIC_NAMES, PerQuery, evaluate_ranking


def golden_matrix(ranks: list[int], clips: int = 12) -> tuple[np.ndarray, np.ndarray]:
    return np.tile(-np.arange(clips, dtype=np.float32), (len(ranks), 1)), np.asarray(ranks) - 1


def test_golden_ranks_1_2_11_4_give_the_published_metrics() -> None:
    metrics = evaluate_ranking(*golden_matrix([1, 2, 11, 4]))
    assert metrics.ranks.tolist() == [1, 2, 11, 4]
    assert metrics.recall == {1: 25.0, 5: 75.0, 10: 75.0, 50: 100.0}
    assert metrics.ndcg10 == pytest.approx(0.515402, abs=5e-7)
    assert metrics.mrr == pytest.approx(0.460227, abs=5e-7)
    assert (metrics.median_rank, metrics.mean_rank) == (3.0, 4.5)


def test_geometric_mean_is_over_r1_r5_r10() -> None:
    assert evaluate_ranking(*golden_matrix([1, 2, 11, 4])).geometric_mean == pytest.approx((25 * 75 * 75) ** (1 / 3))


def test_a_constant_matrix_does_not_score_r1_100() -> None:
    metrics = evaluate_ranking(np.zeros((100, 100), np.float32), np.arange(100))
    assert metrics.r1 == 0.0
    assert metrics.mean_rank == metrics.median_rank == 50.5


def test_there_are_as_many_ranks_as_queries_on_a_constant_matrix() -> None:
    assert len(evaluate_ranking(np.zeros((4, 4)), np.arange(4)).ranks) == 4


def test_a_tie_counts_half_of_the_other_equal_clips() -> None:
    metrics = evaluate_ranking(np.array([[3.0, 2.0, 2.0, 2.0, 1.0]]), np.array([2]))
    assert metrics.ranks.tolist() == [1 + 1 + 2 / 2]
    assert metrics.tied_queries == 1


def test_optimistic_and_pessimistic_are_shown_only_when_ties_make_them_differ() -> None:
    assert "optimistic" not in evaluate_ranking(np.eye(3), np.arange(3)).to_dict()
    tied = evaluate_ranking(np.array([[1.0, 1.0]]), np.array([0])).to_dict()
    assert (tied["optimistic"]["R@1"], tied["pessimistic"]["R@1"]) == (100.0, 0.0)


def test_ndcg_with_a_tied_rank_is_the_mean_over_the_tied_positions() -> None:
    metrics = evaluate_ranking(np.array([[1.0, 1.0, 0.0]]), np.array([0]))
    assert metrics.ndcg10 == pytest.approx((1 + 1 / math.log2(3)) / 2)


def test_minus_infinity_is_a_score_like_any_other() -> None:
    sims = np.array([[-np.inf, 0.0, -np.inf], [-np.inf, 0.0, -np.inf]], np.float32)
    assert evaluate_ranking(sims, np.array([1, 0])).ranks.tolist() == [1.0, 2.5]


def test_nan_fails_and_names_the_query() -> None:
    sims = np.zeros((5, 4), np.float32)
    sims[3, 1] = np.nan
    with pytest.raises(InputError, match=r"query 3 \('a dog runs'\).*clip 1 is NaN"):
        evaluate_ranking(sims, np.zeros(5, int), query_names=["a", "b", "c", "a dog runs", "e"])


def test_with_several_right_clips_the_best_one_gives_the_rank() -> None:
    metrics = evaluate_ranking(np.array([[5.0, 4.0, 3.0, 2.0]]), [{3, 1}])
    assert metrics.ranks.tolist() == [2.0]
    assert metrics.mean_average_precision == pytest.approx((1 / 2 + 2 / 4) / 2)


def brute_force(row: np.ndarray, grades: dict[int, float]) -> dict[str, float]:
    """Every metric as the plain average over all orders that respect the scores."""
    levels = [np.flatnonzero(row == score).tolist() for score in sorted(set(row.tolist()), reverse=True)]
    found: list[dict[str, float]] = []
    for parts in itertools.product(*(itertools.permutations(level) for level in levels)):
        order = [clip for part in parts for clip in part]
        hits = [place for place, clip in enumerate(order, 1) if clip in grades]
        ideal = sum(g / math.log2(i + 1) for i, g in enumerate(sorted(grades.values(), reverse=True)[:10], 1))
        dcg = sum(grades.get(clip, 0.0) / math.log2(i + 1) for i, clip in enumerate(order[:10], 1))
        found.append(
            {
                "rank": hits[0],
                "reciprocal": 1 / hits[0],
                "precision": sum(n / place for n, place in enumerate(hits, 1)) / len(hits),
                "ndcg": dcg / ideal,
                "share5": sum(place <= 5 for place in hits) / len(hits),
            }
        )
    mean = {key: float(np.mean([one[key] for one in found])) for key in found[0]}
    for key, value in (("rank", min), ("ndcg", max), ("precision", max)):
        mean[f"{key}_best"] = value(one[key] for one in found)
    for key, value in (("rank", max), ("ndcg", min), ("precision", min)):
        mean[f"{key}_worst"] = value(one[key] for one in found)
    return mean


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_tied_scores_give_the_average_over_all_orders(data: st.DataObject) -> None:
    clips = data.draw(st.integers(1, 7))
    row = data.draw(hnp.arrays(np.float32, clips, elements=st.sampled_from([0.0, 1.0, -np.inf])))
    grades = data.draw(st.dictionaries(st.integers(0, clips - 1), st.sampled_from([1.0, 2.0, 3.0]), min_size=1))
    expected = brute_force(row, grades)
    scored = evaluate_ranking(row[None], [grades]).per_query
    for key in ("rank", "reciprocal", "precision", "ndcg"):
        assert getattr(scored, key)[0] == pytest.approx(expected[key])
    assert scored.share[5][0] == pytest.approx(expected["share5"])
    for key in ("rank_best", "rank_worst", "ndcg_best", "ndcg_worst", "precision_best", "precision_worst"):
        assert getattr(scored, key)[0] == pytest.approx(expected[key])


tied_matrices = hnp.arrays(
    np.float32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=12), elements=st.sampled_from([-1.0, 0.0, 0.5, 1.0])
)


@settings(max_examples=60, deadline=None)
@given(tied_matrices, st.randoms(use_true_random=False))
def test_permuting_clips_or_queries_changes_nothing(sims: np.ndarray, random: object) -> None:
    rng = np.random.default_rng(random.getrandbits(32))  # type: ignore[attr-defined]
    right = rng.integers(0, sims.shape[1], sims.shape[0])
    query, clip = rng.permutation(sims.shape[0]), rng.permutation(sims.shape[1])
    before = evaluate_ranking(sims, right)
    after = evaluate_ranking(sims[query][:, clip], np.argsort(clip)[right][query])
    assert after.values() == pytest.approx(before.values())
    assert after.ranks.tolist() == before.ranks[query].tolist()


@settings(max_examples=40, deadline=None)
@given(tied_matrices, st.integers(0, 2**32 - 1))
def test_one_right_clip_scores_the_same_through_the_fast_and_the_general_path(sims: np.ndarray, seed: int) -> None:
    right = np.random.default_rng(seed).integers(0, sims.shape[1], sims.shape[0])
    fast = evaluate_ranking(sims, right)
    # A grade other than 1 sends it through the general path; with one right clip the grade cancels.
    general = evaluate_ranking(sims, [{int(clip): 2.0} for clip in right])
    assert general.values() == pytest.approx(fast.values())
    if fast.tied_queries:
        assert general.optimistic() == pytest.approx(fast.optimistic())
        assert general.pessimistic() == pytest.approx(fast.pessimistic())


def test_a_monotone_change_of_scores_changes_nothing() -> None:
    sims = np.random.default_rng(0).standard_normal((20, 30)).astype(np.float32)
    right = np.arange(20)
    assert evaluate_ranking(3 * sims + 7, right).values() == evaluate_ranking(sims, right).values()


@pytest.mark.parametrize("dtype", [np.float16, np.int8, np.float64])
def test_half_and_integer_scores_are_ranked_as_they_are(dtype: type) -> None:
    sims = np.array([[3, 1, 2], [0, 5, 5]]).astype(dtype)
    assert evaluate_ranking(sims, np.array([2, 1])).ranks.tolist() == [2.0, 1.5]


def test_the_chunk_does_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    sims = np.random.default_rng(1).integers(0, 5, (37, 11)).astype(np.float32)
    right = np.arange(37) % 11
    whole = evaluate_ranking(sims, right).to_dict(per_query=True)
    monkeypatch.setattr("vctool.metrics.ranks.chunks_of.__defaults__", (100,))
    assert evaluate_ranking(sims, right).to_dict(per_query=True) == whole


def test_fifty_thousand_captions_against_five_thousand_clips_need_little_beyond_the_matrix() -> None:
    # The same chunks at a tenth of the clips: what is allocated does not depend on the number of rows but for the ranks.
    sims = np.broadcast_to(np.arange(5000, dtype=np.float32), (2000, 5000))
    tracemalloc.start()
    evaluate_ranking(sims, np.zeros(2000, np.int64))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200 << 20


@pytest.mark.parametrize(
    ("sims", "relevance", "message"),
    [
        (np.zeros(3), np.arange(3), "two dimensions"),
        (np.zeros((2, 3, 4)), np.arange(2), "two dimensions"),
        (np.zeros((0, 3)), np.arange(0), "empty"),
        (np.zeros((3, 0)), np.arange(3), "empty"),
        (np.zeros((3, 3)), np.arange(2), "3 queries but the relevance has 2"),
        (np.zeros((2, 3)), np.array([0, 3]), "query 1: relevant clip 3 is not one of the 3 columns"),
        (np.zeros((2, 3)), np.array([-1, 0]), "query 0: relevant clip -1"),
        (np.zeros((2, 3)), [{0}, set()], "query 1 has no relevant clip"),
        (np.zeros((2, 3)), np.array([0.5, 1.0]), "whole column numbers"),
        (np.zeros((2, 3)), np.zeros((2, 2), int), "shape"),
        (np.array([["a", "b"]]), np.array([0]), "real numbers"),
        (np.zeros((1, 2), complex), np.array([0]), "real numbers"),
    ],
)
def test_bad_input_is_one_clear_line(sims: np.ndarray, relevance: object, message: str) -> None:
    with pytest.raises(InputError, match=message) as problem:
        evaluate_ranking(sims, relevance)  # type: ignore[arg-type]
    assert "\n" not in str(problem.value)


def test_to_dict_carries_every_metric_and_ranks_on_request() -> None:
    metrics = evaluate_ranking(np.eye(4), np.arange(4))
    assert set(METRIC_NAMES) <= set(metrics.to_dict())
    assert "per_query" not in metrics.to_dict()
    assert metrics.to_dict(per_query=True)["per_query"] == {"rank": [1] * 4}


@pytest.mark.parametrize("relevance", [[0, 1, 2, 3, 4], [{0, 3}, {1}, {2}, {3}, {4, 1}]])
def test_what_a_saved_result_keeps_of_each_query_comes_back_whole(relevance: list[object]) -> None:
    scored = evaluate_ranking(np.random.default_rng(0).integers(0, 3, (5, 9)), relevance).per_query  # type: ignore[arg-type]
    back = PerQuery.from_dict(json.loads(json.dumps(PerQuery.of(scored).to_dict())))
    for name in ("rank", "reciprocal", "precision", "ndcg"):
        np.testing.assert_allclose(getattr(back, name), getattr(scored, name), atol=1e-9)
