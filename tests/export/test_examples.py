"""The stand-alone examples do what their documents say."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tinymodel import build_tiny_model, make_video

from vctool.runtime.indexing import index_videos
from vctool.runtime.model import load_model
from vctool.runtime.search import search
from vctool.store import open_store

EXAMPLES = Path(__file__).parents[2] / "export" / "examples"


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_clips_are_found_without_vctool_as_with_it(tmp_path: Path, dtype: str) -> None:
    model = build_tiny_model(tmp_path / "m")
    for colour in ("red", "green", "blue"):
        make_video(tmp_path / "v" / f"{colour}.mp4", [colour])
    index_videos([tmp_path / "v"], tmp_path / "c.npz", model, workers=0, dtype=dtype)  # type: ignore[arg-type]
    wall = tmp_path / "wall"
    wall.mkdir()
    (wall / "vctool.py").write_text("raise ImportError('the example must not need vctool')")
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "find.py"), str(model), str(tmp_path / "c.npz"), "a green video"],
        capture_output=True, text=True, timeout=120, env={"PYTHONPATH": str(wall), "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = [line.split(maxsplit=1) for line in done.stdout.splitlines()]
    with open_store(tmp_path / "c.npz") as store:
        hits = search("a green video", store, load_model(model), 10).hits
    assert [name for _, name in found] == [hit.id for hit in hits] and found[0][1] == "green.mp4"
    # Three decimals are printed; an int8 store is scored with an int8 query, too.
    within = {"float16": 1e-3, "int8": 1e-2}[dtype]
    assert [float(score) for score, _ in found] == pytest.approx([hit.score for hit in hits], abs=within)


def test_the_python_example_is_short() -> None:
    assert len((EXAMPLES / "find.py").read_text().splitlines()) <= 45


def test_the_cpp_example_compiles_where_tensorrt_is(tmp_path: Path) -> None:
    compiler = shutil.which("g++") or shutil.which("c++")
    places = ["/usr/include", "/usr/include/x86_64-linux-gnu", "/usr/local/tensorrt/include", "/usr/local/cuda/include"]
    header = next((p for p in places if (Path(p) / "NvInfer.h").is_file()), None)
    cuda = next((p for p in places if (Path(p) / "cuda_runtime_api.h").is_file()), None)
    if compiler is None or header is None or cuda is None:
        pytest.skip("a C++ compiler, TensorRT's headers or CUDA's are not on this machine")
    flags = ["-std=c++17", "-Wall", "-fsyntax-only", f"-I{header}", f"-I{cuda}"]
    subprocess.run([compiler, *flags, str(EXAMPLES / "encode_text.cpp")], check=True, timeout=300)


def test_the_cpp_example_asks_for_the_names_that_the_graph_has(tmp_path: Path) -> None:
    from vctool.runtime.sessions import Graph

    graph = Graph(build_tiny_model(tmp_path / "m") / "onnx" / "text.onnx", device="cpu", provider="onnxruntime")
    named = set(re.findall(r'setTensorAddress\("(\w+)"', (EXAMPLES / "encode_text.cpp").read_text()))
    assert named == {*graph.inputs, *graph.outputs}
