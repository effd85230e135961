"""Queries that come as arrays: shapes, padding, masks, and everything that is not a query."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vctool.errors import InputError
from vctool.runtime.query_arrays import queries_from_array, read_queries

QUERY = np.array([[3.0, 4.0], [0.0, 2.0]], np.float32)


def save(path: Path, values: Any) -> Path:
    np.save(path, values, allow_pickle=True)
    return path


def test_one_query_is_normalised_and_all_its_tokens_count(tmp_path: Path) -> None:
    (query,) = read_queries(save(tmp_path / "q.npy", QUERY))
    assert np.allclose(query.query_QD, [[0.6, 0.8], [0, 1]]) and query.mask_Q.all()
    assert query.text == str(tmp_path / "q.npy")


@pytest.mark.parametrize("pad", [0.0, np.nan])
def test_rows_of_zeros_or_nan_pad_a_batch(pad: float, tmp_path: Path) -> None:
    batch = np.stack([QUERY, QUERY])
    batch[1, 1] = pad
    first, second = read_queries(save(tmp_path / "q.npy", batch.astype(np.float16)))
    assert len(first.query_QD) == 2 and np.allclose(second.query_QD, [[0.6, 0.8]], atol=1e-3)
    assert second.text.endswith("q.npy[1]")


@pytest.mark.parametrize("mask", [np.array([[True, False], [True, True]]), np.array([[1.0, 0], [1, 1]], np.float32)])
def test_a_mask_says_which_tokens_count_and_the_others_may_be_anything(mask: np.ndarray, tmp_path: Path) -> None:
    batch = np.stack([QUERY, QUERY])
    batch[0, 1] = np.inf
    queries = read_queries(save(tmp_path / "q.npy", batch), save(tmp_path / "m.npy", mask))
    assert [len(query.query_QD) for query in queries] == [1, 2]


def test_a_mask_for_one_query() -> None:
    (query,) = queries_from_array(QUERY, np.array([0, 1]))
    assert np.allclose(query.query_QD, [[0, 1]])


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (np.ones(4, np.float32), r"have shape \[4\]"),
        (np.ones((1, 1, 2, 2), np.float32), r"have shape \[1, 1, 2, 2\]"),
        (np.ones((0, 4), np.float32), r"have shape \[0, 4\]"),
        (np.ones((2, 0, 4), np.float32), r"have shape \[2, 0, 4\]"),
        (np.ones((2, 4), complex), "dtype complex128"),
        (np.array([["a", "b"]]), "dtype <U1"),
        (np.ones((2, 4), np.float16).view("V2"), r"dtype \|V2 \(bfloat16"),
        (np.array([[np.nan, 1]]), "NaN, infinite or all zeros"),
        (np.array([[np.inf, 1]]), "NaN, infinite or all zeros"),
        (np.zeros((2, 4)), "NaN, infinite or all zeros"),
        (np.array([[[1.0, np.nan], [1, 1]]]), r"query\[0\]: .*NaN, infinite or all zeros"),
        (np.stack([QUERY, QUERY * 0]), r"query\[1\]: no query token counts"),
    ],
)
def test_what_is_no_query_is_refused(values: np.ndarray, told: str) -> None:
    with pytest.raises(InputError, match=told):
        queries_from_array(values)


@pytest.mark.parametrize(
    ("mask", "told"),
    [
        (np.ones(3), r"mask has shape \[3\]"),
        (np.array([1, 2]), "values other than 0 and 1"),
        (np.array(["a", "b"]), "values other than 0 and 1"),
        (np.zeros(2), "no query token counts"),
    ],
)
def test_what_is_no_mask_is_refused(mask: np.ndarray, told: str) -> None:
    with pytest.raises(InputError, match=told):
        queries_from_array(QUERY, mask)


def test_files_that_are_no_arrays_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_queries(tmp_path / "none.npy")
    with pytest.raises(InputError, match="Python objects, which are never opened"):
        read_queries(save(tmp_path / "o.npy", np.array([{}, 1], dtype=object)))
    (tmp_path / "t.npy").write_text("hello")
    with pytest.raises(InputError, match=r"is not a \.npy array of numbers"):
        read_queries(tmp_path / "t.npy")
    cut = save(tmp_path / "c.npy", QUERY)
    cut.write_bytes(cut.read_bytes()[:-3])
    with pytest.raises(InputError, match=r"is not a \.npy array of numbers"):
        read_queries(cut)
    (tmp_path / "e.npy").write_bytes(b"")
    with pytest.raises(InputError, match=r"is not a \.npy array of numbers"):
        read_queries(tmp_path / "e.npy")
