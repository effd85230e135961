"""A long film with known events: each is found at its second, and memory does not grow with the film."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from makefilm import Event, make_film

from vctool.data.pinned import EFFICIENTNET_LITE0, MINILM
from vctool.demo.show import bundled_model
from vctool.errors import Interrupted, ModelError
from vctool.runtime.assemble import assemble
from vctool.runtime.indexing import IndexProgress, index_videos
from vctool.runtime.model import Model, load_model
from vctool.runtime.search import search
from vctool.store import open_store

SLACK = 1.0  # seconds: about the distance of two sampled frames


@pytest.fixture(scope="module")
def demo_model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    for pinned in (EFFICIENTNET_LITE0, MINILM):
        try:
            pinned.locate()
        except ModelError as problem:
            pytest.skip(str(problem))
    folder = tmp_path_factory.mktemp("demo") / "model"
    assemble(bundled_model("demo"), folder)
    return load_model(folder, device="cpu", provider="onnxruntime", threads=1)


def seconds_found(query: str, store: Path, model: Model) -> float:
    best = search(query, store, model, k=1).hits[0].evidence.best_second
    assert best is not None
    return best


def shown_at(second: float, query: str, events: list[Event]) -> bool:
    return any(e.query == query and e.start - SLACK <= second < e.end + SLACK for e in events)


def test_events_of_a_film_are_found_to_the_second_also_after_an_interruption(tmp_path: Path, demo_model: Model) -> None:
    events = make_film(tmp_path / "film.mp4", 150, every=30)
    output = tmp_path / "film.npz"

    def stop(state: IndexProgress) -> None:
        if state.done == 12:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted, match="12 finished clips are kept"):
        index_videos([tmp_path / "film.mp4"], output, demo_model, segment=6, overlap=2, workers=1, progress=stop)
    report = index_videos([tmp_path / "film.mp4"], output, demo_model, segment=6, overlap=2, workers=1)
    assert report.resumed == 12 and report.clips == report.resumed + report.indexed >= 35
    found = {event.query: seconds_found(event.query, output, demo_model) for event in events}
    assert len(found) >= 4
    assert all(shown_at(second, query, events) for query, second in found.items()), (found, events)
    moments = [search(event.query, output, demo_model, k=1).hits[0].evidence.moment for event in events]
    assert all(m is not None and m.start < e.end and e.start < m.end for m, e in zip(moments, events, strict=True))


def test_a_film_that_is_not_cut_is_indexed_with_a_note(tmp_path: Path, demo_model: Model) -> None:
    make_film(tmp_path / "film.mp4", 1000, every=10_000, rate=1)
    report = index_videos([tmp_path / "film.mp4"], tmp_path / "film.npz", demo_model, workers=0)
    assert report.clips == 1 and len(report.notes) == 1
    assert "of the 17 min of film.mp4 only 8 pictures were looked at: --segment 30 makes long films" in report.notes[0]
    report = index_videos([tmp_path / "film.mp4"], tmp_path / "short.npz", demo_model, workers=0, frames=30)
    assert report.notes == []


@pytest.mark.slow
def test_an_hour_takes_no_more_memory_than_five_minutes_and_its_events_are_found(tmp_path: Path, demo_model: Model) -> None:
    script = (
        "import sys; from pathlib import Path; from vctool.runtime.indexing import index_videos\n"
        "index_videos([sys.argv[1]], sys.argv[2], sys.argv[3], segment=6, overlap=2, workers=1, threads=1, device='cpu')\n"
        "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))\n"
    )
    peak_mb = {}
    for seconds in (300, 3600):
        film, store = tmp_path / f"{seconds}.mp4", tmp_path / f"{seconds}.npz"
        events = make_film(film, seconds)
        command = [sys.executable, "-c", script, str(film), str(store), str(demo_model.directory.path)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        peak_mb[seconds] = int(done.stdout.split()[-1]) / 1024
    assert len(open_store(tmp_path / "3600.npz")) >= 890
    assert peak_mb[3600] < peak_mb[300] + 40, peak_mb
    queries = {e.query for e in events}
    right = [q for q in queries if shown_at(seconds_found(q, tmp_path / "3600.npz", demo_model), q, events)]
    assert len(right) >= 0.75 * len(queries) and len(queries) >= 25, sorted(queries - set(right))
