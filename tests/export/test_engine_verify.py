"""The judge of engines. What stands in for the GPU here is ONNX Runtime behind an engine's limits; the judging is the real one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tinymodel import SIZE, build_tiny_model

pytest.importorskip("onnx")

from vctool.runtime.cuda import Gpu, NoGpuError
from vctool.runtime.engine_file import EngineInfo, Profile
from vctool.runtime.sessions import Graph
from vctool_export import engine_verify
from vctool_export.engine_verify import judge_engines
from vctool_export.reference import REFERENCE_FILE, Bank, Reference


class _Limited:
    """An engine's session whose arithmetic is ONNX Runtime's."""

    batched_outputs: frozenset[str] | None = None
    seen: list[int] = []  # noqa: RUF012

    def __init__(self, info: EngineInfo, api: Any, gpu: Gpu) -> None:
        self.graph, self.batch_limit = Graph(info.path, device="cpu", provider="onnxruntime", threads=1), info.profiles[-1].batch

    def run(self, outputs: Sequence[str], feeds: Mapping[str, Any]) -> list[Any]:
        self.seen.append(len(next(iter(feeds.values()))))
        return self.graph.run(tuple(outputs), feeds)


def info_of(model: Path, name: str) -> EngineInfo:
    profiles = (Profile("bulk", {"x": ((1,), (2,), (4,))}),)
    path = model / "onnx" / f"{name}.onnx"
    return EngineInfo(path, name, "", "tensorrt", "11.4.0.106", "sm89", "", "fp32", profiles, "", {}, {})


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The tiny model, with answers kept as an export keeps PyTorch's."""
    model = build_tiny_model(tmp_path / "m")
    rng = np.random.default_rng(0)
    feeds: dict[str, dict[str, Any]] = {
        "text": {"input_ids": rng.integers(4, 14, (3, 12)), "attention_mask": np.ones((3, 12), np.int64)},
        "frame": {"frames": rng.integers(0, 256, (3, SIZE, SIZE, 3), dtype=np.uint8)},
        "temporal": {"frame_features": rng.normal(size=(3, 5, 8)).astype(np.float32), "frame_mask": np.ones((3, 5), np.bool_)},
    }
    banks = []
    for name, given in feeds.items():
        graph = Graph(model / "onnx" / f"{name}.onnx", device="cpu", provider="onnxruntime", threads=1)
        answers = dict(zip(graph.outputs, graph.run(tuple(graph.outputs), given), strict=True))
        banks.append(Bank(name, "rows", ("a", "b", "c"), given, answers))
    Reference(tuple(banks), None, {}).save(model / REFERENCE_FILE)
    return model


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_verify, "first_gpu", lambda: Gpu("NVIDIA L4", "sm89", 1, 1, "13.0", "13.0"))
    monkeypatch.setattr(engine_verify, "load_tensorrt", lambda flavour: None)
    monkeypatch.setattr(engine_verify, "TensorRtSession", _Limited)
    monkeypatch.setattr(_Limited, "seen", [])


NAMES = ("text", "frame", "temporal")


def test_engines_that_answer_alike_pass_every_check_that_ran_and_one_batch_was_split(model: Path, gpu: None) -> None:
    verdict = judge_engines(model, [info_of(model, name) for name in NAMES])
    # Without a probe set nobody knows what they retrieve: that is not ok, and `auto` does not take them.
    assert verdict["status"] == "incomplete" and all(c["ok"] for c in verdict["checks"] if c["level"] == "tensors")
    assert verdict["engine"] == "tensorrt 11.4.0.106, sm89" and verdict["precision"] == "fp32"
    assert max(_Limited.seen) == 4 and any(check["case"].endswith("batch 5") for check in verdict["checks"])


def test_engines_of_another_model_fail(model: Path, gpu: None, tmp_path: Path) -> None:
    other = build_tiny_model(tmp_path / "other", temporal="mean")
    verdict = judge_engines(model, [info_of(model, "text"), info_of(model, "frame"), info_of(other, "temporal")])
    assert verdict["status"] == "failed" and verdict["reason"].startswith("tensors: temporal")


def test_one_altered_weight_fails(model: Path, gpu: None, tmp_path: Path) -> None:
    import onnx

    graph = onnx.load(model / "onnx" / "frame.onnx")
    weight = next(t for t in graph.graph.initializer if len(t.dims) == 2)
    values = onnx.numpy_helper.to_array(weight).copy()
    values[0, 0] += 0.5
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    altered = build_tiny_model(tmp_path / "altered")
    onnx.save(graph, altered / "onnx" / "frame.onnx")
    verdict = judge_engines(model, [info_of(model, "text"), info_of(altered, "frame"), info_of(model, "temporal")])
    assert verdict["status"] == "failed" and verdict["reason"].startswith("tensors: frame")


def test_without_a_gpu_the_verdict_is_not_run(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> Gpu:
        raise NoGpuError("no GPU: the driver sees no device")

    monkeypatch.setattr(engine_verify, "first_gpu", none)
    monkeypatch.setattr(engine_verify, "load_tensorrt", lambda flavour: None)
    verdict = judge_engines(model, [info_of(model, name) for name in NAMES])
    assert (verdict["status"], verdict["reason"]) == ("not run", "no GPU: the driver sees no device")


def test_what_cannot_be_judged_is_not_ok(model: Path, gpu: None, tmp_path: Path) -> None:
    verdict = judge_engines(model, [info_of(model, "text")])
    assert verdict == {"status": "not run", "reason": "no engine of frame, temporal was asked for"}
    bare = build_tiny_model(tmp_path / "bare")
    verdict = judge_engines(bare, [info_of(bare, name) for name in NAMES])
    assert verdict["status"] == "not run" and "holds no answers of PyTorch" in verdict["reason"]
    (model / REFERENCE_FILE).write_bytes(b"cut")
    assert judge_engines(model, [info_of(model, name) for name in NAMES])["status"] == "not run"
