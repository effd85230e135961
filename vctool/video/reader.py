"""What a decoder is: three plain types and the table of decoders that come with vctool.

Shape letters: F frames kept or presented, H height, W width. Times are seconds from the first presented picture.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from vctool.errors import MissingExtraError, UsageProblem
from vctool.video.sample import Sampling

Picture = NDArray[np.uint8]  # [H, W, 3], RGB
Transform = Callable[[Picture], Picture]

DECODERS = {
    "pyav": "vctool.video.pyav_reader:PyavReader",
    "decord": "vctool.video.decord_reader:DecordReader",
}


@dataclass(frozen=True)
class VideoInfo:
    """What a file says about its pictures.

    width, height: pixels as displayed, that is after rotation (non-square pixels are not stretched).
    duration: seconds from the first presented picture to the end of the last one.
    frame_times_F: float64 `[F]`, seconds, non-decreasing, the first is 0; None where an answer travels between processes.
    codec: FFmpeg's name (`h264`, `vp9`, ...). rotation: degrees clockwise that were applied, one of 0, 90, 180, 270.
    frame_count: number of presented frames.
    """

    path: Path
    width: int
    height: int
    duration: float
    frame_times_F: NDArray[np.float64] | None
    codec: str
    rotation: int
    frame_count: int


@dataclass(frozen=True)
class DecodedFrames:
    """The frames that were asked for, as far as they could be decoded (at least one), in the order of their times.

    frames: `[H, W, 3]` uint8 RGB arrays at source size after rotation, or whatever the transform made of them.
    times_F: float64 `[F]`, seconds from the first presented picture of the whole file, from the container's timestamps.
    damaged: how many pieces of the stream were missing or could not be decoded on the way (0 for a sound file).
    """

    frames: list[Picture]
    times_F: NDArray[np.float64]
    info: VideoInfo
    damaged: int = 0


class FrameReader(Protocol):
    """One decoder. It may remember the last file it looked at, so one reader belongs to one thread."""

    def probe(self, path: Path) -> VideoInfo:
        """Read a file's timeline. Raises VideoError, or anything else the library raises."""

    def decode(self, path: Path, sampling: Sampling, start: float | None, end: float | None, transform: Transform) -> DecodedFrames:
        """Decode the frames of `[start, end)` that `sampling` chooses. Raises VideoError, or anything else the library raises."""

    def shots(self, path: Path) -> NDArray[np.float64]:
        """When each shot of a file begins: float64 `[S]`, seconds, increasing from 0. Decodes the whole file. Raises as `decode`."""


class TransformError(Exception):
    """Carries an exception of the caller's own transform past the error boundary of decoding (as `__cause__`)."""


def apply(transform: Transform, picture: Picture) -> Picture:
    """`transform(picture)`, where a failure of the transform is not mistaken for a damaged frame."""
    try:
        return transform(picture)
    except Exception as problem:
        raise TransformError from problem


def open_reader(decoder: str) -> FrameReader:
    """A new reader by name: `pyav`, `decord`, or `package.module:Class` for a decoder of your own.

    Raises MissingExtraError where the decoder's library is not installed, UsageProblem for an unknown name.
    """
    if decoder == "decord" and importlib.util.find_spec("decord") is None:
        raise MissingExtraError("decord", "decord")
    module_name, _, class_name = DECODERS.get(decoder, decoder).partition(":")
    try:
        if not class_name:
            raise ImportError(f"no decoder of the name {decoder!r}")
        make: Any = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError, ValueError) as problem:
        raise UsageProblem(f"unknown decoder '{decoder}': {problem}", f"choose one of: {', '.join(DECODERS)}") from None
    return cast(FrameReader, make())
