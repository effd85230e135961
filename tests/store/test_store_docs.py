"""What docs/format.md shows is what happens."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from store_fixtures import make_clip, write_store

from vctool.store import open_store
from vctool.store.format import PRECISION_MEMBERS, REQUIRED_MEMBERS

FORMAT = Path(__file__).parents[2] / "docs" / "format.md"


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_the_example_reads_a_store_with_numpy_alone(tmp_path, monkeypatch, dtype):
    monkeypatch.chdir(tmp_path)
    write_store(tmp_path / "clips.npz", [make_clip("a\0b"), make_clip("b", 1)], dtype)
    example = re.search(r"```python\n(.*?)```", FORMAT.read_text(encoding="utf-8"), re.DOTALL)
    assert example
    names: dict[str, object] = {}
    exec(example[1], names)
    clip = open_store(tmp_path / "clips.npz").clip(0)
    assert np.array_equal(names["frames"], clip.frame_FD) and np.array_equal(names["seconds"], clip.frame_time_F)
    assert names["ids"] == ["a\0b", "b"] and names["meta"] == [{"duration": 0}, {"duration": 1}]


def test_every_member_is_described():
    text = FORMAT.read_text(encoding="utf-8")
    assert [name for name in (*REQUIRED_MEMBERS, *PRECISION_MEMBERS) if f"`{name}`" not in text] == []
