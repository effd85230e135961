"""Where the two branches agree and where only one of them finds the clip, with examples.

Shape letters: Q queries, N clips.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from vctool.data import Located
from vctool.errors import UsageProblem
from vctool.evaluation.analysis import Analysis, Draws, Float64, Material, Progress
from vctool.evaluation.chart import Chart, Series
from vctool.evaluation.contact_sheet import contact_sheets, place_ids
from vctool.evaluation.failures import Failure, failure_of
from vctool.evaluation.gallery import Sheets, shown
from vctool.evaluation.html import Card, Figure, Gallery, Section, Table, Text
from vctool.metrics import RankingMetrics, ScoreMatrix
from vctool.metrics.correlation import spearman
from vctool.scoring import Branch

# Queries whose whole lists are compared: a correlation over 5,000 clips for 50,000 queries would take minutes and say the same.
LISTS, TOP = 1000, 10


def list_agreement(frame_QN: ScoreMatrix, video_QN: ScoreMatrix, seed: int) -> dict[str, Any]:
    """How alike the two branches' whole lists are: mean rank correlation, and mean share of the first TOP clips in common."""
    queries, clips = (int(size) for size in frame_QN.shape)
    chosen = np.arange(queries)
    if queries > LISTS:
        chosen = np.sort(np.random.default_rng(seed).choice(queries, LISTS, replace=False))
    correlations: list[float] = []
    common: list[float] = []
    top = min(TOP, clips)
    for row in chosen.tolist():
        frame_N, video_N = (np.asarray(sims[row : row + 1])[0] for sims in (frame_QN, video_QN))
        found = spearman(frame_N, video_N)
        if found is not None:
            correlations.append(found)
        first = [set(np.argsort(-score_N, kind="stable")[:top].tolist()) for score_N in (frame_N, video_N)]
        common.append(len(first[0] & first[1]) / top)
    return {
        "queries_compared": len(chosen),
        "rank_correlation_of_lists": float(np.mean(correlations)) if correlations else None,
        f"share_of_top_{top}_in_common": float(np.mean(common)),
    }


def analyse_branches(
    material: Material, draws: Draws, *, examples: int = 6, workers: int = 1, progress: Progress | None = None
) -> Analysis:
    """Raises UsageProblem for a model with one branch."""
    config = material.model.directory.config
    if config.interaction != "fv":
        raise UsageProblem(f"{config.name} has only branch {config.interaction}: there is nothing to agree with", "analyse an fv model")
    with material.scored(["f", "v", "fv"], progress=progress) as scores:
        metrics = {branch: material.ranked(matrix) for branch, matrix in scores.items()}
        lists = list_agreement(scores["f"], scores["v"], draws.seed)
        rank_f, rank_v = metrics["f"].ranks, metrics["v"].ranks
        groups_Q = material.clip_of_query
        # What is shown above the right clip comes from the branch that missed it.
        pairs: tuple[tuple[Branch, Branch], ...] = (("f", "v"), ("v", "f"))
        cases = {
            winner: [
                failure_of(scores[loser], material.split, row, float(metrics[loser].ranks[row]), 2)
                for row in only_one(metrics[winner].ranks, metrics[loser].ranks, groups_Q, examples)
            ]
            for winner, loser in pairs
        }
    cells = {cut: _cells(rank_f, rank_v, metrics["fv"].ranks, cut, groups_Q, draws) for cut in (1, 10)}
    correlation = spearman(rank_f, rank_v)
    numbers = {
        "rank_correlation_of_right_clips": correlation,
        "lists": lists,
        "found": {f"at_{cut}": found for cut, found in cells.items()},
        "better_by": _better(rank_f, rank_v),
        "r1": {branch: one.r1 for branch, one in metrics.items()},
        "examples": {winner: [_case(one, metrics, winner) for one in found] for winner, found in cases.items()},
    }
    wanted = [one for found in cases.values() for case in found for one in (case.right.clip, *(other.clip for other in case.above))]
    sheets = _sheets(place_ids(wanted, material.places), workers)
    return Analysis(
        name="branches",
        title="Agreement of the two branches",
        findings=tuple(_findings(numbers, cells[1])),
        method=(
            "f compares query tokens with frame tokens, v with video tokens; fv is their sum, and each branch is ranked by itself here.",
            f"Lists are compared on {lists['queries_compared']:,} queries: Spearman's correlation of all scores, and the clips among the "
            f"first {TOP} of both.",
            f"Intervals: {draws.words}.",
        ),
        numbers=numbers,
        sections=(
            Section("Agreement", [Figure(_chart(rank_f, rank_v)), *(_table(cut, found) for cut, found in cells.items())]),
            *(_gallery(winner, found, metrics, sheets) for winner, found in cases.items()),
        ),
    )


def only_one(winner_Q: Float64, loser_Q: Float64, clip_Q: npt.NDArray[np.int64], count: int) -> list[int]:
    """At most `count` queries that one branch has at rank 1 and the other furthest down, no clip twice."""
    won = np.flatnonzero((winner_Q <= 1) & (loser_Q > 1))
    by_clip: dict[int, int] = {}
    for row in won[np.argsort(-loser_Q[won], kind="stable")].tolist():
        by_clip.setdefault(int(clip_Q[row]), row)
    return list(by_clip.values())[:count]


def _cells(rank_f: Float64, rank_v: Float64, rank_fv: Float64, cut: int, groups_Q: npt.NDArray[np.int64], draws: Draws) -> dict[str, Any]:
    in_f, in_v, in_fv = (rank <= cut for rank in (rank_f, rank_v, rank_fv))
    shares = {
        "both": in_f & in_v,
        "only_f": in_f & ~in_v,
        "only_v": ~in_f & in_v,
        "neither": ~in_f & ~in_v,
        "either": in_f | in_v,
        "fv": in_fv,
        "fv_where_only_f": in_fv & in_f & ~in_v,
        "fv_where_only_v": in_fv & ~in_f & in_v,
        "fv_where_neither": in_fv & ~in_f & ~in_v,
    }
    drawn = 100.0 * draws.means(list(shares.values()), [np.ones_like(in_f)] * len(shares), groups_Q)
    return {
        name: {
            "percent": 100.0 * float(inside_Q.mean()),
            "queries": int(inside_Q.sum()),
            "interval": list(draws.interval(drawn[:, at])),
        }
        for at, (name, inside_Q) in enumerate(shares.items())
    }


def _better(rank_f: Float64, rank_v: Float64) -> dict[str, int]:
    return {"f": int((rank_f < rank_v).sum()), "v": int((rank_v < rank_f).sum()), "equal": int((rank_f == rank_v).sum())}


def _case(one: Failure, metrics: dict[Any, RankingMetrics], winner: str) -> dict[str, Any]:
    ranks = {f"rank_{branch}": float(metrics[branch].ranks[one.number]) for branch in metrics}
    above = [other.clip for other in one.above]
    return {"id": one.id, "text": one.text, "right_clip": one.right.clip, **ranks, f"above_on_{'v' if winner == 'f' else 'f'}": above}


def _findings(numbers: dict[str, Any], first: dict[str, Any]) -> list[str]:
    correlation, lists = numbers["rank_correlation_of_right_clips"], numbers["lists"]
    words = "one branch ranks all alike" if correlation is None else f"{correlation:.2f}"
    shared = next(value for key, value in lists.items() if key.startswith("share_of_top"))
    whole = lists["rank_correlation_of_lists"]
    said = [
        f"Rank correlation of the right clips' ranks in f and v: {words}; of whole lists: {'none' if whole is None else f'{whole:.2f}'}; "
        f"{100 * shared:.0f} % of the first {TOP} clips are the same.",
        f"At rank 1: both {first['both']['percent']:.1f} %, only f {first['only_f']['percent']:.1f} %, only v "
        f"{first['only_v']['percent']:.1f} %, neither {first['neither']['percent']:.1f} %.",
    ]
    best = max(("f", "v"), key=lambda branch: numbers["r1"][branch])
    sum_, either, single = first["fv"]["percent"], first["either"]["percent"], numbers["r1"][best]
    said.append(
        f"The sum has R@1 {sum_:.1f}: {sum_ - single:+.1f} against the better branch alone ({best}, {single:.1f}); choosing the right "
        f"branch for each query, which nobody can, would give {either:.1f}."
    )
    for branch in ("f", "v"):
        alone, kept = first[f"only_{branch}"]["queries"], first[f"fv_where_only_{branch}"]["queries"]
        if alone:
            said.append(f"Of {alone} queries that only {branch} has at rank 1, the sum keeps {kept}.")
    return said


def _chart(rank_f: Float64, rank_v: Float64) -> Chart:
    # Many queries share a pair of small ranks: at most 1,500 different pairs are drawn.
    pairs = np.unique(np.stack([rank_f, rank_v], axis=1), axis=0)
    kept = pairs[np.unique(np.linspace(0, len(pairs) - 1, min(len(pairs), 1500)).round().astype(int))]
    about = "Each dot is a pair of ranks that at least one query's right clip has; below the diagonal v is better."
    return Chart(
        "branches-ranks",
        "Rank of the right clip in the two branches",
        "rank by f",
        "rank by v",
        [Series("queries", kept[:, 0].tolist(), kept[:, 1].tolist(), kind="points")],
        about,
        "xy",
    )


def _table(cut: int, found: dict[str, Any]) -> Table:
    titles = {
        "both": "f and v",
        "only_f": "only f",
        "only_v": "only v",
        "neither": "neither",
        "either": "f or v (the best that choosing could do)",
        "fv": "their sum fv",
        "fv_where_only_f": "of these: only f had it",
        "fv_where_only_v": "of these: only v had it",
        "fv_where_neither": "of these: neither had it",
    }
    rows = [
        [title, f"{found[key]['queries']:,}", f"{found[key]['percent']:.1f}", "–".join(f"{end:.1f}" for end in found[key]["interval"])]
        for key, title in titles.items()
    ]
    title = f"Who has the right clip among the first {cut}" if cut > 1 else "Who has the right clip first"
    return Table(title, ["found by", "queries", "percent", "interval"], rows)


def _gallery(winner: str, found: list[Failure], metrics: dict[Any, RankingMetrics], sheets: Sheets) -> Section:
    loser = "v" if winner == "f" else "f"
    title = f"Found by {winner} and missed by {loser}"
    if not found:
        return Section(title, [Text(f"No query has its right clip at rank 1 in {winner} and further down in {loser}.")])
    cards = [
        Card(
            f"“{one.text}”",
            [", ".join(f"rank {metrics[branch].ranks[one.number]:g} by {branch}" for branch in ("f", "v", "fv")) + "."],
            [
                shown(sheets, one.right.clip, f"right clip: {one.right.clip}"),
                *(shown(sheets, other.clip, f"ranked {at} by {loser}: {other.clip}") for at, other in enumerate(one.above, start=1)),
            ],
        )
        for one in found
    ]
    return Section(title, [Gallery(cards)])


def _sheets(places: dict[str, Located], workers: int) -> Sheets:
    return contact_sheets(places, workers=workers) if places else {}
