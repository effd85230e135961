"""What starting costs: `--help` on top of a bare Python, and a whole `vctool query` on top of the libraries that it cannot do without.

    python tests/bench/bench_startup.py [--rounds 20] [--json] [--model MODEL_DIR] [--clips 10000]

The programs run in turns, so that a change in the machine's speed meets all of them. For each: the median of wall time and of
CPU time (user and system, of the process and its children), and what it adds to the bare start. The first round warms the file
cache and does not count. Needs a POSIX system. Aim for `--help`: no more than 150 ms added.

With `--model` a store of `--clips` clips of that model's width is written (int8, 12 + 14 tokens a clip, random) and searched by new
processes: by a text, by an array, and with a filter. The measure is a process that imports NumPy and ONNX Runtime and makes the
session of the model's text graph; for the array, which needs no model, one that imports NumPy. Aim: no more than twice that.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BARE = "python -c pass"
SESSION = """
import sys, numpy, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
"""
PROGRAMS = {
    BARE: [sys.executable, "-c", "pass"],
    "vctool --help": [sys.executable, "-m", "vctool", "--help"],
    "vctool query --help": [sys.executable, "-m", "vctool", "query", "--help"],
}


def run(command: list[str], environment: dict[str, str]) -> tuple[float, float]:
    """Wall and CPU time of one run, in milliseconds."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall * 1e3, (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) * 1e3


def searches(model: Path, clips: int, folder: Path) -> dict[str, list[str]]:
    """Searches of a store of random tokens, and the processes they are measured by."""
    import numpy as np

    from vctool.runtime.model_directory import ModelDirectory
    from vctool.store import StoreWriter, TokenRows

    directory = ModelDirectory.open(model)
    width = directory.config.embed_dim
    generator = np.random.default_rng(0)
    entry = {"name": directory.config.name, "sha256": directory.fingerprint, "interaction": "fv"}
    with StoreWriter(folder / "clips.npz", manifest={"model": entry}, dtype="int8") as writer:
        for first in range(0, clips, 1000):
            count = min(1000, clips - first)
            rows = [TokenRows.of(generator.standard_normal((count, n, width), np.float32), normalise=True) for n in (12, 14)]
            ids = [f"folder/clip {first + i}.mp4" for i in range(count)]
            metas = [
                {"duration": (first + i) % 300, "width": 640, "height": 360, "tag": "even" if i % 2 == 0 else "odd"} for i in range(count)
            ]
            writer.add_many(ids, *rows, paths=[str(folder / one) for one in ids], metas=metas)
        writer.commit()
    np.save(folder / "q.npy", generator.standard_normal((8, width)))
    query = [sys.executable, "-m", "vctool", "query", "--index", str(folder / "clips.npz"), "--threads", "1", "--json"]
    return {
        "numpy": [sys.executable, "-c", "import numpy"],
        "numpy + session": [sys.executable, "-c", SESSION, str(directory.graph("text"))],
        "query --tokens": [*query, "--tokens", str(folder / "q.npy")],
        "query TEXT": [*query, "--model", str(model), "a dog runs on the beach"],
        "query TEXT --where": [*query, "--model", str(model), "--where", 'duration < 60 and tag = "even"', "a dog runs on the beach"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--clips", type=int, default=10_000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        programs = PROGRAMS if given.model is None else {BARE: PROGRAMS[BARE], **searches(given.model, given.clips, Path(folder))}
        # An installed vctool has its bytecode beside it; without this, a checkout that must not write any is compiled in every process.
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
        environment["PYTHONPYCACHEPREFIX"] = str(Path(folder) / "bytecode")
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in programs}
        for number in range(given.rounds + 1):
            for name, command in programs.items():
                measured = run(command, environment)
                if number:
                    times[name].append(measured)
    medians = {name: [statistics.median(column) for column in zip(*rows, strict=True)] for name, rows in times.items()}
    if given.json:
        print(json.dumps({name: {"wall_ms": wall, "cpu_ms": cpu} for name, (wall, cpu) in medians.items()}))
        return
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores, median of {given.rounds} rounds, milliseconds\n")
    print(f"{'':22}{'wall':>8}{'added':>8}{'cpu':>8}{'added':>8}")
    for name, (wall, cpu) in medians.items():
        print(f"{name:22}{wall:8.0f}{wall - medians[BARE][0]:8.0f}{cpu:8.0f}{cpu - medians[BARE][1]:8.0f}")


if __name__ == "__main__":
    main()
