"""How well a language model guesses a text: the loss of every token, with one solver or another."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from maha_opt.aggregation_base import Aggregation
from models.generation import evaluating

__all__ = ["Guesses", "guess", "solved_by"]


@dataclass(frozen=True)
class Guesses:
    """What a model makes of rows of tokens, each guessed from those before it in the row.

    Attributes:
        losses: (rows, n − 1) float64, nats, of every token but the first.
        best: (rows, n − 1) int64, the likeliest token.
        seconds: that it took.
    """

    losses: Tensor
    best: Tensor
    seconds: float

    @property
    def loss(self) -> float:
        """Mean loss in nats per token."""
        return float(self.losses.mean())

    @property
    def perplexity(self) -> float:
        """Its exponential."""
        return math.exp(self.loss)

    def bits_per_byte(self, bytes_per_token: float = 1.0) -> float:
        """The mean loss in bits for each byte of the text."""
        return self.loss / math.log(2) / bytes_per_token

    def by_position(self, borders: list[int]) -> list[float]:
        """Mean loss in nats of the tokens at positions [a, b) of their row, for each pair of neighbours in `borders`.

        The first token of a row has position 0 and is not guessed.
        """
        position = torch.arange(1, self.losses.shape[1] + 1)
        return [
            float(self.losses[:, (position >= a) & (position < b)].mean())
            for a, b in zip(borders[:-1], borders[1:], strict=True)
        ]


@torch.no_grad()
def guess(model: PreTrainedModel, tokens: Tensor, batch: int = 8) -> Guesses:
    """Guesses every token of every row.

    Args:
        model: A causal language model.
        tokens: (rows, n) int64, n ≥ 2.
        batch: Rows at once.
    """
    began, losses, best = time.perf_counter(), [], []
    with evaluating(model):
        for rows in tokens.split(batch):
            rows = rows.to(model.device)
            logits = model(rows).logits[:, :-1]
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            losses.append(cross_entropy(logits.transpose(1, 2), rows[:, 1:], reduction="none").double().cpu())
            best.append(logits.argmax(-1).cpu())
    return Guesses(torch.cat(losses), torch.cat(best), time.perf_counter() - began)


@contextmanager
def solved_by(model: nn.Module, solver: str, **options: object) -> Iterator[None]:
    """Within it, every fusion of a model is solved by another solver; afterwards by its own again."""
    fusions = [module for module in model.modules() if isinstance(module, Aggregation)]
    own = [(fusion.solver, fusion.solver_options) for fusion in fusions]
    try:
        for fusion in fusions:
            fusion.solver, fusion.solver_options = solver, dict(options)
        yield
    finally:
        for fusion, (name, before) in zip(fusions, own, strict=True):
            fusion.solver, fusion.solver_options = name, before
