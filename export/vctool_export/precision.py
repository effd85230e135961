"""Half precision in the graph itself: one explicit policy, applied to a plain fp32 graph, with a report of what runs in what.

Strongly typed runtimes (TensorRT 10.12 and later) compute in the types that the graph has, so the graph is where precision is decided:

- matrix products and convolutions run in the half type, and their weights are stored in it;
- data movement follows its inputs, and in fp16 pointwise operations do; where the types meet, fp32 wins;
- everything else stays in fp32: normalisations, softmax, L2 norms, reductions, powers and roots, and sums of two activations
  (residual streams are long sums); so do all inputs and outputs of the graph.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from vctool.errors import ModelError
from vctool_export.onnx_files import constants_as_initializers, module_of, save_graph
from vctool_export.softmax_guards import move_softmax_guards

HALF: dict[str, tuple[int, Any]] = {
    "fp16": (onnx.TensorProto.FLOAT16, np.float16),
    "bf16": (onnx.TensorProto.BFLOAT16, ml_dtypes.bfloat16),
}
"""ONNX and numpy type of each half precision."""

COMPUTE = frozenset(("MatMul", "Gemm", "Conv", "ConvTranspose", "Einsum"))
"""Operations that run in the half type."""

# fmt: off
MOVES = frozenset((
    "Identity", "Reshape", "Transpose", "Slice", "Concat", "Split", "Squeeze", "Unsqueeze", "Expand", "Tile", "Pad", "Flatten",
    "DepthToSpace", "SpaceToDepth", "Gather", "GatherND", "GatherElements", "Where", "Clip", "Relu", "MaxPool",
))
"""Operations that round nothing: they run in the type of their inputs."""

POINTWISE = frozenset((
    "Add", "Sub", "Mul", "Div", "Neg", "Abs", "LeakyRelu", "Gelu", "Erf", "Tanh", "Sigmoid", "HardSigmoid", "HardSwish",
))
"""The same in fp16. With bf16's 8 bits each of them costs (GELU alone is five), and fused they cost no time in fp32: they stay."""

NO_FLOAT = frozenset((
    "Shape", "Size", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "IsNaN", "IsInf", "Not", "And", "Or", "Xor",
    "ArgMax", "ArgMin", "NonZero", "BitwiseNot",
))
"""Operations whose outputs are never floating point."""
# fmt: on

TABLES = frozenset(("Gather", "GatherND", "GatherElements"))
"""Look-ups: a table of weights is stored in the half type, what is looked up begins the residual stream and is fp32 again."""


@dataclass(frozen=True)
class Layer:
    """One floating-point operation of a graph: node, operator, the module it came from, the type it runs in, and why."""

    node: str
    op: str
    module: str
    runs: str
    why: str


@dataclass(frozen=True)
class PrecisionReport:
    """What runs in what. weights: numbers stored in each type."""

    precision: str
    layers: tuple[Layer, ...]
    weights: Mapping[str, int]

    def counts(self) -> dict[str, dict[str, int]]:
        """Number of layers by operator and type."""
        table: dict[str, Counter[str]] = {}
        for layer in self.layers:
            table.setdefault(layer.op, Counter())[layer.runs] += 1
        return {op: dict(sorted(count.items())) for op, count in sorted(table.items())}

    def to_json(self) -> dict[str, Any]:
        """Counts, weights, and every layer."""
        return {
            "precision": self.precision,
            "operators": self.counts(),
            "weights": dict(self.weights),
            "layers": [vars(layer) for layer in self.layers],
        }


def convert_to_half(source: Path, target: Path, precision: str) -> PrecisionReport:
    """Write `target`, the plain fp32 graph `source` in `fp16` or `bf16` under the policy above (weights beside it as `.data`).

    Raises ModelError for a graph with control flow, naming the node.
    """
    model = onnx.load(source)
    move_softmax_guards(model.graph)
    report = _Conversion(model, precision).run()
    save_graph(model, target)
    return report


def layers_of(model: onnx.ModelProto, half: str | None = None) -> PrecisionReport:
    """The report for a graph as it is: what types its floating-point operations have by their weights and casts."""
    low = low_tensors(model)
    layers = []
    for node in model.graph.node:
        if node.op_type in ("Cast", "Constant", *NO_FLOAT):
            continue
        runs = "half" if any(name in low for name in [*node.input, *node.output]) else "fp32"
        layers.append(Layer(node.name, node.op_type, module_of(node), half or runs if runs == "half" else "fp32", ""))
    return PrecisionReport(half or "fp32", tuple(layers), weights_by_type(model))


@dataclass
class _Conversion:
    model: onnx.ModelProto
    precision: str
    kinds: dict[str, str] = field(default_factory=dict)  # tensor -> "fp32", "half"; absent: not floating point
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    layers: list[Layer] = field(default_factory=list)
    casts: dict[tuple[str, str], str] = field(default_factory=dict)

    def run(self) -> PrecisionReport:
        graph = self.model.graph
        constants_as_initializers(graph)
        self.opset = next(opset.version for opset in self.model.opset_import if opset.domain in ("", "ai.onnx"))
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        self.halves: dict[str, onnx.TensorProto | None] = {}
        for value in graph.input:
            if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT:
                self.kinds[value.name] = "fp32"
        for tensor in graph.initializer:
            if tensor.data_type == onnx.TensorProto.FLOAT:
                self.kinds[tensor.name] = "fp32"
        for node in graph.node:
            if any(attribute.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for attribute in node.attribute):
                raise ModelError(
                    f"{graph.name or 'the graph'}: node {node.name} ({node.op_type}, from {module_of(node) or 'an unknown module'}) "
                    f"has control flow, which the {self.precision} policy does not follow",
                    "export it in fp32",
                )
            self._node(node)
        self._outputs()
        del graph.node[:]
        graph.node.extend(self.nodes)
        del graph.value_info[:]  # they say fp32 of what is not any more
        used = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
        tensors = [*self.constants.values(), *(tensor for tensor in self.halves.values() if tensor is not None)]
        del graph.initializer[:]
        graph.initializer.extend(tensor for tensor in tensors if tensor.name in used)
        return PrecisionReport(self.precision, tuple(self.layers), weights_by_type(self.model))

    def _node(self, node: onnx.NodeProto) -> None:
        if node.op_type == "Cast":
            to = next(attribute.i for attribute in node.attribute if attribute.name == "to")
            self.nodes.append(node)
            if to == onnx.TensorProto.FLOAT:
                self.kinds[node.output[0]] = "fp32"
            return
        floats = [name for name in node.input if name in self.kinds]
        moving = [name for name in floats if name not in self.constants]
        runs, why = self._decide(node, floats, moving)
        if floats and node.op_type not in NO_FLOAT:
            label = self.precision if runs == "half" else "fp32"
            self.layers.append(Layer(node.name, node.op_type, module_of(node), label, why))
        for index, name in enumerate(node.input):
            if name in self.kinds:
                node.input[index] = self._as(name, runs)
        self.nodes.append(node)
        if node.op_type in NO_FLOAT or not (floats or _makes_floats(node)):
            return
        table = node.op_type in TABLES and runs == "half" and not moving
        for position, name in enumerate(node.output):
            if not name or (node.op_type in ("TopK", "MaxPool") and position == 1):
                continue
            self.kinds[name] = runs
            if table:
                inner = f"{name}.{self.precision}"
                node.output[position] = inner
                self.nodes.append(self._cast(inner, name, "fp32"))
                self.kinds[name] = "fp32"

    def _decide(self, node: onnx.NodeProto, floats: list[str], moving: list[str]) -> tuple[str, str]:
        """The type a node runs in, and why."""
        if not floats:
            return "fp32", ""
        if any(name in self.constants and self._half_constant(name) is None for name in floats):
            return "fp32", f"a constant does not fit into {self.precision}"
        if (node.op_type in COMPUTE | MOVES | POINTWISE) and not self._exists(node.op_type):
            return "fp32", f"{node.op_type} has no {self.precision} at opset {self.opset}"
        if node.op_type in COMPUTE:
            return "half", "matrix product or convolution"
        if node.op_type in TABLES and not moving:
            # Measured on the bundled demo model: bf16 tables take the worst query token from cosine 0.9994 to 0.9989.
            return ("half", "table of weights") if self.precision == "fp16" else ("fp32", "a look-up is no arithmetic to save on")
        if node.op_type in POINTWISE and self.precision == "bf16":
            return "fp32", "pointwise, would be rounded to 8 bits"
        if node.op_type not in MOVES | POINTWISE:
            return "fp32", "normalisation, softmax, norm, reduction or root" if node.op_type not in NO_FLOAT else ""
        if node.op_type == "Add" and len(moving) == 2:
            return "fp32", "sum of two activations"
        if moving and all(self.kinds[name] == "half" for name in moving):
            return "half", "follows its inputs"
        return "fp32", "an input is fp32" if moving else "constants"

    def _exists(self, operator: str) -> bool:
        """Whether the standard has the operator in the half type (Conv has no bf16 before opset 22)."""
        schema = onnx.defs.get_schema(operator, self.opset)
        wanted = "tensor(float16)" if self.precision == "fp16" else "tensor(bfloat16)"
        return any("tensor(float)" in c.allowed_type_strs and wanted in c.allowed_type_strs for c in schema.type_constraints)

    def _as(self, name: str, wanted: str) -> str:
        if name in self.constants:
            if wanted == "fp32":
                return name
            tensor = self._half_constant(name)
            assert tensor is not None, "decided before"
            return tensor.name
        if self.kinds[name] == wanted:
            return name
        if (name, wanted) not in self.casts:
            self.casts[name, wanted] = f"{name}.to_{self.precision if wanted == 'half' else 'fp32'}"
            self.nodes.append(self._cast(name, self.casts[name, wanted], wanted))
        return self.casts[name, wanted]

    def _cast(self, source: str, target: str, wanted: str) -> onnx.NodeProto:
        to = HALF[self.precision][0] if wanted == "half" else onnx.TensorProto.FLOAT
        return helper.make_node("Cast", [source], [target], name=f"precision/{target}", to=to)

    def _half_constant(self, name: str) -> onnx.TensorProto | None:
        """The constant in the half type; None where a finite value of it would become infinite."""
        if name not in self.halves:
            array = numpy_helper.to_array(self.constants[name])
            with np.errstate(over="ignore"):
                half = array.astype(HALF[self.precision][1])
            fits = bool((np.isfinite(half.astype(np.float32)) | ~np.isfinite(array)).all())
            self.halves[name] = _tensor(half, f"{name}.{self.precision}", HALF[self.precision][0]) if fits else None
        return self.halves[name]

    def _outputs(self) -> None:
        for value in self.model.graph.output:
            if self.kinds.get(value.name) == "half":
                inner = f"{value.name}.{self.precision}"
                for node in self.nodes:
                    for names in (node.input, node.output):
                        for index, name in enumerate(names):
                            if name == value.name:
                                names[index] = inner
                self.nodes.append(self._cast(inner, value.name, "fp32"))


def emulate_half(source: Path, target: Path) -> None:
    """Write `target`, a graph in fp32 that rounds wherever the half-precision graph `source` holds a half tensor.

    The CPU provider of ONNX Runtime cannot show what a half graph does: it has no bf16 at all, and it runs fp16 in fp32 and takes
    out the casts between, so that an overflow goes unseen (checked with 1.31). Here each half tensor passes through
    fp32 -> half -> fp32: products of half numbers summed in fp32 and rounded once, which is what tensor cores do.
    """
    model = onnx.load(source)
    graph = model.graph
    low = low_tensors(model)
    half = next((t.data_type for t in graph.initializer if t.data_type in _HALVES), None) or _half_of_casts(graph)
    if half is not None:
        for tensor in graph.initializer:
            if tensor.data_type in _HALVES:
                tensor.CopyFrom(numpy_helper.from_array(_array(tensor).astype(np.float32), tensor.name))
        nodes: list[onnx.NodeProto] = []
        for node in graph.node:
            rounded = [name for name in node.output if name in low]
            if node.op_type == "Cast" and rounded:
                next(attribute for attribute in node.attribute if attribute.name == "to").i = onnx.TensorProto.FLOAT
            for name in rounded:
                node.output[list(node.output).index(name)] = f"{name}.exact"
            nodes.append(node)
            for name in rounded:
                nodes.append(helper.make_node("Cast", [f"{name}.exact"], [f"{name}.half"], to=half))
                nodes.append(helper.make_node("Cast", [f"{name}.half"], [name], to=onnx.TensorProto.FLOAT))
        del graph.node[:]
        graph.node.extend(nodes)
        del graph.value_info[:]
    save_graph(model, target)


def low_tensors(model: onnx.ModelProto) -> set[str]:
    """Names of the tensors that are fp16 or bf16."""
    graph = model.graph
    low = {tensor.name for tensor in graph.initializer if tensor.data_type in _HALVES}
    low |= {value.name for value in graph.input if value.type.tensor_type.elem_type in _HALVES}
    for node in graph.node:
        if node.op_type == "Cast":
            if next(attribute.i for attribute in node.attribute if attribute.name == "to") in _HALVES:
                low.add(node.output[0])
        elif node.op_type not in NO_FLOAT and any(name in low for name in node.input):
            low.update(node.output[:1] if node.op_type in ("TopK", "MaxPool") else node.output)
    return low


_HALVES = dict(HALF.values())


def _half_of_casts(graph: onnx.GraphProto) -> int | None:
    targets = (attribute.i for node in graph.node if node.op_type == "Cast" for attribute in node.attribute if attribute.name == "to")
    return next((to for to in targets if to in _HALVES), None)


def _array(tensor: onnx.TensorProto) -> NDArray[Any]:
    """A half tensor as numpy; bf16 is read from its bits."""
    if tensor.data_type == onnx.TensorProto.BFLOAT16 and tensor.raw_data:
        return np.frombuffer(tensor.raw_data, dtype=ml_dtypes.bfloat16).reshape(tuple(tensor.dims))
    return numpy_helper.to_array(tensor)


def _tensor(half: NDArray[Any], name: str, kind: int) -> onnx.TensorProto:
    return helper.make_tensor(name, kind, half.shape, half.tobytes(), raw=True)


def _makes_floats(node: onnx.NodeProto) -> bool:
    """Whether an operation without floating-point inputs gives floating-point outputs (ConstantOfShape without a value does)."""
    if node.op_type != "ConstantOfShape":
        return False
    value = next((attribute.t for attribute in node.attribute if attribute.name == "value"), None)
    return value is None or value.data_type == onnx.TensorProto.FLOAT


def weights_by_type(model: onnx.ModelProto) -> dict[str, int]:
    names = {onnx.TensorProto.FLOAT: "fp32", **{number: name for name, (number, _) in HALF.items()}, onnx.TensorProto.INT8: "int8"}
    names |= {onnx.TensorProto.UINT8: "uint8"}
    count: Counter[str] = Counter()
    for name, size in _sizes(model, names):
        count[name] += size
    return dict(count)


def _sizes(model: onnx.ModelProto, names: Mapping[int, str]) -> Iterator[tuple[str, int]]:
    for tensor in model.graph.initializer:
        if tensor.data_type in names:
            yield names[tensor.data_type], int(np.prod(tensor.dims, dtype=np.int64))
