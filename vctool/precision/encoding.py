"""Tokens of many clips to a store's arrays, and back.

Shape letters: N clips, T tokens of all clips end to end, C centres of all clips end to end, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from vctool.errors import InputError, StoreError
from vctool.precision.centres import assign_centres
from vctool.precision.codes import levels_of, signs_of, to_levels, to_signs
from vctool.precision.rotation import rotated, unrotated

Precision = Literal["float16", "int8", "int4", "compact"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)  # finest first

AnyArray = npt.NDArray[Any]
Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]

_SCALES = ("frame_scale_T", "video_scale_T")
_CENTRES = ("frame_centre_T", "video_centre_T", "centre_CD", "centre_scale_C", "centre_offsets")

# What a store of each precision has besides `frame_TD` and `video_TD`.
MEMBERS: dict[str, tuple[str, ...]] = {"float16": (), "int8": _SCALES, "int4": _SCALES, "compact": (*_SCALES, *_CENTRES)}

_CLIPS = 256  # whose tokens are compared at a time


def encode(precision: Precision, frame_TD: Float32, frame_offsets: Int64, video_TD: Float32, video_offsets: Int64) -> dict[str, AnyArray]:
    """The arrays that a store keeps of N clips: `frame_TD`, `video_TD` and the members that `MEMBERS` names.

    Tokens are float32 [T, D], L2-normalised; clip i owns rows offsets[i]:offsets[i + 1] of each. A clip's bytes are the same alone
    and among others.
    """
    if precision == "compact":
        return _compact(rotated(frame_TD), frame_offsets, rotated(video_TD), video_offsets)
    made: dict[str, AnyArray] = {}
    for branch, token_TD in (("frame", frame_TD), ("video", video_TD)):
        if precision == "float16":
            made[f"{branch}_TD"] = token_TD.astype(np.float16)
        else:
            made[f"{branch}_TD"], made[f"{branch}_scale_T"] = quantise(token_TD) if precision == "int8" else to_levels(rotated(token_TD))
    return made


def quantise(token_TD: Float32) -> tuple[npt.NDArray[np.int8], Float32]:
    """Symmetric int8 with one scale a token: value = int8 * scale. Returns (int8 [T, D], float32 [T])."""
    largest_T = np.maximum(token_TD.max(axis=1, initial=0), -token_TD.min(axis=1, initial=0))
    scale_T = (largest_T / np.float32(127)).astype(np.float32)
    scaled_TD = token_TD / np.where(scale_T > 0, scale_T, 1)[:, None]
    np.rint(scaled_TD, out=scaled_TD)
    np.clip(scaled_TD, -127, 127, out=scaled_TD)
    return scaled_TD.astype(np.int8), scale_T


def _compact(frame_TD: Float32, frame_offsets: Int64, video_TD: Float32, video_offsets: Int64) -> dict[str, AnyArray]:
    frames_N, videos_N = np.diff(frame_offsets), np.diff(video_offsets)
    frame_centre_T, video_centre_T = np.zeros(len(frame_TD), np.uint8), np.zeros(len(video_TD), np.uint8)
    count_N = np.zeros(len(frames_N), np.int64)
    mean_CD: list[Float32] = []  # with the clip of each, to be put in order at the end
    clip_C: list[Int64] = []
    shapes, shape_N = np.unique(np.stack([frames_N, videos_N], axis=1), axis=0, return_inverse=True)
    for number, (frames, videos) in enumerate(shapes):
        if frames + videos == 0:
            continue
        alike = np.flatnonzero(shape_N.reshape(-1) == number)
        for start in range(0, len(alike), _CLIPS):
            clips = alike[start : start + _CLIPS]
            frame_rows = frame_offsets[clips][:, None] + np.arange(frames)
            video_rows = video_offsets[clips][:, None] + np.arange(videos)
            token_NTD = np.concatenate([frame_TD[frame_rows], video_TD[video_rows]], axis=1)
            centre_NT = assign_centres(token_NTD)
            most = int(centre_NT.max()) + 1
            weight_NST = (centre_NT[:, None, :] == np.arange(most)[:, None]).astype(np.float32)
            size_NS = weight_NST.sum(axis=2)
            used_NS = size_NS > 0
            mean_CD.append(_means(token_NTD, weight_NST, size_NS)[used_NS])
            clip_C.append(np.repeat(clips, used_NS.sum(axis=1)))
            count_N[clips] = used_NS.sum(axis=1)
            frame_centre_T[frame_rows], video_centre_T[video_rows] = centre_NT[:, :frames], centre_NT[:, frames:]
    order_C = np.argsort(np.concatenate([np.empty(0, np.int64), *clip_C]), kind="stable")
    centre_CD, centre_scale_C = to_levels(np.concatenate([np.empty((0, frame_TD.shape[1]), np.float32), *mean_CD])[order_C])
    centre_offsets = np.concatenate([[0], np.cumsum(count_N)]).astype(np.int64)
    made: dict[str, AnyArray] = {"centre_CD": centre_CD, "centre_scale_C": centre_scale_C, "centre_offsets": centre_offsets}
    plain_CD = levels_of(centre_CD, frame_TD.shape[1]) * centre_scale_C[:, None]
    for branch, token_TD, counts_N, centre_T in (
        ("frame", frame_TD, frames_N, frame_centre_T),
        ("video", video_TD, videos_N, video_centre_T),
    ):
        rest_TD = token_TD - plain_CD[np.repeat(centre_offsets[:-1], counts_N) + centre_T]
        made[f"{branch}_TD"], made[f"{branch}_scale_T"] = to_signs(rest_TD)
        made[f"{branch}_centre_T"] = centre_T
    return made


def _means(token_NTD: Float32, weight_NST: Float32, size_NS: Float32) -> Float32:
    mean_NSD: Float32 = np.matmul(weight_NST, token_NTD)
    mean_NSD /= np.maximum(size_NS, 1)[:, :, None]
    return mean_NSD


@dataclass(frozen=True, eq=False)
class Packing:
    """What is needed to read one branch of an `int4` or `compact` store besides its tokens, scales and offsets.

    dim: width D. centre_T: uint8 [T], the centre of each token, counted within its clip. centre_CD: the centres of all clips end to
    end, packed levels uint8 [C, ceil(D / 2)], with centre_scale_C; clip i has centres centre_offsets[i]:centre_offsets[i + 1]. All four
    are None but for `compact`.
    """

    precision: Precision
    dim: int
    centre_T: npt.NDArray[np.uint8] | None = None
    centre_CD: npt.NDArray[np.uint8] | None = None
    centre_scale_C: Float32 | None = None
    centre_offsets: Int64 | None = None

    def contiguous(self) -> Packing:
        """The same in C order and in the types that the kernel reads; nothing is copied that is so already."""
        if self.centre_T is None or self.centre_CD is None or self.centre_scale_C is None or self.centre_offsets is None:
            return self
        return replace(
            self,
            centre_T=np.ascontiguousarray(self.centre_T, np.uint8),
            centre_CD=np.ascontiguousarray(self.centre_CD, np.uint8),
            centre_scale_C=np.ascontiguousarray(self.centre_scale_C, np.float32),
            centre_offsets=np.ascontiguousarray(self.centre_offsets, np.int64),
        )

    def of_clips(self, first: int, last: int) -> Packing:
        """The packing of clips first to last - 1, for the same tokens."""
        if self.centre_offsets is None:
            return self
        return replace(self, centre_offsets=self.centre_offsets[first : last + 1])

    def check(self, shape: tuple[int, ...], clips: int) -> None:
        """Raises InputError if this does not fit uint8 tokens of this shape, of so many clips."""
        if self.precision not in ("int4", "compact") or self.dim < 0 or row_bytes(self.precision, self.dim) != shape[1]:
            raise InputError(f"{self.precision} tokens {self.dim} wide do not take {shape[1]} bytes", "give the width of the tokens")
        found = (self.centre_T, self.centre_CD, self.centre_scale_C, self.centre_offsets)
        if any((array is None) != (self.precision == "int4") for array in found):
            raise InputError(f"{self.precision} tokens with centres left out or given", "compact tokens, and only they, have centres")
        if self.centre_T is None or self.centre_CD is None or self.centre_scale_C is None or self.centre_offsets is None:
            return
        edges, centres = self.centre_offsets, len(self.centre_CD)
        if self.centre_T.shape != shape[:1] or self.centre_scale_C.shape != (centres,):
            raise InputError("the centres of tokens, or their scales, are too few or too many", "give one for each token and centre")
        if self.centre_CD.shape[1:] != (row_bytes("int4", self.dim),):
            raise InputError(f"centres have shape {self.centre_CD.shape}", "they are packed like int4 tokens")
        if edges.shape != (clips + 1,) or edges[0] < 0 or edges[-1] > centres or (edges[1:] < edges[:-1]).any():
            raise InputError(
                f"the offsets of centres do not fit {clips} clips and {centres} centres", "give N + 1 that never run backwards"
            )

    def values(self, token_TD: AnyArray, scale_T: Float32, offsets: Int64, start: int, stop: int) -> Float32:
        """Tokens start to stop - 1 as float32 [stop - start, D], still rotated. Raises StoreError for a centre that is not there."""
        part, scale_R1 = token_TD[start:stop], scale_T[start:stop, None]
        if self.centre_T is None or self.centre_CD is None or self.centre_scale_C is None or self.centre_offsets is None:
            return levels_of(part, self.dim).astype(np.float32) * scale_R1
        value_RD = signs_of(part, self.dim).astype(np.float32) * scale_R1
        clip_R = np.searchsorted(offsets, np.arange(start, stop), side="right") - 1
        centre_R = self.centre_offsets[clip_R] + self.centre_T[start:stop]
        if (centre_R >= self.centre_offsets[clip_R + 1]).any():
            raise StoreError("a token names a centre that its clip does not have", "the store is damaged: build it again")
        first, last = (int(centre_R.min()), int(centre_R.max()) + 1) if stop > start else (0, 0)
        centre_CD = levels_of(self.centre_CD[first:last], self.dim) * self.centre_scale_C[first:last, None]
        value_RD += centre_CD[centre_R - first]
        return value_RD


def row_bytes(precision: str, dim: int) -> int:
    """Bytes of one token's coordinates."""
    return {"float16": 2 * dim, "int8": dim, "int4": -(-dim // 2), "compact": -(-dim // 8)}[precision]


def decode(made: Mapping[str, AnyArray], precision: Precision, dim: int, branch: str, offsets: Int64) -> Float32:
    """All tokens of branch `frame` or `video` of what `encode` made, float32 [T, D]."""
    token_TD, scale_T = made[f"{branch}_TD"], made.get(f"{branch}_scale_T")
    if precision in ("float16", "int8") or scale_T is None:
        plain_TD: Float32 = token_TD.astype(np.float32)
        return plain_TD if scale_T is None else plain_TD * scale_T[:, None]
    packing = packing_of(made, precision, dim, branch)
    return unrotated(packing.values(token_TD, scale_T, offsets, 0, len(token_TD)))


def packing_of(made: Mapping[str, AnyArray], precision: Precision, dim: int, branch: str) -> Packing:
    """The packing of one branch of arrays that `encode` made or a store holds."""
    if precision != "compact":
        return Packing(precision, dim)
    return Packing(precision, dim, made[f"{branch}_centre_T"], made["centre_CD"], made["centre_scale_C"], made["centre_offsets"])


def token_bytes(made: Mapping[str, AnyArray]) -> int:
    """Bytes of tokens, scales and centres, without what every store has besides (times, ids, metadata)."""
    return sum(array.nbytes for name, array in made.items() if name in ("frame_TD", "video_TD", *_SCALES, *_CENTRES))
