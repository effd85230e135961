"""The table of an ablation: means and intervals over seeds, differences to the baseline paired by seed and by query."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vctool.ablation.grid import Cell, Grid
from vctool.ablation.outcome import Outcome, write_whole
from vctool.ablation.run import outcome_of
from vctool.ablation.statistics import Summary, summarise
from vctool.evaluation.report import markdown_table, number
from vctool.metrics import Difference, PerQuery, compare_paired

_HEADLINE = "R@1"


@dataclass(frozen=True)
class Contrast:
    """A cell minus the baseline, over the seeds that both have.

    over_seeds: the difference of each seed with its t-interval. over_queries: R@1 of all those seeds, queries resampled
    and swapped with all their seeds together, so that it tells about other queries for these very models.
    """

    over_seeds: Summary
    over_queries: Difference


@dataclass(frozen=True)
class Row:
    """One cell. metrics: of the primary branch; branches: R@1 of each branch; failed: seed → reason."""

    cell: Cell
    primary: str
    seeds: tuple[int, ...]
    metrics: dict[str, Summary]
    branches: dict[str, Summary]
    reversal: dict[str, Summary]
    learnt: dict[str, Summary]
    contrast: Contrast | None
    failed: dict[int, str]


@dataclass(frozen=True)
class Table:
    """An ablation's result. notes: what a reader must know before believing it."""

    name: str
    question: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    about: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        return {
            "schema": 1,
            "kind": "vctool ablation",
            "name": self.name,
            "question": self.question,
            "cells": [_row_dict(row) for row in self.rows],
            "notes": list(self.notes),
            **self.about,
        }


def table_of(grid: Grid, output: Path) -> Table:
    """The table of what is finished in `output`."""
    found = {(run.cell.name, run.seed): outcome_of(run, output) for run in grid.runs}
    done = {place: outcome for place, outcome in found.items() if outcome is not None}
    rows = tuple(_row(grid, cell, done) for cell in grid.cells)
    return Table(
        grid.ablation.name,
        grid.ablation.question,
        tuple(dict.fromkeys((_HEADLINE, *grid.ablation.metrics))),
        rows,
        tuple(_notes(grid, done)),
        _about(list(done.values())),
    )


def text_of(table: Table) -> str:
    """The table as Markdown."""
    rows, spans = [], []
    for row in table.rows:
        if not row.metrics:
            rows.append([row.cell.name, *["–"] * (len(table.columns) + 3)])
            continue
        shown = [_mean(name, row.metrics[name]) for name in table.columns]
        rows.append([row.cell.name, str(len(row.metrics[_HEADLINE].values)), *shown, *_contrast_cells(row.contrast)])
        values = row.metrics[_HEADLINE].values
        extremes = f"{number(_HEADLINE, min(values))} to {number(_HEADLINE, max(values))}"
        spans.append([row.cell.name, extremes, _branch_words(row.branches), _branch_words(row.reversal), _learnt_words(row.learnt)])
    header = ["cell", "seeds", *table.columns, "R@1 - baseline, over seeds", "over queries (p)"]
    parts = [f"# Ablation: {table.name}\n", f"{table.question}\n"] if table.question else [f"# Ablation: {table.name}\n"]
    parts.append(markdown_table(header, rows))
    parts.append(
        "Mean ± half the 95 % t-interval over seeds. The last column: 95 % bootstrap interval over queries of the same difference, "
        "all seeds of a query together, and the p of a paired randomisation test.\n"
    )
    parts.append(
        markdown_table(["cell", "R@1, range over seeds", "R@1 by branch", "direction of time", "scale t, bias b at the end"], spans)
    )
    parts.append(markdown_table(["cell", "changes", "note"], [[r.cell.name, " ".join(r.cell.set) or "–", r.cell.note] for r in table.rows]))
    failed = [f"- {row.cell.name}, seed {seed}: {why}\n" for row in table.rows for seed, why in row.failed.items()]
    if failed:
        parts.append("## Failed runs\n\n" + "".join(failed))
    if table.notes:
        parts.append("".join(f"- {note}\n" for note in table.notes))
    return "\n".join(parts)


def write_table(table: Table, output: Path) -> list[Path]:
    """`NAME.md` and `NAME.json` into `output`. Raises VctoolError where they cannot be written."""
    paths = [output / f"{table.name}.md", output / f"{table.name}.json"]
    write_whole(paths[0], text_of(table))
    write_whole(paths[1], json.dumps(table.to_dict(), indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    return paths


def _row(grid: Grid, cell: Cell, done: dict[tuple[str, int], Outcome]) -> Row:
    mine = {seed: done[cell.name, seed] for seed in grid.ablation.seeds if (cell.name, seed) in done}
    good = {seed: outcome for seed, outcome in mine.items() if outcome.failed is None}
    failed = {seed: outcome.failed for seed, outcome in mine.items() if outcome.failed is not None}
    if not good:
        return Row(cell, "", (), {}, {}, {}, {}, None, failed)
    outcomes = list(good.values())
    primary = outcomes[0].primary
    names = dict.fromkeys((_HEADLINE, *grid.ablation.metrics))
    learnt = {name: summarise([float(np.mean(o.about[key])) for o in outcomes]) for name, key in (("t", "log_scale"), ("b", "bias"))}
    return Row(
        cell=cell,
        primary=primary,
        seeds=tuple(good),
        metrics={name: summarise([o.metrics[primary][name] for o in outcomes]) for name in names},
        branches={branch: summarise([o.metrics[branch][_HEADLINE] for o in outcomes]) for branch in outcomes[0].metrics},
        reversal={branch: summarise([o.reversal[branch] for o in outcomes]) for branch in outcomes[0].reversal},
        learnt=learnt,
        contrast=_contrast(grid, cell, good, done),
        failed=failed,
    )


def _contrast(grid: Grid, cell: Cell, good: dict[int, Outcome], done: dict[tuple[str, int], Outcome]) -> Contrast | None:
    base = grid.cells[0].name
    pairs = [(done[base, seed], own) for seed, own in good.items() if (base, seed) in done and done[base, seed].failed is None]
    if cell.name == base or not pairs:
        return None
    differences = [b.metrics[b.primary][_HEADLINE] - a.metrics[a.primary][_HEADLINE] for a, b in pairs]
    joined = [joined_queries([outcome.per_query[outcome.primary] for outcome in side]) for side in zip(*pairs, strict=True)]
    queries = len(pairs[0][0].per_query[pairs[0][0].primary].rank)
    compared = compare_paired(joined[0], joined[1], groups=np.tile(np.arange(queries), len(pairs)))
    return Contrast(summarise(differences), next(d for d in compared.differences if d.metric == _HEADLINE))


def joined_queries(parts: Sequence[PerQuery]) -> PerQuery:
    """The same queries of several runs, run after run."""
    return PerQuery(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("rank", "reciprocal", "precision", "ndcg")))


def _notes(grid: Grid, done: dict[tuple[str, int], Outcome]) -> list[str]:
    notes = []
    missing = len(grid.runs) - len(done)
    if missing:
        notes.append(f"{missing} of {len(grid.runs)} runs are not finished; their cells show fewer seeds.")
    if len(grid.ablation.seeds) == 1:
        notes.append("One seed only: there is no interval over seeds, and a difference may be the seed's.")
    for what in ("versions", "hardware"):
        if len({json.dumps(o.about.get("environment", {}).get(what), sort_keys=True) for o in done.values()}) > 1:
            notes.append(f"The runs were not all made with the same {what}: see each run's result.json.")
    if done:
        notes.append("Every cell is scored by the PyTorch model, with the weights of its best validation.")
    return notes


def _about(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    if not outcomes:
        return {}
    first = next((o for o in outcomes if o.failed is None), outcomes[0])
    return {
        "test": first.about.get("test"),
        "environment": first.about["environment"],
        "training_seconds": round(sum(o.seconds for o in outcomes), 1),
        "wall_seconds": round(sum(float(o.about["wall_seconds"]) for o in outcomes), 1),
    }


def _row_dict(row: Row) -> dict[str, Any]:
    out: dict[str, Any] = {"name": row.cell.name, "set": list(row.cell.set), "note": row.cell.note, "primary": row.primary}
    out |= {"seeds": list(row.seeds), "failed": {str(seed): why for seed, why in row.failed.items()}}
    for name in ("metrics", "branches", "reversal", "learnt"):
        out[name] = {key: summary.to_dict() for key, summary in getattr(row, name).items()}
    if row.contrast is not None:
        out["difference"] = {"over_seeds": row.contrast.over_seeds.to_dict(), "over_queries": row.contrast.over_queries.to_dict()}
    return out


def _mean(name: str, summary: Summary) -> str:
    return number(name, summary.mean) + ("" if summary.half is None else f" ± {number(name, summary.half)}")


def _contrast_cells(contrast: Contrast | None) -> list[str]:
    if contrast is None:
        return ["", ""]
    seeds, queries = contrast.over_seeds, contrast.over_queries
    half = "" if seeds.half is None else f" ± {seeds.half:.1f}"
    p = "" if queries.p_value is None else f" ({queries.p_value:.4f})"
    return [f"{seeds.mean:+.1f}{half}", f"{queries.low:+.1f} to {queries.high:+.1f}{p}"]


def _branch_words(values: dict[str, Summary]) -> str:
    return ", ".join(f"{branch} {summary.mean:.1f}" for branch, summary in values.items()) or "–"


def _learnt_words(learnt: dict[str, Summary]) -> str:
    return f"{learnt['t'].mean:.2f}, {learnt['b'].mean:.2f}"
