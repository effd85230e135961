"""How much moves in a clip, measured on its own frames by frame difference.

Shape letters: F frames, S side of the picture.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vctool.config import PreprocessConfig
from vctool.data import Located
from vctool.errors import InputError, UsageProblem
from vctool.video.clip import VideoInput
from vctool.video.workers import DecodePool

FRAMES, SIDE = 16, 64
# A grey level change (of 255) that is more than what lossy coding does to a still picture.
NOISE = 12.0
CLASSES = ("static", "little", "high")
_GREY = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601


@dataclass(frozen=True)
class Motion:
    """area: mean share (0 to 1) of the picture that changes by more than NOISE grey levels from one sampled frame to the next.

    level: mean absolute change in grey levels (0 to 255). step: mean seconds between the frames; 0 for a single frame.
    """

    area: float
    level: float
    step: float


@dataclass(frozen=True)
class Thresholds:
    """static: area below `little`; little: from there to below `high`; high: from `high` on. As shares of the picture."""

    little: float = 0.01
    high: float = 0.05

    def __post_init__(self) -> None:
        if not 0.0 < self.little < self.high <= 1.0:
            raise UsageProblem(
                f"motion thresholds must rise from above 0 to at most 1, got {self.little:g} and {self.high:g}",
                "give shares of the picture, for example --little 0.01 --high 0.05",
            )

    def of(self, motion: Motion) -> str:
        """The class of a clip."""
        return CLASSES[(motion.area >= self.little) + (motion.area >= self.high)]


def motion_of(frames_FSSC: NDArray[np.uint8], times_F: NDArray[np.float64]) -> Motion:
    """Frame difference of one clip; a single frame has no motion."""
    grey_FSS = frames_FSSC.astype(np.float32) @ _GREY
    if len(grey_FSS) < 2:
        return Motion(0.0, 0.0, 0.0)
    change_ESS = np.abs(np.diff(grey_FSS, axis=0))
    step = float((times_F[-1] - times_F[0]) / (len(times_F) - 1))
    return Motion(float((change_ESS > NOISE).mean()), float(change_ESS.mean()), step)


def measure(
    places: Mapping[str, Located], *, workers: int = 1, progress: Callable[[int, int], None] | None = None
) -> tuple[dict[str, Motion], dict[str, str]]:
    """Motion by clip id, and the reason for each clip that could not be measured. Raises InputError if that is all of them."""
    found: dict[str, Motion] = {}
    failed = {one: "the video is not on this machine" for one, place in places.items() if not place.path.is_file()}
    present = [VideoInput(one, place.path, place.start, place.end) for one, place in places.items() if one not in failed]
    squares = PreprocessConfig(size=SIDE, resize="squash", interpolation="bilinear")
    with DecodePool(workers if present else 0, count=FRAMES, transform_config=squares) as pool:
        for done, result in enumerate(pool.run(present), start=1):
            if result.frames_FHWC is None or result.times_F is None:
                failed[result.input.id] = result.error or "cannot be decoded"
            else:
                found[result.input.id] = motion_of(result.frames_FHWC, result.times_F)
            if progress is not None:
                progress(done, len(present))
    if not found:
        why = f": {next(iter(failed.values()))}" if failed else ": the store and the manifest name no video files"
        raise InputError(f"motion is measured on the videos, and none of them can be read{why}", "evaluate where the videos are")
    return found, failed
