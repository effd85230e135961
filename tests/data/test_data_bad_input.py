"""Broken annotation files: one clear line each, or a stated count."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from vctool.data import Clip, build_split, load_benchmark, load_split
from vctool.errors import InputError, UsageProblem, VctoolError

HEADER = "key,vid_key,video_id,sentence\n"


def one_ka(folder: Path, rows: str | bytes) -> Path:
    path = folder / "MSRVTT_JSFUSION_test.csv"
    path.write_bytes(rows if isinstance(rows, bytes) else (HEADER + rows).encode())
    return path


def failure(call: Callable[[], object]) -> str:
    with pytest.raises(VctoolError) as problem:
        call()
    assert "\n" not in str(problem.value)
    return str(problem.value)


def test_csv_sentences_may_hold_commas_and_quotes_when_quoted(tmp_path: Path) -> None:
    one_ka(tmp_path, 'r0,m0,video0,"he says ""no"", then leaves"\n')
    assert load_benchmark("msrvtt-1ka", "test", tmp_path).query_texts == ['he says "no", then leaves']


def test_csv_with_an_unquoted_comma_names_the_line(tmp_path: Path) -> None:
    one_ka(tmp_path, "r0,m0,video0,fine\nr1,m1,video1,first, then second\n")
    assert "line 3: 5 columns instead of 4" in failure(lambda: load_benchmark("msrvtt-1ka", "test", tmp_path))


def test_csv_with_an_open_quote_is_not_read_to_the_end_as_one_sentence(tmp_path: Path) -> None:
    one_ka(tmp_path, 'r0,m0,video0,"never closed\nr1,m1,video1,b\n')
    assert "not valid CSV" in failure(lambda: load_benchmark("msrvtt-1ka", "test", tmp_path))


def test_csv_without_its_header_names_the_missing_column(tmp_path: Path) -> None:
    one_ka(tmp_path, b"ret0,msr0,video0,a person\n")
    assert "no column 'video_id'" in failure(lambda: load_benchmark("msrvtt-1ka", "test", tmp_path))


def test_duplicate_ids_are_named(tmp_path: Path) -> None:
    one_ka(tmp_path, "r0,m0,video0,a\nr1,m0,video0,b\n")
    assert "duplicate clip id 'video0'" in failure(lambda: load_benchmark("msrvtt-1ka", "test", tmp_path))


def test_duplicate_ids_in_a_list_are_named(tmp_path: Path) -> None:
    (tmp_path / "test_list.txt").write_text("a_1_2\nb_1_2\na_1_2\n")
    (tmp_path / "captions_msvd.json").write_text("{}")
    assert "duplicate id 'a_1_2'" in failure(lambda: load_benchmark("msvd", "test", tmp_path))


def test_duplicate_keys_of_a_json_object_are_named_not_merged(tmp_path: Path) -> None:
    (tmp_path / "val_1.json").write_text('{"v_a": {"sentences": ["x"]}, "v_a": {"sentences": ["y"]}}')
    assert "duplicate id 'v_a'" in failure(lambda: load_benchmark("activitynet", "val_1", tmp_path))


def test_didemo_names_that_differ_only_in_extension_are_duplicates(tmp_path: Path) -> None:
    (tmp_path / "val_data.json").write_text(json.dumps([{"video": "a.mov", "description": "x", "times": [[0, 0]]}]))
    (tmp_path / "val_list.txt").write_text("a.mov\na.mp4\n")
    assert "duplicate id 'a'" in failure(lambda: load_benchmark("didemo", "val", tmp_path))


@pytest.mark.parametrize("content", [b"", HEADER.encode(), b"\n\n"])
def test_an_empty_split_is_an_error(tmp_path: Path, content: bytes) -> None:
    one_ka(tmp_path, content)
    assert "empty" in failure(lambda: load_benchmark("msrvtt-1ka", "test", tmp_path)).lower()


def test_an_empty_list_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "test_list.txt").write_text("\n \n")
    assert "the split is empty" in failure(lambda: load_benchmark("msvd", "test", tmp_path))


def test_latin_1_is_refused_with_the_line_and_the_way_out(tmp_path: Path) -> None:
    one_ka(tmp_path, HEADER.encode() + b"r0,m0,video0,a caf\xe9\n")
    assert "line 2: byte 0xe9 is not utf-8 (convert" in failure(lambda: load_benchmark("msrvtt-1ka", "test", tmp_path))


def test_another_encoding_can_be_named(tmp_path: Path) -> None:
    one_ka(tmp_path, HEADER.encode() + b"r0,m0,video0,a caf\xe9\n")
    assert load_benchmark("msrvtt-1ka", "test", tmp_path, "latin-1").query_texts == ["a café"]


def test_an_unknown_encoding_is_refused(tmp_path: Path) -> None:
    one_ka(tmp_path, "r0,m0,video0,a\n")
    assert "unknown encoding 'klingon'" in failure(lambda: load_benchmark("msrvtt-1ka", "test", tmp_path, "klingon"))


def test_utf_16_is_named_as_such(tmp_path: Path) -> None:
    one_ka(tmp_path, (HEADER + "r0,m0,video0,a\n").encode("utf-16"))
    assert "UTF-16" in failure(lambda: load_benchmark("msrvtt-1ka", "test", tmp_path))


def test_a_byte_order_mark_and_windows_line_ends_do_not_matter(tmp_path: Path) -> None:
    one_ka(tmp_path, b"\xef\xbb\xbf" + (HEADER + "r0,m0,video0,a person\n").replace("\n", "\r\n").encode())
    split = load_benchmark("msrvtt-1ka", "test", tmp_path)
    assert (split.clip_ids, split.query_texts) == (["video0"], ["a person"])


def test_clips_without_captions_stay_as_distractors_and_are_counted(tmp_path: Path) -> None:
    (tmp_path / "test_list.txt").write_text("a_1_2\nb_1_2\nc_1_2\n")
    (tmp_path / "captions_msvd.json").write_text('{"a_1_2": ["x"], "b_1_2": ["  ", "y"]}')
    split = load_benchmark("msvd", "test", tmp_path)
    assert len(split.clips) == 3
    assert split.query_texts == ["x", "y"]
    assert split.notes == (
        "1 blank captions left out",
        "1 clips without captions: they stay in the gallery but no query asks for them",
    )


def test_no_caption_at_all_is_an_error() -> None:
    assert "none of the 2 clips has a caption" in failure(lambda: build_split("x", "test", "all", [Clip("a"), Clip("b")]))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "neither 'sentences' nor 'annotations'"),
        ('{"sentences": [{"video_id": "v"}]}', "without a text under 'caption'"),
        ('{"sentences": [3]}', "without a text under 'video_id'"),
        ('{"videos": [{"video_id": "v"}, {"video_id": "v"}], "sentences": []}', "duplicate id 'v'"),
    ],
)
def test_broken_msrvtt_captions_are_one_line(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "MSRVTT_data.json").write_text(content)
    (tmp_path / "test_list_full.txt").write_text("v\n")
    assert message in failure(lambda: load_benchmark("msrvtt-full", "test", tmp_path))


@pytest.mark.parametrize(
    ("name", "benchmark", "split", "content", "message"),
    [
        ("test_data.json", "didemo", "test", "{}", "expected a list"),
        ("test_data.json", "didemo", "test", '[{"video": "a.mov"}]', "without 'video' and 'description'"),
        ("test_data.json", "didemo", "test", '[{"video": "a.mov", "description": "x", "times": []}]', "'times'"),
        ("val_1.json", "activitynet", "val_1", "[]", "expected an object"),
        ("val_1.json", "activitynet", "val_1", '{"v_a": {}}', "no list of 'sentences'"),
        ("vatex_validation_v1.0.json", "vatex-official", "val", "[{}]", "without 'videoID'"),
        ("vatex_validation_v1.0.json", "vatex-official", "val", '[{"videoID": "a", "enCap": "x"}]', "not a list of texts"),
        ("LSMDC16_annos_val.csv", "lsmdc", "val", "a\tb\tc\td\te\tf\n", "not an LSMDC clip id"),
    ],
)
def test_broken_files_of_other_benchmarks_are_one_line(
    tmp_path: Path, name: str, benchmark: str, split: str, content: str, message: str
) -> None:
    (tmp_path / name).write_text(content)
    assert message in failure(lambda: load_benchmark(benchmark, split, tmp_path))


def test_missing_annotation_files_are_named(tmp_path: Path) -> None:
    assert "MSRVTT_JSFUSION_test.csv" in failure(lambda: load_benchmark("msrvtt-1ka", "test", tmp_path))


def test_two_files_of_one_name_are_not_chosen_between(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        one_ka(tmp_path / folder, "r0,m0,video0,a\n")
    assert "2 files answer to" in failure(lambda: load_benchmark("msrvtt-1ka", "test", tmp_path))


def test_an_unknown_benchmark_gets_the_nearest_name() -> None:
    assert "did you mean 'msrvtt-1ka'" in failure(lambda: load_split("msrvtt-1kA2", annotations=Path()))


def test_a_benchmark_without_annotations_asks_for_them() -> None:
    with pytest.raises(UsageProblem, match="--annotations"):
        load_split("msvd")


def test_a_missing_manifest_is_not_taken_for_a_benchmark() -> None:
    with pytest.raises(InputError, match=r"nothing/here\.jsonl does not exist"):
        load_split("nothing/here.jsonl")
