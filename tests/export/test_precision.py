"""The precision policy: what runs in what, and that an emulated half graph rounds where the real one would."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
pytest.importorskip("ml_dtypes")

import ml_dtypes  # noqa: E402
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from vctool.errors import ModelError  # noqa: E402
from vctool_export.onnx_files import MODULE_KEY  # noqa: E402
from vctool_export.precision import convert_to_half, emulate_half  # noqa: E402

HALVES = {"fp16": np.float16, "bf16": ml_dtypes.bfloat16}


def graph(nodes: list[Any], constants: dict[str, Any], width: int = 8) -> Any:
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", width])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", None])]
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    return helper.make_model(
        helper.make_graph(nodes, "g", inputs, outputs, tensors), opset_imports=[helper.make_opsetid("", 18)], ir_version=10
    )


def run(path: Path, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    result: np.ndarray[Any, Any] = session.run(["y"], {"x": x})[0]
    return result


@pytest.fixture
def block(tmp_path: Path) -> Path:
    """A transformer's MLP with its norm, residual and L2 norm."""
    rng = np.random.default_rng(0)
    weights = {
        "scale": np.ones(8, np.float32),
        "shift": np.zeros(8, np.float32),
        "w1": rng.normal(size=(8, 16)).astype(np.float32),
        "b1": rng.normal(size=16).astype(np.float32),
        "w2": rng.normal(size=(16, 8)).astype(np.float32),
        "axis": np.array([1]),
    }
    product = helper.make_node("MatMul", ["n", "w1"], ["h"], name="fc1")
    product.metadata_props.add(key=MODULE_KEY, value="block.mlp.fc1")
    nodes = [
        helper.make_node("LayerNormalization", ["x", "scale", "shift"], ["n"], name="norm", axis=-1),
        product,
        helper.make_node("Add", ["h", "b1"], ["hb"], name="bias"),
        helper.make_node("Relu", ["hb"], ["r"], name="relu"),
        helper.make_node("MatMul", ["r", "w2"], ["o"], name="fc2"),
        helper.make_node("Add", ["x", "o"], ["s"], name="residual"),
        helper.make_node("ReduceL2", ["s", "axis"], ["l"], name="l2", keepdims=1),
        helper.make_node("Div", ["s", "l"], ["y"], name="unit"),
    ]
    onnx.save(graph(nodes, weights), tmp_path / "block.onnx")
    return tmp_path / "block.onnx"


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_norms_reductions_residuals_and_io_stay_in_fp32(precision: str, block: Path, tmp_path: Path) -> None:
    report = convert_to_half(block, tmp_path / "half.onnx", precision)
    runs = {layer.node: layer.runs for layer in report.layers}
    assert {name: runs[name] for name in ("norm", "residual", "l2", "unit")} == dict.fromkeys(("norm", "residual", "l2", "unit"), "fp32")
    assert runs["fc1"] == runs["fc2"] == precision and runs["bias"] == ("fp16" if precision == "fp16" else "fp32")
    assert next(layer.module for layer in report.layers if layer.node == "fc1") == "block.mlp.fc1"
    assert report.counts()["MatMul"] == {precision: 2} and report.weights[precision] >= 2 * 8 * 16
    made = onnx.load(tmp_path / "half.onnx")
    onnx.checker.check_model(made, full_check=True)  # every node is given types that its operator takes
    assert {v.type.tensor_type.elem_type for v in [*made.graph.input, *made.graph.output]} == {TensorProto.FLOAT}


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_the_emulation_computes_what_half_units_would(precision: str, block: Path, tmp_path: Path) -> None:
    half = HALVES[precision]
    convert_to_half(block, tmp_path / "half.onnx", precision)
    emulate_half(tmp_path / "half.onnx", tmp_path / "emulated.onnx")
    x = np.random.default_rng(1).normal(size=(5, 8)).astype(np.float32)

    def rounded(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return array.astype(half).astype(np.float32)

    # The same by hand: products of rounded numbers, summed in fp32 and rounded once.
    weights = {t.name: numpy_helper.to_array(t) for t in onnx.load(block).graph.initializer}
    normed = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)
    hidden = rounded(rounded(normed) @ rounded(weights["w1"]))
    hidden = rounded(hidden + rounded(weights["b1"])) if precision == "fp16" else hidden + weights["b1"]
    summed = x + rounded(rounded(np.maximum(hidden, 0)) @ rounded(weights["w2"]))
    wanted = summed / np.linalg.norm(summed, axis=1, keepdims=True)
    np.testing.assert_allclose(run(tmp_path / "emulated.onnx", x), wanted, atol=2e-3 if precision == "fp16" else 1e-2)
    assert np.abs(run(tmp_path / "emulated.onnx", x) - run(block, x)).max() > 1e-5  # it does round


def test_the_emulation_shows_an_overflow_that_the_cpu_provider_hides(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "big"], ["a"], name="first"),
        helper.make_node("MatMul", ["a", "small"], ["y"], name="second"),
    ]
    constants = {"big": np.eye(8, dtype=np.float32) * 3e4, "small": np.eye(8, dtype=np.float32) / 3e4}
    onnx.save(graph(nodes, constants), tmp_path / "plain.onnx")
    x = np.full((1, 8), 9.0, np.float32)  # 9 * 3e4 is beyond fp16
    for precision, finite in (("fp16", False), ("bf16", True)):
        convert_to_half(tmp_path / "plain.onnx", tmp_path / "half.onnx", precision)
        emulate_half(tmp_path / "half.onnx", tmp_path / "emulated.onnx")
        assert bool(np.isfinite(run(tmp_path / "emulated.onnx", x)).all()) is finite


def test_a_constant_beyond_fp16_keeps_its_operation_in_fp32(tmp_path: Path) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")]
    onnx.save(graph(nodes, {"w": np.full((8, 8), 1e6, np.float32)}), tmp_path / "plain.onnx")
    (layer,) = convert_to_half(tmp_path / "plain.onnx", tmp_path / "half.onnx", "fp16").layers
    assert layer.runs == "fp32" and "does not fit" in layer.why
    (layer,) = convert_to_half(tmp_path / "plain.onnx", tmp_path / "half.onnx", "bf16").layers
    assert layer.runs == "bf16"


def test_control_flow_is_refused_with_its_node(tmp_path: Path) -> None:
    branch = helper.make_graph([helper.make_node("Identity", ["x"], ["b"])], "b", [], [helper.make_tensor_value_info("b", 1, None)])
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["m"], keepdims=0),
        helper.make_node("Cast", ["m"], ["c"], to=TensorProto.BOOL),
        helper.make_node("If", ["c"], ["y"], name="choice", then_branch=branch, else_branch=branch),
    ]
    onnx.save(graph(nodes, {}), tmp_path / "plain.onnx")
    with pytest.raises(ModelError, match=r"node choice \(If"):
        convert_to_half(tmp_path / "plain.onnx", tmp_path / "half.onnx", "fp16")


def test_a_table_is_stored_in_fp16_and_read_into_fp32(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("ArgMax", ["x"], ["i"], axis=1, keepdims=0),
        helper.make_node("Gather", ["table", "i"], ["g"], name="look-up"),
        helper.make_node("MatMul", ["g", "w"], ["y"], name="product"),
    ]
    rng = np.random.default_rng(0)
    constants = {"table": rng.normal(size=(8, 600)).astype(np.float32), "w": rng.normal(size=(600, 4)).astype(np.float32)}
    onnx.save(graph(nodes, constants), tmp_path / "plain.onnx")
    report = convert_to_half(tmp_path / "plain.onnx", tmp_path / "half.onnx", "fp16")
    assert report.weights == {"fp16": 8 * 600 + 600 * 4}
    onnx.checker.check_model(str(tmp_path / "half.onnx"), full_check=True)
