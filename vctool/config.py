"""What a model directory says about itself: architecture and preprocessing, as strict frozen dataclasses.

Read from and written to JSON (`config.json`, `preprocess.json`) or TOML recipes. An unknown key is an error that names
the nearest known one: a misspelt key that is silently ignored is the commonest way to train the wrong model.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

from vctool.errors import ModelError, VctoolError

SCHEMA = 1

Interaction = Literal["f", "v", "fv"]
SimilarityKind = Literal["mean", "sum", "two_way", "weighted"]
Expand = Literal["on", "off", "auto"]
CountedTokens = Literal["all", "no_sot", "words"]

T = TypeVar("T")


@dataclass(frozen=True)
class PreprocessConfig:
    """How a decoded frame becomes the model's input. Hashed into every store.

    size: side of the square input in pixels. resize: `shortest` keeps the aspect and crops the centre, `longest` keeps it and fills
    with black, `squash` does not keep it.
    interpolation: `bicubic` or `bilinear`, both antialiased. mean, std: per channel on the 0..1 scale.
    """

    size: int = 224
    resize: Literal["shortest", "squash", "longest"] = "shortest"
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class QueryConfig:
    """Which token outputs of the text tower become query tokens.

    policy: `tokens` is Video-ColBERT; `pooled` is one vector a query (towers never trained for token interaction).
    counted: which of SOT, words and EOT count (`words` leaves out both specials). expand: whether pad outputs count too
    (soft query expansion); `auto` counts them up to `auto_limit` true tokens. max_length: padded text length L in tokens.
    templates: sentences with `{}` in them that a pooled query is put into, their vectors averaged; none by default.
    """

    policy: Literal["tokens", "pooled"] = "tokens"
    counted: CountedTokens = "all"
    expand: Expand = "on"
    auto_limit: int = 20
    max_length: int = 32
    templates: tuple[str, ...] = ()


@dataclass(frozen=True)
class TemporalConfig:
    """The temporal encoder: `transformer` (V = F + expansion_tokens), `mean` (V = 1, mean of frames) or `none` (V = F).

    position_std: deviation of the frame positions at the start. Far below that of the frame features the encoder begins
    blind to order, and training has been seen to leave it so: every gradient towards motion is multiplied by it.
    """

    kind: Literal["transformer", "mean", "none"] = "transformer"
    layers: int = 4
    head_width: int = 64
    mlp_ratio: float = 4.0
    positions: bool = True
    position_std: float = 0.02
    residual: bool = True
    expansion_tokens: int = 2
    max_frames: int = 128


@dataclass(frozen=True)
class BackboneConfig:
    """kind `open_clip`: `name` is an open_clip architecture. kind `offline`: towers from PyPI (`name` is `conse` or `heads`).

    adapter_rank: of the trained correction behind frozen towers (`vctool.models.adapter`); 0 has none.
    """

    kind: Literal["open_clip", "offline"] = "open_clip"
    name: str = "ViT-B-16-SigLIP"
    quick_gelu: bool = False
    adapter_rank: int = 0


@dataclass(frozen=True)
class ModelConfig:
    """`config.json`: everything about a model but its weights.

    interaction: which token sets score, frame tokens, video tokens or both. similarity: how tokens score; `mean` is
    MeanMaxSim, the others (`vctool.models.similarity`) are for ablations in PyTorch and are neither exported nor served.
    """

    name: str = "video-colbert"
    embed_dim: int = 512
    frames: int = 12
    interaction: Interaction = "fv"
    similarity: SimilarityKind = "mean"
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    query: QueryConfig = field(default_factory=QueryConfig)
    temporal: TemporalConfig = field(default_factory=TemporalConfig)
    versions: dict[str, str] = field(default_factory=dict)
    schema: int = SCHEMA


def to_dict(config: Any) -> dict[str, Any]:
    """The JSON form of one of the dataclasses here (tuples become lists)."""
    return typing.cast("dict[str, Any]", json.loads(json.dumps(dataclasses.asdict(config))))


def from_dict(kind: type[T], values: Mapping[str, Any], where: str, error: type[VctoolError] = ModelError) -> T:
    """Build dataclass `kind` from a mapping. `where` names the source in errors.

    Raises `error` (ModelError unless told otherwise) on an unknown key, naming the nearest one, or on a value of the wrong type.
    """
    hints = typing.get_type_hints(kind)
    known = {f.name for f in dataclasses.fields(typing.cast(Any, kind))}
    built: dict[str, Any] = {}
    for key, value in values.items():
        if key not in known:
            near = difflib.get_close_matches(key, sorted(known), n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"known keys: {', '.join(sorted(known))}"
            raise error(f"{where}: unknown key '{key}'", hint)
        built[key] = _convert(hints[key], value, f"{where}: {key}", error)
    return kind(**built)


def _convert(hint: Any, value: Any, where: str, error: type[VctoolError]) -> Any:
    origin = get_origin(hint)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, Mapping):
            raise error(f"{where}: expected a table of values, got {value!r}")
        return from_dict(hint, value, where, error)
    if origin is Literal:
        if value not in get_args(hint):
            raise error(f"{where}: {value!r} is not one of {', '.join(map(str, get_args(hint)))}")
        return value
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in get_args(hint):
            return None
        return _convert(next(a for a in get_args(hint) if a is not type(None)), value, where, error)
    if origin is tuple:
        inner = get_args(hint)
        if not isinstance(value, (list, tuple)) or (inner[-1] is not Ellipsis and len(value) != len(inner)):
            raise error(f"{where}: expected a list of {len(inner)} values, got {value!r}")
        return tuple(_convert(inner[0], v, where, error) for v in value)
    if origin is dict:
        if not isinstance(value, Mapping):
            raise error(f"{where}: expected a table of values, got {value!r}")
        return {str(k): _convert(get_args(hint)[1], v, f"{where}.{k}", error) for k, v in value.items()}
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is Path and isinstance(value, str):
        return Path(value)
    if isinstance(hint, type) and (not isinstance(value, hint) or (hint is int and isinstance(value, bool))):
        raise error(f"{where}: expected {hint.__name__}, got {value!r}")
    return value


def read_json(kind: type[T], path: Path) -> T:
    """Read dataclass `kind` from a JSON file; raises ModelError with the file's name if it is missing or malformed."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{path} is missing", "the model directory is incomplete: fetch or export it again") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as problem:
        raise ModelError(f"{path} cannot be read: {problem}", "the model directory is damaged: fetch or export it again") from None
    if not isinstance(values, dict):
        raise ModelError(f"{path}: expected a JSON object")
    return from_dict(kind, values, str(path))


def write_json(config: Any, path: Path) -> None:
    """Write a dataclass as indented JSON with a final newline, keys in field order."""
    path.write_text(json.dumps(to_dict(config), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
