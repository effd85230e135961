"""`vctool query` as a person and a script see it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from commandline import Vctool, expect_line, on_a_terminal
from tinymodel import build_tiny_model

from vctool.store import StoreWriter, open_store


def test_the_table_says_rank_score_clip_second_and_words(vctool: Vctool, tiny_index: Path) -> None:
    done = vctool("query", "green", "then", "yellow", "--index", tiny_index, "-k", "2")
    assert done.code == 0 and done.err == ""
    lines = done.out.splitlines()
    assert lines[0].split() == ["#", "score", "clip", "best", "at", "which", "words", "hit", "when"]
    assert len(lines) == 4
    change = next(line for line in lines if "change.mp4" in line)
    assert "green 00:02.6" in change and "00:0" in change.split("change.mp4")[1]


def test_eighty_columns_are_enough(vctool: Vctool, tiny_index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    out = vctool("query", "a red then green then blue then yellow frisbee video", "--index", tiny_index, "--explain").out
    assert max(len(line) for line in out.splitlines()) <= 80 and "…" not in out


def test_json_is_one_object_a_query(vctool: Vctool, tiny_index: Path, tmp_path: Path) -> None:
    (tmp_path / "q.txt").write_text("red\n\nyellow \n")
    done = vctool("query", "--queries", tmp_path / "q.txt", "--index", tiny_index, "--json", "-k", "1")
    answers = [json.loads(line) for line in done.out.splitlines()]
    assert [a["query"] for a in answers] == ["red", "yellow"]
    assert answers[1]["hits"][0]["id"] == "sub/yellow.mp4" and answers[1]["search"]["mode"] == "exact"


@pytest.mark.parametrize("how", [("-",), ("--queries", "-")])
def test_standard_input_is_one_query_a_line(vctool: Vctool, tiny_index: Path, how: tuple[str, ...]) -> None:
    done = vctool("query", *how, "--index", tiny_index, "--json", input="red\r\nyellow\n")
    assert [json.loads(line)["query"] for line in done.out.splitlines()] == ["red", "yellow"]
    expect_line(vctool("query", *how, "--index", tiny_index, input="\n \n"), 1, "holds no query")


def test_several_answers_are_told_apart_by_their_query(vctool: Vctool, tiny_index: Path) -> None:
    out = vctool("query", "-", "--index", tiny_index, input="red\nyellow\n").out
    assert out.splitlines()[0].strip() == "red" and "yellow\n" in out


def test_explain_shows_every_token_and_the_sum(vctool: Vctool, tiny_index: Path) -> None:
    out = vctool("query", "red frisbee", "--index", tiny_index, "-k", "1", "--explain").out
    assert all(piece in out for piece in ("[CLS]", "red", "fris", "##bee", "[SEP]"))
    shares = [float(line.split()[1]) for line in out.splitlines() if line[:1] in "[rf#" and "+" in line and ":" in line]
    score = float(out.splitlines()[-1].split()[1])
    assert sum(shares) == pytest.approx(score, abs=3e-4)


def test_pads_have_a_line_of_their_own(vctool: Vctool, tiny_videos: Path, tmp_path: Path) -> None:
    model = build_tiny_model(tmp_path / "model", expand="on")
    vctool("index", tiny_videos, "-o", tmp_path / "c.npz", "--model", model)
    assert "9 pads" in vctool("query", "red", "--index", tmp_path / "c.npz", "--explain", "-k", "1").out


def test_the_branch_can_be_chosen(vctool: Vctool, tiny_index: Path) -> None:
    for branch, absent in (("f", "video_score"), ("v", "frame_score")):
        hit = json.loads(vctool("query", "red", "--index", tiny_index, "--branch", branch, "--json").out)["hits"][0]
        assert hit[absent] is None
    assert vctool("query", "red", "--index", tiny_index, "--branch", "x").code == 2


def test_tokens_from_a_file_need_no_model(vctool: Vctool, tiny_index: Path, tmp_path: Path) -> None:
    shutil.copy(tiny_index, tmp_path / "c.npz")
    store = open_store(tiny_index)
    np.save(tmp_path / "q.npy", store.clip(3).frame_FD[:1])
    done = vctool("query", "--tokens", tmp_path / "q.npy", "--index", tmp_path / "c.npz", "--json", "-k", "1")
    assert json.loads(done.out)["hits"][0]["id"] == "sub/yellow.mp4"
    np.save(tmp_path / "q.npy", np.array([{"a": 1}]), allow_pickle=True)
    expect_line(vctool("query", "--tokens", tmp_path / "q.npy", "--index", tiny_index), 1, "q.npy")
    (tmp_path / "q.npy").write_bytes(b"")
    expect_line(vctool("query", "--tokens", tmp_path / "q.npy", "--index", tiny_index), 1, "q.npy")
    np.save(tmp_path / "q.npy", np.ones((2, 5)))
    expect_line(vctool("query", "--tokens", tmp_path / "q.npy", "--index", tiny_index), 1, "8 wide")


@pytest.mark.parametrize("nothing", ["", "   ", "\0"])
def test_an_empty_query_is_one_line(vctool: Vctool, tiny_index: Path, nothing: str) -> None:
    expect_line(vctool("query", nothing, "--index", tiny_index), 1, "the query")


@pytest.mark.parametrize("odd", ["🐕‍🦺 catching a 🥏", "كلب يلتقط القرص", "a\0dog", "[SEP]", "\x1b[31mred", "-- red"])
def test_any_text_is_a_query(vctool: Vctool, tiny_index: Path, odd: str) -> None:
    done = vctool("query", "--index", tiny_index, "--json", "--", odd)
    assert done.code == 0 and json.loads(done.out)["query"] == odd and done.err == ""
    assert vctool("query", "--index", tiny_index, "--explain", "--", odd).code == 0


def test_a_query_of_500_words_is_cut_with_a_warning(vctool: Vctool, tiny_index: Path) -> None:
    done = vctool("query", "red " * 499 + "yellow", "--index", tiny_index)
    assert done.code == 0 and done.err.startswith("warning: the query is longer than the model reads; cut off: 'red red")
    assert "…" in done.err and done.err.count("\n") == 1


def test_a_pooled_query_may_be_put_into_templates_and_the_answer_says_so(
    vctool: Vctool, tiny_videos: Path, tiny_index: Path, tmp_path: Path
) -> None:
    model = build_tiny_model(tmp_path / "m", policy="pooled", temporal="mean")
    assert vctool("index", tiny_videos, "-o", tmp_path / "c.npz", "--model", model, "-q").code == 0
    done = vctool("query", "yellow", "--index", tmp_path / "c.npz", "--json", "--template", "a {}", "--template", "{} video")
    found = json.loads(done.out)
    assert (found["query"], found["tokens"][0]["text"], found["hits"][0]["id"]) == ("yellow", "yellow", "sub/yellow.mp4")
    assert found["search"]["query_policy"] == "pooled" and found["search"]["templates"] == ["a {}", "{} video"]
    assert "one pooled vector" in vctool("query", "yellow", "--index", tmp_path / "c.npz", "--explain").err
    expect_line(vctool("query", "red", "--index", tiny_index, "--template", "a {}"), 2, "templates are for models whose query is one")


def test_one_source_of_queries_is_needed(vctool: Vctool, tiny_index: Path, tmp_path: Path) -> None:
    expect_line(vctool("query", "--index", tiny_index), 2, "give one of")
    expect_line(vctool("query", "red", "-i", "--index", tiny_index), 2, "give one of")
    assert vctool("query", "red").code == 2
    expect_line(vctool("query", "--queries", tmp_path / "no.txt", "--index", tiny_index), 1, "no.txt", "no such file")
    (tmp_path / "q.txt").write_bytes(b"\xff\xfe\x00")
    expect_line(vctool("query", "--queries", tmp_path / "q.txt", "--index", tiny_index), 1, "not UTF-8")


def test_stores_that_cannot_be_searched_are_one_line(vctool: Vctool, tiny_index: Path, tmp_path: Path) -> None:
    expect_line(vctool("query", "red", "--index", tmp_path / "no.npz"), 1, "no such file")
    expect_line(vctool("query", "red", "--index", tmp_path), 1, "is a folder")
    (tmp_path / "half.npz").write_bytes(tiny_index.read_bytes()[: tiny_index.stat().st_size // 2])
    expect_line(vctool("query", "red", "--index", tmp_path / "half.npz"), 1, "half.npz", "incomplete")
    (tmp_path / "text.npz").write_text("hello")
    expect_line(vctool("query", "red", "--index", tmp_path / "text.npz"), 1, "not a token store")


def test_a_store_of_another_model_is_refused_with_both_fingerprints(vctool: Vctool, tiny_index: Path, tmp_path: Path) -> None:
    other = build_tiny_model(tmp_path / "other", name="other")
    from vctool.runtime.model_directory import ModelDirectory

    ours, theirs = open_store(tiny_index).manifest["model"]["sha256"], ModelDirectory.open(other).fingerprint
    expect_line(vctool("query", "red", "--index", tiny_index, "--model", other), 1, ours[:16], theirs[:16])


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json", "onnx/text.onnx"])
def test_a_broken_model_directory_is_one_line(vctool: Vctool, tiny_index: Path, tiny_model: Path, tmp_path: Path, name: str) -> None:
    model = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    (model / name).write_bytes((tiny_model / name).read_bytes()[:-1] + b"?")
    expect_line(vctool("query", "red", "--index", tiny_index, "--model", model), 1, name, "altered")
    (model / name).unlink()
    expect_line(vctool("query", "red", "--index", tiny_index, "--model", model), 1, name, "missing")


def test_a_lost_model_says_which_option_to_give(vctool: Vctool, tiny_videos: Path, tiny_model: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    vctool("index", tiny_videos, "-o", tmp_path / "c.npz", "--model", model)
    model.rename(tmp_path / "elsewhere")
    done = vctool("query", "red", "--index", tmp_path / "c.npz")
    expect_line(done, 1, "no longer in")
    assert "--model DIR" in done.err
    assert vctool("query", "red", "--index", tmp_path / "c.npz", "--model", tmp_path / "elsewhere").code == 0


def test_an_empty_store_has_no_hits_and_that_is_no_failure(vctool: Vctool, tmp_path: Path, tiny_index: Path) -> None:
    manifest = {k: v for k, v in open_store(tiny_index).manifest.items() if k in ("model", "dim")}
    with StoreWriter(tmp_path / "e.npz", manifest=manifest) as writer:
        writer.commit()
    done = vctool("query", "red", "--index", tmp_path / "e.npz", "--json")
    assert done.code == 0 and json.loads(done.out)["hits"] == []
    assert vctool("query", "red", "--index", tmp_path / "e.npz").code == 0


def test_interactive_keeps_going_after_errors_and_leaves_at_the_end(vctool: Vctool, tiny_index: Path) -> None:
    done = vctool("query", "-i", "--index", tiny_index, "--json", input=":k 1\nred\n\0\n:nonsense\n:branch f\nyellow\n")
    answers = [json.loads(line) for line in done.out.splitlines()]
    assert done.code == 0 and [a["query"] for a in answers] == ["red", "yellow"]
    assert [len(a["hits"]) for a in answers] == [1, 1] and answers[1]["branch"] == "f"
    assert "not a setting: :nonsense" in done.err and "holds nothing that this model can read" in done.err


def test_interactive_on_a_terminal(tiny_index: Path) -> None:
    pexpect = pytest.importorskip("pexpect", reason="pexpect is not installed")
    child = on_a_terminal("query", "-i", "--index", tiny_index)
    child.expect("query> ")
    child.sendline("yellow")
    child.expect("sub/yellow.mp4")
    child.expect("query> ")
    child.send("\x04")  # Ctrl-D
    child.expect(pexpect.EOF)
    assert child.process.wait(timeout=30) == 0


def test_a_terminal_with_nothing_piped_in_is_told_what_to_do(tiny_index: Path) -> None:
    pexpect = pytest.importorskip("pexpect", reason="pexpect is not installed")
    child = on_a_terminal("query", "-", "--index", tiny_index)
    child.expect("standard input is a terminal")
    child.expect(pexpect.EOF)
    assert child.process.wait(timeout=30) == 2
