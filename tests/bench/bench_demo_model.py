"""The demo model on the demo world's test split: retrieval, and whether it can tell a clip from the same clip played backwards.

    python tests/bench/bench_demo_model.py [--model DIR] [--work DIR] [--clips 1000] [--pairs 500]

Writes the clips as H.264 files, indexes them with `vctool`'s own indexer, asks each clip's first caption, and prints
R@1/5/10, MdR and nDCG@10 of both branches and their sum, then the share of twin pairs told apart by kind of event (chance:
50). Combinations of object and motion in the test split never occur in training. Needs the emoji font.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np

from vctool import __version__
from vctool.demo.clip import ClipSpec
from vctool.demo.encode import write_world
from vctool.demo.show import prepare_model
from vctool.demo.world import World
from vctool.metrics import evaluate_ranking
from vctool.runtime.indexing import index_videos
from vctool.runtime.model import Model, load_model
from vctool.scoring import batch_scores
from vctool.store import TokenStore, open_store

BRANCHES = ("f", "v", "fv")


def indexed(folder: Path, specs: list[ClipSpec], model: Model) -> TokenStore:
    """The store of `specs`, written and indexed under `folder` unless that was done before."""
    manifest, store = folder / "manifest.jsonl", folder.with_suffix(".npz")
    if not manifest.is_file():
        write_world(folder, specs)
    report = index_videos([str(manifest)], store, model)
    print(f"{store.name}: {report.clips} clips, {report.indexed} encoded in {report.seconds:.0f} s")
    return open_store(store)


def scores(model: Model, store: TokenStore, captions: list[str]) -> dict[str, np.ndarray]:
    """Score matrices [captions, clips] of each branch."""
    queries = [(q.query_QD, q.mask_Q) for q in model.text.encode(captions)]
    total, frame, video = batch_scores(queries, store, "fv")
    return {"f": frame, "v": video, "fv": total}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="model directory (default: the bundled demo model)")
    parser.add_argument("--work", type=Path, help="where clips and stores are kept (default: a temporary folder)")
    parser.add_argument("--clips", type=int, default=1000)
    parser.add_argument("--pairs", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        work = chosen.work or Path(scratch)
        folder = chosen.model or work / "model"
        if chosen.model is None:
            prepare_model(folder, print)
        model, world = load_model(folder), World()
        print(f"vctool {__version__}, Python {platform.python_version()}, {platform.machine()}; model {model.directory.fingerprint[:16]}")

        specs = world.clip_specs("test", chosen.clips, chosen.seed)
        store = indexed(work / "test", specs, model)
        column = np.array([store.index_of(spec.id) for spec in specs])
        result: dict[str, dict[str, float]] = {}
        print(f"\n{len(specs)} clips of the test split, one caption each")
        print("branch   R@1   R@5  R@10   MdR  nDCG@10")
        for branch, sims in scores(model, store, [spec.captions[0] for spec in specs]).items():
            m = evaluate_ranking(sims, column)
            result[branch] = {"R@1": m.recall[1], "R@5": m.recall[5], "R@10": m.recall[10], "MdR": m.median_rank, "nDCG@10": m.ndcg10}
            print(f"{branch:6} {m.recall[1]:5.1f} {m.recall[5]:5.1f} {m.recall[10]:5.1f} {m.median_rank:5.1f}   {m.ndcg10:.3f}")

        pairs = world.pairs("test", chosen.pairs, chosen.seed)
        flat = [spec for pair in pairs for spec in pair]
        store = indexed(work / "pairs", flat, model)
        sims_of = scores(model, store, [spec.captions[0] for spec in flat])
        told: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        for row, spec in enumerate(flat):
            own, twin = store.index_of(spec.id), store.index_of(flat[row ^ 1].id)
            for branch, sims in sims_of.items():
                right = 0.5 if sims[row, own] == sims[row, twin] else float(sims[row, own] > sims[row, twin])
                for name in ("all", spec.kind, f"  {spec.course}"):
                    told[name][branch].append(right)
        print(f"\n{len(pairs)} clips against themselves played backwards: % told apart (chance 50)")
        print("kind             n     f     v    fv")
        for name in sorted(told, key=lambda n: (n != "all", n.startswith(" "), n)):
            shares = {branch: 100 * float(np.mean(told[name][branch])) for branch in BRANCHES}
            result[f"reversal {name.strip()}"] = shares
            print(f"{name:14} {len(told[name]['f']):4} " + " ".join(f"{shares[b]:5.1f}" for b in BRANCHES))
        print("\n" + json.dumps(result))


if __name__ == "__main__":
    main()
