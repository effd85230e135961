"""Similarities of query tokens and clip tokens, in fixed tiles, a block of memory at a time.

Shape letters: M counted query tokens, N clips, T tokens of all clips end to end, R rows of one block, D width.

A pair's score must have the same bits alone, in any store, in any order and in any batch. BLAS does not give that by
itself: it picks kernels, and with them the order of its sums, by the shape of the matrices and by where a row lies in them.
So every product here is one fixed tile, 8 query tokens by 128 tokens, padded with zeros: in that shape every x86 kernel of
OpenBLAS 0.3.31 (Core 2 to Sapphire Rapids, Bulldozer to Zen; D from 1 to 4096; one thread or two) was seen to give an
element the same bits wherever it lies; 16 query tokens, or tokens as rows of the left operand, were seen not to on
Haswell and Zen. On another BLAS the promise is 1e-6. It costs nothing on AVX-512 and about 30 % on Haswell.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from vctool.errors import InputError
from vctool.precision import Packing

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]
Tokens = npt.NDArray[np.float32] | npt.NDArray[np.float16] | npt.NDArray[np.int8] | npt.NDArray[np.uint8]

BLOCK = 1024  # rows converted to float32 at a time: 2 MiB at D = 512, about a core's second-level cache

_LEAST_SPAN = 4096  # tokens worth a thread's while
_MOST_CLIPS = 128  # in one run, where clips have a token or two: bounds the maxima held for many queries
_QUERY_TILE = 8
_TOKEN_TILE = 128


class NotFinite(InputError):
    """A clip has tokens that are NaN or infinite; `clip` is its position among those that were scored."""

    def __init__(self, clip: int) -> None:
        super().__init__(f"clip {clip}: its tokens are not finite", "check the store with `vctool info STORE --all-files`")
        self.clip = clip


def query_tiles(query_MD: Float32) -> Float32:
    """Query tokens as tiles, float32 [ceil(M / 8), 8, D], padded with zeros."""
    tiles = -(-len(query_MD) // _QUERY_TILE)
    padded = np.zeros((tiles * _QUERY_TILE, query_MD.shape[1]), np.float32)
    padded[: len(query_MD)] = query_MD
    return padded.reshape(tiles, _QUERY_TILE, -1)


class TokenBlocks:
    """The tokens of N clips, given out as float32 blocks. Arguments as in `mean_max_sim`, which lists what is refused.

    packing: how to read packed tokens, uint8 [T, bytes a token]; they are multiplied rotated, with rotated queries.
    """

    def __init__(
        self,
        tokens_TD: Tokens,
        offsets: npt.ArrayLike,
        token_mask_T: npt.ArrayLike | None = None,
        scale_T: npt.ArrayLike | None = None,
        packing: Packing | None = None,
    ) -> None:
        self.tokens_TD = np.asarray(tokens_TD)
        self.offsets: Int64 = np.ascontiguousarray(offsets, dtype=np.int64)
        self.mask_T: Bool | None = None if token_mask_T is None else np.ascontiguousarray(token_mask_T, dtype=bool)
        self.scale_T: Float32 | None = None if scale_T is None else np.ascontiguousarray(scale_T, dtype=np.float32)
        self.packing = packing if packing is None else packing.contiguous()
        self._check()

    def _check(self) -> None:
        if self.tokens_TD.ndim != 2:
            raise InputError(f"tokens have shape {self.tokens_TD.shape}", "expected one row a token, [T, D]")
        rows, edges = len(self.tokens_TD), self.offsets
        if edges.ndim != 1 or len(edges) == 0 or edges[0] < 0 or edges[-1] > rows or (edges[1:] < edges[:-1]).any():
            raise InputError(f"offsets do not fit {rows} tokens", "give N + 1 values that never run backwards, up to the number of tokens")
        for name, values in (("a mask", self.mask_T), ("scales", self.scale_T)):
            if values is not None and values.shape != (rows,):
                raise InputError(f"{rows} tokens but {name} of shape {values.shape}", "give one value a token")
        if (self.tokens_TD.dtype in (np.int8, np.uint8)) != (self.scale_T is not None):
            raise InputError(
                f"{self.tokens_TD.dtype} tokens {'without' if self.scale_T is None else 'with'} scales",
                "int8 and packed tokens, and only they, have scales",
            )
        if (self.tokens_TD.dtype == np.uint8) != (self.packing is not None):
            raise InputError(
                f"{self.tokens_TD.dtype} tokens {'without' if self.packing is None else 'with'} a packing",
                "packed tokens are uint8, and only they have a packing",
            )
        if self.packing is not None:
            self.packing.check(self.tokens_TD.shape, self.clips)

    @property
    def dim(self) -> int:
        """Token width D."""
        return int(self.tokens_TD.shape[1]) if self.packing is None else self.packing.dim

    @property
    def clips(self) -> int:
        return len(self.offsets) - 1

    def chunks(self) -> list[tuple[int, int]]:
        """Runs of whole clips (first, last + 1) with about `BLOCK` tokens each; one long clip is a run of its own."""
        runs, first = [], 0
        while first < self.clips:
            last = int(np.searchsorted(self.offsets, self.offsets[first] + BLOCK, side="right")) - 1
            last = min(max(last, first + 1), first + _MOST_CLIPS, self.clips)
            runs.append((first, last))
            first = last
        return runs

    @property
    def nbytes(self) -> int:
        """Bytes of the tokens that clips own."""
        return (int(self.offsets[-1]) - int(self.offsets[0])) * self.tokens_TD.strides[0]

    def spans(self, most: int) -> list[tuple[int, int]]:
        """Runs of whole clips (first, last + 1) for threads to share: at most about `most`, of about equally many tokens."""
        start, end = int(self.offsets[0]), int(self.offsets[-1])
        most = min(most, (end - start) // _LEAST_SPAN)
        if most <= 1:
            return [(0, self.clips)] if self.clips else []
        edges = np.searchsorted(self.offsets, np.linspace(start, end, most + 1)[1:-1])
        bounds = [0, *(int(edge) for edge in edges), self.clips]
        return [(first, last) for first, last in pairwise(bounds) if first < last]

    def blocks(self, first: int, last: int) -> Iterator[tuple[int, int, Float32]]:
        """(start row, rows R, float32 tokens padded to whole tiles) for the tokens of clips first to last - 1."""
        end = int(self.offsets[last])
        for start in range(int(self.offsets[first]), end, BLOCK):
            rows = min(BLOCK, end - start)
            block_RD = np.empty((-(-rows // _TOKEN_TILE) * _TOKEN_TILE, self.dim), np.float32)
            if self.packing is None or self.scale_T is None:
                block_RD[:rows] = self.tokens_TD[start : start + rows]
            else:
                block_RD[:rows] = self.packing.values(self.tokens_TD, self.scale_T, self.offsets, start, start + rows)
            block_RD[rows:] = 0
            yield start, rows, block_RD

    def similarities(self, tiles: Float32, start: int, rows: int, block_RD: Float32) -> Float32:
        """Dot products of every query token of `tiles` with the block's tokens, float32 [8 * tiles, R]; masked tokens are -inf."""
        sim_MR = np.empty((len(tiles) * _QUERY_TILE, len(block_RD)), np.float32)
        out = sim_MR.reshape(len(tiles), _QUERY_TILE, -1, _TOKEN_TILE).transpose(2, 0, 1, 3)
        token_tiles = block_RD.reshape(-1, _TOKEN_TILE, block_RD.shape[1]).transpose(0, 2, 1)
        with np.errstate(invalid="ignore", over="ignore"):  # not finite: seen and reported with the clip's number later
            np.matmul(tiles[None], token_tiles[:, None], out=out)
        sim_MR = sim_MR[:, :rows]
        if self.scale_T is not None and self.packing is None:
            sim_MR *= self.scale_T[start : start + rows]
        if self.mask_T is not None:
            sim_MR[:, ~self.mask_T[start : start + rows]] = -np.inf
        return sim_MR
