"""The compiled kernels against whole-number arithmetic and float64; the same bits whatever the company; and the choice between them."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scoring_bits import unit

from vctool.errors import InputError, UsageProblem
from vctool.scoring import kernels, mean_max_sim, meanmaxsim
from vctool.scoring.meanmaxsim import mean_max_sims
from vctool.scoring.tiles import TokenBlocks

FOUND = kernels.report().found
COMPILED = [name for name in kernels.KERNELS if name != "numpy"]
WIDTHS = [1, 3, 4, 63, 64, 65, 100, 128, 512, 1000]

needs_kernel = pytest.mark.skipif(len(FOUND) == 1, reason=f"no compiled kernel runs here: {kernels.report().problem}")


@pytest.fixture(params=COMPILED)
def kernel(request, monkeypatch) -> str:
    if request.param not in FOUND:
        pytest.skip(f"{request.param} does not run here ({kernels.report().problem or 'the CPU has no such instructions'})")
    monkeypatch.setenv(kernels.VARIABLE, request.param)
    return request.param


def rounded(tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int8 and a scale a token, as a store has them."""
    scales = np.abs(tokens).max(axis=1, initial=0) / np.float32(127)
    return np.rint(tokens / scales[:, None]).astype(np.int8), scales.astype(np.float32)


def plain(query: np.ndarray, tokens: np.ndarray, offsets: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
    """The oracle: float64 throughout."""
    similarity = query.astype(np.float64) @ tokens.astype(np.float64).T
    if mask is not None:
        similarity[:, ~mask] = -np.inf
    return np.array([similarity[:, a:b].max(axis=1, initial=-np.inf).mean() for a, b in pairwise(offsets)])


def ragged(generator: np.random.Generator, clips: int, longest: int = 40) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(generator.integers(0, longest, clips))])


def all_scores(queries, tokens, offsets, mask=None, scales=None, workers=1) -> np.ndarray:
    return mean_max_sims(queries, TokenBlocks(tokens, offsets, mask, scales), workers)


@pytest.mark.parametrize("width", WIDTHS)
def test_int8_is_whole_number_arithmetic(kernel, width):
    generator = np.random.default_rng(width)
    offsets = ragged(generator, 60)
    tokens, scales = rounded(unit(generator, int(offsets[-1]), width))
    queries = [unit(generator, count, width) for count in (1, 7, 16, 17, 32, 33, 77)]
    found = all_scores(queries, tokens, offsets, scales=scales)
    for query, found_N in zip(queries, found, strict=True):
        whole, step = rounded(query)
        expected = plain(whole.astype(np.float64) * step[:, None], tokens.astype(np.float64) * scales[:, None], offsets)
        assert np.allclose(found_N, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("width", WIDTHS)
def test_float16_is_exact_to_the_sixteenth_bit(kernel, width):
    generator = np.random.default_rng(width)
    offsets = ragged(generator, 60)
    tokens = unit(generator, int(offsets[-1]), width).astype(np.float16)
    queries = [unit(generator, count, width) for count in (1, 7, 16, 17, 32, 33, 77)]
    for query, found_N in zip(queries, all_scores(queries, tokens, offsets), strict=True):
        assert np.allclose(found_N, plain(query, tokens, offsets), rtol=0, atol=1e-5 if kernel == "amx" else 5e-7)


@pytest.mark.parametrize("count", range(1, 81))
def test_a_query_may_have_any_number_of_tokens(kernel, count):
    generator = np.random.default_rng(count)
    tokens, scales = rounded(unit(generator, 75, 64))
    query, offsets = unit(generator, count, 64), np.array([0, 12, 12, 30, 75])
    whole, step = rounded(query)
    expected = plain(whole * step[:, None], tokens * scales[:, None], offsets)
    assert np.allclose(mean_max_sim(query, tokens, offsets, scale_T=scales), expected, atol=1e-6)


@pytest.mark.parametrize("count", [1, 12, 32, 77])
def test_int8_scores_are_off_by_less_than_0_002_at_512_wide(kernel, count):
    generator = np.random.default_rng(count)
    offsets = np.arange(0, 26_001, 13)
    exact = unit(generator, 26_000, 512)
    tokens, scales = rounded(exact)
    query = unit(generator, count, 512)
    error = np.abs(mean_max_sim(query, tokens, offsets, scale_T=scales) - plain(query, exact, offsets))
    assert error.max() < 0.002


def test_int8_tokens_of_minus_128_and_negative_scales_count_as_what_they_are(kernel):
    tokens = np.array([[-128] * 64, [127] * 64, [-128, 127] * 32], np.int8)
    scales = np.array([0.001, -0.001, 0], np.float32)
    query = np.full((2, 64), 0.125, np.float32)
    found = mean_max_sim(query, tokens, [0, 1, 2, 3], scale_T=scales)
    assert np.allclose(found, [-128 * 0.001 * 8, -127 * 0.001 * 8, 0], rtol=1e-6)


@needs_kernel
@pytest.mark.parametrize("width", WIDTHS)
def test_every_instruction_set_gives_int8_scores_the_same_bits(monkeypatch, width):
    generator = np.random.default_rng(width)
    offsets = ragged(generator, 80)
    tokens, scales = rounded(unit(generator, int(offsets[-1]), width))
    queries = [unit(generator, count, width) for count in (1, 20, 32, 77)]
    found = []
    for name in FOUND[:-1]:
        monkeypatch.setenv(kernels.VARIABLE, name)
        found.append(all_scores(queries, tokens, offsets, scales=scales))
    assert all(np.array_equal(found[0], other) for other in found[1:])


@needs_kernel
@pytest.mark.skipif(meanmaxsim._threads(None) < 2, reason="one core: there is never a second thread")
def test_threads_are_started_only_where_there_is_enough_to_share(monkeypatch):
    started = []

    class Counted(ThreadPoolExecutor):
        def __init__(self, workers: int) -> None:
            started.append(workers)
            super().__init__(workers)

    monkeypatch.setattr(meanmaxsim, "ThreadPoolExecutor", Counted)
    generator = np.random.default_rng(5)
    tokens, offsets = generator.integers(-127, 128, (70_000, 512), np.int8), np.arange(0, 70_001, 10)
    scales, query = np.full(len(tokens), 0.001, np.float32), unit(generator, 32, 512)
    small = all_scores([query], tokens[:20_000], offsets[:2001], scales=scales[:20_000], workers=None)
    assert started == []
    large = all_scores([query], tokens, offsets, scales=scales, workers=None)
    assert started == [2]
    assert np.array_equal(large[:, :2000], small)


@pytest.mark.parametrize("dtype", ["int8", "float16"])
@pytest.mark.parametrize("width", [3, 64, 200, 512])
def test_a_pairs_score_has_the_same_bits_alone_in_any_order_batch_and_number_of_threads(kernel, dtype, width):
    generator = np.random.default_rng(width)
    offsets = ragged(generator, 700, longest=33)
    exact = unit(generator, int(offsets[-1]), width)
    tokens, scales = rounded(exact) if dtype == "int8" else (exact.astype(np.float16), None)
    queries = [unit(generator, count, width) for count in (1, 32, 7, 64, 9, 500, 40)]
    together = all_scores(queries, tokens, offsets, scales=scales)
    for workers in (2, 5):
        assert np.array_equal(all_scores(queries, tokens, offsets, scales=scales, workers=workers), together)
    for b, query in enumerate(queries):
        assert np.array_equal(all_scores([query], tokens, offsets, scales=scales)[0], together[b])
    order = generator.permutation(700)
    rows = np.concatenate([np.arange(offsets[i], offsets[i + 1]) for i in order])
    edges = np.concatenate([[0], np.cumsum(np.diff(offsets)[order])])
    shuffled = all_scores(queries[::-1], tokens[rows], edges, scales=None if scales is None else scales[rows])
    assert np.array_equal(shuffled[::-1], together[:, order])
    for i in range(0, 700, 70):
        own = slice(offsets[i], offsets[i + 1])
        alone = all_scores(queries, tokens[own], [0, own.stop - own.start], scales=None if scales is None else scales[own])
        assert np.array_equal(alone[:, 0], together[:, i])


@st.composite
def masked_problems(draw):
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    counts = draw(st.lists(st.integers(0, 70), min_size=1, max_size=8))
    offsets = np.concatenate([[0], np.cumsum(counts)])
    width = draw(st.sampled_from([2, 64, 72]))
    tokens = unit(generator, int(offsets[-1]), width)
    return (
        unit(generator, draw(st.integers(1, 40)), width),
        tokens,
        offsets,
        generator.random(len(tokens)) < draw(st.sampled_from([0.1, 0.7])),
    )


@needs_kernel
@given(masked_problems(), st.sampled_from(FOUND[:-1] or ("numpy",)))
@settings(max_examples=100, deadline=None)
def test_a_masked_token_counts_as_much_as_one_that_is_not_there(problem, name):
    query, exact, offsets, mask = problem
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(kernels.VARIABLE, name)
        kept = np.concatenate([[0], np.cumsum(mask)])[offsets]
        tokens, scales = rounded(exact) if len(exact) else (exact.astype(np.int8), np.zeros(0, np.float32))
        scales[~mask] = np.nan  # a masked token may hold anything
        found = mean_max_sim(query, tokens, offsets, None, mask, scales)
        assert np.array_equal(found, mean_max_sim(query, tokens[mask], kept, None, None, scales[mask]))
        half = exact.astype(np.float16)
        half[~mask] = np.nan
        found = mean_max_sim(query, half, offsets, None, mask)
        assert np.array_equal(found, mean_max_sim(query, half[mask], kept))
        assert np.array_equal(np.isneginf(found), np.diff(kept) == 0)


def test_a_clip_without_tokens_scores_minus_infinity(kernel):
    query = unit(np.random.default_rng(0), 3, 64)
    for tokens, scales in ((query.astype(np.float16), None), rounded(query)):
        assert np.isneginf(mean_max_sim(query, tokens, [0, 0, 3, 3], scale_T=scales)).tolist() == [True, False, True]
        assert mean_max_sim(query, tokens[:0], [0, 0], scale_T=None if scales is None else scales[:0]).tolist() == [-np.inf]
        assert mean_max_sim(query, tokens[:0], [0], scale_T=None if scales is None else scales[:0]).tolist() == []


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_clip_whose_tokens_are_not_finite_is_named(kernel, value):
    query = unit(np.random.default_rng(0), 40, 64)
    tokens, scales = rounded(query)
    scales[20] = value
    half = query.astype(np.float16)
    half[20, 63] = value
    offsets = [0, 10, 15, 21, 40]
    for arguments in ((tokens, offsets, None, None, scales), (half, offsets)):
        with pytest.raises(InputError, match="clip 2: its tokens are not finite"):
            mean_max_sim(query, *arguments)


def test_identical_tokens_of_one_dimension_score_exactly_1(kernel):
    axes = np.eye(64, dtype=np.float32)
    tokens, scales = rounded(axes)
    assert mean_max_sim(axes, tokens, [0, 64], scale_T=scales).tolist() == [1]
    assert mean_max_sim(axes, axes.astype(np.float16), [0, 64]).tolist() == [1]


def test_tokens_may_lie_at_any_address_and_in_any_order_of_memory(kernel):
    generator = np.random.default_rng(0)
    query, exact = unit(generator, 9, 128), unit(generator, 90, 128)
    tokens, scales = rounded(exact)
    expected = mean_max_sim(query, tokens, [0, 50, 90], scale_T=scales)
    room = np.zeros(tokens.size + 1, np.int8)
    room[1:] = tokens.reshape(-1)
    assert np.array_equal(mean_max_sim(query, room[1:].reshape(90, 128), [0, 50, 90], scale_T=scales), expected)
    strange = mean_max_sim(query, np.asfortranarray(tokens), [0, 50, 90], scale_T=np.repeat(scales, 2)[::2])
    assert np.allclose(strange, expected, atol=0.005)


_AT_THE_EDGE = """
import ctypes, mmap, os, sys
import numpy as np
from vctool.scoring import mean_max_sim
PAGE = mmap.PAGESIZE
room = mmap.mmap(-1, 64 * PAGE)
start = ctypes.addressof(ctypes.c_char.from_buffer(room))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.mprotect(ctypes.c_void_p(start + 63 * PAGE), ctypes.c_size_t(PAGE), 0) == 0
for width in (1, 3, 64, 100, 512):
    for rows in (1, 5, 17, 32, 37):
        for dtype in (np.int8, np.float16):
            size = rows * width * np.dtype(dtype).itemsize
            tokens = np.frombuffer(room, dtype, rows * width, 63 * PAGE - size).reshape(rows, width)
            scales = np.ones(rows, np.float32) if dtype == np.int8 else None
            assert mean_max_sim(np.ones((20, width), np.float32), tokens, [0, rows], scale_T=scales).tolist() == [0]
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is protected by a call of Linux")
def test_nothing_is_read_past_the_last_token(kernel, tmp_path):
    # The tokens end where memory that may not be touched begins, as at the end of a mapped file. In a folder of its own: `-c`
    # imports from the current one, and a source tree need not hold the compiled kernel.
    result = subprocess.run([sys.executable, "-c", _AT_THE_EDGE], capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stderr


# Which kernel runs


def test_the_best_kernel_is_chosen_unless_one_is_named(monkeypatch):
    for value in (None, "", "auto", "AUTO"):
        if value is None:
            monkeypatch.delenv(kernels.VARIABLE, raising=False)
        else:
            monkeypatch.setenv(kernels.VARIABLE, value)
        assert kernels.chosen_kernel(np.int8) == kernels.chosen_kernel(np.float16) == FOUND[0]
    monkeypatch.setenv(kernels.VARIABLE, "numpy")
    assert kernels.chosen_kernel(np.int8) == "numpy"


def test_float32_tokens_are_left_to_numpy(kernel):
    assert kernels.chosen_kernel(np.float32) == "numpy" and kernels.chosen_kernel(np.int8) == kernel


def test_a_kernel_that_is_not_known_is_refused_by_name(monkeypatch):
    monkeypatch.setenv(kernels.VARIABLE, "neon")
    with pytest.raises(UsageProblem, match="choose auto, amx, vnni, avx2 or numpy"):
        mean_max_sim(np.eye(2), np.eye(2, dtype=np.float16), [0, 2])


def test_a_kernel_that_does_not_run_here_is_refused_and_not_replaced(monkeypatch):
    monkeypatch.setattr(kernels, "report", lambda: kernels.KernelReport(("avx2", "numpy")))
    monkeypatch.setenv(kernels.VARIABLE, "amx")
    with pytest.raises(UsageProblem, match="this CPU runs avx2, numpy"):
        mean_max_sim(np.eye(2), np.eye(2, dtype=np.float16), [0, 2])


@pytest.mark.parametrize("bytes_there", [None, b"not a library"])
def test_without_a_usable_library_numpy_scores_and_the_reason_is_told(monkeypatch, tmp_path, bytes_there):
    library = tmp_path / "_kernel.so"
    if bytes_there is not None:
        library.write_bytes(bytes_there)
    monkeypatch.setattr(kernels, "LIBRARY", library)
    monkeypatch.delenv(kernels.VARIABLE, raising=False)
    kernels._library.cache_clear()
    kernels.report.cache_clear()
    try:
        told = kernels.report()
        assert told.found == ("numpy",) and ("does not load" if bytes_there else "was not compiled") in told.problem
        assert mean_max_sim(np.eye(2), np.eye(2, dtype=np.float16), [0, 2]).tolist() == [1]
    finally:
        kernels._library.cache_clear()
        kernels.report.cache_clear()
