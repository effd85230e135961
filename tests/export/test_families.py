"""Graphs of every backbone family equal their PyTorch models: in miniature always, in full size when asked (`-m slow`)."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from towers import small_probe

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
pytest.importorskip("open_clip")

from tinytowers import tiny_model  # noqa: E402

from vctool.config import BackboneConfig, ModelConfig, QueryConfig, TemporalConfig  # noqa: E402
from vctool.models.checkpoint import build_model, save_model  # noqa: E402
from vctool.models.video_colbert import VideoColBERT  # noqa: E402
from vctool.runtime.sessions import Graph  # noqa: E402
from vctool_export.exporting import export_graphs  # noqa: E402
from vctool_export.graphs import dynamic_length, graph_modules, graph_specs, reparameterized  # noqa: E402
from vctool_export.onnx_export import export_graph  # noqa: E402
from vctool_export.precision import convert_to_half, emulate_half  # noqa: E402
from vctool_export.reference import Bank, Reference  # noqa: E402
from vctool_export.torch_reference import TorchSession  # noqa: E402
from vctool_export.verdict import LIMITS, Verdict  # noqa: E402
from vctool_export.verify import verify_artifact  # noqa: E402


def exported(model: VideoColBERT, graph: str, path: Path) -> Reference:
    """Export one graph of a model; its answers on noise as a reference."""
    torch.set_num_threads(1)
    export_graph(next(spec for spec in graph_specs(model) if spec.name == graph), path)
    spec = next(spec for spec in graph_modules(model) if spec.name == graph)
    feeds = {name: value.numpy() for name, value in spec.inputs.items()}
    wanted = dict(zip(spec.outputs, TorchSession(spec).run(spec.outputs, feeds), strict=True))
    return Reference((Bank(graph, "noise", ("first", "second"), feeds, wanted),), None, {}, {graph: 5})


def judged(reference: Reference, path: Path, precision: str) -> Verdict:
    return verify_artifact(lambda _: Graph(path, device="cpu", threads=1), reference, precision=precision)


@pytest.mark.parametrize(
    ("family", "graph"),
    [("tiny-siglip", "text"), ("tiny-siglip", "frame"), ("tiny-pe", "frame"), ("tiny-mobileclip", "frame"), ("tiny-mobileclip-b", "frame")],
)
def test_every_family_in_miniature(family: str, graph: str, tmp_path: Path) -> None:
    path = tmp_path / f"{graph}.onnx"
    model = tiny_model(family)
    reference = exported(model, graph, path)
    assert not judged(reference, path, "fp32").failures
    for precision in ("fp16", "bf16"):
        half, emulated = tmp_path / f"{precision}.onnx", tmp_path / f"{precision}.rounded.onnx"
        convert_to_half(path, half, precision)
        onnx.checker.check_model(str(half), full_check=True)
        emulate_half(half, emulated)
        verdict = judged(reference, emulated, precision)
        assert not verdict.failures, verdict.reason
    if family == "tiny-mobileclip":
        operators = [node.op_type for node in onnx.load(path, load_external_data=False).graph.node]
        norms = sum(isinstance(module, torch.nn.BatchNorm2d) for module in model.modules())
        assert operators.count("BatchNormalization") < norms / 2  # most are folded, and it is still what the unfolded model computes


def test_folding_changes_the_graph_and_leaves_the_model_alone() -> None:
    model = tiny_model("tiny-mobileclip")
    norms = sum(isinstance(m, torch.nn.BatchNorm2d) for m in model.modules())
    folded = reparameterized(model.backbone)
    assert folded is not model.backbone and sum(isinstance(m, torch.nn.BatchNorm2d) for m in model.modules()) == norms
    assert sum(isinstance(m, torch.nn.BatchNorm2d) for m in folded.modules()) < norms
    plain = tiny_model("tiny-clip").backbone
    assert reparameterized(plain) is plain


def test_a_tower_that_reads_its_pads_keeps_its_length() -> None:
    assert dynamic_length(tiny_model("tiny-clip")) and not dynamic_length(tiny_model("tiny-siglip"))


FULL = (
    "ViT-B-32-quickgelu",
    "ViT-B-16",
    "ViT-L-14",
    "ViT-B-16-SigLIP",
    "ViT-B-16-SigLIP2",
    "PE-Core-S-16-384",
    "PE-Core-B-16",
    "MobileCLIP2-S0",
)


def words_of_any_text(path: Path, rows: int) -> Path:
    """A tokenizer as large as a SigLIP's, whose own cannot be had here: it knows the alphabet, splits by letters, and ends with id 1."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    known = ["<pad>", "</s>", "<unk>", *map(chr, range(ord("a"), ord("z") + 1))]
    vocabulary = {word: i for i, word in enumerate(known)} | {f"word {i}": i for i in range(len(known), rows)}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    made.save(str(path))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("architecture", FULL)
def test_every_family_in_full_size(architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random weights in the true architecture; a small transformer on top; fp32 at every level, the halves by their tokens."""
    torch.manual_seed(0)
    from vctool.models.open_clip_backbone import OpenClipBackbone

    for half in ("fp16", "bf16"):
        # Twelve queries to an untrained model are ranked by chance, and rounding is another chance: what is found is printed.
        monkeypatch.setitem(LIMITS, half, replace(LIMITS[half], recall=100.0, top=0.0))
    backbone = OpenClipBackbone(architecture)
    if "SigLIP" in architecture:
        backbone.tokenizer_file = words_of_any_text(tmp_path / "tokenizer.json", backbone.text.token_embedding.weight.shape[0])
    config = ModelConfig(
        name=architecture,
        embed_dim=backbone.embed_dim,
        frames=4,
        backbone=BackboneConfig("open_clip", architecture),
        query=QueryConfig(max_length=backbone.context_length),
        temporal=TemporalConfig(layers=2, max_frames=16),
    )
    save_model(VideoColBERT(config, backbone).eval(), tmp_path / "model")
    del backbone
    began = time.process_time()
    report = export_graphs(tmp_path / "model", precisions=("fp16", "bf16"), probe=[small_probe(tmp_path)], providers=())
    for verdict in report.verdicts:
        assert verdict.status == "ok", (verdict.precision, verdict.reason)
        cosines = {g: verdict.worst("tensors", g, "cosine", largest=False) for g in ("text", "frame", "temporal")}
        top = [check.values["top10"] for check in verdict.checks if check.level == "retrieval"]
        print(f"{architecture} {verdict.precision}: cosines {cosines}, top-10 {min(top):.3f}, {time.process_time() - began:.0f} CPU s")


@pytest.mark.slow
def test_a_graph_above_two_gigabytes(tmp_path: Path) -> None:
    """Protobuf ends at 2 GB; the weights lie beside it, in fp32 and after conversion."""

    class Large(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = torch.nn.Linear(64, 8_500_000, bias=False), torch.nn.Linear(64, 8, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(self.first(x)[:, :64])

    from vctool_export.graphs import GraphSpec

    batch = torch.export.Dim("batch", min=1, max=64)
    spec = GraphSpec("frame", Large(), {"x": torch.randn(2, 64)}, ("y",), {"x": {0: batch}})
    export_graph(spec, tmp_path / "large.onnx")
    assert (tmp_path / "large.onnx.data").stat().st_size > 2**31 > (tmp_path / "large.onnx").stat().st_size
    wanted = TorchSession(spec).run(("y",), {"x": spec.inputs["x"].numpy()})[0]
    (got,) = Graph(tmp_path / "large.onnx", device="cpu").run(("y",), {"x": spec.inputs["x"].numpy()})
    np.testing.assert_allclose(got, wanted, atol=1e-4)
    convert_to_half(tmp_path / "large.onnx", tmp_path / "large.fp16.onnx", "fp16")
    assert (tmp_path / "large.fp16.onnx.data").stat().st_size > 2**30


def test_a_model_that_does_not_fit_its_config_is_not_exported(tmp_path: Path) -> None:
    from vctool.errors import ModelError

    with pytest.raises(ModelError, match="must always see 16 tokens"):
        build_model(ModelConfig(embed_dim=32, backbone=BackboneConfig("open_clip", "tiny-siglip"), query=QueryConfig(max_length=8)))
