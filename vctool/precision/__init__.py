"""Token precisions: how float32 tokens become the bytes of a store, and what those bytes mean.

`float16`, `int8` (one scale a token), `int4` (16 levels a coordinate after a rotation) and `compact` (the sign of each rotated
coordinate around a centre that tokens of a clip share). Stores write them, scoring multiplies them as they are.
"""

from vctool.precision.codes import LEVELS
from vctool.precision.encoding import MEMBERS, PRECISIONS, Packing, Precision, decode, encode, packing_of, quantise, row_bytes, token_bytes
from vctool.precision.rotation import rotated, unrotated

__all__ = [
    "LEVELS",
    "MEMBERS",
    "PRECISIONS",
    "Packing",
    "Precision",
    "decode",
    "encode",
    "packing_of",
    "quantise",
    "rotated",
    "row_bytes",
    "token_bytes",
    "unrotated",
]
