"""Two-stage search: how much of the exact result it finds, and what share of an exact search's time it takes.

    python tests/bench/bench_two_stage.py [--clips 1000 10000 100000] [--widths 128 512] [--data easy hard] [--rounds 5] [--out FILE]

One thread, in one process, exact and two-stage in turns; the median CPU time of the process counts, and above all the ratio.

The data, 12 frame and 14 video tokens a clip, in a store that `StoreWriter` wrote (int8): *easy*, one scene a clip, tokens of one clip
at a cosine of about 0.93, each query about a whole clip. *hard*, one to eight scenes a clip, three clips in ten cutting back and forth
between up to three of them, tokens of one clip down to a cosine of 0.33, each query about one frame, or half of its tokens about
one and half about another. Query tokens are mostly noise (`--signal` is the share of what they are about).

Recall is against float64 scores of the tokens before they were stored: the best 300 of the exact int8 search, whose scores are
off by 0.003 at most, are scored again in float64. `exact` has less than 1 because int8 swaps clips that are nearly equal; `of exact` leaves
that out. `scored` is the median and the largest number of clips that were scored exactly.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import threads  # noqa: F401  (one of them, before NumPy is there)

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import numpy as np

from vctool.runtime import search
from vctool.runtime.two_stage import estimates, rerank
from vctool.scoring import Branch, batch_scores, kernels
from vctool.store import StoreWriter, TokenRows, TokenStore

FRAMES, EXPANSION, TOKENS = 12, 2, 32
_PART = 2000  # clips made at a time
_DEEP = 300
_SOURCES = 5  # parts that queries are about


def unit(values: np.ndarray) -> np.ndarray:
    return values / np.linalg.norm(values, axis=-1, keepdims=True)


def part(first: int, count: int, width: int, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Frame tokens float32 [n, 12, D] and video tokens [n, 14, D] of clips first to first + count: the same on every call."""
    generator = np.random.default_rng([100, first, width])
    common = unit(np.random.default_rng(0).standard_normal(width)).astype(np.float32) * np.float32(0.65)

    def noise(rows: int, share: float) -> np.ndarray:
        return unit(generator.standard_normal((count, rows, width), np.float32)) * np.float32(share)

    centre = noise(1, 1)
    if kind == "easy":
        scene = np.repeat(centre, FRAMES, axis=1)
    else:
        scenes = unit(centre + generator.uniform(0.5, 1.2, (count, 1, 1)).astype(np.float32) * noise(8, 1))
        number = generator.integers(1, 9, count)[:, None]
        in_turn, back_and_forth = np.arange(FRAMES) * number // FRAMES, np.arange(FRAMES) % np.minimum(number, 3)
        shown = np.where(generator.random((count, 1)) < 0.3, back_and_forth, in_turn)
        scene = np.take_along_axis(scenes, shown[:, :, None], axis=1)
    base = unit(scene + common)
    whole = base.mean(axis=1, keepdims=True)
    frame = unit(base + noise(FRAMES, 0.28))
    video = unit(np.float32(0.75) * base + np.float32(0.25) * whole + noise(FRAMES, 0.28))
    return frame, np.concatenate([video, unit(whole + noise(EXPANSION, 0.35))], axis=1)


def parts(clips: int, width: int, kind: str) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    for first in range(0, clips, _PART):
        yield first, *part(first, min(_PART, clips - first), width, kind)


def build(path: Path, clips: int, width: int, kind: str, branch: Branch = "fv") -> float:
    """Write the store, of one branch's tokens or both; the writer's CPU time a clip, in milliseconds (the making of the data is left out).

    A store has no video tokens alone: those of branch `v` go in as frames.
    """
    spent = 0.0
    frame_time = np.arange(FRAMES, dtype=np.float32)
    video_time = np.concatenate([frame_time, np.full(EXPANSION, np.nan, np.float32)])
    with StoreWriter(path, manifest={"model": {"name": kind}}, dtype="int8") as writer:
        for first, frame, video in parts(clips, width, kind):
            start = time.process_time()
            frame_rows, video_rows = (
                TokenRows.of(tokens, None, np.tile(row, (len(tokens), 1))) for tokens, row in ((frame, frame_time), (video, video_time))
            )
            ids = [f"clip {first + i}" for i in range(len(frame))]
            writer.add_many(ids, video_rows if branch == "v" else frame_rows, video_rows if branch == "fv" else None)
            spent += time.process_time() - start
        start = time.process_time()
        writer.commit()
        return (spent + time.process_time() - start) / clips * 1e3


def queries(clips: int, width: int, kind: str, count: int, signal: float) -> list[np.ndarray]:
    """Queries about clips spread over the store, float32 [32, D] each."""
    generator = np.random.default_rng(7)
    found = []
    whole: dict[int, np.ndarray] = {}
    firsts = np.arange(0, clips, _PART)
    firsts = firsts[:: max(1, len(firsts) // _SOURCES)]
    for number in range(count):
        first = int(generator.choice(firsts))
        if first not in whole:
            whole[first] = part(first, min(_PART, clips - first), width, kind)[0]
        frame_FD = whole[first][generator.integers(len(whole[first]))]
        if kind == "easy":
            about = np.broadcast_to(frame_FD.mean(axis=0), (TOKENS, width))
        else:
            chosen = generator.integers(0, FRAMES, 1 if number % 2 == 0 else 2)
            about = frame_FD[chosen[generator.integers(0, len(chosen), TOKENS)]]
        found.append(unit(signal * unit(about) + unit(generator.standard_normal((TOKENS, width)))).astype(np.float32))
    return found


def truth(
    asked: list[np.ndarray], score_BN: np.ndarray, clips: int, width: int, kind: str, branches: tuple[str, ...] = ("f", "v")
) -> list[list[int]]:
    """The best 10 clips of each query by float64 scores, over these branches, of the tokens before they were stored."""
    deep = [np.argsort(-score_N)[:_DEEP] for score_N in score_BN]
    scores: list[dict[int, float]] = [{} for _ in asked]
    for first, frame, video in parts(clips, width, kind):
        for query, near, kept in zip(asked, deep, scores, strict=True):
            mine = near[(near >= first) & (near < first + len(frame))] - first
            if len(mine):
                both = [
                    np.einsum("ntd,qd->ntq", tokens[mine].astype(np.float64), query.astype(np.float64)).max(axis=1)
                    for tokens in [{"f": frame, "v": video}[branch] for branch in branches]
                ]
                kept.update(zip((mine + first).tolist(), sum(both).mean(axis=1).tolist(), strict=True))
    return [sorted(kept, key=lambda clip: -kept[clip])[:10] for kept in scores]


def best(clips: np.ndarray, scores: np.ndarray, hits: int) -> list[int]:
    return [int(clips[place]) for place in search.best(scores, hits)]


def measure(store: TokenStore, clips: int, width: int, kind: str, arguments: argparse.Namespace) -> str:
    asked = queries(clips, width, kind, arguments.queries, arguments.signal)
    every = np.arange(clips)
    exact, staged, scored = [], [], []
    spent: dict[str, list[float]] = {"exact": [], "two-stage": []}
    for number, query in enumerate(asked):
        start = time.process_time()
        score_N = batch_scores([query], store, "fv", workers=1)[0][0]
        found = best(every, score_N, 10)
        middle = time.process_time()
        result = rerank(query, store, "fv", estimates([query], store, "fv", workers=1)[0], 10, batch_scores)
        done = time.process_time()
        exact.append(score_N)
        scored.append(clips if result is None else len(result.clip))
        staged.append(found if result is None else best(result.clip, result.score, 10))
        if number >= 2:  # the first ones read the store from the disk
            spent["exact"].append(middle - start)
            spent["two-stage"].append(done - middle if result is not None else done - start)
    right = truth(asked, np.stack(exact), clips, width, kind)
    of_exact = [best(every, score_N, 10) for score_N in exact]

    def recall(found: list[list[int]], wanted: list[list[int]]) -> float:
        return float(np.mean([len(set(f) & set(w)) / len(w) for f, w in zip(found, wanted, strict=True)]))

    times = {name: statistics.median(seconds) * 1e3 for name, seconds in spent.items()}
    pooled = store.pooled
    vectors = len(pooled.scale_P) / clips if pooled is not None else 0
    times_faster = times["exact"] / times["two-stage"]
    tops = [[found[:1] for found in kind_of] for kind_of in (staged, of_exact, right)]
    pairs = ((of_exact, right), (staged, right), (staged, of_exact), (tops[0], tops[2]), (tops[0], tops[1]))
    cells = [
        *(f"{clips:,}", f"{width}", kind, f"{vectors:.2f}"),
        *(f"{times['exact']:.2f}", f"{times['two-stage']:.2f}", f"{times_faster:.1f}"),
        f"{statistics.median(scored):.0f} ({max(scored)})",
        *(f"{recall(*pair):.3f}" for pair in pairs),
    ]
    return "| " + " | ".join(cells) + " |"


_HEADS = (
    *("clips", "D", "data", "vectors a clip", "exact, ms", "two-stage, ms", "times faster", "scored (most)"),
    *("R@10 exact", "R@10 two-stage", "R@10 of exact", "R@1 two-stage", "R@1 of exact"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, nargs="+", default=[1000, 10_000])
    parser.add_argument("--widths", type=int, nargs="+", default=[128, 512])
    parser.add_argument("--data", nargs="+", default=["easy", "hard"], choices=["easy", "hard"])
    parser.add_argument("--queries", type=int, default=60)
    parser.add_argument("--signal", type=float, default=0.4)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    lines = [
        f"kernel {kernels.report().found[0]}, {arguments.queries} queries of {TOKENS} tokens, signal {arguments.signal}",
        "| " + " | ".join(_HEADS) + " |",
        "|" + "---|" * len(_HEADS),
    ]
    print("\n".join(lines), flush=True)
    for clips in arguments.clips:
        for width in arguments.widths:
            for kind in arguments.data:
                with tempfile.TemporaryDirectory() as folder:
                    path = Path(folder) / "store.npz"
                    cost = build(path, clips, width, kind)
                    with TokenStore(path) as store:
                        lines.append(measure(store, clips, width, kind, arguments))
                    print(lines[-1], f" build {cost:.3f} ms a clip", flush=True)
    if arguments.out:
        arguments.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
