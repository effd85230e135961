"""MeanMaxSim in Triton, forwards and backwards, for NVIDIA GPUs: similarities live in registers and are never written.

Forwards, a program multiplies the tokens of a few queries with those of a few clips, keeps the running maxima, and writes
scores, and one int16 a (query token, clip): the place of the maximum. Backwards, the gradient of a pair goes to that place alone
(a subgradient; of equal tokens the first): `grad[b, q] = sum over clips of w[b, c] * token[c, place[b, c, q]]`, and the mirror
image for tokens, each sum in one program and in one order, so gradients have the same bits each time. The rows are picked by
products with 0/1 matrices, exact in any precision; weights are multiplied in afterwards, in float32.

float16 and bfloat16 tokens are multiplied as they are and summed in float32; float32 tokens as three TF32 products.

Memory beyond arguments, gradients and scores: the places, 2 * B * C * Q bytes while that is at most `kept_bytes`; above, backwards
finds them again for as many clips at a time, which costs the products once more.

Shape letters: B queries, Q query tokens, C clips, T tokens of a clip, D width; M = rows of queries, N = rows of clips in a tile.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, misc, untyped-decorator, attr-defined, no-any-return"

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

KEPT_BYTES = 256 << 20
MOST_TOKENS = 2**15 - 1  # a place is an int16

INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"


@triton.jit
def maxima_kernel(
    query, token, query_mask, token_mask, score, place, B, C, Q, T, D,
    BLOCK_Q: tl.constexpr, BLOCK_T: tl.constexpr, KEEP: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """score[b, c] float32; with KEEP also place[b, c, q] int16, -1 where the query token does not count or the clip is empty."""
    BLOCK_B: tl.constexpr = BLOCK_M // BLOCK_Q
    BLOCK_C: tl.constexpr = BLOCK_N // BLOCK_T
    clip_blocks = tl.cdiv(C, BLOCK_C)
    first_b = (tl.program_id(0) // clip_blocks).to(tl.int64) * BLOCK_B
    first_c = (tl.program_id(0) % clip_blocks).to(tl.int64) * BLOCK_C
    m = tl.arange(0, BLOCK_M)
    n = tl.arange(0, BLOCK_N)
    b_M = first_b + m // BLOCK_Q
    c_N = first_c + n // BLOCK_T
    c_C = first_c + tl.arange(0, BLOCK_C)
    sum_BC = tl.zeros((BLOCK_B, BLOCK_C), tl.float32)
    count_B = tl.zeros((BLOCK_B,), tl.float32)
    for q0 in range(0, Q, BLOCK_Q):
        q_M = q0 + m % BLOCK_Q
        inside_M = (b_M < B) & (q_M < Q)
        counted_M = tl.load(query_mask + b_M * Q + q_M, mask=inside_M, other=0) != 0
        best_MC = tl.full((BLOCK_M, BLOCK_C), float("-inf"), tl.float32)
        at_MC = tl.full((BLOCK_M, BLOCK_C), -1, tl.int32)
        for t0 in range(0, T, BLOCK_T):
            t_N = t0 + n % BLOCK_T
            inside_N = (c_N < C) & (t_N < T)
            valid_N = tl.load(token_mask + c_N * T + t_N, mask=inside_N, other=0) != 0
            sim_MN = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
            for d0 in range(0, D, BLOCK_D):
                d = d0 + tl.arange(0, BLOCK_D)
                query_MD = tl.load(
                    query + ((b_M * Q + q_M) * D)[:, None] + d[None, :], mask=inside_M[:, None] & (d < D)[None, :], other=0.0
                )
                token_DN = tl.load(
                    token + ((c_N * T + t_N) * D)[None, :] + d[:, None], mask=inside_N[None, :] & (d < D)[:, None], other=0.0
                )
                sim_MN = tl.dot(query_MD, token_DN, sim_MN, input_precision=PRECISION)
            sim_MN = tl.where(valid_N[None, :], sim_MN, float("-inf"))
            here_MC, place_MC = tl.max(tl.reshape(sim_MN, (BLOCK_M, BLOCK_C, BLOCK_T)), axis=2, return_indices=True)
            better_MC = here_MC > best_MC
            best_MC = tl.where(better_MC, here_MC, best_MC)
            at_MC = tl.where(better_MC, t0 + place_MC, at_MC)
        if KEEP:
            to_MC = (b_M * C * Q + q_M)[:, None] + (c_C * Q)[None, :]
            found_MC = tl.where(counted_M[:, None], at_MC, -1).to(tl.int16)
            tl.store(place + to_MC, found_MC, mask=inside_M[:, None] & (c_C < C)[None, :])
        # Not counted is set to zero, not multiplied away: -inf * 0 is NaN.
        best_MC = tl.where(counted_M[:, None], best_MC, 0.0)
        sum_BC += tl.sum(tl.reshape(best_MC, (BLOCK_B, BLOCK_Q, BLOCK_C)), axis=1)
        count_B += tl.sum(tl.reshape(counted_M.to(tl.float32), (BLOCK_B, BLOCK_Q)), axis=1)
    b_B = first_b + tl.arange(0, BLOCK_B)
    count_B = tl.where(b_B < B, count_B, 1.0)
    tl.store(score + b_B[:, None] * C + c_C[None, :], sum_BC / count_B[:, None], mask=(b_B < B)[:, None] & (c_C < C)[None, :])


@triton.jit
def gradient_kernel(
    other, place, weight, out, ROWS, OTHERS, OTHER_ROWS, D, item_place, item_weight, other_place, other_weight,
    OF_TOKENS: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """out[i, r], float32 [ROWS, D] of one item i, += sum over all others o of weight[i, o] * the sum of o's rows that belong to row r.

    Items are queries and others clips, or, OF_TOKENS, the other way round. place: of pair (i, o) at i * item_place + o * other_place;
    weight likewise, 0 for pairs that pass nothing on.
    """
    row_blocks = tl.cdiv(ROWS, BLOCK_R)
    item = (tl.program_id(0) // row_blocks).to(tl.int64)
    r = (tl.program_id(0) % row_blocks) * BLOCK_R + tl.arange(0, BLOCK_R)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    to_RD = out + (item * ROWS + r)[:, None] * D + d[None, :]
    inside_RD = (r < ROWS)[:, None] & (d < D)[None, :]
    sum_RD = tl.load(to_RD, mask=inside_RD, other=0.0)
    places = place + item * item_place
    shares = weight + item * item_weight
    for _ in range(OTHERS):
        share = tl.load(shares)
        for k0 in range(0, OTHER_ROWS, BLOCK_K):
            k = k0 + tl.arange(0, BLOCK_K)
            if OF_TOKENS:  # k are query tokens, r tokens of the clip
                belongs_RK = tl.load(places + k, mask=k < OTHER_ROWS, other=-1)[None, :] == r[:, None]
            else:
                belongs_RK = tl.load(places + r, mask=r < ROWS, other=-1)[:, None] == k[None, :]
            other_KD = tl.load(other + k[:, None] * D + d[None, :], mask=(k < OTHER_ROWS)[:, None] & (d < D)[None, :], other=0.0)
            sum_RD += share * tl.dot(belongs_RK.to(other_KD.dtype), other_KD, input_precision=PRECISION)
        places += other_place
        shares += other_weight
        other += OTHER_ROWS * D
    tl.store(to_RD, sum_RD, mask=inside_RD)


def forward_configs() -> list[triton.Config]:
    """Tiles to choose from. BLOCK_M is at least the widest BLOCK_Q, BLOCK_N the widest BLOCK_T."""
    shapes = [(64, 64, 32, 4, 3), (64, 128, 32, 4, 3), (128, 64, 32, 4, 3), (128, 128, 32, 8, 3), (64, 256, 32, 8, 3), (128, 128, 64, 8, 3)]
    return [triton.Config({"BLOCK_M": m, "BLOCK_N": n, "BLOCK_D": d}, num_warps=w, num_stages=s) for m, n, d, w, s in shapes]


def gradient_configs() -> list[triton.Config]:
    return [triton.Config({"BLOCK_D": d}, num_warps=w, num_stages=s) for d, w, s in ((64, 4, 3), (128, 4, 3), (128, 4, 4), (256, 8, 3))]


def triton_mean_max_sim(
    query_BQD: Tensor, query_mask_BQ: Tensor, token_CTD: Tensor, token_mask_CT: Tensor, *, kept_bytes: int = KEPT_BYTES
) -> Tensor:
    """`vctool.models.interaction.mean_max_sim` on a GPU (or, with TRITON_INTERPRET=1 from the start, on the CPU, slowly).

    Tokens float16, bfloat16 or float32, both alike after promotion; at most `MOST_TOKENS` tokens a clip.
    """
    dtype = torch.promote_types(query_BQD.dtype, token_CTD.dtype)
    score_BC: Tensor = _TritonMeanMaxSim.apply(
        query_BQD.to(dtype).contiguous(),
        token_CTD.to(dtype).contiguous(),
        query_mask_BQ.contiguous(),
        token_mask_CT.contiguous(),
        kept_bytes,
    )
    return score_BC


class _TritonMeanMaxSim(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query_BQD: Tensor, token_CTD: Tensor, query_mask_BQ: Tensor, token_mask_CT: Tensor, kept_bytes: int) -> Tensor:
        places = query_mask_BQ.numel() * len(token_CTD)
        keep = any(ctx.needs_input_grad[:2]) and 2 * places <= kept_bytes
        score_BC, place_BCQ = _maxima(query_BQD, token_CTD, query_mask_BQ, token_mask_CT, keep)
        ctx.save_for_backward(query_BQD, token_CTD, query_mask_BQ, token_mask_CT, score_BC, place_BCQ)
        ctx.kept_bytes = kept_bytes
        return score_BC

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query_BQD, token_CTD, query_mask_BQ, token_mask_CT, score_BC, place_BCQ = ctx.saved_tensors
        weight_BC = gradients[0].float() / query_mask_BQ.sum(dim=1, keepdim=True)
        weight_BC = weight_BC.masked_fill(torch.isneginf(score_BC), 0.0)
        query_grad = torch.zeros_like(query_BQD, dtype=torch.float32) if ctx.needs_input_grad[0] else None
        token_grad = torch.zeros_like(token_CTD, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        for clips in _clip_slices(len(token_CTD), query_mask_BQ.numel(), ctx.kept_bytes):
            token = token_CTD[clips]
            place = place_BCQ if len(place_BCQ) else _maxima(query_BQD, token, query_mask_BQ, token_mask_CT[clips], True)[1]
            weight = weight_BC[:, clips].contiguous()
            if query_grad is not None:
                _add_gradient(query_grad, token, place, weight, of_tokens=False)
            if token_grad is not None:
                _add_gradient(token_grad[clips], query_BQD, place, weight, of_tokens=True)
        return (
            None if query_grad is None else query_grad.to(query_BQD.dtype),
            None if token_grad is None else token_grad.to(token_CTD.dtype),
            None, None, None,
        )  # fmt: skip


def _maxima(query_BQD: Tensor, token_CTD: Tensor, query_mask_BQ: Tensor, token_mask_CT: Tensor, keep: bool) -> tuple[Tensor, Tensor]:
    """(score float32 [B, C], place int16 [B, C, Q], or [0] where it is not to be kept)."""
    (queries, length, width), (clips, tokens) = query_BQD.shape, token_CTD.shape[:2]
    score_BC = query_BQD.new_empty(queries, clips, dtype=torch.float32)
    place_BCQ = query_BQD.new_empty((queries, clips, length) if keep else (0,), dtype=torch.int16)
    if not score_BC.numel():
        return score_BC, place_BCQ
    blocks = {"BLOCK_Q": _block(length, 1), "BLOCK_T": _block(tokens, 4)}  # narrower ones spill registers

    def grid(chosen: dict[str, int]) -> tuple[int]:
        per_query, per_clip = chosen["BLOCK_M"] // blocks["BLOCK_Q"], chosen["BLOCK_N"] // blocks["BLOCK_T"]
        return (triton.cdiv(queries, per_query) * triton.cdiv(clips, per_clip),)

    masks = (query_mask_BQ.view(torch.uint8), token_mask_CT.view(torch.uint8))
    _tuned("maxima")[grid](
        query_BQD, token_CTD, *masks, score_BC, place_BCQ, queries, clips, length, tokens, width,
        **blocks, KEEP=keep, PRECISION=_precision(query_BQD.dtype),
    )  # fmt: skip
    return score_BC, place_BCQ


def _add_gradient(out_IRD: Tensor, other_OKD: Tensor, place_BCQ: Tensor, weight_BC: Tensor, *, of_tokens: bool) -> None:
    (items, rows, width), (others, other_rows) = out_IRD.shape, other_OKD.shape[:2]
    if not place_BCQ.numel():
        return
    by_query, by_clip = (place_BCQ.stride(0), weight_BC.stride(0)), (place_BCQ.stride(1), weight_BC.stride(1))
    own, other = (by_clip, by_query) if of_tokens else (by_query, by_clip)
    block = _block(rows, 16)

    def grid(chosen: dict[str, int]) -> tuple[int, int]:
        return items * triton.cdiv(rows, block), triton.cdiv(width, chosen["BLOCK_D"])

    _tuned("gradient")[grid](
        other_OKD, place_BCQ, weight_BC, out_IRD, rows, others, other_rows, width, *own, *other,
        OF_TOKENS=of_tokens, PRECISION=_precision(other_OKD.dtype), BLOCK_R=block, BLOCK_K=_block(other_rows, 16),
    )  # fmt: skip


def _clip_slices(clips: int, query_tokens: int, kept_bytes: int) -> Iterator[slice]:
    step = clips if 2 * clips * query_tokens <= kept_bytes else max(1, kept_bytes // (2 * max(query_tokens, 1)))
    for start in range(0, clips, max(step, 1)):
        yield slice(start, start + step)


def _block(length: int, least: int) -> int:
    return max(least, min(64, triton.next_power_of_2(max(length, 1))))


def _precision(dtype: torch.dtype) -> str:
    return "tf32x3" if dtype == torch.float32 and not INTERPRETED else "ieee"


@functools.cache
def _tuned(name: str) -> Any:
    """The kernel with its tiles chosen for each shape and dtype: by trial on a GPU, the first in the interpreter."""
    kernel, configs, key, restore = {
        "maxima": (maxima_kernel, forward_configs(), ["Q", "T", "D", "KEEP"], []),
        "gradient": (gradient_kernel, gradient_configs(), ["ROWS", "OTHER_ROWS", "D", "OF_TOKENS"], ["out"]),
    }[name]
    if not INTERPRETED:
        # Trials run the kernel many times, and a gradient is added onto what is there.
        return triton.autotune(configs=configs, key=key, restore_value=restore)(kernel)
    return _Fixed(kernel, configs[0].kwargs)


class _Fixed:
    """A kernel with one choice of tiles, called like a tuned one."""

    def __init__(self, kernel: Any, chosen: dict[str, int]) -> None:
        self._kernel, self._chosen = kernel, chosen

    def __getitem__(self, grid: Callable[[dict[str, int]], tuple[int, ...]]) -> Callable[..., Any]:
        return functools.partial(self._kernel[grid(self._chosen)], **self._chosen)
