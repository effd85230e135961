"""PyTorch modules to plain fp32 ONNX graphs: named axes, opset 18, the module of every node, metadata of the model."""

from __future__ import annotations

import contextlib
import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from vctool.errors import MissingExtraError, ModelError
from vctool_export.graphs import GraphSpec
from vctool_export.onnx_files import MODULE_KEY

OPSET = 18


def require_packages() -> None:
    """Raises MissingExtraError, naming the pip line, unless everything that export needs is installed."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as problem:
        raise MissingExtraError(problem.name or "onnx", "export" if problem.name != "onnxruntime" else "cpu") from None


def export_graph(spec: GraphSpec, path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Export one graph through torch.export at opset 18, weights in an external file beside it.

    Raises ModelError for an operation that ONNX lacks, naming it, its node and its module. OSError where the disk is full.
    """
    module = spec.module.eval()
    with _quietly(), torch.no_grad():
        try:
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
        except OSError:
            raise
        except Exception as problem:  # the exporter wraps whatever goes wrong, often several times
            raise _why_not(spec, problem) from problem
        assert program is not None
        graph = program.model.graph
        for node in graph:
            where = _dotted(node.metadata_props.get("namespace", ""))
            # The exporter notes stack traces of this machine: large, and nobody else's business.
            node.metadata_props.clear()
            if where:
                node.metadata_props[MODULE_KEY] = where
        for part in [*graph.inputs, *graph.outputs, *graph.initializers.values()]:
            part.metadata_props.clear()
        program.model.metadata_props.clear()
        program.model.metadata_props.update(metadata or {})
        program.save(str(path), external_data=True)


def _why_not(spec: GraphSpec, problem: BaseException) -> ModelError:
    """The one line of an export that failed: operation, node, module where they can be told."""
    messages = []
    seen: BaseException | None = problem
    while seen is not None:
        messages.append(str(seen))
        seen = seen.__cause__ or seen.__context__
    named = re.search(r"%(\w+)\s*:.*?call_function\[target=torch\.ops\.([\w.]+)\]", "\n".join(messages))
    if named is None:
        line = next((line.strip() for line in messages[-1].splitlines() if line.strip()), type(problem).__name__)
        return ModelError(
            f"{spec.name}: torch cannot export this model: {line}", "--debug shows where; report it with the model's config.json"
        )
    node, operation = named[1], named[2]
    module = _module_of(spec, node, operation) or "unknown"
    return ModelError(
        f"{spec.name}: the operation {operation} has no ONNX form (node {node}, in module {module})",
        "build that module from operations that ONNX has",
    )


def _module_of(spec: GraphSpec, node: str, operation: str) -> str:
    """The module that a node of the exporter's own graph belongs to: the graph is made once more, since the failure does not carry it.

    The exporter may have renamed the node when it took the operation apart, so the operation's own name is looked for too.
    """
    try:
        exported = torch.export.export(spec.module, tuple(spec.inputs.values()), dynamic_shapes=spec.dynamic)
    except Exception:  # then it fails before there are nodes
        return ""
    base = operation.split(".")[1] if operation.count(".") else operation
    for candidate in exported.graph.nodes:
        if candidate.name == node or (candidate.op == "call_function" and base in str(candidate.target)):
            stack = list((candidate.meta.get("nn_module_stack") or {}).values())
            return str(stack[-1][0]).removeprefix("L['self'].").removeprefix("self.") if stack else ""
    return ""


def _dotted(namespace: str) -> str:
    """`backbone.text_tower` out of the exporter's `: Graph/backbone: X/backbone.text_tower: Y/node: aten.z`."""
    parts = [part.split(":")[0].strip() for part in namespace.split("/")[:-1]]
    return next((part for part in reversed(parts) if part), "")


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    noisy = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "torch.export")]
    levels = [log.level for log in noisy]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for log in noisy:
                log.setLevel(logging.ERROR)
            yield
        finally:
            for log, level in zip(noisy, levels, strict=True):
                log.setLevel(level)
