"""MSVD: 1,200 / 100 / 670 clips, every caption is a query (about 41 per clip, varying)."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

from vctool.data.files import find_file, find_optional, read_ids, read_json
from vctool.data.records import Clip, Split, build_split
from vctool.errors import InputError, UsageProblem


class _Containers(pickle.Unpickler):
    """Reads only dicts, lists and strings: a pickle that asks for any class could run code, and is refused."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        raise InputError(f"the pickle asks for {module_name}.{global_name}: only plain dicts, lists and texts are read")


def load(folder: Path, split: str, encoding: str = "utf-8") -> Split:
    """`captions_msvd.json` (X-Pool: id -> texts) or `raw-captions.pkl` (CLIP4Clip: id -> token lists), and the id lists."""
    if split not in ("train", "val", "test"):
        raise UsageProblem(f"msvd has no '{split}' split", "it has train, val and test")
    listing = find_file(folder, (f"{split}_list.txt",), f"MSVD {split} list")
    ids = read_ids(listing, encoding)
    captions, source = _captions(folder, split, encoding)
    clips = [_clip(one, captions.get(one, [])) for one in ids]
    outside = len(captions.keys() - set(ids))
    notes = [f"{outside} captioned clips of the file are not in the {split} list"] if outside and split in source.name else []
    return build_split("msvd", split, "all", clips, notes=notes, sources=[listing, source])


def _captions(folder: Path, split: str, encoding: str) -> tuple[dict[str, list[str]], Path]:
    path = find_optional(folder, ("captions_msvd.json", f"captions_msvd.{split}.json"))
    if path is not None:
        document = read_json(path, encoding)
    else:
        path = find_file(folder, ("raw-captions.pkl",), "MSVD captions (captions_msvd.json or raw-captions.pkl)")
        try:
            document = _Containers(io.BytesIO(path.read_bytes()), encoding="utf-8").load()
        except InputError as problem:
            raise InputError(f"{path}: {problem.message}") from None
        except (pickle.UnpicklingError, EOFError, ValueError, IndexError, KeyError, UnicodeDecodeError) as problem:
            raise InputError(f"{path}: not a readable pickle ({problem})") from None
    if not isinstance(document, dict):
        raise InputError(f"{path}: expected an object of clip id -> captions, got {type(document).__name__}")
    return {str(one): _texts(one, own, path) for one, own in document.items()}, path


def _texts(one: Any, own: Any, path: Path) -> list[str]:
    if not isinstance(own, list):
        raise InputError(f"{path}: the captions of '{one}' are not a list")
    joined = [" ".join(c) if isinstance(c, list) and all(isinstance(t, str) for t in c) else c for c in own]
    if not all(isinstance(caption, str) for caption in joined):
        raise InputError(f"{path}: the captions of '{one}' are neither texts nor lists of words")
    return joined


def _clip(one: str, captions: list[str]) -> Clip:
    source, start, end = split_times(one)
    span = (start, end) if source is not None and start is not None and end is not None else None
    return Clip(id=one, captions=tuple(captions), stems=(one,), source=source if span else None, source_span=span)


def split_times(clip_id: str) -> tuple[str | None, float | None, float | None]:
    """`ytid_start_end` cut from the right, for the id itself may hold `_` and begin with `-`; (None, None, None) if it is not so."""
    parts = clip_id.rsplit("_", 2)
    if len(parts) == 3 and parts[0] and parts[1].isdecimal() and parts[2].isdecimal() and int(parts[1]) < int(parts[2]):
        return parts[0], float(parts[1]), float(parts[2])
    return None, None, None
