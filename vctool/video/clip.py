"""One clip as its user named it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class VideoInput:
    """One clip to be read: a file, or the piece `[start, end)` of one in seconds from its first picture.

    id: what the user will know it by, unique in a list. path: the file, which may turn out not to exist.
    captions, meta: from a manifest.
    """

    id: str
    path: Path
    start: float | None = None
    end: float | None = None
    captions: tuple[str, ...] = ()
    meta: dict[str, Any] = field(default_factory=dict)
