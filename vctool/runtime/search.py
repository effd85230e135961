"""Search: one encoded query against a store, exact, with the reasons for each hit.

Shape letters: Q query tokens, N clips, D width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vctool.errors import StoreError, UsageProblem, VctoolError
from vctool.runtime.encoder import QueryTokens
from vctool.runtime.evidence import BRANCHES, Branch, Evidence, TokenEvidence, explain
from vctool.runtime.model import Model, load_model
from vctool.runtime.model_directory import ModelDirectory
from vctool.scoring import Scorer, batch_scores
from vctool.store import Store, open_store

RESULT_SCHEMA = 1
_SHOWN = 16  # characters of a fingerprint in a message: enough to tell any two apart


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
    """The answer to one query: at most k hits, best first; ties in store order. mode `exact`: every clip was compared."""

    query: QueryTokens
    branch: Branch
    hits: list[Hit]
    mode: str
    candidates: int

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
            "search": {"mode": self.mode, "candidates": self.candidates},
        }


def search(
    query: str | QueryTokens,
    store: Store | str | Path,
    model: Model | ModelDirectory | str | Path | None = None,
    k: int = 10,
    branch: Branch | None = None,
    scorer: Scorer = batch_scores,
) -> SearchResult:
    """The k best clips of `store` for `query`.

    query: a text, or tokens encoded before (`model` is then not needed). model: the model the store was made with; by default
    the one its manifest names. branch: `f`, `v` or `fv`; by default the model's own. scorer: what scores the store, the CPU by
    default. Scores are float32, exact.
    Raises StoreError if the store was made with another model or the widths differ, InputError for an empty query.
    """
    return search_all([query], store, model, k, branch, scorer)[0]


def search_all(
    queries: Sequence[str | QueryTokens],
    store: Store | str | Path,
    model: Model | ModelDirectory | str | Path | None = None,
    k: int = 10,
    branch: Branch | None = None,
    scorer: Scorer = batch_scores,
) -> list[SearchResult]:
    """`search` for many queries in one pass over the store; each answer is the one that `search` gives."""
    if k < 1:
        raise UsageProblem(f"k is {k}: at least one hit must be asked for")
    opened = open_store(store) if isinstance(store, (str, Path)) else store
    branch = branch or default_branch(opened)
    encoded = _encoded(queries, opened, model)
    if not len(opened) or not encoded:
        return [SearchResult(query, branch, [], "exact", 0) for query in encoded]
    for query in encoded:
        if query.query_QD.shape[1] != opened.dim:
            widths = f"{opened.path} holds tokens {opened.dim} wide, the query's are {query.query_QD.shape[1]}"
            raise StoreError(widths, "encode the query with the store's own model")
    score_BN, frame_BN, video_BN = scorer([(q.query_QD, q.mask_Q) for q in encoded], opened, branch)
    results = []
    for query, score_N, frame_N, video_N in zip(encoded, score_BN, frame_BN, video_BN, strict=True):
        if np.isnan(score_N).any():
            broken = opened.clip_id(int(np.flatnonzero(np.isnan(score_N))[0]))
            raise VctoolError(
                f"the query {query.text!r} scores NaN against clip {broken!r}", f"check the store: vctool info {opened.path} --all-files"
            )
        hits = [
            _hit(rank, index, query, opened, branch, (score_N[index], frame_N[index], video_N[index]))
            for rank, index in enumerate(best(score_N, k), start=1)
        ]
        results.append(SearchResult(query, branch, hits, "exact", len(opened)))
    return results


def _encoded(queries: Sequence[str | QueryTokens], store: Store, model: Model | ModelDirectory | str | Path | None) -> list[QueryTokens]:
    texts = [q for q in queries if isinstance(q, str)]
    if not texts:
        return [q for q in queries if isinstance(q, QueryTokens)]
    loaded = model if isinstance(model, Model) else load_model(find_model(store) if model is None else model)
    require_same_model(store, loaded.directory)
    found = iter(loaded.text.encode(texts))
    return [q if isinstance(q, QueryTokens) else next(found) for q in queries]


def _hit(rank: int, index: int, query: QueryTokens, store: Store, branch: Branch, scores: tuple[np.float32, np.float32, np.float32]) -> Hit:
    path = store.resolve_path(index)
    start, end = clip_span(store.clip_meta(index))
    return Hit(
        rank=rank,
        index=index,
        id=store.clip_id(index),
        path=store.clip_path(index) if path is None else str(path),
        score=float(scores[0]),
        frame_score=float(scores[1]) if "f" in branch else None,
        video_score=float(scores[2]) if "v" in branch else None,
        start=start,
        end=end,
        evidence=explain(query, store, index, branch),
    )


def best(score_N: NDArray[np.float32], k: int) -> list[int]:
    """Indices of the k highest finite scores, best first, ties by index. A clip without a valid token (-inf) is no hit."""
    valid = np.flatnonzero(score_N > -np.inf)
    if len(valid) > k:
        threshold = np.partition(score_N[valid], len(valid) - k)[len(valid) - k]
        valid = valid[score_N[valid] >= threshold]
    return [int(i) for i in valid[np.argsort(-score_N[valid], kind="stable")][:k]]


def default_branch(store: Store) -> Branch:
    """The branch the store's model was made for."""
    interaction = _model_entry(store).get("interaction", "fv")
    return next((b for b in BRANCHES if b == interaction), "fv")


def require_same_model(store: Store, model: ModelDirectory) -> None:
    """Raises StoreError, with both fingerprints, if the store was made with another model."""
    entry = _model_entry(store)
    theirs = str(entry.get("sha256", "unknown"))
    if theirs != model.fingerprint:
        raise StoreError(
            f"{store.path} was made with model '{entry.get('name', 'unknown')}' ({theirs[:_SHOWN]}), "
            f"not with '{model.config.name}' ({model.fingerprint[:_SHOWN]}) in {model.path}",
            "give the store's own model with --model, or index the videos again with this one",
        )


def find_model(store: Store) -> Path:
    """The folder of the model that made the store, as its manifest recorded it: relative to the store, else absolute.

    Raises StoreError if neither place holds a model directory now.
    """
    entry = _model_entry(store)
    places: list[Path] = []
    if isinstance(entry.get("path"), str) and entry["path"]:
        places.append(store.folder / entry["path"])
    if isinstance(entry.get("absolute_path"), str) and entry["absolute_path"]:
        places.append(Path(entry["absolute_path"]))
    for place in places:
        if (place / "config.json").is_file():
            return place
    name, sha256 = entry.get("name", "unknown"), str(entry.get("sha256", "unknown"))[:_SHOWN]
    looked = f" It is no longer in {places[0].resolve()}." if places else ""
    raise StoreError(f"{store.path} was made with model '{name}' ({sha256}).{looked}", "say where that model is with --model DIR")


def clip_span(meta: dict[str, Any]) -> tuple[float, float | None]:
    """The piece of its file that a clip is, in seconds: `start` and `end` of its metadata, else the whole duration."""
    end = _time(meta.get("end"))
    return _time(meta.get("start")) or 0.0, _time(meta.get("duration")) if end is None else end


def _time(value: Any) -> float | None:
    # Stores may come from other hands: what is not a time is no time.
    is_time = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if is_time else None


def _model_entry(store: Store) -> dict[str, Any]:
    entry = store.manifest.get("model")
    return entry if isinstance(entry, dict) else {}


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
