"""Exported graphs: proved against PyTorch, refused when they drift."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
ort = pytest.importorskip("onnxruntime")

from vctool.config import BackboneConfig, ModelConfig, QueryConfig, TemporalConfig  # noqa: E402
from vctool.errors import InputError, ModelError  # noqa: E402
from vctool.models.temporal import build_temporal_encoder  # noqa: E402
from vctool_export import onnx_export  # noqa: E402
from vctool_export.graphs import GraphSpec, TemporalGraph  # noqa: E402
from vctool_export.onnx_export import export_graph  # noqa: E402
from vctool_export.reference import Bank, Reference  # noqa: E402
from vctool_export.torch_reference import TorchSession  # noqa: E402
from vctool_export.verdict import LIMITS, Verdict  # noqa: E402
from vctool_export.verify import verify_artifact  # noqa: E402


@pytest.fixture(scope="module")
def temporal(tmp_path_factory: pytest.TempPathFactory) -> tuple[GraphSpec, Path]:
    """A small temporal encoder with its exported graph."""
    torch.manual_seed(0)
    encoder = build_temporal_encoder(32, TemporalConfig(layers=1, head_width=16, mlp_ratio=2.0, max_frames=16))
    module = TemporalGraph(SimpleNamespace(temporal=encoder)).eval()
    batch, frame = torch.export.Dim("batch", min=1, max=64), torch.export.Dim("frames", min=1, max=16)
    mask = torch.ones(2, 6, dtype=torch.bool)
    mask[0, 4:] = False
    spec = GraphSpec(
        "temporal",
        module,
        {"frame_features": torch.randn(2, 6, 32), "frame_mask": mask},
        ("video_tokens", "video_mask"),
        {"frame_features": {0: batch, 1: frame}, "frame_mask": {0: batch, 1: frame}},
    )
    path = tmp_path_factory.mktemp("graph") / "temporal.onnx"
    export_graph(spec, path, {"graph": "temporal"})
    return spec, path


def judged(spec: GraphSpec, path: Path) -> Verdict:
    """The verdict over one graph, against its own module."""
    from vctool.runtime.sessions import Graph

    feeds = {name: value.numpy() for name, value in spec.inputs.items()}
    wanted = dict(zip(spec.outputs, TorchSession(spec).run(spec.outputs, feeds), strict=True))
    bank = Bank(spec.name, "example", ("one", "two"), feeds, wanted)
    return verify_artifact(lambda _: Graph(path, device="cpu", threads=1), Reference((bank,), None, {}, {spec.name: 5}))


def test_a_graph_equals_its_module_at_every_batch(temporal: tuple[GraphSpec, Path]) -> None:
    verdict = judged(*temporal)
    assert not verdict.failures and {check.case for check in verdict.checks if check.ok} == {f"example, batch {n}" for n in (1, 2, 5)}
    error = verdict.worst("tensors", "temporal", "max_abs")
    assert error is not None and error < 1e-5


def test_a_node_knows_the_module_it_came_from(temporal: tuple[GraphSpec, Path]) -> None:
    from vctool_export.onnx_files import module_of

    modules = {module_of(node) for node in onnx.load(temporal[1], load_external_data=False).graph.node if node.op_type == "MatMul"}
    assert "temporal.blocks.0.qkv" in modules


def test_an_operation_without_an_onnx_form_is_named_with_its_module(tmp_path: Path) -> None:
    class Bessel(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.special.bessel_j0(x)

    module = torch.nn.ModuleDict({"pool": Bessel()})
    module.forward = lambda x: module["pool"](x)  # type: ignore[method-assign]
    batch = torch.export.Dim("batch", min=1, max=64)
    with pytest.raises(ModelError, match=r"frame: the operation .*bessel_j0.* has no ONNX form \(node bessel_j0, in module pool\)"):
        export_graph(GraphSpec("frame", module, {"x": torch.randn(2, 3)}, ("y",), {"x": {0: batch}}), tmp_path / "bad.onnx")


@pytest.mark.parametrize("frames", [1, 2, 16])
def test_the_number_of_frames_is_dynamic(temporal: tuple[GraphSpec, Path], frames: int) -> None:
    spec, path = temporal
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    features, mask = torch.randn(3, frames, 32), torch.ones(3, frames, dtype=torch.bool)
    got = session.run(["video_tokens"], {"frame_features": features.numpy(), "frame_mask": mask.numpy()})[0]
    with torch.no_grad():
        np.testing.assert_allclose(got, spec.module(features, mask)[0].numpy(), atol=1e-5)


def test_batch_and_frames_are_named_axes_and_the_opset_is_18(temporal: tuple[GraphSpec, Path]) -> None:
    model = onnx.load(temporal[1], load_external_data=False)
    axes = [d.dim_param or d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
    assert axes == ["batch", "frames", 32]
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 18)]


def test_a_graph_says_nothing_of_the_machine_that_made_it(temporal: tuple[GraphSpec, Path]) -> None:
    assert str(Path(onnx_export.__file__).parents[2]).encode() not in temporal[1].read_bytes()


def test_one_altered_weight_is_caught(temporal: tuple[GraphSpec, Path], tmp_path: Path) -> None:
    spec, path = temporal
    model = onnx.load(path)
    weight = next(t for t in model.graph.initializer if len(t.dims) == 2 and t.dims[0] * t.dims[1] > 1000)
    array = onnx.numpy_helper.to_array(weight).copy()
    array[0, 0] += 1.0
    weight.CopyFrom(onnx.numpy_helper.from_array(array, weight.name))
    onnx.save(model, tmp_path / "altered.onnx")
    verdict = judged(spec, tmp_path / "altered.onnx")
    assert verdict.status == "failed" and verdict.reason.startswith("tensors: temporal")
    assert verdict.worst("tensors", "temporal", "max_abs", largest=True) > (LIMITS["fp32"].max_abs or 0)


@pytest.mark.slow
def test_a_local_open_clip_checkpoint_becomes_a_model_that_encodes_like_open_clip(tmp_path: Path) -> None:
    open_clip = pytest.importorskip("open_clip")
    from vctool.runtime.encoder import TextEncoder, VideoEncoder
    from vctool.runtime.model_directory import ModelDirectory
    from vctool_export.from_open_clip import fetch_open_clip

    torch.manual_seed(0)
    original = open_clip.create_model("ViT-B-32-quickgelu", pretrained=None).eval()
    torch.save({"state_dict": original.state_dict()}, tmp_path / "weights.pt")
    fetch_open_clip("ViT-B-32-quickgelu", tmp_path / "weights.pt", tmp_path / "model", frames=4, progress=lambda _: None)
    directory = ModelDirectory.open(tmp_path / "model")
    text = "a dog catching a frisbee, isn't it?"
    with torch.no_grad():
        wanted = original.encode_text(open_clip.get_tokenizer("ViT-B-32-quickgelu")([text]), normalize=True).numpy()
    got = TextEncoder(directory, provider="onnxruntime").encode([text])[0].query_QD
    np.testing.assert_allclose(got, wanted, atol=1e-5)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), dtype=np.uint8)
    mean, std = (torch.tensor(v) for v in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD))
    with torch.no_grad():
        image = original.encode_image(((torch.from_numpy(pixels).float() / 255 - mean) / std).permute(0, 3, 1, 2)).numpy()
    np.testing.assert_allclose(VideoEncoder(directory, provider="onnxruntime").frame_features(pixels), image, atol=1e-4)


def test_a_checkpoint_of_another_architecture_is_named(tmp_path: Path) -> None:
    pytest.importorskip("open_clip")
    from vctool.models.open_clip_backbone import OpenClipBackbone

    torch.save({"state_dict": {"visual.proj": torch.zeros(3, 3)}}, tmp_path / "weights.pt")
    with pytest.raises(ModelError, match="does not hold the weights of ViT-B-32"):
        OpenClipBackbone("ViT-B-32", checkpoint=tmp_path / "weights.pt")


def test_fetching_into_a_folder_that_exists_is_refused(tmp_path: Path) -> None:
    from vctool_export.from_open_clip import fetch_open_clip

    with pytest.raises(InputError, match="exists already"):
        fetch_open_clip("ViT-B-32", tmp_path / "weights.pt", tmp_path, frames=4, progress=lambda _: None)


def test_a_bidirectional_tower_refuses_a_shorter_text() -> None:
    pytest.importorskip("open_clip")
    from vctool.models.checkpoint import build_model

    config = ModelConfig(embed_dim=768, backbone=BackboneConfig("open_clip", "ViT-B-16-SigLIP"), query=QueryConfig(max_length=32))
    with pytest.raises(ModelError, match="must always see 64 tokens"):
        build_model(config)
