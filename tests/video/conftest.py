"""Videos that several tests look at, made once."""

from __future__ import annotations

from pathlib import Path

import pytest
from makevideo import write_video


@pytest.fixture(scope="session")
def sixty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 numbered frames, H.264 with B-frames in an mp4 whose index comes first, a keyframe every 12."""
    path = tmp_path_factory.mktemp("videos") / "sixty.mp4"
    # Without its macroblock tree, which reads memory nobody wrote, and on one thread libx264 makes the same file every time:
    # what a hole in the middle of it costs must not depend on luck.
    options = {"g": "12", "x264-params": "mbtree=0:threads=1:lookahead-threads=1"}
    return write_video(path, 60, options=options, container_options={"movflags": "faststart"})


@pytest.fixture(scope="session")
def one_group(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """90 numbered frames with one keyframe, the first."""
    return write_video(tmp_path_factory.mktemp("videos") / "one_group.mp4", 90, options={"g": "250", "sc_threshold": "0"})


@pytest.fixture(scope="session", params=["mp4", "mkv"])
def long_video(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2,400 numbered frames (80 s), a keyframe every 50: long enough for the reader to leave things out and to seek."""
    path = tmp_path_factory.mktemp("videos") / f"long.{request.param}"
    return write_video(path, 2400, options={"g": "50", "preset": "ultrafast", "bf": "2"})
