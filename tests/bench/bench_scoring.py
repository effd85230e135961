"""Exact scoring: our kernels against NumPy, PyTorch, ONNX Runtime and maxsim-cpu, and against reading the store once.

    python tests/bench/bench_scoring.py [--clips 1000 10000 100000] [--widths 128 512] [--tokens 12 32 77] [--threads 1] [--out FILE]

One thread each, in one process, in turns, so that a change in the machine's speed meets all of them; the median of the
CPU seconds of the process counts (a busy neighbour takes wall time from us, but hardly CPU time), with more threads of the
wall seconds. Ratios to our fastest int8 kernel are what to read: the milliseconds belong to the machine and its load. Engines
that are not installed are left out and said to be, as are those whose copy of the store would not fit `--memory`.

The data: 12 frame tokens and 14 video tokens a clip, alike inside a clip (cosine about 0.94), less so across clips (0.3);
each query is about one clip. Exact scores for the errors are float64. "share" is the time to read the int8 store once, by
the faster of two ways NumPy has, over the engine's time.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from threads import HELP, MEASURED, THREADS, WORKERS, clock

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import numpy as np

from vctool.scoring import batch_scores, kernels

FRAMES, VIDEO = 12, 14
_PART = 2000  # clips made at a time
Score = Callable[[list[np.ndarray]], object]


@dataclass
class Tokens:
    """A store in memory, as `vctool.scoring` wants it, in one dtype."""

    frame_TD: np.ndarray
    video_TD: np.ndarray
    frame_scale_T: np.ndarray | None = None
    video_scale_T: np.ndarray | None = None

    def __post_init__(self) -> None:
        self.frame_offsets = np.arange(0, len(self.frame_TD) + 1, FRAMES)
        self.video_offsets = np.arange(0, len(self.video_TD) + 1, VIDEO)


def unit(values: np.ndarray) -> np.ndarray:
    return values / np.linalg.norm(values, axis=-1, keepdims=True)


def parts(clips: int, width: int) -> Iterator[tuple[int, np.ndarray]]:
    """(first clip, tokens float32 [n, 26, D]) a part at a time: the same data whatever is kept of them."""
    common = unit(np.random.default_rng(0).standard_normal(width)) * 0.65
    for first in range(0, clips, _PART):
        generator = np.random.default_rng([1, first])
        count = min(_PART, clips - first)
        scene = unit(generator.standard_normal((count, 1, width), np.float32)) + common.astype(np.float32)
        noise = unit(generator.standard_normal((count, FRAMES + VIDEO, width), np.float32))
        yield first, unit(scene + np.float32(0.3) * noise).astype(np.float32)


def queries(clips: int, width: int, tokens: int, count: int) -> list[np.ndarray]:
    """Queries about clips that are spread over the store, float32 [M, D] each."""
    generator = np.random.default_rng(2)
    _, part = next(parts(min(clips, _PART), width))
    found = []
    for clip in generator.integers(0, len(part), count):
        noise = unit(generator.standard_normal((tokens, width)))
        found.append(unit(0.5 * part[clip, :FRAMES].mean(axis=0) + noise).astype(np.float32))
    return found


def build(clips: int, width: int, dtype: str) -> Tokens:
    """A store of one dtype, made part by part."""
    frame = np.empty((clips * FRAMES, width), dtype)
    video = np.empty((clips * VIDEO, width), dtype)
    scales = [np.empty(clips * FRAMES, np.float32), np.empty(clips * VIDEO, np.float32)]
    for first, part in parts(clips, width):
        for place, (kept, own) in enumerate(((frame, part[:, :FRAMES]), (video, part[:, FRAMES:]))):
            rows = own.reshape(-1, width)
            at = slice(first * own.shape[1], first * own.shape[1] + len(rows))
            if dtype == "int8":
                scale = np.abs(rows).max(axis=1) / np.float32(127)
                scales[place][at] = scale
                rows = np.rint(rows / scale[:, None])
            kept[at] = rows
    return Tokens(frame, video, *scales) if dtype == "int8" else Tokens(frame, video)


def ours(store: Tokens, kernel: str) -> Score:
    def score(batch: list[np.ndarray]) -> np.ndarray:
        os.environ[kernels.VARIABLE] = kernel
        return batch_scores(batch, store, "fv", workers=WORKERS)[0]

    return score


def torch_gemm(store: Tokens, dtype: str) -> Score:
    import torch

    torch.set_num_threads(THREADS)
    kind = getattr(torch, dtype)
    frame, video = (torch.from_numpy(tokens).to(kind) for tokens in (store.frame_TD, store.video_TD))

    def score(batch: list[np.ndarray]) -> object:
        with torch.inference_mode():
            query = torch.from_numpy(np.concatenate(batch)).to(kind)
            total = None
            for tokens, length in ((frame, FRAMES), (video, VIDEO)):
                best = (tokens @ query.T).view(-1, length, len(query)).amax(dim=1)
                total = best if total is None else total + best
            return total.float().view(len(total), len(batch), -1).mean(dim=2).T

    return score


def onnx_graph(store: Tokens) -> Score:
    import onnxruntime
    from onnx import TensorProto, helper

    width = store.frame_TD.shape[1]
    nodes, inputs = [], [helper.make_tensor_value_info("query", TensorProto.FLOAT, [width, "M"])]
    for name, length in (("frame", FRAMES), ("video", VIDEO)):
        inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", length, width]))
        nodes.append(helper.make_node("MatMul", [name, "query"], [f"{name}_sim"]))
        nodes.append(helper.make_node("ReduceMax", [f"{name}_sim"], [f"{name}_max"], axes=[1], keepdims=0))
    nodes.append(helper.make_node("Add", ["frame_max", "video_max"], ["both"]))
    nodes.append(helper.make_node("ReduceMean", ["both"], ["score"], axes=[1], keepdims=0))
    graph = helper.make_graph(nodes, "scorer", inputs, [helper.make_tensor_value_info("score", TensorProto.FLOAT, ["N"])])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = THREADS, 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    fixed = {"frame": store.frame_TD.reshape(-1, FRAMES, width), "video": store.video_TD.reshape(-1, VIDEO, width)}

    def score(batch: list[np.ndarray]) -> object:
        return [session.run(None, {**fixed, "query": np.ascontiguousarray(query.T)})[0] for query in batch]

    return score


def maxsim_cpu(store: Tokens) -> Score:
    import maxsim_cpu as engine

    width = store.frame_TD.shape[1]
    frame, video = store.frame_TD.reshape(-1, FRAMES, width), store.video_TD.reshape(-1, VIDEO, width)

    def score(batch: list[np.ndarray]) -> object:
        return [(engine.maxsim_scores(query, frame) + engine.maxsim_scores(query, video)) / len(query) for query in batch]

    return score


def reading(store: Tokens) -> dict[str, Score]:
    views = [tokens.reshape(-1).view(np.int64) for tokens in (store.frame_TD, store.video_TD)]
    return {
        "read (max)": lambda _: [view.max() for view in views],
        "read (or)": lambda _: [np.bitwise_or.reduce(view) for view in views],
    }


def engines(clips: int, width: int, memory: float) -> Iterator[tuple[str, Score]]:
    """Every engine that can run, made when its turn comes."""
    room = memory * 2**30
    eight = build(clips, width, "int8")
    yield from reading(eight).items()
    for kernel in kernels.report().found:
        if kernel != "numpy" or clips <= 10_000:
            yield f"vctool int8 {kernel}", ours(eight, kernel)
    values = clips * (FRAMES + VIDEO) * width
    if 2 * values < room:
        sixteen = build(clips, width, "float16")
        for kernel in kernels.report().found:
            if kernel != "numpy" or clips <= 10_000:
                yield f"vctool fp16 {kernel}", ours(sixteen, kernel)
    if 8 * values > room:  # float32, and bfloat16 made of it
        print(f"# N={clips} D={width}: float32 engines left out, they would need {8 * values / 2**30:.0f} GiB", file=sys.stderr)
        return
    full = build(clips, width, "float32")
    makers: dict[str, Callable[[], Score]] = {
        "torch fp32 GEMM + amax": lambda: torch_gemm(full, "float32"),
        "torch bf16 GEMM + amax": lambda: torch_gemm(full, "bfloat16"),
        "ONNX Runtime fp32 graph": lambda: onnx_graph(full),
        "maxsim-cpu": lambda: maxsim_cpu(full),
    }
    for name, make in makers.items():
        try:
            yield name, make()
        except ImportError as problem:
            print(f"# {name} left out: {problem}", file=sys.stderr)


def crashes(name: str, width: int, tokens: int) -> bool:
    """maxsim-cpu 0.1.0 ends the process with a segmentation fault where this is true."""
    return name == "maxsim-cpu" and width * tokens > 512 * 33


def timed(chosen: dict[str, Score], batch: list[np.ndarray], rounds: int) -> dict[str, float]:
    """Median seconds of each engine for the batch, in turns; the first round only warms up."""
    spent: dict[str, list[float]] = {name: [] for name in chosen}
    for turn in range(rounds + 1):
        for name, score in chosen.items():
            start = clock()
            score(batch)
            if turn:
                spent[name].append(clock() - start)
    return {name: statistics.median(seconds) for name, seconds in spent.items()}


def quality(chosen: dict[str, Score], clips: int, width: int, tokens: int, count: int) -> dict[str, tuple[float, float]]:
    """(largest score error, mean share of the exact top 10) of each of our int8 and fp16 kernels against float64."""
    asked = queries(clips, width, tokens, count)
    exact = np.empty((count, clips))
    for first, part in parts(clips, width):
        for b, query in enumerate(asked):
            sim = part.astype(np.float64) @ query.astype(np.float64).T
            exact[b, first : first + len(part)] = sim[:, :FRAMES].max(axis=1).mean(axis=1) + sim[:, FRAMES:].max(axis=1).mean(axis=1)
    top = [set(np.argsort(-row)[:10]) for row in exact]
    found = {}
    for name, score in chosen.items():
        if name.startswith("vctool"):
            rows = np.asarray(score(asked))
            overlap = np.mean([len(top[b] & set(np.argsort(-rows[b])[:10])) / 10 for b in range(count)])
            found[name] = (float(np.abs(rows - exact).max()), float(overlap))
    return found


def table(clips: int, width: int, arguments: argparse.Namespace) -> Iterator[str]:
    chosen = dict(engines(clips, width, arguments.memory))
    cases = [(tokens, 1) for tokens in arguments.tokens] + ([(32, 32)] if clips <= 10_000 else [])
    results = {}
    for tokens, count in cases:
        batch = queries(clips, width, tokens, count)
        able = {name: score for name, score in chosen.items() if not crashes(name, width, tokens)}
        results[tokens, count] = timed(able, batch, max(2, arguments.rounds // 2) if count > 1 else arguments.rounds)
    best = f"vctool int8 {kernels.report().found[0]}"
    yield f"\n### N={clips:,} clips, D={width}\n"
    heads = [f"Q={tokens}" + (f", {count} queries" if count > 1 else "") for tokens, count in cases]
    yield "| engine | " + " | ".join(f"{head}: ms a query | x | share" for head in heads) + " |"
    yield "|---|" + "---|---|---|" * len(cases)
    for name in chosen:
        cells = []
        for (_, count), spent in results.items():
            if name not in spent:
                cells.append("crashes | - | -")
                continue
            read = min(spent["read (max)"], spent["read (or)"])
            share = "-" if count > 1 else f"{read / spent[name]:.0%}"
            per = 1 if name.startswith("read") else count
            cells.append(f"{spent[name] / per * 1e3:.2f} | {spent[name] / per / (spent[best] / count):.2f} | {share}")
        yield f"| {name} | " + " | ".join(cells) + " |"
    if clips <= 10_000:
        yield "\n| kernel | largest score error | top-10 overlap with float64 (20 queries, Q=32) |\n|---|---|---|"
        for name, (error, overlap) in quality(chosen, clips, width, 32, 20).items():
            yield f"| {name} | {error:.1e} | {overlap:.3f} |"


def machine() -> str:
    model = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = lines[0] if lines else model
    versions = []
    for name in ("numpy", "torch", "onnxruntime", "maxsim-cpu"):
        try:
            versions.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            versions.append(f"{name} not installed")
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    return f"{model}, {os.cpu_count()} CPUs, {MEASURED}, load {load:.1f}; Python {platform.python_version()}, {', '.join(versions)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, nargs="+", default=[1000, 10_000])
    parser.add_argument("--widths", type=int, nargs="+", default=[128, 512])
    parser.add_argument("--tokens", type=int, nargs="+", default=[12, 32, 77])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help=HELP)
    parser.add_argument("--memory", type=float, default=6, help="GiB for copies of the store in wider types")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    lines = [machine()]
    print(lines[0], flush=True)
    for clips in arguments.clips:
        for width in arguments.widths:
            for line in table(clips, width, arguments):
                lines.append(line)
                print(line, flush=True)
    if arguments.out:
        arguments.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
