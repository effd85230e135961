"""One writer at a time: the second is told so in a line, one that died is in nobody's way, and readers notice nothing."""

from __future__ import annotations

import builtins
import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from store_fixtures import DIM, MODEL, make_clip, write_folder, write_store

from vctool.errors import StoreError
from vctool.scoring import scores
from vctool.store import StoreWriter, open_store
from vctool.store.folder import FolderWriter, ShardSize
from vctool.store.lock import WriteLock
from vctool.store.output import Output
from vctool.store.rewriting import compact, convert, delete_clips, merge

posix = pytest.mark.skipif(os.name != "posix", reason="locks of POSIX")


@pytest.fixture(params=["file", "no file yet", "folder"])
def place(tmp_path, request) -> Path:
    if request.param == "folder":
        return write_folder(tmp_path / "clips", [[make_clip("a")]])
    return write_store(tmp_path / "clips.npz", [make_clip("a")]) if request.param == "file" else tmp_path / "clips.npz"


def elsewhere(code: str, path: Path) -> subprocess.Popen[str]:
    """A process that runs `code` with `path`, says a line when it is there, and waits."""
    code = f"import sys, os\nfrom pathlib import Path\nfrom vctool.store.lock import WriteLock\npath = Path({str(path)!r})\n{code}"
    code += "\nprint('ready', flush=True)\nsys.stdin.read()"
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)


@posix
def test_a_second_writer_is_refused_in_one_line_until_the_first_is_gone(place):
    with elsewhere("lock = WriteLock(path)", place) as other:
        assert other.stdout is not None and other.stdin is not None and other.stdout.readline() == "ready\n"
        with pytest.raises(StoreError, match=r"clips.*: another process.* is writing to it") as problem:
            if place.is_dir():
                FolderWriter(place, manifest=MODEL, dtype="float16")
            else:
                StoreWriter(place, manifest=MODEL)
        assert "\n" not in str(problem.value) and "wait" in str(problem.value.hint)
        if place.exists():
            with pytest.raises(StoreError, match="is writing to it"):
                delete_clips(place, ["a"])
            assert open_store(place).clip_ids == ["a"]  # readers are never locked out
        other.kill()
        other.wait()
    if place.exists():
        delete_clips(place, ["a"])
        assert len(open_store(place)) == 0
    else:
        write_store(place, [make_clip("a")])
    assert not [one for one in place.parent.iterdir() if one.name.endswith(".lock")]


def test_another_thread_is_refused_and_the_same_thread_is_not(place):
    told = []

    def second():
        try:
            WriteLock(place).release()
        except StoreError as problem:
            told.append(problem.message)

    with WriteLock(place), WriteLock(place) as again:
        again.release()
        again.release()
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
    assert len(told) == 1 and "another thread" in told[0]
    second()
    assert len(told) == 1


@pytest.fixture
def no_flock(monkeypatch):
    """A system without such locks."""
    found = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "fcntl":
            raise ImportError(name)
        return found(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)


def test_without_flock_a_file_with_a_living_process_in_it_is_a_lock(tmp_path, no_flock):
    path, marker = tmp_path / "clips.npz", tmp_path / ".clips.npz.lock"
    with WriteLock(path):
        assert json.loads(marker.read_text()) == {"pid": os.getpid(), "host": socket.gethostname()}
    assert not marker.exists()
    marker.write_text(json.dumps({"pid": os.getppid(), "host": socket.gethostname()}))
    with pytest.raises(StoreError, match=f"process {os.getppid()} on"):
        WriteLock(path)
    marker.write_text(json.dumps({"pid": 1, "host": "another host"}))
    with pytest.raises(StoreError, match="process 1 on another host") as problem:
        StoreWriter(path, manifest=MODEL)
    assert str(marker) in str(problem.value.hint)


@posix
def test_without_flock_the_lock_of_a_dead_process_does_not_count(tmp_path, no_flock):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    marker = tmp_path / ".clips.npz.lock"
    marker.write_text(json.dumps({"pid": gone.pid, "host": socket.gethostname()}))
    write_store(tmp_path / "clips.npz", [make_clip("a")])
    assert not marker.exists()
    marker.write_text("")  # died while making it
    os.utime(marker, (0, 0))
    write_store(tmp_path / "clips.npz", [make_clip("a")])
    marker.write_text("")
    with pytest.raises(StoreError, match="another process"):
        write_store(tmp_path / "clips.npz", [make_clip("a")])


CLIPS = [make_clip(f"clip {i}", i) for i in range(6)]


def test_a_folder_that_is_changed_while_it_is_searched_gives_the_answers_of_the_old_one(tmp_path):
    folder = write_folder(tmp_path / "clips", [CLIPS[:2], CLIPS[2:4], CLIPS[4:]])
    query = make_clip("", 77).frame_FD
    with open_store(folder) as store:
        before = scores(query, None, store)[0]
        delete_clips(folder, ["clip 1", "clip 5"])
        compact(folder)
        assert np.array_equal(scores(query, None, store)[0], before) and store.clip_ids == [clip.id for clip in CLIPS]
        store.clip(5)
    assert open_store(folder).clip_ids == ["clip 0", "clip 2", "clip 3", "clip 4"]


def test_a_folder_that_is_replaced_while_it_is_opened_is_opened_again(tmp_path, monkeypatch):
    from vctool.store import shards

    folder = write_folder(tmp_path / "clips", [CLIPS[:3], CLIPS[3:]])
    read = shards._manifest_text
    changes = iter([lambda: compact(folder), lambda: delete_clips(folder, ["clip 0"])])

    def late(path):
        text = read(path)
        next(changes, lambda: None)()  # between reading the manifest and opening what it names
        return text

    monkeypatch.setattr(shards, "_manifest_text", late)
    assert open_store(folder).clip_ids == [f"clip {i}" for i in range(1, 6)]


def test_readers_and_a_writer_side_by_side(tmp_path):
    folder = write_folder(tmp_path / "clips", [CLIPS[:3], CLIPS[3:]])
    extra = write_store(tmp_path / "extra.npz", [make_clip("x", 9)])
    stop, seen, failures = threading.Event(), set(), []

    def read():
        while not stop.is_set():
            try:
                with open_store(folder) as store:
                    seen.add(len(store))
                    scores(np.eye(1, DIM, dtype=np.float32), None, store)
                    store.verify()
            except Exception as problem:  # whatever it is, the test must say it
                failures.append(repr(problem))

    reader = threading.Thread(target=read)
    reader.start()
    for size in (1, 3, 2, 4, 1, 5):
        merge([folder, extra], Output(folder, ShardSize(clips=size), replace=True))
        delete_clips(folder, ["x"])
        compact(folder, ShardSize(clips=size + 1))
    stop.set()
    reader.join()
    assert not failures and seen <= {6, 7}


@posix
@pytest.mark.skipif(os.name == "posix" and os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_to_is_said(tmp_path):
    folder = write_folder(tmp_path / "clips", [CLIPS])
    folder.chmod(0o555)
    try:
        with pytest.raises(StoreError, match="cannot be written to"):
            delete_clips(folder, ["clip 1"])
    finally:
        folder.chmod(0o755)
    assert len(open_store(folder)) == 6


@pytest.mark.parametrize("code", ["EACCES", "EROFS", "ENOSPC"])
def test_a_folder_that_takes_nothing_stays_as_it_is(tmp_path, monkeypatch, code):
    import errno
    import tempfile

    folder = write_folder(tmp_path / "clips", [CLIPS[:3], CLIPS[3:]])
    before = {one.name: one.read_bytes() for one in folder.iterdir()}

    def refuse(*args, **kwargs):
        raise OSError(getattr(errno, code), os.strerror(getattr(errno, code)))

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    with pytest.raises(StoreError, match="the disk is full" if code == "ENOSPC" else "cannot be written to"):
        delete_clips(folder, ["clip 1"])
    with pytest.raises(StoreError):
        convert(folder, Output(tmp_path / "new", ShardSize(clips=1)))
    assert {one.name: one.read_bytes() for one in folder.iterdir()} == before and not (tmp_path / "new").exists()


@posix
def test_a_disk_that_fills_up_while_a_folder_is_written_leaves_the_old_store(tmp_path):
    folder = write_folder(tmp_path / "clips", [[make_clip(str(i), i, 40, 40) for i in range(30)]])
    before = {one.name: one.read_bytes() for one in folder.iterdir()}
    code = f"""
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
from vctool.errors import StoreError
from vctool.store.rewriting import delete_clips
try:
    delete_clips({str(folder)!r}, ["3"])
except StoreError as problem:
    print(problem)
"""
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert "the disk is full: nothing was changed" in done.stdout, done
    assert {one.name: one.read_bytes() for one in folder.iterdir()} == before


def test_folders_of_something_else_and_files_are_left_alone(tmp_path):
    (tmp_path / "holiday").mkdir()
    (tmp_path / "holiday" / "beach.mp4").write_bytes(b"x")
    with pytest.raises(StoreError, match=r"folder of something else \(beach\.mp4\)"):
        FolderWriter(tmp_path / "holiday", manifest=MODEL, dtype="int8")
    with pytest.raises(StoreError, match="is a file"):
        FolderWriter(tmp_path / "holiday" / "beach.mp4", manifest=MODEL, dtype="int8")
    assert [one.name for one in (tmp_path / "holiday").iterdir()] == ["beach.mp4"]
