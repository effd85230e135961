"""Ctrl-C and SIGTERM during a run: the first asks the loop to save and stop, the second stops at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopRequest:
    """`asked` turns true when the user or the machine wants the run to end."""

    asked = False


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Watch for SIGINT and SIGTERM while the block runs (only in the main thread; elsewhere nothing is watched)."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def ask(number: int, frame: FrameType | None) -> None:
        if request.asked:
            raise KeyboardInterrupt
        request.asked = True

    watched = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, ask) for number in watched]
    try:
        yield request
    finally:
        for number, handler in zip(watched, before, strict=True):
            signal.signal(number, handler)
