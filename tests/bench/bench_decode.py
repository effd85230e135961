"""How fast twelve frames of a clip are decoded: PyAV (the default) against decord, on videos made here.

    python tests/bench/bench_decode.py [--seconds 10] [--rounds 5] [FILE ...]

Both decoders run in this process, one thread each, in turns, so that a change in the machine's speed meets both; the
least time of the rounds counts. The ratio is decord's time over PyAV's: above 1 PyAV is faster. Without decord
(`pip install "vctool[decord]"`) only PyAV is timed. FILEs are timed instead of the generated videos.

With --keyframes a film of five minutes is made instead (1280x720, 25 frames a second, a keyframe every two seconds), and eight frames of
each of eleven segments of 30 s are decoded in one process, spread evenly and by keyframes.
"""

from __future__ import annotations

import argparse
import importlib.util
import platform
import resource
import sys
import tempfile
import time
from pathlib import Path

import av
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from vctool.config import PreprocessConfig
from vctool.video.clip import VideoInput
from vctool.video.decode import decode_frames
from vctool.video.sample import Sampling
from vctool.video.workers import DecodePool

SIZES = {"240p": (426, 240), "720p": (1280, 720)}


def make(path: Path, size: tuple[int, int], seconds: float, rate: int = 30, options: dict[str, str] | None = None) -> Path:
    """An H.264 clip of drifting texture, with the encoder's usual settings (B-frames, keyframes 250 apart) unless told otherwise."""
    width, height = size
    noise = np.random.default_rng(7).integers(0, 255, (height // 4 + 40, width // 4 + 160, 3), dtype=np.uint8)
    texture = noise.repeat(4, axis=0).repeat(4, axis=1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options=options or {"preset": "veryfast", "g": "250", "bf": "3"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for i in range(round(seconds * rate)):
            x, y = i * 2 % 600, i % 150
            frame = texture[y : y + height, x : x + width].copy()
            frame[height // 3 : height // 2, (i * 5) % (width - 60) : (i * 5) % (width - 60) + 60] = 255 - i % 200
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def keyframes(folder: Path, rounds: int) -> None:
    """CPU seconds a segment of both ways to sample, in a decode process of its own, its start included."""
    source, film, pictures = folder / "scene.mp4", folder / "film.mp4", 0
    make(source, SIZES["720p"], 10.0, rate=25, options={"preset": "veryfast", "g": "50", "keyint_min": "50", "bf": "0"})
    with av.open(str(film), "w") as made:  # its packets thirty times over: quicker than encoding them
        for _ in range(30):
            with av.open(str(source)) as given:
                stream = given.streams.video[0]
                target = made.streams.video[0] if made.streams.video else made.add_stream_from_template(stream)
                for packet in given.demux(stream):
                    if packet.size:
                        packet.pts = packet.dts = round(pictures / (25 * stream.time_base))
                        packet.stream = target
                        made.mux(packet)
                        pictures += 1
    clips = [VideoInput(f"{i}", film, 24.0 * i, 24.0 * i + 30) for i in range(11)]
    squares = PreprocessConfig(size=224, resize="shortest", interpolation="bicubic")
    least: dict[str, float] = {}
    for _ in range(rounds):
        for kind in ("uniform", "keyframes"):
            used = sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
            with DecodePool(1, count=Sampling(8, kind), transform_config=squares) as pool:  # type: ignore[arg-type]
                assert all(result.error is None for result in pool.run(clips))
            used = (sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2]) - used) / len(clips)
            least[kind] = min(used, least.get(kind, used))
    print("CPU s a segment: " + ", ".join(f"{kind} {used:.2f}" for kind, used in least.items()))


def seconds_for(path: Path, decoder: str) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    decode_frames(path, 12, decoder=decoder)
    return time.perf_counter() - wall, time.process_time() - cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--keyframes", action="store_true")
    parser.add_argument("files", nargs="*", type=Path)
    given = parser.parse_args()
    decoders = ["pyav"] + (["decord"] if importlib.util.find_spec("decord") else [])
    codec_version = ".".join(map(str, av.library_versions["libavcodec"]))
    versions = f"Python {platform.python_version()}, av {av.__version__} (libavcodec {codec_version})"
    if "decord" in decoders:
        import decord

        versions += f", decord {decord.__version__}"
    print(f"{versions}; {platform.machine()}; 12 frames of each clip, 1 thread, least of {given.rounds} rounds")
    with tempfile.TemporaryDirectory() as folder:
        if given.keyframes:
            keyframes(Path(folder), given.rounds)
            return
        clips = given.files or [make(Path(folder) / f"{name}.mp4", size, given.seconds) for name, size in SIZES.items()]
        columns = "".join(f"{d + ' ms':>12}{'cpu ms':>10}" for d in decoders)
        print(f"{'clip':<24}{columns}" + ("      ratio  cpu ratio" if len(decoders) > 1 else ""))
        for clip in clips:
            least = {d: (float("inf"), float("inf")) for d in decoders}
            for _ in range(given.rounds):
                for d in decoders:
                    least[d] = tuple(map(min, least[d], seconds_for(clip, d)))  # type: ignore[assignment]
            row = f"{clip.name:<24}" + "".join(f"{least[d][0] * 1e3:>12.1f}{least[d][1] * 1e3:>10.1f}" for d in decoders)
            if len(decoders) > 1:
                row += f"{least['decord'][0] / least['pyav'][0]:>11.2f}{least['decord'][1] / least['pyav'][1]:>11.2f}"
            print(row)


if __name__ == "__main__":
    main()
