"""Other people's systems: a bare similarity matrix in a file, and what its rows and columns mean."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vctool.data import Clip, Query, Split, load_split, read_qrels
from vctool.data.files import read_lines, refuse_duplicates
from vctool.errors import InputError
from vctool.evaluation.matrices import ChosenRows
from vctool.metrics import ScoreMatrix


@dataclass(frozen=True)
class Matrix:
    """Somebody's scores with what they mean: sims [Q, N], and a split whose queries and clips are its rows and columns."""

    sims: ScoreMatrix
    split: Split
    path: Path


def read_matrix(path: Path) -> tuple[npt.NDArray[Any], list[str] | None, list[str] | None]:
    """(scores [Q, N], query ids, clip ids) from a `.npy` (mapped, not loaded) or an `.npz` with `sims` and, if at all, both ids.

    Raises InputError on anything that is no plain two-dimensional array of real numbers.
    """
    try:
        loaded = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as problem:
        if "pickle" in str(problem).lower() or "object" in str(problem).lower():
            raise InputError(
                f"{path} holds pickled objects or is no NumPy file", "save the scores as a plain float array with np.save"
            ) from None
        raise InputError(f"{path} is not a readable .npy or .npz file ({problem})") from None
    query_ids = clip_ids = None
    if isinstance(loaded, np.lib.npyio.NpzFile):
        with loaded:
            names = loaded.files
            key = "sims" if "sims" in names else names[0] if len(names) == 1 else None
            if key is None:
                raise InputError(f"{path} has no array 'sims'", f"its arrays are: {', '.join(names) or 'none'}")
            try:
                sims = loaded[key]
                query_ids, clip_ids = (_texts(loaded[n], f"{path}: {n}") if n in names else None for n in ("query_ids", "clip_ids"))
            except (ValueError, zipfile.BadZipFile) as problem:
                raise InputError(f"{path} is damaged or holds pickled objects ({problem})") from None
    else:
        sims = loaded
    if sims.ndim != 2:
        raise InputError(f"{path}: a similarity matrix has two dimensions (queries, clips), got shape {tuple(sims.shape)}")
    if 0 in sims.shape:
        raise InputError(f"{path}: the similarity matrix is empty ({sims.shape[0]} queries, {sims.shape[1]} clips)")
    if sims.dtype.kind not in "fiu":
        raise InputError(f"{path}: the similarity matrix must hold real numbers, got {sims.dtype}")
    return sims, query_ids, clip_ids


def matrix_from_files(
    sims_path: Path,
    qrels_path: Path | None = None,
    *,
    query_ids_path: Path | None = None,
    clip_ids_path: Path | None = None,
    encoding: str = "utf-8",
) -> Matrix:
    """A bare matrix and its judgements. Without qrels query i's right clip is column i, and the matrix must be square.

    Ids: from the files (one a line), else from the `.npz`, else the row and column numbers from 0. Rows without a right
    clip in the qrels are left out with a note. Raises InputError on ids that do not fit the shape or that nobody knows.
    """
    sims, query_ids, clip_ids = read_matrix(sims_path)
    queries, clips = sims.shape
    query_ids = _ids(query_ids_path, query_ids, queries, "queries", encoding)
    clip_ids = _ids(clip_ids_path, clip_ids, clips, "clips", encoding)
    name = sims_path.stem
    gallery = tuple(Clip(id=one) for one in clip_ids)
    if qrels_path is None:
        if queries != clips:
            raise InputError(
                f"{sims_path} is {queries} x {clips}: without qrels query i's right clip is column i, so it must be square",
                "say which clips are right with --qrels FILE (query, clip, grade per line)",
            )
        own = tuple(Query(one, one, ((at, 1.0),)) for at, one in enumerate(query_ids))
        return Matrix(sims, Split(name, "matrix", "one", gallery, own, sources=(sims_path,)), sims_path)
    qrels = read_qrels(qrels_path, encoding)
    row_of, column_of = ({one: at for at, one in enumerate(ids)} for ids in (query_ids, clip_ids))
    stranger = next((one for one in qrels if one not in row_of), None)
    if stranger is not None:
        raise InputError(
            f"{qrels_path}: query '{stranger}' is no row of {sims_path.name}", _id_hint(query_ids_path, "--query-ids", queries)
        )
    unknown = [clip for judged in qrels.values() for clip in judged if clip not in column_of]
    if unknown:
        raise InputError(
            f"{qrels_path}: {len(unknown)} judgements of clips that are no column of {sims_path.name}, the first '{unknown[0]}'",
            _id_hint(clip_ids_path, "--clip-ids", clips),
        )
    rows: list[int] = []
    judged_queries: list[Query] = []
    for at, one in enumerate(query_ids):
        right = tuple((column_of[clip], grade) for clip, grade in qrels.get(one, {}).items() if grade > 0)
        if right:
            rows.append(at)
            judged_queries.append(Query(one, one, right))
    if not rows:
        raise InputError(f"{qrels_path}: no query has a relevant clip")
    notes = (f"{queries - len(rows)} of {queries} queries without a relevant clip left out",) if len(rows) < queries else ()
    split = Split(name, "matrix", "qrels", gallery, tuple(judged_queries), notes, (sims_path, qrels_path))
    chosen: ScoreMatrix = sims if len(rows) == queries else ChosenRows(sims, np.asarray(rows, dtype=np.int64))
    return Matrix(chosen, split, sims_path)


def matrix_for_split(sims_path: Path, split: Split) -> Matrix:
    """A bare matrix whose rows and columns are the queries and clips of a loaded split, in its order."""
    sims, query_ids, clip_ids = read_matrix(sims_path)
    if sims.shape != (len(split.queries), len(split.clips)):
        raise InputError(
            f"{sims_path} is {sims.shape[0]} x {sims.shape[1]} but {split.benchmark} {split.name} has "
            f"{len(split.queries)} queries and {len(split.clips)} clips",
            "rows are the split's queries and columns its clips, in its order",
        )
    for given, own, what in ((query_ids, [q.id for q in split.queries], "query"), (clip_ids, split.clip_ids, "clip")):
        if given is not None and given != own:
            at = next(i for i, (a, b) in enumerate(zip(given, own, strict=True)) if a != b)
            raise InputError(
                f"{sims_path}: {what} {at} is '{given[at]}' but '{own[at]}' in the split", "bring the matrix into the split's order"
            )
    return Matrix(sims, split, sims_path)


def texts_from_file(path: Path, encoding: str = "utf-8") -> list[str]:
    """Bank queries: one text a line, or all captions of a `.jsonl` manifest."""
    if path.suffix.lower() == ".jsonl":
        return load_split(str(path), encoding=encoding).query_texts
    lines = read_lines(path, encoding)
    if not lines:
        raise InputError(f"{path} holds no queries", "give one a line")
    return lines


def _texts(array: npt.NDArray[Any], where: str) -> list[str]:
    if array.ndim != 1 or array.dtype.kind not in "US":
        raise InputError(f"{where}: expected a row of texts, got {array.dtype} {tuple(array.shape)}")
    return [one.decode() if isinstance(one, bytes) else str(one) for one in array.tolist()]


def _ids(path: Path | None, given: list[str] | None, count: int, what: str, encoding: str) -> list[str]:
    ids, where = given, "the .npz"
    if path is not None:
        ids, where = read_lines(path, encoding), str(path)
    if ids is None:
        return [str(i) for i in range(count)]
    if len(ids) != count:
        raise InputError(f"{where}: {len(ids)} ids for {count} {what} of the matrix")
    refuse_duplicates(ids, where)
    return ids


def _id_hint(path: Path | None, option: str, count: int) -> str | None:
    if path is not None:
        return None
    return f"without {option} FILE ids are the numbers 0 to {count - 1}"
