"""Corrupted files, decoded in the pool: each ends in frames or in a reason, and nothing reaches the parent."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from makevideo import write_video

from vctool.video.clip import VideoInput
from vctool.video.workers import DecodePool

Damage = Callable[[bytearray, random.Random], None]


def flip_bits(data: bytearray, chance: random.Random) -> None:
    for _ in range(chance.randrange(1, 200)):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)


def flip_head(data: bytearray, chance: random.Random) -> None:
    for _ in range(chance.randrange(1, 40)):
        data[chance.randrange(min(len(data), 1500))] ^= 1 << chance.randrange(8)


def hole(data: bytearray, chance: random.Random) -> None:
    at, size = chance.randrange(len(data)), chance.randrange(1, len(data) // 2)
    data[at : at + size] = bytes(len(data[at : at + size]))


def cut(data: bytearray, chance: random.Random) -> None:
    del data[chance.randrange(1, len(data)) :]


def remove(data: bytearray, chance: random.Random) -> None:
    at = chance.randrange(len(data))
    del data[at : at + chance.randrange(1, 500)]


def repeat(data: bytearray, chance: random.Random) -> None:
    at = chance.randrange(len(data))
    data[at:at] = data[at : at + chance.randrange(1, 2000)]


DAMAGES: list[Damage] = [flip_bits, flip_head, hole, cut, remove, repeat]


@pytest.fixture(scope="module")
def sound_files(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    folder = tmp_path_factory.mktemp("sound")
    quick = {"deadline": "realtime", "cpu-used": "8"}
    return [
        write_video(folder / "a.mp4", 30, container_options={"movflags": "faststart"}).read_bytes(),
        write_video(folder / "b.webm", 30, codec="libvpx-vp9", options=quick).read_bytes(),
        write_video(folder / "c.ts", 30).read_bytes(),
        write_video(folder / "d.gif", 30, codec="gif", pix_fmt="rgb8").read_bytes(),
        write_video(folder / "e.mp4", 30, codec="libx265", options={"x265-params": "log-level=none"}).read_bytes(),
        write_video(folder / "f.avi", 30, codec="mpeg4").read_bytes(),
    ]


def test_seventy_corrupted_files_cost_nothing_but_themselves(sound_files: list[bytes], sixty: Path, tmp_path: Path) -> None:
    chance = random.Random(20261122)
    clips = []
    for number in range(72):
        data = bytearray(sound_files[number % len(sound_files)])
        DAMAGES[number // len(sound_files) % len(DAMAGES)](data, chance)
        path = tmp_path / f"{number}.bin"
        path.write_bytes(data)
        clips.append(VideoInput(path.name, path))
    clips.append(VideoInput("sound", sixty))
    with DecodePool(2, count=12, timeout_s=10.0) as pool:
        results = list(pool.run(clips))
    assert [r.input for r in results] == clips
    for result in results:
        if result.frames_FHWC is None:
            assert result.error
            assert "\n" not in result.error
        else:
            assert result.error is None
            assert result.times_F is not None
            assert 1 <= len(result.frames_FHWC) == len(result.times_F) <= 12
            assert np.all(np.isfinite(result.times_F))
            assert np.all(np.diff(result.times_F) >= 0)
    assert results[-1].error is None
    assert sum(r.error is None for r in results) > len(results) // 2  # damage is survived, not merely refused
