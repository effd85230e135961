"""Engines on a GPU: built, verified, timed, reloaded. Complete, and skipped with the reason where there is no GPU."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")
torch = pytest.importorskip("torch")

from tinymodel import SIZE, build_tiny_model  # noqa: E402

from vctool.errors import ModelError, VctoolError  # noqa: E402
from vctool.runtime.cuda import Gpu, first_gpu  # noqa: E402
from vctool.runtime.engine_file import EngineInfo, info_path  # noqa: E402
from vctool.runtime.model import load_model  # noqa: E402
from vctool.runtime.sessions import Graph, run_in_pieces  # noqa: E402
from vctool.runtime.sessions_tensorrt import TensorRtSession  # noqa: E402
from vctool.runtime.tensorrt_api import Flavour, load_tensorrt  # noqa: E402
from vctool_export.engine_build import BuildLog, inspect_engine  # noqa: E402
from vctool_export.engines import EngineSettings, choose_targets, export_engines  # noqa: E402

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def gpu() -> Gpu:
    try:
        return first_gpu()
    except VctoolError as problem:
        pytest.skip(problem.message)


@pytest.fixture(scope="module", params=["tensorrt", "tensorrt-rtx"])
def engines(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, gpu: Gpu) -> tuple[Path, list[EngineInfo]]:
    """The tiny model's engines, by each library that is installed. Run once with TensorRT 10 installed and once with 11."""
    flavour: Flavour = request.param
    try:
        load_tensorrt(flavour)
        targets = choose_targets(library=flavour)
    except VctoolError as problem:
        pytest.skip(problem.message)
    model = build_tiny_model(tmp_path_factory.mktemp("gpu") / "model")
    return model, export_engines(model, targets, EngineSettings(max_batch=4))


def session_of(info: EngineInfo, gpu: Gpu, **options: Any) -> TensorRtSession:
    return TensorRtSession(info, load_tensorrt(info.flavour), gpu, **options)  # type: ignore[arg-type]


def frames(count: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(seed).integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)


def feeds(name: str, rows: int) -> dict[str, np.ndarray[Any, Any]]:
    rng = np.random.default_rng(rows)
    mask = np.ones((rows, 5), np.bool_)
    mask[0, 3:] = False
    return {
        "text": {"input_ids": rng.integers(4, 14, (rows, 12)), "attention_mask": np.ones((rows, 12), np.int64)},
        "frame": {"frames": frames(rows)},
        "temporal": {"frame_features": rng.normal(size=(rows, 5, 8)).astype(np.float32), "frame_mask": mask},
    }[name]


@pytest.mark.parametrize("name", ["text", "frame", "temporal"])
@pytest.mark.parametrize("rows", [1, 2, 4, 150])
def test_an_engine_answers_as_onnxruntime_does(engines: tuple[Path, list[EngineInfo]], gpu: Gpu, name: str, rows: int) -> None:
    model, infos = engines
    exact = Graph(model / "onnx" / f"{name}.onnx", provider="onnxruntime", device="cpu")
    session = session_of(next(i for i in infos if i.graph == name), gpu)
    outputs = tuple(exact.outputs)
    given = feeds(name, rows)  # 150 rows are more than any profile takes
    for want, have in zip(exact.run(outputs, given), run_in_pieces(session, outputs, given), strict=True):
        assert have.dtype == want.dtype
        np.testing.assert_allclose(have, want, atol=1e-4)


def test_precision_is_read_from_the_engine(engines: tuple[Path, list[EngineInfo]], gpu: Gpu, tmp_path: Path) -> None:
    for info in engines[1]:
        assert info.content["precision"]["source"] == "engine inspector" and info.precision == "fp32"
        api = load_tensorrt(info.flavour)  # type: ignore[arg-type]
        log = BuildLog(api, tmp_path / "log")
        again = inspect_engine(api, info.path.read_bytes(), log)
        assert again is not None and again.to_json() == info.content["precision"]


def test_replayed_graphs_give_what_plain_launches_give(engines: tuple[Path, list[EngineInfo]], gpu: Gpu) -> None:
    info = next(i for i in engines[1] if i.graph == "frame")
    plain, recorded = session_of(info, gpu, cuda_graphs=False), session_of(info, gpu)
    for seed in range(6):  # the third run of a shape is a replay; shapes alternate, and the second one grows the buffers
        for rows in (2, 7):
            given = {"frames": frames(rows, seed)}
            np.testing.assert_array_equal(recorded.run(["frame_features"], given)[0], plain.run(["frame_features"], given)[0])
    assert any(context._graphs for context in recorded._contexts)


def test_two_contexts_run_at_once(engines: tuple[Path, list[EngineInfo]], gpu: Gpu) -> None:
    info = next(i for i in engines[1] if i.graph == "frame")
    session = session_of(info, gpu)
    want = {rows: session.run(["frame_features"], {"frames": frames(rows)})[0] for rows in (1, 60)}
    wrong: list[int] = []

    def work(rows: int) -> None:
        for _ in range(50):
            if not np.array_equal(session.run(["frame_features"], {"frames": frames(rows)})[0], want[rows]):
                wrong.append(rows)

    threads = [threading.Thread(target=work, args=(rows,)) for rows in (1, 60, 1, 60)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_engines_are_found_again_after_a_restart(engines: tuple[Path, list[EngineInfo]], gpu: Gpu) -> None:
    model, infos = engines
    before = {i.path: i.path.stat().st_mtime_ns for i in infos}
    code = (
        "from pathlib import Path\nfrom vctool.runtime.sessions import Graph\n"
        f"graph = Graph(Path({str(model)!r}) / 'onnx' / 'frame.onnx', provider='tensorrt')\nprint(graph.provider, graph.device)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, env=dict(os.environ))
    assert done.stdout.split() == ["tensorrt", "cuda"], done.stderr
    again = export_engines(model, choose_targets(library=infos[0].flavour), EngineSettings(max_batch=4))  # type: ignore[arg-type]
    assert again == infos and {i.path: i.path.stat().st_mtime_ns for i in again} == before


def test_the_second_build_is_helped_by_the_timing_cache(engines: tuple[Path, list[EngineInfo]]) -> None:
    model, infos = engines
    if infos[0].flavour != "tensorrt":
        pytest.skip("TensorRT for RTX tunes when it runs")
    again = export_engines(model, choose_targets(library="tensorrt"), EngineSettings(max_batch=4, rebuild=True))
    assert {i.content["build"]["timing_cache"] for i in again} == {"warm"}
    assert sum(i.content["build"]["seconds"] for i in again) < sum(i.content["build"]["seconds"] for i in infos)


def test_an_engine_for_another_gpu_is_refused_in_one_line(engines: tuple[Path, list[EngineInfo]], tmp_path: Path) -> None:
    model = Path(shutil.copytree(engines[0], tmp_path / "m"))
    for info in engines[1]:
        path = info_path(model / "tensorrt" / info.path.name)
        path.write_text(path.read_text().replace(f'"sm": "{info.sm}"', '"sm": "sm61"'))
    with pytest.raises(ModelError, match="built for sm61, this GPU is"):
        Graph(model / "onnx" / "frame.onnx", provider="tensorrt")


def test_a_query_through_engines_is_the_query_through_onnxruntime(engines: tuple[Path, list[EngineInfo]]) -> None:
    model = engines[0]
    exact, quick = (load_model(model, provider=p) for p in ("onnxruntime", "tensorrt"))
    cosine = (exact.encode("a red video").query_QD * quick.encode("a red video").query_QD).sum(axis=1)
    assert cosine.min() > 0.99999


def test_a_drifting_engine_is_not_put_in_place(gpu: Gpu, tmp_path: Path) -> None:
    try:
        targets = choose_targets()
    except VctoolError as problem:
        pytest.skip(problem.message)
    model = build_tiny_model(tmp_path / "m")
    with pytest.raises(VctoolError, match=r"do not answer as PyTorch does: a token's cosine is 0.9") as caught:
        export_engines(model, targets, judge=lambda infos: {"status": "failed", "reason": "a token's cosine is 0.9"})
    assert caught.value.exit_code == 3 and not list((model / "tensorrt").glob("*.engine"))


def median_ms(run: Callable[[], Any], rounds: int = 30) -> float:
    run()
    run()
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        run()
        times.append(1e3 * (time.perf_counter() - began))
    return statistics.median(times)


@pytest.mark.slow
def test_latency_and_throughput_beside_onnxruntime_and_torch_compile(gpu: Gpu, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """ViT-B-16 with random weights: one clip and 32 clips, TensorRT fp32 with and without CUDA graphs, ONNX Runtime CUDA, torch.compile."""
    pytest.importorskip("open_clip")
    from vctool.config import BackboneConfig, ModelConfig, QueryConfig, TemporalConfig
    from vctool.models.checkpoint import save_model
    from vctool.models.open_clip_backbone import OpenClipBackbone
    from vctool.models.video_colbert import VideoColBERT
    from vctool_export import export_graphs

    try:
        targets = choose_targets()
    except VctoolError as problem:
        pytest.skip(problem.message)
    torch.manual_seed(0)
    backbone = OpenClipBackbone("ViT-B-16")
    config = ModelConfig(
        name="ViT-B-16",
        embed_dim=backbone.embed_dim,
        frames=12,
        backbone=BackboneConfig("open_clip", "ViT-B-16"),
        query=QueryConfig(policy="pooled", expand="off", max_length=backbone.context_length),
        temporal=TemporalConfig(kind="mean", layers=0, expansion_tokens=0),
    )
    model = VideoColBERT(config, backbone).eval()
    save_model(model, tmp_path / "m")
    export_graphs(tmp_path / "m", providers=())
    (info,) = export_engines(tmp_path / "m", targets, graphs=["frame"])
    path = tmp_path / "m" / "onnx" / "frame.onnx"
    compiled = torch.compile(model.backbone.cuda())

    def in_torch(given: Any) -> Any:
        with torch.no_grad():
            return compiled(torch.from_numpy(given).cuda()).float().cpu().numpy()

    runs: dict[str, Callable[[Any], Any]] = {"torch.compile": in_torch}
    for name, session in (("engine", session_of(info, gpu)), ("engine, no CUDA graphs", session_of(info, gpu, cuda_graphs=False))):
        runs[name] = lambda given, s=session: run_in_pieces(s, ("frame_features",), {"frames": given})[0]
    try:
        graph = Graph(path, device="cuda", provider="onnxruntime")
        runs["ONNX Runtime CUDA"] = lambda given: graph.run(("frame_features",), {"frames": given})[0]
    except VctoolError as problem:
        with capsys.disabled():
            print(f"\nONNX Runtime CUDA: {problem.message}")
    for count in (12, 384):
        given = np.random.default_rng(0).integers(0, 256, (count, 224, 224, 3), dtype=np.uint8)
        want = in_torch(given)
        for name, run in runs.items():
            have = run(given)
            cosine = ((want * have).sum(1) / np.linalg.norm(want, axis=1) / np.linalg.norm(have, axis=1)).min()
            spent = median_ms(lambda run=run, given=given: run(given))  # type: ignore[misc]
            with capsys.disabled():
                print(f"\n{gpu.name}: {count} frames, {name}: {spent:.2f} ms, {1e3 * count / spent:.0f} frames/s, cosine {cosine:.6f}")
            assert cosine > 0.9999
