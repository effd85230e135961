"""Long files as segments when indexing: cut once, and found again in the store without looking at the file.

The pieces of one file carry `segment_of`, the id of the file, in their metadata. A file that is cut in another way, or
whole, takes the place of its earlier pieces.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from vctool.errors import StoreError
from vctool.store import Store, open_store
from vctool.video.clip import VideoInput
from vctool.video.segments import SEGMENT_OF, Segmenting, piece, segmented
from vctool.video.workers import DecodePool


def earlier_segmenting(output: Path) -> Segmenting | None:
    """How the store at `output` had its files cut, if it did; None where there is none, or it cannot be read (said later)."""
    try:
        return _told(open_store(output).manifest) if output.exists() else None
    except StoreError:
        return None


def segmenting_entry(how: Segmenting | None) -> dict[str, Any] | None:
    """What a store's manifest says of it."""
    return None if how is None else {"seconds": how.length, "overlap": how.overlap, "scenes": how.scenes}


def cut_inputs(clips: Sequence[VideoInput], how: Segmenting, output: Path, pool: DecodePool, *, rebuild: bool) -> list[VideoInput]:
    """The clips, long files in segments; those that the store at `output` holds, cut in the same way and unchanged, as it has them."""
    known: dict[tuple[str, str], list[tuple[float, float]]] = {}
    if not rebuild and output.exists() and earlier_segmenting(output) == how:
        known = _segments_in(open_store(output), {os.path.realpath(clip.path) for clip in clips})
    unknown = (clip for clip in clips if _key(clip) not in known)
    cut: dict[str, list[VideoInput]] = defaultdict(list)
    for segment in segmented(unknown, how, pool):
        cut[str(segment.meta.get(SEGMENT_OF, segment.id))].append(segment)
    for clip in clips:
        spans = known.get(_key(clip))
        if spans is not None:
            cut[clip.id] = [piece(clip, start, end) for start, end in spans]
    return [segment for clip in clips for segment in cut[clip.id]]


def replaced(store: Store, kept: Iterable[int], clips: Iterable[VideoInput]) -> set[int]:
    """Those of the `kept` clips of an old store whose file is among the inputs, cut in another way (or whole) than it is now."""
    whole = {os.path.realpath(clip.path) for clip in clips if clip.start is None and clip.end is None}
    cut = {os.path.realpath(clip.path) for clip in clips if SEGMENT_OF in clip.meta}
    found = set()
    for index in kept:
        path, meta = store.resolve_path(index), store.clip_meta(index)
        name = "" if path is None else os.path.realpath(path)
        is_segment, is_whole = SEGMENT_OF in meta, meta.get("start") is None and meta.get("end") is None
        if (is_segment and name in whole | cut) or (is_whole and name in cut):
            found.add(index)
    return found


def _segments_in(store: Store, wanted: set[str]) -> dict[tuple[str, str], list[tuple[float, float]]]:
    spans: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    for index in range(len(store)):
        meta, path = store.clip_meta(index), store.resolve_path(index)
        if path is None or SEGMENT_OF not in meta or os.path.realpath(path) not in wanted or not _unchanged(path, meta):
            continue
        spans[os.path.realpath(path), str(meta[SEGMENT_OF])].append((float(meta["start"]), float(meta["end"])))
    return {key: sorted(found) for key, found in spans.items()}


def _key(clip: VideoInput) -> tuple[str, str]:
    return os.path.realpath(clip.path), clip.id


def _unchanged(path: Path, meta: dict[str, Any]) -> bool:
    try:
        status = path.stat()
    except OSError:
        return False
    return (meta.get("size"), meta.get("mtime_ns")) == (status.st_size, status.st_mtime_ns)


def _told(manifest: dict[str, Any]) -> Segmenting | None:
    entry = manifest.get("segments")
    if not isinstance(entry, dict):
        return None
    return Segmenting(float(entry["seconds"]), float(entry["overlap"]), bool(entry["scenes"]))
