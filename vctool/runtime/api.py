"""`vctool.mean_max_sim`: scores of a whole store, or of plain arrays.

Shape letters: Q query tokens, N clips, T tokens of all clips end to end, D width.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vctool import scoring
from vctool.errors import InputError, UsageProblem
from vctool.runtime.encoder import QueryTokens
from vctool.runtime.evidence import Branch
from vctool.store import Store, open_store


def mean_max_sim(
    query_QD: QueryTokens | npt.NDArray[Any],
    store_or_tokens: Store | str | Path | npt.NDArray[Any],
    offsets: npt.ArrayLike | None = None,
    *,
    branch: Branch = "fv",
    query_mask_Q: npt.ArrayLike | None = None,
    scale_T: npt.ArrayLike | None = None,
    workers: int | None = None,
) -> npt.NDArray[np.float32]:
    """MeanMaxSim of one query with every clip: float32 `[N]`, exact.

    query_QD: an encoded query, or rows with an optional mask of those that count; they are taken as they are, so L2-normalise them
    for cosines. store_or_tokens: a store, open or its path (scored by `branch`); or tokens, float16 or float32 `[N, T, D]`, or `[T, D]`
    with `offsets` `[N + 1]`, or int8 with `scale_T`, one a token (value = int8 * scale). A clip without tokens scores -inf.
    workers: threads; None is one for each core, fewer for a small store.

    Raises InputError for shapes, widths or dtypes that do not fit and for values that are not finite, UsageProblem for `[T, D]` without
    offsets, StoreError for a path that is no store.
    """
    rows_QD = query_QD.query_QD if isinstance(query_QD, QueryTokens) else np.asarray(query_QD)
    mask_Q = query_QD.mask_Q if isinstance(query_QD, QueryTokens) and query_mask_Q is None else query_mask_Q
    if rows_QD.dtype.kind not in "fiu":
        raise InputError(f"query tokens have dtype {rows_QD.dtype}", "give float16 or float32")
    if isinstance(store_or_tokens, (str, Path)):
        with open_store(store_or_tokens) as store:
            return scoring.scores(rows_QD, mask_Q, store, branch, workers=workers)[0]
    if not isinstance(store_or_tokens, np.ndarray):
        return scoring.scores(rows_QD, mask_Q, store_or_tokens, branch, workers=workers)[0]
    tokens = store_or_tokens
    if tokens.dtype == np.float64:
        tokens = tokens.astype(np.float32)
    if tokens.dtype not in (np.float16, np.float32, np.int8):
        raise InputError(f"tokens have dtype {tokens.dtype}", "give float16 or float32, or int8 with scale_T")
    if tokens.ndim == 3 and offsets is None:
        clips, count, width = tokens.shape
        tokens, offsets = tokens.reshape(clips * count, width), np.arange(clips + 1) * count
        scale_T = None if scale_T is None else np.asarray(scale_T).reshape(-1)
    if offsets is None:
        raise UsageProblem("mean_max_sim over tokens [T, D] needs offsets", "give N + 1 offsets, tokens [N, T, D], or a store")
    return scoring.mean_max_sim(rows_QD, tokens, offsets, mask_Q, None, scale_T)
