"""The HTML report: one page that needs nothing else, says what JSON says, and obeys nobody's captions."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pagecheck import Page

Vctool = Callable[..., Any]
HOSTILE = ['<script>alert("x")</script>', "\"onmouseover='alert(1)", "a & b < c\u202e", "]]></style><img src=x onerror=alert(1)>"]


@pytest.fixture
def swapped(coloured: Path, coloured_index: Path, tmp_path: Path) -> Path:
    """Captions of which two ask for the wrong clip: red for the green one, and the other way round."""
    rows = [json.loads(line) for line in (coloured / "captions.jsonl").read_text().splitlines()]
    rows[0]["captions"], rows[1]["captions"] = rows[1]["captions"], rows[0]["captions"]
    data = tmp_path / "swapped.jsonl"
    data.write_text("".join(json.dumps(row | {"video": str(coloured / row["video"]), "id": row["video"]}) + "\n" for row in rows))
    return data


def evaluated(vctool: Vctool, index: Path, data: Path, out: Path, *more: object) -> tuple[dict[str, Any], Page]:
    ran = vctool("evaluate", "--index", index, "--data", data, "--report", out, "--workers", 0, "--resamples", 50, *more)
    assert ran.code == 0
    return json.loads((out / "result.json").read_text()), Page((out / "report.html").read_text(encoding="utf-8"))


def test_the_page_holds_tables_intervals_plots_and_how_it_was_made(
    vctool: Vctool, swapped: Path, coloured_index: Path, tmp_path: Path
) -> None:
    result, page = evaluated(vctool, coloured_index, swapped, tmp_path / "out")
    for heading in ("Protocol", "Metrics", "Plots", "Intervals", "Worst queries", "Made with"):
        assert heading in page.texts
    assert page.tags.count("svg") == 2
    assert page.tags.count("table") == 4  # three tasks and the intervals
    assert f"{result['tasks']['t2v']['fv']['R@1']:.1f}" in page.texts
    said = page.text
    for needed in (
        result["subject"]["model"]["sha256"],
        result["subject"]["store"]["sha256"],
        result["protocol"]["ids_sha256"],
        result["environment"]["versions"]["vctool"],
        result["environment"]["hardware"]["processor"],
        result["environment"]["command"],
        "seed 0",
    ):
        assert needed in said


def test_the_gallery_shows_the_right_clip_and_what_was_ranked_above_it(
    vctool: Vctool, swapped: Path, coloured_index: Path, tmp_path: Path
) -> None:
    result, page = evaluated(vctool, coloured_index, swapped, tmp_path / "out")
    worst = result["worst"]
    assert {one["id"] for one in worst} == {"red.mp4#0", "red.mp4#1", "green.mp4#0", "green.mp4#1"}
    for one in worst:
        # The tiny model finds the clip whose colour is named: the one that the caption does not belong to.
        assert one["above"][0]["clip"] == {"red.mp4": "green.mp4", "green.mp4": "red.mp4"}[one["right"]["clip"]]
        assert one["above"][0]["score"] > one["right"]["score"]
    assert len(page.images) == sum(1 + len(one["above"]) for one in worst)
    assert "5 frames of red.mp4 at 0.0, 0.1, 0.2, 0.3, 0.4 seconds" in {image["alt"] for image in page.images}


def test_gallery_0_shows_none_and_a_perfect_result_says_so(
    vctool: Vctool, coloured: Path, swapped: Path, coloured_index: Path, tmp_path: Path
) -> None:
    result, page = evaluated(vctool, coloured_index, swapped, tmp_path / "none", "--gallery", 0)
    assert not page.images
    assert result["worst"] == []
    result, page = evaluated(vctool, coloured_index, coloured / "captions.jsonl", tmp_path / "perfect")
    assert result["worst"] == []
    assert "Worst queries" not in page.texts


def test_a_gallery_without_its_videos_says_why(vctool: Vctool, tiny_model: Path, coloured: Path, tmp_path: Path) -> None:
    from vctool.runtime.indexing import index_videos

    videos = tmp_path / "videos"
    shutil.copytree(coloured, videos)
    index_videos([videos / "captions.jsonl"], tmp_path / "clips.npz", tiny_model, workers=0)
    (videos / "red.mp4").write_bytes(b"")
    (videos / "green.mp4").unlink()
    data = tmp_path / "swapped.jsonl"
    rows = [{"video": "red.mp4", "id": "red.mp4", "caption": "green"}, {"video": "green.mp4", "id": "green.mp4", "caption": "red"}]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    _, page = evaluated(vctool, tmp_path / "clips.npz", data, tmp_path / "out")
    assert not page.images
    assert "the video cannot be shown" in page.text
    assert "the video is not on this machine" in page.text


def test_a_bare_matrix_has_a_page_too(vctool: Vctool, tmp_path: Path) -> None:
    sims = np.eye(4, dtype=np.float32)
    sims[3] = [0.9, 0, 0, -np.inf]
    np.save(tmp_path / "s.npy", sims)
    assert vctool("evaluate", "--sims", tmp_path / "s.npy", "--report", tmp_path / "out", "--resamples", 20).code == 0
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert [(one["id"], one["right"]["score"]) for one in result["worst"]] == [("3", None)]
    page = Page((tmp_path / "out" / "report.html").read_text())
    assert "Without pictures: the result names no video files." in page.texts


def test_hostile_captions_and_ids_stay_text(vctool: Vctool, tmp_path: Path) -> None:
    sims = np.fliplr(np.eye(4)).astype(np.float32)
    np.save(tmp_path / "s.npy", sims)
    ids = tmp_path / "ids.txt"
    ids.write_text("".join(f"{one}\n" for one in HOSTILE), encoding="utf-8")
    args = ["--sims", tmp_path / "s.npy", "--query-ids", ids, "--clip-ids", ids, "--report", tmp_path / "out", "--resamples", 20]
    assert vctool("evaluate", *args).code == 0
    page = Page((tmp_path / "out" / "report.html").read_text(encoding="utf-8"))  # refuses script, handlers and unknown tags
    assert f"“{HOSTILE[0]}”" in page.texts
    assert any(HOSTILE[3] in text for text in page.texts)
    assert "\u202e" not in page.text


def test_postprocessing_stands_apart_on_the_page(vctool: Vctool, tmp_path: Path) -> None:
    np.save(tmp_path / "s.npy", np.random.default_rng(0).normal(size=(8, 8)).astype(np.float32))
    assert vctool("evaluate", "--sims", tmp_path / "s.npy", "--post", "dsl", "--report", tmp_path / "out", "--resamples", 0).code == 0
    page = Page((tmp_path / "out" / "report.html").read_text())
    assert "With post-processing: not comparable with the metrics above" in page.texts
    assert "NOT usable in live search" in page.text
    assert "Intervals" not in page.texts


def test_a_folder_that_cannot_be_written_is_one_clear_line(vctool: Vctool, tmp_path: Path) -> None:
    np.save(tmp_path / "s.npy", np.eye(3, dtype=np.float32))
    (tmp_path / "file").write_text("")
    ran = vctool("evaluate", "--sims", tmp_path / "s.npy", "--report", tmp_path / "file" / "out", "--resamples", 0)
    assert ran.code == 1
    assert "the report cannot be written" in ran.err


@pytest.mark.slow
def test_a_real_browser_shows_the_page_and_runs_nothing_of_it(vctool: Vctool, tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium on this machine")
    np.save(tmp_path / "s.npy", np.fliplr(np.eye(4)).astype(np.float32))
    ids = tmp_path / "ids.txt"
    ids.write_text("".join(f"{one}\n" for one in HOSTILE), encoding="utf-8")
    args = ["--query-ids", ids, "--clip-ids", ids, "--report", tmp_path / "out", "--resamples", 20]
    assert vctool("evaluate", "--sims", tmp_path / "s.npy", *args).code == 0
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr"]
    ran = subprocess.run(
        [browser, *options, "--dump-dom", (tmp_path / "out" / "report.html").as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    dom = ran.stdout
    assert "<script" not in dom
    assert " onerror=" not in dom.replace("&lt;img src=x onerror=", "")
    assert dom.count("<svg") == 2
    assert "CONSOLE" not in ran.stderr  # a blocked or failed fetch, or a style that cannot be read, would be told here
