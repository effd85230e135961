"""The verification report of a model directory: `export/report.json`, and the same as table rows. No torch."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vctool.runtime.checksums import sha256_of
from vctool_export.verdict import LIMITS, Verdict

SCHEMA = 1
REPORT_FILE = "export/report.json"
LAYERS_FILE = "export/layers.{precision}.json"
_VERSIONS = ("vctool", "torch", "onnx", "onnxscript", "onnxruntime", "onnxruntime-gpu", "openvino", "numpy", "open_clip_torch", "timm")


@dataclass(frozen=True)
class Report:
    """Verdicts over the artefacts of one model directory.

    against: `torch` (asked just now) or `stored` (its answers from the export). probe: facts of the probe set. layers: for each
    precision and graph, the number of operations by type. files: sha256 of the graphs that were judged. trials: verdicts over
    the same graphs on sessions that nobody asked for; they say what `auto` may take, and fail nothing.
    """

    model: Mapping[str, Any]
    against: str
    probe: Mapping[str, Any]
    verdicts: Sequence[Verdict]
    layers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    trials: Sequence[Verdict] = ()

    @property
    def failed(self) -> tuple[Verdict, ...]:
        """The verdicts that end in exit code 3."""
        return tuple(verdict for verdict in self.verdicts if verdict.status == "failed")

    def to_json(self) -> dict[str, Any]:
        """JSON form, with versions and machine."""
        return {
            "schema": SCHEMA,
            "model": dict(self.model),
            "against": self.against,
            "probe": dict(self.probe),
            "versions": versions(),
            "machine": {"cpu": platform.processor() or platform.machine(), "system": platform.platform()},
            "files": dict(self.files),
            "verdicts": [verdict.to_json() for verdict in (*self.verdicts, *self.trials)],
            "operations": {precision: dict(graphs) for precision, graphs in self.layers.items()},
        }

    def write(self, path: Path) -> None:
        """Write the JSON form, moved into place.

        What the old report says about the very same graphs on other engines, or about other precisions, is taken over.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        content = self.to_json()
        old = _read(path)
        if old.get("model", {}).get("model_sha256") == self.model.get("model_sha256") and old.get("files") == dict(self.files):
            judged = {(verdict.artifact, verdict.engine) for verdict in (*self.verdicts, *self.trials)}
            content["verdicts"] += [v for v in old["verdicts"] if (v["artifact"], v["engine"]) not in judged]
            content["operations"] = old.get("operations", {}) | content["operations"]
        temporary = path.with_name(f".{path.name}.tmp")
        try:
            temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def files_of(onnx_dir: Path) -> dict[str, str]:
    """sha256 of every graph in a folder and of its weights, by path in the model directory."""
    return {f"onnx/{path.name}": sha256_of(path) for path in sorted(onnx_dir.glob("*.onnx*")) if path.is_file()}


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return content if isinstance(content, dict) else {}
    except (OSError, ValueError):
        return {}


def versions() -> dict[str, str]:
    """Versions of what takes part, by distribution; those that are not installed are left out."""
    found = {"python": platform.python_version()}
    for name in _VERSIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def rows(verdict: Verdict) -> list[tuple[str, str, str, str]]:
    """A verdict as table rows: what, measured, limit, state."""
    limits = LIMITS[verdict.precision]
    if verdict.status == "not run":
        return [(verdict.artifact, "", "", f"not run: {verdict.reason}")]
    table = []
    for check in verdict.checks:
        if check.level == "identity" and check.ok is not True:
            table.append((f"identity: {check.graph or check.case}", check.note, "", _state(check.ok)))
    for graph in dict.fromkeys(check.graph for check in verdict.checks if check.level == "tensors"):
        checks = [check for check in verdict.checks if check.level == "tensors" and check.graph == graph]
        error, cosine = verdict.worst("tensors", graph, "max_abs"), verdict.worst("tensors", graph, "cosine", largest=False)
        asked = sum(check.ok is not None for check in checks)
        state = _state(False if any(check.ok is False for check in checks) else True if asked else None)
        limit = f"cosine ≥ {limits.cosine:g}" + (f", error ≤ {limits.max_abs:g}" if limits.max_abs is not None else "")
        measured = f"cosine {cosine:.6f}, error {error:.1e}" if cosine is not None and error is not None else ""
        table.append((f"tensors: {graph} ({asked} shapes)", measured, limit, state))
    for check in verdict.checks:
        if check.level == "scores":
            measured = f"error {check.values['max_abs']:.1e}" if "max_abs" in check.values else check.note
            limit = f"error ≤ {limits.score * (2 if check.case.endswith('fv') else 1):g}"
            table.append((f"scores: {check.case}".rstrip(": "), measured, limit, _state(check.ok)))
        elif check.level == "retrieval":
            v = check.values
            measured = check.note
            if "recall1" in v:
                recall = ", ".join(f"R@{k} {v[f'recall{k}']:.1f} ({v[f'recall{k}'] - v[f'recall{k}_torch']:+.1f})" for k in (1, 5, 10))
                measured = f"top-10 {v['top10']:.3f}; {recall}"
            limit = f"top-10 ≥ {limits.top:g}, R@K ± {limits.recall:g}"
            table.append((f"retrieval: {check.case}".rstrip(": "), measured, limit, _state(check.ok)))
    return table


def _state(ok: bool | None) -> str:
    return {True: "ok", False: "FAILED", None: "not run"}[ok]
