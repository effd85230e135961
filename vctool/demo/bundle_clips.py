"""The clips that ship with the package: written anew by `python -m vctool.demo.bundle_clips`.

All of them are combinations of the test split, so the bundled model has been trained on none of them.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from vctool.demo.clip import CLIP_SIZE, ClipSpec, make_clip, twin
from vctool.demo.encode import write_world
from vctool.demo.world import split_of
from vctool.errors import VctoolError

CLIPS = Path(__file__).with_name("clips")
RATE_FACTOR = 24

# (course, objects in their roles, background); each comes with its twin where it has one.
_SHOWN: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("catch", ("dog", "frisbee"), "grass"),
    ("chase", ("cat", "dog"), "road"),
    ("shown", ("apple", "banana"), "wood"),
    ("vertical", ("rocket",), "night"),
    ("catch", ("monkey", "banana"), "mountains"),
    ("catch", ("lion", "soccer ball"), "sand"),
    ("chase", ("rabbit", "turtle"), "grass"),
    ("chase", ("police car", "racing car"), "road"),
    ("approach", ("shark", "surfer"), "water"),
    ("approach", ("mouse", "wedge of cheese"), "checkered floor"),
    ("approach", ("bee", "sunflower"), "sky"),
    ("jump", ("frog", "mushroom"), "grass"),
    ("jump", ("kangaroo", "cactus"), "sand"),
    ("ring", ("rocket", "planet with rings"), "night"),
    ("ring", ("butterfly", "rose"), "brick wall"),
    ("appear", ("sun", "cloud"), "sky"),
    ("appear", ("crescent moon", "star"), "night"),
    ("shown", ("caterpillar", "butterfly"), "grass"),
    ("shown", ("egg", "chick"), "wood"),
    ("horizontal", ("car",), "road"),
    ("horizontal", ("sailboat",), "water"),
    ("horizontal", ("snail",), "graph paper"),
    ("vertical", ("balloon",), "sky"),
    ("rising diagonal", ("airplane",), "sunset"),
    ("size", ("cactus",), "sand"),
    ("size", ("snowman",), "snow"),
    ("fade", ("ghost",), "brick wall"),
    ("orbit", ("bee",), "grass"),
    ("spin", ("guitar",), "wood"),
    ("spin", ("slice of pizza",), "checkered floor"),
    ("right up", ("helicopter",), "mountains"),
    ("left down", ("elephant",), "red curtain"),
    ("bounce", ("basketball",), "checkered floor"),
    ("bounce", ("dolphin",), "water"),
    ("rock", ("teddy bear",), "red curtain"),
    ("shake", ("alarm clock",), "wood"),
)


def bundled_specs() -> list[ClipSpec]:
    """The bundled clips, named for what happens in them, twins side by side."""
    specs: list[ClipSpec] = []
    for number, (course, objects, place) in enumerate(_SHOWN):
        split = split_of(course, objects)
        spec = make_clip("bundle", split, course, objects, place, seed=7000 + number, reversed_=False)
        other = twin(spec)
        if other is None:
            specs.append(replace(spec, id=spec.slug, group=spec.slug))
            continue
        specs.append(replace(spec, id=spec.slug, twin_id=other.slug, group=spec.slug))
        specs.append(replace(other, id=other.slug, twin_id=spec.slug, group=spec.slug))
    return specs


def main() -> None:
    """Write the bundle into `vctool/demo/clips`."""
    try:
        written = write_world(CLIPS, bundled_specs(), CLIP_SIZE, crf=RATE_FACTOR, manifest_name="captions.jsonl")
    except VctoolError as problem:
        print(f"error: {problem}", file=sys.stderr)
        sys.exit(problem.exit_code)
    sizes = [path.stat().st_size for path in CLIPS.glob("*.mp4")]
    print(f"{len(sizes)} clips, {sum(sizes) / 1e6:.2f} MB: {written}", file=sys.stderr)


if __name__ == "__main__":
    main()
