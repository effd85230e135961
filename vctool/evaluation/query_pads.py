"""Queries with their pads counted, left out, or alone: what soft query expansion adds, on one and the same text tower.

Shape letters: Q query tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from vctool.errors import InputError, ModelError, UsageProblem

if TYPE_CHECKING:
    from vctool.runtime.encoder import QueryTokens, TextEncoder

Pads = Literal["on", "off"]


class PaddedQueries:
    """A text encoder whose queries count their pads (`on`) or not (`off`), whatever the model's own policy says.

    lengths: true tokens of every query encoded so far, start and end included. Words, start and end count as the model has it.
    """

    def __init__(self, encoder: TextEncoder, pads: Pads) -> None:
        if encoder.model.config.query.policy == "pooled":
            name = encoder.model.config.name
            raise UsageProblem(f"{name} makes one vector of a query: it has no pads", "analyse a model with token queries")
        self._encoder, self._pads = encoder, pads
        self.lengths: list[int] = []

    def encode(self, texts: Sequence[str], /) -> list[QueryTokens]:
        """Encode; raises ModelError if a pad to be counted is not a usable vector."""
        encoded = [with_pads(query, self._pads) for query in self._encoder.encode(texts)]
        self.lengths += [int((~query.pad_Q).sum()) for query in encoded]
        return encoded


def with_pads(query: QueryTokens, pads: Pads) -> QueryTokens:
    """The query with all its pads counted, or none of them."""
    mask_Q = query.mask_Q | query.pad_Q if pads == "on" else query.mask_Q & ~query.pad_Q
    if not np.isfinite(query.query_QD[mask_Q]).all():
        raise ModelError(f"a pad of the query {query.text!r} is not a usable vector", "this model's graph does not compute its pads")
    return replace(query, mask_Q=mask_Q)


def require_pads(lengths: Sequence[int], longest: int) -> None:
    """Raises InputError if no query leaves room for a pad."""
    if min(lengths) >= longest:
        raise InputError(f"every query fills the {longest} tokens that the model reads: none has a pad", "analyse shorter queries too")
