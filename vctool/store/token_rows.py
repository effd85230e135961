"""Tokens of many clips as arrays, on their way into a store.

Shape letters: N clips, F tokens of one clip, T tokens of all clips end to end, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from vctool.errors import StoreError
from vctool.store.format import AnyArray
from vctool.store.tokens import Float32, check_rows

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class TokenRows:
    """One branch of many clips. Build it with `of`.

    tokens: float [T, D], in memory or mapped; clip `i` owns rows `offsets[i]:offsets[i+1]`. times: float32 [T] seconds, None where
    no token has a time. normalise: rows are L2-normalised before they are checked. rounded: rows come out of a store and have lost their
    exact length there; they are checked for NaN and infinity alone.
    """

    tokens: AnyArray
    offsets: Int64
    times: AnyArray | None = None
    normalise: bool = False
    rounded: bool = False

    @classmethod
    def of(
        cls,
        tokens: npt.NDArray[Any],
        offsets: npt.ArrayLike | None = None,
        times: npt.NDArray[Any] | None = None,
        *,
        normalise: bool = False,
        where: str = "tokens",
    ) -> Self:
        """tokens: [T, D] with `offsets` [N+1], or [N, F, D] without. times: as tokens, without the last axis.

        Raises StoreError, calling the array `where`: not floating point (bfloat16 included), another shape, offsets that run
        backwards or past the end, times that do not fit.
        """
        if tokens.dtype.kind != "f" or tokens.dtype.itemsize > 8:
            known = "|V2 (bfloat16, which NumPy cannot name)" if tokens.dtype == np.dtype("V2") else str(tokens.dtype)
            raise StoreError(f"{where}: has dtype {known}", "give float16 or float32 tokens")
        if tokens.ndim == 3 and offsets is None:
            clips, rows, width = tokens.shape
            edges = np.arange(clips + 1, dtype=np.int64) * rows
            flat = tokens.reshape(clips * rows, width)
        elif tokens.ndim == 2 and offsets is not None:
            flat, edges = tokens, checked_offsets(offsets, len(tokens), where)
        else:
            raise StoreError(f"{where}: has shape {tokens.shape}", "expected [T, D] with offsets [N+1], or [N, F, D] without")
        if flat.shape[1] == 0:
            raise StoreError(f"{where}: tokens are 0 wide", "expected [T, D] with offsets [N+1], or [N, F, D] without")
        if times is not None:
            if times.shape != tokens.shape[:-1] or times.dtype.kind not in "fiu":
                raise StoreError(f"{where}: times have shape {times.shape}, tokens {tokens.shape}", "give one time a token, in seconds")
            times = times.reshape(-1)
        return cls(flat, edges, times, normalise)

    @classmethod
    def none(cls, clips: int, width: int) -> Self:
        """Clips without a token."""
        return cls(np.zeros((0, width), np.float32), np.zeros(clips + 1, np.int64))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def part(self, start: int, stop: int) -> TokenRows:
        """Clips `start` to `stop`, nothing copied."""
        return TokenRows(self.tokens, self.offsets[start : stop + 1], self.times, self.normalise, self.rounded)

    def checked(self, start: int, stop: int, names: Sequence[str], kind: str, dim: int, store: Path) -> tuple[Float32, Float32, Int64]:
        """Clips `start` to `stop`: tokens float32 [T, D], times float32 [T], rows of each clip int64.

        Raises StoreError, naming the clip, for what a store does not take.
        """
        edges = self.offsets[start : stop + 1]
        span = slice(int(edges[0]), int(edges[-1]))
        token_TD = np.ascontiguousarray(self.tokens[span], dtype=np.float32)
        if token_TD.shape[1] != dim:
            raise StoreError(f"{store}: {kind} tokens are {token_TD.shape[1]} wide, the store holds {dim}", "index with one model only")
        if self.normalise:
            norm_T1 = np.sqrt(np.einsum("td,td->t", token_TD, token_TD, dtype=np.float64))[:, None]
            # What cannot be normalised stays as it is: the check below names its clip.
            fit = np.isfinite(norm_T1) & (norm_T1 > 0)
            token_TD = np.divide(token_TD, norm_T1, out=token_TD.copy(), where=fit, casting="same_kind")
        if not self.rounded:
            check_rows(token_TD, edges - edges[0], names, kind)
        elif not np.isfinite(token_TD).all():
            bad = int(np.flatnonzero(~np.isfinite(token_TD).all(axis=1))[0])
            owner = int(np.searchsorted(edges - edges[0], bad, side="right")) - 1
            raise StoreError(f"clip {names[owner]!r}: a {kind} token is NaN or infinite", "encode this clip again")
        if self.times is None:
            time_T = np.full(len(token_TD), np.nan, np.float32)
        else:
            time_T = np.ascontiguousarray(self.times[span], dtype=np.float32)
            if np.isinf(time_T).any():
                owner = int(np.searchsorted(edges - edges[0], np.flatnonzero(np.isinf(time_T))[0], side="right")) - 1
                raise StoreError(f"clip {names[owner]!r}: a {kind} time is infinite", "use NaN for a token without a time")
        return token_TD, time_T, np.diff(edges)


def checked_offsets(offsets: npt.ArrayLike, rows: int, where: str) -> Int64:
    """int64 [N+1] from 0 to `rows`, never backwards; raises StoreError otherwise."""
    found = np.asarray(offsets)
    if found.ndim != 1 or found.dtype.kind not in "iu" or not len(found):
        raise StoreError(f"{where}: offsets have shape {found.shape} and dtype {found.dtype}", "give N+1 whole numbers")
    edges = found.astype(np.int64)
    if edges[0] != 0 or edges[-1] != rows:
        raise StoreError(f"{where}: offsets run from {edges[0]} to {edges[-1]}, expected 0 to {rows}", "give N+1 offsets of rows")
    if (edges[1:] < edges[:-1]).any():
        raise StoreError(f"{where}: offsets run backwards", "clip i owns rows offsets[i]:offsets[i+1]")
    return edges
