"""Which clips are right for which query, in one form whatever the caller has."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import numpy as np
import numpy.typing as npt

from vctool.errors import InputError

IntArray: TypeAlias = npt.NDArray[np.int64]
FloatArray: TypeAlias = npt.NDArray[np.float64]

# An int array [Q] (one right clip each), or per query an iterable of column numbers, or a {column: grade} mapping.
Relevance: TypeAlias = "npt.NDArray[Any] | Sequence[int] | Sequence[Iterable[int]] | Sequence[Mapping[int, float]]"


@dataclass(frozen=True)
class RelevanceSets:
    """Query q's right clips are `columns[offsets[q]:offsets[q+1]]`, with gains `grades` over the same span.

    columns: int64, distinct within a query. grades: float64 > 0 (1 unless graded judgements were given).
    offsets: int64 [Q+1]; every query has at least one right clip.
    """

    columns: IntArray
    grades: FloatArray
    offsets: IntArray

    @property
    def queries(self) -> int:
        return len(self.offsets) - 1

    @property
    def single(self) -> bool:
        """True when every query has exactly one right clip of grade 1: the common case, ranked without sorting."""
        return len(self.columns) == self.queries and bool(np.all(self.grades == 1.0))

    def of(self, query: int) -> tuple[IntArray, FloatArray]:
        """Columns and grades of one query."""
        span = slice(int(self.offsets[query]), int(self.offsets[query + 1]))
        return self.columns[span], self.grades[span]


def query_name(query: int, names: Sequence[str] | None) -> str:
    """How errors name a query: its number from 0 and, where known, its id or text."""
    return f"query {query}" if names is None else f"query {query} ({names[query]!r})"


def as_relevance(relevance: Relevance, clips: int, *, queries: int | None = None, names: Sequence[str] | None = None) -> RelevanceSets:
    """Bring any accepted form of relevance into RelevanceSets.

    clips: number of columns N; a column outside `0..N-1` raises InputError naming the query, as does a query without
    a right clip (its rank would be undefined, and leaving it out would change the number of queries silently).
    Grades of 0 or less mean "not relevant" and are dropped, as in trec_eval.
    """
    if queries is not None and len(relevance) != queries:
        raise InputError(
            f"the similarity matrix has {queries} queries but the relevance has {len(relevance)}",
            "give one right clip (or one set of right clips) per query",
        )
    if len(relevance) == 0:
        raise InputError("there are no queries to evaluate")
    flat = _one_each(relevance)
    if flat is not None:
        columns, grades = flat, np.ones(len(flat))
        offsets = np.arange(len(flat) + 1, dtype=np.int64)
    else:
        columns, grades, offsets = _many_each(cast("Sequence[Any]", relevance))
    empty = np.flatnonzero(np.diff(offsets) == 0)
    if len(empty):
        raise InputError(
            f"{query_name(int(empty[0]), names)} has no relevant clip ({len(empty)} such queries)",
            "leave these queries out of the matrix and the relevance, and state how many",
        )
    outside = np.flatnonzero((columns < 0) | (columns >= clips))
    if len(outside):
        query = int(np.searchsorted(offsets, outside[0], side="right")) - 1
        raise InputError(f"{query_name(query, names)}: relevant clip {int(columns[outside[0]])} is not one of the {clips} columns")
    return RelevanceSets(columns, grades, offsets)


def _one_each(relevance: Relevance) -> IntArray | None:
    """The columns as an int64 array if there is plainly one per query, else None."""
    if isinstance(relevance, np.ndarray):
        if relevance.ndim != 1 and relevance.dtype != object:
            raise InputError(f"relevance must be a row of column numbers or a list of sets, got shape {relevance.shape}")
        if relevance.dtype != object:
            return _whole_numbers(relevance)
    if all(isinstance(entry, (int, np.integer)) and not isinstance(entry, (bool, np.bool_)) for entry in relevance):
        return np.asarray([int(cast(Any, entry)) for entry in relevance], dtype=np.int64)
    return None


def _whole_numbers(values: npt.NDArray[Any]) -> IntArray:
    if values.dtype.kind not in "iu":
        raise InputError(f"relevance must hold whole column numbers, got {values.dtype}")
    return values.astype(np.int64)


def _many_each(relevance: Sequence[Any]) -> tuple[IntArray, FloatArray, IntArray]:
    columns: list[IntArray] = []
    grades: list[FloatArray] = []
    for entry in relevance:
        if isinstance(entry, Mapping):
            pairs = sorted((int(column), float(grade)) for column, grade in entry.items() if grade > 0)
            columns.append(np.asarray([column for column, _ in pairs], dtype=np.int64))
            grades.append(np.asarray([grade for _, grade in pairs], dtype=np.float64))
        elif isinstance(entry, (int, np.integer)):
            columns.append(np.asarray([int(entry)], dtype=np.int64))
            grades.append(np.ones(1))
        else:
            listed = entry if isinstance(entry, np.ndarray) else np.asarray(list(entry))
            distinct = np.unique(_whole_numbers(listed) if listed.size else listed.astype(np.int64))
            columns.append(distinct)
            grades.append(np.ones(len(distinct)))
    offsets = np.zeros(len(columns) + 1, dtype=np.int64)
    np.cumsum([len(own) for own in columns], out=offsets[1:])
    return np.concatenate(columns), np.concatenate(grades), offsets
