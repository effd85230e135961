"""Explicit expansion of queries by synonyms, as a measure for what pads do: retrieval with either, and how near they are.

Shape letters: Q query tokens, D width, A and B rows of two sets of vectors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from vctool.evaluation.analysis import Draws, Material, Progress
from vctool.evaluation.synonyms import Substitution, substitutions

if TYPE_CHECKING:
    from vctool.runtime.encoder import QueryTokens

_LINES = ("words", "pads", "synonyms", "pads and synonyms", "another caption")


@dataclass(frozen=True)
class _Tokens:
    """What scoring needs of a query."""

    query_QD: npt.NDArray[Any]
    mask_Q: npt.NDArray[Any]


class _Ready:
    """An encoder of queries that were encoded before, by text."""

    def __init__(self, tokens: Mapping[str, npt.NDArray[Any]]) -> None:
        self._tokens = tokens

    def encode(self, texts: Sequence[str], /) -> list[_Tokens]:
        return [_Tokens(self._tokens[text], np.ones(len(self._tokens[text]), dtype=np.bool_)) for text in texts]


def compare_with_synonyms(
    material: Material,
    queries: Sequence[QueryTokens],
    synonyms: Mapping[str, Sequence[str]],
    draws: Draws,
    progress: Progress | None = None,
) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """Retrieval with pads, with explicit synonyms, with both, on the queries that have a synonym; and how near pads are to synonyms.

    A synonym's tokens are those that it has in the query with the word exchanged. Both None where no query has a synonym.
    """
    changed: dict[int, list[Substitution]] = {}
    for number, query in enumerate(queries):
        made = substitutions(query.text, [word.text for word in query.words], synonyms)
        if made:
            changed[number] = made
    if not changed:
        return None, None
    texts = list(dict.fromkeys(one.text for made in changed.values() for one in made))
    encoded = dict(zip(texts, material.model.text.encode(texts), strict=True))
    rows: dict[str, dict[str, npt.NDArray[Any]]] = {name: {} for name in _LINES}
    captions = _other_captions(material, changed)
    others = dict(zip(captions.values(), material.model.text.encode(list(captions.values())), strict=True)) if captions else {}
    near: list[tuple[float, float, float]] = []
    # A synonym of a word that the query does not have: what a pad is near to whatever it says.
    pool = [
        ({one.word, one.synonym}, tokens)
        for one in {one.text: one for made in changed.values() for one in made}.values()
        if (tokens := synonym_tokens(encoded[one.text], one.synonym)) is not None
    ]
    rng = np.random.default_rng(draws.seed)
    for number, made in changed.items():
        query = queries[number]
        plain = query.query_QD[query.mask_Q & ~query.pad_Q]
        padded = query.query_QD[query.mask_Q]
        added = [tokens for one in made if (tokens := synonym_tokens(encoded[one.text], one.synonym)) is not None]
        extra = np.concatenate(added) if added else plain[:0]
        rows["words"][query.text], rows["pads"][query.text] = plain, padded
        rows["synonyms"][query.text] = np.concatenate([plain, extra])
        rows["pads and synonyms"][query.text] = np.concatenate([padded, extra])
        if number in captions:
            other = others[captions[number]]
            rows["another caption"][query.text] = np.concatenate([plain, other.query_QD[other.mask_Q & ~other.pad_Q]])
        pad_PD = query.query_QD[query.pad_Q]
        if len(pad_PD):
            own = {word.text.lower() for word in query.words}
            strange = [tokens for words, tokens in pool if not words & own]
            for tokens in added if strange else ():
                control = strange[int(rng.integers(len(strange)))]
                near.append((_closest(pad_PD, tokens), _closest(plain, tokens), _closest(pad_PD, control)))
    used = replace(material, split=replace(material.split, queries=tuple(material.split.queries[number] for number in changed)))
    lines = _lines(
        used, {name: tokens for name, tokens in rows.items() if len(tokens) == len({queries[at].text for at in changed})}, draws, progress
    )
    compared = {"queries": len(changed), "substitutions": sum(len(made) for made in changed.values()), "lines": lines}
    if not near:
        return compared, None
    table = np.asarray(near)
    closeness = {
        "pairs": len(near),
        "pad_to_synonym": float(table[:, 0].mean()),
        "own_word_to_synonym": float(table[:, 1].mean()),
        "pad_to_synonym_of_another_query": float(table[:, 2].mean()),
        "pad_nearer_to_own_than_to_other_synonym": float((table[:, 0] > table[:, 2]).mean()),
    }
    return compared, closeness


def synonym_tokens(query: QueryTokens, synonym: str) -> npt.NDArray[Any] | None:
    """The vectors of a word in an encoded query; None where it was cut off or the tokenizer sees other words."""
    for word in query.words:
        if word.text.lower() == synonym:
            return query.query_QD[word.start : word.stop]
    return None


def _closest(one_AD: npt.NDArray[Any], other_BD: npt.NDArray[Any]) -> float:
    """Mean over the second's rows of their best cosine with a row of the first."""
    return float((other_BD @ one_AD.T).max(axis=1).mean())


def _other_captions(material: Material, changed: Mapping[int, Any]) -> dict[int, str]:
    """For each query its clip's next caption; none unless every query has one."""
    split = material.split
    found = {}
    for number in changed:
        query = split.queries[number]
        captions = split.clips[query.clips[0][0]].captions
        if query.text in captions and len(captions) > 1:
            found[number] = captions[(captions.index(query.text) + 1) % len(captions)]
    return found if len(found) == len(changed) else {}


def _lines(
    material: Material, rows: Mapping[str, Mapping[str, npt.NDArray[Any]]], draws: Draws, progress: Progress | None
) -> list[dict[str, Any]]:
    found: dict[str, Any] = {}
    for name, tokens in rows.items():
        with material.scored([material.branch], _Ready(tokens), progress) as scores:
            found[name] = material.ranked(scores[material.branch])
    base = found["words"].per_query.reciprocal
    values = [one.per_query.reciprocal for one in found.values()] + [one.per_query.reciprocal - base for one in found.values()]
    drawn = draws.means(values, [np.ones(len(base))] * len(values), material.clip_of_query)
    return [
        {
            "tokens": name,
            "r1": one.r1,
            "mrr": one.mrr,
            "mrr_interval": list(draws.interval(drawn[:, at])),
            "gain": one.mrr - float(base.mean()),
            "gain_interval": list(draws.interval(drawn[:, len(found) + at])),
            "tokens_per_query": float(np.mean([len(tokens) for tokens in rows[name].values()])),
        }
        for at, (name, one) in enumerate(found.items())
    ]
