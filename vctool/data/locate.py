"""Where on disk a clip's video lies: by path, else by the file's name without its suffix."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from vctool.data.records import Clip
from vctool.errors import InputError

_ENDINGS = "mp4 m4v mov mkv webm avi mpg mpeg m2ts mts ts 3gp 3g2 flv f4v wmv asf ogv ogg gif vob mxf y4m divx"
SUFFIXES = frozenset(f".{ending}" for ending in _ENDINGS.split(" "))


def strip_suffix(name: str) -> str:
    """The name without a video suffix; other dots stay (LSMDC ids are full of them), a bare trailing dot goes (DiDeMo)."""
    dot = name.rfind(".")
    if dot > 0 and name[dot:].lower() in SUFFIXES:
        return name[:dot]
    return name.removesuffix(".")


@dataclass(frozen=True)
class Located:
    """A clip's file and the piece of it in seconds (None: from the start, to the end)."""

    path: Path
    start: float | None
    end: float | None


class VideoFolder:
    """An index over one folder of videos, made once: name without suffix -> file. Later spellings of a name are counted."""

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise InputError(f"{root} is not a folder", "give the folder that holds the videos")
        self.root = root
        self._by_stem: dict[str, Path] = {}
        self.files = 0
        self.ambiguous = 0
        for folder, folders, names in os.walk(root):
            folders.sort()
            for name in sorted(names):
                stem = strip_suffix(name)
                # A file without a video suffix counts only under its whole name: `x.txt` is no clip called `x`.
                path = Path(folder) / name
                if Path(name).suffix.lower() in SUFFIXES:
                    self.files += 1
                for key in {stem, path.relative_to(root).parent.joinpath(stem).as_posix()}:
                    if key in self._by_stem:
                        self.ambiguous += key == stem
                    else:
                        self._by_stem[key] = path

    def find(self, clip: Clip) -> Located | None:
        """The clip's file: its own path, then its names best first, then the untrimmed video it was cut from."""
        if clip.path is not None and clip.path.is_file():
            return Located(clip.path, clip.start, clip.end)
        for stem in clip.stems:
            found = self._by_stem.get(stem)
            if found is not None:
                return Located(found, clip.start, clip.end)
        if clip.source is not None and clip.source_span is not None and (whole := self._by_stem.get(clip.source)) is not None:
            return Located(whole, *clip.source_span)
        return None


def locate(clip: Clip, folder: VideoFolder | None) -> Located | None:
    """The clip's file, in `folder` or at the path its manifest gave; None if it is not there."""
    if folder is not None:
        return folder.find(clip)
    if clip.path is not None and clip.path.is_file():
        return Located(clip.path, clip.start, clip.end)
    return None
