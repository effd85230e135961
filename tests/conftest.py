"""Fixtures shared by all tests."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# A shell starts background jobs with Ctrl-C ignored, and so would be every process that a test starts and interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def realclips() -> Path:
    """The folder of real captioned clips, where a machine has it."""
    folder = Path(os.environ.get("VCTOOL_REALCLIPS", ROOT.parent / "shared" / "data" / "realclips"))
    if not (folder / "captions.jsonl").is_file():
        pytest.skip("the real clips are not on this machine (set VCTOOL_REALCLIPS to their folder)")
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A model directory that tells colours apart."""
    from tinymodel import build_tiny_model

    yield from _lent(build_tiny_model(tmp_path_factory.mktemp("model") / "tiny"))


@pytest.fixture(scope="session")
def tiny_videos(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Four videos of plain colours, one of them in a folder below."""
    from tinymodel import make_video

    folder = tmp_path_factory.mktemp("videos")
    make_video(folder / "blue.mp4", ["blue"])
    make_video(folder / "change.mp4", ["red", "blue", "green"], seconds=1.0)
    make_video(folder / "red.mp4", ["red"])
    make_video(folder / "sub" / "yellow.mp4", ["yellow"])
    yield from _lent(folder)


def _lent(folder: Path) -> Iterator[Path]:
    before = _content(folder)
    yield folder
    assert _content(folder) == before, f"a test changed {folder}, which all share: give it a copy"


def _content(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}
