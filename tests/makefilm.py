"""Films of any length made in seconds: each scene is encoded once and its packets are copied to wherever it is shown.

A film is still scenes, backgrounds of the demo world, with events between them at known seconds: the demo's bundled clips.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from vctool.demo.backgrounds import background

RATE = 6  # pictures a second: an event's 24 pictures last four seconds
EVENT_SECONDS = 4
STILL_SECONDS = 10  # the scene that is repeated between events
_STILLS = ("sky", "night", "sand", "snow", "water", "road")
_SIDE = 128  # pixels, as the bundled clips


@dataclass(frozen=True)
class Event:
    """Seconds `[start, end)` of the film show what `query` says."""

    start: float
    end: float
    query: str
    clip: str


def make_film(path: Path, seconds: int, *, every: int = 60, seed: int = 0, rate: int = RATE) -> list[Event]:
    """Write a film of about `seconds` seconds (128 x 128, H.264) with an event about every `every` seconds; returns the events in order.

    Events differ in what is seen and follow each other in an order that `seed` decides; after the last one they start again.
    """
    clips = Path(str(resources.files("vctool.demo").joinpath("clips")))
    rows = _one_of_each_group(clips / "captions.jsonl")
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(rows)).tolist()
    events: list[Event] = []
    with tempfile.TemporaryDirectory() as folder, _Film(path, Path(folder), rate) as film:
        stills = [film.scene(name, [np.asarray(background(name, rng, _SIDE))] * (STILL_SECONDS * rate)) for name in _STILLS]
        scenes: dict[str, Path] = {}
        while film.seconds < seconds:
            until = min(seconds, film.seconds + int(rng.integers(every // 2, every * 3 // 2)))
            still = stills[int(rng.integers(len(stills)))]
            while film.seconds < until:
                film.show(still)
            if film.seconds >= seconds:
                break
            row = rows[order[len(events) % len(rows)]]
            if row["path"] not in scenes:
                scenes[row["path"]] = film.scene(row["id"], _repeated(list(_pictures(clips / row["path"])), rate * EVENT_SECONDS))
            start = film.seconds
            film.show(scenes[row["path"]])
            events.append(Event(start, film.seconds, row["captions"][0], row["id"]))
    return events


class _Film:
    def __init__(self, path: Path, folder: Path, rate: int) -> None:
        self.path, self.folder, self.rate = path, folder, rate
        self.container: Any = None
        self.pictures = 0

    def __enter__(self) -> _Film:
        self.container = av.open(str(self.path), "w")
        return self

    def __exit__(self, *_: object) -> None:
        self.container.close()

    @property
    def seconds(self) -> float:
        return self.pictures / self.rate

    def scene(self, name: str, pictures: Sequence[NDArray[np.uint8]]) -> Path:
        """Encode a scene as a file of its own: one group of pictures, without B-frames, so that packets are in the order of showing."""
        path = self.folder / f"{name}.mp4"
        with av.open(str(path), "w") as made:
            stream = made.add_stream("libx264", rate=self.rate, options={"preset": "ultrafast", "bf": "0", "g": "100000", "crf": "20"})
            stream.height, stream.width = pictures[0].shape[:2]
            stream.pix_fmt = "yuv420p"
            for picture in pictures:
                made.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            made.mux(stream.encode())
        return path

    def show(self, scene: Path) -> None:
        """Append a scene: its packets, not its pictures, are copied."""
        with av.open(str(scene)) as given:
            source = given.streams.video[0]
            if not self.container.streams:
                self.container.add_stream_from_template(source)
            target = self.container.streams[0]
            ticks = round(1 / (self.rate * source.time_base))
            for packet in given.demux(source):
                if not packet.size:
                    continue
                packet.pts = packet.dts = self.pictures * ticks
                packet.stream = target
                self.container.mux(packet)
                self.pictures += 1


def _one_of_each_group(captions: Path) -> list[dict[str, Any]]:
    """Clips that differ in what they show: of those with the same objects the first."""
    rows = [json.loads(line) for line in captions.read_text(encoding="utf-8").splitlines()]
    seen: set[str] = set()
    chosen = []
    for row in rows:
        if seen.isdisjoint(row["objects"]):
            seen.update(row["objects"])
            chosen.append(row)
    return chosen


def _pictures(path: Path) -> Iterator[NDArray[np.uint8]]:
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            yield frame.to_ndarray(format="rgb24")


def _repeated(pictures: list[NDArray[np.uint8]], count: int) -> list[NDArray[np.uint8]]:
    """The pictures spread over `count`, each shown longer or some left out."""
    return [pictures[i * len(pictures) // count] for i in range(count)]
