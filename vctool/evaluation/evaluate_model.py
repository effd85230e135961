"""Evaluate a model directory: on a token store, or on the videos themselves. No torch.

Shape letters: Q queries, N clips.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from vctool.data import Located, Split, VideoFolder, locate
from vctool.data.locate import strip_suffix
from vctool.errors import InputError, UsageProblem
from vctool.evaluation.evaluate import DEFAULTS, Bank, Settings, Subject, evaluate_scores
from vctool.evaluation.matrices import EncodedQuery, Encoder, check_branches, scored_store
from vctool.evaluation.result import Evaluation
from vctool.metrics import ScoreMatrix
from vctool.scoring import Branch

if TYPE_CHECKING:
    from vctool.runtime.indexing import IndexProgress
    from vctool.runtime.model import Model
    from vctool.store import Store


def model_branches(interaction: Branch) -> list[Branch]:
    """The branches a model has: all three side by side if it was made for their sum."""
    return ["f", "v", "fv"] if interaction == "fv" else [interaction]


def match_clips(split: Split, store: Store) -> npt.NDArray[np.int64]:
    """The store's clip for each clip of the split, int64 [N], -1 where it has none.

    By id; else by the same file and piece; else by the file's name without its suffix, where only one clip has it.
    """
    by_id = {one: at for at, one in enumerate(store.clip_ids)}
    columns = np.asarray([by_id.get(clip.id, -1) for clip in split.clips], dtype=np.int64)
    if (columns >= 0).all():
        return columns
    by_piece: dict[tuple[str, float | None, float | None], int] = {}
    by_stem: dict[str, list[int]] = {}
    for at, one in enumerate(store.clip_ids):
        meta, path = store.clip_meta(at), store.resolve_path(at)
        if path is not None:
            by_piece.setdefault((str(path.resolve()), meta.get("start"), meta.get("end")), at)
        for stem in {strip_suffix(one), strip_suffix(Path(store.clip_path(at)).name)}:
            by_stem.setdefault(stem, []).append(at)
    taken = set(columns[columns >= 0].tolist())
    for number, clip in enumerate(split.clips):
        if columns[number] >= 0:
            continue
        found = None if clip.path is None else by_piece.get((str(clip.path.resolve()), clip.start, clip.end))
        if found is None and clip.start is None:
            named = next((by_stem[stem] for stem in (clip.id, *clip.stems) if stem in by_stem), [])
            found = named[0] if len(named) == 1 else None
        if found is not None and found not in taken:
            columns[number] = found
            taken.add(found)
    return columns


def evaluate_store(
    split: Split,
    store: Store,
    model: Model,
    *,
    branches: Sequence[str] = (),
    settings: Settings = DEFAULTS,
    bank: Bank | None = None,
    encoder: Encoder | None = None,
    why_missing: str = "are not in the store",
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Queries of a split against a token store.

    The gallery is the split's clips; others in the store are left out, and the split's clips that it lacks are dropped
    with their queries, both counted in the notes. branches: default all that the model has.
    Raises StoreError if the store was made with another model.
    """
    config = model.directory.config
    asked = check_branches(branches) if branches else model_branches(config.interaction)
    split, columns, notes = match_split(split, store, model, why_missing)
    if bank is not None and bank.scores is not None and len(asked) > 1:
        raise UsageProblem("a bank of scores belongs to one branch", "choose it with --branch, or give the bank as texts")
    queries = _Counting(encoder or model.text)
    with scored_store(split.query_texts, queries, store, columns, asked, progress=progress) as scores, ExitStack() as stack:
        if queries.cut:
            notes.append(f"{queries.cut} queries are longer than the {config.query.max_length} tokens that the model reads, and were cut")
        banked: Mapping[str, ScoreMatrix] | None = None
        if bank is not None and bank.scores is not None:
            banked = {asked[0]: bank.scores}
        elif bank is not None:
            banked = _named(stack.enter_context(scored_store(bank.texts, queries, store, columns, asked)))
        primary = config.interaction if config.interaction in asked else asked[-1]
        places = store_places(store, split.clip_ids, columns)
        facts, frames = model_facts(store, model), frames_per_clip(store, config.frames)
        subject = Subject(facts, primary, frames, config.query.max_length, tuple(notes), places)
        return evaluate_scores(_named(scores), split, subject, settings, banked)


def match_split(
    split: Split, store: Store, model: Model, why_missing: str = "are not in the store"
) -> tuple[Split, npt.NDArray[np.int64], list[str]]:
    """The split as far as the store holds its clips, the store's clip for each of its clips (int64 [N]), and notes on the rest.

    Raises StoreError if the store was made with another model, InputError if it holds none of the clips.
    """
    from vctool.runtime.search import require_same_model

    require_same_model(store, model.directory)
    columns = match_clips(split, store)
    if not (columns >= 0).any():
        raise InputError(
            f"none of the {len(split.clips)} clips of {split.benchmark} {split.name} is in {store.path}",
            f"ids there look like '{store.clip_ids[0]}', in the data like '{split.clips[0].id}'" if len(store) else "the store is empty",
        )
    split = split.keep((columns >= 0).tolist(), why_missing)
    columns = columns[columns >= 0]
    notes = [f"{len(store) - len(columns)} clips of the store are not in the split and left out"] if len(store) > len(columns) else []
    return split, columns, notes


def model_facts(store: Store, model: Model) -> dict[str, Any]:
    """What was scored: model and store with their hashes."""
    config = model.directory.config
    held = {"clips": len(store), "dtype": store.dtype, "frames": store.manifest.get("frames"), "sha256": store_sha256(store)}
    return {
        "kind": "model",
        "model": {"name": config.name, "sha256": model.directory.fingerprint, "interaction": config.interaction},
        "query_policy": config.query.policy,
        "expand": config.query.expand,
        "store": held,
    }


def store_sha256(store: Store) -> str:
    """One hash for what decides a score: SHA-256 over the recorded hashes of the tokens and ids (not of paths and metadata)."""
    lines = ""
    for shard in store.shards:
        arrays = shard.manifest.get("arrays", {})
        deciding = sorted(name for name in arrays if name.startswith(("frame_", "video_", "clip_ids")))
        lines += "".join(f"{arrays[name].get('sha256')}  {name}\n" for name in deciding)
    return hashlib.sha256(lines.encode()).hexdigest()


def store_places(store: Store, ids: Sequence[str], columns: npt.NDArray[np.int64]) -> dict[str, Located]:
    """Where the videos of clips `ids`, which are the store's clips `columns`, lie as far as the store knows."""
    places: dict[str, Located] = {}
    for one, column in zip(ids, columns.tolist(), strict=True):
        path, meta = store.resolve_path(column), store.clip_meta(column)
        if path is not None:
            places[one] = Located(path, _second(meta.get("start")), _second(meta.get("end")))
    return places


def _second(value: Any) -> float | None:
    """A time of a clip's metadata, which may come from other hands: what is no time is none."""
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < float("inf") else None


class _Counting:
    """An encoder that counts the queries it had to cut."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self.cut = 0

    def encode(self, texts: Sequence[str], /) -> Sequence[EncodedQuery]:
        encoded = self._encoder.encode(texts)
        self.cut += sum(bool(getattr(query, "dropped", "")) for query in encoded)
        return encoded


def _named(scores: Mapping[Branch, ScoreMatrix]) -> dict[str, ScoreMatrix]:
    return {str(branch): matrix for branch, matrix in scores.items()}


def frames_per_clip(store: Store, otherwise: int) -> int:
    """How many frames of each clip the store's tokens were made from."""
    frames = store.manifest.get("frames")
    count = frames.get("count") if isinstance(frames, dict) else frames
    return count if isinstance(count, int) else otherwise


def evaluate_videos(
    split: Split,
    model: Model,
    videos: Path | None,
    *,
    keep_store: Path | None = None,
    branches: Sequence[str] = (),
    settings: Settings = DEFAULTS,
    bank: Bank | None = None,
    frames: int | None = None,
    workers: int | None = None,
    indexing: Callable[[IndexProgress], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """A model directory on videos: the split's clips are found, indexed into a store, and evaluated.

    videos: folder to find them in; None takes the paths of the manifest. keep_store: where the store stays (and is updated
    next time); None makes a temporary one. Missing and broken clips are dropped with their queries and counted.
    """
    with indexed(split, model, videos, keep_store=keep_store, frames=frames, workers=workers, indexing=indexing) as (store, why_missing):
        return evaluate_store(
            split, store, model, branches=branches, settings=settings, bank=bank, why_missing=why_missing, progress=progress
        )


@contextmanager
def indexed(
    split: Split,
    model: Model,
    videos: Path | None,
    *,
    keep_store: Path | None = None,
    frames: int | None = None,
    workers: int | None = None,
    indexing: Callable[[IndexProgress], None] | None = None,
) -> Iterator[tuple[Store, str]]:
    """A store of the split's clips, made now, and why others are missing. Arguments as of `evaluate_videos`."""
    from vctool.runtime.indexing import index_videos
    from vctool.store import open_store

    disk = None if videos is None else VideoFolder(videos)
    places = [locate(clip, disk) for clip in split.clips]
    if not any(places):
        where = videos or "the places that the manifest names"
        raise InputError(
            f"none of the {len(split.clips)} videos of {split.benchmark} {split.name} is in {where}", "give their folder with --videos DIR"
        )
    with TemporaryDirectory(prefix="vctool-evaluate-") as scratch:
        listing = Path(scratch) / "clips.jsonl"
        listing.write_text(_manifest(split, places), encoding="utf-8")
        output = keep_store or Path(scratch) / "clips.npz"
        report = index_videos([listing], output, model, frames=frames, workers=workers, progress=indexing)
        missing = sum(place is None for place in places)
        with open_store(output) as store:
            yield store, f"could not be used ({missing} missing, {len(report.failed)} broken)"


def _manifest(split: Split, places: Sequence[Located | None]) -> str:
    rows = []
    for clip, place in zip(split.clips, places, strict=True):
        if place is not None:
            row: dict[str, Any] = {"id": clip.id, "path": str(place.path.resolve())}
            row |= {key: value for key, value in (("start", place.start), ("end", place.end)) if value is not None}
            rows.append(json.dumps(row, ensure_ascii=False) + "\n")
    return "".join(rows)
