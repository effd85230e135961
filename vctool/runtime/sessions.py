"""ONNX Runtime sessions: the right build, the device that was asked for, one clear line when either is not there."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vctool.errors import MissingExtraError, ModelError, VctoolError, install_line
from vctool.runtime.graph_precision import has_float16

Device = Literal["auto", "cpu", "cuda"]
DEVICES: tuple[Device, ...] = ("auto", "cpu", "cuda")

# All of these unpack into the one folder `onnxruntime/`.
RUNTIME_BUILDS = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino", "onnxruntime-rocm")
_CUDA, _CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


def installed_builds() -> dict[str, str]:
    """Versions of the ONNX Runtime distributions that are installed, by name."""
    found = {}
    for name in RUNTIME_BUILDS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def import_onnxruntime() -> Any:
    """The `onnxruntime` module, with its own talk silenced.

    Raises MissingExtraError if no build is installed, VctoolError if two are (they overwrite each other's files and pip does
    not notice) or if the one that is there does not load.
    """
    builds = installed_builds()
    if len(builds) > 1:
        names = sorted(builds)
        raise VctoolError(
            f"{' and '.join(names)} are both installed; they overwrite each other's files",
            f"keep one: pip uninstall -y {' '.join(names)} && {install_line('cpu')}   (or {install_line('gpu')})",
        )
    try:
        import onnxruntime
    except ModuleNotFoundError:
        raise MissingExtraError("ONNX Runtime", "cpu") from None
    except ImportError as problem:
        raise VctoolError(f"ONNX Runtime does not load: {_first_line(problem)}", f"try: {install_line('cpu')} --force-reinstall") from None
    if not hasattr(onnxruntime, "InferenceSession"):  # what is left when one of two builds was uninstalled
        raise VctoolError(
            "ONNX Runtime is damaged: its package folder is incomplete",
            f"pip uninstall -y {' '.join(sorted(builds) or RUNTIME_BUILDS[:2])} && {install_line('cpu')}   (or {install_line('gpu')})",
        )
    onnxruntime.set_default_logger_severity(4)
    return onnxruntime


def available_cores() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Graph:
    """One ONNX graph, loaded and ready to run.

    device: `cpu` or `cuda`, what it really runs on. note: what the user should know about that choice, or None.
    inputs: the shape of each input, symbolic sides as text.
    """

    def __init__(self, path: Path, *, device: Device = "auto", threads: int | None = None) -> None:
        """Load `path`. threads: CPU threads, all available cores if None.

        Raises ModelError if the graph does not load, VctoolError if `cuda` was asked for and cannot be had.
        """
        ort = import_onnxruntime()
        self.path = path
        offered = ort.get_available_providers()
        if device == "cuda" and _CUDA not in offered:
            raise VctoolError(
                f"asked for cuda, but this ONNX Runtime offers only {', '.join(offered)}",
                f"pip uninstall -y onnxruntime && {install_line('gpu')}, or use --device cpu",
            )
        self._session, self.note = _choose(ort, path, device, offered, threads)
        self.device: Literal["cpu", "cuda"] = "cuda" if _CUDA in self._session.get_providers() else "cpu"
        self.inputs: dict[str, list[int | str | None]] = {i.name: list(i.shape) for i in self._session.get_inputs()}
        self.outputs: list[str] = [o.name for o in self._session.get_outputs()]

    def require(self, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> None:
        """Raises ModelError unless the graph has exactly these inputs and at least these outputs."""
        if set(self.inputs) != set(inputs) or not set(outputs) <= set(self.outputs):
            raise ModelError(
                f"{self.path}: takes {', '.join(self.inputs)} and gives {', '.join(self.outputs)}; "
                f"expected {', '.join(inputs)} and {', '.join(outputs)}",
                "it was not made by this version: run `vctool export` on its model directory",
            )

    def run(self, outputs: tuple[str, ...], feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Run once. Raises ModelError, in one line, if ONNX Runtime refuses the inputs or fails inside."""
        try:
            return [np.asarray(value) for value in self._session.run(list(outputs), dict(feeds))]
        except Exception as problem:  # ONNX Runtime's exceptions share no base class of their own
            shapes = ", ".join(f"{name} {value.dtype}{list(value.shape)}" for name, value in feeds.items())
            raise ModelError(f"{self.path}: failed on {shapes}: {_first_line(problem)}") from problem


def has_nvidia_device() -> bool:
    """Whether this machine shows an NVIDIA GPU; looks at device files only, so it costs nothing."""
    return any(Path(p).exists() for p in ("/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg", "/proc/driver/nvidia/version")) or os.name == "nt"


def _choose(ort: Any, path: Path, device: Device, offered: list[str], threads: int | None) -> tuple[Any, str | None]:
    if device == "cpu" or _CUDA not in offered or (device == "auto" and not has_nvidia_device()):
        return _load(ort, path, [_CPU], threads), None
    try:
        session = _load(ort, path, [_CUDA, _CPU], threads)
        if _CUDA not in session.get_providers():
            # ONNX Runtime only logs this and goes on, slowly, on the CPU.
            got = ", ".join(session.get_providers())
            raise VctoolError(
                f"asked for cuda, got {got}: the CUDA provider did not start",
                "`vctool doctor` shows what is missing; --device cpu works meanwhile",
            )
    except VctoolError as problem:
        if device == "cuda":
            raise
        return _load(ort, path, [_CPU], threads), f"the GPU is not used: {problem.message}"
    return session, None


def _load(ort: Any, path: Path, providers: list[str], threads: int | None) -> Any:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    # Set even when it equals the default: with 0 ONNX Runtime pins threads to cores it may not be allowed to use.
    options.intra_op_num_threads = threads or available_cores()
    options.inter_op_num_threads = 1
    # Idle threads would spin on the cores that the decode workers need.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if has_float16(path):
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    try:
        # enable_fallback=0: its fallback prints to stdout, which is for data.
        return ort.InferenceSession(str(path), options, providers=providers, enable_fallback=0)
    except Exception as problem:  # as above
        why = _first_line(problem)
        if _CUDA in providers:
            raise VctoolError(f"{path}: does not load on cuda: {why}", "try --device cpu; see `vctool doctor`") from problem
        raise ModelError(f"{path}: does not load: {why}", "export the model again with `vctool export`") from problem


def _first_line(problem: BaseException) -> str:
    lines = str(problem).strip().splitlines()
    return lines[0] if lines else type(problem).__name__
