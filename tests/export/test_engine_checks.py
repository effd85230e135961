"""What no engine may be built from, the profiles of an engine, and how its precision is read: all without TensorRT."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from tinymodel import build_tiny_model  # noqa: E402

from vctool.config import ModelConfig, TemporalConfig  # noqa: E402
from vctool.errors import ModelError, VerificationError  # noqa: E402
from vctool.runtime.model_directory import ModelDirectory  # noqa: E402
from vctool_export.engine_checks import check_graph, findings, inputs_of, require_buildable  # noqa: E402
from vctool_export.engine_precision import of_inspector  # noqa: E402
from vctool_export.engine_profiles import profiles_for  # noqa: E402

F, D, I64 = TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.INT64


def model_of(
    nodes: list[Any], inputs: Any = (("x", F, ["n"]),), outputs: Any = (("y", F, ["n"]),), weights: Any = (), opset: int = 18
) -> Any:
    ends = [[helper.make_tensor_value_info(*v) for v in values] for values in (inputs, outputs)]
    graph = helper.make_graph(nodes, "g", *ends, list(weights))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid("my", 1)], ir_version=10)


def found(model: Any, architectures: tuple[str, ...] = ()) -> list[tuple[str, str]]:
    return [(f.check, f.node) for f in findings(model, architectures)]


NODE = helper.make_node
CASES: dict[str, tuple[Any, tuple[str, str]]] = {
    "a float64 cast": (
        model_of([NODE("Cast", ["x"], ["d"], name="node_c", to=D), NODE("Cast", ["d"], ["y"], to=F)]),
        ("double precision", "node_c"),
    ),
    "a float64 weight": (
        model_of([NODE("Identity", ["x"], ["y"])], weights=[numpy_helper.from_array(np.zeros(3), "w")]),
        ("double precision", ""),
    ),
    "a float64 input": (
        model_of([NODE("Cast", ["x"], ["y"], to=F)], inputs=[("x", D, ["n"])]),
        ("types at the edge", ""),
    ),
    "a plugin": (model_of([NODE("Attention", ["x"], ["y"], name="node_p", domain="my")]), ("plugins", "node_p")),
    "a size that the data decides": (
        model_of([NODE("NonZero", ["x"], ["y"], name="node_z")], outputs=[("y", I64, [1, "m"])]),
        ("sizes that depend on data", "node_z"),
    ),
    "a loop": (
        model_of([NODE("Loop", ["", "", "x"], ["y"], name="node_l", body=helper.make_graph([], "b", [], []))]),
        ("control flow", "node_l"),
    ),
    "bytes inside": (
        model_of([NODE("Cast", ["x"], ["b"], name="node_b", to=TensorProto.UINT8), NODE("Cast", ["b"], ["y"], to=F)]),
        ("bytes inside", "node_b"),
    ),
    "an index beyond int32": (
        model_of([NODE("Identity", ["x"], ["y"])], weights=[numpy_helper.from_array(np.array([2**40]), "far")]),
        ("int64", ""),
    ),
    "an operator set that is too new": (model_of([NODE("Identity", ["x"], ["y"])], opset=23), ("opset", "")),
    "one that is too old": (model_of([NODE("Identity", ["x"], ["y"])], opset=17), ("opset", "")),
}


@pytest.mark.parametrize("name", CASES)
def test_each_check_finds_its_fault(name: str) -> None:
    model, expected = CASES[name]
    assert found(model) == [expected]


def test_bfloat16_needs_sm80() -> None:
    model = model_of([NODE("Cast", ["x"], ["b"], name="node_b", to=TensorProto.BFLOAT16), NODE("Cast", ["b"], ["y"], to=F)])
    assert found(model, ("sm89", "sm75")) == [("architecture", "node_b")] and found(model, ("sm80",)) == found(model) == []


def test_to_the_end_is_no_index() -> None:
    ends = numpy_helper.from_array(np.array([np.iinfo(np.int64).max, np.iinfo(np.int64).min, -1, 2**31 - 1]), "ends")
    assert not found(model_of([NODE("Identity", ["x"], ["y"])], weights=[ends]))


@pytest.mark.parametrize("kind", ["transformer", "mean"])
def test_our_own_graphs_have_no_findings(tmp_path: Path, kind: str) -> None:
    model = build_tiny_model(tmp_path / "m", temporal=kind)
    for name in ("text", "frame", "temporal"):
        assert check_graph(model / "onnx" / f"{name}.onnx", ("sm75",)) == []


def test_the_bundled_models_have_no_findings() -> None:
    from vctool.demo.show import MODELS, bundled_model

    for bundle in MODELS:
        for graph in sorted((bundled_model(bundle) / "onnx").glob("*.onnx")):
            assert check_graph(graph, ("sm75",)) == []


def test_the_first_fault_is_told_with_its_module_and_the_number_of_others(tmp_path: Path) -> None:
    node = NODE("Cast", ["x"], ["d"], name="node_c", to=D)
    node.metadata_props.add(key="module", value="backbone.visual.norm")
    onnx.save(model_of([node, NODE("NonZero", ["d"], ["y"], name="node_z")], outputs=[("y", I64, [1, "m"])]), tmp_path / "g.onnx")
    with pytest.raises(ModelError) as caught:
        require_buildable(tmp_path / "g.onnx")
    told = "d is float64, which TensorRT does not have at node node_c (module backbone.visual.norm), and 1 more"
    assert caught.value.message == f"g.onnx: no engine can be built: {told}"


def test_a_file_that_is_no_graph_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "g.onnx").write_bytes(b"\xff\xff no")
    with pytest.raises(ModelError, match=r"g\.onnx: not an ONNX graph"):
        check_graph(tmp_path / "g.onnx")


def test_profiles_are_one_for_a_person_and_one_for_a_folder(tmp_path: Path) -> None:
    model = build_tiny_model(tmp_path / "m", frames=4)  # reads at most 16 frames
    config = ModelDirectory.open(model).config
    by_graph = {n: profiles_for(n, inputs_of(model / "onnx" / f"{n}.onnx"), config, 8) for n in ("text", "frame", "temporal")}
    assert {n: [p.name for p in ps] for n, ps in by_graph.items()} == {n: ["interactive", "bulk"] for n in by_graph}
    one, lot = by_graph["frame"]
    assert one.ranges["frames"] == ((1, 16, 16, 3), (4, 16, 16, 3), (16, 16, 16, 3))
    assert lot.ranges["frames"] == ((1, 16, 16, 3), (16, 16, 16, 3), (32, 16, 16, 3))
    one, lot = by_graph["text"]
    assert one.ranges["input_ids"] == one.ranges["attention_mask"] == ((1, 12), (1, 12), (1, 12)) and lot.batch == 8
    one, lot = by_graph["temporal"]
    assert one.ranges["frame_mask"] == ((1, 1), (1, 4), (1, 16)) and lot.ranges["frame_features"][2] == (8, 16, 8)


def test_a_profile_says_why_it_refuses_shapes(tmp_path: Path) -> None:
    config = ModelConfig(embed_dim=8, frames=4, temporal=TemporalConfig(kind="transformer", max_frames=16))
    one, lot = profiles_for("temporal", {"frame_features": ["b", "f", 8], "frame_mask": ["b", "f"]}, config, 8)
    shapes = {"frame_features": (2, 5, 8), "frame_mask": (2, 5)}
    assert one.refuses(shapes) == "frame_features [2, 5, 8] is not within [1, 1, 8] to [1, 16, 8]" and lot.refuses(shapes) is None


def test_a_graph_without_dynamic_axes_has_one_profile() -> None:
    (fixed,) = profiles_for("text", {"input_ids": [1, 77]}, ModelConfig(embed_dim=8, frames=4))
    assert fixed.name == "fixed" and fixed.ranges == {"input_ids": ((1, 77), (1, 77), (1, 77))}


def test_an_axis_without_a_range_is_named() -> None:
    with pytest.raises(ModelError, match=r"graph frame: axis 1 \('height'\) of frames is dynamic"):
        profiles_for("frame", {"frames": ["n", "height", 16, 3]}, ModelConfig(embed_dim=8, frames=4))


def layer(kind: str, *types: str, key: str = "Format/Datatype") -> dict[str, Any]:
    sides = [{"Name": "t", key: name} for name in types]
    return {"Name": "l", "LayerType": kind, "Inputs": sides[:-1], "Outputs": sides[-1:]}


@pytest.mark.parametrize("key", ["Format/Datatype", "Datatype"])
def test_an_inspector_tells_types_in_the_words_of_either_version(key: str) -> None:
    text = json.dumps(
        {
            "Layers": [
                layer("gemm", "Row major linear FP16 format", "Half", key=key),
                layer("CaskConvolution", "Half", "Half", key=key),
                layer("gemm", "Float", "Row major linear FP32", key=key),
                layer("kgen", "Float", "Float", key=key),
                layer("Reformat", "Int64", "Int32", key=key),
            ],
            "Bindings": ["x"],
        }
    )
    precision = of_inspector(text)
    assert precision.products == {"float16": 2, "float32": 1} and precision.layers == {"float16": 2, "float32": 2}
    assert (precision.label, precision.source, round(precision.share("float16"), 3)) == ("fp16", "engine inspector", 0.667)
    precision.require("fp16", "frame")
    with pytest.raises(VerificationError, match="frame was to be fp32"):
        precision.require("fp32", "frame")


def test_an_inspector_that_tells_only_names_is_not_believed() -> None:
    with pytest.raises(ValueError, match="names of layers only"):
        of_inspector('{"Layers": ["gemm_1"], "Bindings": []}')
