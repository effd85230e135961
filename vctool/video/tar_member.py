"""Videos that lie in tar files, as WebDataset shards have them: `shard.tar/000012.mp4` names a member, read where it lies.

A tar file that is not compressed holds its members' bytes in one piece, so FFmpeg can read one through its `subfile` protocol: nothing
is unpacked, and any clip can be read at once.
"""

from __future__ import annotations

import os
import tarfile
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from vctool.errors import VideoError


class Member(NamedTuple):
    """A member of a tar file: `size` bytes from `offset` on."""

    tar: Path
    offset: int
    size: int


def member_of(path: Path) -> Member | None:
    """The member that `path` names, or None where it names a file. Raises VideoError where there is no such member."""
    tar = next((parent for parent in path.parents if parent.suffix == ".tar"), None)
    if tar is None or tar.is_dir():
        return None
    try:
        status = tar.stat()
        known = _members(tar, status.st_mtime_ns, status.st_size)
    except OSError as problem:
        raise VideoError(path, f"{tar.name}: {problem.strerror or 'cannot be read'}") from None
    except tarfile.TarError:
        raise VideoError(path, f"{tar.name} is not a tar file, or is compressed") from None
    name = path.relative_to(tar).as_posix()
    if name not in known:
        raise VideoError(path, f"{tar.name} has no member '{name}'")
    return Member(tar, *known[name])


def ffmpeg_url(path: Path, member: Member | None) -> str:
    """What FFmpeg opens: the file, or the bytes of a member. `file:` since what stands before a colon is taken for a protocol."""
    if member is None:
        return f"file:{path}"
    return f"subfile,,start,{member.offset},end,{member.offset + member.size},,:file:{member.tar}"


def stat_clip(path: Path) -> tuple[int, int]:
    """Size in bytes and time of change in ns of a file or member: what tells that it was replaced. Raises OSError, VideoError."""
    member = member_of(path)
    if member is None:
        status = path.stat()
        return status.st_size, status.st_mtime_ns
    return member.size, member.tar.stat().st_mtime_ns


@lru_cache(maxsize=64)
def _members(tar: Path, changed: int, size: int) -> dict[str, tuple[int, int]]:
    """Offset and size of each regular member, by name; `changed` and `size` keep an old table from being used for a new file."""
    with tarfile.open(os.fspath(tar), "r:") as archive:
        return {member.name.removeprefix("./"): (member.offset_data, member.size) for member in archive if member.isreg()}
