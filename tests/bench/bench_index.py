"""Indexing against its limits: decoding alone, encoding alone, both as `vctool index` does them, and plain loops beside them.

    python tests/bench/bench_index.py --model MODEL [--clips FOLDER] [--repeat 3] [--rounds 3] [--workers N] [--threads N]

MODEL is a model directory (`vctool fetch offline MODEL`); FOLDER holds videos, by default the real clips beside the
repository. All ways take turns in each round; the best round counts. `cpu` is CPU seconds of all processes for one clip,
`rate` clips for each second of wall time.

Where decoding and encoding share the cores, a pipeline cannot reach the slower of the two: with C cores that take d and e CPU
seconds a clip it gives at most C / (d + e). So two ratios are told: to the slower of the two, and to what the shared cores
allow. To see the pipeline itself, the encoder is also replaced by one that waits, as a GPU's caller does, for 0.5, 1 and 2
times the time a clip takes to decode: then the slower of the two is the limit.

The plain loops are what one would write in an afternoon: one process, each file read by decord (`get_batch`) or by PyAV (every
frame decoded, eight kept), resized by Pillow, encoded eight frames at a time. Files that decord cannot read are left out of
all ways in a second table.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from vctool.preprocessing.pixels import Preprocessor
from vctool.runtime.indexing import index_videos
from vctool.runtime.machine import available_cores
from vctool.runtime.model import Model, load_model
from vctool.video.clip import VideoInput
from vctool.video.files import VIDEO_SUFFIXES, find_videos
from vctool.video.sample import uniform_times
from vctool.video.workers import DecodePool

REALCLIPS = Path(__file__).resolve().parents[3] / "shared" / "data" / "realclips"
WAITS = (0.5, 1.0, 2.0)


class WaitingEncoder:
    """In place of a `VideoEncoder`: the same features each time, after a wait in which it needs no core."""

    device = "cuda"  # so that clips are encoded in batches, as for a GPU

    def __init__(self, real: Any, seconds_a_clip: float, frames: int) -> None:
        self.frame_graph, self.temporal_graph, self.real = real.frame_graph, real.temporal_graph, real
        self.seconds_a_frame = seconds_a_clip / frames
        self.feature_D = np.random.default_rng(0).normal(size=real.model.config.embed_dim).astype(np.float32)

    def frame_features(self, frames_NSSC: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        time.sleep(self.seconds_a_frame * len(frames_NSSC))
        return np.repeat(self.feature_D[None], len(frames_NSSC), axis=0)

    def clip_tokens(self, features_FD: Any, times_F: Any) -> Any:
        return self.real.clip_tokens(features_FD, times_F)


def decode_only(clips: Sequence[VideoInput], model: Model, workers: int) -> int:
    with DecodePool(workers, count=model.directory.config.frames, transform_config=model.directory.preprocess) as pool:
        return sum(result.error is None for result in pool.run(clips))


def encode_only(batches: Sequence[np.ndarray[Any, Any]], model: Model) -> int:
    for frames in batches:
        model.video.encode(frames, np.arange(len(frames), dtype=np.float64))
    return len(batches)


def end_to_end(manifest: Path, model: Model, workers: int) -> int:
    with tempfile.TemporaryDirectory() as folder:
        return index_videos([manifest], Path(folder) / "clips.npz", model, workers=workers).indexed


def decord_loop(clips: Sequence[VideoInput], model: Model) -> int:
    import decord

    transform = Preprocessor(model.directory.preprocess)
    for clip in clips:
        video = decord.VideoReader(str(clip.path), num_threads=1)
        chosen = uniform_times(np.arange(len(video), dtype=np.float64), model.directory.config.frames)
        frames = np.stack([transform(frame) for frame in video.get_batch(chosen).asnumpy()])
        model.video.encode(frames, chosen.astype(np.float64))
    return len(clips)


def pyav_loop(clips: Sequence[VideoInput], model: Model) -> int:
    import av

    transform = Preprocessor(model.directory.preprocess)
    for clip in clips:
        with av.open(str(clip.path)) as container:
            count = sum(packet.size > 0 for packet in container.demux(video=0))
        chosen = set(uniform_times(np.arange(count, dtype=np.float64), model.directory.config.frames).tolist())
        with av.open(str(clip.path)) as container:
            decoded = (f for i, f in enumerate(container.decode(video=0)) if i in chosen)
            frames = np.stack([transform(f.to_ndarray(format="rgb24")) for f in decoded])
        model.video.encode(frames, np.arange(len(frames), dtype=np.float64))
    return len(clips)


def readable_by_decord(clip: VideoInput) -> bool:
    import decord

    decord.logging.set_level(decord.logging.QUIET)
    try:
        video = decord.VideoReader(str(clip.path), num_threads=1)
        video.get_batch([0, len(video) - 1])
    except Exception:
        return False
    return True


def cpu_seconds() -> float:
    """Of this process and of the children that have ended."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def measure(ways: dict[str, Callable[[], int]], rounds: int) -> dict[str, tuple[float, float]]:
    """Least CPU seconds and wall seconds a clip of each way, taken in turns."""
    best: dict[str, tuple[float, float]] = {name: (float("inf"), float("inf")) for name in ways}
    for number in range(rounds):
        for name, way in ways.items():
            cpu, wall = cpu_seconds(), time.perf_counter()
            done = way()
            each = ((cpu_seconds() - cpu) / done, (time.perf_counter() - wall) / done)
            best[name] = (min(best[name][0], each[0]), min(best[name][1], each[1]))
            print(f"round {number + 1} {name}: cpu {each[0]:.3f} s, wall {each[1]:.3f} s a clip", file=sys.stderr, flush=True)
    return best


def table(best: dict[str, tuple[float, float]]) -> None:
    print("| way | CPU s a clip | clips / s |\n|---|---|---|")
    for name, (cpu, wall) in best.items():
        print(f"| {name} | {cpu:.3f} | {1 / wall:.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--clips", type=Path, default=REALCLIPS)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=available_cores())
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--no-loops", action="store_true", help="leave the plain loops out")
    parser.add_argument("--no-waits", action="store_true", help="leave the waiting encoders out")
    args = parser.parse_args()
    model = load_model(args.model, threads=args.threads)
    frames = model.directory.config.frames
    found = find_videos(sorted(p for p in args.clips.iterdir() if p.suffix.lower() in VIDEO_SUFFIXES))  # without folders below
    print(f"{len(found)} files x {args.repeat}, {frames} frames, {args.workers} workers, encoder {model.video.frame_graph.placement}")
    if not args.no_loops and importlib.util.find_spec("decord"):
        found = [clip for clip in found if readable_by_decord(clip)]
        print(f"decord reads {len(found)} of them; only these count")
    with tempfile.TemporaryDirectory() as scratch:
        names = [f"{clip.id}~{i}" for i in range(args.repeat) for clip in found]
        clips = [VideoInput(name, clip.path) for name, clip in zip(names, found * args.repeat, strict=True)]
        manifest = Path(scratch) / "clips.jsonl"
        # Each listing of a file counts as a piece of its own (an end beyond the film), or it would be encoded once.
        rows = ({"path": str(c.path.resolve()), "id": c.id, "end": 1e6 + i} for i, c in enumerate(clips))
        manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
        with DecodePool(args.workers, count=frames, transform_config=model.directory.preprocess) as pool:
            batches = [r.frames_FHWC for r in pool.run(clips[: len(found)]) if r.frames_FHWC is not None]
        ways: dict[str, Callable[[], int]] = {
            "decode only": lambda: decode_only(clips, model, args.workers),
            "encode only": lambda: encode_only(batches * args.repeat, model),
            "vctool index": lambda: end_to_end(manifest, model, args.workers),
        }
        if not args.no_loops:
            ways["plain PyAV loop"] = lambda: pyav_loop(clips, model)
            if importlib.util.find_spec("decord"):
                ways["plain decord loop"] = lambda: decord_loop(clips, model)
        best = measure(ways, args.rounds)
        table(best)
        (decode_cpu, decode_wall), (encode_cpu, encode_wall), (both_cpu, both_wall) = (best[n] for n in list(ways)[:3])
        slower, shared = max(decode_wall, encode_wall), decode_wall + encode_wall
        print(f"to the slower of the two: {slower / both_wall:.2f}; to what shared cores allow: {shared / both_wall:.2f}")
        print(f"CPU of decoding and encoding / CPU of indexing: {(decode_cpu + encode_cpu) / both_cpu:.2f}")
        if args.no_waits:
            return
        print("| encoder that waits, s a clip | decode only, clips / s | encoder alone | vctool index | to the slower |")
        print("|---|---|---|---|---|")
        for times in WAITS:
            waiting = load_model(args.model)
            waiting.__dict__["video"] = WaitingEncoder(model.video, times * decode_wall, frames)
            pair = measure(
                {
                    "decode only": lambda: decode_only(clips, model, args.workers),
                    "index, waiting encoder": lambda waiting=waiting: end_to_end(manifest, waiting, args.workers),  # type: ignore[misc]
                },
                args.rounds,
            )
            alone, both = pair["decode only"][1], pair["index, waiting encoder"][1]
            limit = max(alone, times * decode_wall * np.mean([len(b) for b in batches]) / frames)
            wait = times * decode_wall
            print(f"| {wait:.3f} | {1 / alone:.2f} | {1 / wait:.2f} | {1 / both:.2f} | {limit / both:.2f} |")


if __name__ == "__main__":
    main()
