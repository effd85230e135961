"""Metrics by query length, and the length at which soft query expansion turns from help to harm.

Every query is scored twice against the same store: with its pads counted and with them left out. Shape letters: Q queries.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from vctool.evaluation.analysis import Analysis, Draws, Float64, Int64, Material, Progress
from vctool.evaluation.chart import Chart, Series
from vctool.evaluation.html import Figure, Section, Table
from vctool.evaluation.query_pads import PaddedQueries, require_pads

_SMALLEST_BIN, _BINS = 20, 12


@dataclass(frozen=True)
class TurningPoint:
    """Up to which query length pads should count. limit: in true tokens; 0 if they never help, the longest length if always.

    low, high: interval of the limit. never, always: shares of the resamples in which pads never or always helped.
    shortest, longest: lengths in the data.
    """

    limit: int
    low: int
    high: int
    never: float
    always: float
    shortest: int
    longest: int

    @property
    def inside(self) -> bool:
        """Whether pads help some queries and harm longer ones."""
        return self.shortest <= self.limit < self.longest

    def to_dict(self) -> dict[str, Any]:
        return {
            "limit_tokens": self.limit,
            "interval": [self.low, self.high],
            "resamples_where_pads_never_help": self.never,
            "resamples_where_pads_always_help": self.always,
            "shortest_query": self.shortest,
            "longest_query": self.longest,
            "turns_inside_the_data": self.inside,
        }


def best_limit(length_Q: Int64, gain_Q: Float64, weight_Q: Float64 | None = None) -> int:
    """The limit L with the largest summed gain over queries of length <= L: where `expand = "auto"` should cut. 0: never.

    gain_Q: what pads add to each query. Equal sums give the shortest limit.
    """
    summed = np.cumsum(np.bincount(length_Q, gain_Q if weight_Q is None else gain_Q * weight_Q))
    best = int(np.argmax(np.round(summed, 12)))  # index 0 holds the empty sum: no query has length 0
    return best if summed[best] > 1e-12 else 0


def turning_point(length_Q: Int64, gain_Q: Float64, groups_Q: Int64, draws: Draws) -> TurningPoint:
    """`best_limit` with its bootstrap interval over groups of queries."""
    limits = np.asarray([best_limit(length_Q, gain_Q, weight_Q) for weight_Q in draws.weights(groups_Q)])
    low, high = draws.interval(limits)
    shortest, longest = int(length_Q.min()), int(length_Q.max())
    never, always = float(np.mean(limits < shortest)), float(np.mean(limits >= longest))
    return TurningPoint(best_limit(length_Q, gain_Q), round(low), round(high), never, always, shortest, longest)


def length_bins(length_Q: Int64, smallest: int = _SMALLEST_BIN, bins: int = _BINS) -> list[tuple[int, int]]:
    """Ranges (first, last) of lengths with at least `smallest` queries each (all in one if there are fewer), about `bins` of them."""
    wanted = max(smallest, -(-len(length_Q) // bins))
    counts = np.bincount(length_Q)
    found: list[tuple[int, int]] = []
    first, held = int(length_Q.min()), 0
    for length in range(first, len(counts)):
        held += int(counts[length])
        if held >= wanted:
            found.append((first, length))
            first, held = length + 1, 0
    if held:
        if found and held < smallest:
            found[-1] = (found[-1][0], len(counts) - 1)
        else:
            found.append((first, len(counts) - 1))
    return found


def analyse_length(material: Material, draws: Draws, progress: Progress | None = None) -> Analysis:
    """Raises UsageProblem for a model with pooled queries, InputError if no query has a pad."""
    branch, config = material.branch, material.model.directory.config
    encoders = {pads: PaddedQueries(material.model.text, pads) for pads in ("on", "off")}
    metrics = {}
    for pads, encoder in encoders.items():
        with material.scored([branch], encoder, progress) as scores:
            metrics[pads] = material.ranked(scores[branch])
    length_Q = np.asarray(encoders["on"].lengths, dtype=np.int64)
    require_pads(encoders["on"].lengths, config.query.max_length)
    on, off = metrics["on"].per_query, metrics["off"].per_query
    gain_Q = on.reciprocal - off.reciprocal
    groups_Q = material.clip_of_query
    turn = turning_point(length_Q, gain_Q, groups_Q, draws)

    bins = length_bins(length_Q)
    values = {
        "on": on.reciprocal,
        "off": off.reciprocal,
        "gain": gain_Q,
        "r1_on": 100.0 * (on.rank <= 1),
        "r1_off": 100.0 * (off.rank <= 1),
    }
    inside = [(length_Q >= first) & (length_Q <= last) for first, last in bins]
    everyone = np.ones_like(inside[0])
    stacked = [value_Q for value_Q in values.values() for _ in bins]
    held_Q = held_out_limit(length_Q, gain_Q, groups_Q)
    # What leaving pads out beyond a limit gains over always counting them: the harm that they do there.
    spared_Q = np.where(held_Q, 0.0, -gain_Q)
    drawn = draws.means([*stacked, gain_Q, spared_Q], [*(inside * len(values)), everyone, everyone], groups_Q)
    rows = []
    for at, ((first, last), chosen) in enumerate(zip(bins, inside, strict=True)):
        row: dict[str, Any] = {"first": first, "last": last, "queries": int(chosen.sum()), "mean_length": float(length_Q[chosen].mean())}
        for number, (name, value_Q) in enumerate(values.items()):
            row[name] = float(value_Q[chosen].mean())
            row[f"{name}_interval"] = list(draws.interval(drawn[:, number * len(bins) + at]))
        row |= {f"ndcg10_{pads}": float(metrics[pads].per_query.ndcg[chosen].mean()) for pads in metrics}
        row |= {f"median_rank_{pads}": float(np.median(metrics[pads].ranks[chosen])) for pads in metrics}
        rows.append(row)
    mean = {
        "pads_on": float(on.reciprocal.mean()),
        "pads_off": float(off.reciprocal.mean()),
        "pads_up_to_the_limit": float(np.where(length_Q <= turn.limit, on.reciprocal, off.reciprocal).mean()),
        "pads_up_to_a_held_out_limit": float((off.reciprocal + np.where(held_Q, gain_Q, 0.0)).mean()),
    }
    gain_interval, spared_interval = draws.interval(drawn[:, -2]), draws.interval(drawn[:, -1])
    numbers = {
        "expand_of_the_model": config.query.expand,
        "text_length": config.query.max_length,
        "turning_point": turn.to_dict(),
        "bins": rows,
        "mean_reciprocal_rank": mean,
        "gain": float(gain_Q.mean()),
        "gain_interval": list(gain_interval),
        "held_out_limit_against_always": float(spared_Q.mean()),
        "held_out_limit_against_always_interval": list(spared_interval),
        "harm_to_long_queries_established": turn.inside and spared_interval[0] > 0,
        "r1": {pads: metrics[pads].r1 for pads in metrics},
    }
    return Analysis(
        name="length",
        title="Retrieval by query length",
        findings=tuple(_findings(turn, numbers, gain_interval, config.query.expand)),
        method=(
            "Length is the number of true tokens of a query as its tokenizer counts them, start and end included, pads not.",
            "Each query is scored with its pads counted and with them left out, against the same tokens. Gain is the difference in "
            "reciprocal rank (1 if the right clip is first, 1/2 if second).",
            "The turning point is the limit up to which counting pads gives the highest mean reciprocal rank; its interval is a "
            f"{draws.words}. The held-out limit is chosen on one half of the clips and used on the other, both ways.",
        ),
        numbers=numbers,
        sections=(
            Section("By length", [*(Figure(one) for one in _charts(rows, turn, draws)), _table(rows)]),
            Section("Where to stop counting pads", [_limits(mean)]),
        ),
    )


def held_out_limit(length_Q: Int64, gain_Q: Float64, groups_Q: Int64) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Whether each query would count its pads under the limit that the other half of the clips gives, bool [Q]."""
    half_Q = groups_Q % 2 == 0
    used_Q = np.zeros(len(length_Q), dtype=np.bool_)
    for half in (half_Q, ~half_Q):
        if half.any() and not half.all():
            used_Q[half] = length_Q[half] <= best_limit(length_Q[~half], gain_Q[~half])
    return used_Q


def _findings(turn: TurningPoint, numbers: dict[str, Any], gain: tuple[float, float], expand: str) -> list[str]:
    said = []
    if turn.inside:
        spared, ends = numbers["held_out_limit_against_always"], numbers["held_out_limit_against_always_interval"]
        harm = (
            "pads do harm longer queries"
            if numbers["harm_to_long_queries_established"]
            else "that they harm longer ones is not established"
        )
        said.append(
            f"Summed over queries up to a length, pads help most at {turn.limit} tokens (interval {turn.low} to {turn.high}; the data has "
            f"{turn.shortest} to {turn.longest}). Leaving pads out beyond a limit chosen on the other half of the clips changes the mean "
            f"reciprocal rank by {spared:+.4f} ({ends[0]:+.4f} to {ends[1]:+.4f}): {harm}."
        )
    elif turn.limit:
        said.append(
            f"No turning point: pads help, summed up to any length, to the longest query ({turn.longest} tokens). "
            f"{100 * turn.always:.0f} % of the resamples agree; interval of the limit {turn.low} to {turn.high}."
        )
    else:
        said.append(f"Pads never help, at no length; {100 * turn.never:.0f} % of the resamples agree.")
    if turn.low <= turn.shortest and turn.high >= turn.longest:
        said.append("The interval spans all lengths: these queries cannot tell where pads stop helping.")
    certain = "more than chance" if gain[0] > 0 or gain[1] < 0 else "no more than chance"
    said.append(
        f"Over all queries counting pads changes the mean reciprocal rank by {numbers['gain']:+.4f} ({gain[0]:+.4f} to {gain[1]:+.4f}, "
        f"{certain}), R@1 from {numbers['r1']['off']:.1f} to {numbers['r1']['on']:.1f}."
    )
    if expand == "off":
        said.append("The model was made with expansion off: its pads were never trained to be counted.")
    else:
        said.append(
            f"The model was trained with expansion {expand}: leaving pads out takes away what it learned to rely on, so this is not the "
            "gain over a model trained without pads."
        )
    return said


def _charts(rows: list[dict[str, Any]], turn: TurningPoint, draws: Draws) -> list[Chart]:
    x = [row["mean_length"] for row in rows]

    def series(title: str, key: str) -> Series:
        low, high = ([row[f"{key}_interval"][end] for row in rows] for end in (0, 1))
        return Series(title, x, [row[key] for row in rows], low, high)

    marks = [(float(turn.limit), f"pads up to {turn.limit}")] if turn.inside else []
    shaded = (float(max(turn.low, turn.shortest)), float(turn.high)) if turn.inside else None
    grey = " The upright line is the turning point, the grey band its interval." if turn.inside else ""
    label = "true tokens of the query"
    return [
        Chart(
            "length-gain",
            "What counting pads adds",
            label,
            "gain in reciprocal rank",
            [series("gain", "gain")],
            f"Mean gain in reciprocal rank from counting pads; band: {draws.words}.{grey}",
            marks=marks,
            shaded=shaded,
        ),
        Chart(
            "length-r1",
            "R@1 by query length",
            label,
            "R@1 in percent",
            [series("pads counted", "r1_on"), series("pads left out", "r1_off")],
            "R@1 of text to video with pads counted and left out.",
        ),
    ]


def _table(rows: list[dict[str, Any]]) -> Table:
    header = ["tokens", "queries", "R@1 on", "R@1 off", "MRR on", "MRR off", "gain", "interval", "nDCG@10 on", "nDCG@10 off"]
    cells = [
        [
            f"{row['first']}–{row['last']}" if row["first"] != row["last"] else str(row["first"]),
            f"{row['queries']:,}",
            f"{row['r1_on']:.1f}",
            f"{row['r1_off']:.1f}",
            f"{row['on']:.4f}",
            f"{row['off']:.4f}",
            f"{row['gain']:+.4f}",
            f"{row['gain_interval'][0]:+.4f} to {row['gain_interval'][1]:+.4f}",
            f"{row['ndcg10_on']:.4f}",
            f"{row['ndcg10_off']:.4f}",
        ]
        for row in rows
    ]
    return Table("Text to video by query length, pads counted (on) and left out (off)", header, cells)


def _limits(mean: dict[str, float]) -> Table:
    names = {
        "pads_on": "pads always counted",
        "pads_off": "pads never counted",
        "pads_up_to_the_limit": "pads up to the turning point (chosen on these queries: flattered)",
        "pads_up_to_a_held_out_limit": "pads up to a limit chosen on the other half of the clips",
    }
    return Table("Mean reciprocal rank over all queries", ["pads", "MRR"], [[names[key], f"{value:.4f}"] for key, value in mean.items()])
