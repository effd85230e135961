"""Graphs with 8-bit weights: activations quantised as they come (`int8`), not at all (`int8-weights`), or by ranges measured on the
user's clips (`int8-qdq`).

Only matrix products with weights, and convolutions in `int8-qdq`, become int8. Products of two activations (attention), norms,
softmax, reductions, tables and all inputs and outputs stay in fp32.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from vctool_export.onnx_files import constants_as_initializers, module_of, save_graph
from vctool_export.precision import Layer, PrecisionReport, weights_by_type

Array = NDArray[Any]


def quantize_dynamic(source: Path, target: Path) -> PrecisionReport:
    """Weights of matrix products to int8, one scale for each output column; activations are quantised as they come."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with _quietly(source) as plain, tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        made = Path(scratch) / "int8.onnx"
        # Columns with scales of their own: towers have outlier channels, and one scale for all would round the others to nothing.
        quantize_dynamic(
            plain,
            made,
            op_types_to_quantize=["MatMul", "Gemm"],
            per_channel=True,
            weight_type=QuantType.QInt8,
            use_external_data_format=True,
        )
        return _finish(made, target, source, "int8")


def quantize_weights(source: Path, target: Path, block: int = 32) -> PrecisionReport:
    """Weights of matrix products to 8 bits with a scale for every `block` of them; a product sums blocks of int8 in fp32.

    Nearly exact and half the file, but no quicker than fp32 in ONNX Runtime 1.31.
    """
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    with _quietly(source) as plain, tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        quantizer = MatMulNBitsQuantizer(onnx.load(plain), bits=8, block_size=block, is_symmetric=True, accuracy_level=4)
        quantizer.process()
        made = Path(scratch) / "int8.onnx"
        save_graph(quantizer.model.model, made)
        return _finish(made, target, source, "int8-weights")


def quantize_static(source: Path, target: Path, calibration: Sequence[Mapping[str, Array]]) -> PrecisionReport:
    """Q/DQ nodes around matrix products and convolutions, with the ranges that `calibration` (feeds of the graph) shows.

    Symmetric int8 on both sides with zero points of zero, biases in fp32: what TensorRT takes as well as ONNX Runtime.
    """
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static

    class Feeds(CalibrationDataReader):  # type: ignore[misc]  # untyped base
        def __init__(self) -> None:
            self._left = iter(calibration)

        def get_next(self) -> dict[str, Array] | None:
            return next((dict(feeds) for feeds in self._left), None)

    with _quietly(source) as plain, tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        made = Path(scratch) / "int8.onnx"
        model = onnx.load(plain, load_external_data=False)
        constant = {tensor.name for tensor in model.graph.initializer}
        products = [n.name for n in model.graph.node if n.op_type == "MatMul" and not any(name in constant for name in n.input)]
        quantize_static(
            plain,
            made,
            Feeds(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["MatMul", "Gemm", "Conv"],
            nodes_to_exclude=products,
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            use_external_data_format=True,
            extra_options={"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False},
        )
        return _finish(made, target, source, "int8-qdq")


@contextlib.contextmanager
def _quietly(source: Path) -> Iterator[Path]:
    """The graph with its constants as initializers (in a file of its own), and the quantiser's talk switched off."""
    # It logs every node, and through a logger of its own.
    talkers = [logging.getLogger(), logging.getLogger("onnxruntime.quantization.matmul_nbits_quantizer")]
    levels = [log.level for log in talkers]
    with tempfile.TemporaryDirectory(dir=source.parent) as scratch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for log in talkers:
            log.setLevel(logging.ERROR)
        try:
            model = onnx.load(source)
            constants_as_initializers(model.graph)
            del model.graph.value_info[:]  # the quantiser turns weights round and then trips over their old shapes
            plain = Path(scratch) / source.name
            save_graph(model, plain)
            del model
            yield plain
        finally:
            for log, level in zip(talkers, levels, strict=True):
                log.setLevel(level)


def _finish(made: Path, target: Path, source: Path, precision: str) -> PrecisionReport:
    model = onnx.load(made)
    modules = {node.name: module_of(node) for node in onnx.load(source, load_external_data=False).graph.node}
    save_graph(model, target)
    return PrecisionReport(precision, tuple(_layers(model, modules)), weights_by_type(model))


def _layers(model: onnx.ModelProto, modules: Mapping[str, str]) -> Iterator[Layer]:
    made_by = {name: node for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        if node.op_type in ("DequantizeLinear", "QuantizeLinear", "DynamicQuantizeLinear", "Cast", "Shape"):
            continue
        module = modules.get(node.name) or modules.get(node.name.removesuffix("_quant"), "")
        if node.op_type in ("MatMulInteger", "ConvInteger", "MatMulNBits"):
            yield Layer(node.name, node.op_type, module, "int8", "product with weights")
            continue
        makers = [made_by[name] for name in node.input if name in made_by]
        dequantized = node.op_type in ("MatMul", "Gemm", "Conv") and sum(m.op_type == "DequantizeLinear" for m in makers) >= 2
        yield Layer(node.name, node.op_type, module, "int8" if dequantized else "fp32", "product with weights" if dequantized else "")


def calibration_feeds(graph: str, rows: Mapping[str, Array], batch: int = 8) -> list[dict[str, Array]]:
    """Rows of a graph's inputs in batches, for `quantize_static`."""
    count = len(next(iter(rows.values())))
    return [{name: np.ascontiguousarray(value[i : i + batch]) for name, value in rows.items()} for i in range(0, count, batch)]
