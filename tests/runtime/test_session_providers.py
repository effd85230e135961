"""Sessions of several libraries behind one protocol: the same tokens, and what was asked for is what runs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tinymodel import COLOURS, SIZE

from vctool.errors import MissingExtraError, ModelError, UsageProblem, VctoolError
from vctool.runtime import machine, sessions, sessions_openvino
from vctool.runtime.model import load_model
from vctool.runtime.placement import Placement
from vctool.runtime.sessions import Graph, run_in_pieces


@pytest.fixture
def openvino() -> None:
    pytest.importorskip("openvino")


def frames(count: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(0).integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)


def test_what_runs_is_told_and_is_what_was_asked_for(tiny_model: Path, openvino: None) -> None:
    path = tiny_model / "onnx" / "frame.onnx"
    exact = Graph(path, provider="onnxruntime", device="cpu", threads=1)
    other = Graph(path, provider="openvino", threads=1)
    assert (exact.placement.provider, exact.placement.device, exact.placement.precision) == ("onnxruntime", "cpu", "float32")
    assert exact.placement.library.startswith("onnxruntime 1.")
    assert (other.placement.provider, other.placement.device) == ("openvino", "cpu")
    assert other.placement.precision == ("bfloat16" if machine.bfloat16_unit() else "float32")


@pytest.mark.parametrize("name", ["text", "frame", "temporal"])
def test_openvino_gives_the_tokens_of_onnxruntime(tiny_model: Path, openvino: None, name: str) -> None:
    mask = np.ones((3, 5), np.bool_)
    mask[1, 3:] = False
    feeds: dict[str, dict[str, np.ndarray[Any, Any]]] = {
        "text": {"input_ids": np.arange(36).reshape(3, 12) % 14, "attention_mask": np.ones((3, 12), np.int64)},
        "frame": {"frames": frames(3)},
        "temporal": {"frame_features": np.random.default_rng(1).normal(size=(3, 5, 8)).astype(np.float32), "frame_mask": mask},
    }
    path = tiny_model / "onnx" / f"{name}.onnx"
    exact, exactly = (
        Graph(path, provider="onnxruntime", device="cpu", threads=1),
        sessions_openvino.OpenVinoSession(path, precision="float32"),
    )
    outputs = tuple(exact.outputs)
    assert exactly.placement.precision == "float32" and sorted(exactly.outputs) == sorted(outputs)
    for want, have, quick in zip(
        exact.run(outputs, feeds[name]),
        exactly.run(outputs, feeds[name]),
        Graph(path, provider="openvino", threads=1).run(outputs, feeds[name]),
        strict=True,
    ):
        assert have.dtype == quick.dtype == want.dtype
        np.testing.assert_allclose(have, want, atol=1e-6)
        np.testing.assert_allclose(quick.astype(np.float32), want.astype(np.float32), atol=2e-2)


def test_ctrl_c_after_sessions_that_ended_in_any_order(tiny_model: Path, openvino: None) -> None:
    """OpenVINO's managers take over the stack of signal handlers; see `vctool.runtime.sessions_openvino`."""
    script = """
import os, signal, sys
from pathlib import Path
from vctool.runtime.sessions_openvino import OpenVinoSession
signal.signal(signal.SIGINT, signal.default_int_handler)  # it may be ignored in what a script has started
sessions = [OpenVinoSession(Path(sys.argv[1]), threads=1) for _ in range(2)]
while sessions:
    sessions.pop(0)
try:
    os.kill(os.getpid(), signal.SIGINT)
    while True:
        pass
except KeyboardInterrupt:
    sys.exit(130)
"""
    path = str(tiny_model / "onnx" / "temporal.onnx")
    assert subprocess.run([sys.executable, "-c", script, path], timeout=60, check=False).returncode == 130


def test_openvino_keeps_no_array_that_the_next_run_overwrites(tiny_model: Path, openvino: None) -> None:
    graph = Graph(tiny_model / "onnx" / "frame.onnx", provider="openvino", threads=1)
    (first,) = graph.run(("frame_features",), {"frames": frames(2)})
    before = first.copy()
    graph.run(("frame_features",), {"frames": np.zeros((2, SIZE, SIZE, 3), np.uint8)})
    assert np.array_equal(first, before)


def test_openvino_refuses_in_one_line(tiny_model: Path, tmp_path: Path, openvino: None) -> None:
    graph = Graph(tiny_model / "onnx" / "frame.onnx", provider="openvino", threads=1)
    with pytest.raises(ModelError, match=r"frame\.onnx: failed on frames uint8\[1, 4, 4, 3\]") as caught:
        graph.run(("frame_features",), {"frames": np.zeros((1, 4, 4, 3), np.uint8)})
    assert "\n" not in str(caught.value)
    with pytest.raises(ModelError, match="expected frames"):
        graph.run(("frame_features",), {})
    (tmp_path / "x.onnx").write_bytes(b"not a graph at all")
    with pytest.raises(ModelError, match=r"x\.onnx: does not load in OpenVINO") as caught:
        Graph(tmp_path / "x.onnx", provider="openvino")
    assert "\n" not in str(caught.value)


def test_a_query_finds_the_same_through_openvino(tiny_model: Path, openvino: None) -> None:
    exact, other = (load_model(tiny_model, provider=p, threads=1) for p in ("onnxruntime", "openvino"))
    for word in COLOURS:
        cosines = (exact.encode(word).query_QD * other.encode(word).query_QD).sum(axis=1)
        assert cosines.min() > 0.9999


def test_without_openvino_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tiny_model: Path) -> None:
    monkeypatch.setattr(sessions_openvino.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="OpenVINO is not installed"):
        Graph(tiny_model / "onnx" / "text.onnx", provider="openvino")


@pytest.mark.parametrize(("provider", "device"), [("openvino", "cuda"), ("tensorrt", "cpu"), ("tensorrt-ep", "cpu")])
def test_a_device_that_a_provider_does_not_have_is_a_usage_error(tiny_model: Path, provider: Any, device: Any) -> None:
    with pytest.raises(UsageProblem, match=f"{provider} does not run on {device}"):
        Graph(tiny_model / "onnx" / "text.onnx", provider=provider, device=device)


def test_the_tensorrt_provider_that_is_not_there_is_refused_not_replaced(tiny_model: Path) -> None:
    if "TensorrtExecutionProvider" in sessions.import_onnxruntime().get_available_providers():
        pytest.skip("this ONNX Runtime has the TensorRT provider")
    with pytest.raises(VctoolError, match="asked for ONNX Runtime's TensorRT provider"):
        Graph(tiny_model / "onnx" / "text.onnx", provider="tensorrt-ep")


class _Narrow:
    """A session that takes four rows at most and counts its runs."""

    placement = Placement("tensorrt", "cuda", "float16", "test")
    outputs: list[str] = ["y"]  # noqa: RUF012
    batch_limit: int | None = 4
    batched_outputs: frozenset[str] | None = frozenset({"y"})

    def __init__(self) -> None:
        self.inputs: dict[str, list[int | str | None]] = {"x": [None, 2]}
        self.seen: list[int] = []

    def run(self, outputs: Sequence[str], feeds: Mapping[str, Any]) -> list[Any]:
        self.seen.append(len(feeds["x"]))
        return [feeds["x"] * 2 for _ in outputs]


@pytest.mark.parametrize(("rows", "pieces"), [(1, [1]), (4, [4]), (5, [4, 1]), (9, [4, 4, 1])])
def test_batches_above_the_limit_are_split_and_joined(rows: int, pieces: list[int]) -> None:
    session, x = _Narrow(), np.arange(rows * 2).reshape(rows, 2)
    (y,) = run_in_pieces(session, ("y",), {"x": x})
    assert session.seen == pieces and np.array_equal(y, x * 2)


def test_what_cannot_be_split_says_so() -> None:
    with pytest.raises(ValueError, match="more than 4 rows"):
        run_in_pieces(_Narrow(), ("y",), {"x": np.zeros((5, 2)), "other": np.zeros((6, 2))})
    with pytest.raises(ValueError, match="cannot be run piece by piece"):
        run_in_pieces(_Narrow(), ("z",), {"x": np.zeros((5, 2))})
