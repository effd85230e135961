"""A media file opened with care: every way in which a file can fail to be a video gets its own short reason."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av

from vctool.errors import VideoError
from vctool.video.tar_member import ffmpeg_url, member_of

# Demuxing goes on after an error (a hole in an MPEG-TS is not its end), but not for ever.
MAX_DEMUX_ERRORS = 100
NOT_A_VIDEO = "not a video (no decodable stream)"


def check_file(path: Path) -> os.stat_result:
    """`stat` of a file that can be read more than once (of a member of a tar file, the tar's). Raises VideoError with the reason."""
    member = member_of(path)
    if member is not None:
        if not member.size:
            raise VideoError(path, "file is empty (0 bytes)")
        return check_file(member.tar)
    try:
        status = path.stat()
    except FileNotFoundError:
        raise VideoError(path, "no such file") from None
    except NotADirectoryError:
        raise VideoError(path, "no such file") from None
    except PermissionError:
        raise VideoError(path, "permission denied") from None
    except (OSError, ValueError) as problem:
        raise VideoError(path, _os_reason(problem)) from None
    if stat.S_ISDIR(status.st_mode):
        raise VideoError(path, "is a folder")
    if not stat.S_ISREG(status.st_mode):
        raise VideoError(path, "is not a regular file", "decoding reads a file twice: save the stream to a file first")
    if status.st_size == 0:
        raise VideoError(path, "file is empty (0 bytes)")
    try:
        path.open("rb").close()
    except PermissionError:
        raise VideoError(path, "permission denied") from None
    except OSError as problem:
        raise VideoError(path, _os_reason(problem)) from None
    return status


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """The file as a PyAV container, closed at the end. Raises VideoError where FFmpeg finds no known format in it."""
    check_file(path)
    try:
        # `file:` because FFmpeg takes what stands before a colon in a name for a protocol. From a local file FFmpeg opens
        # only local files: a playlist that calls itself .mp4 fetches nothing.
        container = av.open(ffmpeg_url(path, member_of(path)), metadata_errors="replace")
    except av.FFmpegError:
        # The file itself can be read (`check_file`): whatever FFmpeg calls it, what is in it cannot.
        raise VideoError(path, _why_unreadable(path)) from None
    with container:
        yield container


def picture_stream(container: Any, path: Path) -> Any:
    """The stream to show: the default one, else the first, that is not cover art. Raises VideoError if there is none."""
    moving = [s for s in container.streams.video if not _is_cover_art(s)]
    if not moving:
        has_sound = len(container.streams.audio) > 0
        raise VideoError(path, "has sound but no picture" if has_sound else NOT_A_VIDEO)
    usable = [s for s in moving if s.codec_context is not None]
    if not usable:
        raise VideoError(path, "its codec is not supported by this decoder")
    stream = next((s for s in usable if s.disposition & av.stream.Disposition.default), usable[0])
    # Clips are decoded side by side in processes: threads inside a decoder would only get in each other's way,
    # and with one thread a damaged file gives the same frames every time.
    stream.codec_context.thread_count = 1
    return stream


class PacketSource:
    """Packets of one stream in file order, going on after errors. `errors` counts what could not be read."""

    def __init__(self, container: Any, stream: Any) -> None:
        self.container = container
        self.stream = stream
        self.errors = 0

    def __iter__(self) -> Iterator[Any]:
        in_a_row = 0
        while True:
            try:
                for packet in self.container.demux(self.stream):
                    in_a_row = 0
                    if packet.size:
                        yield packet
                return
            except GeneratorExit:
                raise
            except Exception:
                self.errors += 1
                in_a_row += 1
                if in_a_row >= MAX_DEMUX_ERRORS:
                    return


def has_format(container: Any, names: tuple[str, ...]) -> bool:
    """Whether FFmpeg recognised one of these formats (its name for mp4 and mov is `mov,mp4,m4a,3gp,3g2,mj2`)."""
    return any(name in container.format.name for name in names)


def _is_cover_art(stream: Any) -> bool:
    return bool(stream.disposition & (av.stream.Disposition.attached_pic | av.stream.Disposition.timed_thumbnails))


def _os_reason(problem: Exception) -> str:
    if isinstance(problem, OSError):
        if problem.errno == errno.ENAMETOOLONG:
            return "the file name is too long"
        if problem.errno is not None and problem.errno > 0:
            return f"cannot be opened ({os.strerror(problem.errno).lower()})"
    return f"cannot be opened ({problem})"


def _why_unreadable(path: Path) -> str:
    """A recording that was cut before its index was written is the commonest unreadable file: say so."""
    boxes, ending = _top_boxes(path)
    if not {"ftyp", "moov", "mdat"} & set(boxes):
        return NOT_A_VIDEO
    if ending == "cut" and boxes[-1] == "moov":
        return "cut short: the file ends inside its index (moov)"
    if ending != "broken" and not {"moov", "moof"} & set(boxes):
        return "cut short: the index (moov) that belongs at its end is missing"
    return "damaged: its index cannot be read"


def _top_boxes(path: Path) -> tuple[list[str], str]:
    """Types of the boxes at the top level of an ISO file (mp4, mov), and whether their chain is `whole`, `cut` or `broken`."""
    found: list[str] = []
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        at = 0
        while at + 8 <= size:
            file.seek(at)
            head = file.read(16)
            length, kind = int.from_bytes(head[:4], "big"), head[4:8]
            if length == 1 and len(head) == 16:
                length = int.from_bytes(head[8:16], "big")
            if length == 0:  # to the end of the file
                length = size - at
            if length < 8 or not kind.isalnum() or len(found) > 1000:
                return found, "broken"
            found.append(kind.decode("ascii"))
            at += length
    return found, "whole" if at == size else "cut"
