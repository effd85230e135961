"""ONNX Runtime: exactly one build, the device that was asked for, no crash on half precision."""

from __future__ import annotations

import importlib.metadata
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vctool.errors import MissingExtraError, ModelError, VctoolError, install_line
from vctool.runtime import sessions, sessions_onnxruntime
from vctool.runtime.graph_precision import has_float16, precision_of
from vctool.runtime.sessions import Graph


def pretend_installed(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    def version(name: str) -> str:
        if name in names:
            return "1.0"
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)


def test_builds_are_seen_by_their_folders(tmp_path: Path) -> None:
    for place, name in (
        ("a", "onnxruntime_gpu-1.2.3.dist-info"),
        ("b", "onnxruntime-1.31.1.dist-info"),
        ("b", "onnxruntime_tools-1.0.dist-info"),
    ):
        (tmp_path / place / name).mkdir(parents=True)
    places = [str(tmp_path / name) for name in ("a", "b", "none")]
    assert sessions_onnxruntime.seen_builds(places) == {"onnxruntime-gpu": "1.2.3", "onnxruntime": "1.31.1"}
    assert sessions_onnxruntime.seen_builds(sys.path) == sessions_onnxruntime.installed_builds()


def test_two_builds_at_once_are_refused_with_the_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_installed(monkeypatch, "onnxruntime", "onnxruntime-gpu")
    with pytest.raises(VctoolError, match="onnxruntime and onnxruntime-gpu are both installed") as caught:
        sessions.import_onnxruntime()
    assert caught.value.hint is not None and "pip uninstall -y onnxruntime onnxruntime-gpu" in caught.value.hint


def test_no_build_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_installed(monkeypatch)
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError, match="ONNX Runtime is not installed") as caught:
        sessions.import_onnxruntime()
    assert caught.value.hint == f"install it with: {install_line('cpu')}"


def test_cuda_that_is_not_there_is_refused_not_replaced(tiny_model: Path) -> None:
    if "CUDAExecutionProvider" in sessions.import_onnxruntime().get_available_providers():
        pytest.skip("this ONNX Runtime has CUDA")
    with pytest.raises(VctoolError, match="asked for cuda"):
        Graph(tiny_model / "onnx" / "text.onnx", device="cuda")


class _Degraded:
    """An ONNX Runtime build that offers CUDA and silently gives the CPU, as the real one does without a driver."""

    def __init__(self, real: Any) -> None:
        self._real = real

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def get_available_providers(self) -> list[str]:
        return ["CUDAExecutionProvider", "CPUExecutionProvider"]

    def InferenceSession(self, path: str, options: Any, providers: list[str], **rest: Any) -> Any:
        return self._real.InferenceSession(path, options, providers=["CPUExecutionProvider"], **rest)


def test_a_silent_fall_back_to_the_cpu_is_seen(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    degraded = _Degraded(sessions.import_onnxruntime())
    monkeypatch.setattr(sessions, "import_onnxruntime", lambda: degraded)
    monkeypatch.setattr(sessions, "has_nvidia_device", lambda: True)
    path = tiny_model / "onnx" / "text.onnx"
    with pytest.raises(VctoolError, match="asked for cuda, got CPUExecutionProvider"):
        Graph(path, device="cuda")
    graph = Graph(path, device="auto")
    assert graph.device == "cpu" and graph.note is not None and "the GPU is not used" in graph.note
    assert Graph(path, device="cpu").note is None


def test_a_graph_that_does_not_load_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(b"not a graph at all")
    with pytest.raises(ModelError, match=r"x\.onnx: does not load") as caught:
        Graph(tmp_path / "x.onnx", device="cpu")
    assert "\n" not in str(caught.value)


def test_inputs_that_do_not_fit_are_one_line(tiny_model: Path) -> None:
    graph = Graph(tiny_model / "onnx" / "frame.onnx", device="cpu", threads=1)
    with pytest.raises(ModelError, match=r"frame\.onnx: failed on frames uint8\[1, 4, 4, 3\]"):
        graph.run(("frame_features",), {"frames": np.zeros((1, 4, 4, 3), np.uint8)})
    with pytest.raises(ModelError, match="expected input_ids"):
        graph.require(("input_ids",), ("query_tokens",))


def half_graph(path: Path) -> Path:
    from onnx import TensorProto, helper, numpy_helper, save

    weight = numpy_helper.from_array(np.eye(4, dtype=np.float16), "weight")
    nodes = [
        helper.make_node("Cast", ["x"], ["half"], to=TensorProto.FLOAT16),
        helper.make_node("MatMul", ["half", "weight"], ["product"]),
        helper.make_node("Cast", ["product"], ["y"], to=TensorProto.FLOAT),
    ]
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 4]) for n in "xy")
    opset = helper.make_opsetid("", 18)
    save(helper.make_model(helper.make_graph(nodes, "half", [x], [y], [weight]), opset_imports=[opset], ir_version=10), str(path))
    return path


def test_half_precision_is_seen_without_the_onnx_package_and_runs(tmp_path: Path, tiny_model: Path) -> None:
    path = half_graph(tmp_path / "half.onnx")
    assert has_float16(path)
    (y,) = Graph(path, device="cpu").run(("y",), {"x": np.ones((1, 4), np.float32)})
    assert y.tolist() == [[1, 1, 1, 1]]
    for name in ("text", "frame", "temporal"):
        assert not has_float16(tiny_model / "onnx" / f"{name}.onnx")


@pytest.mark.parametrize("damage", [b"", b"\xff" * 40, b"PK\3\4 a zip", b"\x3a\xff\xff\xff\xff\x0f"])
def test_looking_for_half_precision_never_fails(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "x").write_bytes(damage)
    assert not has_float16(tmp_path / "x")


def test_looking_for_half_precision_survives_any_cut(tmp_path: Path) -> None:
    whole = half_graph(tmp_path / "half.onnx").read_bytes()
    for size in range(1, len(whole), 7):
        (tmp_path / "cut").write_bytes(whole[:size])
        has_float16(tmp_path / "cut")
    shutil.rmtree(tmp_path)


@pytest.mark.parametrize("kind", ["FLOAT16", "BFLOAT16", "INT8", "UINT8", "FLOAT"])
def test_the_precision_of_weights_is_read_from_the_file(tmp_path: Path, kind: str) -> None:
    from onnx import TensorProto, helper, save

    few = helper.make_tensor("few", TensorProto.FLOAT, [4], [0.0] * 4)
    many = helper.make_tensor("many", getattr(TensorProto, kind), [8, 4], [0] * 32)
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [4]) for n in "xy")
    graph = helper.make_graph([helper.make_node("Add", ["x", "few"], ["y"])], "g", [x], [y], [few, many])
    save(helper.make_model(graph), str(tmp_path / "g.onnx"))
    expected = {"FLOAT16": "float16", "BFLOAT16": "bfloat16", "INT8": "int8", "UINT8": "int8", "FLOAT": "float32"}
    assert precision_of(tmp_path / "g.onnx") == expected[kind]
