"""gradient.c by itself, against NumPy's sums in float64: what `vctool.models.compiled_gradient` calls, without torch."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest

from vctool.scoring import kernels

LIBRARY = kernels.compiled_library()
pytestmark = pytest.mark.skipif(LIBRARY is None, reason="the kernel is not compiled here")

SHAPES = [(1, 1, 1, 1, 1), (300, 37, 14, 19, 9), (5, 3, 256, 64, 5), (513, 70, 3, 33, 20)]  # M, C, T, D, B


def call(name: str, *given: Any) -> None:
    function = getattr(LIBRARY, name)
    function.restype = None
    function(*(ctypes.c_int64(value) if isinstance(value, int) else ctypes.c_void_p(value.ctypes.data) for value in given))


def problem(columns: int, clips: int, tokens: int, dim: int, queries: int) -> tuple[Any, ...]:
    rng = np.random.default_rng(columns)
    place = rng.integers(0, tokens, (clips, columns)).astype(np.uint8)
    owner = np.sort(rng.integers(0, queries, columns))
    share, query, token = (
        rng.standard_normal(shape).astype(np.float32) for shape in ((clips, queries), (columns, dim), (clips, tokens, dim))
    )
    return place, owner, share, query, token


@pytest.mark.parametrize("shape", SHAPES)
def test_maxima_and_places(shape: tuple[int, int, int, int, int]) -> None:
    columns, clips, tokens = shape[:3]
    similarity = np.random.default_rng(1).integers(-5, 5, (tokens, clips, columns)).astype(np.float32)  # with ties
    best, place = np.empty((clips, columns), np.float32), np.empty((clips, columns), np.uint8)
    for first, last in ((0, clips // 2), (clips // 2, clips)):
        call("vctool_fold", similarity, tokens, clips, columns, first, last, best, place)
    assert np.array_equal(best, similarity.max(axis=0)) and np.array_equal(place, similarity.argmax(axis=0))


@pytest.mark.parametrize("shape", SHAPES)
def test_sums_of_the_tokens_that_were_chosen(shape: tuple[int, int, int, int, int]) -> None:
    columns, clips, tokens, dim, queries = shape
    place, owner, share, _, token = problem(*shape)
    out = np.zeros((columns, dim), np.float32)
    for first, last in ((0, columns // 3), (columns // 3, columns)):
        call("vctool_chosen_tokens", token, tokens, dim, place, columns, share, queries, owner, clips, first, last, out)
    exact = sum(share[c, owner, None].astype(np.float64) * token[c, place[c]] for c in range(clips))
    np.testing.assert_allclose(out, exact, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_sums_of_the_query_tokens_that_chose(shape: tuple[int, int, int, int, int]) -> None:
    columns, clips, tokens, dim, queries = shape
    place, owner, share, query, _ = problem(*shape)
    out = np.zeros((clips, tokens, dim), np.float32)
    for first, last in ((0, clips // 2), (clips // 2, clips)):
        call("vctool_choosing_queries", query, columns, dim, place, share, queries, owner, tokens, first, last, out)
    exact = np.zeros((clips, tokens, dim))
    for c in range(clips):
        np.add.at(exact[c], place[c], share[c, owner, None].astype(np.float64) * query)
    np.testing.assert_allclose(out, exact, rtol=1e-4, atol=1e-4)
