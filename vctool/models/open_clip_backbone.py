"""Backbones through open_clip: per-token text features and pooled frame features of both of its model classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vctool.config import PreprocessConfig
from vctool.errors import MissingExtraError, ModelError
from vctool.models.backbone import Backbone, normalize_pixels
from vctool.models.open_clip_checkpoint import load_weights, quiet_logging, read_weight_file

_SIGLIP_END = 1  # of T5's vocabulary and of Gemma's
_SPARE_WORDS = 200  # names that a tokenizer file may have and no text ever gives
_BIG_VISION = (".npz", ".npy")  # Google's own files, which open_clip reads

OWN_ARCHITECTURES = Path(__file__).parent / "architectures"
"""Configurations in open_clip's format that open_clip does not carry: towers small enough to train from nothing on a CPU."""


class OpenClipBackbone(Backbone):
    """An open_clip architecture, with random weights or those of a local checkpoint file.

    open_clip's class `CLIP` keeps the text tower's parts on the model itself, `CustomTextCLIP` in `model.text`; both are
    read through one path here. Frame features are whatever the architecture pools to (a class token, attention pooling
    or an average): "frame token", not "CLS".
    """

    def __init__(self, architecture: str, *, checkpoint: Path | None = None, quick_gelu: bool = False, tag: str | None = None) -> None:
        """`tag`: open_clip's name of the weights, which decides the preprocessing where an architecture's weights differ in it."""
        super().__init__()
        try:
            import open_clip
        except ImportError:
            raise MissingExtraError("open_clip_torch", "train") from None
        if architecture not in open_clip.list_models():
            open_clip.add_model_config(OWN_ARCHITECTURES)
        if architecture not in open_clip.list_models():
            import difflib

            near = difflib.get_close_matches(architecture, open_clip.list_models(), n=3)
            raise ModelError(f"open_clip has no architecture '{architecture}'", f"nearest: {', '.join(near)}" if near else None)
        file = read_weight_file(checkpoint) if checkpoint is not None and checkpoint.suffix not in _BIG_VISION else None
        try:
            with quiet_logging():
                self.model = open_clip.create_model(
                    architecture, pretrained=None, load_weights=False, pretrained_text=False, force_quick_gelu=quick_gelu
                )
            if checkpoint is not None and file is None:
                open_clip.load_checkpoint(self.model, str(checkpoint))
        except (RuntimeError, OSError, ValueError, KeyError) as problem:
            reason = str(problem).splitlines()[0] if str(problem) else type(problem).__name__
            said = f"{checkpoint} does not hold the weights of {architecture}" if checkpoint else f"open_clip cannot build {architecture}"
            raise ModelError(f"{said}: {reason}") from None
        if file is not None:
            own = bool(open_clip.get_model_config(architecture).get("quick_gelu"))
            load_weights(self.model, architecture, file, quick_gelu=quick_gelu or own)
        self.architecture = architecture
        self.tokenizer_file: Path | None = None  # a `tokenizer.json` for architectures whose vocabulary open_clip does not carry
        if not hasattr(self.text, "token_embedding") or getattr(self.text, "cls_emb", None) is not None:
            raise ModelError(
                f"{architecture} has a text tower without per-token features in the joint space", "use a CLIP, SigLIP or PE model"
            )
        if getattr(self.text, "use_pad_mask", False):
            raise ModelError(f"{architecture} masks its pads by id, which hides true pad tokens", "use a CLIP, SigLIP or PE model")
        self.context_length = int(self.text.context_length)
        projection = self.text.text_projection
        if projection is None:
            self.embed_dim = int(self.text.ln_final.weight.shape[0])
        else:
            self.embed_dim = int(projection.out_features if isinstance(projection, nn.Linear) else projection.shape[1])
        self.preprocess = preprocess_of(architecture, self.model, tag)

    @property
    def text(self) -> Any:
        """The module that holds the text tower's parts. Not an attribute: as a second submodule all weights would be stored twice."""
        return self.model.text if hasattr(self.model, "text") else self.model

    @property
    def causal(self) -> bool:
        """Whether words cannot see the pads after them; a bidirectional tower must always be padded to its trained length."""
        return self.text.attn_mask is not None

    def frame_map(self, frame_NHWC: Tensor) -> Tensor:
        features: Tensor = self.model.encode_image(normalize_pixels(frame_NHWC, self.preprocess))
        return features

    def frame_head(self, frame_map: Tensor) -> Tensor:
        return frame_map

    def text_states(self, input_ids_BL: Tensor, attention_mask_BL: Tensor) -> Tensor:
        """Final-norm token states [B, L, W]. Causal towers take any L up to the context; bidirectional ones exactly the context."""
        text, length = self.text, input_ids_BL.shape[1]
        if length > self.context_length or (not self.causal and length != self.context_length):
            wanted = f"at most {self.context_length}" if self.causal else f"exactly {self.context_length}"
            raise ModelError(f"{self.architecture} takes {wanted} tokens of text, got {length}")
        x = text.token_embedding(input_ids_BL) + text.positional_embedding[:length]
        mask = text.attn_mask[:length, :length] if self.causal else None
        states: Tensor = text.ln_final(text.transformer(x, attn_mask=mask))
        return states

    def text_head(self, state_BLW: Tensor, input_ids_BL: Tensor, attention_mask_BL: Tensor) -> Tensor:
        projection = self.text.text_projection
        if projection is None:
            return state_BLW
        projected: Tensor = projection(state_BLW) if isinstance(projection, nn.Linear) else state_BLW @ projection
        return projected

    def text_pooled(self, state_BLW: Tensor, input_ids_BL: Tensor, attention_mask_BL: Tensor) -> Tensor:
        """The position the tower was trained to pool: the true EOT (from the mask, not from the ids), the last, or the first."""
        pool = getattr(self.text, "pool_type", None) or getattr(self.text, "text_pool_type", "argmax")
        if pool in ("argmax", "eos"):
            last_B = attention_mask_BL.long().sum(dim=1) - 1
            pooled = state_BLW[torch.arange(state_BLW.shape[0], device=state_BLW.device), last_B]
        elif pool == "last":
            pooled = state_BLW[:, -1]
        elif pool == "first":
            pooled = state_BLW[:, 0]
        else:
            raise ModelError(f"{self.architecture} pools its text in a way vctool does not know ({pool})")
        return self.text_head(pooled[:, None], input_ids_BL, attention_mask_BL)[:, 0]

    def write_tokenizer(self, folder: Path, length: int | None = None) -> None:
        import open_clip

        text = open_clip.get_model_config(self.architecture)["text_cfg"]
        name = text.get("hf_tokenizer_name")
        if name is None:
            settings = {"kind": "clip", "context_length": length or self.context_length, "pad_id": 0}
            content = json.dumps(clip_tokenizer_json(), ensure_ascii=False)
        else:
            if text.get("tokenizer_kwargs", {}).get("clean") != "canonicalize":
                raise ModelError(
                    f"{self.architecture} has a tokenizer that vctool does not know ({name})", "use a CLIP, SigLIP or PE model"
                )
            if self.tokenizer_file is None:
                raise ModelError(
                    f"{self.architecture} needs its own tokenizer file ({name})",
                    "name its tokenizer.json: init.tokenizer in a recipe",
                )
            # SigLIP (T5's vocabulary) pads with its end token, SigLIP 2 (Gemma's) with 0; neither file says so.
            pad_id = 0 if "siglip2" in self.architecture.lower() else 1
            settings = {"kind": "siglip", "context_length": length or self.context_length, "pad_id": pad_id}
            try:
                content = self.tokenizer_file.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as problem:
                raise ModelError(f"{self.tokenizer_file} cannot be read: {problem}") from None
            self._check_vocabulary(content)
        (folder / "tokenizer.json").write_text(content, encoding="utf-8")
        (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")

    def _check_vocabulary(self, content: str) -> None:
        """Raises ModelError for a file that is no tokenizer, or another model's: its ids would mean other words, silently."""
        from tokenizers import Tokenizer

        rows = self.text.token_embedding.weight.shape[0]
        try:
            backend = Tokenizer.from_str(content)
            backend.no_truncation()
            size, last = backend.get_vocab_size(), backend.encode("a dog").ids[-1:]
        except Exception as problem:  # the library raises bare Exception
            raise ModelError(
                f"{self.tokenizer_file} is not a tokenizer: {problem}", "take tokenizer.json of the weights' repository"
            ) from None
        if size > rows + _SPARE_WORDS or (rows > 10_000 and size < rows // 2):
            raise ModelError(
                f"{self.tokenizer_file} has {size:,} words, {self.architecture} knows {rows:,}: it is another model's",
                "take tokenizer.json of the weights' repository",
            )
        if last != [_SIGLIP_END]:
            raise ModelError(
                f"{self.tokenizer_file} does not end a text with the end token that {self.architecture} was trained with",
                "take tokenizer.json of the weights' repository",
            )

    @property
    def loss_start(self) -> tuple[float, float] | None:
        """(log-scale, bias) the checkpoint was trained with, where it has a bias (SigLIP); None for CLIP."""
        bias = getattr(self.model, "logit_bias", None)
        return None if bias is None else (float(self.model.logit_scale.detach()), float(bias.detach()))


def preprocess_of(architecture: str, model: Any, tag: str | None = None) -> PreprocessConfig:
    """Image size from the model; mean, std and resize from what open_clip records for the weights.

    A local checkpoint file gets OpenAI's statistics from open_clip whatever the architecture, which silently ruins SigLIP, PE and
    MobileCLIP features: the architecture's first tag decides here, or `tag` (LAION's ViT-L-14 is normalised unlike OpenAI's). Raises
    ModelError for a tag that the architecture has not.
    """
    import open_clip
    from open_clip.pretrained import get_pretrained_cfg, list_pretrained_tags_by_model

    size = model.visual.image_size
    size = int(size[0] if isinstance(size, (tuple, list)) else size)
    tags = list_pretrained_tags_by_model(architecture)
    if tag is not None and tag not in tags:
        raise ModelError(f"open_clip knows no weights '{tag}' of {architecture}", f"known: {', '.join(tags)}" if tags else None)
    family = architecture.lower()
    if tags:
        recorded = get_pretrained_cfg(architecture, tag or tags[0])
        mean = tuple(recorded.get("mean") or open_clip.OPENAI_DATASET_MEAN)
        std = tuple(recorded.get("std") or open_clip.OPENAI_DATASET_STD)
        interpolation: Any = recorded.get("interpolation") or "bicubic"
        resize: Any = recorded.get("resize_mode") or "shortest"
    elif "siglip" in family or family.startswith("pe-"):
        mean = std = (0.5, 0.5, 0.5)
        interpolation, resize = "bicubic", "squash"
    else:
        mean, std = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
        interpolation, resize = "bicubic", "shortest"
    return PreprocessConfig(size=size, resize=resize, interpolation=interpolation, mean=mean, std=std)


def clip_tokenizer_json() -> dict[str, Any]:
    """CLIP's byte-pair encoding as a `tokenizer.json`, built from the vocabulary that open_clip carries.

    Cleaning (ftfy, HTML entities, whitespace, lower case) is not part of it: `preprocessing.tokenizer` does that first.
    """
    from open_clip.tokenizer import SimpleTokenizer

    simple = SimpleTokenizer()
    ids = dict(simple.encoder)
    start, end = simple.decoder[simple.sot_token_id], simple.decoder[simple.eot_token_id]
    ranks = sorted(simple.bpe_ranks, key=lambda pair: simple.bpe_ranks[pair])
    split = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": ids[token],
                "content": token,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for token in (start, end)
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": split}, "behavior": "Removed", "invert": True},
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
            ],
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": start, "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": end, "type_id": 0}},
            ],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {token: {"id": token, "ids": [ids[token]], "tokens": [token]} for token in (start, end)},
        },
        "decoder": None,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "</w>",
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": ids,
            "merges": [" ".join(pair) for pair in ranks],
        },
    }
