"""Video-to-text in its two published, incompatible forms, always under their own names.

`v2t_group` (CLIP4Clip, X-Pool): a clip is compared with every caption group by the group's best caption, and the groups
are ranked: as many candidates as captioned clips. `v2t_caption` (VSE++, collaborative-experts): all captions are ranked
and the clip's best-placed own caption counts. R@1 agrees between the two, deeper cuts and mean ranks do not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from vctool.errors import InputError
from vctool.metrics.ranking import RankingMetrics, evaluate_ranking
from vctool.metrics.ranks import ScoreMatrix, check_matrix, checked_rows, chunks_of
from vctool.metrics.relevance import IntArray, Relevance, RelevanceSets, as_relevance


class ColumnsAsRows:
    """Chosen columns of a score matrix as the rows of another, read in chunks: [len(columns), Q]."""

    def __init__(self, sims_QN: ScoreMatrix, columns: IntArray) -> None:
        self._sims, self._columns = sims_QN, columns
        self.shape: tuple[int, ...] = (len(columns), int(sims_QN.shape[0]))

    def __getitem__(self, rows: slice, /) -> npt.NDArray[Any]:
        columns = self._columns[rows]
        parts = [np.asarray(self._sims[chunk])[:, columns] for chunk in chunks_of(int(self._sims.shape[0]), int(self._sims.shape[1]) * 8)]
        return np.ascontiguousarray(np.concatenate(parts).T)


def caption_groups(sims_QN: ScoreMatrix, clip_of_query: IntArray) -> tuple[npt.NDArray[Any], IntArray]:
    """Best caption of every captioned clip against every captioned clip.

    clip_of_query: column of each query's right clip, int [Q]. Returns (best_GG, clip_G): `best_GG[g, h]` is the highest
    score of the captions of clip `clip_G[g]` against clip `clip_G[h]`. Clips without captions are not in it.
    """
    queries, clips = check_matrix(sims_QN)
    captioned, group = np.unique(clip_of_query, return_inverse=True)
    best = np.full((len(captioned), len(captioned)), -np.inf, dtype=np.float32)
    for rows in chunks_of(queries, clips * 8):
        block = checked_rows(sims_QN, rows)[:, captioned]
        if block.dtype == np.float64 and best.dtype == np.float32:
            best = best.astype(np.float64)
        order = np.argsort(group[rows], kind="stable")
        present, first = np.unique(group[rows][order], return_index=True)
        best[present] = np.maximum(best[present], np.maximum.reduceat(block[order], first, axis=0))
    return best, captioned.astype(np.int64)


def v2t_group(sims_QN: ScoreMatrix, clip_of_query: IntArray, *, clip_names: Sequence[str] | None = None) -> RankingMetrics:
    """Video-to-text, groups ranked by their best caption. Queries are the clips that have captions.

    sims_QN: captions by clips. clip_of_query: the right clip's column per caption, int [Q].
    """
    best_GG, clip_G = caption_groups(sims_QN, _one_clip_each(sims_QN, clip_of_query))
    names = None if clip_names is None else [clip_names[c] for c in clip_G]
    return evaluate_ranking(best_GG.T, np.arange(len(clip_G)), query_names=names)


def v2t_caption(sims_QN: ScoreMatrix, relevance: Relevance | RelevanceSets, *, clip_names: Sequence[str] | None = None) -> RankingMetrics:
    """Video-to-text, all captions ranked; the best-placed right caption of each clip counts.

    relevance: as in `evaluate_ranking`, from captions to clips; it is turned round. Clips without captions are no queries.
    """
    queries, clips = check_matrix(sims_QN)
    sets = relevance if isinstance(relevance, RelevanceSets) else as_relevance(relevance, clips, queries=queries)
    caption = np.repeat(np.arange(queries), np.diff(sets.offsets))
    order = np.argsort(sets.columns, kind="stable")
    clip_G, first = np.unique(sets.columns[order], return_index=True)
    turned = RelevanceSets(caption[order], sets.grades[order], np.append(first, len(order)).astype(np.int64))
    names = None if clip_names is None else [clip_names[c] for c in clip_G]
    return evaluate_ranking(ColumnsAsRows(sims_QN, clip_G), turned, query_names=names)


def _one_clip_each(sims_QN: ScoreMatrix, clip_of_query: IntArray) -> IntArray:
    queries, clips = check_matrix(sims_QN)
    sets = as_relevance(clip_of_query, clips, queries=queries)
    if not sets.single:
        raise InputError("v2t_group needs exactly one right clip per caption", "use v2t_caption for many-to-many judgements")
    return sets.columns
