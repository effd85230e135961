"""The headline: recall, median and mean rank, MRR, mAP, nDCG@10 and the geometric mean, from one matrix of scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vctool.metrics.ranks import NDCG_AT, RECALL_AT, QueryScores, ScoreMatrix, check_matrix, query_scores
from vctool.metrics.relevance import FloatArray, Relevance, RelevanceSets, as_relevance

METRIC_NAMES = (*(f"R@{k}" for k in RECALL_AT), "MdR", "MnR", "MRR", "mAP", f"nDCG@{NDCG_AT}", "geometric_mean")


@dataclass(frozen=True)
class RankingMetrics:
    """Metrics of one ranking task.

    R@K and the geometric mean are percentages (0..100), MRR, mAP and nDCG@10 are 0..1, MdR and MnR are ranks from 1.
    `recall[k]` is the share of queries whose expected rank is at most k; with several right clips the best one counts
    (trec_eval calls this success). `per_query` keeps what every query scored, so that two results can be compared.
    """

    queries: int
    clips: int
    tied_queries: int
    per_query: QueryScores
    several_relevant: bool

    @property
    def ranks(self) -> FloatArray:
        """Expected rank of each query's best right clip, float64 [Q], from 1."""
        return self.per_query.rank

    @property
    def recall(self) -> dict[int, float]:
        """R@K in percent for K in 1, 5, 10, 50."""
        return {k: recall_at(self.ranks, k) for k in RECALL_AT}

    @property
    def r1(self) -> float:
        return recall_at(self.ranks, 1)

    @property
    def median_rank(self) -> float:
        return float(np.median(self.ranks))

    @property
    def mean_rank(self) -> float:
        return float(np.mean(self.ranks))

    @property
    def mrr(self) -> float:
        return float(np.mean(self.per_query.reciprocal))

    @property
    def mean_average_precision(self) -> float:
        return float(np.mean(self.per_query.precision))

    @property
    def ndcg10(self) -> float:
        return float(np.mean(self.per_query.ndcg))

    @property
    def geometric_mean(self) -> float:
        """Geometric mean of R@1, R@5 and R@10 in percent (MSR-VTT full papers)."""
        return geometric_mean(self.ranks)

    def values(self) -> dict[str, float]:
        """The metrics under their usual names, in the usual order."""
        return _values(self.ranks, self.per_query.reciprocal, self.per_query.precision, self.per_query.ndcg)

    def optimistic(self) -> dict[str, float]:
        """The metrics with every tie broken in favour of the right clips."""
        own = self.per_query
        return _values(own.rank_best, 1.0 / own.rank_best, own.precision_best, own.ndcg_best)

    def pessimistic(self) -> dict[str, float]:
        """The metrics with every tie broken against the right clips."""
        own = self.per_query
        return _values(own.rank_worst, 1.0 / own.rank_worst, own.precision_worst, own.ndcg_worst)

    def to_dict(self, per_query: bool = False) -> dict[str, Any]:
        """JSON form. `optimistic` and `pessimistic` appear only if ties make them differ; `per_query` only on request.

        `recall_share@K` (trec_eval's recall: the share of the right clips found, averaged over all orders of tied clips)
        appears where it can differ from R@K: with several right clips, or with ties.
        """
        out: dict[str, Any] = {"queries": self.queries, "clips": self.clips, **self.values(), "tied_queries": self.tied_queries}
        if self.several_relevant or self.tied_queries:
            out.update({f"recall_share@{k}": 100.0 * float(np.mean(v)) for k, v in self.per_query.share.items()})
        if self.tied_queries:
            out["optimistic"] = self.optimistic()
            out["pessimistic"] = self.pessimistic()
        if per_query:
            out["per_query"] = PerQuery.of(self.per_query).to_dict()
        return out


@dataclass(frozen=True)
class PerQuery:
    """The part of QueryScores that a saved result keeps, so that two results can be compared later; each float64 [Q]."""

    rank: FloatArray
    reciprocal: FloatArray
    precision: FloatArray
    ndcg: FloatArray

    @classmethod
    def of(cls, scored: QueryScores) -> PerQuery:
        return cls(scored.rank, scored.reciprocal, scored.precision, scored.ndcg)

    def to_dict(self) -> dict[str, Any]:
        """`rank` always; the others only where they do not follow from it (ties, several right clips)."""
        derived = self.from_ranks(self.rank)
        out: dict[str, Any] = {"rank": [int(r) if r == int(r) else r for r in self.rank.tolist()]}
        for name in ("reciprocal", "precision", "ndcg"):
            own: FloatArray = getattr(self, name)
            if not np.allclose(own, getattr(derived, name), rtol=0, atol=1e-12):
                out[name] = [round(v, 10) for v in own.tolist()]
        return out

    @classmethod
    def from_ranks(cls, rank: FloatArray) -> PerQuery:
        """What the ranks alone say, each query having one right clip and no ties."""
        reciprocal = 1.0 / rank
        return cls(rank, reciprocal, reciprocal, np.where(rank <= NDCG_AT, 1.0 / np.log2(rank + 1.0), 0.0))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PerQuery:
        """Back from `to_dict`. Raises KeyError, TypeError or ValueError on anything else."""
        rank = np.asarray(values["rank"], dtype=np.float64)
        if rank.ndim != 1 or not len(rank) or not np.all(rank >= 1):
            raise ValueError("ranks must be numbers from 1")
        derived = cls.from_ranks(rank)
        parts = {
            name: np.asarray(values.get(name, getattr(derived, name)), dtype=np.float64) for name in ("reciprocal", "precision", "ndcg")
        }
        if any(part.shape != rank.shape for part in parts.values()):
            raise ValueError("per-query values of different lengths")
        return cls(rank, **parts)


def recall_at(ranks: FloatArray, k: int) -> float:
    """Percentage of ranks at most k."""
    return 100.0 * float(np.mean(ranks <= k))


def geometric_mean(ranks: FloatArray) -> float:
    """Geometric mean of R@1, R@5, R@10 in percent; 0 if any is 0."""
    return float(np.cbrt(np.prod([recall_at(ranks, k) for k in (1, 5, 10)])))


def _values(rank: FloatArray, reciprocal: FloatArray, precision: FloatArray, ndcg: FloatArray) -> dict[str, float]:
    out = {f"R@{k}": recall_at(rank, k) for k in RECALL_AT}
    out["MdR"] = float(np.median(rank))
    out["MnR"] = float(np.mean(rank))
    out["MRR"] = float(np.mean(reciprocal))
    out["mAP"] = float(np.mean(precision))
    out[f"nDCG@{NDCG_AT}"] = float(np.mean(ndcg))
    out["geometric_mean"] = geometric_mean(rank)
    return out


def evaluate_ranking(
    sims_QN: ScoreMatrix, relevance: Relevance | RelevanceSets, *, query_names: Sequence[str] | None = None
) -> RankingMetrics:
    """Metrics of a similarity matrix [Q, N] (queries by clips, higher is better; any real dtype, arrays or mapped files).

    relevance: int array [Q] (the right clip's column), or per query a set/array of columns, or a {column: grade} mapping.
    query_names: ids or texts used in errors. Ties give the expected rank (see `ranks`); -inf scores are allowed.
    Raises InputError for NaN (naming the query), wrong shapes, columns out of range, or queries without a right clip.
    The matrix is read in chunks of queries: memory beyond it stays below a few hundred MB.
    """
    queries, clips = check_matrix(sims_QN)
    sets = relevance
    if not isinstance(sets, RelevanceSets):
        sets = as_relevance(sets, clips, queries=queries, names=query_names)
    scored = query_scores(sims_QN, sets, query_names)
    return RankingMetrics(
        queries=queries,
        clips=clips,
        tied_queries=int(np.count_nonzero(scored.rank_best != scored.rank_worst)),
        per_query=scored,
        several_relevant=not sets.single,
    )
