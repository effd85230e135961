"""What a writer does not let into a store, and that a refusal costs one clip and not the job."""

from __future__ import annotations

import dataclasses
import errno
import os
import tempfile

import numpy as np
import pytest
from store_fixtures import DIM, MODEL, make_clip, unit

from vctool.errors import StoreError
from vctool.store import StoreWriter, open_store


def spoiled(field: str, change) -> object:
    clip = make_clip("bad one")
    values = getattr(clip, field).copy()
    change(values)
    return dataclasses.replace(clip, **{field: values})


def at(row: int, value: float):
    def change(values: np.ndarray) -> None:
        values[row] = value

    return change


@pytest.mark.parametrize(
    ("clip", "message"),
    [
        (spoiled("frame_FD", at(1, np.nan)), "frame token is NaN or infinite"),
        (spoiled("video_VD", at(4, np.inf)), "video token is NaN or infinite"),
        (spoiled("video_VD", at(0, 0)), "video token is all zeros"),
        (spoiled("frame_FD", at(2, 1)), "frame token has length 2.828"),
        (spoiled("frame_FD", at(2, 3e38)), "frame token has length"),
        (dataclasses.replace(make_clip("bad one"), video_VD=unit(5, 4)), "video tokens are 4 wide, the store holds 8"),
        (dataclasses.replace(make_clip("bad one"), frame_FD=unit(3, 4)), "frame tokens are 4 wide, the store holds 8"),
        (dataclasses.replace(make_clip("bad one"), frame_FD=unit(3)[0]), "have shape"),
        (dataclasses.replace(make_clip("bad one"), frame_time_F=np.zeros(2)), "3 frame tokens but times"),
        (spoiled("frame_time_F", at(0, np.inf)), "frame time is infinite"),
        (dataclasses.replace(make_clip("bad one"), meta={"a": float("nan")}), "metadata cannot be written"),
        (dataclasses.replace(make_clip("bad one"), meta={"a": object()}), "metadata cannot be written"),
    ],
)
@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_a_refused_clip_is_named_and_the_next_one_is_welcome(tmp_path, clip, message, dtype):
    with StoreWriter(tmp_path / "clips.npz", manifest=MODEL, dtype=dtype) as writer:
        writer.add(make_clip("first"))
        with pytest.raises(StoreError, match=message) as problem:
            writer.add(clip)
        assert "'bad one'" in problem.value.message and problem.value.hint
        writer.add(make_clip("last", 1))
        writer.commit()
    store = open_store(tmp_path / "clips.npz")
    store.verify()
    assert store.clip_ids == ["first", "last"]


def test_an_id_is_taken_once(tmp_path):
    with StoreWriter(tmp_path / "clips.npz", manifest=MODEL) as writer:
        writer.add(make_clip("a"))
        with pytest.raises(StoreError, match="'a' is already in the store"):
            writer.add(make_clip("a", 1))
        assert len(writer) == 1 and "a" in writer and "b" not in writer


@pytest.mark.parametrize("name", ["", None, 3])
def test_an_id_is_a_text_that_is_not_empty(tmp_path, name):
    with StoreWriter(tmp_path / "clips.npz", manifest=MODEL) as writer, pytest.raises(StoreError, match="not a non-empty text"):
        writer.add(dataclasses.replace(make_clip("a"), id=name))


def test_tokens_rounded_by_a_float16_engine_are_unit_enough(tmp_path):
    clip = make_clip("a")
    with StoreWriter(tmp_path / "clips.npz", manifest=MODEL) as writer:
        writer.add(dataclasses.replace(clip, frame_FD=clip.frame_FD.astype(np.float16)))
        assert len(writer) == 1


def test_a_zero_width_is_refused(tmp_path):
    clip = dataclasses.replace(make_clip("a"), frame_FD=np.zeros((0, 0)), frame_time_F=np.zeros(0))
    with StoreWriter(tmp_path / "clips.npz", manifest=MODEL) as writer, pytest.raises(StoreError, match="have shape"):
        writer.add(clip)


def test_a_folder_is_not_a_target(tmp_path):
    with pytest.raises(StoreError, match="is a folder"):
        StoreWriter(tmp_path, manifest=MODEL)


def test_a_folder_that_does_not_exist_is_said_before_work_starts(tmp_path):
    with pytest.raises(StoreError, match="does not exist"):
        StoreWriter(tmp_path / "nowhere" / "clips.npz", manifest=MODEL)


@pytest.mark.parametrize(
    ("number", "message"),
    [(errno.EACCES, "cannot be written to"), (errno.EROFS, "cannot be written to"), (errno.ENOSPC, "the disk is full")],
)
def test_a_folder_that_cannot_be_written_to_is_said_before_work_starts(tmp_path, monkeypatch, number, message):
    def refuse(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    with pytest.raises(StoreError, match=message):
        StoreWriter(tmp_path / "clips.npz", manifest=MODEL)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(StoreError, match="cannot be written to"):
            StoreWriter(tmp_path / "clips.npz", manifest=MODEL)
    finally:
        tmp_path.chmod(0o700)


def test_an_unknown_dtype_is_refused(tmp_path):
    with pytest.raises(StoreError, match="choose float16, int8, int4, compact"):
        StoreWriter(tmp_path / "clips.npz", manifest=MODEL, dtype="float32")  # type: ignore[arg-type]


def test_a_manifest_that_json_cannot_hold_is_refused(tmp_path):
    with pytest.raises(StoreError, match="manifest cannot be written"):
        StoreWriter(tmp_path / "clips.npz", manifest={"model": {1, 2}})


def test_a_writer_commits_once(tmp_path):
    writer = StoreWriter(tmp_path / "clips.npz", manifest=MODEL)
    writer.add(make_clip("a"))
    writer.commit()
    for again in (writer.commit, lambda: writer.add(make_clip("b"))):
        with pytest.raises(StoreError, match="this writer is closed"):
            again()
    assert open_store(tmp_path / "clips.npz").dim == DIM
