"""`vctool index` as a person and a script see it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from commandline import Vctool, expect_line, on_a_terminal
from tinymodel import build_tiny_model, make_audio, make_video

from vctool.store import open_store


@pytest.fixture
def videos(tiny_videos: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_videos, tmp_path / "videos"))


def test_it_ends_with_the_line_to_try_next(vctool: Vctool, videos: Path, tmp_path: Path, tiny_model: Path) -> None:
    output = tmp_path / "my clips.npz"
    done = vctool("index", videos, "-o", output, "--model", tiny_model)
    assert done.code == 0 and done.out == ""
    assert "4 clips (4 new)" in done.err
    assert done.err.splitlines()[-1] == f"try: vctool query \"a dog catching a frisbee\" --index '{output}'"


def test_the_model_is_remembered_for_the_next_run(vctool: Vctool, videos: Path, tmp_path: Path, tiny_model: Path) -> None:
    vctool("index", videos, "-o", tmp_path / "c.npz", "--model", tiny_model)
    done = vctool("index", videos, "-o", tmp_path / "c.npz")
    assert done.code == 0 and "up to date: nothing was written" in done.err
    done = vctool("index", videos, "-o", tmp_path / "new.npz")
    assert done.code == 2 and done.err.startswith("error: --model is needed")


def test_json_is_one_object_on_stdout(vctool: Vctool, videos: Path, tmp_path: Path, tiny_model: Path) -> None:
    (videos / "zero.mp4").write_bytes(b"")
    done = vctool("index", videos, "-o", tmp_path / "c.npz", "--model", tiny_model, "--json", "--quiet")
    report = json.loads(done.out)
    assert done.code == 0 and done.out.count("\n") == 1
    assert (report["schema"], report["clips"], report["indexed"], report["written"]) == (1, 4, 4, True)
    assert report["failed"][0] == {
        "id": "zero.mp4",
        "path": str(videos / "zero.mp4"),
        "reason": report["failed"][0]["reason"],
        "kept": False,
    }


def test_bad_files_are_a_table_at_the_end_and_strict_makes_them_code_4(
    vctool: Vctool, videos: Path, tmp_path: Path, tiny_model: Path
) -> None:
    (videos / "zero.mp4").write_bytes(b"")
    (videos / "text.mp4").write_text("not a video\n" * 99)
    (videos / "cut.mp4").write_bytes((videos / "red.mp4").read_bytes()[:700])
    make_audio(videos / "sound.m4a").rename(videos / "sound.mp4")
    make_video(videos / "one frame.mp4", ["red"], seconds=0.1)
    make_video(videos / "dot.mkv", ["red"], size=(2, 2))
    command = ("index", videos, videos / "missing.mp4", "-o", tmp_path / "c.npz", "--model", tiny_model)
    done = vctool(*command)
    assert done.code == 0
    for name in ("zero.mp4", "text.mp4", "cut.mp4", "sound.mp4", "missing.mp4"):
        assert name in done.err.replace("\n", "")
    assert "5 skipped" in done.err and "6 clips" in done.err
    before = (tmp_path / "c.npz").read_bytes()
    done = vctool(*command, "--strict")
    assert done.code == 4 and "error: 5 clips skipped" in done.err
    assert (tmp_path / "c.npz").read_bytes() == before


def test_a_one_pixel_video_is_a_video(vctool: Vctool, tmp_path: Path, tiny_model: Path) -> None:
    import av
    import numpy as np

    with av.open(str(tmp_path / "dot.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=5)
        stream.width, stream.height, stream.pix_fmt = 1, 1, "bgr0"
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((1, 1, 3), 200, np.uint8), format="rgb24")))
        container.mux(stream.encode())
    done = vctool("index", tmp_path / "dot.mkv", "-o", tmp_path / "c.npz", "--model", tiny_model)
    assert done.code == 0 and len(open_store(tmp_path / "c.npz").clip(0).frame_FD) == 3


def test_nothing_to_index_is_one_line(vctool: Vctool, tmp_path: Path, tiny_model: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "v").mkdir()
    (tmp_path / "v" / "zero.mp4").write_bytes(b"")
    rest = ("-o", tmp_path / "c.npz", "--model", tiny_model, "-q")
    expect_line(vctool("index", tmp_path / "empty", *rest), 1, "no videos in")
    expect_line(vctool("index", str(tmp_path / "*.nothing"), *rest), 1, "nothing matches")
    expect_line(vctool("index", "", *rest), 1, "empty string")
    done = vctool("index", tmp_path / "v", *rest)
    expect_line(done, 1, "not one of 1 clips could be indexed", "zero.mp4: file is empty")
    expect_line(vctool("index", tmp_path / "gone.mp4", *rest), 1, "not one of 1 clips could be indexed", "gone.mp4")
    assert not (tmp_path / "c.npz").exists()
    assert vctool("index", "-o", tmp_path / "c.npz").code == 2


def test_outputs_that_cannot_be_written_are_one_line(vctool: Vctool, videos: Path, tmp_path: Path, tiny_model: Path) -> None:
    expect_line(vctool("index", videos, "-o", tmp_path, "--model", tiny_model), 1, "is a folder")
    expect_line(vctool("index", videos, "-o", tmp_path / "no" / "c.npz", "--model", tiny_model), 1, "does not exist")


def test_a_read_only_folder_is_one_line(vctool: Vctool, videos: Path, tiny_model: Path, read_only: Path) -> None:
    expect_line(vctool("index", videos, "-o", read_only / "c.npz", "--model", tiny_model), 1, "cannot be written to")


def test_a_disk_that_is_full_from_the_start_is_one_line(vctool: Vctool, videos: Path, tiny_model: Path, small_disk: Path) -> None:
    expect_line(vctool("index", videos, "-o", small_disk / "c.npz", "--model", tiny_model), 1, "the disk is full")
    assert list(small_disk.iterdir()) == []


def test_a_disk_that_fills_up_on_the_way_loses_nothing(
    vctool: Vctool, videos: Path, tiny_model: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=10**9, used=0, free=10**9))
    for i in range(4):
        shutil.copy(videos / "change.mp4", videos / f"{i}.mp4")
    output = small_disk / "c.npz"
    assert vctool("index", videos / "red.mp4", "-o", output, "--model", tiny_model).code == 0
    before = output.read_bytes()
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * (os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize - 4096))
    done = vctool("index", videos, "-o", output, "--model", tiny_model)
    expect_line(done, 1, "the disk is full")
    assert output.read_bytes() == before
    ballast.unlink()
    done = vctool("index", videos, "-o", output, "--model", tiny_model)
    assert done.code == 0 and "8 clips" in done.err


def test_two_runs_on_one_store_the_second_says_so_and_nothing_is_lost(
    vctool: Vctool, videos: Path, tmp_path: Path, tiny_model: Path, tiny_videos: Path
) -> None:
    """The first run stops in the middle, with a clip in its journal, while the second one tries."""
    script = (
        "import sys\nfrom vctool.runtime.indexing import index_videos\n"
        "def wait(state):\n"
        "    if state.done == 1:\n"
        "        print('one clip', flush=True); sys.stdin.readline()\n"
        "index_videos([sys.argv[1]], sys.argv[2], sys.argv[3], workers=0, device='cpu', progress=wait)\n"
    )
    more = shutil.copytree(tiny_videos, tmp_path / "more")
    (more / "blue.mp4").rename(more / "other.mp4")
    output = tmp_path / "c.npz"
    command = [sys.executable, "-c", script, str(videos), str(output), str(tiny_model)]
    first = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert first.stdin is not None and first.stdout is not None and first.stdout.readline() == "one clip\n"
    expect_line(vctool("index", more / "other.mp4", "-o", output, "--model", tiny_model), 1, "c.npz", "another")
    first.communicate("go on\n", timeout=60)
    assert first.returncode == 0 and len(open_store(output)) == 4
    assert vctool("index", more / "other.mp4", "-o", output, "--model", tiny_model).code == 0
    store = open_store(output)
    store.verify()
    assert len(store) == 5 and "other.mp4" in store.clip_ids


def test_half_a_store_is_one_line_and_stays(vctool: Vctool, videos: Path, tmp_path: Path, tiny_model: Path, tiny_index: Path) -> None:
    half = tiny_index.read_bytes()[: tiny_index.stat().st_size // 2]
    (tmp_path / "c.npz").write_bytes(half)
    expect_line(vctool("index", videos, "-o", tmp_path / "c.npz", "--model", tiny_model), 1, "c.npz", "incomplete")
    assert (tmp_path / "c.npz").read_bytes() == half
    expect_line(vctool("index", videos, "-o", tmp_path / "c.npz"), 1, "incomplete")


def test_a_store_of_another_model_is_one_line_with_both_fingerprints(
    vctool: Vctool, videos: Path, tmp_path: Path, tiny_index: Path
) -> None:
    shutil.copy(tiny_index, tmp_path / "c.npz")
    other = build_tiny_model(tmp_path / "other", name="other")
    done = vctool("index", videos, "-o", tmp_path / "c.npz", "--model", other)
    expect_line(done, 1, "'tiny'", "'other'", open_store(tiny_index).manifest["model"]["sha256"][:16])
    assert "--rebuild" in done.err
    assert vctool("index", videos, "-o", tmp_path / "c.npz", "--model", other, "--rebuild").code == 0


@pytest.mark.parametrize("name", ["config.json", "preprocess.json", "onnx/frame.onnx", "onnx/temporal.onnx", "checksums.json"])
def test_a_broken_model_directory_is_one_line(vctool: Vctool, videos: Path, tmp_path: Path, tiny_model: Path, name: str) -> None:
    model = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    (model / name).unlink()
    expect_line(vctool("index", videos, "-o", tmp_path / "c.npz", "--model", model), 1, name, "missing")
    if name != "checksums.json":
        (model / name).write_bytes((tiny_model / name).read_bytes()[:-1] + b"?")
        expect_line(vctool("index", videos, "-o", tmp_path / "c.npz", "--model", model), 1, name, "altered")
    expect_line(vctool("index", videos, "-o", tmp_path / "c.npz", "--model", tmp_path / "nowhere"), 1, "does not exist")
    assert not (tmp_path / "c.npz").exists()


def test_unknown_and_missing_decoders_are_one_line(vctool: Vctool, videos: Path, tmp_path: Path, tiny_model: Path) -> None:
    expect_line(vctool("index", videos, "-o", tmp_path / "c.npz", "--model", tiny_model, "--decoder", "vlc"), 2, "vlc")


def test_ctrl_c_commits_and_says_how_to_go_on(videos: Path, tmp_path: Path, tiny_model: Path) -> None:
    for i in range(20):
        shutil.copy(videos / "change.mp4", videos / f"slow-{i}.mp4")  # 0.3 s each: time to be interrupted, however busy the machine
    command = [sys.executable, "-m", "vctool", "index", str(videos), "-o", str(tmp_path / "c.npz")]
    command += ["--model", str(tiny_model), "--workers", "1", "--decoder", "badreader:BadReader"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1] / "video")}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    journal = tmp_path / "c.npz.partial" / "clips.journal"
    for _ in range(6000):
        if journal.exists() and journal.stat().st_size:
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err and "run the same command again" in err
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0 and "from the interrupted run" in done.stderr
    assert len(open_store(tmp_path / "c.npz")) == 24


def test_a_terminal_gets_a_bar_and_a_log_does_not(videos: Path, tmp_path: Path, tiny_model: Path) -> None:
    pexpect = pytest.importorskip("pexpect", reason="pexpect is not installed")
    args = ["index", str(videos), "-o", str(tmp_path / "c.npz"), "--model", str(tiny_model)]
    child = on_a_terminal(*args)
    child.expect("indexing")
    child.expect("4 clips")
    child.expect(pexpect.EOF)
    done = subprocess.run([sys.executable, "-m", "vctool", *args, "--rebuild"], capture_output=True, text=True, timeout=60)
    assert "indexing" not in done.stderr and "\r" not in done.stderr


def test_real_odd_files_are_indexed_or_told(vctool: Vctool, tmp_path: Path, tiny_model: Path, realclips: Path) -> None:
    odd = realclips / "odd"
    if not odd.is_dir():
        pytest.skip("the folder of odd real files is not on this machine")
    done = vctool("index", odd, "-o", tmp_path / "c.npz", "--model", tiny_model, "--json")
    report = json.loads(done.out)
    assert done.code == 0 and report["clips"] + len(report["failed"]) == sum(p.suffix != ".jsonl" and p.is_file() for p in odd.iterdir())
    store = open_store(tmp_path / "c.npz")
    store.verify()
    assert report["damaged"] == [store.clip_ids[i] for i in range(len(store)) if store.clip_meta(i).get("damaged")]
    assert not report["damaged"] or "damaged; what could be decoded is indexed" in done.err
