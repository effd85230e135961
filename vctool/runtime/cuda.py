"""The CUDA runtime through NVIDIA's `cuda-bindings`, with errors in words. Imported only where a GPU is wanted."""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from typing import Any

from vctool.errors import MissingExtraError, VctoolError


class NoGpuError(VctoolError):
    """There is no GPU that CUDA can use: no driver, no device, or one that is hidden."""


@dataclass(frozen=True)
class Gpu:
    """One GPU. sm: its compute capability, `sm89`. total, free: bytes of memory. driver, runtime: CUDA versions, `13.0`."""

    name: str
    sm: str
    total: int
    free: int
    driver: str
    runtime: str


def cudart() -> Any:
    """The runtime module. Raises MissingExtraError without `cuda-bindings`, NoGpuError if its libraries do not load."""
    if importlib.util.find_spec("cuda") is None or importlib.util.find_spec("cuda.bindings") is None:
        raise MissingExtraError("cuda-bindings", "trt")
    try:
        return importlib.import_module("cuda.bindings.runtime")
    except (ImportError, RuntimeError, OSError) as problem:
        raise NoGpuError(f"no GPU: the CUDA runtime does not load: {str(problem).splitlines()[0]}") from None


def check(result: tuple[Any, ...], what: str) -> Any:
    """The values of a call's result. Raises VctoolError, in words, if it failed."""
    error, *values = result
    if int(error):
        name = getattr(error, "name", str(error))
        if "MemoryAllocation" in name:
            raise VctoolError(f"the GPU has too little free memory: {what} failed", "use a smaller batch, or free the GPU")
        raise VctoolError(f"{what} failed on the GPU: {name}")
    return values[0] if len(values) == 1 else tuple(values)


def first_gpu(index: int = 0) -> Gpu:
    """GPU number `index` of those that this process sees. Raises NoGpuError, saying why, if there is none."""
    rt = cudart()
    error, count = rt.cudaGetDeviceCount()
    name = getattr(error, "name", str(error))
    if int(error):
        why = {
            "cudaErrorInsufficientDriver": "there is no NVIDIA driver, or it is older than this CUDA",
            "cudaErrorNoDevice": "the driver sees no device",
        }.get(name, name)
        raise NoGpuError(f"no GPU: {why}")
    if index >= count:
        raise NoGpuError(f"no GPU: the driver shows {count} devices, number {index} was asked for")
    check(rt.cudaSetDevice(index), "choosing the GPU")
    properties = check(rt.cudaGetDeviceProperties(index), "asking the GPU's properties")
    free, total = check(rt.cudaMemGetInfo(), "asking the GPU's free memory")
    driver, runtime = check(rt.cudaDriverGetVersion(), "asking the driver"), check(rt.cudaRuntimeGetVersion(), "asking the runtime")
    label = properties.name.decode(errors="replace") if isinstance(properties.name, bytes) else str(properties.name)
    return Gpu(label.strip("\0 "), f"sm{properties.major}{properties.minor}", int(total), int(free), _version(driver), _version(runtime))


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"
