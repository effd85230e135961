"""Engines built ahead of time with TensorRT for RTX: strongly typed, described beside, put in place whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from tinymodel import SIZE, build_tiny_model  # noqa: E402

from vctool.cli import cli  # noqa: E402
from vctool.errors import MissingExtraError, ModelError, UsageProblem, VctoolError, VerificationError  # noqa: E402
from vctool.runtime import tensorrt_api  # noqa: E402
from vctool.runtime.checksums import write_checksums  # noqa: E402
from vctool.runtime.cuda import Gpu, NoGpuError, first_gpu  # noqa: E402
from vctool.runtime.engine_file import EngineInfo, Profile, engines_of  # noqa: E402
from vctool.runtime.model_directory import ModelDirectory  # noqa: E402
from vctool_export.engine_build import BuildLog, build  # noqa: E402
from vctool_export.engine_checks import inputs_of, require_buildable  # noqa: E402
from vctool_export.engine_profiles import profiles_for  # noqa: E402
from vctool_export.engines import EngineSettings, Target, choose_targets, export_engines  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def rtx() -> tensorrt_api.TensorRt:
    try:
        return tensorrt_api.load_tensorrt("tensorrt-rtx")
    except MissingExtraError as problem:
        pytest.skip(f"{problem.message}: the extra `rtx` has its packages")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, rtx: tensorrt_api.TensorRt) -> tuple[Path, list[EngineInfo], list[str]]:
    model = build_tiny_model(tmp_path_factory.mktemp("engines") / "model")
    said: list[str] = []
    return model, export_engines(model, choose_targets(["sm80", "sm89"]), progress=said.append), said


def no_gpu() -> bool:
    try:
        first_gpu()
    except VctoolError:
        return True
    return False


def test_every_graph_is_built_for_every_architecture(built: tuple[Path, list[EngineInfo], list[str]]) -> None:
    model, infos, _ = built
    assert [(i.graph, i.sm) for i in infos] == [(g, sm) for sm in ("sm80", "sm89") for g in ("text", "frame", "temporal")]
    assert engines_of(model) == sorted(infos, key=lambda i: i.path.name)
    for info in infos:
        assert info.path.name.startswith(f"{info.graph}.{info.sm}.rtx") and info.path.name.endswith(".fp32.engine")
        info.check_bytes()


def test_the_engine_is_what_tensorrt_gave_and_the_rest_stands_beside(built: tuple[Path, list[EngineInfo], list[str]]) -> None:
    model, infos, _ = built
    frame = next(i for i in infos if i.graph == "frame")
    assert frame.path.read_bytes()[:4] == b"vtrt"  # the library's own header, nothing before it
    assert frame.content["precision"] == {
        "label": "fp32",
        "source": "network definition",
        "layers": frame.content["precision"]["layers"],
        "products": {"float32": 1},
    }
    assert frame.content["precision"]["layers"]["float32"] >= 4
    assert frame.content["io"] == {"frames": "uint8", "frame_features": "float32"}
    assert frame.content["model"]["sha256"] == ModelDirectory.open(model).fingerprint
    assert frame.gpu == "" and frame.content["build"]["timing_cache"] == "cold"
    assert [p.name for p in frame.profiles] == ["interactive", "bulk"]
    log = frame.path.with_name(frame.path.name + ".log").read_text()
    assert "Opset version:    18" in log


def test_without_a_gpu_engines_are_not_said_to_be_verified(built: tuple[Path, list[EngineInfo], list[str]]) -> None:
    if not no_gpu():
        pytest.skip("a GPU is here")
    _, infos, said = built
    assert all(dict(i.verification) == {"status": "not run", "reason": "no GPU"} for i in infos)
    assert "verification of sm80: not run: no GPU" in said


def test_an_engine_that_fits_is_taken_as_it_is(built: tuple[Path, list[EngineInfo], list[str]]) -> None:
    model, infos, _ = built
    said: list[str] = []
    again = export_engines(model, choose_targets(["sm80"]), graphs=["frame"], progress=said.append)
    assert said == [f"{again[0].path.name}: up to date"] and again == [i for i in infos if (i.graph, i.sm) == ("frame", "sm80")]


def test_engines_do_not_change_the_model_directory(built: tuple[Path, list[EngineInfo], list[str]]) -> None:
    model, _, _ = built
    before = (model / "checksums.json").read_bytes()
    write_checksums(model)
    assert (model / "checksums.json").read_bytes() == before
    ModelDirectory.open(model, verify="all")


def test_a_cut_engine_is_seen_and_built_again(built: tuple[Path, list[EngineInfo], list[str]], tmp_path: Path) -> None:
    model = Path(shutil.copytree(built[0], tmp_path / "m"))
    info = engines_of(model, "frame")[0]
    info.path.write_bytes(info.path.read_bytes()[:-1])
    with pytest.raises(ModelError, match="is damaged"):
        info.check_bytes()
    (again,) = export_engines(model, choose_targets([info.sm]), graphs=["frame"])
    again.check_bytes()


def test_a_graph_altered_after_export_is_refused(tmp_path: Path, rtx: tensorrt_api.TensorRt) -> None:
    model = build_tiny_model(tmp_path / "m")
    path = model / "onnx" / "frame.onnx"
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    with pytest.raises(ModelError, match=r"frame\.onnx was altered"):
        export_engines(model, choose_targets(["sm80"]))
    assert not engines_of(model)


def test_two_exports_at_once_are_refused(built: tuple[Path, list[EngineInfo], list[str]]) -> None:
    fcntl = pytest.importorskip("fcntl")
    model = built[0]
    with (model / "tensorrt" / ".lock").open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(VctoolError, match="another export is building"):
            export_engines(model, choose_targets(["sm80"]))


def test_a_full_disk_leaves_no_half_engine(tmp_path: Path, rtx: tensorrt_api.TensorRt) -> None:
    resource = pytest.importorskip("resource")
    model = build_tiny_model(tmp_path / "m")
    code = (
        "import resource, signal, sys\n"
        "from pathlib import Path\n"
        "from vctool.errors import VctoolError\n"
        "from vctool_export.engines import choose_targets, export_engines\n"
        "targets = choose_targets(['sm80'])\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"  # a write beyond the limit then fails as on a full disk
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))\n"
        f"try: export_engines(Path({str(model)!r}), targets, graphs=['frame'])\n"
        "except VctoolError as problem: print(problem.message); sys.exit(7)\n"
    )
    assert resource.getrlimit(resource.RLIMIT_FSIZE)
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 7 and "engines cannot be written into" in done.stdout, done.stderr
    left = [p.name for p in (model / "tensorrt").iterdir()]
    assert not engines_of(model) and not any(".engine" in n and not n.endswith(".log") for n in left), left
    assert not any(n.startswith(".build-") for n in left)


def test_ctrl_c_ends_a_build_with_code_130_and_leaves_nothing(tmp_path: Path, rtx: tensorrt_api.TensorRt) -> None:
    model = build_tiny_model(tmp_path / "m")
    command = [sys.executable, "-W", "ignore", "-m", "vctool", "export", str(model), "--trt", "--arch", "sm80,sm86,sm89,sm120,sm121"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("building"):
                break
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
    assert process.returncode == 130, rest
    assert not [p for p in (model / "tensorrt").iterdir() if p.name.startswith(".build-")]


def half(graph: Path, precision: str = "float16") -> None:
    """Give the tiny frame graph's one product to half precision, as the exporter does: casts around it, half weights."""
    kind = {"float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}[precision]
    model = onnx.load(graph)
    product = next(n for n in model.graph.node if n.op_type == "MatMul")
    weight = next(t for t in model.graph.initializer if t.name == product.input[1])
    values = numpy_helper.to_array(weight)
    weight.CopyFrom(helper.make_tensor(weight.name, kind, values.shape, values.reshape(-1).tolist()))
    nodes = [n for n in model.graph.node if n is not product]
    del model.graph.node[:]
    model.graph.node.extend(
        [
            *nodes,
            helper.make_node("Cast", [product.input[0]], ["narrow"], to=kind),
            helper.make_node("MatMul", ["narrow", weight.name], ["product"], name="node_product"),
            helper.make_node("Cast", ["product"], ["frame_features"], to=TensorProto.FLOAT),
        ]
    )
    onnx.checker.check_model(model)
    onnx.save(model, graph)


def test_half_precision_is_read_from_the_network_and_kept_by_it(tmp_path: Path, rtx: tensorrt_api.TensorRt) -> None:
    model = build_tiny_model(tmp_path / "m")
    shutil.copy(model / "onnx" / "frame.onnx", model / "onnx" / "frame.fp16.onnx")
    half(model / "onnx" / "frame.fp16.onnx")
    write_checksums(model)
    (info,) = export_engines(model, choose_targets(["sm80"]), EngineSettings(precision="fp16"), graphs=["frame"])
    assert info.precision == "fp16" and info.content["precision"]["products"] == {"float16": 1}
    assert info.content["precision"]["layers"]["float32"] >= 3  # what surrounds the product stays
    assert info.path.name == f"frame.sm80.{rtx.short}.fp16.engine"


def test_an_fp32_graph_does_not_become_an_engine_called_fp16(tmp_path: Path, rtx: tensorrt_api.TensorRt) -> None:
    model = build_tiny_model(tmp_path / "m")
    shutil.copy(model / "onnx" / "frame.onnx", model / "onnx" / "frame.fp16.onnx")
    write_checksums(model)
    with pytest.raises(VerificationError, match=r"frame for sm80 was to be fp16, but .* of its products compute in fp32") as caught:
        export_engines(model, choose_targets(["sm80"]), EngineSettings(precision="fp16"), graphs=["frame"])
    assert caught.value.exit_code == 3 and not engines_of(model)


def test_half_precision_that_was_not_exported_is_named(tmp_path: Path, rtx: tensorrt_api.TensorRt) -> None:
    model = build_tiny_model(tmp_path / "m")
    with pytest.raises(ModelError, match="has no fp16 graph of frame"):
        export_engines(model, choose_targets(["sm80"]), EngineSettings(precision="fp16"), graphs=["frame"])


def save(path: Path, nodes: list[Any], inputs: Any, outputs: Any, weights: Any = ()) -> Path:
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info(*i) for i in inputs], [helper.make_tensor_value_info(*o) for o in outputs], list(weights)
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


def test_an_unsupported_operator_is_named_with_node_and_module(tmp_path: Path, rtx: tensorrt_api.TensorRt) -> None:
    weight = numpy_helper.from_array(np.eye(3, dtype=np.float32)[None], "model.backbone.visual.head.weight")
    nodes = [
        helper.make_node("MatMul", ["x", weight.name], ["y"], name="node_linear"),
        helper.make_node("Det", ["y"], ["z"], name="node_det"),
    ]
    path = save(tmp_path / "g.onnx", nodes, [("x", TensorProto.FLOAT, [1, 3, 3])], [("z", TensorProto.FLOAT, [1])], [weight])
    log = BuildLog(rtx, tmp_path / "log")
    with pytest.raises(ModelError) as caught:
        build(rtx, path, [Profile("fixed", {"x": ((1, 3, 3),) * 3})], log, architecture="sm80")
    log.close()
    assert caught.value.message == f"g.onnx: operator Det is not supported by {rtx} at node node_det (module model.backbone.visual.head)"


@pytest.mark.parametrize("tokens", ["float32", "float16", "int8"])
@pytest.mark.parametrize("sm", ["sm80", "sm89"])
def test_the_scorer_is_built_for_tokens_of_every_type(tmp_path: Path, rtx: tensorrt_api.TensorRt, tokens: Any, sm: str) -> None:
    from vctool_export.scorer_graph import scorer_graph

    path = tmp_path / "scorer.onnx"
    onnx.save(scorer_graph(tokens, 8), path)
    require_buildable(path, (sm,))
    config = ModelDirectory.open(build_tiny_model(tmp_path / "m")).config
    profiles = profiles_for("scorer", inputs_of(path), config, 4)
    assert profiles[1].ranges["query_tokens"][2] == (4, 12, 8) and profiles[0].ranges["clip_tokens"][2] == (1024, 18, 8)
    log = BuildLog(rtx, tmp_path / "log")
    made = build(rtx, path, profiles, log, architecture=sm)
    log.close()
    assert made.precision.products == {"float32": 1} and made.io["scores"] == "float32"
    assert made.io["clip_tokens"] == tokens


def test_what_an_architecture_cannot_compute_is_told_with_the_log(tmp_path: Path, rtx: tensorrt_api.TensorRt) -> None:
    model = build_tiny_model(tmp_path / "m")
    with pytest.raises(ModelError, match=r"frame\.onnx: TensorRT for RTX .* cannot build it: .*FP32 GEMM is not supported") as caught:
        export_engines(model, choose_targets(["sm75"]), graphs=["frame"])
    assert (caught.value.hint or "").endswith(".engine.log") and not engines_of(model)


def test_engines_that_fail_their_judge_are_not_put_in_place_and_old_ones_stay(
    built: tuple[Path, list[EngineInfo], list[str]], tmp_path: Path, rtx: tensorrt_api.TensorRt
) -> None:
    model = Path(shutil.copytree(built[0], tmp_path / "m"))
    before = {p.name: p.read_bytes() for p in (model / "tensorrt").glob("*.engine*") if p.suffix != ".log"}
    here = Target(rtx, "sm80", Gpu("a GPU", "sm80", 1 << 40, 1 << 40, "13.0", "13.0"))
    asked: list[list[str]] = []

    def judge(infos: Sequence[EngineInfo]) -> dict[str, str]:
        asked.append([info.graph for info in infos])
        return {"status": "failed", "reason": "a token's cosine is 0.9"}

    with pytest.raises(VerificationError, match=r"the engines for sm80 do not answer as PyTorch does: a token's cosine is 0\.9") as caught:
        export_engines(model, [here], EngineSettings(rebuild=True), judge=judge)
    assert caught.value.exit_code == 3 and asked == [["text", "frame", "temporal"]]
    assert {p.name: p.read_bytes() for p in (model / "tensorrt").glob("*.engine*") if p.suffix != ".log"} == before


def test_a_verdict_stands_beside_the_engine(tmp_path: Path, rtx: tensorrt_api.TensorRt) -> None:
    model = build_tiny_model(tmp_path / "m")
    here = Target(rtx, "sm80", Gpu("a GPU", "sm80", 1 << 40, 1 << 40, "13.0", "13.0"))
    (info,) = export_engines(model, [here], graphs=["frame"], judge=lambda infos: {"status": "ok", "reason": ""})
    assert EngineInfo.read(info.path).verification == {"status": "ok", "reason": ""}


def test_too_little_gpu_memory_is_told_before_the_build(tmp_path: Path) -> None:
    model = build_tiny_model(tmp_path / "m")
    small = Target(
        tensorrt_api.TensorRt("tensorrt", "11.4.0.106", None), "sm89", Gpu("NVIDIA T4", "sm89", 16 << 30, 100 << 20, "13.0", "13.0")
    )
    with pytest.raises(VctoolError, match="NVIDIA T4 has 100 MiB of memory free, building frame needs about 256"):
        export_engines(model, [small], graphs=["frame"])


def test_progress_is_told_by_phase(tmp_path: Path, rtx: tensorrt_api.TensorRt) -> None:
    model = build_tiny_model(tmp_path / "m")
    path = model / "onnx" / "frame.onnx"
    seen: list[tuple[str, float]] = []
    log = BuildLog(rtx, tmp_path / "log")
    profiles = profiles_for("frame", inputs_of(path), ModelDirectory.open(model).config, 2)
    made = build(rtx, path, profiles, log, architecture="sm89", progress=lambda *state: seen.append(state))
    log.close()
    assert made.io["frames"] == "uint8" and memoryview(made.plan).nbytes > 1000
    assert "Building engine" in {phase for phase, _ in seen} and all(0 <= share <= 1 for _, share in seen)
    assert made.timing_cache is None  # this library tunes when it runs


def test_architectures_that_are_not_offered_are_told_with_those_that_are(rtx: tensorrt_api.TensorRt) -> None:
    with pytest.raises(UsageProblem, match=r"does not build for sm90, only for sm75, sm80, sm86, sm89, sm120"):
        choose_targets(["sm80", "sm90"])
    assert [t.sm for t in choose_targets([" SM80", "sm80", "sm120"])] == ["sm80", "sm120"]


def test_without_a_gpu_and_without_arch_the_reason_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    if tensorrt_api.installed("tensorrt") is None:
        with pytest.raises(MissingExtraError, match="TensorRT is not installed") as caught:
            choose_targets()
        assert "tensorrt" in (caught.value.hint or "")
    if no_gpu() and tensorrt_api.installed("tensorrt-rtx"):
        with pytest.raises(VctoolError, match=r"no GPU|cuda-bindings"):
            choose_targets(library="tensorrt-rtx")


def test_without_the_rtx_packages_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt_api.importlib.util, "find_spec", lambda name: None)
    tensorrt_api.load_tensorrt.cache_clear()
    with pytest.raises(MissingExtraError, match="TensorRT for RTX is not installed") as caught:
        tensorrt_api.load_tensorrt("tensorrt-rtx")
    assert "tensorrt-rtx-cu13-bindings" in (caught.value.hint or "") or "[rtx]" in (caught.value.hint or "")
    tensorrt_api.load_tensorrt.cache_clear()


def test_the_command_builds_and_prints_json(tmp_path: Path, rtx: tensorrt_api.TensorRt, capsys: pytest.CaptureFixture[str]) -> None:
    model = build_tiny_model(tmp_path / "m", temporal="mean", policy="pooled")
    with pytest.raises(SystemExit) as leaving:
        cli.main(["export", str(model), "--trt", "--arch", "sm86", "--max-batch", "20", "--json"])
    told = json.loads(capsys.readouterr().out)
    assert leaving.value.code == 0 and [e["graph"] for e in told["engines"]] == ["text", "frame", "temporal"]
    assert all((model / e["file"]).stat().st_size == e["bytes"] for e in told["engines"])
    assert engines_of(model, "frame")[0].profiles[1].ranges["frames"][2] == (80, SIZE, SIZE, 3)


def test_options_of_engines_need_trt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaving:
        cli.main(["export", str(build_tiny_model(tmp_path / "m")), "--arch", "sm80"])
    assert leaving.value.code == 2 and "--arch is about engines" in capsys.readouterr().err


def test_no_driver_is_said_in_words() -> None:
    pytest.importorskip("cuda.bindings.runtime")
    if not no_gpu():
        pytest.skip("a GPU is here")
    with pytest.raises(NoGpuError, match=r"^no GPU: there is no NVIDIA driver|^no GPU: the"):
        first_gpu()


def test_concurrent_writers_of_a_timing_cache_lose_nothing(tmp_path: Path) -> None:
    from vctool.runtime.files import update_locked

    path = tmp_path / "timing.cache"
    threads = [
        threading.Thread(target=lambda n=n: update_locked(path, lambda held: held + bytes([n])))  # type: ignore[misc]
        for n in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(path.read_bytes()) == list(range(20))
    assert [p.name for p in tmp_path.iterdir() if p.name != ".timing.cache.lock"] == ["timing.cache"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vctool.runtime.files import write_atomic

    path = tmp_path / "x"
    path.write_bytes(b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]
