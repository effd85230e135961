"""What this machine has: cores, a GPU, matrix units for bfloat16. Looks at files only, so that asking costs nothing."""

from __future__ import annotations

import os
import platform
from functools import cache
from pathlib import Path

_DEVICE_FILES = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg", "/proc/driver/nvidia/version")
# As Linux spells them. ARM cores say `bf16`.
_BF16_FLAGS = ("amx_bf16", "avx512_bf16", "bf16")


def available_cores() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def has_nvidia_device() -> bool:
    """Whether this machine shows an NVIDIA GPU."""
    return any(Path(p).exists() for p in _DEVICE_FILES) or os.name == "nt"


@cache
def bfloat16_unit() -> str | None:
    """The name of the CPU's unit for bfloat16 products, the fastest first, or None where it has none or does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return "bf16" if platform.system() == "Darwin" and platform.machine() == "arm64" else None
    flags = next((set(line.partition(":")[2].split()) for line in lines if line.startswith(("flags", "Features"))), set())
    return next((flag for flag in _BF16_FLAGS if flag in flags), None)
