"""One thread: the models here are tiny, and two threads on a busy machine wait for each other longer than they compute."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    try:
        import torch
    except ImportError:
        return
    torch.set_num_threads(1)
