"""Rank correlation, with ties."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from vctool.metrics.relevance import FloatArray


def midranks(value_N: npt.NDArray[Any]) -> FloatArray:
    """Ranks from 1, lowest value first, equal values sharing the mean of theirs."""
    _, inverse, counts = np.unique(value_N, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2.0)[inverse.reshape(-1)], dtype=np.float64)


def spearman(a_N: npt.NDArray[Any], b_N: npt.NDArray[Any]) -> float | None:
    """Spearman's rank correlation with ties; None where one side has a single value."""
    a, b = midranks(a_N), midranks(b_N)
    a, b = a - a.mean(), b - b.mean()
    scale = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / scale if scale else None
