"""MeanMaxSim: the definition in NumPy that every faster kernel is held against, and the choice of the kernel.

    MMS(q, x) = 1/M * sum over counted query tokens j of  max over valid tokens i of  <q_j, x_i>        (method, 6.4)

Shape letters: B queries, Q query tokens, M counted query tokens, N clips, T tokens of all clips end to end, D width.

Products and maxima are float32, the sum over query tokens is float64, scores are float32. Masked tokens are -inf before
the maximum. A pair's score has the same bits alone, in any store, order, chunk and batch (see `tiles`).

int8, float16 and packed tokens are scored by the compiled kernel where one runs (see `kernels` and docs/scoring.md), float32
always by NumPy. A kernel keeps the same promise about bits; with int8 and packed tokens it also rounds the query to int8, a
scale a token. Packed tokens are multiplied as they are stored, rotated, with a query that is rotated once.

A maximum within `ONE` of 1 counts as 1, so that identical tokens score exactly 1 and not 0.9999996: the bound is by how
much float32 sums of a few thousand products are off. Float16 and int8 tokens are rounded: not identical any more.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from vctool.errors import InputError
from vctool.precision import Packing, rotated
from vctool.scoring.kernels import Kernel, PackedQueries, chosen_kernel, kernel_scores, rounded_query
from vctool.scoring.tiles import Float32, Int64, NotFinite, TokenBlocks, Tokens, query_tiles

ONE = 2.0**-18

# Bytes of tokens for each thread, by the kernel: about 1.5 ms, what starting threads took here. Beyond four tiles of 16 query tokens
# products take longer than reading.
_A_THREAD = 16 << 20
_FEW = 64  # tokens a clip up to which a loop over them beats reduceat
_GROUP = 512  # query tokens multiplied with a block at once: 2 MiB of similarities


def mean_max_sim(
    query_QD: npt.ArrayLike,
    tokens_TD: Tokens,
    offsets: npt.ArrayLike,
    query_mask_Q: npt.ArrayLike | None = None,
    token_mask_T: npt.ArrayLike | None = None,
    scale_T: npt.ArrayLike | None = None,
    packing: Packing | None = None,
) -> Float32:
    """MeanMaxSim of one query with every clip: float32 [N].

    query_QD, tokens_TD: L2-normalised rows; tokens are float32, float16, int8 with `scale_T` (value = int8 * scale),
    or uint8 with scales and a `packing`.
    offsets: int [N + 1], clip i owns rows offsets[i]:offsets[i + 1]. Masks: True counts; by default all do.
    A clip without a valid token scores -inf. Working memory does not grow with T.

    Raises InputError: no query token counts, shapes or widths that do not fit, offsets that run backwards, values that
    are not finite.
    """
    counted_MD = counted_tokens(query_QD, query_mask_Q)
    score_1N = mean_max_sims([counted_MD], TokenBlocks(tokens_TD, offsets, token_mask_T, scale_T, packing), workers=1)
    return score_1N.reshape(-1)


def mean_max_sims(queries: Sequence[Float32], blocks: TokenBlocks, workers: int | None = None) -> Float32:
    """MeanMaxSim of B queries (their counted tokens, see `counted_tokens`) with N clips in one pass: float32 [B, N].

    workers: threads that share the clips; None is one for each core this process may use, fewer where there is little to share.
    """
    _check_width(queries, blocks)
    if not queries:
        return np.empty((0, blocks.clips), np.float32)
    if blocks.packing is not None:
        queries = [rotated(query_MD) for query_MD in queries]
    kernel = chosen_kernel(blocks.tokens_TD.dtype)
    if kernel != "numpy" and blocks.tokens_TD.flags.c_contiguous and blocks.dim:
        score_BN = _by_kernel(queries, blocks, kernel, workers)
    else:
        score_BN = _by_numpy(queries, blocks, workers)
    bad_N = ~(score_BN < np.inf).all(axis=0)
    if bad_N.any():
        raise NotFinite(int(bad_N.argmax()))
    return score_BN


def _by_kernel(queries: Sequence[Float32], blocks: TokenBlocks, kernel: Kernel, workers: int | None) -> Float32:
    score_BN = np.empty((len(queries), blocks.clips), np.float32)
    ranges = list(_ranges(queries))
    groups = [(first, PackedQueries(queries[first:last], blocks.tokens_TD.dtype, kernel)) for first, last in ranges]

    def fill(span: tuple[int, int]) -> None:
        for first, packed in groups:
            kernel_scores(packed, blocks, kernel, *span, score_BN[first:])

    if workers is None:
        tiles = sum(int(packed.tile_B[-1]) for _, packed in groups)
        workers = min(_threads(None), max(1, blocks.nbytes * max(4, tiles) // 4 // _A_THREAD))
    _for_each(fill, blocks.spans(1 if workers == 1 else 4 * workers), workers)
    return score_BN


def _by_numpy(queries: Sequence[Float32], blocks: TokenBlocks, workers: int | None) -> Float32:
    groups = [_Group(first, queries[first:last]) for first, last in _ranges(queries)]
    score_BN = np.empty((len(queries), blocks.clips), np.float32)

    def fill(run: tuple[int, int]) -> None:
        first, last = run
        maxima = [np.full((len(group.tiles) * group.tiles.shape[1], last - first), -np.inf, np.float32) for group in groups]
        for start, rows, block_RD in blocks.blocks(first, last):
            edges = np.clip(blocks.offsets[first : last + 1] - start, 0, rows)
            for group, max_MN in zip(groups, maxima, strict=True):
                sim_MR = blocks.similarities(group.tiles, start, rows, block_RD)
                _merge_maxima(max_MN, sim_MR, edges)
        for group, max_MN in zip(groups, maxima, strict=True):
            score_BN[group.first : group.last, first:last] = group.means(_snapped(max_MN))

    _for_each(fill, blocks.chunks(), workers)
    return score_BN


def token_maxima(
    query_QD: npt.ArrayLike,
    tokens_TD: Tokens,
    offsets: npt.ArrayLike,
    query_mask_Q: npt.ArrayLike | None = None,
    token_mask_T: npt.ArrayLike | None = None,
    scale_T: npt.ArrayLike | None = None,
    packing: Packing | None = None,
) -> tuple[Float32, Int64]:
    """What each query token found in each clip: its largest cosine, float32 [Q, N], and the row of `tokens_TD`, int64 [Q, N].

    The mean of a clip's maxima over counted query tokens is its `mean_max_sim`, to 5e-6. Of several equal tokens the first is
    named. A query token that does not count, or a clip without a valid token, has -inf and row -1.
    For explaining a handful of hits: works clip by clip. Raises as `mean_max_sim`.
    """
    return block_maxima(query_QD, TokenBlocks(tokens_TD, offsets, token_mask_T, scale_T, packing), query_mask_Q)


def block_maxima(query_QD: npt.ArrayLike, blocks: TokenBlocks, query_mask_Q: npt.ArrayLike | None = None) -> tuple[Float32, Int64]:
    """`token_maxima` of tokens that are given out as blocks."""
    counted_MD = counted_tokens(query_QD, query_mask_Q)
    _check_width([counted_MD], blocks)
    if blocks.packing is not None:
        counted_MD = rotated(counted_MD)
    tiles = query_tiles(rounded_query(counted_MD, blocks.tokens_TD.dtype))
    best_MN = np.full((len(counted_MD), blocks.clips), -np.inf, np.float32)
    row_MN = np.full((len(counted_MD), blocks.clips), -1, np.int64)
    for clip in range(blocks.clips):
        for start, rows, block_RD in blocks.blocks(clip, clip + 1):
            sim_MR = blocks.similarities(tiles, start, rows, block_RD)[: len(counted_MD)]
            place_M = sim_MR.argmax(axis=1)
            value_M = np.take_along_axis(sim_MR, place_M[:, None], axis=1)[:, 0]
            row_MN[:, clip] = np.where(value_M > best_MN[:, clip], start + place_M, row_MN[:, clip])
            best_MN[:, clip] = np.maximum(best_MN[:, clip], value_M)
    query_rows = len(np.asarray(query_QD))
    counted_Q = np.ones(query_rows, bool) if query_mask_Q is None else np.asarray(query_mask_Q, bool)
    max_QN = np.full((query_rows, blocks.clips), -np.inf, np.float32)
    row_QN = np.full((query_rows, blocks.clips), -1, np.int64)
    max_QN[counted_Q], row_QN[counted_Q] = _snapped(best_MN), row_MN
    return max_QN, row_QN


def counted_tokens(query_QD: npt.ArrayLike, query_mask_Q: npt.ArrayLike | None = None) -> Float32:
    """The query tokens that count, float32 [M, D]; raises InputError if there is none or one is not finite."""
    query = np.asarray(query_QD, dtype=np.float32)
    if query.ndim != 2:
        raise InputError(f"query tokens have shape {query.shape}", "expected one row a token, [Q, D]")
    if query_mask_Q is not None:
        mask = np.asarray(query_mask_Q)
        if mask.shape != query.shape[:1]:
            raise InputError(f"{len(query)} query tokens but a mask of shape {mask.shape}", "give one mask value a token")
        query = query[mask.astype(bool)]
    if len(query) == 0:
        raise InputError("no query token counts", "the text is empty, or the query policy leaves out all of its tokens")
    if not np.isfinite(query).all():
        raise InputError("a query token is NaN or infinite", "the text encoder failed; try full precision")
    return query


class _Group:
    """Queries first to last - 1, whose tokens are multiplied together."""

    def __init__(self, first: int, queries: Sequence[Float32]) -> None:
        self.first, self.last = first, first + len(queries)
        self.tiles = query_tiles(np.concatenate(queries))
        self._count_B = np.array([len(query_MD) for query_MD in queries])
        self._start_B = np.cumsum(self._count_B) - self._count_B

    def means(self, max_MN: Float32) -> Float32:
        """The mean of each query's maxima, float32 [B, N], summed in float64 in the order of its tokens."""
        sum_BN = np.add.reduceat(max_MN[: int(self._count_B.sum())].astype(np.float64), self._start_B, axis=0)
        mean_BN: Float32 = (sum_BN / self._count_B[:, None]).astype(np.float32)
        return mean_BN


def _ranges(queries: Sequence[Float32]) -> Iterator[tuple[int, int]]:
    """Queries first to last - 1 that have about `_GROUP` tokens together."""
    first, count = 0, 0
    for index, query_MD in enumerate(queries):
        if count and count + len(query_MD) > _GROUP:
            yield first, index
            first, count = index, 0
        count += len(query_MD)
    yield first, len(queries)


def _merge_maxima(max_MN: Float32, sim_MR: Float32, edges: Int64) -> None:
    """Raise each clip's maxima to those of its rows edges[i]:edges[i + 1] of `sim_MR`, in place."""
    count_N = np.diff(edges)
    width = int(count_N[0])
    if 0 < width <= _FEW and (count_N == width).all():
        # Clips of one length, the usual case: 2.5 times as fast as reduceat.
        sim_MNF = sim_MR[:, edges[0] : edges[-1]].reshape(len(sim_MR), -1, width)
        for place in range(width):
            np.maximum(max_MN, sim_MNF[:, :, place], out=max_MN)
        return
    filled_N = count_N > 0  # reduceat would take an empty clip for the row that follows it
    if filled_N.any():
        max_MN[:, filled_N] = np.maximum(max_MN[:, filled_N], np.maximum.reduceat(sim_MR, edges[:-1][filled_N], axis=1))


def _check_width(queries: Sequence[Float32], blocks: TokenBlocks) -> None:
    width = blocks.dim
    for query_MD in queries:
        if query_MD.shape[1] != width:
            raise InputError(f"query tokens are {query_MD.shape[1]} wide, clip tokens {width}", "query with the model of the index")


def _snapped(max_MN: Float32) -> Float32:
    return np.where(np.abs(max_MN - np.float32(1)) <= np.float32(ONE), np.float32(1), max_MN)


def _threads(workers: int | None) -> int:
    if workers is not None:
        return workers
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _for_each(work: Callable[[tuple[int, int]], None], runs: Sequence[tuple[int, int]], workers: int | None) -> None:
    workers = min(_threads(workers), len(runs))
    if workers <= 1:
        for run in runs:
            work(run)
        return
    pool = ThreadPoolExecutor(workers)  # kernels let go of the interpreter lock; NumPy in products, maxima and conversions
    try:
        for _ in pool.map(work, runs):
            pass
    finally:
        pool.shutdown(cancel_futures=True)
