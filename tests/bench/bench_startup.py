"""What `--help` costs on top of a bare Python: `vctool --help` and `vctool query --help` against `python -c pass`.

    python tests/bench/bench_startup.py [--rounds 20] [--json]

The programs run in turns, so that a change in the machine's speed meets all of them. For each: the median of wall time and of
CPU time (user and system, of the process and its children), and what it adds to the bare start. The first round warms the file
cache and does not count. Needs a POSIX system. Aim: no more than 150 ms added.
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
import time

BARE = "python -c pass"
PROGRAMS = {
    BARE: [sys.executable, "-c", "pass"],
    "vctool --help": [sys.executable, "-m", "vctool", "--help"],
    "vctool query --help": [sys.executable, "-m", "vctool", "query", "--help"],
}


def run(command: list[str]) -> tuple[float, float]:
    """Wall and CPU time of one run, in milliseconds."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall * 1e3, (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in PROGRAMS}
    for number in range(given.rounds + 1):
        for name, command in PROGRAMS.items():
            measured = run(command)
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
