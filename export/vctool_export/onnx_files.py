"""ONNX files as vctool writes them: weights beside the graph, metadata of the model inside, the module of every node."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx
from onnx import helper

MODULE_KEY = "module"
"""Key of a node's metadata: the PyTorch module it came from, as a dotted path."""


def save_graph(model: onnx.ModelProto, path: Path) -> None:
    """Write a graph with all its weights in `<name>.data` beside it, as the exporter does. OSError where the disk is full.

    A graph has no limit at 2 GB this way, and one file can be mapped.
    """
    data = path.with_name(path.name + ".data")
    data.unlink(missing_ok=True)  # onnx appends
    onnx.save_model(model, str(path), save_as_external_data=True, location=data.name, size_threshold=1024)


def set_metadata(model: onnx.ModelProto, values: Mapping[str, str]) -> None:
    """Add to, or replace in, the graph's metadata."""
    kept = {prop.key: prop.value for prop in model.metadata_props} | dict(values)
    helper.set_model_props(model, kept)


def module_of(node: onnx.NodeProto) -> str:
    """The PyTorch module a node came from, "" if it is not known."""
    return next((prop.value for prop in node.metadata_props if prop.key == MODULE_KEY), "")


def constants_as_initializers(graph: onnx.GraphProto) -> None:
    """Turn Constant nodes into initializers, in place."""
    kept = []
    for node in graph.node:
        value = (
            next((attribute.t for attribute in node.attribute if attribute.name == "value"), None) if node.op_type == "Constant" else None
        )
        if value is None:
            kept.append(node)
            continue
        value.name = node.output[0]
        graph.initializer.append(value)
    del graph.node[:]
    graph.node.extend(kept)
