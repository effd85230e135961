"""A clip and its twin are the same pictures in opposite order, and a clip is the same wherever it is drawn."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from vctool.demo.backgrounds import BACKGROUNDS
from vctool.demo.clip import CLIP_FRAMES, frame_indices, frames, make_clip, picture_at, twin
from vctool.demo.events import COURSES

ACTORS = {1: ("snail",), 2: ("dog", "frisbee")}


def _clip(course: str, seed: int = 3, place: str = "grass", reversed_: bool = False):  # type: ignore[no-untyped-def]
    return make_clip("c", "test", course, ACTORS[COURSES[course].actors], place, seed=seed, reversed_=reversed_)


@pytest.mark.usefixtures("font")
@pytest.mark.parametrize("course", COURSES)
@pytest.mark.parametrize("seed", [1, 2**61 + 5])
def test_twin_is_the_same_clip_played_backwards_to_the_bit(course: str, seed: int) -> None:
    spec = _clip(course, seed)
    other = twin(spec)
    if COURSES[course].symmetric:
        assert other is None
        return
    assert other is not None
    np.testing.assert_array_equal(frames(spec), frames(other)[::-1])


@pytest.mark.usefixtures("font")
@pytest.mark.parametrize("course", [c.name for c in COURSES.values() if c.symmetric])
def test_a_clip_without_twin_looks_the_same_backwards(course: str) -> None:
    spec = _clip(course)
    np.testing.assert_array_equal(frames(spec), frames(spec)[::-1])


@pytest.mark.parametrize("course", [c.name for c in COURSES.values() if not c.symmetric])
def test_twins_point_at_each_other_and_say_different_things(course: str) -> None:
    spec = _clip(course)
    other = twin(spec)
    assert other is not None
    assert (spec.twin_id, other.twin_id) == (other.id, spec.id)
    assert twin(other) == spec
    assert (other.group, other.seed, other.objects, other.background) == (spec.group, spec.seed, spec.objects, spec.background)
    assert other.event != spec.event
    assert not set(spec.captions) & set(other.captions)


@pytest.mark.usefixtures("font")
@pytest.mark.parametrize("course", [c.name for c in COURSES.values()])
def test_something_happens_in_every_clip(course: str) -> None:
    shown = frames(_clip(course)).astype(int)
    assert np.abs(shown - shown[CLIP_FRAMES // 2]).max(axis=(1, 2, 3)).max() > 50


@pytest.mark.usefixtures("font")
@pytest.mark.parametrize("place", BACKGROUNDS)
def test_objects_stand_out_from_every_background(place: str) -> None:
    spec = _clip("appear", place=place)
    empty, full = picture_at(spec, 0.0).astype(int), picture_at(spec, 1.0).astype(int)
    changed = np.abs(full - empty).max(axis=2) > 40
    assert changed.mean() > 0.04


@pytest.mark.usefixtures("font")
def test_frames_are_rgb_bytes_of_the_asked_size_and_number() -> None:
    spec = _clip("horizontal")
    shown = frames(spec, count=8, size=96)
    assert (shown.shape, shown.dtype) == ((8, 96, 96, 3), np.uint8)
    np.testing.assert_array_equal(shown, frames(spec, size=96)[[1, 4, 7, 10, 13, 16, 19, 22]])


@pytest.mark.usefixtures("font")
def test_a_picture_can_be_drawn_at_any_time() -> None:
    spec = _clip("horizontal")
    np.testing.assert_array_equal(picture_at(spec, 0.0), frames(spec)[0])
    np.testing.assert_array_equal(picture_at(spec, 1.0), frames(spec)[-1])


@pytest.mark.usefixtures("font")
def test_right_moves_right_and_rising_rises() -> None:
    def centre(spec, t: float):  # type: ignore[no-untyped-def]
        ends = [picture_at(spec, x).astype(int) for x in (0.0, 1.0)]
        here, there = (ends[0], ends[1]) if t == 0.0 else (ends[1], ends[0])
        rows, columns = np.nonzero(np.abs(here - np.median([here, there, picture_at(spec, 0.5)], axis=0)).max(axis=2) > 60)
        return columns.mean(), rows.mean()

    right = _clip("horizontal")
    assert right.event == "moves right"
    assert centre(right, 1.0)[0] > centre(right, 0.0)[0] + 25
    rises = _clip("vertical", reversed_=True)
    assert rises.event == "rises"
    assert centre(rises, 1.0)[1] < centre(rises, 0.0)[1] - 25


@pytest.mark.parametrize("count", [8, 16, 24, None, 99])
def test_sampling_is_its_own_mirror_image_for_these_counts(count: int | None) -> None:
    chosen = frame_indices(count)
    assert chosen == [CLIP_FRAMES - 1 - i for i in reversed(chosen)]


@pytest.mark.usefixtures("font")
def test_another_process_draws_the_same_pictures_and_writes_the_same_words() -> None:
    script = (
        "import hashlib; from vctool.demo.world import World; w = World(seed=4)\n"
        "s = w.clip_specs('test', 3, seed=9)\n"
        "print(hashlib.sha256(repr(s).encode() + b''.join(w.frames(x, 8).tobytes() for x in s)).hexdigest())"
    )
    runs = {
        subprocess.run(
            [sys.executable, "-c", script],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": salt, "PATH": ""},
            cwd=Path(__file__).parents[2],
        ).stdout
        for salt in ("1", "2")
    }
    assert len(runs) == 1
    assert len(runs.pop().strip()) == hashlib.sha256().digest_size * 2
