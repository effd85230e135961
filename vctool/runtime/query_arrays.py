"""Queries that were encoded elsewhere, as arrays: one `[Q, D]`, or many `[B, Q, D]` padded to one length.

Shape letters: B queries, Q query tokens, D width.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vctool.errors import InputError
from vctool.runtime.encoder import QueryTokens

_BFLOAT16 = "|V2 (bfloat16, which NumPy cannot name)"


def read_queries(path: Path, mask: Path | None = None) -> list[QueryTokens]:
    """The queries of a `.npy` file, with the mask of another. Raises InputError that names the file and says what is wrong."""
    return queries_from_array(_array(path), None if mask is None else _array(mask), str(path))


def queries_from_array(query: NDArray[Any], mask: NDArray[Any] | None = None, name: str = "query") -> list[QueryTokens]:
    """Queries as `QueryTokens`, L2-normalised: one of an array `[Q, D]`, B of `[B, Q, D]`.

    mask: bool or 0 and 1, `[Q]` or `[B, Q]`, true where a token counts. Without one every row of `[Q, D]` counts, and of `[B, Q, D]`
    every row but those that are all zeros or all NaN: padding. Raises InputError for anything else: another shape, a dtype that
    is not a number, a counted token that is NaN, infinite or all zeros, a query without a counted token.
    """
    if query.dtype.kind not in "fiu":
        told = _BFLOAT16 if query.dtype == np.dtype("V2") else str(query.dtype)
        raise InputError(f"{name}: query tokens have dtype {told}", "save float16 or float32")
    if query.ndim not in (2, 3) or 0 in query.shape:
        raise InputError(f"{name}: query tokens have shape {list(query.shape)}", "expected [tokens, width] or [queries, tokens, width]")
    counted = None if mask is None else _counted(mask, query.shape[:-1], name)
    if query.ndim == 2:
        return [_query(query, counted, name)]
    if counted is None:
        zero_or_nan = (query == 0).all(axis=2) | np.isnan(query.astype(np.float32)).all(axis=2)
        counted = ~zero_or_nan
    return [
        _query(query_QD, counted_Q, f"{name}[{number}]") for number, (query_QD, counted_Q) in enumerate(zip(query, counted, strict=True))
    ]


def _query(query_QD: NDArray[Any], counted_Q: NDArray[np.bool_] | None, name: str) -> QueryTokens:
    rows = query_QD if counted_Q is None else query_QD[counted_Q]
    if not len(rows):
        raise InputError(f"{name}: no query token counts", "the mask leaves out all of them, or all rows are padding")
    return QueryTokens.from_array(rows, name)


def _counted(mask: NDArray[Any], shape: tuple[int, ...], name: str) -> NDArray[np.bool_]:
    if mask.shape != shape:
        raise InputError(f"{name}: its mask has shape {list(mask.shape)}", f"expected {list(shape)}, one value a token")
    if mask.dtype.kind not in "biuf" or not np.isin(mask, (0, 1)).all():
        raise InputError(f"{name}: its mask has values other than 0 and 1", "true, or 1, where a token counts")
    return mask.astype(np.bool_)


def _array(path: Path) -> NDArray[Any]:
    try:
        with path.open("rb") as file:
            array = np.lib.format.read_array(file, allow_pickle=False)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, ValueError, EOFError) as problem:
        told = str(problem).splitlines()[0] if str(problem) else "cut short"
        if "Object arrays" in told:
            raise InputError(f"{path}: holds Python objects, which are never opened", "save one float32 array with numpy.save") from None
        raise InputError(f"{path}: is not a .npy array of numbers: {told}", "save it with numpy.save") from None
    if not isinstance(array, np.ndarray):
        raise InputError(f"{path}: is not a .npy array of numbers", "save it with numpy.save")
    return array
