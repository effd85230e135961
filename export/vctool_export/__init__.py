"""Export of vctool models to ONNX graphs (and engines built from them), and the proof that they are right."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vctool_export.exporting import export_graphs

__all__ = ["export_graphs"]


def __getattr__(name: str) -> Any:
    # `vctool verify` works without torch, so nothing that needs it may be imported on the way in.
    if name == "export_graphs":
        from vctool_export.exporting import export_graphs

        return export_graphs
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
