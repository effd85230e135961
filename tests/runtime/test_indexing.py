"""Indexing: same bytes for the same input, nothing encoded twice, nothing lost, bad files told."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tinymodel import build_tiny_model, make_audio, make_video

from vctool.errors import InputError, Interrupted, ModelError, SkippedInputsError, StoreError, UsageProblem
from vctool.runtime.checksums import write_checksums
from vctool.runtime.indexing import IndexProgress, IndexReport, index_videos
from vctool.runtime.placement import Placement
from vctool.store import open_store


@pytest.fixture
def videos(tiny_videos: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_videos, tmp_path / "videos"))


def run(inputs: Any, output: Path, model: Path, **options: Any) -> IndexReport:
    given = inputs if isinstance(inputs, list) else [inputs]
    return index_videos(given, output, model, **{"workers": 0, "device": "cpu", "threads": 1, **options})


def test_the_store_holds_each_clip_with_times_and_facts(videos: Path, tmp_path: Path, tiny_model: Path) -> None:
    report = run(videos, tmp_path / "c.npz", tiny_model)
    store = open_store(tmp_path / "c.npz")
    store.verify()
    assert store.clip_ids == ["blue.mp4", "change.mp4", "red.mp4", "sub/yellow.mp4"]
    assert store.clip_paths[0] == "videos/blue.mp4"
    clip = store.clip(1)
    assert clip.frame_FD.shape == (4, 8) and clip.video_VD.shape == (6, 8)
    np.testing.assert_allclose(clip.frame_time_F, [0.3, 1.1, 1.8, 2.6], atol=1e-6)
    assert np.array_equal(clip.video_time_V[:4], clip.frame_time_F) and np.isnan(clip.video_time_V[4:]).all()
    status = (videos / "change.mp4").stat()
    assert clip.meta == {
        "captions": [], "duration": pytest.approx(3.0), "width": 64, "height": 48, "codec": "h264", "start": None, "end": None,
        "size": status.st_size, "mtime_ns": status.st_mtime_ns,
        "sha256": hashlib.sha256((videos / "change.mp4").read_bytes()).hexdigest(),
    }  # fmt: skip
    assert (report.clips, report.indexed, report.failed, report.device) == (4, 4, [], "cpu")
    model = store.manifest["model"]
    assert (model["name"], model["sha256"], model["interaction"], model["query_policy"]) == (
        "tiny",
        report.model.fingerprint,
        "fv",
        "tokens",
    )
    assert Path(model["absolute_path"]) == tiny_model.resolve() and (tmp_path / model["path"]).resolve() == tiny_model.resolve()
    assert store.manifest["frames"] == {"count": 4, "sampling": "uniform", "decoder": "pyav"}
    assert not (tmp_path / "c.npz.partial").exists()


def test_the_same_input_gives_the_same_bytes(videos: Path, tmp_path: Path, tiny_model: Path) -> None:
    run(videos, tmp_path / "a.npz", tiny_model)
    run(videos, tmp_path / "b.npz", tiny_model, workers=2)
    run(videos, tmp_path / "c.npz", tiny_model, batch_size=3)
    first = (tmp_path / "a.npz").read_bytes()
    assert (tmp_path / "b.npz").read_bytes() == first and (tmp_path / "c.npz").read_bytes() == first


def test_a_second_run_encodes_nothing_and_leaves_the_file_alone(videos: Path, tmp_path: Path, tiny_model: Path) -> None:
    run(videos, tmp_path / "c.npz", tiny_model)
    before = (tmp_path / "c.npz").read_bytes(), (tmp_path / "c.npz").stat().st_mtime_ns
    report = run(videos, tmp_path / "c.npz", tiny_model)
    assert (report.reused, report.indexed, report.written) == (4, 0, False)
    assert ((tmp_path / "c.npz").read_bytes(), (tmp_path / "c.npz").stat().st_mtime_ns) == before


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_only_what_is_new_or_changed_is_encoded(videos: Path, tmp_path: Path, tiny_model: Path, dtype: Any) -> None:
    run(videos, tmp_path / "c.npz", tiny_model, dtype=dtype)
    old = open_store(tmp_path / "c.npz")
    make_video(videos / "cyan.mp4", ["cyan"])
    make_video(videos / "red.mp4", ["magenta", "red"])
    report = run(videos, tmp_path / "c.npz", tiny_model, dtype=dtype)
    assert (report.reused, report.indexed, report.clips) == (3, 2, 5)
    store = open_store(tmp_path / "c.npz")
    assert store.clip_ids == ["blue.mp4", "change.mp4", "cyan.mp4", "red.mp4", "sub/yellow.mp4"]
    for clip_id in ("blue.mp4", "change.mp4", "sub/yellow.mp4"):
        for branch in ("frame", "video"):
            for a, b in zip(old.rows(branch, old.index_of(clip_id)), store.rows(branch, store.index_of(clip_id)), strict=True):
                assert (a is None and b is None) or np.asarray(a).tobytes() == np.asarray(b).tobytes()
    assert store.manifest["generation"] == 2
    run(videos, tmp_path / "fresh.npz", tiny_model, dtype=dtype)
    fresh = open_store(tmp_path / "fresh.npz")
    assert fresh.frame_TD.tobytes() == store.frame_TD.tobytes() and fresh.video_TD.tobytes() == store.video_TD.tobytes()


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_a_file_that_was_only_touched_is_known_by_its_contents(videos: Path, tmp_path: Path, tiny_model: Path, dtype: Any) -> None:
    run(videos, tmp_path / "c.npz", tiny_model, dtype=dtype)
    before = open_store(tmp_path / "c.npz")
    os.utime(videos / "red.mp4", (1, 1))
    report = run(videos, tmp_path / "c.npz", tiny_model, dtype=dtype)
    assert (report.indexed, report.reused, report.written) == (0, 4, True)
    store = open_store(tmp_path / "c.npz")
    assert store.clip_meta(2)["mtime_ns"] == 10**9 and store.frame_TD.tobytes() == before.frame_TD.tobytes()
    assert run(videos, tmp_path / "c.npz", tiny_model, dtype=dtype).written is False


def test_a_file_of_the_same_size_with_other_contents_is_encoded_again(videos: Path, tmp_path: Path, tiny_model: Path) -> None:
    run(videos, tmp_path / "c.npz", tiny_model)
    data = bytearray((videos / "red.mp4").read_bytes())
    data += b""
    data[-1] ^= 1
    (videos / "red.mp4").write_bytes(data)
    assert run(videos, tmp_path / "c.npz", tiny_model).indexed == 1


def test_clips_that_are_not_among_the_inputs_stay_until_pruned(videos: Path, tmp_path: Path, tiny_model: Path) -> None:
    run(videos, tmp_path / "c.npz", tiny_model)
    more = tmp_path / "more"
    make_video(more / "cyan.mp4", ["cyan"])
    report = run(more, tmp_path / "c.npz", tiny_model)
    assert (report.kept, report.indexed, report.clips) == (4, 1, 5)
    assert open_store(tmp_path / "c.npz").clip_ids == ["blue.mp4", "change.mp4", "red.mp4", "sub/yellow.mp4", "cyan.mp4"]
    assert run(videos, tmp_path / "c.npz", tiny_model).written is False
    report = run(more, tmp_path / "c.npz", tiny_model, prune=True)
    assert (report.dropped, report.clips) == (4, 1)
    assert open_store(tmp_path / "c.npz").clip_ids == ["cyan.mp4"]


def test_a_file_is_the_same_clip_under_another_common_folder(videos: Path, tmp_path: Path, tiny_model: Path) -> None:
    run(videos, tmp_path / "c.npz", tiny_model)
    make_video(tmp_path / "more" / "cyan.mp4", ["cyan"])
    report = run([videos, tmp_path / "more"], tmp_path / "c.npz", tiny_model)
    assert (report.reused, report.indexed, report.clips) == (4, 1, 5)
    assert open_store(tmp_path / "c.npz").clip_ids[0] == "videos/blue.mp4"


def test_one_id_for_two_files_is_refused_before_anything_is_lost(videos: Path, tmp_path: Path, tiny_model: Path) -> None:
    run(videos, tmp_path / "c.npz", tiny_model)
    before = (tmp_path / "c.npz").read_bytes()
    make_video(tmp_path / "more" / "red.mp4", ["cyan"])
    with pytest.raises(StoreError, match=r"already has a clip 'red\.mp4', of another file"):
        run(tmp_path / "more", tmp_path / "c.npz", tiny_model)
    assert (tmp_path / "c.npz").read_bytes() == before and not (tmp_path / "c.npz.partial").exists()


def test_videos_that_moved_are_encoded_again_under_their_ids(videos: Path, tmp_path: Path, tiny_model: Path) -> None:
    run(videos, tmp_path / "c.npz", tiny_model)
    videos.rename(tmp_path / "moved")
    report = run(tmp_path / "moved", tmp_path / "c.npz", tiny_model)
    assert (report.clips, report.indexed, report.kept) == (4, 4, 0)
    assert open_store(tmp_path / "c.npz").clip_paths[0] == "moved/blue.mp4"


def test_other_settings_encode_again_and_never_mix(videos: Path, tmp_path: Path, tiny_model: Path) -> None:
    run(videos, tmp_path / "c.npz", tiny_model)
    assert run(videos, tmp_path / "c.npz", tiny_model, frames=2).indexed == 4
    assert len(open_store(tmp_path / "c.npz").frame_TD) == 8
    with pytest.raises(StoreError, match="3 clips that are not among the inputs and were made otherwise"):
        run(videos / "red.mp4", tmp_path / "c.npz", tiny_model, frames=3)


def test_a_store_of_another_model_is_refused_with_both_fingerprints(videos: Path, tmp_path: Path, tiny_model: Path) -> None:
    first = run(videos, tmp_path / "c.npz", tiny_model).model
    other = build_tiny_model(tmp_path / "other", name="other")
    before = (tmp_path / "c.npz").read_bytes()
    with pytest.raises(StoreError, match=first.fingerprint[:16]) as caught:
        run(videos, tmp_path / "c.npz", other)
    assert caught.value.hint is not None and "--rebuild" in caught.value.hint
    assert (tmp_path / "c.npz").read_bytes() == before
    run(videos, tmp_path / "c.npz", other, rebuild=True)
    assert open_store(tmp_path / "c.npz").manifest["model"]["name"] == "other"


def test_a_damaged_store_at_the_output_is_not_overwritten_by_accident(videos: Path, tmp_path: Path, tiny_model: Path) -> None:
    run(videos, tmp_path / "c.npz", tiny_model)
    data = (tmp_path / "c.npz").read_bytes()
    (tmp_path / "c.npz").write_bytes(data[: len(data) // 2])
    with pytest.raises(StoreError, match="incomplete") as caught:
        run(videos, tmp_path / "c.npz", tiny_model)
    assert caught.value.hint is not None and "--rebuild" in caught.value.hint
    assert run(videos, tmp_path / "c.npz", tiny_model, rebuild=True).clips == 4


def test_a_manifest_gives_ids_captions_pieces_and_the_users_own_values(videos: Path, tmp_path: Path, tiny_model: Path) -> None:
    rows = [
        {"path": "change.mp4", "id": "first second", "start": 0.0, "end": 1.0, "captions": ["red"], "genre": "test"},
        {"path": "change.mp4", "id": "last second", "start": 2.0, "end": 3.0, "caption": "green", "size": "not a size"},
    ]
    manifest = videos / "m.jsonl"
    manifest.write_text("\n".join(map(json.dumps, rows)))
    run(manifest, tmp_path / "c.npz", tiny_model)
    store = open_store(tmp_path / "c.npz")
    assert store.clip_ids == ["first second", "last second"]
    first, last = store.clip_meta(0), store.clip_meta(1)
    assert (first["captions"], first["genre"], first["start"], first["end"]) == (["red"], "test", 0.0, 1.0)
    assert (last["captions"], last["size"]) == (["green"], (videos / "change.mp4").stat().st_size)
    assert store.clip(1).frame_time_F.min() >= 2.0
    rows[0]["captions"] = ["red", "rouge"]
    manifest.write_text("\n".join(map(json.dumps, rows)))
    before = store.clip(0).frame_FD.tobytes()
    report = run(manifest, tmp_path / "c.npz", tiny_model)
    assert (report.indexed, report.reused, report.written) == (0, 2, True)
    after = open_store(tmp_path / "c.npz").clip(0)
    assert after.meta["captions"] == ["red", "rouge"] and after.frame_FD.tobytes() == before


def test_one_file_under_two_ids_is_encoded_once(videos: Path, tmp_path: Path, tiny_model: Path) -> None:
    (videos / "m.jsonl").write_text('{"path": "red.mp4", "id": "a"}\n{"path": "red.mp4", "id": "b"}\n')
    report = run(videos / "m.jsonl", tmp_path / "c.npz", tiny_model)
    store = open_store(tmp_path / "c.npz")
    assert report.indexed == 1 and store.clip_ids == ["a", "b"]
    assert np.array_equal(store.clip(0).frame_FD, store.clip(1).frame_FD)


def test_files_that_cannot_be_read_are_told_and_the_rest_is_indexed(videos: Path, tmp_path: Path, tiny_model: Path) -> None:
    (videos / "zero.mp4").write_bytes(b"")
    (videos / "text.mp4").write_text("this is a shopping list, not a video\n" * 20)
    (videos / "cut.mp4").write_bytes((videos / "red.mp4").read_bytes()[:700])
    make_audio(videos / "sound.m4a").rename(videos / "sound.mp4")
    make_video(videos / "one.mp4", ["red"], seconds=0.1)
    make_video(videos / "dot.mkv", ["red"], size=(2, 2))
    inputs = [videos, videos / "nowhere.mp4"]
    report = run(inputs, tmp_path / "c.npz", tiny_model)
    reasons = {f.id: f.reason for f in report.failed}
    assert sorted(reasons) == ["cut.mp4", "nowhere.mp4", "sound.mp4", "text.mp4", "zero.mp4"]
    assert all(reason and "\n" not in reason for reason in reasons.values())
    store = open_store(tmp_path / "c.npz")
    assert len(store) == 6 and len(store.clip(store.index_of("one.mp4")).frame_FD) == 1
    with pytest.raises(SkippedInputsError, match="5 of 11 clips were skipped"):
        run(inputs, tmp_path / "c.npz", tiny_model, strict=True)


def test_a_file_that_went_bad_keeps_its_earlier_tokens(videos: Path, tmp_path: Path, tiny_model: Path) -> None:
    run(videos, tmp_path / "c.npz", tiny_model)
    before = open_store(tmp_path / "c.npz").clip(2).frame_FD
    (videos / "red.mp4").write_bytes(b"")
    report = run(videos, tmp_path / "c.npz", tiny_model)
    assert report.clips == 4 and [(f.id, f.kept) for f in report.failed] == [("red.mp4", True)]
    store = open_store(tmp_path / "c.npz")
    assert store.clip_ids == ["blue.mp4", "change.mp4", "red.mp4", "sub/yellow.mp4"]
    assert np.array_equal(store.clip(2).frame_FD, before)


def test_not_one_readable_clip_writes_no_store(tmp_path: Path, tiny_model: Path) -> None:
    (tmp_path / "v").mkdir()
    (tmp_path / "v" / "zero.mp4").write_bytes(b"")
    with pytest.raises(InputError, match=r"not one of 1 clips could be indexed: .*zero\.mp4: file is empty"):
        run(tmp_path / "v", tmp_path / "c.npz", tiny_model)
    assert [p.name for p in tmp_path.iterdir()] == ["v"]


def test_ctrl_c_keeps_what_is_finished_and_the_next_run_goes_on(videos: Path, tmp_path: Path, tiny_model: Path) -> None:
    def stop(state: IndexProgress) -> None:
        if state.done == 2:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted, match="2 finished clips are kept") as caught:
        run(videos, tmp_path / "c.npz", tiny_model, progress=stop)
    assert caught.value.exit_code == 130
    assert not (tmp_path / "c.npz").exists()
    report = run(videos, tmp_path / "c.npz", tiny_model)
    assert (report.resumed, report.indexed) == (2, 2)
    run(videos, tmp_path / "fresh.npz", tiny_model)
    assert (tmp_path / "c.npz").read_bytes() == (tmp_path / "fresh.npz").read_bytes()
    assert not (tmp_path / "c.npz.partial").exists()


def test_kill_9_at_any_clip_loses_nothing_that_was_finished(videos: Path, tmp_path: Path, tiny_model: Path) -> None:
    killed = """
import os, signal, sys
from vctool.runtime.placement import Placement
from vctool.runtime.indexing import index_videos
def die(state):
    if state.done == 3:
        os.kill(os.getpid(), signal.SIGKILL)
index_videos([sys.argv[1]], sys.argv[2], sys.argv[3], workers=1, device="cpu", progress=die)
"""
    done = subprocess.run(
        [sys.executable, "-c", killed, str(videos), str(tmp_path / "c.npz"), str(tiny_model)], capture_output=True, timeout=60
    )
    assert done.returncode == -9
    report = run(videos, tmp_path / "c.npz", tiny_model)
    assert (report.resumed, report.indexed) == (3, 1)
    run(videos, tmp_path / "fresh.npz", tiny_model)
    assert (tmp_path / "c.npz").read_bytes() == (tmp_path / "fresh.npz").read_bytes()


def test_a_journal_of_other_settings_or_another_file_is_not_used(videos: Path, tmp_path: Path, tiny_model: Path) -> None:
    def stop(state: IndexProgress) -> None:
        raise KeyboardInterrupt

    for _ in range(3):  # one clip a run: blue, change, red
        with pytest.raises(Interrupted):
            run(videos, tmp_path / "c.npz", tiny_model, progress=stop)
    with pytest.raises(Interrupted):
        run(videos, tmp_path / "c.npz", tiny_model, frames=2, progress=stop)
    make_video(videos / "red.mp4", ["cyan", "cyan"])
    report = run(videos, tmp_path / "c.npz", tiny_model)
    assert (report.resumed, report.indexed) == (2, 2)


def test_progress_counts_what_is_done(videos: Path, tmp_path: Path, tiny_model: Path) -> None:
    seen: list[IndexProgress] = []
    (videos / "zero.mp4").write_bytes(b"")
    run(videos, tmp_path / "c.npz", tiny_model, progress=seen.append)
    assert [(s.done, s.total) for s in seen] == [(i, 5) for i in range(1, 6)]
    assert (seen[-1].failed, seen[-1].clip, seen[-1].reused) == (1, "zero.mp4", 0)


def test_too_many_frames_are_refused_before_decoding(videos: Path, tmp_path: Path, tiny_model: Path) -> None:
    with pytest.raises(UsageProblem, match="reads at most 16"):
        run(videos, tmp_path / "c.npz", tiny_model, frames=17)


def test_a_full_disk_is_seen_before_decoding(videos: Path, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=10**6, used=10**6 - 1000, free=1000))
    with pytest.raises(StoreError, match="the disk is full"):
        run(videos, tmp_path / "c.npz", tiny_model)
    assert [p.name for p in tmp_path.iterdir()] == ["videos"]


def test_an_altered_graph_is_refused(videos: Path, tmp_path: Path) -> None:
    model = build_tiny_model(tmp_path / "m")
    (model / "onnx" / "frame.onnx").write_bytes(b"x" * (model / "onnx" / "frame.onnx").stat().st_size)
    with pytest.raises(ModelError, match=r"frame\.onnx was altered"):
        run(videos, tmp_path / "c.npz", model)
    assert not (tmp_path / "c.npz").exists() and not (tmp_path / "c.npz.partial").exists()


def test_every_model_kind_is_indexed(videos: Path, tmp_path: Path) -> None:
    for kind in ("transformer", "mean", "none"):
        model = build_tiny_model(tmp_path / kind, temporal=kind)
        if kind == "none":  # the toy's graph adds expansion tokens: without it the frames are the video tokens
            (model / "onnx" / "temporal.onnx").unlink()
            write_checksums(model)
        run(videos, tmp_path / f"{kind}.npz", model)
        assert open_store(tmp_path / f"{kind}.npz").clip(1).video_VD.shape[0] == {"transformer": 6, "mean": 1, "none": 4}[kind]


def test_the_store_names_each_encoder_that_its_tokens_came_from(tiny_model: Path, tiny_videos: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    output = tmp_path / "c.npz"
    run([tiny_videos / "red.mp4"], output, tiny_model, provider="onnxruntime")
    with open_store(output) as store:
        (first,) = store.manifest["encoders"]
    assert first.startswith("onnxruntime ") and first.endswith(" on cpu, float32")
    report = run([tiny_videos], output, tiny_model, provider="openvino")
    assert report.encoder["provider"] == "openvino" and report.indexed == 3
    with open_store(output) as store:
        assert store.manifest["encoders"] == [first, str(Placement(**report.encoder))]
    assert not run([tiny_videos], output, tiny_model, provider="onnxruntime").written
