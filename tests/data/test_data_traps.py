"""Every known trap of the published annotation files, one named test each."""

from __future__ import annotations

import json
import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vctool.data import VideoFolder, load_benchmark
from vctool.data.didemo import stem
from vctool.data.msvd import split_times
from vctool.errors import InputError, UsageProblem


def write(folder: Path, name: str, content: Any) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    return path


# MSR-VTT


def msrvtt_json(videos: dict[str, tuple[str, int]], sentences: list[tuple[str, str, int]]) -> dict[str, Any]:
    return {
        "info": {},
        "videos": [
            {"category": 1, "url": "u", "video_id": v, "start time": 1.0, "end time": 9.0, "split": s, "id": i}
            for v, (s, i) in videos.items()
        ],
        "sentences": [{"caption": c, "video_id": v, "sen_id": n} for v, c, n in sentences],
    }


def test_msrvtt_1ka_test_has_one_fixed_caption_per_video(tmp_path: Path) -> None:
    write(
        tmp_path,
        "MSRVTT_JSFUSION_test.csv",
        "key,vid_key,video_id,sentence\nret0,msr9770,video9770,a person\nret1,msr9771,video9771,a girl\n",
    )
    split = load_benchmark("msrvtt-1ka", "test", tmp_path)
    assert split.caption_policy == "one"
    assert split.clip_ids == ["video9770", "video9771"]
    assert split.query_texts == ["a person", "a girl"]
    assert np.array_equal(split.relevance(), [0, 1])


def test_msrvtt_1ka_train_list_is_one_column_with_a_header(tmp_path: Path) -> None:
    write(tmp_path, "MSRVTT_train.9k.csv", "video_id\nvideo0\nvideo1")
    write(
        tmp_path,
        "MSRVTT_data.json",
        msrvtt_json({"video0": ("train", 0), "video1": ("train", 1)}, [("video0", "a", 0), ("video1", "b", 1)]),
    )
    assert load_benchmark("msrvtt-1ka", "train", tmp_path).clip_ids == ["video0", "video1"]


def test_msrvtt_1ka_has_no_validation_split_and_says_so(tmp_path: Path) -> None:
    with pytest.raises(UsageProblem, match=r"no 'val' split.*hold out a part of train"):
        load_benchmark("msrvtt-1ka", "val", tmp_path)


def test_msrvtt_7k_training_is_another_list(tmp_path: Path) -> None:
    write(tmp_path, "MSRVTT_train.7k.csv", "video_id\nvideo7\n")
    write(tmp_path, "MSRVTT_data.json", msrvtt_json({"video7": ("train", 7)}, [("video7", "a", 0)]))
    assert load_benchmark("msrvtt-1ka-7k", "train", tmp_path).clip_ids == ["video7"]


def test_msrvtt_sentences_stand_in_arbitrary_order_and_are_sorted_by_their_number(tmp_path: Path) -> None:
    sentences = [(f"video{v}", f"caption {v} {n}", 20 * v + n) for v in range(3) for n in range(20)]
    random.Random(0).shuffle(sentences)
    write(tmp_path, "MSRVTT_data.json", msrvtt_json({f"video{v}": ("test", v) for v in range(3)}, sentences))
    split = load_benchmark("msrvtt-full", "test", tmp_path)
    assert split.clips[1].captions == tuple(f"caption 1 {n}" for n in range(20))
    assert len(split.queries) == 60


def test_msrvtt_full_finds_its_splits_in_the_json_where_validation_is_called_validate(tmp_path: Path) -> None:
    videos = {"video0": ("train", 0), "video1": ("validate", 1), "video2": ("test", 2)}
    write(tmp_path, "MSRVTT_data.json", msrvtt_json(videos, [(v, "a", i) for i, v in enumerate(videos)]))
    assert [load_benchmark("msrvtt-full", s, tmp_path).clip_ids for s in ("train", "val", "test")] == [["video0"], ["video1"], ["video2"]]


def test_msrvtt_full_accepts_videos_with_nineteen_captions(tmp_path: Path) -> None:
    sentences = [("video0", f"c{n}", n) for n in range(20)] + [("video1", f"d{n}", 20 + n) for n in range(19)]
    write(tmp_path, "MSRVTT_data.json", msrvtt_json({"video0": ("test", 0), "video1": ("test", 1)}, sentences))
    split = load_benchmark("msrvtt-full", "test", tmp_path)
    assert len(split.queries) == 39
    assert np.array_equal(split.relevance(), [0] * 20 + [1] * 19)


def test_msrvtt_captions_in_frozens_layout_are_read(tmp_path: Path) -> None:
    write(tmp_path, "MSR_VTT.json", {"annotations": [{"image_id": "video3", "caption": "x"}, {"image_id": "video3", "caption": "y"}]})
    write(tmp_path, "test_list_miech.txt", "video3")
    assert load_benchmark("msrvtt-1kb", "test", tmp_path).clips[0].captions == ("x", "y")


def test_msrvtt_captions_in_the_two_original_files_are_joined(tmp_path: Path) -> None:
    write(tmp_path, "train_val_videodatainfo.json", msrvtt_json({"video0": ("train", 0)}, [("video0", "a", 0)]))
    write(tmp_path, "test_videodatainfo.json", msrvtt_json({"video1": ("test", 1)}, [("video1", "b", 1)]))
    assert load_benchmark("msrvtt-full", "test", tmp_path).query_texts == ["b"]
    assert load_benchmark("msrvtt-full", "train", tmp_path).query_texts == ["a"]


def test_msrvtt_captions_of_unknown_videos_are_counted(tmp_path: Path) -> None:
    write(tmp_path, "MSRVTT_data.json", msrvtt_json({"video0": ("test", 0)}, [("video0", "a", 0), ("video9", "b", 1), ("video8", "c", 2)]))
    assert load_benchmark("msrvtt-full", "test", tmp_path).notes == ("2 captions of videos that the file does not list left out",)


def test_msrvtt_times_under_keys_with_a_blank_do_not_cut_the_clip_again(tmp_path: Path) -> None:
    # "start time" and "end time" say where the clip lay in its YouTube video; `video0.mp4` is that piece already.
    document = msrvtt_json({"video0": ("test", 0)}, [("video0", "a", 0)])
    assert {"start time", "end time"} <= set(document["videos"][0])
    write(tmp_path, "MSRVTT_data.json", document)
    clip = load_benchmark("msrvtt-full", "test", tmp_path).clips[0]
    assert (clip.start, clip.end, clip.source_span) == (None, None, None)


# MSVD


def test_msvd_lists_need_no_newline_at_the_end(tmp_path: Path) -> None:
    write(tmp_path, "test_list.txt", "-4wsuPCjDBc_5_15\nb_BuSVZwq6M_1_9")
    write(tmp_path, "captions_msvd.json", {"-4wsuPCjDBc_5_15": ["a", "b"], "b_BuSVZwq6M_1_9": ["c"]})
    assert load_benchmark("msvd", "test", tmp_path).clip_ids == ["-4wsuPCjDBc_5_15", "b_BuSVZwq6M_1_9"]


def test_msvd_every_caption_is_a_query_and_their_number_varies(tmp_path: Path) -> None:
    write(tmp_path, "test_list.txt", "a_1_2\nb_3_4\n")
    write(tmp_path, "captions_msvd.json", {"a_1_2": ["x", "y", "z"], "b_3_4": ["w"]})
    split = load_benchmark("msvd", "test", tmp_path)
    assert np.array_equal(split.relevance(), [0, 0, 0, 1])


def test_msvd_token_lists_of_clip4clip_are_joined_with_spaces(tmp_path: Path) -> None:
    write(tmp_path, "val_list.txt", "a_1_2\n")
    (tmp_path / "raw-captions.pkl").write_bytes(pickle.dumps({"a_1_2": [["a", "man", "runs"], ["he", "runs"]]}, protocol=2))
    assert load_benchmark("msvd", "val", tmp_path).query_texts == ["a man runs", "he runs"]


def test_msvd_pickle_that_would_run_code_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (print, ("run",))

    write(tmp_path, "val_list.txt", "a_1_2\n")
    (tmp_path / "raw-captions.pkl").write_bytes(pickle.dumps({"a_1_2": Evil()}))
    with pytest.raises(InputError, match="only plain dicts, lists and texts"):
        load_benchmark("msvd", "val", tmp_path)


def test_msvd_videos_are_avi(tmp_path: Path) -> None:
    write(tmp_path, "test_list.txt", "a_1_2\n")
    write(tmp_path, "captions_msvd.json", {"a_1_2": ["x"]})
    file = touch(tmp_path / "videos" / "a_1_2.avi")
    clip = load_benchmark("msvd", "test", tmp_path).clips[0]
    place = VideoFolder(tmp_path / "videos").find(clip)
    assert place is not None and place.path == file and place.start is None


# VATEX


def vatex_row(one: str, count: int = 10, chinese: bool = True) -> dict[str, Any]:
    row: dict[str, Any] = {"videoID": one, "enCap": [f"{one} caption {n}" for n in range(count)]}
    if chinese:
        row["chCap"] = ["中文"] * count
    return row


@pytest.mark.parametrize("one", ["-xGskbsBgI_000055_000065", "a_b_c-d_e12_000000_000010", "__aaaaaaaaa_000001_000011"])
def test_vatex_times_are_cut_off_from_the_right(one: str) -> None:
    source, start, end = split_times(one)
    assert (source, start, end) == (one[:-14], float(one[-13:-7]), float(one[-6:]))


def test_vatex_public_test_file_without_chinese_captions_is_read(tmp_path: Path) -> None:
    write(tmp_path, "vatex_public_test_english_v1.1.json", [vatex_row("x_000001_000011", chinese=False)])
    assert len(load_benchmark("vatex-official", "test", tmp_path).queries) == 10


def test_vatex_chinese_captions_are_not_queries(tmp_path: Path) -> None:
    write(tmp_path, "vatex_validation_v1.0.json", [vatex_row("x_000001_000011")])
    assert not any("中" in text for text in load_benchmark("vatex-official", "val", tmp_path).query_texts)


def test_vatex_hgr_test_is_cut_from_the_official_validation_file(tmp_path: Path) -> None:
    write(tmp_path, "vatex_validation_v1.0.json", [vatex_row(f"v{i}_000001_000011") for i in range(4)])
    write(tmp_path, "test1k5_sec_list.txt", "v2_000001_000011\nv0_000001_000011\n")
    split = load_benchmark("vatex", "test", tmp_path)
    assert split.clip_ids == ["v2_000001_000011", "v0_000001_000011"]
    assert len(split.queries) == 20


def test_vatex_hgr_lists_come_as_numpy_names_too(tmp_path: Path) -> None:
    write(tmp_path, "ref_captions.json", {"v0_000001_000011": ["a", "b"]})
    (tmp_path / "public_split").mkdir()
    np.save(tmp_path / "public_split" / "tst_names.npy", np.array(["v0_000001_000011"]))
    assert load_benchmark("vatex", "test", tmp_path).query_texts == ["a", "b"]


def test_vatex_untrimmed_video_is_used_with_the_times_from_the_id(tmp_path: Path) -> None:
    write(tmp_path, "vatex_validation_v1.0.json", [vatex_row("-ab_c_000055_000065")])
    clip = load_benchmark("vatex-official", "val", tmp_path).clips[0]
    whole = touch(tmp_path / "videos" / "-ab_c.mp4")
    place = VideoFolder(tmp_path / "videos").find(clip)
    assert place is not None and (place.path, place.start, place.end) == (whole, 55.0, 65.0)
    cut = touch(tmp_path / "videos" / "-ab_c_000055_000065.mp4")
    place = VideoFolder(tmp_path / "videos").find(clip)
    assert place is not None and (place.path, place.start) == (cut, None)


# DiDeMo


def didemo_row(video: str, text: str, number: int = 0, times: Any = ((0, 0),)) -> dict[str, Any]:
    return {
        "num_segments": 6,
        "description": text,
        "dl_link": "",
        "times": [list(t) for t in times],
        "video": video,
        "annotation_id": number,
    }


@pytest.mark.parametrize("ending", [".mov", ".m4v", ".mpg", ".avi", ".3gp", ".mp4", "."])
def test_didemo_names_match_on_the_stem_even_with_a_bare_trailing_dot(ending: str) -> None:
    assert stem(f"35034348999@N01_6060447507_dc1a90b8ef{ending}") == "35034348999@N01_6060447507_dc1a90b8ef"


def test_didemo_list_keeps_extensions_and_says_which_described_videos_count(tmp_path: Path) -> None:
    rows = [didemo_row("a_1_x.mov", "one"), didemo_row("b_2_y.", "two"), didemo_row("c_3_z.m4v", "three")]
    write(tmp_path, "test_data.json", rows)
    write(tmp_path, "test_list.txt", "b_2_y.mp4\na_1_x.mov\n")
    split = load_benchmark("didemo", "test", tmp_path)
    assert split.clip_ids == ["b_2_y", "a_1_x"]
    assert split.notes == ("1 described videos are not in test_list.txt and left out",)


def test_didemo_descriptions_of_a_video_are_joined_in_file_order(tmp_path: Path) -> None:
    write(tmp_path, "val_data.json", [didemo_row("a.mov", "first."), didemo_row("b.mov", "other"), didemo_row("a.mov", "then  this")])
    assert load_benchmark("didemo", "val", tmp_path).query_texts == ["first. then this", "other"]


def test_didemo_segment_numbers_are_five_seconds_with_inclusive_ends(tmp_path: Path) -> None:
    write(tmp_path, "val_data.json", [didemo_row("a.mov", "x", times=((1, 1), (1, 2), (1, 1), (0, 0)))])
    clip = load_benchmark("didemo", "val", tmp_path).clips[0]
    assert clip.meta["moments"] == [[5 * 0.75, 5 * (1.0 + 1)]]
    assert (clip.start, clip.end) == (0.0, 30.0)


def test_didemo_video_with_a_trailing_dot_on_disk_is_found(tmp_path: Path) -> None:
    write(tmp_path, "val_data.json", [didemo_row("a_1_x.", "x"), didemo_row("b_1_x.3gp", "y")])
    clips = load_benchmark("didemo", "val", tmp_path).clips
    touch(tmp_path / "videos" / "a_1_x.")
    touch(tmp_path / "videos" / "b_1_x.mp4")
    disk = VideoFolder(tmp_path / "videos")
    assert [disk.find(clip) is not None for clip in clips] == [True, True]


# ActivityNet


def test_activitynet_sentences_begin_with_a_blank_and_are_joined_clean(tmp_path: Path) -> None:
    write(tmp_path, "val_1.json", {"v_a": {"duration": 9.0, "timestamps": [[0, 1], [1, 2]], "sentences": ["One.", " Two."]}})
    split = load_benchmark("activitynet", "test", tmp_path)
    assert split.query_texts == ["One. Two."]
    assert split.clips[0].meta["duration"] == 9.0


def test_activitynet_ids_without_an_entry_are_left_out_and_counted(tmp_path: Path) -> None:
    write(tmp_path, "val_1.json", {f"v_{i}": {"sentences": ["x"]} for i in range(5)})
    write(tmp_path, "val_ids.json", [f"v_{i}" for i in range(7)])
    split = load_benchmark("activitynet", "val_1", tmp_path)
    assert len(split.clips) == 5
    assert split.notes == ("2 ids of val_ids.json have no entry in val_1.json and are left out",)


@pytest.mark.parametrize("name", ["v_abc", "abc"])
def test_activitynet_files_are_found_with_and_without_the_v_prefix(tmp_path: Path, name: str) -> None:
    write(tmp_path, "val_1.json", {"v_abc": {"sentences": ["x"]}})
    touch(tmp_path / "videos" / f"{name}.mp4")
    clip = load_benchmark("activitynet", "val_1", tmp_path).clips[0]
    assert VideoFolder(tmp_path / "videos").find(clip) is not None


def test_activitynet_val_and_test_are_val_1_and_the_result_says_so(tmp_path: Path) -> None:
    write(tmp_path, "val_1.json", {"v_abc": {"sentences": ["x"]}})
    assert load_benchmark("activitynet", "test", tmp_path).name == load_benchmark("activitynet", "val", tmp_path).name == "val_1"


# LSMDC

LSMDC_ROW = "3086_UGLY_TRUTH_00.23.23.000-00.23.28.886\t00.23.23.000\t00.23.28.886\t00.23.23.000\t00.23.28.886\t"


def test_lsmdc_has_no_header_and_its_first_line_is_data(tmp_path: Path) -> None:
    write(tmp_path, "LSMDC16_challenge_1000_publictect.csv", LSMDC_ROW + "SOMEONE nods.\n")
    assert load_benchmark("lsmdc", "test", tmp_path).query_texts == ["SOMEONE nods."]


def test_lsmdc_quotes_are_plain_characters_and_swallow_no_lines(tmp_path: Path) -> None:
    second = LSMDC_ROW.replace("28.886", "29.000")
    write(tmp_path, "LSMDC16_challenge_1000_publictect.csv", f'{LSMDC_ROW}"Quoted, he says.\n{second}He says "no\n')
    assert load_benchmark("lsmdc", "test", tmp_path).query_texts == ['"Quoted, he says.', 'He says "no']


def test_lsmdc_folder_is_the_part_before_the_last_underscore(tmp_path: Path) -> None:
    write(tmp_path, "LSMDC16_challenge_1000_publictect.csv", LSMDC_ROW + "x\n")
    clip = load_benchmark("lsmdc", "test", tmp_path).clips[0]
    file = touch(tmp_path / "v" / "3086_UGLY_TRUTH" / "3086_UGLY_TRUTH_00.23.23.000-00.23.28.886.avi")
    place = VideoFolder(tmp_path / "v").find(clip)
    assert clip.meta["film"] == "3086_UGLY_TRUTH"
    assert place is not None and place.path == file


def test_lsmdc_rows_of_another_width_are_named(tmp_path: Path) -> None:
    write(tmp_path, "LSMDC16_annos_val.csv", LSMDC_ROW + "x\n" + "a_b\tc\td\n")
    with pytest.raises(InputError, match="line 2: 3 tab-separated columns instead of 6"):
        load_benchmark("lsmdc", "val", tmp_path)


def test_lsmdc_times_with_dots_are_the_films_and_do_not_cut_the_clip_again(tmp_path: Path) -> None:
    write(tmp_path, "LSMDC16_challenge_1000_publictect.csv", LSMDC_ROW + "x\n")
    clip = load_benchmark("lsmdc", "test", tmp_path).clips[0]
    assert (clip.start, clip.end) == (None, None)
    assert (clip.meta["start_aligned"], clip.meta["end_aligned"]) == ("00.23.23.000", "00.23.28.886")
