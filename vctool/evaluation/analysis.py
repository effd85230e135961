"""What every analysis starts from and ends in: a split scored against a store, and a report folder with numbers and plots.

Shape letters: Q queries, N clips.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from vctool.data import Located, Split, VideoFolder, locate
from vctool.errors import InputError, UsageProblem
from vctool.evaluation import chart
from vctool.evaluation.environment import environment, file_hashes
from vctool.evaluation.evaluate_model import frames_per_clip, match_split, model_branches, model_facts, store_places
from vctool.evaluation.html import Bullets, Facts, Figure, Section, page
from vctool.evaluation.matrices import Encoder, scored_store
from vctool.evaluation.protocols import Protocol, protocol_of
from vctool.evaluation.report import hardware_facts, protocol_rows, subject_facts
from vctool.metrics import RankingMetrics, ScoreMatrix, as_relevance, evaluate_ranking
from vctool.metrics.intervals import resampled
from vctool.scoring import Branch

if TYPE_CHECKING:
    from vctool.runtime.model import Model
    from vctool.store import Store

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
Progress = Callable[[int, int], None]
SCHEMA = 1
NUMBERS_FILE = "analysis.json"
PAGE_FILE = "report.html"


@dataclass(frozen=True)
class Draws:
    """The bootstrap of an analysis: whole clips with all their captions are drawn, since captions of one clip fail together."""

    resamples: int = 2000
    level: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0.0 < self.level < 1.0:
            raise UsageProblem(f"the interval's level must lie between 0 and 1, got {self.level}")
        if self.resamples < 1:
            raise UsageProblem("an analysis needs at least one bootstrap resample")

    def weights(self, groups_Q: Int64) -> Iterator[Float64]:
        """How often each query is drawn, float64 [Q], once per resample."""
        if not len(groups_Q):
            raise InputError("there are no queries to resample")
        named, group_Q = np.unique(groups_Q, return_inverse=True)
        for chosen in resampled(len(named), self.resamples, self.seed):
            yield np.bincount(chosen, minlength=len(named)).astype(np.float64)[group_Q]

    def means(self, value_KQ: npt.ArrayLike, inside_KQ: npt.ArrayLike, groups_Q: Int64) -> Float64:
        """Mean of each row of values over the queries inside it, for every resample: float64 [resamples, K].

        NaN where a resample has none of a row's queries.
        """
        inside = np.asarray(inside_KQ, dtype=np.float64)
        held = np.where(inside > 0, np.asarray(value_KQ, dtype=np.float64), 0.0)
        drawn = np.empty((self.resamples, len(inside)))
        with np.errstate(invalid="ignore"):
            for at, weight_Q in enumerate(self.weights(groups_Q)):
                drawn[at] = (held @ weight_Q) / (inside @ weight_Q)
        return drawn

    def interval(self, drawn: npt.ArrayLike) -> tuple[float, float]:
        """Ends of the percentile interval of drawn values; values that are NaN (a draw without such queries) are left out."""
        tail = (1.0 - self.level) / 2
        low, high = np.nanquantile(np.asarray(drawn, dtype=np.float64), [tail, 1.0 - tail])
        return float(low), float(high)

    @property
    def words(self) -> str:
        return f"{100 * self.level:g} % percentile bootstrap over clips, {self.resamples:,} resamples, seed {self.seed}"


@dataclass(frozen=True)
class Material:
    """A split whose clips a store holds, with the model that made it. columns: the store's clip of each of the split's clips."""

    split: Split
    store: Store
    model: Model
    columns: Int64
    notes: tuple[str, ...]
    branch: Branch
    videos: Path | None = None

    @classmethod
    def of(
        cls,
        split: Split,
        store: Store,
        model: Model,
        *,
        branch: Branch | None = None,
        videos: Path | None = None,
        why_missing: str = "are not in the store",
    ) -> Material:
        """Match clips. branch: which to analyse, by default the model's own. videos: a folder to look for the videos in.

        Raises UsageProblem for a branch that the model does not have, else as `match_split`.
        """
        kept, columns, notes = match_split(split, store, model, why_missing)
        own = model_branches(model.directory.config.interaction)
        if branch is not None and branch not in own:
            raise UsageProblem(f"{model.directory.config.name} was made for branch {own[-1]} only", f"leave out --branch {branch}")
        return cls(kept, store, model, columns, (*kept.notes, *notes), branch or own[-1], videos)

    @cached_property
    def places(self) -> dict[str, Located]:
        """Where the clips' videos lie, by id: in the folder that was named, at the manifest's paths, else where the store has them."""
        disk = None if self.videos is None else VideoFolder(self.videos)
        here = {clip.id: place for clip in self.split.clips if (place := locate(clip, disk)) is not None}
        return store_places(self.store, self.split.clip_ids, self.columns) | here

    @cached_property
    def clip_of_query(self) -> Int64:
        """Each query's (first) right clip, int64 [Q]."""
        return np.asarray([query.clips[0][0] for query in self.split.queries], dtype=np.int64)

    @contextmanager
    def scored(
        self, branches: Sequence[Branch], encoder: Encoder | None = None, progress: Progress | None = None
    ) -> Iterator[dict[Branch, ScoreMatrix]]:
        """Scores of the queries against the clips, [Q, N] per branch."""
        source = encoder or self.model.text
        with scored_store(self.split.query_texts, source, self.store, self.columns, branches, progress=progress) as scores:
            yield scores

    def ranked(self, sims_QN: ScoreMatrix) -> RankingMetrics:
        """Metrics of one matrix over this split."""
        texts = self.split.query_texts
        sets = as_relevance(self.split.relevance(), len(self.split.clips), queries=len(texts), names=texts)
        return evaluate_ranking(sims_QN, sets, query_names=texts)

    def protocol(self) -> Protocol:
        """The protocol that the analysis ran under."""
        config = self.model.directory.config
        return protocol_of(self.split, frames_per_clip(self.store, config.frames), config.query.max_length)


@dataclass(frozen=True)
class Analysis:
    """A finished analysis. name: `length`, `motion` and so on. findings: what it shows, in sentences. method: how it was made.

    numbers: everything in it, ready for JSON. sections: the page's, plots among them.
    """

    name: str
    title: str
    findings: tuple[str, ...]
    method: tuple[str, ...]
    numbers: Mapping[str, Any]
    sections: tuple[Section, ...] = field(default=())

    @property
    def charts(self) -> list[chart.Drawing]:
        """The plots, in the order of the page."""
        return [block.chart for section in self.sections for block in section.blocks if isinstance(block, Figure)]


def analysis_document(analysis: Analysis, material: Material, seed: int) -> dict[str, Any]:
    """The JSON form of an analysis, with what it was made from and with."""
    return {
        "schema": SCHEMA,
        "kind": "vctool analysis",
        "analysis": analysis.name,
        "findings": list(analysis.findings),
        "method": list(analysis.method),
        "numbers": dict(analysis.numbers),
        "branch": material.branch,
        "protocol": material.protocol().to_dict(),
        "subject": model_facts(material.store, material.model),
        "sources": file_hashes(material.split.sources),
        "notes": list(material.notes),
        "environment": environment(seed),
    }


def write_analysis(analysis: Analysis, document: Mapping[str, Any], material: Material, folder: Path) -> list[Path]:
    """Write `analysis.json`, `report.html` and a PNG for each plot into `folder`, made if need be."""
    facts = [
        *protocol_rows(material.protocol()),
        *subject_facts(document["subject"]),
        *((f"Source {name}", f"SHA-256 {digest}") for name, digest in document["sources"].items()),
        *hardware_facts(document["environment"]),
    ]
    sections = [
        Section("What it shows", [Bullets(analysis.findings)]),
        *analysis.sections,
        Section("How it was made", [Bullets([*analysis.method, *material.notes])]),
        Section("Made with", [Facts(facts)]),
    ]
    lead = [f"{material.model.directory.config.name}, branch {material.branch}, {document['protocol']['name']}: "]
    lead[0] += f"{len(material.split.queries):,} queries, {len(material.split.clips):,} clips."
    pictures = {f"{one.name}.png": chart.png(one) for one in analysis.charts}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(document, ensure_ascii=False, allow_nan=False, indent=1)
        (folder / NUMBERS_FILE).write_text(f"{text}\n", encoding="utf-8")
        (folder / PAGE_FILE).write_text(page(analysis.title, lead, sections), encoding="utf-8")
        for name, data in pictures.items():
            (folder / name).write_bytes(data)
    except OSError as problem:
        raise InputError(f"{folder}: the report cannot be written: {problem.strerror or problem}") from None
    return [folder / name for name in (NUMBERS_FILE, PAGE_FILE, *pictures)]
