"""Columns of packed rows: the real tokens of a row stand in front, and its length says how many there are."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["as_mask", "columns_at", "last_columns", "real_columns"]


def as_mask(name: str, mask: Tensor, shape: Sequence[int]) -> Tensor:
    """A mask that a user gave, bool or 0/1, as booleans.

    Raises:
        TypeError: it is neither boolean nor integer; the message calls it by its `name`.
        ValueError: it has another shape.
    """
    if mask.is_floating_point() or mask.is_complex():
        raise TypeError(f"{name} must be boolean or 0/1, True where the token is real, but got {mask.dtype}.")
    if mask.shape != tuple(shape):
        raise ValueError(f"{name} must have shape {tuple(shape)}, but got {tuple(mask.shape)}.")
    return mask.bool()


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
