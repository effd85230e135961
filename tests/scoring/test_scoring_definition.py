"""MeanMaxSim against its golden values and against three plain loops in float64."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scoring_bits import same, unit

from vctool.errors import InputError
from vctool.scoring import ONE, mean_max_sim, token_maxima


def rows(*values: list[float]) -> np.ndarray:
    array = np.array(values, np.float32)
    return array / np.linalg.norm(array, axis=1, keepdims=True)


QUERIES = [rows([1, 0], [1, 1], [0, 1]), rows([1, -1], [2, 1], [-1, 0])]
FRAMES = rows([1, 0], [3, 4], [0, 1], [-1, 0])
VIDEO = rows([1, 2], [2, 1], [0, 1], [-1, 1], [1, -1], [-1, -1])


def by_loops(query, tokens, offsets, query_mask=None, token_mask=None) -> np.ndarray:
    """The oracle: method 6.4 written out, float64 throughout; what float32 cannot tell from 1 is 1."""
    scores = []
    for start, end in pairwise(offsets):
        total, count = 0.0, 0
        for j, q in enumerate(np.asarray(query, np.float64)):
            if query_mask is not None and not query_mask[j]:
                continue
            best = -np.inf
            for i in range(start, end):
                if token_mask is None or token_mask[i]:
                    best = max(best, float(sum(a * b for a, b in zip(q, np.asarray(tokens[i], np.float64), strict=True))))
            best = 1.0 if abs(best - 1) <= ONE else best
            total, count = total + best, count + 1
        scores.append(total / count)
    return np.array(scores)


def test_golden_values_of_frames():
    found = [mean_max_sim(query, FRAMES, [0, 2, 4]) for query in QUERIES]
    assert np.allclose(found, [[0.929983, 0.569036], [0.333845, 0.246702]], atol=5e-7)


def test_golden_values_of_video_tokens():
    found = [mean_max_sim(query, VIDEO, [0, 3, 6]) for query in QUERIES]
    assert np.allclose(found, [[0.947703, 0.471405], [0.438743, 0.674445]], atol=5e-7)


def test_golden_values_with_masks():
    tokens = np.array([True, True, True, False])
    first = mean_max_sim(QUERIES[0], FRAMES, [0, 2, 4], np.array([True, True, False]), tokens)
    second = mean_max_sim(QUERIES[1], FRAMES, [0, 2, 4], None, tokens)
    assert np.allclose([first, second], [[0.994975, 0.353553], [0.333845, -0.086631]], atol=5e-7)


@st.composite
def problems(draw):
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    width = draw(st.sampled_from([1, 2, 3, 8, 17]))
    counts = draw(st.lists(st.integers(0, 5), min_size=1, max_size=6))
    offsets = np.concatenate([[0], np.cumsum(counts)])
    query = unit(generator, draw(st.integers(1, 11)), width)
    tokens = unit(generator, int(offsets[-1]), width)
    query_mask = generator.random(len(query)) < 0.7
    query_mask[draw(st.integers(0, len(query) - 1))] = True
    return query, tokens, offsets, query_mask, generator.random(len(tokens)) < 0.7


@given(problems())
@settings(max_examples=120, deadline=None)
def test_it_equals_three_plain_loops_in_float64(problem):
    found, expected = mean_max_sim(*problem), by_loops(*problem)
    assert found.dtype == np.float32
    assert np.allclose(found, expected, rtol=1e-6, atol=1e-6)
    assert np.array_equal(np.isneginf(found), np.isneginf(expected))


@given(problems())
@settings(max_examples=60, deadline=None)
def test_a_masked_token_counts_as_much_as_one_that_is_not_there(problem):
    query, tokens, offsets, query_mask, token_mask = problem
    kept = np.concatenate([[0], np.cumsum(token_mask)])[offsets]
    assert same(mean_max_sim(*problem), mean_max_sim(query[query_mask], tokens[token_mask], kept))


@given(problems(), st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_the_order_of_clips_and_of_tokens_in_a_clip_does_not_matter(problem, random):
    query, tokens, offsets, *_ = problem
    clips = [tokens[a:b] for a, b in pairwise(offsets)]
    order = random.sample(range(len(clips)), len(clips))
    shuffled = [clips[i][random.sample(range(len(clips[i])), len(clips[i]))] for i in order]
    edges = np.concatenate([[0], np.cumsum([len(clip) for clip in shuffled])])
    assert same(mean_max_sim(query, np.concatenate(shuffled), edges), mean_max_sim(query, tokens, offsets)[order])


@given(problems())
@settings(max_examples=40, deadline=None)
def test_repeating_a_clips_tokens_changes_nothing(problem):
    query, tokens, offsets, *_ = problem
    clips = [tokens[a:b] for a, b in pairwise(offsets)]
    twice = np.concatenate([np.concatenate([clip, clip]) for clip in clips])
    assert same(mean_max_sim(query, twice, 2 * offsets), mean_max_sim(query, tokens, offsets))


@given(problems())
@settings(max_examples=40, deadline=None)
def test_repeating_the_query_tokens_changes_nothing(problem):
    query, tokens, offsets, *_ = problem
    assert same(mean_max_sim(np.concatenate([query, query]), tokens, offsets), mean_max_sim(query, tokens, offsets))


@pytest.mark.parametrize("width", [1, 2, 3, 64, 512, 768, 1152, 4096])
def test_identical_tokens_score_exactly_1(width):
    generator = np.random.default_rng(width)
    for tokens in (unit(generator, 32, width), np.abs(unit(generator, 32, width))):
        assert mean_max_sim(tokens, tokens, [0, 32])[0] == 1
        assert (token_maxima(tokens, tokens, [0, 32])[0] == 1).all()


def test_only_float32_noise_is_taken_for_1():
    token = rows([1, 0])
    near, far = 1 - 0.9 * ONE, 1 - 1.5 * ONE
    query = np.array([[near, np.sqrt(1 - near**2)], [far, np.sqrt(1 - far**2)]], np.float32)
    assert token_maxima(query, token, [0, 1])[0][:, 0].tolist() == [1, np.float32(far)]


def test_a_negative_similarity_beats_a_masked_token():
    # A token multiplied by a zero mask would score 0 and win.
    assert mean_max_sim(rows([1, 0]), np.array([[-1, 0], [0, 0]], np.float32), [0, 2], None, [True, False])[0] == -1


def test_masked_tokens_may_hold_anything():
    tokens = np.array([[1, 0], [np.nan, np.inf]], np.float32)
    assert mean_max_sim(rows([1, 0]), tokens, [0, 2], None, [True, False])[0] == 1


def test_the_mean_is_over_counted_tokens_and_not_over_the_padded_length():
    padded = np.concatenate([rows([1, 0]), np.zeros((31, 2), np.float32)])
    assert mean_max_sim(padded, rows([1, 0]), [0, 1], np.arange(32) < 1)[0] == 1


def test_a_clip_without_a_valid_token_scores_minus_infinity():
    tokens = rows([1, 0], [0, 1])
    assert mean_max_sim(rows([1, 0]), tokens, [0, 0, 1, 2, 2], None, [True, False]).tolist() == [-np.inf, 1, -np.inf, -np.inf]
    assert mean_max_sim(rows([1, 0]), tokens[:0], [0, 0]).tolist() == [-np.inf]
    assert mean_max_sim(rows([1, 0]), tokens[:0], [0]).tolist() == []


def test_int8_tokens_are_multiplied_by_their_scales():
    tokens, scales = np.array([[127, 0], [0, -127]], np.int8), np.array([1 / 127, 0.5 / 127], np.float32)
    found = mean_max_sim(rows([1, 0], [0, 1]), tokens, [0, 1, 2], scale_T=scales)
    assert np.allclose(found, [0.5, -0.25], atol=1e-7)


def test_float16_tokens_are_summed_in_float32():
    generator = np.random.default_rng(0)
    tokens, query = unit(generator, 40, 512).astype(np.float16), unit(generator, 7, 512)
    expected = np.stack([(query.astype(np.float64) @ tokens[4 * i : 4 * i + 4].astype(np.float64).T).max(axis=1).mean() for i in range(10)])
    assert np.allclose(mean_max_sim(query, tokens, np.arange(0, 41, 4)), expected, rtol=1e-6, atol=1e-7)


@given(problems())
@settings(max_examples=60, deadline=None)
def test_the_maxima_of_the_tokens_make_the_score(problem):
    query, tokens, offsets, query_mask, token_mask = problem
    best, place = token_maxima(*problem)
    assert best.shape == place.shape == (len(query), len(offsets) - 1)
    assert same(best[query_mask].astype(np.float64).mean(axis=0).astype(np.float32), mean_max_sim(*problem))
    assert (best[~query_mask] == -np.inf).all() and (place[~query_mask] == -1).all()
    for clip in range(len(offsets) - 1):
        valid = np.flatnonzero(token_mask[offsets[clip] : offsets[clip + 1]]) + offsets[clip]
        for token in np.flatnonzero(query_mask):
            if len(valid) == 0:
                assert place[token, clip] == -1 and best[token, clip] == -np.inf
            else:
                assert place[token, clip] in valid
                assert abs(float(query[token] @ tokens[place[token, clip]]) - best[token, clip]) < 5e-6


def test_of_equal_tokens_the_first_is_named():
    assert token_maxima(rows([1, 0]), rows([0, 1], [1, 0], [1, 0], [1, 0]), [1, 4])[1].tolist() == [[1]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.zeros((0, 2)), FRAMES, [0, 4]), "no query token counts"),
        ((QUERIES[0], FRAMES, [0, 4], [False] * 3), "no query token counts"),
        ((QUERIES[0], FRAMES, [0, 4], [True] * 2), "3 query tokens but a mask"),
        ((QUERIES[0][0], FRAMES, [0, 4]), "query tokens have shape"),
        ((np.array([[np.nan, 1]]), FRAMES, [0, 4]), "query token is NaN"),
        ((QUERIES[0], FRAMES[0], [0, 4]), "tokens have shape"),
        ((QUERIES[0], np.zeros((4, 3)), [0, 4]), "2 wide, clip tokens 3"),
        ((QUERIES[0], FRAMES, [0, 5]), "offsets do not fit 4 tokens"),
        ((QUERIES[0], FRAMES, [0, 3, 2]), "offsets do not fit"),
        ((QUERIES[0], FRAMES, [-1, 3]), "offsets do not fit"),
        ((QUERIES[0], FRAMES, []), "offsets do not fit"),
        ((QUERIES[0], FRAMES, [0, 4], None, [True]), "4 tokens but a mask"),
        ((QUERIES[0], FRAMES.astype(np.int8), [0, 4]), "int8 tokens without scales"),
        ((QUERIES[0], FRAMES, [0, 4], None, None, np.ones(4)), "float32 tokens with scales"),
        ((QUERIES[0], np.array([[1, 0], [np.nan, 0]], np.float32), [0, 1, 2]), "clip 1: its tokens are not finite"),
        ((QUERIES[0], np.array([[1, 0], [np.inf, 0]], np.float32), [0, 1, 2]), "clip 1: its tokens are not finite"),
    ],
)
def test_what_cannot_be_scored_is_said(arguments, message):
    with pytest.raises(InputError, match=message) as problem:
        mean_max_sim(*arguments)
    assert problem.value.hint


def test_sentence_transformers_agrees():
    similarity = pytest.importorskip("sentence_transformers.util.similarity", reason="sentence-transformers is not installed")
    if not hasattr(similarity, "colbert_scores"):
        pytest.skip("this sentence-transformers has no late interaction")
    torch = pytest.importorskip("torch")
    generator = np.random.default_rng(0)
    query, tokens = unit(generator, 9, 64), unit(generator, 35, 64)
    clips = torch.from_numpy(tokens.reshape(7, 5, 64))
    theirs = similarity.colbert_scores(torch.from_numpy(query)[None], clips, length_normalize=True)
    assert np.allclose(mean_max_sim(query, tokens, np.arange(0, 36, 5)), theirs[0].numpy(), atol=1e-6)
