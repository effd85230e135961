"""What the shipped recipes cost: floating-point operations and kept activations of each tower, measured; hours and GPU memory, estimated.

    python tests/bench/bench_recipes.py [--teraflops 125] [--json FILE]

The towers are built with random weights. Operations of one frame and one caption are counted by torch's flop counter in a forward pass;
what a backward pass would need
is counted as the bytes that autograd keeps under bf16 autocast. Then, per recipe: operations of a step = 3 x (forward) x batch, hours =
steps x operations / TERAFLOPS (125: 40 % of an A100's 312 in bf16, an assumption), memory = 18 bytes a parameter (weights, gradient, two
moments in float32, a copy in bf16) + batch x kept bytes. Nothing here has run on a GPU; decoding, validation and idling come on top.
"""

from __future__ import annotations

import argparse
import json
import warnings
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from vctool.config import to_dict
from vctool.data.published import PUBLISHED
from vctool.models.checkpoint import build_model
from vctool.models.video_colbert import VideoColBERT
from vctool.training.recipe import Recipe, load_recipe, shipped_recipes

ROWS = {  # training captions an epoch, as published; those of benchmarks whose count depends on the file are the field's
    "msrvtt-9k": 180_000,
    "msrvtt-7k": 140_200,
    "msvd": 48_774,
    "vatex": 259_910,
    "didemo": 8_392,
    "activitynet": 10_009,
    "lsmdc": PUBLISHED["lsmdc", "train"].clips,
}


def kept_bytes(run: Any) -> int:
    """Bytes that autograd keeps for the backward pass of `run`, weights left out."""
    seen: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            storage = tensor.untyped_storage()
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16):
        out = run()
    total = sum(seen.values())
    del out
    return total


def measure(model: VideoColBERT, recipe: Recipe) -> dict[str, float]:
    """GFLOP and kept MB of one frame, one caption, and one clip's temporal encoder.

    Kept bytes are what two rows more add: autocast keeps its half-precision copies of the weights once, however many rows there are.
    """
    size, length, frames = model.backbone.preprocess.size, recipe.model.query.max_length, recipe.model.frames

    def frame(rows: int) -> Any:
        return model.backbone(torch.zeros(rows, size, size, 3, dtype=torch.uint8))

    def caption(rows: int) -> Any:
        ids = torch.ones(rows, length, dtype=torch.long)
        return model.encode_query(ids, torch.ones_like(ids))

    def temporal(rows: int) -> Any:
        return model.encode_features(torch.randn(rows, frames, model.backbone.embed_dim), torch.ones(rows, frames, dtype=torch.bool))

    parts = {"frame": frame, "caption": caption, "temporal": temporal}
    found = {}
    for name, run in parts.items():
        with FlopCounterMode(display=False) as counter:  # with gradients: under no_grad its module tracker fails on SigLIP
            run(1)
        found[f"{name}_gflop"] = counter.get_total_flops() / 1e9
        found[f"{name}_kept_mb"] = (kept_bytes(lambda run=run: run(3)) - kept_bytes(lambda run=run: run(1))) / 2e6  # type: ignore[misc]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teraflops", type=float, default=125.0)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.manual_seed(0)
    rows, measured, models = [], {}, {}
    for name, path in shipped_recipes().items():
        benchmark = next((own for own in ROWS if name.startswith(own)), None)
        if benchmark is None:
            continue
        recipe = load_recipe(path)
        tower = recipe.model.backbone.name
        key = json.dumps([to_dict(recipe.model) | {"name": ""}])
        if key not in measured:
            model = models.get(tower) or build_model(recipe.model)
            models = {tower: model}
            fresh = VideoColBERT(recipe.model, model.backbone).train()
            measured[key] = measure(fresh, recipe) | {"parameters": float(sum(p.numel() for p in fresh.parameters()))}
        one, optim, frames = measured[key], recipe.optim, recipe.model.frames
        row_gflop = frames * one["frame_gflop"] + one["caption_gflop"] + one["temporal_gflop"]
        row_mb = frames * one["frame_kept_mb"] + one["caption_kept_mb"] + one["temporal_kept_mb"]
        steps = optim.epochs * max(1, ROWS[benchmark] // optim.batch)
        hours = 3 * row_gflop * optim.batch * steps / (chosen.teraflops * 1e3) / 3600
        memory = 18 * one["parameters"] / 1e9 + optim.batch * row_mb / 1e3
        rows.append(
            {"recipe": name, "steps": steps, "gflop_a_row": row_gflop, "kept_mb_a_row": row_mb, "gb": memory, "hours": hours, **one}
        )
    rows.sort(key=lambda row: (list(ROWS).index(next(own for own in ROWS if row["recipe"].startswith(own))), row["gflop_a_row"]))
    print("| recipe | steps | GFLOP a row, forward | kept MB a row | GPU memory, GB | hours |\n|---|---|---|---|---|---|")
    for row in rows:
        cells = [f"{row['steps']:,}", f"{row['gflop_a_row']:.0f}", f"{row['kept_mb_a_row']:.0f}", f"{row['gb']:.0f}", f"{row['hours']:.1f}"]
        print(f"| `{row['recipe']}` | " + " | ".join(cells) + " |")
    for row in rows[:3]:
        print({name: round(value, 2) for name, value in row.items() if isinstance(value, float)})
    if chosen.json:
        chosen.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
