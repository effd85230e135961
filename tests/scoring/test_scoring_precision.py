"""Packed tokens are searched as they are stored: exactly what their decoded tokens score, with the same bits in any company."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from scoring_bits import unit

from vctool.errors import InputError
from vctool.precision import LEVELS, Packing, decode, encode, packing_of, rotated, unrotated
from vctool.scoring import kernels, mean_max_sim, token_maxima
from vctool.scoring.branches import branch_maxima, scores
from vctool.scoring.meanmaxsim import mean_max_sims
from vctool.scoring.tiles import TokenBlocks
from vctool.store import ClipTokens, StoreWriter, open_store

FOUND = kernels.report().found
PACKED = ("int4", "compact")
WIDTHS = [1, 3, 7, 9, 63, 65, 100, 128, 520]


@pytest.fixture(params=kernels.KERNELS)
def kernel(request, monkeypatch) -> str:
    if request.param not in FOUND:
        pytest.skip(f"{request.param} does not run here ({kernels.report().problem or 'the CPU has no such instructions'})")
    monkeypatch.setenv(kernels.VARIABLE, request.param)
    return request.param


def problem(precision: Any, width: int, clips: int = 40, longest: int = 40, seed: int = 0) -> tuple[TokenBlocks, np.ndarray]:
    """Packed tokens of clips of every length, with several centres in many of them, and the same tokens decoded, float64."""
    generator = np.random.default_rng([seed, width])
    offsets = np.concatenate([[0], np.cumsum(generator.integers(0, longest, clips))])
    tokens = unit(generator, int(offsets[-1]), width)
    made = encode(precision, tokens, offsets, tokens[:0], np.zeros(clips + 1, np.int64))
    packing = packing_of(made, precision, width, "frame")
    return TokenBlocks(made["frame_TD"], offsets, None, made["frame_scale_T"], packing), decode(
        made, precision, width, "frame", offsets
    ).astype(np.float64)


def plain(query: np.ndarray, tokens: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    similarity = query.astype(np.float64) @ tokens.T
    return np.array([similarity[:, a:b].max(axis=1, initial=-np.inf).mean() for a, b in pairwise(offsets)])


def part(blocks: TokenBlocks, rows: np.ndarray, clips: np.ndarray) -> TokenBlocks:
    """Some clips, copied out into arrays of their own, in the order given. rows: their tokens, end to end."""
    edges = np.concatenate([[0], np.cumsum(np.diff(blocks.offsets)[clips])])
    packing = blocks.packing
    assert packing is not None and blocks.scale_T is not None
    if packing.precision == "compact":
        assert packing.centre_offsets is not None and packing.centre_CD is not None
        assert packing.centre_T is not None and packing.centre_scale_C is not None
        own = np.concatenate([np.arange(*packing.centre_offsets[i : i + 2]) for i in clips])
        packing = Packing(
            "compact",
            packing.dim,
            packing.centre_T[rows],
            packing.centre_CD[own],
            packing.centre_scale_C[own],
            np.concatenate([[0], np.cumsum(np.diff(packing.centre_offsets)[clips])]),
        )
    return TokenBlocks(blocks.tokens_TD[rows], edges, None, blocks.scale_T[rows], packing)


@pytest.mark.parametrize("precision", PACKED)
@pytest.mark.parametrize("width", WIDTHS)
def test_a_packed_token_scores_as_it_decodes(kernel, precision, width):
    blocks, tokens = problem(precision, width)
    generator = np.random.default_rng(width)
    queries = [unit(generator, count, width) for count in (1, 7, 16, 17, 32, 33, 77)]
    found = mean_max_sims(queries, blocks, 1)
    for query, found_N in zip(queries, found, strict=True):
        seen = query.astype(np.float64)
        if kernel != "numpy":  # the kernel rounds the rotated query to int8
            turned = rotated(query)
            step = np.abs(turned).max(axis=1, keepdims=True) / np.float32(127)
            seen = (np.rint(turned / step) * step).astype(np.float64) @ rotated(np.eye(width, dtype=np.float32)).T.astype(np.float64)
        assert np.allclose(found_N, plain(seen, tokens, blocks.offsets), rtol=0, atol=3e-6)


@pytest.mark.skipif(len(FOUND) == 1, reason="no compiled kernel runs here")
@pytest.mark.parametrize("precision", PACKED)
@pytest.mark.parametrize("width", WIDTHS)
def test_every_instruction_set_gives_the_same_bits(monkeypatch, precision, width):
    blocks, _ = problem(precision, width)
    queries = [unit(np.random.default_rng(width), count, width) for count in (1, 20, 32, 77)]
    found = []
    for name in FOUND[:-1]:
        monkeypatch.setenv(kernels.VARIABLE, name)
        found.append(mean_max_sims(queries, blocks, 1))
    assert all(np.array_equal(found[0], other) for other in found[1:])


@pytest.mark.parametrize("precision", PACKED)
@pytest.mark.parametrize("width", [3, 136])
def test_a_pairs_score_has_the_same_bits_alone_in_any_order_batch_and_number_of_threads(kernel, precision, width):
    blocks, _ = problem(precision, width, clips=400, longest=25)
    generator = np.random.default_rng(width)
    queries = [unit(generator, count, width) for count in (1, 32, 7, 64, 9, 470, 40)]
    together = mean_max_sims(queries, blocks, 1)
    for workers in (2, 5):
        assert np.array_equal(mean_max_sims(queries, blocks, workers), together)
    for b in (0, 2, 3):
        assert np.array_equal(mean_max_sims([queries[b]], blocks, 1)[0], together[b])
    order = generator.permutation(400)
    rows = np.concatenate([np.arange(blocks.offsets[i], blocks.offsets[i + 1]) for i in order])
    assert np.array_equal(mean_max_sims(queries[::-1], part(blocks, rows, order), 1)[::-1], together[:, order])
    for i in range(0, 400, 75):
        own = np.arange(blocks.offsets[i], blocks.offsets[i + 1])
        assert np.array_equal(mean_max_sims(queries, part(blocks, own, np.array([i])), 1)[:, 0], together[:, i])


@pytest.mark.parametrize("precision", PACKED)
def test_a_masked_packed_token_counts_as_much_as_one_that_is_not_there(kernel, precision):
    blocks, tokens = problem(precision, 72)
    mask = np.random.default_rng(0).random(len(tokens)) < 0.6
    query = unit(np.random.default_rng(1), 20, 72)
    assert blocks.scale_T is not None
    scales = np.where(mask, blocks.scale_T, np.nan).astype(np.float32)  # a masked token may hold anything
    if kernel == "numpy":
        scales = blocks.scale_T
    found = mean_max_sim(query, blocks.tokens_TD, blocks.offsets, None, mask, scales, blocks.packing)
    kept = np.concatenate([[0], np.cumsum(mask)])[blocks.offsets]
    assert np.allclose(found, plain(query, tokens[mask], kept), atol=5e-3)
    assert np.array_equal(np.isneginf(found), np.diff(kept) == 0)


@pytest.mark.parametrize("precision", PACKED)
def test_the_maxima_of_the_tokens_make_the_score(kernel, precision):
    blocks, tokens = problem(precision, 128, clips=20)
    query = unit(np.random.default_rng(1), 9, 128)
    best, place = token_maxima(query, blocks.tokens_TD, blocks.offsets, scale_T=blocks.scale_T, packing=blocks.packing)
    score = mean_max_sim(query, blocks.tokens_TD, blocks.offsets, scale_T=blocks.scale_T, packing=blocks.packing)
    filled = np.isfinite(score)
    assert np.allclose(best.mean(axis=0)[filled], score[filled], atol=1e-5)
    for clip in np.flatnonzero(filled):
        assert ((place[:, clip] >= blocks.offsets[clip]) & (place[:, clip] < blocks.offsets[clip + 1])).all()
        found = np.einsum("qd,qd->q", query.astype(np.float64), tokens[place[:, clip]])
        assert np.allclose(found, best[:, clip], atol=5e-3)


@pytest.mark.parametrize("precision", PACKED)
def test_a_packed_store_on_disk_scores_and_explains_as_its_clips_read_back_do(tmp_path, kernel, precision):
    generator = np.random.default_rng(0)
    with StoreWriter(tmp_path / "clips.npz", manifest={"dim": 192}, dtype=precision) as writer:
        for i in range(30):
            frames, video = unit(generator, i % 5, 192), unit(generator, 1 + i % 7, 192)
            writer.add(ClipTokens(str(i), "", frames, np.zeros(len(frames)), video, np.zeros(len(video))))
        writer.commit()
    store, query = open_store(tmp_path / "clips.npz"), unit(generator, 5, 192)
    found = scores(query, None, store, "fv")
    for i in range(len(store)):
        clip = store.clip(i)
        for score, branch, tokens in ((found[1][i], "frame", clip.frame_FD), (found[2][i], "video", clip.video_VD)):
            expected = plain(query, tokens.astype(np.float64), np.array([0, len(tokens)]))[0]
            assert score == expected or abs(score - expected) < 4e-3
            largest, row = branch_maxima(query, store.shards[0], branch, i)  # type: ignore[arg-type]
            if len(tokens):
                assert abs(largest.mean() - score) < 1e-5
                assert np.allclose(np.einsum("qd,qd->q", query, tokens[row]), largest, atol=1e-2)
            else:
                assert score == -np.inf and (row == -1).all()


def test_the_kernel_and_the_codec_have_one_table():
    # One token a level: a query along one axis of the rotated space reads the level off.
    if len(FOUND) == 1:
        pytest.skip("no compiled kernel runs here")
    packed = np.zeros((16, 32), np.uint8)
    packed[:, 0] = np.arange(16) | np.arange(16) << 4
    query = unrotated(np.eye(64, dtype=np.float32)[:1])
    found = mean_max_sim(query, packed, np.arange(17), scale_T=np.full(16, 1 / 256, np.float32), packing=Packing("int4", 64))
    assert np.allclose(found, LEVELS / 256, atol=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("broken", ["token", "centre"])
def test_a_packed_clip_whose_scale_is_not_finite_is_named(kernel, value, broken):
    blocks, _ = problem("compact", 64, clips=12, longest=9, seed=3)
    packing, scales = blocks.packing, np.array(blocks.scale_T)
    assert packing is not None and packing.centre_scale_C is not None and packing.centre_offsets is not None
    clip = next(i for i in range(4, 12) if np.diff(blocks.offsets)[i])
    if broken == "token":
        scales[blocks.offsets[clip]] = value
    else:
        centres = packing.centre_scale_C.copy()
        centres[packing.centre_offsets[clip]] = value
        packing = replace(packing, centre_scale_C=centres)
    with pytest.raises(InputError, match=f"clip {clip}: its tokens are not finite"):
        mean_max_sim(unit(np.random.default_rng(0), 40, 64), blocks.tokens_TD, blocks.offsets, None, None, scales, packing)


def test_a_token_that_names_another_clips_centre_stops_the_search(kernel):
    blocks, _ = problem("compact", 64, clips=300, longest=9)
    packing = blocks.packing
    assert packing is not None and packing.centre_T is not None
    bad = packing.centre_T.copy()
    bad[blocks.offsets[7] if np.diff(blocks.offsets)[7] else blocks.offsets[8]] = 255
    with pytest.raises(Exception, match=r"not finite|a centre that its clip does not have"):
        mean_max_sim(
            unit(np.random.default_rng(0), 4, 64),
            blocks.tokens_TD,
            blocks.offsets,
            scale_T=blocks.scale_T,
            packing=replace(packing, centre_T=bad),
        )


def test_clips_of_hundreds_of_centres_are_scored_in_bounded_memory(kernel):
    generator = np.random.default_rng(0)
    tokens = unit(generator, 4 * 1500, 64)
    offsets = np.arange(0, 6001, 1500)
    made = encode("compact", tokens, offsets, tokens[:0], np.zeros(5, np.int64))
    assert np.diff(made["centre_offsets"]).max() > 200
    blocks = TokenBlocks(made["frame_TD"], offsets, None, made["frame_scale_T"], packing_of(made, "compact", 64, "frame"))
    query = unit(generator, 5, 64)
    expected = plain(query, decode(made, "compact", 64, "frame", offsets).astype(np.float64), offsets)
    assert np.allclose(mean_max_sims([query], blocks, 1)[0], expected, atol=5e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dim": 65}, "65 wide do not take"),
        ({"precision": "int8"}, "int8 tokens 64 wide do not take|left out or given"),
        ({"centre_T": None}, "left out or given"),
        ({"centre_T": np.zeros(3, np.uint8)}, "too few or too many"),
        ({"centre_scale_C": np.zeros(0, np.float32)}, "too few or too many"),
        ({"centre_CD": np.zeros((0, 3), np.uint8), "centre_scale_C": np.zeros(0, np.float32)}, "centres have shape"),
        ({"centre_offsets": np.array([0, 9999])}, "offsets of centres do not fit"),
    ],
)
def test_a_packing_that_does_not_fit_is_refused(change, message):
    blocks, _ = problem("compact", 64, clips=5)
    assert blocks.packing is not None
    with pytest.raises(InputError, match=message):
        TokenBlocks(blocks.tokens_TD, blocks.offsets, None, blocks.scale_T, replace(blocks.packing, **change))


def test_packed_tokens_without_a_packing_are_refused():
    with pytest.raises(InputError, match="packed tokens are uint8"):
        TokenBlocks(np.zeros((2, 8), np.uint8), [0, 2], None, np.ones(2, np.float32))
