"""`vctool analyze …` on the tiny model and coloured videos: folders with numbers, a page and plots; every bad input is one line."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pagecheck import Page
from PIL import Image
from tinymodel import COLOURS, build_tiny_model, make_video

from vctool.runtime.indexing import index_videos

Vctool = Callable[..., Any]
QUICK = ("--workers", 0, "--resamples", 50, "--quiet", "--json")


@pytest.fixture(scope="module")
def expanding(coloured: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of a model that counts its pads."""
    folder = tmp_path_factory.mktemp("expanding")
    index_videos([coloured / "captions.jsonl"], folder / "clips.npz", build_tiny_model(folder / "model", expand="on"), workers=0)
    return folder / "clips.npz"


def analysed(vctool: Vctool, name: str, index: Path, data: Path, out: Path, *more: object) -> tuple[dict[str, Any], Page]:
    ran = vctool("analyze", name, "--index", index, "--data", data, "--report", out, *QUICK, *more)
    assert ran.code == 0, ran.err
    document = json.loads((out / "analysis.json").read_text())
    printed = ran.json()
    assert printed["numbers"] == document["numbers"]
    assert (document["kind"], document["analysis"]) == ("vctool analysis", name)
    assert len(document["subject"]["model"]["sha256"]) == len(document["subject"]["store"]["sha256"]) == 64
    pictures = sorted(out.glob("*.png"))
    assert all(Image.open(io.BytesIO(one.read_bytes())).size == (1360, 680) for one in pictures)
    page = Page((out / "report.html").read_text(encoding="utf-8"))
    assert page.tags.count("svg") == len(pictures) > 0
    assert {"What it shows", "How it was made", "Made with"} <= set(page.texts)
    assert set(document["findings"]) <= set(page.texts)
    return document["numbers"], page


def test_length_scores_pads_on_and_off_on_the_same_store(vctool: Vctool, expanding: Path, coloured: Path, tmp_path: Path) -> None:
    numbers, _ = analysed(vctool, "length", expanding, coloured / "captions.jsonl", tmp_path / "out")
    # "red" has 3 tokens, "a red video" 5; the tiny model's pads look where no frame is, the same against every clip.
    assert [(one["first"], one["last"], one["queries"]) for one in numbers["bins"]] == [(3, 5, 12)]
    assert numbers["r1"] == {"on": 100.0, "off": 100.0}
    assert numbers["gain"] == 0.0
    assert numbers["turning_point"]["limit_tokens"] == 0
    assert numbers["turning_point"]["resamples_where_pads_never_help"] == 1.0


def test_motion_puts_still_and_changing_clips_into_their_classes(vctool: Vctool, tiny_model: Path, tmp_path: Path) -> None:
    rows = []
    for name, colours in (("red", ["red"]), ("green", ["green"]), ("blinking", ["blue", "yellow"] * 3)):
        make_video(tmp_path / f"{name}.mp4", colours, seconds=0.2)
        rows.append({"video": f"{name}.mp4", "caption": colours[0]})
    (tmp_path / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    index_videos([tmp_path / "captions.jsonl"], tmp_path / "clips.npz", tiny_model, workers=0)
    numbers, page = analysed(vctool, "motion", tmp_path / "clips.npz", tmp_path / "captions.jsonl", tmp_path / "out")
    assert {one: clip["class"] for one, clip in numbers["clips"].items()} == {
        "red.mp4": "static",
        "green.mp4": "static",
        "blinking.mp4": "high",
    }
    assert [(row["class"], row["clips"], row["queries"]) for row in numbers["classes"]] == [
        ("static", 2, 2),
        ("little", 0, 0),
        ("high", 1, 1),
    ]
    assert "No query asks for a clip of class little: other thresholds, or other data, would be needed." in page.texts
    assert "not by optical flow" in page.text


def test_branches_that_agree_have_no_examples(vctool: Vctool, coloured_index: Path, coloured: Path, tmp_path: Path) -> None:
    numbers, page = analysed(vctool, "branches", coloured_index, coloured / "captions.jsonl", tmp_path / "out")
    first = numbers["found"]["at_1"]
    assert [first[key]["percent"] for key in ("both", "only_f", "only_v", "neither", "fv")] == [100.0, 0.0, 0.0, 0.0, 100.0]
    assert numbers["examples"] == {"f": [], "v": []}
    assert "Found by v and missed by f" in page.texts


def test_a_clip_that_only_one_branch_finds_is_shown(
    vctool: Vctool, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One red frame is all that f needs. v mixes half of the clip's mean colour in: cosine 0.94 to red, where crimson has 0.95.
    monkeypatch.setitem(COLOURS, "crimson", (230, 20, 80))
    make_video(tmp_path / "flash.mp4", ["red", "green", "green", "green"], seconds=0.1)
    make_video(tmp_path / "crimson.mp4", ["crimson"], seconds=0.4)
    rows = [{"video": "flash.mp4", "caption": "red"}, {"video": "crimson.mp4", "caption": "green"}]
    (tmp_path / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    index_videos([tmp_path / "captions.jsonl"], tmp_path / "clips.npz", tiny_model, workers=0)
    numbers, page = analysed(vctool, "branches", tmp_path / "clips.npz", tmp_path / "captions.jsonl", tmp_path / "out")
    first = numbers["found"]["at_1"]
    assert [first[key]["queries"] for key in ("both", "only_f", "only_v", "neither", "either")] == [0, 1, 0, 1, 1]
    (case,) = numbers["examples"]["f"]
    assert (case["right_clip"], case["rank_f"], case["rank_v"], case["above_on_v"]) == ("flash.mp4", 1.0, 2.0, ["crimson.mp4"])
    assert len(page.images) == 2


def test_the_failure_gallery_names_the_words_that_lifted_the_wrong_clip(
    vctool: Vctool, coloured_index: Path, coloured: Path, tmp_path: Path
) -> None:
    rows = [{"video": str(coloured / "red.mp4"), "id": "red.mp4", "caption": "a green video"}]
    rows.append({"video": str(coloured / "green.mp4"), "id": "green.mp4", "caption": "green"})
    (tmp_path / "wrong.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    numbers, page = analysed(vctool, "failures", coloured_index, tmp_path / "wrong.jsonl", tmp_path / "out", "--count", 5)
    (worst,) = numbers["worst"]
    assert (worst["text"], worst["rank"], worst["above"][0]["clip"]) == ("a green video", 2.0, "green.mp4")
    assert max(worst["words"], key=lambda one: one["gain"])["word"] == "green"
    # What the words add differs by exactly what the scores differ by.
    assert sum(one["gain"] for one in worst["words"]) == pytest.approx(worst["above"][0]["score"] - worst["right"]["score"], abs=1e-5)
    assert numbers["wrongly_first_most_often"] == [{"clip": "green.mp4", "queries": 1}]
    assert len(page.images) == 2


def test_pads_without_a_pytorch_model_say_that_similarity_is_not_attention(
    vctool: Vctool, expanding: Path, coloured: Path, tmp_path: Path
) -> None:
    (tmp_path / "synonyms.txt").write_text("red, magenta\n")
    numbers, page = analysed(
        vctool, "pads", expanding, coloured / "captions.jsonl", tmp_path / "out", "--synonyms", tmp_path / "synonyms.txt", "--clusters", 3
    )
    assert numbers["attention"] is None
    assert "Attention could not be read" in page.text
    assert "similarity, not attention" in page.text or "No attention" in page.text
    # The tiny model's pads are one and the same vector.
    assert [one["pads"] for one in numbers["clusters"]] == [6 * 9 + 6 * 7]
    assert numbers["explicit_expansion"]["queries"] == 4  # red and magenta, two captions each
    lines = {one["tokens"]: one for one in numbers["explicit_expansion"]["lines"]}
    assert set(lines) == {"words", "pads", "synonyms", "pads and synonyms", "another caption"}
    assert lines["words"]["r1"] == 100.0
    assert lines["synonyms"]["tokens_per_query"] == lines["words"]["tokens_per_query"] + 1


def test_a_model_on_videos_is_indexed_first(vctool: Vctool, tiny_model: Path, coloured: Path, tmp_path: Path) -> None:
    args = ("analyze", "failures", tiny_model, "--data", coloured / "captions.jsonl", "--keep", tmp_path / "kept.npz")
    ran = vctool(*args, "--workers", 0, "--resamples", 10)
    assert ran.code == 0
    assert "No query failed" in ran.out
    assert (tmp_path / "kept.npz").is_file()


@pytest.mark.parametrize(
    ("name", "model", "code", "message"),
    [
        ("length", {"policy": "pooled"}, 2, "it has no pads"),
        ("pads", {"policy": "pooled"}, 2, "it has no pads"),
        ("branches", {"interaction": "f"}, 2, "has only branch f"),
    ],
)
def test_models_that_have_nothing_to_analyse_are_refused(
    vctool: Vctool, coloured: Path, tmp_path: Path, name: str, model: dict[str, str], code: int, message: str
) -> None:
    folder = build_tiny_model(tmp_path / "model", **model)  # type: ignore[arg-type]
    index_videos([coloured / "captions.jsonl"], tmp_path / "clips.npz", folder, workers=0)
    ran = vctool("analyze", name, "--index", tmp_path / "clips.npz", "--data", coloured / "captions.jsonl", *QUICK)
    assert (ran.code, message in ran.err) == (code, True), ran.err


def test_bad_input_is_one_clear_line(vctool: Vctool, coloured_index: Path, coloured: Path, tmp_path: Path) -> None:
    data, index = coloured / "captions.jsonl", coloured_index
    bare = tmp_path / "bare.jsonl"
    bare.write_text(json.dumps({"video": str(coloured / "red.mp4")}) + "\n")
    other = build_tiny_model(tmp_path / "other", name="other")
    cases: list[tuple[list[object], int, str]] = [
        (["length", "--data", data], 2, "what should be analysed?"),
        (["length", "--index", index, "--data", bare], 1, "none of the 1 clips has a caption"),
        (["length", other, "--index", index, "--data", data], 1, "was made with model 'tiny'"),
        (["length", "--index", index, "--data", data, "--keep", tmp_path / "k.npz"], 2, "--keep has no place beside --index"),
        (["length", "--index", index, "--data", data, "--level", 2], 2, "must lie between 0 and 1"),
        (["motion", "--index", index, "--data", data, "--little", 0.5, "--high", 0.1], 2, "thresholds must rise"),
        (["pads", "--index", index, "--data", data, "--synonyms", tmp_path / "none.txt"], 1, "none.txt"),
        (["failures", "--index", index, "--data", data, "--report", coloured / "red.mp4"], 1, "the report cannot be written"),
    ]
    for args, code, message in cases:
        ran = vctool("analyze", *args)
        assert (ran.code, message in ran.err) == (code, True), (args, ran.err)


def test_motion_and_galleries_without_videos(vctool: Vctool, tiny_model: Path, coloured: Path, tmp_path: Path) -> None:
    shutil.copytree(coloured, tmp_path / "videos")
    data = tmp_path / "videos" / "captions.jsonl"
    index_videos([data], tmp_path / "clips.npz", tiny_model, workers=0)
    for video in (tmp_path / "videos").glob("*.mp4"):
        video.unlink()
    ran = vctool("analyze", "motion", "--index", tmp_path / "clips.npz", "--data", data, *QUICK)
    assert ran.code == 1
    assert "none of them can be read: the video is not on this machine" in ran.err
    found = vctool("analyze", "motion", "--index", tmp_path / "clips.npz", "--data", data, "--videos", coloured, *QUICK)
    assert found.json()["numbers"]["clips_measured"] == 6
    _, page = analysed(vctool, "failures", tmp_path / "clips.npz", data, tmp_path / "out")
    assert not page.images
