"""Two saved results on the same queries: paired test, interval of the difference, the queries won and lost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vctool.errors import InputError
from vctool.evaluation.result import SavedResult, load_result
from vctool.metrics import Difference, PerQuery, compare_paired


@dataclass(frozen=True)
class ChangedQuery:
    """One query that the two results rank differently; ranks are those of its best right clip, from 1."""

    id: str
    text: str
    clip: str
    rank_a: float
    rank_b: float

    def to_dict(self) -> dict[str, Any]:
        return {"id": self.id, "text": self.text, "right_clip": self.clip, "rank_a": self.rank_a, "rank_b": self.rank_b}


@dataclass(frozen=True)
class Compared:
    """B against A. won: queries that B ranks better, lost: those A does, each with the widest change first."""

    name_a: str
    name_b: str
    queries: int
    level: float
    differences: tuple[Difference, ...]
    won: tuple[ChangedQuery, ...]
    lost: tuple[ChangedQuery, ...]
    equal: int
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        return {
            "schema": 1,
            "kind": "vctool comparison",
            "a": self.name_a,
            "b": self.name_b,
            "queries": self.queries,
            "level": self.level,
            "differences": [one.to_dict() for one in self.differences],
            "won": [one.to_dict() for one in self.won],
            "lost": [one.to_dict() for one in self.lost],
            "equal": self.equal,
            "notes": list(self.notes),
        }


def compare_results(
    path_a: Path,
    path_b: Path,
    *,
    branch_a: str | None = None,
    branch_b: str | None = None,
    resamples: int = 2000,
    permutations: int = 10_000,
    level: float = 0.95,
    seed: int = 0,
    resample: str = "queries",
) -> Compared:
    """Compare text-to-video of two saved results, or of two branches of one.

    Queries are matched by id, in any order. Raises InputError if the two do not hold the same queries or were ranked
    over different galleries: their ranks would not mean the same.
    """
    a, b = load_result(path_a), load_result(path_b)
    name_a, name_b = a.branch(branch_a), b.branch(branch_b)
    order = _matched(a, b)
    _same_gallery(a, b)
    values_b = b.per_query[name_b]
    values_b = PerQuery(values_b.rank[order], values_b.reciprocal[order], values_b.precision[order], values_b.ndcg[order])
    groups = None
    if resample == "clips":
        _, labels = np.unique(np.asarray(a.right_clips), return_inverse=True)
        groups = labels.astype(np.int64)
    paired = compare_paired(
        a.per_query[name_a], values_b, resamples=resamples, permutations=permutations, level=level, seed=seed, groups=groups
    )
    ranks_a, ranks_b = a.per_query[name_a].rank, values_b.rank

    def changed(numbers: Sequence[int]) -> tuple[ChangedQuery, ...]:
        return tuple(
            ChangedQuery(a.query_ids[i], a.query_texts[i], a.right_clips[i], float(ranks_a[i]), float(ranks_b[i])) for i in numbers
        )

    return Compared(
        name_a=f"{path_a} [{name_a}]",
        name_b=f"{path_b} [{name_b}]",
        queries=paired.queries,
        level=level,
        differences=paired.differences,
        won=changed(paired.won.tolist()),
        lost=changed(paired.lost.tolist()),
        equal=paired.equal,
        notes=tuple(_protocol_notes(a, b)),
    )


def _matched(a: SavedResult, b: SavedResult) -> list[int]:
    """For each query of A its place in B."""
    place = {one: at for at, one in enumerate(b.query_ids)}
    only_a, only_b = set(a.query_ids) - place.keys(), place.keys() - set(a.query_ids)
    if only_a or only_b:
        example = next(iter(sorted(only_a or only_b)))
        raise InputError(
            f"the results are not on the same queries: {len(only_a)} only in {a.path}, {len(only_b)} only in {b.path}, such as '{example}'",
            "evaluate both on the same split and the same clips",
        )
    order = [place[one] for one in a.query_ids]
    differs = next((one for one, at in zip(range(len(order)), order, strict=True) if a.right_clips[one] != b.right_clips[at]), None)
    if differs is not None:
        raise InputError(f"query '{a.query_ids[differs]}' asks for '{a.right_clips[differs]}' in {a.path} and for another clip in {b.path}")
    return order


def _same_gallery(a: SavedResult, b: SavedResult) -> None:
    if a.protocol.get("ids_sha256") != b.protocol.get("ids_sha256"):
        raise InputError(
            f"the results rank different galleries ({a.protocol.get('clips')} and {b.protocol.get('clips')} clips)",
            "evaluate both on the same clips",
        )


def _protocol_notes(a: SavedResult, b: SavedResult) -> list[str]:
    """Where the two protocols differ though queries and gallery are the same."""
    return [
        f"{what}: {a.protocol.get(key)} in A, {b.protocol.get(key)} in B"
        for key, what in (("name", "protocol"), ("frames", "frames per clip"), ("text_length", "text length"))
        if a.protocol.get(key) != b.protocol.get(key)
    ]
