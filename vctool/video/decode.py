"""Frames of one video, chosen by time. For many files, or files that are not trusted, use `workers.DecodePool`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vctool.errors import UsageProblem, VctoolError, VideoError
from vctool.video.reader import DecodedFrames, FrameReader, Picture, Transform, TransformError, open_reader
from vctool.video.sample import Sampling

__all__ = ["DecodedFrames", "decode_frames", "guarded", "read_frames"]


def decode_frames(
    path: str | Path,
    count: int | Sampling,
    *,
    start: float | None = None,
    end: float | None = None,
    decoder: str = "pyav",
    transform: Transform | None = None,
) -> DecodedFrames:
    """Decode at most `count` frames, evenly spread over the presented frames of `[start, end)` seconds, or as a `Sampling` says.

    start, end: seconds from the first presented picture; None is the beginning or the end of the file.
    transform: called with each kept frame (uint8 `[H, W, 3]` RGB after rotation) as soon as it is decoded; what it
    returns is kept in the frame's place, so that large pictures never pile up. Its exceptions reach the caller.

    Fewer frames than asked come back where the video has fewer, or where it is damaged: never the same one twice, and
    never none (beside a hole FFmpeg may patch a picture, or all of it, from its neighbours). Raises VideoError (with a
    short reason) where not one frame can be had, MissingExtraError where the decoder is not installed, UsageProblem for
    an impossible `count`, `start` or `end`.
    """
    return read_frames(open_reader(decoder), path, count, start=start, end=end, transform=transform)


def read_frames(
    reader: FrameReader,
    path: str | Path,
    count: int | Sampling,
    *,
    start: float | None = None,
    end: float | None = None,
    transform: Transform | None = None,
) -> DecodedFrames:
    """`decode_frames` with a reader that is kept between calls: pieces of one file then share one reading of its timeline."""
    sampling = count if isinstance(count, Sampling) else Sampling(count)
    for name, value in (("start", start), ("end", end)):
        if value is not None and not (math.isfinite(value) and value >= 0):
            raise UsageProblem(f"{name} must be a number of seconds, 0 or more, not {value}")
    if start is not None and end is not None and end <= start:
        raise UsageProblem(f"the end of a piece must come after its start: {start:g}-{end:g} s")
    with guarded(Path(path)):
        return reader.decode(Path(path), sampling, start, end, transform or _as_it_is)


@contextmanager
def guarded(path: Path) -> Iterator[None]:
    """The one boundary behind which decoders may raise anything: what comes out is a VctoolError.

    Fuzzed files make PyAV raise UnicodeDecodeError, AttributeError, MemoryError and more; a list would never be complete.
    """
    try:
        yield
    except VctoolError:
        raise
    except TransformError as problem:
        raise problem.__cause__ or problem from None
    except MemoryError:
        raise VideoError(path, "not enough memory to decode it") from None
    except Exception as problem:
        words = str(problem).strip().splitlines()
        raise VideoError(path, f"cannot be decoded ({type(problem).__name__}{': ' + words[0][:200] if words else ''})") from problem


def _as_it_is(frame: Picture) -> Picture:
    return frame
