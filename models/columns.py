"""Columns of packed rows: the real tokens of a row stand in front, and its length says how many there are."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["columns_at", "last_columns", "real_columns"]


def real_columns(n: int, lengths: Tensor) -> Tensor:
    """(batch, n) bool: which of n columns lie before the end of their row, `lengths` (batch,) integer."""
    return torch.arange(n, device=lengths.device) < lengths[:, None]


def columns_at(x: Tensor, index: Tensor) -> Tensor:
    """Columns of `x` (batch, n, ...) by their index (batch, k), zero where it is negative; (batch, k, ...)."""
    if x.shape[1] == 0:
        return x.new_zeros(x.shape[0], index.shape[1], *x.shape[2:])
    trailing = (1,) * (x.ndim - 2)
    wide = index.clamp(min=0).reshape(*index.shape, *trailing).expand(-1, -1, *x.shape[2:])
    return x.gather(1, wide).masked_fill((index < 0).reshape(*index.shape, *trailing), 0)


def last_columns(x: Tensor, ends: Tensor, count: int) -> Tensor:
    """The `count` columns before column `ends` (batch,) of each row, zero where there are none; (batch, count, ...)."""
    return columns_at(x, ends[:, None] - count + torch.arange(count, device=x.device))
