"""Mean, range and Student's interval of a few seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

# Two-sided 95 % quantiles of Student's t for 1, 2, … degrees of freedom.
_T95 = [
    *(12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281),
    *(2.2010, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860),
    *(2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484, 2.0452, 2.0423),
]


@dataclass(frozen=True)
class Summary:
    """Values of n seeds. half: half the width of the 95 % t-interval of their mean, None for one seed."""

    values: tuple[float, ...]
    mean: float
    half: float | None

    def to_dict(self) -> dict[str, Any]:
        interval = None if self.half is None else [self.mean - self.half, self.mean + self.half]
        return {"values": list(self.values), "mean": self.mean, "range": [min(self.values), max(self.values)], "interval": interval}


def summarise(values: Sequence[float]) -> Summary:
    """Mean and 95 % t-interval over seeds: how far the mean of as many other seeds may lie off. `values` is not empty."""
    count, mean = len(values), float(np.mean(values))
    if count < 2:
        return Summary(tuple(values), mean, None)
    return Summary(tuple(values), mean, t95(count - 1) * float(np.std(values, ddof=1)) / math.sqrt(count))


def t95(degrees: int) -> float:
    """Two-sided 95 % quantile of Student's t; beyond 30 degrees of freedom by the usual expansion in 1/degrees."""
    if degrees <= len(_T95):
        return _T95[degrees - 1]
    z = 1.959964
    return z + (z**3 + z) / (4 * degrees) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)
