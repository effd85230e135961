"""Our metrics against trec_eval's own engine (and ranx where it is installed) on tie-free random problems."""

from __future__ import annotations

import numpy as np
import pytest

from vctool.metrics import evaluate_ranking

SHAPES = [(1, 1, 1), (1, 7, 1), (13, 5, 2), (50, 50, 1), (20, 200, 1), (30, 77, 9), (7, 300, 120), (100, 60, 1), (3, 11, 11)]


def problem(queries: int, clips: int, right: int, graded: bool, seed: int) -> tuple[np.ndarray, list[dict[int, int]]]:
    rng = np.random.default_rng(seed)
    # A permutation of distinct values per row: no ties by construction.
    sims = np.stack([rng.permutation(clips) for _ in range(queries)]).astype(np.float32) / clips - 0.3
    qrels = []
    for _ in range(queries):
        count = int(rng.integers(1, right + 1))
        grades = rng.integers(1, 4, count) if graded else np.ones(count, int)
        qrels.append({int(c): int(g) for c, g in zip(rng.choice(clips, count, replace=False), grades, strict=True)})
    return sims, qrels


@pytest.mark.parametrize("graded", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_metrics_equal_pytrec_eval(shape: tuple[int, int, int], graded: bool) -> None:
    pytrec_eval = pytest.importorskip("pytrec_eval")
    for seed in range(3):
        sims, qrels = problem(*shape, graded, seed)
        names = {"map", "recip_rank", "ndcg_cut.10", "recall.1,5,10,50", "success.1,5,10,50"}
        judge = pytrec_eval.RelevanceEvaluator({str(q): {str(c): g for c, g in own.items()} for q, own in enumerate(qrels)}, names)
        run = {str(q): {str(c): float(s) for c, s in enumerate(row)} for q, row in enumerate(sims)}
        theirs = judge.evaluate(run)
        ours = evaluate_ranking(sims, qrels)
        scored = ours.per_query
        assert ours.tied_queries == 0
        for q in range(len(sims)):
            oracle = theirs[str(q)]
            assert scored.precision[q] == pytest.approx(oracle["map"], abs=1e-6)
            assert scored.reciprocal[q] == pytest.approx(oracle["recip_rank"], abs=1e-6)
            assert scored.ndcg[q] == pytest.approx(oracle["ndcg_cut_10"], abs=1e-6)
            for k in (1, 5, 10, 50):
                assert scored.share[k][q] == pytest.approx(oracle[f"recall_{k}"], abs=1e-6)
                assert float(scored.rank[q] <= k) == oracle[f"success_{k}"]
        for k in (1, 5, 10, 50):
            assert ours.recall[k] == pytest.approx(100 * np.mean([o[f"success_{k}"] for o in theirs.values()]), abs=1e-6)


def test_metrics_equal_ranx() -> None:
    ranx = pytest.importorskip("ranx", reason="ranx is not installed: pip install ranx (its first run compiles for a minute)")
    for shape in SHAPES:
        for graded in (False, True):
            sims, qrels = problem(*shape, graded, 0)
            truth = ranx.Qrels({str(q): {str(c): g for c, g in own.items()} for q, own in enumerate(qrels)})
            run = ranx.Run({str(q): {str(c): float(s) for c, s in enumerate(row)} for q, row in enumerate(sims)})
            theirs = ranx.evaluate(
                truth, run, ["map", "mrr", "ndcg@10", *(f"{name}@{k}" for name in ("recall", "hit_rate") for k in (1, 5, 10, 50))]
            )
            ours = evaluate_ranking(sims, qrels)
            assert ours.mean_average_precision == pytest.approx(theirs["map"], abs=1e-6)
            assert ours.mrr == pytest.approx(theirs["mrr"], abs=1e-6)
            assert ours.ndcg10 == pytest.approx(theirs["ndcg@10"], abs=1e-6)
            for k in (1, 5, 10, 50):
                assert ours.recall[k] == pytest.approx(100 * theirs[f"hit_rate@{k}"], abs=1e-6)
                assert np.mean(ours.per_query.share[k]) == pytest.approx(theirs[f"recall@{k}"], abs=1e-6)
