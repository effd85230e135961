"""The failure gallery: the worst queries, what was ranked above their right clip, and which words lifted it there.

Shape letters: Q queries, N clips.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from vctool.evaluation.analysis import Analysis, Draws, Float64, Material, Progress
from vctool.evaluation.chart import Bars, Series
from vctool.evaluation.contact_sheet import contact_sheets, place_ids
from vctool.evaluation.evaluate_model import model_branches
from vctool.evaluation.failures import Failure, clips_of, worst_queries
from vctool.evaluation.gallery import failure_gallery
from vctool.evaluation.html import Figure, Section, Table, Text
from vctool.metrics import RankingMetrics, ScoreMatrix
from vctool.metrics.ranks import chunks_of

_CUTS = (1, 2, 5, 10, 50)
_HUBS = 10


def analyse_failures(material: Material, draws: Draws, *, count: int = 20, workers: int = 1, progress: Progress | None = None) -> Analysis:
    """The `count` worst queries of the material's branch."""
    branches = model_branches(material.model.directory.config.interaction)
    with material.scored(branches, progress=progress) as scores:
        metrics = {str(branch): material.ranked(matrix) for branch, matrix in scores.items()}
        own = metrics[material.branch]
        failures = worst_queries(scores[material.branch], material.split, own.ranks, count)
        hubs = wrong_firsts(scores[material.branch], own.ranks)
    reasons = word_gains(material, failures)
    notes = {one.number: _lines(one, metrics, reasons.get(one.number)) for one in failures}
    wanted = place_ids(clips_of(failures), material.places)
    sheets = contact_sheets(wanted, workers=workers) if wanted else {}
    ids = material.split.clip_ids
    wrong = int((own.ranks > 1).sum())
    top = [{"clip": ids[at], "queries": times} for at, times in hubs.most_common(_HUBS)]
    histogram = rank_histogram(own.ranks)
    numbers: dict[str, Any] = {
        "queries": len(own.ranks),
        "right_clip_not_first": wrong,
        "ranks": histogram,
        "wrongly_first_most_often": top,
        "worst": [
            one.to_dict()
            | {"ranks": {branch: float(found.ranks[one.number]) for branch, found in metrics.items()}, "words": reasons.get(one.number)}
            for one in failures
        ],
    }
    blocks: list[Any] = [Figure(_chart(histogram, material.branch))]
    if top:
        rows = [[str(one["clip"]), str(one["queries"])] for one in top]
        blocks.append(Table("Clips that are first for queries that want another one", ["clip", "queries"], rows))
    about = Text("Worst first. Words are given with what they add to the clip ranked first, less what they add to the right one.")
    return Analysis(
        name="failures",
        title="Failure gallery",
        findings=tuple(_findings(own, wrong, top, failures, metrics)),
        method=(
            f"The {count} queries whose right clip has the worst rank on branch {material.branch}; equal ranks in the order of the data.",
            "A word's share of a score is the sum over its tokens of their best match, divided by the number of counted tokens.",
        ),
        numbers=numbers,
        sections=(Section("All queries", blocks), Section("Worst queries", [about, *failure_gallery(failures, sheets, notes)])),
    )


def wrong_firsts(sims_QN: ScoreMatrix, rank_Q: Float64) -> Counter[int]:
    """How often each clip is first for a query whose right clip is not (hubs have many)."""
    found: Counter[int] = Counter()
    for rows in chunks_of(int(sims_QN.shape[0]), int(sims_QN.shape[1]) * 8):
        first = np.asarray(sims_QN[rows]).argmax(axis=1)
        found.update(first[rank_Q[rows] > 1].tolist())
    return found


def rank_histogram(rank_Q: Float64) -> dict[str, int]:
    """Numbers of queries by rank: 1, 2, 3-5, 6-10, 11-50, above. Fractional ranks (ties) go with the next whole one."""
    whole = np.ceil(rank_Q)
    counts: dict[str, int] = {}
    below = 0
    for cut in _CUTS:
        counts[str(cut) if cut - below == 1 else f"{below + 1}-{cut}"] = int(((whole > below) & (whole <= cut)).sum())
        below = cut
    counts[f"over {below}"] = int((whole > below).sum())
    return counts


def word_gains(material: Material, failures: Sequence[Failure]) -> dict[int, list[dict[str, Any]]]:
    """By query number: what each word adds to the clip ranked first, less what it adds to the right one; pads and specials last."""
    from vctool.runtime.evidence import Evidence, explain

    def shares(found: Evidence) -> list[tuple[str, float]]:
        words = [(word.text, word.share) for word in found.words]
        return [*words, ("(pads)", found.pad_share), ("(start and end)", found.special_share)]

    if material.model.directory.config.query.policy == "pooled":
        return {}  # one vector a query: there are no words to tell apart
    # A clip without frames scores -inf and has no evidence: that is the reason.
    cases = [one for one in failures if one.above and np.isfinite(one.right.score)]
    at = {one: int(column) for one, column in zip(material.split.clip_ids, material.columns, strict=True)}
    gains: dict[int, list[dict[str, Any]]] = {}
    for one, query in zip(cases, material.model.text.encode([case.text for case in cases]), strict=True):
        first, right = (explain(query, material.store, at[clip], material.branch) for clip in (one.above[0].clip, one.right.clip))
        gains[one.number] = [
            {"word": word, "gain": ours - theirs} for (word, ours), (_, theirs) in zip(shares(first), shares(right), strict=True)
        ]
    return gains


def _lines(one: Failure, metrics: dict[str, RankingMetrics], gains: list[dict[str, Any]] | None) -> list[str]:
    lines = []
    if len(metrics) > 1:
        lines.append("Rank by branch: " + ", ".join(f"{branch} {found.ranks[one.number]:g}" for branch, found in metrics.items()) + ".")
    if gains:
        shown = sorted((gain for gain in gains if abs(gain["gain"]) >= 0.0005), key=lambda gain: -abs(gain["gain"]))[:6]
        lines.append("What lifted the first above it: " + ", ".join(f"{gain['word']} {gain['gain']:+.3f}" for gain in shown) + ".")
    return lines


def _findings(
    own: RankingMetrics, wrong: int, top: list[dict[str, Any]], failures: Sequence[Failure], metrics: dict[str, RankingMetrics]
) -> list[str]:
    queries = len(own.ranks)
    if not wrong:
        return [f"No query failed: all {queries:,} have their right clip at rank 1."]
    deep = int((own.ranks > 10).sum())
    said = [
        f"{wrong:,} of {queries:,} queries ({100 * wrong / queries:.1f} %) have another clip at rank 1, {deep:,} do not have the right one "
        f"among the first 10; the worst is at rank {failures[0].rank:g}."
        if failures
        else f"{wrong:,} of {queries:,} queries have another clip at rank 1.",
    ]
    if top:
        share = sum(one["queries"] for one in top) / wrong
        said.append(f"The {len(top)} clips that are wrongly first most often account for {100 * share:.1f} % of the failures.")
    for branch, found in metrics.items():
        saved = sum(1 for one in failures if found.ranks[one.number] <= 1)
        if found is not own and failures:
            said.append(f"Branch {branch} alone would have put {saved} of these {len(failures)} worst first.")
    return said


def _chart(histogram: dict[str, int], branch: str) -> Bars:
    total = sum(histogram.values())
    shares = [100.0 * count / total for count in histogram.values()]
    about = f"Share of queries by the rank of their right clip on branch {branch}."
    return Bars(
        "failures-ranks", "Where the right clips are", "percent of queries", list(histogram), [Series("queries", (), shares)], about
    )
