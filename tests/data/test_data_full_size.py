"""The readers on generated files of the published sizes, and the recorded hashes of the splits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vctool.data import compare_with_published, ids_sha256, load_benchmark
from vctool.data.published import PUBLISHED, msrvtt_1ka_test_ids, msrvtt_ids


@pytest.fixture(scope="module")
def msrvtt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("msrvtt")
    test = msrvtt_1ka_test_ids()
    rows = "".join(f"ret{i},msr{one[5:]},{one},caption {i}\n" for i, one in enumerate(reversed(test)))
    (folder / "MSRVTT_JSFUSION_test.csv").write_text("key,vid_key,video_id,sentence\n" + rows)
    for name in ("9k", "7k"):
        ids = msrvtt_ids("msrvtt-1ka" if name == "9k" else "msrvtt-1ka-7k", "train") or []
        (folder / f"MSRVTT_train.{name}.csv").write_text("\n".join(["video_id", *ids]))
    where = {"train": range(6513), "validate": range(6513, 7010), "test": range(7010, 10_000)}
    videos = [{"video_id": f"video{i}", "split": name, "id": i} for name, numbers in where.items() for i in numbers]
    short = {7100, 9999}
    sentences = [
        {"video_id": f"video{i}", "caption": f"c {i} {n}", "sen_id": 20 * i + n}
        for i in range(10_000)
        for n in range(19 if i in short else 20)
    ]
    (folder / "MSRVTT_data.json").write_text(json.dumps({"videos": videos, "sentences": sentences}))
    return folder


def test_the_recorded_1ka_test_list_holds_a_thousand_videos_of_the_full_test_split() -> None:
    ids = msrvtt_1ka_test_ids()
    assert len(ids) == len(set(ids)) == 1000
    assert set(ids) <= set(msrvtt_ids("msrvtt-full", "test") or [])


def test_the_recorded_1ka_test_list_holds_the_first_rows_of_the_real_file(annotations: Path) -> None:
    assert set(load_benchmark("msrvtt-1ka", "test", annotations).clip_ids) <= set(msrvtt_1ka_test_ids())


@pytest.mark.parametrize(("benchmark", "split"), [key for key, known in PUBLISHED.items() if known.ids_sha256])
def test_recorded_hashes_are_those_of_the_recorded_ids(benchmark: str, split: str) -> None:
    ids = msrvtt_ids(benchmark, split)
    assert ids is not None
    assert ids_sha256(ids) == PUBLISHED[benchmark, split].ids_sha256
    assert len(ids) == PUBLISHED[benchmark, split].clips


@pytest.mark.parametrize(
    ("benchmark", "split", "clips", "queries"),
    [
        ("msrvtt-1ka", "test", 1000, 1000),
        ("msrvtt-1ka", "train", 9000, 9000 * 20 - 2),
        ("msrvtt-1ka-7k", "train", 7010, 7010 * 20),
        ("msrvtt-full", "val", 497, 497 * 20),
        ("msrvtt-full", "test", 2990, 2990 * 20 - 2),
    ],
)
def test_msrvtt_of_full_size_is_recognised_as_the_published_split(
    msrvtt: Path, benchmark: str, split: str, clips: int, queries: int
) -> None:
    loaded = load_benchmark(benchmark, split, msrvtt)
    assert (len(loaded.clips), len(loaded.queries)) == (clips, queries)
    assert compare_with_published(loaded).same is True


def test_one_exchanged_clip_is_not_the_published_split(msrvtt: Path, tmp_path: Path) -> None:
    text = (msrvtt / "MSRVTT_JSFUSION_test.csv").read_text().replace(",video9770,", ",video9769,")
    (tmp_path / "MSRVTT_JSFUSION_test.csv").write_text(text)
    verdict = compare_with_published(load_benchmark("msrvtt-1ka", "test", tmp_path))
    assert verdict.same is False
    assert "not the same ones" in verdict.statement


def test_msvd_of_full_size_has_27763_queries_and_an_unknown_hash(tmp_path: Path) -> None:
    ids = [f"{'-' if i % 3 else ''}yt_{i:04d}_{i}_{i + 9}" for i in range(670)]
    counts = [42 if i < 27_763 - 670 * 41 else 41 for i in range(670)]
    (tmp_path / "test_list.txt").write_text("\n".join(ids))
    (tmp_path / "captions_msvd.json").write_text(json.dumps({one: [f"c{n}" for n in range(k)] for one, k in zip(ids, counts, strict=True)}))
    split = load_benchmark("msvd", "test", tmp_path)
    assert len(split.queries) == 27_763
    assert compare_with_published(split).same is None
    assert "unknown" in compare_with_published(split).statement


def test_vatex_of_full_size_takes_1500_of_3000(tmp_path: Path) -> None:
    ids = [f"{i:011d}_{i:06d}_{i + 10:06d}" for i in range(3000)]
    (tmp_path / "vatex_validation_v1.0.json").write_text(
        json.dumps([{"videoID": one, "enCap": [f"c{n}" for n in range(10)]} for one in ids])
    )
    (tmp_path / "test_list.txt").write_text("\n".join(ids[1::2]))
    assert len(load_benchmark("vatex", "test", tmp_path).queries) == 15_000
    assert len(load_benchmark("vatex-official", "val", tmp_path).queries) == 30_000


def test_didemo_of_full_size_takes_1004_of_1037(tmp_path: Path) -> None:
    endings = [".mov", ".m4v", ".", ".3gp", ".avi"]
    names = [f"{i}@N01_{i}_abc{endings[i % 5]}" for i in range(1037)]
    rows = [{"video": names[i % 1037], "description": f"d{i}", "times": [[0, 1]], "annotation_id": i} for i in range(4021)]
    (tmp_path / "test_data.json").write_text(json.dumps(rows))
    (tmp_path / "test_list.txt").write_text("\n".join(names[:1004]))
    split = load_benchmark("didemo", "test", tmp_path)
    assert len(split.clips) == len(split.queries) == 1004
    assert split.notes == ("33 described videos are not in test_list.txt and left out",)


def test_activitynet_of_full_size_takes_the_intersection_of_4917_and_4925(tmp_path: Path) -> None:
    entries = {f"v_{i:05d}": {"duration": 60.0, "timestamps": [[0, 1]] * 3, "sentences": ["A.", " B.", " C."]} for i in range(4917)}
    (tmp_path / "val_1.json").write_text(json.dumps(entries))
    (tmp_path / "val_ids.json").write_text(json.dumps([f"v_{i:05d}" for i in range(4925)]))
    split = load_benchmark("activitynet", "val_1", tmp_path)
    assert len(split.clips) == 4917
    assert "8 ids" in split.notes[0]


def test_lsmdc_of_full_size_has_a_thousand_queries(tmp_path: Path) -> None:
    rows = [f"{i:04d}_FILM_00.00.{i % 60:02d}.000-00.01.00.{i % 999:03d}\ta\tb\tc\td\tSOMEONE {i}." for i in range(1000)]
    (tmp_path / "LSMDC16_challenge_1000_publictect.csv").write_text("\n".join(rows))
    assert len(load_benchmark("lsmdc", "test", tmp_path).queries) == 1000
