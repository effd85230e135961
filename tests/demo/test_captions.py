"""Captions name what is there and what happens, and never fit the twin."""

from __future__ import annotations

import re

import numpy as np
import pytest

from vctool.demo.backgrounds import BACKGROUNDS, PHRASES
from vctool.demo.captions import captions, describe
from vctool.demo.clip import ClipSpec, twin
from vctool.demo.events import COURSES
from vctool.demo.objects import article, things
from vctool.demo.world import World


@pytest.fixture(scope="module")
def specs() -> list[ClipSpec]:
    return World().clip_specs("train", 2000, seed=5)


def test_every_caption_names_every_object(specs: list[ClipSpec]) -> None:
    for spec in specs:
        for sentence in spec.captions:
            for name in spec.objects:
                assert any(word in sentence for word in things()[name].names), (sentence, name)


def test_each_clip_has_five_different_captions_short_and_long(specs: list[ClipSpec]) -> None:
    lengths = set()
    for spec in specs:
        assert len(set(spec.captions)) == 5
        lengths.update(len(sentence.split()) for sentence in spec.captions)
    assert min(lengths) <= 3
    assert 22 <= max(lengths) <= 36


def test_some_captions_name_the_background_and_never_another_one(specs: list[ClipSpec]) -> None:
    for spec in specs[:500]:
        joined = " | ".join(spec.captions).replace(" in, in ", " in in ")
        assert any(phrase in joined for phrase in PHRASES[spec.background])
        others = [p for place in BACKGROUNDS if place != spec.background for p in PHRASES[place]]
        assert not any(re.search(rf"\b{re.escape(phrase)}\b", joined) for phrase in others)


def test_no_caption_of_a_clip_could_be_one_of_its_twin() -> None:
    # The names are taken out so that only the wording of the event is compared.
    rng = np.random.default_rng(0)
    for course in COURSES.values():
        if course.symmetric:
            continue
        objects = ("snail", "cactus")[: course.actors]
        said = [{text for _ in range(80) for text in captions(objects, "snow", course.event(way), rng)} for way in (False, True)]
        assert not said[0] & said[1], course.name


def test_direction_words_are_those_of_the_event(specs: list[ClipSpec]) -> None:
    for spec in specs:
        for sentence in spec.captions:
            if spec.event.endswith("counterclockwise"):
                assert "counterclockwise" in sentence or "anticlockwise" in sentence
            if spec.event == "moves left":
                assert re.search(r"left(wards)?( side)?\b", sentence)
                assert "to right" not in sentence
            if spec.event == "moves right":
                assert "right" in sentence
                assert "to left" not in sentence


def test_sentences_are_clean_english(specs: list[ClipSpec]) -> None:
    for sentence in (sentence for spec in specs for sentence in (*spec.captions, describe(spec.objects, spec.background, spec.event))):
        assert "{" not in sentence
        assert "  " not in sentence
        assert not re.search(r"\ba [aeio]|\ban [^aeiouh]|\b(\w+) \1\b", sentence), sentence


@pytest.mark.parametrize(
    ("word", "expected"), [("unicorn", "a"), ("ufo", "a"), ("umbrella", "an"), ("hourglass", "an"), ("dog", "a"), ("egg", "an")]
)
def test_articles_follow_the_sound(word: str, expected: str) -> None:
    assert article(word) == expected


def test_twins_and_clips_describe_themselves_plainly() -> None:
    (spec, other), *_ = World().pairs("test", 1, seed=1)
    assert twin(spec) == other
    assert describe(("dog", "frisbee"), "grass", "catches") == "a dog catches a frisbee on grass"
    assert describe(("cat", "dog"), "road", "chased left") == "a dog chases a cat to the left on a road"
    assert describe(("apple", "banana"), "wood", "shown after") == "first a banana, then an apple on a wooden floor"
