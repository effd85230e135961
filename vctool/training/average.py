"""A running average of the weights: what is evaluated and exported instead of the last weights where the recipe asks for it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Average:
    """`average = d * average + (1 - d) * weights` after each step; d rises from 0.1 to `decay`, or the start would weigh on it for long.

    At step n (from 0) d is the smaller of `decay` and (1 + n) / (10 + n), so a run of a few hundred steps has an average worth having.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], decay: float) -> None:
        self.parameters, self.decay = list(parameters), decay
        self.values = [p.detach().clone() for p in self.parameters]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights as they are after `step`."""
        share = 1 - min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.values, [p.detach() for p in self.parameters], share)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """While it lasts the model has the average for its weights."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def state(self) -> list[Tensor]:
        """Copies on the CPU, in the order of the parameters."""
        return [value.cpu().clone() for value in self.values]

    def load(self, state: Sequence[Tensor]) -> None:
        """Put back what `state` gave."""
        for value, saved in zip(self.values, state, strict=True):
            value.copy_(saved)

    @torch.no_grad()
    def _swap(self) -> None:
        for parameter, value in zip(self.parameters, self.values, strict=True):
            held = parameter.detach().clone()
            parameter.copy_(value)
            value.copy_(held)
