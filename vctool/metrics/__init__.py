"""Ranks, recall, nDCG, intervals and paired tests. No torch."""

from vctool.metrics.directions import v2t_caption, v2t_group
from vctool.metrics.intervals import bootstrap_intervals
from vctool.metrics.paired import Difference, PairedComparison, compare_paired
from vctool.metrics.postprocess import POSTPROCESSES, DualSoftmax, PostProcess, QueryBankNorm, Sinkhorn
from vctool.metrics.ranking import METRIC_NAMES, PerQuery, RankingMetrics, evaluate_ranking
from vctool.metrics.ranks import QueryScores, ScoreMatrix
from vctool.metrics.relevance import Relevance, RelevanceSets, as_relevance

__all__ = [
    "METRIC_NAMES",
    "POSTPROCESSES",
    "Difference",
    "DualSoftmax",
    "PairedComparison",
    "PerQuery",
    "PostProcess",
    "QueryBankNorm",
    "QueryScores",
    "RankingMetrics",
    "Relevance",
    "RelevanceSets",
    "ScoreMatrix",
    "Sinkhorn",
    "as_relevance",
    "bootstrap_intervals",
    "compare_paired",
    "evaluate_ranking",
    "v2t_caption",
    "v2t_group",
]
