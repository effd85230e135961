"""Reading a split, and keeping splits apart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vctool.errors import InputError, UsageProblem
from vctool.training.clips import read_clips, refuse_overlap


def manifest(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return path


def test_captions_are_numbered_once_and_cleaned_of_space(tmp_path: Path) -> None:
    rows = [
        {"path": "a.mp4", "captions": ["a  dog ", "a cat", "a dog"]},
        {"path": "b.mp4", "caption": "a dog", "reversed_captions": ["a god"]},
    ]
    split = read_clips(manifest(tmp_path / "m.jsonl", rows))
    assert split.texts == ("a dog", "a cat", "a god")
    assert [c.captions for c in split.clips] == [(0, 1), (0,)] and split.clips[1].reversed_captions == (2,)


def test_clips_without_a_caption_are_counted_and_left_out(tmp_path: Path) -> None:
    split = read_clips(
        manifest(tmp_path / "m.jsonl", [{"path": "a.mp4", "caption": "x"}, {"path": "b.mp4"}, {"path": "c.mp4", "caption": "  "}])
    )
    assert len(split) == 1 and split.silent == 2


def test_a_limit_takes_the_first_clips(tmp_path: Path) -> None:
    split = read_clips(manifest(tmp_path / "m.jsonl", [{"path": f"{i}.mp4", "caption": "x"} for i in range(5)]), limit=2)
    assert [c.input.id for c in split.clips] == ["0.mp4", "1.mp4"]


@pytest.mark.parametrize(
    ("row", "what"),
    [({"reversed_captions": "x"}, "reversed_captions"), ({"reversed_captions": [1]}, "reversed_captions"), ({"group": [1]}, "group")],
)
def test_a_training_key_of_the_wrong_type_is_named(tmp_path: Path, row: dict[str, Any], what: str) -> None:
    with pytest.raises(InputError, match=what):
        read_clips(manifest(tmp_path / "m.jsonl", [{"path": "a.mp4", "caption": "x", **row}]))


def test_a_manifest_without_captions_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no clip of .* has a caption"):
        read_clips(manifest(tmp_path / "m.jsonl", [{"path": "a.mp4"}]))
    with pytest.raises(InputError, match="is a JSONL manifest"):
        read_clips(tmp_path)


def test_validation_may_not_be_the_training_file_or_a_copy_of_it(tmp_path: Path) -> None:
    rows = [{"path": "a.mp4", "caption": "x"}]
    train = read_clips(manifest(tmp_path / "t.jsonl", rows))
    for name in ("t.jsonl", "copy.jsonl"):
        with pytest.raises(UsageProblem, match=r"data\.validation is data\.train"):
            refuse_overlap(train, read_clips(manifest(tmp_path / name, rows)), None)


def test_the_test_manifest_may_be_neither_split(tmp_path: Path) -> None:
    train = read_clips(manifest(tmp_path / "t.jsonl", [{"path": "a.mp4", "caption": "x"}]))
    validation = read_clips(manifest(tmp_path / "v.jsonl", [{"path": "b.mp4", "caption": "x"}]))
    refuse_overlap(train, validation, tmp_path / "other.jsonl")
    with pytest.raises(UsageProblem, match=r"data\.validation is data\.test"):
        refuse_overlap(train, validation, tmp_path / "v.jsonl")
    with pytest.raises(UsageProblem, match=r"data\.train is data\.test"):
        refuse_overlap(train, validation, tmp_path / "t.jsonl")


def test_one_clip_in_both_splits_is_refused_but_two_pieces_of_a_film_are_not(tmp_path: Path) -> None:
    train = read_clips(
        manifest(tmp_path / "t.jsonl", [{"path": "a.mp4", "start": 0, "end": 5, "caption": "x"}, {"path": "b.mp4", "caption": "y"}])
    )
    refuse_overlap(train, read_clips(manifest(tmp_path / "v.jsonl", [{"path": "a.mp4", "start": 5, "end": 9, "caption": "x"}])), None)
    with pytest.raises(UsageProblem, match=r"1 clips are in data\.train and in data\.validation"):
        refuse_overlap(train, read_clips(manifest(tmp_path / "v.jsonl", [{"path": "b.mp4", "caption": "other"}])), None)
