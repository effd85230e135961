"""Whatever goes wrong while a store is written, the file that was there stays, and nothing is left beside it."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from store_fixtures import MODEL, make_clip, write_store

from vctool.errors import StoreError
from vctool.store import StoreWriter, open_store
from vctool.store.archive import ArchiveWriter
from vctool.store.parts import Part

posix = pytest.mark.skipif(os.name != "posix", reason="signals, limits and locks of POSIX")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def old(tmp_path) -> Path:
    """A store that must survive."""
    return write_store(tmp_path / "clips.npz", [make_clip("old")])


def run(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run `code` in another process, in `folder`, with the helpers of these tests at hand."""
    code = "import os, signal\nfrom store_fixtures import *\nfrom vctool.store.archive import ArchiveWriter\n" + textwrap.dedent(code)
    roots = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[2])])
    return subprocess.run([sys.executable, "-c", code], cwd=folder, env=os.environ | {"PYTHONPATH": roots}, capture_output=True, text=True)


def test_leaving_without_commit_leaves_the_old_file(old):
    before = old.read_bytes()
    with StoreWriter(old, manifest=MODEL) as writer:
        writer.add(make_clip("new"))
    assert old.read_bytes() == before and names(old.parent) == ["clips.npz"]


def test_an_exception_leaves_the_old_file(old):
    before = old.read_bytes()
    with pytest.raises(RuntimeError), StoreWriter(old, manifest=MODEL) as writer:
        writer.add(make_clip("new"))
        raise RuntimeError
    assert old.read_bytes() == before and names(old.parent) == ["clips.npz"]


@pytest.mark.parametrize("failure", [KeyboardInterrupt, MemoryError, OSError(28, "No space left on device")])
def test_a_failure_inside_commit_leaves_the_old_file(old, monkeypatch, failure):
    before = old.read_bytes()

    def fail(self):
        raise failure

    monkeypatch.setattr(ArchiveWriter, "finish", fail)
    with pytest.raises((KeyboardInterrupt, MemoryError, StoreError)), StoreWriter(old, manifest=MODEL) as writer:
        writer.add(make_clip("new"))
        writer.commit()
    assert old.read_bytes() == before and names(old.parent) == ["clips.npz"]


@posix
@pytest.mark.parametrize("limit", [5_000, 150_000], ids=["while adding", "while committing"])
def test_a_disk_that_fills_up_is_said_and_leaves_the_old_file(old, limit):
    # A limit on the size of files makes the kernel cut writes short exactly as a full disk does.
    before = old.read_bytes()
    result = run(
        f"""
        import resource
        from vctool.errors import StoreError
        resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
        try:
            with StoreWriter("clips.npz", manifest=MODEL) as writer:
                for i in range(1000):
                    writer.add(make_clip(str(i), i, frames=3, tokens=3))
                writer.commit()
        except StoreError as problem:
            print(len(writer), problem)
        """,
        old.parent,
    )
    assert "the disk is full" in result.stdout, result
    assert (int(result.stdout.split()[0]) == 1000) == (limit == 150_000)
    assert old.read_bytes() == before and names(old.parent) == ["clips.npz"]


@posix
def test_what_fitted_before_the_disk_was_full_can_be_committed(old):
    result = run(
        """
        import resource
        from vctool.errors import StoreError
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 10**9))
        with StoreWriter("clips.npz", manifest=MODEL) as writer:
            try:
                for i in range(1000):
                    writer.add(make_clip(str(i), i))
            except StoreError as problem:
                print(problem)
            resource.setrlimit(resource.RLIMIT_FSIZE, (10**9, 10**9))  # someone made room
            whole = len(writer)
            writer.add(make_clip("after"))
            writer.commit()
        print(whole)
        """,
        old.parent,
    )
    store = open_store(old)
    store.verify()
    whole = int(result.stdout.split()[-1])
    assert store.clip_ids == [*map(str, range(whole)), "after"]
    assert np.array_equal(store.clip(whole - 1).frame_FD, make_clip("", whole - 1).frame_FD.astype(np.float16).astype(np.float32))


@posix
def test_a_kill_while_adding_leaves_nothing_behind(old):
    before = old.read_bytes()
    result = run(
        """
        writer = StoreWriter("clips.npz", manifest=MODEL)
        for i in range(5):
            writer.add(make_clip(str(i), i))
        os.kill(os.getpid(), signal.SIGKILL)
        """,
        old.parent,
    )
    assert result.returncode == -9
    assert old.read_bytes() == before and names(old.parent) == ["clips.npz"]


@posix
def test_what_a_kill_inside_commit_leaves_behind_is_removed_by_the_next_writer(old):
    before = old.read_bytes()
    result = run(
        """
        ArchiveWriter.finish = lambda self: os.kill(os.getpid(), signal.SIGKILL)
        with StoreWriter("clips.npz", manifest=MODEL) as writer:
            writer.add(make_clip("new"))
            writer.commit()
        """,
        old.parent,
    )
    assert result.returncode == -9
    assert old.read_bytes() == before and len(names(old.parent)) == 2
    StoreWriter(old, manifest=MODEL).close()
    assert names(old.parent) == ["clips.npz"]


@posix
def test_the_temporary_file_of_a_living_writer_is_left_alone(old, monkeypatch):
    finish = ArchiveWriter.finish

    def meanwhile(self):
        monkeypatch.setattr(ArchiveWriter, "finish", finish)
        write_store(old, [make_clip("second")])
        finish(self)

    monkeypatch.setattr(ArchiveWriter, "finish", meanwhile)
    write_store(old, [make_clip("first")])
    assert open_store(old).clip_ids == ["first"] and names(old.parent) == ["clips.npz"]


def test_a_reader_keeps_reading_the_file_it_opened(old):
    store = open_store(old)
    write_store(old, [make_clip("new", i) for i in [5]])
    store.verify()
    assert store.clip_ids == ["old"] and open_store(old).clip_ids == ["new"]


def test_the_bytes_are_on_disk_before_they_take_the_old_ones_place(old, monkeypatch):
    calls = []
    monkeypatch.setattr(os, "fsync", lambda descriptor, sync=os.fsync: (calls.append("sync"), sync(descriptor)))
    monkeypatch.setattr(os, "replace", lambda *args, move=os.replace: (calls.append("move"), move(*args)))
    write_store(old, [make_clip("new")])
    assert calls == ["sync", "move", "sync"]


@posix
def test_permissions_and_links_of_the_old_file_are_kept(old):
    old.chmod(0o640)
    (old.parent / "link.npz").symlink_to("clips.npz")
    write_store(old.parent / "link.npz", [make_clip("new")])
    assert (old.parent / "link.npz").is_symlink()
    assert old.stat().st_mode & 0o777 == 0o640 and open_store(old).clip_ids == ["new"]


@posix
def test_a_new_file_has_the_permissions_that_the_user_asked_for(tmp_path):
    mask = os.umask(0o027)
    try:
        path = write_store(tmp_path / "clips.npz", [])
    finally:
        os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("moment", range(7))
def test_ctrl_c_in_the_middle_of_a_clip_never_commits_half_of_it(tmp_path, monkeypatch, moment):
    with StoreWriter(tmp_path / "clips.npz", manifest=MODEL, dtype="int8") as writer:
        writer.add(make_clip("whole"))
        countdown = iter(range(moment, -1, -1))
        write = Part._write

        def interrupted(self, data):
            write(self, data[: len(data) // 2])
            if next(countdown) == 0:
                raise KeyboardInterrupt
            write(self, data[len(data) // 2 :])

        with monkeypatch.context() as patch:
            patch.setattr(Part, "_write", interrupted)
            with pytest.raises(KeyboardInterrupt):
                writer.add(make_clip("half", 1))
        writer.add(make_clip("next", 2))
        writer.commit()
    store = open_store(tmp_path / "clips.npz")
    store.verify()
    assert store.clip_ids == ["whole", "next"]


def test_memory_does_not_grow_with_the_store(tmp_path):
    import tracemalloc

    clip = make_clip("a", frames=200, tokens=200)
    with StoreWriter(tmp_path / "clips.npz", manifest=MODEL) as writer:
        tracemalloc.start()
        for i in range(300):
            writer.add(type(clip)(str(i), "", clip.frame_FD, clip.frame_time_F, clip.video_VD, clip.video_time_V, {}))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 400_000  # the tokens alone are 1.9 MB
