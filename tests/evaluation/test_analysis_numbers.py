"""The numbers of the analyses, against values worked out by hand or by an independent formula."""

from __future__ import annotations

import math

import numpy as np
import pytest

from vctool.data import Clip, Query, Split
from vctool.errors import InputError, UsageProblem
from vctool.evaluation.analysis import Draws
from vctool.evaluation.analysis_branches import list_agreement, only_one
from vctool.evaluation.analysis_failures import rank_histogram, wrong_firsts
from vctool.evaluation.analysis_length import best_limit, held_out_limit, length_bins, turning_point
from vctool.evaluation.failures import worst_queries
from vctool.evaluation.motion import Motion, Thresholds, motion_of
from vctool.evaluation.pad_vectors import PadVectors, Vocabulary, nearest_own, spherical_clusters, spread
from vctool.evaluation.query_pads import with_pads
from vctool.evaluation.synonyms import read_synonyms, substitutions
from vctool.metrics.correlation import midranks, spearman
from vctool.preprocessing.tokenizer import Word
from vctool.runtime.encoder import QueryTokens

DRAWS = Draws(resamples=200)


def ints(*values: int) -> np.ndarray:
    return np.asarray(values, dtype=np.int64)


# query length


def test_the_limit_is_where_summed_gain_is_highest() -> None:
    # Summed by length 4, 5, 6, 7: 0.5, 0.75, 0.45, 0.35.
    assert best_limit(ints(4, 5, 6, 7), np.array([0.5, 0.25, -0.3, -0.1])) == 5


def test_pads_that_always_help_have_the_longest_length_as_limit_and_pads_that_never_help_have_0() -> None:
    assert best_limit(ints(4, 6, 9), np.array([0.1, 0.1, 0.1])) == 9
    assert best_limit(ints(4, 6, 9), np.array([-0.1, 0.05, -0.1])) == 0
    assert best_limit(ints(4, 6, 9), np.zeros(3)) == 0


def test_weights_count_a_query_as_often_as_it_was_drawn() -> None:
    gain = np.array([1.0, -0.4])
    assert best_limit(ints(4, 5), gain, np.array([1.0, 1.0])) == 4
    assert best_limit(ints(4, 5), gain, np.array([0.0, 1.0])) == 0


def test_a_sharp_turn_is_found_with_a_narrow_interval() -> None:
    rng = np.random.default_rng(0)
    length = np.repeat(np.arange(4, 24), 50)
    gain = np.where(length <= 12, 0.2, -0.2) + rng.normal(scale=0.1, size=len(length))
    turn = turning_point(length, gain, np.arange(len(length)), DRAWS)
    assert (turn.limit, turn.inside) == (12, True)
    assert 11 <= turn.low <= 12 <= turn.high <= 13
    assert turn.never == turn.always == 0.0


def test_without_a_turn_the_resamples_say_so() -> None:
    length = np.repeat(np.arange(4, 14), 20)
    turn = turning_point(length, np.full(len(length), 0.1), np.arange(len(length)), DRAWS)
    assert (turn.limit, turn.always, turn.inside) == (13, 1.0, False)


def test_noise_alone_gives_an_interval_over_most_lengths() -> None:
    rng = np.random.default_rng(1)
    length = np.repeat(np.arange(4, 24), 10)
    turn = turning_point(length, rng.normal(size=len(length)), np.arange(len(length)), DRAWS)
    assert turn.high - turn.low >= 10


def test_length_bins_hold_enough_queries_and_leave_none_out() -> None:
    length = np.repeat([4, 5, 6, 7, 20], [30, 5, 30, 25, 3])
    bins = length_bins(length, smallest=20, bins=10)
    assert bins == [(4, 4), (5, 6), (7, 20)]
    assert length_bins(ints(4, 9), smallest=20) == [(4, 9)]


def test_a_held_out_limit_comes_from_the_other_half() -> None:
    length, groups = ints(4, 10, 4, 10), ints(0, 0, 1, 1)
    # Clip 0 says "up to 4", clip 1 says "always": each is used on the other.
    used = held_out_limit(length, np.array([1.0, -1.0, 1.0, 1.0]), groups)
    assert used.tolist() == [True, True, True, False]


# resampling


def test_resampling_draws_whole_clips() -> None:
    groups = ints(0, 0, 1, 1, 1, 2)
    for weight in Draws(resamples=20).weights(groups):
        assert weight[0] == weight[1] and weight[2] == weight[3] == weight[4]
        assert weight[0] + weight[2] + weight[5] == 3


def test_means_of_resamples_are_means_over_the_queries_inside() -> None:
    values, inside, groups = np.array([1.0, 5.0, 9.0]), np.array([True, True, False]), ints(0, 1, 2)
    draws = Draws(resamples=50, seed=3)
    found = draws.means([values], [inside], groups)[:, 0]
    for mean, weight in zip(found, draws.weights(groups), strict=True):
        drawn = [value for value, times, kept in zip(values, weight, inside, strict=True) if kept for _ in range(int(times))]
        assert (math.isnan(mean) and not drawn) or mean == pytest.approx(np.mean(drawn))
    low, high = draws.interval(found)
    assert 1.0 <= low <= high <= 5.0


# rank correlation and agreement


def test_midranks_share_the_mean_of_equal_values() -> None:
    assert midranks(np.array([3.0, 1.0, 3.0, 2.0])).tolist() == [3.5, 1.0, 3.5, 2.0]


def test_spearman_follows_its_textbook_formula_without_ties() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.permutation(20), rng.permutation(20)
    textbook = 1 - 6 * float(((a - b) ** 2).sum()) / (20 * (20**2 - 1))
    assert spearman(a, b) == pytest.approx(textbook)
    assert spearman(np.arange(5), -np.arange(5)) == pytest.approx(-1)
    assert spearman(np.ones(5), np.arange(5)) is None


def test_lists_that_agree_and_lists_that_are_reversed() -> None:
    sims = np.arange(40, dtype=np.float32).reshape(2, 20)
    assert list_agreement(sims, sims, 0) == {"queries_compared": 2, "rank_correlation_of_lists": 1.0, "share_of_top_10_in_common": 1.0}
    turned = list_agreement(sims, -sims, 0)
    assert turned["rank_correlation_of_lists"] == pytest.approx(-1)
    assert turned["share_of_top_10_in_common"] == 0.0


def test_examples_are_the_widest_gaps_and_no_clip_stands_twice() -> None:
    winner, loser = np.array([1.0, 1, 2, 1, 1]), np.array([9.0, 30, 50, 1, 20])
    assert only_one(winner, loser, ints(0, 0, 1, 2, 3), 5) == [1, 4]


# motion


def test_a_still_picture_has_no_motion_and_a_moving_half_has_half() -> None:
    still = np.full((4, 8, 8, 3), 100, np.uint8)
    times = np.array([0.0, 0.5, 1.0, 1.5])
    assert motion_of(still, times) == Motion(0.0, 0.0, 0.5)
    moving = still.copy()
    moving[1::2, :, :4] = 200
    found = motion_of(moving, times)
    assert found.area == pytest.approx(0.5)
    assert found.level == pytest.approx(50.0, abs=0.01)


def test_noise_of_coding_is_no_motion_and_one_frame_has_none() -> None:
    rng = np.random.default_rng(0)
    noisy = rng.integers(100, 106, (6, 8, 8, 3)).astype(np.uint8)
    assert motion_of(noisy, np.arange(6.0)).area == 0.0
    assert motion_of(noisy[:1], np.zeros(1)) == Motion(0.0, 0.0, 0.0)


def test_thresholds_put_the_boundary_into_the_higher_class() -> None:
    limits = Thresholds(0.01, 0.05)
    areas = {"static": (0.0, 0.0099), "little": (0.01, 0.049), "high": (0.05, 1.0)}
    assert {name: {limits.of(Motion(area, 0, 0)) for area in both} for name, both in areas.items()} == {name: {name} for name in areas}


@pytest.mark.parametrize(("little", "high"), [(0.0, 0.1), (0.2, 0.1), (0.1, 1.5), (float("nan"), 0.5)])
def test_thresholds_that_do_not_rise_are_refused(little: float, high: float) -> None:
    with pytest.raises(UsageProblem, match="thresholds must rise"):
        Thresholds(little, high)


# failures


def two_clip_split(queries: int) -> Split:
    clips = tuple(Clip(id=f"clip{at}") for at in range(4))
    return Split("s", "t", "qrels", clips, tuple(Query(f"q{at}", f"text {at}", ((at % 4, 1.0),)) for at in range(queries)))


def test_the_worst_queries_stand_first_with_what_was_above_them() -> None:
    sims = np.array([[0.9, 0.1, 0.2, 0.3], [0.5, 0.2, 0.4, 0.3], [0.1, 0.5, 0.2, 0.1]])
    found = worst_queries(sims, two_clip_split(3), np.array([1.0, 4.0, 2.0]), 5, shown=2)
    assert [(one.id, one.rank, one.right.clip) for one in found] == [("q1", 4.0, "clip1"), ("q2", 2.0, "clip2")]
    assert [[(other.clip, other.score) for other in one.above] for one in found] == [[("clip0", 0.5), ("clip2", 0.4)], [("clip1", 0.5)]]


def test_a_second_right_clip_is_not_shown_as_a_wrong_one() -> None:
    split = Split("s", "t", "qrels", two_clip_split(1).clips, (Query("q", "text", ((0, 1.0), (2, 1.0))),))
    (found,) = worst_queries(np.array([[0.3, 0.9, 0.5, 0.8]]), split, np.array([3.0]), 1)
    assert (found.right.clip, [one.clip for one in found.above]) == ("clip2", ["clip1", "clip3"])


def test_clips_that_are_wrongly_first_are_counted() -> None:
    sims = np.array([[0.1, 0.9], [0.1, 0.9], [0.9, 0.1]])
    assert wrong_firsts(sims, np.array([2.0, 1.0, 2.0])) == {1: 1, 0: 1}


def test_the_histogram_of_ranks_counts_every_query_once() -> None:
    assert rank_histogram(np.array([1.0, 1.5, 2, 4, 10, 11, 500])) == {"1": 1, "2": 2, "3-5": 1, "6-10": 1, "11-50": 1, "over 50": 1}


# pads


def query(rows: list[list[float]], pads: list[int], words: list[str], counted_pads: bool = True) -> QueryTokens:
    """Tokens: start, one a word, end, pads."""
    tokens = np.asarray(rows, np.float32)
    pad = np.zeros(len(tokens), bool)
    pad[pads] = True
    mask = np.ones(len(tokens), bool) if counted_pads else ~pad
    ranges = [Word(word, at, at + 1) for at, word in enumerate(words, start=1)]
    return QueryTokens(" ".join(words), tokens, mask, ["?"] * len(tokens), pad, ranges)


X, Y, Z = [1.0, 0, 0], [0.0, 1, 0], [0.0, 0, 1]


def test_pads_are_counted_or_not_and_other_tokens_stay_as_they_are() -> None:
    one = query([X, Y, Z, X, Y], [3, 4], ["dog"])
    one.mask_Q[0] = False  # a model that does not count the start token
    assert with_pads(one, "on").mask_Q.tolist() == [False, True, True, True, True]
    assert with_pads(one, "off").mask_Q.tolist() == [False, True, True, False, False]


def test_variance_goes_with_the_position_or_with_the_query() -> None:
    same = [query([Z, X, Z, X, Y], [3, 4], ["dog"]) for _ in range(3)]
    assert spread(PadVectors.of(same)) == {"query": pytest.approx(0.0, abs=1e-9), "position": pytest.approx(1.0)}
    own = [query([Z, X, Z, row, row], [3, 4], ["dog"]) for row in (X, Y)]
    assert spread(PadVectors.of(own)) == {"query": pytest.approx(1.0), "position": pytest.approx(0.0, abs=1e-9)}


def test_the_token_a_pad_resembles_most_is_named_by_kind_and_word() -> None:
    found = nearest_own([query([Z, X, Y, Z, X, X, Z], [4, 5, 6], ["dog", "runs"])] * 5)
    assert found["share_by_kind"] == {"start": pytest.approx(1 / 3), "word": pytest.approx(2 / 3)}
    assert found["mean_cosine_to_nearest"] == pytest.approx(1.0)
    # 10 of 10 pads near a word take "dog", an even choice would have given it 5.
    assert found["words"] == [{"word": "dog", "pads": 10, "lift": 2.0}, {"word": "runs", "pads": 0, "lift": 0.0}]


def test_clusters_are_the_groups_that_there_are_largest_first() -> None:
    rows = np.asarray([X] * 5 + [Y] * 9 + [Z] * 2, np.float32)
    label, centre = spherical_clusters(rows, 8, seed=0)
    assert label.tolist() == [1] * 5 + [0] * 9 + [2] * 2
    assert np.allclose(centre, [Y, X, Z])


def test_words_nearest_to_a_cluster_come_from_their_mean_vectors() -> None:
    words = Vocabulary.of([query([Z, X, Y, Z], [3], ["dog", "Runs"])] * 3)
    assert words.words == ["dog", "runs"]
    assert words.nearest(np.array([0.1, 1.0, 0.0]), 1) == [{"word": "runs", "cosine": pytest.approx(1 / math.hypot(1, 0.1))}]


# synonyms


def test_one_word_is_exchanged_at_a_time_and_only_whole_words() -> None:
    synonyms = {"big": ("large", "huge"), "dog": ("hound",)}
    found = substitutions("A big hotdog and a Dog", ["A", "big", "hotdog", "and", "a", "Dog"], synonyms)
    assert [one.text for one in found] == ["A large hotdog and a Dog", "A big hotdog and a hound", "A huge hotdog and a Dog"]
    assert substitutions("a cat", ["a", "cat"], synonyms) == []


def test_synonyms_are_read_from_a_file_and_broken_lines_are_named(tmp_path) -> None:  # type: ignore[no-untyped-def]
    good = tmp_path / "good.txt"
    good.write_text("# a comment\n\nbig, large\nBig , huge\n")
    assert read_synonyms(good) == {"big": ("large", "huge"), "large": ("big",), "huge": ("big",)}
    for content, message in (("big, large\nalone\n", "bad.txt:2"), ("very big, huge\n", "bad.txt:1"), ("# nothing\n", "no synonyms")):
        (tmp_path / "bad.txt").write_text(content)
        with pytest.raises(InputError, match=message):
            read_synonyms(tmp_path / "bad.txt")
    assert "large" in read_synonyms(None)["big"]
