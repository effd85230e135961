"""The things that appear in the demo world: emoji glyphs with plain everyday names."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

TABLE = Path(__file__).with_name("objects.tsv")

# Sounds like "you" or "won" although it is spelt with a vowel, or the other way round.
_A_BEFORE = ("unicorn", "ufo", "ukulele", "one")
_AN_BEFORE = ("hour",)

#: Things that look the same whichever way they are turned: nobody could say whether they turn.
_ROUND = """
sun stop_sign daisy cherry_blossom gold_coin basketball baseball volleyball soccer_ball billiard_ball egg compass
snowflake cookie kiwi dartboard orange sunflower donut onion coconut waffle globe tomato peach pufferfish pie rock
ball_of_yarn window cloud
"""
ROUND = frozenset(word.replace("_", " ") for word in _ROUND.split())


@dataclass(frozen=True, slots=True)
class Thing:
    """One object: what the font draws (`glyph`), what people call it, and what sort of thing it is."""

    glyph: str
    name: str
    synonyms: tuple[str, ...]
    category: str

    @property
    def names(self) -> tuple[str, ...]:
        """Every name a caption may use, the usual one first."""
        return (self.name, *self.synonyms)


@cache
def things() -> dict[str, Thing]:
    """All objects by name, in the order of `objects.tsv`."""
    found: dict[str, Thing] = {}
    for line in TABLE.read_text(encoding="utf-8").splitlines()[1:]:
        codepoints, name, synonyms, category = line.split("\t")
        glyph = "".join(chr(int(part, 16)) for part in codepoints.split())
        found[name] = Thing(glyph, name, tuple(s for s in synonyms.split(",") if s), category)
    return found


@cache
def names_of(*categories: str) -> tuple[str, ...]:
    """Names of the objects of these categories, in table order."""
    return tuple(thing.name for thing in things().values() if thing.category in categories)


def article(words: str) -> str:
    """`a` or `an`, by how the first word sounds."""
    first = words.lower()
    if first.startswith(_AN_BEFORE):
        return "an"
    if first.startswith(_A_BEFORE):
        return "a"
    return "an" if first[0] in "aeiou" else "a"
