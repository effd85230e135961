"""What a token store is on disk: its members, their shapes and dtypes, and the `.npy` headers around them.

Shape letters: N clips, T tokens of all clips end to end, D width.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vctool.errors import StoreError
from vctool.precision import MEMBERS, PRECISIONS, Precision

SCHEMA = 1
ALIGNMENT = 64  # bytes; a cache line, and the widest vector register: kernels may load a mapped array without a prologue

StoreDtype = Precision
STORE_DTYPES: tuple[str, ...] = PRECISIONS
BRANCHES = ("frame", "video")

AnyArray = npt.NDArray[Any]

# The order in the file: big arrays first, so that a store cut short is seen to be cut by its missing directory.
REQUIRED_MEMBERS = (
    "frame_TD", "frame_offsets", "frame_time_T",
    "video_TD", "video_offsets", "video_time_T",
    "clip_ids_bytes", "clip_ids_offsets",
    "clip_paths_bytes", "clip_paths_offsets",
    "clip_meta", "clip_meta_offsets",
    "manifest",
)  # fmt: skip
# What stores of one precision have and those of another have not.
PRECISION_MEMBERS = MEMBERS["compact"]
POOLED_MEMBERS = ("pooled_PD", "pooled_scale_P", "pooled_offsets")  # all or none of them


@dataclass(frozen=True)
class RowGroup:
    """Members whose rows belong to the clips by the same offsets: clip `i` owns rows `offsets[i]:offsets[i+1]` of each.

    offsets None: row `i` is clip `i`'s. A store that lacks a member of the group lacks it for all clips. A store that we write has the
    first member of a group or nothing of it. Whoever copies clips follows this table and knows nothing else of what a clip is made of.
    """

    offsets: str | None
    members: tuple[str, ...]


ROW_GROUPS = (
    RowGroup("frame_offsets", ("frame_time_T", "frame_TD", "frame_scale_T", "frame_centre_T")),
    RowGroup("video_offsets", ("video_time_T", "video_TD", "video_scale_T", "video_centre_T")),
    RowGroup("centre_offsets", ("centre_scale_C", "centre_CD")),
    RowGroup("pooled_offsets", ("pooled_scale_P", "pooled_PD")),
    RowGroup("clip_ids_offsets", ("clip_ids_bytes",)),
    RowGroup("clip_paths_offsets", ("clip_paths_bytes",)),
    RowGroup("clip_meta_offsets", ("clip_meta",)),
)
GROUP_OF = {member: group for group in ROW_GROUPS for member in group.members}
TOKEN_MEMBERS = ("frame_TD", "video_TD")
_TWO_DIMENSIONS = (*TOKEN_MEMBERS, "centre_CD", "pooled_PD")

# Token arrays are float16, int8 or packed bytes in our stores; a foreign one may hold float32.
_TOKEN_DTYPES = ("float16", "int8", "uint8", "float32")
_FIXED_DTYPES = {
    "frame_offsets": "int64", "video_offsets": "int64",
    "frame_time_T": "float32", "video_time_T": "float32",
    "frame_scale_T": "float32", "video_scale_T": "float32",
    "frame_centre_T": "uint8", "video_centre_T": "uint8",
    "centre_CD": "uint8", "centre_scale_C": "float32", "centre_offsets": "int64",
    "pooled_PD": "int8", "pooled_scale_P": "float32", "pooled_offsets": "int64",
    "clip_ids_bytes": "uint8", "clip_ids_offsets": "int64",
    "clip_paths_bytes": "uint8", "clip_paths_offsets": "int64",
    "clip_meta": "uint8", "clip_meta_offsets": "int64",
    "manifest": "uint8",
}  # fmt: skip

_MAGIC = b"\x93NUMPY"
_LONGEST_HEADER = 10_000  # numpy's own limit
# numpy's evaluator is not used on bytes of unknown origin: what a store holds is always this one plain form.
_HEADER = re.compile(
    rb"\{'descr': '([^']{1,16})', 'fortran_order': (True|False), "
    rb"'shape': \((|[0-9]{1,19},|[0-9]{1,19}(?:, ?[0-9]{1,19}){1,7},?)\),? ?\} *\n"
)
_SIMPLE = re.compile(r"[<>|=][biufcSUV?][0-9]{0,4}")


@dataclass(frozen=True)
class ArrayHeader:
    """The dtype, shape and order of one `.npy` member; `size` is the header's length in bytes."""

    descr: str
    shape: tuple[int, ...]
    fortran_order: bool
    size: int

    @property
    def count(self) -> int:
        """Number of elements (a Python integer: a hostile shape cannot overflow it)."""
        total = 1
        for side in self.shape:
            total *= side
        return total


def npy_header(dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> bytes:
    """The `.npy` 1.0 header of a C-ordered array, padded so that header + data keep 64-byte alignment.

    Written here and not by numpy, whose padding differs between versions: the same tokens must give the same bytes.
    """
    sides = f"({shape[0]},)" if len(shape) == 1 else "(" + ", ".join(map(str, shape)) + ")"
    text = f"{{'descr': '{dtype.str}', 'fortran_order': False, 'shape': {sides}, }}".encode("ascii")
    padding = -(len(_MAGIC) + 2 + 2 + len(text) + 1) % ALIGNMENT
    text += b" " * padding + b"\n"
    return _MAGIC + b"\x01\x00" + len(text).to_bytes(2, "little") + text


def parse_npy_header(data: memoryview, member: str, where: str) -> ArrayHeader:
    """Read the header at the start of `data`; raises StoreError on anything but a plain array."""
    head = bytes(data[:12])
    if head[:6] != _MAGIC or len(head) < 12 or head[6] not in (1, 2, 3):
        raise StoreError(f"{where}: member '{member}' is not a NumPy array", "the file is damaged: build the store again")
    start = 10 if head[6] == 1 else 12
    length = int.from_bytes(head[8:start], "little")
    text = bytes(data[start : start + length]) if length <= _LONGEST_HEADER else b""
    if len(text) != length or not text:
        raise StoreError(f"{where}: the header of member '{member}' is cut", "the file is damaged: build the store again")
    match = _HEADER.fullmatch(text)
    if match is None:
        raise StoreError(f"{where}: member '{member}' is not a plain numeric array", "write arrays of one simple dtype")
    shape = tuple(int(side) for side in match[3].replace(b" ", b"").split(b",") if side)
    return ArrayHeader(match[1].decode("latin-1"), shape, match[2] == b"True", start + length)


def mapped_array(data: memoryview) -> AnyArray | None:
    """The array in the bytes of one `.npy` file of anybody's make, not copied; None if its header is not a plain one or does not fit."""
    try:
        header = parse_npy_header(data, "", "")
        dtype = np.dtype(header.descr if _SIMPLE.fullmatch(header.descr) else "no dtype")
    except (StoreError, TypeError, ValueError):
        return None
    if dtype.hasobject or header.count * dtype.itemsize != len(data) - header.size:
        return None
    flat = np.frombuffer(data, dtype=dtype, count=header.count, offset=header.size)
    return flat.reshape(header.shape, order="F" if header.fortran_order else "C")


def check_member(name: str, header: ArrayHeader, where: str) -> np.dtype[np.generic]:
    """The dtype of member `name`, in the file's byte order; raises StoreError if it is not what the format says."""
    if header.descr.endswith("O"):
        raise StoreError(f"{where}: member '{name}' holds Python objects", "store strings as UTF-8 bytes and offsets, never as objects")
    if header.descr == "|V2":
        raise StoreError(
            f"{where}: member '{name}' has dtype |V2 (bfloat16, which .npz cannot name)", "convert the tokens to float16 before saving"
        )
    expected = _TOKEN_DTYPES if name in TOKEN_MEMBERS else (_FIXED_DTYPES[name],)
    try:
        # numpy.dtype evaluates more than names ("(2,)f4,O"): it sees nothing but a kind and a size.
        dtype = np.dtype(header.descr if _SIMPLE.fullmatch(header.descr) else "no dtype")
    except (TypeError, ValueError):
        raise StoreError(f"{where}: member '{name}' has an unknown dtype {header.descr!r}", f"expected {' or '.join(expected)}") from None
    if dtype.newbyteorder("=").name not in expected:
        raise StoreError(f"{where}: member '{name}' has dtype {dtype.name}", f"expected {' or '.join(expected)}")
    dimensions = 2 if name in _TWO_DIMENSIONS else 1
    if len(header.shape) != dimensions:
        raise StoreError(
            f"{where}: member '{name}' has shape {header.shape}", f"expected {dimensions} dimension{'s' if dimensions > 1 else ''}"
        )
    return dtype
