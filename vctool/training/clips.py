"""The clips of one split: what is read from a manifest, and which captions are true of which clip."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from vctool.errors import InputError, UsageProblem
from vctool.video.clip import VideoInput
from vctool.video.files import find_videos


@dataclass(frozen=True)
class TrainingClip:
    """A clip with the captions true of it, and those true of it played backwards (may be empty).

    captions, reversed_captions: numbers into `ClipSet.texts`. group: clips of one group belong into one batch.
    """

    input: VideoInput
    captions: tuple[int, ...]
    reversed_captions: tuple[int, ...]
    group: str | None


@dataclass(frozen=True)
class ClipSet:
    """The clips of a manifest that have captions; `texts` are all distinct captions, without surrounding space.

    sha256: of the manifest file. silent: how many of its clips have no caption and are left out. merged: how many lines named a clip
    that an earlier line names; their captions are that clip's.
    """

    path: Path
    clips: tuple[TrainingClip, ...]
    texts: tuple[str, ...]
    sha256: str
    silent: int
    merged: int = 0

    @cached_property
    def meaning(self) -> tuple[int, ...]:
        """For each text the number of the first that says the same, but for case and punctuation: what is true of one is of the other."""
        first: dict[str, int] = {}
        return tuple(first.setdefault(_plain(text), i) for i, text in enumerate(self.texts))

    def __len__(self) -> int:
        return len(self.clips)

    def only(self, rows: Sequence[int]) -> ClipSet:
        """The set of the clips at these positions, in their order."""
        return replace(self, clips=tuple(self.clips[i] for i in rows))

    def without(self, rows: set[int]) -> ClipSet:
        """The set without the clips at these positions (those that could not be read)."""
        return self.only([i for i in range(len(self.clips)) if i not in rows])


def read_clips(manifest: Path, limit: int | None = None) -> ClipSet:
    """The captioned clips of a JSONL manifest, in its order; at most `limit` of them.

    Two keys of a row count in training: `group` (a text) and `reversed_captions` (a list of texts). Raises InputError
    where the manifest cannot be used or holds no caption.
    """
    if manifest.suffix.lower() != ".jsonl":
        raise InputError(f"{manifest}: a training set is a JSONL manifest", 'a line is {"path": "clip.mp4", "captions": ["…"]}')
    numbers: dict[str, int] = {}
    clips: list[TrainingClip] = []
    silent = merged = 0
    place_of: dict[tuple[Path, float | None, float | None], int] = {}
    for clip in find_videos([manifest]):
        forward = _numbered(clip.captions, numbers)
        backward = _numbered(_texts(manifest, clip, "reversed_captions"), numbers)
        if not forward and not backward:
            silent += 1
            continue
        group = clip.meta.get("group")
        if group is not None and not isinstance(group, (str, int)):
            raise InputError(f'{manifest}: clip {clip.id}: "group" must be a text, not {group!r}')
        known = place_of.setdefault(_place(clip), len(clips))
        if known < len(clips):
            # The same pictures twice would be wrong answers to their own captions.
            first = clips[known]
            captions = tuple(dict.fromkeys((*first.captions, *forward)))
            clips[known] = replace(first, captions=captions, reversed_captions=tuple(dict.fromkeys((*first.reversed_captions, *backward))))
            merged += 1
            continue
        if limit is not None and len(clips) == limit:
            break
        clips.append(TrainingClip(clip, forward, backward, None if group is None else str(group)))
    if not clips:
        raise InputError(f"no clip of {manifest} has a caption", 'add "captions": ["…"] to its lines')
    return ClipSet(manifest, tuple(clips), tuple(numbers), hashlib.sha256(manifest.read_bytes()).hexdigest(), silent, merged)


def refuse_overlap(train: ClipSet, validation: ClipSet, test: Path | None) -> None:
    """Raise UsageProblem where validation shares its file or a clip with training, or either is the test manifest.

    The best epoch is chosen by the validation clips: chosen on clips that were trained on or are reported on, it lies.
    """
    if train.path.resolve() == validation.path.resolve() or train.sha256 == validation.sha256:
        raise UsageProblem(f"data.validation is data.train ({train.path})", "validate on clips that are not trained on")
    if test is not None:
        reserved = hashlib.sha256(test.read_bytes()).hexdigest() if test.is_file() else None
        for name, own in (("train", train), ("validation", validation)):
            if own.path.resolve() == test.resolve() or own.sha256 == reserved:
                raise UsageProblem(f"data.{name} is data.test ({test})", "keep the test clips for the final evaluation")
    seen = {_place(clip.input) for clip in train.clips}
    shared = [clip.input.id for clip in validation.clips if _place(clip.input) in seen]
    if shared:
        raise UsageProblem(
            f"{len(shared)} clips are in data.train and in data.validation, {shared[0]} first", "take them out of one of the manifests"
        )


def _place(clip: VideoInput) -> tuple[Path, float | None, float | None]:
    return clip.path.resolve(), clip.start, clip.end


def _numbered(texts: Sequence[str], numbers: dict[str, int]) -> tuple[int, ...]:
    cleaned = dict.fromkeys(" ".join(t.split()) for t in texts)
    return tuple(numbers.setdefault(t, len(numbers)) for t in cleaned if t)


def _plain(text: str) -> str:
    """A caption's words alone; one of nothing but signs stays as it is."""
    return " ".join(re.findall(r"[^\W_]+", text.casefold())) or text


def _texts(manifest: Path, clip: VideoInput, key: str) -> Sequence[str]:
    value = clip.meta.get(key, [])
    if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
        raise InputError(f'{manifest}: clip {clip.id}: "{key}" must be a list of texts')
    return value
