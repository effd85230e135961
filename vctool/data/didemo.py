"""DiDeMo as paragraph-to-video: all descriptions of a video joined in file order make its one query."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vctool.data.files import find_file, find_optional, read_ids, read_json, refuse_duplicates
from vctool.data.records import Clip, Split, build_split
from vctool.errors import InputError, UsageProblem

SEGMENT_SECONDS = 5.0
# The field cuts every video at 30 s: six segments of 5 s; what lies behind was never described.
CLIP_END = 30.0


def stem(name: str) -> str:
    """`NSID_photoid_hash` of a DiDeMo video name, whatever its extension, even a bare trailing dot."""
    head, dot, tail = name.rpartition(".")
    return head if dot and len(tail) <= 4 else name


def load(folder: Path, split: str, encoding: str = "utf-8") -> Split:
    """`{split}_data.json`, and `{split}_list.txt` where it is: the list says which videos count (1,004 of 1,037 in test)."""
    if split not in ("train", "val", "test"):
        raise UsageProblem(f"didemo has no '{split}' split", "it has train, val and test")
    path = find_file(folder, (f"{split}_data.json",), f"DiDeMo {split} file")
    rows = read_json(path, encoding)
    if not isinstance(rows, list):
        raise InputError(f"{path}: expected a list of descriptions, got {type(rows).__name__}")
    texts: dict[str, list[str]] = {}
    moments: dict[str, list[list[float]]] = {}
    for row in rows:
        if not isinstance(row, dict) or not isinstance(row.get("video"), str) or not isinstance(row.get("description"), str):
            raise InputError(f"{path}: an entry without 'video' and 'description': {str(row)[:80]}")
        name = stem(row["video"])
        texts.setdefault(name, []).append(row["description"])
        moments.setdefault(name, []).append(_moment(row.get("times"), path))
    notes: list[str] = []
    sources = [path]
    listing = find_optional(folder, (f"{split}_list.txt",))
    wanted = list(texts)
    if listing is None:
        notes.append(f"no {split}_list.txt: all {len(texts)} described videos are used")
    else:
        sources.append(listing)
        wanted = [stem(name) for name in read_ids(listing, encoding)]
        refuse_duplicates(wanted, f"{listing} (names without their extension)")
        outside = len(texts.keys() - set(wanted))
        if outside:
            notes.append(f"{outside} described videos are not in {listing.name} and left out")
    clips = [
        Clip(
            id=one,
            captions=tuple(texts.get(one, ())),
            # Some copies keep the trailing dot or the first extension inside the name: `x.mov.mp4`.
            stems=(one,),
            start=0.0,
            end=CLIP_END,
            meta={"moments": moments.get(one, [])},
        )
        for one in wanted
    ]
    return build_split("didemo", split, "paragraph", clips, notes=notes, sources=sources)


def _moment(times: Any, path: Path) -> list[float]:
    """[start, end) in seconds: the annotators' mean of 5-second segment numbers, whose ends are inclusive."""
    try:
        starts, ends = [float(t[0]) for t in times], [float(t[1]) for t in times]
        return [SEGMENT_SECONDS * sum(starts) / len(starts), SEGMENT_SECONDS * (sum(ends) / len(ends) + 1)]
    except (TypeError, ValueError, IndexError, ZeroDivisionError):
        raise InputError(f"{path}: 'times' must be a list of [first, last] segment numbers, got {str(times)[:60]}") from None
