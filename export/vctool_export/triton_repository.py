"""A model repository for Triton Inference Server: every graph with its config.pbtxt, and an ensemble from a clip's frames to its tokens.

`text` takes batches of queries, joined by the server. `frame` takes the frames of one clip, `temporal` their features, and `clip` is both:
each request is a clip, since clips have different numbers of frames.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vctool.errors import InputError, ModelError
from vctool.runtime.engine_file import EngineInfo, engines_of
from vctool.runtime.model_directory import ModelDirectory
from vctool_export.engine_checks import inputs_of, outputs_of, types_of

Backend = Literal["onnxruntime", "tensorrt"]
QUERIES = 32
"""Queries that the server joins at most."""

_TYPES = {"uint8": "TYPE_UINT8", "int64": "TYPE_INT64", "float32": "TYPE_FP32", "bool": "TYPE_BOOL", "int32": "TYPE_INT32"}
Sides = Sequence[int | str]


@dataclass(frozen=True)
class Port:
    """One input or output. dims: what a client sends or gets, -1 for any; reshape: what the graph has, if that differs."""

    name: str
    kind: str
    dims: tuple[int, ...]
    reshape: tuple[int, ...] | None = None

    def text(self, role: str) -> str:
        """As an entry of `input` or `output`."""
        shape = f"\n    reshape {{ shape: [ {_numbers(self.reshape)} ] }}" if self.reshape is not None else ""
        lines = (f'name: "{self.name}"', f"data_type: {_TYPES[self.kind]}", f"dims: [ {_numbers(self.dims)} ]{shape}")
        return f"{role} [\n  {{\n" + "".join(f"    {line}\n" for line in lines) + "  }\n]\n"


def write_repository(model_dir: Path, target: Path, *, backend: Backend = "onnxruntime", sm: str | None = None) -> list[str]:
    """Write the repository of a model directory as the new folder `target`, whole or not at all; returns the models' names.

    backend `tensorrt`: engines instead of graphs, those for `sm` (or of the only compute capability that there is). Raises InputError if
    `target` exists or cannot be written, ModelError if graphs or engines are missing or altered.
    """
    if target.exists():
        raise InputError(f"{target} exists already", "choose another folder, or remove it first")
    model = ModelDirectory.open(model_dir)
    engines = _engines(model_dir, sm) if backend == "tensorrt" else {}
    names = ["text", "frame", *(["temporal"] if model.has_graph("temporal") else [])]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as scratch:
            folder = Path(scratch) / "repository"
            for name in names:
                _write_model(model, name, folder / name, engines.get(name))
            if "temporal" in names:
                (folder / "clip" / "1").mkdir(parents=True)  # Triton wants a version, though an ensemble has no file
                (folder / "clip" / "config.pbtxt").write_text(ensemble_config(model.graph("frame"), model.graph("temporal")))
            folder.rename(target)
    except OSError as problem:
        raise InputError(f"{target} cannot be written: {problem.strerror or problem}", "choose another folder") from None
    return [*names, *(["clip"] if "temporal" in names else [])]


def graph_config(name: str, graph: Path, backend: Backend = "onnxruntime", profiles: int = 1) -> str:
    """config.pbtxt of one graph. profiles: of its engine; Triton gets one instance over all of them."""
    inputs, outputs = ports_of(name, graph)
    lines = [f'name: "{name}"', f'backend: "{backend}"', f"max_batch_size: {QUERIES if name == 'text' else 0}"]
    lines.append(f'default_model_filename: "{_file(graph, backend)}"')
    text = "\n".join(lines) + "\n" + "".join(p.text("input") for p in inputs) + "".join(p.text("output") for p in outputs)
    if name == "text":
        text += "dynamic_batching { max_queue_delay_microseconds: 2000 }\n"
    if backend == "tensorrt":
        listed = ", ".join(f'"{number}"' for number in range(profiles))
        text += f"instance_group [\n  {{\n    count: 1\n    kind: KIND_GPU\n    profile: [ {listed} ]\n  }}\n]\n"
        text += "optimization { cuda { graphs: true } }\n" if name == "text" else ""
    return text


def ensemble_config(frame: Path, temporal: Path) -> str:
    """config.pbtxt of `clip`: frames and their mask to features, video tokens and their mask."""
    frames, features = (ports[0] for ports in ports_of("frame", frame))
    (_, mask), outputs = ports_of("temporal", temporal)
    text = 'name: "clip"\nplatform: "ensemble"\nmax_batch_size: 0\n'
    text += "".join(Port(p.name, p.kind, p.dims).text("input") for p in (frames, mask))
    text += "".join(Port(p.name, p.kind, p.dims).text("output") for p in (features, *outputs))
    steps = [
        _step("frame", {"frames": "frames"}, {"frame_features": "frame_features"}),
        _step("temporal", {"frame_features": "frame_features", "frame_mask": "frame_mask"}, {p.name: p.name for p in outputs}),
    ]
    return text + "ensemble_scheduling {\n  step [\n" + ",\n".join(steps) + "\n  ]\n}\n"


def ports_of(name: str, graph: Path) -> tuple[list[Port], list[Port]]:
    """Inputs and outputs of a graph as Triton is told them."""
    types = types_of(graph)
    return (
        [_port(name, source, sides, types[source]) for source, sides in inputs_of(graph).items()],
        [_port(name, source, sides, types[source]) for source, sides in outputs_of(graph).items()],
    )


def _port(name: str, source: str, sides: Sides, kind: str) -> Port:
    if kind not in _TYPES:
        raise ModelError(f"{name}: {source} is {kind}, which this repository has no name for")
    numbers = tuple(side if isinstance(side, int) else -1 for side in sides)
    if name == "text":
        return Port(source, kind, numbers[1:])  # the first axis is Triton's batch
    if name == "temporal":
        return Port(source, kind, numbers[1:], (1, *numbers[1:]))  # one clip
    return Port(source, kind, numbers)


def _write_model(model: ModelDirectory, name: str, folder: Path, engine: EngineInfo | None) -> None:
    (folder / "1").mkdir(parents=True)
    graph = model.graph(name)
    if engine is not None:
        engine.check_bytes()
        shutil.copy(engine.path, folder / "1" / "model.plan")
        (folder / "config.pbtxt").write_text(graph_config(name, graph, "tensorrt", len(engine.profiles)))
        return
    for path in sorted(graph.parent.glob(f"{graph.name}*")):  # the weights keep their name: the graph refers to it
        shutil.copy(path, folder / "1" / path.name)
    (folder / "config.pbtxt").write_text(graph_config(name, graph))


def _engines(model_dir: Path, sm: str | None) -> Mapping[str, EngineInfo]:
    found = [i for i in engines_of(model_dir) if i.flavour == "tensorrt" and i.verification.get("status") != "failed"]
    kinds = sorted({i.sm for i in found})
    if not kinds:
        raise ModelError(
            f"{model_dir} has no engine that Triton Inference Server runs",
            "on its GPU: vctool export MODEL --trt (RTX engines are not for it)",
        )
    wanted = sm or (kinds[0] if len(kinds) == 1 else None)
    if wanted not in kinds:
        raise ModelError(f"{model_dir} has engines for {', '.join(kinds)}{f', not for {sm}' if sm else ''}", "name one with --arch")
    # Half precision first, and the newest library.
    best = sorted((i for i in found if i.sm == wanted), key=lambda i: (i.precision != "fp32", [int(n) for n in i.version.split(".")]))
    return {i.graph: i for i in best}


def _file(graph: Path, backend: Backend) -> str:
    return "model.plan" if backend == "tensorrt" else graph.name


def _step(model: str, inputs: Mapping[str, str], outputs: Mapping[str, str]) -> str:
    maps = "".join(f'      input_map {{ key: "{k}" value: "{v}" }}\n' for k, v in inputs.items())
    maps += "".join(f'      output_map {{ key: "{k}" value: "{v}" }}\n' for k, v in outputs.items())
    return f'    {{\n      model_name: "{model}"\n      model_version: -1\n{maps}    }}'


def _numbers(values: Sequence[int]) -> str:
    return ", ".join(str(v) for v in values)
