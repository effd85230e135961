"""Options that several commands share, so that they are called the same everywhere."""

from __future__ import annotations

from pathlib import Path

import click

PATH = click.Path(path_type=Path)
STORE_DTYPES = ("float16", "int8", "int4", "compact")  # vctool.precision has the same list, and would load NumPy for a --help

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout (docs/format.md has the schema).")
device_option = click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    envvar="VCTOOL_DEVICE",
    help="Where the graphs run; auto takes a GPU that works.",
)
provider_option = click.option(
    "--provider",
    type=click.Choice(["auto", "onnxruntime", "openvino", "openvino-fp32", "tensorrt", "tensorrt-ep"]),
    default="auto",
    show_default=True,
    envvar="VCTOOL_PROVIDER",
    help="What runs the graphs; auto takes the fastest that is verified, see doctor.",
)
threads_option = click.option(
    "--threads", type=click.IntRange(min=1), envvar="VCTOOL_THREADS", help="CPU threads for the graphs.  [default: all cores]"
)
