"""In which precision an ONNX file keeps its weights, found by walking its protobuf without the onnx package.

ONNX Runtime must know before it loads the file: its default optimisation level crashes the process on half-precision
transformers on the CPU (NchwcTransformer; seen in 1.27 to 1.31).
Field numbers: onnx.proto3 (ModelProto.graph = 7, GraphProto.initializer = 5, TensorProto.dims = 1, data_type = 2).
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

_GRAPH, _INITIALIZER, _DIMS, _DATA_TYPE = 7, 5, 1, 2
# TensorProto.DataType: the types that weights come in. INT8 and UINT8 both are what quantisers write.
_TYPES = {1: "float32", 10: "float16", 16: "bfloat16", 3: "int8", 2: "int8", 21: "int4", 22: "int4"}


def precision_of(path: Path) -> str:
    """The type of the weights that make the graph's precision: `float32`, `float16`, `bfloat16`, `int8`, `int4`.

    `int8` and `int4` need a tenth of all weights, half precision any at all, since that is what loaders must be careful with.
    `float32` for a file that is not an ONNX graph: its loader will say so.
    """
    counts = _weights(path)
    total = sum(counts.values())
    # Quantisers leave the token embedding as it was, which may be most of a small tower.
    quantised = [name for name in ("int8", "int4") if counts.get(name, 0) * 10 >= total > 0]
    return next((name for name in (*quantised, "float16", "bfloat16") if counts.get(name)), "float32")


def has_float16(path: Path) -> bool:
    """True if any initializer of the graph is float16. False for a file that is not an ONNX graph: its loader will say so."""
    return "float16" in _weights(path)


def _weights(path: Path) -> dict[str, int]:
    """Numbers of weights by type; empty for a file that is not an ONNX graph."""
    counts: dict[str, int] = {}
    if path.stat().st_size == 0:
        return counts
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            for graph in messages_of(data, 0, len(data), _GRAPH):
                for tensor in messages_of(data, *graph, _INITIALIZER):
                    kind, size = _type_and_size(data, *tensor)
                    if kind in _TYPES:
                        counts[_TYPES[kind]] = counts.get(_TYPES[kind], 0) + size
        except (IndexError, ValueError):
            return {}
    return counts


def messages_of(data: mmap.mmap, begin: int, end: int, wanted: int) -> Iterator[tuple[int, int]]:
    """Byte ranges of the length-delimited fields number `wanted` of the message in `data[begin:end]`."""
    for field, wire, start, stop in fields_of(data, begin, end):
        if field == wanted and wire == 2:
            yield start, stop


def _type_and_size(data: mmap.mmap, begin: int, end: int) -> tuple[int, int]:
    kind, size = 0, 1
    for field, wire, start, stop in fields_of(data, begin, end):
        if field == _DATA_TYPE and wire == 0:
            kind = _varint(data, start)[0]
        elif field == _DIMS:  # repeated: one by one, or packed
            while start < stop:
                side, start = _varint(data, start)
                size *= side
    return kind, size


def fields_of(data: mmap.mmap, position: int, end: int) -> Iterator[tuple[int, int, int, int]]:
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
