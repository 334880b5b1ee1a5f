r"""From cells back to tokens, by nearest neighbour.

Token `t` reads cell `floor(t / r^l)` of scale `l`, the one it belongs to. In a causal model it reads the last complete
one, `floor((t+1) / r^l) − 1`; before there is one, the scale does not exist for that token.

So the tokens that read one cell are `r^l` neighbours: those of the cell itself, or, where causal, those from the last
token of the cell on. `group_tokens` lays tokens out in that way and `ungroup_tokens` undoes it; upsampling is a cell
repeated over its group. Rows are packed: the real tokens stand in front.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.nn.functional import pad

from models.columns import real_columns
from models.decomposition import Packing

__all__ = ["available_scales", "group_tokens", "stack_at_tokens", "to_tokens", "ungroup_tokens", "upsample"]


def group_tokens(x: Tensor, stride: int, *, causal: bool) -> Tensor:
    """Groups the tokens by the cell that they read.

    Args:
        x: (batch, n, ...).
        stride: tokens in a cell, r^l.
        causal: whether a token reads the last complete cell rather than its own.

    Returns:
        (batch, cells, stride, ...) with cells = floor(n / stride) where causal, else ceil. Causal: the first
        `stride − 1` tokens read no cell and are left out. Beyond the last token there are zeros.
    """
    n = x.shape[1]
    cells, skipped = (n // stride, stride - 1) if causal else (-(-n // stride), 0)
    x = x[:, skipped:]
    return _pad_columns(x, 0, cells * stride - x.shape[1]).unflatten(1, (cells, stride))


def ungroup_tokens(groups: Tensor, n: int, *, causal: bool) -> Tensor:
    """The inverse of `group_tokens`: (batch, cells, stride, ...) to (batch, n, ...), zero for tokens left out there."""
    stride = groups.shape[2]
    skipped = stride - 1 if causal else 0
    return _pad_columns(groups.flatten(1, 2), skipped, 0)[:, :n]


def to_tokens(cells: Tensor, stride: int, n: int, *, causal: bool) -> Tensor:
    """Every token's cell: (batch, cells, d) to (batch, n, d), zero where the token reads none."""
    return stack_at_tokens([cells], [stride], n, causal=causal)[:, :, 0]


def stack_at_tokens(cells: Sequence[Tensor], strides: Sequence[int], n: int, *, causal: bool) -> Tensor:
    """Every token's cell of several scales.

    Args:
        cells: for each of them, (batch, cells, d).
        strides: for each of them, the tokens in a cell.
        n: number of tokens.
        causal: whether a token reads the last complete cell rather than its own.

    Returns:
        (batch, n, number of scales, d), zero where there is no cell.
    """
    return cast(Tensor, _StackAtTokens.apply(n, tuple(strides), causal, *cells))


class _StackAtTokens(torch.autograd.Function):
    """Writes every cell where it is read, in one pass over the result; padding and stacking would make three."""

    generate_vmap_rule = True

    @staticmethod
    def forward(n: int, strides: tuple[int, ...], causal: bool, *cells: Tensor) -> Tensor:
        batch, _, d = cells[0].shape
        stacked = cells[0].new_empty(batch, n, len(cells), d)
        for scale, (cell, stride) in enumerate(zip(cells, strides, strict=True)):
            first, whole, end = _read_groups(n, stride, causal)
            stacked[:, :first, scale] = 0
            if whole:
                stacked[:, first:end, scale].unflatten(1, (whole, stride)).copy_(cell[:, :whole, None])
            if end < n:
                stacked[:, end:, scale] = cell[:, whole:]
        return stacked

    @staticmethod
    def setup_context(ctx: FunctionCtx, inputs: tuple[Any, ...], output: Tensor) -> None:
        del output
        ctx.layout = inputs[:3]  # pyright: ignore[reportAttributeAccessIssue]

    @staticmethod
    def backward(ctx: FunctionCtx, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        n, strides, causal = ctx.layout  # pyright: ignore[reportAttributeAccessIssue]
        gradients = []
        for stride, g in zip(strides, cotangents[0].unbind(2), strict=True):
            first, whole, end = _read_groups(n, stride, causal)
            sums = g[:, first:end]
            if stride > 1:
                sums = sums.unflatten(1, (whole, stride)).sum(2)
            gradients.append(torch.cat([sums, g[:, end:].sum(1, keepdim=True)], dim=1) if end < n else sums)
        return None, None, None, *gradients


def _read_groups(n: int, stride: int, causal: bool) -> tuple[int, int, int]:
    """The first token that reads a cell, how many cells are read by `stride` tokens, and the token after the last one.

    The tokens from there on read one more cell.
    """
    first = min(stride - 1, n) if causal else 0
    whole = (n - first) // stride
    return first, whole, first + whole * stride


def available_scales(n: int, num_scales: int, compression_ratio: int, lengths: Tensor, *, causal: bool) -> Tensor:
    """Which scales exist for which token: (batch, n, num_scales) bool.

    Scale 0 always does, so that no set of scales is empty; a padded token has nothing else, and in a causal model a
    token has the scales that have a complete cell by then.

    Args:
        n: number of tokens.
        num_scales: number of scales L.
        compression_ratio: r.
        lengths: (batch,) integer, number of real tokens of each (packed) row.
        causal: whether only complete cells exist.
    """
    token = torch.arange(n, device=lengths.device)[:, None]
    strides = torch.tensor([compression_ratio**scale for scale in range(num_scales)], device=lengths.device)
    exists = token + 1 >= strides if causal else strides > 0
    real = token < lengths[:, None, None]
    return (exists & real) | (strides == 1)


def upsample(
    cells: Sequence[Tensor],
    compression_ratio: int,
    *,
    causal: bool = False,
    packing: Packing | None = None,
) -> tuple[Tensor, Tensor]:
    """Brings the cells of every scale to the tokens, by nearest neighbour.

    Args:
        cells: for each scale l, (batch, n_l, d), scale 0 having one cell per token; as a decomposition returns them.
        compression_ratio: r.
        causal: whether a token reads the last complete cell rather than its own.
        packing: the packing that the decomposition returned, if it was given a mask; it is undone here.

    Returns:
        Scale outputs (batch, n, L, d), in the original order of the tokens, zero where the scale does not exist for the
        token and where the token is padding; and `available` (batch, n, L) bool.

    Raises:
        ValueError: `cells` is empty or a scale has the wrong number of cells.
    """
    if not cells:
        raise ValueError("cells must hold at least one scale, but is empty.")
    batch, n, _ = cells[0].shape
    strides = [compression_ratio**scale for scale in range(len(cells))]
    for scale, cell in enumerate(cells):
        expected = n // strides[scale] if causal else -(-n // strides[scale])
        if cell.shape != (batch, expected, cells[0].shape[2]):
            needed = (batch, expected, cells[0].shape[2])
            raise ValueError(f"cells[{scale}] must have shape {needed}, but got {tuple(cell.shape)}.")
    lengths = torch.full((batch,), n, device=cells[0].device) if packing is None else packing.lengths
    available = available_scales(n, len(cells), compression_ratio, lengths, causal=causal)
    y = stack_at_tokens(cells, strides, n, causal=causal)
    if packing is None:
        return y, available
    real = real_columns(n, lengths)
    return packing.unpack(y.masked_fill(~real[..., None, None], 0)), packing.unpack(available)


def _pad_columns(x: Tensor, before: int, after: int) -> Tensor:
    return pad(x, (*(0, 0) * (x.ndim - 2), before, after)) if before or after else x  # pad would copy
