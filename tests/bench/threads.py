"""The threads that a benchmark's libraries may use: `--threads N`, 0 for one for each core. Import it before them.

One thread by default, and the process's CPU time, which neighbours on the machine hardly change. What several threads gain only wall
time tells: then the machine must have nothing else to do.
"""

from __future__ import annotations

import argparse
import os
import time

_parser = argparse.ArgumentParser(add_help=False)
_parser.add_argument("--threads", type=int, default=1)
THREADS: int = _parser.parse_known_args()[0].threads or os.cpu_count() or 1
for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"):
    os.environ[_variable] = str(THREADS)

#: What `workers=` of ours is told: left to itself it takes fewer threads for a small store.
WORKERS = THREADS if THREADS == 1 or (os.cpu_count() or 1) > THREADS else None
clock = time.process_time if THREADS == 1 else time.perf_counter
MEASURED = "one thread, CPU time" if THREADS == 1 else f"{THREADS} threads, wall time"
HELP = "threads of each engine, 0 for one for each core; more than one is timed by the wall"
