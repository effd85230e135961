"""Explicit query expansion to compare soft expansion with: words that may stand for one another, a short list of our own."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vctool.data.files import read_text
from vctool.errors import InputError

# Everyday words of captions. A group's words can stand for each other in most captions, not in all.
_OWN = """
man, guy, gentleman
woman, lady
boy, lad
girl, lass
child, kid
person, human
people, folks
baby, infant
dog, puppy, hound
cat, kitten
rabbit, bunny
car, automobile
bicycle, bike
boat, ship
plane, airplane, aircraft
road, street
house, home
forest, woods
sea, ocean
picture, image
video, clip, film
scene, view
food, meal
big, large, huge
bigger, larger
small, little, tiny
smaller, tinier
fast, quick, rapid
slowly, gradually
quickly, rapidly
happy, glad
walks, strolls
walking, strolling
runs, races
running, racing
jumps, leaps, hops
jumping, leaping, hopping
moves, goes, travels
moving, going, traveling
rises, ascends, climbs
rising, ascending, climbing
falls, drops, descends
falling, dropping, descending
turns, rotates, spins
turning, rotating, spinning
circles, orbits
circling, orbiting
grows, expands
growing, expanding
shrinks, contracts
shrinking, contracting
appears, emerges
appearing, emerging
disappears, vanishes
disappearing, vanishing
chases, pursues
chasing, pursuing
catches, grabs
catching, grabbing
throws, tosses
throwing, tossing
approaches, nears
approaching, nearing
shakes, trembles
shaking, trembling
bounces, bobs
bouncing, bobbing
shows, displays
talks, speaks
talking, speaking
cooks, prepares
cooking, preparing
cuts, slices
cutting, slicing
holds, grips
holding, gripping
looks, gazes
looking, gazing
begins, starts
ends, finishes
left, leftward
right, rightward
upwards, upward
downwards, downward
"""


@dataclass(frozen=True)
class Substitution:
    """A query with one word exchanged for a synonym."""

    word: str
    synonym: str
    text: str


def read_synonyms(path: Path | None) -> dict[str, tuple[str, ...]]:
    """{word: its synonyms}, lower case, from a file with a group of single words a line, commas between; None: our own list.

    Raises InputError naming the line that has no two words, or a phrase instead of a word.
    """
    text = _OWN if path is None else read_text(path)
    found: dict[str, tuple[str, ...]] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        words = [word.strip().lower() for word in line.split(",") if word.strip()]
        if not words or line.lstrip().startswith("#"):
            continue
        if len(words) < 2 or any(len(word.split()) > 1 for word in words):
            raise InputError(f"{path}:{number}: expected two or more single words with commas between", "for example: big, large, huge")
        for word in words:
            found[word] = tuple(dict.fromkeys((*found.get(word, ()), *(other for other in words if other != word))))
    if not found:
        raise InputError(f"{path} holds no synonyms", "write a group a line, for example: big, large, huge")
    return found


def substitutions(text: str, words: Sequence[str], synonyms: Mapping[str, Sequence[str]], limit: int = 4) -> list[Substitution]:
    """At most `limit` versions of a query with one of its `words` exchanged, first synonyms of all words before second ones."""
    known = [word.lower() for word in dict.fromkeys(words) if word.lower() in synonyms]
    depth = max((len(synonyms[word]) for word in known), default=0)
    found = []
    for at in range(depth):
        for word in known:
            if at < len(synonyms[word]):
                synonym = synonyms[word][at]
                changed = re.sub(rf"\b{re.escape(word)}\b", lambda _, new=synonym: new, text, count=1, flags=re.IGNORECASE)  # type: ignore[misc]
                if changed != text:
                    found.append(Substitution(word, synonym, changed))
    return found[:limit]
