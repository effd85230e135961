"""What a graph must not hold if an engine is to be built from it: a short list of our own, run before every build.

TensorRT for RTX accepts some graphs that the enterprise library refuses, and the other way round; a build that passes here must not
fail on the machine that matters. docs/export.md explains each check. Read from the ONNX file alone, without TensorRT.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import AttributeProto, NodeProto, TensorProto, helper, numpy_helper

from vctool.errors import ModelError

NEWEST_OPSET = 22
"""Newest operator set that both libraries build from in fp32: 23 brings one node for attention, which RTX builds in half precision only."""

IO_TYPES = frozenset({"FLOAT", "FLOAT16", "BFLOAT16", "INT8", "INT32", "INT64", "BOOL", "UINT8"})
STANDARD = frozenset({"", "ai.onnx"})
# TensorRT would need memory whose size only the data knows: no fixed buffers, no CUDA graphs.
DATA_SIZED = frozenset({"NonZero", "Unique", "Compress", "NonMaxSuppression", "StringNormalizer", "SequenceAt", "SplitToSequence"})
CONTROL_FLOW = frozenset({"If", "Loop", "Scan"})
# First compute capability with products in that type.
NEEDS_SM = {"BFLOAT16": 80, "FLOAT8E4M3FN": 89, "FLOAT4E2M1": 100}


@dataclass(frozen=True)
class Finding:
    """One thing that stands in the way. check: its name in docs/export.md; node, module: where, "" if not at a node."""

    check: str
    text: str
    node: str = ""
    module: str = ""

    def __str__(self) -> str:
        place = f" at node {self.node}" if self.node else ""
        return f"{self.text}{place}{f' (module {self.module})' if self.module else ''}"


def check_graph(path: Path, architectures: tuple[str, ...] = ()) -> list[Finding]:
    """All findings over the graph at `path`. architectures: what will be built for, `("sm80", …)`.

    Raises ModelError if the file is not an ONNX graph.
    """
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as problem:  # protobuf's errors have no base class of their own
        raise ModelError(f"{path}: not an ONNX graph: {problem}", "export the model again with `vctool export`") from None
    return list(findings(model, architectures))


def require_buildable(path: Path, architectures: tuple[str, ...] = ()) -> None:
    """Raises ModelError, one line naming the first finding and the number of others."""
    found = check_graph(path, architectures)
    if found:
        more = f", and {len(found) - 1} more" if len(found) > 1 else ""
        raise ModelError(f"{path.name}: no engine can be built: {found[0]}{more}", "docs/export.md lists what engines must not hold")


def findings(model: onnx.ModelProto, architectures: tuple[str, ...] = ()) -> Iterator[Finding]:
    """All findings over a graph, by check."""
    modules = Modules(model.graph)
    yield from _opset(model)
    yield from _io(model.graph)
    yield from _types(model.graph, modules, architectures)
    yield from _operators(model, modules)
    yield from _int64(model.graph)


class Modules:
    """Where nodes came from: their own metadata, else the nearest weight's name, which the exporter makes from the module's."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._nodes = {node.name: node for node in graph.node}
        self._weights = {tensor.name for tensor in graph.initializer}
        self._makers = {name: node for node in graph.node for name in node.output}

    def of(self, node: NodeProto | str) -> str:
        """The module's dotted path, "" where nothing tells it."""
        found = self._nodes.get(node) if isinstance(node, str) else node
        if found is None:
            return ""
        told = next((str(p.value) for p in found.metadata_props if p.key == "module"), "")
        return told or self._by_weights(found)

    def _by_weights(self, node: NodeProto) -> str:
        around = [node]
        for _ in range(4):  # a few steps against the flow: a product, its reshape, its transpose
            for near in around:
                named = [name for name in near.input if name in self._weights and "." in name]
                if named:
                    return str(named[0]).rpartition(".")[0]
            around = [self._makers[name] for near in around for name in near.input if name in self._makers]
        return ""


def _opset(model: onnx.ModelProto) -> Iterator[Finding]:
    version = next((o.version for o in model.opset_import if o.domain in STANDARD), 0)
    if not 18 <= version <= NEWEST_OPSET:
        yield Finding("opset", f"its operator set is {version}, engines are built from 18 to {NEWEST_OPSET}")


def _io(graph: onnx.GraphProto) -> Iterator[Finding]:
    for value in (*graph.input, *graph.output):
        name = TensorProto.DataType.Name(value.type.tensor_type.elem_type)
        if name not in IO_TYPES:
            yield Finding("types at the edge", f"{value.name} is {name}, which no engine takes or gives")


def _types(graph: onnx.GraphProto, modules: Modules, architectures: tuple[str, ...]) -> Iterator[Finding]:
    bytes_ok = {value.name for value in (*graph.input, *graph.output)}
    lowest = min((int(sm.removeprefix("sm")) for sm in architectures), default=None)
    for node, kinds in _kinds(graph):
        name, where = (node.name, modules.of(node)) if node is not None else ("", "")
        for kind, what in kinds.items():
            if kind == "DOUBLE":
                # RTX takes it and computes in something else; the enterprise library refuses it.
                yield Finding("double precision", f"{what} is float64, which TensorRT does not have", name, where)
            elif kind in ("STRING", "COMPLEX64", "COMPLEX128", "UINT16", "UINT32", "UINT64", "INT16"):
                yield Finding("types", f"{what} is {kind}, which TensorRT does not have", name, where)
            elif kind == "UINT8" and node is not None and node.op_type == "Cast" and what not in bytes_ok:
                yield Finding("bytes inside", f"{what} is uint8 inside the graph; bytes are for inputs and outputs", name, where)
            elif lowest is not None and lowest < NEEDS_SM.get(kind, 0):
                yield Finding("architecture", f"{what} is {kind}, which sm{lowest} does not compute in", name, where)


def _kinds(graph: onnx.GraphProto) -> Iterator[tuple[NodeProto | None, Mapping[str, str]]]:
    """Types that the graph names: by node where a node makes them."""
    for tensor in graph.initializer:
        yield None, {TensorProto.DataType.Name(tensor.data_type): f"weight {tensor.name}"}
    for value in graph.value_info:
        kind = TensorProto.DataType.Name(value.type.tensor_type.elem_type)
        if kind == "DOUBLE":
            yield next((n for n in graph.node if value.name in n.output), None), {kind: f"tensor {value.name}"}
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to":
                yield node, {TensorProto.DataType.Name(attribute.i): node.output[0]}
            elif attribute.type == AttributeProto.TENSOR:
                yield node, {TensorProto.DataType.Name(attribute.t.data_type): f"constant {node.output[0]}"}


def _operators(model: onnx.ModelProto, modules: Modules) -> Iterator[Finding]:
    own = {(f.domain, f.name) for f in model.functions}
    for node in model.graph.node:
        where = modules.of(node)
        if node.domain not in STANDARD:
            what = "a function of the exporter, which was not inlined" if (node.domain, node.op_type) in own else "a plugin"
            yield Finding("plugins", f"{node.domain}::{node.op_type} is {what}", node.name, where)
        elif node.op_type in DATA_SIZED:
            yield Finding("sizes that depend on data", f"{node.op_type} gives as much as its data says", node.name, where)
        elif node.op_type in CONTROL_FLOW:
            yield Finding("control flow", f"{node.op_type} branches at run time, which no CUDA graph records", node.name, where)


def _int64(graph: onnx.GraphProto) -> Iterator[Finding]:
    """Indices beyond int32: enterprise kernels compute indices of many layers in int32, and say nothing."""
    # Exporters write these for "to the end" and "from the start"; parsers know them.
    marks = {np.iinfo(np.int64).max, np.iinfo(np.int64).min, np.iinfo(np.int64).min + 1}
    constants = [(t.name, t) for t in graph.initializer if t.data_type == TensorProto.INT64]
    for node in graph.node:
        if node.op_type == "Constant":
            tensors = [a.t for a in node.attribute if a.type == AttributeProto.TENSOR and a.t.data_type == TensorProto.INT64]
            constants += [(node.output[0], t) for t in tensors]
    for name, tensor in constants:
        if tensor.data_location == TensorProto.EXTERNAL:
            continue  # kilobytes of integers are a table, not an index
        values = numpy_helper.to_array(tensor).reshape(-1)
        wide = [int(v) for v in values if abs(int(v)) > np.iinfo(np.int32).max and int(v) not in marks]
        if wide:
            yield Finding("int64", f"constant {name} holds {wide[0]}, beyond int32")


def inputs_of(path: Path) -> dict[str, list[int | str]]:
    """Sides of each input of a graph; dynamic ones by name."""
    graph = onnx.load(str(path), load_external_data=False).graph
    return {v.name: [d.dim_param or int(d.dim_value) for d in v.type.tensor_type.shape.dim] for v in graph.input}


def outputs_of(path: Path) -> dict[str, list[int | str]]:
    """Sides of each output of a graph; dynamic ones by name."""
    graph = onnx.load(str(path), load_external_data=False).graph
    return {v.name: [d.dim_param or int(d.dim_value) for d in v.type.tensor_type.shape.dim] for v in graph.output}


def types_of(path: Path) -> dict[str, str]:
    """Element type of each input and output, as numpy spells it."""
    graph = onnx.load(str(path), load_external_data=False).graph
    return {v.name: str(helper.tensor_dtype_to_np_dtype(v.type.tensor_type.elem_type)) for v in (*graph.input, *graph.output)}
