"""Damaged, cut, foreign and hostile files: one line that says what to do, or a store whose `verify` refuses it."""

from __future__ import annotations

import contextlib
import io
import json
import struct
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from store_fixtures import DIM, make_clip, write_store

from vctool.errors import StoreError, VerificationError
from vctool.store import StoreWriter, TokenStore, open_store


@pytest.fixture(scope="module")
def good() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        return write_store(
            Path(folder) / "clips.npz", [make_clip(f"clip {i}", i, path=f"{folder}/{i}.mp4") for i in range(3)], "int8"
        ).read_bytes()


def use(store: TokenStore) -> None:
    """Touch everything a store offers."""
    for i in range(len(store)):
        store.clip(i)
    assert len(store.clip_ids) == len(store.clip_paths) == len(store)


def judge(data: bytes) -> str:
    """What becomes of a file: `unreadable`, `unverified`, or `sound`. Anything but our own errors escapes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clips.npz"
        path.write_bytes(data)
        try:
            store = open_store(path)
        except StoreError as problem:
            assert "\n" not in str(problem) and problem.hint
            return "unreadable"
        with contextlib.suppress(StoreError):
            use(store)
        try:
            store.verify()
        except VerificationError:
            return "unverified"
        return "sound"


def test_the_undamaged_file_is_sound(good):
    assert judge(good) == "sound"


def test_no_byte_can_be_changed_unnoticed(good):
    generator = np.random.default_rng(0)
    # Every byte of the directory and of one header, and a sample of the rest.
    places = {*range(120), *range(len(good) - 1400, len(good)), *generator.integers(0, len(good), 500).tolist()}
    for place in sorted(places):
        changed = bytearray(good)
        changed[place] ^= 1 << int(generator.integers(8))
        assert judge(bytes(changed)) != "sound", place


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_damage_is_an_error_of_ours_or_fails_verification(good, data):
    damaged = bytearray(good)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(damaged) - 1) | st.integers(max(0, len(damaged) - 1500), len(damaged) - 1))
        match data.draw(st.sampled_from(["set", "cut", "insert", "number"])):
            case "set":
                damaged[place] = data.draw(st.integers(0, 255))
            case "cut":
                del damaged[place : place + data.draw(st.integers(1, 2000))]
            case "insert":
                damaged[place:place] = data.draw(st.binary(min_size=1, max_size=40))
            case "number":
                damaged[place : place + 8] = struct.pack("<q", data.draw(st.sampled_from([-1, 0, 2**31, 2**32 - 1, 2**62, 2**63 - 1])))
        if not damaged:
            break
    assert judge(bytes(damaged)) != "sound" or bytes(damaged) == good


@given(st.binary(max_size=300) | st.binary(max_size=300).map(lambda tail: b"PK\3\4" + tail + b"PK\5\6" + bytes(18)))
@settings(max_examples=80, deadline=None)
def test_any_bytes_are_read_or_refused(data):
    assert judge(data) == "unreadable"


def test_a_file_cut_anywhere_is_called_incomplete(good, tmp_path):
    path = tmp_path / "clips.npz"
    for share in (0.01, 0.3, 0.5, 0.9, 0.999):
        path.write_bytes(good[: int(len(good) * share)])
        with pytest.raises(StoreError, match="incomplete") as problem:
            open_store(path)
        assert "copy it again" in str(problem.value.hint)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"#!/bin/sh\n", "not a token store"),
        (b"\x93NUMPY\x01\x00", "not a token store"),
        (bytes(10_000), "not a token store"),
    ],
)
def test_other_files_are_not_stores(tmp_path, content, message):
    (tmp_path / "clips.npz").write_bytes(content)
    with pytest.raises(StoreError, match=message):
        open_store(tmp_path / "clips.npz")


def test_no_file_and_a_folder_are_said_plainly(tmp_path):
    with pytest.raises(StoreError, match="no such file"):
        open_store(tmp_path / "clips.npz")
    with pytest.raises(StoreError, match="is a folder"):
        open_store(tmp_path)


def members(good: bytes) -> dict[str, np.ndarray]:
    with np.load(io.BytesIO(good)) as archive:
        return {name: archive[name] for name in archive.files}


def open_changed(path: Path, good: bytes, compress: bool = False, **changes: np.ndarray | None) -> TokenStore:
    """Open a file that NumPy wrote, with some members replaced or (None) left out. The manifest says nothing about sizes."""
    arrays = members(good) | {"manifest": np.frombuffer(b'{"schema": 1}', np.uint8)} | changes
    (np.savez_compressed if compress else np.savez)(path, **{name: array for name, array in arrays.items() if array is not None})
    return open_store(path)


@pytest.mark.parametrize("compress", [False, True])
def test_a_file_that_numpy_wrote_is_read_by_copying(tmp_path, good, compress):
    (tmp_path / "good.npz").write_bytes(good)
    ours, theirs = open_store(tmp_path / "good.npz"), open_changed(tmp_path / "theirs.npz", good, compress)
    assert theirs.clip_ids == ours.clip_ids
    for i in range(len(ours)):
        assert np.array_equal(theirs.clip(i).video_VD, ours.clip(i).video_VD)
    with pytest.raises(VerificationError, match="no checksums"):
        theirs.verify()


def test_a_file_that_numpy_wrote_again_keeps_its_checksums(tmp_path, good):
    arrays = members(good)
    np.savez_compressed(tmp_path / "same.npz", **arrays)
    open_store(tmp_path / "same.npz").verify()
    arrays["video_TD"] = arrays["video_TD"].copy()
    arrays["video_TD"][3, 3] += 1
    np.savez(tmp_path / "other.npz", **arrays)
    with pytest.raises(VerificationError, match="'video_TD' does not match"):
        open_store(tmp_path / "other.npz").verify()


def test_float32_big_endian_and_fortran_order_are_understood(tmp_path, good):
    tokens = {name: members(good)[name].astype(np.float32) for name in ("frame_TD", "video_TD")}
    store = open_changed(
        tmp_path / "a.npz",
        good,
        frame_TD=np.asfortranarray(tokens["frame_TD"]),
        video_TD=tokens["video_TD"].astype(">f4"),
        frame_scale_T=None,
        video_scale_T=None,
    )
    assert store.dtype == "float32"
    assert np.array_equal(store.frame_TD, tokens["frame_TD"]) and np.array_equal(store.video_TD, tokens["video_TD"])
    assert store.video_TD.dtype.isnative and store.frame_TD.flags.c_contiguous


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"video_TD": None, "clip_meta": None}, "missing video_TD, clip_meta"),
        ({"manifest": None}, "missing manifest"),
        ({"video_TD": np.zeros((15, DIM), "V2")}, r"dtype \|V2 \(bfloat16"),
        ({"video_TD": np.zeros((15, DIM), np.float64)}, "dtype float64"),
        ({"video_TD": np.zeros((15, DIM), np.float16)}, "differ in dtype"),
        ({"video_TD": np.zeros((15, DIM + 1), np.int8)}, "differ in dtype or width"),
        ({"video_TD": np.zeros((15, DIM, 1), np.int8)}, "expected 2 dimensions"),
        ({"frame_TD": np.zeros(9, np.int8)}, "expected 2 dimensions"),
        ({"frame_offsets": np.array([0, 3, 6, 9], np.int32)}, "dtype int32"),
        ({"frame_offsets": np.array([0, 6, 3, 9])}, "'frame_offsets' runs backwards"),
        ({"frame_offsets": np.array([0, 3, 6, 10])}, "runs from 0 to 10, expected 0 to 9"),
        ({"frame_offsets": np.array([1, 3, 6, 9])}, "runs from 1"),
        ({"frame_offsets": np.array([], np.int64)}, "'frame_offsets' has 0 values"),
        ({"frame_offsets": np.array([0, 9])}, "'video_offsets' has 4 values, expected 2"),
        ({"clip_ids_offsets": np.array([0, 2**62, -(2**62), 18])}, "runs backwards"),
        ({"frame_time_T": np.zeros(8, np.float32)}, "'frame_time_T' has 8 values for 9 tokens"),
        ({"frame_scale_T": None}, "int8 tokens without member 'frame_scale_T'"),
        ({"manifest": np.frombuffer(b'{"schema": 2}', np.uint8)}, "written by a newer version"),
        ({"manifest": np.frombuffer(b"{}", np.uint8)}, "names no schema"),
        ({"manifest": np.frombuffer(b"[" * 100_000, np.uint8)}, "not a JSON object"),
        ({"manifest": np.frombuffer(b"\xff", np.uint8)}, "not a JSON object"),
        ({"manifest": np.frombuffer(b'{"schema": 1, "clips": 4}', np.uint8)}, "says clips 4, the arrays 3"),
        ({"clip_ids_bytes": np.array([{"a": 1}], object)}, "holds Python objects"),
        ({"clip_ids_bytes": np.array(["a"])}, "dtype str"),
        ({"clip_ids_bytes": np.zeros(3, [("a", "u1")])}, "not a plain numeric array"),
    ],
)
def test_a_foreign_file_is_told_what_is_wrong_with_it(tmp_path, good, changes, message):
    with pytest.raises(StoreError, match=message) as problem:
        open_changed(tmp_path / "clips.npz", good, **changes)
    assert problem.value.hint and "clips.npz" in problem.value.message


def test_objects_are_never_unpickled(tmp_path, good):
    class Trap:
        def __reduce__(self):
            return (Path(tmp_path / "sprung").touch, ())

    with pytest.raises(StoreError, match="holds Python objects"):
        open_changed(tmp_path / "clips.npz", good, clip_meta=np.array([Trap()], object))
    assert not (tmp_path / "sprung").exists()


def test_ids_that_are_not_utf8_are_seen_when_they_are_read(tmp_path, good):
    store = open_changed(tmp_path / "clips.npz", good, clip_ids_bytes=np.full(len(members(good)["clip_ids_bytes"]), 0xFF, np.uint8))
    with pytest.raises(StoreError, match="not UTF-8"):
        _ = store.clip_ids


def test_a_member_that_is_not_numpy_is_named(tmp_path, good):
    with zipfile.ZipFile(io.BytesIO(good)) as source, zipfile.ZipFile(tmp_path / "clips.npz", "w") as target:
        for name in source.namelist():
            target.writestr(name, b"hello" if name == "video_TD.npy" else source.read(name))
    with pytest.raises(StoreError, match="'video_TD' is not a NumPy array"):
        open_store(tmp_path / "clips.npz")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_member_that_appears_twice_is_refused(tmp_path, good):
    (tmp_path / "clips.npz").write_bytes(good)
    with zipfile.ZipFile(tmp_path / "clips.npz", "a") as archive:
        archive.writestr("video_TD.npy", archive.read("video_TD.npy"))
    with pytest.raises(StoreError, match=r"'video_TD\.npy' appears twice"):
        open_store(tmp_path / "clips.npz")


def test_a_member_that_unpacks_to_more_than_it_says_is_refused(tmp_path, good):
    arrays = members(good)
    np.savez_compressed(tmp_path / "clips.npz", **arrays)
    data = bytearray((tmp_path / "clips.npz").read_bytes())
    place = data.index(b"frame_TD.npy", data.index(b"PK\1\2"))
    data[place - 22 : place - 18] = struct.pack("<L", 100)  # the directory's uncompressed size
    (tmp_path / "clips.npz").write_bytes(data)
    with pytest.raises(StoreError, match=r"'frame_TD\.npy' does not match its checksum"):
        open_store(tmp_path / "clips.npz")


def test_a_newer_member_that_we_do_not_know_is_ignored(tmp_path, good):
    store = open_changed(tmp_path / "clips.npz", good, words_TD=np.zeros((3, 3)))
    assert len(store) == 3


def test_metadata_that_are_not_json_are_seen_when_they_are_read(tmp_path, good):
    meta = members(good)["clip_meta"].copy()
    meta[0] = ord("[")
    store = open_changed(tmp_path / "clips.npz", good, clip_meta=meta)
    with pytest.raises(StoreError, match="metadata of clip 0 are damaged"):
        store.clip_meta(0)
    assert json.dumps(store.clip_meta(1))


def test_what_is_not_finite_in_a_foreign_file_is_not_copied_into_ours(tmp_path, good):
    scales = members(good)["video_scale_T"].copy()
    scales[7] = np.nan
    store = open_changed(tmp_path / "theirs.npz", good, video_scale_T=scales)
    with StoreWriter(tmp_path / "ours.npz", manifest={}, dtype="int8") as writer:
        writer.add_from(store, 0)
        with pytest.raises(StoreError, match="'clip 1': a video token is NaN"):
            writer.add_from(store, 1)
