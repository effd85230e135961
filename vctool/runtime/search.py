"""Search: one encoded query against a store, exact or in two stages, with the reasons for each hit.

Shape letters: Q query tokens, N clips, D width.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from vctool.errors import StoreError, UsageProblem, VctoolError
from vctool.runtime.allowed import Allowed, Bool, allowed_clips
from vctool.runtime.encoder import QueryTokens
from vctool.runtime.evidence import BRANCHES, Branch, explain
from vctool.runtime.filter_language import Filter
from vctool.runtime.model import Model, load_model
from vctool.runtime.model_directory import ModelDirectory
from vctool.runtime.moments import Moment, clip_span, together
from vctool.runtime.query_arrays import queries_from_array
from vctool.runtime.search_result import RESULT_SCHEMA, Hit, Mode, SearchResult
from vctool.runtime.two_stage import Found, estimates, has_pooled, rerank
from vctool.scoring import Query, Scorer, batch_scores, chosen_scores
from vctool.store import Store, open_store

__all__ = ["RESULT_SCHEMA", "Hit", "SearchResult", "Wanted", "search", "search_all"]

# Below, an exact search takes at most some 30 ms of one core (D = 512), too little to give up certainty for.
TWO_STAGE_FROM = 20_000
_SCORES = 1 << 24  # estimates held at once, float32
_NEIGHBOURS = 3  # a segment and the two that overlap it
_SHOWN = 16  # characters of a fingerprint in a message: enough to tell any two apart


@dataclass(frozen=True)
class Wanted:
    """Which part of a ranking is asked for, and how it is found.

    k hits after the first `offset`, those that score at least `min_score`. exact: True compares every allowed clip, False searches
    in two stages at any size, None does so from `TWO_STAGE_FROM` clips on. candidates: in two stages, how many clips are compared,
    by default as many as the recall asks for.
    """

    k: int = 10
    offset: int = 0
    min_score: float | None = None
    exact: bool | None = None
    candidates: int | None = None

    def __post_init__(self) -> None:
        if self.k < 1:
            raise UsageProblem(f"k is {self.k}: at least one hit must be asked for")
        if self.offset < 0:
            raise UsageProblem(f"the offset is {self.offset}", "0 is the first hit")
        if self.min_score is not None and math.isnan(self.min_score):
            raise UsageProblem("the least score is not a number", "scores lie between -2 and 2")
        if self.candidates is not None and self.candidates < 1:
            raise UsageProblem(f"{self.candidates} candidates: at least one clip must be compared")
        if self.candidates is not None and self.exact:
            raise UsageProblem("an exact search compares every clip", "leave out the number of candidates, or exact")


def search(
    query: str | QueryTokens | NDArray[Any],
    store: Store | str | Path,
    model: Model | ModelDirectory | str | Path | None = None,
    k: int = 10,
    branch: Branch | None = None,
    scorer: Scorer = batch_scores,
    *,
    where: str | Filter | None = None,
    ids: Iterable[str] | None = None,
    offset: int = 0,
    min_score: float | None = None,
    exact: bool | None = None,
    candidates: int | None = None,
) -> SearchResult:
    """The k best clips of `store` for `query`.

    query: a text; or tokens encoded before, `QueryTokens` or a float array [Q, D] of any multi-vector model (`model` is then not
    needed, rows are L2-normalised). model: the model the store was made with; by default the one its manifest names. branch: `f`,
    `v` or `fv`; by default the model's own. scorer: what scores the store, the CPU by default.

    where: a filter on metadata (docs/guide.md). ids: only these clips. offset, min_score, exact, candidates: see `Wanted`.

    Scores are float32 and exact in both modes; a search in two stages may miss a hit (docs/scoring.md has how rarely).
    Raises StoreError if the store was made with another model or the widths differ, InputError for an empty query or an array
    that is none, UsageProblem for a filter that is not understood.
    """
    wanted = Wanted(k, offset, min_score, exact, candidates)
    if isinstance(query, np.ndarray):
        (query,) = queries_from_array(query) if query.ndim != 3 else _refuse_many()
    opened = open_store(store) if isinstance(store, (str, Path)) else store
    return search_wanted([query], opened, model, branch, wanted, allowed_clips(opened, where, ids), scorer)[0]


def search_all(
    queries: Sequence[str | QueryTokens] | NDArray[Any],
    store: Store | str | Path,
    model: Model | ModelDirectory | str | Path | None = None,
    k: int = 10,
    branch: Branch | None = None,
    scorer: Scorer = batch_scores,
    *,
    where: str | Filter | None = None,
    ids: Iterable[str] | None = None,
    offset: int = 0,
    min_score: float | None = None,
    exact: bool | None = None,
    candidates: int | None = None,
) -> list[SearchResult]:
    """`search` for many queries, texts or an array [B, Q, D], in one pass over the store; each answer is the one that `search` gives."""
    wanted = Wanted(k, offset, min_score, exact, candidates)
    if isinstance(queries, np.ndarray):
        queries = queries_from_array(queries)
    opened = open_store(store) if isinstance(store, (str, Path)) else store
    return search_wanted(queries, opened, model, branch, wanted, allowed_clips(opened, where, ids), scorer)


def search_wanted(
    queries: Sequence[str | QueryTokens],
    store: Store,
    model: Model | ModelDirectory | str | Path | None,
    branch: Branch | None,
    wanted: Wanted,
    allowed: Allowed,
    scorer: Scorer = batch_scores,
) -> list[SearchResult]:
    """`search_all` with its settings made: for who asks many times with the same filter."""
    branch = branch or default_branch(store)
    encoded = _encoded(queries, store, model)
    clips = len(store) if allowed.clip_N is None else int(np.count_nonzero(allowed.clip_N))
    shown = None if allowed.clip_N is None else clips
    if not clips or not encoded:
        return [SearchResult(query, branch, [], "exact", 0, shown, wanted.offset, allowed.notes) for query in encoded]
    for query in encoded:
        if query.query_QD.shape[1] != store.dim:
            widths = f"{store.path} holds tokens {store.dim} wide, the query's are {query.query_QD.shape[1]}"
            raise StoreError(widths, "encode the query with the store's own model")
    staged, notes = _stages(store, wanted, clips, scorer)
    results: list[SearchResult] = []
    for query, found, mode in _scored(encoded, store, branch, wanted, allowed.clip_N, staged, scorer):
        if np.isnan(found.score).any():
            broken = store.clip_id(int(found.clip[np.isnan(found.score).argmax()]))
            raise VctoolError(
                f"the query {query.text!r} scores NaN against clip {broken!r}", f"check the store: vctool info {store.path} --all-files"
            )
        hits = _hits(query, found, store, branch, wanted)
        results.append(SearchResult(query, branch, hits, mode, len(found.clip), shown, wanted.offset, (*allowed.notes, *notes)))
    return results


def _stages(store: Store, wanted: Wanted, clips: int, scorer: Scorer) -> tuple[bool, list[str]]:
    """Whether to search in two stages, and what the user should know about it."""
    asked = wanted.exact is False or wanted.candidates is not None
    # The size was measured for the CPU's kernels; who chose another scorer, a GPU's, has it compare every clip unless told otherwise.
    automatic = clips >= TWO_STAGE_FROM and scorer is batch_scores
    if wanted.exact or not (asked or automatic):
        return False, []
    if has_pooled(store):
        return True, []
    mend = "compact stores keep none" if store.dtype == "compact" else "`vctool store convert` writes a store that has them"
    return False, [f"{store.path} has no pooled vectors, so every clip was compared; {mend}"]


def _scored(
    queries: Sequence[QueryTokens], store: Store, branch: Branch, wanted: Wanted, allowed_N: Bool | None, staged: bool, scorer: Scorer
) -> Iterator[tuple[QueryTokens, Found, Mode]]:
    """Each query with the clips that were compared with it."""
    at_once = max(1, _SCORES // len(store)) if staged else len(queries)
    for start in range(0, len(queries), at_once):
        block = queries[start : start + at_once]
        pairs = [(query.query_QD, query.mask_Q) for query in block]
        if not staged:
            for query, found in zip(block, _all_scored(pairs, store, branch, allowed_N, scorer), strict=True):
                yield query, found, "exact"
            continue
        estimate_BN = estimates(pairs, store, branch)
        if allowed_N is not None:
            estimate_BN[:, ~allowed_N] = -np.inf
        for query, pair, estimate_N in zip(block, pairs, estimate_BN, strict=True):
            chosen = rerank(pair, store, branch, estimate_N, wanted.offset + wanted.k, scorer, wanted.candidates)
            if chosen is not None:
                every = len(store) if allowed_N is None else np.count_nonzero(allowed_N)
                yield query, chosen, "exact" if len(chosen.clip) == every else "two-stage"
            else:  # the pooled vectors could not tell the clips apart
                yield query, _all_scored([pair], store, branch, allowed_N, scorer)[0], "exact"


def _all_scored(queries: Sequence[Query], store: Store, branch: Branch, allowed_N: Bool | None, scorer: Scorer) -> list[Found]:
    if allowed_N is None:
        clip, score_BC, frame_BC, video_BC = np.arange(len(store)), *scorer(queries, store, branch)
    else:
        clip = np.flatnonzero(allowed_N)
        score_BC, frame_BC, video_BC = chosen_scores(queries, store, branch, clip, scorer)
    return [Found(clip, *rows) for rows in zip(score_BC, frame_BC, video_BC, strict=True)]


def _refuse_many() -> NoReturn:
    raise UsageProblem("search takes one query, an array [tokens, width]", "use search_all for [queries, tokens, width]")


def _encoded(queries: Sequence[str | QueryTokens], store: Store, model: Model | ModelDirectory | str | Path | None) -> list[QueryTokens]:
    texts = [q for q in queries if isinstance(q, str)]
    if not texts:
        return [q for q in queries if isinstance(q, QueryTokens)]
    loaded = model if isinstance(model, Model) else load_model(find_model(store) if model is None else model)
    require_same_model(store, loaded.directory)
    found = iter(loaded.text.encode(texts))
    return [q if isinstance(q, QueryTokens) else next(found) for q in queries]


def _hits(query: QueryTokens, found: Found, store: Store, branch: Branch, wanted: Wanted) -> list[Hit]:
    """The hits that are asked for. Segments that overlap and show the same moment of a file are one hit, the better one."""
    last = wanted.offset + wanted.k
    overlap = _segments_overlap(store)
    places = best(found.score, last * _NEIGHBOURS if overlap else last)
    if wanted.min_score is not None:
        places = [place for place in places if found.score[place] >= wanted.min_score]
    if not overlap:
        chosen = places[wanted.offset :]
        return [_hit(rank, place, found, query, store, branch) for rank, place in enumerate(chosen, start=wanted.offset + 1)]
    kept: list[Hit] = []
    for place in places:
        hit = _hit(len(kept) + 1, place, found, query, store, branch)
        same = next((i for i, other in enumerate(kept) if other.path == hit.path and _shared(other, hit) is not None), None)
        if same is None:
            kept.append(hit)
        else:
            kept[same] = replace(kept[same], evidence=replace(kept[same].evidence, moment=_shared(kept[same], hit)))
    return kept[wanted.offset : last]


def _shared(one: Hit, other: Hit) -> Moment | None:
    first, second = one.evidence.moment, other.evidence.moment
    return None if first is None or second is None else together(first, second)


def _segments_overlap(store: Store) -> bool:
    entry = store.manifest.get("segments")
    return isinstance(entry, dict) and bool(entry.get("overlap"))


def _hit(rank: int, place: int, found: Found, query: QueryTokens, store: Store, branch: Branch) -> Hit:
    index = int(found.clip[place])
    path = store.resolve_path(index)
    start, end = clip_span(store.clip_meta(index))
    return Hit(
        rank=rank,
        index=index,
        id=store.clip_id(index),
        path=store.clip_path(index) if path is None else str(path),
        score=float(found.score[place]),
        frame_score=float(found.frame[place]) if "f" in branch else None,
        video_score=float(found.video[place]) if "v" in branch else None,
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


def _model_entry(store: Store) -> dict[str, Any]:
    entry = store.manifest.get("model")
    return entry if isinstance(entry, dict) else {}
