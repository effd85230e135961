"""The journal: what was finished survives, what was half written does not count."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vctool.errors import StoreError
from vctool.runtime.journal import FinishedClip, Journal


def clip(seed: int) -> FinishedClip:
    rng = np.random.default_rng(seed)
    values = [rng.normal(size=s).astype(np.float32) for s in ((3, 4), (3,), (5, 4), (5,))]
    values[3][3:] = np.nan
    return FinishedClip(*values, meta={"duration": seed, "name": "é"})  # type: ignore[misc, arg-type]


def same(a: FinishedClip, b: FinishedClip) -> bool:
    names = ("frame_FD", "frame_time_F", "video_VD", "video_time_V")
    return a.meta == b.meta and all(np.array_equal(getattr(a, n), getattr(b, n), equal_nan=True) for n in names)


def filled(output: Path, count: int, half: bool = False) -> Path:
    journal = Journal(output, half=half)
    for i in range(count):
        journal.append(f"key {i}", clip(i))
    journal.close()
    return output.with_name(f"{output.name}.partial") / "clips.journal"


def test_finished_clips_come_back_in_the_next_run(tmp_path: Path) -> None:
    filled(tmp_path / "c.npz", 3)
    journal = Journal(tmp_path / "c.npz", half=False)
    assert len(journal) == 3 and "key 1" in journal and "key 3" not in journal
    assert all(same(journal.read(f"key {i}"), clip(i)) for i in (2, 0, 1))
    journal.append("key 3", clip(3))
    assert same(journal.read("key 3"), clip(3)) and same(journal.read("key 0"), clip(0))
    journal.close()


def test_half_precision_rounds_once(tmp_path: Path) -> None:
    filled(tmp_path / "c.npz", 1, half=True)
    journal = Journal(tmp_path / "c.npz", half=True)
    back = journal.read("key 0").frame_FD
    assert back.dtype == np.float32
    assert np.array_equal(back.astype(np.float16), clip(0).frame_FD.astype(np.float16))
    assert np.array_equal(journal.read("key 0").frame_time_F, clip(0).frame_time_F)
    journal.close()


def test_a_cut_anywhere_costs_only_the_clip_it_cut(tmp_path: Path) -> None:
    path = filled(tmp_path / "c.npz", 3)
    whole = path.read_bytes()
    size = len(whole) // 3
    for cut in [*range(0, len(whole), 37), len(whole) - 1]:
        path.write_bytes(whole[:cut])
        journal = Journal(tmp_path / "c.npz", half=False)
        assert len(journal) == min(cut // size, 3)
        for i in range(len(journal)):
            assert same(journal.read(f"key {i}"), clip(i))
        journal.append("again", clip(9))
        journal.close()
        journal = Journal(tmp_path / "c.npz", half=False)
        assert same(journal.read("again"), clip(9)) and len(journal) == min(cut // size, 3) + 1
        journal.close()


@pytest.mark.parametrize("tail", [b"\0" * 500, b"VCJ1" + b"\xff" * 40, b"x"])
def test_rubbish_after_the_last_clip_is_cut_off(tmp_path: Path, tail: bytes) -> None:
    path = filled(tmp_path / "c.npz", 2)
    path.write_bytes(path.read_bytes() + tail)
    journal = Journal(tmp_path / "c.npz", half=False)
    assert len(journal) == 2
    journal.close()


def test_a_changed_byte_ends_the_journal_there(tmp_path: Path) -> None:
    path = filled(tmp_path / "c.npz", 3)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    journal = Journal(tmp_path / "c.npz", half=False)
    assert len(journal) == 1
    journal.close()


def test_an_empty_journal_leaves_nothing(tmp_path: Path) -> None:
    Journal(tmp_path / "c.npz", half=False).close()
    assert list(tmp_path.iterdir()) == []


def test_two_runs_at_once_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("fcntl", reason="no file locks on this system")
    journal = Journal(tmp_path / "c.npz", half=False)
    with pytest.raises(StoreError, match="another `vctool index` is writing"):
        Journal(tmp_path / "c.npz", half=False)
    journal.append("key", clip(0))
    journal.close()
    Journal(tmp_path / "c.npz", half=False).close()


def test_a_missing_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="does not exist"):
        Journal(tmp_path / "no" / "c.npz", half=False)


def test_a_full_disk_keeps_what_was_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path / "c.npz", half=False)
    journal.append("key 0", clip(0))
    real = journal._file

    class Full:
        def write(self, data: Any) -> int:
            if len(data) > 20:
                return real.write(data[:20])
            raise OSError(errno.ENOSPC, "No space left on device")

        def __getattr__(self, name: str) -> Any:
            return getattr(real, name)

    monkeypatch.setattr(journal, "_file", Full())
    with pytest.raises(StoreError, match="the disk is full") as caught:
        journal.append("key 1", clip(1))
    assert caught.value.hint is not None and "1 finished clips are kept" in caught.value.hint
    monkeypatch.undo()
    journal.append("key 2", clip(2))
    journal.close()
    journal = Journal(tmp_path / "c.npz", half=False)
    assert "key 0" in journal and "key 1" not in journal and same(journal.read("key 2"), clip(2))
    journal.close()
