"""From a decoded frame to the square of pixels a model takes: resize and crop through Pillow, without torch.

The result equals open_clip's own transform (torchvision's `Resize` and `CenterCrop` on a PIL image) before normalisation. Mean and
standard deviation are not applied here: the exported frame graph takes uint8 and normalises inside, so that what travels
from the decode workers is a quarter of the size.

Resizing only what the crop keeps would be 1.3 to 1.6 times as fast, and is not done: Pillow chooses by its own reckoning which side it
resizes first, rounds to 8 bits in between, and reckons otherwise for the smaller piece. One picture in fifty then differs, by up to 27.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vctool.config import PreprocessConfig
from vctool.errors import InputError

# Beyond this aspect ratio the resized picture before the crop would be mostly thrown away (a 4000x1 strip at 224 becomes
# 896,000 pixels wide), so only the part that survives the crop is computed; there, and only there, a pixel may differ by more than one.
_MODERATE_ASPECT = 32.0


class Preprocessor:
    """Resizes and crops one frame as `preprocess.json` says. Cheap to build; picklable; safe to share between threads."""

    def __init__(self, config: PreprocessConfig) -> None:
        if config.size < 1:
            raise InputError(f"preprocess.json: size is {config.size}, expected at least 1 pixel")
        self.config = config

    def __call__(self, frame_HWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """uint8 RGB `[H, W, 3]` of any size to uint8 `[S, S, 3]`, S = `config.size`.

        `shortest`: the short side becomes S, then the centre is cropped at `round((side - S) / 2)`. `squash`: both sides
        become S. `longest`: the long side becomes S, and black is put on both sides of the short one. All antialiased.

        Raises InputError if the array is not a uint8 RGB frame.
        """
        from PIL import Image

        if frame_HWC.ndim != 3 or frame_HWC.shape[2] != 3 or frame_HWC.dtype != np.uint8 or 0 in frame_HWC.shape:
            raise InputError(f"a frame must be uint8 [height, width, 3], got {frame_HWC.dtype} {list(frame_HWC.shape)}")
        picture = Image.fromarray(np.ascontiguousarray(frame_HWC))
        bicubic = self.config.interpolation == "bicubic"
        filter_ = Image.Resampling.BICUBIC if bicubic else Image.Resampling.BILINEAR
        size = self.config.size
        if self.config.resize == "squash":
            return np.array(picture.resize((size, size), filter_), dtype=np.uint8)
        if self.config.resize == "longest":
            return np.array(_longest(picture, size, filter_), dtype=np.uint8)
        return np.array(_shortest(picture, size, filter_), dtype=np.uint8)


def _shortest(picture: Any, size: int, filter_: Any) -> Any:
    width, height = picture.size
    short, long = min(width, height), max(width, height)
    # torchvision computes the long side with integer truncation; the crop offset with Python's round (half to even).
    new_long = int(size * long / short)
    new_width, new_height = (size, new_long) if width <= height else (new_long, size)
    left, top = round((new_width - size) / 2.0), round((new_height - size) / 2.0)
    if long <= short * _MODERATE_ASPECT:
        resized = picture if (width, height) == (new_width, new_height) else picture.resize((new_width, new_height), filter_)
        return resized.crop((left, top, left + size, top + size))
    # The same sampling positions as resizing everything and cropping (Pillow filters across a box's edge), as two passes in
    # the order of Pillow's full resize: it rounds to 8 bits between the passes, so the order shows in the result.
    step_x, step_y = width / new_width, height / new_height
    across = picture.resize((size, height), filter_, box=(left * step_x, 0, min(width, (left + size) * step_x), height))
    return across.resize((size, size), filter_, box=(0, top * step_y, size, min(height, (top + size) * step_y)))


def _longest(picture: Any, size: int, filter_: Any) -> Any:
    from PIL import Image

    ratio = max(picture.size) / size
    width, height = (max(1, round(side / ratio)) for side in picture.size)
    square = Image.new("RGB", (size, size))
    square.paste(picture.resize((width, height), filter_), ((size - width) // 2, (size - height) // 2))
    return square
