"""`vctool query` over stores of any model: queries as arrays, filters, lists of clips, paging, least score, exact and two-stage."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from commandline import Done, Vctool, expect_line

from vctool.store import StoreWriter, TokenRows, open_store

CLIPS, D, F = 400, 16, 6


def unit(values: np.ndarray) -> np.ndarray:
    return (values / np.linalg.norm(values, axis=-1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of another model's tokens, and `q.npy`, three queries of which number b is about clip 100 * b."""
    folder = tmp_path_factory.mktemp("pages")
    generator = np.random.default_rng(1)
    tokens = unit(generator.standard_normal((CLIPS, 1, D)) + 0.3 * generator.standard_normal((CLIPS, F, D)))
    metas = [{"duration": i, "tag": "sport" if i % 4 == 0 else "news", "camera": {"name": f"c{i % 3}"}} for i in range(CLIPS)]
    with StoreWriter(folder / "pages.npz", manifest={"model": {"name": "other", "interaction": "f"}}, dtype="int8") as writer:
        writer.add_many([f"page {i}" for i in range(CLIPS)], TokenRows.of(tokens), metas=metas)
        writer.commit()
    np.save(folder / "q.npy", tokens[[0, 100, 200], :4] + 0.1 * generator.standard_normal((3, 4, D)))
    np.save(folder / "one.npy", tokens[100, :4])
    return folder


def ask(vctool: Vctool, pages: Path, *more: str | Path, tokens: str = "one.npy") -> Done:
    return vctool("query", "--tokens", pages / tokens, "--index", pages / "pages.npz", *more)


def answers(done: Done) -> list[dict]:  # type: ignore[type-arg]
    assert done.code == 0, done.err
    return [json.loads(line) for line in done.out.splitlines()]


def test_a_batch_of_arrays_gives_an_answer_each(vctool: Vctool, pages: Path) -> None:
    found = answers(ask(vctool, pages, "--json", "-k", "1", tokens="q.npy"))
    assert [answer["hits"][0]["id"] for answer in found] == ["page 0", "page 100", "page 200"]
    assert found[1]["query"].endswith("q.npy[1]")
    shown = ask(vctool, pages, "-k", "1", tokens="q.npy")
    assert "q.npy[2]" in shown.out and "page 200" in shown.out


def test_a_mask_leaves_tokens_out(vctool: Vctool, pages: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "m.npy", np.array([[1, 0, 0, 0], [1, 1, 1, 1], [0, 1, 1, 0]], bool))
    found = answers(ask(vctool, pages, "--json", "--mask", tmp_path / "m.npy", tokens="q.npy"))
    assert [len(answer["tokens"]) for answer in found] == [1, 4, 2]
    expect_line(ask(vctool, pages, "--mask", tmp_path / "m.npy"), 1, "mask has shape [3, 4]")
    expect_line(vctool("query", "a", "--mask", tmp_path / "m.npy", "--index", pages / "pages.npz"), 2, "--mask")


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (np.ones((3, D + 1), np.float32), f"holds tokens {D} wide, the query's are {D + 1}"),
        (np.ones((2, D), np.float16).view("V2"), "bfloat16"),
        (np.array([[1.0], [None]], dtype=object), "Python objects"),
        (np.full((2, D), np.nan), "NaN, infinite or all zeros"),
        (np.zeros((0, D)), "have shape [0, 16]"),
        (np.zeros((1, 2, D)), "no query token counts"),
    ],
)
def test_arrays_that_are_no_queries_are_one_line(vctool: Vctool, pages: Path, tmp_path: Path, values: np.ndarray, told: str) -> None:
    np.save(tmp_path / "bad.npy", values, allow_pickle=True)
    expect_line(vctool("query", "--tokens", tmp_path / "bad.npy", "--index", pages / "pages.npz"), 1, told)


def test_where_limits_the_clips_and_says_how_many(vctool: Vctool, pages: Path) -> None:
    where = 'duration < 200 and tag = "sport" and not camera.name = "c0"'
    (found,) = answers(ask(vctool, pages, "--json", "--where", where, "-k", "400"))
    passing = {f"page {i}" for i in range(200) if i % 4 == 0 and i % 3 != 0}
    assert {hit["id"] for hit in found["hits"]} == passing
    assert found["search"] == {"mode": "exact", "candidates": len(passing), "allowed": len(passing)}
    assert f"{len(passing)} allowed clips compared" in ask(vctool, pages, "--where", where).err


def test_a_wrong_filter_is_shown_with_a_caret_at_the_place(vctool: Vctool, pages: Path) -> None:
    done = ask(vctool, pages, "--where", "duration < 60 & tag = 1")
    first, text, caret = done.err.splitlines()[:3]
    assert done.code == 2 and first.startswith("error: the filter is not understood, at character 15: '&'")
    assert text == "  duration < 60 & tag = 1" and caret.index("^") == text.index("&")


def test_an_unknown_key_is_a_warning_with_its_like(vctool: Vctool, pages: Path) -> None:
    done = ask(vctool, pages, "--where", "duratoin < 60", tokens="q.npy")
    assert done.code == 0 and done.err.count("did you mean duration?") == 1  # once for three queries
    assert "none passes the filter" in done.err


def test_ids_come_from_a_file_or_standard_input(vctool: Vctool, pages: Path, tmp_path: Path) -> None:
    (tmp_path / "ids.txt").write_bytes(b"page 5\r\npage 6\n\npage 5\n")
    (found,) = answers(ask(vctool, pages, "--json", "--ids", tmp_path / "ids.txt"))
    assert {hit["id"] for hit in found["hits"]} == {"page 5", "page 6"}
    done = vctool("query", "--tokens", pages / "one.npy", "--index", pages / "pages.npz", "--json", "--ids", "-", input="page 7\npage x\n")
    assert [hit["id"] for hit in json.loads(done.out)["hits"]] == ["page 7"]
    assert "1 of 2 ids are not in the store: 'page x'" in done.err
    (tmp_path / "none.txt").write_text("a\nb\n")
    expect_line(ask(vctool, pages, "--ids", tmp_path / "none.txt"), 1, "has none of the 2 ids")
    (tmp_path / "empty.txt").write_text("\n")
    expect_line(ask(vctool, pages, "--ids", tmp_path / "empty.txt"), 1, "holds no clip id")
    expect_line(ask(vctool, pages, "--ids", tmp_path / "lost.txt"), 1, "no such file")
    expect_line(vctool("query", "-", "--index", pages / "pages.npz", "--ids", "-"), 2, "both queries and ids")


def test_pages_continue_each_other_and_end(vctool: Vctool, pages: Path) -> None:
    (whole,), (second,) = (answers(ask(vctool, pages, "--json", *more)) for more in (("-k", "6"), ("-k", "3", "--offset", "3")))
    assert second["hits"] == whole["hits"][3:] and second["search"]["offset"] == 3
    assert "after the first 400" in ask(vctool, pages, "--offset", "400").err
    assert ask(vctool, pages, "--offset", "-1").code == 2
    (everything,) = answers(ask(vctool, pages, "--json", "-k", "1000"))
    assert len(everything["hits"]) == CLIPS


def test_the_least_score(vctool: Vctool, pages: Path) -> None:
    (whole,) = answers(ask(vctool, pages, "--json", "-k", "5"))
    least = whole["hits"][1]["score"]
    (found,) = answers(ask(vctool, pages, "--json", "-k", "5", "--min-score", str(least)))
    assert [hit["id"] for hit in found["hits"]] == [hit["id"] for hit in whole["hits"][:2]]
    assert "--min-score" in ask(vctool, pages, "--min-score", "1.5").err
    expect_line(ask(vctool, pages, "--min-score", "nan"), 2, "not a number")


def test_which_search_ran_is_said(vctool: Vctool, pages: Path) -> None:
    (exact,) = answers(ask(vctool, pages, "--json"))
    assert exact["search"] == {"mode": "exact", "candidates": CLIPS}
    (forced,) = answers(ask(vctool, pages, "--json", "--candidates", "40"))
    assert forced["search"] == {"mode": "two-stage", "candidates": 40}
    assert forced["hits"][0] == exact["hits"][0]
    assert "two-stage: 40 clips compared exactly" in ask(vctool, pages, "--candidates", "40").err
    (chosen,) = answers(ask(vctool, pages, "--json", "--two-stage"))
    assert chosen["search"]["mode"] in ("two-stage", "exact") and chosen["hits"][0] == exact["hits"][0]
    expect_line(ask(vctool, pages, "--exact", "--two-stage"), 2, "--exact compares every clip")


def test_a_store_without_pooled_vectors_says_why_it_was_searched_exactly(vctool: Vctool, pages: Path, tmp_path: Path) -> None:
    with np.load(pages / "pages.npz", allow_pickle=False) as arrays:
        np.savez(tmp_path / "old.npz", **{name: arrays[name] for name in arrays.files if not name.startswith("pooled")})
    done = vctool("query", "--tokens", pages / "one.npy", "--index", tmp_path / "old.npz", "--two-stage", "--json")
    assert json.loads(done.out)["search"]["mode"] == "exact" and "has no pooled vectors" in done.err


def test_interactive_filters_pages_and_goes_on_after_errors(vctool: Vctool, tiny_index: Path) -> None:
    lines = "red\n:where duration > 1000\nred\n:where duration <\n:where\n:min-score 9\nred\n:min-score\n:k 1\nred\n:next\n:next\n:k 0\n"
    done = vctool("query", "-i", "--index", tiny_index, "--json", input=lines)
    found = [json.loads(line) for line in done.out.splitlines()]
    clips = len(open_store(tiny_index))
    assert done.code == 0
    assert [len(answer["hits"]) for answer in found] == [clips, 0, 0, 1, 1, 1]
    assert [answer["hits"][0]["rank"] for answer in found[3:]] == [1, 2, 3]
    assert len({answer["hits"][0]["id"] for answer in found[3:]}) == 3
    assert "the filter is not understood, at character 11" in done.err and "not a setting: :k 0" in done.err
