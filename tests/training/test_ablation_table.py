"""The arithmetic of ablation tables, against numbers worked out by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vctool.ablation.grid import Ablation, Cell, Grid, Run
from vctool.ablation.outcome import OUTCOME_FILE, Outcome, load_outcome, save_outcome
from vctool.ablation.statistics import summarise, t95
from vctool.ablation.table import joined_queries, table_of, text_of
from vctool.errors import InputError
from vctool.metrics import PerQuery

# Ranks of four queries under two seeds; R@1 of the baseline: 50 and 25, of the cell: 75 and 75.
RANKS = {("base", 0): [1, 1, 2, 3], ("base", 1): [1, 2, 2, 4], ("other", 0): [1, 1, 1, 3], ("other", 1): [1, 1, 1, 4]}


def outcome(key: str, ranks: list[int], **about: Any) -> Outcome:
    share = 100.0 * float(np.mean(np.array(ranks) == 1))
    facts = {
        "log_scale": [2.0],
        "bias": [-1.0, -3.0],
        "wall_seconds": 2.0,
        "seconds": 1.5,
        "environment": {"versions": {"a": "1"}, "hardware": {}},
    }
    values = {"R@1": share, "MRR": float(np.mean(1 / np.array(ranks)))}
    one = PerQuery.from_ranks(np.array(ranks, dtype=np.float64))
    return Outcome(key, "fv", {"fv": values, "f": {"R@1": 10.0, "MRR": 0.1}}, {"fv": 60.0}, {"fv": one}, None, {**facts, **about})


@pytest.fixture
def grid(tmp_path: Path) -> Grid:
    cells = (Cell("base"), Cell("other", ("a.b=1",), "a note"))
    runs = tuple(Run(cell, seed, None, 1, f"{cell.name}{seed}".ljust(64, "0")) for seed in (0, 1) for cell in cells)  # type: ignore[arg-type]
    for run in runs:
        save_outcome(outcome(run.key, RANKS[run.cell.name, run.seed]), tmp_path / "runs" / run.folder / OUTCOME_FILE)
    return Grid(
        Ablation("small", Path("base.toml"), "Why?", baseline="base", seeds=(0, 1), metrics=("R@1", "MRR"), cell=cells[1:]), cells, runs
    )


def test_the_interval_over_seeds_is_students() -> None:
    one = summarise([10.0, 12.0, 17.0])
    # mean 13, deviations -3, -1, 4: variance 26 / 2 = 13; t of 2 degrees 4.3027
    assert one.mean == 13.0 and one.half == pytest.approx(4.3027 * (13 / 3) ** 0.5)
    assert one.to_dict()["range"] == [10.0, 17.0] and one.to_dict()["interval"] == pytest.approx([13 - one.half, 13 + one.half])
    assert summarise([5.0]).half is None and summarise([5.0]).to_dict()["interval"] is None


def test_quantiles_of_students_t_are_those_of_its_distribution() -> None:
    rng = np.random.default_rng(0)
    for degrees in (1, 2, 5, 29, 40, 200):
        density = rng.standard_t(degrees, 400_000)
        assert np.mean(np.abs(density) > t95(degrees)) == pytest.approx(0.05, abs=0.0015), degrees
    assert t95(31) == pytest.approx(2.0395, abs=2e-4) and t95(60) == pytest.approx(2.0003, abs=2e-4)


def test_means_differences_and_their_intervals_are_those_worked_out_by_hand(grid: Grid, tmp_path: Path) -> None:
    base, other = table_of(grid, tmp_path).rows
    assert base.metrics["R@1"].mean == 37.5 and base.metrics["R@1"].values == (50.0, 25.0)
    assert base.metrics["R@1"].half == pytest.approx(12.7062 * 12.5)
    assert other.metrics["R@1"].values == (75.0, 75.0) and other.metrics["R@1"].half == 0.0
    assert base.metrics["MRR"].mean == pytest.approx((1 + 1 + 1 / 2 + 1 / 3 + 1 + 1 / 2 + 1 / 2 + 1 / 4) / 8)
    assert base.learnt["t"].mean == 2.0 and base.learnt["b"].mean == -2.0 and base.reversal["fv"].mean == 60.0
    assert base.contrast is None and other.contrast is not None
    assert other.contrast.over_seeds.values == (25.0, 50.0) and other.contrast.over_seeds.mean == 37.5
    assert other.contrast.over_seeds.half == pytest.approx(12.7062 * 12.5)
    assert other.contrast.over_queries.a == 37.5 and other.contrast.over_queries.difference == 37.5


def test_queries_are_resampled_with_all_their_seeds(grid: Grid, tmp_path: Path) -> None:
    contrast = table_of(grid, tmp_path).rows[1].contrast
    assert contrast is not None
    # A query brings both its seeds: the gains in percent are 0, 50, 100, 0, so a draw of four averages four of these.
    rng = np.random.default_rng(7)
    gains = np.array([0.0, 50.0, 100.0, 0.0])[rng.integers(0, 4, (20_000, 4))].mean(axis=1)
    low, high = np.quantile(gains, [0.025, 0.975])
    assert (contrast.over_queries.low, contrast.over_queries.high) == (pytest.approx(low, abs=6.3), pytest.approx(high, abs=6.3))
    # Swapping two of four queries (the two that differ, each with both seeds) reaches the difference seen in 2 of 4 ways.
    assert contrast.over_queries.p_value == pytest.approx(0.5, abs=0.03)


def test_queries_are_joined_run_after_run() -> None:
    parts = [PerQuery.from_ranks(np.array(ranks, dtype=np.float64)) for ranks in ([1, 2], [3, 4])]
    assert joined_queries(parts).rank.tolist() == [1, 2, 3, 4]


def test_the_text_shows_each_number_where_it_belongs(grid: Grid, tmp_path: Path) -> None:
    text = text_of(table_of(grid, tmp_path))
    rows = {line.split(" | ")[0][2:]: line for line in text.splitlines() if line.startswith("| ")}
    assert "# Ablation: small" in text and "Why?" in text
    assert "| base | 2 | 37.5 ± 158.8 | 0.6354" in text
    assert "| other | 2 | 75.0 ± 0.0 |" in text and "+37.5 ± 158.8" in text
    assert "| base | 25.0 to 50.0 | fv 37.5, f 10.0 | fv 60.0 | 2.00, -2.00 |" in text
    assert rows["other"].endswith("| a.b=1 | a note |")


def test_a_missing_run_is_noted_and_the_rest_compared(grid: Grid, tmp_path: Path) -> None:
    (tmp_path / "runs" / grid.runs[2].folder / OUTCOME_FILE).unlink()
    table = table_of(grid, tmp_path)
    assert table.rows[0].seeds == (0,) and table.rows[1].contrast is not None and table.rows[1].contrast.over_seeds.values == (25.0,)
    assert any("1 of 4 runs are not finished" in note for note in table.notes)


def test_runs_of_different_versions_are_noted(grid: Grid, tmp_path: Path) -> None:
    run = grid.runs[1]
    changed = outcome(run.key, [1, 1, 1, 3], environment={"versions": {"a": "2"}, "hardware": {}})
    save_outcome(changed, tmp_path / "runs" / run.folder / OUTCOME_FILE)
    assert any("not all made with the same versions" in note for note in table_of(grid, tmp_path).notes)


def test_a_result_comes_back_as_it_was_saved_and_only_under_its_key(tmp_path: Path) -> None:
    one = outcome("k", [1, 3, 2])
    save_outcome(one, tmp_path / "a.json")
    back = load_outcome(tmp_path / "a.json", "k")
    assert back is not None and back.metrics == one.metrics and back.about == one.about
    np.testing.assert_array_equal(back.per_query["fv"].rank, [1, 3, 2])
    assert load_outcome(tmp_path / "a.json", "other") is None and load_outcome(tmp_path / "b.json", "k") is None
    (tmp_path / "a.json").write_text('{"schema": 1, "key": "k"}')
    with pytest.raises(InputError, match="is not the result of a run"):
        load_outcome(tmp_path / "a.json", "k")
