"""A decoder that fails in the ways in which native code fails, as the name of the file says; other files it decodes."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from pathlib import Path

from vctool.video.pyav_reader import PyavReader
from vctool.video.reader import DecodedFrames, Transform


class BadReader(PyavReader):
    """`exit`, `kill`, `segv`, `hang`, `spin`, `raise`, `talk`, `slow` in a file's name each do what they say."""

    def decode(self, path: Path, count: int, start: float | None, end: float | None, transform: Transform) -> DecodedFrames:
        match path.stem.split("-")[0]:
            case "exit":
                os._exit(3)
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "segv":
                ctypes.string_at(0)
            case "hang":
                time.sleep(600)
            case "raise":
                raise RuntimeError("two\nlines")
            case "talk":
                print("this must not reach the pipe", flush=True)
                os.write(1, b"nor this")
                print("nor this the terminal", file=sys.stderr, flush=True)
            case "slow":
                time.sleep(0.3)
        return super().decode(path, count, start, end, transform)


class Unimportable:
    """A decoder that cannot be made."""

    def __init__(self) -> None:
        if os.environ.get("VCTOOL_TEST_PARENT") != str(os.getpid()):
            os._exit(9)
