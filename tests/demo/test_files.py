"""Clips as files: H.264 that reads back, the manifest, the command, the missing font, the bundle."""

from __future__ import annotations

import json
from pathlib import Path

import av
import numpy as np
import pytest
from click.testing import CliRunner

from vctool.demo import sprites
from vctool.demo.bundle_clips import CLIPS, bundled_specs
from vctool.demo.clip import frames
from vctool.demo.encode import write_video, write_world
from vctool.demo.world import World, main, split_of
from vctool.errors import InputError


def _read(path: Path) -> tuple[np.ndarray, list[float]]:  # type: ignore[type-arg]
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert stream.average_rate == 12
        pictures = list(container.decode(stream))
    return np.stack([picture.to_ndarray(format="rgb24") for picture in pictures]), [float(picture.time) for picture in pictures]


@pytest.mark.usefixtures("font")
def test_a_written_clip_reads_back_frame_by_frame(tmp_path: Path) -> None:
    spec = World().clip_specs("test", 1, 0)[0]
    write_world(tmp_path, [spec])
    shown, times = _read(tmp_path / f"{spec.id}.mp4")
    expected = frames(spec)
    assert shown.shape == expected.shape
    np.testing.assert_allclose(times, np.arange(24) / 12, atol=1e-6)
    assert np.abs(shown.astype(int) - expected.astype(int)).mean() < 6
    assert (tmp_path / f"{spec.id}.mp4").stat().st_size < 30_000


@pytest.mark.parametrize("width", [32, 80, 128, 144])
def test_the_same_frames_make_the_same_bytes(tmp_path: Path, width: int) -> None:
    generator = np.random.default_rng(0)
    pictures = generator.integers(0, 255, (5, 64, width, 3), dtype=np.uint8)
    written = set()
    for _ in range(6):
        left_in_memory = [generator.bytes(int(size)) for size in generator.integers(1, 400_000, 20)]  # an encoder that reads it is caught
        write_video(tmp_path / "clip.mp4", pictures)
        written.add((tmp_path / "clip.mp4").read_bytes())
        del left_in_memory
    assert len(written) == 1


def test_an_odd_size_and_an_unwritable_place_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="even width"):
        write_video(tmp_path / "x.mp4", np.zeros((2, 33, 32, 3), np.uint8))
    with pytest.raises(InputError, match="cannot be written"):
        write_video(tmp_path / "none" / "x.mp4", np.zeros((2, 32, 32, 3), np.uint8))


@pytest.mark.usefixtures("font")
def test_the_command_writes_clips_and_a_manifest(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, [str(tmp_path / "w"), "--count", "2", "--split", "val", "--seed", "3", "--twins", "--size", "64"])
    assert done.exit_code == 0, done.output
    rows = [json.loads(line) for line in (tmp_path / "w" / "manifest.jsonl").read_text().splitlines()]
    assert len(rows) == 4
    assert {row["split"] for row in rows} == {"val"}
    for row in rows:
        assert (tmp_path / "w" / row["path"]).is_file()
        assert len(row["captions"]) == 5
        assert row["twin"] in {other["id"] for other in rows}


def test_a_missing_font_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(sprites.FONT_VARIABLE, raising=False)
    monkeypatch.setattr(sprites, "FONT_FOLDERS", ("/nowhere",))
    with pytest.raises(InputError, match="apt-get install fonts-noto-color-emoji"):
        sprites.find_font()


def test_a_wrong_font_variable_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(sprites.FONT_VARIABLE, str(tmp_path / "absent.ttf"))
    with pytest.raises(InputError, match=r"VCTOOL_EMOJI_FONT names .*absent\.ttf"):
        sprites.find_font()


def test_a_file_that_is_no_font_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "bad.ttf").write_bytes(b"not a font")
    monkeypatch.setenv(sprites.FONT_VARIABLE, str(tmp_path / "bad.ttf"))
    sprites.master.cache_clear()
    with pytest.raises(InputError, match="cannot be used as the colour emoji font"):
        sprites.master("dog")


def _bundle() -> list[dict[str, object]]:
    return [json.loads(line) for line in (CLIPS / "captions.jsonl").read_text(encoding="utf-8").splitlines()]


def test_the_bundle_is_complete_and_small() -> None:
    rows = _bundle()
    files = {path.name for path in CLIPS.glob("*.mp4")}
    assert {row["path"] for row in rows} == files
    assert 50 <= len(files) <= 80
    assert sum(path.stat().st_size for path in CLIPS.glob("*.mp4")) < 2_000_000
    wanted = {"dog-catches-frisbee", "dog-throws-frisbee", "cat-chases-dog", "dog-chases-cat", "rocket-rises", "rocket-falls"}
    assert wanted | {"first-apple-then-banana", "first-banana-then-apple"} <= {row["id"] for row in rows}


def test_bundled_clips_decode_to_two_seconds() -> None:
    for row in _bundle()[::9]:
        shown, times = _read(CLIPS / str(row["path"]))
        assert shown.shape == (24, 128, 128, 3)
        assert times[0] == 0.0


def test_bundled_clips_are_of_the_test_split_and_twins_point_at_each_other() -> None:
    rows = {str(row["id"]): row for row in _bundle()}
    for row in rows.values():
        assert row["split"] == "test"
        if row["twin"] is not None:
            assert rows[str(row["twin"])]["twin"] == row["id"]
            assert not set(rows[str(row["twin"])]["captions"]) & set(row["captions"])  # type: ignore[call-overload]


def test_the_bundle_is_what_its_script_would_write() -> None:
    rows = {row["id"]: row for row in _bundle()}
    specs = bundled_specs()
    assert [spec.id for spec in specs] == list(rows)
    for spec in specs:
        assert list(spec.captions) == rows[spec.id]["captions"]
        assert split_of(spec.course, spec.objects) == "test"
