"""Which clips of a store a search may show: those whose metadata pass a filter, and those on a list.

Shape letters: N clips.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vctool.errors import InputError
from vctool.runtime.filter_language import Filter, has, parse_filter
from vctool.store import Store

Bool = NDArray[np.bool_]

_NAMED = 3  # unknown ids that a warning names
_NEAR = 100_000  # ids among which similar ones are looked for
BUILT_IN = ("id", "path")  # keys that are not in the metadata


@dataclass(frozen=True, eq=False)
class Allowed:
    """clip_N: bool, None if every clip is allowed. notes: what the user should know, a line each."""

    clip_N: Bool | None = None
    notes: tuple[str, ...] = ()


def allowed_clips(store: Store, where: str | Filter | None = None, ids: Iterable[str] | None = None) -> Allowed:
    """The clips that pass `where` (see `filter_language`; `id` and `path` are keys too) and, if `ids` is given, are named there.

    Reads every clip's metadata once if there is a filter. Ids may repeat. Raises UsageProblem for a filter that is not understood,
    InputError if none of the ids is in the store.
    """
    clip_N, notes = None, []
    if ids is not None:
        clip_N, note = _listed(store, ids)
        notes += note
    if where is not None:
        passed = parse_filter(where) if isinstance(where, str) else where
        passing_N, note = _passing(store, passed, clip_N)
        clip_N = passing_N
        notes += note
    return Allowed(clip_N, tuple(notes))


def _listed(store: Store, ids: Iterable[str]) -> tuple[Bool, list[str]]:
    listed_N, wanted = np.zeros(len(store), bool), list(dict.fromkeys(ids))
    unknown = [clip_id for clip_id in wanted if clip_id not in store]
    listed_N[[store.index_of(clip_id) for clip_id in wanted if clip_id in store]] = True
    if not wanted:
        raise InputError("the list of ids is empty", "give one clip id a line; `vctool info` lists them")
    if not unknown:
        return listed_N, []
    named = ", ".join(repr(one) for one in unknown[:_NAMED]) + (", …" if len(unknown) > _NAMED else "")
    near = difflib.get_close_matches(unknown[0], store.clip_ids, 1) if len(store) <= _NEAR else []
    hint = f"did you mean {near[0]!r}?" if near else "`vctool info` lists the ids"
    if len(unknown) == len(wanted):
        raise InputError(f"{store.path}: has none of the {len(wanted)} ids: {named}", hint)
    return listed_N, [f"{len(unknown)} of {len(wanted)} ids are not in the store: {named}; {hint}"]


def _passing(store: Store, passes: Filter, among_N: Bool | None) -> tuple[Bool, list[str]]:
    passing_N = np.zeros(len(store), bool)
    lacking = set(passes.keys)
    built_in = {key[0] for key in passes.keys} & set(BUILT_IN)
    clip = 0
    for shard in store.shards:
        for local, found in enumerate(shard.metas()):
            if among_N is None or among_N[clip]:
                meta: Mapping[str, Any] = found
                if built_in:
                    meta = {**found, **{key: shard.clip_id(local) if key == "id" else shard.clip_path(local) for key in built_in}}
                passing_N[clip] = passes(meta)
                if lacking:
                    lacking -= {key for key in lacking if has(meta, key)}
            clip += 1
    return passing_N, [_lack(store, key) for key in passes.keys if key in lacking] if among_N is None or among_N.any() else []


def _lack(store: Store, key: tuple[str, ...]) -> str:
    """What to say about a key that no clip has."""
    known: set[str] = set(BUILT_IN)
    for shard in store.shards:
        for meta in shard.metas():
            known.update(_paths(meta))
    wanted = ".".join(key)
    near = difflib.get_close_matches(wanted, known, 3, 0.5) or difflib.get_close_matches(wanted.lower(), known, 3, 0.5)
    told = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(sorted(known)[:12])}{', …' if len(known) > 12 else ''}"
    return f"no clip has {wanted!r} in its metadata; {told}"


def _paths(meta: Mapping[str, Any], before: str = "", depth: int = 0) -> Iterable[str]:
    for name, value in meta.items():
        yield before + name
        if isinstance(value, Mapping) and depth < 4:
            yield from _paths(value, f"{before}{name}.", depth + 1)
