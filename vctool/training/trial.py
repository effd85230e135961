"""One step on made-up numbers: what it holds and how long it takes, before a run has any features.

Memory is reckoned: weights, gradients and the optimizer's state from the number of parameters; activations from what the forward
passes of one and of two rows keep for the backward pass (linear in rows); tokens and scores from their shapes. Time is measured, by
one whole step where that is a matter of seconds, else reckoned from two rows.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vctool.models.losses import RetrievalLoss
from vctool.models.tiled_meanmaxsim import KEPT_BYTES
from vctool.models.video_colbert import VideoColBERT
from vctool.training.batches import Batch
from vctool.training.encoder import BatchInputs, Encoder, RowInputs
from vctool.training.gradients import GradientPass
from vctool.training.optimizer import build_optimizer, trained_parameters
from vctool.training.precision import Precision
from vctool.training.ranks import ALONE
from vctool.training.recipe import OptimConfig
from vctool.training.texts import TextInput

WHOLE_STEP_SECONDS = 20.0  # a whole step is tried where it takes less than this, by what two rows took
_WORDS = 12  # of a made-up caption, with its ends


def try_step(model: VideoColBERT, loss: RetrievalLoss, precision: Precision, optim: OptimConfig, row: tuple[int, ...]) -> dict[str, Any]:
    """row: shape of a clip's frames, pixels [F, S, S, 3] or frame maps [F, ...]. The model's weights are changed.

    Keys: groups (name, parameters, lr, weight_decay), bytes (weights, gradients, optimizer, average, activations, tokens, total),
    rows_at_once, step (seconds, rows_tried).
    """
    optimizer = build_optimizer(model, loss, optim)
    pixels = len(row) == 4 and row[-1] == 3 and row[1] == row[2]
    gradients = GradientPass(model, loss, precision, ALONE, pixels=pixels)
    at_once = min(optim.encode_rows or optim.batch, optim.batch)
    first, second = (_kept_bytes(gradients.encoder, _inputs(model, precision, row, rows, rows, pixels)) for rows in (1, 2))
    seconds, tried = _timed(gradients, model, precision, optim, row, pixels, optimizer)
    trained = sum(p.numel() * p.element_size() for p in trained_parameters(model))
    held = {
        "weights": sum(p.numel() * p.element_size() for p in model.parameters()),
        "gradients": trained,
        "optimizer": 2 * trained,
        "average": trained if optim.ema else 0,
        "activations": first + (second - first) * (at_once - 1),
        "tokens": _token_bytes(model, optim.batch),
    }
    return {
        "groups": [
            {
                "name": _group_name(model, group["params"]),
                "parameters": sum(p.numel() for p in group["params"]),
                "lr": group["peak_lr"],
                "weight_decay": group["weight_decay"],
            }
            for group in optimizer.param_groups
        ],
        "bytes": {**held, "total": sum(held.values())},
        "rows_at_once": at_once,
        "step": {"seconds": seconds, "rows_tried": tried},
    }


def _timed(
    gradients: GradientPass,
    model: VideoColBERT,
    precision: Precision,
    optim: OptimConfig,
    row: tuple[int, ...],
    pixels: bool,
    optimizer: torch.optim.Optimizer,
) -> tuple[float, int]:
    """(seconds of an optimizer step, rows it was found with)."""

    def run(rows: int, at_once: int) -> float:
        inputs = _inputs(model, precision, row, rows, at_once, pixels)
        began = time.perf_counter()
        gradients(inputs, 0, 0, scale=lambda total: total, check=lambda value: None)
        if precision.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    few = min(2, optim.batch)
    run(few, few)  # the first call chooses kernels and fills caches
    passes = 4 / 3 if 0 < optim.encode_rows < optim.batch else 1.0  # caching encodes twice: a backward pass costs two forward ones
    reckoned = run(few, few) / few * optim.batch * passes
    if reckoned > WHOLE_STEP_SECONDS:
        optimizer.zero_grad(set_to_none=True)
        return reckoned * optim.accumulate, few
    seconds = run(optim.batch, optim.encode_rows or optim.batch)
    began = time.perf_counter()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return seconds * optim.accumulate + time.perf_counter() - began, optim.batch


def _inputs(model: VideoColBERT, precision: Precision, row: tuple[int, ...], rows: int, at_once: int, pixels: bool) -> BatchInputs:
    draw = torch.Generator().manual_seed(0)
    length = model.config.query.max_length
    ids, mask = torch.zeros(rows, length, dtype=torch.int64), (torch.arange(length) < min(_WORDS, length)).long().expand(rows, -1)
    state = None
    if not pixels:
        with torch.no_grad():
            one = model.backbone.text_states(ids[:1].to(precision.device), mask[:1].to(precision.device))
        state = torch.randn(rows, *one.shape[1:], generator=draw).half()
    shape = (rows, *row)
    frames = torch.randint(0, 255, shape, dtype=torch.uint8, generator=draw) if pixels else torch.randn(shape, generator=draw).half()
    parts = []
    for start in range(0, rows, at_once):
        span = slice(start, min(start + at_once, rows))
        count = span.stop - start
        text = TextInput(None if state is None else state[span], ids[span], mask[span])
        never = torch.zeros(count, dtype=torch.bool)
        parts.append(RowInputs(frames[span], torch.ones(count, row[0], dtype=torch.bool), torch.arange(count), never, text))
    batch = Batch(np.arange(rows), np.zeros(rows, np.bool_), np.arange(rows), np.eye(rows, dtype=np.bool_))
    return BatchInputs(batch, [rows], rows, parts)


def _kept_bytes(encoder: Encoder, inputs: BatchInputs) -> int:
    """Bytes that a forward pass keeps for the backward pass, beside parameters."""
    known = {p.untyped_storage().data_ptr() for p in encoder.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        tokens = encoder(inputs.parts[0])
    del tokens
    return sum(kept.values())


def _token_bytes(model: VideoColBERT, rows: int) -> int:
    """Tokens of the whole batch with their gradients, float32, two matrices of scores with theirs, and the kept places of maxima."""
    config = model.config
    queries = config.query.max_length if config.query.policy == "tokens" else 1
    video = config.frames + config.temporal.expansion_tokens if config.temporal.kind == "transformer" else config.frames
    tokens = rows * (queries + config.frames + video) * config.embed_dim * 4 * 2
    return tokens + 2 * min(rows * rows * queries, KEPT_BYTES) + 2 * 2 * rows * rows * 4


def _group_name(model: VideoColBERT, parameters: list[torch.nn.Parameter]) -> str:
    pretrained = {id(p) for p in model.backbone.pretrained_parameters()} if not model.backbone.frozen_parameters() else set()
    part = "pretrained" if any(id(p) in pretrained for p in parameters) else "new"
    return f"{part}, {'matrices' if all(p.ndim > 1 for p in parameters) else 'vectors and scalars'}"
