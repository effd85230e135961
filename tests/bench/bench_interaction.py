"""MeanMaxSim in training: time and memory of a forward and backward pass, the whole tensor of similarities against tiles.

    python tests/bench/bench_interaction.py [--batches 32 64 128 256] [--queries 32] [--tokens 12 14] [--dim 512] [--step] [--out FILE.json]

Each figure is of a process of its own, on one thread: CPU seconds (a busy neighbour takes wall time, but hardly CPU time), the
least of three, and the growth of its resident memory above what the arguments and their gradients take. `whole` is what a
training script writes without thought: einsum, amax, mean. `counted` is `tiled` where 14 of 32 query tokens count, as with
captions of a dozen words. On a GPU `triton` is there too, timed by the GPU's clock, its memory as torch counts it.

--step: what share the loss has in a step that trains the temporal encoder (4 layers) and a text projection on cached features.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

import torch  # noqa: E402  (after the threads are set)
from torch import Tensor  # noqa: E402

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from vctool.config import TemporalConfig  # noqa: E402
from vctool.models.interaction import BranchScores, mean_max_sim  # noqa: E402
from vctool.models.losses import LossConfig, RetrievalLoss  # noqa: E402
from vctool.models.temporal import build_temporal_encoder  # noqa: E402

MIB = 1 << 20


def whole(query: Tensor, query_mask: Tensor, token: Tensor, token_mask: Tensor) -> Tensor:
    similarity = torch.einsum("bqd,ctd->bcqt", query, token).masked_fill(~token_mask[None, :, None, :], float("-inf"))
    best = similarity.amax(dim=-1).masked_fill(~query_mask[:, None, :], 0.0)
    return best.sum(dim=-1) / query_mask.sum(dim=1, keepdim=True)


def tokens(count: int, length: int, dim: int, device: str) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(count, length, dim, device=device), dim=-1)


def resident() -> int:
    """Bytes of anonymous memory, now."""
    found = re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None, "this reads Linux' /proc"
    return int(found[1]) * 1024


def peak_of(work: Callable[[], object]) -> int:
    import threading

    done, peak = threading.Event(), resident()
    before = peak

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.002):
            peak = max(peak, resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    work()
    done.set()
    watcher.join()
    return peak - before


def one(method: str, batch: int, queries: int, lengths: list[int], dim: int) -> dict[str, float]:
    """Both branches, forwards and backwards, as a dual loss has them."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    device = "cuda" if method == "triton" or method.endswith(" cuda") else "cpu"
    query, query_mask = tokens(batch, queries, dim, device), torch.ones(batch, queries, dtype=torch.bool, device=device)
    if method == "counted":
        query_mask[:, 14:] = False
    sides = [tokens(batch, length, dim, device) for length in lengths]
    leaves = [query, *sides]
    for leaf in leaves:
        leaf.requires_grad_()
        leaf.grad = torch.zeros_like(leaf)
    score: Any = whole if method.startswith("whole") else lambda *a: mean_max_sim(*a, kernel="triton" if method == "triton" else "tiled")

    def step() -> None:
        parts = [score(query, query_mask, side, torch.ones(side.shape[:2], dtype=torch.bool, device=device)) for side in sides]
        sum(part.square().mean() for part in parts).backward()  # type: ignore[union-attr]

    if device == "cuda":
        step()  # trials of tiles
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        memory = torch.cuda.max_memory_allocated() - before
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(20):
            step()
        end.record()
        torch.cuda.synchronize()
        return {"ms": start.elapsed_time(end) / 20, "mib": memory / MIB}
    memory = peak_of(step)
    best = float("inf")
    for _ in range(3):
        began = time.process_time()
        step()
        best = min(best, time.process_time() - began)
    return {"ms": best * 1e3, "mib": memory / MIB}


def share_of_step(batch: int, queries: int, frames: int, dim: int) -> dict[str, float]:
    """CPU ms of the parts of a step on cached features: encoding (forward), scores and loss (forward), all backwards."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    config = TemporalConfig(kind="transformer", layers=4)
    encoder, project = build_temporal_encoder(dim, config), torch.nn.Linear(dim, dim)
    loss = RetrievalLoss(LossConfig())
    features, mask = torch.randn(batch, frames, dim), torch.ones(batch, frames, dtype=torch.bool)
    states, query_mask = torch.randn(batch, queries, dim), torch.ones(batch, queries, dtype=torch.bool)
    best: dict[str, float] = {}
    for _ in range(3):
        clock = [time.process_time()]
        video, video_mask = encoder(features, mask)
        query = torch.nn.functional.normalize(project(states), dim=-1)
        frame = torch.nn.functional.normalize(features, dim=-1)
        clock.append(time.process_time())
        video_leaf, query_leaf = video.detach().requires_grad_(), query.detach().requires_grad_()
        scores = BranchScores(
            mean_max_sim(query_leaf, query_mask, frame, mask), mean_max_sim(query_leaf, query_mask, video_leaf, video_mask)
        )
        loss(scores, torch.eye(batch, dtype=torch.bool)).total.backward()
        clock.append(time.process_time())
        torch.autograd.backward([video, query], [video_leaf.grad, query_leaf.grad])
        clock.append(time.process_time())
        parts = {"encode": clock[1] - clock[0], "loss": clock[2] - clock[1], "encode_backward": clock[3] - clock[2]}
        best = {name: min(best.get(name, 1e9), value * 1e3) for name, value in parts.items()}
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[32, 64, 128, 256])
    parser.add_argument("--queries", type=int, default=32)
    parser.add_argument("--tokens", type=int, nargs="+", default=[12, 14])
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--step", action="store_true")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        result = (
            share_of_step(given.batches[0], given.queries, given.tokens[0], given.dim)
            if given.one == "step"
            else one(given.one, given.batches[0], given.queries, given.tokens, given.dim)
        )
        print(json.dumps(result))
        return
    methods = ["whole", "tiled", "counted"] + (["whole cuda", "tiled cuda", "triton"] if torch.cuda.is_available() else [])
    rows = []

    def run(method: str, batch: int) -> dict[str, float]:
        common = ["--queries", str(given.queries), "--dim", str(given.dim), "--tokens", *map(str, given.tokens)]
        command = [sys.executable, __file__, "--one", method, "--batches", str(batch), *common]
        found: dict[str, float] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        return found

    print(f"Q={given.queries}, T={given.tokens}, D={given.dim}, torch {torch.__version__}, one thread", file=sys.stderr)
    print("| B | method | ms | MiB |\n| --- | --- | --- | --- |")
    for batch in given.batches:
        for method in methods:
            found = run(method, batch)
            rows.append({"batch": batch, "method": method, **found})
            print(f"| {batch} | {method} | {found['ms']:.0f} | {found['mib']:.0f} |", flush=True)
    if given.step:
        found = run("step", given.batches[-1])
        rows.append({"batch": given.batches[-1], "method": "step", **found})
        print(f"a step on cached features, B={given.batches[-1]}: " + ", ".join(f"{k} {v:.0f} ms" for k, v in found.items()))
    if given.out:
        given.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
