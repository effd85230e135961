"""vctool: find videos by what is said about them (Video-ColBERT)."""

from __future__ import annotations

__version__ = "0.1.0"
