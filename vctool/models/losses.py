"""Training objectives over MeanMaxSim score matrices.

The published one is the dual sigmoid loss (one SigLIP loss per branch, summed); the others are here to be compared with it.
`logits = exp(t) * MMS + b` and `loss = -sum(logsigmoid(z * logits)) / B`, z = +1 for a caption and its clip, -1 else
(Zhai et al. 2023, in the sign convention of SigLIP's code). `t` is the logarithm of the scale.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vctool.models.interaction import BranchScores

LossKind = Literal["dual_sigmoid", "dual_sigmoid_equalized", "combined_sigmoid", "dual_infonce", "combined_infonce"]


@dataclass(frozen=True)
class LossConfig:
    """kind: the objective. log_scale, bias: starts of t and b (SigLIP's trained values by default).

    separate_scale: own t and b per branch. frame_weight, video_weight: the lambdas of the branches.
    reversal_weight: weight of `reversal_loss`, which teaches the direction of time where a batch holds clips played both ways
    (ours, not the paper's: in-batch negatives alone taught content and left opposite motions untold in every trial).
    calibrate_bias: start b at the value that makes the mean pair as unlikely as its share of positives,
    b = -exp(t) * mean(MMS) - log(B - 1), measured on the first batch (ours, not the paper's: CLIP cosines sit far
    above the neutral cosine of SigLIP's start).
    """

    kind: LossKind = "dual_sigmoid"
    log_scale: float = 4.77
    bias: float = -12.93
    separate_scale: bool = False
    frame_weight: float = 1.0
    video_weight: float = 1.0
    reversal_weight: float = 0.0
    calibrate_bias: bool = False


class LossOutput(NamedTuple):
    """total: scalar to differentiate. frame, video, reversal: the parts, detached (NaN where there is none)."""

    total: Tensor
    frame: Tensor
    video: Tensor
    reversal: Tensor = torch.full((), float("nan"))


def sigmoid_loss(score_BC: Tensor, positive_BC: Tensor, log_scale: Tensor, bias: Tensor) -> Tensor:
    """SigLIP's pairwise loss, normalised by B (not B*C: that would shrink the signal by the batch size)."""
    z_BC = positive_BC.float() * 2 - 1
    return -F.logsigmoid(z_BC * (log_scale.exp() * score_BC + bias)).sum() / score_BC.shape[0]


def infonce_loss(score_BC: Tensor, positive_BC: Tensor, log_scale: Tensor) -> Tensor:
    """Symmetric cross-entropy at temperature exp(-t); several positives share a row's likelihood."""
    logit_BC = log_scale.exp() * score_BC

    def one_way(logit: Tensor, positive: Tensor) -> Tensor:
        numerator = torch.logsumexp(logit.masked_fill(~positive, float("-inf")), dim=1)
        return (torch.logsumexp(logit, dim=1) - numerator).mean()

    return (one_way(logit_BC, positive_BC) + one_way(logit_BC.T, positive_BC.T)) / 2


def reversal_loss(score_BB: Tensor, reversal_B: Tensor, log_scale: Tensor) -> Tensor:
    """Mean of `softplus(-exp(t) * (S_ii - S_ij))` over captions i whose clip's reversal is in column j = reversal_B[i] (not -1).

    A clip and its reversal have the same frames, so only what the order of frames tells can lower it. Zero if there is none.
    """
    rows = torch.nonzero(reversal_B >= 0).flatten()
    if len(rows) == 0:
        return score_BB.sum() * 0
    margin = score_BB[rows, rows] - score_BB[rows, reversal_B[rows]]
    return F.softplus(-log_scale.exp() * margin).mean()


class RetrievalLoss(nn.Module):
    """The configured objective with its learnable log-scale t and bias b ([1], or [2] for separate branches)."""

    def __init__(self, config: LossConfig) -> None:
        super().__init__()
        self.config = config
        count = 2 if config.separate_scale and config.kind.startswith("dual") else 1
        self.log_scale = nn.Parameter(torch.full((count,), config.log_scale))
        self.bias = nn.Parameter(torch.full((count,), config.bias))
        self.bias.requires_grad_("sigmoid" in config.kind)

    def forward(self, scores: BranchScores, positive_BC: Tensor, reversal_B: Tensor | None = None) -> LossOutput:
        """scores: B captions against C clips. positive_BC: bool, True where the clip is one the caption describes.

        reversal_B: int64, the column that shows caption i's clip (column i) played backwards, or -1; used where
        `reversal_weight` is set, on the video branch (the frame branch cannot see order).
        """
        out = self._retrieval(scores, positive_BC)
        if not self.config.reversal_weight or reversal_B is None or scores.video_BC is None:
            return out
        reversal = reversal_loss(scores.video_BC, reversal_B, self.log_scale[-1])
        return out._replace(total=out.total + self.config.reversal_weight * reversal, reversal=reversal.detach())

    def _retrieval(self, scores: BranchScores, positive_BC: Tensor) -> LossOutput:
        nan = torch.full((), float("nan"))
        if "combined" in self.config.kind or scores.frame_BC is None or scores.video_BC is None:
            total = self._single(scores.total_BC, positive_BC, 0)
            frame = total.detach() if scores.video_BC is None else nan
            return LossOutput(total, frame, total.detach() if scores.frame_BC is None else nan)
        frame = self._single(scores.frame_BC, positive_BC, 0)
        video = self._single(scores.video_BC, positive_BC, -1)
        frame_weight, video_weight = self.config.frame_weight, self.config.video_weight
        if self.config.kind == "dual_sigmoid_equalized":
            scale_f, scale_v = self._equalizers(scores.frame_BC, scores.video_BC, positive_BC)
            total = frame_weight * scale_f * frame + video_weight * scale_v * video
        else:
            total = frame_weight * frame + video_weight * video
        return LossOutput(total, frame.detach(), video.detach())

    @torch.no_grad()
    def calibrate(self, scores: BranchScores) -> None:
        """Set b from the first batch's scores (see LossConfig.calibrate_bias)."""
        parts = [s for s in (scores.frame_BC, scores.video_BC) if s is not None]
        if "combined" in self.config.kind:
            parts = [scores.total_BC]
        if len(self.bias) == 1:
            parts = [torch.stack([p.mean() for p in parts])]
        for i, part in enumerate(parts):
            rivals = max(scores.total_BC.shape[1] - 1, 1)
            self.bias[i] = -self.log_scale[i].exp() * part.mean() - torch.log(torch.tensor(float(rivals)))

    def _single(self, score_BC: Tensor, positive_BC: Tensor, branch: int) -> Tensor:
        if "infonce" in self.config.kind:
            return infonce_loss(score_BC, positive_BC, self.log_scale[branch])
        return sigmoid_loss(score_BC, positive_BC, self.log_scale[branch], self.bias[branch])

    @torch.no_grad()
    def _equalizers(self, frame_BC: Tensor, video_BC: Tensor, positive_BC: Tensor) -> tuple[Tensor, Tensor]:
        """Factors that give both branches the same gradient norm with respect to their scores (their mean)."""
        z = positive_BC.float() * 2 - 1
        norms = []
        for branch, score in ((0, frame_BC), (-1, video_BC)):
            scale = self.log_scale[branch].exp()
            norms.append((scale * torch.sigmoid(-z * (scale * score + self.bias[branch]))).norm().clamp_min(1e-12))
        mean = (norms[0] + norms[1]) / 2
        return mean / norms[0], mean / norms[1]
