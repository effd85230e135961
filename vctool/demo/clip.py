"""One clip of the demo world: what is in it, what happens, how people say it; and its pictures."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vctool.demo import captions as sentences
from vctool.demo.backgrounds import background
from vctool.demo.events import COURSES, Scene
from vctool.demo.sprites import faded, sprite

#: A clip as a file: this many frames at this rate, square.
CLIP_FRAMES = 24
CLIP_FPS = 12
CLIP_SIZE = 128

_TWIN = "-twin"
# Time is counted in whole ticks, so that 1 - u is exact and a twin is the same pictures to the bit.
_TICKS = 24 * 200
_TURN_STEP = 3  # degrees; finer turns cannot be seen at this size and would only fill the cache


@dataclass(frozen=True, slots=True)
class ClipSpec:
    """Everything that decides a clip's pictures, and its captions.

    `objects` stand in canonical roles of `course`; `event` is what happens as played (`reversed` or not). Twins share
    `group`, `seed`, objects and background and differ in nothing but the direction of time.
    """

    id: str
    split: str
    group: str
    kind: str
    objects: tuple[str, ...]
    background: str
    course: str
    event: str
    reversed: bool
    seed: int
    captions: tuple[str, ...]
    twin_id: str | None

    @property
    def symmetric(self) -> bool:
        """Whether the clip looks the same played backwards; it then has no twin."""
        return COURSES[self.course].symmetric

    @property
    def slug(self) -> str:
        """A file name's worth of description, such as `dog-catches-frisbee`."""
        a, b = (*self.objects, "")[:2]
        words = {
            "shown before": f"first {a} then {b}",
            "shown after": f"first {b} then {a}",
            "appears before": f"{a} appears before {b}",
            "disappears after": f"{b} disappears before {a}",
            "chases right": f"{a} chases {b}",
            "chased left": f"{b} chases {a}",
        }.get(self.event, f"{a} {self.event} {b}")
        return re.sub(r"[^a-z0-9]+", "-", words.replace("'", "")).strip("-")


def make_clip(
    clip_id: str, split: str, course: str, objects: tuple[str, ...], place: str, *, seed: int, reversed_: bool, group: str | None = None
) -> ClipSpec:
    """The clip of these choices, with its captions; the same choices always make the same clip."""
    known = COURSES[course]
    event = known.event(reversed_)
    twin_id = None
    if not known.symmetric:
        twin_id = clip_id.removesuffix(_TWIN) if clip_id.endswith(_TWIN) else clip_id + _TWIN
    said = sentences.captions(objects, place, event, np.random.default_rng([seed, 1 + int(reversed_)]))
    return ClipSpec(
        clip_id, split, group or clip_id.removesuffix(_TWIN), known.kind, objects, place, course, event, reversed_, seed, said, twin_id
    )


def twin(spec: ClipSpec) -> ClipSpec | None:
    """The clip that is `spec` played backwards, an event of its own; None where it would look the same."""
    if spec.twin_id is None:
        return None
    return make_clip(
        spec.twin_id, spec.split, spec.course, spec.objects, spec.background, seed=spec.seed, reversed_=not spec.reversed, group=spec.group
    )


def describe(spec: ClipSpec) -> str:
    """The plain sentence about a clip."""
    return sentences.describe(spec.objects, spec.background, spec.event)


@lru_cache(maxsize=64)
def _stage(course: str, place: str, seed: int, size: int) -> tuple[Scene, Image.Image]:
    rng = np.random.default_rng([seed, 0])
    scene = COURSES[course].plan(rng)
    return scene, background(place, rng, size)


def _draw(spec: ClipSpec, tick: int, size: int) -> Image.Image:
    scene, empty = _stage(spec.course, spec.background, spec.seed, size)
    picture = empty.copy()
    for placed in scene((_TICKS - tick if spec.reversed else tick) / _TICKS):
        alpha = round(placed.alpha * 255)
        if alpha <= 0:
            continue
        side, degrees = max(round(placed.side * size), 1), round(placed.degrees / _TURN_STEP) * _TURN_STEP % 360
        name = spec.objects[placed.actor]
        colours, mask = sprite(name, side, degrees) if alpha >= 255 else faded(name, side, degrees, alpha)
        corner = (round(placed.x * size - colours.width / 2), round(placed.y * size - colours.height / 2))
        picture.paste(colours, corner, mask)
    return picture


def picture_at(spec: ClipSpec, t: float, size: int = CLIP_SIZE) -> NDArray[np.uint8]:
    """The clip at time `t` of its length, t in [0, 1]: uint8 [size, size, 3], RGB."""
    return np.array(_draw(spec, round(min(max(t, 0.0), 1.0) * _TICKS), size))


def frame_indices(count: int | None = None) -> list[int]:
    """Which of the clip's 24 frames uniform sampling takes: the middle of each of `count` equal parts.

    The choice is its own mirror image only for 8, 16 and 24 frames. Only then do a clip and its twin give a reader without
    a sense of order the very same pictures; with 12 frames, say, the twin's are each one twenty-fourth of the clip away.
    """
    if count is None or count >= CLIP_FRAMES:
        return list(range(CLIP_FRAMES))
    return [(2 * i + 1) * CLIP_FRAMES // (2 * count) for i in range(count)]


def frames(spec: ClipSpec, count: int | None = None, size: int = CLIP_SIZE) -> NDArray[np.uint8]:
    """The clip's frames, all 24 or `count` of them taken as uniform sampling takes them: uint8 [F, size, size, 3], RGB."""
    chosen = frame_indices(count)
    out = np.empty((len(chosen), size, size, 3), np.uint8)
    for row, index in enumerate(chosen):
        # Frames sit on whole ticks, the first at 0 and the last at the end: index 23 - i is the mirror of index i.
        out[row] = np.asarray(_draw(spec, _tick(index), size))
    return out


def _tick(index: int) -> int:
    half = CLIP_FRAMES // 2
    return round(index * _TICKS / (CLIP_FRAMES - 1)) if index < half else _TICKS - _tick(CLIP_FRAMES - 1 - index)
