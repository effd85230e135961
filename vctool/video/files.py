"""Which clips a user means: files, folders, globs and manifests, turned into one list in a fixed order."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from vctool.errors import InputError
from vctool.video.clip import VideoInput
from vctool.video.manifest import read_manifest

__all__ = ["VIDEO_SUFFIXES", "VideoInput", "find_videos"]

# What counts as a video inside a folder. A file that is named itself is always taken, whatever its suffix.
# fmt: off
VIDEO_SUFFIXES = frozenset((
    ".3g2", ".3gp", ".asf", ".avi", ".divx", ".f4v", ".flv", ".gif", ".m2ts", ".m2v", ".m4v", ".mkv", ".mov", ".mp4",
    ".mpeg", ".mpg", ".mts", ".mxf", ".nut", ".ogm", ".ogv", ".rm", ".rmvb", ".ts", ".vob", ".webm", ".wmv", ".y4m",
))
# fmt: on


def find_videos(inputs: Sequence[str | Path]) -> list[VideoInput]:
    """The clips that `inputs` name, in the order of the inputs; inside a folder or glob by name.

    A folder gives every file in it and below with one of VIDEO_SUFFIXES; hidden files and folders are left out, and
    links are followed but no folder is entered twice. A glob (`clips/**/*.mp4`) that the shell left alone is expanded.
    A `.jsonl` file is a manifest (see `manifest.read_manifest`). Any other name is taken as it is, also if there is no
    such file: that is reported when it is read, next to the other files that cannot be used.

    The id of a file is its path below the deepest folder common to all inputs, with forward slashes; of a manifest's
    row its `id`, or its path as the manifest has it; a piece without an `id` gets `#start-end` behind that. A file
    that several inputs name counts once.

    Raises InputError for an input that matches nothing, a folder without videos, a bad manifest line, two clips of one id.
    """
    if not inputs:
        raise InputError("no videos given", "name files, folders, globs or a .jsonl manifest")
    found: list[tuple[Path, VideoInput | None]] = []  # a manifest's rows are finished; files still need an id
    roots: list[Path] = []
    for given in inputs:
        if not str(given):
            raise InputError("an input is the empty string", "is a shell variable not set?")
        for path in _expand(str(given)):
            if path.is_dir():
                roots.append(_whole(path))
                found += [(p, None) for p in _videos_below(path)]
            elif path.suffix.lower() == ".jsonl":
                found += [(row.path, row) for row in read_manifest(path)]
            else:
                roots.append(_whole(path).parent)
                found.append((path, None))
    return _named(found, _common(roots))


def _expand(given: str) -> list[Path]:
    path = Path(given)
    if not glob.has_magic(given) or _exists(path):
        return [path]
    matches = sorted(glob.glob(given, recursive=True))  # noqa: PTH207 (Path.glob takes no absolute pattern)
    if not matches:
        raise InputError(f"nothing matches '{given}'", "check the pattern and the folder that it starts from")
    return [Path(m) for m in matches]


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def _videos_below(folder: Path) -> list[Path]:
    videos = sorted(_walk(folder, set()), key=lambda p: p.relative_to(folder).as_posix())
    if not videos:
        raise InputError(f"no videos in {folder}", f"looked for files ending in {' '.join(sorted(VIDEO_SUFFIXES))}")
    return videos


def _walk(folder: Path, entered: set[tuple[int, int]]) -> Iterator[Path]:
    try:
        status = folder.stat()
        entries = sorted(os.scandir(folder), key=lambda e: e.name)
    except OSError as problem:
        raise InputError(f"{folder} cannot be read: {problem.strerror}") from None
    if (status.st_dev, status.st_ino) in entered:
        return  # a link back to a folder above
    entered.add((status.st_dev, status.st_ino))
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from _walk(folder / entry.name, entered)
        elif os.path.splitext(entry.name)[1].lower() in VIDEO_SUFFIXES:  # noqa: PTH122 (folders of 100,000 pictures: half the time)
            yield folder / entry.name


def _whole(path: Path) -> Path:
    """From the root and without `..`, but with its links as they are: an id must not depend on where a link points."""
    return Path(os.path.normpath(path.absolute()))


def _common(folders: list[Path]) -> Path | None:
    try:
        return Path(os.path.commonpath(folders)) if folders else None
    except ValueError:  # different drives
        return None


def _named(found: list[tuple[Path, VideoInput | None]], common: Path | None) -> list[VideoInput]:
    clips: dict[str, VideoInput] = {}
    for path, row in found:
        whole = _whole(path)
        clip = row or VideoInput(_printable((whole.relative_to(common) if common else whole).as_posix()), path)
        other = clips.setdefault(clip.id, clip)
        if other is clip or (row is None and _whole(other.path) == whole and other.start is None and other.end is None):
            continue
        raise InputError(f"two clips have the id '{clip.id}': {other.path} and {clip.path}", 'give them an "id" of their own in a manifest')
    return list(clips.values())


def _printable(name: str) -> str:
    """Bytes of a file name that are not UTF-8 become `\\xe9`: an id must fit into a text file."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
