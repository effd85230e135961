"""Reading other people's text files: strict UTF-8, duplicate keys seen, one clear line when something is off."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from vctool.errors import InputError


def read_text(path: Path, encoding: str = "utf-8") -> str:
    """The file as text without a byte order mark. Raises InputError naming the first byte that does not fit the encoding."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except OSError as problem:
        raise InputError(f"{path} cannot be read: {problem.strerror or problem}") from None
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")) and encoding.lower().replace("-", "") == "utf8":
        raise InputError(f"{path} is UTF-16, not UTF-8", f"convert it: iconv -f UTF-16 -t UTF-8 '{path.name}'")
    try:
        return raw.decode("utf-8-sig" if encoding.lower().replace("-", "") == "utf8" else encoding)
    except UnicodeDecodeError as problem:
        line = raw.count(b"\n", 0, problem.start) + 1
        raise InputError(
            f"{path}, line {line}: byte 0x{raw[problem.start]:02x} is not {encoding}",
            "convert the file to UTF-8, or name its encoding with --encoding (often latin-1 or cp1252)",
        ) from None
    except LookupError:
        raise InputError(f"unknown encoding '{encoding}'", "for example utf-8, latin-1 or cp1252") from None


def read_lines(path: Path, encoding: str = "utf-8") -> list[str]:
    """Non-blank lines, stripped. Line ends of any system, and no newline needed after the last line."""
    return [line.strip() for line in read_text(path, encoding).splitlines() if line.strip()]


def read_ids(path: Path, encoding: str = "utf-8", *, header: str | None = None) -> list[str]:
    """A list of ids, one a line; `header` is skipped if it is the first line. Raises InputError if empty or on a duplicate."""
    lines = read_lines(path, encoding)
    if lines and header is not None and lines[0] == header:
        lines = lines[1:]
    if not lines:
        raise InputError(f"{path} lists no ids: the split is empty")
    refuse_duplicates(lines, str(path))
    return lines


def refuse_duplicates(ids: Iterable[str], where: str) -> None:
    """Raise InputError naming the first id that comes twice."""
    seen: set[str] = set()
    for one in ids:
        if one in seen:
            raise InputError(f"{where}: duplicate id '{one}'", "each id must stand there once")
        seen.add(one)


def read_json(path: Path, encoding: str = "utf-8") -> Any:
    """A JSON document; InputError on bad JSON, or on a key that an object holds twice (the first would vanish silently)."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        built = dict(pairs)
        if len(built) != len(pairs):
            refuse_duplicates((key for key, _ in pairs), str(path))
        return built

    text = read_text(path, encoding)
    try:
        return json.loads(text, object_pairs_hook=once)
    except json.JSONDecodeError as problem:
        raise InputError(f"{path}, line {problem.lineno}: not valid JSON ({problem.msg})") from None


def read_jsonl(path: Path, encoding: str = "utf-8") -> list[tuple[int, dict[str, Any]]]:
    """(line number, object) per non-blank line of a JSON lines file."""
    rows: list[tuple[int, dict[str, Any]]] = []
    for number, line in enumerate(read_text(path, encoding).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as problem:
            raise InputError(f"{path}, line {number}: not valid JSON ({problem.msg})", "a manifest has one JSON object per line") from None
        if not isinstance(row, dict):
            raise InputError(f"{path}, line {number}: expected a JSON object, got {type(row).__name__}")
        rows.append((number, row))
    return rows


def read_csv(path: Path, columns: Sequence[str], encoding: str = "utf-8") -> list[dict[str, str]]:
    """A comma-separated file with a header; quoted fields may hold commas, quotes and line ends.

    columns: those that must be in the header (others are kept). Raises InputError on a missing column, or naming the
    line of a row that is longer or shorter than the header (an unquoted comma in a sentence).
    """
    reader = csv.reader(io.StringIO(read_text(path, encoding), newline=""), strict=True)
    try:
        header = next(reader, None)
        if header is None:
            raise InputError(f"{path} is empty")
        header = [name.strip() for name in header]
        missing = [name for name in columns if name not in header]
        if missing:
            raise InputError(f"{path}: the header has no column '{missing[0]}'", f"its columns are: {', '.join(header)}")
        rows: list[dict[str, str]] = []
        for row in reader:
            if not any(field.strip() for field in row):
                continue
            if len(row) != len(header):
                raise InputError(
                    f"{path}, line {reader.line_num}: {len(row)} columns instead of {len(header)}",
                    'a sentence with a comma must stand in "quotes", with quotes inside it doubled',
                )
            rows.append(dict(zip(header, row, strict=True)))
    except csv.Error as problem:
        raise InputError(f"{path}, line {reader.line_num}: not valid CSV ({problem})") from None
    return rows


def find_file(folder: Path, names: Sequence[str], what: str) -> Path:
    """The annotation file of one of the published `names`, anywhere below `folder`; earlier names win.

    A longer middle is accepted (`MSRVTT_data.excerpt.json` for `MSRVTT_data.json`) if no exact name is there.
    Raises InputError if none is found, or if one name is there twice.
    """
    found = find_optional(folder, names)
    if found is None:
        raise InputError(f"{folder}: no {what} found", f"expected one of: {', '.join(names)}")
    return found


def find_optional(folder: Path, names: Sequence[str]) -> Path | None:
    """`find_file` that gives None where nothing is found."""
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder", "give the folder that holds the annotation files")
    patterns: list[Callable[[str], str]] = [lambda name: name, lambda name: f"{Path(name).stem}.*{Path(name).suffix}"]
    for pattern in patterns:
        for name in names:
            matches = sorted(path for path in folder.rglob(pattern(name)) if path.is_file())
            direct = [path for path in matches if path.parent == folder]
            chosen = direct or matches
            if len(chosen) > 1:
                raise InputError(f"{folder}: {len(chosen)} files answer to {name}: {chosen[0].name}, {chosen[1].name}", "keep one of them")
            if chosen:
                return chosen[0]
    return None
