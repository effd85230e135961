"""What of a benchmark is here: clips present, missing or broken per split, duplicate captions, five examples."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vctool.data.benchmarks import Benchmark, annotation_folder
from vctool.data.locate import Located, VideoFolder, locate
from vctool.data.published import compare_with_published
from vctool.data.records import Split
from vctool.errors import InputError, VideoError

EXAMPLES = 5
# Opens a video enough to know that it can be decoded; raises VideoError if not. Comes from vctool.video.
Probe = Callable[[Path], Any]


@dataclass(frozen=True)
class Example:
    """One clip as a person would check it: its id, its first query, and its file (None if missing)."""

    id: str
    caption: str
    path: str | None


@dataclass(frozen=True)
class SplitCheck:
    """What was found of one split. problem: why it could not be read (then the rest is empty)."""

    split: str
    clips: int = 0
    queries: int = 0
    present: int = 0
    missing: tuple[str, ...] = ()
    broken: tuple[tuple[str, str], ...] = ()
    duplicate_captions: int = 0
    published: bool | None = None
    statement: str = ""
    ids_sha256: str = ""
    notes: tuple[str, ...] = ()
    examples: tuple[Example, ...] = ()
    problem: str | None = None
    videos_checked: bool = False

    @property
    def complete(self) -> bool:
        return self.problem is None and not self.missing and not self.broken

    def to_dict(self) -> dict[str, Any]:
        if self.problem is not None:
            return {"split": self.split, "problem": self.problem}
        out: dict[str, Any] = {
            "split": self.split,
            "clips": self.clips,
            "queries": self.queries,
            "duplicate_captions": self.duplicate_captions,
            "published": self.published,
            "statement": self.statement,
            "ids_sha256": self.ids_sha256,
            "notes": list(self.notes),
            "examples": [{"id": e.id, "caption": e.caption, "path": e.path} for e in self.examples],
        }
        if self.videos_checked:
            out |= {
                "present": self.present,
                "missing": list(self.missing),
                "broken": [{"id": one, "reason": reason} for one, reason in self.broken],
            }
        return out


def check_benchmark(
    entry: Benchmark,
    annotations: Path,
    videos: Path | None,
    *,
    splits: Iterable[str] | None = None,
    probe: Probe | None = None,
    encoding: str = "utf-8",
    progress: Callable[[int, int], None] | None = None,
) -> list[SplitCheck]:
    """Check the splits of a benchmark (those asked for, else all). A split whose files are absent says so and the others go on.

    videos: None leaves the videos unchecked. probe: opens each present file; without it only empty files are broken.
    progress(done, total) is called per clip.
    """
    folder = annotation_folder(annotations, entry.family)
    disk = VideoFolder(videos) if videos is not None else None
    found: list[SplitCheck] = []
    for name in splits or entry.splits:
        try:
            split = entry.load(folder, name, encoding)
        except InputError as problem:
            found.append(SplitCheck(name, problem=str(problem)))
            continue
        found.append(check_split(split, disk, probe=probe, progress=progress))
    return found


def check_split(
    split: Split,
    disk: VideoFolder | None,
    *,
    probe: Probe | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> SplitCheck:
    """Check one loaded split against a folder of videos (or against the paths its manifest names)."""
    checked = disk is not None or any(clip.path is not None for clip in split.clips)
    missing: list[str] = []
    broken: list[tuple[str, str]] = []
    places: dict[str, Located] = {}
    verdicts: dict[Path, str | None] = {}
    if checked:
        for number, clip in enumerate(split.clips, start=1):
            place = locate(clip, disk)
            if place is None:
                missing.append(clip.id)
            else:
                places[clip.id] = place
                if place.path not in verdicts:
                    verdicts[place.path] = _verdict(place.path, probe)
                reason = verdicts[place.path]
                if reason is not None:
                    broken.append((clip.id, reason))
            if progress is not None:
                progress(number, len(split.clips))
    first_query: dict[int, str] = {}
    for query in split.queries:
        first_query.setdefault(query.clips[0][0], query.text)
    examples = tuple(
        Example(split.clips[at].id, first_query.get(at, ""), str(places[split.clips[at].id].path) if split.clips[at].id in places else None)
        for at in list(first_query)[:EXAMPLES]
    )
    published = compare_with_published(split)
    notes = list(split.notes)
    if disk is not None and disk.ambiguous:
        notes.append(f"{disk.ambiguous} files share their name with another one in {disk.root}: the first by path is used")
    return SplitCheck(
        split=split.name,
        clips=len(split.clips),
        queries=len(split.queries),
        present=len(places) - len(broken),
        missing=tuple(missing),
        broken=tuple(broken),
        duplicate_captions=split.duplicate_captions(),
        published=published.same,
        statement=published.statement,
        ids_sha256=split.ids_sha256,
        notes=tuple(notes),
        examples=examples,
        videos_checked=checked,
    )


def _verdict(path: Path, probe: Probe | None) -> str | None:
    """Why a file cannot be used, or None."""
    try:
        if path.stat().st_size == 0:
            return "empty file"
        if probe is not None:
            probe(path)
    except VideoError as problem:
        return problem.reason
    except OSError as problem:
        return problem.strerror or str(problem)
    return None
