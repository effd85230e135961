"""Ways to compare tokens other than MeanMaxSim, built so that it can be measured against them.

They exist in PyTorch alone: a model trained with one of them is evaluated here and is neither exported nor served, because
the runtime would score it by another rule than the one it was trained for.

    sum        sum over query tokens of the maximum: MeanMaxSim times the number of counted tokens
    two_way    mean of MeanMaxSim from query to clip and from clip to query
    weighted   two-way, each side's mean weighted by a softmax over learned token weights (weighted token interaction
               of DRL: Wang et al., "Disentangled Representation Learning for Text-Video Retrieval", 2022)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vctool.config import SimilarityKind

_NOWHERE = torch.finfo(torch.float32).min


class TokenWeights(nn.Module):
    """A weight for each token of a text or clip from the token itself: two layers, then a softmax over the valid tokens.

    Tokens arrive with length 1; they are brought to unit variance per channel first, since the layers' starts expect that.
    (DRL feeds its tokens before normalisation; ours keep no length.)
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1))

    def forward(self, token_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        """weight_BT float32: at least 0, 0 where masked, summing to 1 (to 0 where nothing is valid)."""
        logit_BT = self.layers(token_BTD * token_BTD.shape[-1] ** 0.5).squeeze(-1).float()
        weight_BT: Tensor = logit_BT.masked_fill(~mask_BT, _NOWHERE).softmax(dim=-1)
        return weight_BT * mask_BT


class TokenSimilarity(nn.Module):
    """Scores of one branch by `kind`; with `weighted` it has parameters, one TokenWeights for texts and one for clips."""

    def __init__(self, kind: SimilarityKind, width: int) -> None:
        super().__init__()
        self.kind = kind
        self.query_weights = TokenWeights(width) if kind == "weighted" else None
        self.token_weights = TokenWeights(width) if kind == "weighted" else None

    def forward(self, query_BQD: Tensor, query_mask_BQ: Tensor, token_CTD: Tensor, token_mask_CT: Tensor, *, chunk: int = 64) -> Tensor:
        """score_BC float32 of B texts against C clips, `chunk` clips at a time: the result does not depend on it.

        Tokens are L2-normalised, masks bool (True counts). A clip without a valid token scores -inf.
        """
        query_weight_BQ = self._shares(query_BQD, query_mask_BQ, self.query_weights)
        if self.kind == "sum":
            query_weight_BQ = query_mask_BQ.float()
        columns = []
        for start in range(0, max(len(token_CTD), 1), chunk):
            token, mask = token_CTD[start : start + chunk], token_mask_CT[start : start + chunk]
            similarity_BCQT = torch.einsum("bqd,ctd->bcqt", query_BQD, token).to(torch.promote_types(query_BQD.dtype, torch.float32))
            score_BC = _weighted_best(similarity_BCQT, query_mask_BQ[:, None], mask[None], query_weight_BQ[:, None])
            if self.kind != "sum":
                weight_CT = self._shares(token, mask, self.token_weights)
                back_BC = _weighted_best(similarity_BCQT.transpose(2, 3), mask[None], query_mask_BQ[:, None], weight_CT[None])
                score_BC = (score_BC + back_BC) / 2
            columns.append(score_BC)
        return torch.cat(columns, dim=1)

    def _shares(self, token_BTD: Tensor, mask_BT: Tensor, weights: TokenWeights | None) -> Tensor:
        if weights is not None:
            shares: Tensor = weights(token_BTD, mask_BT)
            return shares
        return mask_BT.float() / mask_BT.float().sum(dim=-1, keepdim=True).clamp_min(1)


def _weighted_best(similarity_BCMN: Tensor, asking_mask: Tensor, answering_mask: Tensor, weight: Tensor) -> Tensor:
    """Sum over M of weight times the maximum over the valid N. Masks and weight broadcast to [B, C, M] and [B, C, N]."""
    best = similarity_BCMN.masked_fill(~answering_mask[..., None, :], float("-inf")).amax(dim=-1)
    answered = answering_mask.any(dim=-1)
    # -inf times a weight has no gradient but NaN: who does not ask or gets no answer is set to zero first.
    score = (best.masked_fill(~(asking_mask & answered[..., None]), 0.0) * weight).sum(dim=-1)
    return score.masked_fill(~answered, float("-inf"))


class Similarities(nn.Module):
    """The similarity of each branch of a model; branches share none of their weights."""

    def __init__(self, kind: SimilarityKind, interaction: str, width: int) -> None:
        super().__init__()
        self.frame = TokenSimilarity(kind, width) if "f" in interaction else None
        self.video = TokenSimilarity(kind, width) if "v" in interaction else None
