"""The other side of `workers.DecodePool`: a process that decodes one clip after another, and the messages between the two.

A message is a JSON header followed by arrays as raw bytes. Nothing is unpickled: a process that reads hostile files must
not be able to make its parent run anything.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import IO, Any, cast

import numpy as np
from numpy.typing import NDArray

from vctool.config import PreprocessConfig, from_dict
from vctool.errors import VctoolError, VideoError
from vctool.video.decode import guarded, read_frames
from vctool.video.reader import FrameReader, Transform, VideoInfo, open_reader
from vctool.video.sample import Sampling

Array = NDArray[Any]


def send(stream: IO[bytes], header: dict[str, Any], arrays: Sequence[Array] = ()) -> None:
    """Write one message: lengths, header, arrays. Raises OSError when the other side is gone."""
    header = {**header, "arrays": [[a.dtype.str, list(a.shape)] for a in arrays]}
    text = json.dumps(header).encode()
    stream.write(len(text).to_bytes(8, "little") + text)
    for array in arrays:
        stream.write(_bytes_of(np.ascontiguousarray(array)))
    stream.flush()


def receive(stream: IO[bytes]) -> tuple[dict[str, Any], list[Array]]:
    """Read one message. Raises EOFError when the other side is gone, also in the middle of a message."""
    header = json.loads(_exactly(stream, int.from_bytes(_exactly(stream, 8), "little")))
    arrays = []
    for dtype, shape in header.pop("arrays"):
        array = np.empty(shape, dtype=np.dtype(dtype))
        _fill(stream, _bytes_of(array))
        arrays.append(array)
    return header, arrays


def stacked(frames: Sequence[Array], path: Path) -> NDArray[np.uint8]:
    """Frames as one array `[F, H, W, 3]`. Raises VideoError where their sizes differ (joined recordings, no transform)."""
    sizes = sorted({(f.shape[1], f.shape[0]) for f in frames})
    if len(sizes) > 1:
        raise VideoError(path, f"the picture size changes on the way ({', '.join(f'{w}x{h}' for w, h in sizes)}) and nothing resizes it")
    return np.stack(frames)


def transform_for(config: PreprocessConfig | None) -> Transform | None:
    """The resize and crop of a model, imported only where it is used."""
    if config is None:
        return None
    from vctool.preprocessing.pixels import Preprocessor

    return cast(Transform, Preprocessor(config))


def work(reader: FrameReader, job: dict[str, Any], sampling: Sampling, transform: Transform | None) -> tuple[dict[str, Any], list[Array]]:
    """Decode the clip of one job message into an answer message; whatever is wrong with the clip is in `error`.

    `what` is asked for: `frames`, or of the file as a whole its `info` or (with it) its `shots`.
    """
    began = time.perf_counter()
    path = Path(job["path"])
    try:
        if job["what"] != "frames":
            with guarded(path):
                info = reader.probe(path)
                arrays: list[Array] = [reader.shots(path)] if job["what"] == "shots" else []
            return _answer(info, job["what"], time.perf_counter() - began), arrays
        decoded = read_frames(reader, path, sampling, start=job["start"], end=job["end"], transform=transform)
        frames_FHWC = stacked(decoded.frames, path)
    except VideoError as problem:
        return {"error": problem.reason, "seconds": time.perf_counter() - began}, []
    except VctoolError as problem:
        return {"error": problem.message, "seconds": time.perf_counter() - began}, []
    except Exception as problem:
        return {"error": f"{type(problem).__name__}: {problem}", "seconds": time.perf_counter() - began}, []
    return _answer(decoded.info, "frames", time.perf_counter() - began, decoded.damaged), [frames_FHWC, decoded.times_F]


def _answer(info: VideoInfo, what: str, seconds: float, damaged: int = 0) -> dict[str, Any]:
    about = [info.width, info.height, info.duration, info.codec, info.rotation, info.frame_count]
    return {"error": None, "seconds": seconds, "damaged": damaged, "info": about, "what": what}


def main() -> None:
    """Serve one parent until it closes the pipe. Standard input carries jobs, standard output answers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    jobs_in, answers_out = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    # Anything that a library prints must not land between two messages.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    setup, _ = receive(jobs_in)
    try:
        config = setup["transform"]
        transform = transform_for(None if config is None else from_dict(PreprocessConfig, config, "preprocessing"))
        reader = open_reader(setup["decoder"])
        sampling = Sampling(**setup["sampling"])
    except (VctoolError, ImportError) as problem:
        send(answers_out, {"fatal": str(problem)})
        return
    send(answers_out, {"ready": True})
    jobs: SimpleQueue[dict[str, Any]] = SimpleQueue()
    threading.Thread(target=_listen, args=(jobs_in, jobs), daemon=True).start()
    while True:
        send(answers_out, *work(reader, jobs.get(), sampling, transform))


def _listen(jobs_in: IO[bytes], jobs: SimpleQueue[dict[str, Any]]) -> None:
    """Hand on jobs; leave at once when the parent is gone, even in the middle of a clip."""
    try:
        while True:
            jobs.put(receive(jobs_in)[0])
    except (EOFError, OSError):
        os._exit(0)


def _bytes_of(array: Array) -> memoryview:
    return memoryview(array.reshape(-1).view(np.uint8).data)


def _exactly(stream: IO[bytes], length: int) -> bytes:
    data = bytearray(length)
    _fill(stream, memoryview(data))
    return bytes(data)


def _fill(stream: IO[bytes], view: memoryview) -> None:
    done = 0
    while done < len(view):
        got = cast(Any, stream).readinto(view[done:])
        if not got:
            raise EOFError
        done += got
