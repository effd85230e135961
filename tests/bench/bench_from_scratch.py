"""A ViT and a text tower from random weights, through the open_clip path, on the demo world: proof that the whole path learns.

    python tests/bench/bench_from_scratch.py WORK [--figure docs/figures/from-scratch.png]

Writes the clips of the demo world that show 42 of its objects, 64 pixels a side (4,000 to train on, 129 to choose by, 269 to test; no
combination of objects and event is in two of them), trains the shipped recipe `world-vit-scratch`, evaluates its best weights on the test
clips, and draws the validation curve. Going on after a stop is part of it: run it again. Needs the emoji font.
"""

from __future__ import annotations

import argparse
import json
import platform
from dataclasses import replace
from pathlib import Path

from vctool.demo.encode import write_world
from vctool.demo.objects import things
from vctool.demo.world import World
from vctool.evaluation.chart import Chart, Series, png
from vctool.metrics import bootstrap_intervals, evaluate_ranking
from vctool.models.checkpoint import load_model
from vctool.training.checkpoint import checkpoints
from vctool.training.display import Display
from vctool.training.prepare import prepare_held_out
from vctool.training.recipe import find_recipe, load_recipe, quoted
from vctool.training.run import resume, start
from vctool.training.validation import score_split

DRAWN = {"val": (2500, 200), "test": (5000, 400), "train": (50_000, 4000)}  # drawn from the whole world; at most so many are kept


def write_clips(folder: Path) -> None:
    """The clips of each split whose objects are among every eighth of the world's."""
    shown = frozenset(tuple(things())[::8])
    for split, (drawn, most) in DRAWN.items():
        if not (folder / split / "manifest.jsonl").is_file():
            specs = [spec for spec in World().clip_specs(split, drawn, seed=1) if shown.issuperset(spec.objects)][:most]
            write_world(folder / split, specs, size=64)


def curve(log: list[dict[str, float]]) -> Chart:
    """R@1 and R@10 of both branches together, by step."""
    steps = [float(row["step"]) for row in log]
    series = [Series(name, steps, [row[f"fv/{name}"] for row in log]) for name in ("R@1", "R@5", "R@10")]
    return Chart("from-scratch", "From random weights, 129 unseen clips", "step", "per cent", series, "recall by training step")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--steps", type=int)
    chosen = parser.parse_args()
    work, world = chosen.work, chosen.work / "world"
    write_clips(world)
    named = {"train": "train", "validation": "val", "test": "test"}
    sets = [f"data.{key}={quoted(world / name / 'manifest.jsonl')}" for key, name in named.items()]
    sets += [f"data.cache={quoted(work / 'cache')}", *([f"optim.steps={chosen.steps}"] if chosen.steps else [])]
    recipe = load_recipe(find_recipe(Path("world-vit-scratch")), sets)
    recipe = replace(recipe, run=replace(recipe.run, output=work / "run"))
    if not (work / "run" / "model" / "model.safetensors").is_file():
        _ = resume(work / "run", recipe) if checkpoints(work / "run" / "checkpoints") else start(recipe)
    story = json.loads((work / "run" / "model" / "training.json").read_text())
    lines = [json.loads(line) for line in (work / "run" / "log.jsonl").read_text().splitlines()]
    model = load_model(work / "run" / "model")
    assert recipe.data.test is not None
    split, queries, precision = prepare_held_out(recipe, model, recipe.data.test, 1, work, Display(quiet=True))
    scores = score_split(model, split.frames, split.texts, queries, precision)
    best = story["best"]["step"]
    print(
        f"{story['steps']} steps in {story['seconds']:.0f} s; best at step {best}; {platform.machine()}, {story['hardware']['cpus']} CPUs"
    )
    print("| branch | R@1 | R@5 | R@10 | MdR | 95 % interval of R@1 |\n|---|---|---|---|---|---|")
    for branch, score_QN in scores.score_QN.items():
        found = evaluate_ranking(score_QN, queries.relevant)
        low, high = bootstrap_intervals(found)["R@1"]
        cells = [
            f"{found.r1:.1f}",
            f"{found.recall[5]:.1f}",
            f"{found.recall[10]:.1f}",
            f"{found.median_rank:g}",
            f"{low:.1f} to {high:.1f}",
        ]
        print(f"| `{branch}` | " + " | ".join(cells) + " |")
    count = len(split.clips)
    print(f"| chance | {100 / count:.1f} | {500 / count:.1f} | {1000 / count:.1f} | {(count + 1) / 2:g} | |")
    if chosen.figure:
        chosen.figure.write_bytes(png(curve([line for line in lines if line["event"] == "validation"])))


if __name__ == "__main__":
    main()
