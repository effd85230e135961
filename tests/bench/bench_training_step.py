"""Where a training step's time goes, with a plain reference loop beside it in the same run.

    python tests/bench/bench_training_step.py [--batch 256] [--frames 12] [--dim 512] [--tower] [--rounds 3] [--out FILE.json]

The model is the project's own for cached features: trained heads over frozen towers, temporal encoder of four layers, 32 query tokens
that all count, F frame tokens and F + 2 video tokens a clip. Features are random, in a cache on disk as a run has it. Reported are
CPU seconds of one thread (a busy neighbour takes wall time, but hardly CPU time), the least of the rounds, which alternate between
the two loops:

data      reading the batch's rows and captions (in a run a thread does it beside the step)
encode    towers, heads, temporal encoder, forwards
loss      scores and loss, forwards and backwards to the tokens
backward  from the tokens to the parameters
update    gradient norm, AdamW

`plain` is what a training script writes without thought: einsum over [B, B, Q, T], amax, mean. --tower puts ViT-B/32 of open_clip
(random weights, pixels) in the place of the cached features, on `--rows` rows, and reckons the share at `--batch`: a tower's time is
linear in rows.

--memory FIGURE.svg: instead of all this, growth of resident memory in a step beyond the batch's inputs, over the batch (D=192), a process
each: the plain loop, ours, and ours with `encode_rows` = 16.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

import numpy as np  # noqa: E402  (after the threads are set)
import torch  # noqa: E402
from torch import Tensor  # noqa: E402

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from vctool.config import BackboneConfig, ModelConfig, QueryConfig, TemporalConfig  # noqa: E402
from vctool.models.checkpoint import build_model  # noqa: E402
from vctool.models.interaction import BranchScores  # noqa: E402
from vctool.models.losses import LossConfig, RetrievalLoss  # noqa: E402
from vctool.models.video_colbert import VideoColBERT  # noqa: E402
from vctool.training.batches import Batch  # noqa: E402
from vctool.training.encoder import BatchInputs, Encoder, RowInputs  # noqa: E402
from vctool.training.gradients import GradientPass  # noqa: E402
from vctool.training.optimizer import build_optimizer, trained_parameters  # noqa: E402
from vctool.training.precision import Precision, PrecisionName  # noqa: E402
from vctool.training.ranks import ALONE  # noqa: E402
from vctool.training.recipe import OptimConfig  # noqa: E402
from vctool.training.row_cache import RowCache  # noqa: E402
from vctool.training.texts import TextInput  # noqa: E402

QUERIES = 32
METHODS = ("plain", "ours", "encode_rows=16")


def heads_model(dim: int, frames: int) -> VideoColBERT:
    query = QueryConfig(max_length=QUERIES, expand="on")
    temporal = TemporalConfig(layers=4, head_width=32 if dim < 512 else 64, expansion_tokens=2)
    model = build_model(
        ModelConfig(embed_dim=dim, frames=frames, backbone=BackboneConfig(kind="offline", name="heads"), query=query, temporal=temporal)
    )
    for parameter in model.backbone.frozen_parameters():
        parameter.requires_grad_(False)
    return model.train()


def tower_model(frames: int) -> VideoColBERT:
    query, temporal = QueryConfig(max_length=QUERIES, expand="on"), TemporalConfig(layers=4, head_width=64, expansion_tokens=2)
    backbone = BackboneConfig(kind="open_clip", name="ViT-B-32-quickgelu")
    return build_model(ModelConfig(embed_dim=512, frames=frames, backbone=backbone, query=query, temporal=temporal)).train()


def cached(folder: Path, rows: int, shape: tuple[int, ...]) -> RowCache:
    cache = RowCache(folder, f"rows{len(shape)}", {}, shape, np.float16)
    rng = np.random.default_rng(0)
    with cache.adding(rows) as writer:
        for i in range(rows):
            writer.add(str(i), rng.standard_normal(shape, dtype=np.float32).astype(np.float16), shape[0])
    return cache


class Inputs:
    """Batches over a cache of twice as many clips as a batch has, or over pixels drawn once."""

    def __init__(self, folder: Path, rows: int, frames: int, *, pixels: bool) -> None:
        self.rows, self.pixels = rows, pixels
        self.rng = np.random.default_rng(1)
        ids = torch.randint(1000, 2000, (rows, QUERIES), generator=torch.Generator().manual_seed(0))
        self.ids, self.mask = ids, torch.arange(QUERIES)[None].expand(rows, -1) < 14
        if pixels:
            self.frames = torch.randint(0, 255, (rows, frames, 224, 224, 3), dtype=torch.uint8)
        else:
            self.maps, self.states = cached(folder, 2 * rows, (frames, 16, 768)), cached(folder, 2 * rows, (QUERIES, 384))

    def read(self) -> BatchInputs:
        rows = self.rows
        batch = Batch(np.arange(rows), np.zeros(rows, bool), np.arange(rows), np.eye(rows, dtype=bool))
        if self.pixels:
            frames, text = self.frames, TextInput(None, self.ids, self.mask.long())
        else:
            keys = [str(i) for i in self.rng.permutation(2 * rows)[:rows]]
            frames = torch.from_numpy(self.maps.rows(keys).take(np.arange(rows)))
            text = TextInput(torch.from_numpy(self.states.rows(keys).take(np.arange(rows))), self.ids, self.mask.long())
        mask_UF = torch.ones(frames.shape[:2], dtype=torch.bool)
        part = RowInputs(frames, mask_UF, torch.arange(rows), torch.zeros(rows, dtype=torch.bool), text)
        return BatchInputs(batch, [rows], rows, [part])


def plain_loss(loss: RetrievalLoss, query: Any, clips: Any, positive_BB: Tensor) -> Tensor:
    def score(token_CTD: Tensor, mask_CT: Tensor) -> Tensor:
        similarity = torch.einsum("bqd,ctd->bcqt", query.query_BQD, token_CTD).masked_fill(~mask_CT[None, :, None], float("-inf"))
        best = similarity.amax(dim=-1).masked_fill(~query.query_mask_BQ[:, None], 0.0)
        return best.sum(dim=-1) / query.query_mask_BQ.sum(dim=1, keepdim=True)

    scores = BranchScores(score(clips.frame_CFD, clips.frame_mask_CF), score(clips.video_CVD, clips.video_mask_CV))
    return loss(scores, positive_BB).total  # type: ignore[no-any-return]


def measure(model: VideoColBERT, inputs: Inputs, precision: PrecisionName, rounds: int, plain: bool) -> dict[str, dict[str, float]]:
    loss, chosen = RetrievalLoss(LossConfig()), Precision(torch.device("cpu"), precision)
    optimizer = build_optimizer(model, loss, OptimConfig(backbone_lr=1e-7))
    trained = trained_parameters(model)
    ours = GradientPass(model, loss, chosen, ALONE, pixels=inputs.pixels, clock=time.process_time)
    encoder = Encoder(model, chosen, pixels=inputs.pixels)
    best: dict[str, dict[str, float]] = {}

    def keep(name: str, **parts: float) -> None:
        known = best.setdefault(name, dict.fromkeys(parts, float("inf")))
        best[name] = {part: min(known[part], seconds) for part, seconds in parts.items()}

    def update() -> float:
        began = time.process_time()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return time.process_time() - began

    for _ in range(rounds):
        began = time.process_time()
        given = inputs.read()
        data = time.process_time() - began
        ours(given, 0, 0, scale=lambda total: total, check=lambda value: None)
        encode, scored, backward = ours.seconds
        keep("vctool", data=data, encode=encode, loss=scored, backward=backward, update=update())
        if not plain:
            continue
        clock = [time.process_time()]
        query, clips = encoder(given.parts[0])
        clock.append(time.process_time())
        total = plain_loss(loss, query, clips, torch.from_numpy(given.batch.positive_BB))
        tokens = [query.query_BQD, clips.frame_CFD, clips.video_CVD]
        gradients = torch.autograd.grad(total, tokens)
        clock.append(time.process_time())
        torch.autograd.backward(tokens, gradients)
        clock.append(time.process_time())
        keep("plain", data=data, encode=clock[1] - clock[0], loss=clock[2] - clock[1], backward=clock[3] - clock[2], update=update())
    return best


def memory(method: str, rows: int, frames: int) -> float:
    """MiB by which a step's resident memory grows, its inputs read; the step before it, on few rows, has filled what fills once."""
    from bench_interaction import peak_of

    model, loss, precision = heads_model(192, frames), RetrievalLoss(LossConfig()), Precision(torch.device("cpu"), "fp32")
    ours, encoder = GradientPass(model, loss, precision, ALONE, pixels=False), Encoder(model, precision, pixels=False)

    def step(given: BatchInputs) -> None:
        if method == "plain":
            plain_loss(loss, *encoder(given.parts[0]), torch.from_numpy(given.batch.positive_BB)).backward()
        else:
            ours(given, 0, 0, scale=lambda total: total, check=lambda value: None)

    with tempfile.TemporaryDirectory() as folder:
        few, many = (Inputs(Path(folder) / str(n), n, frames, pixels=False).read() for n in (4, rows))
        if method == "encode_rows=16":
            (whole,) = many.parts
            parts = []
            for start in range(0, rows, 16):
                span = slice(start, start + 16)
                text = TextInput(*(side[span] for side in whole.text if side is not None))
                own = torch.arange(len(whole.row_B[span]))
                parts.append(RowInputs(whole.frames[span], whole.frame_mask_UF[span], own, whole.reversed_B[span], text))
            many = many._replace(parts=parts)
        step(few)
        return peak_of(lambda: step(many)) / 2**20


def draw_memory(figure: Path, batches: list[int], frames: int) -> None:
    from vctool.evaluation.chart import Chart, Series, svg

    series = []
    print(f"| B | {' | '.join(METHODS)} |\n|---|---|---|---|")
    found: dict[str, list[float]] = {method: [] for method in METHODS}
    for rows in batches:
        for method in METHODS:
            command = [sys.executable, __file__, "--one", method, "--batch", str(rows), "--frames", str(frames)]
            found[method].append(float(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
        print(f"| {rows} | {' | '.join(f'{found[method][-1]:,.0f}' for method in METHODS)} |", flush=True)
    series = [Series(method, batches, values) for method, values in found.items()]
    title, what = "Memory of a training step on cached features", "Growth of resident memory over the batch"
    told = f"{what}: a plain loop, ours, and ours with gradient caching in parts of 16 rows."
    figure.write_text(svg(Chart("training-memory", title, "rows in the batch", "MiB", series, told)) + "\n")


def shown(name: str, parts: dict[str, float]) -> str:
    whole = sum(parts.values())
    return (
        f"| {name} | "
        + " | ".join(f"{1e3 * s:,.0f}" for s in parts.values())
        + f" | {1e3 * whole:,.0f} | {100 * parts['loss'] / whole:.1f} % |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--frames", type=int, default=12)
    parser.add_argument("--dim", type=int, nargs="+", default=[192, 512])
    parser.add_argument("--precision", nargs="+", default=["fp32"], choices=["fp32", "bf16"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tower", action="store_true")
    parser.add_argument("--rows", type=int, default=8, help="with --tower: rows that are encoded")
    parser.add_argument("--no-plain", action="store_true")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--memory", type=Path, metavar="FIGURE.svg")
    parser.add_argument("--batches", type=int, nargs="+", default=[32, 64, 128, 256], help="with --memory")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        torch.set_num_threads(1)
        print(memory(given.one, given.batch, given.frames))
        return
    if given.memory:
        draw_memory(given.memory, given.batches, given.frames)
        return
    torch.set_num_threads(1)
    torch.manual_seed(0)
    found: dict[str, Any] = {}
    print(
        f"B={given.batch}, Q={QUERIES}, T={given.frames}+{given.frames + 2}, torch {torch.__version__}, CPU ms of one thread",
        file=sys.stderr,
    )
    print("| loop | data | encode | loss | backward | update | step | loss's share |\n|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for dim in given.dim:
            for precision in given.precision:
                inputs = Inputs(Path(folder) / f"{dim}{precision}", given.batch, given.frames, pixels=False)
                for name, parts in measure(heads_model(dim, given.frames), inputs, precision, given.rounds, not given.no_plain).items():
                    label = f"{name}, D={dim}, {precision}"
                    found[label] = parts
                    print(shown(label, parts), flush=True)
                if given.tower and dim == 512:
                    few = measure(
                        tower_model(given.frames), Inputs(Path(folder), given.rows, given.frames, pixels=True), precision, 1, False
                    )
                    times = {
                        part: s * given.batch / given.rows for part, s in few["vctool"].items() if part in ("data", "encode", "backward")
                    }
                    cached_parts = found[f"vctool, D={dim}, {precision}"]
                    parts = {"data": times["data"], "encode": times["encode"], "loss": cached_parts["loss"]}
                    parts |= {"backward": times["backward"], "update": few["vctool"]["update"]}
                    label = f"vctool, ViT-B/32 in the step, {precision} (reckoned from {given.rows} rows)"
                    found[label] = parts
                    print(shown(label, parts), flush=True)
    if given.out:
        given.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
