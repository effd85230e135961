"""`vctool.mean_max_sim`: scores of a whole store, or of plain arrays.

Shape letters: Q query tokens, N clips, T tokens of all clips end to end, D width.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from vctool import scoring
from vctool.errors import UsageProblem
from vctool.runtime.encoder import QueryTokens
from vctool.runtime.evidence import Branch
from vctool.store import Store


def mean_max_sim(
    query_QD: QueryTokens | npt.NDArray[Any],
    store_or_tokens: Store | npt.NDArray[Any],
    offsets: npt.ArrayLike | None = None,
    *,
    branch: Branch = "fv",
    query_mask_Q: npt.ArrayLike | None = None,
) -> npt.NDArray[np.float32]:
    """MeanMaxSim of one query with every clip: float32 `[N]`, exact.

    query_QD: an encoded query, or L2-normalised rows with an optional mask of those that count. store_or_tokens: an open store
    (scored by `branch`), or tokens `[T, D]` with `offsets` `[N + 1]`. A clip without tokens scores -inf.
    """
    rows_QD = query_QD.query_QD if isinstance(query_QD, QueryTokens) else query_QD
    mask_Q = query_QD.mask_Q if isinstance(query_QD, QueryTokens) and query_mask_Q is None else query_mask_Q
    if not isinstance(store_or_tokens, np.ndarray):
        return scoring.scores(rows_QD, mask_Q, store_or_tokens, branch)[0]
    if offsets is None:
        raise UsageProblem("mean_max_sim over plain tokens needs offsets", "give N + 1 offsets, or an open store")
    return scoring.mean_max_sim(rows_QD, store_or_tokens, offsets, mask_Q)
