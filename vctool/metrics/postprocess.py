"""Post-processing that lifts published numbers: always separate, labelled lines, never mixed into the plain metrics.

DSL and Sinkhorn look at all test queries at once, so no live search can use them; QB-Norm needs a bank of earlier
(training) queries only. Each is a score matrix computed row by row, so that big inputs stay on disk.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vctool.errors import InputError, UsageProblem
from vctool.metrics.ranks import ScoreMatrix, check_matrix, checked_rows, chunks_of
from vctool.metrics.relevance import FloatArray


@dataclass(frozen=True)
class PostProcess:
    """What a post-processing is called in reports and whether a live search could use it."""

    name: str
    label: str
    live: bool
    warning: str


POSTPROCESSES = {
    "dsl": PostProcess("dsl", "DSL (dual softmax, CAMoE)", False, "uses all test queries at once (transductive): cannot serve live search"),
    "qbnorm": PostProcess(
        "qbnorm", "QB-Norm (dynamic inverted softmax)", True, "needs scores of a bank of earlier queries against the gallery"
    ),
    "sinkhorn": PostProcess(
        "sinkhorn",
        "Sinkhorn (uniform marginals)",
        False,
        "uses all test queries at once (transductive): cannot serve live search",
    ),
}


class _Rows:
    """Base of the computed matrices: same shape as the scores they come from."""

    def __init__(self, sims_QN: ScoreMatrix) -> None:
        check_matrix(sims_QN)
        self._sims = sims_QN
        self.shape: tuple[int, ...] = tuple(sims_QN.shape)

    def _block(self, rows: slice) -> FloatArray:
        return checked_rows(self._sims, rows).astype(np.float64)


class DualSoftmax(_Rows):
    """DSL: `S * softmax(temperature * S over queries)` [Q, N] (CAMoE; the method notes' 6.8). -inf stays -inf."""

    def __init__(self, sims_QN: ScoreMatrix, temperature: float = 100.0) -> None:
        super().__init__(sims_QN)
        self._temperature = _positive("DSL temperature", temperature)
        self._normaliser = column_logsumexp(sims_QN, self._temperature)

    def __getitem__(self, rows: slice, /) -> npt.NDArray[Any]:
        block = self._block(rows)
        share = np.exp(_minus(self._temperature * block, self._normaliser))
        return np.where(np.isneginf(block), -np.inf, np.where(np.isneginf(block), 0.0, block) * share)


class QueryBankNorm(_Rows):
    """QB-Norm with dynamic inverted softmax [Q, N]; rows of touched queries come as logarithms (same order, no underflow).

    bank_PN: scores of bank queries (training captions) against the same clips. A query whose best clip is among the
    top `k` of any bank query is rescored as `beta*S - log sum_p exp(beta*P)`; the others keep their scores.
    """

    def __init__(self, sims_QN: ScoreMatrix, bank_PN: ScoreMatrix, beta: float = 20.0, k: int = 1) -> None:
        super().__init__(sims_QN)
        self._beta = _positive("QB-Norm beta", beta)
        bank_queries, bank_clips = check_matrix(bank_PN)
        clips = int(sims_QN.shape[1])
        if bank_clips != clips:
            raise InputError(
                f"the query bank scores {bank_clips} clips but the similarity matrix has {clips}",
                "score the bank's queries against the same clips in the same order",
            )
        if not 1 <= k <= clips:
            raise UsageProblem(f"QB-Norm k must lie between 1 and the number of clips {clips}, got {k}")
        self._normaliser = column_logsumexp(bank_PN, self._beta, "query bank, ")
        hub = np.zeros(clips, dtype=bool)
        for rows in chunks_of(bank_queries, clips * 8):
            hub[np.argpartition(-checked_rows(bank_PN, rows), k - 1, axis=1)[:, :k]] = True
        self._hub = hub

    def __getitem__(self, rows: slice, /) -> npt.NDArray[Any]:
        block = self._block(rows)
        touched = self._hub[np.argmax(block, axis=1)]
        block[touched] = _minus(self._beta * block[touched], self._normaliser)
        return block


class Sinkhorn(_Rows):
    """Logarithm of the matrix `exp(temperature * S)` scaled to uniform row and column sums (Sinkhorn-Knopp) [Q, N]."""

    def __init__(self, sims_QN: ScoreMatrix, temperature: float = 100.0, iterations: int = 4) -> None:
        super().__init__(sims_QN)
        self._temperature = _positive("Sinkhorn temperature", temperature)
        if iterations < 1:
            raise UsageProblem(f"Sinkhorn needs at least one iteration, got {iterations}")
        queries, clips = check_matrix(sims_QN)
        self._row = np.zeros(queries)
        self._column = np.zeros(clips)
        for _ in range(iterations):
            self._column = column_logsumexp(sims_QN, self._temperature, row_shift=self._row) - np.log(queries / clips)
            for rows in chunks_of(queries, clips * 16):
                scaled = _minus(self._temperature * self._block(rows), self._column)
                self._row[rows] = _logsumexp(scaled, axis=1)

    def __getitem__(self, rows: slice, /) -> npt.NDArray[Any]:
        return _minus(_minus(self._temperature * self._block(rows), self._column), self._row[rows, None])


def column_logsumexp(sims_QN: ScoreMatrix, scale: float, what: str = "", row_shift: FloatArray | None = None) -> FloatArray:
    """log sum over rows of exp(scale * S - row_shift), float64 [N], in chunks. An all -inf column gives -inf."""
    queries, clips = check_matrix(sims_QN)
    total = np.full(clips, -np.inf)
    for rows in chunks_of(queries, clips * 16):
        names = None if not what else [f"{what}row {i}" for i in range(queries)]
        block = scale * checked_rows(sims_QN, rows, names).astype(np.float64)
        if row_shift is not None:
            block = _minus(block, row_shift[rows, None])
        total = np.logaddexp(total, _logsumexp(block, axis=0))
    return total


def _logsumexp(values: FloatArray, axis: int) -> FloatArray:
    top = np.max(values, axis=axis, keepdims=True)
    safe = np.where(np.isfinite(top), top, 0.0)
    with np.errstate(divide="ignore"):
        out: FloatArray = np.log(np.sum(np.exp(values - safe), axis=axis)) + np.squeeze(safe, axis=axis)
    return out


def _minus(values: FloatArray, shift: FloatArray) -> FloatArray:
    """values - shift, where -inf stays -inf even against a shift of -inf (a clip that no query can reach)."""
    out: FloatArray = values - np.where(np.isneginf(shift), 0.0, shift)
    return out


def _positive(what: str, value: float) -> float:
    if not (np.isfinite(value) and value > 0):
        raise UsageProblem(f"{what} must be a positive number, got {value}")
    return float(value)
