"""The demo world needs the colour emoji font; what only reads the bundled clips does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from vctool.demo.sprites import find_font
from vctool.errors import InputError


@pytest.fixture(scope="session")
def font() -> Path:
    """The font's file, where a machine has it."""
    try:
        return find_font()
    except InputError as problem:
        pytest.skip(str(problem))
