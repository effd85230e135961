"""Clip paths as a store keeps them: relative to its own folder, so that folder and videos can move together."""

from __future__ import annotations

import os
from pathlib import Path, PurePath


def relative_path(path: str | PurePath, folder: Path, known: dict[str, str] | None = None) -> str:
    """`path` (relative to the working folder, or absolute) as a posix path relative to `folder`, which must be real (no links).

    '' and addresses (`https://…`) stay as they are; so does, made absolute, a path on another Windows drive.
    known: folders resolved before, for a caller with many paths.
    """
    text = os.fspath(path)
    if not text or "://" in text:
        return text
    absolute = os.path.abspath(text)  # noqa: PTH100  (`resolve` would follow the file's own link)
    # Links above the file are resolved, or `..` would climb out of the wrong folder; the file's own name is the user's.
    parent, name = os.path.split(absolute)
    real = None if known is None else known.get(parent)
    if real is None:
        real = os.path.realpath(parent)
        if known is not None:
            known[parent] = real
    absolute = os.path.join(real, name)  # noqa: PTH118
    try:
        return Path(os.path.relpath(absolute, folder)).as_posix()
    except ValueError:
        return Path(absolute).as_posix()


def absolute_path(stored: str, folder: Path) -> Path | None:
    """The file that a stored path names; None for '' and for addresses."""
    if not stored or "://" in stored:
        return None
    return Path(os.path.normpath(folder / stored))
