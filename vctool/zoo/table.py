"""What `vctool fetch` knows by name: architecture, weights, licence, and what is known of speed and quality.

Nothing here is a guess. Repositories, preprocessing and activations are open_clip's own records of each tag (a test compares them);
parameters, widths and context lengths are counted on the architectures (a test counts again); zero-shot figures carry their source and
are missing where none was found; speeds were measured with random weights by `tests/bench/bench_towers.py`.

No SHA-256 of the weight files is written down: none could be verified where this table was made. What the hub says of a file when it is
asked is checked against what arrives, and recorded in the model's card.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from vctool.errors import UsageProblem

WEIGHT_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
"""What the weights are called in a repository of the hub, the safer form first."""

OPEN_CLIP_RESULTS = "open_clip docs/openclip_retrieval_results.csv"
PE_README = "facebookresearch/perception_models README"
MOBILECLIP_RESULTS = "apple/ml-mobileclip results"
SIGLIP2_PAPER = "arXiv 2502.14786, table 1"
DRL_README = "foolwood/DRL README"


@dataclass(frozen=True)
class Licence:
    """Under what terms weights are given. commercial: None where the terms do not say so plainly."""

    name: str
    commercial: bool | None
    note: str = ""


MIT = Licence("MIT", True)
APACHE = Licence("Apache-2.0", True)
APPLE_RESEARCH = Licence(
    "Apple Machine Learning Research Model licence",
    False,
    "non-commercial research only, models derived from it included; no product development, no use in a product or service",
)
APPLE_TERMS = Licence(
    "Apple's own terms (LICENSE in the repository)",
    None,
    "the repository has named an Apple sample code licence; read its LICENSE before any commercial use",
)


@dataclass(frozen=True)
class Figure:
    """A zero-shot recall at 1 from text, in per cent, as somebody else measured it."""

    value: float
    source: str


@dataclass(frozen=True)
class ZooModel:
    """One name. parameters: image and text tower, in millions; what is downloaded is four bytes for each, or two.

    dim: width D of the vectors. context: tokens of text it takes. size: side of the picture in pixels. coco, msrvtt: zero-shot
    text-to-image R@1 on COCO (5,000 images), text-to-video R@1 on MSR-VTT 1k-A.
    frames_per_cpu_second: the image tower, float32, ONNX Runtime, one thread of the machine of docs/models.md.
    """

    name: str
    architecture: str
    tag: str
    repository: str
    licence: Licence
    parameters: tuple[float, float]
    dim: int
    context: int
    size: int
    what: str
    coco: Figure | None = None
    msrvtt: Figure | None = None
    frames_per_cpu_second: float | None = None
    tokenizer_file: str | None = None
    """The file of the repository that holds the vocabulary, where open_clip does not carry it."""

    @property
    def megabytes(self) -> int:
        """Size of the weights in float32, 10⁶ bytes."""
        return round(4 * sum(self.parameters))


# Frames for each second of CPU time: tests/bench/bench_towers.py. Architectures that are not here have not been measured.
_SPEED: dict[str, float] = {
    "MobileCLIP2-S0": 11.6,
    "PE-Core-T-16-384": 7.8,
    "PE-Core-S-16-384": 1.9,
    "MobileCLIP2-S2": 5.3,
    "ViT-B-32-quickgelu": 12.9,
    "ViT-B-16-quickgelu": 3.0,
    "MobileCLIP2-B": 2.8,
    "ViT-B-32": 12.6,
    "ViT-B-16": 3.3,
    "ViT-B-16-SigLIP": 3.1,
    "ViT-B-32-SigLIP2-256": 10.6,
    "ViT-B-16-SigLIP2": 3.0,
    "PE-Core-B-16": 2.8,
    "ViT-L-14-quickgelu": 0.56,
}


def _clip(name: str, architecture: str, tag: str, repository: str, coco: float, what: str, msrvtt: Figure | None = None) -> ZooModel:
    shape = architecture.removesuffix("-quickgelu")
    parameters = {"ViT-B-32": (87.8, 63.4), "ViT-B-16": (86.2, 63.4), "ViT-L-14": (304.0, 123.7)}[shape]
    return ZooModel(
        name,
        architecture,
        tag,
        repository,
        MIT,
        parameters,
        dim=768 if shape == "ViT-L-14" else 512,
        context=77,
        size=224,
        what=what,
        coco=Figure(coco, OPEN_CLIP_RESULTS),
        msrvtt=msrvtt,
        frames_per_cpu_second=_SPEED.get(architecture),
    )


def _siglip(name: str, architecture: str, parameters: tuple[float, float], size: int, what: str, coco: Figure | None) -> ZooModel:
    return ZooModel(
        name,
        architecture,
        "webli",
        f"timm/{architecture}",
        APACHE,
        parameters,
        dim=768,
        context=64,
        size=size,
        what=what,
        coco=coco,
        frames_per_cpu_second=_SPEED.get(architecture),
        tokenizer_file="tokenizer.json",
    )


def _pe(name: str, architecture: str, parameters: tuple[float, float], dim: int, size: int, coco: float, msrvtt: float) -> ZooModel:
    return ZooModel(
        name,
        architecture,
        "meta",
        f"timm/{architecture}",
        APACHE,
        parameters,
        dim=dim,
        context=32,
        size=size,
        what="Perception Encoder, trained with video too",
        coco=Figure(coco, PE_README),
        msrvtt=Figure(msrvtt, PE_README),
        frames_per_cpu_second=_SPEED.get(architecture),
    )


def _mobileclip(name: str, architecture: str, parameters: tuple[float, float], size: int, coco: float) -> ZooModel:
    return ZooModel(
        name,
        architecture,
        "dfndr2b",
        f"timm/{architecture}-OpenCLIP",
        APPLE_RESEARCH,
        parameters,
        dim=512,
        context=77,
        size=size,
        what="MobileCLIP2, made for phones; its branches are folded at export",
        coco=Figure(coco, MOBILECLIP_RESULTS),
        frames_per_cpu_second=_SPEED.get(architecture),
    )


def _dfn(name: str, architecture: str, tag: str, repository: str, parameters: tuple[float, float], dim: int, coco: float) -> ZooModel:
    return ZooModel(
        name,
        architecture,
        tag,
        f"apple/{repository}",
        APPLE_TERMS,
        parameters,
        dim=dim,
        context=77,
        size=224,
        what="CLIP on data that a network filtered (DFN)",
        coco=Figure(coco, OPEN_CLIP_RESULTS),
        frames_per_cpu_second=_SPEED.get(architecture),
    )


_OPENAI = "CLIP with OpenAI's weights"

MODELS: tuple[ZooModel, ...] = (
    _siglip(
        "siglip-b16", "ViT-B-16-SigLIP", (92.9, 110.3), 224, "SigLIP, the best of the Video-ColBERT paper", Figure(47.8, OPEN_CLIP_RESULTS)
    ),
    _siglip("siglip2-b16", "ViT-B-16-SigLIP2", (92.9, 282.3), 224, "SigLIP 2, of many languages", Figure(52.1, SIGLIP2_PAPER)),
    _siglip("siglip2-b32-256", "ViT-B-32-SigLIP2-256", (94.6, 282.3), 256, "SigLIP 2, of many languages; large patches, fast", None),
    _pe("pe-core-t16", "PE-Core-T-16-384", (6.1, 63.4), 512, 384, 33.0, 28.8),
    _pe("pe-core-s16", "PE-Core-S-16-384", (23.8, 63.4), 512, 384, 42.6, 39.3),
    _pe("pe-core-b16", "PE-Core-B-16", (93.7, 354.0), 1024, 224, 50.9, 47.6),
    _pe("pe-core-l14", "PE-Core-L-14-336", (317.2, 354.0), 1024, 336, 57.1, 50.3),
    _clip("clip-b32", "ViT-B-32-quickgelu", "openai", "timm/vit_base_patch32_clip_224.openai", 30.4, _OPENAI, Figure(31.1, DRL_README)),
    _clip("clip-b16", "ViT-B-16-quickgelu", "openai", "timm/vit_base_patch16_clip_224.openai", 33.1, _OPENAI),
    _clip("clip-l14", "ViT-L-14-quickgelu", "openai", "timm/vit_large_patch14_clip_224.openai", 36.5, _OPENAI),
    _clip(
        "clip-b32-datacomp", "ViT-B-32", "datacomp_xl_s13b_b90k", "laion/CLIP-ViT-B-32-DataComp.XL-s13B-b90K", 37.1, "CLIP on DataComp-1B"
    ),
    _clip(
        "clip-b16-datacomp", "ViT-B-16", "datacomp_xl_s13b_b90k", "laion/CLIP-ViT-B-16-DataComp.XL-s13B-b90K", 40.2, "CLIP on DataComp-1B"
    ),
    _clip(
        "clip-l14-datacomp", "ViT-L-14", "datacomp_xl_s13b_b90k", "laion/CLIP-ViT-L-14-DataComp.XL-s13B-b90K", 45.7, "CLIP on DataComp-1B"
    ),
    _clip("clip-b32-laion2b", "ViT-B-32", "laion2b_s34b_b79k", "laion/CLIP-ViT-B-32-laion2B-s34B-b79K", 39.3, "CLIP on LAION-2B"),
    _clip("clip-b16-laion2b", "ViT-B-16", "laion2b_s34b_b88k", "laion/CLIP-ViT-B-16-laion2B-s34B-b88K", 42.3, "CLIP on LAION-2B"),
    _clip("clip-l14-laion2b", "ViT-L-14", "laion2b_s32b_b82k", "laion/CLIP-ViT-L-14-laion2B-s32B-b82K", 46.5, "CLIP on LAION-2B"),
    _mobileclip("mobileclip2-s0", "MobileCLIP2-S0", (11.4, 63.4), 256, 43.7),
    _mobileclip("mobileclip2-s2", "MobileCLIP2-S2", (35.8, 63.4), 256, 48.8),
    _mobileclip("mobileclip2-b", "MobileCLIP2-B", (86.3, 63.4), 224, 49.9),
    _dfn("dfn-b16", "ViT-B-16-quickgelu", "dfn2b", "DFN2B-CLIP-ViT-B-16", (86.2, 63.4), 512, 43.4),
    _dfn("dfn-l14", "ViT-L-14-quickgelu", "dfn2b", "DFN2B-CLIP-ViT-L-14", (304.0, 123.7), 768, 48.6),
    _dfn("dfn-h14", "ViT-H-14-quickgelu", "dfn5b", "DFN5B-CLIP-ViT-H-14", (632.1, 354.0), 1024, 53.9),
)
BY_NAME = {model.name: model for model in MODELS}


def find(name: str) -> ZooModel | None:
    """The model of a short name, upper and lower case alike; None for a name that is not in the table."""
    return BY_NAME.get(name.lower())


def of_architecture(architecture: str) -> list[ZooModel]:
    """All names whose weights are of this open_clip architecture."""
    return [model for model in MODELS if model.architecture.lower() == architecture.lower()]


def unknown(name: str) -> UsageProblem:
    """What to say of a name that is neither here nor a file's architecture."""
    same = of_architecture(name)
    near = [model.name for model in same] or difflib.get_close_matches(name.lower(), ["offline", "demo", *BY_NAME], n=3, cutoff=0.5)
    if same:
        return UsageProblem(
            f"{name} is an architecture: which weights?", f"fetch one of {', '.join(near)}, or give a file with --checkpoint FILE"
        )
    said = f"did you mean {' or '.join(near)}? " if near else ""
    return UsageProblem(f"there is no model '{name}'", f"{said}`vctool fetch --list` shows the names")
