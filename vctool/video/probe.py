"""What is in a video file, without decoding more than its first picture."""

from __future__ import annotations

from pathlib import Path

from vctool.video.decode import guarded
from vctool.video.reader import VideoInfo, open_reader

__all__ = ["VideoInfo", "probe"]


def probe(path: str | Path, decoder: str = "pyav") -> VideoInfo:
    """Size, duration (seconds), codec and the time of every presented frame of a file.

    All packets are read but only the first picture is decoded, so the cost is that of reading the file.
    Raises VideoError where the file has no picture to show, MissingExtraError where the decoder is not installed.
    """
    reader = open_reader(decoder)
    with guarded(Path(path)):
        return reader.probe(Path(path))
