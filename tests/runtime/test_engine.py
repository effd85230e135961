"""The engine for other people's models: what docs/engine.md shows runs, and `mean_max_sim` takes every documented form."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import vctool
from vctool.cli import cli
from vctool.errors import InputError, StoreError, UsageProblem

DOCUMENT = Path(__file__).parents[2] / "docs" / "engine.md"
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(language: str) -> list[str]:
    return [text for kind, text in BLOCK.findall(DOCUMENT.read_text(encoding="utf-8")) if kind == language]


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The folder in which the document's Python ran, and the names it left."""
    folder, names = tmp_path_factory.mktemp("engine"), dict[str, Any]()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for text in blocks("python"):
            exec(compile(text, str(DOCUMENT), "exec"), names)
    np.save(folder / "q.npy", names["query_QD"])
    np.savez(folder / "pages_tokens.npz", frame_TD=names["page_NTD"].astype(np.float32))
    return folder, names


def test_the_shown_python_finds_the_page_it_asks_for(shown: tuple[Path, dict[str, Any]]) -> None:
    _, names = shown
    assert names["result"].hits[0].id == "report.pdf#8"
    assert len(names["english"].hits) == 3 and names["english"].allowed == 50
    assert names["score_N"].shape == (200,) and names["score_N"].argmax() == 7


def test_the_shown_commands_run_and_agree(shown: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, names = shown
    monkeypatch.chdir(folder)
    answers = []
    for line in "\n".join(blocks("sh")).replace("\\\n", "").splitlines():
        done = CliRunner().invoke(cli, shlex.split(line)[1:])
        assert done.exit_code == 0, (line, done.output)
        answers.append(done.stdout)
    first = next(json.loads(answer) for answer in answers if answer.startswith('{"schema"'))
    assert [hit["id"] for hit in first["hits"]] == [hit.id for hit in names["result"].hits]
    assert first["hits"][0]["score"] == names["result"].hits[0].score


def oracle(query_QD: np.ndarray, clips: list[np.ndarray]) -> np.ndarray:
    return np.array([(query_QD.astype(np.float64) @ clip.astype(np.float64).T).max(axis=1).mean() for clip in clips])


def unit(values: np.ndarray) -> np.ndarray:
    return (values / np.linalg.norm(values, axis=-1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def arrays() -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(2)
    return unit(generator.standard_normal((5, 24))), unit(generator.standard_normal((30, 7, 24)))


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_tokens_of_one_length_need_no_offsets(arrays: tuple[np.ndarray, np.ndarray], dtype: str) -> None:
    query, tokens = arrays
    assert np.abs(vctool.mean_max_sim(query, tokens.astype(dtype)) - oracle(query, list(tokens))).max() < 2e-3


def test_tokens_of_many_lengths_go_with_offsets_and_int8_with_scales(arrays: tuple[np.ndarray, np.ndarray]) -> None:
    query, tokens = arrays
    flat, edges = tokens.reshape(-1, 24), np.array([0, 1, 1, 50, 210])
    right = oracle(query, [flat[:1], flat[1:50], flat[50:]])
    found = vctool.mean_max_sim(query, flat, edges)
    assert found[1] == -np.inf and np.abs(found[[0, 2, 3]] - right).max() < 1e-6
    scale = np.abs(flat).max(axis=1) / np.float32(127)
    whole = np.rint(flat / scale[:, None]).astype(np.int8)
    assert np.abs(vctool.mean_max_sim(query, whole, edges, scale_T=scale)[[0, 2, 3]] - right).max() < 0.01
    assert np.array_equal(
        vctool.mean_max_sim(query, whole.reshape(30, 7, 24), scale_T=scale.reshape(30, 7)),
        vctool.mean_max_sim(query, whole, np.arange(0, 211, 7), scale_T=scale),
    )


def test_a_masked_query_token_takes_no_part(arrays: tuple[np.ndarray, np.ndarray]) -> None:
    query, tokens = arrays
    masked = vctool.mean_max_sim(query, tokens, query_mask_Q=np.array([1, 0, 0, 1, 1], bool))
    assert np.array_equal(masked, vctool.mean_max_sim(query[[0, 3, 4]], tokens))


def test_a_store_may_be_given_by_its_path(shown: tuple[Path, dict[str, Any]]) -> None:
    folder, names = shown
    query = unit(names["query_QD"])
    by_path = vctool.mean_max_sim(query, folder / "pages.npz", branch="f", workers=1)
    assert np.array_equal(by_path, names["score_N"])
    with pytest.raises(StoreError, match="no such file"):
        vctool.mean_max_sim(query, "nothing.npz")


def test_what_does_not_fit_is_refused(arrays: tuple[np.ndarray, np.ndarray]) -> None:
    query, tokens = arrays
    flat = tokens.reshape(-1, 24)
    with pytest.raises(UsageProblem, match="needs offsets"):
        vctool.mean_max_sim(query, flat)
    for wrong_query, wrong_tokens, told in (
        (query, flat.astype(np.int16).reshape(30, 7, 24), "tokens have dtype int16"),
        (query.astype("U4"), tokens, "query tokens have dtype <U4"),
        (query[:, :5], tokens, "5 wide, clip tokens 24"),
        (query[:0], tokens, "no query token counts"),
        (query * np.nan, tokens, "NaN or infinite"),
        (query, tokens * np.inf, "not finite"),
    ):
        with np.errstate(invalid="ignore"), pytest.raises(InputError, match=told):
            vctool.mean_max_sim(wrong_query, wrong_tokens)
