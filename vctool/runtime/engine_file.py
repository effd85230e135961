"""TensorRT engines in a model directory: `tensorrt/<graph>.<sm>.<library>.<precision>.engine` and the JSON beside each.

An engine is a cache. Its bytes are exactly what TensorRT gave, so NVIDIA's own tools read them; what it was made from, for and with is
in the JSON, and decides whether it may be used here. Neither TensorRT nor CUDA is imported.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vctool.errors import ModelError
from vctool.runtime.checksums import FileRecord, read_checksums, sha256_of

FOLDER = "tensorrt"
SCHEMA = 1

Range = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
"""Smallest, best and largest shape of an input under one profile."""


@dataclass(frozen=True)
class Profile:
    """One named optimisation profile: the range of shapes of every input."""

    name: str
    ranges: Mapping[str, Range]

    def refuses(self, shapes: Mapping[str, tuple[int, ...]]) -> str | None:
        """Why these input shapes are outside of the profile; None if they are inside."""
        for name, (low, _, high) in self.ranges.items():
            shape = shapes[name]
            if len(shape) != len(low) or any(not a <= size <= b for a, size, b in zip(low, shape, high, strict=True)):
                return f"{name} {list(shape)} is not within {list(low)} to {list(high)}"
        return None

    @property
    def batch(self) -> int:
        """The largest first axis that all inputs take."""
        return min(high[0] for _, _, high in self.ranges.values() if high)


@dataclass(frozen=True)
class EngineInfo:
    """What the JSON beside an engine says.

    path: of the engine. graph: its name, `frame`. onnx_sha256: see `graph_sha256`. flavour, version: of the library that built it.
    sm: the compute capability it runs on; gpu: the device it was built on, "" if built ahead of time. precision: as measured.
    sha256: of the engine. verification: the verdict, `{"status": "ok" | "failed" | "not run", "reason": …}`. content: all of it.
    """

    path: Path
    graph: str
    onnx_sha256: str
    flavour: str
    version: str
    sm: str
    gpu: str
    precision: str
    profiles: tuple[Profile, ...]
    sha256: str
    verification: Mapping[str, Any]
    content: Mapping[str, Any] = field(repr=False, compare=False)

    @classmethod
    def read(cls, engine: Path) -> EngineInfo:
        """Read `<engine>.json`. Raises ModelError if it is missing, damaged or of a newer version."""
        path = info_path(engine)
        rebuild = "build the engine again with: vctool export MODEL --trt"
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["schema"] > SCHEMA:
                raise ModelError(f"{path}: written by a newer version of vctool (schema {content['schema']})", "upgrade vctool")
            profiles = tuple(
                Profile(name, {n: (tuple(r["min"]), tuple(r["opt"]), tuple(r["max"])) for n, r in ranges.items()})
                for name, ranges in content["profiles"].items()
            )
            library, target = content["library"], content["target"]
            return cls(
                path=engine,
                graph=str(content["graph"]["name"]),
                onnx_sha256=str(content["graph"]["sha256"]),
                flavour=str(library["flavour"]),
                version=str(library["version"]),
                sm=str(target["sm"]),
                gpu=str(target["gpu"]),
                precision=str(content["precision"]["label"]),
                profiles=profiles,
                sha256=str(content["engine"]["sha256"]),
                verification=dict(content["verification"]),
                content=content,
            )
        except FileNotFoundError:
            raise ModelError(f"{engine} has no {path.name} beside it: nothing says what it was built from", rebuild) from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as problem:
            raise ModelError(f"{path} cannot be read: {type(problem).__name__}: {problem}", rebuild) from None

    def mismatch(self, *, onnx_sha256: str, flavour: str, version: str, sm: str, gpu: str) -> str | None:
        """Why this engine must not run here, in a few words; None if it may.

        An engine fits one graph, one version of the library and one compute capability; enterprise engines are tuned for one model of
        GPU too, and NVIDIA promises them for that one alone.
        """
        if self.flavour != flavour:
            return f"built with {self.flavour}, here is {flavour}"
        if self.version != version:
            return f"built with {self.flavour} {self.version}, here is {version}"
        if self.sm != sm:
            return f"built for {self.sm}, this GPU is {sm}"
        if self.gpu and self.gpu != gpu:
            return f"built on {self.gpu}, this GPU is {gpu}"
        if self.onnx_sha256 != onnx_sha256:
            return "built from another graph than the one in this model directory"
        return None

    def check_bytes(self) -> None:
        """Raises ModelError if the engine file is missing, cut or altered."""
        rebuild = "build the engine again with: vctool export MODEL --trt"
        try:
            size = self.path.stat().st_size
            if size != self.content["engine"]["bytes"]:
                raise ModelError(f"{self.path} is damaged: {size:,} bytes instead of {self.content['engine']['bytes']:,}", rebuild)
            if sha256_of(self.path) != self.sha256:
                raise ModelError(f"{self.path} was altered: its sha256 is not the one in {info_path(self.path).name}", rebuild)
        except OSError as problem:
            raise ModelError(f"{self.path} cannot be read: {problem.strerror or problem}", rebuild) from None


def info_path(engine: Path) -> Path:
    """The JSON beside an engine."""
    return engine.with_name(engine.name + ".json")


def engine_name(graph: str, sm: str, library: str, precision: str) -> str:
    """File name of an engine; library as `TensorRt.short` has it."""
    return f"{graph}.{sm}.{library}.{precision}.engine"


def engines_of(model_dir: Path, graph: str | None = None) -> list[EngineInfo]:
    """Engines of a model directory (of one graph), by file name. One whose JSON cannot be read is left out: it is a cache."""
    found = []
    for path in sorted((model_dir / FOLDER).glob(f"{graph or '*'}.*.engine")):
        try:
            found.append(EngineInfo.read(path))
        except ModelError:
            continue
    return found


def graph_sha256(files: Mapping[str, FileRecord], graph_file: str) -> str:
    """Identity of a graph: sha256 over the hashes of its file and of its external data. `files`: what `checksums.json` lists.

    Raises ModelError if it is not listed.
    """
    if graph_file not in files:
        raise ModelError(f"{graph_file} is not in the model directory's checksums.json", "write it with: vctool export MODEL")
    parts = sorted(name for name in files if name == graph_file or name.startswith((f"{graph_file}.", f"{graph_file}_")))
    return hashlib.sha256("".join(f"{files[name].sha256}  {name}\n" for name in parts).encode()).hexdigest()


def graph_sha256_of(graph: Path) -> str:
    """`graph_sha256` of a graph file in the `onnx` folder of a model directory, from the directory's own record."""
    model_dir = graph.parent.parent
    return graph_sha256(read_checksums(model_dir), graph.relative_to(model_dir).as_posix())
