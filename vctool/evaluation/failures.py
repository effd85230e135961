"""The queries that went worst: where their right clip landed, and what was ranked above it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vctool.data import Split
from vctool.metrics import ScoreMatrix


@dataclass(frozen=True)
class Ranked:
    """A clip and what it scored."""

    clip: str
    score: float

    def to_dict(self) -> dict[str, Any]:
        return {"clip": self.clip, "score": finite(self.score)}


@dataclass(frozen=True)
class Failure:
    """One query of which the right clip is not at rank 1. number: its row. right: its best-placed right clip, at `rank` (from 1,
    the expected one under ties). above: the clips that scored highest, best first, the right ones left out."""

    number: int
    id: str
    text: str
    rank: float
    right: Ranked
    above: tuple[Ranked, ...]

    def to_dict(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "text": self.text,
            "rank": self.rank,
            "right": self.right.to_dict(),
            "above": [one.to_dict() for one in self.above],
        }


def worst_queries(sims_QN: ScoreMatrix, split: Split, rank_Q: npt.NDArray[np.float64], count: int, shown: int = 3) -> tuple[Failure, ...]:
    """The `count` queries with the highest rank of their right clip, worst first, those at rank 1 left out; ties in query order."""
    order = np.argsort(-rank_Q, kind="stable")[:count]
    return tuple(failure_of(sims_QN, split, int(row), float(rank_Q[row]), shown) for row in order if rank_Q[row] > 1)


def failure_of(sims_QN: ScoreMatrix, split: Split, row: int, rank: float, shown: int = 3) -> Failure:
    """One query's right clip and what stands above it."""
    query = split.queries[row]
    score_N = np.asarray(sims_QN[row : row + 1])[0]
    right = [at for at, grade in query.clips if grade > 0]
    best = max(right, key=lambda at: float(score_N[at]))
    order = [int(at) for at in np.argsort(-score_N, kind="stable")[: shown + len(right)] if int(at) not in right]
    above = tuple(_ranked(split, score_N, at) for at in order[:shown] if score_N[at] >= score_N[best])
    return Failure(row, query.id, query.text, rank, _ranked(split, score_N, best), above)


def _ranked(split: Split, score_N: npt.NDArray[Any], at: int) -> Ranked:
    return Ranked(split.clips[at].id, float(score_N[at]))


def finite(value: float) -> float | None:
    """A number that JSON can hold: None for the score of a clip without frames (-inf)."""
    return value if np.isfinite(value) else None


def clips_of(failures: Sequence[Failure]) -> list[str]:
    """The ids of all clips in some failures, each once."""
    return list(dict.fromkeys(one.clip for failure in failures for one in (failure.right, *failure.above)))
