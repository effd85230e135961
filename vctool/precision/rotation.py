"""A fixed orthogonal rotation for every width: afterwards all coordinates of a token are about alike, whatever the model.

Few levels a coordinate serve well only where no coordinate stands out. Signs are flipped, coordinates shuffled, and Hadamard
matrices of power-of-two sizes mix them: once where the width is a power of two, else three times in blocks (768 is 512 and 256).
Only additions, in one order: a token's rotation has the same bits alone and among others. Signs and shuffles come from SHAKE-128,
which every language has, and not from a generator that may change.

Shape letters: T tokens, D width.
"""

from __future__ import annotations

import functools
import hashlib

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]

_ROWS = 256  # at a time: the working copy stays in the cache


@functools.lru_cache(maxsize=16)
def _rounds(width: int) -> tuple[tuple[npt.NDArray[np.intp], Float32], ...]:
    """(order_D, factor_D) of each round: coordinate i of the round's input is coordinate order[i] of what came before, times factor[i]."""
    whole = width & (width - 1) == 0
    found = []
    for number in range(1 if whole else 3):
        stream = hashlib.shake_128(f"vctool rotation {width} {number}".encode()).digest(5 * width)
        sign_D = np.where(np.frombuffer(stream, np.uint8, width) & 1, np.float32(-1), np.float32(1))
        keys_D = np.frombuffer(stream, "<u4", width, width)
        order_D = np.arange(width) if whole else np.argsort(keys_D, kind="stable")
        size_D = np.concatenate([np.full(end - start, end - start) for start, end in _blocks(width)])
        found.append((order_D, (sign_D / np.sqrt(size_D)).astype(np.float32)))
    return tuple(found)


def _blocks(width: int) -> list[tuple[int, int]]:
    """Runs of coordinates whose lengths are the powers of two that make up the width, largest first."""
    found, start = [], 0
    for bit in reversed(range(width.bit_length())):
        if width >> bit & 1:
            found.append((start, start + (1 << bit)))
            start += 1 << bit
    return found


def _hadamard(value_TD: Float32, width: int) -> Float32:
    """Each block of coordinates times the (symmetric) Hadamard matrix of its size, unscaled. Uses its argument as working memory."""
    blocks = _blocks(width)
    if len(blocks) == 1:
        return _hadamard_block(value_TD)
    for start, end in blocks:
        value_TD[:, start:end] = _hadamard_block(np.ascontiguousarray(value_TD[:, start:end]))
    return value_TD


def _hadamard_block(value_TD: Float32) -> Float32:
    size = value_TD.shape[1]
    other_TD = np.empty_like(value_TD)
    half = size // 2
    for _ in range(size.bit_length() - 1):
        # Sums of neighbours to the left half, differences to the right: after log2(size) such steps every bit had its turn.
        np.add(value_TD[:, 0::2], value_TD[:, 1::2], out=other_TD[:, :half])
        np.subtract(value_TD[:, 0::2], value_TD[:, 1::2], out=other_TD[:, half:])
        value_TD, other_TD = other_TD, value_TD
    return value_TD


def rotated(token_TD: Float32) -> Float32:
    """Tokens float32 [T, D], rotated: dot products stay what they are, up to float32 rounding."""
    width = token_TD.shape[1]
    result_TD = np.empty(token_TD.shape, np.float32)
    for start in range(0, len(token_TD), _ROWS):
        part_TD = token_TD[start : start + _ROWS]
        for order_D, factor_D in _rounds(width):
            part_TD = _hadamard(np.ascontiguousarray(part_TD[:, order_D] * factor_D, dtype=np.float32), width)
        result_TD[start : start + _ROWS] = part_TD
    return result_TD


def unrotated(token_TD: Float32) -> Float32:
    """The inverse of `rotated`."""
    width = token_TD.shape[1]
    result_TD = np.empty(token_TD.shape, np.float32)
    for start in range(0, len(token_TD), _ROWS):
        part_TD = np.array(token_TD[start : start + _ROWS], np.float32)
        for order_D, factor_D in reversed(_rounds(width)):
            mixed_TD = _hadamard(part_TD, width) * factor_D
            part_TD = np.empty_like(mixed_TD)
            part_TD[:, order_D] = mixed_TD
        result_TD[start : start + _ROWS] = part_TD
    return result_TD
