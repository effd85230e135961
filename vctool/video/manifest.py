"""A list of clips in a JSON Lines file: one object a line, paths relative to the file's folder."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from vctool.errors import InputError
from vctool.video.clip import VideoInput

PATH_KEYS = ("path", "video", "clip")


def read_manifest(path: Path) -> list[VideoInput]:
    """The rows of a manifest, in file order; empty lines are passed over.

    Keys: one of `path`, `video`, `clip` (needed); `id`; `start`, `end` in seconds; `captions` (a list) or `caption` (one
    text). All other keys go into `meta`. Raises InputError naming the file and the line where one cannot be used, and
    both lines where two have one id.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: is not UTF-8 text", "save the manifest as UTF-8") from None
    except OSError as problem:
        raise InputError(f"{path}: cannot be read: {problem.strerror}") from None
    rows: list[VideoInput] = []
    line_of: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        row = _Line(path, number).row(line)
        if row.id in line_of:
            raise InputError(f"{path}: line {line_of[row.id]} and line {number} have the same id '{row.id}'", 'give each its own "id"')
        line_of[row.id] = number
        rows.append(row)
    if not rows:
        raise InputError(f"no videos in {path}", 'each line of a manifest is an object such as {"path": "clip.mp4"}')
    return rows


@dataclass(frozen=True)
class _Line:
    """One line of a manifest, for errors that say where they are."""

    manifest: Path
    number: int

    def row(self, text: str) -> VideoInput:
        try:
            values = json.loads(text)
        except (json.JSONDecodeError, RecursionError) as problem:
            self._fail(f"is not JSON: {problem}")
        if not isinstance(values, dict):
            self._fail("is not a JSON object", 'write {"path": "clip.mp4"}')
        try:
            json.dumps(values, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            self._fail("holds half a character (a lone surrogate escape)")
        key = next((k for k in PATH_KEYS if k in values), None)
        if key is None:
            self._fail(f"names no file: none of the keys {', '.join(PATH_KEYS)}")
        name = values.pop(key)
        if not isinstance(name, str) or not name or "\0" in name:
            self._fail(f'"{key}" must be a file name, not {json.dumps(name)}')
        start, end = self._seconds(values, "start"), self._seconds(values, "end")
        if end is not None and end <= (start or 0.0):
            self._fail(f"ends at {end:g} s, which is not after its start at {start or 0:g} s")
        captions = (*self._texts(values, "captions"), *self._texts(values, "caption"))
        return VideoInput(self._id(values, name, start, end), self.manifest.parent / name, start, end, captions, values)

    def _id(self, values: dict[str, Any], name: str, start: float | None, end: float | None) -> str:
        given = values.pop("id", None)
        if given is None:
            # As the manifest has it, but one spelling for one file: `./a.mp4` is `a.mp4`.
            whole = Path(os.path.normpath(self.manifest.parent / name))
            folder = Path(os.path.normpath(self.manifest.parent))
            own = whole.relative_to(folder) if whole.is_relative_to(folder) else Path(os.path.normpath(name))
            if start is None and end is None:
                return own.as_posix()
            return f"{own.as_posix()}#{start or 0:.15g}-{'' if end is None else format(end, '.15g')}"
        if isinstance(given, int) and not isinstance(given, bool):
            return str(given)
        if not isinstance(given, str) or not given:
            self._fail(f'"id" must be a text, not {json.dumps(given)}')
        return given

    def _seconds(self, values: dict[str, Any], key: str) -> float | None:
        value = values.pop(key, None)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1e9:
            self._fail(f'"{key}" must be seconds, 0 or more, not {json.dumps(value)}')
        return float(value)

    def _texts(self, values: dict[str, Any], key: str) -> tuple[str, ...]:
        value = values.pop(key, None)
        if value is None:
            return ()
        if isinstance(value, str):
            return (value,)
        if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
            self._fail(f'"{key}" must be a list of texts')
        return tuple(value)

    def _fail(self, what: str, hint: str | None = None) -> NoReturn:
        raise InputError(f"{self.manifest}: line {self.number} {what}", hint)
