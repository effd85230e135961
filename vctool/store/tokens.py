"""One clip's tokens, and what makes them acceptable.

Shape letters: F frames, V video tokens, T tokens of either kind, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from vctool.errors import StoreError

Float32 = npt.NDArray[np.float32]

# A float16 or int8 engine's outputs are unit vectors to about 4e-3; a tower whose normalisation was forgotten is far off.
UNIT_TOLERANCE = 1e-2


@dataclass(frozen=True, eq=False)
class ClipTokens:
    """One clip as it enters and leaves a store.

    id: the user's name for the clip, any non-empty text. path: the video file ('' where there is none).
    frame_FD, video_VD: float32 unit rows; either may have no rows. frame_time_F, video_time_V: float32 seconds,
    NaN where a token has no time (expansion tokens). meta: JSON values (duration, size, captions, the user's own).
    """

    id: str
    path: str
    frame_FD: Float32
    frame_time_F: Float32
    video_VD: Float32
    video_time_V: Float32
    meta: dict[str, Any] = field(default_factory=dict)


def checked_tokens(values: npt.ArrayLike, times: npt.ArrayLike, dim: int | None, clip: str, kind: str) -> tuple[Float32, Float32]:
    """`values` as C-ordered float32 [T, D] and `times` as float32 [T].

    Raises StoreError that names the clip if a token is not finite, zero, not of unit length, or of another width, or if
    the times do not fit.
    """
    token_TD = np.ascontiguousarray(values, dtype=np.float32)
    time_T = np.ascontiguousarray(times, dtype=np.float32)
    if token_TD.ndim != 2 or token_TD.shape[1] == 0:
        raise StoreError(f"clip {clip!r}: {kind} tokens have shape {token_TD.shape}", "expected one row a token, [T, D]")
    if dim is not None and token_TD.shape[1] != dim:
        raise StoreError(f"clip {clip!r}: {kind} tokens are {token_TD.shape[1]} wide, the store holds {dim}", "index with one model only")
    if time_T.shape != token_TD.shape[:1]:
        raise StoreError(f"clip {clip!r}: {len(token_TD)} {kind} tokens but times of shape {time_T.shape}", "give one time a token")
    if np.isinf(time_T).any():
        raise StoreError(f"clip {clip!r}: a {kind} time is infinite", "use NaN for a token without a time")
    check_rows(token_TD, np.array([0, len(token_TD)]), [clip], kind)
    return token_TD, time_T


def check_rows(token_TD: Float32, offsets: npt.NDArray[np.int64], clips: Sequence[str], kind: str) -> None:
    """Raises StoreError if a token is not finite, zero, or not of unit length, naming the first clip that has one.

    token_TD: float32 [T, D]; clip `i` of `clips` owns rows `offsets[i]:offsets[i+1]`.
    """
    # float64: the square of a huge float32 must not overflow into a second kind of failure; float32 sums tell which need it.
    with np.errstate(over="ignore", invalid="ignore"):
        rough_T = np.sqrt(np.einsum("td,td->t", token_TD, token_TD))
        doubtful = np.flatnonzero(~(np.abs(rough_T - 1) <= UNIT_TOLERANCE / 2))
    if not len(doubtful):
        return
    norm_T = np.sqrt(np.einsum("td,td->t", token_TD[doubtful], token_TD[doubtful], dtype=np.float64))
    wrong = ~(np.abs(norm_T - 1) <= UNIT_TOLERANCE)
    if not wrong.any():
        return
    first = int(np.flatnonzero(wrong)[0])
    owner = int(np.searchsorted(offsets, doubtful[first], side="right")) - 1
    norm_T = norm_T[wrong & (doubtful < offsets[owner + 1])]
    where = f"clip {clips[owner]!r}: a {kind} token"
    if not np.isfinite(norm_T).all():
        raise StoreError(f"{where} is NaN or infinite", "the encoder failed on this clip; try full precision")
    if (norm_T == 0).any():
        raise StoreError(f"{where} is all zeros", "leave out masked tokens instead of zeroing them")
    raise StoreError(f"{where} has length {float(norm_T[np.abs(norm_T - 1).argmax()]):.4g}", "L2-normalise tokens")
