"""What was proved of a model directory's graphs, by session: read from the report that verification leaves in it."""

from __future__ import annotations

import json
from pathlib import Path

from vctool.errors import ModelError
from vctool.runtime.model_directory import ModelDirectory

REPORT_FILE = "export/report.json"


def verified(model_dir: Path, provider: str) -> bool:
    """Whether the report holds a verdict `ok` over this model through `provider` (`openvino`).

    False where there is no report, where it is of other weights, and where any verdict over that session is not `ok`.
    """
    try:
        report = json.loads((model_dir / REPORT_FILE).read_text(encoding="utf-8"))
        about = [v["status"] for v in report["verdicts"] if str(v["engine"]).lower().partition(",")[0] == provider]
        told = report["model"].get("model_sha256")
        return bool(about) and set(about) == {"ok"} and told in (None, ModelDirectory.open(model_dir).fingerprint)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ModelError):
        return False


def told_verdicts(model_dir: Path) -> list[dict[str, str]]:
    """What the report says of each artefact: `artifact`, `engine`, `status`; empty without a report that can be read."""
    try:
        report = json.loads((model_dir / REPORT_FILE).read_text(encoding="utf-8"))
        return [{name: str(verdict[name]) for name in ("artifact", "engine", "status")} for verdict in report["verdicts"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []
