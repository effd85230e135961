"""Backbones over the frozen PyPI towers: `conse` needs no training, `heads` is trained as Video-ColBERT.

ConSE (Norouzi et al. 2014): a frame becomes the probability-weighted mean of the text embeddings of its likeliest classes.
"""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vctool.config import PreprocessConfig
from vctool.data.pinned import minilm_tokenizer
from vctool.errors import ModelError
from vctool.models.backbone import Backbone, normalize_pixels
from vctool.models.pypi_towers import EfficientNetLite0, MiniLM
from vctool.models.temporal import Block

CONTEXT_LENGTH = 64
"""Tokens of text read; MiniLM was trained on up to 128 and takes 512."""

_LITE0_MEAN = (127 / 255, 127 / 255, 127 / 255)
_LITE0_STD = (128 / 255, 128 / 255, 128 / 255)


def imagenet_class_names() -> list[str]:
    """The 1,000 ImageNet-1k class names in the classifier's order."""
    return resources.files("vctool.models").joinpath("imagenet_classes.txt").read_text(encoding="utf-8").splitlines()


def imagenet_class_kinds() -> list[str]:
    """What each of the 1,000 classes is a kind of: its synset's second hypernym in WordNet 3.0 (a golden retriever is a "sporting dog")."""
    return resources.files("vctool.models").joinpath("imagenet_kinds.txt").read_text(encoding="utf-8").splitlines()


class _OfflineBackbone(Backbone):
    """Tokenizer and pooled text shared by both uses of the towers."""

    def __init__(self) -> None:
        super().__init__()
        self.image_tower = EfficientNetLite0()
        self.text_tower = MiniLM()
        self.context_length = CONTEXT_LENGTH

    def frozen_parameters(self) -> list[nn.Parameter]:
        return [*self.image_tower.parameters(), *self.text_tower.parameters()]

    def text_states(self, input_ids_BL: Tensor, attention_mask_BL: Tensor) -> Tensor:
        with torch.no_grad():
            states: Tensor = self.text_tower(input_ids_BL, attention_mask_BL)
        return states

    def write_tokenizer(self, folder: Path, length: int | None = None) -> None:
        (folder / "tokenizer.json").write_text(minilm_tokenizer(), encoding="utf-8")
        settings = {"kind": "bert", "context_length": length or CONTEXT_LENGTH, "pad_id": 0}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _mean_over_tokens(state_BLW: Tensor, attention_mask_BL: Tensor) -> Tensor:
    weight = attention_mask_BL[..., None].to(state_BLW.dtype)
    return (state_BLW * weight).sum(dim=1) / weight.sum(dim=1)


class ConseBackbone(_OfflineBackbone):
    """Untrained. Frame feature = sum over the top classes of p(class) * text(class); query = pooled sentence embedding.

    A class is written with what it is a kind of: people say "dog", the classifier "Rhodesian ridgeback". Probabilities are softened, so
    that a frame is not one class alone. Both were chosen on one half of the real clips and hold on the other (docs/offline.md);
    centring, whitening and what else was tried there does not.
    """

    embed_dim = 384
    preprocess = PreprocessConfig(size=224, resize="shortest", interpolation="bicubic", mean=_LITE0_MEAN, std=_LITE0_STD)
    top_classes = 10
    temperature = 1.5
    template = "a photo of a {name}, a kind of {kind}"

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("class_embedding", torch.zeros(1000, self.embed_dim))
        self.class_embedding: Tensor

    @torch.no_grad()
    def embed_classes(self) -> None:
        """Fill the class embeddings from the sentence encoder (needed once; they are stored with the model)."""
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_str(minilm_tokenizer())
        described = zip(imagenet_class_names(), imagenet_class_kinds(), strict=True)
        encodings = tokenizer.encode_batch([self.template.format(name=name, kind=kind) for name, kind in described])
        by_length = sorted(range(len(encodings)), key=lambda i: len(encodings[i].ids))
        for start in range(0, len(by_length), 50):
            chosen = by_length[start : start + 50]
            longest = len(encodings[chosen[-1]].ids)
            ids, mask = torch.zeros(len(chosen), longest, dtype=torch.int64), torch.zeros(len(chosen), longest, dtype=torch.int64)
            for row, i in enumerate(chosen):
                ids[row, : len(encodings[i].ids)] = torch.tensor(encodings[i].ids)
                mask[row, : len(encodings[i].ids)] = 1
            self.class_embedding[chosen] = F.normalize(_mean_over_tokens(self.text_tower(ids, mask), mask), dim=-1)

    def frame_map(self, frame_NHWC: Tensor) -> Tensor:
        with torch.no_grad():
            logits_NC: Tensor = self.image_tower(normalize_pixels(frame_NHWC, self.preprocess))
        return logits_NC

    def frame_head(self, frame_map: Tensor) -> Tensor:
        likely = (frame_map / self.temperature).softmax(dim=-1).topk(self.top_classes, dim=-1)
        weight_NK = likely.values / likely.values.sum(dim=-1, keepdim=True)
        return (weight_NK[..., None] * self.class_embedding[likely.indices]).sum(dim=1)

    def text_head(self, state_BLW: Tensor, input_ids_BL: Tensor, attention_mask_BL: Tensor) -> Tensor:
        return state_BLW

    def text_pooled(self, state_BLW: Tensor, input_ids_BL: Tensor, attention_mask_BL: Tensor) -> Tensor:
        return _mean_over_tokens(state_BLW, attention_mask_BL)


class HeadsBackbone(_OfflineBackbone):
    """Trained heads over the frozen towers.

    Frames: the stride-32 map and the stride-16 map (folded 2x2 into channels) give 16 cells; learned queries read them by
    attention, and what they read keeps the cells' positions, or motion could not be seen by the temporal encoder.
    Text: two transformer layers over the frozen token states; pad positions hold learned vectors that attend to the words
    and are not attended to by them, as CLIP's causal tower treats its pads (soft query expansion).
    """

    preprocess = PreprocessConfig(size=128, resize="squash", interpolation="bicubic", mean=_LITE0_MEAN, std=_LITE0_STD)
    cells, channels = 16, 320 + 4 * 112
    pad_states = False

    def __init__(self, embed_dim: int, *, readers: int = 8, text_layers: int = 2) -> None:
        super().__init__()
        self.embed_dim = embed_dim
        width = embed_dim
        self.cell_in = nn.Linear(self.channels, width)
        # Positions start as large as the features: where a thing is must reach the frame token, or motion cannot be learned.
        self.cell_position = nn.Parameter(torch.randn(self.cells, width) * 0.5)
        self.cell_mixer = Block(width, max(1, width // 64), 2.0)
        self.cell_norm = nn.LayerNorm(width)
        self.reader_logits = nn.Linear(width, readers)
        self.reader_values = nn.Linear(width, width)
        self.frame_out = nn.Sequential(nn.Linear(readers * width, 2 * width), nn.GELU(), nn.Linear(2 * width, width), nn.LayerNorm(width))
        self.text_in = nn.Linear(MiniLM.width, width)
        self.pad = nn.Parameter(torch.randn(CONTEXT_LENGTH, width) * 0.5)
        self.text_position = nn.Parameter(torch.randn(CONTEXT_LENGTH, width) * 0.02)
        self.text_blocks = nn.ModuleList(Block(width, max(1, width // 64), 4.0) for _ in range(text_layers))
        self.text_norm = nn.LayerNorm(width)
        self.text_out = nn.Linear(width, width)
        # Channels of the frozen maps differ in scale by orders of magnitude; standardised by statistics set before training.
        self.register_buffer("map_mean", torch.zeros(self.channels))
        self.register_buffer("map_std", torch.ones(self.channels))
        self.map_mean: Tensor
        self.map_std: Tensor

    def frame_map(self, frame_NHWC: Tensor) -> Tensor:
        """Cells of the frozen tower [N, 16, 768] (float32): stride-32 channels, then the four stride-16 cells' channels."""
        with torch.no_grad():
            fine, coarse = self.image_tower.feature_maps(normalize_pixels(frame_NHWC, self.preprocess))
            folded = torch.cat([coarse, F.pixel_unshuffle(fine, 2)], dim=1)
        return folded.flatten(2).transpose(1, 2)

    @torch.no_grad()
    def set_map_statistics(self, frame_map: Tensor) -> None:
        """Take mean and deviation per channel from a sample of frame maps [N, 16, 768]."""
        flat = frame_map.float().reshape(-1, self.channels)
        self.map_mean.copy_(flat.mean(dim=0))
        self.map_std.copy_(flat.std(dim=0).clamp_min(1e-4))

    def frame_head(self, frame_map: Tensor) -> Tensor:
        x_NCW = self.cell_in((frame_map.to(self.map_mean.dtype) - self.map_mean) / self.map_std) + self.cell_position
        x_NCW = self.cell_norm(self.cell_mixer(x_NCW))
        weight_NCR = self.reader_logits(x_NCW).softmax(dim=1)
        read_NRW = torch.einsum("ncr,ncw->nrw", weight_NCR, self.reader_values(x_NCW))
        feature_ND: Tensor = self.frame_out(read_NRW.flatten(1))
        return feature_ND

    def text_head(self, state_BLW: Tensor, input_ids_BL: Tensor, attention_mask_BL: Tensor) -> Tensor:
        length = state_BLW.shape[1]
        if length > CONTEXT_LENGTH:
            raise ModelError(f"texts of {length} tokens do not fit this model", f"cut them to {CONTEXT_LENGTH} tokens")
        is_word = attention_mask_BL.bool()
        x = torch.where(is_word[..., None], self.text_in(state_BLW), self.pad[:length]) + self.text_position[:length]
        # Words see words; a pad sees words, itself and the pads before it.
        causal = torch.ones(length, length, dtype=torch.bool, device=x.device).tril()
        allowed = is_word[:, None, None, :] | (~is_word[:, None, :, None] & causal)
        for block in self.text_blocks:
            x = block(x, allowed)
        token_BLD: Tensor = self.text_out(self.text_norm(x))
        return token_BLD

    def text_pooled(self, state_BLW: Tensor, input_ids_BL: Tensor, attention_mask_BL: Tensor) -> Tensor:
        return _mean_over_tokens(self.text_head(state_BLW, input_ids_BL, attention_mask_BL), attention_mask_BL)


def build_offline_backbone(name: str, embed_dim: int) -> Backbone:
    """`conse` or `heads`; raises ModelError for another name or a width that ConSE cannot have."""
    if name == "conse":
        if embed_dim != ConseBackbone.embed_dim:
            raise ModelError(f"the conse backbone has width {ConseBackbone.embed_dim}, not {embed_dim}")
        return ConseBackbone()
    if name == "heads":
        return HeadsBackbone(embed_dim)
    raise ModelError(f"there is no offline backbone '{name}'", "use conse (untrained) or heads (trained)")
