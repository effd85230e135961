"""vctool: find videos by what is said about them (Video-ColBERT).

Importing this loads nothing; each name below is loaded on first use, none of them loads torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = ["__version__", "evaluate_ranking", "load_model", "mean_max_sim", "open_store", "search", "search_all"]

_HOMES = {
    "evaluate_ranking": "vctool.metrics",
    "load_model": "vctool.runtime.model",
    "mean_max_sim": "vctool.runtime.api",
    "open_store": "vctool.store",
    "search": "vctool.runtime.search",
    "search_all": "vctool.runtime.search",
}

if TYPE_CHECKING:
    from vctool.metrics import evaluate_ranking
    from vctool.runtime.api import mean_max_sim
    from vctool.runtime.model import load_model
    from vctool.runtime.search import search, search_all
    from vctool.store import open_store


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'vctool' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
