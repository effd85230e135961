"""Evaluate score matrices: metrics, intervals and labelled post-processing of every branch. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from vctool.data import Located, Split
from vctool.errors import UsageProblem
from vctool.evaluation.environment import environment, file_hashes, file_sha256
from vctool.evaluation.failures import Failure, worst_queries
from vctool.evaluation.matrix_files import Matrix
from vctool.evaluation.protocols import protocol_of
from vctool.evaluation.result import Evaluation, Line, PostProcessedLine
from vctool.metrics import (
    POSTPROCESSES,
    DualSoftmax,
    QueryBankNorm,
    RankingMetrics,
    ScoreMatrix,
    Sinkhorn,
    as_relevance,
    bootstrap_intervals,
    evaluate_ranking,
    v2t_caption,
    v2t_group,
)

MATRIX_BRANCH = "sims"


@dataclass(frozen=True)
class Settings:
    """How metrics are made.

    resamples: of the bootstrap, 0 for no intervals; level of the interval; seed. resample: whole `queries`, or `clips`
    with all their captions. postprocess: names of POSTPROCESSES. v2t: report video-to-text. gallery: how many of the worst
    queries to keep. The rest are parameters of post-processing.
    """

    resamples: int = 2000
    level: float = 0.95
    seed: int = 0
    resample: str = "queries"
    postprocess: tuple[str, ...] = ()
    dsl_temperature: float = 100.0
    sinkhorn_temperature: float = 100.0
    sinkhorn_iterations: int = 4
    qbnorm_beta: float = 20.0
    qbnorm_k: int = 1
    v2t: bool = True
    gallery: int = 8

    def __post_init__(self) -> None:
        unknown = [name for name in self.postprocess if name not in POSTPROCESSES]
        if unknown:
            raise UsageProblem(f"unknown post-processing '{unknown[0]}'", f"known: {', '.join(POSTPROCESSES)}")
        if self.resample not in ("queries", "clips"):
            raise UsageProblem(f"cannot resample '{self.resample}'", "resample queries or clips")


DEFAULTS = Settings()


@dataclass(frozen=True)
class Bank:
    """Queries for QB-Norm: texts to be scored, or scores made elsewhere [P, N]."""

    texts: tuple[str, ...] = ()
    scores: npt.NDArray[Any] | None = None


@dataclass(frozen=True)
class Subject:
    """What was scored, and what its branches are. facts: names and hashes for the report. places: the clips' videos."""

    facts: Mapping[str, Any]
    primary: str
    frames: int | None = None
    text_length: int | None = None
    notes: tuple[str, ...] = field(default=())
    places: Mapping[str, Located] = field(default_factory=dict)


def evaluate_scores(
    scores: Mapping[str, ScoreMatrix],
    split: Split,
    subject: Subject,
    settings: Settings = DEFAULTS,
    bank: Mapping[str, ScoreMatrix] | None = None,
) -> Evaluation:
    """Metrics of one score matrix [Q, N] per branch over the queries and clips of a split, in its order.

    bank: per branch, scores of the bank queries against the same clips, for QB-Norm. Raises InputError on NaN (naming the
    query), UsageProblem if QB-Norm is asked for without a bank.
    """
    names = [query.text for query in split.queries]
    sets = as_relevance(split.relevance(), len(split.clips), queries=len(split.queries), names=names)
    lines: list[Line] = []
    posts: list[PostProcessedLine] = []
    failures: tuple[Failure, ...] = ()
    right = np.asarray([query.clips[0][0] for query in split.queries], dtype=np.int64)
    groups = right if settings.resample == "clips" else None
    for branch, sims in scores.items():
        plain = evaluate_ranking(sims, sets, query_names=names)
        lines.append(_line("t2v", branch, plain, settings, groups))
        if branch == subject.primary:
            failures = worst_queries(sims, split, plain.ranks, settings.gallery)
        if settings.v2t:
            if sets.single:
                lines.append(_line("v2t_group", branch, v2t_group(sims, sets.columns, clip_names=split.clip_ids), settings))
            lines.append(_line("v2t_caption", branch, v2t_caption(sims, sets, clip_names=split.clip_ids), settings))
        for name in settings.postprocess:
            matrix, parameters = _postprocessed(name, sims, settings, None if bank is None else bank.get(branch))
            metrics = evaluate_ranking(matrix, sets, query_names=names)
            about = POSTPROCESSES[name]
            line = _line("t2v", branch, metrics, settings, groups)
            posts.append(PostProcessedLine(name, about.label, about.live, about.warning, parameters, line))
    notes = [*split.notes, *subject.notes]
    duplicates = split.duplicate_captions()
    if duplicates:
        notes.append(f"{duplicates} queries repeat the text of another one: they cannot all be right at rank 1")
    tied = max((line.metrics.tied_queries for line in lines if line.task == "t2v"), default=0)
    if tied:
        notes.append(f"up to {tied} queries have ties: their rank is the expected one; optimistic and pessimistic values are given")
    return Evaluation(
        protocol=protocol_of(split, subject.frames, subject.text_length),
        primary=subject.primary,
        lines=tuple(lines),
        postprocessed=tuple(posts),
        subject=subject.facts,
        sources=file_hashes(split.sources),
        settings=asdict(settings) | {"postprocess": list(settings.postprocess)},
        notes=tuple(notes),
        query_ids=[query.id for query in split.queries],
        query_texts=names,
        right_clips=[split.clips[at].id for at in right],
        environment=environment(settings.seed),
        failures=failures,
        places=subject.places or {clip.id: Located(clip.path, clip.start, clip.end) for clip in split.clips if clip.path is not None},
    )


def _line(task: str, branch: str, metrics: RankingMetrics, settings: Settings, groups: npt.NDArray[np.int64] | None = None) -> Line:
    intervals: Mapping[str, tuple[float, float]] = {}
    if settings.resamples:
        intervals = bootstrap_intervals(metrics, resamples=settings.resamples, level=settings.level, seed=settings.seed, groups=groups)
    return Line(task, branch, metrics, intervals)


def _postprocessed(name: str, sims: ScoreMatrix, settings: Settings, bank: ScoreMatrix | None) -> tuple[ScoreMatrix, dict[str, float]]:
    if name == "dsl":
        return DualSoftmax(sims, settings.dsl_temperature), {"temperature": settings.dsl_temperature}
    if name == "sinkhorn":
        parameters: dict[str, float] = {"temperature": settings.sinkhorn_temperature, "iterations": settings.sinkhorn_iterations}
        return Sinkhorn(sims, settings.sinkhorn_temperature, settings.sinkhorn_iterations), parameters
    if bank is None:
        raise UsageProblem("QB-Norm needs a bank of earlier queries", "give training captions or their scores with --bank FILE")
    parameters = {"beta": settings.qbnorm_beta, "k": settings.qbnorm_k, "bank_queries": int(bank.shape[0])}
    return QueryBankNorm(sims, bank, settings.qbnorm_beta, settings.qbnorm_k), parameters


def evaluate_matrix(matrix: Matrix, settings: Settings = DEFAULTS, bank: Bank | None = None) -> Evaluation:
    """Somebody's similarity matrix, of any system."""
    if bank is not None and bank.scores is None:
        raise UsageProblem("a bare matrix needs its query bank as scores", "give --bank BANK.npy, bank queries by the same clips")
    facts = {"kind": "matrix", "file": matrix.path.name, "sha256": file_sha256(matrix.path)}
    banks = None if bank is None or bank.scores is None else {MATRIX_BRANCH: bank.scores}
    return evaluate_scores({MATRIX_BRANCH: matrix.sims}, matrix.split, Subject(facts, MATRIX_BRANCH), settings, banks)
