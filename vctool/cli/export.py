"""`vctool export`: a model directory's graphs."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import click

from vctool.cli.command import command
from vctool.cli.console import print_json, say
from vctool.cli.options import PATH, json_option
from vctool.errors import MissingExtraError, ModelError


@command("export", examples=("vctool export my-model", "vctool export runs/mine/model --json"))
@click.argument("model", type=PATH)
@json_option
def export(model: Path, as_json: bool) -> None:
    """Write the ONNX graphs of MODEL (text, frame, temporal), each proved against PyTorch before it is kept.

    Exit code 3 if a graph differs from PyTorch by more than 1e-4; the directory then stays as it was.
    """
    if not model.is_dir():
        raise ModelError(f"{model}: no such model directory", "vctool fetch or vctool train makes one")
    if importlib.util.find_spec("torch") is None:
        raise MissingExtraError("torch", "export")
    from vctool_export import export_graphs

    errors = export_graphs(model, progress=say)
    if as_json:
        print_json({"schema": 1, "model": str(model.resolve()), "largest_error": errors})
    for name, error in errors.items():
        say(f"{name}: largest difference from PyTorch {error:.1e}")
