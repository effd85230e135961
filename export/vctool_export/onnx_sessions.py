"""The graphs of a model directory as session makers, one for each precision, for verification. No torch."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from vctool.errors import VctoolError
from vctool.runtime.machine import bfloat16_unit
from vctool.runtime.sessions import Device, Graph, Provider, has_nvidia_device
from vctool.runtime.sessions_openvino import openvino_version
from vctool_export.verdict import CannotRunHereError
from vctool_export.verify import MakeSession, Session

GRAPHS = ("text", "frame", "temporal")
PRECISIONS = ("fp32", "fp16", "bf16", "int8", "int8-weights", "int8-qdq")
LIMITS_OF = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16", "int8": "int8"}
"""The row of limits for what a session says it computes in."""


def graph_file(name: str, precision: str) -> str:
    """Name of a graph's file: `text.onnx` for fp32, `text.fp16.onnx` for the others."""
    return f"{name}.onnx" if precision == "fp32" else f"{name}.{precision}.onnx"


def precisions_of(folder: Path) -> list[str]:
    """Precisions of which a model directory has a complete set of graphs."""
    return [p for p in PRECISIONS if all((folder / "onnx" / graph_file(name, p)).is_file() for name in GRAPHS)]


def graph_sessions(
    onnx_dir: Path, precision: str, scratch: Path, *, device: Device = "cpu", provider: Provider = "auto", threads: int | None = None
) -> tuple[MakeSession, str]:
    """(session maker, what runs them) for the graphs of one precision in a folder.

    On a CPU the half precisions run as the emulation of `precision.emulate_half`, written into `scratch`: ONNX Runtime there runs
    fp16 in fp32 and has no bf16, so that it would prove nothing. CannotRunHereError where that needs the onnx package and it is missing.
    """
    rounded = precision in ("fp16", "bf16") and provider in ("auto", "onnxruntime") and not (device != "cpu" and has_nvidia_device())

    def make(name: str) -> Graph:
        path = onnx_dir / graph_file(name, precision)
        if not rounded:
            return Graph(path, device=device, provider=provider, threads=threads)
        if importlib.util.find_spec("onnx") is None:
            raise CannotRunHereError(f"{precision} needs a GPU, or the onnx package to emulate its rounding on a CPU")
        from vctool_export.precision import emulate_half

        if precision == "fp16":
            Graph(path, device="cpu", provider="onnxruntime", threads=threads)  # that the file itself loads is worth knowing too
        emulate_half(path, scratch / path.name)
        return Graph(scratch / path.name, device="cpu", provider="onnxruntime", threads=threads)

    where = f"{'ONNX Runtime' if provider in ('auto', 'onnxruntime') else provider}, {'CPU' if device == 'cpu' else device}"
    return make, f"{where}, rounded to {precision} after each operation that is" if rounded else where


def limits_of(make: MakeSession, precision: str) -> tuple[MakeSession, str]:
    """The maker, and the row of limits for what really computes: OpenVINO runs an fp32 graph in bf16 where the CPU can."""
    opened: dict[str, Session] = {}
    limits = precision
    if precision == "fp32":
        try:
            opened["frame"] = make("frame")
        except VctoolError:
            return make, precision  # told again, and judged, when it is verified
        placement = getattr(opened["frame"], "placement", None)
        limits = LIMITS_OF.get(placement.precision, precision) if placement is not None else precision
    return (lambda name: opened.pop(name) if name in opened else make(name)), limits


def faster_providers() -> tuple[Provider, ...]:
    """Providers of this machine that are quicker than ONNX Runtime on its CPU; `auto` takes them for models verified with them."""
    if openvino_version() is None:
        return ()
    return ("openvino", "openvino-fp32") if bfloat16_unit() is not None else ("openvino-fp32",)
