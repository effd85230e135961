"""Which clips train, which choose the weights, and which are held out in turn; what belongs together is never torn apart."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from vctool.errors import InputError
from vctool.training.clips import ClipSet, TrainingClip, read_clips, refuse_overlap
from vctool.training.recipe import Recipe


def read_splits(recipe: Recipe) -> tuple[ClipSet, ClipSet]:
    """Training and validation clips; refuses splits that overlap, and manifests of which too little can be held out.

    With `data.folds`, the first of the folds is the validation: the size of each of the trainings that such a run is made of.
    """
    data = recipe.data
    train = read_clips(data.train, data.limit)
    if data.select_on_test:
        assert data.test is not None  # the recipe was checked
        validation = read_clips(data.test, data.validation_limit)
        refuse_overlap(train, validation, None)
    elif data.validation is not None:
        validation = read_clips(data.validation, data.validation_limit)
        refuse_overlap(train, validation, data.test)
    elif data.hold_out:
        train, validation = hold_out(train, data.hold_out)
        if data.test is not None:
            refuse_overlap(train, read_clips(data.test), None)
    else:
        held = fold_members(train.clips, data.folds, recipe.run.seed)[0]
        train, validation = train.without(set(held)), train.only(held)
    return train, validation


def hold_out(clips: ClipSet, share: float) -> tuple[ClipSet, ClipSet]:
    """The rest, and about `share` of the clips (from 1 up: that many), chosen by the hash of their names: the same under every seed."""
    wanted = share if share >= 1 else share * len(clips)
    own = families(clips.clips)
    order = sorted(own, key=lambda members: hashlib.sha256(clips.clips[members[0]].input.id.encode()).digest())
    held: list[int] = []
    for members in order:
        if len(held) + len(members) / 2 > wanted and held:
            break
        held += members
    if len(held) > len(clips) - 2 or not held:
        raise InputError(
            f"{clips.path} has {len(clips)} clips in {len(own)} unrelated families: {share:g} of them cannot be held out",
            "name a manifest of other clips as data.validation",
        )
    return clips.without(set(held)), clips.only(sorted(held))


def fold_members(clips: Sequence[TrainingClip], folds: int, seed: int) -> list[list[int]]:
    """Positions of the clips of each of `folds` folds, alike in size; families are shuffled by `seed` and stay whole.

    Raises InputError where there are fewer than 2 unrelated clips a fold: a single clip among itself is always found.
    """
    own = families(clips)
    if len(own) < 2 * folds:
        raise InputError(
            f"{len(clips)} clips in {len(own)} unrelated families are too few to hold out {folds} times: each time wants at least two",
            "caption more clips, or lower data.folds",
        )
    order = np.random.default_rng([seed, 0xF01D]).permutation(len(own))
    found: list[list[int]] = [[] for _ in range(folds)]
    # The largest first, each into the smallest fold: a family of many clips must not make one fold of everything.
    for members in sorted((own[i] for i in order), key=len, reverse=True):
        min(found, key=len).extend(members)
    if min(map(len, found)) < 2:
        raise InputError(f"the clips of one group are more than can be shared out over {folds} folds", "lower data.folds")
    return [sorted(members) for members in found]


def families(clips: Sequence[TrainingClip]) -> list[list[int]]:
    """Positions of clips that are no test of one another: pieces of one file, and clips of one `group`."""
    parent = list(range(len(clips)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    first: dict[tuple[str, str], int] = {}
    for i, clip in enumerate(clips):
        marks = [("file", str(clip.input.path.resolve()))] + ([] if clip.group is None else [("group", clip.group)])
        for mark in marks:
            parent[root(i)] = root(first.setdefault(mark, i))
    found: dict[int, list[int]] = {}
    for i in range(len(clips)):
        found.setdefault(root(i), []).append(i)
    return list(found.values())
