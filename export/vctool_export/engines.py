"""TensorRT engines of a model directory: built from its graphs, described beside, verified where a GPU is, put in place whole."""

from __future__ import annotations

import hashlib
import json
import platform
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from vctool.errors import ModelError, UsageProblem, VctoolError, VerificationError
from vctool.runtime.cuda import Gpu, NoGpuError, first_gpu
from vctool.runtime.engine_file import FOLDER, SCHEMA, EngineInfo, Profile, engine_name, engines_of, graph_sha256, info_path
from vctool.runtime.files import exclusive, update_locked, write_atomic
from vctool.runtime.model_directory import ModelDirectory
from vctool.runtime.tensorrt_api import Flavour, TensorRt, installed, load_tensorrt
from vctool_export.engine_build import WORKSPACE, BuildLog, Built, build, inspect_engine
from vctool_export.engine_checks import inputs_of, require_buildable
from vctool_export.engine_precision import LABELS, Precision
from vctool_export.engine_profiles import MAX_BATCH, profiles_for

NOT_RUN = "no GPU"
_QUIET_SECONDS = 5.0

Judge = Callable[[Sequence[EngineInfo]], Mapping[str, Any]]
"""Holds engines, by their files, against PyTorch; gives a verdict as JSON with `status` and `reason`."""


@dataclass(frozen=True)
class EngineSettings:
    """How to build. precision: of the graphs to build from. max_batch: of the bulk profile, in clips. workspace: bytes. timing_cache:
    file of enterprise TensorRT's timings, by default one in the model directory for each GPU and version. verbose: keep every word of
    the log. rebuild: build what is there already, too."""

    precision: str = "fp32"
    max_batch: int = MAX_BATCH
    workspace: int = WORKSPACE
    timing_cache: Path | None = None
    verbose: bool = False
    rebuild: bool = False


@dataclass(frozen=True)
class Target:
    """What to build for. gpu: the device that is here and will judge the engines, None if they are built ahead of time."""

    api: TensorRt
    sm: str
    gpu: Gpu | None

    @property
    def ahead(self) -> bool:
        """Whether the library is told a compute capability instead of asking the GPU."""
        return self.api.flavour == "tensorrt-rtx"


def choose_targets(architectures: Sequence[str] = (), library: Flavour | None = None) -> list[Target]:
    """What to build for, and with which library.

    Without architectures: the GPU that is here, with enterprise TensorRT. With them: ahead of time with TensorRT for RTX, but where the
    one architecture is that of the GPU here and `tensorrt` is installed. Raises MissingExtraError, NoGpuError, or UsageProblem for an
    architecture that cannot be built for.
    """
    wanted = list(dict.fromkeys(one.strip().lower() for one in architectures if one.strip()))
    gpu = _gpu_or_none()
    if not wanted and library != "tensorrt-rtx":
        api = load_tensorrt("tensorrt")
        return [Target(api, (gpu or first_gpu()).sm, gpu)]
    if not wanted:
        wanted = [(gpu or first_gpu()).sm]
    if library == "tensorrt" or (library is None and gpu is not None and wanted == [gpu.sm] and installed("tensorrt")):
        here = gpu or first_gpu()
        if wanted != [here.sm]:
            raise UsageProblem(
                f"TensorRT builds for the GPU that is here, {here.sm}, not for {', '.join(wanted)}",
                "leave --arch out, or build ahead of time with TensorRT for RTX",
            )
        return [Target(load_tensorrt("tensorrt"), here.sm, here)]
    api = load_tensorrt("tensorrt-rtx")
    unknown = [one for one in wanted if one not in api.architectures]
    if unknown:
        raise UsageProblem(
            f"{api} does not build for {', '.join(unknown)}, only for {', '.join(api.architectures)}",
            "on a machine with that GPU: vctool export MODEL --trt, with TensorRT itself",
        )
    return [Target(api, one, gpu if gpu is not None and gpu.sm == one else None) for one in wanted]


def export_engines(
    model_dir: Path,
    targets: Sequence[Target],
    settings: EngineSettings | None = None,
    *,
    graphs: Sequence[str] | None = None,
    judge: Judge | None = None,
    progress: Callable[[str], None] | None = None,
) -> list[EngineInfo]:
    """Build the engines of a model directory into its `tensorrt` folder and return them.

    graphs: names, by default all that it has. judge: verifies the engines of one target together, where its GPU is here. Engines of
    the same graph, library, GPU and settings are taken as they are. Nothing is put in place before all of a target's graphs are built
    and, where they can be run, verified.

    Raises ModelError (graph altered since export, not buildable, disk full), VctoolError (another export is at work, too little GPU
    memory), VerificationError (precision or answers are not what they should be), Interrupted.
    """
    settings = settings or EngineSettings()
    say = progress or (lambda _: None)
    model = ModelDirectory.open(model_dir)
    names = list(graphs) if graphs is not None else [n for n in ("text", "frame", "temporal", "scorer") if f"onnx/{n}.onnx" in model.files]
    if not names:
        raise ModelError(f"{model_dir} has no graphs to build engines from", f"write them with: vctool export {model_dir}")
    folder = model_dir / FOLDER
    try:
        with exclusive(folder / ".lock", f"{model_dir}: another export is building its engines"):
            return [info for target in targets for info in _export_target(model, target, settings, names, judge, say)]
    except OSError as problem:
        why = problem.strerror or problem
        raise ModelError(f"engines cannot be written into {folder}: {why}", "make room there and export again") from None


def _export_target(
    model: ModelDirectory, target: Target, settings: EngineSettings, names: Sequence[str], judge: Judge | None, say: Callable[[str], None]
) -> list[EngineInfo]:
    folder = model.path / FOLDER
    done, fresh = {}, []
    with tempfile.TemporaryDirectory(prefix=".build-", dir=folder) as scratch:
        for name in names:
            source = _Source.of(model, name, settings.precision)
            profiles = profiles_for(name, inputs_of(source.path), model.config, settings.max_batch)
            there = None if settings.rebuild else _reusable(model.path, target, source, profiles)
            if there is not None:
                say(f"{there.path.name}: up to date")
                done[name] = there
                continue
            fresh.append(name)
            done[name] = _build_one(model, target, settings, source, profiles, Path(scratch), say)
        if fresh:
            _settle(target, [done[name] for name in names], judge, say)
            for name in fresh:
                done[name] = _put(done[name], folder)
    return [done[name] for name in names]


@dataclass(frozen=True)
class _Source:
    name: str
    file: str
    path: Path
    sha256: str

    @classmethod
    def of(cls, model: ModelDirectory, name: str, precision: str) -> _Source:
        file = next((f for f in (f"onnx/{name}.{precision}.onnx", f"onnx/{name}.onnx") if f in model.files), f"onnx/{name}.onnx")
        if precision != "fp32" and file == f"onnx/{name}.onnx" and name != "scorer":
            raise ModelError(
                f"{model.path} has no {precision} graph of {name}", f"write it with: vctool export {model.path} --precision {precision}"
            )
        # Checks the graph and its weights against checksums.json: an engine of an altered graph would be an altered engine.
        return cls(name, file, model.graph(Path(file).name.removesuffix(".onnx")), graph_sha256(model.files, file))


def _reusable(model_dir: Path, target: Target, source: _Source, profiles: Sequence[Profile]) -> EngineInfo | None:
    for info in engines_of(model_dir, source.name):
        facts = {"onnx_sha256": source.sha256, "flavour": target.api.flavour, "version": target.api.version, "sm": target.sm}
        if info.mismatch(**facts, gpu=target.gpu.name if target.gpu is not None else info.gpu) is None and info.profiles == tuple(profiles):
            try:
                info.check_bytes()
            except ModelError:
                continue
            return info
    return None


def _build_one(
    model: ModelDirectory,
    target: Target,
    settings: EngineSettings,
    source: _Source,
    profiles: Sequence[Profile],
    scratch: Path,
    say: Callable[[str], None],
) -> EngineInfo:
    require_buildable(source.path, (target.sm,))
    _require_memory(target, source)
    api = target.api
    label = f"{source.name} for {target.sm}"
    # The name says what was asked for; `precision.require` below refuses an engine that is something else.
    name = engine_name(source.name, target.sm, api.short, settings.precision)
    log = BuildLog(api, model.path / FOLDER / f"{name}.log", verbose=settings.verbose)
    cache_file = settings.timing_cache or model.path / FOLDER / f"timing.{target.sm}.{api.short}.cache"
    say(f"building {label} with {api}")
    try:
        known = cache_file.read_bytes() if api.flavour == "tensorrt" and cache_file.is_file() else None
        architecture = target.sm if target.ahead else None
        shown = _Throttled(label, say)
        built = build(
            api, source.path, profiles, log, architecture=architecture, workspace=settings.workspace, timing_cache=known, progress=shown
        )
        inspected = inspect_engine(api, built.plan, log) if target.gpu is not None else None
        if built.timing_cache is not None:
            update_locked(cache_file, lambda theirs: _combined(api, log, built.timing_cache or b"", theirs))
    finally:
        log.close()
    precision = inspected or built.precision
    _require_label(precision, settings.precision, source, label)
    engine = scratch / name
    write_atomic(engine, memoryview(built.plan))
    content = _describe(model, target, settings, source, profiles, built, precision, engine, warm=known is not None)
    write_atomic(info_path(engine), (json.dumps(content, indent=1) + "\n").encode())
    say(f"built {label}: {engine.stat().st_size / 1e6:.1f} MB in {built.seconds:.1f} s, {_shares(precision)}")
    return EngineInfo.read(engine)


def _require_label(precision: Precision, label: str, source: _Source, what: str) -> None:
    # A scorer has products of half tokens or of floats, whatever the towers are; int8 weights may be dequantised before the product.
    if source.name != "scorer" and not label.startswith("int8"):
        precision.require(label, what)


def _describe(
    model: ModelDirectory,
    target: Target,
    settings: EngineSettings,
    source: _Source,
    profiles: Sequence[Profile],
    built: Built,
    precision: Precision,
    engine: Path,
    *,
    warm: bool,
) -> dict[str, Any]:
    gpu = target.gpu
    on_gpu = gpu is not None and not target.ahead
    return {
        "schema": SCHEMA,
        "created_by": f"vctool {metadata.version('vctool')}",
        "graph": {"name": source.name, "file": source.file, "sha256": source.sha256},
        "model": {"name": model.config.name, "sha256": model.fingerprint},
        "tokenizer_sha256": model.tokenizer_sha256,
        "preprocess_sha256": model.preprocess_sha256,
        "library": {"flavour": target.api.flavour, "version": target.api.version},
        # An engine that was built ahead of time fits every GPU of its compute capability.
        "target": {"sm": target.sm, "gpu": gpu.name if gpu is not None and on_gpu else "", "platform": platform.platform()},
        "cuda": {"driver": gpu.driver, "runtime": gpu.runtime} if gpu is not None else None,
        "precision": precision.to_json(),
        "strongly_typed": True,
        "profiles": {p.name: {n: {"min": list(a), "opt": list(b), "max": list(c)} for n, (a, b, c) in p.ranges.items()} for p in profiles},
        "io": built.io,
        "workspace_bytes": settings.workspace,
        "build": {"seconds": round(built.seconds, 3), "timing_cache": "warm" if warm else "cold", "warnings": built.warnings[:20]},
        "engine": {"file": engine.name, "bytes": engine.stat().st_size, "sha256": _sha256(engine)},
        "verification": {"status": "not run", "reason": NOT_RUN},
    }


def _settle(target: Target, infos: Sequence[EngineInfo], judge: Judge | None, say: Callable[[str], None]) -> None:
    """Verify a target's engines where its GPU is, and write the verdict beside each of the new ones. Failure is raised."""
    if target.gpu is None:
        say(f"verification of {target.sm}: not run: {NOT_RUN}")
        return
    verdict = dict(judge(infos)) if judge is not None else {"status": "not run", "reason": "not asked for"}
    say(f"verification of {target.sm}: {verdict['status']}" + (f": {verdict['reason']}" if verdict.get("reason") else ""))
    if verdict["status"] == "failed":
        raise VerificationError(f"the engines for {target.sm} do not answer as PyTorch does: {verdict.get('reason', '')}", "none was kept")
    for info in infos:
        content = dict(info.content) | {"verification": verdict}
        write_atomic(info_path(info.path), (json.dumps(content, indent=1) + "\n").encode())


def _put(info: EngineInfo, folder: Path) -> EngineInfo:
    """Move an engine and its JSON into place. Until both are there, readers find none, or one whose hash does not fit."""
    target = folder / info.path.name
    info_path(target).unlink(missing_ok=True)
    info.path.replace(target)
    info_path(info.path).replace(info_path(target))
    return EngineInfo.read(target)


def _require_memory(target: Target, source: _Source) -> None:
    """Refuse before minutes of tactics are timed in vain."""
    weights = sum(path.stat().st_size for path in source.path.parent.glob(f"{source.path.name}*"))
    needed = 2 * weights + (256 << 20)
    if target.gpu is not None and not target.ahead and target.gpu.free < needed:
        raise VctoolError(
            f"{target.gpu.name} has {target.gpu.free >> 20} MiB of memory free, building {source.name} needs about {needed >> 20}",
            "free the GPU, or build on a larger one",
        )


def _combined(api: TensorRt, log: BuildLog, ours: bytes, theirs: bytes) -> bytes:
    """Two timing caches as one: another export may have written its own meanwhile."""
    if not theirs:
        return ours
    config = api.module.Builder(log.logger).create_builder_config()
    cache, other = config.create_timing_cache(ours), config.create_timing_cache(theirs)
    # A cache of another GPU or version is refused here, and then replaced.
    return bytes(cache.serialize()) if other is not None and cache.combine(other, False) else ours


class _Throttled:
    """Progress as lines, one every few seconds."""

    def __init__(self, label: str, say: Callable[[str], None]) -> None:
        self._label, self._say, self._next = label, say, time.monotonic() + _QUIET_SECONDS

    def __call__(self, phase: str, share: float) -> None:
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + _QUIET_SECONDS
            self._say(f"{self._label}: {phase}, {100 * share:.0f} %")


def _shares(precision: Precision) -> str:
    counts = precision.products or precision.layers
    told = ", ".join(f"{100 * precision.share(kind):.0f} % {LABELS[kind]}" for kind in counts)
    return f"products: {told} ({precision.source})" if told else "no products"


def _gpu_or_none() -> Gpu | None:
    try:
        return first_gpu()
    except (NoGpuError, VctoolError):
        return None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
