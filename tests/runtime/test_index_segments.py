"""Long files as segments: searchable pieces of one file, made once, and replaced when the file is cut otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tinymodel import make_video

from vctool.errors import StoreError, UsageProblem
from vctool.runtime.indexing import IndexReport, index_videos
from vctool.runtime.search import search
from vctool.store import open_store


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve seconds: blue, but for two red ones from second 7 on."""
    path = tmp_path_factory.mktemp("films") / "film.mp4"
    return make_video(path, ["blue"] * 7 + ["red"] * 2 + ["blue"] * 3, seconds=1.0)


def run(inputs: Any, output: Path, model: Path, **options: Any) -> IndexReport:
    return index_videos(inputs if isinstance(inputs, list) else [inputs], output, model, **{"workers": 0, "device": "cpu", **options})


def test_a_long_file_becomes_overlapping_clips_of_one_file(film: Path, tmp_path: Path, tiny_model: Path) -> None:
    run(film, tmp_path / "c.npz", tiny_model, segment=4.0, overlap=1.0)
    store = open_store(tmp_path / "c.npz")
    assert store.clip_ids == ["film.mp4#0-4", "film.mp4#3-7", "film.mp4#6-10", "film.mp4#9-12"]
    assert {store.resolve_path(i) for i in range(4)} == {film}
    assert store.clip_meta(2)["segment_of"] == "film.mp4"
    assert store.manifest["segments"] == {"seconds": 4.0, "overlap": 1.0, "scenes": False}
    time_F = store.clip(2).frame_time_F
    assert time_F.min() >= 6 and time_F.max() < 10


def test_the_right_segment_is_found(film: Path, tmp_path: Path, tiny_model: Path) -> None:
    run(film, tmp_path / "c.npz", tiny_model, segment=4.0, overlap=1.0)
    hit = search("red", tmp_path / "c.npz", tiny_model, k=1).hits[0]
    assert (hit.id, hit.start, hit.end) == ("film.mp4#6-10", 6.0, 10.0)
    assert hit.evidence.best_second is not None and 7 <= hit.evidence.best_second < 9


def test_neighbours_overlap_by_a_fifth_unless_told(film: Path, tmp_path: Path, tiny_model: Path) -> None:
    run(film, tmp_path / "c.npz", tiny_model, segment=5.0)
    assert open_store(tmp_path / "c.npz").clip_ids == ["film.mp4#0-5", "film.mp4#4-9", "film.mp4#8-12"]


def test_a_second_run_cuts_as_the_first_did_and_looks_at_no_file(
    film: Path, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(film, tmp_path / "c.npz", tiny_model, segment=4.0)
    monkeypatch.setattr("vctool.video.workers.work", lambda *_: pytest.fail("a file was read again"))
    report = run(film, tmp_path / "c.npz", tiny_model)
    assert (report.indexed, report.reused, report.written) == (0, len(open_store(tmp_path / "c.npz")), False)


def test_a_file_cut_otherwise_replaces_its_earlier_pieces(film: Path, tmp_path: Path, tiny_model: Path) -> None:
    other = make_video(tmp_path / "other" / "other.mp4", ["green"] * 6, seconds=1.0)
    run([film, other], tmp_path / "c.npz", tiny_model, segment=4.0, overlap=0.0)
    before = set(open_store(tmp_path / "c.npz").clip_ids)
    report = run(film, tmp_path / "c.npz", tiny_model, segment=6.0, overlap=0.0)
    ids = open_store(tmp_path / "c.npz").clip_ids
    assert [i for i in ids if i.endswith(("film.mp4#0-6", "film.mp4#6-12"))] == [i for i in ids if "film" in i]
    assert {i for i in ids if "other" in i} == {i for i in before if "other" in i}
    assert report.dropped == 3


def test_a_file_that_was_whole_is_replaced_by_its_segments(film: Path, tmp_path: Path, tiny_model: Path) -> None:
    run(film, tmp_path / "c.npz", tiny_model)
    run(film, tmp_path / "c.npz", tiny_model, segment=6.0, overlap=0.0)
    assert open_store(tmp_path / "c.npz").clip_ids == ["film.mp4#0-6", "film.mp4#6-12"]


def test_segments_begin_at_scenes(film: Path, tmp_path: Path, tiny_model: Path) -> None:
    run(film, tmp_path / "c.npz", tiny_model, segment=30.0, at_scenes=True)
    store = open_store(tmp_path / "c.npz")
    assert [store.clip_meta(i)["start"] for i in range(len(store))] == pytest.approx([0, 7, 9], abs=0.4)


def test_frames_by_rate(film: Path, tmp_path: Path, tiny_model: Path) -> None:
    run(film, tmp_path / "c.npz", tiny_model, frames=8, sampling="fps", fps=0.5)
    store = open_store(tmp_path / "c.npz")
    assert np.diff(store.clip(0).frame_time_F) == pytest.approx([2.0] * 5, abs=0.11)
    assert store.manifest["frames"] == {"count": 8, "sampling": "fps", "decoder": "pyav", "rate": 0.5}


def test_clips_sampled_otherwise_are_not_mixed(film: Path, tmp_path: Path, tiny_model: Path) -> None:
    other = make_video(tmp_path / "other.mp4", ["green"])
    run(film, tmp_path / "c.npz", tiny_model)
    with pytest.raises(StoreError, match="were made otherwise"):
        run(other, tmp_path / "c.npz", tiny_model, sampling="fps")


def test_an_unreadable_file_is_told_and_the_rest_is_cut(film: Path, tmp_path: Path, tiny_model: Path) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    report = run([film, broken], tmp_path / "c.npz", tiny_model, segment=6.0)
    assert [f.path for f in report.failed] == [str(broken)]
    assert report.indexed == report.clips == 2


@pytest.mark.parametrize("given", [{"overlap": 1.0}, {"at_scenes": True}, {"segment": 0.5}, {"segment": 10.0, "overlap": 9.0}])
def test_impossible_wishes_are_refused(film: Path, tmp_path: Path, tiny_model: Path, given: dict[str, Any]) -> None:
    with pytest.raises(UsageProblem):
        run(film, tmp_path / "c.npz", tiny_model, **given)


def test_overlapping_segments_that_show_one_moment_are_one_hit(film: Path, tmp_path: Path, tiny_model: Path) -> None:
    run(film, tmp_path / "c.npz", tiny_model, segment=4.0, overlap=2.0, frames=8)
    ids = open_store(tmp_path / "c.npz").clip_ids
    hits = search("red", tmp_path / "c.npz", tiny_model, k=3).hits
    assert {"film.mp4#4-8", "film.mp4#6-10"} <= set(ids)
    assert len({hit.id for hit in hits} & {"film.mp4#4-8", "film.mp4#6-10", "film.mp4#8-12"}) == 1
    moment = hits[0].evidence.moment
    assert moment is not None and (moment.start, moment.end) == (pytest.approx(7, abs=0.3), pytest.approx(9, abs=0.3))
    assert [hit.rank for hit in hits] == list(range(1, len(hits) + 1))
    second = search("red", tmp_path / "c.npz", tiny_model, k=1, offset=1).hits
    assert [hit.id for hit in second] == [hits[1].id]
