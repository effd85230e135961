"""One clip's tokens, what makes them acceptable, and their int8 form.

Shape letters: F frames, V video tokens, T tokens of either kind, D width.
"""

from __future__ import annotations

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
    # float64: the square of a huge float32 must not overflow into a second kind of failure.
    norm_T = np.sqrt(np.einsum("td,td->t", token_TD, token_TD, dtype=np.float64))
    if not np.isfinite(norm_T).all():
        raise StoreError(f"clip {clip!r}: a {kind} token is NaN or infinite", "the encoder failed on this clip; try full precision")
    if (norm_T == 0).any():
        raise StoreError(f"clip {clip!r}: a {kind} token is all zeros", "leave out masked tokens instead of zeroing them")
    worst = float(np.abs(norm_T - 1).max(initial=0))
    if worst > UNIT_TOLERANCE:
        raise StoreError(
            f"clip {clip!r}: a {kind} token has length {float(norm_T[np.abs(norm_T - 1).argmax()]):.4g}", "L2-normalise tokens"
        )
    return token_TD, time_T


def quantise(token_TD: Float32) -> tuple[npt.NDArray[np.int8], Float32]:
    """Symmetric int8 with one scale a token: value = int8 * scale. Returns (int8 [T, D], float32 [T])."""
    scale_T = (np.abs(token_TD).max(axis=1, initial=0) / np.float32(127)).astype(np.float32)
    rounded_TD = np.rint(token_TD / scale_T[:, None])
    return np.clip(rounded_TD, -127, 127).astype(np.int8), scale_T


def dequantise(token_TD: npt.NDArray[np.generic], scale_T: Float32 | None) -> Float32:
    """Stored tokens as a fresh float32 array."""
    plain_TD = token_TD.astype(np.float32)
    if scale_T is not None:
        plain_TD *= scale_T[:, None]
    return plain_TD
