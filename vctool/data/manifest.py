"""The plain manifest: JSON lines, one clip each, with its captions; or a JSON list in the VindLU/Singularity layout.

A row: {"path" | "video" | "clip": file, "id"?, "start"?, "end"?, "captions": [text] | "caption": text, "split"?, ...};
any other key is kept as metadata. Paths are relative to the manifest's folder (or to `videos`, where given).
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

from vctool.data.files import read_json, read_jsonl
from vctool.data.locate import strip_suffix
from vctool.data.records import CaptionPolicy, Clip, Split, build_split
from vctool.errors import InputError

FILE_KEYS = ("path", "video", "clip")
OWN_KEYS = {*FILE_KEYS, "id", "start", "end", "captions", "caption", "split"}


def load(
    path: Path,
    split: str | None = None,
    encoding: str = "utf-8",
    *,
    policy: CaptionPolicy = "all",
    videos: Path | None = None,
) -> Split:
    """Read a manifest. split: keep only rows whose "split" says so; None keeps all.

    Raises InputError naming the line on a row without a file or with captions that are not texts, on duplicate ids, if
    rows carry splits but none is the one asked for, and on an empty manifest.
    """
    rows = _rows(path, encoding)
    if not rows:
        raise InputError(f"{path} is empty", "a manifest has one JSON object per line")
    root = videos or path.parent
    given = sorted({str(row["split"]) for _, row in rows if "split" in row})
    notes: list[str] = []
    if split is not None:
        if given:
            rows = [(number, row) for number, row in rows if str(row.get("split")) == split]
            if not rows:
                raise InputError(f"{path}: no row is of the split '{split}'", f"its splits are: {', '.join(given)}")
        else:
            notes.append(f"the manifest names no splits: all its rows are taken as '{split}'")
    clips = [_clip(row, path, number, root) for number, row in rows]
    first: dict[str, int] = {}
    for (number, _), clip in zip(rows, clips, strict=True):
        if clip.id in first:
            raise InputError(f"{path}, line {number}: duplicate id '{clip.id}' (first in line {first[clip.id]})", "ids must be unique")
        first[clip.id] = number
    return build_split(path.stem, split or "all", policy, clips, notes=notes, sources=[path])


def _rows(path: Path, encoding: str) -> list[tuple[int, dict[str, Any]]]:
    if path.suffix.lower() != ".json":
        return read_jsonl(path, encoding)
    document = read_json(path, encoding)
    if not isinstance(document, list) or not all(isinstance(row, dict) for row in document):
        raise InputError(f"{path}: expected a list of objects with 'video' and 'caption'")
    return list(enumerate(document, start=1))


def _clip(row: dict[str, Any], manifest: Path, number: int, root: Path) -> Clip:
    where = f"{manifest}, line {number}"
    named = next((row[key] for key in FILE_KEYS if row.get(key)), None)
    if not isinstance(named, str):
        raise InputError(f"{where}: no video file named", f"give it under one of: {', '.join(FILE_KEYS)}")
    start, end = _seconds(row, "start", where), _seconds(row, "end", where)
    if start is not None and end is not None and end <= start:
        raise InputError(f"{where}: the piece ends at {end:g} s, before or at its start {start:g} s")
    posix = named.replace("\\", "/")
    given_id = row.get("id")
    if given_id is not None and (isinstance(given_id, bool) or not isinstance(given_id, (str, int)) or given_id == ""):
        raise InputError(f"{where}: 'id' must be a text, got {given_id!r}")
    own_id = str(given_id) if given_id is not None else piece_id(_spelled(named, manifest.parent), start, end)
    file = Path(named)
    return Clip(
        id=own_id,
        captions=_captions(row, where),
        stems=(strip_suffix(posix), strip_suffix(Path(posix).name)),
        start=start,
        end=end,
        path=file if file.is_absolute() else root / file,
        meta={key: value for key, value in row.items() if key not in OWN_KEYS},
    )


def _spelled(name: str, folder: Path) -> str:
    """The file's name as `vctool index` makes an id of it: one spelling for one file, relative to the manifest where it lies below."""
    base = Path(os.path.normpath(folder))
    whole = Path(os.path.normpath(folder / name))
    return (whole.relative_to(base) if whole.is_relative_to(base) else Path(os.path.normpath(name))).as_posix()


def piece_id(name: str, start: float | None, end: float | None) -> str:
    """The id of a file, or `name#start-end` for a piece of it, as in stores (an open end stays empty)."""
    if start is None and end is None:
        return name
    return f"{name}#{start or 0:.15g}-{'' if end is None else format(end, '.15g')}"


def _seconds(row: dict[str, Any], key: str, where: str) -> float | None:
    value = row.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
        raise InputError(f"{where}: '{key}' must be seconds from 0, got {value!r}")
    return float(value)


def _captions(row: dict[str, Any], where: str) -> tuple[str, ...]:
    texts: list[str] = []
    for key in ("captions", "caption"):
        value = row.get(key)
        listed = [] if value is None else [value] if isinstance(value, str) else value
        if not isinstance(listed, list) or not all(isinstance(text, str) for text in listed):
            raise InputError(f"{where}: captions must be a text or a list of texts, got {str(value)[:60]!r}")
        texts += listed
    return tuple(texts)
