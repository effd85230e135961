"""Splits hold combinations apart, galleries have one right answer, and both directions are equally likely."""

from __future__ import annotations

from collections import Counter

import pytest

from vctool.demo.events import COURSES
from vctool.demo.objects import ROUND, names_of, things
from vctool.demo.world import SHOWN_PAIRS, SHOWN_SOLOS, SPLITS, World, split_of
from vctool.errors import InputError, UsageProblem


def _combinations(split: str, count: int, seed: int) -> set[tuple[object, ...]]:
    found: set[tuple[object, ...]] = set()
    for spec in World(seed=seed).clip_specs(split, count, seed):
        found.add((spec.course, *spec.objects) if len(spec.objects) == 1 else tuple(sorted(spec.objects)))
    return found


def test_no_combination_is_in_two_splits_whatever_the_seeds() -> None:
    train = _combinations("train", 3000, 0) | _combinations("train", 3000, 8)
    val, test = _combinations("val", 500, 1), _combinations("test", 1000, 2)
    assert not train & test
    assert not train & val
    assert not val & test


def test_every_object_and_every_course_is_in_train() -> None:
    solos = [course.name for course in COURSES.values() if course.actors == 1]
    for name in things():
        assert any(split_of(course, (name,)) == "train" for course in solos), name
    for course in solos:
        assert sum(split_of(course, (name,)) == "train" for name in things()) > 150, course


def test_the_table_of_objects_is_sound() -> None:
    assert len(things()) >= 300
    spoken = [name for thing in things().values() for name in thing.names]
    assert len(spoken) == len(set(spoken))
    assert len({thing.glyph for thing in things().values()}) == len(things())
    assert set(things()) >= ROUND
    assert {"dog", "cat", "frisbee", "bird", "soccer ball", "basketball"} <= set(things())
    assert "dog" in names_of("animal")


def test_what_the_demo_shows_is_held_out() -> None:
    for pair in SHOWN_PAIRS:
        assert pair <= set(things())
        assert split_of("catch", tuple(pair)) == "test"
    for course, name in SHOWN_SOLOS:
        assert (course in COURSES, name in things()) == (True, True)
        assert split_of(course, (name,)) == "test"


def test_a_gallery_of_a_thousand_has_one_right_answer_to_each_caption() -> None:
    specs = World().clip_specs("test", 1000, seed=0)
    assert len({spec.id for spec in specs}) == 1000
    assert len({(spec.event, spec.objects) for spec in specs}) == 1000
    pairs = [frozenset(spec.objects) for spec in specs if len(spec.objects) == 2]
    assert len(pairs) == len(set(pairs))
    texts = Counter(sentence for spec in specs for sentence in set(spec.captions))
    assert max(texts.values()) == 1


def test_the_same_seeds_give_the_same_clips_and_others_do_not() -> None:
    assert World(seed=1).clip_specs("train", 50, 2) == World(seed=1).clip_specs("train", 50, 2)
    assert World(seed=1).clip_specs("train", 50, 2) != World(seed=1).clip_specs("train", 50, 3)
    assert World(seed=2).clip_specs("train", 50, 2) != World(seed=1).clip_specs("train", 50, 2)


def test_both_directions_are_equally_likely() -> None:
    directed = [spec for spec in World().clip_specs("train", 4000, 0) if not spec.symmetric]
    assert abs(sum(spec.reversed for spec in directed) / len(directed) - 0.5) < 0.04
    assert {spec.event for spec in directed} == {event for c in COURSES.values() for event in (c.forward, c.backward) if not c.symmetric}


def test_pairs_are_clips_with_their_twins() -> None:
    for spec, other in World().pairs("test", 200, 0):
        assert (spec.twin_id, other.twin_id, spec.group) == (other.id, spec.id, other.group)
        assert spec.reversed != other.reversed


def test_groups_share_objects_and_background_and_differ_in_what_happens() -> None:
    for split in SPLITS:
        for group in World().groups(split, 40, 0, of=4):
            assert len({(spec.objects, spec.background, spec.group) for spec in group}) == 1
            assert len({spec.event for spec in group}) == 4
            assert {split_of(spec.course, spec.objects) for spec in group} == {split}


def test_round_things_do_not_turn() -> None:
    specs = World().clip_specs("train", 4000, 0)
    assert not [spec for spec in specs if spec.course in ("spin", "rock") and spec.objects[0] in ROUND]


def test_an_unknown_split_and_too_many_clips_are_refused_in_one_line() -> None:
    with pytest.raises(UsageProblem, match="train, val, test"):
        World().clip_specs("dev", 1, 0)
    with pytest.raises(InputError, match="fewer than"):
        World().groups("val", 1, 0, of=99)
