"""Exported miniature models, made once a session: every test works on a copy."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from vctool_export.probe import shipped_probe


def small_probe(folder: Path, clips: int = 6) -> Path:
    """A manifest of a few of the shipped clips."""
    source = shipped_probe()
    rows = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()[:clips]]
    lines = [json.dumps({"id": r["id"], "path": str(source.parent / r["path"]), "captions": r["captions"]}) for r in rows]
    (folder / "probe.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / "probe.jsonl"


def tree(folder: Path) -> dict[str, str]:
    """Every file below a folder, hidden ones too, with its hash: what 'unchanged' means."""
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*") if p.is_file()}


def replay(monkeypatch: pytest.MonkeyPatch, exported: Path) -> None:
    """Let the next export take its plain graphs from an earlier one: torch.export is the slow part, and is not what is tested."""
    from vctool_export import exporting

    def copied(spec: object, path: Path, metadata: object = None) -> None:
        for end in ("", ".data"):
            shutil.copy(exported / "onnx" / f"{path.name}{end}", path.with_name(path.name + end))

    monkeypatch.setattr(exporting, "export_graph", copied)
