"""What pads learn: where they look, what they resemble, in which clusters they lie, and how they compare with explicit synonyms.

Shape letters: Q queries (or query tokens in `query_QD`), P pad vectors, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from vctool.errors import VctoolError
from vctool.evaluation.analysis import Analysis, Draws, Material, Progress
from vctool.evaluation.chart import Bars, Chart, Drawing, Series
from vctool.evaluation.explicit_expansion import compare_with_synonyms
from vctool.evaluation.html import Block, Figure, Section, Table, Text
from vctool.evaluation.pad_attention import pad_attention
from vctool.evaluation.pad_vectors import PadVectors, Vocabulary, flat, nearest_own, spherical_clusters, spread
from vctool.evaluation.query_pads import PaddedQueries, require_pads

# Enough queries for every mean here, few enough for their vectors to fit into memory many times over.
SAMPLE, ATTENTION_SAMPLE, VECTORS = 1000, 256, 20_000
_SHOWN = 8


def analyse_pads(
    material: Material,
    draws: Draws,
    synonyms: Mapping[str, Sequence[str]],
    *,
    clusters: int = 8,
    attention: bool = True,
    progress: Progress | None = None,
) -> Analysis:
    """Raises UsageProblem for a model with pooled queries, InputError if no query has a pad."""
    chosen = sampled(material, draws.seed)
    config = material.model.directory.config
    encoder = PaddedQueries(material.model.text, "on")
    queries = encoder.encode(chosen.split.query_texts)
    require_pads(encoder.lengths, config.query.max_length)
    pads, vocabulary = PadVectors.of(queries), Vocabulary.of(queries)
    looked, why_not = None, "it was not asked for"
    if attention:
        try:
            looked = pad_attention(material.model, queries[:ATTENTION_SAMPLE])
        except VctoolError as problem:
            why_not = problem.message
    grouped = _clusters(pads, vocabulary, clusters, draws.seed)
    alike = nearest_own(queries)
    compared, closeness = compare_with_synonyms(chosen, queries, synonyms, draws, progress)
    share = spread(pads)
    numbers: dict[str, Any] = {
        "queries": len(queries),
        "expand_of_the_model": config.query.expand,
        "pads_per_query": float(len(pads.pad_PD) / len(queries)),
        "variance_share": share,
        "attention": looked,
        "no_attention_because": None if looked else why_not,
        "nearest_own_token": alike,
        "clusters": grouped["clusters"],
        "explicit_expansion": compared,
        "synonym_closeness": closeness,
    }
    return Analysis(
        name="pads",
        title="What the pads learn",
        findings=tuple(_findings(numbers)),
        method=tuple(_method(numbers, draws)),
        numbers=numbers,
        sections=(
            Section("Where pads look", _attention_blocks(looked, why_not)),
            Section("What pads resemble", [*_alike_blocks(alike), *(Figure(one) for one in grouped["charts"]), _cluster_table(grouped)]),
            Section("Against explicit synonyms", _synonym_blocks(compared, closeness)),
        ),
    )


def sampled(material: Material, seed: int, count: int = SAMPLE) -> Material:
    """The material with at most `count` of its queries, drawn at random, in their order; the gallery stays whole."""
    queries = material.split.queries
    if len(queries) <= count:
        return material
    kept = np.sort(np.random.default_rng(seed).choice(len(queries), count, replace=False))
    return replace(material, split=replace(material.split, queries=tuple(queries[at] for at in kept.tolist())))


def _clusters(pads: PadVectors, vocabulary: Vocabulary, count: int, seed: int) -> dict[str, Any]:
    vector_PD, position_P, query_P = pads.pad_PD, pads.position_P, pads.query_P
    if len(vector_PD) > VECTORS:
        kept = np.sort(np.random.default_rng(seed).choice(len(vector_PD), VECTORS, replace=False))
        vector_PD, position_P, query_P = vector_PD[kept], position_P[kept], query_P[kept]
    label_P, centre_KD = spherical_clusters(vector_PD, count, seed)
    found: list[dict[str, Any]] = []
    for number, centre in enumerate(centre_KD):
        inside = label_P == number
        found.append(
            {
                "pads": int(inside.sum()),
                "queries": len(np.unique(query_P[inside])),
                "positions": [int(position_P[inside].min()), int(np.median(position_P[inside])), int(position_P[inside].max())],
                "mean_cosine_to_centre": float((vector_PD[inside] @ centre).mean()),
                "nearest_words": vocabulary.nearest(centre),
            }
        )
    flat_PE, flat_KE = flat(vector_PD, centre_KD)
    drawn = np.sort(np.random.default_rng(seed).choice(len(flat_PE), min(len(flat_PE), 600), replace=False))
    labels = [(float(x), float(y), str(one["nearest_words"][0]["word"])) for (x, y), one in zip(flat_KE, found, strict=True)]
    about = f"{len(drawn):,} pads in the plane of their two widest directions; the words stand at the centres of their clusters."
    plane = [Series("pads", flat_PE[drawn, 0].tolist(), flat_PE[drawn, 1].tolist(), kind="points")]
    chart = Chart("pads-clusters", "Pad vectors", "first direction", "second direction", plane, about, labels=labels)
    return {"clusters": found, "charts": [chart]}


def _findings(numbers: dict[str, Any]) -> list[str]:
    share, looked, alike = numbers["variance_share"], numbers["attention"], numbers["nearest_own_token"]
    said = []
    if looked:
        last = looked["layers"][-1]
        percent = {kind: f"{100 * value:.0f} %" for kind, value in (last | {"pads": last["itself"] + last["other pads"]}).items()}
        said.append(
            f"In the last layer pads give {percent['words']} of their attention to words, {percent['start']} to the start token, "
            f"{percent['end']} to the end token, {percent['pads']} to themselves and each other."
        )
        if looked["words"]:
            most, least = looked["words"][:4], looked["words"][-4:]
            ends = [", ".join(f"{one['word']} {one['lift']:.1f}×" for one in part) for part in (most, least)]
            said.append(f"Words looked at most: {ends[0]}; least: {ends[1]}.")
    else:
        said.append(f"No attention: {numbers['no_attention_because']}. What pads resemble is no measure of where they look.")
    kinds = ", ".join(f"{100 * value:.0f} % {kind}" for kind, value in alike["share_by_kind"].items())
    said.append(
        f"The token of its own query that a pad resembles most is ({kinds}), at a mean cosine of {alike['mean_cosine_to_nearest']:.2f}."
    )
    said.append(
        f"Of the variance of pad vectors {100 * share['query']:.0f} % goes with the query and {100 * share['position']:.0f} % with the "
        "position: " + ("pads carry the query on" if share["query"] > share["position"] else "pads say much the same in every query") + "."
    )
    compared, closeness = numbers["explicit_expansion"], numbers["synonym_closeness"]
    if compared is None:
        return [*said, "No query has a word with a synonym in the list: explicit expansion could not be compared."]
    lines = {one["tokens"]: one for one in compared["lines"]}
    gains = "; ".join(
        f"{name} {one['gain']:+.4f} ({one['gain_interval'][0]:+.4f} to {one['gain_interval'][1]:+.4f})"
        for name, one in lines.items()
        if name != "words"
    )
    said.append(f"Mean reciprocal rank against words alone ({lines['words']['mrr']:.4f}), {compared['queries']:,} queries: {gains}.")
    if closeness:
        said.append(
            f"The best pad has a cosine of {closeness['pad_to_synonym']:.2f} to a synonym of its query's words, "
            f"{closeness['pad_to_synonym_of_another_query']:.2f} to a synonym of words it does not have; the query's own words have "
            f"{closeness['own_word_to_synonym']:.2f} to the synonym."
        )
    return said


def _method(numbers: dict[str, Any], draws: Draws) -> list[str]:
    said = [
        f"{numbers['queries']:,} queries (at most {SAMPLE:,}, drawn with seed {draws.seed}), {numbers['pads_per_query']:.1f} pads each.",
        "Clusters are spherical k-means over pad vectors; nearest words are means of each word's vectors over the queries.",
        "Explicit expansion adds the vectors that a synonym has when it stands in the query in the place of its word (at most 4). "
        "“Another caption” adds a second human caption of the right clip: an upper mark that no search has.",
        f"Intervals: {draws.words}.",
    ]
    if numbers["attention"]:
        said.insert(
            1,
            f"Attention is that of the PyTorch model's text layers, mean over heads, on {numbers['attention']['queries']} of the queries; "
            "its outputs equal the graph's. Lift is attention per token, as a multiple of an even share among the words.",
        )
    return said


def _attention_blocks(looked: dict[str, Any] | None, why_not: str) -> list[Block]:
    if looked is None:
        return [Text(f"Attention could not be read: {why_not}.")]
    kinds = list(looked["share"])
    layers = [Series(f"layer {at}", (), [100 * layer[kind] for kind in kinds]) for at, layer in enumerate(looked["layers"], start=1)]
    charts: list[Drawing] = [
        Bars(
            "pads-attention", "Where pads look", "percent of their attention", kinds, layers, "Attention of pads, mean over heads and pads."
        ),
        Chart(
            "pads-attention-position",
            "Attention of pads to words",
            "number of the pad behind the text",
            "percent of its attention",
            [
                Series(
                    "to words",
                    [one["pad"] for one in looked["per_position"]],
                    [100 * one["share_to_words"] for one in looked["per_position"]],
                )
            ],
            "Share of attention in the last layer that goes to words, by the pad's place.",
        ),
    ]
    words = looked["words"]
    rows = [
        [one["word"], str(one["times"]), f"{one['lift']:.2f}"]
        for one in [*words[:_SHOWN], *words[-_SHOWN:][max(0, 2 * _SHOWN - len(words)) :]]
    ]
    table = Table("Words that pads look at most and least (last layer)", ["word", "queries", "lift"], rows)
    return [*(Figure(one) for one in charts), *([table] if rows else [])]


def _alike_blocks(alike: dict[str, Any]) -> list[Block]:
    rows = [[one["word"], str(one["pads"]), f"{one['lift']:.2f}"] for one in alike["words"][:_SHOWN]]
    if not rows:
        return []
    return [Table("Words that pads of their own query resemble most (similarity, not attention)", ["word", "pads", "lift"], rows)]


def _cluster_table(grouped: dict[str, Any]) -> Table:
    rows = [
        [
            ", ".join(f"{near['word']} {near['cosine']:.2f}" for near in one["nearest_words"]),
            f"{one['pads']:,}",
            f"{one['queries']:,}",
            "–".join(str(at) for at in (one["positions"][0], one["positions"][2])),
            f"{one['mean_cosine_to_centre']:.2f}",
        ]
        for one in grouped["clusters"]
    ]
    return Table("Clusters of pad vectors", ["nearest words (cosine)", "pads", "queries", "positions", "cosine to centre"], rows)


def _synonym_blocks(compared: dict[str, Any] | None, closeness: dict[str, Any] | None) -> list[Block]:
    if compared is None:
        return [Text("No query has a word with a synonym in the list.")]
    rows = [
        [
            one["tokens"],
            f"{one['tokens_per_query']:.1f}",
            f"{one['r1']:.1f}",
            f"{one['mrr']:.4f}",
            f"{one['gain']:+.4f}",
            f"{one['gain_interval'][0]:+.4f} to {one['gain_interval'][1]:+.4f}",
        ]
        for one in compared["lines"]
    ]
    header = ["counted tokens", "per query", "R@1", "MRR", "against words", "interval"]
    blocks: list[Block] = [Table(f"Text to video on {compared['queries']:,} queries that have a synonym", header, rows)]
    if closeness:
        near = [
            ["best pad to a synonym of its query", f"{closeness['pad_to_synonym']:.3f}"],
            ["the query's own words to that synonym", f"{closeness['own_word_to_synonym']:.3f}"],
            ["best pad to a synonym of words it does not have", f"{closeness['pad_to_synonym_of_another_query']:.3f}"],
        ]
        blocks.append(Table(f"Cosines, {closeness['pairs']:,} pairs", ["between", "mean"], near))
    return blocks
