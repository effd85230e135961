"""A finished evaluation: metrics per task and branch with intervals, post-processed lines apart, and how it was made."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vctool.data import Located
from vctool.data.files import read_json
from vctool.errors import InputError, VerificationError
from vctool.evaluation.failures import Failure
from vctool.evaluation.protocols import Protocol
from vctool.metrics import PerQuery, RankingMetrics

SCHEMA = 1
KIND = "vctool evaluation"
TASKS = {
    "t2v": "text to video",
    "v2t_group": "video to text, caption groups ranked by their best caption (CLIP4Clip, X-Pool)",
    "v2t_caption": "video to text, all captions ranked, best own caption counts (VSE++, collaborative-experts)",
}
Intervals = Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class Line:
    """One row of a result: a task on one branch of the model (`f`, `v`, `fv`, or `sims` for a bare matrix)."""

    task: str
    branch: str
    metrics: RankingMetrics
    intervals: Intervals

    def to_dict(self) -> dict[str, Any]:
        out = self.metrics.to_dict()
        out["intervals"] = {name: [low, high] for name, (low, high) in self.intervals.items()}
        return out


@dataclass(frozen=True)
class PostProcessedLine:
    """Text to video after a post-processing: never part of the plain lines. live: whether a live search could use it."""

    name: str
    label: str
    live: bool
    warning: str
    parameters: Mapping[str, float]
    line: Line

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "label": self.label,
            "live_search": self.live,
            "warning": self.warning,
            "parameters": dict(self.parameters),
            "branch": self.line.branch,
            **self.line.to_dict(),
        }


@dataclass(frozen=True)
class Evaluation:
    """All of one evaluation. primary: the branch that `--min-r1` looks at, the model's own interaction.

    subject: what was scored (model, store or matrix, with hashes). query_ids, query_texts, right_clips: per query of t2v.
    notes: everything left out or odd, with counts. settings: bootstrap and the like. failures: the worst queries of t2v on the
    primary branch. places: where the clips' videos lie, as far as known, for pictures; not part of the saved result.
    """

    protocol: Protocol
    primary: str
    lines: tuple[Line, ...]
    postprocessed: tuple[PostProcessedLine, ...]
    subject: Mapping[str, Any]
    sources: Mapping[str, str]
    settings: Mapping[str, Any]
    notes: tuple[str, ...]
    query_ids: Sequence[str]
    query_texts: Sequence[str]
    right_clips: Sequence[str]
    environment: Mapping[str, Any] = field(default_factory=dict)
    failures: tuple[Failure, ...] = ()
    places: Mapping[str, Located] = field(default_factory=dict)

    def line(self, task: str, branch: str | None = None) -> Line:
        """The line of a task, on the primary branch unless told otherwise. Raises KeyError if there is none."""
        wanted = branch or self.primary
        for one in self.lines:
            if (one.task, one.branch) == (task, wanted):
                return one
        raise KeyError(f"{task} {wanted}")

    def summary(self) -> dict[str, Any]:
        """JSON form without the per-query part: what `--json` prints."""
        tasks: dict[str, dict[str, Any]] = {}
        for one in self.lines:
            tasks.setdefault(one.task, {})[one.branch] = one.to_dict()
        return {
            "schema": SCHEMA,
            "kind": KIND,
            "protocol": self.protocol.to_dict(),
            "primary": self.primary,
            "tasks": tasks,
            "postprocessed": [one.to_dict() for one in self.postprocessed],
            "subject": dict(self.subject),
            "sources": dict(self.sources),
            "settings": dict(self.settings),
            "notes": list(self.notes),
            "environment": dict(self.environment),
        }

    def to_dict(self) -> dict[str, Any]:
        """The whole, with ranks per query: what a report saves and `vctool compare` reads."""
        out = self.summary()
        out["queries"] = {
            "ids": list(self.query_ids),
            "texts": list(self.query_texts),
            "right_clips": list(self.right_clips),
            "per_query": {one.branch: PerQuery.of(one.metrics.per_query).to_dict() for one in self.lines if one.task == "t2v"},
        }
        out["worst"] = [one.to_dict() for one in self.failures]
        return out

    def require_r1(self, minimum: float) -> None:
        """Raise VerificationError (exit code 3) if text-to-video R@1 of the primary branch, in percent, is below `minimum`."""
        reached = self.line("t2v").metrics.r1
        if reached < minimum:
            raise VerificationError(f"R@1 is {reached:.2f} on branch '{self.primary}', below the required {minimum:g}")


@dataclass(frozen=True)
class SavedResult:
    """The part of a saved evaluation that a comparison needs."""

    path: Path
    protocol: Mapping[str, Any]
    primary: str
    query_ids: tuple[str, ...]
    query_texts: tuple[str, ...]
    right_clips: tuple[str, ...]
    per_query: Mapping[str, PerQuery]

    def branch(self, name: str | None) -> str:
        """The branch asked for, or the primary one. Raises InputError naming those there are."""
        wanted = name or self.primary
        if wanted not in self.per_query:
            raise InputError(f"{self.path} has no branch '{wanted}'", f"it has: {', '.join(self.per_query)}")
        return wanted


def load_result(path: Path) -> SavedResult:
    """Read what `vctool evaluate --report DIR` (result.json) or `--json --per-query` wrote. Raises InputError on anything else."""
    document = read_json(path)
    if not isinstance(document, dict) or document.get("kind") != KIND:
        raise InputError(f"{path} is not a result of vctool evaluate", "give the result.json that --report DIR writes")
    if document.get("schema") != SCHEMA:
        raise InputError(f"{path} has schema {document.get('schema')!r}, this vctool reads {SCHEMA}", "evaluate again with this version")
    if "queries" not in document:
        raise InputError(f"{path} has no per-query ranks", "compare the result.json that --report DIR writes, or use --json --per-query")
    try:
        queries = document["queries"]
        per_query = {str(name): PerQuery.from_dict(values) for name, values in queries["per_query"].items()}
        ids = tuple(str(one) for one in queries["ids"])
        texts = tuple(str(one) for one in queries["texts"])
        right = tuple(str(one) for one in queries["right_clips"])
        lengths = {len(ids), len(texts), len(right), *(len(one.rank) for one in per_query.values())}
        if len(lengths) != 1 or not per_query:
            raise ValueError("lists of different lengths")
        return SavedResult(path, document["protocol"], str(document["primary"]), ids, texts, right, per_query)
    except (KeyError, TypeError, ValueError, AttributeError) as problem:
        raise InputError(f"{path} is damaged: {problem}", "evaluate again") from None


def save_result(evaluation: Evaluation, path: Path) -> None:
    """Write the whole result as JSON (UTF-8)."""
    path.write_text(json.dumps(evaluation.to_dict(), ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
