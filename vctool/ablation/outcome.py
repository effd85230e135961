"""The result of one run of a grid: what it scored on the test clips, by which model, and what it cost."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vctool.errors import InputError, VctoolError
from vctool.metrics import PerQuery

OUTCOME_FILE = "result.json"
SCHEMA = 1


@dataclass(frozen=True)
class Outcome:
    """One run's result. primary: the branch that the model's interaction names; failed: why it has no numbers, or None.

    metrics: of each branch by name, R@K in percent. reversal: of each branch the share of right decisions between a clip
    and its reversal in percent (empty where the test has none). per_query: what `compare_paired` needs.
    """

    key: str
    primary: str
    metrics: Mapping[str, Mapping[str, float]]
    reversal: Mapping[str, float]
    per_query: Mapping[str, PerQuery]
    failed: str | None
    about: Mapping[str, Any]

    @property
    def seconds(self) -> float:
        """Seconds of training."""
        return float(self.about.get("seconds", 0.0))

    def to_dict(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "kind": "vctool ablation run",
            "key": self.key,
            "primary": self.primary,
            "failed": self.failed,
            "metrics": {branch: dict(values) for branch, values in self.metrics.items()},
            "reversal_accuracy": dict(self.reversal),
            **self.about,
            "per_query": {branch: one.to_dict() for branch, one in self.per_query.items()},
        }


def save_outcome(outcome: Outcome, path: Path) -> None:
    """Write it whole or not at all. Raises VctoolError where the disk is full or read-only."""
    write_whole(path, json.dumps(outcome.to_dict(), ensure_ascii=False, allow_nan=False) + "\n")


def write_whole(path: Path, text: str) -> None:
    """Write `text` beside `path`, then move it there. Raises VctoolError; what was there is then intact."""
    temporary = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as problem:
        temporary.unlink(missing_ok=True)
        raise VctoolError(
            f"{path} could not be written: {problem.strerror or problem}",
            "make room and run the same command again: finished runs are kept",
        ) from None


def load_outcome(path: Path, key: str) -> Outcome | None:
    """The result in `path` if it is that of run `key`; None where there is none. Raises InputError for a damaged file."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as problem:
        raise InputError(f"{path} cannot be read: {problem}", "delete it: the run is then measured again") from None
    try:
        if values["schema"] != SCHEMA or values["key"] != key:
            return None
        own = ("schema", "kind", "key", "primary", "failed", "metrics", "reversal_accuracy", "per_query")
        return Outcome(
            key=key,
            primary=values["primary"],
            metrics=values["metrics"],
            reversal=values["reversal_accuracy"],
            per_query={branch: PerQuery.from_dict(one) for branch, one in values["per_query"].items()},
            failed=values["failed"],
            about={name: value for name, value in values.items() if name not in own},
        )
    except (KeyError, TypeError, ValueError, AttributeError) as problem:
        raise InputError(f"{path} is not the result of a run: {problem}", "delete it: the run is then measured again") from None
