"""Graphs ready to run: which library and device runs each, chosen aloud, behind one protocol.

What was asked for and what runs agree: a request that cannot be met is an error, a choice of ours that was not the best one is a
note. `vctool doctor` prints the same reasons.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vctool.errors import ModelError, UsageProblem, VctoolError, install_line
from vctool.runtime.engine_file import engines_of
from vctool.runtime.machine import available_cores, bfloat16_unit, has_nvidia_device
from vctool.runtime.placement import Placement, Session, first_line
from vctool.runtime.sessions_onnxruntime import (
    CPU,
    CUDA,
    RUNTIME_BUILDS,
    TENSORRT,
    OnnxRuntimeSession,
    import_onnxruntime,
    installed_builds,
)
from vctool.runtime.sessions_openvino import OpenVinoSession, openvino_version
from vctool.runtime.verdicts import verified

__all__ = [
    "DEVICES",
    "PROVIDERS",
    "RUNTIME_BUILDS",
    "Device",
    "Graph",
    "Placement",
    "Provider",
    "Session",
    "available_cores",
    "has_nvidia_device",
    "import_onnxruntime",
    "installed_builds",
]

Device = Literal["auto", "cpu", "cuda"]
DEVICES: tuple[Device, ...] = ("auto", "cpu", "cuda")
Provider = Literal["auto", "onnxruntime", "openvino", "openvino-fp32", "tensorrt", "tensorrt-ep"]
PROVIDERS: tuple[Provider, ...] = ("auto", "onnxruntime", "openvino", "openvino-fp32", "tensorrt", "tensorrt-ep")

_RUNS_ON: dict[str, tuple[str, ...]] = {
    "onnxruntime": ("cpu", "cuda"),
    "openvino": ("cpu",),
    "openvino-fp32": ("cpu",),
    "tensorrt": ("cuda",),
    "tensorrt-ep": ("cuda",),
}


class Graph:
    """One ONNX graph, loaded and ready to run.

    placement: what it really runs on; device, provider: parts of it. note: what the user should know about that choice, or None.
    inputs: the shape of each input, symbolic sides as text.
    """

    def __init__(self, path: Path, *, device: Device = "auto", provider: Provider = "auto", threads: int | None = None) -> None:
        """Load `path`. threads: CPU threads, all available cores if None.

        Raises ModelError if the graph does not load, VctoolError if a device or provider was asked for and cannot be had.
        """
        self.path = path
        self.session, self.note = open_session(path, device=device, provider=provider, threads=threads)
        self.placement = self.session.placement
        self.device: Literal["cpu", "cuda"] = self.placement.device
        self.provider = self.placement.provider
        self.inputs: dict[str, list[int | str | None]] = self.session.inputs
        self.outputs: list[str] = self.session.outputs

    def require(self, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> None:
        """Raises ModelError unless the graph has exactly these inputs and at least these outputs."""
        if set(self.inputs) != set(inputs) or not set(outputs) <= set(self.outputs):
            raise ModelError(
                f"{self.path}: takes {', '.join(self.inputs)} and gives {', '.join(self.outputs)}; "
                f"expected {', '.join(inputs)} and {', '.join(outputs)}",
                "it was not made by this version: run `vctool export` on its model directory",
            )

    def run(self, outputs: tuple[str, ...], feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Run once, or piece by piece where the batch is larger than the session takes.

        Raises ModelError, in one line, if the library refuses the inputs or fails inside.
        """
        try:
            return run_in_pieces(self.session, outputs, feeds)
        except VctoolError:
            raise
        except Exception as problem:  # these libraries' exceptions share no base class
            shapes = ", ".join(f"{name} {value.dtype}{list(value.shape)}" for name, value in feeds.items())
            raise ModelError(f"{self.path}: failed on {shapes}: {first_line(problem)}") from problem


def run_in_pieces(session: Session, outputs: tuple[str, ...], feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
    """`session.run`, the first axis of the inputs split where it is longer than `session.batch_limit`.

    The last piece may be short; all inputs must be of one length then.
    """
    lengths = {len(value) for value in feeds.values() if value.ndim}
    limit = session.batch_limit
    if limit is None or not lengths or max(lengths) <= limit:
        return session.run(outputs, feeds)
    if len(lengths) > 1 or (session.batched_outputs is not None and not set(outputs) <= session.batched_outputs):
        raise ValueError(f"more than {limit} rows, and this graph cannot be run piece by piece")
    rows = lengths.pop()
    pieces = [session.run(outputs, {n: v[at : at + limit] for n, v in feeds.items()}) for at in range(0, rows, limit)]
    return [np.concatenate(parts) for parts in zip(*pieces, strict=True)]


ASKED = "asked for"


@dataclass(frozen=True)
class Choice:
    """One way to run a graph: provider, device, and why it stands at its place."""

    provider: str
    device: Literal["cpu", "cuda"]
    why: str


def open_session(path: Path, *, device: Device, provider: Provider, threads: int | None) -> tuple[Session, str | None]:
    """The first choice that starts, and a note if that is not the one that should have been."""
    choices = ranked(path, device, provider)
    failed: VctoolError | None = None
    for choice in choices:
        try:
            session = _start(path, choice, threads)
        except VctoolError as problem:
            if choice == choices[-1]:
                raise failed or problem from None
            failed = failed or problem
            continue
        note = None
        if failed is not None:
            what = "the GPU is not used" if choice.device == "cpu" and choices[0].device == "cuda" else f"{choices[0].provider} is not used"
            note = f"{what}: {failed.message}"
        return session, note
    raise VctoolError(f"nothing here can run {path}")


def ranked(path: Path | None, device: Device, provider: Provider) -> list[Choice]:
    """Ways to run a graph, the preferred one first. path: the graph, None for what holds of any.

    Raises VctoolError if what was asked for cannot be had on this machine at all, UsageProblem if it contradicts itself.
    """
    if provider not in PROVIDERS:
        raise UsageProblem(f"there is no provider '{provider}'", f"one of {', '.join(PROVIDERS)}")
    if provider != "auto" and device != "auto" and device not in _RUNS_ON[provider]:
        raise UsageProblem(
            f"{provider} does not run on {device}", f"use --device {_RUNS_ON[provider][0]}, or --provider {_for_device(device)}"
        )
    if provider in ("openvino", "openvino-fp32"):
        return [Choice(provider, "cpu", ASKED)]
    if provider in ("tensorrt", "tensorrt-ep"):
        return [Choice(provider, "cuda", ASKED)]
    if provider == "onnxruntime":
        return _onnxruntime(device, explicit=True)
    choices = [*_engines(path, device), *_onnxruntime(device, explicit=False)]
    where = next((i for i, choice in enumerate(choices) if choice.device == "cpu"), None)
    found = _openvino(path) if where is not None else None
    if where is not None and found is not None:
        choices.insert(where, found)
    return choices


def _openvino(path: Path | None) -> Choice | None:
    """OpenVINO, if it should come before ONNX Runtime on a CPU for the graph at `path`.

    It is quicker, most of all in bfloat16 where the CPU has units for it, and comes first where it is proved on this very model. The
    frame tower is what an index run waits for; the others are loaded for one sentence, which OpenVINO compiles for longer than ONNX
    Runtime takes to answer it.
    """
    if path is None or path.name.partition(".")[0] != "frame" or openvino_version() is None:
        return None
    unit = bfloat16_unit()
    if unit is not None and verified(path.parent.parent, "openvino"):
        return Choice("openvino", "cpu", f"verified on this model, and {unit} is here")
    if verified(path.parent.parent, "openvino-fp32"):
        return Choice("openvino-fp32", "cpu", "verified on this model in float32")
    return None


def _engines(path: Path | None, device: Device) -> list[Choice]:
    if path is None or device == "cpu" or not has_nvidia_device():
        return []
    name = path.name.partition(".")[0]
    proved = [i for i in engines_of(path.parent.parent, name) if i.verification.get("status") == "ok"]
    return [Choice("tensorrt", "cuda", f"{proved[0].path.name} is verified")] if proved else []


def _onnxruntime(device: Device, explicit: bool) -> list[Choice]:
    offered = import_onnxruntime().get_available_providers()
    cpu = Choice("onnxruntime", "cpu", ASKED if device == "cpu" or explicit else "exact float32 on any CPU")
    if device == "cuda":
        if CUDA not in offered:
            raise VctoolError(
                f"asked for cuda, but this ONNX Runtime offers only {', '.join(offered)}",
                f"pip uninstall -y onnxruntime && {install_line('gpu')}, or use --device cpu",
            )
        return [Choice("onnxruntime", "cuda", ASKED)]
    if device == "cpu" or CUDA not in offered or not has_nvidia_device():
        return [cpu]
    return [Choice("onnxruntime", "cuda", "a GPU is here, and this ONNX Runtime has CUDA"), cpu]


def _for_device(device: Device) -> str:
    return next(name for name, devices in _RUNS_ON.items() if device in devices)


def _start(path: Path, choice: Choice, threads: int | None) -> Session:
    if choice.provider in ("openvino", "openvino-fp32"):
        return OpenVinoSession(path, threads=threads, precision="float32" if choice.provider == "openvino-fp32" else None)
    if choice.provider == "tensorrt":
        from vctool.runtime.sessions_tensorrt import open_engine

        return open_engine(path, verified=choice.why != ASKED)
    ort = import_onnxruntime()
    if choice.provider == "tensorrt-ep":
        _require_tensorrt_provider(ort)
        return OnnxRuntimeSession(ort, path, [TENSORRT, CUDA, CPU], threads=threads, cache=path.parent.parent / "tensorrt" / ".ep-cache")
    return OnnxRuntimeSession(ort, path, [CPU] if choice.device == "cpu" else [CUDA, CPU], threads=threads)


def _require_tensorrt_provider(ort: Any) -> None:
    offered = ort.get_available_providers()
    if TENSORRT not in offered:
        raise VctoolError(
            f"asked for ONNX Runtime's TensorRT provider, but this build offers only {', '.join(offered)}",
            f"pip uninstall -y onnxruntime && {install_line('gpu')}, or use --provider onnxruntime",
        )
