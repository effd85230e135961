"""Two-stage search: a scan of the pooled vectors says which clips are worth an exact score.

How deep to score is not a constant. Some clips that follow the best ones are scored too and tell how far an exact score lies
from its estimate; with that spread the clips left are added, best estimates first, until fewer than `MISSED` of the k hits are to
be expected among those that stay out. Scenes that pooled vectors cannot tell apart spread wide and are searched deep, up to an
exact search.

Shape letters: B queries, N clips of the store, C clips scored exactly, P pooled vectors end to end.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vctool.scoring import Branch, Query, Scorer, TokenBlocks, chosen_scores, counted_tokens, mean_max_sims
from vctool.store import Store

Float32 = NDArray[np.float32]
Int64 = NDArray[np.int64]

MISSED = 0.001  # share of the k hits that may be expected among the clips that were not scored
DEEPEST = 0.25  # share of the clips from which on scoring all of them takes no longer

_FIRST = 192  # clips scored before anything is known about the spread; for many hits, four times as many as hits
_REACH = 6  # the clips that the spread is learnt from come from so many times as many
_PROBED = 64
_ROUNDS = 6
_LEAST_SPREAD = 5e-4  # scores of int8 tokens are off by as much
_TAIL_Z = np.linspace(-6, 6, 241)
_TAIL = np.array([0.5 * math.erfc(z / math.sqrt(2)) for z in _TAIL_Z])  # of the normal distribution, above z


@dataclass(frozen=True, eq=False)
class Found:
    """Clips with their exact scores: clip, int64 [C], ascending; the three scores, float32 [C]."""

    clip: Int64
    score: Float32
    frame: Float32
    video: Float32


def has_pooled(store: Store) -> bool:
    """Whether every file of the store has pooled vectors."""
    return all(shard.pooled is not None for shard in store.shards)


def estimates(queries: Sequence[Query], store: Store, branch: Branch, *, workers: int | None = None) -> Float32:
    """What the pooled vectors say of each clip's score, float32 [B, N]; -inf for a clip without tokens."""
    counted = [counted_tokens(*query) if isinstance(query, tuple) else counted_tokens(query) for query in queries]
    parts = [np.zeros((len(queries), 0), np.float32)]
    for shard in store.shards:
        if shard.pooled is not None:
            pooled = shard.pooled
            parts.append(mean_max_sims(counted, TokenBlocks(pooled.vector_PD, pooled.offsets, None, pooled.scale_P), workers))
    estimate_BN = np.concatenate(parts, axis=1)
    return estimate_BN * np.float32(2) if branch == "fv" else estimate_BN


def rerank(
    query: Query, store: Store, branch: Branch, estimate_N: Float32, hits: int, scorer: Scorer, depth: int | None = None
) -> Found | None:
    """The clips that a search for the best `hits` has to look at, scored exactly; None if that is most of the store.

    estimate_N: float32 [N], one row of `estimates`, -inf for clips that are not wanted. depth: how many to score, by default
    as many as the recall asks for.
    """
    clips = int(np.count_nonzero(estimate_N > -np.inf))
    search = _Reranking(query, store, branch, estimate_N, scorer)
    first = max(_FIRST, 4 * hits) if depth is None else depth
    nearest = _top(estimate_N, min(first if depth is not None else _REACH * first, clips))
    search.score(nearest[:first])
    if depth is None and len(nearest) > first:
        search.probe(nearest[first :: max(1, (len(nearest) - first) // _PROBED)])
    for _ in range(_ROUNDS if depth is None else 0):
        more = search.worth(hits)
        if not len(more):
            break
        if len(more) + search.scored > max(DEEPEST * clips, 4 * hits):
            return None
        search.score(more)
    return search.found()


class _Reranking:
    """One query's exact scores as they come in."""

    def __init__(self, query: Query, store: Store, branch: Branch, estimate_N: Float32, scorer: Scorer) -> None:
        self._query, self._store, self._branch, self._scorer = query, store, branch, scorer
        self._left_N = estimate_N.copy()  # -inf once scored
        self._parts: list[Found] = []
        self._estimates: list[Float32] = []
        self._learnt = np.zeros(0)

    @property
    def scored(self) -> int:
        return sum(len(part.clip) for part in self._parts)

    def score(self, clips: Int64) -> None:
        """Score these exactly."""
        clips = np.sort(clips)
        score_1C, frame_1C, video_1C = chosen_scores([self._query], self._store, self._branch, clips, self._scorer)
        self._parts.append(Found(clips, score_1C[0], frame_1C[0], video_1C[0]))
        self._estimates.append(self._left_N[clips])
        self._left_N[clips] = -np.inf

    def probe(self, clips: Int64) -> None:
        """Score these exactly, and learn from them how far estimates are off.

        The very best estimates are best partly by chance, so they say too little of the clips that follow them.
        """
        self.score(clips)
        self._learnt = (self._parts[-1].score - self._estimates[-1]).astype(np.float64)

    def worth(self, hits: int) -> Int64:
        """The clips left that have to be scored so that at most `MISSED` of the hits are expected among the others."""
        score_C, estimate_C = np.concatenate([part.score for part in self._parts]), np.concatenate(self._estimates)
        known = score_C > -np.inf
        if np.count_nonzero(known) < hits:
            return np.flatnonzero(self._left_N > -np.inf)
        off = self._learnt[np.isfinite(self._learnt)] if len(self._learnt) else (score_C - estimate_C)[known].astype(np.float64)
        shift, spread = float(off.mean()), max(float(off.std()), _LEAST_SPREAD)
        least = float(np.partition(score_C[known], -hits)[-hits])
        near = np.flatnonzero(self._left_N > least - shift - _TAIL_Z[-1] * spread)
        near = near[np.argsort(-self._left_N[near], kind="stable")]
        chance = np.interp((least - shift - self._left_N[near]) / spread, _TAIL_Z, _TAIL)
        expected = np.cumsum(chance[::-1])[::-1]  # hits missed if the search stopped before this clip
        return near[: int(np.count_nonzero(expected > MISSED * hits))]

    def found(self) -> Found:
        clip = np.concatenate([part.clip for part in self._parts])
        order = np.argsort(clip)
        return Found(clip[order], *(np.concatenate([getattr(p, name) for p in self._parts])[order] for name in ("score", "frame", "video")))


def _top(estimate_N: Float32, count: int) -> Int64:
    """Positions of the `count` highest, highest first."""
    if not count:
        return np.zeros(0, np.int64)
    near = np.argpartition(estimate_N, len(estimate_N) - count)[len(estimate_N) - count :]
    return near[np.argsort(-estimate_N[near], kind="stable")]
