"""The compiled kernel of `kernel.c`: what this machine can run of it, which one is used, and the call.

Shape letters: B queries, M counted query tokens, N clips, T tokens of all clips end to end, D width.
"""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from vctool.errors import UsageProblem, VctoolError
from vctool.scoring.tiles import Float32, TokenBlocks

VARIABLE = "VCTOOL_KERNEL"
LIBRARY = Path(__file__).with_name("_kernel.so")  # where `build.py` puts it

Kernel = Literal["amx", "vnni", "avx2", "numpy"]
KERNELS: tuple[Kernel, ...] = get_args(Kernel)  # best first

_ABI = 2
_BITS = {"avx2": 1, "vnni": 2, "amx": 4}
_TYPES = {"int8": 0, "float16": 1, "int4": 2, "compact": 3}
_OF_KERNEL = tuple(np.dtype(name) for name in ("int8", "float16", "uint8"))
_LANES = 16


class _Job(ctypes.Structure):
    """`struct job` of kernel.c, field by field."""

    _fields_ = [
        ("tokens", ctypes.c_void_p),
        ("rows", ctypes.c_int64),
        ("dim", ctypes.c_int64),
        ("row_bytes", ctypes.c_int64),
        ("scale", ctypes.c_void_p),
        ("counted", ctypes.c_void_p),
        ("offsets", ctypes.c_void_p),
        ("first", ctypes.c_int64),
        ("last", ctypes.c_int64),
        ("query", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("weight", ctypes.c_void_p),
        ("query_tiles", ctypes.c_void_p),
        ("query_counts", ctypes.c_void_p),
        ("queries", ctypes.c_int64),
        ("scores", ctypes.c_void_p),
        ("stride", ctypes.c_int64),
        ("centre", ctypes.c_void_p),
        ("centres", ctypes.c_void_p),
        ("centre_scale", ctypes.c_void_p),
        ("centre_offsets", ctypes.c_void_p),
    ]


@dataclass(frozen=True)
class KernelReport:
    """For `vctool doctor`. found: kernels that run here, best first, always with `numpy`. problem: why there is only that, or "".

    mendable: compiling the kernel would help.
    """

    found: tuple[Kernel, ...]
    problem: str = ""
    mendable: bool = False


@functools.cache
def _library() -> ctypes.CDLL | str:
    """The compiled kernel, or why there is none."""
    if not LIBRARY.is_file():
        return "the kernel was not compiled when vctool was installed"
    try:
        library = ctypes.CDLL(str(LIBRARY))
        if library.vctool_kernel_abi() != _ABI:
            return "the compiled kernel is of another version of vctool"
        library.vctool_kernel_features()  # asks the operating system for the AMX registers: without them AMX is illegal
    except (OSError, AttributeError) as problem:
        return f"the compiled kernel does not load: {problem}"
    return library


def compiled_library() -> ctypes.CDLL | None:
    """The compiled library, for what else is in it (`gradient.c`); None where there is none."""
    library = _library()
    return None if isinstance(library, str) else library


@functools.cache
def report() -> KernelReport:
    """What runs on this machine."""
    library = _library()
    if isinstance(library, str):
        mendable = platform.machine().lower() in ("x86_64", "amd64") and sys.platform != "win32"
        return KernelReport(("numpy",), library, mendable)
    bits = library.vctool_kernel_features()
    found = tuple(name for name in KERNELS if name == "numpy" or bits & _BITS[name])
    return KernelReport(found, "" if len(found) > 1 else "this CPU has neither AVX2 nor better")


def chosen_kernel(dtype: npt.DTypeLike) -> Kernel:
    """The kernel that scores tokens of this dtype: the one `VCTOOL_KERNEL` names, by default the best that runs here.

    float32 tokens are always scored by NumPy. Raises UsageProblem if the variable names a kernel that is not known or
    does not run here.
    """
    wanted = os.environ.get(VARIABLE, "").strip().lower() or "auto"
    if wanted not in ("auto", *KERNELS):
        raise UsageProblem(f"{VARIABLE}={wanted}: no such kernel", f"choose auto, {', '.join(KERNELS[:-1])} or {KERNELS[-1]}")
    here = report()
    if wanted != "auto" and wanted not in here.found:
        reason = here.problem or f"this CPU runs {', '.join(here.found)}"
        raise UsageProblem(f"{VARIABLE}={wanted}: that kernel does not run here ({reason})", f"unset {VARIABLE} to let vctool choose")
    if np.dtype(dtype) not in _OF_KERNEL:
        return "numpy"
    return next(name for name in here.found if wanted in ("auto", name))


class PackedQueries:
    """B queries laid out as the kernel multiplies them: tiles of 16 tokens, each query from a tile of its own.

    For int8 and packed tokens the query is int8 too, with a scale for each of its tokens: each of the D products is off by at
    most half a step of that scale. For float16 tokens the query stays float32.
    """

    def __init__(self, queries: Sequence[Float32], dtype: npt.DTypeLike, kernel: Kernel) -> None:
        self.count_B = np.array([len(query_MD) for query_MD in queries], np.int64)
        self.tile_B = np.concatenate([[0], np.cumsum(-(-self.count_B // _LANES))]).astype(np.int64)
        tiles, width = int(self.tile_B[-1]), queries[0].shape[1]
        padded = np.zeros((tiles * _LANES, -(-width // 64) * 64), np.float32)
        self.weight_M = np.zeros(tiles * _LANES, np.float32)
        for tile, query_MD in zip(self.tile_B, queries, strict=False):
            padded[tile * _LANES : tile * _LANES + len(query_MD), :width] = query_MD
            self.weight_M[tile * _LANES : tile * _LANES + len(query_MD)] = 1
        self.bias_M = np.zeros(tiles * _LANES, np.int32)
        if np.dtype(dtype) != np.float16:
            whole, scale_M = _whole(padded)
            self.weight_M *= scale_M
            self.bias_M = (-128 * whole.sum(axis=1)).astype(np.int32)
            padded = whole.astype(np.int16 if kernel == "avx2" else np.int8)
        parts = _halves(padded) if padded.dtype == np.float32 and kernel == "amx" else [padded]
        group = max(1, 4 // parts[0].itemsize)
        self.packed = _aligned(np.stack([part.reshape(tiles, _LANES, -1, group).transpose(0, 2, 1, 3) for part in parts], axis=1))


def kernel_scores(packed: PackedQueries, blocks: TokenBlocks, kernel: Kernel, first: int, last: int, score_BN: Float32) -> None:
    """Write the scores of clips first to last - 1 into columns first to last - 1 of `score_BN`, float32 [B, N], C-ordered.

    -inf for a clip without a counted token, NaN for one whose tokens or scales are not finite, or that names a centre it has not.
    """
    library = _library()
    if isinstance(library, str):
        raise VctoolError(library, "this is a defect in vctool: please report it")
    tokens_TD, packing = blocks.tokens_TD, blocks.packing
    job = _Job(
        tokens=_address(tokens_TD),
        rows=len(tokens_TD),
        dim=blocks.dim,
        row_bytes=tokens_TD.strides[0],
        scale=_address(blocks.scale_T),
        counted=_address(blocks.mask_T),
        offsets=_address(blocks.offsets),
        first=first,
        last=last,
        query=_address(packed.packed),
        bias=_address(packed.bias_M),
        weight=_address(packed.weight_M),
        query_tiles=_address(packed.tile_B),
        query_counts=_address(packed.count_B),
        queries=len(packed.count_B),
        scores=_address(score_BN),
        stride=score_BN.shape[1],
        centre=_address(None if packing is None else packing.centre_T),
        centres=_address(None if packing is None else packing.centre_CD),
        centre_scale=_address(None if packing is None else packing.centre_scale_C),
        centre_offsets=_address(None if packing is None else packing.centre_offsets),
    )
    kind = tokens_TD.dtype.name if packing is None else packing.precision
    if library.vctool_score(_BITS[kernel], _TYPES[kind], ctypes.byref(job)):
        raise VctoolError("there is not enough memory to score", "score fewer or shorter queries at once")


def _address(values: npt.NDArray[Any] | None) -> int | None:
    return None if values is None else values.ctypes.data


def rounded_query(query_MD: Float32, dtype: npt.DTypeLike) -> Float32:
    """The query tokens as the kernel for tokens of `dtype` sees them: rounded to int8 for int8 and packed tokens, unless NumPy scores."""
    if np.dtype(dtype) not in (np.dtype(np.int8), np.dtype(np.uint8)) or chosen_kernel(dtype) == "numpy":
        return query_MD
    whole_MD, scale_M = _whole(query_MD)
    return whole_MD * scale_M[:, None]


def _whole(query_MD: Float32) -> tuple[Float32, Float32]:
    """Query tokens as whole numbers from -127 to 127, and a scale for each: value = whole * scale."""
    scale_M = np.abs(query_MD).max(axis=1, initial=0) / np.float32(127)
    return np.rint(query_MD / np.where(scale_M > 0, scale_M, 1)[:, None]).clip(-127, 127), scale_M


def _halves(values: Float32) -> list[npt.NDArray[np.uint16]]:
    """Two bfloat16 whose sum is `values` to 16 bits, as their bits."""
    upper = _bfloat16(values)
    return [upper, _bfloat16(values - (upper.astype(np.uint32) << 16).view(np.float32))]


def _bfloat16(values: Float32) -> npt.NDArray[np.uint16]:
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)  # to nearest, ties to even


def _aligned(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A C-ordered copy whose first byte is on a 64-byte boundary."""
    room = np.empty(values.nbytes + 64, np.uint8)
    start = -room.ctypes.data % 64
    copy = room[start : start + values.nbytes].view(values.dtype).reshape(values.shape)
    copy[...] = values
    return copy
