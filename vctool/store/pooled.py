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

from vctool.store.tokens import Float32, quantise

MOST = 4  # vectors a clip: four rows cost a sixth of a scan of 26; docs/scoring.md has what fewer and more were worth
BUDGET = 0.08  # mean squared distance; tokens of one scene (cosine 0.94 to each other) are at 0.06, two scenes at 0.15 and more

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
    vectors: list[Float32] = [np.empty((0, frame_TD.shape[1]), np.float32)] * len(frame_count_N)
    for frames, videos in np.unique(count_N2, axis=0).tolist():
        alike = np.flatnonzero((count_N2 == (frames, videos)).all(axis=1))
        at_once = max(1, _BLOCK // max(1, (frames + videos) * frame_TD.shape[1]))
        for first in range(0, len(alike) if frames + videos else 0, at_once):
            block = alike[first : first + at_once]
            frame_NF = start_N2[block, :1] + np.arange(frames)
            video_NV = start_N2[block, 1:] + np.arange(videos)
            found = _pool_alike(frame_TD[frame_NF], frame_time_T[frame_NF], video_TD[video_NV], video_time_T[video_NV], most, budget)
            for index, vector_GD in zip(block.tolist(), found, strict=True):
                vectors[index] = vector_GD
    counts = np.array([len(vector_GD) for vector_GD in vectors], np.int64)
    vector_PD, scale_P = quantise(np.concatenate([vectors[0][:0], *vectors]) if vectors else frame_TD[:0])
    return Pooled(vector_PD, scale_P, np.concatenate([[0], np.cumsum(counts)]).astype(np.int64))


def _pool_alike(
    frame_NFD: Float32, frame_time_NF: Float32, video_NVD: Float32, video_time_NV: Float32, most: int, budget: float
) -> list[Float32]:
    """Pooled vectors, float32 [G, D] each, of clips that have as many tokens each, at least one."""
    if not frame_NFD.shape[1]:  # nothing but video tokens: they are the moments
        frame_NFD, video_NVD = video_NVD, frame_NFD
        frame_time_NF, video_time_NV = video_time_NV, frame_time_NF
    belongs_NFV = _seen_at(frame_time_NF, video_time_NV)
    slot_NSD, weight_S = _slots(frame_NFD, video_NVD, belongs_NFV)
    label_NS, count_N = _groups(slot_NSD, weight_S, most, budget)
    label_NF = np.repeat(label_NS, weight_S.astype(np.int64), axis=1)
    return _means(frame_NFD, video_NVD, belongs_NFV, label_NF, count_N)


def _seen_at(frame_time_NF: Float32, video_time_NV: Float32) -> Float32:
    """1 where a video token was seen at a frame's time (the nearest one's), else 0: float32 [N, F, V]."""
    with np.errstate(invalid="ignore"):
        apart_NFV = np.abs(frame_time_NF[:, :, None] - video_time_NV[:, None, :])
    known_NFV = np.isfinite(apart_NFV)
    nearest_NV = np.where(known_NFV, apart_NFV, np.inf).argmin(axis=1)
    own_NFV = nearest_NV[:, None, :] == np.arange(frame_time_NF.shape[1])[None, :, None]
    return (own_NFV & known_NFV).astype(np.float32)


def _slots(frame_NFD: Float32, video_NVD: Float32, belongs_NFV: Float32) -> tuple[Float32, Float32]:
    """What is grouped, float32 [N, S, D], and how many frames each slot is: a frame with the video tokens of its time, averaged."""
    frames = frame_NFD.shape[1]
    slot_NFD = frame_NFD
    if video_NVD.shape[1]:
        seen_NF = belongs_NFV.sum(axis=2)
        video_NFD = np.matmul(belongs_NFV, video_NVD)
        slot_NFD = (frame_NFD + video_NFD) / (1 + seen_NF)[:, :, None]
    edges = np.linspace(0, frames, min(frames, _SLOTS) + 1).astype(np.int64)
    weight_S = np.diff(edges).astype(np.float32)
    if frames > _SLOTS:
        slot_NFD = np.add.reduceat(slot_NFD, edges[:-1], axis=1) / weight_S[None, :, None]
    return slot_NFD, weight_S


def _groups(slot_NSD: Float32, weight_S: Float32, most: int, budget: float) -> tuple[Int64, Int64]:
    """Ward's grouping of each clip's slots: labels [N, S] from 0 up, and the number of groups [N].

    Distances are kept as what a union would add to the sum of squares (Lance and Williams' update of Ward's rule).
    """
    clips, slots, _ = slot_NSD.shape
    label_NS = np.zeros((clips, slots), np.int64)
    count_N = np.ones(clips, np.int64)
    mean_ND = np.einsum("nsd,s->nd", slot_NSD, weight_S / weight_S.sum())
    spread_N = np.einsum("nsd,nsd,s->n", slot_NSD, slot_NSD, weight_S / weight_S.sum()) - np.einsum("nd,nd->n", mean_ND, mean_ND)
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


def _means(frame_NFD: Float32, video_NVD: Float32, belongs_NFV: Float32, label_NF: Int64, count_N: Int64) -> list[Float32]:
    most = int(count_N.max(initial=1))
    own_NGF = (label_NF[:, None, :] == np.arange(most)[None, :, None]).astype(np.float32)
    mean_NGD = np.matmul(own_NGF / np.maximum(own_NGF.sum(axis=2, keepdims=True), 1), frame_NFD)
    if video_NVD.shape[1]:
        timeless_N1V = (belongs_NFV.sum(axis=1, keepdims=True) == 0).astype(np.float32)
        own_NGV = np.matmul(own_NGF, belongs_NFV) + timeless_N1V
        mean_NGD += np.matmul(own_NGV / np.maximum(own_NGV.sum(axis=2, keepdims=True), 1), video_NVD)
    length_NG1 = np.sqrt(np.einsum("ngd,ngd->ng", mean_NGD, mean_NGD))[:, :, None]
    # Tokens that cancel out have no direction: their vector stays short, and not zero, which int8 with a scale cannot hold.
    mean_NGD /= np.maximum(length_NG1, np.float32(1e-6))
    return [vector_GD[:count] for vector_GD, count in zip(mean_NGD, count_N.tolist(), strict=True)]
