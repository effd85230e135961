"""Attention of text towers, computed again outside the fused kernels, against what the layers themselves do with it."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the models need torch (the extra `train`)")

from vctool.models.temporal import Block  # noqa: E402
from vctool.models.text_attention import _of_block, _of_multihead  # noqa: E402


@torch.no_grad()
def test_a_blocks_weights_rebuild_its_output() -> None:
    torch.manual_seed(0)
    block = Block(16, 4, 2.0).eval()
    x = torch.randn(2, 5, 16)
    allowed = torch.rand(2, 1, 5, 5) < 0.6
    allowed |= torch.eye(5, dtype=torch.bool)
    weight = _of_block(block, x, allowed)
    assert torch.allclose(weight.sum(dim=-1), torch.ones(2, 4, 5))
    assert not weight[~allowed.expand(2, 4, 5, 5)].any()
    value = block.qkv(block.norm_attention(x))[..., 32:].reshape(2, 5, 4, 4).transpose(1, 2)
    middle = x + block.out((weight @ value).transpose(1, 2).reshape(2, 5, 16))
    torch.testing.assert_close(middle + block.mlp(block.norm_mlp(middle)), block(x, allowed))


@torch.no_grad()
@pytest.mark.parametrize("batch_first", [True, False])
def test_multihead_weights_are_those_that_torch_gives(batch_first: bool) -> None:
    torch.manual_seed(0)
    layer = torch.nn.MultiheadAttention(12, 3, batch_first=batch_first).eval()
    x = torch.randn(2, 5, 12) if batch_first else torch.randn(5, 2, 12)
    causal = torch.full((5, 5), float("-inf")).triu(1)
    _, wanted = layer(x, x, x, attn_mask=causal, need_weights=True, average_attn_weights=False)
    named: dict[str, Any] = {"attn_mask": causal}
    torch.testing.assert_close(_of_multihead(layer, (x, x, x), named), wanted)


@torch.no_grad()
def test_an_open_clip_tower_is_read_layer_by_layer() -> None:
    open_clip = pytest.importorskip("open_clip", reason="open_clip is part of the extra `train`")
    from vctool.config import BackboneConfig, ModelConfig, QueryConfig, TemporalConfig
    from vctool.models.checkpoint import build_model
    from vctool.models.text_attention import text_attention

    architecture = "toy-attention"
    vision = {"image_size": 32, "patch_size": 16, "width": 32, "layers": 1, "head_width": 16}
    text = {"context_length": 8, "vocab_size": 50, "width": 16, "layers": 2, "heads": 2}
    open_clip.factory._MODEL_CONFIGS[architecture] = {"embed_dim": 12, "custom_text": True, "vision_cfg": vision, "text_cfg": text}
    try:
        config = ModelConfig(
            name="toy",
            embed_dim=12,
            frames=2,
            backbone=BackboneConfig(kind="open_clip", name=architecture),
            query=QueryConfig(max_length=8),
            temporal=TemporalConfig(kind="none"),
        )
        model = build_model(config).eval()
    finally:
        open_clip.factory._MODEL_CONFIGS.pop(architecture)
    ids, mask = torch.randint(1, 50, (3, 8)), torch.ones(3, 8, dtype=torch.int64)
    layers, query = text_attention(model, ids, mask)
    assert [tuple(layer.shape) for layer in layers] == [(3, 8, 8)] * 2
    for layer in layers:
        assert torch.allclose(layer.sum(dim=-1), torch.ones(3, 8), atol=1e-5)
        assert not layer.triu(1).any()  # a causal tower looks back only
    torch.testing.assert_close(query, model.encode_query(ids, mask).query_BQD)
