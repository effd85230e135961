"""ONNX Runtime as a session: exactly one build of it, the device that was asked for, no crash on half precision."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vctool.errors import MissingExtraError, ModelError, VctoolError, install_line
from vctool.runtime.graph_precision import precision_of
from vctool.runtime.machine import available_cores
from vctool.runtime.placement import Placement, first_line

# All of these unpack into the one folder `onnxruntime/`.
RUNTIME_BUILDS = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino", "onnxruntime-rocm")
CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"


def installed_builds() -> dict[str, str]:
    """Versions of the ONNX Runtime distributions that are installed, by name."""
    # `importlib.metadata` takes 40 ms of a query's start: where nobody has loaded it and a glance finds one build, it is not needed.
    if "importlib.metadata" not in sys.modules and len(seen := seen_builds(sys.path)) == 1:
        return seen
    import importlib.metadata

    found = {}
    for name in RUNTIME_BUILDS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def seen_builds(places: Sequence[str]) -> dict[str, str]:
    """The same from the folders that pip leaves beside packages in `places`."""
    found: dict[str, str] = {}
    for place in places:
        folder = Path(place)
        for info in folder.glob("onnxruntime*.dist-info") if folder.is_dir() else ():
            named = re.fullmatch(r"(.+)-([^-]+)\.dist-info", info.name)
            name = named[1].replace("_", "-").lower() if named else ""
            if named and name in RUNTIME_BUILDS:
                found.setdefault(name, named[2])
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
        raise VctoolError(f"ONNX Runtime does not load: {first_line(problem)}", f"try: {install_line('cpu')} --force-reinstall") from None
    if not hasattr(onnxruntime, "InferenceSession"):  # what is left when one of two builds was uninstalled
        raise VctoolError(
            "ONNX Runtime is damaged: its package folder is incomplete",
            f"pip uninstall -y {' '.join(sorted(builds) or RUNTIME_BUILDS[:2])} && {install_line('cpu')}   (or {install_line('gpu')})",
        )
    onnxruntime.set_default_logger_severity(4)
    return onnxruntime


class OnnxRuntimeSession:
    """One graph in ONNX Runtime. `providers` are its own names, in the order in which they may take nodes.

    On a CPU memory that a large batch needed is given back after each run of more than one row; threads do not spin.
    """

    batch_limit: int | None = None
    batched_outputs: frozenset[str] | None = None

    def __init__(self, ort: Any, path: Path, providers: Sequence[str], *, threads: int | None = None, cache: Path | None = None) -> None:
        """Load `path`. cache: folder for what the TensorRT provider builds.

        Raises ModelError if the graph does not load, VctoolError if the first of `providers` did not start.
        """
        self.path = path
        self._session = _load(ort, path, list(providers), threads, cache)
        got = self._session.get_providers()
        if providers[0] not in got:
            # ONNX Runtime only logs this and goes on, slowly, on the CPU.
            asked, wanted = ("TensorRT", "TensorRT") if providers[0] == TENSORRT else ("cuda", "CUDA")
            raise VctoolError(
                f"asked for {asked}, got {', '.join(got)}: the {wanted} provider did not start",
                "`vctool doctor` shows what is missing; --device cpu works meanwhile",
            )
        device: Literal["cpu", "cuda"] = "cpu" if providers[0] == CPU else "cuda"
        name = "tensorrt-ep" if providers[0] == TENSORRT else "onnxruntime"
        self.placement = Placement(name, device, precision_of(path), f"onnxruntime {ort.__version__}")
        self.inputs: dict[str, list[int | str | None]] = {i.name: list(i.shape) for i in self._session.get_inputs()}
        self.outputs: list[str] = [o.name for o in self._session.get_outputs()]
        self._shrink = None
        if device == "cpu":
            self._shrink = ort.RunOptions()
            self._shrink.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")

    def run(self, outputs: Sequence[str], feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """The outputs of one run. Raises what ONNX Runtime raises."""
        large = any(value.ndim and len(value) > 1 for value in feeds.values())
        return [np.asarray(value) for value in self._session.run(list(outputs), dict(feeds), self._shrink if large else None)]


def _load(ort: Any, path: Path, providers: list[str], threads: int | None, cache: Path | None) -> Any:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    # Set even when it equals the default: with 0 ONNX Runtime pins threads to cores it may not be allowed to use.
    options.intra_op_num_threads = threads or available_cores()
    options.inter_op_num_threads = 1
    # Idle threads would spin on the cores that the decode workers need.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if precision_of(path) == "float16":
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    named: list[Any] = list(providers)
    if TENSORRT in providers and cache is not None:
        cache.mkdir(parents=True, exist_ok=True)
        kept = {"trt_engine_cache_enable": "1", "trt_engine_cache_path": str(cache)}
        kept |= {"trt_timing_cache_enable": "1", "trt_timing_cache_path": str(cache)}
        named[providers.index(TENSORRT)] = (TENSORRT, kept)
    try:
        # enable_fallback=0: its fallback prints to stdout, which is for data.
        return ort.InferenceSession(str(path), options, providers=named, enable_fallback=0)
    except Exception as problem:  # ONNX Runtime's exceptions share no base class of their own
        why = first_line(problem)
        if providers[0] != CPU:
            raise VctoolError(f"{path}: does not load on cuda: {why}", "try --device cpu; see `vctool doctor`") from problem
        raise ModelError(f"{path}: does not load: {why}", "export the model again with `vctool export`") from problem
