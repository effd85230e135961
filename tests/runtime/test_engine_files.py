"""Engines as files: what the JSON beside one decides, and that nothing runs that does not fit this machine. No GPU needed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from tinymodel import build_tiny_model

from vctool.errors import MissingExtraError, ModelError, VctoolError
from vctool.runtime import sessions, sessions_tensorrt, tensorrt_api
from vctool.runtime.cuda import Gpu
from vctool.runtime.engine_file import EngineInfo, Profile, engines_of, graph_sha256_of, info_path
from vctool.runtime.placement import Placement
from vctool.runtime.sessions import Graph
from vctool.runtime.sessions_tensorrt import choose_profile, usable_engine
from vctool.runtime.tensorrt_api import TensorRt
from vctool.runtime.verdicts import verified

GPU = Gpu("NVIDIA L4", "sm89", 24 << 30, 20 << 30, "13.0", "13.0")


def write_engine(model: Path, of: str = "frame", *, name: str | None = None, **changes: Any) -> EngineInfo:
    """An engine's files, as an export would leave them, with bytes that no GPU would take."""
    folder = model / "tensorrt"
    folder.mkdir(exist_ok=True)
    engine = folder / (name or f"{of}.sm89.trt11.4.0.fp16.engine")
    engine.write_bytes(b"not a plan")
    content: dict[str, Any] = {
        "schema": 1,
        "graph": {"name": of, "file": f"onnx/{of}.onnx", "sha256": graph_sha256_of(model / "onnx" / f"{of}.onnx")},
        "library": {"flavour": "tensorrt", "version": "11.4.0.106"},
        "target": {"sm": "sm89", "gpu": "NVIDIA L4", "platform": "Linux"},
        "precision": {"label": "fp16"},
        "profiles": {"interactive": {"frames": {"min": [1, 16, 16, 3], "opt": [4, 16, 16, 3], "max": [16, 16, 16, 3]}}},
        "engine": {"bytes": 10, "sha256": hashlib.sha256(b"not a plan").hexdigest()},
        "verification": {"status": "ok", "reason": ""},
    }
    for key, value in changes.items():
        content[key] = {**content[key], **value} if isinstance(value, dict) else value
    info_path(engine).write_text(json.dumps(content))
    return EngineInfo.read(engine)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return build_tiny_model(tmp_path / "m")


@pytest.fixture
def gpu_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with an L4 and TensorRT 11.4, as far as choosing an engine goes."""
    monkeypatch.setattr(sessions_tensorrt, "first_gpu", lambda: GPU)
    monkeypatch.setattr(sessions_tensorrt, "installed", lambda flavour: "11.4.0.106" if flavour == "tensorrt" else None)
    monkeypatch.setattr(sessions_tensorrt, "load_tensorrt", lambda flavour: TensorRt(flavour, "11.4.0.106", None))


HERE = {"flavour": "tensorrt", "version": "11.4.0.106", "sm": "sm89", "gpu": "NVIDIA L4"}


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"flavour": "tensorrt-rtx"}, "built with tensorrt, here is tensorrt-rtx"),
        ({"version": "10.16.1.11"}, "built with tensorrt 11.4.0.106, here is 10.16.1.11"),
        ({"sm": "sm90"}, "built for sm89, this GPU is sm90"),
        ({"gpu": "NVIDIA GeForce RTX 4090"}, "built on NVIDIA L4, this GPU is NVIDIA GeForce RTX 4090"),
        ({"onnx_sha256": "0" * 64}, "built from another graph than the one in this model directory"),
        ({}, None),
    ],
)
def test_what_does_not_fit_is_told_in_a_few_words(model: Path, change: dict[str, str], why: str | None) -> None:
    info = write_engine(model)
    assert info.mismatch(**{"onnx_sha256": info.onnx_sha256, **HERE, **change}) == why


def test_an_engine_built_ahead_of_time_fits_any_gpu_of_its_kind(model: Path) -> None:
    info = write_engine(model, target={"gpu": ""})
    assert info.mismatch(**{"onnx_sha256": info.onnx_sha256, **HERE, "gpu": "another L4"}) is None


def test_the_engine_that_fits_is_found_half_precision_first(model: Path, gpu_here: None) -> None:
    write_engine(model, name="frame.sm89.trt11.4.0.fp32.engine", precision={"label": "fp32"})
    write_engine(model, name="frame.sm90.trt11.4.0.fp16.engine", target={"sm": "sm90"})
    half = write_engine(model)
    assert usable_engine(model / "onnx" / "frame.onnx")[0] == half


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"library": {"version": "11.3.0.1"}}, "built with tensorrt 11.3.0.1, here is 11.4.0.106"),
        ({"graph": {"sha256": "f" * 64}}, "built from another graph"),
        ({"verification": {"status": "failed"}}, "its verification failed"),
    ],
)
def test_an_engine_that_does_not_fit_is_refused_in_one_line_with_the_mend(
    model: Path, gpu_here: None, changes: dict[str, Any], why: str
) -> None:
    write_engine(model, **changes)
    with pytest.raises(ModelError, match=rf"frame\.sm89\.trt11\.4\.0\.fp16\.engine: {why}") as caught:
        usable_engine(model / "onnx" / "frame.onnx")
    assert "vctool export MODEL --trt" in (caught.value.hint or "") and "\n" not in str(caught.value)


def test_an_engine_of_another_model_is_refused(model: Path, gpu_here: None, tmp_path: Path) -> None:
    other = build_tiny_model(tmp_path / "other", temporal="mean")
    info = write_engine(other, "temporal")
    (model / "tensorrt").mkdir()
    for path in (info.path, info_path(info.path)):
        (model / "tensorrt" / path.name).write_bytes(path.read_bytes())
    with pytest.raises(ModelError, match="built from another graph"):
        usable_engine(model / "onnx" / "temporal.onnx")


def test_automatic_takes_no_engine_that_was_never_verified(model: Path, gpu_here: None, monkeypatch: pytest.MonkeyPatch) -> None:
    write_engine(model, verification={"status": "not run", "reason": "no GPU"})
    path = model / "onnx" / "frame.onnx"
    usable_engine(path)
    with pytest.raises(ModelError, match=r"it was never verified \(no GPU\)"):
        usable_engine(path, verified=True)
    monkeypatch.setattr(sessions, "has_nvidia_device", lambda: True)
    assert [c.provider for c in sessions.ranked(path, "auto", "auto")] == ["onnxruntime"]
    write_engine(model)
    assert sessions.ranked(path, "auto", "auto")[0].provider == "tensorrt"
    assert [c.provider for c in sessions.ranked(path, "cpu", "auto")] == ["onnxruntime"]


def test_automatic_falls_back_aloud_where_the_engine_does_not_load(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_engine(model)
    monkeypatch.setattr(sessions, "has_nvidia_device", lambda: True)

    def refuse(graph: Path, *, verified: bool) -> Any:
        raise ModelError("frame.sm89.trt11.4.0.fp16.engine: built for sm89, this GPU is sm90")

    monkeypatch.setattr(sessions_tensorrt, "open_engine", refuse)
    graph = Graph(model / "onnx" / "frame.onnx")
    assert graph.device == "cpu" and graph.note == (
        "the GPU is not used: frame.sm89.trt11.4.0.fp16.engine: built for sm89, this GPU is sm90"
    )
    with pytest.raises(ModelError, match="this GPU is sm90"):
        Graph(model / "onnx" / "frame.onnx", provider="tensorrt")


def test_without_engines_or_a_gpu_tensorrt_is_refused_in_one_line(model: Path) -> None:
    path = model / "onnx" / "frame.onnx"
    with pytest.raises(ModelError, match="has no engine of frame"):
        Graph(path, provider="tensorrt")
    write_engine(model)
    with pytest.raises(VctoolError, match=r"no GPU|is not installed|frame\.sm89") as caught:
        Graph(path, provider="tensorrt")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", ["", "{", '{"schema": 1}', "[]"])
def test_a_damaged_json_is_one_line_and_the_engine_is_passed_over(model: Path, damage: str) -> None:
    info = write_engine(model)
    info_path(info.path).write_text(damage)
    with pytest.raises(ModelError, match=r"engine\.json cannot be read"):
        EngineInfo.read(info.path)
    assert engines_of(model) == []


def test_a_newer_json_or_none_at_all_is_told(model: Path) -> None:
    info = write_engine(model)
    info_path(info.path).write_text(json.dumps({**json.loads(info_path(info.path).read_text()), "schema": 99}))
    with pytest.raises(ModelError, match="newer version"):
        EngineInfo.read(info.path)
    info_path(info.path).unlink()
    with pytest.raises(ModelError, match="nothing says what it was built from"):
        EngineInfo.read(info.path)


def test_an_altered_engine_is_refused(model: Path) -> None:
    info = write_engine(model)
    info.path.write_bytes(b"not a plan"[::-1])
    with pytest.raises(ModelError, match="was altered"):
        info.check_bytes()
    info.path.unlink()
    with pytest.raises(ModelError, match="cannot be read"):
        info.check_bytes()


def test_a_profile_is_chosen_by_the_shapes() -> None:
    one = Profile("interactive", {"x": ((1, 4), (1, 4), (1, 4))})
    lot = Profile("bulk", {"x": ((1, 4), (8, 4), (32, 4))})
    assert [choose_profile((one, lot), {"x": (n, 4)}) for n in (1, 2, 32)] == [0, 1, 1]
    with pytest.raises(ValueError, match=r"no profile of the engine takes this: .*bulk: x \[33, 4\] is not within \[1, 4\] to \[32, 4\]"):
        choose_profile((one, lot), {"x": (33, 4)})
    assert (one.batch, lot.batch) == (1, 32)


class _Module:
    """A library that has everything but what a test takes away."""

    def __init__(self, version: str, without: str) -> None:
        self.__version__ = version
        self._without = without

    def __getattr__(self, owner: str) -> Any:
        if owner == self._without:
            raise AttributeError(owner)
        missing = self._without.removeprefix(f"{owner}.") if self._without.startswith(f"{owner}.") else ""

        class Owner:
            def __getattr__(self, name: str) -> Any:
                if name == missing:
                    raise AttributeError(name)
                return None

        return Owner()


@pytest.mark.parametrize("name", ["IBuilderConfig.set_timing_cache", "EngineInspector", "IExecutionContext.execute_async_v3"])
def test_a_library_without_a_needed_api_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(tensorrt_api, "_import_enterprise", lambda: _Module("11.9.0.1", name))
    tensorrt_api.load_tensorrt.cache_clear()
    with pytest.raises(VctoolError, match=rf"TensorRT 11\.9\.0\.1 lacks {name}, which vctool calls: no engine is built"):
        tensorrt_api.load_tensorrt("tensorrt")
    tensorrt_api.load_tensorrt.cache_clear()


@pytest.mark.parametrize(("version", "fine"), [("10.11.0.33", False), ("10.12.0.1", True), ("11.4.0.106", True), ("12.0.0.1", False)])
def test_versions_that_are_not_known_are_refused(version: str, fine: bool) -> None:
    loaded = TensorRt("tensorrt", version, None)
    if fine:
        tensorrt_api.require_version(loaded)
        return
    with pytest.raises(VctoolError, match=r"is not supported: vctool knows 10.12 to 11"):
        tensorrt_api.require_version(loaded)


def test_a_missing_tensorrt_says_how_to_get_it() -> None:
    if tensorrt_api.installed("tensorrt"):
        pytest.skip("TensorRT is installed")
    with pytest.raises(MissingExtraError, match="TensorRT is not installed"):
        tensorrt_api.load_tensorrt("tensorrt")


@pytest.mark.parametrize(
    ("status", "engine", "with_unit", "without"),
    [
        ("ok", "openvino, CPU", "openvino", "onnxruntime"),
        ("ok", "openvino-fp32, CPU", "openvino-fp32", "openvino-fp32"),
        ("failed", "openvino, CPU", "onnxruntime", "onnxruntime"),
        ("incomplete", "openvino, CPU", "onnxruntime", "onnxruntime"),
        ("ok", "ONNX Runtime, CPU", "onnxruntime", "onnxruntime"),
    ],
)
def test_openvino_comes_first_where_this_very_model_is_verified_with_it(
    model: Path, monkeypatch: pytest.MonkeyPatch, status: str, engine: str, with_unit: str, without: str
) -> None:
    pytest.importorskip("openvino")
    (model / "export").mkdir()
    report = {"model": {}, "verdicts": [{"status": status, "engine": engine}]}
    (model / "export" / "report.json").write_text(json.dumps(report))
    for unit, expected in (("amx_bf16", with_unit), (None, without)):
        monkeypatch.setattr(sessions, "bfloat16_unit", lambda unit=unit: unit)
        assert sessions.ranked(model / "onnx" / "frame.onnx", "cpu", "auto")[0].provider == expected
        assert sessions.ranked(model / "onnx" / "text.onnx", "cpu", "auto")[0].provider == "onnxruntime"
        assert Graph(model / "onnx" / "frame.onnx", device="cpu", threads=1).provider == expected.removesuffix("-fp32")


def test_a_report_about_other_weights_proves_nothing(model: Path) -> None:
    (model / "export").mkdir()
    report = {"model": {"model_sha256": "0" * 64}, "verdicts": [{"status": "ok", "engine": "openvino, CPU"}]}
    (model / "export" / "report.json").write_text(json.dumps(report))
    assert not verified(model, "openvino") and not verified(model / "nowhere", "openvino")


def test_a_placement_reads_as_a_sentence() -> None:
    assert str(Placement("openvino", "cpu", "bfloat16", "openvino 2026.4.1")) == "openvino 2026.4.1 on cpu, bfloat16"
