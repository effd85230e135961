"""VATEX: the field's HGR split (1,500 + 1,500 clips cut from the official validation set), and the official splits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from vctool.data.files import find_file, find_optional, read_ids, read_json, refuse_duplicates
from vctool.data.msvd import split_times
from vctool.data.records import Clip, Split, build_split
from vctool.errors import InputError, UsageProblem

OFFICIAL = {
    "train": ("vatex_training_v1.0.json",),
    "val": ("vatex_validation_v1.0.json",),
    "test": ("vatex_public_test_english_v1.1.json", "vatex_public_test_english_v1.0.json"),
}
LISTS = {
    "train": ("train_list.txt",),
    "val": ("val_list.txt",),
    "test": ("test_list.txt", "test1k5_sec_list.txt"),
}
HGR_NAMES = {"train": ("trn_names.npy",), "val": ("val_names.npy",), "test": ("tst_names.npy",)}
CAPTIONS = ("ref_captions.json",)
# Where an HGR list's captions may stand, for the lists come without captions.
CAPTION_SOURCES = {"train": OFFICIAL["train"], "val": OFFICIAL["val"], "test": OFFICIAL["val"]}


def read_official(path: Path, encoding: str = "utf-8") -> dict[str, list[str]]:
    """{videoID: English captions} of an official file: [{videoID, enCap, chCap?}]; chCap may be missing and is not read."""
    document = read_json(path, encoding)
    if isinstance(document, dict):
        return {str(one): _texts(own, f"{path}: '{one}'") for one, own in document.items()}
    if not isinstance(document, list):
        raise InputError(f"{path}: expected a list of videos, got {type(document).__name__}")
    for row in document:
        if not isinstance(row, dict) or not isinstance(row.get("videoID"), str):
            raise InputError(f"{path}: an entry without 'videoID': {str(row)[:80]}")
    refuse_duplicates((row["videoID"] for row in document), str(path))
    return {row["videoID"]: _texts(row.get("enCap"), f"{path}: '{row['videoID']}'") for row in document}


def _texts(own: Any, where: str) -> list[str]:
    if own is None:
        return []
    if not isinstance(own, list) or not all(isinstance(text, str) for text in own):
        raise InputError(f"{where}: its English captions are not a list of texts")
    return own


def load_hgr(folder: Path, split: str, encoding: str = "utf-8") -> Split:
    """The split the papers use; every caption is a query (10 per clip)."""
    if split not in LISTS:
        raise UsageProblem(f"vatex has no '{split}' split", "it has train, val and test")
    listing = find_optional(folder, LISTS[split]) or find_optional(folder, HGR_NAMES[split])
    if listing is None:
        raise InputError(f"{folder}: no VATEX {split} list found", f"expected {', '.join((*LISTS[split], *HGR_NAMES[split]))}")
    ids = _names(listing) if listing.suffix == ".npy" else read_ids(listing, encoding)
    source = find_file(folder, (*CAPTIONS, *CAPTION_SOURCES[split], "vatex.json", "vatex_captions.json"), "VATEX captions")
    captions = read_official(source, encoding)
    return build_split("vatex", split, "all", [_clip(one, captions.get(one, [])) for one in ids], sources=[listing, source])


def load_official(folder: Path, split: str, encoding: str = "utf-8") -> Split:
    """The owners' splits: 25,991 / 3,000 / 6,000 clips, 10 English captions each."""
    if split not in OFFICIAL:
        raise UsageProblem(f"vatex-official has no '{split}' split", "it has train, val and test (the public one)")
    path = find_file(folder, OFFICIAL[split], f"VATEX official {split} file")
    clips = [_clip(one, own) for one, own in read_official(path, encoding).items()]
    return build_split("vatex-official", split, "all", clips, sources=[path])


def _names(path: Path) -> list[str]:
    try:
        names = np.load(path, allow_pickle=False)
    except (ValueError, OSError):
        raise InputError(f"{path}: not a plain array of names", "save it as text, one id a line: pickled arrays are not read") from None
    if names.dtype.kind not in "US" or names.ndim != 1:
        raise InputError(f"{path}: expected a row of names, got {names.dtype} {names.shape}")
    ids = [name.decode() if isinstance(name, bytes) else str(name) for name in names.tolist()]
    refuse_duplicates(ids, str(path))
    return ids


def _clip(one: str, captions: list[str]) -> Clip:
    source, start, end = split_times(one)
    span = (start, end) if source is not None and start is not None and end is not None else None
    return Clip(id=one, captions=tuple(captions), stems=(one,), source=source if span else None, source_span=span)
