"""Videos made in code, with the number of each frame drawn into its picture so that no decoder can pass off one for another.

The upper half of a picture is a strip of 12 cells, black or white: the frame's number in binary, highest bit first.
The lower half drifts with the number, so that encoders have something to do.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

BITS = 12
SIZE = (96, 64)  # width, height


def picture(number: int, size: tuple[int, int] = SIZE) -> NDArray[np.uint8]:
    """Frame `number` as uint8 `[H, W, 3]` RGB."""
    width, height = size
    x, y = np.arange(width), np.arange(height)[:, None]
    frame = np.empty((height, width, 3), np.uint8)
    frame[...] = ((x * 2 + y + number * 3) % 128 + 64)[..., None]
    cells = np.minimum(x * BITS // width, BITS - 1)
    strip = np.where(number >> (BITS - 1 - cells) & 1, 235, 16)
    frame[: height // 2] = strip[None, :, None]
    return frame


def number_in(frame: NDArray[np.uint8]) -> int:
    """The number that is drawn into a picture of any size."""
    height, width, _ = frame.shape
    columns = ((np.arange(BITS) + 0.5) * width / BITS).astype(int)
    rows = slice(height // 8, max(height // 8 + 1, height * 3 // 8))
    bits = frame[rows, columns].astype(float).mean(axis=(0, 2)) > 128
    return int(sum(int(bit) << (BITS - 1 - i) for i, bit in enumerate(bits)))


def numbers_in(frames: Sequence[NDArray[np.uint8]]) -> list[int]:
    return [number_in(f) for f in frames]


def write_video(
    path: Path,
    count: int = 60,
    *,
    codec: str = "libx264",
    rate: Fraction | int = 30,
    size: tuple[int, int] = SIZE,
    pix_fmt: str = "yuv420p",
    format: str | None = None,
    first: int = 0,
    pts: Sequence[int] | None = None,
    time_base: Fraction | None = None,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    clockwise: int = 0,
    sound: bool = False,
) -> Path:
    """Encode pictures `first` ... `first + count - 1`.

    pts: presentation times in units of `time_base` (one per frame; default one frame each at `rate`). clockwise: the
    pictures are stored turned against this angle and the file tells players to turn them: they show upright.
    sound: adds a second stream of silence.
    """
    with av.open(str(path), "w", format=format, options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=rate, options=options or {})
        stored = np.rot90(picture(0, size), clockwise // 90)
        stream.height, stream.width = stored.shape[:2]
        stream.pix_fmt = pix_fmt
        if time_base is not None:
            stream.codec_context.time_base = time_base
        if clockwise:
            if not hasattr(stream, "set_display_rotation"):
                pytest.skip(f"PyAV {av.__version__} cannot write rotation metadata")
            stream.set_display_rotation(-clockwise)
        audio = container.add_stream("aac", rate=48000, layout="mono") if sound else None
        for i in range(count):
            stored = np.ascontiguousarray(np.rot90(picture(first + i, size), clockwise // 90))
            frame = av.VideoFrame.from_ndarray(stored, format="rgb24")
            frame.pts = i if pts is None else pts[i]
            frame.time_base = time_base or 1 / Fraction(rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if audio is not None:
            for i in range(count * 48000 // int(rate) // 1024):
                silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
                silence.sample_rate, silence.pts, silence.time_base = 48000, i * 1024, Fraction(1, 48000)
                container.mux(audio.encode(silence))
            container.mux(audio.encode())
    return path


def write_sound(path: Path, cover: bool = False) -> Path:
    """One second of silence, with a still picture as cover art if wished."""
    with av.open(str(path), "w", format="mp4") as container:
        audio = container.add_stream("aac", rate=48000, layout="mono")
        art = None
        if cover:
            art = container.add_stream("png", rate=1, options={})
            art.width, art.height, art.pix_fmt = 32, 32, "rgb24"
            art.disposition = av.stream.Disposition.attached_pic.value
        for i in range(46):
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            silence.sample_rate, silence.pts, silence.time_base = 48000, i * 1024, Fraction(1, 48000)
            container.mux(audio.encode(silence))
        container.mux(audio.encode())
        if art is not None:
            container.mux(art.encode(av.VideoFrame.from_ndarray(picture(5, (32, 32)), format="rgb24")))
            container.mux(art.encode())
    return path


def with_cover(source: Path, target: Path) -> Path:
    """Copy a video and put cover art, a still picture of another number, in front of it."""
    with av.open(str(source)) as given, av.open(str(target), "w", format="mp4") as made:
        art = made.add_stream("png", rate=1, options={})
        art.width, art.height, art.pix_fmt = 96, 64, "rgb24"
        art.disposition = av.stream.Disposition.attached_pic.value
        stream = given.streams.video[0]
        copy = made.add_stream_from_template(stream)
        made.mux(art.encode(av.VideoFrame.from_ndarray(picture(4000), format="rgb24")))
        made.mux(art.encode())
        for packet in given.demux(stream):
            if packet.dts is not None:
                packet.stream = copy
                made.mux(packet)
    return target


def cut_copy(source: Path, target: Path, start: int) -> Path:
    """Copy packets so that the file begins at frame `start`, without encoding: what `ffmpeg -ss -c copy` does.

    All packets from the keyframe before are copied; an edit list tells players to hide those before the cut.
    """
    with av.open(str(source)) as given, av.open(str(target), "w", options={"avoid_negative_ts": "disabled"}) as made:
        stream = given.streams.video[0]
        copy = made.add_stream_from_template(stream)
        shift = int(Fraction(start) / stream.average_rate / stream.time_base)
        for packet in given.demux(stream):
            if packet.dts is None:
                continue
            packet.pts -= shift
            packet.dts -= shift
            packet.stream = copy
            made.mux(packet)
    return target
