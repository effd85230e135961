"""A long film with known events: are they found to the second, and does memory stay flat?

    python tests/bench/bench_long_film.py --model MODEL [--hours 1] [--rate 25] [--segment 6] [--overlap 2] [--workers N] [--keep FOLDER]

The film is made here (see tests/makefilm.py): still scenes and, about once a minute, four seconds of one of the demo's clips.
MODEL is the demo model (`vctool fetch demo MODEL`). `vctool index` runs as a process of its own; the resident memory of it and
of its decode processes is read every half second. Then every event is asked for by its caption. Found means: the first hit's
best second lies in the event (or within a second of it, the distance of two sampled frames). Where a film shows an event
more than once, any of its places counts.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve()
sys.path[:0] = [str(HERE.parents[2]), str(HERE.parents[1])]
from makefilm import RATE, Event, make_film  # noqa: E402

SLACK = 1.0


def memory_mb(pid: int) -> float:
    """Resident MB of a process and its children that map nothing in common but libraries (those are counted once each)."""
    total = 0.0
    for one in [pid, *children(pid)]:
        try:
            lines = Path(f"/proc/{one}/status").read_text().splitlines()
        except OSError:
            continue
        total += sum(float(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))
    return total


def children(pid: int) -> list[int]:
    found: list[int] = []
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += [int(child) for child in (task / "children").read_text().split()]
    except OSError:
        return []
    return found


def watched(command: list[str]) -> tuple[list[tuple[float, float]], float]:
    """Run a command; (seconds, MB) every half second, and how long it took."""
    began = time.monotonic()
    process = subprocess.Popen(command)
    seen = []
    while process.poll() is None:
        seen.append((time.monotonic() - began, memory_mb(process.pid)))
        time.sleep(0.5)
    if process.returncode:
        raise SystemExit(process.returncode)
    return seen, time.monotonic() - began


def found(events: list[Event], store: Path, model: Path) -> tuple[int, list[float], list[str]]:
    """How many events the first hit names, how far its best second is from the event's middle, and which were missed."""
    from vctool.runtime.model import load_model
    from vctool.runtime.search import search

    loaded = load_model(model, device="cpu")
    places: dict[str, list[Event]] = {}
    for event in events:
        places.setdefault(event.query, []).append(event)
    right, off, missed = 0, [], []
    for query, shown in places.items():
        hit = search(query, store, loaded, k=1).hits[0]
        second = hit.evidence.best_second
        near = [e for e in shown if second is not None and e.start - SLACK <= second < e.end + SLACK]
        right += bool(near)
        if near and second is not None:
            off.append(abs(second - (near[0].start + near[0].end) / 2))
        else:
            missed.append(f"{query!r}: {hit.id}, second {second}")
    return right, off, missed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--hours", type=float, default=1.0)
    parser.add_argument("--rate", type=int, default=RATE)
    parser.add_argument("--every", type=int, default=60)
    parser.add_argument("--segment", type=float, default=6.0)
    parser.add_argument("--overlap", type=float, default=2.0)
    parser.add_argument("--workers", type=int)
    parser.add_argument("--keep", type=Path, help="a folder to make the film and the store in, and to leave them")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.keep or Path(scratch)
        folder.mkdir(exist_ok=True)
        film, store = folder / "film.mp4", folder / "film.npz"
        began = time.monotonic()
        events = make_film(film, round(args.hours * 3600), every=args.every, rate=args.rate)
        print(f"film: {args.hours:g} h, {len(events)} events, {film.stat().st_size / 1e6:.0f} MB, made in {time.monotonic() - began:.0f} s")
        command = [sys.executable, "-m", "vctool", "index", str(film), "-o", str(store), "--model", str(args.model), "--device", "cpu"]
        command += ["--segment", str(args.segment), "--overlap", str(args.overlap), "--json"]
        command += [] if args.workers is None else ["--workers", str(args.workers)]
        memory, seconds = watched(command)
        mb = np.array([m for _, m in memory])
        thirds = [float(part.max()) for part in np.array_split(mb[len(mb) // 10 :], 3)]
        print(f"index: {seconds:.0f} s, {args.hours * 3600 / seconds:.0f} x real time, store {store.stat().st_size / 1e6:.1f} MB")
        print(f"memory, process and decoders: peak {mb.max():.0f} MB; largest of each third: {', '.join(f'{t:.0f}' for t in thirds)} MB")
        right, off, missed = found(events, store, args.model)
        asked = right + len(missed)
        print(f"found: {right} of {asked} queries ({100 * right / asked:.0f} %)")
        print(f"best second: {np.mean(off):.2f} s from the middle of the event, at most {max(off):.2f}")
        print(json.dumps({"missed": missed}))


if __name__ == "__main__":
    main()
