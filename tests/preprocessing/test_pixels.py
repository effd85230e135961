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


def distinct_preprocessings() -> list[tuple[str, str, str]]:
    """One fetch name for each way in which the towers of the table want their pictures."""
    open_clip = pytest.importorskip("open_clip", reason="open_clip is part of the extra `train`")
    assert open_clip
    from open_clip.pretrained import get_pretrained_cfg

    from vctool.zoo.table import MODELS

    found = {}
    for model in MODELS:
        recorded = get_pretrained_cfg(model.architecture, model.tag)
        key = (model.size, *(str(recorded[name]) for name in ("mean", "std", "interpolation", "resize_mode")))
        found.setdefault(key, (model.name, model.architecture, model.tag))
    return list(found.values())


def sizes(count: int) -> list[tuple[int, int]]:
    """Heights and widths from 8 to 1,300 pixels, sides up to 1:16, and the shapes of videos."""
    rng = np.random.default_rng(7)
    found = [(720, 1280), (1280, 720), (240, 320), (360, 640), (224, 224), (225, 224), (223, 400), (8, 128), (480, 854)]
    while len(found) < count:
        height, width = (int(side) for side in np.exp(rng.uniform(np.log(8), np.log(1300), 2)))
        if max(height, width) <= 16 * min(height, width):
            found.append((height, width))
    return found


def expect_open_clips(config: Any, transform: Any, frame: NDArray[np.uint8]) -> None:
    """Ours, normalised, against open_clip's own transform: no value further away than one of 255 steps."""
    from PIL import Image

    theirs = transform(Image.fromarray(frame)).numpy().transpose(1, 2, 0)
    ours = (Preprocessor(config)(frame) / 255.0 - np.array(config.mean)) / np.array(config.std)
    assert ours.shape == theirs.shape
    steps = np.abs(ours - theirs) * np.array(config.std) * 255
    assert steps.max() <= 1.001, (frame.shape, float(steps.max()))


def test_pixels_are_open_clips_own_for_every_name_that_can_be_fetched() -> None:
    """Resize mode, interpolation, antialiasing, crop, mean and std, over many sizes and aspect ratios."""
    names = distinct_preprocessings()
    assert len(names) >= 8
    from open_clip.pretrained import get_pretrained_cfg
    from open_clip.transform import PreprocessCfg, image_transform_v2

    from vctool.models.open_clip_backbone import preprocess_of
    from vctool.zoo.table import BY_NAME

    shapes = sizes(12 * len(names))
    for turn, (name, architecture, tag) in enumerate(names):
        side = BY_NAME[name].size
        fake = type("Fake", (), {"visual": type("Visual", (), {"image_size": side})})
        config = preprocess_of(architecture, fake, tag)
        recorded = get_pretrained_cfg(architecture, tag)
        keys = {key: recorded[key] for key in ("mean", "std", "interpolation", "resize_mode")}
        transform = image_transform_v2(PreprocessCfg(size=side, **keys), is_train=False)
        for height, width in shapes[turn :: len(names)]:
            expect_open_clips(config, transform, picture(height, width))


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_longest_is_open_clips_own_too(interpolation: Any) -> None:
    transform = pytest.importorskip("open_clip.transform", reason="open_clip is part of the extra `train`")
    settings = {"size": 64, "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4), "interpolation": interpolation}
    theirs = transform.image_transform_v2(transform.PreprocessCfg(resize_mode="longest", **settings), is_train=False)
    for height, width in sizes(25):
        expect_open_clips(PreprocessConfig(resize="longest", **settings), theirs, picture(height, width))


@pytest.mark.parametrize("resize", ["shortest", "squash", "longest"])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 4000), (4000, 1), (2, 3), (3000, 7)])
def test_any_size_works(resize: Any, height: int, width: int) -> None:
    square = Preprocessor(PreprocessConfig(size=224, resize=resize))(np.full((height, width, 3), 77, np.uint8))
    assert square.shape == (224, 224, 3)
    assert (square == 77).all() or (resize == "longest" and set(np.unique(square)) == {0, 77})


def test_a_view_with_negative_strides_works() -> None:
    frame = picture(40, 60)
    preprocess = Preprocessor(PreprocessConfig(size=16))
    assert (preprocess(frame[:, ::-1]) == preprocess(frame[:, ::-1].copy())).all()


@pytest.mark.parametrize(("shape", "dtype"), [((4, 4), "u1"), ((4, 4, 4), "u1"), ((4, 4, 3), "f4"), ((0, 4, 3), "u1")])
def test_what_is_not_a_frame_is_refused(shape: tuple[int, ...], dtype: str) -> None:
    with pytest.raises(InputError, match="a frame must be uint8"):
        Preprocessor(PreprocessConfig())(np.zeros(shape, dtype))
