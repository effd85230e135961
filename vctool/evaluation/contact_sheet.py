"""Contact sheets: a few frames of a clip in a row, each with its second. Clips are decoded in processes that may crash.

Shape letters: F frames, S side of a tile.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from vctool.config import PreprocessConfig
from vctool.data import Located
from vctool.evaluation.html import Picture
from vctool.video.clip import VideoInput
from vctool.video.workers import DecodePool

TILE, TILES, GAP = 112, 5, 3
_QUALITY = 72


def contact_sheets(
    places: Mapping[str, Located], *, workers: int = 1, progress: Callable[[int, int], None] | None = None
) -> dict[str, Picture | str]:
    """A sheet for each clip id, or the reason why there is none."""
    sheets: dict[str, Picture | str] = {}
    present: list[VideoInput] = []
    for one, place in places.items():
        if place.path.is_file():
            present.append(VideoInput(one, place.path, place.start, place.end))
        else:
            sheets[one] = "the video is not on this machine"
    if not present:
        return sheets
    tiles = PreprocessConfig(size=TILE, resize="shortest", interpolation="bilinear")
    with DecodePool(workers, count=TILES, transform_config=tiles) as pool:
        for done, result in enumerate(pool.run(present), start=1):
            if result.frames_FHWC is None or result.times_F is None:
                sheets[result.input.id] = f"the video cannot be shown: {result.error}"
            else:
                sheets[result.input.id] = sheet(result.input.id, result.frames_FHWC, result.times_F)
            if progress is not None:
                progress(done, len(present))
    return sheets


def sheet(name: str, frames_FSSC: NDArray[np.uint8], times_F: NDArray[np.float64]) -> Picture:
    """Frames uint8 [F, S, S, 3] side by side as a JPEG, with their seconds."""
    from PIL import Image, ImageDraw, ImageFont

    side = frames_FSSC.shape[1]
    size = (len(frames_FSSC) * (side + GAP) - GAP, side)
    image = Image.new("RGB", size, (128, 128, 128))
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(12)
    for number, (frame, second) in enumerate(zip(frames_FSSC, times_F.tolist(), strict=True)):
        left = number * (side + GAP)
        image.paste(Image.fromarray(frame), (left, 0))
        words = f"{second:.1f} s"
        box = draw.textbbox((left + 4, side - 17), words, font=font)
        draw.rectangle((box[0] - 2, box[1] - 1, box[2] + 2, box[3] + 1), fill=(0, 0, 0))
        draw.text((left + 4, side - 17), words, fill=(255, 255, 255), font=font)
    out = io.BytesIO()
    image.save(out, format="JPEG", quality=_QUALITY, optimize=True)
    seconds = ", ".join(f"{second:.1f}" for second in times_F.tolist())
    return Picture(out.getvalue(), f"{len(frames_FSSC)} frames of {name} at {seconds} seconds", size)


def place_ids(ids: Iterable[str], places: Mapping[str, Located]) -> dict[str, Located]:
    """The places of some clips, each once."""
    return {one: places[one] for one in ids if one in places}
