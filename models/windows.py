r"""Attention over the cells of one scale, whole or in a sliding window.

A window is cut into blocks, so that torch's fused attention does the work and no m×m tensor is ever made.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.nn.functional import pad, scaled_dot_product_attention

__all__ = ["attend_cells"]


def attend_cells(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    window: int | None,
    causal: bool,
    real_cells: Tensor | None = None,
) -> Tensor:
    """Attention of queries that belong to cells, over the cells of one scale.

    Args:
        queries: (batch, m, c, heads, d_head), c queries for each of m cells.
        keys: (batch, m, heads, d_head).
        values: (batch, m, heads, d_head).
        window: as in `MultiscaleAttention`; None: everything.
        causal: queries of cell j see no cell after j.
        real_cells: (batch,) number of cells that exist in each row, for bidirectional attention; None: all.

    Returns:
        As `queries`. Queries of cells that do not exist get some finite answer.
    """
    m = keys.shape[1]
    if window is None or m <= (window if causal else window // 2 + 1):
        return _attend_all(queries, keys, values, causal, real_cells)
    return _attend_window(queries, keys, values, window, causal, real_cells)


def _attend_all(q: Tensor, k: Tensor, v: Tensor, causal: bool, real_cells: Tensor | None) -> Tensor:
    batch, m, c, heads, d_head = q.shape
    if causal:
        # One causal attention for each of the c queries of a cell: no mask is made and half of the scores are skipped.
        q = q.permute(0, 2, 3, 1, 4).reshape(batch * c, heads, m, d_head)
        k, v = (x[:, None].expand(-1, c, -1, -1, -1).reshape(batch * c, m, heads, d_head) for x in (k, v))
        y = scaled_dot_product_attention(q, k.transpose(1, 2), v.transpose(1, 2), is_causal=True)
        return y.reshape(batch, c, heads, m, d_head).permute(0, 3, 1, 2, 4)
    mask = None
    if real_cells is not None:  # a row without any token still sees one cell, which is zero, rather than none
        mask = (torch.arange(m, device=q.device) < real_cells.clamp(min=1)[:, None])[:, None, None]
    y = scaled_dot_product_attention(
        q.flatten(1, 2).transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=mask
    )
    return y.transpose(1, 2).unflatten(1, (m, c))


def _attend_window(q: Tensor, k: Tensor, v: Tensor, window: int, causal: bool, real_cells: Tensor | None) -> Tensor:
    """Cuts the cells into blocks of half a window; three blocks of keys hold all that a block of queries may see.

    They are the block itself and, causal, the two before, or else the one before and the one after.
    """
    batch, m, c, heads, d_head = q.shape
    size = (window + 1) // 2
    blocks = -(-m // size)
    before = 2 if causal else 1
    end_padding = blocks * size - m

    def neighbourhoods(x: Tensor) -> Tensor:
        x = pad(x, (0, 0, 0, 0, before * size, end_padding + (2 - before) * size))
        return cast(Tensor, _Neighbourhoods.apply(x, size)).flatten(0, 1)  # (batch · blocks, heads, 3 · size, d_head)

    if end_padding:
        q = pad(q, (0, 0, 0, 0, 0, 0, 0, end_padding))
    q = q.reshape(batch * blocks, size * c, heads, d_head)
    seen = _window_mask(m, window, causal, real_cells, q.device)  # (batch or 1, blocks, size, 3 · size)
    mask = torch.zeros(seen.shape, dtype=q.dtype, device=q.device).masked_fill_(~seen, -math.inf)
    mask = mask[:, :, :, None].expand(batch, -1, -1, c, -1).reshape(batch * blocks, 1, size * c, 3 * size)
    y = scaled_dot_product_attention(q.transpose(1, 2), neighbourhoods(k), neighbourhoods(v), attn_mask=mask)
    return y.transpose(1, 2).reshape(batch, blocks * size, c, heads, d_head)[:, :m]


class _Neighbourhoods(torch.autograd.Function):
    """(batch, (blocks + 2)·size, heads, d_head) to (batch, blocks, heads, 3·size, d_head): blocks with the next two.

    A view, so that nothing is copied forward where there is one row; backward sums three shifted pieces, which costs
    less than the derivatives of slices or of `unfold`.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, size: int) -> Tensor:
        return x.unfold(1, 3 * size, size).transpose(3, 4)

    @staticmethod
    def setup_context(ctx: FunctionCtx, inputs: tuple[Tensor, int], output: Tensor) -> None:
        del output
        ctx.size = inputs[1]  # pyright: ignore[reportAttributeAccessIssue]

    @staticmethod
    def backward(ctx: FunctionCtx, *cotangents: Tensor) -> tuple[Tensor, None]:
        size: int = ctx.size  # pyright: ignore[reportAttributeAccessIssue]
        first, second, third = cotangents[0].transpose(2, 3).unflatten(2, (3, size)).unbind(2)
        blocks = first.shape[1]
        total = first.new_empty(first.shape[0], blocks + 2, *first.shape[2:])
        total[:, :blocks] = first
        total[:, blocks:] = 0
        total[:, 1 : blocks + 1] += second
        total[:, 2:] += third
        return total.flatten(1, 2), None


def _window_mask(m: int, window: int, causal: bool, real_cells: Tensor | None, device: torch.device) -> Tensor:
    """Who sees whom within the three blocks: (batch or 1, blocks, size, 3 · size) bool."""
    size = (window + 1) // 2
    query = torch.arange(size, device=device)[:, None]
    key = torch.arange(3 * size, device=device) - (2 if causal else 1) * size
    distance = key - query
    near = (distance <= 0) & (distance > -window) if causal else distance.abs() <= window // 2
    cell = torch.arange(0, m, size, device=device)[:, None] + key
    exists = (cell >= 0) & (cell < m) if real_cells is None else (cell >= 0) & (cell < real_cells[:, None, None])
    # A cell sees itself even where it does not exist, so that no softmax is empty; nobody reads its answer.
    return (near & exists.reshape(-1, cell.shape[0], 1, 3 * size)) | (distance == 0)
