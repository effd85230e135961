"""DSL, QB-Norm and Sinkhorn against their textbook forms."""

from __future__ import annotations

import numpy as np
import pytest

from vctool.errors import InputError, UsageProblem
from vctool.metrics import POSTPROCESSES, DualSoftmax, QueryBankNorm, Sinkhorn, evaluate_ranking


@pytest.fixture
def sims() -> np.ndarray:
    return np.random.default_rng(0).uniform(-0.5, 1.0, (12, 9)).astype(np.float32)


def test_dsl_multiplies_scores_by_the_softmax_over_queries(sims: np.ndarray) -> None:
    wide = sims.astype(np.float64)
    softmax = np.exp(20 * wide) / np.exp(20 * wide).sum(axis=0)
    np.testing.assert_allclose(DualSoftmax(sims, temperature=20)[0:12], wide * softmax, rtol=1e-10)


def test_dsl_keeps_minus_infinity_and_makes_no_nan(sims: np.ndarray) -> None:
    sims[:, 3] = -np.inf
    sims[2, 5] = -np.inf
    out = DualSoftmax(sims)[0:12]
    assert not np.isnan(out).any()
    assert np.isneginf(out[:, 3]).all() and np.isneginf(out[2, 5])


def test_qbnorm_rescoring_touches_only_queries_whose_best_clip_is_a_hub(sims: np.ndarray) -> None:
    bank = np.zeros((2, 9), np.float32)
    hub = int(np.argmax(sims[0]))
    bank[:, hub] = 0.9
    out = QueryBankNorm(sims, bank, beta=20)[0:12]
    touched = np.argmax(sims, axis=1) == hub
    assert touched.any() and not touched.all()
    np.testing.assert_array_equal(out[~touched], sims[~touched].astype(np.float64))
    expected = np.exp(20 * sims.astype(np.float64)) / np.exp(20 * bank.astype(np.float64)).sum(axis=0)
    np.testing.assert_allclose(np.exp(out[touched]), expected[touched], rtol=1e-9)


def test_qbnorm_takes_a_hub_down() -> None:
    sims = np.array([[0.9, 0.8], [0.9, 0.1]], np.float32)
    bank = np.array([[0.95, 0.6], [0.9, 0.5]], np.float32)
    assert evaluate_ranking(sims, np.array([1, 0])).r1 == 50.0
    assert evaluate_ranking(QueryBankNorm(sims, bank), np.array([1, 0])).r1 == 100.0


def test_qbnorm_needs_a_bank_over_the_same_clips(sims: np.ndarray) -> None:
    with pytest.raises(InputError, match="9"):
        QueryBankNorm(sims, np.zeros((2, 8), np.float32))
    with pytest.raises(InputError, match="query bank, row 1"):
        QueryBankNorm(sims, np.array([[0.0] * 9, [np.nan] * 9], np.float32))


def test_sinkhorn_ends_with_rows_summing_to_one_and_columns_nearly_uniform(sims: np.ndarray) -> None:
    plan = np.exp(Sinkhorn(sims, temperature=5, iterations=60)[0:12])
    np.testing.assert_allclose(plan.sum(axis=1), 1.0, rtol=1e-9)
    np.testing.assert_allclose(plan.sum(axis=0), 12 / 9, rtol=1e-6)


def test_sinkhorn_survives_a_clip_that_no_query_reaches(sims: np.ndarray) -> None:
    sims[:, 4] = -np.inf
    out = Sinkhorn(sims)[0:12]
    assert not np.isnan(out).any()
    assert np.isneginf(out[:, 4]).all()


@pytest.mark.parametrize("kind", [DualSoftmax, Sinkhorn])
def test_reading_by_chunks_gives_the_whole(sims: np.ndarray, kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = kind(sims)[0:12]
    monkeypatch.setattr("vctool.metrics.ranks.chunks_of.__defaults__", (300,))
    matrix = kind(sims)
    np.testing.assert_allclose(np.concatenate([matrix[i : i + 1] for i in range(12)]), whole, rtol=1e-12)


def test_only_qbnorm_is_marked_as_fit_for_live_search() -> None:
    assert [name for name, what in POSTPROCESSES.items() if what.live] == ["qbnorm"]


@pytest.mark.parametrize("make", [lambda s: DualSoftmax(s, -1), lambda s: Sinkhorn(s, 1, 0), lambda s: QueryBankNorm(s, s, k=99)])
def test_impossible_settings_are_refused(sims: np.ndarray, make: object) -> None:
    with pytest.raises(UsageProblem):
        make(sims)  # type: ignore[operator]
