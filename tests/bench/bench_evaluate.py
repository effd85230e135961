"""What an evaluation costs: from a store, 1,000 captions against 1,000 clips, and 50,000 against 5,000, in time and in memory.

    python tests/bench/bench_evaluate.py [--cases 1000x1000 50000x5000] [--width 512] [--json]

Stores and query tokens are random unit vectors at the sizes of a 12-frame Video-ColBERT model (12 frame and 14 video tokens a clip,
32 tokens a query). Everything after the text tower is the real thing: scoring from the mapped store, all three branches, both
directions of video to text, intervals from 2,000 resamples. Each case runs in a process of its own; its time is CPU time of all threads,
and its memory the peak of resident pages, which counts mapped files as far as they are in memory.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

FRAMES, VIDEO, QUERY = 12, 14, 32


class Tokens(NamedTuple):
    """A query as the text encoder gives it."""

    query_QD: NDArray[np.float32]
    mask_Q: NDArray[np.bool_]


class RandomEncoder:
    """Stands in for the text tower: random unit vectors, the same for the same text."""

    def __init__(self, width: int) -> None:
        self.width = width

    def encode(self, texts: list[str]) -> list[Tokens]:
        out = []
        for text in texts:
            query_QD = np.random.default_rng(int(text)).standard_normal((QUERY, self.width), dtype=np.float32)
            out.append(Tokens(query_QD / np.linalg.norm(query_QD, axis=1, keepdims=True), np.ones(QUERY, bool)))
        return out


def case(queries: int, clips: int, width: int) -> dict[str, Any]:
    """One evaluation in this process."""
    from vctool.data import Split
    from vctool.data.records import Clip, Query
    from vctool.evaluation.evaluate import Subject, evaluate_scores
    from vctool.evaluation.matrices import scored_store
    from vctool.store import ClipTokens, StoreWriter, open_store

    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clips.npz"
        with StoreWriter(path, manifest={"model": {"name": "bench"}, "dim": width}) as writer:
            for i in range(clips):
                token = rng.standard_normal((FRAMES + VIDEO, width), dtype=np.float32)
                token /= np.linalg.norm(token, axis=1, keepdims=True)
                seconds = np.arange(FRAMES, dtype=np.float32)
                context = np.concatenate([seconds, np.full(VIDEO - FRAMES, np.nan, np.float32)])
                writer.add(ClipTokens(f"clip{i}", "", token[:FRAMES], seconds, token[FRAMES:], context, {}))
            writer.commit()
        names = [Clip(f"clip{i}") for i in range(clips)]
        asked = [Query(str(i), str(i), ((i % clips, 1),)) for i in range(queries)]
        split = Split("bench", "test", "all", tuple(names), tuple(asked))
        wall, cpu = time.perf_counter(), time.process_time()
        with (
            open_store(path) as store,
            scored_store(split.query_texts, RandomEncoder(width), store, np.arange(clips), ["f", "v", "fv"]) as scores,
        ):
            scored = time.process_time()
            evaluate_scores(dict(scores), split, Subject({"file": "bench"}, "fv"))
        return {
            "queries": queries,
            "clips": clips,
            "width": width,
            "cpu_seconds": round(time.process_time() - cpu, 2),
            "of_it_scoring": round(scored - cpu, 2),
            "wall_seconds": round(time.perf_counter() - wall, 2),
            "peak_MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=["1000x1000", "50000x5000"], metavar="QUERIESxCLIPS")
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.inside:
        queries, clips = given.cases[0].split("x")
        print(json.dumps(case(int(queries), int(clips), given.width)))
        return
    for one in given.cases:
        command = [sys.executable, __file__, "--inside", "--cases", one, "--width", str(given.width)]
        result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        if given.json:
            print(json.dumps(result))
        else:
            print(
                f"{one}, width {given.width}: {result['cpu_seconds']} s CPU ({result['of_it_scoring']} s of it scoring), "
                f"{result['wall_seconds']} s, peak {result['peak_MB']} MB"
            )


if __name__ == "__main__":
    main()
