"""Resize and crop: equal to torchvision on PIL images, and safe on any size."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from vctool.config import PreprocessConfig
from vctool.errors import InputError
from vctool.preprocessing.pixels import Preprocessor


def picture(height: int, width: int) -> NDArray[np.uint8]:
    return np.random.default_rng(height * 7919 + width).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("resize", ["shortest", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize(("height", "width"), [(90, 160), (161, 90), (33, 32), (32, 32), (7, 5), (64, 65), (20, 500), (400, 9)])
def test_equals_torchvision(resize: Any, interpolation: Any, height: int, width: int) -> None:
    transforms = pytest.importorskip("torchvision.transforms", reason="torchvision is not installed")
    from PIL import Image

    mode = transforms.InterpolationMode(interpolation)
    size = 32
    shortest = [transforms.Resize(size, mode), transforms.CenterCrop(size)]
    steps = shortest if resize == "shortest" else [transforms.Resize((size, size), mode)]
    frame = picture(height, width)
    theirs = np.asarray(transforms.Compose(steps)(Image.fromarray(frame)))
    ours = Preprocessor(PreprocessConfig(size=size, resize=resize, interpolation=interpolation))(frame)
    assert ours.dtype == np.uint8 and ours.shape == (size, size, 3)
    assert int(np.abs(ours.astype(int) - theirs.astype(int)).max()) <= 1


@pytest.mark.parametrize("resize", ["shortest", "squash"])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 4000), (4000, 1), (2, 3), (3000, 7)])
def test_any_size_works(resize: Any, height: int, width: int) -> None:
    square = Preprocessor(PreprocessConfig(size=224, resize=resize))(np.full((height, width, 3), 77, np.uint8))
    assert square.shape == (224, 224, 3)
    assert (square == 77).all()


def test_a_view_with_negative_strides_works() -> None:
    frame = picture(40, 60)
    preprocess = Preprocessor(PreprocessConfig(size=16))
    assert (preprocess(frame[:, ::-1]) == preprocess(frame[:, ::-1].copy())).all()


@pytest.mark.parametrize(("shape", "dtype"), [((4, 4), "u1"), ((4, 4, 4), "u1"), ((4, 4, 3), "f4"), ((0, 4, 3), "u1")])
def test_what_is_not_a_frame_is_refused(shape: tuple[int, ...], dtype: str) -> None:
    with pytest.raises(InputError, match="a frame must be uint8"):
        Preprocessor(PreprocessConfig())(np.zeros(shape, dtype))
