"""Four bits and one bit a coordinate: what the codes mean, and how they are packed.

Four bits name one of 16 levels, spaced for values of normal distribution (Lloyd and Max), in whole numbers so that int8 arithmetic can
multiply them as they are. Two coordinates share a byte, the first in its low half. One bit is a sign, 1 for +1, eight to a byte, the
first lowest.

Shape letters: T tokens, D width.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]
UInt8 = npt.NDArray[np.uint8]
Int8 = npt.NDArray[np.int8]

# Lloyd-Max levels of a standard normal, times 127 / 2.7326, rounded: value = level * scale.
_UPPER = np.array([6, 18, 31, 44, 58, 75, 96, 127], np.int8)
LEVELS: Int8 = np.concatenate([-_UPPER[::-1], _UPPER])
_EDGES = (_UPPER[1:].astype(np.float32) + _UPPER[:-1]) / 2
_DEVIATION = np.float32(2.7326 / 127)  # the scale that fits coordinates of unit deviation
_PASSES = 2


def to_levels(value_TD: Float32) -> tuple[UInt8, Float32]:
    """Rows as packed level numbers, uint8 [T, ceil(D / 2)], and the scale of each row that leaves the smallest squared error."""
    scale_T1 = np.sqrt(np.einsum("td,td->t", value_TD, value_TD) / np.float32(max(value_TD.shape[1], 1)))[:, None] * _DEVIATION
    size_TD = np.abs(value_TD)
    code_TD = np.zeros(value_TD.shape, np.uint8)
    for _ in range(_PASSES):
        code_TD[...] = 0
        for edge in _EDGES:
            code_TD += size_TD > edge * scale_T1
        level_TD = _UPPER.astype(np.float32)[code_TD]
        square_T1 = np.einsum("td,td->t", level_TD, level_TD)[:, None]
        scale_T1 = np.einsum("td,td->t", size_TD, level_TD)[:, None] / np.where(square_T1 > 0, square_T1, 1)
    return pack_levels(np.where(value_TD < 0, np.uint8(7) - code_TD, np.uint8(8) + code_TD)), scale_T1[:, 0].astype(np.float32)


def pack_levels(code_TD: UInt8) -> UInt8:
    """Level numbers 0 to 15, uint8 [T, D], two to a byte."""
    if code_TD.shape[1] % 2:
        code_TD = np.concatenate([code_TD, np.zeros((len(code_TD), 1), np.uint8)], axis=1)
    return (code_TD[:, 0::2] | code_TD[:, 1::2] << 4).astype(np.uint8, copy=False)


def levels_of(packed_TD: UInt8, width: int) -> Int8:
    """The levels that packed numbers name, int8 [T, D]."""
    code_TD = np.empty((len(packed_TD), 2 * packed_TD.shape[1]), np.uint8)
    code_TD[:, 0::2], code_TD[:, 1::2] = packed_TD & 15, packed_TD >> 4
    return LEVELS[code_TD[:, :width]]


def to_signs(value_TD: Float32) -> tuple[UInt8, Float32]:
    """Rows as packed signs, uint8 [T, ceil(D / 8)], and the amplitude of each row that leaves the smallest squared error."""
    amplitude_T = np.abs(value_TD).mean(axis=1, dtype=np.float32) if value_TD.shape[1] else np.zeros(len(value_TD), np.float32)
    return np.packbits(value_TD >= 0, axis=1, bitorder="little"), amplitude_T


def signs_of(packed_TD: UInt8, width: int) -> Int8:
    """Packed signs as -1 and +1, int8 [T, D]."""
    return (2 * np.unpackbits(packed_TD, axis=1, count=width, bitorder="little").astype(np.int8) - 1).astype(np.int8)
