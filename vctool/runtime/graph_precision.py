"""Whether an ONNX file holds float16 weights, found by walking its protobuf without the onnx package.

ONNX Runtime must know before it loads the file: its default optimisation level crashes the process on half-precision
transformers on the CPU (NchwcTransformer; seen in 1.27 to 1.31).
Field numbers: onnx.proto3 (ModelProto.graph = 7, GraphProto.initializer = 5, TensorProto.data_type = 2, FLOAT16 = 10).
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

_GRAPH, _INITIALIZER, _DATA_TYPE, _FLOAT16 = 7, 5, 2, 10


def has_float16(path: Path) -> bool:
    """True if any initializer of the graph is float16. False for a file that is not an ONNX graph: its loader will say so."""
    if path.stat().st_size == 0:
        return False
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            return any(
                _data_type(data, *tensor) == _FLOAT16
                for graph in _messages(data, 0, len(data), _GRAPH)
                for tensor in _messages(data, *graph, _INITIALIZER)
            )
        except (IndexError, ValueError):
            return False


def _messages(data: mmap.mmap, begin: int, end: int, wanted: int) -> Iterator[tuple[int, int]]:
    """Byte ranges of the length-delimited fields number `wanted` of the message in `data[begin:end]`."""
    for field, wire, start, stop in _fields(data, begin, end):
        if field == wanted and wire == 2:
            yield start, stop


def _data_type(data: mmap.mmap, begin: int, end: int) -> int | None:
    for field, wire, start, _ in _fields(data, begin, end):
        if field == _DATA_TYPE and wire == 0:
            return _varint(data, start)[0]
    return None


def _fields(data: mmap.mmap, position: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Field number, wire type, and the byte range of the value of each field; nothing inside a value is read."""
    while position < end:
        tag, position = _varint(data, position)
        wire = tag & 7
        start = position
        if wire == 0:
            position = _varint(data, position)[1]
        elif wire == 1:
            position += 8
        elif wire == 5:
            position += 4
        elif wire == 2:
            length, start = _varint(data, position)
            position = start + length
        else:
            raise ValueError(f"wire type {wire}")
        if position > end:
            raise ValueError("a field ends outside its message")
        yield tag >> 3, wire, start, position


def _varint(data: mmap.mmap, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
