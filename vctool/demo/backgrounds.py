"""Backgrounds drawn by rule, each with a name that captions may mention."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_Field = NDArray[np.float32]

_PAINTED = 256  # pixels a side of the painting that every size is scaled from, so that all sizes look alike
_VARIANTS = 6  # pictures kept of each background; a clip takes one and tints it


def _noise(rng: np.random.Generator, size: int, cells: int) -> _Field:
    """Smooth noise in [-1, 1], [size, size]: `cells` random values a side, blown up."""
    small = Image.fromarray(rng.uniform(-1, 1, (cells, cells)).astype(np.float32))
    large: _Field = np.asarray(small.resize((size, size), Image.Resampling.BICUBIC), dtype=np.float32)
    return large


def _grid(size: int) -> tuple[_Field, _Field]:
    axis = ((np.arange(size) + 0.5) / size).astype(np.float32)
    return axis[None, :].repeat(size, 0), axis[:, None].repeat(size, 1)


def _blend(low: Any, high: Any, share: Any) -> _Field:
    mix = np.clip(share, 0, 1)[..., None]
    out: _Field = (np.asarray(low, np.float32) * (1 - mix) + np.asarray(high, np.float32) * mix).astype(np.float32)
    return out


def _sky(rng: np.random.Generator, size: int) -> _Field:
    _, y = _grid(size)
    clouds = np.clip(_noise(rng, size, 5) + 0.4 * _noise(rng, size, 12) - 0.35, 0, 1)
    return _blend(_blend((92, 160, 230), (190, 222, 248), y), (246, 249, 252), clouds)


def _grass(rng: np.random.Generator, size: int) -> _Field:
    blades = 0.5 + 0.3 * _noise(rng, size, size // 6) + 0.3 * _noise(rng, size, 8)
    return _blend((70, 138, 52), (128, 186, 84), blades)


def _night(rng: np.random.Generator, size: int) -> _Field:
    _, y = _grid(size)
    out = _blend((10, 14, 44), (40, 44, 96), y)
    for row, column in rng.integers(4, size - 4, (46, 2)):
        out[row : row + 2, column : column + 2] = rng.uniform(150, 255) * np.array([1.0, 1.0, 0.92])
    for row, column in rng.integers(4, size - 4, (8, 2)):
        out[row : row + 2, column - 2 : column + 4] = out[row - 2 : row + 4, column : column + 2] = (255, 255, 235)
    return out


def _sand(rng: np.random.Generator, size: int) -> _Field:
    _, y = _grid(size)
    ripples = 0.5 + 0.22 * np.sin(2 * np.pi * (9 * y + 0.8 * _noise(rng, size, 5))) + 0.2 * _noise(rng, size, size // 4)
    return _blend((204, 172, 116), (240, 216, 164), ripples)


def _water(rng: np.random.Generator, size: int) -> _Field:
    x, y = _grid(size)
    waves = 0.5 + 0.35 * np.sin(2 * np.pi * (7 * y + 0.35 * np.sin(2 * np.pi * (2 * x + rng.uniform())) + 0.5 * _noise(rng, size, 6)))
    return _blend((22, 96, 150), (74, 158, 198), waves)


def _brick(rng: np.random.Generator, size: int) -> _Field:
    rows, columns = 9, 5
    x, y = _grid(size)
    row = np.floor(y * rows + rng.uniform()).astype(int)
    across = x * columns + 0.5 * (row % 2) + rng.uniform()
    down = (y * rows + 0.0) % 1.0
    shade = rng.uniform(-1, 1, (64, 64))[row % 64, np.floor(across).astype(int) % 64]
    out = _blend((142, 62, 48), (186, 96, 74), 0.5 + 0.4 * shade)
    row_edge = np.diff(row, axis=0, prepend=row[:1]) != 0
    out[(across % 1.0 < 0.06) | row_edge | (down < 0.0)] = (206, 194, 180)
    return out


def _checker(rng: np.random.Generator, size: int) -> _Field:
    x, y = _grid(size)
    tiles = (np.floor(x * 6 + rng.uniform()) + np.floor(y * 6 + rng.uniform())) % 2
    return _blend((92, 98, 116), (216, 218, 226), tiles)


def _sunset(rng: np.random.Generator, size: int) -> _Field:
    _, y = _grid(size)
    y = y + 0.05 * _noise(rng, size, 4)
    return np.where(
        y[..., None] < 0.55, _blend((96, 64, 136), (240, 120, 96), y / 0.55), _blend((240, 120, 96), (252, 206, 120), (y - 0.55) / 0.45)
    )


def _snow(rng: np.random.Generator, size: int) -> _Field:
    _, y = _grid(size)
    drifts = 0.5 + 0.35 * _noise(rng, size, 5) + 0.2 * y
    out = _blend((190, 208, 228), (236, 242, 248), drifts)
    for row, column in rng.integers(0, size - 3, (60, 2)):
        out[row : row + 3, column : column + 3] = (255, 255, 255)
    return out


def _road(rng: np.random.Generator, size: int) -> _Field:
    x, y = _grid(size)
    out = _blend((74, 76, 82), (104, 106, 112), 0.5 + 0.3 * _noise(rng, size, size // 4))
    verge = (y < 0.14) | (y > 0.9)
    out[verge] = _blend((88, 140, 70), (126, 170, 92), 0.5 + 0.3 * _noise(rng, size, size // 8))[verge]
    middle = float(rng.uniform(0.48, 0.56))
    out[(np.abs(y - middle) < 0.018) & ((x * 5 + rng.uniform()) % 1.0 < 0.6)] = (236, 224, 150)
    return out


def _wood(rng: np.random.Generator, size: int) -> _Field:
    x, y = _grid(size)
    plank = np.floor(y * 5 + rng.uniform())
    grain = 0.5 + 0.25 * np.sin(2 * np.pi * (14 * y + 1.2 * _noise(rng, size, 4) + 0.3 * plank)) + 0.15 * np.sin(plank * 2.1) + 0.1 * x
    out = _blend((126, 82, 46), (182, 130, 82), grain)
    out[np.diff(plank, axis=0, prepend=plank[:1]) != 0] = (84, 54, 30)
    return out


def _mountains(rng: np.random.Generator, size: int) -> _Field:
    x, y = _grid(size)
    out = _blend((168, 204, 236), (226, 236, 244), y)
    for base, height, colour in ((0.62, 0.30, (140, 152, 182)), (0.76, 0.24, (96, 112, 142)), (0.92, 0.16, (70, 104, 84))):
        at = np.linspace(0, 1, 8)
        ridge = np.interp(x[0], at, base - height * np.abs(rng.uniform(0, 1, 8) * (np.arange(8) % 2)))
        out[y >= ridge[None, :]] = colour
    return out


def _curtain(rng: np.random.Generator, size: int) -> _Field:
    x, y = _grid(size)
    folds = 0.5 + 0.45 * np.sin(2 * np.pi * (8 * x + 0.25 * _noise(rng, size, 4) + 0.05 * y))
    return _blend((104, 18, 34), (178, 40, 56), folds)


def _paper(rng: np.random.Generator, size: int) -> _Field:
    x, y = _grid(size)
    out = np.full((size, size, 3), (244, 244, 236), np.float32)
    lines = ((x * 10 + rng.uniform()) % 1.0 < 0.08) | ((y * 10 + rng.uniform()) % 1.0 < 0.08)
    out[lines] = (166, 194, 224)
    return out


_PAINTERS: dict[str, Callable[[np.random.Generator, int], _Field]] = {
    "sky": _sky,
    "grass": _grass,
    "night": _night,
    "sand": _sand,
    "water": _water,
    "brick wall": _brick,
    "checkered floor": _checker,
    "sunset": _sunset,
    "snow": _snow,
    "road": _road,
    "wood": _wood,
    "mountains": _mountains,
    "red curtain": _curtain,
    "graph paper": _paper,
}

BACKGROUNDS: tuple[str, ...] = tuple(_PAINTERS)

#: How a caption says it, each fit to follow or to open a sentence.
PHRASES: dict[str, tuple[str, ...]] = {
    "sky": ("in the sky", "against a blue sky"),
    "grass": ("on grass", "on the grass", "on a green lawn"),
    "night": ("at night", "under the stars", "against a starry night sky"),
    "sand": ("on sand", "on a sandy ground", "on the beach"),
    "water": ("on water", "on the sea", "on blue water"),
    "brick wall": ("in front of a brick wall", "by a brick wall"),
    "checkered floor": ("on a checkered floor", "on a floor of gray and white tiles"),
    "sunset": ("at sunset", "in front of an orange sunset"),
    "snow": ("on snow", "in the snow"),
    "road": ("on a road", "on the street"),
    "wood": ("on a wooden floor", "on wooden planks"),
    "mountains": ("in front of mountains", "in the mountains"),
    "red curtain": ("in front of a red curtain", "on a stage with a red curtain"),
    "graph paper": ("on graph paper", "on squared paper"),
}


@lru_cache(maxsize=256)
def _painted(name: str, variant: int, size: int) -> Image.Image:
    rng = np.random.default_rng([BACKGROUNDS.index(name), variant])
    painting = Image.fromarray(np.clip(_PAINTERS[name](rng, _PAINTED), 0, 255).astype(np.uint8))
    return painting if size == _PAINTED else painting.resize((size, size), Image.Resampling.LANCZOS)


def background(name: str, rng: np.random.Generator, size: int) -> Image.Image:
    """Background `name` as an RGB picture of `size` pixels a side, one of a few, slightly tinted by `rng`."""
    picture = _painted(name, int(rng.integers(_VARIANTS)), size)
    gain = rng.uniform(0.9, 1.06) * rng.uniform(0.96, 1.04, 3)
    levels = np.clip(np.arange(256)[None, :] * gain[:, None], 0, 255).astype(np.uint8)
    return picture.point(levels.reshape(-1).tolist())
