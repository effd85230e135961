"""TensorRT engines as sessions: pinned and device buffers, one context for each profile, CUDA graphs for shapes that come again.

Needs a GPU, the library that built the engine, and `cuda-bindings`. No torch.
"""

from __future__ import annotations

import contextlib
import ctypes
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vctool.errors import ModelError, VctoolError
from vctool.runtime.cuda import Gpu, check, cudart, first_gpu
from vctool.runtime.engine_file import EngineInfo, Profile, engines_of, graph_sha256_of
from vctool.runtime.placement import Placement
from vctool.runtime.tensorrt_api import FLAVOURS, TensorRt, installed, load_tensorrt

_GRAPHS_KEPT = 8
_ROOMS = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16", "int8": "int8"}
_REBUILD = "build engines for this GPU with: vctool export MODEL --trt"


def usable_engine(graph: Path, *, verified: bool = False) -> tuple[EngineInfo, TensorRt, Gpu]:
    """The engine of the graph at `graph` that may run on this machine; half precision before float32, TensorRT before RTX.

    verified: take none but those that were verified. Raises NoGpuError or MissingExtraError where nothing could run, ModelError, in
    one line saying what does not fit, where no engine may.
    """
    name = graph.name.removesuffix(".onnx").partition(".")[0]
    found = engines_of(graph.parent.parent, name)
    if not found:
        raise ModelError(f"{graph.parent.parent} has no engine of {name}", _REBUILD)
    gpu = first_gpu()
    here = {flavour: installed(flavour) for flavour in FLAVOURS}
    if not any(here.values()):
        load_tensorrt("tensorrt")  # says how to install it
    apis = {flavour: load_tensorrt(flavour) for flavour, version in here.items() if version}
    refused = []
    hashes: dict[str, str] = {}
    for info in sorted(found, key=lambda i: (i.precision == "fp32", i.flavour != "tensorrt")):
        api = next((a for a in apis.values() if a.flavour == info.flavour), next(iter(apis.values())))
        source = str(info.content["graph"]["file"])
        hashes.setdefault(source, graph_sha256_of(graph.parent.parent / source))
        why = info.mismatch(onnx_sha256=hashes[source], flavour=api.flavour, version=api.version, sm=gpu.sm, gpu=gpu.name)
        status = info.verification.get("status")
        if why is None and status == "failed":
            why = "its verification failed"
        if why is None and verified and status != "ok":
            why = f"it was never verified ({info.verification.get('reason', 'no reason')})"
        if why is None:
            return info, api, gpu
        refused.append(f"{info.path.name}: {why}")
    more = f" (and {len(refused) - 1} more engines do not fit)" if len(refused) > 1 else ""
    raise ModelError(f"{refused[0]}{more}", _REBUILD)


def choose_profile(profiles: Sequence[Profile], shapes: Mapping[str, tuple[int, ...]]) -> int:
    """The first profile that takes these shapes. Raises ValueError, saying what the largest one takes, if none does."""
    reasons = []
    for number, profile in enumerate(profiles):
        why = profile.refuses(shapes)
        if why is None:
            return number
        reasons.append(f"{profile.name}: {why}")
    raise ValueError(f"no profile of the engine takes this: {'; '.join(reasons)}")


@dataclass
class _Buffer:
    """Memory for one tensor of one context: the same bytes pinned on the host and on the device. Grows, never shrinks."""

    host: int = 0
    device: int = 0
    size: int = 0


class TensorRtSession:
    """One engine, deserialised, ready to run from several threads: a context for each profile, each used by one thread at a time.

    cuda_graphs: record the launch of a shape when it comes the second time and replay it from then on.
    """

    def __init__(self, info: EngineInfo, api: TensorRt, gpu: Gpu, *, cuda_graphs: bool = True) -> None:
        """Raises ModelError if the engine is damaged or TensorRT refuses it, VctoolError if the GPU has too little memory."""
        info.check_bytes()
        self.info, self._api, self._rt = info, api, cudart()
        self._logger = api.module.Logger(api.module.Logger.ERROR)
        self._runtime = api.module.Runtime(self._logger)
        self._engine = self._runtime.deserialize_cuda_engine(info.path.read_bytes())
        if self._engine is None:
            raise ModelError(f"{info.path.name}: {api} refuses it on {gpu.name} (driver {gpu.driver})", _REBUILD)
        self.placement = Placement("tensorrt", "cuda", _ROOMS.get(info.precision, info.precision), str(api))
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        is_input = {n: self._engine.get_tensor_mode(n) == api.module.TensorIOMode.INPUT for n in names}
        self.inputs: dict[str, list[int | str | None]] = {
            n: [None if side < 0 else int(side) for side in self._engine.get_tensor_shape(n)] for n in names if is_input[n]
        }
        self.outputs = [n for n in names if not is_input[n]]
        self.types = {n: np.dtype(api.module.nptype(self._engine.get_tensor_dtype(n))) for n in names}
        self.batch_limit: int | None = max(profile.batch for profile in info.profiles)
        self.batched_outputs: frozenset[str] | None = None
        self._contexts = [_Context(self, number, cuda_graphs) for number in range(len(info.profiles))]

    def run(self, outputs: Sequence[str], feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """The outputs of one run. Raises ValueError for inputs that the engine was not built for, VctoolError if CUDA fails."""
        if set(feeds) != set(self.inputs):
            raise ValueError(f"expected {', '.join(self.inputs)}")
        for name, value in feeds.items():
            if value.dtype != self.types[name]:
                raise ValueError(f"{name} must be {self.types[name]}")
        number = choose_profile(self.info.profiles, {n: tuple(v.shape) for n, v in feeds.items()})
        with self._contexts[number].lock:
            made = self._contexts[number].run(feeds)
        return [made[name] for name in outputs]

    def close(self) -> None:
        """Free all memory of the device; the session cannot be used afterwards."""
        for context in self._contexts:
            context.close()
        self._contexts = []
        self._engine = self._runtime = None

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # the interpreter may be half gone
            self.close()


class _Context:
    """An execution context bound to one profile, with its stream, its buffers and its recorded graphs."""

    def __init__(self, session: TensorRtSession, profile: int, cuda_graphs: bool) -> None:
        self.lock = threading.Lock()
        self._session, self._rt = session, session._rt
        self._stream = check(self._rt.cudaStreamCreateWithFlags(self._rt.cudaStreamNonBlocking), "making a stream")
        self._context = session._engine.create_execution_context()
        if self._context is None:
            raise VctoolError(f"the GPU has too little memory for {session.info.path.name}", "free the GPU, or use --device cpu")
        if not self._context.set_optimization_profile_async(profile, int(self._stream)):
            raise ModelError(f"{session.info.path.name}: TensorRT refuses profile {session.info.profiles[profile].name}", _REBUILD)
        self._sync()
        self._buffers = {name: _Buffer() for name in (*session.inputs, *session.outputs)}
        self._recording = cuda_graphs
        self._seen: set[tuple[Any, ...]] = set()
        self._graphs: OrderedDict[tuple[Any, ...], Any] = OrderedDict()

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        session = self._session
        shapes: dict[str, tuple[int, ...]] = {name: tuple(value.shape) for name, value in feeds.items()}
        key = tuple(sorted(shapes.items()))
        for name, shape in shapes.items():
            if not self._context.set_input_shape(name, shape):
                raise ValueError(f"{name}: TensorRT refuses the shape {list(shape)}")
        unknown = self._context.infer_shapes()
        if unknown:
            raise ValueError(f"TensorRT cannot tell the shapes that follow from {', '.join(unknown)}")
        shapes |= {name: tuple(self._context.get_tensor_shape(name)) for name in session.outputs}
        sizes = {name: int(np.prod(shape)) * session.types[name].itemsize for name, shape in shapes.items()}
        if any(self._grow(name, size) for name, size in sizes.items()):
            self._forget()
        for name, buffer in self._buffers.items():
            self._context.set_tensor_address(name, buffer.device)
        for name, value in feeds.items():
            contiguous = np.ascontiguousarray(value)
            ctypes.memmove(self._buffers[name].host, contiguous.ctypes.data, sizes[name])
        if key in self._graphs:
            self._graphs.move_to_end(key)
            check(self._rt.cudaGraphLaunch(self._graphs[key], self._stream), "replaying a graph")
        elif self._recording and key in self._seen and self._capturable():
            self._record(key, sizes)
        else:
            # The first run of a shape lets the library set itself up, which must not be part of a recording.
            self._enqueue(sizes)
            self._seen.add(key)
        self._sync()
        return {name: self._read(name, shapes[name], sizes[name]) for name in session.outputs}

    def close(self) -> None:
        self._forget()
        for buffer in self._buffers.values():
            if buffer.size:
                self._rt.cudaFreeHost(buffer.host)
                self._rt.cudaFree(buffer.device)
        self._buffers = {}
        self._context = None
        self._rt.cudaStreamDestroy(self._stream)

    def _capturable(self) -> bool:
        """RTX compiles kernels for a shape when it first meets it, and tells when it is ready to be recorded."""
        asked = getattr(self._context, "is_stream_capturable", None)
        return asked is None or bool(asked(int(self._stream)))

    def _enqueue(self, sizes: Mapping[str, int]) -> None:
        to_device, to_host = self._rt.cudaMemcpyKind.cudaMemcpyHostToDevice, self._rt.cudaMemcpyKind.cudaMemcpyDeviceToHost
        for name in self._session.inputs:
            buffer = self._buffers[name]
            check(self._rt.cudaMemcpyAsync(buffer.device, buffer.host, sizes[name], to_device, self._stream), "copying to the GPU")
        if not self._context.execute_async_v3(int(self._stream)):
            raise VctoolError(f"{self._session.info.path.name}: TensorRT failed to run it")
        for name in self._session.outputs:
            buffer = self._buffers[name]
            check(self._rt.cudaMemcpyAsync(buffer.host, buffer.device, sizes[name], to_host, self._stream), "copying from the GPU")

    def _record(self, key: tuple[Any, ...], sizes: Mapping[str, int]) -> None:
        """Record copies and engine as one graph, and run it. What cannot be recorded runs as it is, now and from now on."""
        mode = self._rt.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        check(self._rt.cudaStreamBeginCapture(self._stream, mode), "recording")
        try:
            self._enqueue(sizes)
            error, graph = self._rt.cudaStreamEndCapture(self._stream)
        except VctoolError:
            self._rt.cudaStreamEndCapture(self._stream)
            error, graph = 1, None
        if int(error) or graph is None:
            self._recording = False
            self._rt.cudaGetLastError()  # or the next call would report this one's failure
            self._enqueue(sizes)
            return
        executable = check(self._rt.cudaGraphInstantiate(graph, 0), "making a graph")
        self._rt.cudaGraphDestroy(graph)
        self._graphs[key] = executable
        while len(self._graphs) > _GRAPHS_KEPT:
            self._rt.cudaGraphExecDestroy(self._graphs.popitem(last=False)[1])
        check(self._rt.cudaGraphLaunch(executable, self._stream), "replaying a graph")

    def _grow(self, name: str, size: int) -> bool:
        buffer = self._buffers[name]
        if size <= buffer.size:
            return False
        if buffer.size:
            self._rt.cudaFreeHost(buffer.host)
            self._rt.cudaFree(buffer.device)
            self._buffers[name] = buffer = _Buffer()
        size = max(size, 256)
        device = int(check(self._rt.cudaMalloc(size), f"making room for {name}"))
        host = int(check(self._rt.cudaMallocHost(size), f"making room for {name}"))
        self._buffers[name] = _Buffer(host, device, size)
        return True

    def _read(self, name: str, shape: tuple[int, ...], size: int) -> NDArray[Any]:
        raw = (ctypes.c_byte * size).from_address(self._buffers[name].host)
        flat: NDArray[Any] = np.frombuffer(memoryview(raw), dtype=self._session.types[name])
        return flat.reshape(shape).copy()

    def _forget(self) -> None:
        """Recorded graphs hold addresses: they end with the buffers."""
        for executable in self._graphs.values():
            self._rt.cudaGraphExecDestroy(executable)
        self._graphs.clear()

    def _sync(self) -> None:
        check(self._rt.cudaStreamSynchronize(self._stream), "running the engine")


def open_engine(graph: Path, *, verified: bool = False) -> TensorRtSession:
    """`usable_engine`, loaded."""
    info, api, gpu = usable_engine(graph, verified=verified)
    return TensorRtSession(info, api, gpu)
