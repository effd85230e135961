"""The gradient of a batch: encode, take the loss of all tokens, and go back, with the memory of one part at a time.

The loss is differentiated with respect to the tokens first, then the tokens with respect to the parameters. With one part the tokens'
graph is kept between the two. With several (`optim.encode_rows`) nothing is kept: each part is encoded a second time, under the seed it
had, and takes the gradient of its own tokens from there. That is exact (gradient caching; Gao et al., "Scaling Deep Contrastive Learning
Batch Size under Memory Limited Setup", 2021), and costs one more forward pass.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vctool.models.interaction import BranchScores
from vctool.models.losses import LossOutput, RetrievalLoss
from vctool.models.video_colbert import QueryTokens, VideoColBERT, VideoTokens
from vctool.training.encoder import BatchInputs, Encoder, first_row, joined_tokens, seed_part
from vctool.training.exchange import batch_scores
from vctool.training.precision import Precision
from vctool.training.ranks import Ranks

Clock = Callable[[], float]


class Seconds(NamedTuple):
    """Time of a step (wall time, or by the clock that was given): encoding; scores and loss, both directions; encoding backwards, with what
    is encoded again for it."""

    encode: float
    loss: float
    backward: float


class GradientPass:
    """Encodes batches and fills gradients; knows whether there are other processes."""

    def __init__(
        self,
        model: VideoColBERT,
        loss: RetrievalLoss,
        precision: Precision,
        ranks: Ranks,
        *,
        pixels: bool,
        seed: int = 0,
        clock: Clock = time.perf_counter,
    ) -> None:
        self.model, self.loss, self.precision, self.ranks, self.seed = model, loss, precision, ranks, seed
        self.encoder = Encoder(model, precision, pixels=pixels)
        self.parallel: nn.Module | None = None  # of several processes, from the first batch on
        self.clock, self.seconds = clock, Seconds(0.0, 0.0, 0.0)
        beside = [] if model.similarities is None else list(model.similarities.parameters())
        self.beside = [*loss.parameters(), *beside]  # parameters that the loss meets after the encoder: DDP does not hold them

    @torch.no_grad()
    def scores(self, inputs: BatchInputs, *place: int) -> BranchScores:
        """Scores [B, B] of the whole batch, without gradients. All processes must ask."""
        queries, clips = joined_tokens([self._encode(self.encoder, inputs, i, place) for i in range(len(inputs.parts))], inputs.own)
        return batch_scores(self.model, queries, clips, self.ranks, inputs.counts)

    def __call__(
        self, inputs: BatchInputs, *place: int, scale: Callable[[Tensor], Tensor], check: Callable[[float], None], last: bool = True
    ) -> LossOutput:
        """Add the batch's gradient to `.grad` of all parameters, averaged over processes; returns the loss of the whole batch.

        place: (step, batch of the step), for seeds. scale: makes of the loss what is differentiated. check: sees the loss's value
        before that and may raise. last: whether gradients are to be averaged now; of several batches of a step only after the last.
        """
        clock = [self.clock()]
        parts, again = len(inputs.parts), len(inputs.parts) > 1
        if self.parallel is None:
            self.parallel = self._parallel(inputs)
        with torch.no_grad() if again else self._apart(last):
            tokens = [self._encode(self.encoder if again else self.parallel, inputs, i, place) for i in range(parts)]
        clock.append(self.clock())
        queries, clips = joined_tokens(tokens, inputs.own)
        if again:
            tokens.clear()
        leaves = _leaves((queries.query_BQD, clips.frame_CFD, clips.video_CVD), [True] * 3 if again else None)
        own_queries = QueryTokens(leaves[0], queries.query_mask_BQ)
        own_clips = VideoTokens(leaves[1], clips.frame_mask_CF, leaves[2], clips.video_mask_CV)
        scores = batch_scores(self.model, own_queries, own_clips, self.ranks, inputs.counts)
        device = self.precision.device
        positive_BB = torch.from_numpy(inputs.batch.positive_BB).to(device)
        out: LossOutput = self.loss(scores, positive_BB, torch.from_numpy(inputs.batch.reversal_B).to(device))
        check(float(out.total.detach()))
        scale(out.total).backward()  # type: ignore[no-untyped-call]
        clock.append(self.clock())
        gradients = [leaf.grad for leaf in leaves]
        if not again:
            _backward((queries.query_BQD, clips.frame_CFD, clips.video_CVD), gradients)
        else:
            self._backward_again(inputs, place, gradients, last)
        if last:
            self.ranks.mean_gradients(self.beside)
        clock.append(self.clock())
        self.seconds = Seconds(*(b - a for a, b in pairwise(clock)))
        return LossOutput(*(part.detach() for part in out))

    def _parallel(self, inputs: BatchInputs) -> nn.Module:
        """The encoder as several processes share it: gradients are averaged while the backward pass goes on."""
        trained = [p for p in self.encoder.parameters() if p.requires_grad]
        if self.ranks.world == 1 or not trained:
            return self.encoder
        # Towers have parameters that no token passes through (CLIP's own temperature), for which DDP would wait.
        queries, clips = self._encode(self.encoder, inputs._replace(parts=[first_row(inputs.parts[0])]), 0, (0, 0))
        reached = [t.sum() for t in (queries.query_BQD, clips.frame_CFD, clips.video_CVD) if t.requires_grad]
        found = torch.autograd.grad(reached, trained, allow_unused=True)
        # The batch norms' statistics stay each process's own. Newer versions of torch have another word for it.
        known = inspect.signature(DistributedDataParallel.__init__).parameters
        buffers: dict[str, Any] = {"forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers": False}
        # No `device_ids`: the encoder moves its inputs itself.
        return DistributedDataParallel(self.encoder, find_unused_parameters=any(g is None for g in found), **buffers)

    def _encode(self, encoder: nn.Module | None, inputs: BatchInputs, part: int, place: tuple[int, ...]) -> tuple[QueryTokens, VideoTokens]:
        assert encoder is not None
        seed_part(self.seed, *place, self.ranks.rank, part)
        tokens: tuple[QueryTokens, VideoTokens] = encoder(inputs.parts[part])
        return tokens

    def _apart(self, last: bool) -> AbstractContextManager[object]:
        """While it lasts gradients stay in their process."""
        return nullcontext() if last or not isinstance(self.parallel, DistributedDataParallel) else self.parallel.no_sync()

    def _backward_again(self, inputs: BatchInputs, place: tuple[int, ...], gradients: list[Tensor | None], last: bool) -> None:
        begin = 0
        for i, part in enumerate(inputs.parts):
            span = slice(begin, begin + len(part.row_B))
            begin = span.stop
            with self._apart(last and i == len(inputs.parts) - 1):
                queries, clips = self._encode(self.parallel, inputs, i, place)
                own = [None if gradient is None else gradient[span] for gradient in gradients]
                _backward((queries.query_BQD, clips.frame_CFD, clips.video_CVD), own)


def _leaves(tokens: tuple[Tensor, ...], wanted: list[bool] | None) -> list[Tensor]:
    """Copies of the tokens that gradients end at, where the tokens have any (or as `wanted` says)."""
    flags = [t.requires_grad for t in tokens] if wanted is None else wanted
    return [token.detach().requires_grad_(flag) for token, flag in zip(tokens, flags, strict=True)]


def _backward(tokens: tuple[Tensor, ...], gradients: list[Tensor | None]) -> None:
    pairs = [(t, g) for t, g in zip(tokens, gradients, strict=True) if g is not None and t.requires_grad]
    if pairs:
        torch.autograd.backward([t for t, _ in pairs], [g for _, g in pairs])
