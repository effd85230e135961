"""A store from token arrays: the way in for models that are not ours.

Shape letters: N clips.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vctool.errors import StoreError
from vctool.store.format import StoreDtype
from vctool.store.output import Outcome, Output
from vctool.store.token_rows import TokenRows


def create_store(
    output: Output,
    frame: TokenRows,
    video: TokenRows | None = None,
    *,
    ids: Sequence[str] | None = None,
    paths: Sequence[str] | None = None,
    metas: Sequence[Mapping[str, Any]] | None = None,
    model: Mapping[str, Any] | str | None = None,
    dtype: StoreDtype = "int8",
) -> Outcome:
    """Write a store of N clips from their tokens (see `TokenRows.of`), checked and encoded in blocks.

    ids: unique texts, by default `0` to `N-1`. paths: of the videos or pages. metas: JSON objects. model: the manifest's `model` entry,
    or a name, which keeps stores of different models from being merged.
    Raises StoreError, naming the clip: tokens that are NaN, infinite, zero or not of unit length, ids that repeat; no store is
    written then.
    """
    clips = len(frame)
    if video is not None and len(video) != clips:
        raise StoreError(f"frame tokens of {clips} clips, video tokens of {len(video)}", "give both for the same clips, in one order")
    names = [str(i) for i in range(clips)] if ids is None else list(ids)
    entry = {"name": model} if isinstance(model, str) else dict(model or {})
    entry.setdefault("interaction", "f" if video is None else "fv")
    manifest = {"model": entry, "dim": int(frame.tokens.shape[-1])}
    with output.writer(manifest, dtype) as writer:
        writer.add_many(names, frame, video, paths=paths, metas=metas)
        writer.commit()
    return Outcome.of(output.path)
