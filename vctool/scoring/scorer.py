"""What searches call to score a store: the CPU's kernels, or anything else that gives the same numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from vctool.scoring.branches import Branch, Query, ShardSource, TokenSource
from vctool.scoring.tiles import Float32


class Scorer(Protocol):
    """Scores B queries against every clip of a store. `vctool.scoring.batch_scores` is one, and the default everywhere."""

    def __call__(
        self, queries: Sequence[Query], store: TokenSource | ShardSource, branch: Branch = "fv", /
    ) -> tuple[Float32, Float32, Float32]:
        """(score, frame_score, video_score), each float32 [B, N] and by the definition of `vctool.scoring.mean_max_sim`.

        store: one file of tokens or several (`shards_of` gives them in order). queries: tokens [Q, D], or pairs of tokens and
        mask. The score of a branch that was not asked for is NaN, of a clip without tokens in a branch that was, -inf.
        Raises as `batch_scores`.
        """
