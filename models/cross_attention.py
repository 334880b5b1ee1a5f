"""Attention to a memory: what an encoder made of another sequence."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from models.columns import as_mask

__all__ = ["CrossAttention", "Memory"]


@dataclass
class Memory:
    """Keys and values of a memory, made once for all steps of a generation.

    Attributes:
        keys: (batch, heads, m, d_head).
        values: (batch, heads, m, d_head).
        mask: (batch, 1, 1, m) bool, True where there is something to see; None: everywhere.
    """

    keys: Tensor
    values: Tensor
    mask: Tensor | None


class CrossAttention(nn.Module):
    """Plain attention of every token to all of a memory (Vaswani et al., 2017); its cost is n·m scores.

    Args:
        d_model: number of channels, of the memory too.
        num_heads: number of heads; divides `d_model`.

    Raises:
        ValueError: `num_heads` does not divide `d_model`.
    """

    def __init__(self, d_model: int, num_heads: int) -> None:
        super().__init__()
        if num_heads < 1 or d_model % num_heads:
            raise ValueError(f"num_heads must divide d_model = {d_model}, but got {num_heads}.")
        self.num_heads = num_heads
        self.query = nn.Linear(d_model, d_model, bias=False)
        self.key = nn.Linear(d_model, d_model, bias=False)
        self.value = nn.Linear(d_model, d_model, bias=False)
        self.output = nn.Linear(d_model, d_model)

    def remember(self, memory: Tensor, mask: Tensor | None = None) -> Memory:
        """Keys and values of a memory.

        Args:
            memory: (batch, m, d_model), m ≥ 1.
            mask: (batch, m) bool or 0/1, True where it is real; None: everywhere. A row without any sees all of it.

        Raises:
            TypeError: the mask is neither boolean nor integer.
            ValueError: it has another shape.
        """
        if mask is not None:
            mask = as_mask("memory_mask", mask, memory.shape[:2])
            mask = (mask | ~mask.any(dim=1, keepdim=True))[:, None, None]
        return Memory(self._heads(self.key(memory)), self._heads(self.value(memory)), mask)

    def forward(self, x: Tensor, memory: Memory) -> Tensor:
        """What the tokens `x` (batch, n, d_model) read in the memory; of the same shape."""
        y = scaled_dot_product_attention(self._heads(self.query(x)), memory.keys, memory.values, attn_mask=memory.mask)
        return self.output(y.transpose(1, 2).flatten(2))

    def probabilities(self, x: Tensor, memory: Memory) -> Tensor:
        """The probabilities with which `forward` averages the values, written out: (batch, heads, n, m)."""
        queries, keys = self._heads(self.query(x)), memory.keys
        dtype = torch.promote_types(queries.dtype, torch.float32)
        scores = queries.to(dtype) @ keys.to(dtype).mT / queries.shape[3] ** 0.5
        return (scores if memory.mask is None else scores.masked_fill(~memory.mask, -torch.inf)).softmax(3)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.num_heads, -1)).transpose(1, 2)
