"""A tiny model, a handful of videos, an index of them, and a way to run the command line in this process."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from commandline import Vctool, run


@pytest.fixture
def vctool(monkeypatch: pytest.MonkeyPatch) -> Vctool:
    """`vctool("query", "red", …)`; a traceback anywhere fails the test."""
    for name in [n for n in os.environ if n.startswith("VCTOOL_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("COLUMNS", "120")

    return run


@pytest.fixture(scope="session")
def tiny_index(tiny_model: Path, tiny_videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from vctool.runtime.indexing import index_videos

    output = tmp_path_factory.mktemp("index") / "clips.npz"
    index_videos([tiny_videos], output, tiny_model, workers=0)
    return output


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 256 kB, where this machine lets a test mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.name != "posix" or os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(folder)], capture_output=True)
    if done.returncode:
        pytest.skip("this machine does not let root mount a tmpfs")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A folder that cannot be written to, also by root."""
    folder = tmp_path / "read only"
    folder.mkdir()
    if os.name == "posix" and os.geteuid() != 0:
        folder.chmod(0o555)
        yield folder
        folder.chmod(0o755)
        return
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "ro,size=64k", "none", str(folder)], capture_output=True)
    if done.returncode:
        pytest.skip("this machine does not let root mount a read-only folder")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)
