"""A result for people: tables on a terminal or in Markdown, with intervals, ties and post-processing kept apart."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vctool.errors import InputError
from vctool.evaluation.comparison import Compared
from vctool.evaluation.failures import clips_of
from vctool.evaluation.protocols import Protocol
from vctool.evaluation.result import TASKS, Evaluation, Line, save_result
from vctool.metrics import METRIC_NAMES

RESULT_FILE = "result.json"
REPORT_FILE = "report.md"
PAGE_FILE = "report.html"
SCALES = "R@K and the geometric mean are percentages, MRR, mAP and nDCG@10 are 0 to 1, MdR and MnR are ranks from 1."
# Digits that mean something for a thousand queries; recall is in percent, the rest has two.
_DIGITS = {"R@1": 1, "R@5": 1, "R@10": 1, "R@50": 1, "MRR": 4, "mAP": 4, "nDCG@10": 4, "p": 4}
_TITLES = {"geometric_mean": "geo. mean"}


def number(name: str, value: float) -> str:
    """A metric's value with the digits that mean something."""
    return f"{value:.{_DIGITS.get(name, 2)}f}"


def title(name: str) -> str:
    """A metric's column title."""
    return _TITLES.get(name, name)


def metric_rows(lines: Iterable[Line]) -> list[list[str]]:
    """[task, branch, metrics…] per line, with optimistic and pessimistic rows below a line whose ties make them differ."""
    rows: list[list[str]] = []
    for line in lines:
        rows.append([line.task, line.branch, *(number(name, line.metrics.values()[name]) for name in METRIC_NAMES)])
        if line.metrics.tied_queries:
            rows += [
                ["", what, *(number(name, values[name]) for name in METRIC_NAMES)]
                for what, values in (("optimistic", line.metrics.optimistic()), ("pessimistic", line.metrics.pessimistic()))
            ]
    return rows


def interval_rows(lines: Iterable[Line]) -> list[list[str]]:
    """[task, branch, low to high per metric…] per line that has intervals."""
    return [
        [line.task, line.branch, *("–".join(number(name, bound) for bound in line.intervals[name]) for name in METRIC_NAMES)]
        for line in lines
        if line.intervals
    ]


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; bars in cells are escaped, first column left, the rest right."""
    shown = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in [header, *rows]]
    rule = ["---", *("---:" for _ in header[1:])]
    return "\n".join("| " + " | ".join(row) + " |" for row in [shown[0], rule, *shown[1:]]) + "\n"


def markdown(evaluation: Evaluation) -> str:
    """The whole report as Markdown."""
    protocol = evaluation.protocol
    metrics = [title(name) for name in METRIC_NAMES]
    parts = [f"# {protocol.name}: {subject_name(evaluation.subject)}\n"]
    parts.append(_facts(protocol_facts(evaluation)))
    parts.append("## Metrics\n")
    parts.append(markdown_table(["task", "branch", *metrics], metric_rows(evaluation.lines)))
    parts.append(f"{SCALES}\n")
    parts.append("".join(f"- `{task}`: {TASKS[task]}\n" for task in dict.fromkeys(line.task for line in evaluation.lines)))
    intervals = interval_rows(evaluation.lines)
    if intervals:
        parts.append(f"## {100 * float(evaluation.settings['level']):g} % intervals\n")
        parts.append(f"{interval_words(evaluation)}.\n")
        parts.append(markdown_table(["task", "branch", *metrics], intervals))
    if evaluation.postprocessed:
        parts.append("## With post-processing (not comparable with the metrics above)\n")
        rows = [[post.label, post.line.branch, *metric_rows([post.line])[0][2:]] for post in evaluation.postprocessed]
        parts.append(markdown_table(["post-processing", "branch", *metrics], rows))
        parts.append("".join(f"- {words}\n" for words in postprocess_words(evaluation)))
    if evaluation.notes or protocol.departures:
        parts.append("## Notes\n")
        parts.append("".join(f"- {note}\n" for note in (*protocol.departures, *evaluation.notes)))
    parts.append("## Made with\n")
    parts.append(_facts((name, f"`{value}`" if name == "Command" else value) for name, value in environment_facts(evaluation)))
    return "\n".join(parts)


def interval_words(evaluation: Evaluation) -> str:
    """How the intervals were made."""
    what, resamples, seed, level = (evaluation.settings[key] for key in ("resample", "resamples", "seed", "level"))
    return f"{100 * float(level):g} % intervals by the percentile bootstrap over {what}, {resamples:,} resamples, seed {seed}"


def postprocess_words(evaluation: Evaluation) -> list[str]:
    """One sentence per post-processing: its parameters, and whether live search could use it."""
    words = []
    for post in {post.name: post for post in evaluation.postprocessed}.values():
        fit = "usable in live search" if post.live else "NOT usable in live search"
        given = ", ".join(f"{key} {value:g}" for key, value in post.parameters.items())
        words.append(f"{post.label} ({given}): {fit}: {post.warning}")
    return words


def write_report(
    evaluation: Evaluation, folder: Path, *, workers: int = 1, progress: Callable[[int, int], None] | None = None
) -> list[Path]:
    """Write `result.json` (all numbers, ranks per query), `report.md` and `report.html` into `folder`, made if need be.

    workers: processes that decode the clips of the gallery; progress(done, total) is called for each of these clips.
    """
    from vctool.evaluation.contact_sheet import contact_sheets, place_ids
    from vctool.evaluation.html_report import html_report

    wanted = place_ids(clips_of(evaluation.failures), evaluation.places)
    sheets = contact_sheets(wanted, workers=workers, progress=progress) if wanted else {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_result(evaluation, folder / RESULT_FILE)
        (folder / REPORT_FILE).write_text(markdown(evaluation), encoding="utf-8")
        (folder / PAGE_FILE).write_text(html_report(evaluation, sheets), encoding="utf-8")
    except OSError as problem:
        raise InputError(f"{folder}: the report cannot be written: {problem.strerror or problem}") from None
    return [folder / name for name in (RESULT_FILE, REPORT_FILE, PAGE_FILE)]


def compared_markdown(compared: Compared) -> str:
    """A comparison as Markdown."""
    parts = [f"# {compared.name_b} against {compared.name_a}\n", comparison_table(compared)]
    parts.append(f"{compared.queries} queries: {len(compared.won)} won, {len(compared.lost)} lost, {compared.equal} equal.\n")
    for what, rows in (("Won", compared.won), ("Lost", compared.lost)):
        if rows:
            parts.append(f"## {what}\n")
            cells = [[row.text, row.clip, f"{row.rank_a:g}", f"{row.rank_b:g}"] for row in rows]
            parts.append(markdown_table(["query", "right clip", "rank in A", "rank in B"], cells))
    return "\n".join(parts)


def comparison_table(compared: Compared) -> str:
    """The differences as a Markdown table."""
    level = f"{100 * compared.level:g} % interval"
    return markdown_table(["metric", "A", "B", "B - A", level, "p"], comparison_rows(compared))


def comparison_rows(compared: Compared) -> list[list[str]]:
    """[metric, A, B, B - A, interval, p] per metric."""
    return [
        [
            title(one.metric),
            number(one.metric, one.a),
            number(one.metric, one.b),
            _signed(one.metric, one.difference),
            f"{_signed(one.metric, one.low)} to {_signed(one.metric, one.high)}",
            "–" if one.p_value is None else number("p", one.p_value),
        ]
        for one in sorted(compared.differences, key=lambda one: METRIC_NAMES.index(one.metric))
    ]


def _signed(name: str, value: float) -> str:
    return ("+" if value > 0 else "-" if value < 0 else "") + number(name, abs(value))


def subject_name(subject: Mapping[str, Any]) -> str:
    """What was scored, in a word."""
    model = subject.get("model")
    return str(model["name"]) if isinstance(model, Mapping) else str(subject.get("file", "scores"))


def protocol_facts(evaluation: Evaluation) -> list[tuple[str, str]]:
    """The protocol of an evaluation as names and values."""
    return protocol_rows(evaluation.protocol)


def protocol_rows(protocol: Protocol) -> list[tuple[str, str]]:
    """A protocol as names and values."""
    facts = [
        ("Protocol", protocol.name),
        ("Captions", protocol.captions),
        ("Queries, clips", f"{protocol.queries:,}, {protocol.clips:,}"),
        ("Split", f"{protocol.statement}; SHA-256 of the ids {protocol.ids_sha256}"),
    ]
    if protocol.frames is not None:
        facts.append(("Frames per clip", str(protocol.frames)))
    if protocol.text_length is not None:
        facts.append(("Text length", f"{protocol.text_length} tokens"))
    return [*facts, ("Ties", "expected rank: 1 + clips scored above + half of the other clips scored equal")]


def environment_facts(evaluation: Evaluation) -> list[tuple[str, str]]:
    """What an evaluation was made from and with, as names and values."""
    sources = [(f"Source {name}", f"SHA-256 {digest}") for name, digest in evaluation.sources.items()]
    return [*subject_facts(evaluation.subject), *sources, *hardware_facts(evaluation.environment)]


def subject_facts(subject: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Model and store, or matrix, with their hashes."""
    facts: list[tuple[str, str]] = []
    model = subject.get("model")
    if isinstance(model, Mapping):
        facts.append(("Model", f"{model['name']}, SHA-256 {model['sha256']}, interaction {model['interaction']}"))
        facts.append(("Query tokens", f"{subject['query_policy']}, expansion {subject['expand']}"))
    if "store" in subject:
        store = subject["store"]
        facts.append(("Store", f"{store['clips']:,} clips, {store['dtype']}, content {store.get('sha256', 'unknown')}"))
    if "sha256" in subject:
        facts.append(("Scores", f"{subject['file']}, SHA-256 {subject['sha256']}"))
    return facts


def hardware_facts(made: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Versions, hardware, seed and command, as `environment` gives them."""
    if not made:
        return []
    hardware = made["hardware"]
    return [
        ("Versions", ", ".join(f"{name} {version}" for name, version in made["versions"].items())),
        ("Hardware", f"{hardware['processor']}, {hardware['cores']} cores, {hardware['system']}"),
        ("Seed", str(made["seed"])),
        ("Command", str(made["command"])),
        ("Made", str(made["created"])),
    ]


def _facts(facts: Iterable[tuple[str, str]]) -> str:
    return "".join(f"- {name}: {value}\n" for name, value in facts)
