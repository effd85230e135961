"""Many clips at once give the file that one at a time gives; what is wrong with one of them is said with its name."""

from __future__ import annotations

import numpy as np
import pytest
from store_fixtures import DIM, MODEL, make_clip, unit, write_store

from vctool.errors import StoreError
from vctool.store import StoreWriter, TokenRows, open_store, writer

CLIPS = [make_clip(f"clip {i}", i, frames=i % 4, tokens=(i * 5) % 7, path=f"/videos/{i % 3}/{i}.mp4", meta={"n": i}) for i in range(40)]


def ends(arrays):
    return np.concatenate([[0], np.cumsum([len(a) for a in arrays])])


def rows(name):
    tokens, times = (
        [getattr(c, f"{name}_{'FD' if name == 'frame' else 'VD'}") for c in CLIPS],
        [getattr(c, f"{name}_time_{'F' if name == 'frame' else 'V'}") for c in CLIPS],
    )
    return TokenRows.of(np.concatenate(tokens), ends(tokens), np.concatenate(times))


def write_many(path, dtype="float16", **changes):
    given = {"ids": [c.id for c in CLIPS], "frame": rows("frame"), "video": rows("video"), "paths": [c.path for c in CLIPS]} | changes
    ids, frame, video = given.pop("ids"), given.pop("frame"), given.pop("video")
    with StoreWriter(path, manifest=MODEL, dtype=dtype) as out:
        out.add_many(ids, frame, video, **given)
        out.commit()
    return path


@pytest.mark.parametrize("dtype", ["float16", "int8"])
@pytest.mark.parametrize("block", [1, 100, 1 << 20])
def test_many_at_once_write_the_same_bytes_as_one_at_a_time(tmp_path, monkeypatch, dtype, block):
    monkeypatch.setattr(writer, "_BLOCK_VALUES", block)
    one = write_store(tmp_path / "one.npz", CLIPS, dtype)
    many = write_many(tmp_path / "many.npz", dtype, metas=[c.meta for c in CLIPS])
    assert many.read_bytes() == one.read_bytes()


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_a_copied_range_has_the_bytes_of_the_clips_it_copies(tmp_path, monkeypatch, dtype):
    monkeypatch.setattr(writer, "_COPY_CLIPS", 7)
    source = open_store(write_store(tmp_path / "a.npz", CLIPS, dtype))
    for folder in ("same", "other"):
        target = tmp_path / ("b.npz" if folder == "same" else "sub/b.npz")
        target.parent.mkdir(exist_ok=True)
        with StoreWriter(target, manifest=MODEL, dtype=dtype) as out:
            out.add_range(source, 5, 31)
            out.commit()
        assert target.read_bytes() == write_store(target.parent / "c.npz", CLIPS[5:31], dtype).read_bytes()


def test_a_copied_clip_can_have_another_id_path_and_metadata(tmp_path):
    source = open_store(write_store(tmp_path / "a.npz", CLIPS, "int8"))
    with StoreWriter(tmp_path / "b.npz", manifest=MODEL, dtype="int8") as out:
        out.add_from(source, 5, clip_id="new", path=str(tmp_path / "x.mp4"), meta={"a": [1]})
        out.commit()
    copy = open_store(tmp_path / "b.npz")
    assert (copy.clip_id(0), copy.clip_path(0), copy.clip_meta(0)) == ("new", "x.mp4", {"a": [1]})
    assert np.array_equal(copy.rows("frame", 0)[0], source.rows("frame", 5)[0])


def test_dense_arrays_have_a_clip_a_row_and_may_lack_video_tokens_and_times(tmp_path):
    tokens = unit(12).reshape(4, 3, DIM)
    write_many(tmp_path / "a.npz", ids=list("abcd"), frame=TokenRows.of(tokens.astype(np.float16)), video=None, paths=None)
    store = open_store(tmp_path / "a.npz")
    assert np.array_equal(store.clip(2).frame_FD, tokens[2].astype(np.float16)) and np.isnan(store.clip(2).frame_time_F).all()
    assert store.clip(2).video_VD.shape == (0, DIM) and store.clip_path(3) == "" and store.clip_meta(0) == {}


def test_rows_are_normalised_where_asked_for(tmp_path):
    tokens = unit(12).reshape(4, 3, DIM)
    write_many(tmp_path / "a.npz", ids=list("abcd"), frame=TokenRows.of(tokens * 7, normalise=True), video=None, paths=None)
    assert np.allclose(open_store(tmp_path / "a.npz").clip(1).frame_FD, tokens[1], atol=1e-3)


def broken(place, value):
    tokens = unit(12).reshape(4, 3, DIM).copy()
    tokens[place] = value
    return tokens


@pytest.mark.parametrize(
    ("frame", "changes", "message"),
    [
        (lambda: TokenRows.of(broken((2, 1, 0), np.nan)), {}, "clip 'c': a frame token is NaN or infinite"),
        (lambda: TokenRows.of(broken((1, 2), 0)), {}, "clip 'b': a frame token is all zeros"),
        (lambda: TokenRows.of(broken((1, 2), 0), normalise=True), {}, "clip 'b': a frame token is all zeros"),
        (lambda: TokenRows.of(broken((3, 0), 1)), {}, "clip 'd': a frame token has length 2.828"),
        (lambda: TokenRows.of(broken((3, 0), 1e30)), {}, "clip 'd': a frame token has length 2.8"),
        (lambda: TokenRows.of(unit(12), [0, 3, 9, 6, 12]), {}, "offsets run backwards"),
        (lambda: TokenRows.of(unit(12), [0, 3, 6, 9, 13]), {}, "offsets run from 0 to 13, expected 0 to 12"),
        (lambda: TokenRows.of(unit(12), [0.0, 12.0]), {}, "offsets have shape"),
        (lambda: TokenRows.of(unit(12)), {}, r"has shape \(12, 8\)"),
        (lambda: TokenRows.of(np.zeros((4, 3, DIM), "V2")), {}, r"has dtype \|V2 \(bfloat16"),
        (lambda: TokenRows.of(np.zeros((4, 3, DIM), np.int8)), {}, "has dtype int8"),
        (lambda: TokenRows.of(unit(12).reshape(4, 3, DIM), times=np.zeros((4, 2))), {}, "times have shape"),
        (lambda: TokenRows.of(unit(12).reshape(4, 3, DIM), times=np.full((4, 3), np.inf)), {}, "clip 'a': a frame time is infinite"),
        (lambda: TokenRows.of(unit(12).reshape(4, 3, DIM)), {"ids": list("abc")}, "4 clips of frame tokens, but 3 ids"),
        (lambda: TokenRows.of(unit(12).reshape(4, 3, DIM)), {"ids": ["a", "b", "c", "b"]}, "clip 'b' is already in the store"),
        (lambda: TokenRows.of(unit(12).reshape(4, 3, DIM)), {"ids": ["a", "", "c", "b"]}, "not a non-empty text"),
        (lambda: TokenRows.of(unit(12).reshape(4, 3, DIM)), {"paths": ["a"]}, "1 paths, but 4 ids"),
        (lambda: TokenRows.of(unit(12).reshape(4, 3, DIM)), {"metas": [{"a": np.nan}] * 4}, "metadata cannot be written as JSON"),
        (
            lambda: TokenRows.of(unit(12, 9).reshape(4, 3, 9)),
            {"video": TokenRows.of(unit(4).reshape(4, 1, DIM))},
            "video tokens are 8 wide",
        ),
    ],
)
def test_what_is_wrong_with_arrays_is_said_in_one_line(tmp_path, frame, changes, message):
    with pytest.raises(StoreError, match=message) as problem:
        write_many(tmp_path / "a.npz", **{"ids": list("abcd"), "frame": frame(), "video": None, "paths": None} | changes)
    assert "\n" not in str(problem.value) and problem.value.hint
    assert not list(tmp_path.iterdir())
