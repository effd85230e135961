"""Frames encoded a second of CPU time, by every session that needs no GPU and by PyTorch, interleaved in one process.

    python tests/bench/bench_encode.py [--model ViT-B-16 | --directory MODEL] [--batch 8] [--rounds 5] [--threads 1] [--no-compile]

--model: the frame tower of an open_clip architecture with random weights, exported here; --directory: the frame graph of a model directory.
Each encoder runs one batch of noise in turn, round after round, so that a change in the machine's speed meets all of them; the
number is the best round's frames for each second of process CPU time (all threads), beside it the wall clock's. Cosines are to
PyTorch in fp32, the smallest over the batch. Peak memory is of a process of its own that loads the encoder, runs three batches, and says
how large it ever was. int8 is ONNX Runtime's dynamic quantisation. Needs the extras `cpu`, `openvino` and `export`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Encode = Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]
ENCODERS = (
    "torch fp32", "torch bf16", "torch.compile fp32", "torch.compile bf16",
    "ONNX Runtime fp32", "ONNX Runtime int8", "OpenVINO fp32", "OpenVINO bf16", "default",
)  # fmt: skip


def prepare(folder: Path, args: argparse.Namespace) -> None:
    """Write frame.onnx and frame.int8.onnx into `folder`, unless they are there, and the name of what they came from."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    frame = folder / "frame.onnx"
    if frame.exists():
        return
    if args.directory:
        onnx.save(onnx.load(str(args.directory / "onnx" / "frame.onnx")), str(frame))
    else:
        from vctool_export.graphs import graph_specs
        from vctool_export.onnx_export import export_graph

        spec = next(s for s in graph_specs(torch_model(args)) if s.name == "frame")
        export_graph(spec, frame)
    model = onnx.load(str(frame))
    del model.graph.value_info[:]  # the quantiser infers shapes again, and stumbles over the exporter's own
    bare = folder / "bare.onnx"
    onnx.save(model, str(bare))
    quantize_dynamic(str(bare), str(folder / "frame.int8.onnx"), weight_type=QuantType.QInt8, op_types_to_quantize=["MatMul", "Gemm"])


_MODELS: dict[str, Any] = {}


def torch_model(args: argparse.Namespace) -> Any:
    """The PyTorch model, made once for all that run it."""
    if not _MODELS:
        _MODELS["it"] = _torch_model(args)
    return _MODELS["it"]


def _torch_model(args: argparse.Namespace) -> Any:
    import torch

    from vctool.config import BackboneConfig, ModelConfig, QueryConfig, TemporalConfig
    from vctool.models.checkpoint import load_model
    from vctool.models.open_clip_backbone import OpenClipBackbone
    from vctool.models.video_colbert import VideoColBERT

    torch.manual_seed(0)
    if args.directory:
        return load_model(args.directory).eval()
    backbone = OpenClipBackbone(args.model)
    config = ModelConfig(
        name=args.model,
        embed_dim=backbone.embed_dim,
        frames=8,
        backbone=BackboneConfig("open_clip", args.model),
        query=QueryConfig(policy="pooled", expand="off", max_length=backbone.context_length),
        temporal=TemporalConfig(kind="mean", layers=0, expansion_tokens=0),
    )
    return VideoColBERT(config, backbone).eval()


def encoder(name: str, folder: Path, args: argparse.Namespace) -> Encode:
    """Load one encoder: uint8 frames [N, S, S, 3] to features."""
    if name.startswith("torch"):
        return torch_encoder(name, args)
    from vctool.runtime.sessions import Graph
    from vctool.runtime.sessions_openvino import OpenVinoSession

    if name.startswith("OpenVINO"):
        session = OpenVinoSession(folder / "frame.onnx", threads=args.threads, precision={"fp32": "float32", "bf16": "bfloat16"}[name[9:]])
        return lambda frames: session.run(["frame_features"], {"frames": frames})[0]
    file, provider = ("frame.int8.onnx" if "int8" in name else "frame.onnx"), ("auto" if name == "default" else "onnxruntime")
    graph = Graph(folder / file, device="cpu", provider=provider, threads=args.threads)  # type: ignore[arg-type]
    return lambda frames: graph.run(("frame_features",), {"frames": frames})[0]


def torch_encoder(name: str, args: argparse.Namespace) -> Encode:
    import torch

    torch.set_num_threads(args.threads)
    model = torch_model(args).backbone
    if "compile" in name:
        model = torch.compile(model)

    def run(frames: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled="bf16" in name):
            features: np.ndarray[Any, Any] = model(torch.from_numpy(frames)).float().numpy()
        return features

    return run


def size_of(folder: Path) -> int:
    import onnx

    return int(onnx.load(str(folder / "frame.onnx"), load_external_data=False).graph.input[0].type.tensor_type.shape.dim[1].dim_value)


def noise(folder: Path, batch: int) -> np.ndarray[Any, Any]:
    side = size_of(folder)
    return np.random.default_rng(0).integers(0, 256, (batch, side, side, 3), dtype=np.uint8)


def peak(name: str, folder: Path, args: argparse.Namespace) -> float:
    """Largest resident size, in MB, of a process that does nothing else."""
    given = ["--directory", str(args.directory)] if args.directory else ["--model", args.model]
    command = [sys.executable, __file__, *given, "--peak-of", name, "--folder", str(folder), "--batch", str(args.batch)]
    done = subprocess.run([*command, "--threads", str(args.threads)], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ViT-B-16")
    parser.add_argument("--directory", type=Path)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peak_of:
        run = encoder(args.peak_of, args.folder, args)
        for _ in range(3):
            run(noise(args.folder, args.batch))
        # Not getrusage: a child's maximum begins with its parent's.
        lines = Path("/proc/self/status").read_text().splitlines()
        print(int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024)
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.folder or Path(scratch)
        prepare(folder, args)
        names = [n for n in ENCODERS if not (args.no_compile and "compile" in n)]
        frames = noise(folder, args.batch)
        runs = {name: encoder(name, folder, args) for name in names}
        features = {name: run(frames) for name, run in runs.items()}  # the first round compiles and warms
        cpu: dict[str, list[float]] = {name: [] for name in names}
        wall: dict[str, list[float]] = {name: [] for name in names}
        for _ in range(args.rounds):
            for name, run in runs.items():
                began, used = time.perf_counter(), time.process_time()
                run(frames)
                cpu[name].append(time.process_time() - used)
                wall[name].append(time.perf_counter() - began)
        told = ", ".join(f"{name} {args.batch / min(used):.2f}" for name, used in cpu.items())
        print(f"frames / CPU s: {told}; now the peaks", file=sys.stderr, flush=True)
        want = features["torch fp32"].astype(np.float64)
        rows = []
        for name in names:
            have = features[name].astype(np.float64)
            cosine = float(((want * have).sum(1) / np.linalg.norm(want, axis=1) / np.linalg.norm(have, axis=1)).min())
            row = {"encoder": name, "frames_cpu_s": args.batch / min(cpu[name]), "frames_s": args.batch / min(wall[name]), "cosine": cosine}
            rows.append(row | {"peak_mb": peak(name, folder, args)})
    base = next(r["frames_cpu_s"] for r in rows if r["encoder"] == "torch fp32")
    if args.json:
        print(json.dumps({"schema": 1, "rows": rows}))
        return
    print("| encoder | frames / CPU s | x torch fp32 | frames / s | min. cosine | peak MB |\n|---|---|---|---|---|---|")
    for r in rows:
        times = r["frames_cpu_s"] / base
        print(f"| {r['encoder']} | {r['frames_cpu_s']:.1f} | {times:.2f} | {r['frames_s']:.1f} | {r['cosine']:.5f} | {r['peak_mb']:.0f} |")


if __name__ == "__main__":
    main()
