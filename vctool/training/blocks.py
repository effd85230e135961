"""What may be done to the blocks of a transformer for the sake of memory or time: computed again backwards, or compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def repeated_blocks(model: nn.Module) -> list[nn.Module]:
    """Modules that stand in a row of their like, at least two, and have parts: the layers of towers and of the temporal encoder."""
    found: list[nn.Module] = []
    for row in model.modules():
        if not isinstance(row, (nn.ModuleList, nn.Sequential)):
            continue
        kinds = {type(block) for block in row}
        if len(row) > 1 and len(kinds) == 1 and any(True for _ in row[0].children()):
            found += [block for block in row if not any(block is known for known in found)]
    return found


def recompute_blocks(model: nn.Module) -> int:
    """Keep only the inputs of each repeated block for the backward pass, and compute the rest again there; returns how many blocks."""
    blocks = repeated_blocks(model)
    for block in blocks:
        block.forward = _computed_again(block.forward)
    return len(blocks)


def compile_blocks(model: nn.Module) -> int:
    """`torch.compile` for each repeated block. Blocks of one kind share the code; names of weights stay. Returns how many blocks."""
    blocks = repeated_blocks(model)
    for block in blocks:
        block.compile()
    return len(blocks)


def _computed_again(forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(*given: Any, **named: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*given, **named)
        return checkpoint(forward, *given, use_reentrant=False, **named)

    return run
