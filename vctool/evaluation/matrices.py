"""Score matrices that are read by chunks: sums, chosen rows, and the scores of texts against a store.

Shape letters: Q queries, N clips, B queries of a batch, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from vctool.errors import InputError, UsageProblem
from vctool.metrics import ScoreMatrix
from vctool.scoring import Branch, ShardSource, TokenSource, batch_scores

# Above this many bytes the scores go to a scratch file instead of memory.
IN_MEMORY_BYTES = 512 << 20
# Queries encoded and scored at once: bounds the query tokens in memory, and the store is read once per batch.
QUERY_BATCH = 256


class ScratchMatrix:
    """float32 [Q, N] in a file, written and read by rows.

    Not a mapping: mapped pages would count as the process's memory as long as the machine has room for them, and a full
    disk would be a signal that kills, not an error.
    """

    def __init__(self, path: Path, shape: tuple[int, int]) -> None:
        self.shape: tuple[int, ...] = shape
        self._file = path.open("w+b", buffering=0)

    def write(self, start: int, score_BN: npt.NDArray[np.float32]) -> None:
        """Put rows in their place. Raises InputError where the disk is full."""
        left = np.ascontiguousarray(score_BN, dtype=np.float32).data.cast("B")
        self._file.seek(start * self.shape[1] * 4)
        try:
            while left:
                left = left[self._file.write(left) :]
        except OSError as problem:
            total = 4 * self.shape[0] * self.shape[1] / 1e9
            raise InputError(
                f"the scores could not be kept in {Path(self._file.name).parent}: {problem.strerror}",
                f"a branch needs {total:.1f} GB there; TMPDIR names another folder",
            ) from None

    def __getitem__(self, rows: slice, /) -> npt.NDArray[Any]:
        start, stop, step = rows.indices(self.shape[0])
        out = np.empty((max(stop - start, 0), self.shape[1]), dtype=np.float32)
        left = out.data.cast("B") if out.size else memoryview(b"")
        self._file.seek(start * self.shape[1] * 4)
        while left:
            read = self._file.readinto(left)
            if not read:
                raise InputError(f"{self._file.name} ends early", "something else has cut it")
            left = left[read:]
        return out[::step]

    def close(self) -> None:
        self._file.close()


class SumMatrix:
    """S_F + S_V without holding it: float32 [Q, N], rows added when read."""

    def __init__(self, frame_QN: ScoreMatrix, video_QN: ScoreMatrix) -> None:
        self._frame, self._video = frame_QN, video_QN
        self.shape: tuple[int, ...] = tuple(frame_QN.shape)

    def __getitem__(self, rows: slice, /) -> npt.NDArray[Any]:
        total: npt.NDArray[Any] = np.asarray(self._frame[rows]) + np.asarray(self._video[rows])
        return total


class ChosenRows:
    """Some rows of a matrix, in a given order."""

    def __init__(self, sims_QN: npt.NDArray[Any], rows: npt.NDArray[np.int64]) -> None:
        self._sims, self._rows = sims_QN, rows
        self.shape: tuple[int, ...] = (len(rows), int(sims_QN.shape[1]))

    def __getitem__(self, rows: slice, /) -> npt.NDArray[Any]:
        return np.asarray(self._sims[self._rows[rows]])


class EncodedQuery(Protocol):
    """Query tokens [Q, D] and the mask of those that count."""

    @property
    def query_QD(self) -> npt.NDArray[Any]: ...

    @property
    def mask_Q(self) -> npt.NDArray[Any]: ...


class Encoder(Protocol):
    """What scoring needs of a text encoder: `vctool.runtime.encoder.TextEncoder`, or anything that looks like one."""

    def encode(self, texts: Sequence[str], /) -> Sequence[EncodedQuery]: ...


@contextmanager
def scored_store(
    texts: Sequence[str],
    encoder: Encoder,
    store: TokenSource | ShardSource,
    columns: npt.NDArray[np.int64],
    branches: Sequence[Branch],
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[dict[Branch, ScoreMatrix]]:
    """Scores of every text against the store's clips `columns`, one float32 matrix [Q, N] per branch.

    Only `f` and `v` are kept; `fv` is their sum when read. Big matrices live in scratch files that go with the context.
    """
    needed: list[Branch] = [b for b in ("f", "v") if any(b in asked for asked in branches)]
    shape = (len(texts), len(columns))
    with TemporaryDirectory(prefix="vctool-scores-") as scratch, ExitStack() as stack:
        kept: dict[Branch, npt.NDArray[np.float32] | ScratchMatrix] = {}
        for branch in needed:
            if len(needed) * shape[0] * shape[1] * 4 <= IN_MEMORY_BYTES:
                kept[branch] = np.empty(shape, dtype=np.float32)
            else:
                kept[branch] = file = ScratchMatrix(Path(scratch) / branch, shape)
                stack.callback(file.close)
        asked: Branch = "fv" if len(needed) == 2 else needed[0]
        for start in range(0, len(texts), QUERY_BATCH):
            batch = encoder.encode(texts[start : start + QUERY_BATCH])
            _, frame_BN, video_BN = batch_scores([(q.query_QD, q.mask_Q) for q in batch], store, asked)
            for branch, score_BN in (("f", frame_BN), ("v", video_BN)):
                target = kept.get(branch)
                if isinstance(target, ScratchMatrix):
                    target.write(start, score_BN[:, columns])
                elif target is not None:
                    target[start : start + len(batch)] = score_BN[:, columns]
            if progress is not None:
                progress(start + len(batch), len(texts))
        yield {b: SumMatrix(kept["f"], kept["v"]) if b == "fv" else kept[b] for b in branches}


def check_branches(branches: Sequence[str]) -> list[Branch]:
    """The branches asked for, each once, in the order f, v, fv. Raises UsageProblem for any other name."""
    known: Mapping[str, Branch] = {"f": "f", "v": "v", "fv": "fv"}
    for branch in branches:
        if branch not in known:
            raise UsageProblem(f"unknown branch '{branch}'", "branches are f, v and fv")
    return [own for name, own in known.items() if name in branches]
