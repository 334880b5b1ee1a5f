"""Sums over coordinates whose rounding does not depend on where an item stands in the batch."""

from __future__ import annotations

from torch import Tensor, cat

BLOCK = 4
"""Up to so many terms torch's CPU kernels add one after the other, in every column of a batch."""


def ordered_sum(x: Tensor, dim: int = 0) -> Tensor:
    """``x.sum(dim)``, taken in blocks of four, then of four blocks, and so on.

    torch adds more terms than that in an order that depends on the number of columns and on which of them it is. Items
    leave a batch while it is solved, so their neighbours would change the last digits of those that stay, and a causal
    model would show at a token that something came after it.

    Args:
        x: At least ``dim + 1`` dimensions, the batch last.
        dim: Not negative.
    """
    while x.shape[dim] > BLOCK:
        size = x.shape[dim]
        whole = size - size % BLOCK
        blocks = x.narrow(dim, 0, whole).unflatten(dim, (-1, BLOCK)).sum(dim + 1)
        x = blocks if whole == size else cat((blocks, x.narrow(dim, whole, size - whole)), dim)
    return x.sum(dim)
