"""One to four vectors that stand for a clip in the first stage of a search: the means of its scenes.

A clip's tokens are near copies of each other as long as one thing is seen; a cut makes them differ. So the tokens are
grouped by Ward's rule (the two groups whose union adds least to the squared distances are joined, neighbours in time or not:
a dialogue cuts back and forth), down to as few groups as keep the mean squared distance to the groups' means within `BUDGET`,
and to `MOST` at most. A group's vector is the mean of its frame tokens plus the mean of the video tokens seen then (and of
those that have no time), L2-normalised: its product with a query token stands for half of what both branches find.

Shape letters: N clips, F frames, V video tokens, S slots (moments that are grouped), G groups, P pooled vectors end to end,
T tokens of all clips end to end, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vctool.precision import quantise
from vctool.store.tokens import Float32

MOST = 4  # vectors a clip: four rows cost a sixth of a scan of 26; docs/scoring.md has what fewer and more were worth
BUDGET = 0.08  # mean squared distance; tokens of one scene (cosine 0.94 to each other) are at 0.06, two scenes at 0.15 and more

_SHORTEST = np.float32(1e-6)
_SLOTS = 32  # longer clips are first averaged to so many pieces: grouping takes time with the square of the count
_BLOCK = 1 << 21  # float32 values of one block: 8 MiB, and a few times that while it is worked on

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Pooled:
    """Pooled vectors of N clips: int8 `vector_PD` with `scale_P` (value = int8 * scale), clip i owns rows offsets[i]:offsets[i + 1]."""

    vector_PD: npt.NDArray[np.int8]
    scale_P: Float32
    offsets: Int64


def pool(
    frame_TD: Float32,
    frame_time_T: Float32,
    frame_count_N: Int64,
    video_TD: Float32,
    video_time_T: Float32,
    video_count_N: Int64,
    *,
    most: int = MOST,
    budget: float = BUDGET,
) -> Pooled:
    """The pooled vectors of N clips whose tokens lie end to end; a clip without tokens has none.

    frame_TD, video_TD: float32 [T, D]. Times: float32 [T] seconds, NaN for none. Counts: tokens of each clip. What a clip gets
    does not depend on the clips beside it.
    """
    start_N2 = np.stack([np.cumsum(frame_count_N) - frame_count_N, np.cumsum(video_count_N) - video_count_N], axis=1)
    count_N2 = np.stack([frame_count_N, video_count_N], axis=1)
    width = frame_TD.shape[1]
    vectors: list[Float32] = [np.empty((0, width), np.float32)] * len(frame_count_N)
    for frames, videos in np.unique(count_N2, axis=0).tolist():
        alike = np.flatnonzero((count_N2 == (frames, videos)).all(axis=1))
        at_once = max(1, _BLOCK // max(1, (frames + videos) * width))
        for first in range(0, len(alike) if frames + videos else 0, at_once):
            block = alike[first : first + at_once]
            frame_at, video_at = (_rows(start_N2[block, place], count) for place, count in ((0, frames), (1, videos)))
            frame_NFD, video_NVD = (
                frame_TD[frame_at].reshape(len(block), frames, width),
                video_TD[video_at].reshape(len(block), videos, width),
            )
            frame_time_NF, video_time_NV = (
                frame_time_T[frame_at].reshape(len(block), frames),
                video_time_T[video_at].reshape(len(block), videos),
            )
            found = _pool_alike(frame_NFD, frame_time_NF, video_NVD, video_time_NV, most, budget)
            for index, vector_GD in zip(block.tolist(), found, strict=True):
                vectors[index] = vector_GD
    counts = np.array([len(vector_GD) for vector_GD in vectors], np.int64)
    vector_PD, scale_P = quantise(np.concatenate([vectors[0][:0], *vectors]) if vectors else frame_TD[:0])
    return Pooled(vector_PD, scale_P, np.concatenate([[0], np.cumsum(counts)]).astype(np.int64))


def _rows(start_N: Int64, count: int) -> slice | Int64:
    """The rows of clips with `count` tokens each, as a slice where they lie end to end: nothing is copied then."""
    if (np.diff(start_N) == count).all():
        return slice(int(start_N[0]), int(start_N[-1]) + count)
    rows: Int64 = (start_N[:, None] + np.arange(count)).reshape(-1)
    return rows


def _pool_alike(
    frame_NFD: Float32, frame_time_NF: Float32, video_NVD: Float32, video_time_NV: Float32, most: int, budget: float
) -> list[Float32]:
    """Pooled vectors, float32 [G, D] each, of clips that have as many tokens each, at least one."""
    if not frame_NFD.shape[1]:  # nothing but video tokens: they are the moments
        frame_NFD, video_NVD = video_NVD, frame_NFD
        frame_time_NF, video_time_NV = video_time_NV, frame_time_NF
    frame_NSD, weight_S = _slots(frame_NFD)
    time_NS1, _ = _slots(frame_time_NF[:, :, None])
    belongs_NSV = _seen_at(time_NS1[:, :, 0], video_time_NV)
    slot_NSD = frame_NSD
    if video_NVD.shape[1]:
        seen_NS1 = belongs_NSV.sum(axis=2, keepdims=True)
        slot_NSD = np.matmul(belongs_NSV / np.maximum(seen_NS1, 1), video_NVD)
        slot_NSD += frame_NSD
        slot_NSD /= np.where(seen_NS1 > 0, np.float32(2), np.float32(1))
    label_NS, count_N = _groups(slot_NSD, weight_S, most, budget)
    return _means(frame_NSD, weight_S, video_NVD, belongs_NSV, label_NS, count_N)


def _slots(value_NFX: Float32) -> tuple[Float32, Float32]:
    """The frames, or where they are many the means of `_SLOTS` pieces of the clip, float32 [N, S, X]; and how many frames each is of."""
    frames = value_NFX.shape[1]
    if frames <= _SLOTS:
        return value_NFX, np.ones(frames, np.float32)
    edges = np.linspace(0, frames, _SLOTS + 1).astype(np.int64)
    weight_S = np.diff(edges).astype(np.float32)
    mean_NSX = np.add.reduceat(value_NFX, edges[:-1], axis=1) / weight_S[:, None]
    return mean_NSX.astype(np.float32, copy=False), weight_S


def _seen_at(time_NS: Float32, video_time_NV: Float32) -> Float32:
    """1 where a video token was seen at a slot's time (the nearest one's), else 0: float32 [N, S, V]."""
    apart_NSV = np.abs(time_NS[:, :, None] - video_time_NV[:, None, :])
    known_NSV = np.isfinite(apart_NSV)
    nearest_NV = np.where(known_NSV, apart_NSV, np.inf).argmin(axis=1)
    own_NSV = nearest_NV[:, None, :] == np.arange(time_NS.shape[1])[None, :, None]
    found: Float32 = (own_NSV & known_NSV).astype(np.float32)
    return found


def _groups(slot_NSD: Float32, weight_S: Float32, most: int, budget: float) -> tuple[Int64, Int64]:
    """Ward's grouping of each clip's slots: labels [N, S] from 0 up, and the number of groups [N].

    Distances are kept as what a union would add to the sum of squares (Lance and Williams' update of Ward's rule).
    """
    clips, slots, _ = slot_NSD.shape
    label_NS = np.zeros((clips, slots), np.int64)
    count_N = np.ones(clips, np.int64)
    share_S = weight_S / weight_S.sum()
    mean_ND = np.matmul(share_S, slot_NSD)
    spread_N = np.einsum("nsd,nsd->ns", slot_NSD, slot_NSD) @ share_S - np.einsum("nd,nd->n", mean_ND, mean_ND)
    open_ = np.flatnonzero(spread_N > budget)  # one group is not enough: a scene or more to tell apart
    if most > 1 and len(open_):
        label_NS[open_], count_N[open_] = _ward(slot_NSD[open_], weight_S, most, budget * float(weight_S.sum()))
    return label_NS, count_N


def _ward(slot_NSD: Float32, weight_S: Float32, most: int, allowed: float) -> tuple[Int64, Int64]:
    clips, slots, _ = slot_NSD.shape
    product_NSS = np.matmul(slot_NSD, slot_NSD.transpose(0, 2, 1))
    square_NS = np.einsum("nss->ns", product_NSS)
    shared_SS = weight_S[:, None] * weight_S / (weight_S[:, None] + weight_S)
    added_NSS = np.maximum(square_NS[:, :, None] + square_NS[:, None, :] - 2 * product_NSS, 0) * shared_SS
    added_NSS[:, np.arange(slots), np.arange(slots)] = np.inf
    weight_NS = np.tile(weight_S, (clips, 1))
    label_NS = np.tile(np.arange(slots), (clips, 1))
    spent_N = np.zeros(clips)
    open_ = np.arange(clips)
    for left in range(slots - 1, 0, -1):
        flat = added_NSS[open_].reshape(len(open_), -1).argmin(axis=1)
        first, second = flat // slots, flat % slots
        cost = added_NSS[open_, first, second]
        joined = (left >= most) | (spent_N[open_] + cost <= allowed)
        open_, first, second, cost = open_[joined], first[joined], second[joined], cost[joined]
        if not len(open_):
            break
        spent_N[open_] += cost
        one, other, all_ = weight_NS[open_, first][:, None], weight_NS[open_, second][:, None], weight_NS[open_]
        row = (one + all_) * added_NSS[open_, first] + (other + all_) * added_NSS[open_, second] - all_ * cost[:, None]
        row /= one + other + all_
        row[np.arange(len(open_)), first] = np.inf
        row[np.arange(len(open_)), second] = np.inf
        added_NSS[open_, first], added_NSS[open_, :, first] = row, row
        added_NSS[open_, second], added_NSS[open_, :, second] = np.inf, np.inf
        weight_NS[open_, first] += other[:, 0]
        label_NS[open_] = np.where(label_NS[open_] == second[:, None], first[:, None], label_NS[open_])
    present_NS = np.zeros((clips, slots), bool)
    np.put_along_axis(present_NS, label_NS, True, axis=1)
    number_NS = np.cumsum(present_NS, axis=1) - 1
    return np.take_along_axis(number_NS, label_NS, axis=1), present_NS.sum(axis=1)


def _means(
    frame_NSD: Float32, weight_S: Float32, video_NVD: Float32, belongs_NSV: Float32, label_NS: Int64, count_N: Int64
) -> list[Float32]:
    """The groups' vectors, float32 [G, D] for each clip."""
    most = int(count_N.max(initial=1))
    own_NGS = (label_NS[:, None, :] == np.arange(most)[None, :, None]).astype(np.float32)
    share_NGS = own_NGS * weight_S
    mean_NGD = np.matmul(share_NGS / np.maximum(share_NGS.sum(axis=2, keepdims=True), 1), frame_NSD)
    if video_NVD.shape[1]:
        timeless_N1V = (belongs_NSV.sum(axis=1, keepdims=True) == 0).astype(np.float32)
        own_NGV = np.matmul(own_NGS, belongs_NSV) + timeless_N1V
        mean_NGD += np.matmul(own_NGV / np.maximum(own_NGV.sum(axis=2, keepdims=True), 1), video_NVD)
    length_NG1 = np.sqrt(np.einsum("ngd,ngd->ng", mean_NGD, mean_NGD))[:, :, None]
    mean_NGD /= np.maximum(length_NG1, _SHORTEST)
    mean_NGD[length_NG1[:, :, 0] == 0, 0] = _SHORTEST  # tokens that cancel out; a row of zeros would have no scale
    return [vector_GD[:count] for vector_GD, count in zip(mean_NGD, count_N.tolist(), strict=True)]
