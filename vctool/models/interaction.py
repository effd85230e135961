"""MeanMaxSim in PyTorch: differentiable, batched, masked. The definition it must equal is `vctool.scoring.mean_max_sim`."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


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


def mean_max_sim(query_BQD: Tensor, query_mask_BQ: Tensor, token_CTD: Tensor, token_mask_CT: Tensor, *, chunk: int = 256) -> Tensor:
    """Mean over counted query tokens of the maximum over valid tokens of the dot product.

    query_BQD, token_CTD: L2-normalised tokens. query_mask_BQ, token_mask_CT: bool, True where a token counts.
    Returns score_BC float32 (float64 for float64 tokens). A clip without a valid token scores -inf. `chunk` clips are
    scored at a time, so that the [B, chunk, Q, T] similarities bound the memory; the result does not depend on it.

    Masked tokens are -inf before the maximum: a zero would beat every negative similarity (method: MMS of Video-ColBERT, eq. 6.4).
    """
    counted_BQ = query_mask_BQ.float()
    columns = []
    for start in range(0, max(token_CTD.shape[0], 1), chunk):
        token, mask = token_CTD[start : start + chunk], token_mask_CT[start : start + chunk]
        similarity_BCQT = torch.einsum("bqd,ctd->bcqt", query_BQD, token).to(torch.promote_types(query_BQD.dtype, torch.float32))
        best_BCQ = similarity_BCQT.masked_fill(~mask[None, :, None, :], float("-inf")).amax(dim=-1)
        # -inf * 0 is NaN: uncounted query tokens are set to zero, not multiplied away.
        best_BCQ = best_BCQ.masked_fill(~query_mask_BQ[:, None, :], 0.0)
        columns.append(best_BCQ.sum(dim=-1) / counted_BQ.sum(dim=-1, keepdim=True))
    return torch.cat(columns, dim=1)
