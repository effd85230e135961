"""A tiny model, coloured videos with captions, and a way to run the command line in this process."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from tinymodel import make_video

COLOURS = ["red", "green", "blue", "yellow", "cyan", "magenta"]


@dataclass(frozen=True)
class Ran:
    """What one run of the command line did."""

    code: int
    out: str
    err: str

    def json(self) -> dict[str, object]:
        found = json.loads(self.out)
        assert isinstance(found, dict)
        return found


Vctool = Callable[..., Ran]


@pytest.fixture
def vctool(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Vctool:
    """`vctool("evaluate", …)`; a traceback or an internal error fails the test."""
    from vctool.cli import cli

    monkeypatch.setenv("COLUMNS", "160")

    def run(*args: object) -> Ran:
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            cli.main([str(arg) for arg in args], prog_name="vctool")
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        assert "internal error" not in said.err
        return Ran(int(left.value.code or 0), said.out, said.err)

    return run


@pytest.fixture(scope="session")
def coloured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of six one-colour videos and `captions.jsonl`: two captions each, the colour's name in both."""
    folder = tmp_path_factory.mktemp("coloured")
    rows = []
    for colour in COLOURS:
        make_video(folder / f"{colour}.mp4", [colour])
        rows.append({"video": f"{colour}.mp4", "captions": [colour, f"a {colour} video"], "split": "test"})
    (folder / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="session")
def coloured_index(tiny_model: Path, coloured: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from vctool.runtime.indexing import index_videos

    output = tmp_path_factory.mktemp("index") / "clips.npz"
    index_videos([coloured / "captions.jsonl"], output, tiny_model, workers=0)
    return output
