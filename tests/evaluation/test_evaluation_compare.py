"""`vctool compare`: paired test on saved results."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

Vctool = Callable[..., Any]


@pytest.fixture
def saved(vctool: Vctool, tmp_path: Path) -> Callable[..., Path]:
    def make(name: str, noise: float, queries: int = 60, clips: int | None = None) -> Path:
        sims = np.random.default_rng(0).standard_normal((queries, clips or queries)) * noise + np.eye(queries, clips or queries)
        np.save(tmp_path / f"{name}.npy", sims)
        (tmp_path / "q.tsv").write_text("".join(f"{i}\t{i}\n" for i in range(queries)))
        ran = vctool(
            "evaluate", "--sims", tmp_path / f"{name}.npy", "--qrels", tmp_path / "q.tsv", "--report", tmp_path / name, "--resamples", 20
        )
        assert ran.code == 0
        return tmp_path / name / "result.json"

    return make


def test_better_scores_win_with_interval_p_value_and_lists(vctool: Vctool, saved: Callable[..., Path], tmp_path: Path) -> None:
    ran = vctool("compare", saved("noisy", 0.6), saved("clean", 0.3), "--json", "--report", tmp_path / "out", "--permutations", 2000)
    assert ran.code == 0
    found = ran.json()
    r1 = next(one for one in found["differences"] if one["metric"] == "R@1")
    assert r1["difference"] == pytest.approx(r1["b"] - r1["a"])
    assert r1["difference"] > 0
    assert r1["interval"][0] > 0
    assert r1["p_value"] < 0.01
    assert len(found["won"]) + len(found["lost"]) + found["equal"] == 60
    assert all(one["rank_b"] < one["rank_a"] for one in found["won"])
    assert json.loads((tmp_path / "out" / "comparison.json").read_text()) == found
    assert "## Won" in (tmp_path / "out" / "comparison.md").read_text()


def test_a_result_compared_with_itself_differs_in_nothing(vctool: Vctool, saved: Callable[..., Path]) -> None:
    path = saved("a", 0.5)
    found = vctool("compare", path, path, "--json", "--permutations", 100).json()
    assert all(one["difference"] == 0 for one in found["differences"])
    assert (found["won"], found["lost"], found["equal"]) == ([], [], 60)


def test_two_branches_of_one_result_can_be_compared(vctool: Vctool, coloured: Path, coloured_index: Path, tmp_path: Path) -> None:
    data = ["--index", coloured_index, "--data", coloured / "captions.jsonl"]
    assert vctool("evaluate", *data, "--report", tmp_path, "--resamples", 0).code == 0
    found = vctool("compare", tmp_path / "result.json", tmp_path / "result.json", "--branch-a", "f", "--json").json()
    assert found["a"].endswith("[f]") and found["b"].endswith("[fv]")
    ran = vctool("compare", tmp_path / "result.json", tmp_path / "result.json", "--branch-a", "sims")
    assert ran.code == 1
    assert "it has: f, v, fv" in ran.err


def test_queries_are_matched_by_id_in_any_order(vctool: Vctool, saved: Callable[..., Path], tmp_path: Path) -> None:
    a, b = saved("a", 0.6), saved("b", 0.3)
    document = json.loads(b.read_text())
    order = np.random.default_rng(0).permutation(60)
    for key in ("ids", "texts", "right_clips"):
        document["queries"][key] = [document["queries"][key][i] for i in order]
    document["queries"]["per_query"]["sims"]["rank"] = [document["queries"]["per_query"]["sims"]["rank"][i] for i in order]
    (tmp_path / "shuffled.json").write_text(json.dumps(document))
    straight, shuffled = (vctool("compare", a, other, "--json").json() for other in (b, tmp_path / "shuffled.json"))
    assert shuffled["differences"] == straight["differences"]
    assert shuffled["won"] == straight["won"]


def test_results_on_other_queries_or_galleries_are_refused(vctool: Vctool, saved: Callable[..., Path]) -> None:
    ran = vctool("compare", saved("a", 0.5), saved("b", 0.5, queries=50))
    assert ran.code == 1
    assert "10 only in" in ran.err
    ran = vctool("compare", saved("c", 0.5), saved("d", 0.5, clips=70))
    assert ran.code == 1
    assert "different galleries (60 and 70 clips)" in ran.err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ("{}", "is not a result of vctool evaluate"),
        ('{"kind": "vctool evaluation", "schema": 99}', "schema 99"),
        ('{"kind": "vctool evaluation", "schema": 1}', "no per-query ranks"),
        ('{"kind": "vctool evaluation", "schema": 1, "queries": {}}', "is damaged"),
    ],
)
def test_files_that_are_no_results_are_one_clear_line(vctool: Vctool, tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "x.json").write_text(content)
    ran = vctool("compare", tmp_path / "x.json", tmp_path / "x.json")
    assert ran.code == 1
    assert message in ran.err.splitlines()[0]


def test_json_with_per_query_can_be_compared_too(vctool: Vctool, tmp_path: Path) -> None:
    np.save(tmp_path / "s.npy", np.eye(5))
    ran = vctool("evaluate", "--sims", tmp_path / "s.npy", "--json", "--per-query")
    (tmp_path / "r.json").write_text(ran.out)
    assert vctool("compare", tmp_path / "r.json", tmp_path / "r.json").code == 0


def test_the_table_names_both_results(vctool: Vctool, saved: Callable[..., Path]) -> None:
    ran = vctool("compare", saved("noisy", 0.6), saved("clean", 0.3), "--show", 2)
    assert ran.code == 0
    assert "B won" in ran.out and "geo. mean" in ran.out
