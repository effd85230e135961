"""Similarities that are not MeanMaxSim, against loops in float64; and that nothing serves them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the models need torch (the extra `train`)")

from vctool.config import ModelConfig, to_dict  # noqa: E402
from vctool.errors import ModelError  # noqa: E402
from vctool.models.interaction import mean_max_sim  # noqa: E402
from vctool.models.similarity import TokenSimilarity, TokenWeights  # noqa: E402

Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def tokens(rng: np.random.Generator, count: int, length: int, dim: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    values = rng.normal(size=(count, length, dim))
    mask = rng.random((count, length)) < 0.6
    mask[:, int(rng.integers(length))] = True
    return torch.from_numpy(values / np.linalg.norm(values, axis=-1, keepdims=True)).float(), torch.from_numpy(mask)


@pytest.fixture
def batch() -> Batch:
    rng = np.random.default_rng(3)
    return *tokens(rng, 4, 6), *tokens(rng, 5, 3)


def best(asking: np.ndarray, answering: np.ndarray) -> list[float]:
    """Of each asking token the maximum over the answering ones."""
    return [max(float(np.dot(a.astype(np.float64), b.astype(np.float64))) for b in answering) for a in asking]


def by_loops(batch: Batch, score: object) -> np.ndarray:
    query, query_mask, token, token_mask = (part.numpy() for part in batch)
    assert callable(score)
    return np.array([[score(query[b][query_mask[b]], token[c][token_mask[c]]) for c in range(len(token))] for b in range(len(query))])


def test_sum_adds_the_maxima_of_the_counted_query_tokens(batch: Batch) -> None:
    found = TokenSimilarity("sum", 7)(*batch)
    np.testing.assert_allclose(found.numpy(), by_loops(batch, lambda q, t: sum(best(q, t))), atol=1e-6)


def test_sum_is_mean_max_sim_times_the_number_of_counted_tokens(batch: Batch) -> None:
    count_B1 = batch[1].sum(dim=1, keepdim=True)
    torch.testing.assert_close(TokenSimilarity("sum", 7)(*batch), mean_max_sim(*batch) * count_B1)


def test_two_way_is_the_mean_of_both_directions(batch: Batch) -> None:
    expected = by_loops(batch, lambda q, t: (np.mean(best(q, t)) + np.mean(best(t, q))) / 2)
    np.testing.assert_allclose(TokenSimilarity("two_way", 7)(*batch).numpy(), expected, atol=1e-6)


def test_weighted_is_two_way_with_the_weights_of_its_layers(batch: Batch) -> None:
    torch.manual_seed(0)
    scorer = TokenSimilarity("weighted", 7)

    def shares(weights: TokenWeights | None, token: np.ndarray) -> np.ndarray:
        assert weights is not None
        first, second = weights.layers[0], weights.layers[2]
        hidden = np.maximum(token * np.sqrt(7) @ first.weight.detach().numpy().T + first.bias.detach().numpy(), 0)
        logit = (hidden @ second.weight.detach().numpy().T + second.bias.detach().numpy())[:, 0]
        return np.asarray(np.exp(logit) / np.exp(logit).sum())

    def score(q: np.ndarray, t: np.ndarray) -> float:
        return float(shares(scorer.query_weights, q) @ best(q, t) + shares(scorer.token_weights, t) @ best(t, q)) / 2

    np.testing.assert_allclose(scorer(*batch).detach().numpy(), by_loops(batch, score), atol=1e-5)


@pytest.mark.parametrize("kind", ["sum", "two_way", "weighted"])
def test_scores_do_not_depend_on_the_chunk(kind: str, batch: Batch) -> None:
    scorer = TokenSimilarity(kind, 7)  # type: ignore[arg-type]
    torch.testing.assert_close(scorer(*batch, chunk=2), scorer(*batch))


@pytest.mark.parametrize("kind", ["sum", "two_way", "weighted"])
def test_a_clip_without_a_valid_token_scores_minus_infinity_and_spoils_no_gradient(kind: str, batch: Batch) -> None:
    query, query_mask, token, token_mask = batch
    token_mask[1] = False
    query.requires_grad_()
    score = TokenSimilarity(kind, 7)(query, query_mask, token, token_mask)  # type: ignore[arg-type]
    assert torch.isneginf(score[:, 1]).all() and torch.isfinite(score[:, [0, 2, 3, 4]]).all()
    score[:, [0, 2]].sum().backward()
    assert query.grad is not None and torch.isfinite(query.grad).all()


def test_weights_sum_to_one_over_valid_tokens_and_are_zero_elsewhere(batch: Batch) -> None:
    weight = TokenWeights(7)(batch[0], batch[1])
    torch.testing.assert_close(weight.sum(dim=1), torch.ones(4))
    assert (weight[~batch[1]] == 0).all()


def test_the_runtime_and_the_exporter_refuse_a_model_of_another_similarity(tmp_path: Path) -> None:
    from vctool.runtime.model_directory import ModelDirectory

    config = to_dict(ModelConfig(similarity="two_way"))
    (tmp_path / "config.json").write_text(json.dumps(config))
    directory = ModelDirectory(tmp_path, ModelConfig(similarity="two_way"), None, "", "", "", {})  # type: ignore[arg-type]
    with pytest.raises(ModelError, match='similarity = "two_way", which only PyTorch computes'):
        directory.graph("text")


def test_the_exporter_refuses_it_too_and_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exporting = pytest.importorskip("vctool_export.exporting")

    class Loaded:
        config = ModelConfig(similarity="weighted")

    monkeypatch.setattr(exporting, "require_packages", lambda: None)
    monkeypatch.setattr(exporting, "load_model", lambda _: Loaded())
    with pytest.raises(ModelError, match='similarity = "weighted", which only PyTorch computes'):
        exporting.export_graphs(tmp_path, providers=())
    assert not list(tmp_path.iterdir())
