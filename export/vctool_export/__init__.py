"""Export of vctool models to ONNX graphs (and engines built from them)."""

from __future__ import annotations

from vctool_export.onnx_export import export_graphs

__all__ = ["export_graphs"]
