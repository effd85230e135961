"""`vctool fetch` and `vctool export`: model directories made whole, or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commandline import Vctool, expect_line

from vctool.data.pinned import EFFICIENTNET_LITE0, MINILM
from vctool.errors import ModelError


def test_the_list_tells_size_licence_and_figures_with_their_sources(vctool: Vctool) -> None:
    done = vctool("fetch", "--list", "--json")
    rows = {m["name"]: m for m in json.loads(done.out)["models"]}
    assert done.code == 0 and rows["offline"]["from"] == rows["demo"]["from"] == "bundled"
    pe, phone = rows["pe-core-b16"], rows["mobileclip2-s0"]
    assert pe["from"] == "https://huggingface.co/timm/PE-Core-B-16" and pe["commercial"] is True and pe["megabytes"] == 1791
    assert pe["zero_shot"]["msrvtt"] == {"recall_at_1": 47.6, "source": "facebookresearch/perception_models README"}
    assert phone["commercial"] is False and phone["dim"] == 512 and phone["context"] == 77
    shown = vctool("fetch", "--list")
    assert shown.code == 0 and "NON-COMMERCIAL" in shown.out and "published by others" in shown.err


def test_the_offline_model_is_assembled_and_described(vctool: Vctool, tmp_path: Path) -> None:
    for pinned in (EFFICIENTNET_LITE0, MINILM):
        try:
            pinned.locate()
        except ModelError as problem:
            pytest.skip(str(problem))
    done = vctool("fetch", "offline", tmp_path / "model")
    assert done.code == 0 and "is ready" in done.err
    assert "conse-offline" in vctool("info", tmp_path / "model").out
    expect_line(vctool("fetch", "offline", tmp_path / "model"), 1, "exists already")


def test_without_a_name_and_a_folder_it_is_a_usage_error(vctool: Vctool) -> None:
    expect_line(vctool("fetch", "offline"), 2, "needs a NAME and a DIR")


def test_an_architecture_without_its_weights_says_how_to_get_them(vctool: Vctool, tmp_path: Path) -> None:
    done = vctool("fetch", "ViT-B-32", tmp_path / "model")
    expect_line(done, 2, "ViT-B-32 is an architecture: which weights?")
    assert "clip-b32-datacomp" in done.err and "--checkpoint FILE" in done.err
    expect_line(vctool("fetch", "siglip-b61", tmp_path / "model"), 2, "there is no model 'siglip-b61'")


def test_a_checkpoint_for_a_bundled_model_is_refused(vctool: Vctool, tmp_path: Path) -> None:
    expect_line(vctool("fetch", "offline", tmp_path / "model", "--checkpoint", tmp_path / "x.pt"), 2, "has its own weights")


def test_a_missing_checkpoint_or_an_unknown_architecture_leaves_nothing(vctool: Vctool, tmp_path: Path) -> None:
    pytest.importorskip("open_clip")
    expect_line(
        vctool("fetch", "ViT-B-32", tmp_path / "model", "--checkpoint", tmp_path / "none.pt"), 1, "none.pt: no such checkpoint file"
    )
    (tmp_path / "w.pt").write_bytes(b"weights")
    done = vctool("fetch", "ViT-Z-99", tmp_path / "model", "--checkpoint", tmp_path / "w.pt")
    assert done.code == 1 and "error: open_clip has no architecture 'ViT-Z-99'" in done.err
    assert [p.name for p in tmp_path.iterdir()] == ["w.pt"]


def test_exporting_what_is_no_model_directory_is_one_line(vctool: Vctool, tmp_path: Path) -> None:
    expect_line(vctool("export", tmp_path / "none"), 1, "no such model directory")
    pytest.importorskip("torch")
    (tmp_path / "empty").mkdir()
    expect_line(vctool("export", tmp_path / "empty"), 1, "config.json is missing")
