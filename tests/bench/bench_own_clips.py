"""Does training on one's own clips help? The offline model on half of a manifest's clips, measured on the other half, against zero-shot.

    python tests/bench/bench_own_clips.py MANIFEST.jsonl --init MODEL [--splits 5] [--work DIR] [--set KEY=VALUE]

Halves are drawn by clip (clips of one file or `group` together). Both models rank the same held-out half for the same captions; intervals
are paired and come from resampling clips. Prints a table and writes it as JSON. Nothing is chosen by the held-out half: recipe and number
of steps are those of the shipped `own-clips`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from vctool.training import checkpoint
from vctool.training.clips import read_clips
from vctool.training.display import Display
from vctool.training.loop import RunFolder
from vctool.training.own_clips import METRIC, FoldResult, evaluate_fold, judge, reset, rows_of
from vctool.training.prepare import Bench, Split
from vctool.training.recipe import find_recipe, load_recipe, quoted
from vctool.training.splits import fold_members
from vctool.training.stop import StopRequest

HEADER = """\
| split | R@1 zero-shot | R@1 trained | MRR zero-shot | MRR trained | difference | 95 % interval | verdict |
|---|---|---|---|---|---|---|---|"""


def line(name: str, results: list[FoldResult], rounds: int) -> str:
    """One row of the table: both models' R@1 and MRR, and the difference that decides, with its interval."""
    verdict = judge(results, rounds)
    by = {d.metric: d for d in verdict.comparison.differences}
    own = by[METRIC]
    cells = [
        f"{by['R@1'].a:.1f}",
        f"{by['R@1'].b:.1f}",
        f"{own.a:.3f}",
        f"{own.b:.3f}",
        f"{own.difference:+.3f}",
        f"{own.low:+.3f} to {own.high:+.3f}",
    ]
    return "| " + " | ".join([name, *cells, verdict.outcome]) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--init", type=Path, required=True, help="the zero-shot model directory")
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument("--work", type=Path, help="where features and results are kept (default: a temporary folder)")
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        work = chosen.work or Path(scratch)
        sets = [
            f"data.train={quoted(chosen.manifest)}",
            f"init.model={quoted(chosen.init)}",
            f"data.cache={quoted(work / 'cache')}",
            "data.folds=2",
        ]
        recipe = load_recipe(find_recipe(Path("own-clips")), [*sets, *chosen.overrides])
        display, stop, began = Display(quiet=True), StopRequest(), time.process_time()
        bench = Bench(recipe, work, display, stop)
        clips, frames = bench.frames("own", read_clips(recipe.data.train))
        whole = Split(clips, frames, bench.texts("own", clips.texts))
        start = checkpoint.tensors_of(bench.model.moving_state())
        print(f"{len(clips)} clips, {len(clips.texts)} captions; features in {time.process_time() - began:.0f} s of CPU")
        print(HEADER)
        results, began = [], time.process_time()
        for seed in range(chosen.splits):
            held = fold_members(clips.clips, 2, seed)[0]
            train = sorted(set(range(len(clips))) - set(held))
            reset(bench, start, replace(recipe, run=replace(recipe.run, seed=seed)))
            with tempfile.TemporaryDirectory() as folder:
                results.append(evaluate_fold(bench, rows_of(whole, train), rows_of(whole, held), RunFolder(Path(folder)), stop))
            print(line(str(seed + 1), results[-1:], 1), flush=True)
        print(line("all", results, chosen.splits))
        print(f"{(time.process_time() - began) / chosen.splits:.1f} s of CPU a split")
        if chosen.work is not None:
            (work / "own_clips.json").write_text(json.dumps([r.to_dict() for r in results]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
