"""MeanMaxSim in PyTorch against loops in float64, against the NumPy definition, and its gradients."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the models need torch (the extra `train`)")

from vctool import scoring  # noqa: E402
from vctool.models.interaction import BranchScores, mean_max_sim  # noqa: E402


def random_tokens(rng: np.random.Generator, count: int, length: int, dim: int = 7, share: float = 0.6) -> tuple[torch.Tensor, torch.Tensor]:
    tokens = rng.normal(size=(count, length, dim))
    tokens /= np.linalg.norm(tokens, axis=-1, keepdims=True)
    mask = rng.random((count, length)) < share
    mask[:, int(rng.integers(length))] = True
    return torch.from_numpy(tokens), torch.from_numpy(mask)


def by_loops(query: torch.Tensor, query_mask: torch.Tensor, token: torch.Tensor, token_mask: torch.Tensor) -> np.ndarray:
    out = np.zeros((len(query), len(token)))
    for b, c in np.ndindex(out.shape):
        best = [
            max((float(query[b, j] @ token[c, i]) for i in range(token.shape[1]) if token_mask[c, i]), default=-np.inf)
            for j in range(query.shape[1])
            if query_mask[b, j]
        ]
        out[b, c] = sum(best) / len(best)
    return out


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(0)
    return *random_tokens(rng, 5, 6), *random_tokens(rng, 9, 4)


def test_scores_are_those_of_loops_in_float64(batch: tuple[torch.Tensor, ...]) -> None:
    query, query_mask, token, token_mask = batch
    found = mean_max_sim(query.float(), query_mask, token.float(), token_mask)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), by_loops(query, query_mask, token, token_mask), atol=1e-6)


def test_scores_are_those_of_the_numpy_definition(batch: tuple[torch.Tensor, ...]) -> None:
    query, query_mask, token, token_mask = batch
    found = mean_max_sim(query.float(), query_mask, token.float(), token_mask).numpy()
    flat = token.float().numpy().reshape(-1, token.shape[2])
    offsets = np.arange(len(token) + 1) * token.shape[1]
    for b in range(len(query)):
        wanted = scoring.mean_max_sim(
            query[b].float().numpy(), flat, offsets, query_mask_Q=query_mask[b].numpy(), token_mask_T=token_mask.numpy().reshape(-1)
        )
        np.testing.assert_allclose(found[b], wanted, atol=1e-5)


def test_masked_tokens_can_be_anything(batch: tuple[torch.Tensor, ...]) -> None:
    query, query_mask, token, token_mask = batch
    before = mean_max_sim(query, query_mask, token, token_mask)
    query = query.masked_fill(~query_mask[..., None], 1e4)
    token = token.masked_fill(~token_mask[..., None], 1e4)
    assert torch.equal(before, mean_max_sim(query, query_mask, token, token_mask))


def test_a_masked_token_never_beats_a_negative_similarity() -> None:
    query, token = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[-1.0, 0.0], [0.0, 1.0]]])
    score = mean_max_sim(query, torch.ones(1, 1, dtype=torch.bool), token, torch.tensor([[True, False]]))
    assert score.item() == -1.0


def test_identical_tokens_score_exactly_one() -> None:
    token = torch.nn.functional.one_hot(torch.arange(4)).float()[None]
    everything = torch.ones(1, 4, dtype=torch.bool)
    assert mean_max_sim(token, everything, token, everything).item() == 1.0


def test_a_clip_without_a_valid_token_scores_minus_infinity_and_others_are_untouched(batch: tuple[torch.Tensor, ...]) -> None:
    query, query_mask, token, token_mask = batch
    before = mean_max_sim(query, query_mask, token, token_mask)
    token_mask = token_mask.clone()
    token_mask[3] = False
    found = mean_max_sim(query, query_mask, token, token_mask)
    assert torch.isneginf(found[:, 3]).all() and not found.isnan().any()
    others = [i for i in range(9) if i != 3]
    assert torch.equal(found[:, others], before[:, others])


@pytest.mark.parametrize("chunk", [1, 2, 4, 9, 100])
def test_the_result_does_not_depend_on_the_chunk(batch: tuple[torch.Tensor, ...], chunk: int) -> None:
    whole, parts = mean_max_sim(*batch), mean_max_sim(*batch, chunk=chunk)
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-12)


def test_a_pairs_score_does_not_depend_on_its_batch_or_order(batch: tuple[torch.Tensor, ...]) -> None:
    query, query_mask, token, token_mask = batch
    whole = mean_max_sim(query, query_mask, token, token_mask)
    alone = mean_max_sim(query[2:3], query_mask[2:3], token[4:5], token_mask[4:5])
    torch.testing.assert_close(alone[0, 0], whole[2, 4], rtol=0, atol=1e-12)
    turned = mean_max_sim(query.flip(0), query_mask.flip(0), token.flip(0), token_mask.flip(0))
    torch.testing.assert_close(turned, whole.flip(0, 1), rtol=0, atol=1e-12)


def test_no_clips_give_no_columns(batch: tuple[torch.Tensor, ...]) -> None:
    query, query_mask, token, token_mask = batch
    assert mean_max_sim(query, query_mask, token[:0], token_mask[:0]).shape == (5, 0)


def test_gradients_are_those_of_finite_differences(batch: tuple[torch.Tensor, ...]) -> None:
    query, query_mask, token, token_mask = batch
    query, token = query[:3].clone().requires_grad_(), token[:4].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda q, t: mean_max_sim(q, query_mask[:3], t, token_mask[:4], chunk=2), (query, token))


def test_masked_tokens_get_no_gradient(batch: tuple[torch.Tensor, ...]) -> None:
    query, query_mask, token, token_mask = batch
    query, token = query.clone().requires_grad_(), token.clone().requires_grad_()
    mean_max_sim(query, query_mask, token, token_mask).sum().backward()
    assert query.grad is not None and token.grad is not None
    assert not query.grad[~query_mask].any() and not token.grad[~token_mask].any()
    assert query.grad[query_mask].any(dim=-1).all()


def test_half_precision_tokens_are_summed_in_float32(batch: tuple[torch.Tensor, ...]) -> None:
    query, query_mask, token, token_mask = batch
    found = mean_max_sim(query.bfloat16(), query_mask, token.bfloat16(), token_mask)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), mean_max_sim(query, query_mask, token, token_mask), rtol=0, atol=2e-2)


def test_the_total_is_the_sum_or_the_one_branch_there_is() -> None:
    f, v = torch.tensor([[0.25]]), torch.tensor([[0.5]])
    assert BranchScores(f, v).total_BC.item() == 0.75
    assert BranchScores(f, None).total_BC is f and BranchScores(None, v).total_BC is v
