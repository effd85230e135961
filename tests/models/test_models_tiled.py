"""MeanMaxSim in tiles: the same scores and gradients as the whole tensor of similarities gives, without ever holding it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the models need torch (the extra `train`)")

from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from vctool.models import compiled_gradient, tiled_meanmaxsim  # noqa: E402
from vctool.models.tiled_meanmaxsim import tiled_mean_max_sim  # noqa: E402

Problem = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def problem(
    queries: int, length: int, clips: int, tokens: int, dim: int = 5, *, seed: int = 0, dtype: torch.dtype = torch.float64
) -> Problem:
    """Ragged masks; every query has a token that counts, every clip too."""
    generator = torch.Generator().manual_seed(seed)
    query = torch.nn.functional.normalize(torch.randn(queries, length, dim, generator=generator, dtype=torch.float64), dim=-1)
    token = torch.nn.functional.normalize(torch.randn(clips, tokens, dim, generator=generator, dtype=torch.float64), dim=-1)
    query_mask = torch.rand(queries, length, generator=generator) < 0.6
    token_mask = torch.rand(clips, tokens, generator=generator) < 0.7
    query_mask[:, -1] = token_mask[:, -1] = True
    return query.to(dtype), query_mask, token.to(dtype), token_mask


def whole(query: torch.Tensor, query_mask: torch.Tensor, token: torch.Tensor, token_mask: torch.Tensor) -> torch.Tensor:
    """The definition, holding everything."""
    similarity = torch.einsum("bqd,ctd->bcqt", query, token).masked_fill(~token_mask[None, :, None, :], float("-inf"))
    best = similarity.max(dim=-1).values.masked_fill(~query_mask[:, None, :], 0.0)
    return best.sum(dim=-1) / query_mask.sum(dim=1, keepdim=True)


def with_gradients(score: Any, given: Problem, **options: Any) -> list[torch.Tensor]:
    query, query_mask, token, token_mask = given
    query, token = query.clone().requires_grad_(), token.clone().requires_grad_()
    out = score(query, query_mask, token, token_mask, **options)
    weight = torch.linspace(-1, 2, out.numel(), dtype=out.dtype).reshape(out.shape)
    torch.where(out.isfinite(), out * weight, 0).sum().backward()
    assert query.grad is not None and token.grad is not None
    return [out.detach(), query.grad, token.grad]


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, value in (("_CELLS", 64), ("_ROWS", 7), ("_BACK_ROWS", 5), ("_BACK_CLIPS", 3)):
        monkeypatch.setattr(tiled_meanmaxsim, name, value)
    yield


SHAPES = [(1, 1, 1, 1), (6, 5, 9, 4), (3, 12, 5, 1), (8, 1, 8, 6), (2, 3, 4, 300)]


@pytest.mark.parametrize("kept_bytes", [1 << 20, 0], ids=["places kept", "places found again"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.usefixtures("small_tiles")
def test_scores_and_gradients_are_those_of_the_whole_tensor(shape: tuple[int, int, int, int], kept_bytes: int) -> None:
    given = problem(*shape)
    for mine, theirs in zip(with_gradients(tiled_mean_max_sim, given, kept_bytes=kept_bytes), with_gradients(whole, given), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)


def test_tiles_of_the_usual_size_give_the_same_in_float32() -> None:
    given = problem(40, 32, 40, 14, 64, dtype=torch.float32)
    exact = with_gradients(whole, tuple(t.double() if t.is_floating_point() else t for t in given))  # type: ignore[arg-type]
    for mine, theirs in zip(with_gradients(tiled_mean_max_sim, given), exact, strict=True):
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine.double(), theirs, rtol=0, atol=2e-6)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("kept_bytes", [1 << 20, 0])
def test_a_clip_without_tokens_scores_minus_infinity_and_passes_no_gradient_on(kept_bytes: int) -> None:
    query, query_mask, token, token_mask = problem(4, 5, 6, 3)
    token_mask[2] = False
    query, token = query.requires_grad_(), token.requires_grad_()
    score = tiled_mean_max_sim(query, query_mask, token, token_mask, kept_bytes=kept_bytes)
    assert torch.isneginf(score[:, 2]).all() and score[:, [0, 1, 3, 4, 5]].isfinite().all()
    score.backward(torch.full_like(score, 1.0).index_fill(1, torch.tensor([2]), float("nan")))
    assert query.grad is not None and token.grad is not None and query.grad.isfinite().all()
    assert not token.grad[2].any() and token.grad[[0, 1, 3, 4, 5]].any(dim=-1).any(dim=-1).all()


def test_of_equal_tokens_the_first_gets_the_gradient() -> None:
    query, token = torch.eye(3, dtype=torch.float64)[None, :1], torch.eye(3, dtype=torch.float64)[None, [1, 0, 0]].requires_grad_()
    everything = torch.ones(1, 3, dtype=torch.bool)
    tiled_mean_max_sim(query, everything[:, :1], token, everything).sum().backward()
    assert token.grad is not None and token.grad[0].tolist() == [[0, 0, 0], [1, 0, 0], [0, 0, 0]]


def test_only_the_side_that_is_trained_gets_a_gradient() -> None:
    query, query_mask, token, token_mask = problem(3, 4, 5, 2)
    tiled_mean_max_sim(query, query_mask, token.requires_grad_(), token_mask).sum().backward()
    assert query.grad is None and token.grad is not None
    with torch.no_grad():
        assert not tiled_mean_max_sim(query, query_mask, token, token_mask).requires_grad


def test_half_precision_is_multiplied_in_float32_under_autocast_too() -> None:
    given = problem(4, 6, 5, 3, 32, dtype=torch.bfloat16)
    exact = whole(*(t.double() if t.is_floating_point() else t for t in given))
    with torch.autocast("cpu", torch.bfloat16):
        found = tiled_mean_max_sim(*given)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=1e-6)


def test_no_queries_no_clips_and_no_tokens_are_answered() -> None:
    query, query_mask, token, token_mask = problem(3, 4, 5, 2)
    assert tiled_mean_max_sim(query[:0], query_mask[:0], token, token_mask).shape == (0, 5)
    assert tiled_mean_max_sim(query, query_mask, token[:0], token_mask[:0]).shape == (3, 0)
    assert torch.isneginf(tiled_mean_max_sim(query, query_mask, token[:, :0], token_mask[:, :0])).all()


class _Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that any operation makes."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(value, torch.Tensor):
                self.elements = max(self.elements, value.untyped_storage().nbytes() // value.element_size())
        return out


@pytest.mark.parametrize("size", [16, 32, 64])
def test_nothing_larger_than_the_arguments_the_scores_and_a_tile_is_ever_made(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    for name, value in (("_CELLS", 2048), ("_ROWS", 64), ("_BACK_ROWS", 64), ("_BACK_CLIPS", 4)):
        monkeypatch.setattr(tiled_meanmaxsim, name, value)
    given = problem(size, 32, size, 26, 8)
    with _Largest() as largest:
        with_gradients(tiled_mean_max_sim, given, kept_bytes=0)
    assert largest.elements <= max(size * 32 * 8, size * size, 64 * 64)
    with _Largest() as theirs:
        with_gradients(whole, given)
    assert theirs.elements == size * size * 32 * 26  # what the measure sees where the tensor is held


# -- what gradient.c computes (float32 on the CPU, where the library was compiled) ---------------------------------------------------------

needs_library = pytest.mark.skipif(not compiled_gradient.compiles_for(tokens=1), reason="the kernel is not compiled here")
COMPILED_SHAPES = [(1, 1, 1, 1), (9, 32, 37, 14), (3, 5, 70, 256), (40, 33, 5, 2)]


@needs_library
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("kept_bytes", [1 << 24, 0], ids=["places kept", "places found again"])
@pytest.mark.parametrize("shape", COMPILED_SHAPES)
def test_compiled_gradients_are_those_of_the_whole_tensor(
    shape: tuple[int, int, int, int], kept_bytes: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)  # what the work is shared out by
    exact = with_gradients(whole, problem(*shape, dim=19))
    for a, b in zip(
        exact, with_gradients(tiled_mean_max_sim, problem(*shape, dim=19, dtype=torch.float32), kept_bytes=kept_bytes), strict=True
    ):
        assert torch.allclose(a.float(), b, rtol=1e-5, atol=1e-5 * float(a.abs().max()))


@needs_library
def test_compiled_gradients_have_the_same_bits_with_any_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    given = problem(9, 32, 37, 14, dim=64, dtype=torch.float32)
    found = []
    for threads in (1, 2, 5):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        found.append(with_gradients(tiled_mean_max_sim, given))
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


@needs_library
def test_the_library_is_passed_over_where_the_variable_says_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    given = problem(6, 5, 9, 4, dtype=torch.float32)
    compiled = with_gradients(tiled_mean_max_sim, given)
    monkeypatch.setenv("VCTOOL_KERNEL", "numpy")
    monkeypatch.setattr(compiled_gradient, "_share_out", lambda *given: pytest.fail("the library was called"))
    for a, b in zip(compiled, with_gradients(tiled_mean_max_sim, given), strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-6)


@needs_library
def test_of_equal_similarities_the_first_is_taken_and_one_that_is_not_a_number_wins() -> None:
    similarity = torch.tensor([[[1.0, 2.0, 3.0, -1.0]], [[1.0, 5.0, float("nan"), -2.0]], [[1.0, 5.0, 9.0, 0.0]]])
    best, place = compiled_gradient.fold(similarity)
    assert place.tolist() == [[0, 1, 1, 2]] and best[0, :2].tolist() == [1.0, 5.0] and bool(best[0, 2].isnan()) and best[0, 3] == 0.0
