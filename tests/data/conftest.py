"""Real excerpts of annotation files, where a machine has them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="session")
def annotations() -> Path:
    folder = Path(os.environ.get("VCTOOL_ANNOTATIONS", ROOT.parent / "shared" / "data" / "annotations"))
    if not folder.is_dir():
        pytest.skip("the annotation excerpts are not on this machine (set VCTOOL_ANNOTATIONS to their folder)")
    return folder
