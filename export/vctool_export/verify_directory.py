"""`vctool verify`: the artefacts of a model directory held against PyTorch, or against its stored answers where there is no torch."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from vctool.config import ModelConfig, PreprocessConfig, read_json
from vctool.errors import ModelError, VctoolError
from vctool.preprocessing.tokenizer import Tokenizer
from vctool.runtime.checksums import update_checksums
from vctool.runtime.model_directory import CONFIG_FILE, PREPROCESS_FILE
from vctool.runtime.sessions import Device, Provider
from vctool_export.identity import facts_of, integrity_checks, metadata_checks, reference_check
from vctool_export.onnx_sessions import GRAPHS, graph_file, graph_sessions, limits_of, precisions_of
from vctool_export.probe import Probe, read_probe, same_probe
from vctool_export.reference import REFERENCE_FILE, Reference
from vctool_export.report import REPORT_FILE, Report, files_of
from vctool_export.verify import verify_artifact

Against = Literal["auto", "torch", "stored"]
Say = Callable[[str], None]


def verify_directory(
    model_dir: Path,
    *,
    precisions: Sequence[str] = (),
    probe: Sequence[Path] | None = None,
    against: Against = "auto",
    device: Device = "cpu",
    provider: Provider = "auto",
    threads: int | None = None,
    keep_report: bool = True,
    progress: Say | None = None,
) -> Report:
    """Verify the graphs of a model directory, all precisions that are there unless some are named.

    against: `torch` asks PyTorch anew, `stored` takes the answers that were kept at export; `auto` is torch where it is
    installed. The report goes to `export/report.json` (keep_report), beside what that says
    about the same graphs on other engines, unless the directory cannot be written. Raises ModelError
    if there is nothing to verify, or nothing to verify against.
    """
    say = progress or (lambda _: None)
    if not (model_dir / CONFIG_FILE).is_file():
        raise ModelError(f"{model_dir} is not a model directory: it has no {CONFIG_FILE}", "`vctool fetch --list` shows models to fetch")
    found = precisions_of(model_dir)
    lacking = [precision for precision in precisions if precision not in found]
    if lacking or not found:
        what = f"graphs in {', '.join(lacking)}" if lacking else "graphs"
        raise ModelError(f"{model_dir} has no {what}", f"write them with: vctool export {model_dir}")
    say("checking files")
    checks = integrity_checks(model_dir)
    tokenizer = Tokenizer.load(model_dir)
    questions = read_probe(tokenizer, read_json(PreprocessConfig, model_dir / PREPROCESS_FILE), probe)
    reference, asked, why_no_probe = _reference(model_dir, tokenizer, questions, against, say)
    if asked == "stored":
        checks.append(reference_check(model_dir, reference))
    verdicts = []
    with tempfile.TemporaryDirectory(prefix="vctool-verify-") as scratch:
        for precision in precisions or found:
            say(f"verifying {precision} against {asked}")
            make, engine = graph_sessions(model_dir / "onnx", precision, Path(scratch), device=device, provider=provider, threads=threads)
            make, limits = limits_of(make, precision)
            paths = {name: model_dir / "onnx" / graph_file(name, precision) for name in GRAPHS}
            verdicts.append(
                verify_artifact(
                    make,
                    reference,
                    precision=limits,
                    artifact=f"onnx {precision}",
                    engine=engine,
                    probe=None if why_no_probe else questions,
                    why_no_probe=why_no_probe,
                    checks=[*checks, *metadata_checks(model_dir, paths, precision)],
                    progress=say,
                )
            )
    name = read_json(ModelConfig, model_dir / CONFIG_FILE).name
    report = Report({"name": name, **facts_of(model_dir)}, asked, questions.facts, verdicts, files=files_of(model_dir / "onnx"))
    if keep_report:
        keep(model_dir, report, say)
    return report


def keep(model_dir: Path, report: Report, say: Say) -> None:
    """Write the report into the directory; one that cannot be written is said, not fatal: the verdict is known."""
    path = model_dir / REPORT_FILE
    if not os.access(model_dir, os.W_OK):
        say(f"{path} cannot be written: the report is not kept")
        return
    try:
        report.write(path)
        # Only the report's own line: checksums of other files must go on saying what they said.
        update_checksums(model_dir, [REPORT_FILE])
    except (OSError, ModelError) as problem:
        say(f"the report is not kept: {problem}")


def _reference(
    model_dir: Path, tokenizer: Tokenizer, questions: Probe, against: Against, say: Say
) -> tuple[Reference, Literal["torch", "stored"], str]:
    """(answers of PyTorch, where they are from, why they say nothing about the probe set or "")."""
    if against == "torch" or (against == "auto" and _has_torch()):
        try:
            from vctool.models.checkpoint import load_model
            from vctool_export.torch_reference import torch_reference

            return torch_reference(load_model(model_dir), tokenizer, questions, facts_of(model_dir), progress=say), "torch", ""
        except VctoolError as problem:
            if against == "torch":
                raise
            say(f"PyTorch cannot be asked ({problem.message}): using its stored answers")
    reference = Reference.load(model_dir / REFERENCE_FILE)
    if reference.scores is None:
        return reference, "stored", "no scores were stored at export"
    differs = same_probe(dict(reference.scores.probe), questions)
    return reference, "stored", f"the probe set cannot be compared: {differs}" if differs else ""


def _has_torch() -> bool:
    with contextlib.suppress(ValueError):  # a module that is blocked has no spec
        return importlib.util.find_spec("torch") is not None and importlib.util.find_spec("open_clip") is not None
    return False
