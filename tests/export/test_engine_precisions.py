"""The exporter's own graphs in every precision, as engines: what was asked for is what the network computes in."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")

from vctool.config import ModelConfig, TemporalConfig  # noqa: E402
from vctool.errors import MissingExtraError  # noqa: E402
from vctool.models.temporal import build_temporal_encoder  # noqa: E402
from vctool.runtime.tensorrt_api import TensorRt, load_tensorrt  # noqa: E402
from vctool_export.engine_build import BuildLog, build  # noqa: E402
from vctool_export.engine_checks import check_graph, inputs_of  # noqa: E402
from vctool_export.engine_profiles import profiles_for  # noqa: E402
from vctool_export.graphs import GraphSpec, TemporalGraph  # noqa: E402
from vctool_export.onnx_export import export_graph  # noqa: E402
from vctool_export.precision import convert_to_half  # noqa: E402
from vctool_export.softmax_guards import move_softmax_guards  # noqa: E402

CONFIG = ModelConfig(embed_dim=32, frames=6, temporal=TemporalConfig(kind="transformer", layers=1, max_frames=16))


@pytest.fixture(scope="module")
def rtx() -> TensorRt:
    try:
        return load_tensorrt("tensorrt-rtx")
    except MissingExtraError as problem:
        pytest.skip(f"{problem.message}: the extra `rtx` has its packages")


@pytest.fixture(scope="module")
def temporal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A one-layer temporal encoder, exported by PyTorch."""
    torch.manual_seed(0)
    encoder = build_temporal_encoder(32, TemporalConfig(layers=1, head_width=16, mlp_ratio=2.0, max_frames=16))
    module = TemporalGraph(SimpleNamespace(temporal=encoder)).eval()
    batch, frame = torch.export.Dim("batch", min=1, max=64), torch.export.Dim("frames", min=1, max=16)
    spec = GraphSpec(
        "temporal",
        module,
        {"frame_features": torch.randn(2, 6, 32), "frame_mask": torch.ones(2, 6, dtype=torch.bool)},
        ("video_tokens", "video_mask"),
        {"frame_features": {0: batch, 1: frame}, "frame_mask": {0: batch, 1: frame}},
    )
    path = tmp_path_factory.mktemp("graph") / "temporal.onnx"
    export_graph(spec, path)
    return path


@pytest.mark.parametrize(
    ("precision", "kind", "sm"),
    [
        ("fp32", "float32", "sm80"),
        ("fp32", "float32", "sm89"),
        ("fp16", "float16", "sm80"),
        ("fp16", "float16", "sm89"),
        ("bf16", "bfloat16", "sm80"),
    ],
)
def test_products_run_in_the_precision_of_the_graph_and_norms_in_fp32(
    temporal: Path, rtx: TensorRt, tmp_path: Path, precision: str, kind: str, sm: str
) -> None:
    path = tmp_path / "temporal.onnx"
    if precision == "fp32":
        path = temporal
    else:
        convert_to_half(temporal, path, precision)
    assert check_graph(path, (sm,)) == []
    log = BuildLog(rtx, tmp_path / "log")
    made = build(rtx, path, profiles_for("temporal", inputs_of(path), CONFIG, 4), log, architecture=sm)
    log.close()
    made.precision.require(precision, "temporal")
    assert made.precision.share(kind) == 1 and made.io["video_tokens"] == made.io["frame_features"] == "float32"
    if precision != "fp32":
        assert made.precision.layers["float32"] >= 5  # norms, softmax, sums


def test_bfloat16_is_not_built_for_a_gpu_without_it(temporal: Path, tmp_path: Path) -> None:
    convert_to_half(temporal, tmp_path / "g.onnx", "bf16")
    assert {f.check for f in check_graph(tmp_path / "g.onnx", ("sm75",))} == {"architecture"}


def guarded_attention(path: Path) -> None:
    """Attention of one head as PyTorch exports it: x [5, 8], mask [5] of the keys."""
    node, numbers = onnx.helper.make_node, {"zero": 0.0, "least": -np.inf, "two": 2.0}
    nodes = [
        node("Where", ["mask", "zero", "least"], ["bias"]),
        node("Transpose", ["x"], ["keys"], perm=[1, 0]),
        node("MatMul", ["x", "keys"], ["near"]),
        node("Add", ["near", "bias"], ["masked"]),
        node("Softmax", ["masked"], ["weights"], axis=-1),
        node("IsNaN", ["weights"], ["none"], name="test"),
        node("Where", ["none", "zero", "weights"], ["safe"], name="guard"),
        node("Mul", ["x", "two"], ["values"]),
        node("MatMul", ["safe", "values"], ["seen"]),
        node("Identity", ["seen"], ["y"]),
    ]
    kinds = {"x": (onnx.TensorProto.FLOAT, [5, 8]), "mask": (onnx.TensorProto.BOOL, [5]), "y": (onnx.TensorProto.FLOAT, [5, 8])}
    ends = {name: onnx.helper.make_tensor_value_info(name, *kind) for name, kind in kinds.items()}
    weights = [onnx.numpy_helper.from_array(np.float32(value), name) for name, value in numbers.items()]
    graph = onnx.helper.make_graph(nodes, "g", [ends["x"], ends["mask"]], [ends["y"]], weights)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10), path)


@pytest.mark.parametrize("keys", [0, 3, 5])
def test_a_moved_guard_changes_no_answer_not_even_where_all_keys_are_masked(tmp_path: Path, keys: int) -> None:
    ort = pytest.importorskip("onnxruntime")
    guarded_attention(tmp_path / "a.onnx")
    model = onnx.load(tmp_path / "a.onnx")
    assert move_softmax_guards(model.graph) == 1
    onnx.checker.check_model(model)
    assert move_softmax_guards(model.graph) == 0  # it stays where it was put
    makers = {name: node.op_type for node in model.graph.node for name in node.output}
    assert [makers.get(n.input[0]) for n in model.graph.node if n.op_type == "MatMul"] == [None, "Softmax"]
    onnx.save(model, tmp_path / "b.onnx")
    feeds = {"x": np.random.default_rng(0).normal(size=(5, 8)).astype(np.float32), "mask": np.arange(5) < keys}
    before, after = (ort.InferenceSession(str(tmp_path / f"{name}.onnx")).run(None, feeds)[0] for name in "ab")
    np.testing.assert_array_equal(after, before)
    assert np.isfinite(after).all() and after.any() == bool(keys)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["ViT-B-16", "ViT-B-16-SigLIP", "MobileCLIP2-S0", "PE-Core-S-16-384"])
def test_the_towers_of_every_family_are_built(architecture: str, rtx: TensorRt, tmp_path: Path) -> None:
    """Text and frame towers with random weights in their true size, fp32 and fp16, for sm80 and sm89; minutes each."""
    pytest.importorskip("open_clip")
    from vctool.config import BackboneConfig, QueryConfig
    from vctool.models.open_clip_backbone import OpenClipBackbone
    from vctool.models.video_colbert import VideoColBERT
    from vctool_export.graphs import graph_specs

    backbone = OpenClipBackbone(architecture)
    config = ModelConfig(
        name=architecture,
        embed_dim=backbone.embed_dim,
        frames=12,
        backbone=BackboneConfig("open_clip", architecture),
        query=QueryConfig(policy="tokens", max_length=backbone.context_length),
        temporal=TemporalConfig(kind="mean", layers=0, expansion_tokens=0),
    )
    for spec in graph_specs(VideoColBERT(config, backbone).eval()):
        if spec.name not in ("text", "frame"):
            continue
        plain, half = tmp_path / f"{spec.name}.onnx", tmp_path / f"{spec.name}.fp16.onnx"
        export_graph(spec, plain)
        convert_to_half(plain, half, "fp16")
        for path, precision in ((plain, "fp32"), (half, "fp16")):
            for sm in ("sm80", "sm89"):
                assert check_graph(path, (sm,)) == []
                log = BuildLog(rtx, tmp_path / "log")
                made = build(rtx, path, profiles_for(spec.name, inputs_of(path), config, 8), log, architecture=sm)
                log.close()
                made.precision.require(precision, f"{architecture} {spec.name}")
                print(
                    f"{architecture} {spec.name} {precision} {sm}: {memoryview(made.plan).nbytes / 1e6:.0f} MB, {made.precision.products}"
                )
