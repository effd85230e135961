"""What a number was made with: versions, hardware and the command. Part of every saved result."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import shlex
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vctool import __version__
from vctool.errors import InputError

# Packages whose version can move a score.
NUMERIC_PACKAGES = ("numpy", "onnxruntime", "onnxruntime-gpu", "tokenizers", "pillow", "av", "torch")


def environment(seed: int) -> dict[str, Any]:
    """Versions, hardware, seed, time (UTC) and the command line, ready for JSON."""
    versions = {"vctool": __version__, "python": platform.python_version()}
    for package in NUMERIC_PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command_line(),
        "seed": seed,
        "versions": versions,
        "hardware": {"system": platform.platform(), "processor": _processor(), "cores": os.cpu_count()},
    }


def command_line() -> str:
    """What was typed, as far as a process can know; `python -m vctool` gives its file instead of a name."""
    program = Path(sys.argv[0]).name
    return shlex.join([*(("python", "-m", "vctool") if program == "__main__.py" else (program,)), *sys.argv[1:]])


def file_hashes(paths: Iterable[Path]) -> dict[str, str]:
    """{file name: SHA-256} of the files a result was read from."""
    return {path.name: file_sha256(path) for path in paths}


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, read in pieces. Raises InputError if it cannot be read."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as stream:
            while piece := stream.read(1 << 20):
                digest.update(piece)
    except OSError as problem:
        raise InputError(f"{path} cannot be read: {problem.strerror or problem}") from None
    return digest.hexdigest()


def _processor() -> str:
    """The processor's name; Linux keeps it in /proc, `platform` knows only its architecture there."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
