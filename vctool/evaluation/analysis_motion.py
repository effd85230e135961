"""Metrics by motion content: static, little and high, by frame difference of the right clip.

Shape letters: Q queries, N clips.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from vctool.evaluation.analysis import Analysis, Draws, Material, Progress
from vctool.evaluation.chart import Bars, Chart, Series
from vctool.evaluation.evaluate_model import model_branches
from vctool.evaluation.html import Figure, Section, Table
from vctool.evaluation.motion import CLASSES, FRAMES, NOISE, SIDE, Motion, Thresholds, measure
from vctool.metrics import RankingMetrics
from vctool.metrics.correlation import spearman


def analyse_motion(
    material: Material, draws: Draws, thresholds: Thresholds, *, workers: int = 1, progress: Progress | None = None
) -> Analysis:
    """Raises InputError if none of the videos can be read."""
    found, failed = measure(material.places, workers=workers, progress=progress)
    branches = model_branches(material.model.directory.config.interaction)
    with material.scored(branches) as scores:
        metrics = {str(branch): material.ranked(matrix) for branch, matrix in scores.items()}
    ids = material.split.clip_ids
    class_N = [thresholds.of(found[one]) if one in found else None for one in ids]
    area_N = np.asarray([found[one].area if one in found else np.nan for one in ids])
    clip_Q = material.clip_of_query
    measured_Q = ~np.isnan(area_N[clip_Q])
    rows = [_class_row(name, class_N, clip_Q, metrics, draws) for name in CLASSES]
    correlation = {
        branch: spearman(area_N[clip_Q][measured_Q], one.per_query.reciprocal[measured_Q]) if measured_Q.sum() > 2 else None
        for branch, one in metrics.items()
    }
    unmeasured = len(ids) - len(found)
    numbers: dict[str, Any] = {
        "measure": {"frames": FRAMES, "side": SIDE, "noise_grey_levels": NOISE, "unit": "mean share of the picture that changes"},
        "thresholds": {"little_from": thresholds.little, "high_from": thresholds.high},
        "classes": rows,
        "correlation_of_motion_and_reciprocal_rank": correlation,
        "clips_measured": len(found),
        "clips_not_measured": unmeasured,
        "seconds_between_frames": float(np.median([one.step for one in found.values()])),
        "area_quantiles": {str(q): float(np.quantile([one.area for one in found.values()], q)) for q in (0.05, 0.25, 0.5, 0.75, 0.95)},
        "clips": {one: {"area": motion.area, "level": motion.level, "class": thresholds.of(motion)} for one, motion in found.items()},
        "reasons": failed,
    }
    return Analysis(
        name="motion",
        title="Retrieval by motion content",
        findings=tuple(_findings(rows, list(metrics), correlation, unmeasured)),
        method=(
            f"Motion is measured by frame difference, not by optical flow: {FRAMES} frames spread over the clip, {SIDE} × {SIDE} pixels of "
            f"grey; the measure is the share of the picture that changes by more than {NOISE:g} of 255 levels from one frame to the next, "
            "averaged. A moving camera and a cut count as motion. The frames lie "
            f"{numbers['seconds_between_frames']:.2f} s apart in the median clip.",
            f"Static: below {100 * thresholds.little:g} % of the picture; little: from there; high: from {100 * thresholds.high:g} %.",
            "A query belongs to the class of its right clip and is ranked against all clips, of every class.",
            f"Intervals: {draws.words}.",
        ),
        numbers=numbers,
        sections=(Section("By motion", [*(Figure(one) for one in _charts(rows, list(metrics), found)), _table(rows, list(metrics))]),),
    )


def _class_row(
    name: str, class_N: list[str | None], clip_Q: npt.NDArray[np.int64], metrics: dict[str, RankingMetrics], draws: Draws
) -> dict[str, Any]:
    inside_N = np.asarray([one == name for one in class_N])
    inside_Q = inside_N[clip_Q]
    row: dict[str, Any] = {"class": name, "clips": int(inside_N.sum()), "queries": int(inside_Q.sum())}
    if not row["queries"]:
        return row | {"branches": {}}
    values: dict[str, npt.NDArray[Any]] = {}
    for branch, one in metrics.items():
        values[f"{branch} R@1"] = 100.0 * (one.ranks <= 1)
        values[f"{branch} R@10"] = 100.0 * (one.ranks <= 10)
        values[f"{branch} MRR"] = one.per_query.reciprocal
        values[f"{branch} nDCG@10"] = one.per_query.ndcg
    drawn = draws.means(list(values.values()), [inside_Q] * len(values), clip_Q)
    found: dict[str, dict[str, Any]] = {branch: {"MdR": float(np.median(one.ranks[inside_Q]))} for branch, one in metrics.items()}
    for at, (key, value_Q) in enumerate(values.items()):
        branch, metric = key.split(" ")
        found[branch][metric] = float(value_Q[inside_Q].mean())
        found[branch][f"{metric}_interval"] = list(draws.interval(drawn[:, at]))
    return row | {"branches": found}


def _findings(rows: list[dict[str, Any]], branches: list[str], correlation: dict[str, float | None], unmeasured: int) -> list[str]:
    said = [
        f"{', '.join(str(row['clips']) + ' clips ' + row['class'] for row in rows)}"
        + (f"; {unmeasured} could not be measured and are in no class." if unmeasured else ".")
    ]
    filled = [row for row in rows if row["queries"]]
    for branch in branches:
        parts = [f"{row['class']} {row['branches'][branch]['R@1']:.1f}" for row in filled]
        rank = correlation[branch]
        words = "" if rank is None else f"; rank correlation of motion with reciprocal rank {rank:+.2f}"
        said.append(f"R@1 on {branch}: {', '.join(parts)}{words}.")
    empty = [row["class"] for row in rows if not row["queries"]]
    if empty:
        said.append(f"No query asks for a clip of class {' or '.join(empty)}: other thresholds, or other data, would be needed.")
    if {"f", "v"} <= set(branches) and len(filled) > 1:
        gains = {row["class"]: row["branches"]["v"]["R@1"] - row["branches"]["f"]["R@1"] for row in filled}
        said.append("v minus f in R@1: " + ", ".join(f"{name} {gain:+.1f}" for name, gain in gains.items()) + ".")
    return said


def _charts(rows: list[dict[str, Any]], branches: list[str], found: dict[str, Motion]) -> list[Bars | Chart]:
    filled = [row for row in rows if row["queries"]]
    series = [
        Series(
            branch,
            (),
            [row["branches"][branch]["R@1"] for row in filled],
            [row["branches"][branch]["R@1_interval"][0] for row in filled],
            [row["branches"][branch]["R@1_interval"][1] for row in filled],
        )
        for branch in branches
    ]
    names = [f"{row['class']} ({row['queries']:,} queries)" for row in filled]
    area = np.sort([100 * motion.area for motion in found.values()])
    share = 100.0 * np.arange(1, len(area) + 1) / len(area)
    kept = np.unique(np.linspace(0, len(area) - 1, min(len(area), 200)).round().astype(int))
    about = "R@1 of text to video by the motion of the right clip; thin lines are intervals."
    return [
        Bars("motion-r1", "R@1 by motion of the right clip", "R@1 in percent", names, series, about),
        Chart(
            "motion-spread",
            "How much moves in these clips",
            "percent of the picture that changes",
            "percent of clips with at most that",
            [Series("clips", area[kept].tolist(), share[kept].tolist())],
            "Cumulative share of clips by the area that changes between sampled frames.",
        ),
    ]


def _table(rows: list[dict[str, Any]], branches: list[str]) -> Table:
    cells = []
    for row in rows:
        for branch in branches if row["queries"] else [""]:
            got = row["branches"].get(branch)
            shown = ["–"] * 5
            if got is not None:
                ends = "–".join(f"{end:.1f}" for end in got["R@1_interval"])
                shown = [f"{got['R@1']:.1f}", ends, f"{got['R@10']:.1f}", f"{got['MdR']:g}", f"{got['nDCG@10']:.4f}"]
            cells.append([row["class"], f"{row['clips']:,}", f"{row['queries']:,}", branch, *shown])
    header = ["motion", "clips", "queries", "branch", "R@1", "interval", "R@10", "MdR", "nDCG@10"]
    return Table("Text to video by the motion of the right clip", header, cells)
