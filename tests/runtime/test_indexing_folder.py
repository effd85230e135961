"""Indexing into a folder of shards: new clips in new shards, others untouched; clips deleted by name; one run at a time."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tinymodel import make_video

from vctool.errors import StoreError, UsageProblem
from vctool.runtime.indexing import IndexReport, index_videos
from vctool.store import open_store
from vctool.store.lock import WriteLock
from vctool.store.rewriting import delete_clips

sys.path.insert(0, str(Path(__file__).parents[1] / "store"))
from killing import killed_at

IDS = ["blue.mp4", "change.mp4", "red.mp4", "sub/yellow.mp4"]


@pytest.fixture
def videos(tiny_videos: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_videos, tmp_path / "videos"))


def run(inputs: Any, output: Path | str, model: Path, **options: Any) -> IndexReport:
    given = inputs if isinstance(inputs, list) else [inputs]
    return index_videos(given, output, model, **{"workers": 0, "device": "cpu", "threads": 1, **options})


def inodes(folder: Path) -> dict[str, int]:
    return {one.name: one.stat().st_ino for one in folder.glob("*.npz")}


def test_a_folder_has_the_clips_and_tokens_of_a_file(videos: Path, tmp_path: Path, tiny_model: Path) -> None:
    run(videos, tmp_path / "c.npz", tiny_model)
    report = run(videos, tmp_path / "clips", tiny_model, shard_clips=3)
    single, folder = open_store(tmp_path / "c.npz"), open_store(tmp_path / "clips")
    folder.verify()
    assert report.clips == 4 and [len(shard) for shard in folder.shards] == [3, 1] and folder.clip_ids == single.clip_ids == IDS
    for i in range(4):
        assert np.array_equal(folder.clip(i).video_VD, single.clip(i).video_VD) and folder.resolve_path(i) == single.resolve_path(i)
    assert (folder.folder / folder.manifest["model"]["path"]).resolve() == tiny_model.resolve()
    assert folder.manifest["frames"] == single.manifest["frames"] and not (tmp_path / "clips.partial").exists()


def test_a_name_that_ends_in_a_slash_is_a_folder_with_one_shard(videos: Path, tmp_path: Path, tiny_model: Path) -> None:
    run(videos, f"{tmp_path}/clips/", tiny_model)
    assert len(open_store(tmp_path / "clips").shards) == 1


def test_new_clips_go_into_new_shards_and_the_others_are_untouched(videos: Path, tmp_path: Path, tiny_model: Path) -> None:
    out = tmp_path / "clips"
    run(videos, out, tiny_model, shard_clips=2)
    before = inodes(out)
    assert run(videos, out, tiny_model).written is False and inodes(out) == before
    make_video(videos / "azure.mp4", ["cyan"])
    report = run(videos, out, tiny_model)
    assert (report.indexed, report.reused, report.clips) == (1, 4, 5)
    assert before.items() <= inodes(out).items() and len(inodes(out)) == 3
    assert open_store(out).clip_ids == [*IDS, "azure.mp4"] and open_store(out).manifest["generation"] == 2


def test_only_the_shard_of_a_changed_clip_is_written_anew(videos: Path, tmp_path: Path, tiny_model: Path) -> None:
    out = tmp_path / "clips"
    run(videos, out, tiny_model, shard_clips=2)
    before = inodes(out)
    make_video(videos / "blue.mp4", ["green"])
    assert run(videos, out, tiny_model, shard_clips=2).indexed == 1
    assert open_store(out).clip_ids == [*IDS[1:], "blue.mp4"]
    assert inodes(out)["shard-000002.npz"] == before["shard-000002.npz"] and "shard-000001.npz" not in inodes(out)
    open_store(out).verify()
    (videos / "red.mp4").unlink()
    report = run(videos, out, tiny_model, prune=True)
    assert report.dropped == 1 and open_store(out).clip_ids == ["change.mp4", "sub/yellow.mp4", "blue.mp4"]


@pytest.mark.parametrize("name", ["c.npz", "clips/"])
def test_a_run_deletes_clips_by_name(videos: Path, tmp_path: Path, tiny_model: Path, name: str) -> None:
    out = f"{tmp_path}/{name}"
    run(videos, out, tiny_model)
    with pytest.raises(UsageProblem, match=r"'red\.mp4' is to be deleted and is among the videos"):
        run(videos, out, tiny_model, delete=["red.mp4"])
    with pytest.raises(StoreError, match=r"no clip 'grey\.mp4'"):
        run(videos, out, tiny_model, delete=["grey.mp4"])
    assert open_store(out).clip_ids == IDS
    make_video(tmp_path / "more" / "cyan.mp4", ["cyan"])
    report = run(tmp_path / "more", out, tiny_model, delete=["red.mp4"])
    assert (report.deleted, report.kept, report.indexed) == (1, 3, 1)
    assert open_store(out).clip_ids == [*IDS[:2], IDS[3], "cyan.mp4"]


def test_a_file_does_not_become_a_folder_unasked(videos: Path, tmp_path: Path, tiny_model: Path) -> None:
    run(videos, tmp_path / "c.npz", tiny_model)
    with pytest.raises(StoreError, match="is a file") as problem:
        run(videos, tmp_path / "c.npz", tiny_model, shard_clips=2)
    assert "store split" in str(problem.value.hint)
    with pytest.raises(StoreError, match="is a folder of other things"):
        run(videos, videos, tiny_model)


def test_what_another_process_is_writing_to_is_not_indexed_into(videos: Path, tmp_path: Path, tiny_model: Path) -> None:
    import threading

    run(videos, tmp_path / "c.npz", tiny_model)
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with WriteLock(tmp_path / "c.npz"):
            held.set()
            done.wait(60)

    other = threading.Thread(target=hold)
    other.start()
    held.wait(60)
    try:
        with pytest.raises(StoreError, match="is writing to it"):
            run(videos, tmp_path / "c.npz", tiny_model)
    finally:
        done.set()
        other.join()
    assert run(videos, tmp_path / "c.npz", tiny_model).written is False


@pytest.mark.skipif(os.name != "posix", reason="forks and kills")
@pytest.mark.parametrize("name", ["c.npz", "clips/"])
def test_a_run_that_is_killed_leaves_the_old_or_the_new_store_and_the_next_one_finishes(
    videos: Path, tmp_path: Path, tiny_model: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clips are encoded before the fork (into the journal), so that the child only writes."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    out = f"{tmp_path}/{name}"
    run(videos, out, tiny_model)
    saved = tmp_path / "saved"
    (shutil.copytree if Path(out).is_dir() else shutil.copy)(out, saved)
    (videos / "red.mp4").unlink()
    step, killed = 0, True
    while killed:
        if Path(out).is_dir():
            shutil.rmtree(out)
            shutil.copytree(saved, out)
        else:
            shutil.copy(saved, out)
        # A model that is loaded would bring threads along, which a fork does not.
        killed = killed_at(step, lambda: run(videos, out, tiny_model, prune=True))
        store = open_store(out)
        store.verify()
        assert store.clip_ids == (IDS if len(store) == 4 else [*IDS[:2], IDS[3]])
        assert killed or len(store) == 3
        step += 23
    delete_clips(out, ["blue.mp4"])
    assert open_store(out).clip_ids == ["change.mp4", "sub/yellow.mp4"]
    left = [one.name for one in (Path(out) if Path(out).is_dir() else tmp_path).iterdir() if one.name.startswith(".")]
    assert not left and step > 23
