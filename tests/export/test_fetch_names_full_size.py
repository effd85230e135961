"""Every architecture that can be fetched, in full size with random weights: features and graphs are open_clip's (`-m slow`)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("open_clip")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

BENCH = Path(__file__).resolve().parents[1] / "bench"
sys.path.insert(0, str(BENCH))

from bench_towers import SMALLEST_FIRST  # noqa: E402

from vctool.zoo.table import MODELS  # noqa: E402


def test_the_full_size_test_has_every_architecture_of_the_table() -> None:
    assert set(SMALLEST_FIRST) == {model.architecture for model in MODELS}


@pytest.mark.slow
@pytest.mark.parametrize("architecture", SMALLEST_FIRST)
def test_pooled_token_and_frame_features_and_both_graphs_are_open_clips(architecture: str) -> None:
    """In a process of its own, for its memory. Differences are parts of the largest value."""
    command = [sys.executable, str(BENCH / "bench_towers.py"), architecture, "--inside", "--seconds", "0.1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=3600)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    for name in ("pooled_error", "token_error", "frame_error"):
        assert found[name] < 1e-5, found
    for name in ("frame_graph_error", "text_graph_error"):
        assert found[name] < 1e-4, found
    print(f"{architecture}: {found['seconds']} s, {found['peak_mb']} MB")
