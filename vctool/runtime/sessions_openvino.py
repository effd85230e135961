"""OpenVINO as a session: on CPUs with matrix units for bfloat16 the fastest encoder that needs no torch."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vctool.errors import MissingExtraError, ModelError, VctoolError
from vctool.runtime.machine import available_cores
from vctool.runtime.placement import Placement, first_line

_NAMES = {"f32": "float32", "float32": "float32", "bf16": "bfloat16", "bfloat16": "bfloat16", "f16": "float16", "float16": "float16"}


def openvino_version() -> str | None:
    """The installed version, without importing it."""
    if importlib.util.find_spec("openvino") is None:
        return None
    from importlib import metadata  # 40 ms to import

    try:
        return metadata.version("openvino")
    except metadata.PackageNotFoundError:
        return None


def import_openvino() -> Any:
    """The `openvino` module. Raises MissingExtraError if it is not installed, VctoolError if it does not load."""
    if importlib.util.find_spec("openvino") is None:
        raise MissingExtraError("OpenVINO", "openvino")
    try:
        import openvino
    except ImportError as problem:
        raise VctoolError(f"OpenVINO does not load: {first_line(problem)}", "try --provider onnxruntime") from None
    return openvino


@cache
def _core(openvino: Any) -> Any:
    """OpenVINO's device manager, one for the whole life of the process.

    On a CPU with AMX each manager gives the thread that makes it a stack for signal handlers, and gives back the one before when it
    goes. Of two that do not go in reverse order the second gives back what the first has freed, and then the next Ctrl-C ends the
    process without a word (seen with OpenVINO 2026.4.1).
    """
    return openvino.Core()


class OpenVinoSession:
    """One ONNX graph, compiled by OpenVINO for this CPU.

    precision: `float32`, `bfloat16`, or None for what OpenVINO picks (bfloat16 where the CPU has units for it). What it really uses
    is in `placement`. One thread at a time may call `run`.
    """

    batch_limit: int | None = None
    batched_outputs: frozenset[str] | None = None

    def __init__(self, path: Path, *, threads: int | None = None, precision: str | None = None) -> None:
        """Raises ModelError if the graph does not load, MissingExtraError without OpenVINO."""
        openvino = import_openvino()
        settings: dict[str, Any] = {"INFERENCE_NUM_THREADS": threads or available_cores(), "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY"}
        if precision is not None:
            settings["INFERENCE_PRECISION_HINT"] = {"float32": "f32", "bfloat16": "bf16"}[precision]
        try:
            self._compiled = _core(openvino).compile_model(str(path), "CPU", settings)
            self._request = self._compiled.create_infer_request()
        except Exception as problem:  # OpenVINO raises RuntimeError, whatever the cause; its first line is a place in its source
            lines = [line.strip() for line in str(problem).splitlines() if line.strip()]
            why = next((line for line in reversed(lines) if not line.startswith(("Exception from", "Check "))), first_line(problem))
            raise ModelError(f"{path}: does not load in OpenVINO: {why}", "try --provider onnxruntime") from problem
        used = self._compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        self.placement = Placement("openvino", "cpu", _NAMES.get(used, used), f"openvino {openvino_version()}")
        self.inputs: dict[str, list[int | str | None]] = {
            port.get_any_name(): [side.get_length() if side.is_static else None for side in port.get_partial_shape()]
            for port in self._compiled.inputs
        }
        self._types = {port.get_any_name(): port.get_element_type().to_dtype() for port in self._compiled.inputs}
        self.outputs = [port.get_any_name() for port in self._compiled.outputs]

    def run(self, outputs: Sequence[str], feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """The outputs of one run. Raises what OpenVINO raises."""
        # OpenVINO would run on what an earlier call has left in an input, and takes sizes and types that the graph has not.
        if set(feeds) != set(self.inputs):
            raise ValueError(f"expected {', '.join(self.inputs)}")
        for name, sides in self.inputs.items():
            value = feeds[name]
            fits = len(sides) == value.ndim and all(side in (None, size) for side, size in zip(sides, value.shape, strict=True))
            if not fits or value.dtype != self._types[name]:
                raise ValueError(f"{name} must be {self._types[name]} {['any' if side is None else side for side in sides]}")
        result = self._request.infer(dict(feeds))
        return [np.array(result[name]) for name in outputs]
