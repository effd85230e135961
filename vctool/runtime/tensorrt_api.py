"""The one door to TensorRT: the enterprise library and TensorRT for RTX, whose Python APIs are nearly the same.

`tensorrt` (10.12 to 11) builds on the GPU that will run the engine. `tensorrt-rtx` builds ahead of time, on any machine, for chosen
compute capabilities. Nothing here imports either before it is asked to; both are optional, and the second is proprietary and
never shipped with vctool.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from vctool.errors import MissingExtraError, VctoolError, install_line
from vctool.runtime.placement import first_line

Flavour = Literal["tensorrt", "tensorrt-rtx"]
FLAVOURS: tuple[Flavour, ...] = ("tensorrt", "tensorrt-rtx")

_OLDEST = (10, 12)  # weak typing is deprecated from here on, and every call below exists
_NEWEST_MAJOR = 11
# Every name that the exporter and the session use. A library without one of them must say so, not build something else.
_NEEDED: dict[str, tuple[str, ...]] = {
    "Builder": ("create_network", "create_builder_config", "create_optimization_profile", "build_serialized_network"),
    "IBuilderConfig": ("add_optimization_profile", "set_memory_pool_limit", "profiling_verbosity", "progress_monitor", "clear_flag"),
    "OnnxParser": ("parse_from_file", "num_errors", "get_error"),
    "ParserError": ("desc", "node", "node_name", "node_operator"),
    "INetworkDefinition": ("num_layers", "get_layer", "num_inputs", "get_input", "num_outputs", "get_output"),
    "IProgressMonitor": ("phase_start", "phase_finish", "step_complete"),
    "Runtime": ("deserialize_cuda_engine",),
    "ICudaEngine": ("create_execution_context", "create_engine_inspector", "get_tensor_name", "get_tensor_mode", "get_tensor_dtype"),
    "IExecutionContext": (
        "set_optimization_profile_async",
        "set_input_shape",
        "get_tensor_shape",
        "set_tensor_address",
        "execute_async_v3",
        "infer_shapes",
    ),
    "EngineInspector": ("get_engine_information",),
    "MemoryPoolType": ("WORKSPACE",),
    "ProfilingVerbosity": ("DETAILED",),
    "LayerInformationFormat": ("JSON",),
    "DataType": ("FLOAT", "HALF", "BF16", "INT8", "INT32", "INT64", "BOOL", "UINT8"),
}
_NEEDED_ONLY: dict[Flavour, dict[str, tuple[str, ...]]] = {
    "tensorrt": {"IBuilderConfig": ("create_timing_cache", "set_timing_cache"), "ITimingCache": ("combine", "serialize")},
    "tensorrt-rtx": {"IBuilderConfig": ("set_compute_capability", "num_compute_capabilities"), "ComputeCapability": ()},
}

_RTX_PACKAGE = "onnxruntime_ep_nv_tensorrt_rtx"
_RTX_LIBRARIES = ("libcudart.so", "libtensorrt_rtx.so", "libtensorrt_onnxparser_rtx.so")  # each needs the ones before it


@dataclass(frozen=True)
class TensorRt:
    """A loaded library. module: its Python module; version: as the library tells it, `11.4.0.106`."""

    flavour: Flavour
    version: str
    module: Any

    @property
    def short(self) -> str:
        """How engine files name it: `trt11.4.0`, `rtx1.7.1`."""
        return ("rtx" if self.flavour == "tensorrt-rtx" else "trt") + ".".join(self.version.split(".")[:3])

    @property
    def architectures(self) -> tuple[str, ...]:
        """Compute capabilities that can be built for without a GPU: `("sm75", …)`, empty for enterprise TensorRT."""
        if self.flavour == "tensorrt":
            return ()
        return tuple(name.lower() for name in self.module.ComputeCapability.__members__ if name.startswith("SM"))

    def __str__(self) -> str:
        return f"{'TensorRT for RTX' if self.flavour == 'tensorrt-rtx' else 'TensorRT'} {self.version}"


def installed(flavour: Flavour) -> str | None:
    """The installed version, without loading anything; None if it is not there."""
    import importlib.metadata  # slow to import, and queries seldom come here

    names = ("tensorrt",) if flavour == "tensorrt" else ("tensorrt_rtx", "tensorrt-rtx-cu13-bindings", "tensorrt-rtx-cu12-bindings")
    for name in names:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


@cache
def load_tensorrt(flavour: Flavour) -> TensorRt:
    """Load the library.

    Raises MissingExtraError if it is not installed, VctoolError if it does not load, is too old or too new, or lacks an API that
    vctool calls.
    """
    module = _import_enterprise() if flavour == "tensorrt" else _import_rtx()
    loaded = TensorRt(flavour, str(module.__version__), module)
    require_version(loaded)
    missing = list(missing_names(loaded))
    if missing:
        raise VctoolError(
            f"{loaded} lacks {', '.join(missing)}, which vctool calls: no engine is built with it",
            "use a TensorRT from 10.12 to 11" if flavour == "tensorrt" else install_line("rtx"),
        )
    return loaded


def require_version(loaded: TensorRt) -> None:
    """Raises VctoolError for an enterprise TensorRT outside of 10.12 to 11."""
    if loaded.flavour != "tensorrt":
        return
    numbers = tuple(int(n) for n in re.findall(r"\d+", loaded.version)[:2])
    if numbers < _OLDEST or numbers[0] > _NEWEST_MAJOR:
        raise VctoolError(f"{loaded} is not supported: vctool knows 10.12 to {_NEWEST_MAJOR}", 'pip install "tensorrt>=10.12,<12"')


def missing_names(loaded: TensorRt) -> Iterator[str]:
    """Names that vctool uses and this library does not have."""
    for owner, members in [*_NEEDED.items(), *_NEEDED_ONLY[loaded.flavour].items()]:
        there = getattr(loaded.module, owner, None)
        if there is None:
            yield owner
        else:
            yield from (f"{owner}.{name}" for name in members if not hasattr(there, name))


def _import_enterprise() -> Any:
    if importlib.util.find_spec("tensorrt") is None:
        raise MissingExtraError("TensorRT", "trt")
    try:
        return importlib.import_module("tensorrt")
    except (ImportError, OSError) as problem:
        raise VctoolError(
            f"TensorRT does not load: {first_line(problem)}",
            f"its libraries come from NVIDIA's own package index: {install_line('trt')} --extra-index-url https://pypi.nvidia.com",
        ) from None


def _import_rtx() -> Any:
    """The RTX bindings. Their libraries lie in another package, and no linker path leads there: they are loaded first, by file."""
    if importlib.util.find_spec("tensorrt_rtx") is not None:  # NVIDIA's own download, which finds its libraries itself
        return importlib.import_module("tensorrt_rtx")
    package = importlib.util.find_spec(_RTX_PACKAGE)
    bindings = importlib.util.find_spec("tensorrt_rtx_bindings")
    if package is None or bindings is None or not package.submodule_search_locations:
        raise MissingExtraError("TensorRT for RTX", "rtx")
    folder = Path(next(iter(package.submodule_search_locations)))
    try:
        versions = {name: _preload(folder, name) for name in _RTX_LIBRARIES}
        module = importlib.import_module("tensorrt_rtx_bindings")
    except (ImportError, OSError) as problem:
        raise VctoolError(f"TensorRT for RTX does not load: {first_line(problem)}", f"{install_line('rtx')} --force-reinstall") from None
    library = versions["libtensorrt_rtx.so"]
    if not str(module.__version__).startswith(library):
        pieces = f"library {library}, bindings {module.__version__}"
        raise VctoolError(f"TensorRT for RTX is installed in pieces that do not fit: {pieces}", install_line("rtx"))
    return module


def _preload(folder: Path, name: str) -> str:
    """Load `name.so.<version>` for all to link against; returns the version."""
    found = sorted(folder.glob(f"{name}.*"))
    if not found:
        raise OSError(f"{folder} holds no {name}")
    ctypes.CDLL(str(found[-1]), mode=ctypes.RTLD_GLOBAL)
    return found[-1].name.removeprefix(f"{name}.")
