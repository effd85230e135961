"""Weight files for open_clip architectures: read whatever they are packed in, named if they are another architecture's, loaded whole.

open_clip itself stretches position embeddings of another picture size or text length without a word, and says a wrong architecture by
a list of shapes. Here a file either fits exactly or its own name is told.
"""

from __future__ import annotations

import contextlib
import logging
import pickle
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from vctool.errors import ModelError
from vctool.zoo.table import of_architecture

_OPENAI_MARKS = ("input_resolution", "context_length", "vocab_size")  # in OpenAI's own files, and in no others
_SCALES = ("logit_scale", "logit_bias")


@dataclass(frozen=True)
class WeightFile:
    """What a file holds. openai: whether it is one of OpenAI's own, all trained with QuickGELU."""

    path: Path
    state: dict[str, Tensor]
    openai: bool


def read_weight_file(path: Path) -> WeightFile:
    """The tensors of a safetensors file, a PyTorch checkpoint (read without running code) or one of OpenAI's TorchScript archives.

    Raises ModelError if the file is missing, cut short, damaged, or something else.
    """
    if not path.is_file():
        raise ModelError(f"{path}: no such checkpoint file")
    with path.open("rb") as file:
        head = file.read(64)
    if head.startswith(b"version https://git-lfs"):
        raise ModelError(f"{path} is a pointer of Git LFS, not the weights", "download the file itself: git lfs pull")
    try:
        if head[8:9] == b"{":
            from safetensors.torch import load_file

            state: Any = load_file(path)
        elif zipfile.is_zipfile(path) and any("/code/" in name for name in zipfile.ZipFile(path).namelist()):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that the format is old: these files are from 2021
                state = torch.jit.load(str(path), map_location="cpu").state_dict()  # type: ignore[no-untyped-call]
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except pickle.UnpicklingError:
        raise ModelError(
            f"{path} holds more than tensors, or is no checkpoint", "save its state_dict alone, or take a safetensors file"
        ) from None
    except Exception as problem:  # each of the formats has its own errors, and their text is for programmers
        raise ModelError(
            f"{path} cannot be read as weights ({type(problem).__name__})", "it is damaged, cut short or something else: get it again"
        ) from None
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise ModelError(f"{path} holds no weights by name", "vctool takes open_clip's checkpoints: a state_dict of tensors")
    state = {name.removeprefix("module."): value for name, value in state.items()}  # of a model that trained on several machines
    openai = all(mark in state for mark in _OPENAI_MARKS)
    return WeightFile(path, {name: value for name, value in state.items() if name not in _OPENAI_MARKS}, openai)


def load_weights(model: Any, architecture: str, file: WeightFile, *, quick_gelu: bool) -> None:
    """Put a file's weights into an open_clip model of `architecture`, all of them and nothing else.

    Raises ModelError where the file is of another architecture, naming it, and where OpenAI's weights meet an architecture without
    their activation: they would load, and every feature would be wrong.
    """
    from open_clip.convert import convert_state_dict

    state = _as(model, convert_state_dict(model, file.state))
    if difference := _difference(model, state):
        raise _of_another(file, architecture, difference)
    if file.openai and not quick_gelu:
        raise ModelError(
            f"{file.path} holds OpenAI's weights, which were trained with QuickGELU, and {architecture} computes another function",
            f"ask for {_names(architecture + '-quickgelu')}",
        )
    for scale in _SCALES:
        parameter = getattr(model, scale, None)
        if parameter is None:
            state.pop(scale, None)
        else:
            state[scale] = state.get(scale, torch.zeros_like(parameter)).reshape(parameter.shape)
    model.load_state_dict(state, strict=True)


def architectures_of(state: dict[str, Tensor]) -> list[str]:
    """All open_clip architectures with exactly these tensors, the shortest name first; none if it has none.

    Candidates are chosen by the sizes that their configurations tell, then built without memory (`bare_model`) and compared.
    """
    import open_clip

    prefix = "text." if "text.token_embedding.weight" in state else ""
    words, places = state.get(f"{prefix}token_embedding.weight"), state.get(f"{prefix}positional_embedding")
    if words is None or places is None:
        return []
    depth = sum(name.startswith(f"{prefix}transformer.resblocks.") and name.endswith(".ln_1.weight") for name in state)
    patches = state.get("visual.conv1.weight")
    found = []
    for name in open_clip.list_models():
        config = open_clip.get_model_config(name)
        text, vision = config.get("text_cfg", {}), config.get("vision_cfg", {})
        size = (text.get("vocab_size", 49408), text.get("width", 512), text.get("context_length", 77), text.get("layers", 12))
        if "hf_model_name" in text or "multimodal_cfg" in config or size != (*words.shape, places.shape[0], depth):
            continue
        if ("timm_model_name" in vision) != any(key.startswith("visual.trunk.") for key in state):
            continue
        if patches is not None and (vision.get("width", 768), vision.get("patch_size")) != (patches.shape[0], patches.shape[-1]):
            continue
        bare = bare_model(name)
        if not _difference(bare, _as(bare, state)):
            found.append(name)
    return sorted(found, key=lambda name: (len(name), name))


class _SmallThingsReal(TorchFunctionMode):
    """Ranges of numbers stay on the CPU: architectures read values out of them (drop path rates) while they are built."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if function in (torch.linspace, torch.arange, torch.full):
            kwargs["device"] = "cpu"
        return function(*args, **kwargs)


def bare_model(architecture: str) -> Any:
    """An open_clip architecture with the shapes of its weights and without the weights: quick, and no memory."""
    import open_clip

    with torch.device("meta"), _SmallThingsReal(), quiet_logging():
        return open_clip.create_model(architecture, pretrained=None, load_weights=False, pretrained_text=False, device="meta")


@contextlib.contextmanager
def quiet_logging() -> Iterator[None]:
    """open_clip warns of random weights, which is no news where these are wanted."""
    disabled = logging.root.manager.disable
    logging.disable(max(disabled, logging.WARNING))
    try:
        yield
    finally:
        logging.disable(disabled)


def _as(model: Any, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of the one model class in the names of the other, where the text tower is a module of its own."""
    from open_clip.model import convert_to_custom_text_state_dict

    old = "positional_embedding" in state and not hasattr(model, "positional_embedding")
    return dict(convert_to_custom_text_state_dict(state) if old else state)


def _difference(model: Any, state: dict[str, Tensor]) -> str:
    """The first thing in which a state dict is not this model's; empty if none. Scales may be missing or shaped otherwise."""
    wanted = {name: value.shape for name, value in model.state_dict().items() if name not in _SCALES}
    given = {name: value.shape for name, value in state.items() if name not in _SCALES and not name.endswith("position_ids")}
    if missing := sorted(set(wanted) - set(given)):
        return f"it lacks {missing[0]}"
    if extra := sorted(set(given) - set(wanted)):
        return f"it has {extra[0]} besides"
    return next((f"its {name} has another shape" for name, shape in wanted.items() if given[name] != shape), "")


def _of_another(file: WeightFile, architecture: str, difference: str) -> ModelError:
    own = architectures_of(file.state)
    if own:
        return ModelError(f"{file.path} is a {own[0]}, you asked for {architecture}", f"ask for {_names(*own)}")
    if any(name.startswith(("vision_model.", "text_model.")) for name in file.state):
        return ModelError(
            f"{file.path} holds the weights in the names of the transformers library, not those of {architecture}",
            "take the file that open_clip publishes",
        )
    return ModelError(
        f"{file.path} does not hold the weights of {architecture}: {difference}",
        "nor of any other architecture that open_clip knows",
    )


def _names(*architectures: str) -> str:
    short = [model.name for name in architectures for model in of_architecture(name)]
    return " or ".join(dict.fromkeys([*short, *architectures]))
