"""`vctool fetch` and `vctool export`: model directories made whole, or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commandline import Vctool, expect_line

from vctool.data.pinned import EFFICIENTNET_LITE0, MINILM
from vctool.errors import ModelError


def test_the_list_names_what_needs_no_file(vctool: Vctool) -> None:
    done = vctool("fetch", "--list", "--json")
    sources = {m["name"]: m["from"] for m in json.loads(done.out)["models"]}
    assert done.code == 0 and sources["offline"] == sources["demo"] == "bundled"


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


def test_an_architecture_without_its_weights_says_how_to_give_them(vctool: Vctool, tmp_path: Path) -> None:
    done = vctool("fetch", "ViT-B-32", tmp_path / "model")
    expect_line(done, 2, "needs its weights as a local file")
    assert "--checkpoint FILE" in done.err


def test_a_checkpoint_for_a_bundled_model_is_refused(vctool: Vctool, tmp_path: Path) -> None:
    expect_line(vctool("fetch", "offline", tmp_path / "model", "--checkpoint", tmp_path / "x.pt"), 2, "has its own weights")


@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-Z-99"])
def test_a_missing_checkpoint_or_an_unknown_architecture_leaves_nothing(name: str, vctool: Vctool, tmp_path: Path) -> None:
    pytest.importorskip("open_clip")
    done = vctool("fetch", name, tmp_path / "model", "--checkpoint", tmp_path / "none.pt")
    expect_line(done, 1, "none.pt: no such checkpoint file" if name == "ViT-B-32" else "has no architecture 'ViT-Z-99'")
    assert list(tmp_path.iterdir()) == []


def test_exporting_what_is_no_model_directory_is_one_line(vctool: Vctool, tmp_path: Path) -> None:
    expect_line(vctool("export", tmp_path / "none"), 1, "no such model directory")
    pytest.importorskip("torch")
    (tmp_path / "empty").mkdir()
    expect_line(vctool("export", tmp_path / "empty"), 1, "config.json is missing")
