"""Explicit judgements: corpus, queries and qrels, as in TREC, BEIR and OmniColPress. Many-to-many comes free."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from vctool.data.files import find_file, read_jsonl, read_text, refuse_duplicates
from vctool.data.locate import strip_suffix
from vctool.data.records import Clip, Query, Split, clean
from vctool.errors import InputError

ID_KEYS = ("_id", "id", "docid", "doc_id", "corpus_id", "clip_id", "query_id", "qid")
FILE_KEYS = ("path", "video", "clip")
TEXT_KEYS = ("text", "query", "caption")
QUERY_COLUMNS = ("query-id", "query_id", "qid", "query", "_id")
CLIP_COLUMNS = ("corpus-id", "corpus_id", "doc_id", "docid", "clip_id", "clip", "column")
GRADE_COLUMNS = ("score", "relevance", "rel", "label", "grade")

Qrels = dict[str, dict[str, float]]


def load(folder: Path, split: str | None = None, encoding: str = "utf-8") -> Split:
    """A folder with corpus.jsonl, queries.jsonl and qrels (`qrels/SPLIT.tsv`, `qrels.SPLIT.tsv` or `qrels.{tsv,txt,jsonl}`).

    Raises InputError on duplicate ids and on judgements of clips or queries that do not exist. Queries without a right
    clip and clips nobody asks for are counted in the notes.
    """
    corpus = find_file(folder, ("corpus.jsonl",), "corpus")
    listing = find_file(folder, ("queries.jsonl", "queries.tsv"), "queries")
    qrels_path = _qrels_file(folder, split)
    clips = [_clip(row, f"{corpus}, line {number}", folder) for number, row in read_jsonl(corpus, encoding)]
    if not clips:
        raise InputError(f"{corpus} is empty")
    refuse_duplicates((clip.id for clip in clips), str(corpus))
    texts = _queries(listing, encoding)
    qrels = read_qrels(qrels_path, encoding)
    position = {clip.id: at for at, clip in enumerate(clips)}
    unknown = [(query, clip) for query, judged in qrels.items() for clip in judged if clip not in position]
    if unknown:
        raise InputError(f"{qrels_path}: {len(unknown)} judgements of clips that {corpus.name} lacks, the first '{unknown[0][1]}'")
    strangers = [query for query in qrels if query not in texts]
    if strangers:
        raise InputError(f"{qrels_path}: {len(strangers)} queries that {listing.name} lacks, the first '{strangers[0]}'")
    queries = [
        Query(one, text, right)
        for one, text in texts.items()
        if (right := tuple((position[clip], grade) for clip, grade in qrels.get(one, {}).items() if grade > 0))
    ]
    if not queries:
        raise InputError(f"{qrels_path}: no query has a relevant clip")
    notes = []
    if len(queries) < len(texts):
        notes.append(f"{len(texts) - len(queries)} queries without a relevant clip left out")
    asked = {at for query in queries for at, _ in query.clips}
    if len(asked) < len(clips):
        notes.append(f"{len(clips) - len(asked)} clips that no query asks for stay in the gallery")
    return Split(folder.name, split or "all", "qrels", tuple(clips), tuple(queries), tuple(notes), (corpus, listing, qrels_path))


def is_trec_folder(folder: Path) -> bool:
    return (folder / "corpus.jsonl").is_file()


def _qrels_file(folder: Path, split: str | None) -> Path:
    endings = ("tsv", "txt", "jsonl", "qrels")
    if split is not None:
        for name in [f"qrels/{split}", f"qrels.{split}", f"{split}_qrels"]:
            for ending in endings:
                if (folder / f"{name}.{ending}").is_file():
                    return folder / f"{name}.{ending}"
    return find_file(folder, tuple(f"qrels.{ending}" for ending in endings), "qrels")


def _clip(row: dict[str, Any], where: str, folder: Path) -> Clip:
    one = _first(row, ID_KEYS)
    if one is None:
        raise InputError(f"{where}: a clip without an id", f"give it under one of: {', '.join(ID_KEYS)}")
    named = _first(row, FILE_KEYS)
    file = None if named is None else (Path(named) if Path(named).is_absolute() else folder / named)
    stems = (one,) if named is None else (strip_suffix(named), strip_suffix(Path(named).name), one)
    meta = {key: value for key, value in row.items() if key not in (*ID_KEYS, *FILE_KEYS, "start", "end")}
    return Clip(id=one, stems=stems, start=row.get("start"), end=row.get("end"), path=file, meta=meta)


def _queries(path: Path, encoding: str) -> dict[str, str]:
    rows: list[tuple[str, str]] = []
    if path.suffix == ".tsv":
        for number, line in enumerate(read_text(path, encoding).split("\n"), start=1):
            if line.strip():
                head, tab, tail = line.rstrip("\r").partition("\t")
                if not tab:
                    raise InputError(f"{path}, line {number}: expected id, tab, text")
                rows.append((head.strip(), clean(tail)))
    else:
        for number, row in read_jsonl(path, encoding):
            one, text = _first(row, ID_KEYS), _first(row, TEXT_KEYS)
            if one is None or text is None:
                raise InputError(f"{path}, line {number}: a query needs an id and a text")
            rows.append((one, clean(text)))
    if not rows:
        raise InputError(f"{path} is empty")
    refuse_duplicates((one for one, _ in rows), str(path))
    return dict(rows)


def _first(row: dict[str, Any], keys: tuple[str, ...]) -> str | None:
    return next((str(row[key]) for key in keys if isinstance(row.get(key), (str, int)) and str(row[key])), None)


def read_qrels(path: Path, encoding: str = "utf-8") -> Qrels:
    """{query id: {clip id: grade}} from 2 columns (query, clip), 3 (query, clip, grade) or 4 (TREC: query, 0, clip, grade).

    Tab- or blank-separated, with or without a header line, or JSON lines. Raises InputError naming the line on a wrong
    number of columns, a grade that is no number, or the same pair twice.
    """
    qrels: Qrels = {}
    for number, query, clip, grade in _judgements(path, encoding):
        where = f"{path}, line {number}"
        try:
            value = float(grade)
        except (TypeError, ValueError):
            raise InputError(f"{where}: the grade '{grade}' is not a number") from None
        if not math.isfinite(value):
            raise InputError(f"{where}: the grade '{grade}' is not a finite number")
        judged = qrels.setdefault(query, {})
        if clip in judged:
            raise InputError(f"{where}: query '{query}' judges clip '{clip}' twice")
        judged[clip] = value
    if not qrels:
        raise InputError(f"{path} holds no judgements")
    return qrels


def _judgements(path: Path, encoding: str) -> list[tuple[int, str, str, Any]]:
    if path.suffix == ".jsonl":
        found: list[tuple[int, str, str, Any]] = []
        for number, row in read_jsonl(path, encoding):
            query, clip = _first(row, QUERY_COLUMNS), _first(row, CLIP_COLUMNS)
            if query is None or clip is None:
                raise InputError(f"{path}, line {number}: a judgement needs query-id and corpus-id")
            found.append((number, query, clip, next((row[key] for key in GRADE_COLUMNS if key in row), 1)))
        return found
    rows: list[tuple[int, list[str]]] = []
    for number, line in enumerate(read_text(path, encoding).split("\n"), start=1):
        if line.strip() and not line.startswith("#"):
            fields = line.rstrip("\r").split("\t") if "\t" in line else line.split()
            rows.append((number, [field.strip() for field in fields]))
    if rows and rows[0][1][0].lower() in QUERY_COLUMNS and any(name.lower() in CLIP_COLUMNS for name in rows[0][1][1:]):
        rows = rows[1:]
    out: list[tuple[int, str, str, Any]] = []
    for number, fields in rows:
        if len(fields) == 2:
            out.append((number, fields[0], fields[1], 1))
        elif len(fields) == 3:
            out.append((number, fields[0], fields[1], fields[2]))
        elif len(fields) == 4:
            out.append((number, fields[0], fields[2], fields[3]))
        else:
            raise InputError(f"{path}, line {number}: {len(fields)} columns", "qrels have 2 (query, clip), 3 (+ grade) or 4 (TREC) columns")
    return out
