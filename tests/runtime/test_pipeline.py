"""The pipeline of an index run: stages that overlap, in order, bounded."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vctool.errors import ModelError
from vctool.runtime import pipeline
from vctool.runtime.model import Model, load_model
from vctool.runtime.pipeline import Encoded, Job, clips_ahead, encode_clips
from vctool.video.clip import VideoInput
from vctool.video.workers import DecodePool


def jobs_of(folder: Path, *names: str) -> list[Job]:
    return [Job(VideoInput(f"{i}-{name}", folder / name), str(folder / name), {"size": 1}) for i, name in enumerate(names)]


def run(jobs: list[Job], model: Model, workers: int = 0, batch_size: int | None = None) -> list[Encoded]:
    with DecodePool(workers, count=4, transform_config=model.directory.preprocess) as pool:
        return list(encode_clips(jobs, model, pool, batch_size))


@pytest.mark.parametrize(
    ("workers", "batch", "clip_bytes", "wanted"),
    [
        (2, 1, 10**6, 10),  # four clips a process and two batches
        (2, 8, 10**6, 24),
        (2, 8, 10**8, 12),  # large frames: a batch, and two clips a process
        (64, 8, 2 * 10**6, 136),
        (0, 1, 10**6, 2),
    ],
)
def test_how_many_clips_wait_follows_processes_batch_and_size(workers: int, batch: int, clip_bytes: int, wanted: int) -> None:
    assert clips_ahead(workers, batch, clip_bytes) == wanted


def test_the_next_batch_is_decoded_while_one_is_encoded(tiny_videos: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The encoder waits for the second batch's files to be taken: without overlap it would wait in vain."""
    model = load_model(tiny_model, device="cpu")
    taken = 0
    second_is_under_way = threading.Event()

    def hashed(file: str, stat: dict[str, int]) -> str:
        nonlocal taken
        taken += 1
        if taken >= 8:
            second_is_under_way.set()
        return file

    overlapped = []
    encode = model.video.frame_features

    def waiting(frames: Any) -> Any:
        overlapped.append(second_is_under_way.wait(20))
        return encode(frames)

    monkeypatch.setattr(pipeline, "content_sha256", hashed)
    monkeypatch.setattr(model.video, "frame_features", waiting)
    run(jobs_of(tiny_videos, *["red.mp4", "blue.mp4"] * 6), model, workers=1, batch_size=4)
    assert overlapped == [True, True, True]


@pytest.mark.parametrize("batch_size", [None, 3, 50])
def test_each_clip_has_its_own_tokens_and_reason_whatever_the_batch(tiny_videos: Path, tiny_model: Path, batch_size: int | None) -> None:
    jobs = jobs_of(tiny_videos, "red.mp4", "missing.mp4", "blue.mp4", "change.mp4", "missing.mp4")
    model = load_model(tiny_model, device="cpu")
    found = run(jobs, model, batch_size=batch_size)
    assert [one.number for one in found] == [0, 1, 2, 3, 4]
    assert [one.error for one in found] == [None, "no such file", None, None, "no such file"]
    for one in found:
        assert one.result.input is jobs[one.number].clip
        if one.tokens is not None and one.result.frames_FHWC is not None and one.result.times_F is not None:
            alone = model.video.encode(one.result.frames_FHWC, one.result.times_F)
            for have, want in zip(one.tokens, alone, strict=True):
                np.testing.assert_allclose(have, want, atol=1e-6)
    ends = [one.number for one in found if one.batch_ends]
    assert ends == {None: [0, 1, 2, 3, 4], 3: [2, 4], 50: [4]}[batch_size]


def test_a_file_is_read_once_for_its_pieces(tiny_videos: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline.content_sha256.__globals__["_read"].cache_clear()
    jobs = jobs_of(tiny_videos, *["change.mp4"] * 3)
    assert len({one.sha256 for one in run(jobs, load_model(tiny_model, device="cpu"))}) == 1
    assert pipeline.content_sha256.__globals__["_read"].cache_info().misses == 1


def test_a_pipe_among_the_files_is_told_and_stops_nothing(tiny_videos: Path, tmp_path: Path, tiny_model: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    jobs = [*jobs_of(tmp_path, "pipe.mp4"), *jobs_of(tiny_videos, "red.mp4")]
    found = run(jobs, load_model(tiny_model, device="cpu"), workers=1)
    assert [one.error for one in found] == ["is not a regular file", None]


def test_an_encoder_that_does_not_load_ends_the_run_in_one_error(tiny_videos: Path, tmp_path: Path) -> None:
    from tinymodel import build_tiny_model

    folder = build_tiny_model(tmp_path / "m")
    checksums = json.loads((folder / "checksums.json").read_text())
    assert "onnx/frame.onnx" in checksums["files"]
    (folder / "onnx" / "frame.onnx").unlink()
    with pytest.raises(ModelError):
        run(jobs_of(tiny_videos, "red.mp4"), load_model(folder, device="cpu"), workers=1)


def test_no_jobs_start_nothing(tiny_model: Path) -> None:
    model = load_model(tiny_model, device="cpu")
    assert run([], model) == []
    assert "video" not in model.__dict__
