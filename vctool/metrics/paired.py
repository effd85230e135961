"""Is B better than A on the same queries? A paired randomisation test, the interval of the difference, who won and lost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from vctool.errors import InputError, UsageProblem
from vctool.metrics.intervals import INTERVAL_METRICS, MEANS, per_query_values, resampled, statistics
from vctool.metrics.ranking import PerQuery
from vctool.metrics.ranks import QueryScores
from vctool.metrics.relevance import FloatArray, IntArray


@dataclass(frozen=True)
class Difference:
    """One metric of two systems: `difference` is b - a, `low..high` its bootstrap interval.

    p_value: two-sided, by randomisation; None for the median rank, whose randomisation distribution says little.
    """

    metric: str
    a: float
    b: float
    difference: float
    low: float
    high: float
    p_value: float | None

    def to_dict(self) -> dict[str, Any]:
        return {
            "metric": self.metric,
            "a": self.a,
            "b": self.b,
            "difference": self.difference,
            "interval": [self.low, self.high],
            "p_value": self.p_value,
        }


@dataclass(frozen=True)
class PairedComparison:
    """All metrics compared, and query numbers: `won` are those B ranks better, `lost` those A does, widest change first."""

    queries: int
    differences: tuple[Difference, ...]
    won: IntArray
    lost: IntArray
    equal: int


def compare_paired(
    a: QueryScores | PerQuery,
    b: QueryScores | PerQuery,
    *,
    resamples: int = 2000,
    permutations: int = 10_000,
    level: float = 0.95,
    seed: int = 0,
    groups: IntArray | None = None,
) -> PairedComparison:
    """Compare two results on the same queries in the same order.

    The p-value is the share of random swaps of the two systems' results, query by query, whose difference is at least
    as large as the one seen, counting the one seen (Fisher's randomisation test; Smucker et al., CIKM 2007). With
    `groups` (a clip number per query) all queries of a group are swapped and resampled together.
    Raises InputError if the two differ in their number of queries.
    """
    if len(a.rank) != len(b.rank):
        raise InputError(f"the two results have {len(a.rank)} and {len(b.rank)} queries: only the same queries can be compared")
    if permutations < 1:
        raise UsageProblem(f"the number of permutations must be at least 1, got {permutations}")
    if not 0.0 < level < 1.0:
        raise UsageProblem(f"the interval's level must lie between 0 and 1, got {level}")
    values_a, values_b = per_query_values(a), per_query_values(b)
    seen_a = statistics(values_a.mean(0), np.asarray(np.median(a.rank)))
    seen_b = statistics(values_b.mean(0), np.asarray(np.median(b.rank)))

    drawn = np.empty((resamples, len(INTERVAL_METRICS)))
    for i, chosen in enumerate(resampled(len(values_a), resamples, seed, groups)):
        weight = np.bincount(chosen, minlength=len(values_a)).astype(np.float64) / len(chosen)
        drawn[i] = statistics(weight @ values_b, np.asarray(np.median(b.rank[chosen])))
        drawn[i] -= statistics(weight @ values_a, np.asarray(np.median(a.rank[chosen])))
    tail = (1.0 - level) / 2
    low, high = np.quantile(drawn, [tail, 1.0 - tail], axis=0)

    p_values = _randomisation(values_a, values_b, permutations, seed + 1, groups)
    median_at = INTERVAL_METRICS.index("MdR")
    differences = tuple(
        Difference(
            metric=name,
            a=float(seen_a[i]),
            b=float(seen_b[i]),
            difference=float(seen_b[i] - seen_a[i]),
            low=float(low[i]),
            high=float(high[i]),
            p_value=None if i == median_at else float(p_values[i]),
        )
        for i, name in enumerate(INTERVAL_METRICS)
    )
    # By change in reciprocal rank: 1 against 5 matters more than 101 against 105.
    change = 1.0 / b.rank - 1.0 / a.rank
    order = np.argsort(-np.abs(change), kind="stable")
    return PairedComparison(
        queries=len(a.rank),
        differences=differences,
        won=order[change[order] > 0].astype(np.int64),
        lost=order[change[order] < 0].astype(np.int64),
        equal=int(np.count_nonzero(change == 0)),
    )


def _randomisation(values_a: FloatArray, values_b: FloatArray, permutations: int, seed: int, groups: IntArray | None) -> FloatArray:
    """Two-sided p-values per INTERVAL_METRICS (the median's entry is meaningless and is not used)."""
    queries = len(values_a)
    difference = values_b - values_a
    if groups is not None:
        _, label = np.unique(groups, return_inverse=True)
        difference = np.stack([np.bincount(label, weights=column) for column in difference.T], axis=1)
    moved = difference[np.any(difference != 0, axis=1)]
    total_a, total_b = values_a.sum(0), values_b.sum(0)

    def spread(swap: FloatArray) -> FloatArray:
        nothing = np.zeros(swap.shape[:-1])
        out: FloatArray = statistics((total_b - swap) / queries, nothing) - statistics((total_a + swap) / queries, nothing)
        return out

    seen = np.abs(spread(np.zeros(len(MEANS))))
    rng = np.random.default_rng(seed)
    at_least = np.zeros(len(INTERVAL_METRICS))
    step = max(1, min(permutations, (8 << 20) // max(1, len(moved))))
    for start in range(0, permutations, step):
        count = min(step, permutations - start)
        flips = rng.integers(0, 2, (count, len(moved)), dtype=np.int8).astype(np.float64)
        # A hair below the value seen: the same sum in another order must count as equal.
        at_least += np.count_nonzero(np.abs(spread(flips @ moved)) >= seen - 1e-9 * (1 + seen), axis=0)
    return (1.0 + at_least) / (1.0 + permutations)
