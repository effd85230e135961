"""Why a clip was found: what each query token adds to the score, and the second it points at.

A score is a mean over the M counted query tokens of their best match: token j adds `max_i <q_j, x_i> / M` in each branch,
so the shares of all counted tokens (start and end tokens and pads too) add up to the score.

Maxima are the scoring kernel's own float32 values; sums are float64.

Shape letters: Q query tokens, M counted query tokens, T tokens of one clip in one branch, D width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vctool.runtime.encoder import QueryTokens
from vctool.runtime.moments import Moment, best_moment, clip_span
from vctool.scoring import branch_maxima
from vctool.store import Store, TokenStore

Branch = Literal["f", "v", "fv"]
BRANCHES: tuple[Branch, ...] = ("f", "v", "fv")

Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class TokenEvidence:
    """One counted query token against one clip.

    token: its position in the query. frame_share, video_share: what it adds to the score through each branch, None for a
    branch that was not used; share: their sum. frame_second, video_second: when the best frame token or video token was
    seen; None where the branch was not used or the token has no time of its own (`video_global` is then true).
    """

    token: int
    text: str
    pad: bool
    share: float
    frame_share: float | None
    video_share: float | None
    frame_second: float | None
    video_second: float | None
    video_global: bool

    @property
    def second(self) -> float | None:
        """The second to show: the frame's, or where only video tokens were compared, theirs."""
        return self.frame_second if self.frame_share is not None else self.video_second


@dataclass(frozen=True)
class WordEvidence:
    """One word as a reader sees it: its pieces' shares together, the second of the piece with the largest share (None: global)."""

    text: str
    share: float
    second: float | None


@dataclass(frozen=True)
class Evidence:
    """tokens: every counted token. words: in the order of the query. pad_share, special_share: of pads, of start and end tokens.

    best_second: the moment most like all the words together, None if no token has a time. moment: the interval around it.
    """

    tokens: list[TokenEvidence]
    words: list[WordEvidence]
    pad_share: float
    special_share: float
    best_second: float | None
    moment: Moment | None = None


def explain(query: QueryTokens, store: Store, index: int, branch: Branch) -> Evidence:
    """Evidence of clip `index` for one query. The clip must have tokens in each branch used."""
    counted = np.flatnonzero(query.mask_Q)
    query_MD = query.query_QD[counted]
    frame = _Match(query_MD, store, "frame", index) if "f" in branch else None
    video = _Match(query_MD, store, "video", index) if "v" in branch else None
    tokens = [_token(query, int(token), row, frame, video) for row, token in enumerate(counted)]
    by_position = {t.token: t for t in tokens}
    words = list(_words(query, by_position))
    in_words = {t for w in query.words for t in range(w.start, w.stop)}
    pad_share = sum((t.share for t in tokens if t.pad), 0.0)
    special_share = sum((t.share for t in tokens if not t.pad and t.token not in in_words), 0.0)
    told = [row for row, token in enumerate(counted) if int(token) in in_words] or list(range(len(counted)))
    curve = _relevance(told, frame, video)
    if curve is None:
        return Evidence(tokens, words, pad_share, special_share, None)
    time_T, relevance_T = curve
    moment = best_moment(time_T, relevance_T, *clip_span(store.clip_meta(index)))
    return Evidence(tokens, words, pad_share, special_share, _seconds(time_T[relevance_T.argmax()]), moment)


class _Match:
    """What the counted query tokens found in one branch of one clip."""

    def __init__(self, query_MD: NDArray[np.float32], store: Store, branch: Literal["frame", "video"], index: int) -> None:
        token_TD, time_T, scale_T = store.rows(branch, index)
        shard, place = _place(store, index)
        max_M, self.best_M = branch_maxima(query_MD, shard, branch, place)
        self.time_T: Float64 = time_T.astype(np.float64)
        self.share_M: Float64 = max_M.astype(np.float64) / len(query_MD)
        plain_TD = token_TD.astype(np.float64)
        if scale_T is not None:
            plain_TD *= scale_T[:, None]
        self.similarity_MT: Float64 = query_MD.astype(np.float64) @ plain_TD.T

    def second(self, row: int) -> float | None:
        return _seconds(self.time_T[self.best_M[row]])


def _place(store: Store, index: int) -> tuple[TokenStore, int]:
    """The file that holds a clip, and its number there."""
    for shard in store.shards:
        if index < len(shard):
            return shard, index
        index -= len(shard)
    raise IndexError(index)


def _token(query: QueryTokens, token: int, row: int, frame: _Match | None, video: _Match | None) -> TokenEvidence:
    frame_share = None if frame is None else float(frame.share_M[row])
    video_share = None if video is None else float(video.share_M[row])
    video_second = None if video is None else video.second(row)
    return TokenEvidence(
        token=token,
        text=query.pieces_Q[token],
        pad=bool(query.pad_Q[token]),
        share=(frame_share or 0.0) + (video_share or 0.0),
        frame_share=frame_share,
        video_share=video_share,
        frame_second=None if frame is None else frame.second(row),
        video_second=video_second,
        video_global=video is not None and video_second is None,
    )


def _words(query: QueryTokens, by_position: dict[int, TokenEvidence]) -> Iterator[WordEvidence]:
    for word in query.words:
        pieces = [by_position[t] for t in range(word.start, word.stop) if t in by_position]
        if pieces:
            strongest = max(pieces, key=lambda piece: piece.share)
            yield WordEvidence(word.text, sum(piece.share for piece in pieces), strongest.second)


def _relevance(rows: list[int], frame: _Match | None, video: _Match | None) -> tuple[Float64, Float64] | None:
    """Times and `r_i = mean over words of <q_j, x_i>` of the tokens that have one, both branches added where their frames agree."""
    curves = []
    for match in (frame, video):
        if match is not None:
            timed = np.flatnonzero(~np.isnan(match.time_T))
            if len(timed):
                curves.append((match.time_T[timed], match.similarity_MT[rows][:, timed].mean(axis=0)))
    if not curves:
        return None
    time_T, relevance_T = curves[0]
    if len(curves) == 2 and np.array_equal(curves[0][0], curves[1][0]):
        relevance_T = relevance_T + curves[1][1]
    return time_T, relevance_T


def _seconds(time: float) -> float | None:
    """Stores keep times as float32: to a microsecond, 0.1 is 0.1 again."""
    return None if np.isnan(time) else round(float(time), 6)
