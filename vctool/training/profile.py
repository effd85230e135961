"""Where a step's time goes, summed over the steps of a sitting."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

PARTS = ("data", "encode", "loss", "backward", "optimiser", "rest")


class StepClock:
    """Wall seconds by part. `data`: waiting for the thread that reads; `encode`, `loss`, `backward`: as a GradientPass tells them.

    The first step is left out: it loads, compiles and allocates.
    """

    def __init__(self) -> None:
        self.steps = -1
        self._began = self._now = time.perf_counter()
        self._paused = 0.0
        self._seconds = dict.fromkeys(PARTS, 0.0)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the block's time."""
        began = time.perf_counter()
        yield
        self.add(name, time.perf_counter() - began)

    def add(self, name: str, seconds: float) -> None:
        """Count seconds that were measured elsewhere."""
        self._seconds[name] += seconds

    def step(self) -> None:
        """A step is over; what was not counted since the last one is its rest."""
        self.steps += 1
        now = time.perf_counter()
        self._began, self._paused = self._began + self._paused, 0.0
        if not self.steps:
            self._seconds = dict.fromkeys(PARTS, 0.0)
            self._began = now
        self._now = now

    def pause(self, seconds: float) -> None:
        """Time that belongs to no step: a validation. It counts when another step follows."""
        self._paused += seconds

    def report(self) -> dict[str, Any]:
        """steps, seconds_per_step, and the share of each part in percent. Shares add up to 100."""
        total = max(self._now - self._began, 1e-9)
        known = sum(self._seconds[name] for name in PARTS[:-1])
        spent = {**self._seconds, "rest": max(total - known, 0.0)}
        whole = max(sum(spent.values()), 1e-9)
        shares = {name: 100 * value / whole for name, value in spent.items()}
        return {"steps": max(self.steps, 0), "seconds_per_step": total / max(self.steps, 1), "share": shares}


def profile_lines(report: dict[str, Any]) -> list[str]:
    """The report in words, and what to do where reading is the bottleneck."""
    if not report["steps"]:
        return ["too few steps for a profile: the first one is left out"]
    shares = ", ".join(f"{name} {report['share'][name]:.1f} %" for name in PARTS)
    lines = [f"a step took {1000 * report['seconds_per_step']:.1f} ms (mean of {report['steps']:,}): {shares}"]
    if report["share"]["data"] > 10:
        lines.append("the steps wait for data: put data.cache on a local disk or in memory, or train larger batches")
    return lines
