"""A model directory's graphs: exported, converted, proved, and only then put in place."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from vctool.errors import InputError, ModelError, UsageProblem, VerificationError
from vctool.models.checkpoint import load_model
from vctool.preprocessing.tokenizer import Tokenizer
from vctool.runtime.checksums import CHECKSUMS_FILE, write_checksums
from vctool.runtime.graph_metadata import read_metadata
from vctool.runtime.sessions import Provider
from vctool_export.graphs import graph_specs
from vctool_export.identity import HASHES, facts_of, graph_metadata, metadata_checks
from vctool_export.onnx_export import OPSET, export_graph, require_packages
from vctool_export.onnx_files import set_metadata
from vctool_export.onnx_sessions import GRAPHS, PRECISIONS, faster_providers, graph_file, graph_sessions, limits_of, precisions_of
from vctool_export.precision import PrecisionReport, convert_to_half
from vctool_export.probe import read_probe
from vctool_export.reference import REFERENCE_FILE, Array, Reference
from vctool_export.report import LAYERS_FILE, REPORT_FILE, Report, files_of
from vctool_export.scorer_graph import SCORER_TOKENS, prove_scorer, write_scorer
from vctool_export.staging import exchange, staged
from vctool_export.torch_reference import TorchSession, torch_reference
from vctool_export.verdict import Verdict
from vctool_export.verify import verify_artifact

GRAPHS_FILE = "onnx/graphs.json"
CALIBRATION_CLIPS = 64

Say = Callable[[str], None]


def export_graphs(
    model_dir: Path,
    *,
    precisions: Sequence[str] = (),
    probe: Sequence[Path] | None = None,
    calibrate: Sequence[Path] | None = None,
    providers: Sequence[Provider] | None = None,
    progress: Say | None = None,
) -> Report:
    """Write the plain fp32 graphs `onnx/{text,frame,temporal}.onnx`, those of other `precisions` beside them, and their proof.

    And `onnx/scorer.onnx`, MeanMaxSim over float16 tokens with float32 sums: without weights, one for all precisions.

    probe: clips for the retrieval level, the shipped ones if None. calibrate: clips whose ranges `int8-qdq` takes. providers: what
    else the fp32 graphs are tried on, `faster_providers` if None; one that fails there is not taken by itself, no more. Everything is
    made in a scratch folder and compared with PyTorch; if any of it fails, VerificationError is raised (its `report` has the
    verdicts) and nothing of the directory is changed. Graphs of other precisions that are there stay if they are of the same
    weights, tokenizer and preprocessing, and are removed if not. Raises ModelError for a model that does not score by MeanMaxSim.
    """
    say = progress or (lambda _: None)
    wanted = _checked(precisions, calibrate)
    require_packages()
    with staged(model_dir) as scratch:
        model = load_model(model_dir)
        if model.config.similarity != "mean":
            raise ModelError(
                f'{model_dir} scores by similarity = "{model.config.similarity}", which only PyTorch computes',
                "such models are for `vctool ablate`; index and query serve MeanMaxSim alone",
            )
        specs = graph_specs(model)
        tokenizer = Tokenizer.load(model_dir)
        questions = read_probe(tokenizer, model.backbone.preprocess, probe)
        facts = facts_of(model_dir)
        new, onnx_dir = scratch / "new", scratch / "new" / "onnx"
        onnx_dir.mkdir(parents=True)
        told = {name: metadata.version(name) for name in ("vctool", "torch", "onnx")}
        for spec in specs:
            say(f"exporting {spec.name}")
            export_graph(spec, onnx_dir / graph_file(spec.name, "fp32"), graph_metadata(model_dir, spec.name, "fp32", OPSET, told))
        scorer = onnx_dir / graph_file("scorer", "fp32")
        write_scorer(scorer, SCORER_TOKENS, model.backbone.embed_dim, graph_metadata(model_dir, "scorer", "fp32", OPSET, told))
        prove_scorer(scorer)
        reference = torch_reference(model, tokenizer, questions, facts, progress=say)
        layers: dict[str, dict[str, PrecisionReport]] = {}
        feeds = _calibration(specs, tokenizer, model, calibrate) if "int8-qdq" in wanted else {}
        del model
        for precision in wanted[1:]:
            say(f"converting to {precision}")
            layers[precision] = {name: _convert(onnx_dir, name, precision, feeds, model_dir, told) for name in GRAPHS}

        def judged(precision: str, provider: Provider = "auto") -> Verdict:
            say(f"comparing {precision} with PyTorch" if provider == "auto" else f"trying {provider}")
            make, engine = graph_sessions(onnx_dir, precision, scratch, provider=provider)
            make, limits = (make, precision) if provider == "auto" else limits_of(make, precision)
            checks = metadata_checks(model_dir, {name: onnx_dir / graph_file(name, precision) for name in GRAPHS}, precision)
            return verify_artifact(
                make, reference, precision=limits, artifact=f"onnx {precision}", engine=engine, probe=questions, checks=checks
            )

        verdicts = [judged(precision) for precision in wanted]
        counts = {p: {name: report.counts() for name, report in graphs.items()} for p, graphs in layers.items()}
        report = Report({"name": read_name(model_dir), **facts}, "torch", questions.facts, verdicts, counts, files_of(onnx_dir))
        if report.failed:
            raise DriftError(report)
        trials = [judged("fp32", provider) for provider in (faster_providers() if providers is None else providers)]
        report = replace(report, trials=trials)
        _write_beside(new, report, reference, layers)
        _put_in_place(model_dir, scratch, wanted, facts)
    return report


class DriftError(VerificationError):
    """An artefact is not what PyTorch computes. `report` has every verdict; the directory is as it was."""

    def __init__(self, report: Report) -> None:
        first = report.failed[0]
        others = [v.precision for v in report.verdicts if v.status != "failed" and v.precision != "fp32"]
        hint = "nothing was changed"
        if first.precision != "fp32":
            hint += "; leave it out" + (f", and keep {', '.join(others)}" if others else "")
            hint += ", or try bf16, whose range is that of fp32" if first.precision == "fp16" else ""
        super().__init__(f"the {first.precision} graphs differ from PyTorch: {first.reason}", hint)
        self.report = report


def read_name(model_dir: Path) -> str:
    """The model's name, from its config."""
    return str(json.loads((model_dir / "config.json").read_text(encoding="utf-8")).get("name", model_dir.name))


def _checked(precisions: Sequence[str], calibrate: Sequence[Path] | None) -> list[str]:
    for name in precisions:
        if name not in PRECISIONS:
            raise UsageProblem(f"there is no precision '{name}'", f"one of {', '.join(PRECISIONS)}")
    if "int8-qdq" in precisions and not calibrate:
        raise UsageProblem("int8-qdq takes its ranges from your clips", "name some with --calibrate VIDEOS")
    return ["fp32", *(p for p in PRECISIONS[1:] if p in precisions)]


def _convert(
    onnx_dir: Path, name: str, precision: str, feeds: Mapping[str, Mapping[str, Array]], model_dir: Path, told: dict[str, str]
) -> PrecisionReport:
    from vctool_export.quantize import calibration_feeds, quantize_dynamic, quantize_static, quantize_weights

    source, target = onnx_dir / graph_file(name, "fp32"), onnx_dir / graph_file(name, precision)
    if precision in ("fp16", "bf16"):
        report = convert_to_half(source, target, precision)
    elif precision == "int8":
        report = quantize_dynamic(source, target)
    elif precision == "int8-weights":
        report = quantize_weights(source, target)
    else:
        report = quantize_static(source, target, calibration_feeds(name, feeds[name]))
    graph = onnx.load(target, load_external_data=False)
    set_metadata(graph, graph_metadata(model_dir, name, precision, OPSET, told))
    onnx.save_model(graph, str(target))  # weights are beside it already
    return report


def _calibration(specs: Sequence[Any], tokenizer: Tokenizer, model: Any, clips: Sequence[Path] | None) -> dict[str, dict[str, Array]]:
    """Rows of every graph's inputs, from the user's clips and their captions."""
    frames = min(model.config.frames, 8)
    given = read_probe(tokenizer, model.backbone.preprocess, clips, frames=frames, limit=CALIBRATION_CLIPS)
    session = next(TorchSession(spec) for spec in specs if spec.name == "frame")
    whole = [clip for clip in given.clips if len(clip) == frames]
    if not whole:
        raise InputError(f"no clip of --calibrate has {frames} frames", "name longer ones")
    features = [session.run(("frame_features",), {"frames": clip})[0] for clip in whole]
    stacked = np.stack(features).astype(np.float32)
    return {
        "text": {"input_ids": given.input_ids_QL, "attention_mask": given.attention_mask_QL},
        "frame": {"frames": np.concatenate(whole)},
        "temporal": {"frame_features": stacked, "frame_mask": np.ones(stacked.shape[:2], dtype=np.bool_)},
    }


def _write_beside(new: Path, report: Report, reference: Reference, layers: Mapping[str, Mapping[str, PrecisionReport]]) -> None:
    """The proof: report, stored answers, and what runs in what."""
    report.write(new / REPORT_FILE)
    reference.save(new / REFERENCE_FILE)
    for precision, graphs in layers.items():
        content = {"schema": 1, "precision": precision, "graphs": {name: graph.to_json() for name, graph in graphs.items()}}
        (new / LAYERS_FILE.format(precision=precision)).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _put_in_place(model_dir: Path, scratch: Path, wanted: Sequence[str], facts: Mapping[str, str]) -> None:
    kept: list[str] = []
    stale: list[str] = []
    for precision in precisions_of(model_dir):
        told = [read_metadata(model_dir / "onnx" / graph_file(name, precision)) for name in GRAPHS]
        same = all(graph.get(name) == facts.get(name) for graph in told for name in HASHES)
        (kept if same else stale).append(precision)
    remove = [
        path.relative_to(model_dir).as_posix()
        for precision in stale
        if precision not in wanted
        for path in [
            *(model_dir / "onnx" / f"{graph_file(name, precision)}{end}" for name in GRAPHS for end in ("", ".data")),
            model_dir / LAYERS_FILE.format(precision=precision),
        ]
        if path.exists()
    ]
    present = [p for p in PRECISIONS if p in wanted or p in kept]
    listing = {
        "schema": 1,
        "graphs": {name: {p: f"onnx/{graph_file(name, p)}" for p in present} for name in GRAPHS},
        "default": "fp32",
    }
    (scratch / "new" / GRAPHS_FILE).write_text(json.dumps(listing, indent=1) + "\n", encoding="utf-8")
    _drop_old_data(model_dir, scratch / "new", remove)
    moved = exchange(scratch / "new", model_dir, scratch / "old", remove=remove)
    try:
        write_checksums(model_dir)
    except BaseException:
        moved.undo()
        (model_dir / f".{CHECKSUMS_FILE}.tmp").unlink(missing_ok=True)
        raise


def _drop_old_data(model_dir: Path, new: Path, remove: list[str]) -> None:
    """Data files of graphs that are replaced by graphs too small to need one."""
    for path in (new / "onnx").glob("*.onnx"):
        name = f"onnx/{path.name}.data"
        if (model_dir / name).exists() and not (new / name).exists():
            remove.append(name)
