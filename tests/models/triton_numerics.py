"""The numbers of the Triton kernels against float64. `test_models_triton.py` runs this file, in Triton's interpreter or on a GPU.

Not named test_…: Triton decides how it runs when it is imported, so this needs a process of its own.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from test_models_tiled import Problem, problem, whole, with_gradients

from vctool.errors import UsageProblem
from vctool.models.interaction import mean_max_sim
from vctool.models.tiled_meanmaxsim import tiled_mean_max_sim
from vctool.models.triton_meanmaxsim import INTERPRETED, triton_mean_max_sim

DEVICE = "cpu" if INTERPRETED else "cuda"
# float32 on a GPU is three TF32 products; half precision rounds its gradients when it hands them back.
ATOL = {torch.float32: 1e-6 if INTERPRETED else 5e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
# queries, query tokens, clips, tokens, width: ragged tiles, one token each, several tiles of every side
SHAPES = [(3, 5, 9, 4, 20), (2, 70, 3, 3, 16), (5, 1, 40, 1, 33), (2, 20, 3, 130, 24), (1, 33, 2, 14, 100)]
if not INTERPRETED:
    SHAPES += [(256, 32, 256, 14, 512), (64, 77, 300, 12, 512)]


def on_device(given: Problem, dtype: torch.dtype) -> Problem:
    return tuple(t.to(DEVICE, dtype) if t.is_floating_point() else t.to(DEVICE) for t in given)  # type: ignore[return-value]


# Triton's interpreter keeps bfloat16 as the integers of its bits and multiplies those.
HALVES = [torch.float16] if INTERPRETED else [torch.float16, torch.bfloat16]
CASES = [(shape, torch.float32) for shape in SHAPES] + [
    (shape, half) for shape in (SHAPES[:2] if INTERPRETED else SHAPES) for half in HALVES
]


@pytest.mark.parametrize(("shape", "dtype"), CASES, ids=str)
def test_scores_and_gradients_are_those_of_float64(shape: tuple[int, int, int, int, int], dtype: torch.dtype) -> None:
    given = on_device(problem(*shape), dtype)
    exact = with_gradients(tiled_mean_max_sim, on_device(given, torch.float64))
    for place, (mine, theirs) in enumerate(zip(with_gradients(triton_mean_max_sim, given), exact, strict=True)):
        # Scores are summed in float32 from the very numbers given, in whatever precision these are.
        atol = ATOL[torch.float32] if place == 0 else ATOL[dtype] * max(1.0, float(theirs.abs().max()))
        torch.testing.assert_close(mine.double(), theirs, rtol=0, atol=atol)


@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[3]], ids=str)
def test_places_that_are_not_kept_are_found_again(shape: tuple[int, int, int, int, int]) -> None:
    given = on_device(problem(*shape), torch.float32)
    kept, again = (with_gradients(triton_mean_max_sim, given, kept_bytes=size) for size in (1 << 30, 3 * shape[0] * shape[1]))
    assert torch.equal(kept[0], again[0])
    for a, b in zip(kept[1:], again[1:], strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def test_gradients_have_the_same_bits_each_time() -> None:
    given = on_device(problem(4, 6, 7, 5, 32), torch.float32)
    first, second = with_gradients(triton_mean_max_sim, given), with_gradients(triton_mean_max_sim, given)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_clip_without_tokens_scores_minus_infinity_and_passes_no_gradient_on() -> None:
    query, query_mask, token, token_mask = on_device(problem(4, 5, 6, 3), torch.float32)
    token_mask[2] = False
    query, token = query.requires_grad_(), token.requires_grad_()
    score = triton_mean_max_sim(query, query_mask, token, token_mask)
    assert torch.isneginf(score[:, 2]).all() and score[:, [0, 1, 3, 4, 5]].isfinite().all()
    score.backward(torch.ones_like(score).index_fill(1, torch.tensor([2], device=DEVICE), float("nan")))
    assert query.grad is not None and token.grad is not None and query.grad.isfinite().all()
    assert not token.grad[2].any() and token.grad[[0, 1, 3, 4, 5]].any(dim=-1).any(dim=-1).all()


def test_of_equal_tokens_the_first_gets_the_gradient() -> None:
    query, token = torch.eye(3, device=DEVICE)[None, :1], torch.eye(3, device=DEVICE)[None, [1, 0, 0]].requires_grad_()
    everything = torch.ones(1, 3, dtype=torch.bool, device=DEVICE)
    triton_mean_max_sim(query, everything[:, :1], token, everything).sum().backward()
    assert token.grad is not None and token.grad[0].tolist() == [[0, 0, 0], [1, 0, 0], [0, 0, 0]]


def test_no_queries_and_no_clips_are_answered() -> None:
    query, query_mask, token, token_mask = on_device(problem(3, 4, 5, 2), torch.float32)
    assert triton_mean_max_sim(query[:0], query_mask[:0], token, token_mask).shape == (0, 5)
    assert triton_mean_max_sim(query, query_mask, token[:0], token_mask[:0]).shape == (3, 0)


def test_the_models_scores_take_this_kernel_when_asked_and_say_when_it_cannot_be() -> None:
    given = on_device(problem(3, 4, 5, 2), torch.float32)
    assert torch.equal(mean_max_sim(*given, kernel="triton"), triton_mean_max_sim(*given))
    with pytest.raises(UsageProblem, match="tokens are float64"):
        mean_max_sim(*on_device(given, torch.float64), kernel="triton")


@pytest.mark.skipif(INTERPRETED, reason="the interpreter is chosen, never taken by itself")
def test_tokens_on_a_gpu_take_this_kernel_by_themselves() -> None:
    given = on_device(problem(3, 4, 5, 2), torch.float32)
    assert torch.equal(mean_max_sim(*given), triton_mean_max_sim(*given))


@pytest.mark.skipif(INTERPRETED, reason="measures the memory of a GPU")
def test_memory_beyond_scores_gradients_and_places_is_small() -> None:
    def peak(score: Any) -> int:
        given = on_device(problem(256, 32, 256, 14, 512), torch.bfloat16)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        with_gradients(score, given)
        return torch.cuda.max_memory_allocated() - before

    peak(triton_mean_max_sim)  # trials of tiles
    assert peak(triton_mean_max_sim) < 64 << 20 < peak(whole) // 10


def test_this_runs_where_it_was_meant_to() -> None:
    assert (os.environ.get("TRITON_INTERPRET") == "1") == INTERPRETED and torch.zeros(1, device=DEVICE).device.type == DEVICE
