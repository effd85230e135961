"""The plain manifest, explicit judgements, and finding files on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vctool.data import Clip, VideoFolder, benchmark, check_benchmark, check_split, load_split, read_qrels
from vctool.errors import InputError, VideoError
from vctool.video.manifest import read_manifest


def manifest(folder: Path, *rows: Any, name: str = "m.jsonl") -> str:
    path = folder / name
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8")
    return str(path)


# Manifest


def test_a_row_names_its_file_and_its_captions(tmp_path: Path) -> None:
    split = load_split(
        manifest(tmp_path, {"video": "a/x.mp4", "captions": ["one", "two"], "licence": "CC0"}, {"path": "y.mp4", "caption": "three"})
    )
    assert split.clip_ids == ["a/x.mp4", "y.mp4"]
    assert split.query_texts == ["one", "two", "three"]
    assert np.array_equal(split.relevance(), [0, 0, 1])
    assert split.clips[0].path == tmp_path / "a" / "x.mp4"
    assert split.clips[0].meta == {"licence": "CC0"}


def test_pieces_of_one_file_have_ids_of_their_own(tmp_path: Path) -> None:
    rows = [{"video": "x.mp4", "start": 0, "end": 2.5, "caption": "a"}, {"video": "x.mp4", "start": 2.5, "caption": "b"}]
    assert load_split(manifest(tmp_path, *rows)).clip_ids == ["x.mp4#0-2.5", "x.mp4#2.5-"]


def test_ids_are_those_that_indexing_the_same_manifest_gives(tmp_path: Path) -> None:
    path = manifest(
        tmp_path,
        {"video": "./a//x.mp4", "caption": "a"},
        {"path": str(tmp_path / "y.mp4"), "caption": "b"},
        {"clip": "../z.mp4", "caption": "c"},
        {"clip": "z.mp4", "end": 0.1 + 0.2, "caption": "d"},
        {"clip": "z.mp4", "start": 1 / 3, "caption": "e"},
        {"clip": "z.mp4", "id": 7, "caption": "f"},
    )
    assert load_split(path).clip_ids == [row.id for row in read_manifest(Path(path))]


def test_only_rows_of_the_split_are_kept(tmp_path: Path) -> None:
    path = manifest(tmp_path, {"video": "a", "caption": "a", "split": "train"}, {"video": "b", "caption": "b", "split": "test"})
    assert load_split(path, "test").clip_ids == ["b"]
    assert len(load_split(path).clips) == 2
    with pytest.raises(InputError, match="its splits are: test, train"):
        load_split(path, "val")


def test_a_manifest_without_splits_is_taken_whole_and_says_so(tmp_path: Path) -> None:
    assert "names no splits" in load_split(manifest(tmp_path, {"video": "a", "caption": "a"}), "test").notes[0]


def test_captions_can_be_joined_to_a_paragraph(tmp_path: Path) -> None:
    assert load_split(manifest(tmp_path, {"video": "a", "captions": ["One.", "Two."]}), policy="paragraph").query_texts == ["One. Two."]


def test_the_vindlu_layout_is_read(tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    path.write_text(json.dumps([{"video": "a.mp4", "caption": "x"}, {"video": "b.mp4", "caption": ["y", "z"]}]))
    assert load_split(str(path)).query_texts == ["x", "y", "z"]


def test_repeated_captions_are_counted_whatever_their_case_and_spacing(tmp_path: Path) -> None:
    path = manifest(tmp_path, {"video": "a", "caption": "A  dog"}, {"video": "b", "caption": "a dog"}, {"video": "c", "caption": "a cat"})
    assert load_split(path).duplicate_captions() == 1


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", "line 2: not valid JSON"),
        ("[1]", "line 2: expected a JSON object"),
        ({"caption": "x"}, "line 2: no video file named"),
        ({"video": 3, "caption": "x"}, "line 2: no video file named"),
        ({"video": "a.mp4", "caption": "x"}, r"line 2: duplicate id 'a.mp4' \(first in line 1\)"),
        ({"video": "b.mp4", "caption": 3}, "captions must be a text"),
        ({"video": "b.mp4", "start": 3, "end": 2}, "before or at its start"),
        ({"video": "b.mp4", "start": -1}, "seconds from 0"),
        ({"video": "b.mp4", "end": "soon"}, "seconds from 0"),
        ({"video": "b.mp4", "id": ["x"]}, "'id' must be a text"),
    ],
)
def test_broken_rows_are_named_by_line(tmp_path: Path, row: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_split(manifest(tmp_path, {"video": "a.mp4", "caption": "fine"}, row))


def test_an_empty_manifest_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is empty"):
        load_split(manifest(tmp_path))


def test_the_real_clips_have_three_captions_each(realclips: Path) -> None:
    split = load_split(str(realclips / "captions.jsonl"))
    assert len(split.queries) == 3 * len(split.clips)
    assert all(clip.path is not None and clip.path.is_file() for clip in split.clips)


# Explicit judgements


def trec(folder: Path, qrels: str, name: str = "qrels.tsv") -> Path:
    (folder / "corpus.jsonl").write_text("".join(json.dumps({"_id": f"d{i}", "video": f"v{i}.mp4"}) + "\n" for i in range(3)))
    (folder / "queries.jsonl").write_text("".join(json.dumps({"_id": f"q{i}", "text": f"text {i}"}) + "\n" for i in range(3)))
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(qrels)
    return folder


def test_corpus_queries_and_qrels_may_be_many_to_many_and_graded(tmp_path: Path) -> None:
    split = load_split(str(trec(tmp_path, "query-id\tcorpus-id\tscore\nq0\td0\t2\nq0\td2\t1\nq1\td1\t1\nq1\td0\t0\n")))
    assert split.relevance() == [{0: 2.0, 2: 1.0}, {1: 1.0}]
    assert split.caption_policy == "qrels"
    assert split.notes == ("1 queries without a relevant clip left out",)


def test_clips_nobody_asks_for_are_counted(tmp_path: Path) -> None:
    split = load_split(str(trec(tmp_path, "q0 0 d0 1\nq1 0 d1 1\nq2 0 d1 1\n", "qrels.txt")))
    assert split.notes == ("1 clips that no query asks for stay in the gallery",)
    assert np.array_equal(split.relevance(), [0, 1, 1])


def test_qrels_of_a_split_lie_in_a_folder_of_that_name(tmp_path: Path) -> None:
    split = load_split(str(trec(tmp_path, "q0\td0\t1\n", "qrels/test.tsv")), "test")
    assert len(split.queries) == 1


@pytest.mark.parametrize(
    ("qrels", "message"),
    [
        ("q0\td9\t1\n", "1 judgements of clips that corpus.jsonl lacks, the first 'd9'"),
        ("q9\td0\t1\n", "1 queries that queries.jsonl lacks, the first 'q9'"),
        ("q0\td0\t0\n", "no query has a relevant clip"),
        ("q0\td0\tyes\n", "line 1: the grade 'yes' is not a number"),
        ("q0\td0\tnan\n", "not a finite number"),
        ("q0\td0\t1\nq0\td0\t1\n", "line 2: query 'q0' judges clip 'd0' twice"),
        ("q0\n", "line 1: 1 columns"),
        ("", "no judgements"),
    ],
)
def test_broken_judgements_are_one_line(tmp_path: Path, qrels: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_split(str(trec(tmp_path, qrels)))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("q.tsv", "q0\td0\nq1\td1\n"),
        ("q.tsv", "query-id\tcorpus-id\tscore\nq0\td0\t1\nq1\td1\t1\n"),
        ("q.txt", "q0 0 d0 1\nq1 0 d1 1\n"),
        ("q.txt", "q0 Q0 d0 1\r\nq1 Q0 d1 1"),
        ("q.jsonl", '{"query-id": "q0", "corpus-id": "d0", "score": 1}\n{"query_id": "q1", "doc_id": "d1"}\n'),
    ],
)
def test_qrels_are_read_in_every_usual_form(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_bytes(content.encode())
    assert read_qrels(tmp_path / name) == {"q0": {"d0": 1.0}, "q1": {"d1": 1.0}}


# Files on disk and the check


def test_a_file_is_found_whatever_its_suffix_and_folder(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "video7.WEBM").write_bytes(b"x")
    place = VideoFolder(tmp_path).find(Clip("video7", stems=("video7",)))
    assert place is not None and place.path.name == "video7.WEBM"


def test_two_files_of_one_name_are_counted_and_the_first_by_path_is_used(tmp_path: Path) -> None:
    for name in ("video7.mp4", "video7.avi"):
        (tmp_path / name).write_bytes(b"x")
    disk = VideoFolder(tmp_path)
    place = disk.find(Clip("video7", stems=("video7",)))
    assert disk.ambiguous == 1
    assert place is not None and place.path.name == "video7.avi"


def msrvtt(folder: Path) -> tuple[Path, Path]:
    rows = "".join(f"r{i},m{i},video{i},{'a dog' if i < 3 else f'thing {i}'}\n" for i in range(8))
    (folder / "MSRVTT_JSFUSION_test.csv").write_text("key,vid_key,video_id,sentence\n" + rows)
    videos = folder / "videos"
    videos.mkdir()
    for i in range(6):
        (videos / f"video{i}.mp4").write_bytes(b"" if i == 5 else b"x")
    return folder, videos


def test_the_check_says_what_is_present_missing_broken_and_duplicated_with_five_examples(tmp_path: Path) -> None:
    folder, videos = msrvtt(tmp_path)

    def probe(path: Path) -> None:
        if path.name == "video4.mp4":
            raise VideoError(path, "no video stream")

    train, test = check_benchmark(benchmark("msrvtt"), folder, videos, probe=probe)
    assert train.problem is not None and "MSRVTT_train.9k.csv" in train.problem
    assert (test.clips, test.queries, test.present) == (8, 8, 4)
    assert test.missing == ("video6", "video7")
    assert test.broken == (("video4", "no video stream"), ("video5", "empty file"))
    assert test.duplicate_captions == 2
    assert [example.id for example in test.examples] == [f"video{i}" for i in range(5)]
    assert test.published is False and "1,000" in test.statement
    assert not test.complete


def test_the_check_without_videos_leaves_them_alone(tmp_path: Path) -> None:
    folder, _ = msrvtt(tmp_path)
    result = check_benchmark(benchmark("msrvtt"), folder, None, splits=["test"])[0]
    assert "present" not in result.to_dict()
    assert json.loads(json.dumps(result.to_dict()))["clips"] == 8


def test_a_manifest_is_checked_against_its_own_paths(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"x")
    split = load_split(manifest(tmp_path, {"video": "a.mp4", "caption": "x"}, {"video": "b.mp4", "caption": "y"}))
    result = check_split(split, None)
    assert (result.present, result.missing) == (1, ("b.mp4",))


def test_dropping_missing_clips_drops_their_queries_and_says_how_many(tmp_path: Path) -> None:
    split = load_split(manifest(tmp_path, {"video": "a", "captions": ["x", "y"]}, {"video": "b", "captions": ["z"]}))
    kept = split.keep([False, True], "are missing")
    assert kept.query_texts == ["z"]
    assert np.array_equal(kept.relevance(), [0])
    assert kept.notes == ("1 of 2 clips are missing, and 2 queries with them: not the published split",)
    with pytest.raises(InputError, match="no query is left"):
        split.keep([False, False], "are missing")
