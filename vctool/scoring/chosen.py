"""Exact scores of some of a store's clips: their tokens are copied together, a few megabytes at a time, and scored as a small store.

A pair's score has the bits that a scan of the whole store gives.

Shape letters: B queries, C chosen clips, N clips of the store, T tokens of all clips end to end.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from vctool.scoring.branches import Branch, Query, ShardSource, TokenSource, batch_scores, shards_of
from vctool.scoring.scorer import Scorer
from vctool.scoring.tiles import Float32, Int64, NotFinite

_BYTES = 32 << 20  # tokens copied at once
# Copying a clip out costs about three times what scoring it in its place does: from so large a share on, all are scored.
_SHARE = 0.25


@dataclass(eq=False)
class ChosenTokens:
    """The tokens of some clips of one file, copied: a `TokenSource`."""

    frame_TD: npt.NDArray[Any]
    frame_offsets: Int64
    frame_scale_T: Float32 | None
    frame_packing: Any
    video_TD: npt.NDArray[Any]
    video_offsets: Int64
    video_scale_T: Float32 | None
    video_packing: Any

    @classmethod
    def of(cls, source: TokenSource, clips: Int64) -> ChosenTokens:
        """Clips of `source` by their positions there, in the order given."""
        found: dict[str, Any] = {}
        for branch in ("frame", "video"):
            rows_T, edges = rows_of(getattr(source, f"{branch}_offsets"), clips)
            scale_T, packing = getattr(source, f"{branch}_scale_T"), getattr(source, f"{branch}_packing", None)
            found[f"{branch}_TD"] = getattr(source, f"{branch}_TD")[rows_T]
            found[f"{branch}_offsets"] = edges
            found[f"{branch}_scale_T"] = None if scale_T is None else scale_T[rows_T]
            found[f"{branch}_packing"] = None if packing is None else _chosen_packing(packing, rows_T, clips)
        return cls(**found)


def _chosen_packing(packing: Any, rows_T: Int64, clips: Int64) -> Any:
    if packing.centre_T is None:
        return packing
    centre_C, edges = rows_of(packing.centre_offsets, clips)
    return replace(
        packing,
        centre_T=packing.centre_T[rows_T],
        centre_CD=packing.centre_CD[centre_C],
        centre_scale_C=packing.centre_scale_C[centre_C],
        centre_offsets=edges,
    )


def rows_of(offsets: Int64, clips: Int64) -> tuple[Int64, Int64]:
    """The rows that `clips` own, end to end, and where each clip's begin and end among them."""
    start_C, count_C = offsets[clips], offsets[clips + 1] - offsets[clips]
    edges = np.concatenate([[0], np.cumsum(count_C)]).astype(np.int64)
    return np.arange(edges[-1]) + np.repeat(start_C - edges[:-1], count_C), edges


def chosen_scores(
    queries: Sequence[Query], store: TokenSource | ShardSource, branch: Branch, clips: Int64, scorer: Scorer = batch_scores
) -> tuple[Float32, Float32, Float32]:
    """B queries against the clips at the positions `clips`, int64 [C], ascending: three float32 [B, C] as `batch_scores` has them.

    Raises as `batch_scores`, naming a clip by its position in the store.
    """
    parts: list[tuple[Float32, ...]] = []
    first = 0
    for source in shards_of(store):
        count = len(source.frame_offsets) - 1
        start, stop = np.searchsorted(clips, (first, first + count))
        local = clips[start:stop] - first
        if len(local) > _SHARE * count:
            with _naming(first, np.arange(count)):
                parts.append(tuple(values[:, local] for values in scorer(queries, source, branch)))
        else:
            for some in _portions(source, local):
                with _naming(first, some):
                    parts.append(scorer(queries, ChosenTokens.of(source, some), branch))
        first += count
    none_B0 = np.zeros((len(queries), 0), np.float32)
    score_BC, frame_BC, video_BC = (np.concatenate([none_B0, *(part[i] for part in parts)], axis=1) for i in range(3))
    return score_BC, frame_BC, video_BC


def _portions(source: TokenSource, clips: Int64) -> Iterator[Int64]:
    if not len(clips):
        return
    width = source.frame_TD.shape[1] * source.frame_TD.itemsize
    tokens_C = sum(offsets[clips + 1] - offsets[clips] for offsets in (source.frame_offsets, source.video_offsets))
    portion_C = np.cumsum(tokens_C) * width // _BYTES
    yield from np.split(clips, np.flatnonzero(np.diff(portion_C)) + 1)


@contextlib.contextmanager
def _naming(first: int, clips: Int64) -> Iterator[None]:
    try:
        yield
    except NotFinite as problem:
        raise NotFinite(first + int(clips[problem.clip])) from None
