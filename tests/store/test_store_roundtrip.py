"""What goes into a store comes out of it, through our reader and through plain NumPy."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import tempfile
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from store_fixtures import DIM, MODEL, make_clip, unit, write_store

from vctool.errors import StoreError
from vctool.store import ClipTokens, StoreWriter, TokenStore, open_store
from vctool.store.archive import ArchiveWriter, Member, local_header
from vctool.store.format import npy_header

anything = st.text(st.characters(exclude_categories=()), max_size=12)  # every code point: NUL, line ends, lone surrogates
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**6), 10**6) | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@given(
    clips=st.dictionaries(
        anything.filter(len),
        st.tuples(
            st.integers(0, 2**32), st.integers(0, 4), st.integers(0, 4), st.dictionaries(st.text(max_size=6), json_values, max_size=3)
        ),
        max_size=6,
    ),
    dtype=st.sampled_from(["float16", "int8"]),
)
@settings(max_examples=60, deadline=None)
def test_a_store_gives_back_what_a_dict_would(clips, dtype):
    given_clips = {name: make_clip(name, seed, frames, tokens, meta=meta) for name, (seed, frames, tokens, meta) in clips.items()}
    with tempfile.TemporaryDirectory() as folder:
        path = write_store(Path(folder) / "clips.npz", given_clips.values(), dtype, manifest=MODEL | {"dim": DIM})
        with open_store(path) as store:
            store.verify()
            assert store.clip_ids == list(given_clips)
            for i, (name, clip) in enumerate(given_clips.items()):
                back = store.clip(i)
                assert (store.clip_id(i), store.index_of(name), back.id, back.meta) == (
                    name,
                    i,
                    name,
                    clips[name][3] or {"duration": clips[name][0]},
                )
                assert np.array_equal(back.frame_time_F, clip.frame_time_F)
                assert np.array_equal(back.video_time_V, clip.video_time_V, equal_nan=True)
                for found, wanted in ((back.frame_FD, clip.frame_FD), (back.video_VD, clip.video_VD)):
                    if dtype == "float16":
                        assert np.array_equal(found, wanted.astype(np.float16).astype(np.float32))
                    else:
                        assert found.shape == wanted.shape
                        assert (np.abs(found - wanted) <= 0.51 * np.abs(wanted).max(axis=1, initial=0, keepdims=True) / 127).all()


@pytest.mark.parametrize(
    "name", ["a\0b", "\0", "é" * 300, "日本/クリップ.mp4", "🎬", "line\nline\r\u2028", "bad\udcff name", "\ud83d\ude00", " "]
)
def test_any_text_is_an_id(tmp_path, name):
    store = open_store(write_store(tmp_path / "clips.npz", [make_clip("first"), make_clip(name, 1), make_clip(name + "x", 2)]))
    assert store.clip_ids == ["first", name, name + "x"]


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_plain_numpy_opens_the_file_without_pickle(tmp_path, dtype):
    path = write_store(tmp_path / "clips.npz", [make_clip("a"), make_clip("b", 1)], dtype)
    store = open_store(path)
    with np.load(path, allow_pickle=False) as archive:
        assert json.loads(archive["manifest"].tobytes())["clips"] == 2
        assert np.array_equal(archive["frame_TD"], store.frame_TD)
        assert np.array_equal(archive["video_offsets"], [0, 5, 10])
        lines = archive["clip_meta"].tobytes().decode().splitlines()
        assert [json.loads(line) for line in lines] == [{"duration": 0}, {"duration": 1}]
        edges = archive["clip_ids_offsets"]
        assert archive["clip_ids_bytes"][edges[1] : edges[2]].tobytes().decode() == "b"
        assert ("frame_scale_T" in archive) == (dtype == "int8")


def test_other_zip_tools_find_nothing_wrong(tmp_path):
    path = write_store(tmp_path / "clips.npz", [make_clip("a")])
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}
    if shutil.which("unzip"):
        assert subprocess.run(["unzip", "-tq", path], capture_output=True).returncode == 0


def test_every_array_starts_on_a_64_byte_boundary(tmp_path):
    path = write_store(tmp_path / "clips.npz", [make_clip("abc", 1, frames=2)], "int8")
    data = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            start = data.index(b"\x93NUMPY", info.header_offset)
            assert start % 64 == 0
            assert (start + 10 + int.from_bytes(data[start + 8 : start + 10], "little")) % 64 == 0


def test_the_header_is_what_numpy_itself_reads():
    for shape in [(0,), (7,), (3, 8), (0, 512), (10**12, 512)]:
        file = io.BytesIO(npy_header(np.dtype(np.float16), shape))
        assert np.lib.format.read_magic(file) == (1, 0)
        assert np.lib.format.read_array_header_1_0(file) == (shape, False, np.dtype(np.float16))
        assert file.tell() % 64 == 0 and file.read() == b""


def test_the_same_clips_give_the_same_bytes(tmp_path):
    first = write_store(tmp_path / "a.npz", [make_clip("a"), make_clip("b", 1)]).read_bytes()
    time.sleep(0.01)
    assert write_store(tmp_path / "b.npz", [make_clip("a"), make_clip("b", 1)]).read_bytes() == first


def test_a_store_without_clips_is_a_store(tmp_path):
    store = open_store(write_store(tmp_path / "clips.npz", []))
    store.verify()
    assert len(store) == 0 and store.clip_ids == [] and store.frame_TD.shape[0] == 0


def test_arrays_are_mapped_and_read_only(tmp_path):
    store = open_store(write_store(tmp_path / "clips.npz", [make_clip("a")]))
    assert store.frame_TD.ctypes.data % 64 == 0
    with pytest.raises(ValueError, match="read-only"):
        store.frame_TD[0, 0] = 1


def test_arrays_outlive_the_store_they_came_from(tmp_path):
    with open_store(write_store(tmp_path / "clips.npz", [make_clip("a")])) as store:
        tokens = store.frame_TD
        before = tokens.copy()
    assert np.array_equal(tokens, before)


def test_the_manifest_says_what_is_in_the_file(tmp_path):
    store = open_store(write_store(tmp_path / "clips.npz", [make_clip("a"), make_clip("b", 1)], "int8"))
    manifest = store.manifest
    assert {key: manifest[key] for key in ("schema", "dim", "dtype", "clips", "frame_tokens", "video_tokens", "generation")} == {
        "schema": 1, "dim": DIM, "dtype": "int8", "clips": 2, "frame_tokens": 6, "video_tokens": 10, "generation": 1,
    }  # fmt: skip
    assert manifest["created_by"].startswith("vctool ")
    assert manifest["model"] == MODEL["model"]
    assert manifest["arrays"]["frame_TD"]["shape"] == [6, DIM]
    assert set(manifest["arrays"]) == set(store._arrays) - {"manifest"}


def test_commit_returns_the_manifest_that_it_wrote(tmp_path):
    with StoreWriter(tmp_path / "clips.npz", manifest=MODEL | {"generation": 7}) as writer:
        writer.add(make_clip("a"))
        manifest = writer.commit()
    assert manifest == open_store(tmp_path / "clips.npz").manifest
    assert manifest["generation"] == 7


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_copying_from_a_store_keeps_every_bit(tmp_path, dtype):
    source = open_store(write_store(tmp_path / "a.npz", [make_clip("a", path=str(tmp_path / "v" / "a.mp4")), make_clip("b", 1)], dtype))
    (tmp_path / "sub").mkdir()
    with StoreWriter(tmp_path / "sub" / "b.npz", manifest=MODEL, dtype=dtype) as writer:
        writer.add_from(source, 1)
        writer.add_from(source, 0)
        writer.commit()
    copy = open_store(tmp_path / "sub" / "b.npz")
    copy.verify()
    assert copy.clip_ids == ["b", "a"]
    assert copy.clip_path(1) == "../v/a.mp4" and copy.resolve_path(1) == tmp_path / "v" / "a.mp4"
    for branch in ("frame", "video"):
        for there, here in ((0, 1), (1, 0)):
            for found, wanted in zip(copy.rows(branch, here), source.rows(branch, there), strict=True):
                assert (found is None) == (wanted is None)
                assert found is None or found.tobytes() == wanted.tobytes()


def test_a_store_copied_clip_by_clip_is_the_same_file(tmp_path):
    source = open_store(write_store(tmp_path / "a.npz", [make_clip(str(i), i) for i in range(3)], "int8"))
    with StoreWriter(tmp_path / "b.npz", manifest=MODEL, dtype="int8") as writer:
        for i in range(3):
            writer.add_from(source, i)
        writer.commit()
    assert (tmp_path / "b.npz").read_bytes() == (tmp_path / "a.npz").read_bytes()


def test_copying_between_dtypes_models_or_widths_is_refused(tmp_path):
    source = open_store(write_store(tmp_path / "a.npz", [make_clip("a")]))
    other = {"model": {"name": "other", "sha256": "cd" * 32}}
    with StoreWriter(tmp_path / "b.npz", manifest=MODEL, dtype="int8") as writer, pytest.raises(StoreError, match="float16 tokens"):
        writer.add_from(source, 0)
    with StoreWriter(tmp_path / "b.npz", manifest=other) as writer, pytest.raises(StoreError, match="made with model tiny"):
        writer.add_from(source, 0)
    with StoreWriter(tmp_path / "b.npz", manifest=MODEL | {"dim": 4}) as writer, pytest.raises(StoreError, match="8 wide"):
        writer.add_from(source, 0)


def test_paths_are_relative_to_the_store_and_move_with_it(tmp_path, monkeypatch):
    (tmp_path / "one" / "videos").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    paths = ["one/videos/a.mp4", str(tmp_path / "one" / "videos" / "b.mp4"), str(tmp_path / "c.mp4"), "", "https://example.org/d.mp4"]
    write_store(tmp_path / "one" / "clips.npz", [make_clip(str(i), i, path=path) for i, path in enumerate(paths)])
    assert open_store("one/clips.npz").clip_paths == ["videos/a.mp4", "videos/b.mp4", "../c.mp4", "", "https://example.org/d.mp4"]
    (tmp_path / "one").rename(tmp_path / "two")
    store = open_store("two/clips.npz")
    assert [store.resolve_path(i) for i in range(5)] == [
        tmp_path / "two/videos/a.mp4", tmp_path / "two/videos/b.mp4", tmp_path / "c.mp4", None, None,
    ]  # fmt: skip
    assert store.clip(4).path == "https://example.org/d.mp4"


def test_a_linked_video_keeps_its_name_and_a_linked_folder_is_seen_through(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "a.mp4").touch()
    (tmp_path / "disk" / "link.mp4").symlink_to(tmp_path / "disk" / "a.mp4")
    (tmp_path / "alias").symlink_to(tmp_path / "disk")
    write_store(tmp_path / "disk" / "clips.npz", [make_clip("a", path=str(tmp_path / "alias" / "link.mp4"))])
    assert open_store(tmp_path / "alias" / "clips.npz").clip_path(0) == "link.mp4"


def test_a_file_name_that_is_not_utf8_comes_back_as_it_was(tmp_path):
    name = os.fsdecode(os.fsencode(str(tmp_path)) + b"/\xff.mp4")
    store = open_store(write_store(tmp_path / "clips.npz", [make_clip(name, path=name)]))
    assert os.fsencode(str(store.resolve_path(0))).endswith(b"/\xff.mp4") and store.clip_ids == [name]


def test_a_clip_that_does_not_exist_is_an_index_error(tmp_path):
    store = open_store(write_store(tmp_path / "clips.npz", [make_clip("a"), make_clip("b", 1)]))
    assert store.clip_id(-1) == "b"
    for index in (2, -3):
        with pytest.raises(IndexError):
            store.clip_id(index)
    with pytest.raises(StoreError, match="no clip 'c'"):
        store.index_of("c")


def sparse_store(path: Path, rows: int) -> None:
    """A store whose frame tokens are a hole in the file: `rows` of 512 float16 zeros that take no disk space."""
    small = write_store(path.with_name("small.npz"), [ClipTokens("a", "", unit(1, 512), np.zeros(1), unit(2, 512), np.zeros(2))])
    with np.load(small) as archive, path.open("w+b") as file:
        writer = ArchiveWriter(file)
        header, size = npy_header(np.dtype(np.float16), (rows, 512)), rows * 1024
        head = local_header("frame_TD.npy", 0, len(header) + size, 0)
        file.write(head + header)
        file.seek(size, os.SEEK_CUR)
        writer.members.append(Member("frame_TD.npy", 0, 0, len(header) + size, len(header) + size, 0, len(head)))
        arrays = {name: archive[name] for name in archive.files if name != "frame_TD"}
        arrays["frame_offsets"] = np.array([0, rows])
        arrays["frame_time_T"] = np.zeros(rows, np.float32)
        for name, array in arrays.items():
            header = npy_header(array.dtype, array.shape)
            writer.add(f"{name}.npy", len(header) + array.nbytes, [header, array.tobytes()])
        writer.finish()


def test_more_than_4_gib_opens_in_milliseconds_in_our_reader_and_in_numpy(tmp_path):
    rows = 5 * 2**20  # 5 GiB of frame tokens
    sparse_store(tmp_path / "clips.npz", rows)
    assert (tmp_path / "clips.npz").stat().st_size > 5 * 2**30
    start = time.perf_counter()
    store = TokenStore(tmp_path / "clips.npz")
    assert time.perf_counter() - start < 0.5
    assert store.frame_TD.shape == (rows, 512) and not store.frame_TD[rows - 1].any()
    assert store.clip_ids == ["a"] and np.allclose(np.linalg.norm(store.video_TD.astype(np.float32), axis=1), 1, atol=1e-3)
    with np.load(tmp_path / "clips.npz") as archive:
        assert np.array_equal(archive["video_TD"], store.video_TD)


def test_a_writer_carries_on_from_the_manifest_of_an_empty_store(tmp_path):
    manifest = open_store(write_store(tmp_path / "clips.npz", [])).manifest
    store = open_store(write_store(tmp_path / "clips.npz", [make_clip("a")], manifest=manifest))
    store.verify()
    assert "a" in store and "b" not in store and store.manifest["clips"] == 1


def test_an_address_is_copied_as_it_is(tmp_path):
    source = open_store(write_store(tmp_path / "a.npz", [make_clip("a", path="s3://bucket/a.mp4"), make_clip("b", 1)]))
    with StoreWriter(tmp_path / "b.npz", manifest=MODEL) as writer:
        for i in range(2):
            writer.add_from(source, i)
        writer.commit()
    assert open_store(tmp_path / "b.npz").clip_paths == ["s3://bucket/a.mp4", ""]
