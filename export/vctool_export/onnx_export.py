"""Model directory to ONNX graphs, each proved against PyTorch before it is kept."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import numpy as np
import torch

from vctool.errors import MissingExtraError, ModelError, VerificationError
from vctool.models.checkpoint import load_model
from vctool.runtime.checksums import write_checksums
from vctool_export.graphs import GraphSpec, graph_specs

OPSET = 18
MAX_ABS_ERROR = 1e-4
"""Largest difference from PyTorch that an fp32 graph may show, on L2-normalised tokens and relative for features."""


def export_graphs(model_dir: Path, *, progress: Callable[[str], None] | None = None) -> dict[str, float]:
    """Write `onnx/{text,frame,temporal}.onnx` (weights beside them as `.onnx.data`) and the directory's checksums.

    Every graph is run in ONNX Runtime at batches of 1, 2 and 5 and compared with PyTorch; a graph that drifts raises
    VerificationError and nothing of the directory is changed. Returns the largest error of each graph.
    """
    say = progress or (lambda _: None)
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as problem:
        raise MissingExtraError(problem.name or "onnx", "export" if problem.name != "onnxruntime" else "cpu") from None
    model = load_model(model_dir)
    try:
        with tempfile.TemporaryDirectory(prefix=".onnx-", dir=model_dir) as scratch:
            errors = _export_proved(graph_specs(model), Path(scratch) / "onnx", say)
            _exchange(Path(scratch) / "onnx", model_dir / "onnx", Path(scratch) / "old")
        write_checksums(model_dir)
    except OSError as problem:
        raise ModelError(
            f"the graphs cannot be written into {model_dir}: {problem.strerror or problem}", "make room there and export again"
        ) from None
    return errors


def _export_proved(specs: list[GraphSpec], folder: Path, say: Callable[[str], None]) -> dict[str, float]:
    """Every graph into `folder`, with its largest error. Raises VerificationError at the first that drifts."""
    errors: dict[str, float] = {}
    folder.mkdir()
    for spec in specs:
        say(f"exporting {spec.name}")
        export_graph(spec, folder / f"{spec.name}.onnx")
        say(f"comparing {spec.name} with PyTorch")
        errors[spec.name] = error = compare_with_torch(spec, folder / f"{spec.name}.onnx")
        if not error <= MAX_ABS_ERROR:
            raise VerificationError(f"the exported {spec.name} graph differs from PyTorch by {error:.2g} (allowed: {MAX_ABS_ERROR:g})")
    return errors


def _exchange(new: Path, target: Path, aside: Path) -> None:
    """Put the folder `new` in the place of `target`; if that fails, what was there is put back."""
    if target.exists():
        target.rename(aside)
    try:
        new.rename(target)
    except OSError:
        if aside.exists():
            aside.rename(target)
        raise


def export_graph(spec: GraphSpec, path: Path) -> None:
    """Export one graph through torch.export at opset 18, weights in an external file beside it."""
    module = spec.module.eval()
    noisy = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "torch.export")]
    levels = [log.level for log in noisy]
    try:
        for log in noisy:
            log.setLevel(logging.ERROR)
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                module,
                tuple(spec.inputs.values()),
                input_names=list(spec.inputs),
                output_names=list(spec.outputs),
                dynamic_shapes=spec.dynamic,
                opset_version=OPSET,
                dynamo=True,
                optimize=True,
                verbose=False,
            )
            assert program is not None
            graph = program.model.graph
            # Stack traces of the exporting machine: large, and nobody else's business.
            for part in [*graph, *graph.inputs, *graph.outputs, *graph.initializers.values()]:
                part.metadata_props.clear()
            program.model.metadata_props["vctool_version"] = metadata.version("vctool")
            program.save(str(path), external_data=True)
    finally:
        for log, level in zip(noisy, levels, strict=True):
            log.setLevel(level)


def compare_with_torch(spec: GraphSpec, path: Path) -> float:
    """Largest error of the graph against its module at batches of 1, 2 and 5, relative to the largest output (at least 1).

    Masks must be equal: a different one counts as infinite error.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    worst = 0.0
    for batch in (1, 2, 5):
        inputs = {name: torch.cat([value] * 3)[:batch] for name, value in spec.inputs.items()}
        with torch.no_grad():
            expected = spec.module(*inputs.values())
        expected = expected if isinstance(expected, tuple) else (expected,)
        got = session.run(list(spec.outputs), {name: value.numpy() for name, value in inputs.items()})
        for want, have in zip(expected, got, strict=True):
            reference = want.numpy()
            if reference.dtype == np.bool_:
                worst = worst if np.array_equal(reference, have) else float("inf")
                continue
            scale = max(1.0, float(np.abs(reference).max()))
            error = float(np.abs(reference - have).max()) / scale if reference.shape == have.shape else float("inf")
            worst = max(worst, error) if np.isfinite(have).all() else float("inf")
    return worst
