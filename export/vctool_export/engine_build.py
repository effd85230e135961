"""One graph to one engine, in memory: parse, profiles, build, with a log, progress, and an end on Ctrl-C.

The same code for both libraries of `tensorrt_api`: networks are strongly typed, so precision is what the graph says.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vctool.errors import Interrupted, ModelError, VctoolError
from vctool.runtime.engine_file import Profile
from vctool.runtime.tensorrt_api import TensorRt
from vctool_export.engine_checks import Modules
from vctool_export.engine_precision import Precision, of_inspector, of_network

WORKSPACE = 4 << 30
"""Largest scratch memory of one layer, in bytes, unless told otherwise."""
_LOG_LEVELS = ("internal error", "error", "warning", "info", "verbose")


@dataclass
class Built:
    """A finished engine. plan: its bytes (a buffer of the library's). io: element type of each input and output. seconds: of the
    build alone. timing_cache: what the builder learnt, merged with what it was given, None where the library has no such cache."""

    plan: Any
    precision: Precision
    io: dict[str, str]
    seconds: float
    timing_cache: bytes | None = None
    warnings: list[str] = field(default_factory=list)


class BuildLog:
    """What the library says, into a file line by line; errors are kept for the message of a failure.

    verbose: keep every word, which is tens of megabytes a build.
    """

    def __init__(self, api: TensorRt, path: Path, *, verbose: bool = False) -> None:
        self.path, self.errors, self.warnings = path, [], []  # type: tuple[Path, list[str], list[str]]
        self._file = path.open("w", encoding="utf-8", errors="replace")
        self._lock = threading.Lock()
        limit = 4 if verbose else 3

        log = self

        class Logger(api.module.ILogger):  # type: ignore[misc,name-defined]
            def __init__(self) -> None:
                super().__init__()

            def log(self, severity: Any, message: str) -> None:
                if int(severity) <= limit:
                    log.write(int(severity), message)

        self.logger = Logger()

    def write(self, level: int, message: str) -> None:
        """Add a line. level: 0 internal error, 1 error, 2 warning, 3 information, 4 anything."""
        with self._lock:
            if level <= 1:
                self.errors.append(" ".join(message.split()))
            elif level == 2:
                self.warnings.append(" ".join(message.split()))
            if not self._file.closed:
                self._file.write(f"[{_LOG_LEVELS[level]}] {message}\n")

    def close(self) -> None:
        """Close the file; words that come later are dropped."""
        with self._lock:
            self._file.close()


def build(
    api: TensorRt,
    graph: Path,
    profiles: Sequence[Profile],
    log: BuildLog,
    *,
    architecture: str | None = None,
    workspace: int = WORKSPACE,
    timing_cache: bytes | None = None,
    progress: Callable[[str, float], None] | None = None,
) -> Built:
    """Build an engine from the graph at `graph`.

    architecture: compute capability to build for, `sm89`, where the library builds ahead of time; None: the GPU that is here.
    workspace: bytes. timing_cache: of earlier builds, merged into. progress: called with a phase and the share of it that is done.
    Raises ModelError for a graph that cannot be parsed or built, naming node and module, VctoolError if the GPU has too little memory
    or the library fails otherwise, Interrupted on Ctrl-C.
    """
    trt = api.module
    builder = trt.Builder(log.logger)
    if builder is None:
        raise VctoolError(f"{api} does not start: {_last(log)}", "`vctool doctor` says whether there is a GPU and a driver")
    network = parse(api, builder, graph, log)
    precision = of_network(network)
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # without it the inspector tells names and no types
    if hasattr(trt.BuilderFlag, "TF32"):
        # On by default: products of fp32 graphs would be rounded to 10 bits. Who wants speed exports in half precision.
        config.clear_flag(trt.BuilderFlag.TF32)
    if architecture is not None:
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, architecture.upper()), 0)
    for profile in profiles:
        _add_profile(builder, config, profile, graph)
    cache = None
    if api.flavour == "tensorrt":  # RTX tunes at run time and has no such cache
        cache = config.create_timing_cache(timing_cache or b"")
        config.set_timing_cache(cache, False)
    began = time.monotonic()
    plan = _run(api, builder, network, config, progress)
    if plan is None:
        raise _why_failed(api, graph, log)
    io = {t.name: _dtype(t) for t in _tensors(network)}
    return Built(plan, precision, io, time.monotonic() - began, bytes(cache.serialize()) if cache is not None else None, log.warnings)


def parse(api: TensorRt, builder: Any, graph: Path, log: BuildLog) -> Any:
    """The strongly typed network of a graph. Raises ModelError naming the first node that the parser refuses."""
    trt = api.module
    flags = 0
    strong = getattr(getattr(trt, "NetworkDefinitionCreationFlag", None), "STRONGLY_TYPED", None)
    if strong is not None:  # needed on 10, the only way on 11 and RTX
        flags = 1 << int(strong)
    network = builder.create_network(flags)
    if strong is not None and hasattr(network, "get_flag") and not network.get_flag(strong):
        raise VctoolError(f"{api} made a weakly typed network: its engine would choose precisions by itself", "use another version")
    parser = trt.OnnxParser(network, log.logger)
    if not parser.parse_from_file(str(graph)):
        raise _parse_problem(api, graph, [parser.get_error(i) for i in range(parser.num_errors)])
    return network


def inspect_engine(api: TensorRt, plan: Any, log: BuildLog) -> Precision | None:
    """What the finished engine computes in, by its own inspector; None where it cannot be loaded (no GPU)."""
    trt = api.module
    try:
        engine = trt.Runtime(log.logger).deserialize_cuda_engine(plan)
    except RuntimeError:
        engine = None
    if engine is None:
        return None
    return of_inspector(engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON))


def _parse_problem(api: TensorRt, graph: Path, errors: list[Any]) -> ModelError:
    import onnx

    if not errors:
        return ModelError(f"{graph.name}: {api} does not read it, and does not say why")
    first = errors[0]
    node, operator = str(first.node_name() or ""), str(first.node_operator() or "")
    module = Modules(onnx.load(str(graph), load_external_data=False).graph).of(node) if node else ""
    words = " ".join(str(first.desc()).split())
    code = getattr(first.code(), "name", "") if hasattr(first, "code") else ""
    unsupported = code == "UNSUPPORTED_NODE" or "Plugin not found" in words or words == "false"
    what = f"operator {operator} is not supported" if unsupported and operator else f"not understood: {words}"
    place = f" at node {node}" if node else ""
    if module:
        place += f" (module {module})"
    more = f"; {len(errors) - 1} more" if len(errors) > 1 else ""
    detail = f": {words}" if unsupported and operator and words not in ("", "false") else ""
    if unsupported:
        return ModelError(f"{graph.name}: {what} by {api}{place}{detail}{more}")
    return ModelError(f"{graph.name}: {what} ({api}){place}{more}")


def _add_profile(builder: Any, config: Any, profile: Profile, graph: Path) -> None:
    made = builder.create_optimization_profile()
    for name, (low, best, high) in profile.ranges.items():
        made.set_shape(name, low, best, high)
    if config.add_optimization_profile(made) < 0:
        raise ModelError(f"{graph.name}: profile {profile.name} is refused: {dict(profile.ranges)}")


def _run(api: TensorRt, builder: Any, network: Any, config: Any, progress: Callable[[str, float], None] | None) -> Any:
    """Build in a thread, so that this one hears Ctrl-C: the library only looks up between its own steps."""
    stop = threading.Event()
    config.progress_monitor = monitor = _monitor(api, stop, progress)
    result: list[Any] = []
    failed: list[BaseException] = []

    done = threading.Event()

    def work() -> None:
        try:
            result.append(builder.build_serialized_network(network, config))
        except BaseException as problem:  # carried to the thread that waits
            failed.append(problem)
        finally:
            done.set()

    thread = threading.Thread(target=work, name="engine build")
    thread.start()
    interrupted = False
    # Not `thread.join`: Python 3.11 takes a thread for ended whose join was interrupted.
    while not done.is_set():
        try:
            done.wait(0.2)
        except KeyboardInterrupt:
            interrupted = True
            stop.set()
    thread.join()
    del monitor
    if interrupted:
        raise Interrupted("stopped: the engine was not finished, nothing of it is kept", "engines that were finished before stay")
    if failed:
        raise failed[0]
    return result[0]


def _monitor(api: TensorRt, stop: threading.Event, progress: Callable[[str, float], None] | None) -> Any:
    class Monitor(api.module.IProgressMonitor):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.steps[phase_name] = max(1, num_steps)
            if progress is not None:
                progress(phase_name, 0.0)

        def phase_finish(self, phase_name: str) -> None:
            self.steps.pop(phase_name, None)

        def step_complete(self, phase_name: str, step: int) -> bool:
            if progress is not None:
                progress(phase_name, min(1.0, (step + 1) / self.steps.get(phase_name, 1)))
            return not stop.is_set()

    return Monitor()


def _why_failed(api: TensorRt, graph: Path, log: BuildLog) -> VctoolError:
    words = _last(log)
    where = f"the log is {log.path}"
    if any(sign in " ".join(log.errors).lower() for sign in ("out of memory", "outofmemory", "insufficient memory")):
        hint = f"use a smaller --workspace; {where}"
        return VctoolError(f"{graph.name}: the GPU has too little memory to build this engine: {words}", hint)
    return ModelError(f"{graph.name}: {api} cannot build it: {words}", where)


def _last(log: BuildLog) -> str:
    return log.errors[0] if log.errors else "it does not say why"


def _tensors(network: Any) -> list[Any]:
    return [network.get_input(i) for i in range(network.num_inputs)] + [network.get_output(i) for i in range(network.num_outputs)]


def _dtype(tensor: Any) -> str:
    names = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16"}
    return str(names.get(tensor.dtype.name, tensor.dtype.name.lower()))
