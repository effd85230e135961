"""Fixtures shared by all tests."""

from __future__ import annotations

import os
import signal
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
