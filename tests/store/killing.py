"""Run a change of a store in a process that is killed at its n-th step: every call that touches the disk is a step."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable

from vctool.store.parts import Part

_STEPS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.truncate"}


def killed_at(step: int, change: Callable[[], object]) -> bool:
    """Fork, run `change`, and kill the child with SIGKILL before its step number `step` (from 0). False: it ended before.

    An exception in the child fails the test.
    """
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            assert os.WTERMSIG(status) == signal.SIGKILL
            return True
        assert os.WEXITSTATUS(status) == 0, "the change failed: see above"
        return False
    code = 1
    try:
        _count(step)
        change()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _count(step: int) -> None:
    left = step

    def take() -> None:
        nonlocal left
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1

    def audit(event: str, args: tuple[object, ...]) -> None:
        if event in _STEPS:
            take()

    sync, write = os.fsync, Part._write

    def fsync(descriptor: int) -> None:
        take()
        sync(descriptor)

    def half(self: Part, data: memoryview) -> None:
        write(self, data[: len(data) // 2])
        take()
        write(self, data[len(data) // 2 :])

    os.fsync, Part._write = fsync, half  # type: ignore[assignment, method-assign]
    sys.addaudithook(audit)
