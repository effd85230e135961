"""ActivityNet Captions as paragraph-to-video: all sentences joined, the whole video, no proposals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vctool.data.files import find_file, find_optional, read_ids, read_json, refuse_duplicates
from vctool.data.records import Clip, Split, build_split
from vctool.errors import InputError, UsageProblem

# The field tests on val_1 and calls it val or test; val_2 describes nearly the same videos in other words.
SPLITS = {"train": "train", "val": "val_1", "test": "val_1", "val_1": "val_1", "val_2": "val_2"}


def load(folder: Path, split: str, encoding: str = "utf-8") -> Split:
    """`{train,val_1,val_2}.json`, restricted to the id list where there is one: the intersection of the two is used."""
    if split not in SPLITS:
        raise UsageProblem(f"activitynet has no '{split}' split", "it has train, val_1 (also called val and test) and val_2")
    name = SPLITS[split]
    path = find_file(folder, (f"{name}.json",), f"ActivityNet {name} file")
    document = read_json(path, encoding)
    if not isinstance(document, dict):
        raise InputError(f"{path}: expected an object of video id -> sentences, got {type(document).__name__}")
    lists = ("train_ids.json", "train_list.txt") if name == "train" else (f"{name}_ids.json", f"{name}_list.txt", "val_ids.json")
    listing = find_optional(folder, lists)
    notes: list[str] = []
    sources = [path]
    wanted = list(document)
    if listing is not None:
        sources.append(listing)
        ids = _ids(listing, encoding)
        wanted = [one for one in ids if one in document]
        if len(wanted) < len(ids):
            notes.append(f"{len(ids) - len(wanted)} ids of {listing.name} have no entry in {path.name} and are left out")
        if len(wanted) < len(document):
            notes.append(f"{len(document) - len(wanted)} videos of {path.name} are not in {listing.name} and left out")
    return build_split("activitynet", name, "paragraph", [_clip(one, document[one], path) for one in wanted], notes=notes, sources=sources)


def _ids(listing: Path, encoding: str) -> list[str]:
    if listing.suffix != ".json":
        return [_prefixed(one) for one in read_ids(listing, encoding)]
    ids = read_json(listing, encoding)
    if not isinstance(ids, list) or not all(isinstance(one, str) for one in ids):
        raise InputError(f"{listing}: expected a list of video ids")
    refuse_duplicates(ids, str(listing))
    return [_prefixed(one) for one in ids]


def _prefixed(one: str) -> str:
    return one if one.startswith("v_") else f"v_{one}"


def _clip(one: str, entry: Any, path: Path) -> Clip:
    sentences = entry.get("sentences") if isinstance(entry, dict) else None
    if not isinstance(sentences, list) or not all(isinstance(text, str) for text in sentences):
        raise InputError(f"{path}: '{one}' has no list of 'sentences'")
    meta = {key: entry[key] for key in ("duration", "timestamps") if key in entry}
    # Files on disk carry the `v_` prefix in some copies and not in others.
    return Clip(id=one, captions=tuple(sentences), stems=(one, one.removeprefix("v_")), meta=meta)
