"""MeanMaxSim in PyTorch: differentiable, batched, masked. The definition it must equal is `vctool.scoring.mean_max_sim`."""

from __future__ import annotations

import importlib.util
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from vctool.errors import UsageProblem
from vctool.models.tiled_meanmaxsim import tiled_mean_max_sim

ScoreKernel = Literal["auto", "tiled", "triton"]


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


def mean_max_sim(
    query_BQD: Tensor,
    query_mask_BQ: Tensor,
    token_CTD: Tensor,
    token_mask_CT: Tensor,
    *,
    kernel: ScoreKernel = "auto",
    chunk: int | None = None,
) -> Tensor:
    """Mean over counted query tokens of the maximum over valid tokens of the dot product.

    query_BQD, token_CTD: L2-normalised tokens. query_mask_BQ, token_mask_CT: bool, True where a token counts.
    Returns score_BC float32 (float64 for float64 tokens). A clip without a valid token scores -inf. The similarities
    [B, C, Q, T] are never held, forwards or backwards.

    kernel: `triton` (see `triton_meanmaxsim`), `tiled` (any device, see `tiled_meanmaxsim`), or `auto`, which takes Triton where
    it can. chunk: clips in a tile of `tiled`, by default as many as suit the processor's cache; the result does not depend on it.
    Raises UsageProblem if `triton` was asked for and cannot be had.

    Masked tokens are -inf before the maximum: a zero would beat every negative similarity (method: MMS of Video-ColBERT, eq. 6.4).
    """
    if kernel == "triton" or (kernel == "auto" and query_BQD.is_cuda):
        problem = triton_problem(query_BQD, token_CTD)
        if not problem:
            from vctool.models.triton_meanmaxsim import triton_mean_max_sim

            return triton_mean_max_sim(query_BQD, query_mask_BQ, token_CTD, token_mask_CT)
        if kernel == "triton":
            raise UsageProblem(f"the Triton kernel cannot score this: {problem}", "use the kernel `auto` or `tiled`")
    return tiled_mean_max_sim(query_BQD, query_mask_BQ, token_CTD, token_mask_CT, chunk=chunk)


def triton_problem(query_BQD: Tensor, token_CTD: Tensor) -> str:
    """Why the Triton kernel cannot score these tokens, in a few words; empty if it can."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    from vctool.models.triton_meanmaxsim import INTERPRETED, MOST_TOKENS

    if not INTERPRETED and not (query_BQD.is_cuda and torch.version.cuda):
        return f"the tokens are on {query_BQD.device}, not on an NVIDIA GPU"
    if not INTERPRETED and torch.cuda.get_device_capability(query_BQD.device) < (8, 0):
        return f"{torch.cuda.get_device_name(query_BQD.device)} is older than the Ampere generation"
    dtype = torch.promote_types(query_BQD.dtype, token_CTD.dtype)
    if dtype not in (torch.float16, torch.bfloat16, torch.float32):
        return f"tokens are {str(dtype).removeprefix('torch.')}"
    return f"a clip has more than {MOST_TOKENS} tokens" if token_CTD.shape[1] > MOST_TOKENS else ""
