"""The `--trt` side of `vctool export`: its options, and what it prints."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vctool.cli.console import say
from vctool.cli.options import PATH
from vctool.errors import MissingExtraError, UsageProblem

if TYPE_CHECKING:
    from vctool.runtime.engine_file import EngineInfo

OPTIONS = ("arch", "trt_library", "max_batch", "workspace", "timing_cache", "rebuild", "verbose_log")
_AS_OPTION = {"trt_library": "--trt-library", "max_batch": "--max-batch", "timing_cache": "--timing-cache", "verbose_log": "--verbose-log"}


def engine_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options of engines to a command."""
    for option in reversed(
        (
            click.option("--trt", is_flag=True, help="Build TensorRT engines from the graphs, too."),
            click.option(
                "--arch",
                metavar="sm80,sm89,…",
                help="Build for these compute capabilities, without a GPU, by TensorRT for RTX.  [default: the GPU that is here]",
            ),
            click.option(
                "--trt-library",
                type=click.Choice(["auto", "tensorrt", "tensorrt-rtx"]),
                default="auto",
                show_default=True,
                help="Which TensorRT builds.",
            ),
            click.option("--max-batch", type=click.IntRange(min=1), help="Clips or queries that the bulk profile takes.  [default: 32]"),
            click.option("--workspace", type=click.IntRange(min=1), metavar="MiB", help="Scratch memory of a layer.  [default: 4096]"),
            click.option("--timing-cache", type=PATH, help="Where TensorRT keeps its timings.  [default: in MODEL/tensorrt]"),
            click.option("--rebuild", is_flag=True, help="Build engines that are there already again."),
            click.option("--verbose-log", is_flag=True, help="Keep every word of TensorRT in the build log."),
        )
    ):
        function = option(function)
    return function


def refuse_engine_options(options: dict[str, Any]) -> None:
    """Raises UsageProblem if an option of engines was given without `--trt`."""
    source = click.get_current_context().get_parameter_source
    for name in OPTIONS:
        told = source(name)
        if told is not None and told.name == "COMMANDLINE" and options[name]:
            raise UsageProblem(f"{_AS_OPTION.get(name, f'--{name}')} is about engines", "add --trt")


def export_engines(model: Path, precision: str, options: dict[str, Any]) -> list[EngineInfo]:
    """Build, say what happens on stderr, return the engines."""
    import importlib.util

    if importlib.util.find_spec("onnx") is None:
        raise MissingExtraError("onnx", "export")
    from vctool_export.engine_verify import judge_engines
    from vctool_export.engines import EngineSettings, choose_targets
    from vctool_export.engines import export_engines as build

    settings = EngineSettings(precision=precision, timing_cache=options["timing_cache"], verbose=options["verbose_log"])
    changes: dict[str, Any] = {"rebuild": options["rebuild"]}
    if options["max_batch"] is not None:
        changes["max_batch"] = options["max_batch"]
    if options["workspace"] is not None:
        changes["workspace"] = options["workspace"] << 20
    from dataclasses import replace

    library = None if options["trt_library"] == "auto" else options["trt_library"]
    targets = choose_targets((options["arch"] or "").split(","), library)
    return build(model, targets, replace(settings, **changes), judge=lambda infos: judge_engines(model, infos, progress=say), progress=say)


def engines_json(engines: list[EngineInfo]) -> list[dict[str, Any]]:
    """What `--json` prints of engines."""
    return [
        {
            "file": f"tensorrt/{e.path.name}",
            "graph": e.graph,
            "sm": e.sm,
            "library": e.content["library"],
            "precision": e.content["precision"],
            "bytes": e.content["engine"]["bytes"],
            "verification": dict(e.verification),
        }
        for e in engines
    ]
