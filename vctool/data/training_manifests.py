"""A benchmark as the manifests that training reads: a line a clip, its file, its piece and its captions."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vctool.data.locate import VideoFolder, locate
from vctool.data.records import Split
from vctool.errors import InputError

NAMES = {"train": "train", "val": "validation"}
"""What the splits that train and that choose are called; the one that is tested on becomes `test`."""


@dataclass(frozen=True)
class Written:
    """One manifest. missing: ids of clips whose video was not found, and which are not in it. silent: clips without a caption."""

    path: Path
    clips: int
    captions: int
    missing: tuple[str, ...]
    silent: int


def write_manifest(split: Split, videos: VideoFolder | None, path: Path) -> Written:
    """Write the clips of `split` that are on disk, with their captions (of paragraph benchmarks, the paragraph).

    Paths are absolute, so that the manifest may lie anywhere. Raises InputError where no video is found or the file cannot be written.
    """
    captions: dict[int, list[str]] = {}
    for query in split.queries:
        for position, grade in query.clips:
            if grade > 0:
                captions.setdefault(position, []).append(query.text)
    lines, missing, silent, texts = [], [], 0, 0
    for position, clip in enumerate(split.clips):
        if position not in captions:
            silent += 1
            continue
        found = locate(clip, videos)
        if found is None:
            missing.append(clip.id)
            continue
        row: dict[str, Any] = {"path": os.path.abspath(found.path), "id": clip.id}  # noqa: PTH100 (links stay as they are)
        row |= {key: value for key, value in (("start", found.start), ("end", found.end)) if value is not None}
        own = list(dict.fromkeys(captions[position]))
        texts += len(own)
        lines.append(json.dumps(row | {"captions": own}, ensure_ascii=False))
    if not lines:
        raise InputError(
            f"{split.benchmark} {split.name}: none of its {len(split.clips)} videos was found", "give their folder with --videos"
        )
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text("\n".join(lines) + "\n", encoding="utf-8")
        partial.replace(path)
    except OSError as problem:
        raise InputError(f"{path} cannot be written: {problem.strerror}") from None
    return Written(path, len(lines), texts, tuple(missing), silent)


def manifest_names(splits: Sequence[str], test: str) -> dict[str, str]:
    """Which manifest each of a benchmark's splits becomes: `train`, `validation`, `test`; others are left out."""
    return {split: "test" if split == test else NAMES[split] for split in splits if split == test or split in NAMES}
