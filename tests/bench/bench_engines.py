"""Searching one store with us and with what else a user could pick: recall, time, bytes and building, in one process in turns.

    python tests/bench/bench_engines.py [--clips 1000 10000] [--widths 128 512] [--data easy hard] [--engines NAME …] [--out FILE.json]
    python tests/bench/bench_engines.py --report FILE.json … --page docs/benchmarks.md

Data, queries and the float64 truth are those of `bench_two_stage.py`: 12 frame and 14 video tokens a clip, 32 query tokens,
branch `fv`. One thread each (as far as an engine can be told); the median CPU time of the process over all queries counts,
because wall time belongs to the neighbours, or with `--threads` above one the wall time. Building is always CPU time. `x` is against
our exact int8 search in the same process: that is the number to compare between environments, for engines that pin another torch
run in one of their own, with us as the yardstick.

An engine with one MaxSim a document gets the sum of two by one more dimension: frame tokens carry +1 there, video tokens -1,
and every query token is sent twice, with +1 and with -1; its score is then ours plus a constant. PLAID engines build an index of
their own from the same tokens; what their codes lose of that dimension costs them recall, so compare them with `--branch f`, where
nobody needs it. A mean-pool engine sees one vector a clip, the CLIP4Clip baseline.

R@1 and R@10: the share of the float64 top 1 and top 10 that an engine's top 1 and top 10 hold. Engines that are not installed, or
fail, are listed with the reason.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

os.environ.setdefault("LANCE_LOG", "error")
sys.path.insert(0, str(Path(__file__).resolve().parent))
from threads import HELP, MEASURED, THREADS, WORKERS, clock

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import numpy as np
from bench_two_stage import EXPANSION, FRAMES, best, build, parts, queries, truth, unit

from vctool.runtime.two_stage import estimates, rerank
from vctool.scoring import Branch, batch_scores, kernels
from vctool.store import TokenStore

Search = Callable[[np.ndarray], list[int]]  # query tokens [M, D] to the best ten clips
YARDSTICK = "vctool exact"
_FAILED = (ImportError, RuntimeError, ValueError, TypeError, AttributeError, OSError, KeyError)


@dataclass
class Case:
    """One size and kind of data, and what engines may use of it."""

    clips: int
    width: int
    kind: str
    folder: Path
    store: TokenStore
    built_ms: float
    branch: Branch = "fv"

    def tokens(self) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        return parts(self.clips, self.width, self.kind)

    def whole(self) -> list[np.ndarray]:
        """All tokens of each branch: frame [N, 12, D], video [N, 14, D], float32."""
        found = [np.empty(shape, np.float32) for shape in self.shapes]
        for first, *both in self.branches():
            for kept, tokens in zip(found, both, strict=True):
                kept[first : first + len(tokens)] = tokens
        return found

    def branches(self) -> Iterator[tuple[Any, ...]]:
        """`tokens` of the branches that are searched alone: (first clip, [n, T, D] of each)."""
        for first, frame, video in self.tokens():
            yield first, *({"f": frame, "v": video}[branch] for branch in self.branch)

    @property
    def shapes(self) -> list[tuple[int, int, int]]:
        """[N, T, D] of each branch."""
        return [(self.clips, {"f": FRAMES, "v": FRAMES + EXPANSION}[branch], self.width) for branch in self.branch]

    def documents(self) -> Iterator[tuple[int, np.ndarray]]:
        """What an engine with one MaxSim a document is given: the tokens [n, T, D] of a single branch, or tokens [n, 26, D + 1] of both
        with the dimension that tells them apart."""
        for first, frame, video in self.tokens():
            if self.branch != "fv":
                yield first, {"f": frame, "v": video}[self.branch]
                continue
            sign = np.concatenate([np.ones(frame.shape[1]), -np.ones(video.shape[1])]).astype(np.float32)
            both = np.concatenate([frame, video], axis=1)
            yield first, np.concatenate([both, np.broadcast_to(sign[None, :, None], (*both.shape[:2], 1))], axis=2)

    @property
    def document_width(self) -> int:
        """Width of `documents`."""
        return self.width + (self.branch == "fv")

    def question(self, query_MD: np.ndarray) -> np.ndarray:
        """The query for `documents`: itself, or [2 M, D + 1] for both branches."""
        if self.branch != "fv":
            return query_MD
        ones = np.ones((len(query_MD), 1), np.float32)
        return np.concatenate([np.concatenate([query_MD, ones], axis=1), np.concatenate([query_MD, -ones], axis=1)])


def in_bytes(rows_TD: np.ndarray) -> np.ndarray:
    """Zeros appended to a width that is a multiple of 8: PLAID packs the bits of a residual into whole bytes."""
    return np.pad(rows_TD, ((0, 0), (0, -rows_TD.shape[1] % 8)))


@dataclass
class Engine:
    """name; make: builds its index and gives (search, bytes it keeps a clip or None)."""

    name: str
    make: Callable[[Case], tuple[Search, float | None]]
    most: int = 10**7  # clips beyond which it is left out: it would take hours


def top(score_N: np.ndarray) -> list[int]:
    return best(np.arange(len(score_N)), score_N, 10)


def vctool_exact(case: Case) -> tuple[Search, float | None]:
    return lambda query: top(
        batch_scores([query], case.store, case.branch, workers=WORKERS)[0][0]
    ), case.store.path.stat().st_size / case.clips


def vctool_two_stage(case: Case) -> tuple[Search, float | None]:
    def search(query: np.ndarray) -> list[int]:
        found = rerank(query, case.store, case.branch, estimates([query], case.store, case.branch, workers=WORKERS)[0], 10, batch_scores)
        return vctool_exact(case)[0](query) if found is None else best(found.clip, found.score, 10)

    return search, case.store.path.stat().st_size / case.clips


def numpy_float32(case: Case) -> tuple[Search, float | None]:
    branches = case.whole()

    def search(query: np.ndarray) -> list[int]:
        return top(sum((tokens @ query.T).max(axis=1).mean(axis=1) for tokens in branches))

    return search, sum(tokens.nbytes for tokens in branches) / case.clips


def torch_gemm(kind: str) -> Callable[[Case], tuple[Search, float | None]]:
    def make(case: Case) -> tuple[Search, float | None]:
        import torch

        torch.set_num_threads(THREADS)
        branches = [torch.empty(shape, dtype=getattr(torch, kind)) for shape in case.shapes]
        for first, *both in case.branches():  # a part at a time: float32 of all would not fit beside it
            for kept, tokens in zip(branches, both, strict=True):
                kept[first : first + len(tokens)] = torch.from_numpy(tokens)

        def search(query: np.ndarray) -> list[int]:
            with torch.inference_mode():
                asked = torch.from_numpy(query).to(branches[0].dtype).T
                total = sum((b.view(-1, b.shape[2]) @ asked).view(*b.shape[:2], -1).amax(dim=1).float().mean(dim=1) for b in branches)
                return [int(i) for i in torch.topk(total, 10).indices]

        return search, sum(b.nbytes for b in branches) / case.clips

    return make


def onnxruntime_graph(case: Case) -> tuple[Search, float | None]:
    import onnxruntime
    from onnx import TensorProto, helper

    nodes, inputs = [], [helper.make_tensor_value_info("query", TensorProto.FLOAT, [case.width, "M"])]
    fixed = {f"tokens_{branch}": tokens for branch, tokens in zip(case.branch, case.whole(), strict=True)}
    for name, tokens in fixed.items():
        inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", tokens.shape[1], case.width]))
        nodes.append(helper.make_node("MatMul", [name, "query"], [f"{name}_sim"]))
        nodes.append(helper.make_node("ReduceMax", [f"{name}_sim"], [f"{name}_max"], axes=[1], keepdims=0))
    nodes.append(helper.make_node("Sum", [f"{name}_max" for name in fixed], ["both"]))
    nodes.append(helper.make_node("ReduceMean", ["both"], ["score"], axes=[1], keepdims=0))
    graph = helper.make_graph(nodes, "scorer", inputs, [helper.make_tensor_value_info("score", TensorProto.FLOAT, ["N"])])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = THREADS, 1
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    size = sum(tokens.nbytes for tokens in fixed.values()) / case.clips
    return lambda query: top(session.run(None, {**fixed, "query": np.ascontiguousarray(query.T)})[0]), size


def maxsim_cpu(case: Case) -> tuple[Search, float | None]:
    import maxsim_cpu as engine

    branches = case.whole()
    size = sum(tokens.nbytes for tokens in branches) / case.clips
    return lambda query: top(sum(engine.maxsim_scores(query, tokens) for tokens in branches)), size


def faiss_mean(case: Case) -> tuple[Search, float | None]:
    import faiss

    faiss.omp_set_num_threads(THREADS)
    index = faiss.IndexFlatIP(case.width)
    for _, frame, _ in case.tokens():
        index.add(unit(frame.mean(axis=1)).astype(np.float32))
    return lambda query: index.search(unit(query.mean(axis=0, keepdims=True)).astype(np.float32), 10)[1][0].tolist(), case.width * 4.0


def qdrant_local(case: Case) -> tuple[Search, float | None]:
    from qdrant_client import QdrantClient, models

    client = QdrantClient(":memory:")
    comparing = models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM)
    client.create_collection(
        "clips", vectors_config=models.VectorParams(size=case.document_width, distance=models.Distance.DOT, multivector_config=comparing)
    )
    for first, tokens in case.documents():
        for at in range(0, len(tokens), 500):
            points = [models.PointStruct(id=first + at + i, vector=rows.tolist()) for i, rows in enumerate(tokens[at : at + 500])]
            client.upsert("clips", points)
    return lambda query: [int(hit.id) for hit in client.query_points("clips", query=case.question(query).tolist(), limit=10).points], None


def qdrant_edge(case: Case) -> tuple[Search, float | None]:
    import qdrant_edge as edge

    folder = case.folder / "edge"
    folder.mkdir()
    comparing = edge.MultiVectorConfig(edge.MultiVectorComparator.MaxSim)
    vectors = {"tokens": edge.EdgeVectorParams(case.document_width, edge.Distance.Dot, multivector_config=comparing)}
    shard = edge.EdgeShard.create(str(folder), edge.EdgeConfig(vectors=vectors, max_search_threads=THREADS))
    for first, tokens in case.documents():
        for at in range(0, len(tokens), 500):
            points = [edge.Point(first + at + i, {"tokens": rows.tolist()}) for i, rows in enumerate(tokens[at : at + 500])]
            shard.update(edge.UpdateOperation.upsert_points(points))
    shard.flush()
    size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) / case.clips
    exactly = edge.SearchParams(exact=True)

    def search(query: np.ndarray) -> list[int]:
        nearest = edge.Query.Nearest(case.question(query).tolist(), using="tokens")
        return [int(hit.id) for hit in shard.query(edge.QueryRequest(10, query=nearest, params=exactly))]

    return search, size


def lancedb_flat(case: Case) -> tuple[Search, float | None]:
    import lancedb
    import pyarrow as pa

    kind = pa.list_(pa.list_(pa.float32(), case.document_width))
    schema = pa.schema([pa.field("id", pa.int64()), pa.field("vector", kind)])
    table = lancedb.connect(str(case.folder / "lance")).create_table("clips", schema=schema)
    for first, tokens in case.documents():
        # Its multivectors are compared by cosine: a length of sqrt(2) everywhere changes no order.
        rows = [pa.array(list(one), pa.list_(pa.float32(), case.document_width)).to_pylist() for one in tokens]
        table.add(pa.table({"id": pa.array(range(first, first + len(tokens))), "vector": pa.array(rows, kind)}, schema=schema))
    size = sum(f.stat().st_size for f in (case.folder / "lance").rglob("*") if f.is_file()) / case.clips
    return lambda query: [
        int(hit["id"]) for hit in table.search(case.question(query).tolist()).distance_type("cosine").limit(10).select(["id"]).to_list()
    ], size


def fast_plaid(**searching: int) -> Callable[[Case], tuple[Search, float | None]]:
    """With its defaults, or looking further (n_ivf_probe cells a query token, n_full_scores candidates scored in full)."""

    def make(case: Case) -> tuple[Search, float | None]:
        import torch
        from fast_plaid import search as plaid

        torch.set_num_threads(THREADS)
        folder = case.folder / f"plaid{len(searching)}"
        index = plaid.FastPlaid(index=str(folder), device="cpu")
        index.create(documents_embeddings=[torch.from_numpy(in_bytes(rows)) for _, tokens in case.documents() for rows in tokens])
        size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) / case.clips

        def search(query: np.ndarray) -> list[int]:
            asked = torch.from_numpy(in_bytes(case.question(query)))[None]
            found = index.search(queries_embeddings=asked, top_k=10, show_progress=False, **searching)
            return [int(clip) for clip, _ in found[0]]

        return search, size

    return make


def pylate_plaid(case: Case) -> tuple[Search, float | None]:
    import torch
    from pylate import indexes

    torch.set_num_threads(THREADS)
    index = indexes.PLAID(index_folder=str(case.folder), index_name="pylate", override=True, device="cpu")
    tokens = [in_bytes(rows) for _, part in case.documents() for rows in part]
    index.add_documents(documents_ids=[str(i) for i in range(case.clips)], documents_embeddings=tokens)
    size = sum(f.stat().st_size for f in (case.folder / "pylate").rglob("*") if f.is_file()) / case.clips
    return lambda query: [int(hit["id"]) for hit in index([in_bytes(case.question(query))], k=10)[0]], size


ENGINES = (
    Engine(YARDSTICK, vctool_exact),
    Engine("vctool two-stage", vctool_two_stage),
    Engine("NumPy float32", numpy_float32, 100_000),
    Engine("torch float32 GEMM + amax", torch_gemm("float32"), 100_000),
    Engine("torch bfloat16 GEMM + amax", torch_gemm("bfloat16"), 1_000_000),
    Engine("ONNX Runtime float32 graph", onnxruntime_graph, 100_000),
    Engine("maxsim-cpu", maxsim_cpu, 1_000_000),
    Engine("faiss flat, one mean vector a clip", faiss_mean),
    Engine("fast-plaid", fast_plaid(), 100_000),
    Engine("fast-plaid, 128 cells, 65,536 scored", fast_plaid(n_ivf_probe=128, n_full_scores=65_536), 100_000),
    Engine("PyLate PLAID", pylate_plaid, 100_000),
    Engine("qdrant-client, local", qdrant_local, 10_000),
    Engine("qdrant-edge, exact", qdrant_edge, 10_000),
    Engine("LanceDB multivector, flat", lancedb_flat, 10_000),
)


@dataclass
class Row:
    """What one engine did in one case. ms, built_ms: CPU milliseconds a query and a clip. bytes: kept a clip."""

    engine: str
    clips: int
    width: int
    kind: str
    branch: str = "fv"
    ms: float = float("nan")
    ratio: float = float("nan")
    first: float = float("nan")
    ten: float = float("nan")
    built_ms: float = float("nan")
    bytes: float | None = None
    failed: str = ""


@dataclass
class Results:
    machine: str
    command: str
    rows: list[Row] = field(default_factory=list)


def measure(case: Case, wanted: list[Engine], count: int, rounds: int) -> list[Row]:
    asked = queries(case.clips, case.width, case.kind, count, 0.5)
    exact_BN = batch_scores(asked, case.store, case.branch, workers=WORKERS)[0]
    right = truth(asked, exact_BN, case.clips, case.width, case.kind, tuple(case.branch))
    rows, running = {}, {}
    for engine in wanted:
        row = rows[engine.name] = Row(engine.name, case.clips, case.width, case.kind, case.branch)
        if case.clips > engine.most:
            row.failed = f"left out above {engine.most:,} clips"
            continue
        start = time.process_time()
        try:
            running[engine.name], row.bytes = engine.make(case)
            found = [running[engine.name](query) for query in asked]
        except BaseException as problem:
            # A Rust engine that panics raises what is no Exception.
            if not isinstance(problem, _FAILED) and type(problem).__name__ != "PanicException":
                raise
            running.pop(engine.name, None)
            row.failed = f"{type(problem).__name__}: {str(problem).splitlines()[0][:120] if str(problem) else ''}"
            continue
        row.built_ms = case.built_ms if engine.name.startswith("vctool") else (time.process_time() - start) / case.clips * 1e3
        row.first = float(np.mean([f[:1] == r[:1] for f, r in zip(found, right, strict=True)]))
        row.ten = float(np.mean([len(set(f) & set(r)) / 10 for f, r in zip(found, right, strict=True)]))
    spent: dict[str, list[float]] = {name: [] for name in running}
    for turn in range(rounds + 1):
        for query in asked[:: max(1, count // 5)]:
            for name, search in running.items():
                start = clock()
                search(query)
                if turn:
                    spent[name].append(clock() - start)
    for name, seconds in spent.items():
        rows[name].ms = statistics.median(seconds) * 1e3
        rows[name].ratio = rows[name].ms / (statistics.median(spent[YARDSTICK]) * 1e3)
    return list(rows.values())


def machine() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    packages = [
        "numpy",
        "torch",
        "onnxruntime",
        "maxsim-cpu",
        "faiss-cpu",
        "fast-plaid",
        "pylate",
        "qdrant-client",
        "qdrant-edge-py",
        "lancedb",
    ]
    versions = [f"{name} {metadata.version(name)}" for name in packages if _installed(name)]
    cpus = f"{model}, {os.cpu_count()} CPUs, {MEASURED}, kernel {kernels.report().found[0]}"
    return f"{cpus}; Python {platform.python_version()}, {', '.join(versions)}"


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, nargs="+", default=[1000, 10_000])
    parser.add_argument("--widths", type=int, nargs="+", default=[128])
    parser.add_argument("--data", nargs="+", default=["easy", "hard"])
    parser.add_argument("--engines", nargs="+", help="names, or the beginnings of names; the yardstick always runs")
    parser.add_argument("--branch", choices=["f", "v", "fv"], default="fv")
    parser.add_argument("--threads", type=int, default=1, help=HELP)
    parser.add_argument("--queries", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--report", type=Path, nargs="+", help="print the tables of these result files instead of measuring")
    parser.add_argument("--plot", type=Path, help="with --report: draw recall against time into this SVG file (needs matplotlib)")
    arguments = parser.parse_args()
    if arguments.report:
        results = [_read(path) for path in arguments.report]
        print("\n".join(report(results)))
        if arguments.plot:
            plot(results, arguments.plot)
        return
    wanted = [e for e in ENGINES if e.name == YARDSTICK or not arguments.engines or e.name.startswith(tuple(arguments.engines))]
    results = Results(machine(), " ".join(["python tests/bench/bench_engines.py", *sys.argv[1:]]))
    print(results.machine, flush=True)
    for width in arguments.widths:
        for clips in arguments.clips:
            for kind in arguments.data:
                folder = Path(tempfile.mkdtemp(prefix="engines"))
                try:
                    built_ms = build(folder / "clips.npz", clips, width, kind, arguments.branch)
                    case = Case(clips, width, kind, folder, TokenStore(folder / "clips.npz"), built_ms, arguments.branch)
                    results.rows += measure(case, wanted, arguments.queries, arguments.rounds)
                finally:
                    shutil.rmtree(folder, ignore_errors=True)
                print("\n".join(report([results])[-len(wanted) - 3 :]), flush=True)
                if arguments.out:
                    arguments.out.write_text(json.dumps(asdict(results), indent=1) + "\n")


def _read(path: Path) -> Results:
    values: dict[str, Any] = json.loads(path.read_text())
    return Results(values["machine"], values["command"], [Row(**row) for row in values["rows"]])


def report(results: list[Results]) -> list[str]:
    """Markdown tables, a case each; engines of several environments stand beside each other by their ratio to the yardstick."""
    lines = []
    for result in results:
        lines += [f"- {result.machine}: `{result.command}`"]
    rows = [row for result in results for row in result.rows]
    for width, clips, kind, branch in dict.fromkeys((r.width, r.clips, r.kind, r.branch) for r in rows):
        lines += [
            "",
            f"**{clips:,} clips, D={width}, {kind}, branch `{branch}`**",
            "",
            "| engine | x | ms a query | R@1 | R@10 | build, ms a clip | bytes a clip |",
        ]
        lines += ["| --- | --- | --- | --- | --- | --- | --- |"]
        for row in {
            r.engine: r for r in rows if (r.width, r.clips, r.kind, r.branch) == (width, clips, kind, branch) and not _worse(r, rows)
        }.values():
            if row.failed:
                lines.append(f"| {row.engine} | – {row.failed} | | | | | |")
                continue
            size = "" if row.bytes is None else f"{row.bytes:,.0f}"
            lines.append(
                f"| {row.engine} | {row.ratio:.2g} | {row.ms:.3g} | {row.first:.2f} | {row.ten:.3f} | {row.built_ms:.3g} | {size} |"
            )
    return lines


def _worse(row: Row, rows: list[Row]) -> bool:
    """Whether another environment has this engine in this case and this one has not."""
    case = (row.engine, row.clips, row.width, row.kind, row.branch)
    same = [r for r in rows if (r.engine, r.clips, r.width, r.kind, r.branch) == case]
    return bool(row.failed) and any(not r.failed for r in same)


def plot(results: list[Results], path: Path) -> None:
    """Recall against time, as ratios to the yardstick, a panel each case of the largest width."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.fonttype"] = "none"
    matplotlib.rcParams["svg.hashsalt"] = "vctool"  # the same figure is the same file
    from matplotlib import pyplot

    rows = [row for result in results for row in result.rows if not row.failed]
    cases = list(dict.fromkeys((r.width, r.clips, r.kind, r.branch) for r in rows))
    figure, axes = pyplot.subplots(1, len(cases), figsize=(4.2 * len(cases), 3.6), sharey=True, squeeze=False)
    names = list(dict.fromkeys(r.engine for r in rows))
    for axis, (width, clips, kind, branch) in zip(axes[0], cases, strict=True):
        for number, name in enumerate(names):
            chosen = [r for r in rows if (r.engine, r.width, r.clips, r.kind, r.branch) == (name, width, clips, kind, branch)]
            axis.scatter(
                [r.ratio for r in chosen[:1]], [r.ten for r in chosen[:1]], label=name, color=f"C{number % 10}", marker="os^"[number // 10]
            )
        axis.set(xscale="log", xlabel="time, our exact search = 1", title=f"{clips:,} clips, D={width}, {kind}, `{branch}`")
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("R@10 against float64")
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="lower center", ncols=4, fontsize=8, frameon=False)
    figure.tight_layout(rect=(0, 0.16, 1, 1))
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
