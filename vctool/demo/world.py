"""The demo world: clips by the thousand from a seed, in splits that never share a combination.

    world = World(seed=0)
    for spec in world.clip_specs("train", 1000, seed=0):
        pictures, words = world.frames(spec, count=8), spec.captions

    python -m vctool.demo.world OUT --count 100 --split train --seed 0

writes them as video files with a manifest.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

from vctool.demo import clip as clips
from vctool.demo.backgrounds import BACKGROUNDS
from vctool.demo.clip import CLIP_SIZE, ClipSpec, make_clip
from vctool.demo.events import COURSES, Course
from vctool.demo.objects import ROUND, names_of, things
from vctool.errors import InputError, UsageProblem, VctoolError

SPLITS = ("train", "val", "test")

_TRAIN, _VAL = 0.70, 0.80  # shares of all combinations below which a hash falls into train, into val

# Combinations that the demo shows; they belong to test whatever their hash says, so that the demo never shows a
# combination that was trained on.
_SHOWN_TOGETHER = """
dog frisbee, cat dog, apple banana, monkey banana, rabbit turtle, police_car racing_car, shark surfer, bee sunflower, frog mushroom,
kangaroo cactus, rocket planet_with_rings, butterfly rose, sun cloud, crescent_moon star, caterpillar butterfly, egg chick,
lion soccer_ball, mouse wedge_of_cheese
"""
_SHOWN_ALONE = """
vertical rocket, horizontal car, orbit bee, vertical balloon, size cactus, fade ghost, horizontal sailboat, rising_diagonal airplane,
falling_diagonal star, size snowman, spin guitar, spin slice_of_pizza, right_up helicopter, left_down elephant, horizontal snail,
bounce basketball, bounce dolphin, rock teddy_bear, shake alarm_clock
"""


def _words(table: str) -> list[tuple[str, ...]]:
    return [tuple(word.replace("_", " ") for word in entry.split()) for entry in table.split(",")]


SHOWN_PAIRS = frozenset(frozenset(pair) for pair in _words(_SHOWN_TOGETHER))
SHOWN_SOLOS = frozenset(_words(_SHOWN_ALONE))

_RUNNERS = ("animal", "person", "flyer", "swimmer")
_MOVERS = (*_RUNNERS, "vehicle", "aircraft", "boat")
_THINGS = ("ball", "sport", "food", "tool", "household", "clothes", "music", "plant")
# Who plays the two parts of an event, most of the time; the rest of the time anything does anything.
_ROLES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "catch": (_RUNNERS, _THINGS),
    "chase": (_MOVERS, _MOVERS),
    "approach": (_MOVERS, ()),
    "jump": (_RUNNERS, ()),
    "ring": (_MOVERS, ()),
}
_ANY_ROLE = 0.3


def split_of(course: str, objects: tuple[str, ...]) -> str:
    """The split that owns a combination: an (object, course) pair, or an unordered pair of objects whatever they do.

    It does not depend on any seed, so worlds of different seeds never leak into one another. A course and its
    reversal are one motion here: a clip and its twin are always in one split.
    """
    if len(objects) == 1:
        if (course, objects[0]) in SHOWN_SOLOS:
            return "test"
        key = f"{course}|{objects[0]}"
    else:
        if frozenset(objects) in SHOWN_PAIRS:
            return "test"
        key = "|".join(sorted(objects))
    share = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=6).digest(), "big") / 2**48
    return "train" if share < _TRAIN else "val" if share < _VAL else "test"


class World:
    """Clips of the demo world. `seed` makes another world of the same combinations, `size` is the pixels of a frame's side."""

    def __init__(self, seed: int = 0, size: int = CLIP_SIZE, split: str = "train") -> None:
        self.seed, self.size, self.split = seed, size, split

    def clip_specs(self, split: str | None = None, count: int = 1000, seed: int = 0) -> list[ClipSpec]:
        """`count` clips of a split.

        In val and test no two clips show the same objects in the same event (and no two show the same pair of objects),
        so each is the one right answer to its captions. Train may repeat them against other backgrounds.
        Raises InputError where the split does not hold `count` such clips, UsageProblem for an unknown split.
        """
        split = self._known(split)
        return self._draw(split, count, seed, unique=split != "train", paired=False)

    def pairs(self, split: str | None = None, count: int = 500, seed: int = 0) -> list[tuple[ClipSpec, ClipSpec]]:
        """`count` clips each with its time-reversed twin: the test of motion and order."""
        split = self._known(split)
        return [(spec, _twin_of(spec)) for spec in self._draw(split, count, seed, unique=split != "train", paired=True)]

    def groups(self, split: str | None = None, count: int = 100, seed: int = 0, of: int = 4) -> list[list[ClipSpec]]:
        """`count` groups of `of` clips that share objects and background and differ in what happens: hard negatives.

        Twins may meet in a group. Raises InputError where no objects have `of` events in the split.
        """
        split = self._known(split)
        rng = np.random.default_rng([self.seed, seed, SPLITS.index(split), 2])
        found: list[list[ClipSpec]] = []
        taken: set[frozenset[str]] = set()
        misses = 0
        while len(found) < count:
            if misses > 5000:
                raise InputError(f"the {split} split holds only about {len(found)} groups of {of}, fewer than {count}", "ask for fewer")
            misses += 1
            objects = _cast(_drawn(tuple(COURSES.values()), rng), rng)
            events = [
                (course.name, backwards)
                for course in COURSES.values()
                if _fits(course, objects) and split_of(course.name, objects) == split
                for backwards in ((False,) if course.symmetric else (False, True))
            ]
            if len(events) < of or (split != "train" and frozenset(objects) in taken):
                continue
            taken.add(frozenset(objects))
            misses = 0
            place = BACKGROUNDS[int(rng.integers(len(BACKGROUNDS)))]
            group = f"{split}-{self.seed}-{seed}-g{len(found):05d}"
            chosen = [events[int(i)] for i in rng.permutation(len(events))[:of]]
            seeds = [int(rng.integers(2**62)) for _ in chosen]
            found.append(
                [
                    make_clip(f"{group}-{i}", split, course, objects, place, seed=seeds[i], reversed_=backwards, group=group)
                    for i, (course, backwards) in enumerate(chosen)
                ]
            )
        return found

    def twin(self, spec: ClipSpec) -> ClipSpec | None:
        """See `vctool.demo.clip.twin`."""
        return clips.twin(spec)

    def frames(self, spec: ClipSpec, count: int | None = None, size: int | None = None) -> NDArray[np.uint8]:
        """See `vctool.demo.clip.frames`; `size` is the world's own unless given."""
        return clips.frames(spec, count, size or self.size)

    def describe(self, spec: ClipSpec) -> str:
        """See `vctool.demo.clip.describe`."""
        return clips.describe(spec)

    def _known(self, split: str | None) -> str:
        split = split or self.split
        if split not in SPLITS:
            raise UsageProblem(f"there is no split {split!r}", f"it is one of {', '.join(SPLITS)}")
        return split

    def _draw(self, split: str, count: int, seed: int, *, unique: bool, paired: bool) -> list[ClipSpec]:
        rng = np.random.default_rng([self.seed, seed, SPLITS.index(split), int(paired)])
        courses = tuple(course for course in COURSES.values() if not (paired and course.symmetric))
        found: list[ClipSpec] = []
        taken: set[object] = set()
        misses = 0
        while len(found) < count:
            if misses > 2000:
                raise InputError(f"the {split} split holds only about {len(found)} different clips, fewer than {count}", "ask for fewer")
            course = _drawn(courses, rng)
            objects = _cast(course, rng)
            backwards = bool(rng.random() < 0.5) and not course.symmetric
            if split_of(course.name, objects) != split:
                continue
            key = frozenset(objects) if course.actors > 1 else (course.name, objects, backwards and not paired)
            if unique and key in taken:
                misses += 1
                continue
            misses = 0
            taken.add(key)
            place = BACKGROUNDS[int(rng.integers(len(BACKGROUNDS)))]
            name = f"{split}-{self.seed}-{seed}-{'p' if paired else ''}{len(found):05d}"
            own = int(rng.integers(2**62))
            found.append(make_clip(name, split, course.name, objects, place, seed=own, reversed_=backwards))
        return found


def _twin_of(spec: ClipSpec) -> ClipSpec:
    other = clips.twin(spec)
    assert other is not None  # only courses with a twin were drawn
    return other


def _drawn(courses: tuple[Course, ...], rng: np.random.Generator) -> Course:
    upto = np.cumsum([course.weight for course in courses])
    return courses[int(np.searchsorted(upto, rng.random() * upto[-1], side="right").clip(max=len(courses) - 1))]


def _fits(course: Course, objects: tuple[str, ...]) -> bool:
    return course.actors == len(objects) and not (course.name in ("spin", "rock") and objects[0] in ROUND)


def _cast(course: Course, rng: np.random.Generator) -> tuple[str, ...]:
    everything = tuple(things())
    while course.actors == 1:
        name = everything[int(rng.integers(len(everything)))]
        if _fits(course, (name,)):
            return (name,)
    parts = _ROLES.get(course.name, ((), ()))
    if rng.random() < _ANY_ROLE:
        parts = ((), ())
    choices = [names_of(*part) if part else everything for part in parts]
    while True:
        a, b = (names[int(rng.integers(len(names)))] for names in choices)
        if a != b:
            return (a, b)


@click.command()
@click.argument("out", type=click.Path(path_type=Path, file_okay=False))
@click.option("--count", default=100, show_default=True, type=click.IntRange(1), help="How many clips.")
@click.option("--split", default="train", show_default=True, type=click.Choice(SPLITS))
@click.option("--seed", default=0, show_default=True, type=int)
@click.option("--size", default=CLIP_SIZE, show_default=True, type=click.IntRange(64, 1024), help="Pixels a side; even.")
@click.option("--twins", is_flag=True, help="Write COUNT clips each with its time-reversed twin.")
def main(out: Path, count: int, split: str, seed: int, size: int, twins: bool) -> None:
    """Write clips of the demo world as H.264 files into OUT, with manifest.jsonl."""
    from vctool.demo.encode import write_world

    try:
        world = World(size=size)
        specs = [spec for pair in world.pairs(split, count, seed) for spec in pair] if twins else world.clip_specs(split, count, seed)
        manifest = write_world(out, specs, size=size)
    except VctoolError as problem:
        print(f"error: {problem}", file=sys.stderr)
        sys.exit(problem.exit_code)
    print(f"{len(specs)} clips: {manifest}", file=sys.stderr)


if __name__ == "__main__":
    main()
