"""What a search answers, and its documented JSON form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from vctool.runtime.encoder import QueryTokens
from vctool.runtime.evidence import Branch, Evidence, TokenEvidence

RESULT_SCHEMA = 1

Mode = Literal["exact", "two-stage"]


@dataclass(frozen=True)
class Hit:
    """One clip found.

    index: its position in the store. path: absolute path of the video file, "" if the clip has none. start, end: the piece of
    the file that the clip is, in seconds (end None if unknown). frame_score, video_score: None for a branch not used.
    """

    rank: int
    index: int
    id: str
    path: str
    score: float
    frame_score: float | None
    video_score: float | None
    start: float
    end: float | None
    evidence: Evidence


@dataclass(frozen=True)
class SearchResult:
    """The answer to one query: at most k hits from `offset` on, best first; ties in store order.

    mode `exact`: every allowed clip was compared with the query; `two-stage`: those that a scan of the pooled vectors chose.
    candidates: how many were compared. allowed: how many clips passed the filters, None without one. notes: what the user should
    know of this search, a line each.
    """

    query: QueryTokens
    branch: Branch
    hits: list[Hit]
    mode: Mode
    candidates: int
    allowed: int | None = None
    offset: int = 0
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The documented JSON form (docs/format.md): plain values only."""
        query = self.query
        tokens = [
            {"text": text, "pad": bool(pad), "counted": bool(counted)}
            for text, pad, counted in zip(query.pieces_Q, query.pad_Q, query.mask_Q, strict=True)
        ]
        return {
            "schema": RESULT_SCHEMA,
            "query": query.text,
            "truncated": query.dropped,
            "branch": self.branch,
            "tokens": tokens,
            "hits": [_hit_json(hit) for hit in self.hits],
            "search": self._search_json(),
        }

    def _search_json(self) -> dict[str, Any]:
        found: dict[str, Any] = {"mode": self.mode, "candidates": self.candidates}
        if self.query.pooled:
            found["query_policy"] = "pooled"
        if self.query.templates:
            found["templates"] = list(self.query.templates)
        if self.allowed is not None:
            found["allowed"] = self.allowed
        if self.offset:
            found["offset"] = self.offset
        if self.notes:
            found["notes"] = list(self.notes)
        return found


def _hit_json(hit: Hit) -> dict[str, Any]:
    evidence = hit.evidence
    return {
        "rank": hit.rank,
        "id": hit.id,
        "path": hit.path,
        "score": hit.score,
        "frame_score": hit.frame_score,
        "video_score": hit.video_score,
        "start": hit.start,
        "end": hit.end,
        "best_second": evidence.best_second,
        "moment": None if evidence.moment is None else [evidence.moment.start, evidence.moment.end],
        "words": [{"text": w.text, "share": w.share, "second": w.second} for w in evidence.words],
        "pad_share": evidence.pad_share,
        "special_share": evidence.special_share,
        "evidence": [_token_json(token) for token in evidence.tokens],
    }


def _token_json(token: TokenEvidence) -> dict[str, Any]:
    return {
        "token": token.token,
        "text": token.text,
        "pad": token.pad,
        "share": token.share,
        "second": token.second,
        "frame_share": token.frame_share,
        "frame_second": token.frame_second,
        "video_share": token.video_share,
        "video_second": token.video_second,
        "video_global": token.video_global,
    }
