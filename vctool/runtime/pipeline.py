"""Decoding, encoding and the hashing of files at the same time, so that none of them waits for another longer than it must.

    decode processes ──> clips in order ──> batches ──> encoder (this thread) ──> tokens
    one thread reads each file once for its SHA-256

The encoder is loaded while the first clips are decoded. What waits between the stages is bounded: see `clips_ahead`.

Shape letters: F frames of a clip, S side of the input picture, V video tokens, D width.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from vctool.errors import ModelError
from vctool.runtime.content import content_sha256
from vctool.runtime.encoder import VideoEncoder
from vctool.runtime.model import Model
from vctool.video.clip import VideoInput
from vctool.video.workers import DecodePool, DecodeResult

GPU_CLIPS = 8  # clips encoded at once on a GPU; on the CPU one clip's frames fill the cores
_WAITING_BYTES = 256 << 20  # of decoded frames that wait for the encoder, unless that is fewer than two clips a process

Float32 = NDArray[np.float32]


@dataclass(frozen=True)
class Job:
    """One clip to encode. file, stat: the file that it is a piece of, as `content_sha256` takes them."""

    clip: VideoInput
    file: str
    stat: dict[str, int]


@dataclass(frozen=True, eq=False)
class Encoded:
    """What became of a clip: `tokens` as `VideoEncoder.clip_tokens` gives them, or `error`, never both.

    sha256: of its file, None if that cannot be read any more. batch_ends: whether it is the last one of those that were encoded at once.
    """

    number: int
    result: DecodeResult
    tokens: tuple[Float32, Float32, Float32, Float32] | None
    error: str | None
    sha256: str | None
    batch_ends: bool


def clips_ahead(workers: int, batch: int, clip_bytes: int) -> int:
    """How many clips may be under way or wait for the encoder.

    Two batches, so that the next one is decoded while one is encoded, and four clips a process, so that one slow file does not
    stop the others (results are taken in order); fewer where `clip_bytes` are many, but at least one batch and two clips a process.
    """
    wanted = 4 * workers + 2 * batch
    return max(min(wanted, _WAITING_BYTES // max(clip_bytes, 1)), 2 * workers + batch)


def encode_clips(jobs: Sequence[Job], model: Model, pool: DecodePool, batch_size: int | None) -> Generator[Encoded]:
    """Each job's clip decoded and encoded, in order. batch_size: clips encoded at once, None for 1 on a CPU and 8 on a GPU.

    The pool must apply the model's preprocessing. Raises ModelError where the encoder does not load or fails.
    """
    if not jobs:
        return
    side = model.directory.preprocess.size
    ahead = clips_ahead(pool.workers, batch_size or GPU_CLIPS, 3 * side * side * pool.frames)
    thread = ThreadPoolExecutor(1, "vctool-index")
    hashes: deque[Future[str | None]] = deque()

    def given_out() -> Iterator[VideoInput]:
        for job in jobs:
            hashes.append(thread.submit(content_sha256, job.file, job.stat))
            yield job.clip

    loading = thread.submit(lambda: model.video)
    try:
        with closing(pool.run(given_out(), ahead=ahead)) as results:
            first = next(results)
            encoder = loading.result()
            size = batch_size or (GPU_CLIPS if encoder.device == "cuda" else 1)
            number = 0
            for batch in _batches(chain([first], results), size):
                for place, (result, (tokens, error)) in enumerate(zip(batch, _encode(encoder, batch), strict=True), start=1):
                    yield Encoded(number, result, tokens, error, hashes.popleft().result(), place == len(batch))
                    number += 1
    finally:
        thread.shutdown(cancel_futures=True)


def _encode(
    encoder: VideoEncoder, batch: Sequence[DecodeResult]
) -> list[tuple[tuple[Float32, Float32, Float32, Float32] | None, str | None]]:
    frames = [result.frames_FHWC for result in batch if result.frames_FHWC is not None]
    feature_ND = encoder.frame_features(np.concatenate(frames)) if frames else np.zeros((0, 0), np.float32)
    found: list[tuple[tuple[Float32, Float32, Float32, Float32] | None, str | None]] = []
    start = 0
    for result in batch:
        if result.frames_FHWC is None:
            found.append((None, result.error))
            continue
        feature_FD = feature_ND[start : start + len(result.frames_FHWC)]
        start += len(feature_FD)
        times_F = result.times_F if result.times_F is not None else np.full(len(feature_FD), np.nan)
        try:
            found.append((encoder.clip_tokens(feature_FD, times_F), None))
        except ModelError as problem:
            found.append((None, problem.message))
    return found


def _batches(items: Iterable[DecodeResult], size: int) -> Iterator[list[DecodeResult]]:
    batch = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
