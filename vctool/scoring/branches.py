"""Scores of whole stores: MMS_F over frame tokens, MMS_V over video tokens, and their sum (method, 6.4).

Shape letters: B queries, Q query tokens, N clips, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol, cast

import numpy as np
import numpy.typing as npt

from vctool.errors import UsageProblem
from vctool.precision import Packing
from vctool.scoring.meanmaxsim import block_maxima, counted_tokens, mean_max_sims
from vctool.scoring.tiles import Float32, Int64, TokenBlocks

Branch = Literal["f", "v", "fv"]
_ALL = slice(None)
Query = npt.NDArray[Any] | tuple[npt.NDArray[Any], npt.NDArray[Any] | None]


class TokenSource(Protocol):
    """What scoring needs of one file of tokens: `vctool.store.TokenStore`, or anything that looks like one."""

    frame_TD: npt.NDArray[Any]
    frame_offsets: npt.NDArray[np.int64]
    frame_scale_T: Float32 | None
    video_TD: npt.NDArray[Any]
    video_offsets: npt.NDArray[np.int64]
    video_scale_T: Float32 | None


class ShardSource(Protocol):
    """What scoring needs of a store: its files in order, as `vctool.store.Store` has them."""

    @property
    def shards(self) -> Sequence[TokenSource]: ...


def scores(
    query_QD: npt.ArrayLike,
    query_mask_Q: npt.ArrayLike | None,
    store: TokenSource | ShardSource,
    branch: Branch = "fv",
    *,
    workers: int | None = None,
) -> tuple[Float32, Float32, Float32]:
    """One query against every clip of a store: (score, frame_score, video_score), each float32 [N].

    branch: `f` scores by frames, `v` by video tokens, `fv` by the sum; the score of a branch that was not asked for is NaN.
    A clip without frames scores -inf in `f` and `fv`. workers: threads; None is one for each core, fewer
    for a small store.
    Raises UsageProblem for another branch, InputError as `mean_max_sim`.
    """
    counted_MD = counted_tokens(query_QD, query_mask_Q)
    score_1N, frame_1N, video_1N = _scores([counted_MD], store, branch, workers)
    return score_1N[0], frame_1N[0], video_1N[0]


def batch_scores(
    queries: Sequence[Query], store: TokenSource | ShardSource, branch: Branch = "fv", *, workers: int | None = None
) -> tuple[Float32, Float32, Float32]:
    """B queries against every clip in one pass over the store: (score, frame_score, video_score), each float32 [B, N].

    queries: query tokens [Q, D], or pairs of tokens and mask (None: all count). Row b has the bits that `scores` gives for query b.
    """
    counted = [counted_tokens(*query) if isinstance(query, tuple) else counted_tokens(query) for query in queries]
    return _scores(counted, store, branch, workers)


def _scores(
    queries: Sequence[Float32], store: TokenSource | ShardSource, branch: Branch, workers: int | None
) -> tuple[Float32, Float32, Float32]:
    if branch not in ("f", "v", "fv"):
        raise UsageProblem(f"branch {branch!r} is not known", "choose f (frames), v (video tokens) or fv (their sum)")
    parts = [_shard_scores(queries, shard, branch, workers) for shard in shards_of(store)]
    if len(parts) == 1:
        return parts[0]
    none_B0 = np.zeros((len(queries), 0), dtype=np.float32)
    score_BN, frame_BN, video_BN = (np.concatenate([none_B0, *(part[i] for part in parts)], axis=1) for i in range(3))
    return score_BN, frame_BN, video_BN


def shards_of(store: TokenSource | ShardSource) -> Sequence[TokenSource]:
    """The files to score one after another; their scores laid end to end are the store's."""
    shards: Sequence[TokenSource] | None = getattr(store, "shards", None)
    return (cast(TokenSource, store),) if shards is None else shards


def branch_blocks(store: TokenSource, branch: Literal["frame", "video"], clips: slice = _ALL) -> TokenBlocks:
    """The tokens of one branch of one file, of all its clips or of a run of them, whatever their precision."""
    offsets: npt.NDArray[np.int64] = getattr(store, f"{branch}_offsets")
    packing: Packing | None = getattr(store, f"{branch}_packing", None)  # what looks like a store need not know of packed tokens
    first, last, _ = clips.indices(len(offsets) - 1)
    if (first, last) != (0, len(offsets) - 1):
        offsets = offsets[first : last + 1]
        packing = None if packing is None else packing.of_clips(first, last)
    return TokenBlocks(getattr(store, f"{branch}_TD"), offsets, None, getattr(store, f"{branch}_scale_T"), packing)


def branch_maxima(query_QD: npt.ArrayLike, store: TokenSource, branch: Literal["frame", "video"], index: int) -> tuple[Float32, Int64]:
    """What each token of a query found in one clip of one file: its largest cosine, float32 [Q], and the clip's token, int64 [Q].

    As `token_maxima`; -1 and -inf for a clip without tokens in that branch.
    """
    blocks = branch_blocks(store, branch, slice(index, index + 1))
    max_Q1, row_Q1 = block_maxima(query_QD, blocks)
    return max_Q1[:, 0], np.where(row_Q1[:, 0] < 0, -1, row_Q1[:, 0] - blocks.offsets[0])


def _shard_scores(queries: Sequence[Float32], store: TokenSource, branch: Branch, workers: int | None) -> tuple[Float32, Float32, Float32]:
    absent_BN = np.broadcast_to(np.float32(np.nan), (len(queries), len(store.frame_offsets) - 1))
    frame_BN = video_BN = absent_BN
    if "f" in branch:
        frame_BN = mean_max_sims(queries, branch_blocks(store, "frame"), workers)
    if "v" in branch:
        video_BN = mean_max_sims(queries, branch_blocks(store, "video"), workers)
    score_BN = frame_BN + video_BN if branch == "fv" else frame_BN if branch == "f" else video_BN
    return score_BN, frame_BN, video_BN
