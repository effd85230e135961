"""The readers on real excerpts of the published files."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from vctool.data import compare_with_published, load_benchmark


def placed(source: Path, folder: Path, name: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return Path(shutil.copy(source, folder / name))


def test_msrvtt_1ka_test_excerpt_reads_under_its_own_name_below_a_common_root(annotations: Path) -> None:
    split = load_benchmark("msrvtt-1ka", "test", annotations)
    assert len(split.clips) == len(split.queries) == 20
    assert split.query_texts[0] == "a person is connecting something to system"
    assert "not comparable" in compare_with_published(split).statement


def test_msrvtt_train_excerpt_has_no_captions_in_the_excerpt_of_the_test_captions(annotations: Path) -> None:
    # The captions excerpt holds ten test videos only: the reader must say that no clip has a caption, not invent a split.
    with pytest.raises(Exception, match="none of the 20 clips has a caption"):
        load_benchmark("msrvtt-1ka", "train", annotations)


def test_msrvtt_full_excerpt_has_twenty_captions_per_video(annotations: Path) -> None:
    split = load_benchmark("msrvtt-full", "test", annotations)
    assert len(split.clips) == 10
    assert len(split.queries) == 200
    assert {len(clip.captions) for clip in split.clips} == {20}


def test_msvd_excerpt_has_about_forty_captions_per_clip(annotations: Path) -> None:
    split = load_benchmark("msvd", "val", annotations)
    assert len(split.clips) == 10
    assert len(split.queries) == sum(len(clip.captions) for clip in split.clips) > 300
    assert split.clips[4].id == "b_BuSVZwq6M_1_9"
    assert split.clips[4].source == "b_BuSVZwq6M"


def test_didemo_excerpt_joins_nineteen_descriptions_into_five_paragraphs(annotations: Path) -> None:
    split = load_benchmark("didemo", "val", annotations)
    assert len(split.clips) == len(split.queries) == 5
    assert sum(len(clip.captions) for clip in split.clips) == 19
    assert all("." not in clip.id for clip in split.clips)


def test_activitynet_excerpt_joins_sentences(annotations: Path) -> None:
    split = load_benchmark("activitynet", "train", annotations)
    assert len(split.clips) == 10
    assert split.queries[0].text.startswith("A young woman is seen standing in a room and leads into her dancing. The girl dances")


def test_vatex_excerpt_reads_as_official_file_and_through_the_hgr_list(annotations: Path, tmp_path: Path) -> None:
    placed(annotations / "vatex" / "vatex_excerpt.json", tmp_path, "vatex_validation_v1.0.json")
    placed(annotations / "vatex" / "list.head2.txt", tmp_path, "test_list.txt")
    official, field = load_benchmark("vatex-official", "val", tmp_path), load_benchmark("vatex", "test", tmp_path)
    assert len(official.queries) == len(field.queries) == 20
    assert set(field.clip_ids) == {"5-xGskbsBgI_000055_000065", "w-YJn8Je4GY_000062_000072"}


def test_lsmdc_format_example_reads(annotations: Path, tmp_path: Path) -> None:
    placed(annotations / "lsmdc" / "LSMDC16_format_example.csv", tmp_path, "LSMDC16_challenge_1000_publictect.csv")
    split = load_benchmark("lsmdc", "test", tmp_path)
    assert split.query_texts == ["SOMEONE opens the door and walks in.", "He nods."]
    assert split.clips[0].stems[0] == "9001_MADE_UP_MOVIE/9001_MADE_UP_MOVIE_00.01.02.345-00.01.06.789"
