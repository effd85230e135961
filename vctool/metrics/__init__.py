"""Ranks, recall, nDCG, intervals and paired tests. No torch."""

from vctool.metrics.ranking import METRIC_NAMES, RankingMetrics, evaluate_ranking
from vctool.metrics.ranks import QueryScores, ScoreMatrix
from vctool.metrics.relevance import Relevance, RelevanceSets, as_relevance

__all__ = [
    "METRIC_NAMES",
    "QueryScores",
    "RankingMetrics",
    "Relevance",
    "RelevanceSets",
    "ScoreMatrix",
    "as_relevance",
    "evaluate_ranking",
]
