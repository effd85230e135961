"""`vctool export`: a model directory's graphs, and engines built from them."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vctool.cli.command import command
from vctool.cli.console import print_json, say
from vctool.cli.export_engines import engine_options, engines_json, export_engines, refuse_engine_options
from vctool.cli.options import PATH, json_option
from vctool.cli.verify import print_tables
from vctool.errors import MissingExtraError, ModelError

if TYPE_CHECKING:
    from vctool_export.report import Report

PRECISIONS = ("fp32", "fp16", "bf16", "int8", "int8-weights", "int8-qdq")


@command(
    "export",
    examples=(
        "vctool export my-model",
        "vctool export my-model --precision fp16 --precision int8",
        "vctool export my-model --precision int8-qdq --calibrate holiday/",
        "vctool export my-model --trt --arch sm80,sm89",
    ),
)
@click.argument("model", type=PATH)
@click.option(
    "--precision",
    "precisions",
    type=click.Choice(PRECISIONS),
    multiple=True,
    help="Graphs in this precision, beside those in fp32; may be repeated.",
)
@click.option("--calibrate", type=PATH, multiple=True, metavar="VIDEOS", help="Clips that int8-qdq takes its ranges from.")
@click.option("--probe", type=PATH, multiple=True, metavar="VIDEOS", help="Clips to retrieve in the proof.  [default: the shipped ones]")
@click.option("--triton", type=PATH, metavar="DIR", help="Write a model repository for Triton Inference Server, too.")
@engine_options
@json_option
def export(
    model: Path,
    precisions: tuple[str, ...],
    calibrate: tuple[Path, ...],
    probe: tuple[Path, ...],
    triton: Path | None,
    trt: bool,
    as_json: bool,
    **engine: Any,
) -> None:
    """Write the ONNX graphs of MODEL (text, frame, temporal), each proved against PyTorch before it is kept.

    Proved are tensors, scores and what is retrieved from a probe set, with limits for each precision (docs/export.md). Exit code 3
    if a graph is beyond them; the directory then stays as it was. With --trt engines are built from the graphs that MODEL has, with
    --triton these are laid out for a server; they are written only where it has none.
    """
    if not trt:
        refuse_engine_options(engine)
    if not model.is_dir():
        raise ModelError(f"{model}: no such model directory", "vctool fetch or vctool train makes one")
    report: Report | None = None
    if not (trt or triton) or not all((model / "onnx" / _frame_graph(p)).is_file() for p in precisions or ("fp32",)):
        report = _export(model, precisions, calibrate, probe, as_json)
    engines = [built for p in dict.fromkeys(precisions or ("fp32",)) for built in export_engines(model, p, engine)] if trt else []
    deployed = _triton(model, triton, trt) if triton is not None else {}
    if as_json:
        print_json(_json(model, report) | ({"engines": engines_json(engines)} if trt else {}) | deployed)
    elif report is not None:
        print_tables(report)


def _triton(model: Path, target: Path, engines: bool) -> dict[str, Any]:
    if importlib.util.find_spec("onnx") is None:
        raise MissingExtraError("onnx", "export")
    from vctool_export.triton_repository import write_repository

    names = write_repository(model, target, backend="tensorrt" if engines else "onnxruntime")
    say(f"{target}: {', '.join(names)}")
    return {"triton": {"path": str(target.resolve()), "models": names}}


def _frame_graph(precision: str) -> str:
    return "frame.onnx" if precision == "fp32" else f"frame.{precision}.onnx"


def _export(model: Path, precisions: tuple[str, ...], calibrate: tuple[Path, ...], probe: tuple[Path, ...], as_json: bool) -> Report:
    if importlib.util.find_spec("torch") is None:
        raise MissingExtraError("torch", "export")
    from vctool_export import export_graphs
    from vctool_export.exporting import DriftError

    try:
        return export_graphs(model, precisions=precisions, probe=probe or None, calibrate=calibrate or None, progress=say)
    except DriftError as problem:
        if as_json:
            print_json(_json(model, problem.report))
        else:
            print_tables(problem.report)
        raise


def _json(model: Path, report: Report | None) -> dict[str, Any]:
    return {"schema": 1, "model": str(model.resolve()), "report": None if report is None else report.to_json()}
