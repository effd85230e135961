"""Whole stores: the sum of two branches, many queries at once, and the same bits whatever the company."""

from __future__ import annotations

import os
import subprocess
import sys
import tracemalloc
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
from scoring_bits import EXACT, same, unit

from vctool.errors import InputError, UsageProblem
from vctool.scoring import batch_scores, mean_max_sim, scores, token_maxima
from vctool.scoring.tiles import BLOCK, TokenBlocks
from vctool.store import ClipTokens, StoreWriter, open_store


def make_store(clips: list[tuple[np.ndarray, np.ndarray]], dtype=np.float32) -> SimpleNamespace:
    """Something that looks like a store, in memory."""
    parts = {}
    for place, branch in enumerate(("frame", "video")):
        parts[f"{branch}_TD"] = np.concatenate([clip[place] for clip in clips]).astype(dtype)
        parts[f"{branch}_offsets"] = np.concatenate([[0], np.cumsum([len(clip[place]) for clip in clips])])
        parts[f"{branch}_scale_T"] = None
    return SimpleNamespace(**parts)


def ragged(count: int, width: int = 16, seed: int = 0, longest: int = 9) -> list[tuple[np.ndarray, np.ndarray]]:
    generator = np.random.default_rng(seed)
    return [
        (unit(generator, generator.integers(0, longest), width), unit(generator, generator.integers(1, longest), width))
        for _ in range(count)
    ]


def test_the_score_is_the_sum_of_frames_and_video_tokens():
    store, query = make_store(ragged(40)), unit(np.random.default_rng(1), 5)
    score, frame, video = scores(query, None, store, "fv")
    assert same(frame, mean_max_sim(query, store.frame_TD, store.frame_offsets))
    assert same(video, mean_max_sim(query, store.video_TD, store.video_offsets))
    assert np.array_equal(score, frame + video) and score.dtype == np.float32


@pytest.mark.parametrize(("branch", "asked", "other"), [("f", 1, 2), ("v", 2, 1)])
def test_one_branch_alone_leaves_the_other_without_a_score(branch, asked, other):
    store, query = make_store(ragged(10)), unit(np.random.default_rng(1), 5)
    found = scores(query, None, store, branch)
    assert np.array_equal(found[0], found[asked]) and np.isnan(found[other]).all()
    assert same(found[asked], scores(query, None, store, "fv")[asked])


def test_a_clip_without_frames_scores_minus_infinity_and_not_nan():
    generator = np.random.default_rng(0)
    store = make_store([(unit(generator, 0), unit(generator, 3)), (unit(generator, 2), unit(generator, 3))])
    with np.errstate(all="raise"):
        score, frame, video = scores(unit(generator, 4), None, store, "fv")
    assert score[0] == frame[0] == -np.inf and np.isfinite(video).all() and np.isfinite(score[1])


def test_masked_query_tokens_do_not_count():
    store, query = make_store(ragged(10)), unit(np.random.default_rng(1), 5)
    mask = np.array([True, False, True, True, False])
    assert same(scores(query, mask, store, "fv")[0], scores(query[mask], None, store, "fv")[0])


def test_a_branch_that_does_not_exist_is_refused():
    with pytest.raises(UsageProblem, match="choose f"):
        scores(unit(np.random.default_rng(0), 1), None, make_store(ragged(1)), "vf")


def test_a_query_of_another_width_is_refused():
    with pytest.raises(InputError, match="8 wide, clip tokens 16"):
        batch_scores([unit(np.random.default_rng(0), 3, 8)], make_store(ragged(3)))


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_a_store_on_disk_scores_as_its_clips_read_back_do(tmp_path, dtype):
    with StoreWriter(tmp_path / "clips.npz", manifest={"dim": 16}, dtype=dtype) as writer:
        for i, (frames, video) in enumerate(ragged(30)):
            writer.add(ClipTokens(str(i), "", frames, np.zeros(len(frames)), video, np.zeros(len(video))))
        writer.commit()
    store, query = open_store(tmp_path / "clips.npz"), unit(np.random.default_rng(1), 5)
    found = scores(query, None, store, "fv")[0]
    for i in range(len(store)):
        clip = store.clip(i)
        alone = [mean_max_sim(query, tokens, [0, len(tokens)])[0] for tokens in (clip.frame_FD, clip.video_VD)]
        # An int8 store has the query rounded too, which shows where tokens are 16 wide.
        assert np.allclose(found[i], sum(alone), atol={"float16": 1e-5, "int8": 1e-2}[dtype])


# The bits: 150 clips of every length, widths on both sides of every blocking that BLAS is known to use.


@pytest.mark.parametrize("width", [3, 64, 512, 900])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_clips_score_has_the_same_bits_alone_in_any_order_and_in_any_batch(width, dtype):
    clips = ragged(150, width, longest=30)
    generator = np.random.default_rng(1)
    queries = [unit(generator, count, width) for count in (1, 32, 7, 64, 9)]
    together = batch_scores(queries, make_store(clips, dtype), "fv")
    for b, query in enumerate(queries):
        for found, wanted in zip(scores(query, None, make_store(clips, dtype), "fv"), together, strict=True):
            assert same(found, wanted[b])
    order = generator.permutation(len(clips))
    shuffled = batch_scores(queries[::-1], make_store([clips[i] for i in order], dtype), "fv")
    assert same(shuffled[0][::-1], together[0][:, order])
    for i in range(0, len(clips), 10):
        assert same(batch_scores(queries, make_store([clips[i]], dtype), "fv")[0][:, 0], together[0][:, i])


def test_clips_of_one_length_take_a_shortcut_to_the_same_bits():
    generator = np.random.default_rng(0)
    tokens, query = unit(generator, 60 * 12, 64), unit(generator, 9, 64)
    even = mean_max_sim(query, tokens, np.arange(0, 721, 12))
    uneven = mean_max_sim(query, np.concatenate([tokens, tokens[:1]]), [*range(0, 721, 12), 721])
    assert same(even, uneven[:60])


def test_a_clip_longer_than_a_block_is_scored_in_pieces():
    generator = np.random.default_rng(0)
    counts = [3, 2 * BLOCK + 5, 0, 1, BLOCK, 7]
    offsets = np.concatenate([[0], np.cumsum(counts)])
    tokens, query = unit(generator, int(offsets[-1])), unit(generator, 5)
    found = mean_max_sim(query, tokens, offsets)
    sim = query.astype(np.float64) @ tokens.astype(np.float64).T
    expected = [sim[:, a:b].max(axis=1, initial=-np.inf).mean() for a, b in pairwise(offsets)]
    assert np.allclose(found, expected, atol=1e-6)
    best, place = token_maxima(query, tokens, offsets)
    assert np.array_equal(place[:, 1], sim[:, 3 : 2 * BLOCK + 8].argmax(axis=1) + 3)
    assert same(best.astype(np.float64).mean(axis=0).astype(np.float32), found)


def test_the_size_of_a_block_does_not_change_a_bit(monkeypatch):
    store, query = make_store(ragged(100, 64)), unit(np.random.default_rng(1), 11, 64)
    expected = scores(query, None, store, "fv")[0]
    for block in (1, 5, 128, 200):
        monkeypatch.setattr("vctool.scoring.tiles.BLOCK", block)
        assert same(scores(query, None, store, "fv")[0], expected)


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_the_number_of_threads_does_not_change_a_bit(workers):
    store = make_store(ragged(600, 32))
    queries = [unit(np.random.default_rng(i), 12, 32) for i in range(60)]
    assert same(batch_scores(queries, store, workers=workers)[0], batch_scores(queries, store)[0])


@pytest.mark.skipif(not EXACT, reason="no OpenBLAS for x86 here")
@pytest.mark.parametrize("core", ["Haswell", "Nehalem", "SkylakeX"])
def test_the_bits_hold_on_other_kernels_of_openblas(core):
    code = (
        "import sys, numpy as np; sys.path.insert(0, sys.argv[1])\n"
        "from test_scoring_stores import *\n"
        "test_a_clips_score_has_the_same_bits_alone_in_any_order_and_in_any_batch(512, np.float32)\n"
    )
    roots = os.pathsep.join([os.path.dirname(__file__), os.path.dirname(os.path.dirname(os.path.dirname(__file__)))])  # noqa: PTH120
    environment = os.environ | {"OPENBLAS_CORETYPE": core, "PYTHONPATH": roots, "OMP_NUM_THREADS": "1"}
    result = subprocess.run([sys.executable, "-c", code, os.path.dirname(__file__)], env=environment, capture_output=True, text=True)  # noqa: PTH120
    if result.returncode < 0:
        pytest.skip(f"this processor cannot run the {core} kernels")
    assert result.returncode == 0, result.stderr


def test_no_queries_give_no_rows():
    assert batch_scores([], make_store(ragged(3)))[0].shape == (0, 3)


def test_pairs_of_tokens_and_mask_are_queries_too():
    store, query = make_store(ragged(5)), unit(np.random.default_rng(1), 4)
    mask = np.array([True, True, False, True])
    found = batch_scores([query, (query, mask), (query, None)], store)[0]
    assert same(found[1], scores(query, mask, store)[0]) and same(found[0], found[2])


def test_memory_does_not_grow_with_the_number_of_tokens():
    tokens = np.ones((400_000, 8), np.float16)
    tracemalloc.start()
    mean_max_sim(np.ones((16, 8), np.float32), tokens, np.arange(0, 400_001, 8))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4_000_000  # as float32 the tokens alone would be 12.8 MB, their similarities 25.6 MB


def test_runs_of_clips_cover_every_clip_once():
    for counts in ([], [0, 0], [BLOCK + 1, 0, 5], [1] * 1000, [0] * 3000, [40] * 100):
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        runs = TokenBlocks(np.zeros((int(offsets[-1]), 1), np.float32), offsets).chunks()
        assert [clip for first, last in runs for clip in range(first, last)] == list(range(len(counts)))
