"""`vctool verify`: are a model's graphs what PyTorch computes?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vctool.cli.command import command
from vctool.cli.console import plain_table, print_json, say, stdout
from vctool.cli.options import PATH, json_option, threads_option
from vctool.errors import VerificationError

if TYPE_CHECKING:
    from vctool_export.report import Report


@command(
    "verify",
    examples=("vctool verify my-model", "vctool verify my-model --probe captions.jsonl --json", "vctool verify my-model --against stored"),
)
@click.argument("model", type=PATH)
@click.option("--precision", "precisions", multiple=True, metavar="P", help="Only these precisions.  [default: all that are there]")
@click.option(
    "--probe", type=PATH, multiple=True, metavar="VIDEOS", help="Clips or a manifest to retrieve from.  [default: the shipped clips]"
)
@click.option(
    "--against",
    type=click.Choice(["auto", "torch", "stored"]),
    default="auto",
    show_default=True,
    help="PyTorch asked anew, or its answers that the export kept.",
)
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True, help="Where the graphs run.")
@click.option("--provider", default="auto", show_default=True, metavar="NAME", help="What runs them: onnxruntime, openvino.")
@threads_option
@json_option
def verify(
    model: Path,
    precisions: tuple[str, ...],
    probe: tuple[Path, ...],
    against: Any,
    device: Any,
    provider: Any,
    threads: int | None,
    as_json: bool,
) -> None:
    """Compare the graphs of MODEL with PyTorch: tensors, scores, and what is retrieved.

    Works without torch, with the answers of PyTorch that `vctool export` keeps. Exit code 3 if a graph is beyond the limits of its
    precision (docs/export.md), was altered, or belongs to another model or tokenizer. What cannot run here is `not run`, never ok.
    """
    from vctool_export.verify_directory import verify_directory

    report = verify_directory(
        model,
        precisions=precisions,
        probe=probe or None,
        against=against,
        device=device,
        provider=provider,
        threads=threads,
        progress=say,
    )
    if as_json:
        print_json(report.to_json())
    else:
        print_tables(report)
    if report.failed:
        otherwise = (
            "export the model again, or do not use it" if provider == "auto" else f"do not use --provider {provider} with this model"
        )
        raise VerificationError(f"{report.failed[0].artifact}: {report.failed[0].reason}", otherwise)


def print_tables(report: Report) -> None:
    """A verification report on stdout, one table for each artefact."""
    from rich.text import Text

    from vctool_export.report import rows

    styles = {"ok": "green", "FAILED": "bold red"}
    for verdict in report.verdicts:
        table = plain_table(f"{verdict.artifact} ({verdict.engine})", "measured", "limit", "")
        for what, measured, limit, state in rows(verdict):
            table.add_row(Text(what), Text(measured), Text(limit), Text(state, style=styles.get(state, "")))
        stdout().print(table)
        reason = f": {verdict.reason}" if verdict.reason else ""
        stdout().print(Text(f"{verdict.artifact}: {verdict.status}{reason}\n"), soft_wrap=True)
    for trial in report.trials:
        taken = "taken by itself where it is installed" if trial.status == "ok" else f"not taken unless asked for ({trial.reason})"
        stdout().print(Text(f"{trial.engine}: {taken}"), soft_wrap=True)
