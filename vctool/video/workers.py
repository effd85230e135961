"""Decoding of many clips in processes that may crash or hang: each failure costs one clip and is told with its reason.

The processes are started with `subprocess`, never forked: a fork would copy the parent's threads' locks, and
multiprocessing's `spawn` runs the user's main module again. They share nothing with the parent but two pipes (a clip of 12
frames of 224 pixels is 1.8 MB, about 1 ms).
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, cast

import numpy as np
from numpy.typing import NDArray

from vctool.config import PreprocessConfig, to_dict
from vctool.errors import UsageProblem, VctoolError
from vctool.video.clip import VideoInput
from vctool.video.reader import VideoInfo, open_reader
from vctool.video.sample import Sampling
from vctool.video.worker_process import Array, receive, send, transform_for, work

SHOTS_TIMES = 10  # as long as a clip may take, a whole film may
START_SECONDS = 120.0  # for a process to import what it needs, on a machine that is busy
_CHILD = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from vctool.video.worker_process import main; main()"


@dataclass(frozen=True)
class DecodeResult:
    """What became of one clip: `frames_FHWC`, `times_F` and `info`, or `error`, never both.

    frames_FHWC: uint8 `[F, S, S, 3]` after the transform, or `[F, H, W, 3]` without one; F is at least 1.
    times_F: float64 seconds from the first presented picture of the file. info: without `frame_times_F`.
    error: a short reason without the path. seconds: what the clip took. damaged: as in `DecodedFrames`.
    shot_start_S: from `DecodePool.survey` alone, which gives no frames: float64 seconds at which shots begin.
    """

    input: VideoInput
    frames_FHWC: NDArray[np.uint8] | None
    times_F: NDArray[np.float64] | None
    info: VideoInfo | None
    error: str | None
    seconds: float
    damaged: int = 0
    shot_start_S: NDArray[np.float64] | None = None


class DecodePool:
    """Decodes clips in `workers` processes; 0 decodes in this process, without protection, for debugging.

    count, decoder: as in `decode_frames`. transform_config: resize and crop to apply in the worker; None for frames as
    they are. timeout_s: seconds for one clip, after which its process is killed. Processes start when first needed and
    stay until `close()`, which the context manager calls. Raises MissingExtraError or UsageProblem for a decoder that
    cannot be had.
    """

    def __init__(
        self,
        workers: int,
        *,
        count: int | Sampling,
        transform_config: PreprocessConfig | None = None,
        decoder: str = "pyav",
        timeout_s: float = 60.0,
    ) -> None:
        if workers < 0:
            raise UsageProblem(f"the number of decode workers must be 0 or more, not {workers}")
        if not timeout_s > 0:
            raise UsageProblem(f"the time limit for a clip must be more than 0 seconds, not {timeout_s:g}")
        open_reader(decoder)  # a missing decoder is one error here, not one for each clip
        self._sampling = count if isinstance(count, Sampling) else Sampling(count)
        self._config, self._decoder = transform_config, decoder
        setup = {
            "sampling": asdict(self._sampling),
            "decoder": decoder,
            "transform": None if transform_config is None else to_dict(transform_config),
        }
        self._workers = [_Worker(setup, timeout_s) for _ in range(workers)]
        self._run: _Run | None = None

    @property
    def workers(self) -> int:
        """Processes; 0 decodes in this one."""
        return len(self._workers)

    @property
    def frames(self) -> int:
        """The most frames that a clip can have."""
        return self._sampling.count

    def run(self, inputs: Iterable[VideoInput], *, ordered: bool = True, ahead: int = 0) -> Generator[DecodeResult]:
        """One result for each input, in the order of the inputs unless `ordered` is false.

        Inputs are taken as needed: at most two clips for each worker, or `ahead` clips if that is more, are under way or
        waiting to be taken, whatever the speed of the taker. Leaving the loop early, or an exception in it, stops the work.
        Raises VctoolError where no worker process can be started.
        """
        yield from self._answers(inputs, ordered, "frames", ahead)

    def survey(self, inputs: Iterable[VideoInput], *, shots: bool = False) -> Iterator[tuple[VideoInput, DecodeResult]]:
        """Each input and what its file is, in order: `info` (or `error`), and with `shots` when its shots begin. No frames.

        Telling shots decodes the whole file: that may take ten times the pool's time limit.
        """
        for result in self._answers(inputs, True, "shots" if shots else "info"):
            yield result.input, result

    def _answers(self, inputs: Iterable[VideoInput], ordered: bool, what: str, ahead: int = 0) -> Iterator[DecodeResult]:
        if not self._workers:
            yield from self._here(inputs, what)
            return
        if self._run is not None:
            raise UsageProblem("this pool is already decoding: take all results of one run before the next")
        self._run = _Run(self._workers, what, max(ahead, 2 * len(self._workers)))
        try:
            yield from self._run.results(iter(inputs), ordered)
        finally:
            self._run = None

    def close(self) -> None:
        """Stop a run that is under way and all processes, and wait until they are gone. The pool can be used again after that."""
        if self._run is not None:
            self._run.stop()
        for worker in self._workers:
            worker.stop()

    def __enter__(self) -> DecodePool:
        return self

    def __exit__(self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _here(self, inputs: Iterable[VideoInput], what: str) -> Iterator[DecodeResult]:
        reader, transform = open_reader(self._decoder), transform_for(self._config)
        for clip in inputs:
            yield _result(clip, *work(reader, _job(clip, what), self._sampling, transform))


class _Run:
    """One `run` of a pool: a thread for each worker takes clips from one queue and puts results into another."""

    def __init__(self, workers: list[_Worker], what: str, ahead: int) -> None:
        self.workers, self.what, self.ahead = workers, what, ahead
        self.jobs: queue.SimpleQueue[tuple[int, VideoInput] | None] = queue.SimpleQueue()
        self.done: queue.SimpleQueue[tuple[int, DecodeResult | VctoolError]] = queue.SimpleQueue()
        self.threads = [threading.Thread(target=self._serve, args=(w,), daemon=True, name="vctool-decode") for w in workers]
        self.stopping = False

    def results(self, inputs: Iterator[VideoInput], ordered: bool) -> Iterator[DecodeResult]:
        ready: dict[int, DecodeResult] = {}
        given = taken = 0
        more = True
        try:
            for worker, thread in zip(self.workers, self.threads, strict=True):
                worker.interrupted = False
                thread.start()
            while not self.stopping:
                while more and given - taken < self.ahead:
                    clip = next(inputs, None)
                    if clip is None:
                        more = False
                    else:
                        self.jobs.put((given, clip))
                        given += 1
                if taken == given:
                    return
                while (taken not in ready) if ordered else not ready:
                    number, result = self._next_done()
                    if isinstance(result, VctoolError):
                        raise result
                    ready[number] = result
                yield ready.pop(taken if ordered else next(iter(ready)))
                taken += 1
        finally:
            self.stop()

    def stop(self) -> None:
        """End the threads. A process that is in the middle of a clip is killed; the others stay for the next run."""
        self.stopping = True
        for _ in self.threads:
            self.jobs.put(None)
        for worker in self.workers:
            worker.interrupt()
        for thread in self.threads:
            if thread.ident is not None:
                thread.join()

    def _next_done(self) -> tuple[int, DecodeResult | VctoolError]:
        while True:
            # With a limit, because on Windows Ctrl-C does not end an endless wait.
            with suppress(queue.Empty):
                return self.done.get(timeout=1.0)

    def _serve(self, worker: _Worker) -> None:
        while (job := self.jobs.get()) is not None and not self.stopping:
            number, clip = job
            try:
                self.done.put((number, worker.decode(clip, self.what)))
            except VctoolError as problem:
                self.done.put((number, problem))
            except Exception as problem:
                self.done.put((number, VctoolError(f"decoding {clip.path} failed in an unforeseen way: {problem!r}")))


class _Worker:
    """One decode process, started when it has work and again after it died."""

    def __init__(self, setup: dict[str, Any], timeout_s: float) -> None:
        self._setup, self._timeout_s = setup, timeout_s
        self._process: subprocess.Popen[bytes] | None = None
        self._busy = False
        self.interrupted = False
        self._lock = threading.Lock()  # between the thread that decodes and the one that interrupts it

    @property
    def pid(self) -> int | None:
        """Of the process, while there is one."""
        return None if self._process is None else self._process.pid

    def decode(self, clip: VideoInput, what: str = "frames") -> DecodeResult:
        """Have the process decode one clip, or tell `what` it is; if it dies or takes too long, that is the clip's error."""
        began = time.perf_counter()
        if self._process is not None and self._process.poll() is not None:
            self._reap(self._process)  # it died between two clips: that is no fault of this one
        process = self._process or self._start()
        limit = self._timeout_s * (SHOTS_TIMES if what == "shots" else 1)
        header, arrays, late = self._ask(process, _job(clip, what), limit)
        if header is not None:
            return _result(clip, header, arrays)
        code = self._reap(process)
        reason = f"took longer than {limit:g} s" if late else _death(code)
        return DecodeResult(clip, None, None, None, reason, time.perf_counter() - began)

    def interrupt(self) -> None:
        """Make a `decode` that is under way in another thread, or is about to start there, end at once."""
        with self._lock:
            self.interrupted = True
            if self._busy and self._process is not None:
                self._process.kill()

    def stop(self) -> None:
        process = self._process
        if process is not None:
            with suppress(OSError):
                cast(IO[bytes], process.stdin).close()  # the process leaves when its input ends
            try:
                process.wait(timeout=1.0)
            except subprocess.TimeoutExpired:
                process.kill()
            self._reap(process)

    def _start(self) -> subprocess.Popen[bytes]:
        # One thread each: as many processes as wished do the work side by side.
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        try:
            process = subprocess.Popen(
                [sys.executable, "-c", _CHILD, json.dumps(sys.path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=environment,
                start_new_session=True,  # out of reach of the terminal's Ctrl-C from its first instruction on
            )
        except OSError as problem:
            raise VctoolError(f"cannot start a decode process: {problem.strerror}", "use fewer workers") from None
        self._process = process
        header, _, _ = self._ask(process, self._setup, START_SECONDS)
        if header is None:
            raise VctoolError(f"a decode process does not start: {_death(self._reap(process))}", "try --workers 0 to see why")
        if "fatal" in header:
            self._reap(process)
            raise VctoolError(f"a decode process does not start: {header['fatal']}")
        return process

    def _ask(
        self, process: subprocess.Popen[bytes], message: dict[str, Any], seconds: float
    ) -> tuple[dict[str, Any] | None, list[Array], bool]:
        """The answer to a message and whether time ran out; without an answer the process is dead or dying."""
        ran_out = threading.Event()

        def give_up() -> None:
            ran_out.set()
            process.kill()

        timer = threading.Timer(seconds, give_up)
        timer.daemon = True
        with self._lock:
            self._busy = True
            if self.interrupted:
                process.kill()
        timer.start()
        try:
            send(cast(IO[bytes], process.stdin), message)
            header, arrays = receive(cast(IO[bytes], process.stdout))
            return header, arrays, False
        except (EOFError, OSError, ValueError):
            return None, [], ran_out.is_set()
        finally:
            timer.cancel()
            with self._lock:
                self._busy = False

    def _reap(self, process: subprocess.Popen[bytes]) -> int:
        """Close the pipes, wait for the end of the process and return its code."""
        try:
            code = process.wait(timeout=5.0)  # it closed its pipe: it is ending
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        for pipe in (process.stdin, process.stdout):
            with suppress(OSError):
                cast(IO[bytes], pipe).close()
        self._process = None
        return code


def _job(clip: VideoInput, what: str) -> dict[str, Any]:
    return {"path": str(clip.path), "start": clip.start, "end": clip.end, "what": what}


def _result(clip: VideoInput, header: dict[str, Any], arrays: list[Array]) -> DecodeResult:
    if header["error"] is not None:
        return DecodeResult(clip, None, None, None, header["error"], header["seconds"])
    width, height, duration, codec, rotation, frame_count = header["info"]
    info = VideoInfo(Path(clip.path), width, height, duration, None, codec, rotation, frame_count)
    if header["what"] != "frames":
        return DecodeResult(clip, None, None, info, None, header["seconds"], shot_start_S=arrays[0] if arrays else None)
    return DecodeResult(clip, arrays[0], arrays[1], info, None, header["seconds"], header["damaged"])


def _death(code: int) -> str:
    if code < 0:
        with suppress(ValueError):
            return f"decoder crashed (signal {-code}, {signal.Signals(-code).name})"
    return f"decoder crashed (signal {-code})" if code < 0 else f"decoder crashed (exit code {code})"
