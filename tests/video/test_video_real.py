"""Real files, odd and ordinary, against a plain decode of everything in them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from vctool.video.decode import decode_frames
from vctool.video.files import find_videos
from vctool.video.probe import probe
from vctool.video.workers import DecodePool

FRAMES = {
    "decord_corrupted.mp4": 49,
    "decord_rot0.mov": 3,
    "decord_rot180.mov": 3,
    "decord_rot270.mov": 3,
    "decord_rot90.mov": 3,
    "decord_unordered.mov": 4,
    "gradio_bad.mp4": 15,
    "gradio_badcontainer.mkv": 150,
    "media_dolby.mov": 4,
    "media_flv.flv": 30,
    "media_hlg10.mp4": 9,
    "moviepy_ex1.mp4": 50,
    "moviepy_nodur.webm": 74,
    "zamba_asf.asf": 61,
}


def everything(path: Path) -> list[tuple[float, Any]]:
    """(seconds from the first, picture) of all frames by the simplest use of PyAV; damaged packets are passed over."""
    shown = []
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        for packet in container.demux(stream):
            try:
                shown += packet.decode()
            except av.error.InvalidDataError:
                continue
        return [(float((f.pts - shown[0].pts) * stream.time_base), f) for f in shown]


@pytest.mark.parametrize("name", FRAMES)
def test_an_odd_file_gives_all_its_frames_with_their_times(name: str, realclips: Path) -> None:
    path = realclips / "odd" / name
    plain = everything(path)
    assert len(plain) == FRAMES[name]
    decoded = decode_frames(path, 12)
    assert len(decoded.frames) == min(12, FRAMES[name])
    by_time = {round(t, 6): f for t, f in plain}
    turns = -(decoded.info.rotation // 90)
    assert {round(float(t), 6) for t in decoded.times_F} <= set(by_time)
    assert (decoded.damaged > 0) == (name == "decord_corrupted.mp4")
    if decoded.damaged:
        return  # what FFmpeg paints into a hole depends on which pictures it decoded before
    for picture, time in zip(decoded.frames, decoded.times_F, strict=True):
        assert np.array_equal(picture, np.rot90(by_time[round(float(time), 6)].to_ndarray(format="rgb24"), turns))


@pytest.mark.parametrize(
    ("name", "size", "rotation"),
    [
        ("decord_rot0.mov", (568, 320), 0),
        ("decord_rot90.mov", (320, 568), 90),
        ("decord_rot180.mov", (568, 320), 180),
        ("decord_rot270.mov", (320, 568), 270),
        ("media_dolby.mov", (720, 1280), 90),
    ],
)
def test_a_phone_s_recording_is_turned_upright(name: str, size: tuple[int, int], rotation: int, realclips: Path) -> None:
    info = probe(realclips / "odd" / name)
    assert (info.width, info.height, info.rotation) == (*size, rotation)


def test_rotation_agrees_with_decord_s(realclips: Path) -> None:
    pytest.importorskip("decord", reason='decord is not installed: pip install "vctool[decord]"')
    for angle in (90, 180, 270):
        path = realclips / "odd" / f"decord_rot{angle}.mov"
        ours, theirs = (decode_frames(path, 1, decoder=d).frames[0].astype(int) for d in ("pyav", "decord"))
        assert ours.shape == theirs.shape
        assert np.abs(ours - theirs).mean() < 3


def test_every_real_clip_is_indexed_with_the_frames_that_its_notes_count(realclips: Path) -> None:
    clips = find_videos([realclips / "captions.jsonl"])
    short = [c for c in clips if c.meta["frames"] <= 450 and c.meta["width"] <= 720]
    assert len(short) > 20
    with DecodePool(2, count=4) as pool:
        for result in pool.run(short):
            assert result.error is None, (result.input.id, result.error)
            assert result.damaged == 0
            assert result.info is not None
            assert result.info.frame_count == result.input.meta["frames"], result.input.id
            assert result.info.duration < result.input.meta["duration"] + 0.2  # some go on with sound after the last picture


def test_the_notes_of_the_odd_files_are_all_covered(realclips: Path) -> None:
    rows = [json.loads(line) for line in (realclips / "odd" / "notes.jsonl").read_text().splitlines()]
    assert {row["video"] for row in rows} == set(FRAMES)
