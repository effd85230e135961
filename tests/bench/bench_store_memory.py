"""How much memory a big store needs while it is built and searched: resident bytes that are our own, beyond mapped pages of files.

    python tests/bench/bench_store_memory.py --gigabytes 5 --folder /somewhere/with/room

Builds a store of synthetic clips (12 frame and 14 video tokens, near copies of each other within a clip) in one process, as one file and
as a folder of shards, and searches it in others. `RssAnon` of /proc is what is counted (Linux); `RssFile` are the mapped pages, which the
system takes back when somebody else needs them. Twice the store's size is needed on the disk while it is built.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from tempfile import TemporaryDirectory

FRAMES, VIDEOS, BLOCK = 12, 14, 2048


def status() -> dict[str, float]:
    """Megabytes resident: our own, and mapped."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {name: int(fields[name].split()[0]) / 1024 for name in ("RssAnon", "RssFile")}


class Peak(threading.Thread):
    """The highest `status`, looked at every 20 ms."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.found = status()
        self._stop_it = threading.Event()

    def run(self) -> None:
        while not self._stop_it.wait(0.02):
            self.found = {name: max(value, self.found[name]) for name, value in status().items()}

    def end(self) -> dict[str, float]:
        self._stop_it.set()
        self.join()
        return {name: round(value) for name, value in self.found.items()}


def unit(values):
    import numpy as np

    return values / np.linalg.norm(values, axis=-1, keepdims=True)


def build(path: Path, gigabytes: float, dim: int, shards: bool) -> dict[str, float]:
    import numpy as np

    from vctool.store import StoreWriter, TokenRows
    from vctool.store.folder import FolderWriter

    generator = np.random.default_rng(0)
    peak = Peak()
    peak.start()
    scene = unit(generator.standard_normal((BLOCK, 1, dim), dtype=np.float32))
    tokens = unit(scene + 0.25 * dim**-0.5 * generator.standard_normal((BLOCK, FRAMES + VIDEOS, dim), dtype=np.float32))
    frame, video = TokenRows.of(tokens[:, :FRAMES]), TokenRows.of(tokens[:, FRAMES:])
    wanted, clips, spent = gigabytes * 1e9, 0, 0.0
    form = FolderWriter if shards else StoreWriter
    with form(path, manifest={"model": {"name": "bench"}}, dtype="int8") as writer:
        while clips * (FRAMES + VIDEOS) * (dim + 8) < wanted:
            began = time.process_time()
            writer.add_many([f"clip-{clips + i:08d}" for i in range(BLOCK)], frame, video)
            spent += time.process_time() - began
            clips += BLOCK
        began = time.process_time()
        writer.commit()
        spent += time.process_time() - began
    size = sum(one.stat().st_size for one in path.iterdir()) if shards else path.stat().st_size
    return {"clips": clips, "gigabytes": round(size / 1e9, 2), "cpu_ms_a_clip": round(spent / clips * 1e3, 4), **peak.end()}


def search(path: Path, dim: int) -> dict[str, float]:
    import numpy as np

    from vctool.scoring import batch_scores
    from vctool.store import open_store

    peak = Peak()
    peak.start()
    began = time.perf_counter()
    store = open_store(path)
    opened = time.perf_counter() - began
    queries = list(unit(np.random.default_rng(1).standard_normal((4, 32, dim), dtype=np.float32)))
    began = time.process_time()
    score_BN, _, _ = batch_scores(queries, store, "fv", workers=1)
    spent = time.process_time() - began
    best = [store.clip_id(int(i)) for i in score_BN.argmax(axis=1)]
    return {"clips": len(store), "open_ms": round(opened * 1e3, 1), "cpu_s_for_4_queries": round(spent, 2), "hits": len(best), **peak.end()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=5)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--folder", type=Path, help="where the stores are written for a while")
    parser.add_argument("--one", nargs=2, metavar=("WHAT", "PATH"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        what, path = given.one[0], Path(given.one[1])
        found = search(path, given.dim) if what == "search" else build(path, given.gigabytes, given.dim, what == "folder")
        print(json.dumps(found))
        return
    for form, name in (("file", "clips.npz"), ("folder", "clips")):
        with TemporaryDirectory(dir=given.folder) as place:
            for what in (form, "search"):
                line = [sys.executable, __file__, "--gigabytes", str(given.gigabytes), "--dim", str(given.dim)]
                line += ["--one", what, str(Path(place) / name)]
                done = subprocess.run(line, check=True, capture_output=True, text=True)
                print(f"{form:7} {'build' if what == form else what:7} {done.stdout.strip()}", flush=True)


if __name__ == "__main__":
    main()
