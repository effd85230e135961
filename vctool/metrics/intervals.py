"""Confidence intervals by the percentile bootstrap over queries (or over clips, where captions share one)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from vctool.errors import InputError, UsageProblem
from vctool.metrics.ranking import PerQuery, RankingMetrics
from vctool.metrics.ranks import NDCG_AT, RECALL_AT, QueryScores
from vctool.metrics.relevance import FloatArray, IntArray

# Metrics that are means over queries, in the order of `per_query_values`' columns.
MEANS = (*(f"R@{k}" for k in RECALL_AT), "MnR", "MRR", "mAP", f"nDCG@{NDCG_AT}")
INTERVAL_METRICS = (*MEANS, "MdR", "geometric_mean")


def per_query_values(scored: QueryScores | PerQuery) -> FloatArray:
    """[Q, len(MEANS)]: what each query adds to each mean (recall as 0 or 100)."""
    rank = scored.rank
    return np.stack([*(100.0 * (rank <= k) for k in RECALL_AT), rank, scored.reciprocal, scored.precision, scored.ndcg], axis=1)


def statistics(means: FloatArray, median: FloatArray) -> FloatArray:
    """[..., len(INTERVAL_METRICS)] from the means [..., len(MEANS)] and median ranks [...]."""
    product = np.prod(np.maximum(means[..., : RECALL_AT.index(10) + 1], 0.0), axis=-1)
    return np.concatenate([means, median[..., None], np.cbrt(product)[..., None]], axis=-1)


def resampled(queries: int, resamples: int, seed: int, groups: IntArray | None = None) -> Iterator[npt.NDArray[np.intp]]:
    """Yield `resamples` draws of query numbers with replacement; with `groups` [Q] whole groups are drawn."""
    if resamples < 1:
        raise UsageProblem(f"the number of bootstrap resamples must be at least 1, got {resamples}")
    rng = np.random.default_rng(seed)
    if groups is None:
        for _ in range(resamples):
            yield rng.integers(0, queries, queries)
        return
    if len(groups) != queries:
        raise InputError(f"bootstrap groups: {len(groups)} labels for {queries} queries")
    order = np.argsort(groups, kind="stable")
    members = np.split(order, np.flatnonzero(np.diff(groups[order])) + 1)
    for _ in range(resamples):
        yield np.concatenate([members[i] for i in rng.integers(0, len(members), len(members))])


def bootstrap_intervals(
    metrics: RankingMetrics,
    *,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
    groups: IntArray | None = None,
) -> dict[str, tuple[float, float]]:
    """{metric: (low, high)} by the percentile bootstrap (Efron 1979), reproducible for a seed.

    groups: int [Q], e.g. each caption's clip: then clips are resampled with all their captions, which is the honest
    choice where captions of one clip rise and fall together (MSVD, VATEX). level: between 0 and 1.
    """
    if not 0.0 < level < 1.0:
        raise UsageProblem(f"the interval's level must lie between 0 and 1, got {level}")
    values = per_query_values(metrics.per_query)
    drawn = np.empty((resamples, len(INTERVAL_METRICS)))
    for i, chosen in enumerate(resampled(len(values), resamples, seed, groups)):
        weight = np.bincount(chosen, minlength=len(values)).astype(np.float64)
        means = weight @ values / len(chosen)
        drawn[i] = statistics(means, np.asarray(np.median(metrics.ranks[chosen])))
    tail = (1.0 - level) / 2
    low, high = np.quantile(drawn, [tail, 1.0 - tail], axis=0)
    return {name: (float(low[i]), float(high[i])) for i, name in enumerate(INTERVAL_METRICS)}
