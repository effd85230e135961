"""What can happen in a clip: courses that run in canonical time, and backwards as another event.

A course draws its free parameters once (`plan`) and answers, for any canonical time `u` in [0, 1], where everything is.
The event `forward` plays it from 0 to 1; the event `backward` plays the very same course from 1 to 0, so the two share
every single frame and only the order of frames tells them apart. A course without `backward` looks the same both ways.
Which way a clip runs is decided after its parameters are drawn, hence no parameter can betray it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

Rng = np.random.Generator


@dataclass(frozen=True, slots=True)
class Placed:
    """One actor in one frame: centre (x, y) and side as shares of the frame, degrees counterclockwise, alpha in [0, 1]."""

    actor: int
    x: float
    y: float
    side: float
    degrees: float = 0.0
    alpha: float = 1.0


Scene = Callable[[float], list[Placed]]


@dataclass(frozen=True, slots=True)
class Course:
    """A way in which one or two actors move, with the events it makes when played forward and backward.

    `plan(rng)` draws the parameters and returns the scene as a function of canonical time. `kind` says what tells the
    clip from its twin: "motion", "order", "interaction", or "content" where there is no twin.
    """

    name: str
    actors: int
    kind: str
    forward: str
    backward: str | None
    plan: Callable[[Rng], Scene]
    weight: float

    @property
    def symmetric(self) -> bool:
        """Whether the course looks the same played backwards."""
        return self.backward is None

    def event(self, reversed_: bool) -> str:
        """Name of the event that this course is when played forward or backward."""
        return self.backward if reversed_ and self.backward is not None else self.forward


def _profile(rng: Rng) -> Callable[[float], float]:
    """A monotone map of [0, 1] onto itself; profiles and their time reversals are equally likely."""
    shape = int(rng.integers(4))
    power = float(rng.uniform(1.2, 1.7))
    before, after = float(rng.uniform(0, 0.12)), float(rng.uniform(0, 0.12))

    def run(u: float) -> float:
        u = min(max((u - before) / (1.0 - before - after), 0.0), 1.0)
        if shape == 0:
            return u
        if shape == 1:
            return u * u * (3.0 - 2.0 * u)
        return float(u**power if shape == 2 else 1.0 - (1.0 - u) ** power)

    return run


def _between(rng: Rng, low: float, high: float) -> float:
    return float(rng.uniform(low, high))


def _tilt(rng: Rng) -> float:
    return _between(rng, -12, 12)


def _solo(rng: Rng) -> float:
    return _between(rng, 0.33, 0.48)


def _duo(rng: Rng) -> float:
    return _between(rng, 0.3, 0.38)


def _sign(rng: Rng) -> int:
    return 1 if rng.random() < 0.5 else -1


def _straight(dx: int, dy: int, rng: Rng) -> Scene:
    side, tilt, run = _solo(rng), _tilt(rng), _profile(rng)
    ends = []
    for sense in (-1, 1):
        reach_x, reach_y = _between(rng, 0.2, 0.53 - side / 2), _between(rng, 0.2, 0.53 - side / 2)
        ends.append((0.5 + sense * dx * reach_x, 0.5 + sense * dy * reach_y))
    # Off the axis of motion the path drifts a little, alike at both ends.
    off_x = 0.0 if dx else _between(rng, -0.22, 0.22)
    off_y = 0.0 if dy else _between(rng, -0.22, 0.22)
    lean_x, lean_y = (0.0 if dx else _between(rng, -0.04, 0.04)), (0.0 if dy else _between(rng, -0.04, 0.04))
    (x0, y0), (x1, y1) = ends

    def scene(u: float) -> list[Placed]:
        p = run(u)
        x = x0 + (x1 - x0) * p + off_x + lean_x * (2 * p - 1)
        y = y0 + (y1 - y0) * p + off_y + lean_y * (2 * p - 1)
        return [Placed(0, x, y, side, tilt)]

    return scene


def _size(rng: Rng) -> Scene:
    small, large, tilt, run = _between(rng, 0.15, 0.22), _between(rng, 0.5, 0.66), _tilt(rng), _profile(rng)
    x, y = _between(rng, 0.42, 0.58), _between(rng, 0.42, 0.58)
    return lambda u: [Placed(0, x, y, small + (large - small) * run(u), tilt)]


def _fade(rng: Rng) -> Scene:
    side, tilt, run = _solo(rng), _tilt(rng), _profile(rng)
    x, y = _between(rng, 0.3, 0.7), _between(rng, 0.3, 0.7)
    return lambda u: [Placed(0, x, y, side, tilt, run(u))]


def _around(u: float, start: float, sweep: float, radius: float, run: Callable[[float], float]) -> tuple[float, float]:
    angle = start + sweep * run(u)  # y grows downwards, so a growing angle runs clockwise
    return radius * math.cos(angle), radius * math.sin(angle)


def _orbit(rng: Rng) -> Scene:
    side, tilt, run = _between(rng, 0.3, 0.4), _tilt(rng), _profile(rng)
    start, sweep = _between(rng, 0, 2 * math.pi), _between(rng, 1.5 * math.pi, 2.2 * math.pi)
    x, y, radius = _between(rng, 0.47, 0.53), _between(rng, 0.47, 0.53), _between(rng, 0.24, 0.3)

    def scene(u: float) -> list[Placed]:
        dx, dy = _around(u, start, sweep, radius, run)
        return [Placed(0, x + dx, y + dy, side, tilt)]

    return scene


def _spin(rng: Rng) -> Scene:
    side, run = _between(rng, 0.4, 0.54), _profile(rng)
    # Upright in mid-turn: starting upright would tell the two senses apart by the first frame alone.
    sweep, middle = _between(rng, 90, 270), _between(rng, -25, 25)
    x, y = _between(rng, 0.36, 0.64), _between(rng, 0.36, 0.64)
    return lambda u: [Placed(0, x, y, side, middle + sweep * (0.5 - run(u)))]


def _bounce(rng: Rng) -> Scene:
    side, tilt, hops = _solo(rng), _tilt(rng), int(rng.integers(2, 4))
    x, floor, height = _between(rng, 0.3, 0.7), _between(rng, 0.68, 0.74), _between(rng, 0.3, 0.42)
    return lambda u: [Placed(0, x, floor - height * abs(math.sin(math.pi * hops * u)), side, tilt)]


def _shake(rng: Rng) -> Scene:
    side, tilt, turns = _solo(rng), _tilt(rng), int(rng.integers(2, 4))
    x, y, reach = _between(rng, 0.35, 0.65), _between(rng, 0.3, 0.7), _sign(rng) * _between(rng, 0.06, 0.1)
    return lambda u: [Placed(0, x + reach * math.cos(2 * math.pi * turns * u), y, side, tilt)]


def _rock(rng: Rng) -> Scene:
    side, turns, reach = _solo(rng), int(rng.integers(2, 4)), _sign(rng) * _between(rng, 24, 36)
    x, y = _between(rng, 0.35, 0.65), _between(rng, 0.35, 0.65)
    return lambda u: [Placed(0, x, y, side, reach * math.cos(2 * math.pi * turns * u))]


def _corner(dx: int, dy: int, rng: Rng) -> Scene:
    side, tilt, first, second = _between(rng, 0.32, 0.42), _tilt(rng), _profile(rng), _profile(rng)
    turn = _between(rng, 0.44, 0.56)
    x0, x1 = 0.5 - dx * _between(rng, 0.22, 0.3), 0.5 + dx * _between(rng, 0.22, 0.3)
    y0, y1 = 0.5 - dy * _between(rng, 0.22, 0.3), 0.5 + dy * _between(rng, 0.22, 0.3)

    def scene(u: float) -> list[Placed]:
        x = x0 + (x1 - x0) * first(u / turn)
        y = y0 + (y1 - y0) * second((u - turn) / (1.0 - turn))
        return [Placed(0, x, y, side, tilt)]

    return scene


def _beside(rng: Rng) -> tuple[tuple[float, float], tuple[float, float]]:
    """Two places side by side; which of them comes first is left to chance."""
    left = (_between(rng, 0.22, 0.3), _between(rng, 0.35, 0.65))
    right = (_between(rng, 0.7, 0.78), _between(rng, 0.35, 0.65))
    return (left, right) if rng.random() < 0.5 else (right, left)


def _appear(rng: Rng) -> Scene:
    places, sides, tilts = _beside(rng), (_solo(rng), _solo(rng)), (_tilt(rng), _tilt(rng))
    starts, length = (_between(rng, 0.08, 0.2), _between(rng, 0.5, 0.62)), _between(rng, 0.06, 0.16)

    def scene(u: float) -> list[Placed]:
        return [Placed(i, *places[i], sides[i], tilts[i], min(max((u - starts[i]) / length, 0.0), 1.0)) for i in (0, 1)]

    return scene


def _shown(rng: Rng) -> Scene:
    sides, tilts = (_solo(rng), _solo(rng)), (_tilt(rng), _tilt(rng))
    x, y, cut, length = _between(rng, 0.35, 0.65), _between(rng, 0.35, 0.65), _between(rng, 0.42, 0.58), _between(rng, 0.02, 0.12)

    def scene(u: float) -> list[Placed]:
        share = min(max((u - cut) / length + 0.5, 0.0), 1.0)
        return [Placed(0, x, y, sides[0], tilts[0], 1.0 - share), Placed(1, x, y, sides[1], tilts[1], share)]

    return scene


def _catch(rng: Rng) -> Scene:
    away = _sign(rng)  # the side on which the thrown thing is far away
    large, small, tilt = _between(rng, 0.36, 0.44), _between(rng, 0.26, 0.31), _tilt(rng)
    run, caught, spin = _profile(rng), _between(rng, 0.6, 0.74), _between(rng, -70, 70)
    x, y = 0.5 - away * _between(rng, 0.18, 0.26), _between(rng, 0.52, 0.68)
    hold_x, hold_y = away * _between(rng, 0.15, 0.19), _between(rng, -0.08, 0.0)
    far_x, far_y, arc = 0.5 + away * _between(rng, 0.32, 0.37), _between(rng, 0.25, 0.65), _between(rng, 0.08, 0.24)
    carry_x, carry_y = _between(rng, -0.07, 0.07), _between(rng, -0.07, 0.07)

    def scene(u: float) -> list[Placed]:
        flown, carried = run(u / caught), max((u - caught) / (1.0 - caught), 0.0)
        at_x, at_y = x + carry_x * carried, y + carry_y * carried
        thing_x = far_x + (x + hold_x - far_x) * flown + carry_x * carried
        thing_y = far_y + (y + hold_y - far_y) * flown - arc * 4 * flown * (1 - flown) + carry_y * carried
        return [Placed(0, at_x, at_y, large, tilt), Placed(1, thing_x, thing_y, small, spin * (1 - flown))]

    return scene


def _chase(rng: Rng) -> Scene:
    sides, tilts, run = (_duo(rng), _duo(rng)), (_tilt(rng), _tilt(rng)), _profile(rng)
    gap, travel, y = _between(rng, 0.32, 0.36), _between(rng, 0.36, 0.42), _between(rng, 0.3, 0.7)
    rise, bob, hops = _between(rng, -0.05, 0.05), _between(rng, 0.0, 0.04), int(rng.integers(2, 4))

    def scene(u: float) -> list[Placed]:
        p = run(u)
        middle = 0.5 + travel * (p - 0.5)
        lift = bob * abs(math.sin(math.pi * hops * p))
        tall = y + rise * (2 * p - 1)
        return [
            Placed(0, middle - gap / 2, tall - lift, sides[0], tilts[0]),
            Placed(1, middle + gap / 2, tall - bob + lift, sides[1], tilts[1]),
        ]

    return scene


def _approach(rng: Rng) -> Scene:
    sides, tilts, run, far = (_duo(rng), _duo(rng)), (_tilt(rng), _tilt(rng)), _profile(rng), _sign(rng)
    x, y = 0.5 - far * _between(rng, 0.28, 0.33), _between(rng, 0.3, 0.7)
    start_x, start_y = 0.5 + far * _between(rng, 0.31, 0.35), _between(rng, 0.25, 0.75)
    end_x, end_y = x + far * _between(rng, 0.28, 0.32), y + _between(rng, -0.03, 0.03)

    def scene(u: float) -> list[Placed]:
        p = run(u)
        return [
            Placed(0, start_x + (end_x - start_x) * p, start_y + (end_y - start_y) * p, sides[0], tilts[0]),
            Placed(1, x, y, sides[1], tilts[1]),
        ]

    return scene


def _jump(rng: Rng) -> Scene:
    sides, tilts, run = (_duo(rng), _duo(rng)), (_tilt(rng), _tilt(rng)), _profile(rng)
    x, y, reach, height = _between(rng, 0.46, 0.54), _between(rng, 0.68, 0.76), _between(rng, 0.3, 0.34), _between(rng, 0.42, 0.5)

    def scene(u: float) -> list[Placed]:
        p = run(u)
        return [
            Placed(0, x + reach * (2 * p - 1), y - height * math.sin(math.pi * p), sides[0], tilts[0]),
            Placed(1, x, y, sides[1], tilts[1]),
        ]

    return scene


def _ring(rng: Rng) -> Scene:
    sides, tilts, run = (_between(rng, 0.27, 0.32), _duo(rng)), (_tilt(rng), _tilt(rng)), _profile(rng)
    start, sweep, radius = _between(rng, 0, 2 * math.pi), _between(rng, 1.5 * math.pi, 2.2 * math.pi), _between(rng, 0.31, 0.35)
    x, y = _between(rng, 0.48, 0.52), _between(rng, 0.48, 0.52)

    def scene(u: float) -> list[Placed]:
        dx, dy = _around(u, start, sweep, radius, run)
        return [Placed(1, x, y, sides[1], tilts[1]), Placed(0, x + dx, y + dy, sides[0], tilts[0])]

    return scene


COURSES: dict[str, Course] = {
    course.name: course
    for course in (
        Course("horizontal", 1, "motion", "moves right", "moves left", partial(_straight, 1, 0), 3.0),
        Course("vertical", 1, "motion", "falls", "rises", partial(_straight, 0, 1), 2.0),
        Course("falling diagonal", 1, "motion", "moves down right", "moves up left", partial(_straight, 1, 1), 0.6),
        Course("rising diagonal", 1, "motion", "moves up right", "moves down left", partial(_straight, 1, -1), 0.6),
        Course("size", 1, "motion", "grows", "shrinks", _size, 1.3),
        Course("fade", 1, "motion", "fades in", "fades out", _fade, 1.0),
        Course("orbit", 1, "motion", "circles clockwise", "circles counterclockwise", _orbit, 1.0),
        Course("spin", 1, "motion", "turns clockwise", "turns counterclockwise", _spin, 1.2),
        Course("bounce", 1, "content", "bounces", None, _bounce, 0.7),
        Course("shake", 1, "content", "shakes", None, _shake, 0.7),
        Course("rock", 1, "content", "rocks", None, _rock, 0.5),
        Course("right down", 1, "order", "right then down", "up then left", partial(_corner, 1, 1), 0.6),
        Course("right up", 1, "order", "right then up", "down then left", partial(_corner, 1, -1), 0.6),
        Course("left down", 1, "order", "left then down", "up then right", partial(_corner, -1, 1), 0.6),
        Course("left up", 1, "order", "left then up", "down then right", partial(_corner, -1, -1), 0.6),
        Course("appear", 2, "order", "appears before", "disappears after", _appear, 1.5),
        Course("shown", 2, "order", "shown before", "shown after", _shown, 2.0),
        Course("catch", 2, "interaction", "catches", "throws", _catch, 2.0),
        Course("chase", 2, "interaction", "chases right", "chased left", _chase, 2.0),
        Course("approach", 2, "interaction", "approaches", "moves away from", _approach, 1.5),
        Course("jump", 2, "interaction", "jumps right over", "jumps left over", _jump, 1.0),
        Course("ring", 2, "interaction", "circles clockwise around", "circles counterclockwise around", _ring, 0.8),
    )
}
