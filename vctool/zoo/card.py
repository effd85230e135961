"""The model card of a fetched model directory: what it is, where it came from, and under what terms."""

from __future__ import annotations

from dataclasses import dataclass

from vctool.config import ModelConfig, PreprocessConfig
from vctool.zoo.hub import HubFile
from vctool.zoo.table import Licence, ZooModel

CARD_FILE = "README.md"
UNKNOWN = Licence("unknown: of the file that was given", None, "ask whoever published the weights")


@dataclass(frozen=True)
class Origin:
    """Where weights came from. sha256: of the weight file. tokenizer: of the vocabulary's file, where there is one."""

    where: str
    sha256: str
    bytes: int
    tokenizer: str | None = None

    @classmethod
    def of_hub(cls, weights: HubFile, tokenizer: HubFile | None) -> Origin:
        """Of files that the hub has."""
        where = f"https://huggingface.co/{weights.repository}, file `{weights.name}`, revision `{weights.revision}`"
        other = f"`{tokenizer.name}` of the same repository, SHA-256 `{tokenizer.sha256}`" if tokenizer else None
        return cls(where, weights.sha256, weights.bytes, other)


def licence_line(licence: Licence) -> str:
    """The licence in one line, what it forbids said plainly."""
    use = {True: "commercial use allowed", False: "NON-COMMERCIAL", None: "commercial use not clear"}[licence.commercial]
    return f"{licence.name}: {use}" + (f" ({licence.note})" if licence.note else "")


def model_card(config: ModelConfig, preprocess: PreprocessConfig, origin: Origin, model: ZooModel | None, tag: str | None) -> str:
    """The text of `README.md`. model: of the table, None for a file whose weights have no name there."""
    licence = model.licence if model else UNKNOWN
    title = model.name if model else config.name
    vectors = "one vector a query (`pooled`); `f` scores the best frame, `v` the mean of frames, `fv` both"
    lines = [
        f"# {title}",
        "",
        f"{model.what if model else 'Weights from a file'}: open_clip's `{config.backbone.name}`"
        + (f", weights `{tag}`" if tag else "")
        + ". Written by `vctool fetch`.",
        "",
        f"**Licence: {licence_line(licence)}.** The graphs and vectors made with these weights are derived from them.",
        "",
        "| | |",
        "|---|---|",
        f"| weights | {origin.where} |",
        f"| their SHA-256 | `{origin.sha256}` ({origin.bytes:,} bytes) |",
        *([f"| tokenizer | {origin.tokenizer} |"] if origin.tokenizer else []),
        f"| width | {config.embed_dim} |",
        f"| text | up to {config.query.max_length} tokens, start and end included; longer ones are cut, and `query` says where |",
        f"| picture | {preprocess.size} px, {preprocess.resize}, {preprocess.interpolation}, "
        f"mean {_numbers(preprocess.mean)}, std {_numbers(preprocess.std)} |",
        f"| query | {vectors} |",
    ]
    for what, figure in (("COCO text to image", model and model.coco), ("MSR-VTT 1k-A text to video", model and model.msrvtt)):
        if figure:
            lines.append(f"| zero-shot {what}, R@1 | {figure.value} % ({figure.source}; not measured by vctool) |")
    return "\n".join(
        [
            *lines,
            "",
            "These towers were trained on images (or clips) with one vector a side, never for token interaction: they search, and training",
            "them with `vctool train` makes them search better.",
            "",
        ]
    )


def _numbers(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:.4g}" for value in values)
