"""MSR-VTT: 1k-A (training on 9k or 7k), the full split and 1k-B, from the files their owners publish.

Captions come as `MSRVTT_data.json` (videos + sentences), as the two original files (`train_val_videodatainfo.json` and
`test_videodatainfo.json`, same layout) or as Frozen's `MSR_VTT.json` ({"annotations": [{image_id, caption}]}).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vctool.data.files import find_file, find_optional, read_csv, read_ids, read_json
from vctool.data.records import CaptionPolicy, Clip, Split, build_split
from vctool.errors import InputError, UsageProblem

TEST_CSV = ("MSRVTT_JSFUSION_test.csv",)
CAPTION_FILES = ("MSRVTT_data.json", "MSR_VTT.json")
ORIGINAL_FILES = ("train_val_videodatainfo.json", "test_videodatainfo.json")


@dataclass(frozen=True)
class _Captions:
    """Captions by video in the order of their sentence numbers, and the `split` field where the file has one."""

    by_video: Mapping[str, tuple[str, ...]]
    split_of: Mapping[str, str]
    notes: tuple[str, ...]
    sources: tuple[Path, ...]


def read_captions(folder: Path, encoding: str = "utf-8") -> _Captions:
    """All captions of MSR-VTT in any of its published files. The list of sentences is in no particular order."""
    one = find_optional(folder, CAPTION_FILES)
    files = [one] if one else [path for path in (find_optional(folder, [name]) for name in ORIGINAL_FILES) if path]
    if not files:
        raise InputError(f"{folder}: no MSR-VTT captions found", f"expected {', '.join((*CAPTION_FILES, *ORIGINAL_FILES))}")
    sentences: dict[str, list[tuple[int, str]]] = {}
    split_of: dict[str, str] = {}
    unknown = 0
    for path in files:
        document = read_json(path, encoding)
        if isinstance(document, dict) and isinstance(document.get("annotations"), list):
            rows = [(row, "image_id") for row in document["annotations"]]
        elif isinstance(document, dict) and isinstance(document.get("sentences"), list):
            rows = [(row, "video_id") for row in document["sentences"]]
        else:
            raise InputError(f"{path}: neither 'sentences' nor 'annotations' in it", "expected the layout of MSRVTT_data.json")
        known: set[str] | None = None
        if "videos" in document:
            known = set()
            for video in document["videos"]:
                video_id = _text(video, "video_id", path)
                if video_id in known:
                    raise InputError(f"{path}: duplicate id '{video_id}' under 'videos'")
                known.add(video_id)
                split_of[video_id] = str(video.get("split", ""))
        for number, (row, key) in enumerate(rows):
            video_id = _text(row, key, path)
            if known is not None and video_id not in known:
                unknown += 1
                continue
            sentences.setdefault(video_id, []).append((int(row.get("sen_id", number)), _text(row, "caption", path)))
    notes = (f"{unknown} captions of videos that the file does not list left out",) if unknown else ()
    ordered = {video: tuple(text for _, text in sorted(own)) for video, own in sentences.items()}
    return _Captions(ordered, split_of, notes, tuple(files))


def _text(row: Any, key: str, path: Path) -> str:
    if not isinstance(row, dict) or not isinstance(row.get(key), str):
        raise InputError(f"{path}: an entry without a text under '{key}': {str(row)[:80]}")
    return str(row[key])


def _clip(video_id: str, captions: Sequence[str]) -> Clip:
    return Clip(id=video_id, captions=tuple(captions), stems=(video_id,))


def load_1ka(folder: Path, split: str, encoding: str = "utf-8", *, train: str = "9k") -> Split:
    """1k-A (JSFusion): `test` has one fixed caption per video; `train` pairs every caption with its video."""
    name = "msrvtt-1ka" if train == "9k" else f"msrvtt-1ka-{train}"
    if split == "test":
        path = find_file(folder, TEST_CSV, "MSR-VTT 1k-A test file")
        rows = read_csv(path, ("video_id", "sentence"), encoding)
        return build_split(name, split, "one", [_clip(r["video_id"].strip(), [r["sentence"]]) for r in rows], sources=[path])
    if split == "train":
        path = find_file(folder, (f"MSRVTT_train.{train}.csv",), f"MSR-VTT {train} training list")
        return _listed(name, split, read_ids(path, encoding, header="video_id"), read_captions(folder, encoding), path)
    raise UsageProblem(
        f"{name} has no '{split}' split, only train and test",
        "the field calls the test split 'val' and selects models on it; hold out a part of train instead",
    )


def load_full(folder: Path, split: str, encoding: str = "utf-8") -> Split:
    """The full split (6,513 / 497 / 2,990 videos): every caption is a query. Lists, or else the JSON's `split` field."""
    captions = read_captions(folder, encoding)
    named = {"train": "train", "val": "validate", "test": "test"}
    if split not in named:
        raise UsageProblem(f"msrvtt-full has no '{split}' split", "it has train, val and test")
    path = find_optional(folder, (f"{split}_list_full.txt",))
    if path is not None:
        return _listed("msrvtt-full", split, read_ids(path, encoding), captions, path)
    ids = [video for video, own in captions.split_of.items() if own in (named[split], split)]
    if not ids:
        raise InputError(
            f"{folder}: no video of the '{split}' split of MSR-VTT full",
            f"add {split}_list_full.txt, or an MSRVTT_data.json whose videos have a 'split'",
        )
    return _listed("msrvtt-full", split, ids, captions, None)


def load_1kb(folder: Path, split: str, encoding: str = "utf-8") -> Split:
    """1k-B (Miech): 6,656 / 1,000 videos, every caption is a query."""
    if split not in ("train", "test"):
        raise UsageProblem(f"msrvtt-1kb has no '{split}' split, only train and test")
    path = find_file(folder, (f"{split}_list_miech.txt",), "MSR-VTT 1k-B list")
    return _listed("msrvtt-1kb", split, read_ids(path, encoding), read_captions(folder, encoding), path)


def _listed(benchmark: str, split: str, ids: Sequence[str], captions: _Captions, path: Path | None) -> Split:
    policy: CaptionPolicy = "all"
    clips = [_clip(video, captions.by_video.get(video, ())) for video in ids]
    sources = (*captions.sources, path) if path else captions.sources
    return build_split(benchmark, split, policy, clips, notes=captions.notes, sources=sources)
