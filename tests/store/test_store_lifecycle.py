"""A store through its life, against a dictionary: whatever is done to it, and whenever it is killed, it holds what it should."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from killing import killed_at
from store_fixtures import make_clip, write_folder, write_store

from vctool.errors import StoreError
from vctool.store import open_store
from vctool.store.folder import ShardSize
from vctool.store.output import Output
from vctool.store.rewriting import compact, convert, delete_clips, merge, split

pytestmark = pytest.mark.skipif(os.name != "posix", reason="forks and kills")


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    """A killed process does not lose what it wrote: only a machine that loses its power does, and that is not tested here."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


Contents = dict[str, int]  # id: seed of its tokens, in the order of the store


def clip(name, seed):
    return make_clip(name, seed, frames=seed % 3, tokens=1 + seed % 2, path=f"/videos/{name}.mp4")


def contents(path) -> Contents:
    """What a store holds; every clip is compared with the one that its seed makes."""
    with open_store(path) as store:
        store.verify()
        found = {}
        for i in range(len(store)):
            kept = store.clip(i)
            made = clip(kept.id, kept.meta["duration"])
            for name in ("frame_FD", "video_VD"):
                assert np.array_equal(getattr(kept, name), getattr(made, name).astype(np.float16))
            assert np.array_equal(kept.video_time_V, made.video_time_V, equal_nan=True) and kept.path == made.path
            found[kept.id] = kept.meta["duration"]
        assert len(found) == len(store)
        return found


def leftovers(path: Path) -> list[str]:
    """What lies in and beside a store and does not belong there."""
    beside = [one.name for one in path.parent.iterdir() if one.name.startswith(f".{path.name}")]
    if path.is_dir():
        with open_store(path) as store:
            beside += sorted({one.name for one in path.iterdir()} - {"manifest.json", *(entry.file for entry in store.entries)})
    return beside


class Life(RuleBasedStateMachine):
    """One store; the dictionary says what should be in it."""

    def __init__(self):
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.path = self.folder / "clips.npz"
        self.model: Contents = {}
        self.count = 0

    def teardown(self):
        shutil.rmtree(self.folder)

    def new(self, count):
        names = [f"clip {self.count + i}" for i in range(count)]
        self.count += count
        return dict(zip(names, range(self.count - count, self.count), strict=True))

    @initialize(count=st.integers(0, 6), folder=st.booleans())
    def begin(self, count, folder):
        self.model = self.new(count)
        clips = [clip(*item) for item in self.model.items()]
        if folder:
            self.path = write_folder(self.folder / "clips", [clips[:2], clips[2:]] if count > 2 else [clips] if clips else [])
        else:
            write_store(self.path, clips)

    def change(self, step, after, change):
        """Do it; or, with a step, in a process that is killed there."""
        if step is None:
            change()
            self.model = after
            return
        killed = killed_at(step, change)
        found = contents(self.path)
        assert found == after or (killed and found == self.model), "neither the old nor the new store"
        assert list(found) in (list(after), list(self.model))
        self.model = found

    def output(self, path):
        return Output(path, ShardSize(clips=3) if path.is_dir() else None, replace=True)

    kill = st.none() | st.integers(0, 60)

    @rule(count=st.integers(1, 4), step=kill)
    def add(self, count, step):
        new = self.new(count)
        extra = write_store(self.folder / "extra.npz", [clip(*item) for item in new.items()])
        self.change(step, self.model | new, lambda: merge([self.path, extra], self.output(self.path)))

    @precondition(lambda self: self.model)
    @rule(data=st.data(), step=kill)
    def replace(self, data, step):
        name = data.draw(st.sampled_from(sorted(self.model)))
        self.count += 1
        extra = write_store(self.folder / "extra.npz", [clip(name, self.count)])
        after = {key: seed for key, seed in self.model.items() if key != name} | {name: self.count}
        self.change(step, after, lambda: merge([self.path, extra], self.output(self.path), on_duplicate="last"))

    @precondition(lambda self: self.model)
    @rule(data=st.data(), step=kill)
    def delete(self, data, step):
        gone = data.draw(st.lists(st.sampled_from(sorted(self.model)), min_size=1, unique=True))
        after = {key: seed for key, seed in self.model.items() if key not in gone}
        self.change(step, after, lambda: delete_clips(self.path, gone))

    @rule(step=kill, size=st.integers(1, 9))
    def compact(self, step, size):
        self.change(step, self.model, lambda: compact(self.path, ShardSize(clips=size)))

    @rule(step=kill, size=st.integers(1, 4), to_folder=st.booleans())
    def move(self, step, size, to_folder):
        """Into another form, beside the old one."""
        self.count += 1
        target = self.folder / (f"split{self.count}" if to_folder else f"whole{self.count}.npz")
        place = Output(target, ShardSize(clips=size) if to_folder else None)
        if step is not None and killed_at(step, lambda: convert(self.path, place)):
            assert contents(self.path) == self.model
            if target.exists() and (not to_folder or (target / "manifest.json").exists()):
                assert contents(target) == self.model
                return
        if step is None or not target.exists() or not any(target.glob("manifest.json") if to_folder else [target]):
            (split if to_folder else convert)(self.path, place)
        shutil.rmtree(self.path) if self.path.is_dir() else self.path.unlink()
        self.path = target

    @rule()
    def refused(self):
        with pytest.raises(StoreError, match="no clip"):
            delete_clips(self.path, ["nobody"])

    @invariant()
    def is_what_it_should_be(self):
        if self.count or self.model:
            assert list(contents(self.path).items()) == list(self.model.items())


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=10, stateful_step_count=8, deadline=None, suppress_health_check=list(HealthCheck))

CLIPS = [clip(f"clip {i}", i) for i in range(6)]
EXTRA = [clip("clip 2", 20), clip("new", 21)]


@pytest.mark.parametrize("stride", [7, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("form", ["file", "folder"])
@pytest.mark.parametrize("name", ["delete", "merge", "compact", "rewrite"])
def test_a_kill_at_any_step_leaves_the_old_or_the_new_store(tmp_path, form, name, stride):
    extra = write_store(tmp_path / "extra.npz", EXTRA)
    before = {one.id: one.meta["duration"] for one in CLIPS}
    merged = {key: seed for key, seed in before.items() if key != "clip 2"} | {"clip 2": 20, "new": 21}
    after = {"delete": {k: v for k, v in before.items() if k not in ("clip 1", "clip 5")}, "merge": merged}.get(name, before)
    path = tmp_path / ("clips" if form == "folder" else "clips.npz")
    output = Output(path, ShardSize(clips=4) if form == "folder" else None, replace=True)
    change = {
        "delete": lambda: delete_clips(path, ["clip 1", "clip 5"]),
        "merge": lambda: merge([path, extra], output, on_duplicate="last"),
        "compact": lambda: compact(path, ShardSize(clips=6)),
        "rewrite": lambda: convert(path, output),
    }[name]
    step, killed, states = 0, True, set()
    while killed:
        if form == "folder":
            shutil.rmtree(path, ignore_errors=True)
            write_folder(path, [CLIPS[:1], CLIPS[1:2], CLIPS[2:]])
        else:
            write_store(path, CLIPS)
        killed = killed_at(step, change)
        found = contents(path)
        assert list(found.items()) in (list(before.items()), list(after.items()))
        assert killed or list(found.items()) == list(after.items())
        states.add(list(found.items()) == list(after.items()))
        # The next writer finds no obstacle, and leaves nothing of the dead one.
        delete_clips(path, ["clip 0"])
        assert "clip 0" not in contents(path) and not leftovers(path)
        step += stride
    assert step > 20 or (form == "file" and name == "compact")
    assert states == ({True, False} if after != before else {True})
