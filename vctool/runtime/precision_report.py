"""What each precision of a store's tokens costs and finds, measured on the store's own clips.

The reference is another store of the same clips (the float16 one that this was converted from), or the store itself: then the
question is what a coarser copy of it would find. The queries are made up from stored tokens unless real ones are given: each is
about one moment of one clip, `_NEAR` of a token plus noise, so that its cosine with that token is about 0.45, as of the words of a
query with the frame they mean. They rank clips like real queries do, but are not real queries.

Shape letters: B queries, Q query tokens, N clips measured, T tokens end to end, D width, K places.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vctool.errors import InputError, StoreError
from vctool.precision import PRECISIONS, Precision, encode, packing_of, token_bytes
from vctool.scoring import Branch, TokenBlocks, branch_blocks, counted_tokens, mean_max_sims
from vctool.store import Store, TokenStore

Float32 = NDArray[np.float32]
Int64 = NDArray[np.int64]

PLACES = 10  # recall is of the first so many
HELD = 0.99  # of the reference's first places, by the rerank depth

_RUN = 64  # clips that lie together, decoded and scored at once
_NEAR, _QUERY_TOKENS = 0.5, 32


@dataclass(frozen=True)
class PrecisionRow:
    """One precision against the reference.

    stored: the store's own bytes; else encoded from the reference for this measurement. clip_bytes: of tokens, scales and centres, a
    clip. recall_1, recall_10: mean share of the reference's first 1 and 10 clips among its own first 1 and 10. depth: how many of its
    first clips hold 99 % of the reference's first 10. error: largest difference of a score.
    """

    precision: str
    stored: bool
    clip_bytes: float
    recall_1: float
    recall_10: float
    depth: int
    error: float


@dataclass(frozen=True)
class PrecisionReport:
    """reference: precision of the tokens that the rows are compared with. against: the store they are from, None for the store itself.

    clips: measured, of `of`. queries: how many; made_up: from stored tokens. rows: finest precision first.
    """

    reference: str
    against: str | None
    clips: int
    of: int
    queries: int
    made_up: bool
    branch: Branch
    seed: int
    rows: tuple[PrecisionRow, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values, as `vctool info --measure --json` prints them."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class _Run:
    """Clips start to stop - 1 of one file, and their tokens in the reference."""

    shard: TokenStore
    start: int
    stop: int
    frame_TD: Float32
    frame_offsets: Int64
    video_TD: Float32
    video_offsets: Int64


def measure_precisions(
    store: Store,
    branch: Branch,
    *,
    against: Store | None = None,
    queries: Sequence[Float32] = (),
    clips: int = 5000,
    count: int = 100,
    seed: int = 0,
) -> PrecisionReport:
    """Scores of a sample of `store` in its own and in every coarser precision, compared with exact scores of the reference's tokens.

    against: another store with the same clips, by id. queries: tokens [Q, D] each; without them `count` are made up. clips: how many to
    measure at most, in runs of neighbours spread over the store. The same arguments give the same report.
    Raises InputError for a store without tokens in that branch, StoreError if the stores have no clip in common or differ in width.
    """
    if against is not None and against.dim != store.dim:
        raise StoreError(f"{store.path} holds tokens {store.dim} wide, {against.path} {against.dim}", "give a store of the same clips")
    generator = np.random.default_rng(seed)
    spans = _spans(store, clips, generator)
    asked = [counted_tokens(query_QD) for query_QD in queries] or _made_up(store, against, spans, branch, count, generator)
    reference = (store if against is None else against).dtype
    # What is finer than the reference can be no nearer to it than the reference itself.
    coarser = [p for p in PRECISIONS if reference not in PRECISIONS or PRECISIONS.index(p) >= PRECISIONS.index(_known(reference))]
    others: list[Precision] = [p for p in coarser if p != store.dtype]
    exact: list[Float32] = []
    found: dict[str, list[Float32]] = {p: [] for p in (store.dtype, *others)}
    spent = dict.fromkeys(found, 0)
    for run in _runs(store, against, spans):
        exact.append(_scores(asked, run.frame_TD, run.frame_offsets, run.video_TD, run.video_offsets, branch))
        found[store.dtype].append(_stored_scores(asked, run, branch))
        spent[store.dtype] += token_bytes(run.shard.block(run.start, run.stop)[0])
        for precision in others:
            made = encode(precision, run.frame_TD, run.frame_offsets, run.video_TD, run.video_offsets)
            found[precision].append(_encoded_scores(asked, made, precision, store.dim, run, branch))
            spent[precision] += token_bytes(made)
    exact_BN = np.concatenate(exact, axis=1)
    alive_N = np.asarray((exact_BN > -np.inf).all(axis=0))
    if not alive_N.any():
        raise InputError(f"{store.path}: no clip has tokens in branch {branch}", "name another branch")
    rows = [
        _row(p, p == store.dtype, spent[p] / len(alive_N), exact_BN[:, alive_N], np.concatenate(parts, axis=1)[:, alive_N])
        for p, parts in found.items()
    ]
    order = {p: place for place, p in enumerate(("float32", *PRECISIONS))}
    return PrecisionReport(
        reference=reference,
        against=None if against is None else str(against.path),
        clips=len(alive_N),
        of=len(store),
        queries=len(asked),
        made_up=not len(queries),
        branch=branch,
        seed=seed,
        rows=tuple(sorted(rows, key=lambda row: order[row.precision])),
    )


def _known(dtype: str) -> Precision:
    return next(p for p in PRECISIONS if p == dtype)


def _spans(store: Store, clips: int, generator: np.random.Generator) -> list[tuple[TokenStore, int, int]]:
    """Runs of neighbouring clips, within one file each, of about `clips` together: all of them in a small store."""
    every = [(shard, start, min(start + _RUN, len(shard))) for shard in store.shards for start in range(0, len(shard), _RUN)]
    if len(store) > clips:
        chosen = np.sort(generator.permutation(len(every))[: max(1, clips // _RUN)])
        every = [every[int(i)] for i in chosen]
    if not every:
        raise InputError(f"{store.path}: holds no clip", "index some videos first")
    return every


def _runs(store: Store, against: Store | None, spans: Sequence[tuple[TokenStore, int, int]]) -> Iterator[_Run]:
    for shard, start, stop in spans:
        if against is None:
            tokens = [shard.decoded("frame", start, stop), shard.decoded("video", start, stop)]
            offsets = [edges[start : stop + 1] - edges[start] for edges in (shard.frame_offsets, shard.video_offsets)]
        else:
            clips = [against.clip(against.index_of(shard.clip_id(i))) for i in range(start, stop)]
            parts = [[clip.frame_FD for clip in clips], [clip.video_VD for clip in clips]]
            tokens = [np.concatenate(part) for part in parts]
            offsets = [np.concatenate([[0], np.cumsum([len(rows) for rows in part])]).astype(np.int64) for part in parts]
        yield _Run(shard, start, stop, tokens[0], offsets[0], tokens[1], offsets[1])


def _made_up(
    store: Store,
    against: Store | None,
    spans: Sequence[tuple[TokenStore, int, int]],
    branch: Branch,
    count: int,
    generator: np.random.Generator,
) -> list[Float32]:
    """Queries about moments of the clips measured."""
    side = "video" if branch == "v" else "frame"
    made: list[Float32] = []
    for _ in range(100 * count):
        if len(made) == count:
            break
        shard, start, stop = spans[int(generator.integers(len(spans)))]
        place = int(generator.integers(start, stop))
        clip = shard.clip(place) if against is None else against.clip(against.index_of(shard.clip_id(place)))
        token_TD = clip.frame_FD if side == "frame" else clip.video_VD
        if len(token_TD):
            moment_D = token_TD[int(generator.integers(len(token_TD)))]
            noise_QD = generator.standard_normal((_QUERY_TOKENS, store.dim)).astype(np.float32)
            query_QD = _NEAR * moment_D + noise_QD / np.linalg.norm(noise_QD, axis=1, keepdims=True)
            made.append((query_QD / np.linalg.norm(query_QD, axis=1, keepdims=True)).astype(np.float32))
    if not made:
        raise InputError(f"{store.path}: no clip has {side} tokens to make queries of", "name another branch")
    return made


def _scores(queries: Sequence[Float32], frame: Any, frame_offsets: Int64, video: Any, video_offsets: Int64, branch: Branch) -> Float32:
    """Exact: float32 tokens, by the definition."""
    blocks = {"f": TokenBlocks(frame, frame_offsets), "v": TokenBlocks(video, video_offsets)}
    return _sum([mean_max_sims(queries, blocks[one]) for one in branch])


def _stored_scores(queries: Sequence[Float32], run: _Run, branch: Branch) -> Float32:
    span = slice(run.start, run.stop)
    blocks = {"f": branch_blocks(run.shard, "frame", span), "v": branch_blocks(run.shard, "video", span)}
    return _sum([mean_max_sims(queries, blocks[one]) for one in branch])


def _encoded_scores(queries: Sequence[Float32], made: Any, precision: Precision, dim: int, run: _Run, branch: Branch) -> Float32:
    found = []
    for one, side, offsets in (("f", "frame", run.frame_offsets), ("v", "video", run.video_offsets)):
        if one in branch:
            packing = packing_of(made, precision, dim, side) if precision in ("int4", "compact") else None
            blocks = TokenBlocks(made[f"{side}_TD"], offsets, None, made.get(f"{side}_scale_T"), packing)
            found.append(mean_max_sims(queries, blocks))
    return _sum(found)


def _sum(parts: Sequence[Float32]) -> Float32:
    return parts[0] if len(parts) == 1 else parts[0] + parts[1]


def _row(precision: str, stored: bool, clip_bytes: float, exact_BN: Float32, found_BN: Float32) -> PrecisionRow:
    places = min(PLACES, exact_BN.shape[1])
    wanted_BK = np.argsort(-exact_BN, axis=1, kind="stable")[:, :places]
    order_BN = np.argsort(-found_BN, axis=1, kind="stable")
    rank_BN = np.empty_like(order_BN)
    np.put_along_axis(rank_BN, order_BN, np.arange(order_BN.shape[1])[None], axis=1)
    rank_BK = np.take_along_axis(rank_BN, wanted_BK, axis=1)
    held = np.sort(rank_BK, axis=None)[int(np.ceil(HELD * rank_BK.size)) - 1]
    return PrecisionRow(
        precision=precision,
        stored=stored,
        clip_bytes=round(clip_bytes, 1),
        recall_1=round(float((rank_BK[:, 0] == 0).mean()), 4),
        recall_10=round(float((rank_BK < places).mean()), 4),
        depth=int(held) + 1,
        error=float(f"{np.abs(found_BN - exact_BN).max():.3g}"),
    )
