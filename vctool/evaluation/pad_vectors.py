"""What the vectors of pads are like: how far they vary, what they resemble, and in which clusters they lie.

Shape letters: P pad vectors, W kinds of words, K clusters, Q query tokens, D width. All vectors are unit rows.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from vctool.runtime.encoder import QueryTokens

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class PadVectors:
    """All pads of some queries. query_P, position_P: which query, and which place in the padded text."""

    pad_PD: Float32
    query_P: Int64
    position_P: Int64

    @classmethod
    def of(cls, queries: Sequence[QueryTokens]) -> PadVectors:
        rows = [np.flatnonzero(query.pad_Q) for query in queries]
        width = queries[0].query_QD.shape[1]
        pads = [query.query_QD[at] for query, at in zip(queries, rows, strict=True)]
        return cls(
            np.concatenate(pads) if pads else np.empty((0, width), np.float32),
            np.repeat(np.arange(len(queries)), [len(at) for at in rows]),
            np.concatenate(rows).astype(np.int64),
        )


@dataclass(frozen=True)
class Vocabulary:
    """Words as the model sees them: the mean of each word's vectors over all queries, as a unit row."""

    words: list[str]
    vector_WD: Float32
    times_W: Int64

    @classmethod
    def of(cls, queries: Sequence[QueryTokens], least: int = 3) -> Vocabulary:
        """Words that occur at least `least` times; if there are none, all words."""
        sums: dict[str, npt.NDArray[Any]] = {}
        times: dict[str, int] = defaultdict(int)
        for query in queries:
            for word in query.words:
                vector = query.query_QD[word.start : word.stop].mean(axis=0)
                key = word.text.lower()
                sums[key] = sums.get(key, 0.0) + vector
                times[key] += 1
        least = least if any(count >= least for count in times.values()) else 1
        words = sorted(word for word, count in times.items() if count >= least)
        vector_WD = np.stack([sums[word] for word in words]).astype(np.float32)
        return cls(words, vector_WD / np.linalg.norm(vector_WD, axis=1, keepdims=True), np.asarray([times[word] for word in words]))

    def nearest(self, vector_D: npt.NDArray[Any], count: int = 6) -> list[dict[str, Any]]:
        """The words most like a vector, with their cosines."""
        cosine_W = self.vector_WD @ (vector_D / np.linalg.norm(vector_D))
        return [{"word": self.words[at], "cosine": float(cosine_W[at])} for at in np.argsort(-cosine_W, kind="stable")[:count]]


def spread(pads: PadVectors) -> dict[str, float]:
    """Share of the pads' variance that goes with the query, and with the position: 1 is all of it.

    A pad that says the same in every query has all its variance with the position; one that depends on the words alone, with the query.
    """
    centred_PD = pads.pad_PD - pads.pad_PD.mean(axis=0)
    total = float((centred_PD**2).sum())
    return {
        name: _between(centred_PD, label_P) / total if total > 0 else 0.0
        for name, label_P in (("query", pads.query_P), ("position", pads.position_P))
    }


def _between(centred_PD: npt.NDArray[Any], label_P: Int64) -> float:
    _, group_P = np.unique(label_P, return_inverse=True)
    counts = np.bincount(group_P)
    sums = np.zeros((len(counts), centred_PD.shape[1]))
    np.add.at(sums, group_P, centred_PD)
    return float(((sums**2).sum(axis=1) / counts).sum())


def nearest_own(queries: Sequence[QueryTokens]) -> dict[str, Any]:
    """What in its own query each pad resembles most (cosine): words, start or end, by kind and by word.

    `lift` of a word is how often a pad of its queries resembles it most, as a multiple of what an even choice among the words gives.
    """
    kinds: dict[str, int] = defaultdict(int)
    cosines: list[float] = []
    chosen: dict[str, float] = defaultdict(float)
    expected: dict[str, float] = defaultdict(float)
    for query in queries:
        real, pads = np.flatnonzero(~query.pad_Q), np.flatnonzero(query.pad_Q)
        if not len(pads) or not len(real):
            continue
        word_of = {token: number for number, word in enumerate(query.words) for token in range(word.start, word.stop)}
        cosine_PR = query.query_QD[pads] @ query.query_QD[real].T
        cosines += cosine_PR.max(axis=1).tolist()
        for at in real[cosine_PR.argmax(axis=1)].tolist():
            number = word_of.get(at)
            kinds["word" if number is not None else "start" if at == 0 else "end"] += 1
            if number is not None:
                chosen[query.words[number].text.lower()] += 1
        hits = sum(1 for at in real[cosine_PR.argmax(axis=1)].tolist() if at in word_of)
        for word in query.words:
            expected[word.text.lower()] += hits / len(query.words)
    total = sum(kinds.values())
    words = [{"word": word, "pads": int(chosen[word]), "lift": chosen[word] / expected[word]} for word in expected if expected[word] >= 5]
    return {
        "share_by_kind": {kind: count / total for kind, count in sorted(kinds.items())},
        "mean_cosine_to_nearest": float(np.mean(cosines)) if cosines else None,
        "words": sorted(words, key=lambda one: (-one["lift"], one["word"])),
    }


def spherical_clusters(vector_PD: npt.NDArray[Any], count: int, seed: int, rounds: int = 50) -> tuple[Int64, Float32]:
    """Spherical k-means: (cluster of each vector [P], unit centres [K, D]), largest cluster first; fewer where points coincide.

    Starts are spread as k-means++ spreads them, by 1 - cosine.
    """
    rng = np.random.default_rng(seed)
    centres = [vector_PD[int(rng.integers(len(vector_PD)))]]
    while len(centres) < min(count, len(vector_PD)):
        far_P = np.clip(1.0 - (vector_PD @ np.stack(centres).T).max(axis=1), 0.0, None).astype(np.float64)
        far_P[far_P < 1e-6] = 0.0
        if not far_P.any():
            break
        centres.append(vector_PD[int(rng.choice(len(vector_PD), p=far_P / far_P.sum()))])
    centre_KD = np.stack(centres).astype(np.float32)
    label_P = np.full(len(vector_PD), -1)
    for _ in range(rounds):
        now = (vector_PD @ centre_KD.T).argmax(axis=1)
        if np.array_equal(now, label_P):
            break
        label_P = now
        for number in range(len(centre_KD)):
            if (label_P == number).any():
                mean = vector_PD[label_P == number].mean(axis=0)
                centre_KD[number] = mean / max(float(np.linalg.norm(mean)), 1e-12)
    order = np.argsort(-np.bincount(label_P, minlength=len(centre_KD)), kind="stable")
    order = order[np.bincount(label_P, minlength=len(centre_KD))[order] > 0]
    place = np.empty(len(centre_KD), dtype=np.int64)
    place[order] = np.arange(len(order))
    return place[label_P], centre_KD[order]


def flat(vector_PD: npt.NDArray[Any], more_WD: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Both sets in the plane of the first two principal directions of the first."""
    mean = vector_PD.mean(axis=0)
    _, _, directions = np.linalg.svd(vector_PD - mean, full_matrices=False)
    axes = np.zeros((2, vector_PD.shape[1]))
    axes[: min(2, len(directions))] = directions[:2]
    return (vector_PD - mean) @ axes.T, (more_WD - mean) @ axes.T
