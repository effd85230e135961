"""Compiles the scoring kernel: when vctool is installed (`hatch_build.py`), or by hand with `python -m vctool.scoring.build`.

Imports only the standard library: at install time neither vctool nor NumPy is there. Where there is no compiler nothing
breaks: scores then come from NumPy, slower, and `vctool doctor` says so.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

SOURCES = tuple(Path(__file__).with_name(name) for name in ("kernel.c", "gradient.c"))
LIBRARY = Path(__file__).with_name("_kernel.so")

_COMPILERS = ("cc", "gcc", "clang")
# Contraction off: where sums are fused, the source says so, and every compiler gives the same bits.
_FLAGS = ("-std=gnu11", "-O3", "-fPIC", "-shared", "-fvisibility=hidden", "-ffp-contract=off")
_SECONDS = 120


def compile_kernel(target: Path = LIBRARY, extra: Sequence[str] = ()) -> str | None:
    """Compile the kernel to `target`. Returns None when done, else the reason in one line; `target` is then untouched.

    The compiler is the one that `CC` names, else the first of cc, gcc and clang. extra: more compiler flags.
    """
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return f"the kernel is written for x86-64, this is {platform.machine()}"
    if sys.platform == "win32":
        return "the kernel is not built on Windows"
    compiler = _compiler()
    if compiler is None:
        return "no C compiler was found (looked for $CC, cc, gcc and clang)"
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        made = Path(folder) / target.name
        reason = ""
        # A compiler from before 2020 does not know AMX, and some do not make versions of a function.
        for without in ((), ("-DWITHOUT_AMX",), ("-DWITHOUT_AMX", "-DWITHOUT_VERSIONS")):
            reason = _run([*compiler, *_FLAGS, *extra, *without, *map(str, SOURCES), "-o", str(made)])
            if not reason:
                made.replace(target)
                return None
    return f"{shlex.join(compiler)} does not compile it: {reason}"


def _compiler() -> list[str] | None:
    named = shlex.split(os.environ.get("CC", ""))
    if named:
        return named if shutil.which(named[0]) else None
    return next(([name] for name in _COMPILERS if shutil.which(name)), None)


def _run(command: Sequence[str]) -> str:
    """The first line that says why the command failed; empty if it worked."""
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except (OSError, subprocess.SubprocessError) as problem:
        return str(problem)
    if result.returncode == 0:
        return ""
    lines = [line for line in result.stderr.splitlines() if "error" in line] or result.stderr.splitlines()
    return lines[0] if lines else f"it ended with exit code {result.returncode}"


def _main() -> int:
    problem = compile_kernel()
    print(f"the scoring kernel was not compiled: {problem}" if problem else f"compiled {LIBRARY}", file=sys.stderr)
    return 1 if problem else 0


if __name__ == "__main__":
    sys.exit(_main())
