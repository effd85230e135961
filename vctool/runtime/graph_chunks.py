"""A store's tokens in chunks for the scorer graph: clips padded to one length, so many that a stated memory holds what they need.

Clips are sorted by length, so that little is padded; where neighbours in the store are of one length, a chunk is a view of the
mapped file. A clip too long for a chunk is cut into pieces.

Shape letters: C rows of a chunk (clips or pieces), T tokens a row is padded to, D width, R query tokens scored at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vctool.errors import UsageProblem
from vctool.precision import Packing, unrotated
from vctool.scoring import TokenSource

Side = Literal["frame", "video"]
Int64 = NDArray[np.int64]

LEAST_ROWS = 32  # query tokens for which a chunk leaves room

_LONGEST = 4096  # tokens of a row
_SHORTEST = 16  # a memory that does not hold a row of so many is too small
_COPIES = 3  # of the similarities [C, T, R] that the graph may hold at a time
_SLACK, _EXTRA = 1.25, 4  # a row of t tokens is padded to at most 1.25 t + 4
_GRAPHS = ("float32", "float16", "int8")  # token types that a graph takes as they are stored


@dataclass(frozen=True)
class Chunk:
    """graph: which scorer graph takes it. arrays: its inputs. clip_C: the clip that each row is, or is a piece of. shape: C, T, D."""

    graph: str
    arrays: dict[str, NDArray[Any]]
    clip_C: Int64
    pieces: bool
    shape: tuple[int, int, int]

    @property
    def bytes(self) -> int:
        """What its arrays take on the device."""
        return self.shape[0] * Layout(self.shape[2], self.graph).stored(self.shape[1])

    def broken(self) -> int | None:
        """A clip with a token that is NaN or infinite, which the graph's maximum might pass over; None if there is none."""
        values = self.arrays["clip_scale" if self.graph == "int8" else "clip_tokens"]
        # Of float16 all bits of the exponent: three times as fast as isfinite.
        bad = (values.view(np.uint16) & 0x7C00) == 0x7C00 if values.dtype == np.float16 else ~np.isfinite(values)
        rows = np.flatnonzero(bad.reshape(len(values), -1).any(axis=1))
        return int(self.clip_C[rows[0]]) if len(rows) else None

    def rows_within(self, memory: int) -> int:
        """How many query tokens can be scored at once within `memory` bytes."""
        clips, tokens, width = self.shape
        layout = Layout(width, self.graph)
        return (memory - self.bytes - clips * layout.cast(tokens)) // layout.for_each_query_token(clips, tokens)


@dataclass(frozen=True)
class Layout:
    """Bytes on the device for tokens of one width and type."""

    width: int
    graph: str

    def stored(self, tokens: int) -> int:
        """Inputs of one row: tokens, mask, scales."""
        size = np.dtype(self.graph).itemsize
        return tokens * (self.width * size + 1 + (4 if self.graph == "int8" else 0))

    def cast(self, tokens: int) -> int:
        """The float32 copy of one row that the graph makes."""
        return 0 if self.graph == "float32" else tokens * self.width * 4

    def for_each_query_token(self, clips: int, tokens: int) -> int:
        """Similarities and maxima, and the query token itself, twice."""
        return 4 * (_COPIES * clips * (tokens + 1) + 3 * self.width)

    def row(self, tokens: int) -> int:
        """One row with its share of the work."""
        return self.stored(tokens) + self.cast(tokens) + LEAST_ROWS * 4 * _COPIES * (tokens + 1)


def layout_of(shard: TokenSource, side: Side) -> Layout:
    """How the tokens of one side of a shard are given to a graph: as stored, or decoded to float32."""
    tokens_TD = getattr(shard, f"{side}_TD")
    graph = tokens_TD.dtype.name if tokens_TD.dtype.name in _GRAPHS else "float32"
    packing: Packing | None = getattr(shard, f"{side}_packing", None)
    width = tokens_TD.shape[1] if packing is None else packing.dim
    return Layout(int(width), graph)


def bytes_to_keep(shard: TokenSource, side: Side) -> int:
    """A bound on what one side of a shard takes as chunks, padding included."""
    length_N = np.diff(getattr(shard, f"{side}_offsets"))
    return layout_of(shard, side).stored(int(_SLACK * int(length_N.sum()) + _EXTRA * len(length_N)))


def chunks(shard: TokenSource, side: Side, memory: int) -> Iterator[Chunk]:
    """All clips with tokens, in chunks that leave room for `LEAST_ROWS` query tokens within `memory` bytes; pieces come last.

    Raises UsageProblem where even a short piece of a clip does not fit.
    """
    layout = layout_of(shard, side)
    room = memory - LEAST_ROWS * 12 * layout.width
    longest = min(_LONGEST, room // layout.row(1))
    if longest < _SHORTEST:
        least = LEAST_ROWS * 12 * layout.width + layout.row(1) * _SHORTEST
        raise UsageProblem(
            f"{memory / 1e3:.0f} kB is too little memory to score tokens {layout.width} wide", f"at least {least / 1e3:.0f} kB are needed"
        )
    offsets: Int64 = getattr(shard, f"{side}_offsets")
    length_N = np.diff(offsets)
    short = np.flatnonzero((length_N > 0) & (length_N <= longest))
    order = short[np.argsort(length_N[short], kind="stable")]
    for clip_C in _runs(order, length_N[order], layout, room):
        yield _packed(shard, side, layout.graph, clip_C, offsets[clip_C], length_N[clip_C], pieces=False)
    long = np.flatnonzero(length_N > longest)
    count = -(-length_N[long] // longest)
    clip_P = np.repeat(long, count)
    within_P = np.arange(len(clip_P)) - np.repeat(np.cumsum(count) - count, count)
    start_P = offsets[clip_P] + within_P * longest
    length_P = np.minimum(offsets[clip_P + 1] - start_P, longest)
    for rows in _runs(np.arange(len(clip_P)), np.full(len(clip_P), longest), layout, room):
        yield _packed(shard, side, layout.graph, clip_P[rows], start_P[rows], length_P[rows], pieces=True)


def _runs(row_C: Int64, length_C: Int64, layout: Layout, room: int) -> Iterator[Int64]:
    """`row_C`, whose lengths do not fall, cut into runs that fit `room` and are padded little."""
    first = 0
    while first < len(row_C):
        widest = int(_SLACK * int(length_C[first]) + _EXTRA)
        last = int(np.searchsorted(length_C, widest, side="right"))
        # As many of the longest as fit; for shorter rows before them there is room all the more.
        last = min(last, first + max(1, room // layout.row(int(length_C[last - 1]))))
        yield row_C[first:last]
        first = last


def _packed(shard: TokenSource, side: Side, graph: str, clip_C: Int64, start_C: Int64, length_C: Int64, *, pieces: bool) -> Chunk:
    tokens = int(length_C.max())
    place_CT = start_C[:, None] + np.arange(tokens)
    mask_CT = np.arange(tokens) < length_C[:, None]
    first, rows = int(start_C[0]), len(start_C) * tokens
    as_it_lies = bool(mask_CT.all()) and bool((np.diff(start_C) == tokens).all())

    def taken(values_T: NDArray[Any]) -> NDArray[Any]:
        if as_it_lies:
            return np.ascontiguousarray(values_T[first : first + rows]).reshape(len(start_C), tokens, *values_T.shape[1:])
        values_CT: NDArray[Any] = values_T[np.minimum(place_CT, len(values_T) - 1)]
        values_CT[~mask_CT] = 0  # a neighbour's tokens: not to be multiplied, should they be infinite
        return values_CT

    source_TD, scale_T = getattr(shard, f"{side}_TD"), getattr(shard, f"{side}_scale_T")
    if source_TD.dtype.name in _GRAPHS:
        arrays = {"clip_tokens": taken(source_TD), "clip_mask": mask_CT}
        if graph == "int8":
            arrays["clip_scale"] = taken(scale_T)
        return Chunk(graph, arrays, clip_C, pieces, (*mask_CT.shape, source_TD.shape[1]))
    decoded_CTD = np.zeros((*mask_CT.shape, layout_of(shard, side).width), np.float32)
    offsets, packing = getattr(shard, f"{side}_offsets"), getattr(shard, f"{side}_packing")
    for row, (start, length) in enumerate(zip(start_C.tolist(), length_C.tolist(), strict=True)):
        decoded_CTD[row, :length] = unrotated(packing.values(source_TD, scale_T, offsets, start, start + length))
    return Chunk(graph, {"clip_tokens": decoded_CTD, "clip_mask": mask_CT}, clip_C, pieces, decoded_CTD.shape)
