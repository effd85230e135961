"""LSMDC (movie clips): tab-separated, no header, six columns, one sentence per clip."""

from __future__ import annotations

from pathlib import Path

from vctool.data.files import find_file, read_text
from vctool.data.records import Clip, Split, build_split
from vctool.errors import InputError, UsageProblem

FILES = {
    "train": ("LSMDC16_annos_training.csv",),
    "val": ("LSMDC16_annos_val.csv",),
    # The misspelling is the owners'.
    "test": ("LSMDC16_challenge_1000_publictect.csv", "LSMDC16_challenge_1000_publictest.csv"),
}
COLUMNS = 6


def load(folder: Path, split: str, encoding: str = "utf-8") -> Split:
    """Quotes in sentences are plain characters here, so no CSV reader is used: a stray quote would swallow lines."""
    if split not in FILES:
        raise UsageProblem(f"lsmdc has no '{split}' split", "it has train, val and test")
    path = find_file(folder, FILES[split], f"LSMDC {split} file")
    clips: list[Clip] = []
    for number, line in enumerate(read_text(path, encoding).split("\n"), start=1):
        if not line.strip():
            continue
        fields = line.rstrip("\r").split("\t")
        if len(fields) != COLUMNS:
            raise InputError(f"{path}, line {number}: {len(fields)} tab-separated columns instead of {COLUMNS}")
        clip_id = fields[0].strip()
        if "_" not in clip_id:
            raise InputError(
                f"{path}, line {number}: '{clip_id[:60]}' is not an LSMDC clip id", "the file has no header and starts with data"
            )
        film = clip_id.rsplit("_", 1)[0]
        meta = {"film": film, "start_aligned": fields[1], "end_aligned": fields[2]}
        clips.append(Clip(id=clip_id, captions=(fields[5],), stems=(f"{film}/{clip_id}", clip_id), meta=meta))
    # Training sentences may repeat a clip: they are its captions, in file order.
    if split == "train":
        clips = _merged(clips)
    return build_split("lsmdc", split, "all" if split == "train" else "one", clips, sources=[path])


def _merged(clips: list[Clip]) -> list[Clip]:
    by_id: dict[str, Clip] = {}
    for clip in clips:
        first = by_id.get(clip.id)
        captions = clip.captions if first is None else (*first.captions, *clip.captions)
        by_id[clip.id] = Clip(id=clip.id, captions=captions, stems=clip.stems, meta=clip.meta)
    return list(by_id.values())
