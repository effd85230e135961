"""`vctool store`: create, verify, compact, merge, split, convert, delete, each as a user calls it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from commandline import Done
from commandline import run as invoke

from vctool.store import open_store


def expect_line(done: Done, code: int, *said: str) -> None:
    """One clear line and a hint, the right exit code, and no data."""
    assert done.code == code and done.out == "", done
    assert done.err.startswith("error: ") and len(done.err.splitlines()) == 2 and all(one in done.err for one in said), done.err


@pytest.fixture
def arrays(tmp_path, monkeypatch) -> Path:
    """Token arrays of ten clips, frames [N, F, D] and video tokens [T, D] with offsets."""
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    frames = generator.standard_normal((10, 3, 16)).astype(np.float32)
    frames /= np.linalg.norm(frames, axis=2, keepdims=True)
    ends = np.concatenate([[0], np.cumsum(np.arange(10) % 3)])
    video = generator.standard_normal((ends[-1], 16)).astype(np.float32)
    video /= np.linalg.norm(video, axis=1, keepdims=True)
    np.savez("f.npz", embeddings=frames)
    np.savez_compressed("v.npz", video_TD=video.astype(np.float16), video_offsets=ends)
    Path("m.jsonl").write_text("".join(json.dumps({"id": f"p{i}", "path": f"v/{i}.mp4", "tag": i}) + "\n" for i in range(10)))
    return tmp_path


CREATE = ("store", "create", "--frames", "f.npz", "--model-name", "theirs")


def test_create_takes_arrays_and_query_finds_them(arrays):
    done = invoke(*CREATE, "-o", "c.npz", "--video", "v.npz", "--meta", "m.jsonl", "--dtype", "float16", "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["schema"] == 1 and found["clips"] == 10 and found["shards"] is None and found["dtype"] == "float16"
    store = open_store("c.npz")
    assert store.clip_ids[3] == "p3" and store.clip_path(3) == "v/3.mp4" and store.clip_meta(3) == {"tag": 3}
    assert np.array_equal(store.clip(5).frame_FD, np.load("f.npz")["embeddings"][5].astype(np.float16))
    assert len(store.clip(5).video_VD) == 2 and store.manifest["model"] == {"name": "theirs", "interaction": "fv"}
    np.save("q.npy", np.load("f.npz")["embeddings"][7])
    hits = json.loads(invoke("query", "--tokens", "q.npy", "--index", "c.npz", "--branch", "f", "-k", "1", "--json").out)["hits"]
    assert hits[0]["id"] == "p7" and hits[0]["score"] == pytest.approx(1, abs=2e-3)


def test_create_reads_padded_arrays_by_mask_lengths_or_offsets(arrays):
    tokens = np.load("f.npz")["embeddings"].copy()
    lengths = np.array([1, 2, 3] * 3 + [0])
    mask = np.arange(3) < lengths[:, None]
    tokens[~mask] = 0
    np.savez("mask.npz", tokens=tokens, mask=mask, times=np.arange(30, dtype=np.float32).reshape(10, 3))
    np.savez("lengths.npz", tokens=tokens, lengths=lengths)
    np.save("flat.npy", tokens[mask])
    np.save("ends.npy", np.concatenate([[0], np.cumsum(lengths)]))
    for name, more in (("mask.npz", ()), ("lengths.npz", ()), ("flat.npy", ("--frame-offsets", "ends.npy"))):
        assert invoke("store", "create", "-o", "c.npz", "--frames", name, "--dtype", "float16", "--force", *more).code == 0
        store = open_store("c.npz")
        assert np.diff(store.frame_offsets).tolist() == lengths.tolist() and store.clip_ids[9] == "9"
        assert np.array_equal(store.clip(4).frame_FD, tokens[4, :2].astype(np.float16))
    assert invoke("store", "create", "-o", "t.npz", "--frames", "mask.npz").code == 0
    assert open_store("t.npz").clip(4).frame_time_F.tolist() == [12, 13]


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        (("--frames", "none.npz"), ("none.npz: no such file",)),
        (("--frames", "m.jsonl"), ("neither .npy nor .npz",)),
        (("--frames", "both.npz"), ("which are the frame tokens",)),
        (("--frames", "flat.npy"), ("flat.npy: has shape (30, 16)", "offsets")),
        (("--frames", "objects.npy"), ("objects.npy: cannot be read",)),
        (("--frames", "bf16.npz"), ("bf16.npz: has dtype |V2 (bfloat16", "float16")),
        (("--frames", "zero.npy"), ("clip '4': a frame token is all zeros",)),
        (("--frames", "f.npz", "--video", "short.npy"), ("frame tokens of 10 clips, video tokens of 9",)),
        (("--frames", "f.npz", "--ids", "twice.txt"), ("clip 'a' is already in the store",)),
        (("--frames", "f.npz", "--ids", "few.txt"), ("10 clips of frame tokens, but 2 ids",)),
        (("--frames", "f.npz", "--meta", "bad.jsonl"), ("bad.jsonl, line 2: is not JSON",)),
        (("--frames", "f.npz", "--meta", "few.jsonl"), ("few.jsonl: has 1 lines, the tokens are of 10 clips",)),
        (("--frames", "cut.npz"), ("cut.npz: incomplete",)),
    ],
)
def test_create_says_what_is_wrong_with_its_input(arrays, given, parts):
    tokens = np.load("f.npz")["embeddings"]
    np.savez("both.npz", a=tokens, b=tokens)
    np.save("flat.npy", tokens.reshape(30, 16))
    np.save("objects.npy", np.array([{}], object), allow_pickle=True)
    np.savez("bf16.npz", tokens=np.zeros((10, 3, 16), "V2"))
    zero = tokens.copy()
    zero[4, 1] = 0
    np.save("zero.npy", zero)
    np.save("short.npy", tokens[:9])
    Path("twice.txt").write_text("\n".join("abcdefgha") + "\na\n")
    Path("few.txt").write_text("a\nb\n")
    Path("bad.jsonl").write_text("{}\n{\n")
    Path("few.jsonl").write_text("{}\n")
    Path("cut.npz").write_bytes(Path("f.npz").read_bytes()[:900])
    expect_line(invoke("store", "create", "-o", "c.npz", *given), 1, *parts)
    assert not Path("c.npz").exists() and not [one for one in Path().iterdir() if one.name.startswith(".")]


def test_a_life(arrays):
    assert invoke(*CREATE, "-o", "a/", "--meta", "m.jsonl", "--shard-clips", "4").code == 0
    assert len(open_store("a").shards) == 3
    assert invoke("store", "verify", "a").code == 0
    assert json.loads(invoke("store", "delete", "a", "p1", "p9", "--json").out)["clips"] == 8
    expect_line(invoke("store", "delete", "a", "p1", "p2"), 1, "no clip 'p1'", "nothing was deleted")
    assert invoke("store", "delete", "a", "p1", "--missing-ok").code == 0
    assert json.loads(invoke("store", "compact", "a", "--json").out)["shards"] == 1
    assert invoke("store", "convert", "a", "-o", "b.npz", "--dtype", "float16").code == 0
    assert "does not come back" in invoke("store", "convert", "a", "-o", "b.npz", "--dtype", "float16", "--force").err
    assert invoke(*CREATE, "-o", "c.npz", "--meta", "m.jsonl").code == 0
    expect_line(invoke("store", "merge", "a", "c.npz", "-o", "d.npz"), 1, "clip 'p0' is in a and in c.npz", "--on-duplicate")
    assert invoke("store", "merge", "a", "c.npz", "-o", "d.npz", "--on-duplicate", "last").code == 0
    assert sorted(open_store("d.npz").clip_ids) == [f"p{i}" for i in range(10)]
    assert json.loads(invoke("store", "split", "d.npz", "-o", "e", "--bytes", "0.4K", "--json").out)["shards"] > 3
    assert open_store("e").clip_ids == open_store("d.npz").clip_ids
    assert json.loads(invoke("info", "e", "--json").out)["shards"] == len(open_store("e").shards)


def test_stores_of_other_models_are_not_merged(arrays):
    assert invoke(*CREATE, "-o", "a.npz").code == 0
    assert invoke("store", "create", "--frames", "f.npz", "-o", "b.npz", "--model-name", "others").code == 0
    expect_line(invoke("store", "merge", "a.npz", "b.npz", "-o", "c.npz"), 1, "model theirs", "of others", "one model")


def test_what_is_there_is_replaced_only_when_asked_to(arrays):
    assert invoke(*CREATE, "-o", "a.npz").code == 0
    before = Path("a.npz").read_bytes()
    expect_line(invoke(*CREATE, "-o", "a.npz"), 1, "a.npz: is there already", "--force")
    expect_line(invoke(*CREATE, "-o", "a.npz", "--shard-clips", "3"), 1, "a.npz: is a file, a folder of shards was to be written")
    assert Path("a.npz").read_bytes() == before
    assert invoke(*CREATE, "-o", "a.npz", "--force", "--dtype", "float16").code == 0


def test_verify_ends_with_code_3_on_damage(arrays):
    assert invoke(*CREATE, "-o", "a.npz").code == 0
    data = bytearray(Path("a.npz").read_bytes())
    data[data.find(open_store("a.npz").frame_TD.tobytes()) + 9] ^= 1
    Path("a.npz").write_bytes(data)
    expect_line(invoke("store", "verify", "a.npz"), 3, "'frame_TD' does not match")
    expect_line(invoke("store", "convert", "a.npz", "-o", "b.npz"), 3, "'frame_TD' does not match")
    assert not Path("b.npz").exists() and invoke("store", "convert", "a.npz", "-o", "b.npz", "--no-check").code == 0


def test_sizes_and_usage(arrays):
    assert invoke(*CREATE, "-o", "a.npz").code == 0
    expect_line(invoke("store", "split", "a.npz", "-o", "b"), 2, "how large should a shard be")
    assert invoke("store", "split", "a.npz", "-o", "b", "--bytes", "many").code == 2
    expect_line(invoke("store", "delete", "a.npz"), 2, "which clips")
    expect_line(invoke("store", "delete", "none.npz", "a"), 1, "none.npz: no such file")
