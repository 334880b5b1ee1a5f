"""Rotary positions: channels turned by their position, so that scores depend on distances only."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["ROTARY_BASE", "middle_of_cell", "rotate"]

ROTARY_BASE = 10000.0
"""The base of Su et al. (2021)."""


def middle_of_cell(cell: Tensor, stride: int) -> Tensor:
    """The position of cells of `stride` tokens, in tokens: `j·stride + (stride − 1)/2`, in at least float32."""
    return cell.to(torch.promote_types(cell.dtype, torch.float32)) * stride + (stride - 1) / 2


def rotate(x: Tensor, position: Tensor, base: float) -> Tensor:
    """Rotary positions (Su et al., 2021): turns pairs of channels by the position times a falling frequency.

    Args:
        x: (batch, m, heads, d_head), d_head even; computed in float32 at least, returned in its own type.
        position: (m,) or (batch, m), in tokens.
        base: ratio of the highest to the lowest frequency, nearly.
    """
    half = x.shape[3] // 2
    dtype = torch.promote_types(x.dtype, torch.float32)
    frequency = base ** (-torch.arange(half, device=x.device, dtype=dtype) / half)
    angle = (position.to(dtype)[..., None] * frequency)[..., None, :]  # (…, m, 1, half)
    first, second = x.to(dtype).split(half, dim=3)
    turned = (first * angle.cos() - second * angle.sin(), second * angle.cos() + first * angle.sin())
    return torch.cat(turned, dim=3).to(x.dtype)
