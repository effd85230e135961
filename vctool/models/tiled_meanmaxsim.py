"""MeanMaxSim in PyTorch with memory that does not grow with B * C * Q * T, forwards and backwards, on any device.

The similarities [B, C, Q, T] are made a tile at a time, small enough for a processor's cache, and folded into maxima at once.
Backwards, the gradient of a pair goes to the one token that each query token found (a subgradient: of equal tokens the first),
so what is needed of the tile is the place of each maximum: kept as one byte a (query token, clip) up to `KEPT_BYTES`, and
above that found again from the tokens, which costs the products once more. Query tokens that do not count are left out of
all of it.

Memory beyond arguments, gradients and scores: a copy of the counted query tokens, places up to `KEPT_BYTES`, and some tiles.
Time, backwards, does not grow with T: gradients are sums of chosen rows, not products with one-hot matrices. On a CPU with the compiled
library they, and the maxima, are made in C (`compiled_gradient`), else by torch (`embedding_bag`).

Shape letters: B queries, Q query tokens, M counted query tokens of all queries end to end, C clips, T tokens of a clip, D width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vctool.models import compiled_gradient
from vctool.models.compiled_gradient import compiles_for

KEPT_BYTES = 64 << 20

_CELLS = 1 << 19  # similarities in a tile, forwards: 2 MiB of float32
_ROWS = 1024  # query tokens in a tile, forwards
_BACK_ROWS, _BACK_CLIPS = 2048, 64  # backwards: enough rows a sum, in a few MiB


def tiled_mean_max_sim(
    query_BQD: Tensor,
    query_mask_BQ: Tensor,
    token_CTD: Tensor,
    token_mask_CT: Tensor,
    *,
    chunk: int | None = None,
    kept_bytes: int = KEPT_BYTES,
) -> Tensor:
    """`vctool.models.interaction.mean_max_sim`, which has the meaning of the arguments. chunk: clips in a tile (default: by size).

    kept_bytes: how large the places of the maxima may be to be kept for the backward pass; 0 always finds them again.
    Half-precision tokens are multiplied as float32.
    """
    dtype = torch.promote_types(torch.promote_types(query_BQD.dtype, token_CTD.dtype), torch.float32)
    place_M = query_mask_BQ.flatten().nonzero().flatten()
    query_MD = query_BQD.flatten(0, 1).index_select(0, place_M).to(dtype)
    owner_M = place_M // max(query_mask_BQ.shape[1], 1)
    with torch.autocast(query_BQD.device.type, enabled=False):
        score_BC: Tensor = _TiledMeanMaxSim.apply(
            query_MD, token_CTD.to(dtype), owner_M, query_mask_BQ.sum(dim=1), token_mask_CT, chunk, kept_bytes
        )
    return score_BC


@dataclass(frozen=True)
class _Tokens:
    """One run of clips, ready to be multiplied."""

    clips: slice
    rows_TcD: Tensor  # [T * c, D]: token 0 of every clip, then token 1 of every clip, …
    shape: tuple[int, int]  # T, c
    hidden_Tc1: Tensor | None  # True where a token does not count; None where all do
    compiled: bool  # whether gradient.c finds the maxima

    def maxima(self, query_mD: Tensor) -> tuple[Tensor, Tensor]:
        """(largest similarity, its token), [c, m] each."""
        sim_Tcm = torch.mm(self.rows_TcD, query_mD.T).view(*self.shape, -1)
        if self.hidden_Tc1 is not None:
            sim_Tcm.masked_fill_(self.hidden_Tc1, float("-inf"))
        if self.compiled:
            return compiled_gradient.fold(sim_Tcm)
        best_cm, place_cm = sim_Tcm.max(dim=0)
        return best_cm, place_cm


def _runs(token_CTD: Tensor, mask_CT: Tensor, chunk: int) -> Iterator[_Tokens]:
    # A clip without any token is multiplied like the others and set to -inf at the end: -inf * 0 would be NaN on the way.
    hidden_CT = ~mask_CT & mask_CT.any(dim=1, keepdim=True)
    some = bool(hidden_CT.any())
    for start in range(0, len(token_CTD), chunk):
        clips = slice(start, start + chunk)
        rows_TcD = token_CTD[clips].transpose(0, 1)
        hidden = hidden_CT[clips].T[:, :, None] if some else None
        shape = (rows_TcD.shape[0], rows_TcD.shape[1])
        yield _Tokens(clips, rows_TcD.flatten(0, 1), shape, hidden, compiles_for(token_CTD, tokens=shape[0]))


def _slices(length: int, step: int) -> list[slice]:
    return [slice(start, min(start + step, length)) for start in range(0, length, step)]


class _TiledMeanMaxSim(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query_MD: Tensor,
        token_CTD: Tensor,
        owner_M: Tensor,
        count_B: Tensor,
        token_mask_CT: Tensor,
        chunk: int | None,
        kept_bytes: int,
    ) -> Tensor:
        clips, tokens = token_CTD.shape[:2]
        wanted = any(ctx.needs_input_grad[:2])
        byte = torch.uint8 if tokens <= 256 else torch.int32
        kept = wanted and clips * len(query_MD) * byte.itemsize <= kept_bytes
        place_CM = query_MD.new_empty((clips, len(query_MD)) if kept else (0, 0), dtype=byte)
        sum_CB = query_MD.new_zeros((clips, len(count_B)))
        if tokens:
            rows = [(span, *_sums(owner_M[span], query_MD.dtype)) for span in _slices(len(query_MD), _ROWS)]
            for run in _runs(token_CTD, token_mask_CT, chunk or _clips_in_tile(tokens, len(query_MD))):
                for span, columns, sum_mb in rows:
                    best_cm, found_cm = run.maxima(query_MD[span])
                    sum_CB[run.clips, columns].addmm_(best_cm, sum_mb)
                    if kept:
                        place_CM[run.clips, span] = found_cm
        empty_C = ~token_mask_CT.any(dim=1)
        ctx.save_for_backward(query_MD, token_CTD, owner_M, count_B, token_mask_CT, empty_C, place_CM)
        ctx.kept = kept
        return (sum_CB / count_B.to(sum_CB.dtype)).masked_fill_(empty_C[:, None], float("-inf")).T

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query_MD, token_CTD, owner_M, count_B, token_mask_CT, empty_C, place_CM = ctx.saved_tensors
        share_CB = (gradients[0] / count_B[:, None].to(query_MD.dtype)).T.masked_fill(empty_C[:, None], 0.0)
        query_grad_MD, token_grad_CTD = torch.zeros_like(query_MD), torch.zeros_like(token_CTD)
        tokens = token_CTD.shape[1]
        if compiles_for(query_MD, token_CTD, share_CB, tokens=tokens):
            place = place_CM if ctx.kept else None
            return *_compiled_backward(ctx, query_MD, token_CTD, owner_M, token_mask_CT, share_CB, place), None, None, None, None, None
        if tokens:
            for run in _runs(token_CTD, token_mask_CT, _BACK_CLIPS):
                own_cTD = token_CTD[run.clips]
                for span in _slices(len(query_MD), _BACK_ROWS):
                    query_mD = query_MD[span]
                    place_cm = place_CM[run.clips, span] if ctx.kept else _found_again(run, query_mD)
                    weight_cm = share_CB[run.clips].index_select(1, owner_M[span])
                    if ctx.needs_input_grad[0]:
                        query_grad_MD[span] += _chosen_tokens(own_cTD, place_cm, weight_cm)
                    if ctx.needs_input_grad[1]:
                        token_grad_CTD[run.clips] += _choosing_queries(query_mD, place_cm, weight_cm, tokens)
        return query_grad_MD, token_grad_CTD, None, None, None, None, None


def _compiled_backward(
    ctx: Any, query_MD: Tensor, token_CTD: Tensor, owner_M: Tensor, token_mask_CT: Tensor, share_CB: Tensor, place_CM: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Both gradients by gradient.c, from the kept places at once, or a run of clips at a time as they are found again."""
    tokens = token_CTD.shape[1]
    query_grad_MD, token_grad_CTD = torch.zeros_like(query_MD), torch.zeros_like(token_CTD)
    runs = [(slice(None), None)] if place_CM is not None else ((r.clips, r) for r in _runs(token_CTD, token_mask_CT, _BACK_CLIPS))
    for clips, run in runs:
        place_cM = place_CM if run is None else _found_again(run, query_MD)
        assert place_cM is not None
        if ctx.needs_input_grad[0]:
            query_grad_MD += compiled_gradient.chosen_tokens(token_CTD[clips], place_cM, share_CB[clips], owner_M)
        if ctx.needs_input_grad[1]:
            token_grad_CTD[clips] = compiled_gradient.choosing_queries(query_MD, place_cM, share_CB[clips], owner_M, tokens)
    return query_grad_MD, token_grad_CTD


def _clips_in_tile(tokens: int, rows: int) -> int:
    return max(1, _CELLS // (tokens * max(1, min(rows, _ROWS))))


def _sums(owner_m: Tensor, dtype: torch.dtype) -> tuple[slice, Tensor]:
    """The queries that own these tokens, and the matrix [m, b] that sums over each one's: owners are in order."""
    first, last = int(owner_m[0]), int(owner_m[-1])
    return slice(first, last + 1), F.one_hot(owner_m - first, last - first + 1).to(dtype)


def _found_again(run: _Tokens, query_MD: Tensor) -> Tensor:
    """Places [c, m] of the maxima, a tile at a time: the same products in another company, so a near tie may fall otherwise."""
    step = max(1, _CELLS // len(run.rows_TcD))
    return torch.cat([run.maxima(query_MD[span])[1] for span in _slices(len(query_MD), step)], dim=1)


def _chosen_tokens(token_cTD: Tensor, place_cm: Tensor, weight_cm: Tensor) -> Tensor:
    """For each query token the weighted sum of the tokens it found in these clips: [m, D]."""
    clips, tokens = token_cTD.shape[:2]
    first_c1 = torch.arange(0, clips * tokens, tokens, device=place_cm.device)[:, None]
    index_mc = (place_cm + first_c1).T.contiguous()
    return F.embedding_bag(index_mc, token_cTD.flatten(0, 1), mode="sum", per_sample_weights=weight_cm.T.contiguous())


def _choosing_queries(query_mD: Tensor, place_cm: Tensor, weight_cm: Tensor, tokens: int) -> Tensor:
    """For each token of these clips the weighted sum of the query tokens that found it: [c, T, D]."""
    clips = len(place_cm)
    order_cm = place_cm.argsort(dim=1, stable=True)
    key_cm = place_cm + torch.arange(0, clips * tokens, tokens, device=place_cm.device)[:, None]
    count_cT = torch.bincount(key_cm.flatten(), minlength=clips * tokens)
    sums = F.embedding_bag(
        order_cm.flatten(), query_mD, count_cT.cumsum(0) - count_cT, mode="sum", per_sample_weights=weight_cm.gather(1, order_cm).flatten()
    )
    return sums.view(clips, tokens, -1)
