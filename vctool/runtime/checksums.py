"""`checksums.json`: the sha256 and size of every file of a model directory, so that a damaged one is named, not obeyed."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from vctool.errors import ModelError

CHECKSUMS_FILE = "checksums.json"
MEND = "fetch or export the model directory again"
_SCHEMA = 1
_BLOCK = 1 << 20


@dataclass(frozen=True)
class FileRecord:
    """What `checksums.json` says about one file: sha256 in hex, size in bytes."""

    sha256: str
    bytes: int


def sha256_of(path: Path) -> str:
    """sha256 of a file's contents, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def write_checksums(model_dir: str | Path) -> dict[str, FileRecord]:
    """Record every file of `model_dir` but `checksums.json` itself, hidden files, and engines, which are a cache with records of
    their own; the record is written last and moved into place.

    Call it after the last change to the directory. Returns what was written, by posix path relative to `model_dir`.
    """
    folder = Path(model_dir)
    records: dict[str, FileRecord] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if name.parts[0] == "tensorrt" or any(part.startswith(".") for part in name.parts):
            continue
        if path.is_file() and name.as_posix() != CHECKSUMS_FILE:
            records[name.as_posix()] = FileRecord(sha256_of(path), path.stat().st_size)
    _write(folder, records)
    return records


def update_checksums(model_dir: str | Path, names: Iterable[str]) -> None:
    """Record these files anew (or forget them, if they are gone), and leave what is said of every other file as it is.

    For a file that is added beside the model: `write_checksums` would bless whatever else was altered meanwhile. Raises
    ModelError if there is no record to change.
    """
    folder = Path(model_dir)
    records = read_checksums(folder)
    for name in names:
        if (folder / name).is_file():
            records[name] = FileRecord(sha256_of(folder / name), (folder / name).stat().st_size)
        else:
            records.pop(name, None)
    _write(folder, dict(sorted(records.items())))


def _write(folder: Path, records: Mapping[str, FileRecord]) -> None:
    files = {name: {"sha256": r.sha256, "bytes": r.bytes} for name, r in records.items()}
    temporary = folder / f".{CHECKSUMS_FILE}.tmp"
    with temporary.open("w", encoding="utf-8") as file:
        file.write(json.dumps({"schema": _SCHEMA, "files": files}, indent=1, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(folder / CHECKSUMS_FILE)


def read_checksums(model_dir: Path) -> dict[str, FileRecord]:
    """Raises ModelError if the record is missing or malformed."""
    path = model_dir / CHECKSUMS_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["schema"] > _SCHEMA:
            raise ModelError(f"{path}: written by a newer version of vctool (schema {content['schema']})", "upgrade vctool")
        return {str(name): FileRecord(str(r["sha256"]), int(r["bytes"])) for name, r in content["files"].items()}
    except FileNotFoundError:
        raise ModelError(f"{path} is missing", f"the model directory is incomplete: {MEND}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as problem:
        raise ModelError(f"{path} cannot be read: {problem}", f"the model directory is damaged: {MEND}") from None


def verify_file(model_dir: Path, name: str, record: FileRecord) -> None:
    """Raises ModelError, one line naming the file and the mend, if it is missing, cut short or altered."""
    path = model_dir / name
    try:
        size = path.stat().st_size
        if size != record.bytes:
            raise ModelError(f"{path} is damaged: {size:,} bytes instead of {record.bytes:,}", MEND)
        if sha256_of(path) != record.sha256:
            raise ModelError(f"{path} was altered: its sha256 is not the one in {CHECKSUMS_FILE}", MEND)
    except FileNotFoundError:
        raise ModelError(f"{path} is missing", f"the model directory is incomplete: {MEND}") from None
    except OSError as problem:
        raise ModelError(f"{path} cannot be read: {problem.strerror or problem}", "check its permissions") from None
