"""Per-query ranks and gains under ties, computed in chunks of queries so that big matrices fit.

Ties are averaged, never broken: with g clips scored above the right clip and e other clips scored equal, its rank is
`1 + g + e/2` (method notes 6.8). With m right clips tied at the top among e wrong ones, the expected position of the
first right one is `1 + g + e/(m+1)`, which is the same for m = 1. Average precision and nDCG under ties follow
McSherry and Najork, "Computing information retrieval performance measures efficiently in the presence of tied scores"
(ECIR 2008): the exact expectation over all orders of the tied clips.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from vctool.errors import InputError
from vctool.metrics.relevance import FloatArray, IntArray, Relevance, RelevanceSets, as_relevance, query_name

RECALL_AT = (1, 5, 10, 50)
NDCG_AT = 10
CHUNK_BYTES = 48 << 20


class ScoreMatrix(Protocol):
    """Anything that gives rows of scores by slice: an array, a mapped file, or a matrix computed on the way."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, rows: slice, /) -> npt.NDArray[Any]: ...


@dataclass(frozen=True)
class QueryScores:
    """What each query scored; every array has one value per query [Q], float64.

    rank: expected rank of the best right clip, 1-based. rank_best, rank_worst: with ties broken for and against it.
    reciprocal, precision, ndcg: expected reciprocal rank, average precision and nDCG@10 under ties, each 0..1, and the
    same with ties broken for (`_best`) and against (`_worst`). share: {k: expected share of the right clips in the top k}.
    """

    rank: FloatArray
    rank_best: FloatArray
    rank_worst: FloatArray
    reciprocal: FloatArray
    precision: FloatArray
    precision_best: FloatArray
    precision_worst: FloatArray
    ndcg: FloatArray
    ndcg_best: FloatArray
    ndcg_worst: FloatArray
    share: dict[int, FloatArray]


class _Tables:
    """Cumulative sums over positions: `harmonic[p] = sum of 1/i` and `discount[p] = sum of 1/log2(i+1)`, i = 1..p."""

    def __init__(self, clips: int) -> None:
        position = np.arange(1, clips + 1, dtype=np.float64)
        self.harmonic = np.concatenate([[0.0], np.cumsum(1.0 / position)])
        gain = np.where(position <= NDCG_AT, 1.0 / np.log2(position + 1), 0.0)
        self.discount = np.concatenate([[0.0], np.cumsum(gain)])


def chunks_of(rows: int, row_bytes: int, budget: int = CHUNK_BYTES) -> Iterator[slice]:
    """Consecutive slices over `rows`, each about `budget` bytes."""
    step = max(1, budget // max(1, row_bytes))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def check_matrix(sims: ScoreMatrix) -> tuple[int, int]:
    """(queries, clips) of a similarity matrix; InputError if it is not a two-dimensional matrix with both."""
    shape = getattr(sims, "shape", None)
    if shape is None or len(shape) != 2:
        raise InputError(f"a similarity matrix has two dimensions (queries, clips), got shape {shape}")
    if shape[0] == 0 or shape[1] == 0:
        raise InputError(f"the similarity matrix is empty: {shape[0]} queries, {shape[1]} clips")
    return int(shape[0]), int(shape[1])


def checked_rows(sims: ScoreMatrix, rows: slice, names: Sequence[str] | None = None) -> npt.NDArray[Any]:
    """Rows of the matrix as float32 or float64; InputError naming the first query whose scores hold NaN. -inf is allowed."""
    block = np.asarray(sims[rows])
    if block.dtype.kind not in "fiu":
        raise InputError(f"the similarity matrix must hold real numbers, got {block.dtype}")
    if block.dtype not in (np.float32, np.float64):
        # fp16, bf16-as-fp16 and small integers are all exact in float32; wider integers need float64.
        block = block.astype(np.float32 if block.dtype.itemsize <= 2 else np.float64)
    bad = np.isnan(block)
    if bad.any():
        at = int(np.flatnonzero(bad.any(axis=1))[0])
        raise InputError(
            f"{query_name(rows.start + at, names)}: its score for clip {int(np.flatnonzero(bad[at])[0])} is NaN",
            "the encoder or a saved matrix is broken; a metric over NaN would be meaningless",
        )
    return block


def query_scores(sims: ScoreMatrix, relevance: Relevance | RelevanceSets, names: Sequence[str] | None = None) -> QueryScores:
    """Rank the right clips of every query. sims: scores [Q, N], higher is better.

    Raises InputError on NaN (naming the query), a wrong shape, or a query without a right clip.
    """
    queries, clips = check_matrix(sims)
    if isinstance(relevance, RelevanceSets):
        sets = relevance
        if sets.queries != queries:
            raise InputError(f"the similarity matrix has {queries} queries but the relevance has {sets.queries}")
    else:
        sets = as_relevance(relevance, clips, queries=queries, names=names)
    tables = _Tables(clips)
    parts: list[dict[str, FloatArray]] = []
    for rows in chunks_of(queries, clips * 8):
        block = checked_rows(sims, rows, names)
        if sets.single:
            parts.append(_single(block, sets.columns[rows], tables))
        else:
            own = [_several(np.sort(row), row, *sets.of(rows.start + i), tables) for i, row in enumerate(block)]
            parts.append({key: np.asarray([one[key] for one in own]) for key in own[0]})
    joined = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    share = {k: joined.pop(f"share@{k}") for k in RECALL_AT}
    return QueryScores(**joined, share=share)


def _single(block: npt.NDArray[Any], columns: IntArray, tables: _Tables) -> dict[str, FloatArray]:
    """One right clip per query: count the clips above and beside it, no sorting."""
    own = block[np.arange(len(block)), columns][:, None]
    above = np.count_nonzero(block > own, axis=1).astype(np.int64)
    beside = np.count_nonzero(block == own, axis=1).astype(np.int64) - 1
    tied = (beside + 1).astype(np.float64)
    last = above + 1 + beside
    reciprocal = (tables.harmonic[last] - tables.harmonic[above]) / tied

    def at(position: IntArray) -> FloatArray:
        gain: FloatArray = tables.discount[position] - tables.discount[position - 1]
        return gain

    found = {
        "rank": 1.0 + above + beside / 2.0,
        "rank_best": 1.0 + above,
        "rank_worst": last.astype(np.float64),
        "reciprocal": reciprocal,
        "precision": reciprocal.copy(),
        "precision_best": 1.0 / (1.0 + above),
        "precision_worst": 1.0 / last,
        "ndcg": (tables.discount[last] - tables.discount[above]) / tied,
        "ndcg_best": at(above + 1),
        "ndcg_worst": at(last),
    }
    for k in RECALL_AT:
        found[f"share@{k}"] = np.clip(k - above, 0, tied) / tied
    return found


def _several(
    ascending: npt.NDArray[Any], row: npt.NDArray[Any], columns: IntArray, grades: FloatArray, tables: _Tables
) -> dict[str, float]:
    """Several (or graded) right clips for one query, walked tie group by tie group from the best score down."""
    order = np.lexsort((-grades, -row[columns]))
    score, grade = row[columns][order], grades[order]
    clips, right = len(row), len(columns)
    above = clips - np.searchsorted(ascending, score, side="right")
    tied = clips - np.searchsorted(ascending, score, side="left") - above
    first = np.flatnonzero(np.concatenate([[True], score[1:] != score[:-1]]))
    n, before = tied[first].astype(np.float64), above[first]
    r = np.diff(np.concatenate([first, [right]])).astype(np.float64)
    right_before = first.astype(np.float64)
    gain = np.add.reduceat(grade, first)

    harmonic = tables.harmonic[(before + n).astype(np.int64)] - tables.harmonic[before]
    spread = np.divide(r - 1, n - 1, out=np.zeros_like(r), where=n > 1)
    precision = np.sum(r / n * ((right_before + 1) * harmonic + spread * (n - (before + 1) * harmonic))) / right
    discount = tables.discount[(before + n).astype(np.int64)] - tables.discount[before]
    ideal_grade = np.sort(grades)[::-1][:NDCG_AT]
    ideal = float(np.sum(ideal_grade / np.log2(np.arange(len(ideal_grade)) + 2)))

    wrong = n[0] - r[0]
    # Positions with ties broken for (right clips first, best grade first) and against (last, best grade last).
    group = np.repeat(np.arange(len(first)), r.astype(np.int64))
    within = np.arange(right) - first[group]
    best = before[group] + within + 1
    worst = before[group] + (n - r)[group].astype(np.int64) + within + 1
    against = grade[(first + r.astype(np.int64) - 1)[group] - within]
    number = np.arange(1, right + 1)

    def dcg(position: IntArray, gains: FloatArray) -> float:
        kept = position <= NDCG_AT
        return float(np.sum(gains[kept] / np.log2(position[kept] + 1)))

    found = {
        "rank": float(1 + before[0] + wrong / (r[0] + 1)),
        "rank_best": float(1 + before[0]),
        "rank_worst": float(1 + before[0] + wrong),
        "reciprocal": _first_reciprocal(int(before[0]), int(n[0]), int(r[0])),
        "precision": float(precision),
        "precision_best": float(np.mean(number / best)),
        "precision_worst": float(np.mean(number / worst)),
        "ndcg": float(np.sum(gain / n * discount)) / ideal,
        "ndcg_best": dcg(best, grade) / ideal,
        "ndcg_worst": dcg(worst, against) / ideal,
    }
    for k in RECALL_AT:
        found[f"share@{k}"] = float(np.sum(r / n * np.clip(k - before, 0, n)) / right)
    return found


def _first_reciprocal(before: int, tied: int, right: int) -> float:
    """Expected 1/position of the first of `right` clips spread at random over `tied` places after `before` others."""
    if tied == right:
        return 1.0 / (before + 1)
    step = np.arange(1, tied - right + 1, dtype=np.float64)
    # P(first at j+1) = P(first at j) * (tied - j - right + 1) / (tied - j), with P(first at 1) = right / tied.
    chance = right / tied * np.concatenate([[1.0], np.cumprod((tied - step - right + 1) / (tied - step))])
    return float(np.sum(chance / (before + np.arange(1, len(chance) + 1))))
