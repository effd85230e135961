"""An evaluation as one self-contained HTML page: tables, intervals, plots, the worst queries, and how it was made."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from vctool.evaluation.chart import Bars, Chart, Series
from vctool.evaluation.gallery import Sheets, failure_gallery
from vctool.evaluation.html import Block, Bullets, Facts, Figure, Section, Table, Text, page
from vctool.evaluation.report import (
    SCALES,
    environment_facts,
    interval_rows,
    interval_words,
    metric_rows,
    number,
    postprocess_words,
    protocol_facts,
    subject_name,
    title,
)
from vctool.evaluation.result import TASKS, Evaluation, Line
from vctool.metrics import METRIC_NAMES

_CUTS = (1, 5, 10)


def html_report(evaluation: Evaluation, sheets: Sheets | None = None) -> str:
    """The page. sheets: contact sheets, or the reason for none, by clip id, for the gallery of the worst queries."""
    primary = evaluation.line("t2v")
    r1 = f"Text to video R@1 {number('R@1', primary.metrics.r1)} on branch {primary.branch}"
    if primary.intervals:
        r1 += f" ({interval_words(evaluation)}: {'–'.join(number('R@1', end) for end in primary.intervals['R@1'])})"
    protocol = evaluation.protocol
    lead = [f"{r1}, {protocol.queries:,} queries, {protocol.clips:,} clips. {_capital(protocol.statement)}."]
    sections = [
        Section("Protocol", [Facts(protocol_facts(evaluation))]),
        Section("Metrics", [*_task_tables(evaluation), Text(SCALES)]),
        Section("Plots", list(_plots(evaluation))),
    ]
    rows = interval_rows(evaluation.lines)
    if rows:
        header = ["task", "branch", *(title(name) for name in METRIC_NAMES)]
        sections.append(Section("Intervals", [Table(_capital(interval_words(evaluation)), header, rows)]))
    if evaluation.postprocessed:
        header = ["post-processing", "branch", *(title(name) for name in METRIC_NAMES)]
        rows = [[post.label, post.line.branch, *metric_rows([post.line])[0][2:]] for post in evaluation.postprocessed]
        blocks: list[Block] = [Table("Text to video after post-processing", header, rows), Bullets(postprocess_words(evaluation))]
        sections.append(Section("With post-processing: not comparable with the metrics above", blocks))
    notes = [*protocol.departures, *evaluation.notes]
    if notes:
        sections.append(Section("Notes", [Bullets(notes)]))
    if evaluation.failures:
        words = Text(f"The queries whose right clip has the worst rank on branch {evaluation.primary}.")
        sections.append(Section("Worst queries", [words, *failure_gallery(evaluation.failures, sheets or {})]))
    sections.append(Section("Made with", [Facts(environment_facts(evaluation))]))
    return page(f"{protocol.name}: {subject_name(evaluation.subject)}", lead, sections)


def _task_tables(evaluation: Evaluation) -> Iterable[Block]:
    for task, meaning in TASKS.items():
        lines = [line for line in evaluation.lines if line.task == task]
        if lines:
            rows = [row[1:] for row in metric_rows(lines)]
            yield Table(f"{task}: {meaning}", ["branch", *(title(name) for name in METRIC_NAMES)], rows)


def _plots(evaluation: Evaluation) -> Iterable[Block]:
    lines = [line for line in evaluation.lines if line.task == "t2v"]
    yield Figure(_recall_bars(lines, interval_words(evaluation)))
    yield Figure(_rank_curve(lines))


def _recall_bars(lines: list[Line], words: str) -> Bars:
    names = [f"R@{k}" for k in _CUTS]
    series = [
        Series(
            line.branch,
            (),
            [line.metrics.values()[name] for name in names],
            [line.intervals[name][0] for name in names] if line.intervals else (),
            [line.intervals[name][1] for name in names] if line.intervals else (),
        )
        for line in lines
    ]
    spread = f" Thin lines: {words}." if lines[0].intervals else ""
    about = f"Recall of text to video at 1, 5 and 10.{spread}"
    return Bars("recall", "Recall, text to video", "percent of queries", names, series, about, (0.0, 100.0))


def _rank_curve(lines: list[Line]) -> Chart:
    series = []
    for line in lines:
        ranks, counts = np.unique(np.ceil(line.metrics.ranks), return_counts=True)
        share = 100.0 * np.cumsum(counts) / len(line.metrics.ranks)
        # At most 200 points: the curve of 50,000 queries must not weigh more than the page.
        kept = np.unique(np.geomspace(1, len(ranks), min(len(ranks), 200)).round().astype(int) - 1)
        series.append(Series(line.branch, ranks[kept].tolist(), share[kept].tolist()))
    about = "Share of queries whose right clip is at a rank or above it: at 1 it is R@1, at 10 R@10."
    return Chart("ranks", "How deep one has to look", "rank", "percent of queries", series, about, "x", y_range=(0.0, 100.0))


def _capital(words: str) -> str:
    return words[:1].upper() + words[1:]
