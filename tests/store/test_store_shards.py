"""A folder of shards reads like one file with the same clips, and says plainly what is wrong with it."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from store_fixtures import MODEL, make_clip, unit, write_folder, write_store

from vctool.errors import StoreError, VerificationError
from vctool.scoring import batch_scores, scores
from vctool.store import ShardedStore, TokenStore, open_store
from vctool.store.shards import MANIFEST, is_store_folder

CLIPS = [make_clip(f"clip {i}", i, frames=i % 3, tokens=1 + i % 4, path=f"/videos/{i}.mp4") for i in range(7)]


@pytest.fixture(params=["float16", "int8"])
def pair(tmp_path, request):
    single = write_store(tmp_path / "clips.npz", CLIPS, request.param)
    folder = write_folder(tmp_path / "clips", [CLIPS[:3], CLIPS[3:4], CLIPS[4:]], request.param)
    return open_store(single), open_store(folder)


def test_a_folder_has_the_clips_of_a_file(pair):
    single, folder = pair
    assert isinstance(folder, ShardedStore) and isinstance(single, TokenStore)
    assert (
        len(folder) == len(single) == 7 and folder.clip_ids == single.clip_ids and folder.dim == single.dim and folder.dtype == single.dtype
    )
    for i in (*range(7), -1):
        ours, theirs = folder.clip(i), single.clip(i)
        assert (
            (ours.id, ours.path, ours.meta)
            == (theirs.id, theirs.path, theirs.meta)
            == (folder.clip_id(i), str(folder.resolve_path(i)), folder.clip_meta(i))
        )
        assert np.array_equal(ours.frame_FD, theirs.frame_FD) and np.array_equal(ours.video_VD, theirs.video_VD)
        assert np.array_equal(ours.video_time_V, theirs.video_time_V, equal_nan=True)
        assert np.array_equal(folder.rows("video", i)[0], single.rows("video", i)[0])
    assert folder.index_of("clip 4") == 4 and "clip 4" in folder and "clip 9" not in folder
    assert folder.manifest["model"] == single.manifest["model"] and folder.manifest["clips"] == 7
    with pytest.raises(IndexError):
        folder.clip_id(7)
    with pytest.raises(StoreError, match="no clip 'clip 9'"):
        folder.index_of("clip 9")
    folder.verify()


def test_a_folder_scores_bit_for_bit_as_a_file(pair):
    single, folder = pair
    queries = [unit(4, seed=50), unit(1, seed=51)]
    for branch in ("f", "v", "fv"):
        for ours, theirs in zip(batch_scores(queries, folder, branch), batch_scores(queries, single, branch), strict=True):
            assert ours.shape == (2, 7) and np.array_equal(ours, theirs, equal_nan=True)
    assert np.array_equal(scores(queries[0], None, folder)[0], scores(queries[0], None, single)[0])


def test_a_folder_without_shards_is_an_empty_store(tmp_path):
    store = open_store(write_folder(tmp_path / "clips", []))
    assert len(store) == 0 and store.clip_ids == [] and store.shards == () and store.dim == 8 and store.dtype == "float16"
    assert scores(unit(2), None, store)[0].shape == (0,)
    store.verify()


def test_a_folder_that_is_moved_keeps_its_relative_paths(tmp_path):
    (tmp_path / "one").mkdir()
    folder = write_folder(tmp_path / "one" / "clips", [[make_clip("a", path=str(tmp_path / "one" / "videos" / "a.mp4"))]])
    shutil.move(tmp_path / "one", tmp_path / "two")
    store = open_store(tmp_path / "two" / "clips")
    assert not folder.exists() and store.clip_paths == ["../videos/a.mp4"]
    assert store.resolve_path(0) == tmp_path / "two" / "videos" / "a.mp4"


def change(folder, **values):
    manifest = json.loads((folder / MANIFEST).read_text()) | values
    (folder / MANIFEST).write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "model"}, "not that of a token store"),
        ({"schema": 2}, "written by a newer version"),
        ({"schema": True}, "names no schema"),
        ({"shards": None}, "lists no shards"),
        ({"shards": [3]}, "shard 0 .* is not an object"),
        ({"shards": [{"file": "../other.npz", "clips": 1, "bytes": 1, "sha256": ""}]}, "has the name '../other.npz'"),
        ({"shards": [{"file": "/etc/passwd.npz", "clips": 1, "bytes": 1, "sha256": ""}]}, "has the name"),
        ({"shards": [{"file": "shard-000000.npz", "clips": -1, "bytes": 1, "sha256": ""}]}, "lacks clips, bytes or sha256"),
        ({"shards": [{"file": "shard-000009.npz", "clips": 7, "bytes": 1, "sha256": ""}]}, "no such file"),
        ({"shards": [{"file": "shard-000000.npz", "clips": 7, "bytes": 1, "sha256": "0" * 64}]}, "not the shard that manifest.json means"),
        ({"clips": 8}, "says 8 clips"),
        ({"model": 3}, "the model in its manifest.json is 3"),
        ({"model": {"sha256": "cd"}}, "its model is"),
        ({"dim": 9}, "its width is 8, that of the store 9"),
        ({"dtype": "int8"}, "its dtype is 'float16', that of the store 'int8'"),
    ],
)
def test_a_manifest_that_does_not_fit_is_told_in_one_line(tmp_path, values, message):
    folder = write_folder(tmp_path / "clips", [CLIPS[:3], CLIPS[3:]])
    change(folder, **values)
    with pytest.raises(StoreError, match=message) as problem:
        open_store(folder)
    assert "\n" not in str(problem.value) and problem.value.hint


def test_a_shard_listed_twice_is_refused(tmp_path):
    folder = write_folder(tmp_path / "clips", [CLIPS[:3]])
    shards = json.loads((folder / MANIFEST).read_text())["shards"]
    change(folder, shards=shards * 2, clips=6)
    with pytest.raises(StoreError, match="lists a shard twice"):
        open_store(folder)


def test_other_folders_are_not_stores(tmp_path):
    with pytest.raises(StoreError, match=r"folder without manifest\.json"):
        open_store(tmp_path)
    assert not is_store_folder(tmp_path) and not is_store_folder(tmp_path / "none")
    assert is_store_folder(write_folder(tmp_path / "clips", [CLIPS]))


def test_verify_names_the_shard_that_was_altered(tmp_path):
    folder = write_folder(tmp_path / "clips", [CLIPS[:3], CLIPS[3:]])
    data = bytearray((folder / "shard-000001.npz").read_bytes())
    data[data.find(open_store(folder).shards[1].frame_TD.tobytes()) + 5] ^= 4
    (folder / "shard-000001.npz").write_bytes(data)
    with pytest.raises(VerificationError, match=r"shard-000001\.npz: member 'frame_TD'"):
        open_store(folder).verify()


def test_verify_sees_an_id_in_two_shards(tmp_path):
    with pytest.raises(VerificationError, match=r"clip 'clip 1' is in shard-000000\.npz and in shard-000001\.npz"):
        open_store(write_folder(tmp_path / "clips", [CLIPS[:3], CLIPS[1:]])).verify()


@given(st.data())
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_fuzzed_manifest_is_read_or_refused_and_never_leads_outside(tmp_path, data):
    folder = tmp_path / "clips"
    if not folder.exists():
        write_folder(folder, [CLIPS[:3], CLIPS[3:]])
        write_store(tmp_path / "outside.npz", CLIPS)
        (tmp_path / "good").write_bytes((folder / MANIFEST).read_bytes())
    text = bytearray((tmp_path / "good").read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(text) - 1))
        match data.draw(st.sampled_from(["set", "cut", "insert", "value"])):
            case "set":
                text[place] = data.draw(st.integers(0, 255))
            case "cut":
                del text[place : place + data.draw(st.integers(1, 300))]
            case "insert":
                text[place:place] = data.draw(st.binary(min_size=1, max_size=20))
            case "value":
                old = data.draw(
                    st.sampled_from([b'"shard-000000.npz"', b'"token store"', b"3", b"[", b'"float16"', MODEL["model"]["sha256"].encode()])
                )
                new = data.draw(
                    st.sampled_from([b'"../outside.npz"', b"null", b"-1", b"1e999", b"9" * 400, b"[" * 5000, b'{"a": NaN}', b'""'])
                )
                text = bytearray(bytes(text).replace(old, new, 1))
        if not text:
            break
    (folder / MANIFEST).write_bytes(text)
    try:
        store = open_store(folder)
    except StoreError as problem:
        assert "\n" not in str(problem) and problem.hint
        return
    assert {shard.path.parent for shard in store.shards} <= {folder}
    assert store.clip_ids == [clip.id for clip in CLIPS][: len(store)]
