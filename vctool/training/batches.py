"""Which clips and captions meet in a batch: a pure function of the seed, the epoch and the number of the batch.

A unit is what may not be cut apart: the clips of a group, each with its reversal. Units are shuffled and laid end to end;
batch k holds those that begin in rows `[k * size, (k + 1) * size)`, so the number of batches never depends on the shuffle.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vctool.errors import InputError
from vctool.training.clips import TrainingClip


class Row(NamedTuple):
    """One presentation of a clip; caption: number into the clip's captions (of its direction), None to draw one."""

    clip: int
    reversed: bool
    caption: int | None


@dataclass(frozen=True)
class Batch:
    """B presentations with one caption each.

    clip_B: int64, positions in the clip set. reversed_B: bool. text_B: int64, numbers of texts. positive_BB: bool, True
    where the row's caption is true of the column's presentation: also of another clip that has the same caption.
    """

    clip_B: NDArray[np.int64]
    reversed_B: NDArray[np.bool_]
    text_B: NDArray[np.int64]
    positive_BB: NDArray[np.bool_]

    @property
    def reversal_B(self) -> NDArray[np.int64]:
        """int64: the row that shows the same clip in the other direction of time, for which the row's caption is wrong; else -1."""
        shown = list(zip(self.clip_B.tolist(), self.reversed_B.tolist(), strict=True))
        place = {presentation: row for row, presentation in enumerate(shown)}
        found = np.array([place.get((clip, not back), -1) for clip, back in shown], dtype=np.int64)
        # A caption such as "a dog and a ball" is true both ways: there is no direction to be learnt from it.
        return np.where((found >= 0) & self.positive_BB[np.arange(len(found)), found], -1, found)


class BatchPlan:
    """All batches of a training run over `clips`. `size` is the number of rows that a batch aims at.

    meaning: for each text the number of what it says; texts that say the same are true of the same clips (None: each its own).
    """

    def __init__(
        self,
        clips: Sequence[TrainingClip],
        *,
        size: int,
        seed: int,
        reverse: bool = False,
        caption_choice: Literal["random", "all"] = "random",
        meaning: Sequence[int] | None = None,
    ) -> None:
        self.clips, self.size, self.seed = clips, size, seed
        self._meaning = meaning
        self.units = _units(clips, size, reverse, caption_choice)
        self.rows = sum(len(unit) for unit in self.units)
        if self.rows < 2:
            raise InputError("one clip with a caption is nothing to learn from", "a clip needs others to be told from")
        self.batches = max(1, self.rows // size)
        self._starts = lru_cache(maxsize=2)(self._draw_epoch)

    def batch(self, epoch: int, number: int) -> Batch:
        """Batch `number` (0 to `batches` - 1) of an epoch (from 0)."""
        order, starts = self._starts(epoch)
        low, high = np.searchsorted(starts, [number * self.size, (number + 1) * self.size])
        rows = [row for unit in order[low:high] for row in self.units[unit]]
        rng = np.random.default_rng([self.seed, epoch, number])
        draws = rng.random(len(rows))
        texts = [_captions(self.clips[r.clip], r.reversed) for r in rows]
        chosen = [t[int(u * len(t)) if r.caption is None else r.caption] for r, t, u in zip(rows, texts, draws, strict=True)]
        says = self._says
        true_of = [frozenset(map(says, t)) for t in texts]
        return Batch(
            clip_B=np.array([r.clip for r in rows], dtype=np.int64),
            reversed_B=np.array([r.reversed for r in rows], dtype=np.bool_),
            text_B=np.array(chosen, dtype=np.int64),
            positive_BB=np.array([[says(text) in known for known in true_of] for text in chosen], dtype=np.bool_),
        )

    def _says(self, text: int) -> int:
        return text if self._meaning is None else self._meaning[text]

    def _draw_epoch(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.units))
        lengths = np.array([len(unit) for unit in self.units], dtype=np.int64)[order]
        return order, np.cumsum(lengths) - lengths


def _captions(clip: TrainingClip, backwards: bool) -> tuple[int, ...]:
    return clip.reversed_captions if backwards else clip.captions


def _units(clips: Sequence[TrainingClip], size: int, reverse: bool, choice: str) -> list[tuple[Row, ...]]:
    grouped: dict[tuple[str, str | int], list[int]] = {}
    for number, clip in enumerate(clips):
        key: tuple[str, str | int] = ("clip", number) if clip.group is None else ("group", clip.group)
        grouped.setdefault(key, []).append(number)
    units: list[tuple[Row, ...]] = []
    for members in grouped.values():
        ways = [(m, back) for m in members for back in ((False, True) if reverse else (False,)) if _captions(clips[m], back)]
        passes: list[int | None] = [None]
        if choice == "all":
            passes = list(range(max((len(_captions(clips[m], back)) for m, back in ways), default=0)))
        for caption in passes:
            rows = [Row(m, back, caption) for m, back in ways if caption is None or caption < len(_captions(clips[m], back))]
            # A group beyond a batch's size is cut: better than a batch that does not fit into memory.
            units += [tuple(rows[s : s + size]) for s in range(0, len(rows), size)]
    return units
