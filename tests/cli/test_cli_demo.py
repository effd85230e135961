"""`vctool demo`: the whole job on what ships with the package, behind the wall that keeps torch and onnx out."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from commandline import Vctool, expect_line
from test_import_walls import BLOCKER

from vctool.data.pinned import EFFICIENTNET_LITE0, MINILM
from vctool.demo.show import QUERIES, unpack_clips
from vctool.errors import ModelError


@pytest.fixture(scope="module")
def weights() -> None:
    for pinned in (EFFICIENTNET_LITE0, MINILM):
        try:
            pinned.locate()
        except ModelError as problem:
            pytest.skip(str(problem))


@pytest.fixture(scope="module")
def shown(weights: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The demo, run once in a process of its own: its folder and what it printed."""
    root = tmp_path_factory.mktemp("demo")
    (root / "wall").mkdir()
    (root / "wall" / "sitecustomize.py").write_text(BLOCKER)
    environment = {**os.environ, "PYTHONPATH": str(root / "wall"), "COLUMNS": "80"}
    command = [sys.executable, "-m", "vctool", "demo", "--out", str(root / "out")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    return root / "out", done


def test_the_demo_runs_without_torch_and_answers_every_question(shown: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    done = shown[1]
    assert done.returncode == 0, done.stderr
    for text, _ in QUERIES:
        assert text in done.stdout


def test_the_first_hit_of_each_question_is_the_clip_that_was_meant(shown: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    firsts = [line.split()[2] for line in shown[1].stdout.splitlines() if line.startswith("1 ")]
    assert firsts == ["dog-catches-frisbee", "rocket-falls", "sun-appears-before-cloud", "cat-chases-dog"]


def test_no_line_of_the_demo_is_wider_than_the_terminal(shown: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    assert max(map(len, shown[1].stdout.splitlines())) <= 80


def test_the_demo_runs_again_in_the_same_folder(shown: tuple[Path, subprocess.CompletedProcess[str]], vctool: Vctool) -> None:
    done = vctool("demo", "--out", shown[0])
    assert done.code == 0 and "there already" in done.err


def test_a_damaged_model_in_the_demos_folder_is_named(shown: tuple[Path, subprocess.CompletedProcess[str]], vctool: Vctool) -> None:
    path = shown[0] / "model" / "preprocess.json"
    whole = path.read_bytes()
    path.write_bytes(whole + b" ")
    try:
        done = vctool("demo", "--out", shown[0])
    finally:
        path.write_bytes(whole)
    assert done.code == 1 and "error: " in done.err and "preprocess.json" in done.err


def test_a_folder_that_cannot_be_written_is_one_line(read_only: Path, vctool: Vctool) -> None:
    expect_line(vctool("demo", "--out", read_only / "demo"), 1, "cannot be written")


def test_the_clips_are_unpacked_with_their_captions(tmp_path: Path) -> None:
    assert unpack_clips(tmp_path) == len(list(tmp_path.glob("*.mp4"))) > 50
    assert (tmp_path / "captions.jsonl").is_file()
