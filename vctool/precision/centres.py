"""Which tokens of a clip share a centre: one centre for a clip of one scene, more where its tokens lie far apart.

Shape letters: N clips, T tokens of one clip (frames and video tokens together), S centres, D width.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]
Intp = npt.NDArray[np.intp]

# Mean squared distance from the centre up to which one more centre is not worth its bytes. Frames of one scene are within 0.1.
_BUDGET = 0.12
_TOKENS = 6  # for each centre a clip may have, but at least _LEAST centres
_LEAST, _MOST = 4, 255
_STEPS = 4  # of Lloyd's algorithm


def assign_centres(token_NTD: Float32) -> Intp:
    """The centre of each token, int [N, T], numbered within the clip from 0 in the order of their first tokens.

    Clips are independent of each other: one gets the same centres alone as among others.
    """
    clips, tokens, _ = token_NTD.shape
    centre_NT = np.zeros((clips, tokens), np.intp)
    if tokens < 2:
        return centre_NT
    gram_NTT = token_NTD @ token_NTD.transpose(0, 2, 1)
    square_N = np.einsum("ntt->n", gram_NTT) / tokens
    left = np.flatnonzero(square_N - gram_NTT.mean(axis=(1, 2)) > _BUDGET)
    for count in _counts(tokens):
        if not len(left):
            break
        centre_NT[left], spread_N = _lloyd(gram_NTT[left], count)
        left = left[spread_N > _BUDGET]
    return _renumbered(centre_NT)


def _counts(tokens: int) -> list[int]:
    """Numbers of centres to try: 2, 3, 4, 6, 8, 12, 16 …"""
    most = min(max(_LEAST, -(-tokens // _TOKENS)), _MOST, tokens)
    doubling = [count for power in range(1, 9) for count in (2**power, 3 * 2 ** (power - 1))]
    return sorted({min(count, most) for count in doubling if count <= 2 * most})


def _lloyd(gram_NTT: Float32, count: int) -> tuple[Intp, Float32]:
    """(centre of each token, mean squared distance from it), from tokens as far apart as can be."""
    clips, tokens = gram_NTT.shape[:2]
    clip_N = np.arange(clips)
    square_NT = np.einsum("ntt->nt", gram_NTT)

    def distances(token_N: Intp) -> Float32:
        away: Float32 = square_NT + square_NT[clip_N, token_N][:, None] - 2 * gram_NTT[clip_N, token_N]
        return away

    seed_N = (square_NT - 2 * gram_NTT.mean(axis=2)).argmax(axis=1)  # farthest from the mean
    near_NT = distances(seed_N)
    centre_NT = np.zeros((clips, tokens), np.intp)
    for number in range(1, count):
        away_NT = distances(near_NT.argmax(axis=1))
        centre_NT[away_NT < near_NT] = number
        near_NT = np.minimum(near_NT, away_NT)
    spread_N = near_NT.mean(axis=1)
    for _ in range(_STEPS):
        weight_NTS = (centre_NT[:, :, None] == np.arange(count)).astype(np.float32)
        size_NS = weight_NTS.sum(axis=1)
        weight_NTS /= np.maximum(size_NS, 1)[:, None]
        product_NTS = gram_NTT @ weight_NTS
        own_NS = np.einsum("nts,nts->ns", weight_NTS, product_NTS)
        away_NTS = square_NT[:, :, None] + np.where(size_NS > 0, own_NS, np.inf)[:, None] - 2 * product_NTS
        centre_NT = away_NTS.argmin(axis=2)
        spread_N = away_NTS.min(axis=2).mean(axis=1)
    return centre_NT, spread_N


def _renumbered(centre_NT: Intp) -> Intp:
    """Centres without gaps, in the order of their first tokens."""
    first_NT = (centre_NT[:, :, None] == centre_NT[:, None, :]).argmax(axis=2)  # the first token of the same centre
    opens_NT = first_NT == np.arange(centre_NT.shape[1])
    return np.take_along_axis(opens_NT.cumsum(axis=1) - 1, first_NT, axis=1)
