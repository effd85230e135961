"""A tiny model and a handful of videos, made once."""

from __future__ import annotations

from pathlib import Path

import pytest
from tinymodel import build_tiny_model, make_video


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="session")
def tiny_videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    make_video(folder / "blue.mp4", ["blue"])
    make_video(folder / "change.mp4", ["red", "blue", "green"], seconds=1.0)
    make_video(folder / "red.mp4", ["red"])
    make_video(folder / "sub" / "yellow.mp4", ["yellow"])
    return folder
