"""Scores of a batch that is spread over processes: every caption against every clip, with gradients.

Each process scores its own captions against the clips of all, whose tokens are gathered; its rows of the score matrix are then
gathered too, so that every process holds the whole matrix [B, B] and takes the loss of the whole batch, whatever loss it is. Backwards
a process keeps the gradient of its own rows, and the gradients of clip tokens are summed into their owners. What travels in a step is
the clip tokens, twice, and the scores: B=1024, T=26, D=512 are 52 MiB each way and 8 MiB of scores.

Gradients are then averaged over processes, as DDP does; the factor `world` in `_JoinRows` makes a sum of that mean.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vctool.models.interaction import BranchScores
from vctool.models.video_colbert import QueryTokens, VideoColBERT, VideoTokens
from vctool.training.ranks import Ranks


def batch_scores(model: VideoColBERT, queries: QueryTokens, clips: VideoTokens, ranks: Ranks, counts: list[int]) -> BranchScores:
    """Scores [B, B] of the whole batch, in every process. queries, clips: the rows this process owns; counts: rows of each."""
    scores = model.score(queries, gather_clips(clips, ranks, counts))
    if ranks.world == 1:
        return scores
    return BranchScores(*(None if own is None else _apply(_JoinRows, own, ranks, counts) for own in scores))


def gather_clips(clips: VideoTokens, ranks: Ranks, counts: list[int]) -> VideoTokens:
    """Tokens of all processes' clips; where one has more tokens a clip than another, the difference is masked."""
    if ranks.world == 1:
        return clips
    sides = []
    for token_CTD, mask_CT in ((clips.frame_CFD, clips.frame_mask_CF), (clips.video_CVD, clips.video_mask_CV)):
        missing = ranks.most(token_CTD.shape[1]) - token_CTD.shape[1]
        mask = F.pad(mask_CT, (0, missing))
        sides += [_apply(_Gather, F.pad(token_CTD, (0, 0, 0, missing)), ranks, counts), ranks.gather(mask, counts)]
    return VideoTokens(*sides)


class _Gather(torch.autograd.Function):
    """Rows of all processes; backwards each row's gradients of all processes meet at its owner."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, ranks: Ranks, counts: list[int]) -> Tensor:
        ctx.ranks, ctx.counts = ranks, counts
        return ranks.gather(own, counts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return ctx.ranks.sum_own(gradients[0], ctx.counts), None, None


class _JoinRows(_Gather):
    """Score rows of all processes. All take the same loss of them, so a row's gradient is at its owner already."""

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return ctx.ranks.own_rows(gradients[0], ctx.counts) * ctx.ranks.world, None, None


def _apply(function: Any, own: Tensor, ranks: Ranks, counts: list[int]) -> Tensor:
    out: Tensor = function.apply(own, ranks, counts)
    return out
