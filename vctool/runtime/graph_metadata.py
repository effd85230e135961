"""What an ONNX file says about itself (its `metadata_props`), read by walking its protobuf without the onnx package.

Field numbers: onnx.proto3 (ModelProto.metadata_props = 14, StringStringEntryProto.key = 1, value = 2).
"""

from __future__ import annotations

import mmap
from pathlib import Path

from vctool.runtime.graph_precision import fields_of, messages_of

_METADATA, _KEY, _VALUE = 14, 1, 2


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of a graph; empty for a file that is not an ONNX graph (its loader will say so). Raises OSError."""
    if path.stat().st_size == 0:
        return {}
    found: dict[str, str] = {}
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            for entry in messages_of(data, 0, len(data), _METADATA):
                parts = {number: data[start:stop].decode() for number, wire, start, stop in fields_of(data, *entry) if wire == 2}
                found[parts.get(_KEY, "")] = parts.get(_VALUE, "")
        except (IndexError, ValueError):  # UnicodeDecodeError is one
            return {}
    return found
