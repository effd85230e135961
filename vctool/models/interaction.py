"""MeanMaxSim in PyTorch: differentiable, batched, masked. The definition it must equal is `vctool.scoring.mean_max_sim`."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from vctool.models.tiled_meanmaxsim import tiled_mean_max_sim


class BranchScores(NamedTuple):
    """Scores of B queries against C clips, each [B, C] float32 in [-1, 1]; None where the model lacks the branch."""

    frame_BC: Tensor | None
    video_BC: Tensor | None

    @property
    def total_BC(self) -> Tensor:
        """MMS_F + MMS_V, or the one branch there is."""
        if self.frame_BC is None or self.video_BC is None:
            only = self.frame_BC if self.video_BC is None else self.video_BC
            assert only is not None, "a model has at least one branch"
            return only
        return self.frame_BC + self.video_BC


def mean_max_sim(query_BQD: Tensor, query_mask_BQ: Tensor, token_CTD: Tensor, token_mask_CT: Tensor, *, chunk: int | None = None) -> Tensor:
    """Mean over counted query tokens of the maximum over valid tokens of the dot product.

    query_BQD, token_CTD: L2-normalised tokens. query_mask_BQ, token_mask_CT: bool, True where a token counts.
    Returns score_BC float32 (float64 for float64 tokens). A clip without a valid token scores -inf. The similarities
    [B, C, Q, T] are never held, forwards or backwards (see `tiled_meanmaxsim`); `chunk` clips are scored at a time, by default
    as many as suit the processor's cache, and the result does not depend on it.

    Masked tokens are -inf before the maximum: a zero would beat every negative similarity (method: MMS of Video-ColBERT, eq. 6.4).
    """
    return tiled_mean_max_sim(query_BQD, query_mask_BQ, token_CTD, token_mask_CT, chunk=chunk)
