"""What a verification found: checks with their limits, and the verdict over them. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from vctool.errors import VctoolError

Level = Literal["identity", "tensors", "scores", "retrieval"]
Status = Literal["ok", "incomplete", "failed", "not run"]
LEVELS: tuple[Level, ...] = ("identity", "tensors", "scores", "retrieval")


class CannotRunHereError(VctoolError):
    """This machine cannot run the artefact at all (no GPU, no such runtime). The verdict is then `not run`, never `ok`."""


@dataclass(frozen=True)
class Limits:
    """What one precision may differ from PyTorch by.

    max_abs: largest difference of an output, relative to the largest value of that output where it is above 1; None: the
    cosine decides. cosine: smallest cosine of a token. score: largest difference of a MeanMaxSim (a branch lies in [-1, 1]);
    an angle of acos(cosine) allows about that much. top: smallest mean share of PyTorch's top ten that is found again; clips
    that PyTorch's own scores put less than `near` below its tenth are as good. recall: points that R@1, R@5 and R@10 may
    lose or gain on the probe set; one query is always allowed, since a probe set of n queries knows nothing finer than 100 / n points.
    """

    max_abs: float | None
    cosine: float
    score: float
    near: float
    top: float
    recall: float


LIMITS: dict[str, Limits] = {
    "fp32": Limits(max_abs=1e-4, cosine=0.99999, score=1e-4, near=1e-4, top=1.0, recall=0.0),
    "fp16": Limits(max_abs=None, cosine=0.999, score=4.5e-2, near=5e-3, top=0.95, recall=2.0),
    "bf16": Limits(max_abs=None, cosine=0.999, score=4.5e-2, near=1e-2, top=0.95, recall=2.0),
    "int8": Limits(max_abs=None, cosine=0.95, score=1e-1, near=1e-2, top=0.9, recall=2.0),
    "int8-weights": Limits(max_abs=None, cosine=0.95, score=1e-1, near=1e-2, top=0.9, recall=2.0),
    "int8-qdq": Limits(max_abs=None, cosine=0.95, score=1e-1, near=1e-2, top=0.9, recall=2.0),
}
"""One table for everything that is verified: plain graphs, converted graphs, engines."""


@dataclass(frozen=True)
class Check:
    """One comparison. graph: `text`, `frame`, `temporal`, or "" for all together. case: which inputs. values: what was measured.

    ok None: not run, and `note` says why.
    """

    level: Level
    graph: str
    case: str
    ok: bool | None
    values: Mapping[str, float] = field(default_factory=dict)
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """JSON form; numbers that JSON cannot hold (NaN, infinity) become text."""
        values = {name: value if abs(value) < float("inf") else str(value) for name, value in self.values.items()}
        return {"level": self.level, "graph": self.graph, "case": self.case, "ok": self.ok, "values": values, "note": self.note}


@dataclass(frozen=True)
class Verdict:
    """The outcome for one artefact (the graphs of one precision, or the engines built from them).

    status: `failed` if any check failed; `ok` if tensors, scores and retrieval were all compared and all passed; `incomplete`
    if nothing failed but a level was not run; `not run` if the artefact could not be run here at all. reason: why, if not `ok`.
    """

    artifact: str
    precision: str
    engine: str
    status: Status
    checks: tuple[Check, ...] = ()
    reason: str = ""

    @property
    def failures(self) -> tuple[Check, ...]:
        """The checks that failed."""
        return tuple(check for check in self.checks if check.ok is False)

    def worst(self, level: Level, graph: str, value: str, largest: bool = True) -> float | None:
        """The largest (or smallest) `value` among the checks of a level and graph; None where it was not measured."""
        found = [c.values[value] for c in self.checks if c.level == level and c.graph == graph and value in c.values]
        if any(number != number for number in found):
            return float("nan")
        return (max(found) if largest else min(found)) if found else None

    def to_json(self) -> dict[str, Any]:
        """JSON form, with the limits that applied."""
        return {
            "artifact": self.artifact,
            "precision": self.precision,
            "engine": self.engine,
            "status": self.status,
            "reason": self.reason,
            "limits": asdict(LIMITS[self.precision]),
            "checks": [check.to_json() for check in self.checks],
        }


def not_run(artifact: str, precision: str, engine: str, reason: str) -> Verdict:
    """The verdict over something that this machine cannot run: never `ok`."""
    return Verdict(artifact, precision, engine, "not run", reason=reason)


def decide(artifact: str, precision: str, engine: str, checks: list[Check]) -> Verdict:
    """The verdict that follows from checks."""
    failed = [check for check in checks if check.ok is False]
    if failed:
        first = failed[0]
        where = " ".join(part for part in (first.graph, first.case) if part)
        return Verdict(artifact, precision, engine, "failed", tuple(checks), ": ".join(p for p in (first.level, where, first.note) if p))
    ran = {check.level for check in checks if check.ok}
    lacking = [level for level in LEVELS[1:] if level not in ran]
    if lacking:
        why = next((check.note for check in checks if check.ok is None and check.level == lacking[0]), "")
        return Verdict(artifact, precision, engine, "incomplete", tuple(checks), f"{', '.join(lacking)} not run: {why or 'nothing to ask'}")
    return Verdict(artifact, precision, engine, "ok", tuple(checks))
