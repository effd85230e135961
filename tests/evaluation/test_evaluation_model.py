"""`vctool evaluate` of a model directory on videos and of a store with queries."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tinymodel import build_tiny_model

from vctool.data import load_split
from vctool.evaluation.evaluate import Bank, Settings
from vctool.evaluation.evaluate_model import evaluate_store, match_clips
from vctool.evaluation.matrices import scored_store
from vctool.metrics import evaluate_ranking
from vctool.runtime.model import load_model
from vctool.scoring import scores
from vctool.store import open_store

Vctool = Callable[..., Any]


def test_a_model_on_videos_finds_every_colour_on_all_three_branches(vctool: Vctool, tiny_model: Path, coloured: Path) -> None:
    ran = vctool("evaluate", tiny_model, "--data", coloured / "captions.jsonl", "--workers", 0, "--json", "--resamples", 50)
    assert ran.code == 0
    found = ran.json()
    assert list(found["tasks"]["t2v"]) == ["f", "v", "fv"]
    assert [found["tasks"]["t2v"][branch]["R@1"] for branch in ("f", "v", "fv")] == [100.0] * 3
    assert found["primary"] == "fv"
    assert found["protocol"]["frames"] == 4
    assert found["protocol"]["captions"] == "every caption is a query"
    assert found["subject"]["model"]["sha256"] == load_model(tiny_model).directory.fingerprint
    assert len(found["subject"]["store"]["sha256"]) == 64


def test_a_store_with_queries_gives_the_same_numbers_as_the_videos(
    vctool: Vctool, tiny_model: Path, coloured: Path, coloured_index: Path
) -> None:
    videos = vctool("evaluate", tiny_model, "--data", coloured / "captions.jsonl", "--workers", 0, "--json", "--resamples", 0)
    store = vctool("evaluate", tiny_model, "--index", coloured_index, "--data", coloured / "captions.jsonl", "--json", "--resamples", 0)
    assert store.json()["tasks"] == videos.json()["tasks"]
    assert store.json()["subject"] == videos.json()["subject"]


def test_the_store_knows_its_model(vctool: Vctool, coloured: Path, coloured_index: Path) -> None:
    assert vctool("evaluate", "--index", coloured_index, "--data", coloured / "captions.jsonl", "--split", "test").code == 0


def test_one_branch_can_be_asked_for(vctool: Vctool, coloured: Path, coloured_index: Path) -> None:
    data = ["--index", coloured_index, "--data", coloured / "captions.jsonl", "--json"]
    found = vctool("evaluate", *data, "--branch", "v", "--branch", "f").json()
    assert list(found["tasks"]["t2v"]) == ["f", "v"]
    assert found["primary"] == "v"


def test_a_frames_only_model_has_one_branch(vctool: Vctool, coloured: Path, tmp_path: Path) -> None:
    model = build_tiny_model(tmp_path / "f", interaction="f")
    found = vctool("evaluate", model, "--data", coloured / "captions.jsonl", "--workers", 0, "--json").json()
    assert list(found["tasks"]["t2v"]) == ["f"]


def test_scores_from_a_store_are_those_of_single_queries(
    tiny_model: Path, coloured: Path, coloured_index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vctool.evaluation.matrices.QUERY_BATCH", 5)
    monkeypatch.setattr("vctool.evaluation.matrices.IN_MEMORY_BYTES", 0)  # through the scratch files
    model, split = load_model(tiny_model), load_split(str(coloured / "captions.jsonl"))
    with open_store(coloured_index) as store, scored_store(split.query_texts, model.text, store, np.arange(6), ["fv"]) as found:
        for row, text in enumerate(split.query_texts):
            query = model.encode(text)
            np.testing.assert_array_equal(found["fv"][row : row + 1][0], scores(query.query_QD, query.mask_Q, store, "fv")[0])


def test_missing_videos_are_dropped_with_their_queries_and_strict_exits_4(
    vctool: Vctool, tiny_model: Path, coloured: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "some"
    shutil.copytree(coloured, folder)
    (folder / "blue.mp4").unlink()
    (folder / "cyan.mp4").write_bytes(b"no video")
    asked = ["evaluate", tiny_model, "--data", folder / "captions.jsonl", "--workers", 0, "--json", "--resamples", 0]
    ran = vctool(*asked)
    assert ran.code == 0
    found = ran.json()
    assert (found["protocol"]["queries"], found["protocol"]["clips"]) == (8, 4)
    assert "2 of 6 clips could not be used (1 missing, 1 broken), and 4 queries with them: not the published split" in found["notes"]
    assert vctool(*asked, "--strict").code == 4


def test_no_video_at_all_is_one_clear_line(vctool: Vctool, tiny_model: Path, coloured: Path, tmp_path: Path) -> None:
    shutil.copy(coloured / "captions.jsonl", tmp_path / "captions.jsonl")
    ran = vctool("evaluate", tiny_model, "--data", tmp_path / "captions.jsonl")
    assert ran.code == 1
    assert "none of the 6 videos" in ran.err.splitlines()[0]


def test_the_videos_of_a_benchmark_are_found_by_name(vctool: Vctool, tiny_model: Path, coloured: Path, tmp_path: Path) -> None:
    rows = "".join(f"r{i},m{i},{colour},a {colour} video\n" for i, colour in enumerate(("red", "green", "blue")))
    (tmp_path / "MSRVTT_JSFUSION_test.csv").write_text("key,vid_key,video_id,sentence\n" + rows)
    asked = ["evaluate", tiny_model, "--data", "msrvtt-1ka", "--annotations", tmp_path, "--videos", coloured, "--workers", 0, "--json"]
    found = vctool(*asked, "--keep", tmp_path / "kept.npz", "--resamples", 0).json()
    assert found["protocol"]["name"] == "msrvtt-1ka/test-partial"
    assert found["tasks"]["t2v"]["fv"]["R@1"] == 100.0
    assert "4 frames per clip where the field samples 12" in found["protocol"]["departures"]
    assert found["protocol"]["comparable"] is False
    with open_store(tmp_path / "kept.npz") as store:
        assert store.clip_ids == ["red", "green", "blue"]


def test_other_clips_of_the_store_are_left_out_and_counted(vctool: Vctool, coloured: Path, coloured_index: Path, tmp_path: Path) -> None:
    (tmp_path / "two.jsonl").write_text(
        '{"id": "red.mp4", "path": "x", "caption": "red"}\n{"id": "blue.mp4", "path": "y", "caption": "blue"}\n'
    )
    found = vctool("evaluate", "--index", coloured_index, "--data", tmp_path / "two.jsonl", "--json").json()
    assert found["protocol"]["clips"] == 2
    assert "4 clips of the store are not in the split and left out" in found["notes"]


def test_clips_are_matched_by_id_then_by_file_then_by_name(coloured: Path, coloured_index: Path, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"id": "green.mp4", "path": "elsewhere.mp4"},
        {"id": "mine", "path": str(coloured / "red.mp4")},
        {"id": "blue", "path": "no/such/blue.avi"},
        {"id": "unknown", "path": "nothing.mp4"},
        {"id": "piece", "path": str(coloured / "cyan.mp4"), "start": 0.1, "end": 0.2},
    ]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps({**row, "caption": "x"}) + "\n" for row in rows))
    with open_store(coloured_index) as store:
        columns = match_clips(load_split(str(tmp_path / "m.jsonl")), store)
        assert [store.clip_ids[c] if c >= 0 else None for c in columns] == ["green.mp4", "red.mp4", "blue.mp4", None, None]


def test_a_store_of_another_model_is_refused(vctool: Vctool, coloured: Path, coloured_index: Path, tmp_path: Path) -> None:
    other = build_tiny_model(tmp_path / "other", name="other", weights=b"others")
    ran = vctool("evaluate", other, "--index", coloured_index, "--data", coloured / "captions.jsonl")
    assert ran.code == 1
    assert "was made with model" in ran.err


def test_a_store_without_any_of_the_clips_is_one_clear_line(vctool: Vctool, coloured_index: Path, tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_text('{"path": "stranger.mp4", "caption": "x"}\n')
    ran = vctool("evaluate", "--index", coloured_index, "--data", tmp_path / "m.jsonl")
    assert ran.code == 1
    assert "none of the 1 clips" in ran.err


def test_queries_cut_by_the_model_and_repeated_captions_are_counted(tiny_model: Path, coloured_index: Path, tmp_path: Path) -> None:
    long = "a red video then " * 6
    (tmp_path / "m.jsonl").write_text(
        json.dumps({"id": "red.mp4", "path": "x", "captions": [long, "red"]})
        + "\n"
        + json.dumps({"id": "blue.mp4", "path": "y", "captions": ["Red"]})
        + "\n"
    )
    with open_store(coloured_index) as store:
        notes = evaluate_store(load_split(str(tmp_path / "m.jsonl")), store, load_model(tiny_model), settings=Settings(resamples=0)).notes
    assert "1 queries are longer than the 12 tokens that the model reads, and were cut" in notes
    assert "1 queries repeat the text of another one: they cannot all be right at rank 1" in notes


def test_qbnorm_takes_its_bank_as_texts(tiny_model: Path, coloured: Path, coloured_index: Path) -> None:
    split = load_split(str(coloured / "captions.jsonl"))
    settings = Settings(resamples=0, postprocess=("qbnorm",), v2t=False)
    with open_store(coloured_index) as store:
        evaluation = evaluate_store(split, store, load_model(tiny_model), settings=settings, bank=Bank(texts=("red then blue", "green")))
    assert [post.line.branch for post in evaluation.postprocessed] == ["f", "v", "fv"]
    assert evaluation.postprocessed[0].parameters["bank_queries"] == 2


def test_trec_style_judgements_work_from_a_store(vctool: Vctool, coloured_index: Path, tmp_path: Path) -> None:
    colours = ("red", "green", "blue")
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps({"_id": f"{c}.mp4"}) + "\n" for c in colours))
    (tmp_path / "queries.jsonl").write_text('{"_id": "warm", "text": "red"}\n{"_id": "cold", "text": "blue"}\n')
    (tmp_path / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\nwarm\tred.mp4\t2\nwarm\tgreen.mp4\t1\ncold\tblue.mp4\t1\n")
    found = vctool("evaluate", "--index", coloured_index, "--data", tmp_path, "--json", "--resamples", 0).json()
    assert found["protocol"]["captions"] == "queries and right clips from explicit judgements"
    assert found["tasks"]["t2v"]["fv"]["R@1"] == 100.0
    assert found["tasks"]["t2v"]["fv"]["recall_share@1"] == 75.0


def test_the_real_excerpt_order_of_columns_follows_the_split_not_the_store(tiny_model: Path, coloured: Path, coloured_index: Path) -> None:
    split = load_split(str(coloured / "captions.jsonl"))
    shuffled = split.keep([True] * 6, "x")
    order = [3, 1, 5, 0, 2, 4]
    shuffled = type(split)(
        split.benchmark,
        split.name,
        "all",
        tuple(split.clips[i] for i in order),
        tuple(type(q)(q.id, q.text, ((order.index(q.clips[0][0]), 1.0),)) for q in split.queries),
    )
    with open_store(coloured_index) as store:
        model = load_model(tiny_model)
        straight, turned = (evaluate_store(s, store, model, settings=Settings(resamples=0)) for s in (split, shuffled))
    assert turned.line("t2v").metrics.ranks.tolist() == straight.line("t2v").metrics.ranks.tolist()
    assert evaluate_ranking(np.eye(2), np.arange(2)).r1 == 100.0
