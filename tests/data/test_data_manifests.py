"""A benchmark written as training manifests, from the annotation formats their owners publish."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from vctool.cli import cli
from vctool.cli.command import exit_code_of
from vctool.data import VideoFolder, build_split, manifest_names, write_manifest
from vctool.data.records import Clip
from vctool.errors import InputError
from vctool.video.manifest import read_manifest


def videos(folder: Path, *names: str) -> VideoFolder:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"")
    return VideoFolder(folder)


def test_a_manifest_holds_what_is_on_disk_with_its_captions_and_pieces(tmp_path: Path) -> None:
    clips = [
        Clip("a", ("one", "two", "one"), stems=("a",)),
        Clip("film#2-5", ("a piece",), stems=("x",), source="film", source_span=(2.0, 5.0)),
        Clip("gone", ("not here",), stems=("gone",)),
        Clip("bare", (), stems=("bare",)),
    ]
    folder = videos(tmp_path / "videos", "a.webm", "film.mkv", "bare.mp4")
    written = write_manifest(build_split("b", "train", "all", clips), folder, tmp_path / "deep" / "train.jsonl")
    assert (written.clips, written.captions, written.missing, written.silent) == (2, 3, ("gone",), 1)
    first, second = read_manifest(written.path)
    assert (first.path.name, first.captions, first.start) == ("a.webm", ("one", "two"), None)
    assert (second.id, second.path.name, second.start, second.end) == ("film#2-5", "film.mkv", 2.0, 5.0)


def test_a_paragraph_benchmark_has_one_caption_a_clip(tmp_path: Path) -> None:
    split = build_split("didemo", "train", "paragraph", [Clip("a", ("first.", "then."), stems=("a",))])
    written = write_manifest(split, videos(tmp_path / "videos", "a.mp4"), tmp_path / "train.jsonl")
    assert json.loads(written.path.read_text())["captions"] == ["first. then."]


def test_without_a_single_video_nothing_is_written(tmp_path: Path) -> None:
    split = build_split("b", "train", "all", [Clip("a", ("one",), stems=("a",))])
    with pytest.raises(InputError, match="none of its 1 videos was found"):
        write_manifest(split, videos(tmp_path / "videos", "other.mp4"), tmp_path / "train.jsonl")
    assert not (tmp_path / "train.jsonl").exists()


def test_the_split_that_is_tested_on_is_never_the_one_that_chooses() -> None:
    assert manifest_names(("train", "val", "test"), "test") == {"train": "train", "val": "validation", "test": "test"}
    assert manifest_names(("train", "test"), "test") == {"train": "train", "test": "test"}
    # ActivityNet's val_2 has the videos of val_1, which is what the field tests on.
    assert manifest_names(("train", "val_1", "val_2"), "val_1") == {"train": "train", "val_1": "test"}


def msrvtt(folder: Path) -> None:
    folder.mkdir()
    captions = {"video0": "a dog", "video1": "a cat", "video2": "a cow"}
    sentences = [{"caption": f"{text} {n}", "video_id": one, "sen_id": n} for n, (one, text) in enumerate(captions.items())]
    info = [{"video_id": one, "split": "train", "id": n, "category": 0, "start time": 0, "end time": 1} for n, one in enumerate(captions)]
    (folder / "MSRVTT_data.json").write_text(json.dumps({"info": {}, "videos": info, "sentences": sentences}))
    (folder / "MSRVTT_train.9k.csv").write_text("video_id\nvideo0\nvideo1\n")
    (folder / "MSRVTT_JSFUSION_test.csv").write_text("key,vid_key,video_id,sentence\nret0,msr2,video2,a cow 2\n")


def test_the_command_writes_every_split_and_counts_what_is_missing(tmp_path: Path) -> None:
    msrvtt(tmp_path / "msrvtt")
    videos(tmp_path / "videos", "video0.mp4", "video2.mp4")
    told = ["--annotations", tmp_path / "msrvtt", "--videos", tmp_path / "videos", "-o", tmp_path / "out"]
    result = CliRunner().invoke(cli, ["data", "manifest", "msrvtt-9k", *map(str, told)])
    assert result.exit_code == 0, result.output
    assert "train, 1 clips, 1 captions; 1 videos are missing, video1 first" in result.output
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["test.jsonl", "train.jsonl"]


def test_an_unknown_benchmark_names_the_nearest(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    told = ["data", "manifest", "msrvt-9k", "--annotations", str(tmp_path), "--videos", str(tmp_path), "-o", str(tmp_path / "o")]
    assert exit_code_of(lambda: cli.main(told, standalone_mode=False)) == 2
    assert "msrvtt-9k" in capfd.readouterr().err
