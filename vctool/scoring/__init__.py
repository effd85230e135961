"""MeanMaxSim: how well each word of a query is answered by its best frame and its best moment in context."""

from vctool.scoring.branches import Branch, Query, ShardSource, TokenSource, batch_scores, branch_blocks, branch_maxima, scores, shards_of
from vctool.scoring.chosen import chosen_scores
from vctool.scoring.meanmaxsim import ONE, counted_tokens, mean_max_sim, mean_max_sims, token_maxima
from vctool.scoring.scorer import Scorer
from vctool.scoring.tiles import TokenBlocks

__all__ = [
    "ONE",
    "Branch",
    "Query",
    "Scorer",
    "ShardSource",
    "TokenBlocks",
    "TokenSource",
    "batch_scores",
    "branch_blocks",
    "branch_maxima",
    "chosen_scores",
    "counted_tokens",
    "mean_max_sim",
    "mean_max_sims",
    "scores",
    "shards_of",
    "token_maxima",
]
