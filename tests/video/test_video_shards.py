"""Shards: what goes in comes out, for vctool, for tarfile and for the webdataset library."""

from __future__ import annotations

import gzip
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from click.testing import CliRunner
from tinymodel import make_video

from vctool.cli import cli
from vctool.errors import InputError, VideoError
from vctool.video.decode import decode_frames
from vctool.video.files import find_videos
from vctool.video.sample import Sampling
from vctool.video.shards import Extraction, picture_video, write_shards
from vctool.video.tar_member import member_of


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """Three files, one of them a film of two pieces, and one that is not there."""
    for name, colours in (("a.mp4", ["red"]), ("b.mp4", ["green", "blue"]), ("c.mp4", ["cyan"])):
        make_video(tmp_path / name, colours, seconds=1.0, size=(48, 32))
    rows: list[dict[str, Any]] = [
        {"path": "a.mp4", "captions": ["red", "rot für alle"], "group": "g"},
        {"path": "b.mp4", "start": 0, "end": 1, "caption": "green"},
        {"path": "b.mp4", "start": 1, "end": 2, "caption": "blue"},
        {"path": "gone.mp4", "caption": "nothing"},
        {"path": "c.mp4", "caption": "cyan", "id": "sea"},
    ]
    (tmp_path / "train.jsonl").write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    return tmp_path / "train.jsonl"


def test_members_are_read_where_they_lie_and_give_the_pictures_of_the_files(manifest: Path, tmp_path: Path) -> None:
    clips = find_videos([manifest])
    done = write_shards(clips, tmp_path / "shards", "train", per_shard=2)
    assert (done.clips, done.samples, len(done.shards), list(done.failed)) == (4, 3, 2, ["gone.mp4"])
    again = find_videos([done.manifest])
    kept = [clip for clip in clips if clip.id != "gone.mp4"]
    assert [(c.id, c.start, c.end, c.captions, c.meta) for c in again] == [(c.id, c.start, c.end, c.captions, c.meta) for c in kept]
    for old, new in zip(kept, again, strict=True):
        want, got = (decode_frames(c.path, 4, start=c.start, end=c.end) for c in (old, new))
        assert np.array_equal(np.stack(want.frames), np.stack(got.frames)) and np.array_equal(want.times_F, got.times_F)


def test_the_same_clips_make_the_same_bytes(manifest: Path, tmp_path: Path) -> None:
    clips = find_videos([manifest])
    for extraction in (None, Extraction(Sampling(2), 32, workers=1)):
        kind = "files" if extraction is None else "frames"
        one, two = (write_shards(clips, tmp_path / f"{kind}{n}", "t", extraction=extraction) for n in (1, 2))
        assert [p.read_bytes() for p in one.shards] == [p.read_bytes() for p in two.shards]


def test_kept_pictures_are_the_chosen_ones_at_their_own_times(manifest: Path, tmp_path: Path) -> None:
    done = write_shards(find_videos([manifest]), tmp_path / "shards", "train", extraction=Extraction(Sampling(3), 32, "squash", workers=1))
    green, blue = find_videos([done.manifest])[1:3]
    assert (green.start, green.captions, blue.captions) == (None, ("green",), ("blue",))
    found = decode_frames(blue.path, 12)
    assert np.stack(found.frames).shape == (3, 32, 32, 3)
    assert np.abs(np.stack(found.frames).mean(axis=(1, 2)) - [20, 20, 230]).max() < 16  # JPEG and H.264 on the way
    source = decode_frames(tmp_path / "b.mp4", 3, start=1.0, end=2.0)
    assert np.allclose(found.times_F, source.times_F - source.times_F[0], atol=1e-3)


def test_pictures_keep_uneven_times() -> None:
    frames, times = np.zeros((3, 32, 48, 3), np.uint8), np.array([0.0, 0.25, 7.125])
    frames[1] = 128
    content = picture_video(frames, times)
    with av.open(io.BytesIO(content)) as container:
        shown = [(float(picture.time), picture.to_ndarray(format="rgb24").mean()) for picture in container.decode(video=0)]
    assert [t for t, _ in shown] == pytest.approx(times.tolist(), abs=1e-3)
    assert [round(v) for _, v in shown] == pytest.approx([0, 128, 0], abs=2)


def test_the_webdataset_library_reads_them(manifest: Path, tmp_path: Path) -> None:
    pytest.importorskip("webdataset", reason="the webdataset library is not installed")
    done = write_shards(find_videos([manifest]), tmp_path / "shards", "train", per_shard=2)
    # A process of its own: the library starts threads and changes global handlers.
    code = (
        "import json, sys, webdataset\n"
        "found = [(s['__key__'], len(s['mp4']), json.loads(s['json']), s['txt'].decode()) "
        "for s in webdataset.WebDataset(sys.argv[1:], shardshuffle=False)]\n"
        "print(json.dumps(found))"
    )
    out = subprocess.run([sys.executable, "-c", code, *map(str, done.shards)], capture_output=True, text=True, check=True).stdout
    found = json.loads(out)
    assert [key for key, *_ in found] == ["00000000", "00000001", "00000002"]
    assert found[0][1] == (tmp_path / "a.mp4").stat().st_size
    assert [clip["captions"] for clip in found[1][2]["clips"]] == [["green"], ["blue"]]
    assert found[0][3] == "red"


def test_a_member_that_is_not_there_a_compressed_tar_and_a_missing_tar_are_one_line(manifest: Path, tmp_path: Path) -> None:
    done = write_shards(find_videos([manifest]), tmp_path / "shards", "train")
    with pytest.raises(VideoError, match=r"has no member 'x\.mp4'"):
        decode_frames(done.shards[0] / "x.mp4", 2)
    (tmp_path / "z.tar").write_bytes(gzip.compress(done.shards[0].read_bytes()))
    with pytest.raises(VideoError, match="is compressed"):
        decode_frames(tmp_path / "z.tar" / "00000000.mp4", 2)
    with pytest.raises(VideoError, match="No such file"):
        decode_frames(tmp_path / "none.tar" / "00000000.mp4", 2)
    folder = tmp_path / "folder.tar"
    folder.mkdir()
    assert member_of(folder / "a.mp4") is None  # a folder may be called so


def test_shards_are_not_written_over_and_nothing_readable_leaves_nothing(manifest: Path, tmp_path: Path) -> None:
    clips = find_videos([manifest])
    write_shards(clips, tmp_path / "shards", "train")
    with pytest.raises(InputError, match="is there already"):
        write_shards(clips, tmp_path / "shards", "train")
    with pytest.raises(InputError, match=r"no clip could be read; the first: gone\.mp4"):
        write_shards([clip for clip in clips if clip.id == "gone.mp4"], tmp_path / "none", "train")
    assert not list((tmp_path / "none").glob("*"))


def test_the_command_says_what_it_wrote_and_what_it_left_out(manifest: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["data", "shard", str(manifest), "-o", str(tmp_path / "out"), "--frames", "2", "--side", "32"])
    assert result.exit_code == 0, result.output
    assert "4 clips in 1 shards" in result.output and "left out: gone.mp4" in result.output
    told = CliRunner().invoke(cli, ["data", "shard", str(manifest), "-o", str(tmp_path / "more"), "--json"])
    assert json.loads(told.stdout)["samples"] == 3
