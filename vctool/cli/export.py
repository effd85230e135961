"""`vctool export`: a model directory's graphs."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import click

from vctool.cli.command import command
from vctool.cli.console import print_json, say
from vctool.cli.export_engines import engine_options, engines_json, export_engines, refuse_engine_options
from vctool.cli.options import PATH, json_option
from vctool.errors import MissingExtraError, ModelError


@command(
    "export", examples=("vctool export my-model", "vctool export my-model --trt --arch sm80,sm89", "vctool export runs/mine/model --json")
)
@click.argument("model", type=PATH)
@engine_options
@json_option
def export(model: Path, trt: bool, as_json: bool, **engine: Any) -> None:
    """Write the ONNX graphs of MODEL (text, frame, temporal), each proved against PyTorch before it is kept.

    Exit code 3 if a graph differs from PyTorch by more than 1e-4; the directory then stays as it was. With --trt engines are built
    from the graphs that MODEL has; they are written only where it has none.
    """
    if not trt:
        refuse_engine_options(engine)
    if not model.is_dir():
        raise ModelError(f"{model}: no such model directory", "vctool fetch or vctool train makes one")
    if trt and (model / "onnx" / "frame.onnx").is_file():
        engines = export_engines(model, "fp32", engine)
        if as_json:
            print_json({"schema": 1, "model": str(model.resolve()), "engines": engines_json(engines)})
        return
    if importlib.util.find_spec("torch") is None:
        raise MissingExtraError("torch", "export")
    from vctool_export import export_graphs

    errors = export_graphs(model, progress=say)
    engines = export_engines(model, "fp32", engine) if trt else []
    if as_json:
        print_json({"schema": 1, "model": str(model.resolve()), "largest_error": errors, "engines": engines_json(engines)})
    for name, error in errors.items():
        say(f"{name}: largest difference from PyTorch {error:.1e}")
