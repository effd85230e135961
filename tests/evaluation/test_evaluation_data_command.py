"""`vctool data`: what is known of benchmarks, and what of one is here."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Vctool = Callable[..., Any]


@pytest.fixture
def benchmark(coloured: Path, tmp_path: Path) -> Path:
    """MSR-VTT 1k-A test of four clips, of which one is missing and one broken."""
    rows = "".join(f"r{i},m{i},{name},a {name} video\n" for i, name in enumerate(("red", "green", "broken", "gone")))
    (tmp_path / "MSRVTT_JSFUSION_test.csv").write_text("key,vid_key,video_id,sentence\n" + rows)
    (tmp_path / "videos").mkdir()
    for name in ("red", "green"):
        shutil.copy(coloured / f"{name}.mp4", tmp_path / "videos")
    (tmp_path / "videos" / "broken.mp4").write_bytes(b"no video at all")
    return tmp_path


def test_check_counts_present_missing_and_broken(vctool: Vctool, benchmark: Path) -> None:
    ran = vctool("data", "check", "msrvtt-1ka", "--annotations", benchmark, "--videos", benchmark / "videos", "--json")
    assert ran.code == 0
    train, test = ran.json()["splits"]
    assert "MSRVTT_train.9k.csv" in train["problem"]
    assert (test["clips"], test["present"], test["missing"]) == (4, 2, ["gone"])
    assert test["broken"][0]["id"] == "broken"
    assert test["published"] is False
    assert len(test["examples"]) == 4


def test_check_strict_exits_4(vctool: Vctool, benchmark: Path) -> None:
    asked = ["data", "check", "msrvtt-1ka", "--annotations", benchmark, "--videos", benchmark / "videos", "--split", "test"]
    assert vctool(*asked).code == 0
    assert vctool(*asked, "--strict").code == 4


def test_check_prints_what_a_person_needs(vctool: Vctool, benchmark: Path) -> None:
    out = vctool("data", "check", "msrvtt-1ka", "--annotations", benchmark, "--videos", benchmark / "videos", "--split", "test").out
    for needed in ("4 clips, 4 queries, 0 repeated captions", "2 present, 1 missing, 1 broken", "missing: gone", "a red video"):
        assert needed in out


def test_check_of_a_manifest_uses_its_own_paths(vctool: Vctool, coloured: Path) -> None:
    found = vctool("data", "check", coloured / "captions.jsonl", "--json").json()["splits"]
    assert found[0]["present"] == 6


def test_check_without_any_readable_split_fails(vctool: Vctool, tmp_path: Path) -> None:
    ran = vctool("data", "check", "msvd", "--annotations", tmp_path)
    assert ran.code == 1
    assert "no split could be read" in ran.err


def test_check_of_an_unknown_name_suggests_the_nearest(vctool: Vctool) -> None:
    ran = vctool("data", "check", "msvdd", "--annotations", ".")
    assert ran.code == 2
    assert "did you mean 'msvd'?" in ran.err


def test_list_names_every_benchmark_with_sizes(vctool: Vctool) -> None:
    listed = vctool("data", "list", "--json").json()["splits"]
    assert {"name": "msvd", "title": "MSVD", "split": "test", "clips": 670, "queries": 27763, "ids_sha256": None} in listed
    assert "vatex-official" in vctool("data", "list").out
