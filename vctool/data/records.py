"""A split: clips, queries, and which clip answers which query."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from vctool.errors import InputError

CaptionPolicy = Literal["one", "all", "paragraph", "qrels"]


@dataclass(frozen=True)
class Clip:
    """One clip of a split.

    stems: file names without their video suffix under which the clip may lie, best first. start, end: the piece of the
    file in seconds (None: all of it). source: stem of the untrimmed video it was cut from, used with `source_span`
    (seconds) where only that is on disk. path: the file itself, if the manifest named it.
    """

    id: str
    captions: tuple[str, ...] = ()
    stems: tuple[str, ...] = ()
    start: float | None = None
    end: float | None = None
    source: str | None = None
    source_span: tuple[float, float] | None = None
    path: Path | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Query:
    """One text query. clips: (position in the split's clips, grade) of every right clip, at least one."""

    id: str
    text: str
    clips: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Split:
    """One split of one benchmark, ready to evaluate or train on.

    caption_policy: `one` fixed caption per clip, `all` captions are queries, `paragraph` joins them, `qrels` is explicit.
    notes: what had to be left out or is odd, each with its count: part of every report. sources: the files read.
    """

    benchmark: str
    name: str
    caption_policy: CaptionPolicy
    clips: tuple[Clip, ...]
    queries: tuple[Query, ...]
    notes: tuple[str, ...] = ()
    sources: tuple[Path, ...] = ()

    @property
    def clip_ids(self) -> list[str]:
        return [clip.id for clip in self.clips]

    @property
    def query_texts(self) -> list[str]:
        return [query.text for query in self.queries]

    @property
    def ids_sha256(self) -> str:
        return ids_sha256(clip.id for clip in self.clips)

    def relevance(self) -> npt.NDArray[np.int64] | list[dict[int, float]]:
        """What `vctool.metrics.evaluate_ranking` takes: int64 [Q] if each query has one right clip, else {column: grade}."""
        if all(len(query.clips) == 1 and query.clips[0][1] == 1 for query in self.queries):
            return np.asarray([query.clips[0][0] for query in self.queries], dtype=np.int64)
        return [dict(query.clips) for query in self.queries]

    def pairs(self) -> Iterator[tuple[Clip, str]]:
        """(clip, query text) training pairs."""
        for query in self.queries:
            for position, grade in query.clips:
                if grade > 0:
                    yield self.clips[position], query.text

    def duplicate_captions(self) -> int:
        """How many queries repeat the text of an earlier one (case and spacing aside): they cannot all be rank 1."""
        return len(self.queries) - len({" ".join(query.text.lower().split()) for query in self.queries})

    def keep(self, present: Sequence[bool], why: str) -> Split:
        """The split without the clips that are not `present`, and without queries that lose all their right clips."""
        if len(present) != len(self.clips):
            raise InputError(f"{len(present)} marks for {len(self.clips)} clips")
        if all(present):
            return self
        position = {old: new for new, old in enumerate(i for i, kept in enumerate(present) if kept)}
        queries = tuple(
            replace(query, clips=kept)
            for query in self.queries
            if (kept := tuple((position[at], grade) for at, grade in query.clips if at in position))
        )
        gone = len(present) - len(position)
        note = f"{gone} of {len(present)} clips {why}, and {len(self.queries) - len(queries)} queries with them: not the published split"
        if not queries:
            raise InputError(f"{self.benchmark} {self.name}: {gone} of {len(present)} clips {why}, so no query is left to evaluate")
        clips = tuple(clip for clip, kept in zip(self.clips, present, strict=True) if kept)
        return replace(self, clips=clips, queries=queries, notes=(*self.notes, note))


def ids_sha256(ids: Iterable[str]) -> str:
    """SHA-256 of a split: its ids sorted by code point, UTF-8, each followed by one newline."""
    return hashlib.sha256("".join(f"{one}\n" for one in sorted(ids)).encode()).hexdigest()


def clean(text: str) -> str:
    """A caption with its blanks made single; words, case and punctuation stay."""
    return " ".join(text.split())


def build_split(
    benchmark: str,
    name: str,
    policy: CaptionPolicy,
    clips: Iterable[Clip],
    *,
    notes: Iterable[str] = (),
    sources: Iterable[Path] = (),
) -> Split:
    """A split whose queries come from its clips' captions by the caption policy (`one`, `all` or `paragraph`).

    Blank captions are dropped with a note; clips without captions stay in the gallery as distractors, with a note.
    Raises InputError on duplicate clip ids, on an empty split, if no caption is left, or if policy `one` meets several.
    """
    given = tuple(clips)
    kept = tuple(replace(clip, captions=tuple(c for c in map(clean, clip.captions) if c)) for clip in given)
    where = f"{benchmark} {name}"
    if not kept:
        raise InputError(f"{where}: the split is empty")
    seen: set[str] = set()
    for clip in kept:
        if clip.id in seen:
            raise InputError(f"{where}: duplicate clip id '{clip.id}'", "each clip must stand in the split once")
        seen.add(clip.id)
    queries: list[Query] = []
    blank = bare = 0
    for position, clip in enumerate(kept):
        blank += len(given[position].captions) - len(clip.captions)
        bare += not clip.captions
        right = ((position, 1.0),)
        if policy == "paragraph":
            if clip.captions:
                queries.append(Query(clip.id, " ".join(clip.captions), right))
            continue
        if policy == "one" and len(clip.captions) > 1:
            raise InputError(f"{where}: clip '{clip.id}' has {len(clip.captions)} captions where the protocol has one")
        queries += [Query(f"{clip.id}#{n}", text, right) for n, text in enumerate(clip.captions)]
    if not queries:
        raise InputError(f"{where}: none of the {len(kept)} clips has a caption")
    said = list(notes)
    if blank:
        said.append(f"{blank} blank captions left out")
    if bare:
        said.append(f"{bare} clips without captions: they stay in the gallery but no query asks for them")
    return Split(benchmark, name, policy, kept, tuple(queries), tuple(said), tuple(sources))
