"""`vctool evaluate --sims`: other people's systems, and everything that can be wrong with a matrix."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vctool.errors import InputError
from vctool.evaluation.evaluate import Bank, Settings, evaluate_matrix
from vctool.evaluation.matrices import ScratchMatrix
from vctool.evaluation.matrix_files import matrix_from_files
from vctool.evaluation.report import markdown
from vctool.metrics import evaluate_ranking

Vctool = Callable[..., Any]


@pytest.fixture
def sims(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    np.save(tmp_path / "s.npy", (rng.standard_normal((60, 60)) * 0.3 + np.eye(60)).astype(np.float32))
    return tmp_path / "s.npy"


def test_without_qrels_query_i_asks_for_column_i(vctool: Vctool, sims: Path) -> None:
    ran = vctool("evaluate", "--sims", sims, "--json", "--resamples", 50)
    assert ran.code == 0
    expected = evaluate_ranking(np.load(sims), np.arange(60))
    found = ran.json()["tasks"]["t2v"]["sims"]
    assert {key: found[key] for key in expected.values()} == expected.values()
    assert set(found["intervals"]) == set(expected.values())


def test_qrels_may_be_many_to_many_and_graded(vctool: Vctool, tmp_path: Path) -> None:
    scores = np.random.default_rng(1).standard_normal((4, 7))
    np.save(tmp_path / "s.npy", scores)
    (tmp_path / "q.tsv").write_text("0\t3\t2\n0\t1\t1\n1\t0\t1\n3\t6\t1\n2\t2\t0\n")
    ran = vctool("evaluate", "--sims", tmp_path / "s.npy", "--qrels", tmp_path / "q.tsv", "--json")
    expected = evaluate_ranking(scores[[0, 1, 3]], [{3: 2, 1: 1}, {0: 1}, {6: 1}])
    found = ran.json()
    assert found["tasks"]["t2v"]["sims"]["nDCG@10"] == pytest.approx(expected.ndcg10)
    assert "v2t_group" not in found["tasks"]
    assert "1 of 4 queries without a relevant clip left out" in found["notes"]


def test_ids_come_from_files_or_from_the_npz(vctool: Vctool, tmp_path: Path) -> None:
    scores = np.array([[0.1, 0.9], [0.8, 0.2]])
    np.save(tmp_path / "s.npy", scores)
    np.savez(tmp_path / "s.npz", sims=scores, query_ids=np.array(["q-a", "q-b"]), clip_ids=np.array(["c-a", "c-b"]))
    (tmp_path / "queries.txt").write_text("q-a\nq-b\n")
    (tmp_path / "clips.txt").write_text("c-a\nc-b")
    (tmp_path / "right.tsv").write_text("q-a\tc-b\nq-b\tc-a\n")
    ids = ["--query-ids", tmp_path / "queries.txt", "--clip-ids", tmp_path / "clips.txt"]
    for given in ([tmp_path / "s.npy", *ids], [tmp_path / "s.npz"]):
        ran = vctool("evaluate", "--sims", *given, "--qrels", tmp_path / "right.tsv", "--json")
        assert ran.json()["tasks"]["t2v"]["sims"]["R@1"] == 100.0


def test_a_matrix_can_be_read_in_the_order_of_a_manifest(vctool: Vctool, coloured: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "s.npy", np.repeat(np.eye(6), 2, axis=0))
    ran = vctool("evaluate", "--sims", tmp_path / "s.npy", "--data", coloured / "captions.jsonl", "--json")
    found = ran.json()
    assert found["tasks"]["t2v"]["sims"]["R@1"] == 100.0
    assert (found["protocol"]["queries"], found["protocol"]["clips"]) == (12, 6)


def save(folder: Path, array: Any) -> Path:
    np.save(folder / "bad.npy", array, allow_pickle=True)
    return folder / "bad.npy"


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, 4)), "is 3 x 4: without qrels query i's right clip is column i"),
        (np.zeros(5), "two dimensions (queries, clips), got shape (5,)"),
        (np.zeros((2, 2, 2)), "two dimensions"),
        (np.zeros((0, 0)), "empty (0 queries, 0 clips)"),
        (np.array([["a"]]), "must hold real numbers"),
        (np.array([[None]]), "pickled objects"),
        (np.array([[0.0, 1.0], [np.nan, 0.0]]), "query 1 ('1'): its score for clip 0 is NaN"),
    ],
)
def test_a_bad_matrix_is_one_clear_line(vctool: Vctool, tmp_path: Path, array: Any, message: str) -> None:
    ran = vctool("evaluate", "--sims", save(tmp_path, array))
    assert ran.code == 1
    assert ran.out == ""
    assert message in ran.err.splitlines()[0]


@pytest.mark.parametrize("content", [b"", b"not numpy at all", b"\x93NUMPY\x01\x00v\x00{'descr': '<f4'"])
def test_a_file_that_is_no_matrix_is_one_clear_line(vctool: Vctool, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.npy").write_bytes(content)
    ran = vctool("evaluate", "--sims", tmp_path / "x.npy")
    assert (ran.code, len(ran.err.splitlines())) in {(1, 1), (1, 2)}
    assert str(tmp_path / "x.npy") in ran.err


@pytest.mark.parametrize(
    ("qrels", "message"),
    [
        ("0\t9\n", "1 judgements of clips that are no column of s.npy, the first '9'"),
        ("x\t0\n", "query 'x' is no row of s.npy"),
        ("0\t0\tbest\n", "line 1: the grade 'best' is not a number"),
        ("", "no judgements"),
        ("0\t0\t0\n", "no query has a relevant clip"),
    ],
)
def test_bad_judgements_are_one_clear_line(vctool: Vctool, tmp_path: Path, qrels: str, message: str) -> None:
    np.save(tmp_path / "s.npy", np.eye(3))
    (tmp_path / "q.tsv").write_text(qrels)
    ran = vctool("evaluate", "--sims", tmp_path / "s.npy", "--qrels", tmp_path / "q.tsv")
    assert ran.code == 1
    assert message in ran.err.splitlines()[0]


@pytest.mark.parametrize(("ids", "message"), [("a\nb\n", "2 ids for 3 queries"), ("a\nb\na\n", "duplicate id 'a'")])
def test_ids_must_fit_the_matrix(vctool: Vctool, tmp_path: Path, ids: str, message: str) -> None:
    np.save(tmp_path / "s.npy", np.eye(3))
    (tmp_path / "ids.txt").write_text(ids)
    ran = vctool("evaluate", "--sims", tmp_path / "s.npy", "--query-ids", tmp_path / "ids.txt")
    assert ran.code == 1
    assert message in ran.err


def test_a_matrix_of_the_wrong_shape_for_a_split_says_both_shapes(vctool: Vctool, coloured: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "s.npy", np.eye(6))
    ran = vctool("evaluate", "--sims", tmp_path / "s.npy", "--data", coloured / "captions.jsonl")
    assert ran.code == 1
    assert "is 6 x 6 but captions all has 12 queries and 6 clips" in ran.err


def test_min_r1_fails_with_code_3_and_still_prints(vctool: Vctool, tmp_path: Path) -> None:
    np.save(tmp_path / "s.npy", np.eye(4)[::-1])
    ran = vctool("evaluate", "--sims", tmp_path / "s.npy", "--min-r1", 10, "--json")
    assert ran.code == 3
    assert ran.json()["tasks"]["t2v"]["sims"]["R@1"] == 0.0
    assert "below the required 10" in ran.err
    assert vctool("evaluate", "--sims", tmp_path / "s.npy", "--min-r1", 0).code == 0


def test_a_constant_matrix_reports_ties_and_never_r1_100(vctool: Vctool, tmp_path: Path) -> None:
    np.save(tmp_path / "s.npy", np.zeros((50, 50)))
    found = vctool("evaluate", "--sims", tmp_path / "s.npy", "--json").json()["tasks"]["t2v"]["sims"]
    assert (found["R@1"], found["MdR"], found["tied_queries"]) == (0.0, 25.5, 50)
    assert (found["optimistic"]["R@1"], found["pessimistic"]["MdR"]) == (100.0, 50.0)
    assert found["recall_share@1"] == pytest.approx(2.0)


def test_postprocessing_stands_in_lines_of_its_own_with_its_warning(sims: Path) -> None:
    matrix = matrix_from_files(sims)
    plain = evaluate_matrix(matrix, Settings(resamples=0))
    bank = Bank(scores=np.random.default_rng(2).standard_normal((30, 60)))
    with_posts = evaluate_matrix(matrix, Settings(resamples=0, postprocess=("dsl", "qbnorm", "sinkhorn")), bank)
    assert with_posts.summary()["tasks"] == plain.summary()["tasks"]
    assert {post.name: post.live for post in with_posts.postprocessed} == {"dsl": False, "qbnorm": True, "sinkhorn": False}
    text = markdown(with_posts)
    assert "not comparable with the metrics above" in text
    assert text.count("NOT usable in live search") == 2
    assert "post-processing" not in markdown(plain)


def test_qbnorm_without_a_bank_says_what_is_missing(vctool: Vctool, sims: Path) -> None:
    ran = vctool("evaluate", "--sims", sims, "--post", "qbnorm")
    assert ran.code == 2
    assert "--bank" in ran.err


@pytest.mark.parametrize(
    "extra",
    [["--post", "magic"], ["--index", "x.npz"], ["--branch", "f"], ["--data", "x.jsonl", "--qrels", "q"], ["--level", "1.5"]],
)
def test_options_that_do_not_fit_are_usage_errors(vctool: Vctool, sims: Path, extra: list[str]) -> None:
    assert vctool("evaluate", "--sims", sims, *extra).code == 2


def test_nothing_to_evaluate_is_a_usage_error(vctool: Vctool) -> None:
    assert vctool("evaluate").code == 2


def test_the_report_has_json_with_ranks_and_markdown_with_versions_and_command(vctool: Vctool, sims: Path, tmp_path: Path) -> None:
    assert vctool("evaluate", "--sims", sims, "--report", tmp_path / "out", "--resamples", 100).code == 0
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["queries"]["per_query"]["sims"]["rank"] == evaluate_ranking(np.load(sims), np.arange(60)).ranks.tolist()
    assert result["subject"]["sha256"] == result["sources"]["s.npy"]
    assert {"vctool", "python", "numpy"} <= set(result["environment"]["versions"])
    text = (tmp_path / "out" / "report.md").read_text()
    for needed in ("## Metrics", "## 95 % intervals", "Seed: 0", "Command:", result["protocol"]["ids_sha256"]):
        assert needed in text


def test_the_table_shows_both_video_to_text_forms_by_name(vctool: Vctool, sims: Path) -> None:
    out = vctool("evaluate", "--sims", sims).out
    assert "v2t_group" in out and "v2t_caption" in out


def test_fifty_thousand_captions_by_five_hundred_clips_are_read_from_the_file_not_into_memory(tmp_path: Path) -> None:
    import tracemalloc

    rows = np.lib.format.open_memmap(tmp_path / "s.npy", mode="w+", dtype=np.float32, shape=(50_000, 500))
    rows[:] = np.random.default_rng(0).standard_normal((1, 500), dtype=np.float32)
    rows.flush()
    del rows
    (tmp_path / "q.tsv").write_text("".join(f"{i}\t{i % 500}\n" for i in range(50_000)))
    tracemalloc.start()
    evaluation = evaluate_matrix(matrix_from_files(tmp_path / "s.npy", tmp_path / "q.tsv"), Settings(resamples=0, v2t=False))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert evaluation.line("t2v").metrics.queries == 50_000
    assert peak < 250 << 20


def test_a_scratch_matrix_gives_back_what_was_written(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)
    matrix = ScratchMatrix(tmp_path / "f", (7, 3))
    for start in (4, 0, 2, 6):
        matrix.write(start, values[start : start + 2])
    for rows in (slice(0, 7), slice(2, 5), slice(6, 9), slice(3, 3), slice(0, 7, 2), slice(None)):
        np.testing.assert_array_equal(matrix[rows], values[rows])
    matrix.close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_scores_that_do_not_fit_on_the_disk_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "f").symlink_to("/dev/full")
    matrix = ScratchMatrix(tmp_path / "f", (4, 5))
    with pytest.raises(InputError, match=r"could not be kept in .*No space left on device") as caught:
        matrix.write(0, np.zeros((4, 5), np.float32))
    assert caught.value.hint is not None and "TMPDIR" in caught.value.hint
    matrix.close()
